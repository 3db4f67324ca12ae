//! The caller's address, over the wire: trusted proxies and others, inherited sockets, and absurd requests.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use codex_authd::daemon::sockets::Sockets;
use reqwest::Client;
use serde_json::{Value, json};

use crate::support::daemon::{BINARY, BOUND, Daemon, Listen, Registered, pause};
use crate::support::eventually;

/// A retrieve with these headers: status and body.
async fn retrieve(daemon: &Daemon, client: &Client, host: &Registered, headers: &[(&str, &str)]) -> (u16, Value) {
    let question = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
    let mut call = client.post(daemon.hosts_url("/auth")).header("X-API-Key", &host.api_key).json(&question);
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_names_the_caller_and_nobody_else_does() {
    let daemon = Daemon::start_with(&[("LISTEN__TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8")]);
    let (admin, proxy) = (daemon.admin(), daemon.client());
    let stranger = daemon.client_from("127.0.0.2".parse().unwrap());
    let host = daemon.register(&admin, "h.test").await;
    let through = "X-Forwarded-For";
    let first = retrieve(&daemon, &proxy, &host, &[(through, "1.1.1.1, 203.0.113.9, 10.0.0.7")]).await;
    assert_eq!(first.0, 200, "{}", first.1);
    let bound = || daemon.cli_json(&["hosts", "list"])["hosts"][0]["ip"].clone();
    assert_eq!(bound(), "203.0.113.9");
    // One list over several lines, a port, and a caller who adds another's address in front.
    for lines in [
        vec![(through, "203.0.113.10"), (through, "203.0.113.9")],
        vec![(through, "203.0.113.9:4711")],
        vec![(through, "::ffff:203.0.113.9")],
        vec![(through, "203.0.113.9"), ("Forwarded", "for=203.0.113.10")],
    ] {
        assert_eq!(retrieve(&daemon, &proxy, &host, &lines).await.0, 200, "{lines:?}");
    }
    for lines in [vec![(through, "203.0.113.9, 203.0.113.10")], vec![("Forwarded", "for=203.0.113.9")], vec![]] {
        let (status, body) = retrieve(&daemon, &proxy, &host, &lines).await;
        assert_eq!((status, body["code"].as_str()), (403, Some("address_refused")), "{lines:?}");
    }
    for broken in ["unknown", "203.0.113.9, _hidden", "203.0.113.9,", "", "\"203.0.113.9\""] {
        let (status, body) = retrieve(&daemon, &proxy, &host, &[(through, broken)]).await;
        assert_eq!((status, body["code"].as_str()), (400, Some("forwarded_unreadable")), "{broken:?}");
    }
    let claimed = retrieve(&daemon, &stranger, &host, &[(through, "203.0.113.9")]).await;
    assert_eq!(claimed.0, 403, "the header of an untrusted caller was used");
    assert!(daemon.log().contains("203.0.113.9"), "the log names the caller");
    assert_eq!(bound(), "203.0.113.9");

    // The doctor uses the last call of a host; a health check is no such call.
    let refused = proxies_check(&daemon).unwrap();
    assert_eq!(
        (&refused["verdict"], refused["found"].as_str().unwrap().contains("were refused")),
        (&"missing".into(), true)
    );
    retrieve(&daemon, &proxy, &host, &[]).await;
    let nameless = proxies_check(&daemon).unwrap();
    assert!(
        nameless["remedy"].as_str().unwrap().contains("proxy_set_header X-Forwarded-For $remote_addr;"),
        "{nameless}"
    );
    assert!(nameless["found"].as_str().unwrap().contains("carried no forwarding header"), "{nameless}");
    retrieve(&daemon, &proxy, &host, &[(through, "203.0.113.9")]).await;
    proxy.get(daemon.hosts_url("/healthz")).send().await.unwrap();
    assert_eq!(proxies_check(&daemon).unwrap()["verdict"], "good");
}

/// The doctor's check of calls through proxies.
pub fn proxies_check(daemon: &Daemon) -> Option<Value> {
    let doctor: Value = serde_json::from_slice(&daemon.cli(&["doctor", "--json"]).stdout).unwrap();
    doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "proxies").cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_requests_counts_callers_behind_the_proxy_apart() {
    let daemon = Daemon::start_with(&[
        ("LISTEN__TRUSTED_PROXIES", "127.0.0.1"),
        ("LISTEN__FORWARDED_HEADER", "forwarded"),
        ("LIMITS__GLOBAL_PER_MINUTE", "3"),
    ]);
    let client = daemon.client();
    let status = async |caller: &str| {
        let call = client.get(daemon.hosts_url("/healthz")).header("Forwarded", format!("for=\"{caller}\""));
        call.send().await.unwrap().status().as_u16()
    };
    for _ in 0..3 {
        assert_eq!(status("203.0.113.9").await, 200);
    }
    assert_eq!(status("203.0.113.9:99").await, 429);
    assert_eq!(status("[2001:db8::1]:5").await, 200);
}

/// A daemon that inherits these sockets as `names`, started like from a socket unit.
fn start_inheriting(daemon: &Daemon, sockets: Sockets, names: Option<&str>) -> Child {
    let mut command = Command::new("sh");
    daemon.settings_for(&mut command);
    sockets.hand_on(&mut command).unwrap();
    match names {
        Some(names) => command.env("LISTEN_FDNAMES", names),
        None => command.env_remove("LISTEN_FDNAMES"),
    };
    let log = std::fs::File::options().create(true).append(true).open(daemon.log_file()).unwrap();
    // Only the child knows the process id that the protocol needs.
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" serve", BINARY]).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn end(mut child: Child) {
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn inherited_sockets_are_served_by_their_names() {
    for (names, swapped) in [(Some("hosts:admin"), false), (Some("admin:hosts"), true), (None, false)] {
        let daemon = Daemon::prepare(&[]);
        let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = Sockets { hosts: socket(), admin: socket() };
        let (first, second) = (sockets.hosts.local_addr().unwrap(), sockets.admin.local_addr().unwrap());
        let child = start_inheriting(&daemon, sockets, names);
        let file = daemon.state_dir().join("listen.json");
        let begun = Instant::now();
        let listen: Listen = loop {
            if let Some(listen) = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                break listen;
            }
            assert!(begun.elapsed() < BOUND, "{}", daemon.log());
            pause();
        };
        let wanted = if swapped { (second, first) } else { (first, second) };
        assert_eq!((listen.hosts, listen.admin), wanted, "{names:?}");
        TcpStream::connect(listen.hosts).unwrap();
        end(child);
    }
}

/// Waits for the daemon that `start_inheriting` started.
fn listens(daemon: &Daemon) -> Listen {
    eventually_slowly(daemon, || {
        std::fs::read(daemon.state_dir().join("listen.json")).ok().and_then(|text| serde_json::from_slice(&text).ok())
    })
}

fn eventually_slowly<T>(daemon: &Daemon, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < BOUND, "{}", daemon.log());
        pause();
    }
}

#[test]
fn a_socket_that_is_not_where_the_configuration_says_is_told_of_with_the_command() {
    let daemon = Daemon::prepare(&[("LISTEN__HOSTS", "127.0.0.1:1")]);
    let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
    let child = start_inheriting(&daemon, Sockets { hosts: socket(), admin: socket() }, None);
    let listen = listens(&daemon);
    let log = daemon.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("event=other_address")).collect();
    assert_eq!(told.len(), 1, "the admin socket is at the configured address: {log}");
    for wanted in ["127.0.0.1:1", &listen.hosts.to_string(), "systemctl edit codex-authd.socket"] {
        assert!(told[0].contains(wanted), "{wanted}: {}", told[0]);
    }
    end(child);
}

/// A socket unit's `ListenStream=8443` is one socket for both families; an IPv4 caller appears there as
/// ::ffff:127.0.0.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ipv4_caller_of_a_socket_for_both_families_is_that_ipv4_address_everywhere() {
    let mut daemon = Daemon::prepare(&[("LIMITS__AUTH_FAIL_COUNT", "2"), ("LISTEN__TRUSTED_PROXIES", "127.0.0.3")]);
    let made = daemon.cli_json(&["hosts", "add", "h.test"]);
    let host = Registered::from(&made);
    let socket = || TcpListener::bind("[::]:0").unwrap();
    let child = start_inheriting(&daemon, Sockets { hosts: socket(), admin: socket() }, None);
    let port = listens(&daemon).hosts.port();
    daemon.listen.hosts = SocketAddr::from(([127, 0, 0, 1], port));
    let client = daemon.client();
    assert_eq!(retrieve(&daemon, &client, &host, &[]).await.0, 200);
    assert_eq!(
        daemon.cli_json(&["hosts", "list"])["hosts"][0]["ip"],
        "127.0.0.1",
        "the host is bound to the IPv4 address"
    );
    daemon.cli_json(&["hosts", "networks", "h.test", "127.0.0.0/30"]);
    assert_eq!(retrieve(&daemon, &client, &host, &[]).await.0, 200, "the IPv4 network includes it");
    let proxy = daemon.client_from("127.0.0.3".parse().unwrap());
    assert_eq!(retrieve(&daemon, &proxy, &host, &[("X-Forwarded-For", "127.0.0.2")]).await.0, 200, "it is believed");
    assert_eq!(retrieve(&daemon, &proxy, &host, &[("X-Forwarded-For", "192.0.2.1")]).await.0, 403, "it is believed");
    // Another address of the same family is another caller, for limits too.
    let stranger = daemon.client_from("127.0.0.2".parse().unwrap());
    let wrong = Registered { api_key: "wrong".into(), ..host.clone() };
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(retrieve(&daemon, &stranger, &wrong, &[]).await.0);
    }
    assert_eq!(codes, [401, 401, 429]);
    assert_eq!(retrieve(&daemon, &client, &wrong, &[]).await.0, 401, "the first address is blocked too");
    // The entry is written with the gathered telemetry.
    let noted = eventually_slowly(&daemon, || {
        let noted = daemon.cli_json(&["audit", "list", "--action", "address.blocked"]);
        noted["entries"].as_array().is_some_and(|entries| !entries.is_empty()).then_some(noted)
    });
    assert_eq!(noted["entries"][0]["from"], "127.0.0.2", "{noted}");
    assert!(!daemon.log().contains("::ffff:"), "{}", daemon.log());
    end(child);
}

#[test]
fn a_socket_that_is_no_listener_stops_the_start_with_a_sentence() {
    let daemon = Daemon::prepare(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let not_listening = TcpListener::from(std::os::fd::OwnedFd::from(connected));
    let mut child = start_inheriting(&daemon, Sockets { hosts: listener, admin: not_listening }, Some("hosts:admin"));
    let status = eventually("it ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    let log = daemon.log();
    assert!(log.contains("the inherited descriptor 4 ('admin') is not a listening TCP socket"), "{log}");
}

/// Sends the bytes unchanged and reads until the other side closes.
fn raw(address: SocketAddr, pieces: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    for piece in pieces {
        // A connection that is cut in the middle is an answer, too.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("not closed: {error}; {}", String::from_utf8_lossy(&answer)),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

const HEAD: &str = "POST /auth HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

fn healthy(address: SocketAddr) {
    let answer = raw(address, &[b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn absurd_requests_get_a_4xx_or_a_close_while_others_are_served() {
    let daemon = Daemon::start_with(&[("LISTEN__HOSTS_TLS", "false")]);
    let address = daemon.listen.hosts;
    let close = "connection: close\r\n";
    let many: String = (0..500).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(1 << 20));
    for (what, request) in [
        ("a header block of a megabyte", format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{long}\r\n").into_bytes()),
        ("500 headers", format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n").into_bytes()),
        ("a path of a megabyte", format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(1 << 20)).into_bytes()),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("a version to come", b"GET / HTTP/7.0\r\nhost: x\r\n\r\n".to_vec()),
        ("NUL in a value", b"GET / HTTP/1.1\r\nhost: x\r\nx-api-key: a\0b\r\n\r\n".to_vec()),
        ("NUL in a name", b"GET / HTTP/1.1\r\nhost: x\r\nx\0: b\r\n\r\n".to_vec()),
        ("NUL in the path", b"GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("a folded header", b"GET / HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n".to_vec()),
        ("a bare carriage return", b"GET / HTTP/1.1\r\nhost: x\r\nx: a\rb\r\n\r\n".to_vec()),
        ("a blank before the colon", b"GET / HTTP/1.1\r\nhost : x\r\n\r\n".to_vec()),
        ("bad chunking", format!("{HEAD}{close}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n").into_bytes()),
        (
            "an endless chunk length",
            format!("{HEAD}{close}transfer-encoding: chunked\r\n\r\n{}\r\n", "f".repeat(64)).into_bytes(),
        ),
        ("a negative length", format!("{HEAD}content-length: -1\r\n\r\n").into_bytes()),
        ("a length with a sign", format!("{HEAD}content-length: +1\r\n\r\n1").into_bytes()),
        ("two lengths", format!("{HEAD}content-length: 1\r\ncontent-length: 2\r\n\r\n12").into_bytes()),
        ("a length beyond 64 bits", format!("{HEAD}content-length: 99999999999999999999\r\n\r\n").into_bytes()),
        ("an unknown coding", format!("{HEAD}{close}transfer-encoding: gzip\r\n\r\n").into_bytes()),
        ("TLS where there is none", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("no bytes of sense", vec![0xff; 4096]),
    ] {
        let answer = raw(address, &[&request]);
        println!("{what}: {:?}", answer.lines().next().unwrap_or("closed"));
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
        healthy(address);
    }
}

#[test]
fn a_length_beside_chunks_smuggles_nothing_in() {
    let daemon = Daemon::start_with(&[("LISTEN__HOSTS_TLS", "false")]);
    let smuggled = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    for (first, second) in [
        (format!("content-length: {}", smuggled.len() + 5), "transfer-encoding: chunked"),
        ("transfer-encoding: chunked".into(), "content-length: 5"),
    ] {
        // By the content length the smuggled request is in the body; by the chunks it follows the body.
        let request = format!("{HEAD}{first}\r\n{second}\r\nconnection: close\r\n\r\n0\r\n\r\n{smuggled}");
        let answer = raw(daemon.listen.hosts, &[request.as_bytes()]);
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
}

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(body);
    frame
}

#[test]
fn http_2_floods_end_the_connection_and_nothing_else() {
    let daemon = Daemon::start_with(&[("LISTEN__HOSTS_TLS", "false")]);
    let address = daemon.listen.hosts;
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    // :method GET, :scheme http, :path /, :authority x
    let head = [0x82, 0x86, 0x84, 0x41, 1, b'x'];
    let resets: Vec<u8> = (0..20_000)
        .flat_map(|n| [frame(1, 5, 2 * n + 1, &head), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat())
        .collect();
    let never_ending: Vec<u8> = [frame(1, 1, 1, &head), frame(9, 0, 1, &[0x40; 1000]).repeat(5000)].concat();
    let mut huge_settings = vec![0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0];
    huge_settings.extend(vec![0; 1 << 20]);
    let settings: Vec<u8> = frame(4, 0, 0, &[0, 3, 0, 0, 0, 1].repeat(2000)).repeat(400);
    for (what, flood) in [
        ("20,000 streams that are reset at once", resets),
        ("a header that never ends", never_ending),
        ("settings of 16 MiB", huge_settings),
        ("a frame for no stream", frame(1, 5, 0, &head)),
        ("a head that cannot be read", frame(1, 5, 1, &[0xff; 100])),
        ("a window of nothing", frame(8, 0, 0, &[0; 4])),
    ] {
        let answer = raw(address, &[&begin, &flood]);
        assert!(!answer.contains("HTTP/1.1 2"), "{what}: {answer}");
        healthy(address);
    }
    // Many settings in a frame within its limit are legal: the daemon reads them, and serves other clients meanwhile.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let _ = stream.write_all(&begin).and_then(|()| stream.write_all(&settings));
    healthy(address);
}

#[test]
fn five_hundred_half_requests_keep_nobody_out() {
    let daemon = Daemon::start_with(&[("LISTEN__HOSTS_TLS", "false")]);
    let half: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = TcpStream::connect(daemon.listen.hosts).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ").unwrap();
            stream
        })
        .collect();
    healthy(daemon.listen.hosts);
    drop(half);
}
