//! Guards: parameters of handlers that identify the caller and check its rights. Also the headers of every answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use poem::http::header::{CACHE_CONTROL, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use poem::http::{Method, StatusCode};
use poem::{Endpoint, FromRequest, IntoResponse, Request, RequestBody, Response};
use poem_openapi::auth::{ApiKey, Bearer};
use poem_openapi::registry::Registry;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, OperationId, SecurityScheme};

use super::auth_context::{AuthContext, bearer, peer};
use super::cookies::token_of_page;
use super::document::routes;
use super::errors::{Asked, Failure};
use crate::config::AdminAccess;
use crate::hot::HotHost;
use crate::listener;
use crate::metrics::Listener;
use crate::model::audit::Actor;
use crate::model::digest::Digest;
use crate::model::people::Role;
use crate::records::AdminCertificate;
use crate::service::admission::{Credential, Purpose};
use crate::service::people::sessions::SignedIn;
use crate::service::{Admission, Areas, Initiator, ServiceError, hosts::enrol::canonical_address};

/// A host's API key.
#[derive(SecurityScheme)]
#[oai(ty = "api_key", key_name = "X-API-Key", key_in = "header", rename = "ApiKey")]
struct KeyHeader(#[expect(dead_code)] ApiKey);

/// A host's API key.
#[derive(SecurityScheme)]
#[oai(ty = "bearer", rename = "BearerKey")]
struct KeyBearer(#[expect(dead_code)] Bearer);

/// A host's API key, in either header: describes [`HostCaller`] in the document.
#[derive(SecurityScheme)]
enum HostKey {
    Header(#[expect(dead_code)] KeyHeader),
    Bearer(#[expect(dead_code)] KeyBearer),
}

/// A caller that presents a host's API key. [`Self::admit`] checks the key.
pub struct HostCaller {
    pub address: IpAddr,
    credential: Credential,
}

impl HostCaller {
    /// Returns the host, if its key is valid and it may call from its address.
    pub async fn admit(&self, admission: &Admission, purpose: Purpose) -> Result<Arc<HotHost>, ServiceError> {
        admission.admit(&self.credential, self.address, purpose).await
    }
}

impl<'a> ApiExtractor<'a> for HostCaller {
    const TYPES: &'static [ApiExtractorType] = HostKey::TYPES;
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        <HostKey as ApiExtractor>::register(registry);
    }

    fn security_schemes() -> Vec<&'static str> {
        HostKey::security_schemes()
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let context = request.data::<AuthContext>();
        let context = context.and_then(|context| Some((context.caller, context.credential.clone()?)));
        let (address, credential) = context.ok_or_else(|| Failure::from(ServiceError::KeyMissing))?;
        Ok(Self { address, credential })
    }
}

/// Whether a guard has authenticated the caller of this request. Each request of a listener carries one. Until it is
/// set, the body limit of unauthenticated callers applies ([`super::bodies::bound_of`]).
#[derive(Clone, Default)]
pub struct CallerKnown(Arc<AtomicBool>);

impl CallerKnown {
    pub fn is_known(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn note(request: &Request) {
        if let Some(known) = request.data::<Self>() {
            known.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The caller's address: the peer's, or the one that a trusted proxy named.
#[derive(Clone, Copy)]
pub struct Caller(pub IpAddr);

impl Caller {
    pub fn of(request: &Request) -> Result<Self, Failure> {
        match request.data::<AuthContext>() {
            Some(context) => Ok(Self(context.caller)),
            None => Ok(Self(peer(request)?)),
        }
    }
}

impl<'a> FromRequest<'a> for Caller {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        Ok(Self::of(request)?)
    }
}

/// The caller on an admin listener, with its role.
///
/// `admin.access` requires a valid client certificate, a session, or both. A certificate has the admin role, unless it
/// is tied to a user. The control socket has the admin role, as does a command that uses the state while no daemon
/// runs.
#[derive(Clone)]
pub struct Principal {
    pub by: Initiator,
    pub role: Role,
    pub signed_in: Option<SignedIn>,
    /// The certificate of the connection, if `admin.access` requires one.
    pub certificate: Option<Digest>,
}

impl Principal {
    /// For the endpoint that a command calls within its own process. No request can set it.
    pub fn offline(uid: u32) -> Self {
        Self::admin(Actor::Offline { uid })
    }

    fn admin(actor: Actor) -> Self {
        Self { by: Initiator { actor, from: None }, role: Role::Admin, signed_in: None, certificate: None }
    }

    async fn of(request: &Request) -> Result<Self, Failure> {
        match request.data::<Self>() {
            // `watch_callers` has already found it, or it is a command.
            Some(known) => {
                CallerKnown::note(request);
                Ok(known.clone())
            }
            None => Self::with_token(request, bearer(request).as_ref().map(|token| token.as_str())).await,
        }
    }

    /// The caller of a page, whose session may be in a cookie. API operations never read the session from a cookie.
    pub async fn of_page(request: &Request, areas: &Areas) -> Result<Self, Failure> {
        match request.data::<PagePrincipal>() {
            Some(PagePrincipal(known)) => Ok(known.clone()),
            None => Self::with_token(request, token_of_page(areas, request).as_deref()).await,
        }
    }

    /// `token`: the token of a session, if there is one.
    async fn with_token(request: &Request, token: Option<&str>) -> Result<Self, Failure> {
        let asking = Self::find(request, token).await?;
        CallerKnown::note(request);
        Ok(asking)
    }

    async fn find(request: &Request, token: Option<&str>) -> Result<Self, Failure> {
        if let Some(peer) = listener::control_peer(request) {
            return Ok(Self::admin(Actor::Control { uid: peer.uid }));
        }
        let areas = request.data::<Arc<Areas>>().ok_or_else(Failure::certificate_required)?;
        let from = request.remote_addr().as_socket_addr().map(|address| canonical_address(address.ip()));
        let (asks_certificate, asks_session) = match areas.people.people_policy().access {
            AdminAccess::Mtls => (true, false),
            AdminAccess::Login => (false, true),
            AdminAccess::MtlsAndLogin => (true, true),
        };
        let certificate = if asks_certificate { Some(certificate(request, areas)?) } else { None };
        if asks_session {
            let signed_in = signed_in(request, areas, token).await?;
            let certificate = certificate.map(|certificate| certificate.fingerprint);
            let (by, role) = (signed_in.by(from), signed_in.user.role);
            return Ok(Self { by, role, signed_in: Some(signed_in), certificate });
        }
        let certificate = certificate.ok_or_else(Failure::certificate_required)?;
        let role = match certificate.user {
            None => Role::Admin,
            Some(user) => {
                let user = areas.people.known_user(user).filter(|user| !user.disabled);
                user.ok_or(ServiceError::CertificateRefused)?.role
            }
        };
        let AdminCertificate { name, fingerprint, .. } = certificate;
        let actor = Actor::Certificate { name, fingerprint };
        Ok(Self { by: Initiator { actor, from }, role, signed_in: None, certificate: Some(fingerprint) })
    }

    pub fn needs(&self, needs: Role) -> Result<(), Failure> {
        if self.role < needs { Err(ServiceError::RoleInsufficient { needs }.into()) } else { Ok(()) }
    }
}

impl<'a> FromRequest<'a> for Principal {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        Ok(Self::of(request).await?)
    }
}

fn certificate(request: &Request, areas: &Areas) -> Result<AdminCertificate, Failure> {
    let fingerprint = listener::client_fingerprint(request).ok_or_else(Failure::certificate_required)?;
    Ok(areas.trust.admitted_certificate(&fingerprint).ok_or(ServiceError::CertificateRefused)?)
}

/// The signed-in user. If a certificate was presented, it must be tied to this user or to no user.
async fn signed_in(request: &Request, areas: &Areas, token: Option<&str>) -> Result<SignedIn, Failure> {
    let token = token.ok_or(ServiceError::SessionRequired)?;
    let signed_in = areas.people.signed_in(token).await?;
    if listener::client_fingerprint(request).is_some()
        && certificate(request, areas)?.user.is_some_and(|owner| owner != signed_in.user.id)
    {
        return Err(ServiceError::CertificateOfAnother.into());
    }
    Ok(signed_in)
}

/// Guard: the caller must have the admin role.
pub struct Admin(pub Initiator);

impl<'a> FromRequest<'a> for Admin {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        let asking = Principal::of(request).await?;
        asking.needs(Role::Admin)?;
        Ok(Self(asking.by))
    }
}

/// Guard: the caller must have at least the viewer role.
pub struct Viewer(pub Initiator);

impl<'a> FromRequest<'a> for Viewer {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        let asking = Principal::of(request).await?;
        asking.needs(Role::Viewer)?;
        Ok(Self(asking.by))
    }
}

/// Guard: the caller must be signed in, on either listener. For operations on the caller's own data.
pub struct SignedInMember {
    pub signed_in: SignedIn,
    pub by: Initiator,
}

impl<'a> FromRequest<'a> for SignedInMember {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        let from = Caller::of(request)?;
        let areas = request.data::<Arc<Areas>>().ok_or_else(Failure::certificate_required)?;
        let signed_in = signed_in(request, areas, bearer(request).as_ref().map(|token| token.as_str())).await?;
        CallerKnown::note(request);
        Ok(Self { by: signed_in.by(Some(from.0)), signed_in })
    }
}

/// Guard: the caller must use the control socket, or the state directly. A certificate is not enough.
pub struct OnThisMachine(pub Initiator);

impl<'a> FromRequest<'a> for OnThisMachine {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        match Principal::of(request).await?.by {
            by @ Initiator { actor: Actor::Control { .. } | Actor::Offline { .. }, .. } => Ok(Self(by)),
            _ => Err(Failure::control_socket_only().into()),
        }
    }
}

/// The caller of a page, identified by certificate alone or by the session in a cookie.
#[derive(Clone)]
struct PagePrincipal(Principal);

/// Finds the caller once per request; pages and guards use the result. Counts unauthenticated requests on the admin
/// listener against their address. Notes in the audit log which changes a known caller was refused. A change is noted
/// with the change itself; reading is not noted.
pub async fn watch_callers<E: Endpoint>(endpoint: Arc<E>, mut request: Request) -> poem::Result<Response> {
    let areas = request.data::<Arc<Areas>>().cloned();
    let comes_by_network = matches!(request.data::<Listener>(), Some(Listener::Admin));
    let reads = request.method().is_safe();
    let asked = Asked::of(&request, request.data().copied().unwrap_or(Listener::Control));
    let principal = if reads && !comes_by_network { None } else { find_principal(&mut request).await };
    if comes_by_network
        && principal.is_none()
        && let Some(areas) = &areas
    {
        areas.admission.count_stranger_of_admins(Caller::of(&request)?.0, areas.core.now()).map_err(Failure::from)?;
    }
    let (operation, answer) = match endpoint.call(request).await {
        Ok(answer) => {
            let answer = answer.into_response();
            (answer.data().copied(), answer)
        }
        Err(error) => {
            let operation: Option<OperationId> = error.data().copied();
            let mut answer = super::errors::from_poem(error, &asked);
            if let Some(operation) = operation {
                answer.set_data(operation);
            }
            (operation, answer)
        }
    };
    if let (Some(areas), Some(Principal { by, .. })) = (areas, principal)
        && !reads
        && (answer.status().is_client_error() || answer.status().is_server_error())
        // A 503 decides nothing, and the audit log is not available then either.
        && answer.status() != StatusCode::SERVICE_UNAVAILABLE
    {
        let operation = operation.map_or("unknown", |OperationId(operation)| operation);
        areas.audit.note_refusal(&by, operation, answer.status().as_u16()).await;
    }
    Ok(answer)
}

/// Finds the caller by certificate, token or cookie, and stores it in the request's data.
async fn find_principal(request: &mut Request) -> Option<Principal> {
    if let Ok(principal) = Principal::of(request).await {
        request.set_data(principal.clone());
        // Pages do not accept a token from a header.
        if principal.signed_in.is_none() {
            request.set_data(PagePrincipal(principal.clone()));
        }
        return Some(principal);
    }
    let token = token_of_page(request.data::<Arc<Areas>>()?, request)?;
    let principal = Principal::with_token(request, Some(&token)).await.ok()?;
    request.set_data(PagePrincipal(principal.clone()));
    Some(principal)
}

/// Pages and documents whose GET has no effect. HEAD is allowed only for these.
const WITHOUT_EFFECT: [&str; 4] = ["/healthz", "/readyz", "/openapi.json", "/docs"];

/// Refuses a HEAD request whose GET might have an effect. The framework answers HEAD by running the GET and dropping
/// the body. A link preview or link checker could then spend an installer token, finish a sign-in, or use up a page
/// that is shown once.
pub fn refuse_head(request: &Request, listener: Listener) -> Option<Failure> {
    let path = request.uri().path().trim_end_matches('/');
    let is_allowed = WITHOUT_EFFECT.contains(&path) || path.starts_with("/assets/");
    if request.method() != Method::HEAD || is_allowed {
        return None;
    }
    Some(Failure::method_not_allowed(routes::allowed(path, listener).unwrap_or_else(|| "GET".into())))
}

/// Adds the headers of every answer: do not cache, do not guess the content type.
pub fn harden(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store, must-revalidate"));
    answer
}
