//! An open connection as the server has it: one that ends. It can be cut by the certificate it was opened with, and it
//! does not outlive a client that says nothing, half a request, or does not take its answer.
//!
//! The server's own idle time-out ends a connection politely, which a client in the middle of a request, or one that
//! reads nothing, can put off for ever; so there is a harder one here.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Limits;
use super::accept::{Counted, Fresh};
use crate::model::digest::Digest;

/// The open connections of a listener that asks for client certificates, by certificate.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    known: HashMap<u64, Known>,
}

struct Known {
    certificate: Digest,
    /// Open for as long as this entry is there: [`Entry`] leaves before its socket is closed.
    socket: RawFd,
    cut: Arc<AtomicBool>,
}

impl Connections {
    /// Closes every open connection of this certificate, at once; how many there were.
    pub fn cut(&self, certificate: &Digest) -> usize {
        self.cut_unless(|known| known != certificate)
    }

    /// Closes every open connection whose certificate is not admitted any more; how many there were.
    pub fn cut_unless(&self, admits: impl Fn(&Digest) -> bool) -> usize {
        let open = self.lock();
        let mut count = 0;
        for known in open.known.values().filter(|known| !admits(&known.certificate)) {
            // First, so that what has arrived already is not read any more; then the socket, which wakes the server.
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

    /// To be called before it is asked whether the certificate is admitted: then either the answer says so, or whoever
    /// withdraws it finds the connection here.
    pub(super) fn enter(&self, certificate: Digest, socket: &impl AsRawFd) -> Entry {
        let cut = Arc::new(AtomicBool::new(false));
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        open.known.insert(number, Known { certificate, socket: socket.as_raw_fd(), cut: cut.clone() });
        drop(open);
        Entry { number, cut, among: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among those that can be cut. Must be dropped before the socket is closed.
pub(super) struct Entry {
    number: u64,
    cut: Arc<AtomicBool>,
    among: Connections,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.among.lock().known.remove(&self.number);
    }
}

/// A connection that was handed to the server.
pub struct Connection<Io> {
    // The order matters: the entry goes before the socket, whose number may be another's a moment later.
    entry: Option<Entry>,
    /// Until the client has said something.
    fresh: Option<Fresh>,
    pace: Pace,
    _counted: Counted,
    io: Io,
}

impl<Io> Connection<Io> {
    pub(super) fn new(io: Io, entry: Option<Entry>, fresh: Fresh, counted: Counted, limits: Limits) -> Self {
        Self { entry, fresh: Some(fresh), pace: Pace::new(limits), _counted: counted, io }
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

    /// What a wait ends with: itself, or the end of patience.
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
                }
                ready
            }
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Connection<Io> {
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
        match Pin::new(&mut self.io).poll_shutdown(cx) {
            Poll::Pending => self.wait(cx),
            ready => ready,
        }
    }
}

/// How long a client may take.
struct Pace {
    limits: Limits,
    heard: Instant,
    /// Since the first bytes after the last answer.
    receiving_since: Option<Instant>,
    /// Rings now and then, and is then set anew: cheaper than setting it for every request.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(limits: Limits) -> Self {
        Self { limits, heard: Instant::now(), receiving_since: None, alarm: None }
    }

    fn heard(&mut self) {
        self.heard = Instant::now();
        self.receiving_since.get_or_insert(self.heard);
    }

    fn answered(&mut self) {
        self.receiving_since = None;
    }

    fn deadline(&self) -> Instant {
        let silent = self.heard + self.limits.silence;
        self.receiving_since.map_or(silent, |since| silent.min(since + self.limits.receive_timeout))
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline();
        // Never further off than the shortest patience: whatever begins before it rings ends after it.
        let shortest = self.limits.silence.min(self.limits.receive_timeout);
        let next = |now: Instant| deadline.min(now + shortest);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next(Instant::now()))));
        loop {
            std::task::ready!(alarm.as_mut().poll(cx));
            let now = Instant::now();
            if now >= deadline {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(next(now));
        }
    }
}
