//! Identifies the caller of a request on the hosts' listener, from the connection, the headers and memory. This happens
//! once per request; guards and handlers use the result.
//!
//! This module knows nothing of what a request asks for, and stores nothing.

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

/// Every request of the hosts' listener carries one. No client can set it.
#[derive(Clone)]
pub struct AuthContext {
    /// The peer's address, or the one that a trusted proxy named. A v4-mapped address is converted to IPv4.
    pub caller: IpAddr,
    /// From the header `X-API-Key`, otherwise from `Authorization: Bearer`. `None`: neither header is present.
    pub credential: Option<Credential>,
}

impl AuthContext {
    /// Identifies the caller, and counts the request against the limit of the host, the user or the address.
    pub fn of(areas: &Areas, trust: &TrustedProxies, request: &Request) -> Result<Self, Failure> {
        let caller = find_caller(request, trust, areas.core.metrics())?;
        log::debug!(event = "request", method:% = request.method(), operation = operation(request.uri().path()), address:% = caller; "a request of a host");
        // The first header counts. A header that is not text is treated as absent.
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

/// The address of the peer, or the one in the connection's PROXY header.
pub fn peer(request: &Request) -> Result<IpAddr, Failure> {
    match request.remote_addr().as_socket_addr() {
        Some(address) => Ok(canonical_address(address.ip())),
        None => Err(ServiceError::internal("a call without an address").into()),
    }
}

/// The caller's address, also behind trusted proxies. An unreadable forwarding header is refused.
fn find_caller(request: &Request, trust: &TrustedProxies, metrics: &Metrics) -> Result<IpAddr, Failure> {
    let peer = peer(request)?;
    // Do not count a load balancer's own health checks.
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
        log::info!(event = "forwarded_unreadable", proxy:% = peer, header = header.name(), reason:%; "refused a call: the proxy's forwarding header does not name the caller");
        Failure::forwarded_unreadable(header.name(), &reason.to_string())
    })
}

/// The part of a path that may be logged. The rest may contain an installer token or, by mistake, another secret.
fn operation(path: &str) -> &str {
    let first = path.split('/').find(|part| !part.is_empty()).unwrap_or_default();
    match first {
        "auth" | "install" | "wrapper" | "versions" | "healthz" | "readyz" | "openapi.json" | "docs" => first,
        _ => "unknown",
    }
}
