//! Connection counters of a listener, for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection was refused or closed early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The handshake failed, or the peer is not allowed.
    Handshake,
    HandshakeTimeout,
    /// Dropped during its handshake, because its place was needed.
    HandshakeEvicted,
    /// The address has reached its limit, and a request is under way on each of its connections.
    AddressFull,
    /// The listener has reached its limit, and a request is under way on each of its connections.
    ListenerFull,
    /// Dropped while it was idle, because its place was needed.
    IdleEvicted,
    /// A request was not received and answered in time.
    RequestTimeout,
    /// The client did not read an answer in time.
    ResponseTimeout,
    /// A request or an answer did not fit into the memory limit. The connection stays open if possible.
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

    /// The label in metrics.
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

    /// Whether the connection never reached the server.
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
    /// Indexed by [`RefusalReason`].
    pub by_reason: [AtomicU64; RefusalReason::ALL.len()],
    /// How often `accept` failed.
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
