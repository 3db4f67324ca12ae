//! A small HTTP server on 127.0.0.1 that passes every call to one function and records it.

use std::sync::{Arc, Mutex};

use poem::endpoint::make;
use poem::http::{StatusCode, header};
use poem::listener::{Acceptor, AcceptorExt as _, RustlsCertificate, RustlsConfig, TcpAcceptor};
use poem::{Request, Response, Server};

#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The status of the answer; 0 while the call is being handled.
    pub status: u16,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }
}

/// Serves until it is dropped.
pub struct HttpServer {
    pub port: u16,
    tls: bool,
    calls: Arc<Mutex<Vec<Call>>>,
    _runtime: tokio::runtime::Runtime,
}

impl HttpServer {
    pub fn plain(handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, handler)
    }

    /// With a certificate chain and its key, both PEM.
    pub fn tls(certificate: &str, key: &str, handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let certificate = RustlsCertificate::new().cert(certificate).key(key);
        Self::start(Some(RustlsConfig::new().fallback(certificate)), handler)
    }

    fn start(tls: Option<RustlsConfig>, handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let (handler, seen, with_tls) = (Arc::new(handler), Arc::clone(&calls), tls.is_some());
        runtime.spawn(async move {
            let app = make(move |request| answer(request, Arc::clone(&handler), Arc::clone(&seen)));
            let plain = TcpAcceptor::from_std(listener).unwrap();
            match tls {
                Some(config) => serve(plain.rustls(futures_util::stream::iter([config])), app).await,
                None => serve(plain, app).await,
            }
        });
        Self { port, tls: with_tls, calls, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.port)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub fn forget_calls(&self) {
        self.calls.lock().unwrap().clear();
    }
}

async fn serve(acceptor: impl Acceptor + 'static, app: impl poem::Endpoint + 'static) {
    Server::new_with_acceptor(acceptor).run(app).await.unwrap();
}

async fn answer(
    mut request: Request,
    handler: Arc<impl Fn(&Call) -> Reply + Send + Sync + 'static>,
    calls: Arc<Mutex<Vec<Call>>>,
) -> poem::Result<Response> {
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut call = Call {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: request.take_body().into_vec().await?,
        status: 0,
    };
    let position = {
        let mut calls = calls.lock().unwrap();
        calls.push(call.clone());
        calls.len() - 1
    };
    let reply = tokio::task::block_in_place(|| handler(&call));
    call.status = reply.status;
    if let Some(place) = calls.lock().unwrap().get_mut(position) {
        *place = call;
    }
    let mut response = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(reply.body))
}
