//! The only way out of the sandbox: a proxy that listens inside, connects outside, and permits only what [`Egress`]
//! lists.
//!
//! `CONNECT host:port` becomes a tunnel after its beginning has been checked against that name (`tunnel`). A client
//! sends a request for an `http://` URL to its proxy as it is. The proxy forwards one such request per connection, so
//! that no second request can go to another destination. It sets `Host` to the host of the URL.
//!
//! The client is hostile. A head is read within limits of time and size. No name is looked up and no connection is
//! opened before the rules permit it.
//!
//! It stores nothing. The log gets each destination with the bytes in both directions, and each refusal with its rule.
//! Refusals are kept in memory, to explain why a probe failed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::tunnel::{self, TunnelError};
use crate::model::egress::{Destination, Egress, EgressHost};

/// Resolves a name to addresses.
#[async_trait]
pub trait Resolver: Send + Sync {
    async fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((name, port)).await?.collect())
    }
}

pub struct Proxy {
    egress: Egress,
    resolver: Arc<dyn Resolver>,
    refused: Mutex<BTreeMap<String, String>>,
    /// Whether a connection to any destination succeeded.
    connected: AtomicBool,
    /// Whether a permitted destination could not be reached.
    unreachable: AtomicBool,
}

/// Concurrent connections; further ones wait.
const MAX_CONNECTIONS: usize = 128;
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many refused destinations are remembered.
const MAX_KEPT_REFUSALS: usize = 16;

impl Proxy {
    pub fn new(egress: Egress, resolver: Arc<dyn Resolver>) -> Self {
        Self {
            egress,
            resolver,
            refused: Mutex::default(),
            connected: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
        }
    }

    /// Runs until it is dropped, which drops every connection as well.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= MAX_CONNECTIONS {
                connections.join_next().await;
            }
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => {
                        let proxy = self.clone();
                        connections.spawn(async move { proxy.connection(client).await });
                    }
                    Err(error) => {
                        log::warn!(event = "egress_failed", cause:% = error; "the probe's proxy cannot take a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Returns refused destinations with the first reason for each; at most `MAX_KEPT_REFUSALS`.
    pub fn refused(&self) -> BTreeMap<String, String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True if permitted destinations were requested and none was reachable: the network is down.
    pub fn reached_nothing(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed) && !self.connected.load(Ordering::Relaxed)
    }

    async fn connection(&self, mut client: TcpStream) {
        if let Err(answer) = self.pass_on(&mut client).await {
            let body = format!("{}\n", answer.message);
            let head = format!(
                "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                answer.status,
                body.len()
            );
            // The client may be gone; then the answer is not needed.
            let _ = timeout(HEAD_TIMEOUT, client.write_all(head.as_bytes())).await;
            let _ = client.shutdown().await;
        }
    }

    async fn pass_on(&self, client: &mut TcpStream) -> Result<(), ProxyAnswer> {
        let read = timeout(HEAD_TIMEOUT, Head::read(client)).await;
        let (head, mut rest) = read.map_err(|_| ProxyAnswer::bad("the request took too long"))??;
        let mut server = self.connect(&head.destination).await?;
        let _ = server.set_nodelay(true);
        let _ = client.set_nodelay(true);
        match &head.forwarded {
            None => {
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.map_err(ProxyAnswer::gone)?;
                rest = match tunnel::opening(client, &head.destination, rest).await {
                    Ok(opening) => opening,
                    // No answer is possible any more: both ends are closed.
                    Err(why) => {
                        self.cut(&head.destination, &why);
                        return Ok(());
                    }
                };
            }
            Some(request) => server.write_all(request).await.map_err(ProxyAnswer::gone)?,
        }
        server.write_all(&rest).await.map_err(ProxyAnswer::gone)?;
        let first = head.forwarded.map_or(0, |request| request.len()) + rest.len();
        let copied = copy_bidirectional(client, &mut server).await;
        let (sent, received) = copied.as_ref().map_or((0, 0), |copied| *copied);
        let broken = copied.err().map(|error| error.to_string()).unwrap_or_default();
        log::info!(event = "egress", destination:% = head.destination, sent = sent + first as u64, received, broken = broken.as_str(); "the probe talked to {}", head.destination);
        Ok(())
    }

    async fn connect(&self, asked: &Destination) -> Result<TcpStream, ProxyAnswer> {
        self.egress.check(asked).map_err(|why| self.refuse(asked, why.to_string()))?;
        let addresses = match &asked.host {
            EgressHost::Address(address) => vec![SocketAddr::new(*address, asked.port)],
            EgressHost::Name(name) => timeout(CONNECT_TIMEOUT, self.resolver.resolve(name, asked.port))
                .await
                .map_err(|_| self.fail(asked, "its name was not resolved in time"))?
                .map_err(|error| self.fail(asked, format!("its name is not resolved: {error}")))?,
        };
        // One address inside a private network refuses the whole name: such an answer is not trusted at all.
        for address in &addresses {
            let checked = self.egress.check_address(asked, address.ip());
            checked.map_err(|why| self.refuse(asked, why.to_string()))?;
        }
        let mut last = "its name has no address".to_owned();
        for address in addresses {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    self.connected.store(true, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = format!("{}: {error}", address.ip()),
                Err(_) => last = format!("{}: no answer", address.ip()),
            }
        }
        Err(self.fail(asked, last))
    }

    fn refuse(&self, asked: &Destination, why: String) -> ProxyAnswer {
        log::warn!(event = "egress_refused", destination:% = asked, cause = why.as_str(); "the probe may not connect to {asked}: {why}");
        self.keep(asked, &why);
        ProxyAnswer { status: "403 Forbidden", message: why }
    }

    /// Records a tunnel that was granted but carries something else.
    fn cut(&self, asked: &Destination, why: &TunnelError) {
        if let TunnelError::Ended(cause) = why {
            log::debug!(event = "egress_ended", destination:% = asked, cause:%; "the probe opened a tunnel to {asked} and sent nothing: {cause}");
            return;
        }
        log::warn!(event = "egress_cut", destination:% = asked, cause:% = why; "the probe's tunnel to {asked} was cut: {why}");
        self.keep(asked, &format!("the tunnel to {asked} was cut: {why}"));
    }

    fn fail(&self, asked: &Destination, why: impl Into<String>) -> ProxyAnswer {
        let why = why.into();
        self.unreachable.store(true, Ordering::Relaxed);
        log::warn!(event = "egress_failed", destination:% = asked, cause = why.as_str(); "the probe cannot reach {asked}: {why}");
        self.keep(asked, &format!("{asked} cannot be reached: {why}"));
        ProxyAnswer { status: "502 Bad Gateway", message: format!("{asked} cannot be reached: {why}") }
    }

    fn keep(&self, asked: &Destination, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_KEPT_REFUSALS {
            refused.entry(asked.to_string()).or_insert_with(|| why.to_owned());
        }
    }
}

/// The error that the client receives instead of a connection.
struct ProxyAnswer {
    status: &'static str,
    message: String,
}

impl ProxyAnswer {
    fn bad(message: &str) -> Self {
        Self { status: "400 Bad Request", message: message.into() }
    }

    fn gone(error: io::Error) -> Self {
        Self { status: "502 Bad Gateway", message: format!("the connection broke: {error}") }
    }
}

#[derive(Debug)]
struct Head {
    destination: Destination,
    /// What to send to the server; `None` for a tunnel.
    forwarded: Option<Vec<u8>>,
}

impl Head {
    /// Returns the head, and the bytes that arrived after it.
    async fn read(client: &mut TcpStream) -> Result<(Self, Vec<u8>), ProxyAnswer> {
        let mut bytes = Vec::with_capacity(1024);
        loop {
            let mut chunk = [0; 4096];
            let read = client.read(&mut chunk).await.map_err(ProxyAnswer::gone)?;
            if read == 0 {
                return Err(ProxyAnswer::bad("the request ended early"));
            }
            bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
            if let Some((head, length)) = Self::parse(&bytes)? {
                return Ok((head, bytes.split_off(length)));
            }
            if bytes.len() > MAX_HEAD_BYTES {
                return Err(ProxyAnswer::bad("the request's head is too long"));
            }
        }
    }

    /// Returns the head and its length; `None` if it is not complete yet.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, ProxyAnswer> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(bytes).map_err(|_| ProxyAnswer::bad("this is not an HTTP request"))? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err(ProxyAnswer::bad("this is not an HTTP request"));
        };
        if method == "CONNECT" {
            let destination = target.parse().map_err(|_| ProxyAnswer::bad("CONNECT needs HOST:PORT"))?;
            return Ok(Some((Self { destination, forwarded: None }, length)));
        }
        let plain = "this is a proxy: use CONNECT, or an http:// URL";
        let rest = target.strip_prefix("http://").ok_or_else(|| ProxyAnswer::bad(plain))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let destination: Destination = authority
            .parse()
            .or_else(|_| format!("{authority}:80").parse())
            .map_err(|_| ProxyAnswer::bad("the URL has no host"))?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        // A different name in `Host` would be a different destination.
        let mut forwarded = format!("{method} {slash}{path} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
        for header in request.headers.iter().filter(|header| !is_of_this_hop(header.name)) {
            forwarded.extend_from_slice(header.name.as_bytes());
            forwarded.extend_from_slice(b": ");
            forwarded.extend_from_slice(header.value);
            forwarded.extend_from_slice(b"\r\n");
        }
        forwarded.extend_from_slice(b"Connection: close\r\n\r\n");
        Ok(Some((Self { destination, forwarded: Some(forwarded) }, length)))
    }
}

fn is_of_this_hop(name: &str) -> bool {
    ["host", "connection", "keep-alive", "upgrade", "proxy-connection", "proxy-authorization", "te"]
        .iter()
        .any(|ours| name.eq_ignore_ascii_case(ours))
}

/// Parses a complete head; returns the destination and what is forwarded.
#[cfg(any(test, fuzzing))]
pub(crate) fn head(bytes: &[u8]) -> Option<(Destination, Option<Vec<u8>>)> {
    let (head, _) = Head::parse(bytes).ok()??;
    Some((head.destination, head.forwarded))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Resolves every name to one address, and counts the calls.
    struct Says(&'static str, AtomicUsize);

    #[async_trait]
    impl Resolver for Says {
        async fn resolve(&self, _name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Ok(vec![SocketAddr::new(self.0.parse().unwrap(), port)])
        }
    }

    async fn proxy(egress: &[String], resolver: Arc<Says>) -> (Arc<Proxy>, SocketAddr) {
        let proxy = Arc::new(Proxy::new(Egress::parse(egress).unwrap(), resolver));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(proxy.clone().serve(listener));
        (proxy, address)
    }

    async fn ask(proxy: SocketAddr, request: &str) -> String {
        let mut client = TcpStream::connect(proxy).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(30), client.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    /// Answers each connection with the bytes it received, up to the end of the head, then closes.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).await.is_err() {
                        break;
                    }
                    seen.push(byte[0]);
                }
                stream.write_all(&seen).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_listed_destination_is_reached_through_a_tunnel() {
        let server = echo().await;
        let resolver = Arc::new(Says("127.0.0.1", AtomicUsize::new(0)));
        let listed = [format!("upstream.test:{}", server.port()), server.to_string()];
        let (_, address) = proxy(&listed, resolver).await;
        // On a port other than 443 a tunnel need not be TLS.
        for host in ["upstream.test", "UPSTREAM.test.", "127.0.0.1"] {
            let asked = format!("CONNECT {host}:{} HTTP/1.1\r\n\r\nhello\r\n\r\n", server.port());
            let answer = ask(address, &asked).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello\r\n\r\n"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_tunnel_with_another_name_inside_is_cut_before_the_server_hears_of_it() {
        use rustls::pki_types::ServerName;
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let resolver = Arc::new(Says("127.0.0.1", AtomicUsize::new(0)));
        let listed = [format!("upstream.test:{port}"), format!("127.0.0.1:{port}")];
        let (proxy, address) = proxy(&listed, resolver).await;
        let config = rustls::ClientConfig::builder_with_provider(crate::pki::tls::provider());
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        for (inside, is_good) in [("evil.test", false), ("192.0.2.1", false), ("upstream.test", true)] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(format!("CONNECT upstream.test:{port} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = [0; 39];
            client.read_exact(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\n"));
            let (mut accepted, _) = server.accept().await.unwrap();
            let name = ServerName::try_from(inside).unwrap();
            let shaking = tokio::spawn(connector.connect(name, client));
            let mut heard = Vec::new();
            if is_good {
                accepted.read_buf(&mut heard).await.unwrap();
                assert_eq!(heard[0], 22, "the ClientHello arrives");
                drop(accepted);
                let _ = shaking.await.unwrap();
                continue;
            }
            accepted.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"", "{inside}");
            assert!(shaking.await.unwrap().is_err(), "{inside}");
            let told = &proxy.refused()[&format!("upstream.test:{port}")];
            assert!(told.starts_with(&format!("the tunnel to upstream.test:{port} was cut: TLS inside")), "{told}");
        }
    }

    #[tokio::test]
    async fn a_request_is_passed_on_for_the_host_of_its_url_and_no_other() {
        let server = echo().await;
        let resolver = Arc::new(Says("127.0.0.1", AtomicUsize::new(0)));
        let (_, address) = proxy(&[server.to_string()], resolver).await;
        let asked =
            format!("GET http://{server}/ HTTP/1.1\r\nHOST: evil.test\r\nAccept: */*\r\nhost: evil.test\r\n\r\n");
        let answer = ask(address, &asked).await;
        assert_eq!(answer, format!("GET / HTTP/1.1\r\nHost: {server}\r\nAccept: */*\r\nConnection: close\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_request_is_passed_on_without_what_is_between_the_client_and_its_proxy() {
        let server = echo().await;
        let resolver = Arc::new(Says("127.0.0.1", AtomicUsize::new(0)));
        let (_, address) = proxy(&[server.to_string()], resolver).await;
        let asked = format!(
            "GET http://{server}/a?b=c HTTP/1.1\r\nHost: {server}\r\nProxy-Authorization: x\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n"
        );
        let answer = ask(address, &asked).await;
        assert_eq!(
            answer,
            format!("GET /a?b=c HTTP/1.1\r\nHost: {server}\r\nAccept: */*\r\nConnection: close\r\n\r\n")
        );
    }

    #[tokio::test]
    async fn what_is_not_listed_is_refused_and_not_even_looked_up() {
        let resolver = Arc::new(Says("127.0.0.1", AtomicUsize::new(0)));
        let (proxy, address) = proxy(&["chatgpt.com:443".into()], resolver.clone()).await;
        for asked in [
            "CONNECT evil.test:443 HTTP/1.1\r\n\r\n",
            "CONNECT chatgpt.com:22 HTTP/1.1\r\n\r\n",
            "CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n",
            "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\n\r\n",
            "GET http://chatgpt.com/ HTTP/1.1\r\n\r\n",
        ] {
            let answer = ask(address, asked).await;
            assert!(
                answer.starts_with("HTTP/1.1 403 ") && answer.contains("is not in runner.egress"),
                "{asked}: {answer}"
            );
        }
        assert_eq!(resolver.1.load(Ordering::SeqCst), 0, "no name that is not listed reaches the resolver");
        let refused = proxy.refused();
        assert_eq!(refused.len(), 4, "{refused:?}");
        assert_eq!(refused["evil.test:443"], "evil.test:443 is not in runner.egress");
    }

    #[tokio::test]
    async fn a_listed_name_that_leads_inside_is_not_dialled() {
        // The proxy must not connect there: otherwise the answer would differ.
        let resolver = Arc::new(Says("169.254.169.254", AtomicUsize::new(0)));
        let (_, address) = proxy(&["chatgpt.com:443".into()], resolver).await;
        let answer = ask(address, "CONNECT chatgpt.com:443 HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(answer.contains("chatgpt.com resolves to 169.254.169.254"), "{answer}");
    }

    proptest::proptest! {
        /// Any bytes are either one head or none; what is forwarded is one head, for the destination that was checked.
        #[test]
        fn any_bytes_are_a_request_or_none(
            method in "(CONNECT|GET|P[A-Z]{0,5})",
            target in "(http://|https://)?[a-z0-9@.:\\[\\]-]{0,20}[/?#]?[ -~]{0,20}",
            headers in "([A-Za-z-]{1,12}: ?[ -~]{0,12}\r\n){0,4}",
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            let _ = Head::parse(&noise);
            let request = format!("{method} {target} HTTP/1.1\r\n{headers}\r\n");
            for cut in 0..request.len() {
                if let Some(part) = request.get(..cut) {
                    let early = Head::parse(part.as_bytes());
                    proptest::prop_assert!(matches!(early, Ok(None) | Err(_)), "before its end it is no request");
                }
            }
            if let Ok(Some((Head { destination, forwarded: Some(forwarded) }, _))) = Head::parse(request.as_bytes()) {
                let text = String::from_utf8_lossy(&forwarded);
                proptest::prop_assert_eq!(text.matches("\r\n\r\n").count(), 1);
                proptest::prop_assert!(text.ends_with("Connection: close\r\n\r\n"));
                proptest::prop_assert!(text.lines().next().is_some_and(|line| line.split(' ').nth(1).is_some_and(|path| path.starts_with('/'))));
                proptest::prop_assert!(destination.port != 0);
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_turned_away() {
        let resolver = Arc::new(Says("127.0.0.1", AtomicUsize::new(0)));
        let (_, address) = proxy(&["127.0.0.1:1".into()], resolver).await;
        let long = format!("GET http://127.0.0.1:1/ HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(2 * MAX_HEAD_BYTES));
        for asked in [
            "\u{16}\u{3}\u{1}\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET https://127.0.0.1:1/ HTTP/1.1\r\n\r\n",
            "GET http://user@127.0.0.1:1/ HTTP/1.1\r\n\r\n",
            "CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n",
            "CONNECT http://127.0.0.1:1 HTTP/1.1\r\n\r\n",
            &long,
        ] {
            let answer = ask(address, asked).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{}: {answer}", &asked[..20]);
        }
        let answer = ask(address, "CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "it is listed, and nobody is there: {answer}");
    }
}
