//! Tests of the TCP listeners with real sockets, real handshakes and the real server.

mod bounds;
mod ending;

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use poem::listener::Acceptor;
use poem::{Endpoint, Request};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName as TlsName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Limits, PlainAcceptor, Server, TlsAcceptor, client_fingerprint, control_peer};
use crate::model::authority::AuthorityRole;
use crate::pki::tls::provider;
use crate::pki::{
    AuthorityKey, ClientCertificate, LiveConfig, ServerIdentity, ServerKey, ServerName, admin_config, authority,
    issue_client_certificate, issue_server_certificate, server_config, server_key, spki_pin,
};
use crate::platform::{Clock as _, System};

/// Only a broken test takes this long.
const BOUND: Duration = Duration::from_secs(30);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn new_authority(role: AuthorityRole) -> AuthorityKey {
    let made = authority::create(role, System.now(), &System).unwrap();
    AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap()
}

/// Our two authorities and the server's key.
struct House {
    servers: AuthorityKey,
    clients: AuthorityKey,
    key: ServerKey,
}

impl House {
    fn new() -> Self {
        Self {
            servers: new_authority(AuthorityRole::Server),
            clients: new_authority(AuthorityRole::Client),
            key: server_key::create().unwrap(),
        }
    }

    /// A freshly issued certificate over the same key.
    fn identity(&self) -> ServerIdentity {
        let names = [ServerName::Dns("localhost".into()), ServerName::Ip(LOOPBACK.ip())];
        let issued = issue_server_certificate(&self.servers, &self.key, &names, System.now(), &System).unwrap();
        ServerIdentity::issued(&issued, &self.key).unwrap()
    }

    fn hosts(&self) -> LiveConfig {
        LiveConfig::new(server_config(&self.identity()).unwrap())
    }

    fn admin(&self) -> LiveConfig {
        LiveConfig::new(admin_config(&self.identity(), &[self.clients.certificate_pem()]).unwrap())
    }

    fn client(&self, version: &'static SupportedProtocolVersion, own: Option<&ClientCertificate>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.servers.certificate_pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::from_pem_slice(own.private_key_pem.expose().as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![own.certificate.clone()], key).unwrap()
            }
        }
    }
}

fn admin_of(ca: &AuthorityKey, at: OffsetDateTime) -> ClientCertificate {
    issue_client_certificate(ca, "alice", 7, at, &System).unwrap()
}

/// A server whose handler counts its calls and answers with the connection's details.
struct Served {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
}

fn serve(acceptor: TlsAcceptor) -> Served {
    let address = acceptor.address();
    let (endpoint, calls) = endpoint();
    tokio::spawn(Server::new(acceptor).run(endpoint));
    Served { address, calls }
}

fn endpoint() -> (impl Endpoint<Output = String> + 'static, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let endpoint = poem::endpoint::make_sync(move |request: Request| {
        count.fetch_add(1, Ordering::SeqCst);
        let fingerprint = client_fingerprint(&request).map_or("none".into(), |digest| digest.to_string());
        let ip = request.remote_addr().as_socket_addr().map(|address| address.ip());
        format!(
            "{fingerprint} {ip:?} {:?} {:?} {:?}",
            request.version(),
            request.scheme().as_str(),
            control_peer(&request)
        )
    });
    (endpoint, calls)
}

async fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(config.clone()).connect(TlsName::try_from("localhost").unwrap(), stream).await
}

/// Sends a request on an open connection and keeps it open. Reads the answer up to `until`.
async fn ask(stream: &mut TlsStream<TcpStream>, until: &str) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while !answer.contains(until) {
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => answer.push_str(&String::from_utf8_lossy(&buffer[..n])),
        }
    }
    Ok(answer)
}

async fn get(address: SocketAddr, config: ClientConfig) -> io::Result<String> {
    timeout(BOUND, async { ask(&mut connect(address, &Arc::new(config)).await?, "\"https\" None").await })
        .await
        .expect("an answer, or a refusal")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    timeout(BOUND, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never came true: {what}"));
}

#[tokio::test]
async fn an_admins_certificate_reaches_the_handler_as_its_fingerprint() {
    let house = House::new();
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.admin(), Limits::default()).unwrap());
    for version in VERSIONS {
        let alice = admin_of(&house.clients, System.now());
        let answer = get(served.address, house.client(version, Some(&alice))).await.unwrap();
        assert!(answer.contains(&alice.fingerprint.to_string()), "{version:?}: {answer}");
        assert!(answer.contains("Some(127.0.0.1)"), "the remote address is not the client's: {answer}");
    }
    assert_eq!(served.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn whoever_has_no_certificate_of_ours_is_refused_in_the_handshake() {
    let house = House::new();
    let acceptor = TlsAcceptor::bind(LOOPBACK, house.admin(), Limits::default()).unwrap();
    let counters = acceptor.counters();
    let served = serve(acceptor);
    let foreign = admin_of(&new_authority(AuthorityRole::Client), System.now());
    let by_the_wrong_authority = admin_of(&house.servers, System.now());
    let expired = admin_of(&house.clients, System.now() - time::Duration::days(8));
    let mut tried = 0;
    for version in VERSIONS {
        for (who, own) in [
            ("nothing", None),
            ("foreign", Some(&foreign)),
            ("by our other authority", Some(&by_the_wrong_authority)),
            ("expired", Some(&expired)),
        ] {
            let answer = get(served.address, house.client(version, own)).await;
            assert!(answer.is_err(), "{who}, {version:?}: {answer:?}");
            tried += 1;
        }
    }
    eventually("all are counted", || counters.refused.load(Ordering::Relaxed) == tried).await;
    assert_eq!(served.calls.load(Ordering::SeqCst), 0, "a handler was reached");
    assert_eq!(counters.admitted.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_server_certificate_does_not_open_the_admin_listener() {
    let house = House::new();
    // Refused even if the client authority signed it by mistake, because its purpose is a server.
    let names = [ServerName::Dns("localhost".into())];
    let issued = issue_server_certificate(&house.clients, &house.key, &names, System.now(), &System).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(house.servers.certificate_pem().as_bytes()).unwrap()).unwrap();
    let key = PrivateKeyDer::try_from(house.key.pkcs8().to_vec()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![issued.certificate], key)
        .unwrap();
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.admin(), Limits::default()).unwrap());
    assert!(get(served.address, config).await.is_err());
    assert_eq!(served.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn both_the_new_and_the_old_authority_are_good_until_the_old_one_is_taken_off() {
    let house = House::new();
    let old = new_authority(AuthorityRole::Client);
    let both = [house.clients.certificate_pem(), old.certificate_pem()];
    let live = LiveConfig::new(admin_config(&house.identity(), &both).unwrap());
    let served = serve(TlsAcceptor::bind(LOOPBACK, live.clone(), Limits::default()).unwrap());
    let (new_admin, old_admin) = (admin_of(&house.clients, System.now()), admin_of(&old, System.now()));
    for version in VERSIONS {
        for own in [&new_admin, &old_admin] {
            assert!(get(served.address, house.client(version, Some(own))).await.is_ok());
        }
    }
    live.swap(admin_config(&house.identity(), &both[..1]).unwrap());
    for version in VERSIONS {
        assert!(get(served.address, house.client(version, Some(&new_admin))).await.is_ok());
        assert!(get(served.address, house.client(version, Some(&old_admin))).await.is_err());
    }
}

/// A resumed session is not verified again, so it could outlive its certificate's admission.
#[tokio::test]
async fn admins_sessions_are_never_resumed_and_hosts_sessions_are() {
    let house = House::new();
    let alice = admin_of(&house.clients, System.now());
    let admin = serve(TlsAcceptor::bind(LOOPBACK, house.admin(), Limits::default()).unwrap());
    let hosts = serve(TlsAcceptor::bind(LOOPBACK, house.hosts(), Limits::default()).unwrap());
    for version in VERSIONS {
        for (address, own, second) in
            [(admin.address, Some(&alice), HandshakeKind::Full), (hosts.address, None, HandshakeKind::Resumed)]
        {
            let config = Arc::new(house.client(version, own));
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let mut stream = connect(address, &config).await.unwrap();
                // A ticket comes with the first answer.
                ask(&mut stream, "\"https\" None").await.unwrap();
                kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            }
            assert_eq!(kinds, [HandshakeKind::Full, second], "{version:?}");
        }
    }
}

#[tokio::test]
async fn hosts_are_asked_for_no_certificate() {
    let house = House::new();
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.hosts(), Limits::default()).unwrap());
    for version in VERSIONS {
        let answer = get(served.address, house.client(version, None)).await.unwrap();
        assert!(answer.contains("none Some(127.0.0.1)"), "{answer}");
    }
}

#[tokio::test]
async fn http_2_and_http_1_are_both_spoken() {
    let house = House::new();
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.hosts(), Limits::default()).unwrap());
    for (protocols, version) in
        [(vec![b"h2".to_vec(), b"http/1.1".to_vec()], "HTTP/2.0"), (vec![b"http/1.1".to_vec()], "HTTP/1.1")]
    {
        let mut tls = house.client(&TLS13, None);
        tls.alpn_protocols = protocols;
        let client = reqwest::Client::builder().use_preconfigured_tls(tls).no_proxy().timeout(BOUND).build().unwrap();
        let answer = client.get(format!("https://localhost:{}/", served.address.port())).send().await.unwrap();
        assert_eq!(format!("{:?}", answer.version()), version);
        assert!(answer.text().await.unwrap().contains(version));
    }
}

#[tokio::test]
async fn a_silent_client_is_cut_at_the_time_out_and_delays_nobody() {
    let house = House::new();
    let limits = Limits { handshake_timeout: Duration::from_millis(400), ..Limits::default() };
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.hosts(), limits).unwrap());
    let begun = Instant::now();
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let mut halfway = TcpStream::connect(served.address).await.unwrap();
    halfway.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    get(served.address, house.client(&TLS13, None)).await.unwrap();
    for client in [&mut silent, &mut halfway] {
        let read = timeout(BOUND, client.read(&mut [0; 16])).await.expect("it is cut");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    assert!(begun.elapsed() >= limits.handshake_timeout, "cut too early");
}

#[tokio::test]
async fn a_swapped_certificate_is_seen_by_new_handshakes_while_open_connections_go_on() {
    let house = House::new();
    let (first, second) = (house.identity(), house.identity());
    let live = LiveConfig::new(server_config(&first).unwrap());
    let served = serve(TlsAcceptor::bind(LOOPBACK, live.clone(), Limits::default()).unwrap());
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let config = Arc::new(house.client(&TLS13, None));
    let mut open = connect(served.address, &config).await.unwrap();
    ask(&mut open, "\"https\" None").await.unwrap();
    assert_eq!(shown(&open), first.chain()[0]);

    live.swap(server_config(&second).unwrap());
    // The same client has a session ticket. Resuming must not use the old certificate either.
    let mut new = connect(served.address, &config).await.unwrap();
    ask(&mut new, "\"https\" None").await.unwrap();
    assert_eq!(shown(&new), second.chain()[0]);
    ask(&mut open, "\"https\" None").await.expect("the old connection goes on");
    assert_eq!(served.calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn curl_with_the_printed_pin_gets_in_and_with_another_does_not() {
    if Command::new("curl").arg("--version").output().is_err() {
        crate::skip::skipped("there is no curl on PATH");
        return;
    }
    let house = House::new();
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.hosts(), Limits::default()).unwrap());
    let curl = |pin: String| {
        let url = format!("https://127.0.0.1:{}/", served.address.port());
        tokio::task::spawn_blocking(move || {
            let pin = format!("sha256//{pin}");
            Command::new("curl")
                .args(["-sk", "--noproxy", "*", "-m", "20", "--pinnedpubkey", &pin, &url])
                .output()
                .unwrap()
        })
    };
    let good = curl(spki_pin(&house.key)).await.unwrap();
    assert!(String::from_utf8_lossy(&good.stdout).contains("127.0.0.1"), "{good:?}");
    let calls = served.calls.load(Ordering::SeqCst);
    let bad = curl(spki_pin(&server_key::create().unwrap())).await.unwrap();
    assert_eq!(bad.status.code(), Some(90), "curl's code for a pin that does not match: {bad:?}");
    assert_eq!(served.calls.load(Ordering::SeqCst), calls);
}

#[tokio::test]
async fn connections_answer_without_nagles_delay() {
    let house = House::new();
    let mut plain = PlainAcceptor::bind(LOOPBACK, Limits::default()).unwrap();
    let _client = TcpStream::connect(plain.address()).await.unwrap();
    let (stream, ..) = timeout(BOUND, plain.accept()).await.unwrap().unwrap();
    assert!(stream.get_ref().nodelay().unwrap());

    let mut tls = TlsAcceptor::bind(LOOPBACK, house.hosts(), Limits::default()).unwrap();
    let (address, config) = (tls.address(), Arc::new(house.client(&TLS13, None)));
    let client = tokio::spawn(async move { connect(address, &config).await });
    let (stream, ..) = timeout(BOUND, tls.accept()).await.unwrap().unwrap();
    assert!(stream.get_ref().get_ref().0.nodelay().unwrap());
    client.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_inherited_socket_is_served() {
    let inherited = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let house = House::new();
    let served = serve(TlsAcceptor::from_listener(inherited, house.hosts(), Limits::default()).unwrap());
    get(served.address, house.client(&TLS13, None)).await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused() {
    let first = PlainAcceptor::bind(LOOPBACK, Limits::default()).unwrap();
    let second = PlainAcceptor::bind(first.address(), Limits::default());
    assert_eq!(second.err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
}

/// Sends a plain HTTP/1.1 request and reads until the server closes.
async fn get_plain(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(BOUND, stream.read_to_string(&mut answer)).await.expect("an answer")?;
    Ok(answer)
}

#[tokio::test]
async fn behind_a_proxy_plain_http_is_served_until_the_server_is_told_to_stop() {
    let acceptor = PlainAcceptor::bind("[::]:0".parse().unwrap(), Limits::default()).unwrap();
    let address = SocketAddr::new(LOOPBACK.ip(), acceptor.address().port());
    let (endpoint, _) = endpoint();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async move {
        let _ = stopped.await;
    };
    let server = tokio::spawn(Server::new(acceptor).run_with_graceful_shutdown(endpoint, signal, None));
    // A v4 client of a v6 socket is that v4 address.
    let answer = get_plain(address).await.unwrap();
    assert!(answer.contains("none Some(127.0.0.1) HTTP/1.1 \"http\" None"), "{answer}");
    stop.send(()).unwrap();
    timeout(BOUND, server).await.expect("it stops").unwrap().unwrap();
    let mut refused = false;
    for _ in 0..200 {
        refused = TcpStream::connect(address).await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused, "the port is still open");
}

/// Set in the child process, which has very few file descriptors.
const ALONE: &str = "AUTHD_TEST_FEW_FILES";

#[test]
fn a_process_without_file_descriptors_serves_again_once_it_has_some() {
    if std::env::var_os(ALONE).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "listener::tests::a_process_without_file_descriptors_serves_again_once_it_has_some"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ALONE, "1")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(child.wait().unwrap().success(), "{output}");
        assert!(output.contains("1 passed"), "{output}");
        return;
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let limits = Limits { accept_pause: Duration::from_millis(50), ..Limits::default() };
        let acceptor = PlainAcceptor::bind(LOOPBACK, limits).unwrap();
        let (address, counters) = (acceptor.address(), acceptor.counters());
        let (endpoint, _) = endpoint();
        tokio::spawn(Server::new(acceptor).run(endpoint));

        let client = tokio::net::TcpSocket::new_v4().unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let mut files = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            files.push(file);
        }
        let mut client = client.connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let errors = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        eventually("accepting fails", || errors(&counters.accept_errors) >= 3).await;
        let (before, begun) = (errors(&counters.accept_errors), Instant::now());
        eventually("it keeps trying", || errors(&counters.accept_errors) >= before + 4).await;
        assert!(begun.elapsed() >= 3 * limits.accept_pause, "it spins");

        drop(files);
        let mut answer = String::new();
        timeout(BOUND, client.read_to_string(&mut answer)).await.expect("it recovers").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
}
