//! What a listener counts of its connections, for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection was refused, or closed before its client wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The handshake failed, or the peer is not allowed.
    Handshake,
    HandshakeTimeout,
    /// It was still in its handshake when its place was needed.
    HandshakeEvicted,
    /// Its address has as many connections as one may have, and a request is under way on each.
    AddressFull,
    /// The listener has.
    ListenerFull,
    /// No request was under way on it when its place was needed.
    IdleEvicted,
    /// A request did not arrive, or was not answered, in its time.
    RequestTimeout,
    /// An answer was not taken in its time.
    ResponseTimeout,
    /// A request or an answer did not fit into the memory for them. The connection goes on where it can.
    NoMemory,
}

impl RefusalReason {
    pub const ALL: [Self; 9] = [
        Self::Handshake,
        Self::HandshakeTimeout,
        Self::HandshakeEvicted,
        Self::AddressFull,
        Self::ListenerFull,
        Self::IdleEvicted,
        Self::RequestTimeout,
        Self::ResponseTimeout,
        Self::NoMemory,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeEvicted => "handshake_evicted",
            Self::AddressFull => "address_full",
            Self::ListenerFull => "listener_full",
            Self::IdleEvicted => "idle_evicted",
            Self::RequestTimeout => "request_timeout",
            Self::ResponseTimeout => "response_timeout",
            Self::NoMemory => "no_memory",
        }
    }

    /// Whether such a connection never reached the server.
    fn is_of_handshake(self) -> bool {
        matches!(
            self,
            Self::Handshake | Self::HandshakeTimeout | Self::HandshakeEvicted | Self::AddressFull | Self::ListenerFull
        )
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    /// Connections handed to the server.
    pub admitted: AtomicU64,
    /// Connections that never reached the server: handshake failed or took too long, peer not allowed, no place.
    pub refused: AtomicU64,
    /// By [`RefusalReason`], in its order.
    pub by_reason: [AtomicU64; RefusalReason::ALL.len()],
    /// Times the system would not accept.
    pub accept_errors: AtomicU64,
    /// Connections handed to the server and not closed yet.
    pub open: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, reason: RefusalReason) {
        self.by_reason[reason as usize].fetch_add(1, Ordering::Relaxed);
        if reason.is_of_handshake() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Held by a connection for as long as it is open.
pub(super) struct Counted(Arc<Counters>);

impl Counted {
    pub fn new(counters: Arc<Counters>) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self(counters)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
