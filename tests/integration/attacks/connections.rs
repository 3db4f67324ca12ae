//! Attacks on the connections of a real daemon, each from another address than its clients: the permitted damage.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Client;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::daemon::{BOUND, Daemon, auth_json, install_provider};

const MIB: u64 = 1024 * 1024;

/// A connection from 127.0.0.`last`.
async fn connect_from(last: u8, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0)).unwrap();
    socket.connect(address).await.unwrap()
}

fn tls(daemon: &Daemon, protocol: &[u8]) -> Arc<ClientConfig> {
    install_provider();
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(daemon.state_dir().join("pki/server-ca.crt")).unwrap();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

async fn handshake(config: &Arc<ClientConfig>, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(config.clone()).connect(name, stream).await
}

/// A host's retrieve over a new connection.
async fn retrieve(daemon: &Daemon, client: &Client, key: &str) -> u16 {
    let body = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
    let call = client.post(daemon.hosts_url("/auth")).header("connection", "close").bearer_auth(key).json(&body);
    call.send().await.expect("an answer").status().as_u16()
}

/// A client that opens a connection for each call.
fn fresh(daemon: &Daemon) -> Client {
    daemon.client_builder().pool_max_idle_per_host(0).build().unwrap()
}

fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

async fn metric(daemon: &Daemon, admin: &Client, name: &str) -> f64 {
    let text = admin.get(daemon.admin_url("/metrics")).send().await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)).map_or(0.0, |rest| rest.trim().parse().unwrap())
}

async fn is_degraded(daemon: &Daemon, admin: &Client) -> bool {
    metric(daemon, admin, "codex_authd_degraded ").await != 0.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_of_one_address_keep_neither_hosts_nor_admins_out() {
    let mut daemon = Daemon::prepare(&[("LIMITS__HANDSHAKES_PER_ADDRESS", "64")]);
    daemon.log_level = Some("info");
    daemon.launch();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let (client, admins) = (fresh(&daemon), tls(&daemon, b"http/1.1"));
    let before = resident(&daemon);
    let mut silent = Vec::new();
    for number in 0..1500_u32 {
        let address = if number % 2 == 0 { daemon.listen.hosts } else { daemon.listen.admin };
        silent.push(connect_from(2, address).await);
        if number % 50 == 0 {
            assert_eq!(retrieve(&daemon, &client, &host.api_key).await, 200);
            let stream = TcpStream::connect(daemon.listen.admin).await.unwrap();
            handshake(&admins, stream).await.expect("an admin's handshake");
        }
    }
    assert!(resident(&daemon) < before + 64 * MIB, "{before} → {}", resident(&daemon));
    let evicted = "codex_authd_connections_refused_total{listener=\"hosts\",reason=\"handshake_evicted\"} ";
    assert!(metric(&daemon, &admin, evicted).await >= 600.0);
}

/// With 256 descriptors, and too many connections from many addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wants_all_descriptors_leaves_store_control_socket_and_admins_theirs() {
    let mut daemon = Daemon::prepare(&[]);
    daemon.within = ["sh", "-c", "ulimit -n 256; exec \"$@\"", "sh"].map(String::from).into();
    daemon.log_level = Some("info");
    daemon.launch();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let (client, config) = (fresh(&daemon), tls(&daemon, b"http/1.1"));
    let mut held = Vec::new();
    for round in 0..20_u8 {
        for _ in 0..20 {
            let stream = connect_from(2 + round, daemon.listen.hosts).await;
            // Half of them finish their handshake.
            if held.len() % 2 == 0 {
                held.push((None, handshake(&config, stream).await.ok()));
            } else {
                held.push((Some(stream), None));
            }
        }
        assert_eq!(retrieve(&daemon, &client, &host.api_key).await, 200, "{round}");
        let path = daemon.state.path().join(format!("auth-{round}.json"));
        let login = auth_json(&format!("2025-11-20T09:{:02}:43Z", round), u64::from(round));
        std::fs::write(&path, login.to_string()).unwrap();
        daemon.cli_json(&["auth", "upload", path.to_str().unwrap()]);
        let overview = admin.get(daemon.admin_url("/admin/overview")).send().await.expect("an admin is refused");
        assert_eq!(overview.status(), 200, "{round}");
        assert!(!is_degraded(&daemon, &admin).await, "{round}");
    }
    assert_eq!(metric(&daemon, &admin, "codex_authd_accept_errors_total{listener=\"hosts\"} ").await, 0.0);
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    assert!(open < 200, "{open} are open");
    assert!(!daemon.log().contains("Too many open files"));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The head of a request on an HTTP/2 stream: `method` is an index of HPACK's table, and the path a literal.
fn head(method: u8, path: &str) -> Vec<u8> {
    let mut block = vec![method, 0x87, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend([0x41, 1, b'x']);
    block
}

/// HTTP/2 from 127.0.0.2, with a zero window for each answer.
async fn begin_http2(daemon: &Daemon, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let mut stream = handshake(config, connect_from(2, daemon.listen.hosts).await).await.expect("a handshake");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    stream.write_all(&bytes).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_and_bodies_that_never_end_cost_little_memory() {
    let mut daemon = Daemon::prepare(&[]);
    daemon.log_level = Some("info");
    daemon.launch();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let client = fresh(&daemon);
    assert_eq!(retrieve(&daemon, &client, &host.api_key).await, 200);
    let config = tls(&daemon, b"h2");
    let before = resident(&daemon);
    let (mut held, mut peak) = (Vec::new(), 0);
    for round in 0..24 {
        // 100 answers that wait, or 100 bodies of which almost 1 MiB has arrived.
        let mut stream = begin_http2(&daemon, &config).await;
        let (get, post) = (head(0x82, "/docs"), head(0x83, "/auth"));
        for number in 0..100_u32 {
            let id = 2 * number + 1;
            let call = if round % 2 == 0 { frame(1, 5, id, &get) } else { frame(1, 4, id, &post) };
            if stream.write_all(&call).await.is_err() {
                break;
            }
        }
        if round % 2 == 1 {
            for number in 0..100_u32 {
                let data = frame(0, 0, 2 * (number % 100) + 1, &[b' '; 600]);
                let _ = stream.write_all(&data).await;
            }
        }
        held.push(stream);
        assert_eq!(retrieve(&daemon, &client, &host.api_key).await, 200, "{round}");
        peak = peak.max(resident(&daemon));
    }
    // The daemon works on the last bytes while it serves others.
    for _ in 0..50 {
        assert_eq!(retrieve(&daemon, &client, &host.api_key).await, 200);
        peak = peak.max(resident(&daemon));
    }
    assert!(peak < before + 64 * MIB, "{} MiB → {} MiB", before / MIB, peak / MIB);
    assert!(!is_degraded(&daemon, &admin).await);
}

/// cdx over curl gets the reason, not a closed connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_comes_before_the_body_reaches_the_client() {
    let daemon = Daemon::start_with(&[("LIMITS__AUTH_FAIL_COUNT", "1")]);
    let client = daemon.client_builder().build().unwrap();
    let body = json!({ "command": "store", "auth": { "filler": "x".repeat(900 * 1024) } }).to_string();
    let first = client.post(daemon.hosts_url("/auth")).bearer_auth("wrong").json(&json!({})).send().await.unwrap();
    assert_eq!(first.status(), 401);
    for round in 0..18 {
        let call =
            client.post(daemon.hosts_url("/auth")).bearer_auth("wrong").header("content-type", "application/json");
        let answer = call.body(body.clone()).send().await.unwrap_or_else(|error| panic!("{round}: {error:?}"));
        assert_eq!(answer.status(), 429, "{round}");
        let reason: Value = answer.json().await.unwrap();
        assert_eq!(reason["code"], "auth_blocked");
    }
    let too_large =
        client.post(daemon.hosts_url("/auth")).bearer_auth("wrong").header("content-type", "application/json");
    let answer = too_large.body("x".repeat(3 * 1024 * 1024)).send().await.expect("an answer");
    assert!([413, 429].contains(&answer.status().as_u16()), "{}", answer.status());
}

/// Both listeners refuse a request head that is too long, from every client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_of_more_than_64_kib_are_refused_on_both_listeners() {
    let mut daemon = Daemon::prepare(&[("ADMIN__ACCESS", "login")]);
    daemon.log_level = Some("info");
    daemon.launch();
    let config = tls(&daemon, b"http/1.1");
    for address in [daemon.listen.hosts, daemon.listen.admin] {
        for (length, refused) in [(40 * 1024, false), (80 * 1024, true)] {
            let mut stream = handshake(&config, TcpStream::connect(address).await.unwrap()).await.unwrap();
            let filler = "a".repeat(length);
            let request = format!("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx: {filler}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("an answer");
            let answer = String::from_utf8_lossy(&answer);
            assert_eq!(answer.starts_with("HTTP/1.1 431"), refused, "{address}, {length}: {answer}");
            assert!(answer.starts_with("HTTP/1.1 "), "{address}, {length}: {answer}");
        }
    }
}
