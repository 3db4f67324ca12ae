//! What the client makes of good and hostile answers, over plain HTTP on the loopback.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use codex_authd_client::{Client, Error, ErrorExt as _, ErrorKind, MAX_ANSWER_BYTES, sha256_hex, types};

/// Answers one request with these bytes; returns the address, and then the request.
fn serve(answer: Vec<u8>) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 65_536];
        let length = stream.read(&mut request).unwrap();
        let _ = stream.write_all(&answer);
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (url, server)
}

fn http(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The error of a call that gets this answer.
fn error_of(answer: Vec<u8>) -> Error<types::ErrorBody> {
    let (url, server) = serve(answer);
    let client = Client::connect(&url).api_key("canary-key").build().unwrap();
    let error = block_on(client.get_versions().send()).map(|_| ()).unwrap_err();
    server.join().unwrap();
    assert!(!format!("{error:?} {error}").contains("canary"), "{error:?}");
    error
}

#[test]
fn an_error_says_what_it_means() {
    let body = br#"{"status":"error","code":"throttled","message":"Wait","retry_after":7}"#;
    let error = error_of(http(429, "Retry-After: 9\r\n", body));
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Status(429), Some(Duration::from_secs(7))));
    assert_eq!(error.body().unwrap().code, "throttled");

    let error = error_of(http(503, "Retry-After: 9\r\n", b"<html>canary</html>"));
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Status(503), Some(Duration::from_secs(9))));
    assert!(error.body().is_none());
    // A status that the document does not name.
    assert_eq!(error_of(http(451, "", b"")).kind(), ErrorKind::Status(451));
    assert_eq!(error_of(http(302, "Location: http://127.0.0.1:1/\r\n", b"")).kind(), ErrorKind::Status(302));
}

#[test]
fn hostile_answers_are_refused_and_not_printed() {
    assert_eq!(error_of(http(200, "", br#"{"status":"ok","data":"canary"}"#)).kind(), ErrorKind::Unreadable);
    assert_eq!(error_of(http(200, "", b"canary")).kind(), ErrorKind::Unreadable);
    assert_eq!(error_of(http(200, "", &vec![b' '; MAX_ANSWER_BYTES + 1])).kind(), ErrorKind::TooLong);
    let whole = http(200, "", b"{\"canary\": 1}");
    assert_eq!(error_of(whole[..whole.len() - 3].to_vec()).kind(), ErrorKind::Broken);
    assert_eq!(error_of(b"canary".to_vec()).kind(), ErrorKind::Broken);
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (url, cause) in
        [(format!("http://127.0.0.1:{port}"), ErrorKind::Unreachable), ("http://name.invalid".into(), ErrorKind::Name)]
    {
        let client = Client::connect(&url).build().unwrap();
        let error = block_on(client.get_versions().send()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), cause, "{error:?}");
    }
    // No TLS on the other side.
    let (url, server) = serve(http(200, "", b"{}"));
    let client = Client::connect(&url.replace("http:", "https:")).build().unwrap();
    let error = block_on(client.get_versions().send()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Handshake, "{error:?}");
    server.join().unwrap();
}

#[test]
fn the_document_is_given_as_it_is() {
    let text = " {\"b\": 1.0,\n \"a\": \"\\u00e9\"}\n";
    let digest = sha256_hex(text.as_bytes());
    let (url, server) = serve(http(200, &format!("ETag: \"{digest}\"\r\n"), text.as_bytes()));
    let client = Client::connect(&url).api_key("key").build().unwrap();
    let document = block_on(client.auth_document(Some("0"))).unwrap().unwrap();
    assert_eq!((document.text.expose(), &document.sha256), (text, &digest));
    assert!(!format!("{document:?}").contains("1.0"));
    let request = server.join().unwrap().to_ascii_lowercase();
    assert!(request.contains("if-none-match: \"0\"\r\n") && request.contains("x-api-key: key\r\n"), "{request}");

    let (url, server) = serve(http(304, "", b""));
    let client = Client::connect(&url).build().unwrap();
    assert!(block_on(client.auth_document(Some(&digest))).unwrap().is_none());
    server.join().unwrap();

    let (url, server) = serve(http(200, &format!("ETag: \"{digest}\"\r\n"), b"canary"));
    let client = Client::connect(&url).build().unwrap();
    let error = block_on(client.auth_document(None)).unwrap_err();
    assert!(error.kind() == ErrorKind::Unreadable && !format!("{error:?}").contains("canary"), "{error:?}");
    server.join().unwrap();
}
