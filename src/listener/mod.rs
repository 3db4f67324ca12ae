//! How connections come in: TLS for hosts and admins, plain TCP behind a proxy, the control socket.
//!
//! These are poem `Acceptor`s of our own, and a server of our own that asks a poem `Endpoint`, because poem's hide the client certificate from handlers, let a silent client
//! wait for ever, spin when the process has no file descriptors left, and bound neither heads nor bodies nor answers. Who is at the other end travels in the *local*
//! address of a request ([`client_fingerprint`], [`control_peer`]), so that the remote address stays the peer's.
//!
//! This module admits connections; it must not know what a request may do, nor which certificates are revoked: it asks
//! ([`Gate`]), and closes what it is told to ([`Connections`]). It stores nothing but the control socket's file, which a crash leaves behind and the next start removes.

mod accept;
mod connection;
mod control;
mod counters;
mod exchange;
mod places;
pub(crate) mod proxy;
mod server;
mod stop;
mod tcp;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Connections};
pub use control::{ControlAcceptor, ControlError, Peer};
pub use counters::{Counters, RefusalReason};
pub use server::{Handed, Server};
pub use stop::Drain;
pub use tcp::{AdmissionCheck, Behind, Gate, PlainAcceptor, TlsAcceptor};

use std::time::Duration;

use poem::Addr;
use poem::Request;
use poem::web::LocalAddr;

use crate::model::digest::Digest;

const FINGERPRINT: &str = "mtls-sha256";
const CONTROL_PEER: &str = "control-peer";

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the accepted connection to the finished handshake, a PROXY header included.
    pub handshake_timeout: Duration,
    /// Handshakes in progress at once, in all and of one address. Beyond it, the oldest silent one is dropped.
    pub max_handshakes: usize,
    pub max_handshakes_per_address: usize,
    /// Open connections, those in their handshake included. Beyond it, one without a request makes room.
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    /// Bytes of request bodies and answers that are in memory at once.
    pub max_buffered_bytes: usize,
    pub max_buffered_bytes_per_address: usize,
    /// How long to wait after the system refused to accept (no file descriptors left, say) before asking again.
    pub accept_pause: Duration,
    /// Such refusals are logged once in this time.
    pub report_every: Duration,
    /// From the first bytes of a request to the first of its answer. Not less than a slow upload or a slow handler needs.
    pub receive_timeout: Duration,
    /// From the first bytes of an answer to its last.
    pub response_timeout: Duration,
    /// How long a connection is kept without a request, whatever else arrives on it.
    pub silence: Duration,
    /// In a stop, how long clients that are just through their handshake have to begin their first request.
    pub first_request: Duration,
}

impl Limits {
    const DEFAULT: Self = Self {
        handshake_timeout: Duration::from_secs(10),
        max_handshakes: 1024,
        max_handshakes_per_address: 256,
        max_connections: 4096,
        max_connections_per_address: 512,
        max_buffered_bytes: 64 * 1024 * 1024,
        max_buffered_bytes_per_address: 16 * 1024 * 1024,
        accept_pause: Duration::from_millis(100),
        report_every: Duration::from_secs(60),
        receive_timeout: Duration::from_secs(60),
        response_timeout: Duration::from_secs(120),
        silence: Duration::from_secs(180),
        first_request: Duration::from_secs(2),
    };

    /// For callers that are known by then, and whose calls may take long.
    pub const fn patient() -> Self {
        Self {
            receive_timeout: Duration::from_secs(600),
            response_timeout: Duration::from_secs(3600),
            silence: Duration::from_secs(900),
            ..Self::DEFAULT
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// SHA-256 of the client certificate that was verified in the handshake of the request's connection.
pub fn client_fingerprint(request: &Request) -> Option<Digest> {
    fingerprint_in(request.local_addr())
}

/// Who opened the control connection that the request came by, as the kernel says.
pub fn control_peer(request: &Request) -> Option<Peer> {
    peer_in(request.local_addr())
}

fn fingerprint_in(address: &LocalAddr) -> Option<Digest> {
    match &address.0 {
        Addr::Custom(FINGERPRINT, hex) => hex.parse().ok(),
        _ => None,
    }
}

fn fingerprint_address(fingerprint: Digest) -> LocalAddr {
    LocalAddr(Addr::custom(FINGERPRINT, fingerprint.to_string()))
}

fn peer_in(address: &LocalAddr) -> Option<Peer> {
    match &address.0 {
        Addr::Custom(CONTROL_PEER, text) => {
            let (uid, pid) = text.split_once(':')?;
            Some(Peer { uid: uid.parse().ok()?, pid: pid.parse().ok()? })
        }
        _ => None,
    }
}

/// The local address of a connection from `peer`.
pub fn peer_address(peer: Peer) -> LocalAddr {
    LocalAddr(Addr::custom(CONTROL_PEER, format!("{}:{}", peer.uid, peer.pid)))
}
