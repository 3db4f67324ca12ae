//! Tests of how connections end: cut by certificate, cut by a time-out, or in a stop that cuts off no client.

use std::collections::HashSet;
use std::sync::Mutex;

use super::*;
use crate::listener::{AdmissionCheck, Behind, Connections, Gate};
use crate::model::digest::Digest;
use crate::model::forwarded::TrustedProxies;

fn listening() -> std::net::TcpListener {
    std::net::TcpListener::bind(LOOPBACK).unwrap()
}

fn admin_with(house: &House, gate: Gate, limits: Limits) -> TlsAcceptor {
    TlsAcceptor::guarded(listening(), house.admin(), limits, gate).unwrap()
}

/// Waits until the server closes the connection.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut buffer = [0; 1024];
    let end = async { while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {} };
    timeout(BOUND, end).await.expect("it is closed");
}

/// Begins HTTP/2 by hand and sends a request on stream 1. Returns when the answer's head arrives.
async fn ask_http2(stream: &mut TlsStream<TcpStream>) {
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // :method GET, :scheme https, :path /, :authority x
    let head = [0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x87, 0x84, 0x41, 1, b'x'];
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&settings).await.unwrap();
    stream.write_all(&head).await.unwrap();
    loop {
        let mut frame = [0; 9];
        timeout(BOUND, stream.read_exact(&mut frame)).await.expect("a frame").unwrap();
        let mut body = vec![0; u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize];
        timeout(BOUND, stream.read_exact(&mut body)).await.expect("its body").unwrap();
        if frame[3] == 1 {
            return;
        }
    }
}

#[tokio::test]
async fn cutting_a_certificate_closes_its_connections_of_every_kind_and_no_others() {
    let house = House::new();
    let gate = Gate::default();
    let connections = gate.connections.clone();
    let served = serve(admin_with(&house, gate, Limits::default()));
    let (alice, bob) = (admin_of(&house.clients, System.now()), admin_of(&house.clients, System.now()));
    let config = |own| Arc::new(house.client(&TLS13, Some(own)));
    let mut http2 = house.client(&TLS13, Some(&alice));
    http2.alpn_protocols = vec![b"h2".to_vec()];

    let mut kept_alive = connect(served.address, &config(&alice)).await.unwrap();
    ask(&mut kept_alive, "\"https\" None").await.unwrap();
    let mut second_version = connect(served.address, &Arc::new(http2)).await.unwrap();
    ask_http2(&mut second_version).await;
    let mut idle = connect(served.address, &config(&alice)).await.unwrap();
    let mut half = connect(served.address, &config(&alice)).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nhost: l").await.unwrap();
    let mut others = connect(served.address, &config(&bob)).await.unwrap();
    ask(&mut others, "\"https\" None").await.unwrap();
    eventually("all are known", || connections.len() == 5).await;

    assert_eq!(connections.cut(&alice.fingerprint), 4);
    for stream in [&mut kept_alive, &mut second_version, &mut idle, &mut half] {
        closed(stream).await;
    }
    eventually("they are forgotten", || connections.len() == 1).await;
    ask(&mut others, "\"https\" None").await.expect("another admin's connection goes on");
    assert_eq!(connections.cut(&alice.fingerprint), 0);

    assert_eq!(connections.cut_unless(|known| *known == bob.fingerprint), 0);
    assert_eq!(connections.cut_unless(|_| false), 1);
    closed(&mut others).await;
    assert_eq!(served.calls.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn what_a_cut_connection_has_sent_already_is_not_served() {
    let connections = Connections::default();
    let (mut client, server) = {
        let listener = tokio::net::TcpListener::bind(LOOPBACK).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    };
    let entry = connections.enter(Digest::of(b"a certificate"), &server);
    let incoming = super::super::accept::Incoming::<()>::silent();
    let mut server = incoming.hand_out_as(server, Some(entry), incoming.place());
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    timeout(BOUND, server.get_ref().readable()).await.unwrap().unwrap();
    assert_eq!(connections.cut(&Digest::of(b"a certificate")), 1);
    let read = server.read(&mut [0; 16]).await;
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn a_certificate_that_is_not_admitted_is_closed_after_its_handshake_and_counted() {
    let house = House::new();
    let (alice, bob) = (admin_of(&house.clients, System.now()), admin_of(&house.clients, System.now()));
    let revoked = Arc::new(Mutex::new(HashSet::from([alice.fingerprint])));
    let asked = revoked.clone();
    let admits: AdmissionCheck = Arc::new(move |certificate| !asked.lock().unwrap().contains(certificate));
    let gate = Gate { admits: Some(admits), ..Gate::default() };
    let connections = gate.connections.clone();
    let acceptor = admin_with(&house, gate, Limits::default());
    let counters = acceptor.counters();
    let served = serve(acceptor);
    for version in VERSIONS {
        assert!(get(served.address, house.client(version, Some(&alice))).await.is_err(), "{version:?}");
        assert!(get(served.address, house.client(version, Some(&bob))).await.is_ok(), "{version:?}");
    }
    assert_eq!(counters.refused.load(Ordering::Relaxed), 2);
    assert_eq!(served.calls.load(Ordering::SeqCst), 2);
    eventually("no connection is left", || connections.is_empty()).await;
    revoked.lock().unwrap().clear();
    assert!(get(served.address, house.client(&TLS13, Some(&alice))).await.is_ok());
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_leave_nothing_behind() {
    let house = House::new();
    let gate = Gate::default();
    let connections = gate.connections.clone();
    let served = serve(admin_with(&house, gate, Limits::default()));
    let alice = admin_of(&house.clients, System.now());
    let config = Arc::new(house.client(&TLS13, Some(&alice)));
    ask(&mut connect(served.address, &config).await.unwrap(), "\"https\" None").await.unwrap();
    eventually("the first is gone", || connections.is_empty()).await;
    let before = open_files();
    for round in 0..20 {
        let open: Vec<_> = (0..50)
            .map(|n| {
                let config = config.clone();
                tokio::spawn(async move {
                    let mut stream = connect(served.address, &config).await.unwrap();
                    if n % 2 == 0 {
                        ask(&mut stream, "\"https\" None").await.unwrap();
                    }
                    stream
                })
            })
            .collect();
        let mut streams = Vec::new();
        for stream in open {
            streams.push(stream.await.unwrap());
        }
        eventually("all are known", || connections.len() == 50).await;
        // In half of the rounds the server closes, in the other half the clients.
        if round % 2 == 0 {
            assert_eq!(connections.cut(&alice.fingerprint), 50);
            for stream in &mut streams {
                closed(stream).await;
            }
        }
        drop(streams);
        eventually("all are forgotten", || connections.is_empty()).await;
    }
    eventually("no descriptor is left", || open_files() <= before).await;
}

#[tokio::test]
async fn half_a_request_a_trickle_and_silence_are_cut() {
    let quick = Duration::from_millis(300);
    let never = BOUND * 10;
    for (limits, trickle) in [
        (Limits { receive_timeout: quick, silence: never, ..Limits::default() }, false),
        (Limits { receive_timeout: quick, silence: never, ..Limits::default() }, true),
        (Limits { receive_timeout: never, silence: quick, ..Limits::default() }, false),
    ] {
        let acceptor = PlainAcceptor::bind(LOOPBACK, limits).unwrap();
        let address = acceptor.address();
        let (endpoint, calls) = endpoint();
        tokio::spawn(Server::new(acceptor).run(endpoint));
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
        let begun = Instant::now();
        let mut buffer = [0; 16];
        while !matches!(timeout(Duration::from_millis(20), slow.read(&mut buffer)).await, Ok(Ok(0) | Err(_))) {
            assert!(begun.elapsed() < BOUND, "it is never cut");
            if trickle {
                let _ = slow.write_all(b"x").await;
            }
        }
        assert!(begun.elapsed() >= quick, "cut too early");
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        assert!(get_plain(address).await.unwrap().starts_with("HTTP/1.1 200"), "others are served");
    }
}

#[tokio::test]
async fn a_quick_client_is_served_for_longer_than_one_request_may_take() {
    let quick = Duration::from_millis(300);
    let limits = Limits { receive_timeout: quick, silence: quick, ..Limits::default() };
    let house = House::new();
    let served = serve(TlsAcceptor::bind(LOOPBACK, house.hosts(), limits).unwrap());
    let mut stream = connect(served.address, &Arc::new(house.client(&TLS13, None))).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < 4 * quick {
        ask(&mut stream, "\"https\" None").await.expect("it goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_stop_serves_who_is_in_a_handshake_and_who_is_just_through_it() {
    let house = House::new();
    let limits = Limits { first_request: BOUND, ..Limits::default() };
    let acceptor = TlsAcceptor::bind(LOOPBACK, house.hosts(), limits).unwrap();
    let (address, drain) = (acceptor.address(), acceptor.drain());
    let (endpoint, calls) = endpoint();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async move {
        let _ = stopped.await;
        drain.finish().await;
    };
    let server = tokio::spawn(Server::new(acceptor).run_with_graceful_shutdown(endpoint, signal, Some(BOUND)));
    let config = Arc::new(house.client(&TLS13, None));
    let mut through = connect(address, &config).await.unwrap();
    let begun = TcpStream::connect(address).await.unwrap();
    stop.send(()).unwrap();
    timeout(BOUND, async { while TcpStream::connect(address).await.is_ok() {} }).await.expect("the port is closed");

    let name = TlsName::try_from("localhost").unwrap();
    let mut begun = TlsConnector::from(config).connect(name, begun).await.expect("the handshake goes on");
    assert!(!server.is_finished());
    ask(&mut begun, "\"https\" None").await.expect("the client in its handshake is served");
    ask(&mut through, "\"https\" None").await.expect("the client that had finished it is served");
    timeout(BOUND, server).await.expect("it stops").unwrap().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_say_nothing() {
    let house = House::new();
    let quick = Duration::from_millis(200);
    let limits = Limits { handshake_timeout: quick, first_request: quick, ..Limits::default() };
    let acceptor = TlsAcceptor::bind(LOOPBACK, house.hosts(), limits).unwrap();
    let (address, drain) = (acceptor.address(), acceptor.drain());
    let (endpoint, _) = endpoint();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async move {
        let _ = stopped.await;
        drain.finish().await;
    };
    let server = tokio::spawn(Server::new(acceptor).run_with_graceful_shutdown(endpoint, signal, Some(BOUND)));
    let _through = connect(address, &Arc::new(house.client(&TLS13, None))).await.unwrap();
    let _begun = TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    stop.send(()).unwrap();
    timeout(BOUND, server).await.expect("it stops").unwrap().unwrap();
    assert!(begun.elapsed() < BOUND / 2);
}

#[tokio::test]
async fn a_proxy_header_ahead_of_tls_is_the_remote_address() {
    let house = House::new();
    let proxies = Arc::new(TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap()], None));
    let gate = Gate { proxies: Some(proxies), ..Gate::default() };
    let limits = Limits { handshake_timeout: Duration::from_millis(500), ..Limits::default() };
    let acceptor = TlsAcceptor::guarded(listening(), house.hosts(), limits, gate).unwrap();
    let counters = acceptor.counters();
    let served = serve(acceptor);
    let config = Arc::new(house.client(&TLS13, None));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8443\r\n").await.unwrap();
    let name = TlsName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(config.clone()).connect(name, stream).await.unwrap();
    let answer = ask(&mut stream, "\"https\" None").await.unwrap();
    assert!(answer.contains("Some(203.0.113.9)"), "{answer}");

    assert!(connect(served.address, &config).await.is_err(), "no header");
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    silent.write_all(b"PROXY TCP4 203.0.113.9").await.unwrap();
    closed(&mut silent).await;
    eventually("both are counted", || counters.refused.load(Ordering::Relaxed) == 2).await;
    assert_eq!(served.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn plain_http_with_a_proxy_header_is_for_proxies_only() {
    let trust = |network: &str| Arc::new(TrustedProxies::new(vec![network.parse().unwrap()], None));
    for (proxies, served) in [(trust("127.0.0.0/8"), true), (trust("10.0.0.0/8"), false)] {
        let behind = Behind { proxies, proxy_protocol: true };
        let acceptor = PlainAcceptor::behind(listening(), Limits::default(), behind).unwrap();
        let address = acceptor.address();
        let (endpoint, calls) = endpoint();
        tokio::spawn(Server::new(acceptor).run(endpoint));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let call = b"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(call).await.unwrap();
        let mut answer = String::new();
        let _ = timeout(BOUND, stream.read_to_string(&mut answer)).await.expect("an answer, or the end");
        assert_eq!(answer.contains("Some(203.0.113.9)"), served, "{answer}");
        assert_eq!(calls.load(Ordering::SeqCst), usize::from(served));
    }
}
