//! Accepts and serves connections: TLS for hosts and admins, plain TCP behind a proxy, the control socket.
//!
//! The `Acceptor`s are our own. poem's hide the client certificate from handlers, let a silent client wait for ever,
//! and spin when the process has no file descriptors left. The server that calls a poem `Endpoint` is our own too.
//! poem's does not limit the size of heads, bodies and answers. The *local* address of a request carries the client
//! certificate or the control peer ([`client_fingerprint`], [`control_peer`]). The remote address stays the peer's.
//!
//! This module must not know what a request may do, nor which certificates are revoked. [`Gate`] decides which
//! certificates are admitted, and [`Connections`] closes open connections on request. The only thing stored is the
//! control socket's file. A crash leaves it behind, and the next start removes it.

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
    /// From the accepted connection to the finished handshake, including the PROXY header.
    pub handshake_timeout: Duration,
    /// Handshakes in progress, in total. At the limit, the oldest silent one is dropped.
    pub max_handshakes: usize,
    pub max_handshakes_per_address: usize,
    /// Open connections in total, including handshakes. At the limit, one without a request is dropped.
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    /// Bytes of request bodies and answers in memory, in total.
    pub max_buffered_bytes: usize,
    pub max_buffered_bytes_per_address: usize,
    /// Pause after `accept` failed, for example because no file descriptor is left.
    pub accept_pause: Duration,
    /// Failures of `accept` are logged at most once in this time.
    pub report_every: Duration,
    /// From the first byte of a request to the first byte of its answer. Must allow for a slow upload and a slow
    /// handler.
    pub receive_timeout: Duration,
    /// From the first byte of an answer to its last.
    pub response_timeout: Duration,
    /// How long a connection without a request is kept. Other traffic, such as PING, does not extend it.
    pub silence: Duration,
    /// During a stop: time for a client that has just finished its handshake to begin its first request.
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

    /// For authenticated callers, whose requests may take long.
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

/// The peer credentials of the control connection, from the kernel.
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
