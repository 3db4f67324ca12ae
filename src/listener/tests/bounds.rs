//! Tests that one client cannot take resources from others. The raw clients do what no library would.

use bytes::Bytes;
use poem::http::StatusCode;
use poem::{IntoResponse, Response};
use tokio::net::TcpSocket;

use super::*;
use crate::listener::{Counters, Gate, RefusalReason};
use crate::model::forwarded::TrustedProxies;

/// Another address of this machine, for the attacker.
const ATTACKER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)), 0);
const NEVER: Duration = Duration::from_secs(3600);
const QUICK: Duration = Duration::from_millis(400);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

async fn connect_from(local: SocketAddr, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(local).unwrap();
    socket.connect(address).await.unwrap()
}

fn count(counters: &Counters, reason: RefusalReason) -> u64 {
    counters.by_reason[reason as usize].load(Ordering::Relaxed)
}

fn plain<E: poem::IntoEndpoint<Endpoint: 'static> + Send + 'static>(
    limits: Limits,
    endpoint: E,
) -> (SocketAddr, Arc<Counters>)
where
    E::Endpoint: 'static,
{
    let acceptor = PlainAcceptor::bind(LOOPBACK, limits).unwrap();
    let (address, counters) = (acceptor.address(), acceptor.counters());
    let server = Server::new(acceptor);
    tokio::spawn(async move { server.run(endpoint).await });
    (address, counters)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Begins HTTP/2, with this window size for each answer.
async fn begin_http2(stream: &mut TcpStream, window: u32) {
    let mut setting = vec![0, 4];
    setting.extend(window.to_be_bytes());
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &setting));
    stream.write_all(&bytes).await.unwrap();
}

/// `:method`, `:scheme http`, `:path /`, `:authority x`.
fn head(is_post: bool) -> [u8; 6] {
    [if is_post { 0x83 } else { 0x82 }, 0x86, 0x84, 0x41, 1, b'x']
}

/// `None`: the server has closed the connection.
async fn next_frame(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], payload))
}

/// Sends `bytes` repeatedly until the server closes the connection. Returns the data received and the time taken.
async fn until_closed(stream: TcpStream, bytes: Vec<u8>) -> (String, Duration) {
    let begun = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let trickle = tokio::spawn(async move {
        while writer.write_all(&bytes).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut data = Vec::new();
    let end = async {
        while let Some((kind, payload)) = next_frame(&mut reader).await {
            if kind == DATA {
                data.extend(payload);
                if data.ends_with(b"}") {
                    break;
                }
            }
        }
    };
    timeout(BOUND, end).await.expect("it ends");
    trickle.abort();
    (String::from_utf8_lossy(&data).into_owned(), begun.elapsed())
}

/// Reads the whole body, and answers with its length.
#[poem::handler]
async fn body_length(body: Bytes) -> String {
    body.len().to_string()
}

#[tokio::test]
async fn silent_connections_of_one_address_keep_nobody_out() {
    let house = House::new();
    for (max_handshakes, max_handshakes_per_address) in [(1000, 16), (40, 1000)] {
        let limits =
            Limits { max_handshakes, max_handshakes_per_address, handshake_timeout: NEVER, ..Limits::default() };
        let acceptor = TlsAcceptor::bind(LOOPBACK, house.hosts(), limits).unwrap();
        let counters = acceptor.counters();
        let served = serve(acceptor);
        let mut silent = Vec::new();
        let config = Arc::new(house.client(&TLS13, None));
        for number in 0..300 {
            silent.push(connect_from(ATTACKER, served.address).await);
            if number % 10 == 0 {
                let mut stream = connect(served.address, &config).await.expect("a handshake");
                ask(&mut stream, "\"https\" None").await.expect("an answer");
            }
        }
        let most = max_handshakes.min(max_handshakes_per_address) as u64;
        eventually("the oldest are dropped", || count(&counters, RefusalReason::HandshakeEvicted) >= 300 - most).await;
        let still_open = silent
            .iter()
            .filter(|stream| stream.try_read(&mut [0; 1]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
        assert!(still_open.count() as u64 <= most);
    }
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_have_shares_and_the_proxy_has_none() {
    let house = House::new();
    let limits = Limits { max_handshakes_per_address: 4, handshake_timeout: NEVER, ..Limits::default() };
    let trust = Arc::new(TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap()], None));
    let listening = || std::net::TcpListener::bind(LOOPBACK).unwrap();

    let gate = Gate { forwarders: trust.clone(), ..Gate::default() };
    let acceptor = TlsAcceptor::guarded(listening(), house.hosts(), limits, gate).unwrap();
    let counters = acceptor.counters();
    let served = serve(acceptor);
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(connect_from(ATTACKER, served.address).await);
    }
    get(served.address, house.client(&TLS13, None)).await.unwrap();
    assert_eq!(count(&counters, RefusalReason::HandshakeEvicted), 0, "a proxy speaks for many clients");

    let gate = Gate { proxies: Some(trust.clone()), forwarders: trust, ..Gate::default() };
    let acceptor = TlsAcceptor::guarded(listening(), house.hosts(), limits, gate).unwrap();
    let counters = acceptor.counters();
    let served = serve(acceptor);
    let config = Arc::new(house.client(&TLS13, None));
    for number in 0..30 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8443\r\n").await.unwrap();
        silent.push(stream);
        eventually("the oldest are dropped", || {
            count(&counters, RefusalReason::HandshakeEvicted) >= (number + 1_u64).saturating_sub(4)
        })
        .await;
    }
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"PROXY TCP4 203.0.113.10 10.0.0.1 4711 8443\r\n").await.unwrap();
    let name = TlsName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await.expect("another client's handshake");
    ask(&mut stream, "203.0.113.10").await.unwrap();
}

#[tokio::test]
async fn connections_of_an_address_are_bounded_and_idle_ones_make_room() {
    let limits = Limits { max_connections: 40, max_connections_per_address: 8, ..Limits::default() };
    let (endpoint, _) = endpoint();
    let (address, counters) = plain(limits, endpoint);
    let mut open = Vec::new();
    for _ in 0..30 {
        let mut stream = connect_from(ATTACKER, address).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        timeout(BOUND, stream.read(&mut [0; 256])).await.expect("an answer").unwrap();
        open.push(stream);
        assert!(get_plain(address).await.unwrap().starts_with("HTTP/1.1 200"), "another address");
    }
    eventually("idle ones make room", || count(&counters, RefusalReason::IdleEvicted) >= 22).await;
    eventually("they are closed", || counters.open.load(Ordering::Relaxed) <= 8).await;
    assert_eq!(count(&counters, RefusalReason::AddressFull), 0);
}

#[tokio::test]
async fn an_address_whose_connections_are_all_busy_gets_no_more_and_others_do() {
    let limits = Limits { max_connections: 40, max_connections_per_address: 8, ..Limits::default() };
    let (address, counters) = plain(limits, body_length);
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut stream = connect_from(ATTACKER, address).await;
        stream
            .write_all(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
            .await
            .unwrap();
        // "100 Continue" arrives when the handler reads the body.
        timeout(BOUND, stream.read(&mut [0; 256])).await.expect("it is asked for its body").unwrap();
        open.push(stream);
    }
    for _ in 0..5 {
        let mut refused = connect_from(ATTACKER, address).await;
        let read = timeout(BOUND, refused.read(&mut [0; 16])).await.expect("it is closed");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        assert!(get_plain(address).await.unwrap().starts_with("HTTP/1.1 200"), "another address");
    }
    assert_eq!(count(&counters, RefusalReason::AddressFull), 5);
    for stream in &mut open {
        stream.write_all(b"123456789").await.unwrap();
        let mut answer = [0; 256];
        let count = timeout(BOUND, stream.read(&mut answer)).await.expect("an answer").unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 200"), "requests under way are finished");
    }
}

#[tokio::test]
async fn a_head_of_more_than_64_kib_is_answered_431_and_one_of_less_is_served() {
    let (endpoint, calls) = endpoint();
    let (address, _) = plain(Limits::default(), endpoint);
    for (length, status) in [(60 * 1024, "200"), (66 * 1024, "431"), (500 * 1024, "431")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let filler = "a".repeat(length);
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: {filler}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(BOUND, stream.read_to_string(&mut answer)).await.expect("an answer").expect("no reset");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{length}: {answer}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_http_2_header_list_of_more_than_16_kib_is_answered_431() {
    let house = House::new();
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.hosts(), Limits::default()).unwrap());
    let mut tls = house.client(&TLS13, None);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let client = reqwest::Client::builder().use_preconfigured_tls(tls).no_proxy().timeout(BOUND).build().unwrap();
    for (fields, status) in [(10, 200), (40, 431)] {
        let mut request = client.get(format!("https://localhost:{}/", served.address.port()));
        for number in 0..fields {
            request = request.header(format!("x-{number}"), "a".repeat(1000));
        }
        assert_eq!(request.send().await.unwrap().status(), status, "{fields}");
    }
    assert_eq!(served.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn neither_pings_nor_a_trickle_put_off_the_end_of_a_request() {
    let limits = Limits { receive_timeout: QUICK, response_timeout: NEVER, silence: NEVER, ..Limits::default() };
    let (address, _) = plain(limits, body_length);
    for trickle in [false, true] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        begin_http2(&mut stream, 65_535).await;
        stream.write_all(&frame(HEADERS, END_HEADERS, 1, &head(true))).await.unwrap();
        let mut again = frame(PING, 0, 0, &[7; 8]);
        if trickle {
            again.extend(frame(DATA, 0, 1, b"x"));
        }
        let (answer, took) = until_closed(stream, again).await;
        assert!(answer.contains("request_timeout"), "{answer}");
        assert!(took >= QUICK, "too early");
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let trickle = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let end = async { while matches!(reader.read(&mut [0; 1024]).await, Ok(count) if count > 0) {} };
    timeout(BOUND, end).await.expect("it is closed");
    trickle.abort();
}

#[tokio::test]
async fn neither_pings_nor_slow_reading_put_off_the_end_of_an_answer() {
    let limits = Limits { receive_timeout: NEVER, response_timeout: QUICK, silence: NEVER, ..Limits::default() };
    let large = poem::endpoint::make_sync(|_| vec![b'x'; 15 * MIB]);
    let (address, counters) = plain(limits, large);
    let mut stream = TcpStream::connect(address).await.unwrap();
    begin_http2(&mut stream, 0).await;
    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(false))).await.unwrap();
    let (_, took) = until_closed(stream, frame(PING, 0, 0, &[7; 8])).await;
    assert!(took >= QUICK, "too early");
    assert_eq!(count(&counters, RefusalReason::ResponseTimeout), 1);

    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    while count(&counters, RefusalReason::ResponseTimeout) < 2 {
        assert!(begun.elapsed() < BOUND, "it is never cut");
        slow.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn pings_keep_no_connection_open_without_a_request() {
    let limits = Limits { receive_timeout: NEVER, response_timeout: NEVER, silence: QUICK, ..Limits::default() };
    let (endpoint, _) = endpoint();
    let (address, _) = plain(limits, endpoint);
    for asks in [false, true] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        begin_http2(&mut stream, 65_535).await;
        if asks {
            stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(false))).await.unwrap();
        }
        let (_, took) = until_closed(stream, frame(PING, 0, 0, &[7; 8])).await;
        assert!(took >= QUICK, "too early");
    }
}

const MIB: usize = 1024 * 1024;

fn few_bytes() -> Limits {
    Limits { max_buffered_bytes: 16 * MIB, max_buffered_bytes_per_address: 4 * MIB, ..Limits::default() }
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_and_others_are_answered() {
    // Each answer has its own copy.
    let endpoint = poem::endpoint::make_sync(|_| vec![b'x'; MIB / 2]);
    let (address, counters) = plain(few_bytes(), endpoint);
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = connect_from(ATTACKER, address).await;
        begin_http2(&mut stream, 0).await;
        for number in 0..50 {
            stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &head(false))).await.unwrap();
        }
        open.push(stream);
    }
    eventually("most are refused", || count(&counters, RefusalReason::NoMemory) >= 200 - 8).await;
    assert_eq!(count(&counters, RefusalReason::NoMemory), 200 - 8, "4 MiB of them wait");
    assert!(get_plain(address).await.unwrap().starts_with("HTTP/1.1 200"), "another address");
    let mut refused = connect_from(ATTACKER, address).await;
    refused.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(BOUND, refused.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 5"), "{answer}");
    drop(open);
    eventually("all are gone", || counters.open.load(Ordering::Relaxed) == 0).await;
    // A server task releases its memory a moment after its connection is closed.
    let begun = Instant::now();
    loop {
        let mut again = connect_from(ATTACKER, address).await;
        again.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(BOUND, again.read_to_end(&mut answer)).await.expect("an answer").unwrap();
        if answer.starts_with(b"HTTP/1.1 200") && answer.len() > MIB / 2 {
            break;
        }
        assert!(begun.elapsed() < BOUND, "the memory is never released");
    }
}

#[tokio::test]
async fn an_answer_that_all_share_is_not_counted_for_each() {
    let shared = Bytes::from(vec![b'x'; 3 * MIB]);
    let endpoint = poem::endpoint::make_sync(move |_| shared.clone());
    let (address, counters) = plain(few_bytes(), endpoint);
    let mut stream = connect_from(ATTACKER, address).await;
    begin_http2(&mut stream, 0).await;
    for number in 0..50 {
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &head(false))).await.unwrap();
    }
    let mut answers = 0;
    while answers < 50 {
        let (kind, _) = timeout(BOUND, next_frame(&mut stream)).await.expect("a frame").expect("it is open");
        answers += usize::from(kind == HEADERS);
    }
    assert_eq!(count(&counters, RefusalReason::NoMemory), 0);
}

#[tokio::test]
async fn request_bodies_in_memory_are_bounded_and_others_are_heard() {
    let (address, counters) = plain(few_bytes(), body_length);
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut stream = connect_from(ATTACKER, address).await;
        stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1048577\r\n\r\n").await.unwrap();
        // All but the last byte, so that the handler waits.
        stream.write_all(&vec![b'x'; MIB]).await.unwrap();
        open.push(stream);
    }
    eventually("some are refused", || count(&counters, RefusalReason::NoMemory) >= 6).await;
    let mut fine = TcpStream::connect(address).await.unwrap();
    let request = format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {MIB}\r\n\r\n");
    fine.write_all(request.as_bytes()).await.unwrap();
    fine.write_all(&vec![b'x'; MIB]).await.unwrap();
    let mut answer = String::new();
    timeout(BOUND, fine.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("1048576"), "{answer}");
    let mut answers = [0, 0];
    for stream in &mut open {
        let mut answer = [0; 1024];
        let _ = stream.write_all(b"x").await;
        let count = timeout(BOUND, stream.read(&mut answer)).await.expect("an answer").unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        match &answer[..12] {
            "HTTP/1.1 200" => answers[0] += 1,
            "HTTP/1.1 503" => answers[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert!(answers[0] >= 3 && answers[1] >= 6, "{answers:?}");
}

/// Refuses before the body is read, as the rate limits do.
#[poem::handler]
fn refuse() -> Response {
    (StatusCode::TOO_MANY_REQUESTS, "{\"code\":\"rate_limited\"}").into_response()
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_is_received_by_every_client() {
    let house = House::new();
    let acceptor = TlsAcceptor::bind(LOOPBACK, house.hosts(), Limits::default()).unwrap();
    let address = acceptor.address();
    tokio::spawn(Server::new(acceptor).run(refuse));
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let mut tls = house.client(&TLS13, None);
        tls.alpn_protocols = vec![protocol.to_vec()];
        let client = reqwest::Client::builder().use_preconfigured_tls(tls).no_proxy().timeout(BOUND).build().unwrap();
        for round in 0..18 {
            let request = client.post(format!("https://localhost:{}/", address.port())).body(vec![b'x'; 2 * MIB]);
            let answer = request.send().await.unwrap_or_else(|error| panic!("{protocol:?}, {round}: {error:?}"));
            assert_eq!(answer.status(), 429);
            assert!(answer.text().await.unwrap().contains("rate_limited"));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let body = directory.path().join("body");
    std::fs::write(&body, vec![b'x'; 2 * MIB]).unwrap();
    for version in ["--http2", "--http1.1"] {
        for round in 0..18 {
            let data = format!("@{}", body.display());
            let url = format!("https://127.0.0.1:{}/", address.port());
            let run = move || {
                Command::new("curl")
                    .args(["-sk", "--noproxy", "*", "-m", "20", version, "-H", "Expect:", "-w", "%{http_code}"])
                    .args(["--data-binary", &data, &url])
                    .output()
                    .unwrap()
            };
            let output = tokio::task::spawn_blocking(run).await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.ends_with("429"), "{version}, {round}: {output:?}");
            assert!(text.contains("rate_limited"), "{text}");
        }
    }
}
