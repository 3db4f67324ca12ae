//! Who calls the hosts' listener: found out once for each request, from the connection, the headers and memory. Guards and
//! handlers read it.
//!
//! It knows nothing of what a request asks for, and stores nothing.

use std::net::IpAddr;

use poem::Request;
use poem::http::Method;
use poem::http::header::{HeaderName, HeaderValue};
use poem::web::headers::authorization::Bearer;
use poem::web::headers::{Authorization, HeaderMapExt as _};
use zeroize::Zeroizing;

use super::errors::Failure;
use crate::metrics::{Forwarding, Metrics};
use crate::model::forwarded::TrustedProxies;
use crate::service::admission::Credential;
use crate::service::hosts::enrol::canonical_address;
use crate::service::{Areas, ServiceError};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A request of the hosts' listener carries one; no client can send it.
#[derive(Clone)]
pub struct AuthContext {
    /// The peer's address, or the one that a trusted proxy named; a v4-mapped one is its v4.
    pub caller: IpAddr,
    /// Of the header `X-API-Key`, else of `Authorization: Bearer`; `None`: neither is there.
    pub credential: Option<Credential>,
}

impl AuthContext {
    /// Finds out who calls, and counts the request against the limit of the host, the user or the address.
    pub fn of(areas: &Areas, trust: &TrustedProxies, request: &Request) -> Result<Self, Failure> {
        let caller = find_caller(request, trust, areas.core.metrics())?;
        log::debug!(event = "request", method:% = request.method(), operation = operation(request.uri().path()), address:% = caller; "a request of a host");
        // Of several headers the first counts; one that is no text is as good as none.
        let credential = match request.headers().get(X_API_KEY).and_then(|value| value.to_str().ok()) {
            Some(key) => Some(areas.admission.credential(key)),
            None => bearer(request).map(|token| areas.admission.credential(&token)),
        };
        let leaves = request.method() == Method::DELETE && request.uri().path() == "/auth";
        areas.admission.count_request(credential.as_ref(), leaves, caller)?;
        Ok(Self { caller, credential })
    }
}

/// The token of `Authorization: Bearer`.
pub fn bearer(request: &Request) -> Option<Zeroizing<String>> {
    let Authorization(token) = request.headers().typed_get::<Authorization<Bearer>>()?;
    Some(Zeroizing::new(token.token().to_owned()))
}

/// The other end of the connection, or what its PROXY header says.
pub fn peer(request: &Request) -> Result<IpAddr, Failure> {
    match request.remote_addr().as_socket_addr() {
        Some(address) => Ok(canonical_address(address.ip())),
        None => Err(ServiceError::internal("a call without an address").into()),
    }
}

/// Who calls, behind trusted proxies too. What they say and cannot be read is refused.
fn find_caller(request: &Request, trust: &TrustedProxies, metrics: &Metrics) -> Result<IpAddr, Failure> {
    let peer = peer(request)?;
    // A balancer's own health checks are of nobody else.
    let count = |forwarding| {
        if !matches!(request.uri().path(), "/healthz" | "/readyz") {
            metrics.forwarded(forwarding);
        }
    };
    let Some(header) = trust.header_from(peer) else {
        if trust.has_proxy_protocol() {
            count(Forwarding::Named);
        }
        return Ok(peer);
    };
    let lines = request.headers().get_all(header.name());
    let caller = trust.caller(peer, lines.iter().map(HeaderValue::as_bytes));
    count(match caller {
        Err(_) => Forwarding::Unreadable,
        Ok(_) if lines.iter().next().is_none() && !trust.has_proxy_protocol() => Forwarding::Missing,
        Ok(_) => Forwarding::Named,
    });
    caller.map_err(|reason| {
        log::info!(event = "forwarded_unreadable", proxy:% = peer, header = header.name(), reason:%; "a call was refused: its proxy does not say who calls");
        Failure::forwarded_unreadable(header.name(), &reason.to_string())
    })
}

/// What is told of a path: it may hold an installer token, or, by mistake, any other secret.
fn operation(path: &str) -> &str {
    let first = path.split('/').find(|part| !part.is_empty()).unwrap_or_default();
    match first {
        "auth" | "install" | "wrapper" | "versions" | "healthz" | "readyz" | "openapi.json" | "docs" => first,
        _ => "unknown",
    }
}
