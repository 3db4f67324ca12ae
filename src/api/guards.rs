//! Who calls: parameters of handlers that let nobody else past, and what every answer of a listener has in common.

use std::net::IpAddr;
use std::sync::Arc;

use poem::http::header::{HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use poem::{Endpoint, FromRequest, IntoResponse, Request, RequestBody, Response};
use poem_openapi::SecurityScheme;
use poem_openapi::auth::{ApiKey, Bearer};

use super::errors::Failure;
use crate::hot::HotHost;
use crate::listener;
use crate::service::{Service, ServiceError, enrol::canonical_address};

/// A host's API key.
#[derive(SecurityScheme)]
#[oai(ty = "api_key", key_name = "X-API-Key", key_in = "header", rename = "ApiKey")]
pub struct KeyHeader(ApiKey);

/// A host's API key.
#[derive(SecurityScheme)]
#[oai(ty = "bearer", rename = "BearerKey")]
pub struct KeyBearer(Bearer);

/// A host's API key, in either header.
#[derive(SecurityScheme)]
pub enum HostKey {
    Header(KeyHeader),
    Bearer(KeyBearer),
}

impl HostKey {
    /// The host, if its key is good and it may call from here. `anywhere`: from any address.
    pub async fn admit(&self, service: &Service, caller: Caller, anywhere: bool) -> Result<Arc<HotHost>, ServiceError> {
        let key = match self {
            Self::Header(KeyHeader(key)) => &key.key,
            Self::Bearer(KeyBearer(bearer)) => &bearer.token,
        };
        service.admit(Some(key), caller.0, anywhere).await
    }
}

/// The address that the call comes from; a v4-mapped one is its v4. No header is believed.
#[derive(Clone, Copy)]
pub struct Caller(pub IpAddr);

impl<'a> FromRequest<'a> for Caller {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        match request.remote_addr().as_socket_addr() {
            Some(address) => Ok(Self(canonical_address(address.ip()))),
            None => Err(Failure::from(ServiceError::internal("a call without an address")).into()),
        }
    }
}

/// An admin: whoever got through the handshake of the admin listener, or over the control socket, or runs a command on
/// the state itself while no daemon does.
#[derive(Clone)]
pub enum Admin {
    Certificate(crate::model::digest::Digest),
    Control {
        uid: u32,
    },
    /// Set on the endpoint that a command calls within its own process; no request can carry it in.
    InProcess {
        uid: u32,
    },
}

impl Admin {
    /// How the admin is named in the history.
    pub fn name(&self) -> String {
        match self {
            Self::Certificate(fingerprint) => format!("certificate {fingerprint}"),
            Self::Control { uid } => format!("uid {uid} on the control socket"),
            Self::InProcess { uid } => format!("uid {uid} on the state directory"),
        }
    }
}

impl<'a> FromRequest<'a> for Admin {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        if let Some(fingerprint) = listener::client_fingerprint(request) {
            return Ok(Self::Certificate(fingerprint));
        }
        if let Some(peer) = listener::control_peer(request) {
            return Ok(Self::Control { uid: peer.uid });
        }
        match request.data::<Self>() {
            Some(in_process) => Ok(in_process.clone()),
            None => Err(Failure::certificate_required().into()),
        }
    }
}

/// Counts every request of the hosts' listener against its address.
pub async fn count_request<E: Endpoint>(endpoint: Arc<E>, request: Request) -> poem::Result<Response> {
    let caller = Caller::from_request(&request, &mut RequestBody::default()).await?;
    let operation = operation(request.uri().path());
    log::debug!(event = "request", method:% = request.method(), operation, address:% = caller.0; "a request of a host");
    if let Some(service) = request.data::<Arc<Service>>() {
        service.count_request(caller.0).map_err(Failure::from)?;
    }
    Ok(endpoint.call(request).await?.into_response())
}

/// What is told of a path: it may hold an installer token, or, by mistake, any other secret.
fn operation(path: &str) -> &str {
    let first = path.split('/').nth(1).unwrap_or_default();
    match first {
        "auth" | "install" | "wrapper" | "versions" | "healthz" | "readyz" | "openapi.json" | "docs" => first,
        _ => "unknown",
    }
}

/// What every answer says: nothing of it is to be kept or guessed at.
pub fn harden(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
        .entry(HeaderName::from_static("cache-control"))
        .or_insert(HeaderValue::from_static("no-store, must-revalidate"));
    answer
}
