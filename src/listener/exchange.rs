//! One request and its answer: how long each may take, how many bytes of them may be in memory, and what becomes of a
//! request that is answered before it has arrived.
//!
//! The deadlines count from the request's head and from the answer's head. Nothing that arrives in between puts them off,
//! no PING and no trickle of bytes. What of an answer is in memory is counted until its last byte has left for the
//! network, not until the HTTP library has taken it.
//!
//! The rest of a request that was answered early is read and thrown away, within bounds: a client that is still sending
//! would lose an answer that comes with a reset.
//!
//! It knows nothing of what a request asks for. It stores nothing.

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

/// Of one body no more than this is counted: no operation gathers more in memory. Larger bodies are streams, of which one
/// piece is in memory at a time.
const MAX_GATHERED_BYTES: usize = 2 * 1024 * 1024;

/// So much of a request that was answered early is still read, and for so long.
const DRAIN_MAX_BYTES: usize = 4 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The HTTP library takes an answer in pieces of this, and never more than it can send.
const PIECE_BYTES: usize = 16 * 1024;

/// A request that is late is answered before its connection is closed.
const LATE_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What is under way on one connection.
pub(super) struct Exchanges {
    place: Arc<Place>,
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    next: u64,
    deadlines: BTreeMap<u64, (Instant, RefusalReason)>,
    idle_since: Instant,
}

impl Exchanges {
    pub fn new(place: Arc<Place>, limits: Limits) -> Arc<Self> {
        let state = State { next: 0, deadlines: BTreeMap::new(), idle_since: Instant::now() };
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

    /// Resolves when something on the connection took too long; `None`: it is idle, for too long.
    pub async fn overdue(&self) -> Option<RefusalReason> {
        let Limits { receive_timeout, response_timeout, silence, .. } = self.limits;
        // Whatever begins before the next look ends after it.
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request and its answer, until the last byte of it is gone.
pub(super) struct Exchange {
    id: u64,
    deadline: Instant,
    has_no_room: AtomicBool,
    /// For what was received of its body; what was made of it may be in memory until there is an answer.
    received: Mutex<Vec<Charge>>,
    of: Arc<Exchanges>,
}

impl Exchange {
    /// When the request must have been received and answered.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A part of it did not fit into the memory for bodies.
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

/// The part of a request's body that nobody has read.
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

/// A request's body as handlers read it. What they leave is put into `unread`.
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
                return Poll::Ready(Some(Err(io::Error::other("there is no memory for more of it"))));
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

/// An answer's body on its way out.
pub(super) struct Answered {
    /// Taken from the body and not handed on yet.
    piece: Bytes,
    /// The end of the body, or its error or trailers, where they came first of all.
    first: Option<Option<io::Result<Frame<Bytes>>>>,
    body: BoxBody<Bytes, io::Error>,
    size: SizeHint,
    exchange: Arc<Exchange>,
    unread: Unread,
}

/// Data of an answer, counted until the last copy of it is gone.
struct Held {
    data: Bytes,
    _charge: Option<Charge>,
    _exchange: Arc<Exchange>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Answered {
    /// The answer, or 503 in its place where there is no memory for it.
    pub async fn of(response: poem::Response, exchange: Arc<Exchange>, unread: Unread) -> hyper::Response<Self> {
        exchange.answered();
        let response: hyper::Response<BoxBody<Bytes, io::Error>> = response.into();
        let (mut head, body) = response.into_parts();
        let size = body.size_hint();
        let mut answer = Self { piece: Bytes::new(), first: None, size, body, exchange, unread };
        // A whole body comes at once; then it is known before the head is sent whether it fits.
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
        // Data that others have too is in memory once, however many answers it is in.
        let charge = if data.is_unique() { Some(self.exchange.charge(data.len())?) } else { None };
        Some(Bytes::from_owner(Held { data, _charge: charge, _exchange: self.exchange.clone() }))
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

    /// Of the whole body: it is asked for once, before the first piece is taken.
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

/// There is no memory for the request or its answer.
pub(super) fn busy() -> poem::Response {
    let body =
        r#"{"status":"error","code":"overloaded","message":"Too many bodies are in memory; try again in a moment"}"#;
    error(StatusCode::SERVICE_UNAVAILABLE, body)
}

/// The request did not arrive in its time, or was not answered.
pub(super) fn late() -> poem::Response {
    let body = r#"{"status":"error","code":"request_timeout","message":"The request took too long; try again"}"#;
    error(StatusCode::REQUEST_TIMEOUT, body)
}

fn error(status: StatusCode, body: &'static str) -> poem::Response {
    let builder = poem::Response::builder().status(status).content_type("application/json");
    builder.header("retry-after", "5").body(body)
}
