//! An open connection, wrapped so that it always ends. It can be cut by its client certificate. It also ends if the
//! client sends nothing, sends half a request, or does not read its answer.
//!
//! This module ends connections on which bytes arrive but nothing is answered. The deadlines of requests, answers and
//! idle connections are in `exchange`. When the daemon closes a connection, it reads and discards the client's data for
//! a moment. Otherwise the kernel resets the connection and the client loses the answer.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Limits;
use super::counters::Counted;
use super::places::Place;
use super::server::Handed;
use super::stop::Fresh;
use crate::model::digest::Digest;

/// The open connections with a client certificate, by certificate.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    known: HashMap<u64, CertifiedConnection>,
}

struct CertifiedConnection {
    certificate: Digest,
    /// Valid while this entry exists: [`ConnectionEntry`] is dropped before its socket is closed.
    socket: RawFd,
    cut: Arc<AtomicBool>,
}

impl Connections {
    /// Closes every open connection of this certificate at once. Returns their number.
    pub fn cut(&self, certificate: &Digest) -> usize {
        self.cut_unless(|known| known != certificate)
    }

    /// Closes every open connection whose certificate is no longer admitted. Returns their number.
    pub fn cut_unless(&self, admits: impl Fn(&Digest) -> bool) -> usize {
        let open = self.lock();
        let mut count = 0;
        for known in open.known.values().filter(|known| !admits(&known.certificate)) {
            // Set the flag first, so that bytes that have already arrived are not read. Then close the socket, which
            // wakes the server.
            known.cut.store(true, Ordering::Release);
            let _ = shutdown(known.socket, Shutdown::Both);
            count += 1;
        }
        count
    }

    pub fn len(&self) -> usize {
        self.lock().known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Must be called before the certificate is checked. A revocation before the check is then seen by the check, and a
    /// later one finds the connection here.
    pub(super) fn enter(&self, certificate: Digest, socket: &impl AsRawFd) -> ConnectionEntry {
        let cut = Arc::new(AtomicBool::new(false));
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        open.known.insert(number, CertifiedConnection { certificate, socket: socket.as_raw_fd(), cut: cut.clone() });
        drop(open);
        ConnectionEntry { number, cut, among: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's entry in [`Connections`]. Must be dropped before the socket is closed.
pub(super) struct ConnectionEntry {
    number: u64,
    cut: Arc<AtomicBool>,
    among: Connections,
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.among.lock().known.remove(&self.number);
    }
}

/// A connection that was handed to the server.
pub struct Connection<Io> {
    // The order matters: the entry is dropped before the socket, because the kernel may reuse the descriptor number at
    // once.
    entry: Option<ConnectionEntry>,
    /// `Some` until the client has sent something.
    fresh: Option<Fresh>,
    pace: Pace,
    /// The client has closed its side, or the connection has failed.
    is_over: bool,
    linger: Option<Linger>,
    place: Arc<Place>,
    _counted: Counted,
    io: Io,
}

impl<Io> Connection<Io> {
    pub(super) fn new(
        io: Io,
        entry: Option<ConnectionEntry>,
        fresh: Fresh,
        counted: Counted,
        place: Arc<Place>,
        limits: Limits,
    ) -> Self {
        let pace = Pace::new(limits);
        Self { entry, fresh: Some(fresh), pace, is_over: false, linger: None, place, _counted: counted, io }
    }

    pub fn get_ref(&self) -> &Io {
        &self.io
    }

    fn check(&self) -> io::Result<()> {
        match &self.entry {
            Some(entry) if entry.cut.load(Ordering::Acquire) => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => Ok(()),
        }
    }

    /// Called when I/O is pending: pending until the receive deadline has passed, then a time-out error.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.pace.poll_overdue(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Connection<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let before = buffer.filled().len();
        match Pin::new(&mut self.io).poll_read(cx, buffer) {
            Poll::Pending => self.wait(cx),
            ready => {
                self.fresh = None;
                if buffer.filled().len() > before {
                    self.pace.heard();
                } else {
                    self.is_over = true;
                }
                ready
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        match Pin::new(&mut self.io).poll_write(cx, bytes) {
            Poll::Pending => self.wait(cx),
            ready => {
                self.pace.answered();
                ready
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        match Pin::new(&mut self.io).poll_write_vectored(cx, slices) {
            Poll::Pending => self.wait(cx),
            ready => {
                self.pace.answered();
                ready
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Pending => self.wait(cx),
            ready => ready,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            match Pin::new(&mut self.io).poll_shutdown(cx) {
                Poll::Pending => return self.wait(cx),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
        }
        let is_cut = self.check().is_err();
        let this = &mut *self;
        if this.is_over || is_cut {
            return Poll::Ready(Ok(()));
        }
        this.linger.get_or_insert_with(Linger::new).poll(&mut this.io, cx).map(Ok)
    }
}

impl<Io> Handed for Connection<Io> {
    fn place(&self) -> Arc<Place> {
        self.place.clone()
    }

    fn limits(&self) -> Limits {
        self.pace.limits
    }
}

/// Reads and discards what the client still sends on a closed connection.
struct Linger {
    left: usize,
    end: Pin<Box<Sleep>>,
}

impl Linger {
    const MAX_BYTES: usize = 1024 * 1024;
    const MAX_TIME: Duration = Duration::from_secs(1);

    fn new() -> Self {
        Self { left: Self::MAX_BYTES, end: Box::pin(tokio::time::sleep(Self::MAX_TIME)) }
    }

    fn poll(&mut self, io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 4096];
        loop {
            if self.end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut space);
            match std::task::ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && self.left > buffer.filled().len() => {
                    self.left -= buffer.filled().len();
                }
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// The deadline for bytes that are not yet a whole request.
struct Pace {
    limits: Limits,
    /// When the first byte after the last answer arrived.
    receiving_since: Option<Instant>,
    /// Set again only when it fires, which is cheaper than setting it for every request.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(limits: Limits) -> Self {
        Self { limits, receiving_since: None, alarm: None }
    }

    fn heard(&mut self) {
        self.receiving_since.get_or_insert_with(Instant::now);
    }

    fn answered(&mut self) {
        self.receiving_since = None;
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.limits.receive_timeout;
        // With nothing received: every request that begins before the alarm fires has its deadline after it.
        let deadline = |since: Option<Instant>| since.unwrap_or_else(Instant::now) + timeout;
        let since = self.receiving_since;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline(since))));
        loop {
            std::task::ready!(alarm.as_mut().poll(cx));
            let deadline = deadline(since);
            if since.is_some() && Instant::now() >= deadline {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(deadline);
        }
    }
}
