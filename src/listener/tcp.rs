//! TCP listeners: with TLS, and without it for a daemon that stands behind a proxy.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;

use poem::Addr;
use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::server::TlsStream;

use super::accept::{Accepted, Counters, Incoming, Source};
use super::{Limits, fingerprint_address};
use crate::model::digest::Digest;
use crate::pki::LiveConfig;

/// How many connections the kernel may keep for us while we are busy.
const BACKLOG: u32 = 1024;

/// Accepts TLS connections; each handshake is made with the configuration in force when it begins.
pub struct TlsAcceptor {
    incoming: Incoming<TlsStream<TcpStream>>,
    address: SocketAddr,
}

impl TlsAcceptor {
    /// Must be called within a runtime, as must [`Self::from_listener`].
    pub fn bind(address: SocketAddr, live: LiveConfig, limits: Limits) -> io::Result<Self> {
        Self::start(bind(address)?, live, limits)
    }

    /// On a socket that is listening already (inherited from systemd).
    pub fn from_listener(listener: StdTcpListener, live: LiveConfig, limits: Limits) -> io::Result<Self> {
        Self::start(adopt(listener)?, live, limits)
    }

    fn start(listener: TcpListener, live: LiveConfig, limits: Limits) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let incoming =
            Incoming::start(listener, limits, move |(stream, remote)| handshake(stream, remote, live.clone()));
        Ok(Self { incoming, address })
    }

    /// The address that was bound, with the port that port 0 became.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.incoming.counters()
    }
}

impl Acceptor for TlsAcceptor {
    type Io = TlsStream<TcpStream>;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Self::Io, LocalAddr, RemoteAddr, Scheme)> {
        self.incoming.next().await
    }
}

/// Accepts plain connections. For a listener that only a trusted proxy reaches.
pub struct PlainAcceptor {
    incoming: Incoming<TcpStream>,
    address: SocketAddr,
}

impl PlainAcceptor {
    /// Must be called within a runtime, as must [`Self::from_listener`].
    pub fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        Self::start(bind(address)?, limits)
    }

    pub fn from_listener(listener: StdTcpListener, limits: Limits) -> io::Result<Self> {
        Self::start(adopt(listener)?, limits)
    }

    fn start(listener: TcpListener, limits: Limits) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let incoming = Incoming::start(listener, limits, |(stream, remote)| async move {
            let local = local_address(&stream, remote)?;
            Some((stream, local, remote_address(remote), Scheme::HTTP))
        });
        Ok(Self { incoming, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.incoming.counters()
    }
}

impl Acceptor for PlainAcceptor {
    type Io = TcpStream;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Self::Io, LocalAddr, RemoteAddr, Scheme)> {
        self.incoming.next().await
    }
}

impl Source for TcpListener {
    type Raw = (TcpStream, SocketAddr);

    async fn accept(&self) -> io::Result<Self::Raw> {
        TcpListener::accept(self).await
    }
}

async fn handshake(stream: TcpStream, remote: SocketAddr, live: LiveConfig) -> Option<Accepted<TlsStream<TcpStream>>> {
    let local = local_address(&stream, remote)?;
    let stream = match tokio_rustls::TlsAcceptor::from(live.current()).accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            log::debug!("TLS handshake with {remote} failed: {error}");
            return None;
        }
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let local = leaf.map_or(local, |leaf| fingerprint_address(Digest::of(leaf)));
    Some((stream, local, remote_address(remote), Scheme::HTTPS))
}

/// The connection's own end, made ready to answer at once. `None`: it is gone already.
fn local_address(stream: &TcpStream, remote: SocketAddr) -> Option<LocalAddr> {
    match stream.set_nodelay(true).and_then(|()| stream.local_addr()) {
        Ok(address) => Some(LocalAddr(address.into())),
        Err(error) => {
            log::debug!("connection from {remote} was gone before it was served: {error}");
            None
        }
    }
}

/// A v4 client of a dual-stack socket is that v4 address, wherever addresses are compared.
fn remote_address(remote: SocketAddr) -> RemoteAddr {
    RemoteAddr(Addr::SocketAddr(SocketAddr::new(remote.ip().to_canonical(), remote.port())))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart finds the last one's connections in TIME_WAIT; a listener that is alive still refuses the second.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn adopt(listener: StdTcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
