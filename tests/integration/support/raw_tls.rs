//! A TLS client of the tests, for connections that the daemon must refuse.
//!
//! A refusal is what the client *received*: an alert, or the end of the TLS session (`close_notify`). A timeout, a
//! reset or a dead daemon is no refusal. reqwest cannot distinguish them. It may also wait for its timeout although the
//! refusal has arrived: hyper's client can hand a request to a connection task that has just ended, and then the call
//! gets no answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::daemon::{BOUND, Daemon, install_provider};

/// A client that makes a new connection for each call, with HTTP/1.1.
#[derive(Clone)]
pub struct RawClient {
    config: Arc<ClientConfig>,
    bound: Duration,
}

/// The outcome of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handshake was refused with this alert.
    Alert(AlertDescription),
    /// The session was ended with `close_notify`, without an answer.
    Closed,
    Answered {
        status: u16,
        body: String,
    },
}

impl RawClient {
    /// A client without a certificate.
    pub fn anonymous(daemon: &Daemon) -> Self {
        Self::new(daemon, None, rustls::DEFAULT_VERSIONS)
    }

    /// A client with NAME.crt and NAME.key of a directory.
    pub fn with_certificate(daemon: &Daemon, directory: &Path, name: &str) -> Self {
        Self::new(daemon, Some((directory, name)), rustls::DEFAULT_VERSIONS)
    }

    pub fn new(
        daemon: &Daemon,
        identity: Option<(&Path, &str)>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        install_provider();
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&daemon.state_dir().join("pki/server-ca.crt")) {
            roots.add(certificate).unwrap();
        }
        let config = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((directory, name)) => {
                let chain = certificates(&directory.join(format!("{name}.crt")));
                let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key"))).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        Self { config: Arc::new(config), bound: BOUND }
    }

    /// The time limit for each step.
    pub fn bounded(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// One call on a new connection. Panics if there is no outcome.
    #[track_caller]
    pub fn call(&self, request: reqwest::RequestBuilder) -> impl Future<Output = Outcome> + use<> {
        let called = self.try_call(request);
        let from = std::panic::Location::caller();
        async move { called.await.unwrap_or_else(|error| panic!("{from}: this is no refusal: {error}")) }
    }

    /// The same. An error is everything but an outcome: no connection, a reset, the end of the time limit.
    pub fn try_call(&self, request: reqwest::RequestBuilder) -> impl Future<Output = Result<Outcome, String>> + use<> {
        let (request, client) = (request.build().unwrap(), self.clone());
        async move {
            let mut stream = match client.connect(&request).await? {
                Ok(stream) => stream,
                Err(alert) => return Ok(Outcome::Alert(alert)),
            };
            // A refusal may have arrived already: then the write fails, and that is fine.
            let _ = timeout(client.bound, stream.write_all(&head_and_body(&request, "close"))).await;
            let mut answer = Vec::new();
            let read = timeout(client.bound, stream.read_to_end(&mut answer)).await;
            match read.map_err(|_| format!("nothing came within {:?}", client.bound))? {
                Err(error) if answer.is_empty() => alert_of(&error).map(Outcome::Alert),
                _ if answer.is_empty() => Ok(Outcome::Closed),
                _ => answered(&answer),
            }
        }
    }

    /// Opens a connection that stays open, and does only the handshake.
    pub async fn open(&self, request: reqwest::RequestBuilder) -> OpenConnection {
        let request = request.build().unwrap();
        let stream = self.connect(&request).await.unwrap().expect("the connection is accepted");
        let mut open = OpenConnection { stream, bound: self.bound };
        open.stream.write_all(&head_and_body(&request, "keep-alive")).await.unwrap();
        let status = open.status().await.unwrap();
        assert_eq!(status, Some(200), "the first call is answered");
        open
    }

    async fn connect(
        &self,
        request: &reqwest::Request,
    ) -> Result<Result<TlsStream<TcpStream>, AlertDescription>, String> {
        let url = request.url();
        let host = url.host_str().unwrap();
        let authority = format!("{host}:{}", url.port_or_known_default().unwrap());
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).unwrap();
        let late = |_| format!("{authority}: no connection within {:?}", self.bound);
        let socket = timeout(self.bound, TcpStream::connect(&authority)).await.map_err(late)?;
        let socket = socket.map_err(|error| format!("{authority}: {error}"))?;
        let shaken = timeout(self.bound, TlsConnector::from(self.config.clone()).connect(name, socket)).await;
        match shaken.map_err(late)? {
            Ok(stream) => Ok(Ok(stream)),
            Err(error) => alert_of(&error).map(Err),
        }
    }
}

/// A connection on which a call was answered.
pub struct OpenConnection {
    stream: TlsStream<TcpStream>,
    bound: Duration,
}

impl OpenConnection {
    /// Calls on it again: the status, or `None` if the connection was closed.
    pub async fn call(&mut self, request: reqwest::RequestBuilder) -> Option<u16> {
        let request = request.build().unwrap();
        if self.stream.write_all(&head_and_body(&request, "keep-alive")).await.is_err() {
            return None;
        }
        self.status().await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Reads one full answer. A connection that is cut in its middle is an error.
    async fn status(&mut self) -> Result<Option<u16>, String> {
        let mut bytes = Vec::new();
        loop {
            let read = timeout(self.bound, self.stream.read_buf(&mut bytes)).await;
            let read = read.map_err(|_| format!("neither an answer nor an end within {:?}", self.bound))?;
            if !matches!(read, Ok(1..)) {
                return if bytes.is_empty() { Ok(None) } else { Err("cut in the middle of an answer".into()) };
            }
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut answer = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = answer.parse(&bytes).map_err(|error| error.to_string())? else {
                continue;
            };
            let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.map_or(0, |header| str::from_utf8(header.value).unwrap().parse().unwrap());
            if bytes.len() >= head + length {
                return Ok(answer.code);
            }
        }
    }
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap).collect()
}

fn alert_of(error: &std::io::Error) -> Result<AlertDescription, String> {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => Ok(*alert),
        _ => Err(format!("the connection broke without an alert: {error}")),
    }
}

fn head_and_body(request: &reqwest::Request, connection: &str) -> Vec<u8> {
    let url = request.url();
    let path = url.query().map_or(url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let host = format!("{}:{}", url.host_str().unwrap(), url.port_or_known_default().unwrap());
    let body = request.body().map_or(&b""[..], |body| body.as_bytes().expect("a body that is no stream"));
    let mut bytes = format!("{} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n", request.method());
    bytes += &format!("Content-Length: {}\r\n", body.len());
    for (name, value) in request.headers() {
        bytes += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    [(bytes + "\r\n").as_bytes(), body].concat()
}

fn answered(answer: &[u8]) -> Result<Outcome, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(answer) {
        Ok(httparse::Status::Complete(length)) => Ok(Outcome::Answered {
            status: head.code.unwrap(),
            body: String::from_utf8_lossy(&answer[length..]).into_owned(),
        }),
        other => Err(format!("this is no answer ({other:?}): {}", String::from_utf8_lossy(answer))),
    }
}
