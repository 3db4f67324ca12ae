//! The server of one listener: serves HTTP/1 and HTTP/2 within limits, and calls a poem endpoint for each request.
//!
//! poem's own server hides most of hyper's limits, and a client can put off each of its deadlines. This module knows
//! nothing of what a request asks for.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use poem::endpoint::DynEndpoint;
use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use poem::{EndpointExt as _, IntoEndpoint, Request, RequestParts, Response};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Limits;
use super::exchange::{Answered, Exchanges, Received, Unread, busy, late};
use super::places::Place;

/// HTTP/1: the size of a request's head (hyper answers 431 beyond it), and of hyper's buffer for an answer.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// HTTP/2: the size of a request's header fields, plus 32 bytes for each (SETTINGS_MAX_HEADER_LIST_SIZE).
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Concurrent requests on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// HTTP/2 flow control: body bytes of one request, and of all on a connection, that a client may send before a handler
/// reads them.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// HTTP/2: bytes of one answer that are buffered in the connection.
const MAX_SEND_BYTES: usize = 64 * 1024;
/// HTTP/2: streams that a client opened and reset before the server accepted them.
const MAX_RESET_STREAMS: usize = 20;

/// A connection that a listener of this room hands out.
pub trait Handed {
    fn place(&self) -> Arc<Place>;
    fn limits(&self) -> Limits;
}

pub struct Server<A> {
    acceptor: A,
}

type Endpoint = dyn DynEndpoint<Output = Response>;

impl<A> Server<A>
where
    A: Acceptor,
    A::Io: Handed + 'static,
{
    pub fn new(acceptor: A) -> Self {
        Self { acceptor }
    }

    /// Never returns, except with an error.
    pub async fn run<E>(self, endpoint: E) -> io::Result<()>
    where
        E: IntoEndpoint,
        E::Endpoint: 'static,
    {
        self.run_with_graceful_shutdown(endpoint, std::future::pending(), None).await
    }

    /// Accepts connections until `signal`, then finishes the requests under way, for at most `timeout`.
    pub async fn run_with_graceful_shutdown<E>(
        mut self,
        endpoint: E,
        signal: impl Future<Output = ()>,
        timeout: Option<Duration>,
    ) -> io::Result<()>
    where
        E: IntoEndpoint,
        E::Endpoint: 'static,
    {
        let endpoint: Arc<Endpoint> = Arc::from(endpoint.into_endpoint().map_to_response().boxed());
        let stop = watch::Sender::new(false);
        let mut connections = JoinSet::new();
        tokio::pin!(signal);
        loop {
            tokio::select! {
                () = &mut signal => break,
                accepted = self.acceptor.accept() => {
                    let (io, local, remote, scheme) = accepted?;
                    let addresses = Addresses { local, remote, scheme };
                    connections.spawn(serve(io, addresses, endpoint.clone(), stop.subscribe()));
                }
                Some(ended) = connections.join_next() => note_panic(ended),
            }
        }
        // Close the port before waiting for connections.
        drop(self.acceptor);
        stop.send_replace(true);
        let all = async {
            while let Some(ended) = connections.join_next().await {
                note_panic(ended);
            }
        };
        match timeout {
            Some(timeout) => drop(tokio::time::timeout(timeout, all).await),
            None => all.await,
        }
        Ok(())
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended.as_ref()
        && error.is_panic()
    {
        log::error!(event = "connection_panicked", cause:% = error; "the task of a connection panicked");
    }
}

#[derive(Clone)]
struct Addresses {
    local: LocalAddr,
    remote: RemoteAddr,
    scheme: Scheme,
}

async fn serve<Io>(io: Io, addresses: Addresses, endpoint: Arc<Endpoint>, mut stopping: watch::Receiver<bool>)
where
    Io: Handed + tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let place = io.place();
    let exchanges = Exchanges::new(place.clone(), io.limits());
    let watched = exchanges.clone();
    let service = service_fn(move |request| {
        let (exchanges, addresses, endpoint) = (exchanges.clone(), addresses.clone(), endpoint.clone());
        async move { Ok::<_, Infallible>(answer(request, &exchanges, addresses, &endpoint).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(MAX_SEND_BYTES);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    let overdue = watched.overdue();
    tokio::pin!(connection, overdue);
    let mut is_stopping = false;
    loop {
        tokio::select! {
            _ = &mut connection => return,
            reason = &mut overdue => {
                if let Some(reason) = reason {
                    place.count(reason);
                    log::debug!("a connection was cut: {}", reason.name());
                }
                return;
            }
            () = place.evicted() => return,
            _ = stopping.wait_for(|stop| *stop), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    exchanges: &Arc<Exchanges>,
    addresses: Addresses,
    endpoint: &Arc<Endpoint>,
) -> hyper::Response<Answered> {
    let exchange = exchanges.begin();
    let unread = Unread::default();
    let (parts, body) = request.into_parts();
    let parts = RequestParts::from((parts, addresses.local, addresses.remote, addresses.scheme));
    let body = BoxBody::new(Received::new(body, exchange.clone(), unread.clone()));
    let handled = endpoint.call(Request::from_parts(parts, body.into()));
    let response = match tokio::time::timeout_at(exchange.deadline(), handled).await {
        Ok(_) if exchange.has_no_room() => busy(),
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(_) => late(),
    };
    Answered::of(response, exchange, unread).await
}
