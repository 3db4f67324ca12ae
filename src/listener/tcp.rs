//! TCP listeners: with TLS, or plain behind a trusted proxy.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;

use poem::Addr;
use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::server::TlsStream;

use super::accept::{Accepted, Incoming, Source};
use super::connection::{Connection, ConnectionEntry, Connections};
use super::counters::Counters;
use super::places::Place;
use super::stop::Drain;
use super::{Limits, fingerprint_address, proxy};
use crate::model::digest::Digest;
use crate::model::forwarded::TrustedProxies;
use crate::pki::LiveConfig;

/// Connections that the kernel queues until the daemon accepts them.
const BACKLOG: u32 = 1024;

/// Returns whether a client certificate is still admitted. Called once per connection, after the handshake.
pub type AdmissionCheck = Arc<dyn Fn(&Digest) -> bool + Send + Sync>;

/// What a listener checks in addition to the handshake.
#[derive(Clone, Default)]
pub struct Gate {
    /// `None`: every certificate of our authority is admitted.
    pub admits: Option<AdmissionCheck>,
    /// Registry of the open connections with a client certificate.
    pub connections: Connections,
    /// If set, every connection must come from one of these proxies and begin with a PROXY header.
    pub proxies: Option<Arc<TrustedProxies>>,
    /// Proxies that forward the requests of many clients. The limits per address do not apply to them.
    pub forwarders: Arc<TrustedProxies>,
}

/// Accepts TLS connections. Each handshake uses the configuration that is live when it begins.
pub struct TlsAcceptor {
    incoming: Incoming<(TlsStream<TcpStream>, Option<ConnectionEntry>)>,
    address: SocketAddr,
}

impl TlsAcceptor {
    /// All three constructors must be called within a Tokio runtime.
    pub fn bind(address: SocketAddr, live: LiveConfig, limits: Limits) -> io::Result<Self> {
        Self::start(bind(address)?, live, limits, Gate::default())
    }

    /// For a socket that is already listening (inherited from systemd).
    pub fn from_listener(listener: StdTcpListener, live: LiveConfig, limits: Limits) -> io::Result<Self> {
        Self::guarded(listener, live, limits, Gate::default())
    }

    pub fn guarded(listener: StdTcpListener, live: LiveConfig, limits: Limits, gate: Gate) -> io::Result<Self> {
        Self::start(adopt(listener)?, live, limits, gate)
    }

    fn start(listener: TcpListener, live: LiveConfig, limits: Limits, gate: Gate) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let forwarders = gate.forwarders.clone();
        let share = move |(_, remote): &(TcpStream, SocketAddr)| share(remote.ip(), &forwarders);
        let incoming = Incoming::start(listener, limits, share, move |(stream, remote), place| {
            handshake(stream, remote, place, live.clone(), gate.clone())
        });
        Ok(Self { incoming, address })
    }

    /// The bound address. If port 0 was requested, it has the port that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.incoming.counters()
    }

    pub fn drain(&self) -> Drain {
        self.incoming.drain()
    }
}

impl Acceptor for TlsAcceptor {
    type Io = Connection<TlsStream<TcpStream>>;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Self::Io, LocalAddr, RemoteAddr, Scheme)> {
        let (((stream, entry), local, remote, scheme), place) = self.incoming.next().await?;
        Ok((self.incoming.hand_out_as(stream, entry, place), local, remote, scheme))
    }
}

/// Which peers a listener without TLS accepts.
#[derive(Clone)]
pub struct Behind {
    /// Only these and loopback addresses are accepted, because hosts send secrets.
    pub proxies: Arc<TrustedProxies>,
    /// Every connection must come from one of `proxies` and begin with a PROXY header.
    pub proxy_protocol: bool,
}

/// Accepts plain connections. For a listener that only a trusted proxy reaches.
pub struct PlainAcceptor {
    incoming: Incoming<TcpStream>,
    address: SocketAddr,
}

impl PlainAcceptor {
    /// Accepts every peer. All constructors must be called within a Tokio runtime.
    pub fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        Self::start(bind(address)?, limits, None)
    }

    /// For a socket that is already listening. Accepts every peer.
    pub fn from_listener(listener: StdTcpListener, limits: Limits) -> io::Result<Self> {
        Self::start(adopt(listener)?, limits, None)
    }

    pub fn behind(listener: StdTcpListener, limits: Limits, behind: Behind) -> io::Result<Self> {
        Self::start(adopt(listener)?, limits, Some(behind))
    }

    fn start(listener: TcpListener, limits: Limits, behind: Option<Behind>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let proxies = behind.as_ref().map(|behind| behind.proxies.clone());
        let share = move |(_, remote): &(TcpStream, SocketAddr)| match &proxies {
            // A proxy on a loopback address is trusted without being configured.
            Some(proxies) if may_come_in_the_clear(remote.ip(), proxies) => None,
            _ => Some(remote.ip()),
        };
        let incoming = Incoming::start(listener, limits, share, move |(stream, remote), place| {
            admit(stream, remote, place, behind.clone())
        });
        Ok(Self { incoming, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.incoming.counters()
    }

    pub fn drain(&self) -> Drain {
        self.incoming.drain()
    }
}

impl Acceptor for PlainAcceptor {
    type Io = Connection<TcpStream>;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Self::Io, LocalAddr, RemoteAddr, Scheme)> {
        let ((stream, local, remote, scheme), place) = self.incoming.next().await?;
        Ok((self.incoming.hand_out(stream, place), local, remote, scheme))
    }
}

impl Source for TcpListener {
    type Raw = (TcpStream, SocketAddr);

    async fn accept(&self) -> io::Result<Self::Raw> {
        let (stream, remote) = TcpListener::accept(self).await?;
        Ok((stream, canonical(remote)))
    }
}

/// The address that a connection counts against. `None`: a forwarder, which has no limit per address.
fn share(peer: IpAddr, forwarders: &TrustedProxies) -> Option<IpAddr> {
    (!forwarders.trusts(peer)).then_some(peer)
}

async fn admit(
    mut stream: TcpStream,
    remote: SocketAddr,
    place: Arc<Place>,
    behind: Option<Behind>,
) -> Option<Accepted<TcpStream>> {
    let local = local_address(&stream, remote)?;
    let remote = match behind {
        None => remote,
        Some(Behind { proxies, proxy_protocol: true }) => behind_proxy(&mut stream, remote, &place, &proxies).await?,
        Some(Behind { proxies, .. }) if may_come_in_the_clear(remote.ip(), &proxies) => remote,
        Some(_) => {
            log::debug!("connection from {remote} was refused: plain HTTP is for trusted proxies only");
            return None;
        }
    };
    Some((stream, local, remote_address(remote), Scheme::HTTP))
}

fn may_come_in_the_clear(peer: IpAddr, proxies: &TrustedProxies) -> bool {
    peer.to_canonical().is_loopback() || proxies.trusts(peer)
}

type Admitted = Accepted<(TlsStream<TcpStream>, Option<ConnectionEntry>)>;

async fn handshake(
    mut stream: TcpStream,
    remote: SocketAddr,
    place: Arc<Place>,
    live: LiveConfig,
    gate: Gate,
) -> Option<Admitted> {
    let local = local_address(&stream, remote)?;
    let remote = match &gate.proxies {
        Some(proxies) => behind_proxy(&mut stream, remote, &place, proxies).await?,
        None => remote,
    };
    // Silent connections are dropped first, so report the first bytes. An error here appears again in the handshake.
    let _ = stream.readable().await;
    place.heard();
    let mut stream = match tokio_rustls::TlsAcceptor::from(live.current()).accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            log::debug!("TLS handshake with {remote} failed: {error}");
            return None;
        }
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(certificate) = leaf.map(|leaf| Digest::of(leaf)) else {
        return Some(((stream, None), local, remote_address(remote), Scheme::HTTPS));
    };
    let entry = gate.connections.enter(certificate, stream.get_ref().0);
    if gate.admits.is_some_and(|admits| !admits(&certificate)) {
        log::info!(event = "certificate_refused", certificate:%, address:% = remote.ip(); "refused a client certificate that is no longer admitted");
        // Sends the TLS close alert. The handshake's time-out bounds it.
        let _ = stream.shutdown().await;
        drop(entry);
        return None;
    }
    Some(((stream, Some(entry)), fingerprint_address(certificate), remote_address(remote), Scheme::HTTPS))
}

/// Reads the client's address from the PROXY header. From here on, the connection counts against that address.
async fn behind_proxy(
    stream: &mut TcpStream,
    remote: SocketAddr,
    place: &Place,
    proxies: &TrustedProxies,
) -> Option<SocketAddr> {
    match proxy::read(stream, remote, proxies).await {
        // The proxy's own connection: a health check.
        Ok(caller) if caller == remote => Some(caller),
        Ok(caller) => match place.belongs_to(caller.ip()) {
            Ok(()) => Some(caller),
            Err(reason) => {
                log::debug!("connection from {caller} was refused: {}", reason.name());
                None
            }
        },
        Err(error) => {
            log::debug!("connection from {remote} was refused: {error}");
            None
        }
    }
}

/// Sets TCP_NODELAY and returns the local address. `None`: the connection is already closed.
fn local_address(stream: &TcpStream, remote: SocketAddr) -> Option<LocalAddr> {
    match stream.set_nodelay(true).and_then(|()| stream.local_addr()) {
        Ok(address) => Some(LocalAddr(address.into())),
        Err(error) => {
            log::debug!("connection from {remote} was closed before it was served: {error}");
            None
        }
    }
}

/// Maps an IPv4-mapped IPv6 address, from a dual-stack socket, to IPv4. Comparisons, logs and limits use IPv4.
fn canonical(remote: SocketAddr) -> SocketAddr {
    SocketAddr::new(remote.ip().to_canonical(), remote.port())
}

fn remote_address(remote: SocketAddr) -> RemoteAddr {
    RemoteAddr(Addr::SocketAddr(canonical(remote)))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // After a restart, old connections may still be in TIME_WAIT. A second listener on the same port still fails.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn adopt(listener: StdTcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_only_this_machine_and_trusted_proxies_get_through() {
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()], None);
        for (peer, may) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(may_come_in_the_clear(peer.parse().unwrap(), &proxies), may, "{peer}");
        }
        assert!(!may_come_in_the_clear("10.1.2.3".parse().unwrap(), &TrustedProxies::default()));
    }
}
