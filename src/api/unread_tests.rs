//! Tests that no operation reads the body of an unauthenticated caller. Operations without authentication read a small
//! body at most.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use poem::http::uri::Scheme;
use poem::http::{Method, Request as HttpRequest};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Body, Endpoint, Request, RequestParts, Response};
use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};

use super::auth_tests::{LIMITS, World};
use super::bodies::MAX_STRANGERS_BODY;
use crate::hot::throttle::Limits;
use crate::model::audit::AuditFilter;
use crate::service::Initiator;

/// An endless body that counts the bytes read from it.
struct Endless(Arc<AtomicUsize>);

impl AsyncRead for Endless {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let length = buffer.remaining().min(1024);
        buffer.put_slice(&vec![b' '; length]);
        self.0.fetch_add(length, Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }
}

/// Returns the status, and the number of body bytes that were read.
async fn call(
    endpoint: &impl Endpoint<Output = Response>,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, usize) {
    let taken = Arc::new(AtomicUsize::new(0));
    let request = HttpRequest::builder().method(method).uri(path).header("content-type", "application/json");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let remote = RemoteAddr(Addr::SocketAddr(SocketAddr::from(([192, 0, 2, 1], 40000))));
    let parts = RequestParts::from((parts, LocalAddr::default(), remote, Scheme::HTTPS));
    let request = Request::from_parts(parts, Body::from_async_read(Endless(taken.clone())));
    let answer = endpoint.get_response(request).await;
    (answer.status().as_u16(), taken.load(Ordering::SeqCst))
}

/// Method, path and id of each operation that has a body.
fn operations_with_bodies() -> Vec<(Method, String, String)> {
    let document: Value = serde_json::from_str(&super::document()).unwrap();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation.get("requestBody").is_some() {
                let parts = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
                let path = parts.collect::<Vec<_>>().join("/");
                let id = operation["operationId"].as_str().unwrap().to_owned();
                found.push((method.to_uppercase().parse().unwrap(), path, id));
            }
        }
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

#[tokio::test]
async fn no_operation_reads_the_body_of_a_stranger() {
    let world = World::new(LIMITS).await;
    let admins = super::admin_listener(world.areas.clone(), |route| route);
    for (method, path, id) in operations_with_bodies() {
        let is_hosts = matches!(id.as_str(), "syncAuth" | "syncAuthLines");
        let (status, taken) = match is_hosts {
            true => call(&world.listener, &method, &path, &[]).await,
            false => call(&admins, &method, &path, &[]).await,
        };
        if id == "signIn" {
            assert_eq!(status, 413, "{id}");
            assert!(taken <= 2 * MAX_STRANGERS_BODY, "{id}: {taken} bytes");
            continue;
        }
        assert!(matches!(status, 401 | 403), "{id}: {status}");
        assert_eq!(taken, 0, "{id} read a body of an unknown caller");
        // A user's own data is on the hosts' listener as well.
        if path.starts_with("/auth/me") {
            assert_eq!(call(&world.listener, &method, &path, &[]).await, (401, 0), "{id}");
        }
    }
    let (status, taken) = call(&world.listener, &Method::POST, "/auth/session", &[]).await;
    assert!(status == 413 && taken <= 2 * MAX_STRANGERS_BODY, "{status}, {taken} bytes");
}

#[tokio::test]
async fn a_host_that_is_refused_sends_its_body_to_nobody() {
    let mut world =
        World::new(Limits { host_per_minute: 2, global_per_minute: 30, auth_fail_count: 0, ..LIMITS }).await;
    world.add_host("h1.example.test", None).await;
    world.add_host("h2.example.test", None).await;
    let [used_up, other] = [world.keys[0].clone(), world.keys[1].clone()];
    for length in [Some("500000"), None] {
        // A request without a declared length reaches the handlers.
        let ask = async |path: &str, key: &str| {
            let mut headers = vec![("x-api-key", key)];
            headers.extend(length.map(|length| ("content-length", length)));
            call(&world.listener, &Method::POST, path, &headers).await
        };
        for path in ["/auth", "/auth/lines"] {
            assert_eq!(ask(path, "wrong").await, (401, 0));
        }
        world.areas.admission.disable_api(true, None, &Initiator::daemon()).await.unwrap();
        assert_eq!(ask("/auth", &other).await, (503, 0));
        world.areas.admission.disable_api(false, None, &Initiator::daemon()).await.unwrap();
    }
    // The key has two calls left. A body that is too long is read only with a valid key.
    for _ in 0..2 {
        let (status, taken) = call(&world.listener, &Method::POST, "/auth", &[("x-api-key", &used_up)]).await;
        assert!(status == 413 && taken >= super::MAX_BODY, "{status}, {taken}");
    }
    for path in ["/auth", "/auth/lines"] {
        assert_eq!(call(&world.listener, &Method::POST, path, &[("x-api-key", &used_up)]).await, (429, 0));
    }
    // The address has used up its own limit as well.
    let mut last = (0, 0);
    for _ in 0..30 {
        last = call(&world.listener, &Method::POST, "/auth", &[]).await;
    }
    assert_eq!(last, (429, 0));
}

/// The host's own limit never refuses a leave. But a stolen key must not bypass the limit of the address.
#[tokio::test]
async fn a_host_that_leaves_is_refused_where_its_address_called_too_often_as_well() {
    let mut world = World::new(Limits { host_per_minute: 1, global_per_minute: 2, ..LIMITS }).await;
    world.add_host("h1.example.test", None).await;
    let key = world.keys[0].clone();
    // Bind the host to another address, so that it may not leave from this one.
    let elsewhere = [192, 0, 2, 9].into();
    world
        .areas
        .admission
        .admit(&world.areas.admission.credential(&key), elsewhere, crate::service::admission::Purpose::Service)
        .await
        .unwrap();
    for status in [403, 403, 403, 429] {
        assert_eq!(call(&world.listener, &Method::DELETE, "/auth", &[("x-api-key", &key)]).await.0, status);
    }
}

/// The page and the document are megabytes, and the same for every caller.
#[tokio::test]
async fn the_document_is_made_once() {
    let world = World::new(LIMITS).await;
    for path in ["/openapi.json", "/docs"] {
        let ask = async || {
            let request = Request::builder().uri_str(path).method(Method::GET);
            let answer = super::with_documents(poem::Route::new()).get_response(request.finish()).await;
            answer.into_body().into_bytes().await.unwrap()
        };
        let (one, two) = (ask().await, ask().await);
        assert!(one.len() > 50_000 && one.as_ptr() == two.as_ptr(), "{path}: {} bytes", one.len());
    }
    drop(world);
}

/// A sign-in is finished even if the caller disconnects, so its failure counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_sign_in_counts_when_its_caller_hangs_up() {
    let world = World::new(LIMITS).await;
    let body = serde_json::json!({ "email": "ada@example.test", "password": "wrong" }).to_string();
    let request = HttpRequest::post("/auth/session").header("content-type", "application/json");
    let (parts, ()) = request.header("content-length", body.len()).body(()).unwrap().into_parts();
    let remote = RemoteAddr(Addr::SocketAddr(SocketAddr::from(([192, 0, 2, 1], 40000))));
    let parts = RequestParts::from((parts, LocalAddr::default(), remote, Scheme::HTTPS));
    let mut calling = Box::pin(world.listener.get_response(Request::from_parts(parts, Body::from_string(body))));
    assert!(calling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(calling);
    let begun = std::time::Instant::now();
    loop {
        let filter = AuditFilter { action: Some("session.begin".into()), ..AuditFilter::default() };
        if !world.areas.audit.audit_log(&filter, 1).await.unwrap().is_empty() {
            return;
        }
        assert!(begun.elapsed().as_secs() < 30, "the refusal is not noted");
        tokio::task::yield_now().await;
    }
}
