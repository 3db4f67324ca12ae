//! Limits of one request and its answer: the time that each may take, and their bytes in memory. Also handles a request
//! that is answered before it has fully arrived.
//!
//! The deadlines count from the request's head and from the answer's head. Neither a PING nor a trickle of bytes
//! extends them. The bytes of an answer count as memory until they are sent to the network, not until the HTTP library
//! has taken them.
//!
//! The rest of a request that was answered early is read and discarded, within limits. Otherwise the connection would
//! be reset, and a client that is still sending would lose the answer.
//!
//! This module knows nothing of what a request asks for, and stores nothing.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use poem::http::StatusCode;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Limits;
use super::counters::RefusalReason;
use super::places::{Charge, Place};

/// At most this many bytes of one body are counted, because no operation gathers more in memory. Larger bodies are
/// streams, with one piece in memory at a time.
const MAX_GATHERED_BYTES: usize = 2 * 1024 * 1024;

/// Limits for reading the rest of a request that was answered early.
const DRAIN_MAX_BYTES: usize = 4 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer is given to the HTTP library in pieces of this size, so that the library holds no more than it can send.
const PIECE_BYTES: usize = 16 * 1024;

/// Time to answer a late request before its connection is closed.
const LATE_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The requests under way on one connection.
pub(super) struct Exchanges {
    place: Arc<Place>,
    limits: Limits,
    state: Mutex<ExchangeState>,
}

struct ExchangeState {
    next: u64,
    deadlines: BTreeMap<u64, (Instant, RefusalReason)>,
    idle_since: Instant,
}

impl Exchanges {
    pub fn new(place: Arc<Place>, limits: Limits) -> Arc<Self> {
        let state = ExchangeState { next: 0, deadlines: BTreeMap::new(), idle_since: Instant::now() };
        Arc::new(Self { place, limits, state: Mutex::new(state) })
    }

    /// A request's head has arrived.
    pub fn begin(self: &Arc<Self>) -> Arc<Exchange> {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let deadline = Instant::now() + self.limits.receive_timeout;
        state.deadlines.insert(id, (deadline + LATE_ANSWER_TIMEOUT, RefusalReason::RequestTimeout));
        drop(state);
        self.place.begin_exchange();
        let (has_no_room, received) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Exchange { id, deadline, has_no_room, received, of: self.clone() })
    }

    /// Resolves when a request or answer took too long. `None`: the connection was idle too long.
    pub async fn overdue(&self) -> Option<RefusalReason> {
        let Limits { receive_timeout, response_timeout, silence, .. } = self.limits;
        // Every request that begins before the next look has its deadline after it.
        let look = receive_timeout.min(response_timeout).min(silence);
        loop {
            let (deadline, reason) = {
                let state = self.lock();
                let first = state.deadlines.values().min_by_key(|(deadline, _)| *deadline);
                first.map_or((state.idle_since + silence, None), |(deadline, reason)| (*deadline, Some(*reason)))
            };
            let now = Instant::now();
            if now >= deadline {
                return reason;
            }
            tokio::time::sleep_until(deadline.min(now + look)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, ExchangeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request and its answer, until the answer's last byte is sent.
pub(super) struct Exchange {
    id: u64,
    deadline: Instant,
    has_no_room: AtomicBool,
    /// Charges for the received body. They are kept until the answer's head, because a handler may hold the body or
    /// data made from it.
    received: Mutex<Vec<Charge>>,
    of: Arc<Exchanges>,
}

impl Exchange {
    /// By then, the request must have been received and answered.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A part of the request or answer did not fit into the memory limit for bodies.
    pub fn has_no_room(&self) -> bool {
        self.has_no_room.load(Ordering::Relaxed)
    }

    /// The answer's head is there.
    fn answered(&self) {
        let deadline = Instant::now() + self.of.limits.response_timeout;
        self.of.lock().deadlines.insert(self.id, (deadline, RefusalReason::ResponseTimeout));
        self.received().clear();
    }

    fn received(&self) -> MutexGuard<'_, Vec<Charge>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn charge(&self, bytes: usize) -> Option<Charge> {
        let charge = self.of.place.charge(bytes);
        if charge.is_none() {
            self.has_no_room.store(true, Ordering::Relaxed);
        }
        charge
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        state.deadlines.remove(&self.id);
        if state.deadlines.is_empty() {
            state.idle_since = Instant::now();
        }
        drop(state);
        self.of.place.end_exchange();
    }
}

/// The part of a request's body that the handler has not read.
#[derive(Clone, Default)]
pub(super) struct Unread(Arc<Mutex<Option<Incoming>>>);

impl Unread {
    fn lock(&self) -> MutexGuard<'_, Option<Incoming>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn drain(mut body: Incoming) {
    let read = async {
        let mut left = DRAIN_MAX_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, read).await;
}

/// A request's body for handlers. On drop, the unread rest is put into `unread`.
pub(super) struct Received {
    body: Option<Incoming>,
    exchange: Arc<Exchange>,
    gathered: usize,
    unread: Unread,
}

impl Received {
    pub fn new(body: Incoming, exchange: Arc<Exchange>, unread: Unread) -> Self {
        Self { body: Some(body), exchange, gathered: 0, unread }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = match std::task::ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                this.body = None;
                return Poll::Ready(Some(Err(io::Error::other(error))));
            }
            None => return Poll::Ready(None),
        };
        let length = frame.data_ref().map_or(0, Bytes::len).min(MAX_GATHERED_BYTES - this.gathered);
        if length > 0 {
            let Some(charge) = this.exchange.charge(length) else {
                return Poll::Ready(Some(Err(io::Error::other("there is no memory for more of the body"))));
            };
            this.exchange.received().push(charge);
            this.gathered += length;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        *self.unread.lock() = self.body.take().filter(|body| !body.is_end_stream());
    }
}

/// The body of an answer that is being sent.
pub(super) struct Answered {
    /// Taken from the body and not handed on yet.
    piece: Bytes,
    /// Set if the first frame was the end of the body, an error, or trailers.
    first: Option<Option<io::Result<Frame<Bytes>>>>,
    body: BoxBody<Bytes, io::Error>,
    size: SizeHint,
    exchange: Arc<Exchange>,
    unread: Unread,
}

/// Data of an answer. It counts as memory until its last reference is dropped.
struct ChargedBytes {
    data: Bytes,
    _charge: Option<Charge>,
    _exchange: Arc<Exchange>,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Answered {
    /// Returns the answer, or 503 instead if there is no memory for it.
    pub async fn of(response: poem::Response, exchange: Arc<Exchange>, unread: Unread) -> hyper::Response<Self> {
        exchange.answered();
        let response: hyper::Response<BoxBody<Bytes, io::Error>> = response.into();
        let (mut head, body) = response.into_parts();
        let size = body.size_hint();
        let mut answer = Self { piece: Bytes::new(), first: None, size, body, exchange, unread };
        // A body that is not a stream is ready at once, so whether it fits is known before the head is sent.
        let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut answer.body).poll_frame(cx))).await;
        match first {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => match answer.hold(data) {
                    Some(data) => answer.piece = data,
                    None => {
                        let response: hyper::Response<BoxBody<Bytes, io::Error>> = busy().into();
                        (head, answer.body) = response.into_parts();
                        answer.size = answer.body.size_hint();
                    }
                },
                Err(trailers) => answer.first = Some(Some(Ok(trailers))),
            },
            Poll::Ready(ended) => answer.first = Some(ended),
            Poll::Pending => {}
        }
        hyper::Response::from_parts(head, answer)
    }

    fn hold(&self, data: Bytes) -> Option<Bytes> {
        // Data shared between answers is in memory once, so it is not charged.
        let charge = if data.is_unique() { Some(self.exchange.charge(data.len())?) } else { None };
        Some(Bytes::from_owner(ChargedBytes { data, _charge: charge, _exchange: self.exchange.clone() }))
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.piece.is_empty() {
            let frame = match this.first.take() {
                Some(first) => first,
                None => std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)),
            };
            let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            match this.hold(data) {
                Some(data) => this.piece = data,
                None => return Poll::Ready(Some(Err(io::Error::other("there is no memory for the answer")))),
            }
        }
        let piece = this.piece.split_to(this.piece.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let is_over = self.first.as_ref().map_or_else(|| self.body.is_end_stream(), Option::is_none);
        self.piece.is_empty() && is_over
    }

    /// The size of the whole body. The HTTP library asks once, before it takes the first piece.
    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if let Some(body) = self.unread.lock().take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(drain(body));
        }
    }
}

/// 503: there is no memory for the request or its answer.
pub(super) fn busy() -> poem::Response {
    let body =
        r#"{"status":"error","code":"overloaded","message":"Too many bodies are in memory; try again in a moment"}"#;
    error(StatusCode::SERVICE_UNAVAILABLE, body)
}

/// 408: the request was not received and answered in time.
pub(super) fn late() -> poem::Response {
    let body = r#"{"status":"error","code":"request_timeout","message":"The request took too long; try again"}"#;
    error(StatusCode::REQUEST_TIMEOUT, body)
}

fn error(status: StatusCode, body: &'static str) -> poem::Response {
    let builder = poem::Response::builder().status(status).content_type("application/json");
    builder.header("retry-after", "5").body(body)
}
