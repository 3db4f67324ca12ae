//! The HTTP APIs, one file per tag, and the listeners that serve each of them.
//!
//! A handler reads a request, calls the service and forms the answer. It holds no rules and does not touch storage.
//! Guards (`guards.rs`) are parameters of the handlers, so a missing guard is visible in the signature. `errors.rs` is
//! the only place where errors become HTTP.

pub(crate) mod account;
mod admin_audit;
mod admin_auth;
mod admin_authorities;
mod admin_certificates;
pub(crate) mod admin_copies;
mod admin_doctor;
mod admin_hosts;
mod admin_installers;
mod admin_overview;
mod admin_runner;
mod admin_settings;
mod area;
mod auth;
mod auth_context;
pub(crate) mod bodies;
pub(crate) mod checks;
pub(crate) mod closed_set;
pub(crate) mod cookies;
mod docs;
mod document;
pub(crate) mod errors;
mod flags;
pub(crate) mod guards;
mod health;
mod install;
pub(crate) mod json;
mod lines;
mod listener_endpoint;
mod metrics;
pub(crate) mod oidc;
mod origins;
pub(crate) mod pages;
mod types;
mod users;
mod versions;
mod wrapper;

use std::sync::Arc;

use bytes::Bytes;
use poem::{Body, Endpoint, EndpointExt, Response, Route, get, handler};
use poem_openapi::registry::MetaApi;
use poem_openapi::{ContactObject, LicenseObject, OpenApiService, OperationId, Tags};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::metrics::Listener;
use crate::model::forwarded::TrustedProxies;
use crate::service::{Areas, ServiceError};
use listener_endpoint::finish;

pub use bodies::MAX_BODY;
pub use json::Envelope;
pub use {
    account::{SessionBody, SessionEnded, SessionList, UserBody, UserRole},
    admin_audit::{AuditPage, AuditVerification},
    admin_auth::{AuthDiff, AuthHistory, AuthShown, RolledBack},
    admin_authorities::{AuthorityList, HostTrustBody},
    admin_certificates::{
        CertificateAnswer, CertificateBody, CertificateList, CertificateRequest, IssuedCertificate, RenewRequest,
    },
    admin_copies::{
        Aborted, BackupRead, KeysRequest, Line, MigrateLine, Migration, RestoreHead, RestoreLine, SealedKeys,
    },
    admin_installers::{InstallerList, RevokedInstaller},
    admin_overview::OverviewBody,
    admin_runner::{LoginState, ProbeAsked, RunnerBody},
    admin_settings::{ApiState, Rotation},
    checks::Checks,
    errors::ErrorBody,
    pages::Listed,
    types::auth::{AuthAnswer, SyncStatus},
    types::hosts::{AdminHost, AdminHostAnswer, AdminHostList, RegisterRequest, Registration, RemovedHostList},
    users::{IdentityAnswer, IdentityList, LinkRequest, NewUser, UserAnswer, UserList},
};

#[derive(Tags)]
enum Tag {
    /// What a host asks for: the canonical login.
    Auth,
    /// Making a machine a host.
    Install,
    /// The wrapper `cdx`.
    Wrapper,
    /// Which versions a host should have.
    Versions,
    /// Whether the daemon is there.
    Health,
    /// Signing in, and what is one's own.
    Account,
    /// Admin listener only: users, their sessions and identities.
    Users,
    /// Admin listener only: the fleet at a glance.
    AdminOverview,
    /// Admin listener only: hosts.
    AdminHosts,
    /// Admin listener only: the canonical login.
    AdminAuth,
    /// Admin listener only: installers that were printed.
    AdminInstallers,
    /// Admin listener only: who did what.
    AdminAudit,
    /// Admin listener only: admins' client certificates, and the authorities.
    AdminCertificates,
    /// Admin listener only: whether the canonical login works.
    AdminRunner,
    /// Admin listener only: settings and keys.
    AdminSettings,
    /// Control socket only: backup, restore, moving house.
    AdminCopies,
}

const DESCRIPTION: &str = "Keeps one canonical Codex `auth.json` and gives it to every host that may have it.\n\n\
    Hosts present their API key, as `X-API-Key` or `Authorization: Bearer`. Operations under `/admin` exist on the admin \
    listener only, and on the control socket, which lets in root and the daemon's user. By `admin.access` the admin listener \
    requires a client certificate of the daemon's own authority in the TLS handshake, the access token of somebody who signed \
    in (`Authorization: Bearer`), or both. Who has the role `viewer` may read everything but secrets, who has `admin` may do \
    everything; what is one's own (`/auth/me`) is there for every role, on both listeners.\n\n\
    Every JSON answer is an envelope: `{\"status\": \"ok\", \"data\": …}` or `{\"status\": \"error\", \"code\": …, \
    \"message\": …}`. `code` is stable; `message` is for people.";

type HostApis = (auth::AuthApi, install::InstallApi, wrapper::WrapperApi, versions::VersionsApi, health::HealthApi);
type AdminApis = (
    admin_overview::AdminOverviewApi,
    admin_doctor::AdminDoctorApi,
    admin_hosts::AdminHostsApi,
    admin_installers::AdminInstallersApi,
    admin_audit::AdminAuditApi,
    admin_authorities::AdminAuthoritiesApi,
    admin_auth::AdminAuthApi,
    admin_certificates::AdminCertificatesApi,
    admin_settings::AdminSettingsApi,
    admin_runner::AdminRunnerApi,
    admin_copies::AdminCopiesApi,
    users::UsersApi,
    metrics::MetricsApi,
);
/// On both listeners. `OidcApi` only if a provider is configured.
type PeopleApis = (account::AccountApi, oidc::OidcApi);

const HOST_APIS: HostApis =
    (auth::AuthApi, install::InstallApi, wrapper::WrapperApi, versions::VersionsApi, health::HealthApi);
const ADMIN_APIS: AdminApis = (
    admin_overview::AdminOverviewApi,
    admin_doctor::AdminDoctorApi,
    admin_hosts::AdminHostsApi,
    admin_installers::AdminInstallersApi,
    admin_audit::AdminAuditApi,
    admin_authorities::AdminAuthoritiesApi,
    admin_auth::AdminAuthApi,
    admin_certificates::AdminCertificatesApi,
    admin_settings::AdminSettingsApi,
    admin_runner::AdminRunnerApi,
    admin_copies::AdminCopiesApi,
    users::UsersApi,
    metrics::MetricsApi,
);
const PEOPLE_APIS: PeopleApis = (account::AccountApi, oidc::OidcApi);

fn describe<T: poem_openapi::OpenApi>(apis: T) -> OpenApiService<T, ()> {
    OpenApiService::new(apis, "codex-authd", env!("CARGO_PKG_VERSION"))
        .description(DESCRIPTION)
        .contact(ContactObject::new().name("The authors of codex-authd").url(env!("CARGO_PKG_HOMEPAGE")))
        .license(LicenseObject::new("Apache-2.0").url("https://www.apache.org/licenses/LICENSE-2.0"))
}

/// What poem-openapi knows of all operations.
fn apis() -> Vec<MetaApi> {
    <(HostApis, AdminApis, PeopleApis) as poem_openapi::OpenApi>::meta()
}

/// The ids of all operations.
pub fn operations() -> Vec<&'static str> {
    let paths = apis().into_iter().flat_map(|api| api.paths);
    let described = paths.flat_map(|path| path.operations).filter_map(|operation| operation.operation_id);
    described.chain([DOCUMENT.0, PAGE.0]).collect()
}

/// Operations that are not in the document: the document itself, and the page that shows it.
const DOCUMENT: OperationId = OperationId("getDocument");
const PAGE: OperationId = OperationId("getDocumentPage");

/// The OpenAPI document of both listeners. It must equal the checked-in file.
pub fn document() -> String {
    let spec = describe((HOST_APIS, ADMIN_APIS, PEOPLE_APIS)).spec();
    match serde_json::from_str::<Value>(&spec) {
        Ok(derived) => format!("{:#}\n", document::complete(derived)),
        Err(_) => spec,
    }
}

/// The endpoint of the hosts' listener. `trust`: the proxies whose forwarding header is trusted.
pub fn hosts_listener(areas: Arc<Areas>, trust: Arc<TrustedProxies>) -> impl Endpoint<Output = Response> + 'static {
    let route = Route::new().nest("/", describe((HOST_APIS, account::AccountApi)));
    let routes = with_documents(with_provider(route, &areas)).around(origins::refuse_cross_site);
    finish(routes, areas, Listener::Hosts, Some(trust))
}

/// The endpoint of the control socket. It has neither the operations of hosts nor those of signed-in users.
pub fn admin_over_control(areas: Arc<Areas>) -> impl Endpoint<Output = Response> + 'static {
    let route = with_documents(Route::new().nest("/", describe((health::HealthApi, ADMIN_APIS))));
    finish(guarded(route), areas, Listener::Control, None)
}

/// The endpoint of the admin listener: the same as the control socket, plus sign-in and the dashboard's pages.
pub fn admin_listener<E: Endpoint + 'static>(
    areas: Arc<Areas>,
    pages: impl FnOnce(Route) -> E,
) -> impl Endpoint<Output = Response> + 'static {
    let route = Route::new().nest("/", describe((health::HealthApi, ADMIN_APIS, account::AccountApi)));
    let route = with_documents(with_provider(route, &areas));
    finish(guarded(pages(route)), areas, Listener::Admin, None)
}

fn guarded<E: Endpoint + 'static>(endpoint: E) -> impl Endpoint<Output = Response> + 'static {
    endpoint.around(origins::refuse_cross_site).around(guards::watch_callers)
}

/// Adds the sign-in routes of the identity provider, if one is configured.
fn with_provider(route: Route, areas: &Areas) -> Route {
    if areas.people.has_provider() { route.nest_no_strip("/auth/oidc", describe(oidc::OidcApi)) } else { route }
}

/// The endpoint for a command that uses the state directly, as `uid`, while no daemon runs.
pub fn admin_in_process(areas: Arc<Areas>, uid: u32) -> impl Endpoint<Output = Response> + 'static {
    admin_over_control(areas).data(guards::Principal::offline(uid))
}

/// Megabytes, equal on every listener and rarely requested. So they are made on the first request, and all answers
/// share them.
static PAGE_FOR_PEOPLE: OnceCell<docs::Page> = OnceCell::const_new();
static DOCUMENT_TEXT: OnceCell<Bytes> = OnceCell::const_new();

/// Runs `make` on a blocking thread, because it uses the processor for a long time.
async fn made_once<T: Send + 'static>(
    cell: &'static OnceCell<T>,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<&'static T, errors::Failure> {
    let making = || async move { tokio::task::spawn_blocking(make).await.map_err(ServiceError::internal) };
    Ok(cell.get_or_try_init(making).await?)
}

fn with_documents(route: Route) -> Route {
    route.at("/openapi.json", get(openapi_document)).at("/docs", poem::endpoint::make(|_| page_for_people()))
}

async fn page_for_people() -> poem::Result<Response> {
    let make = || docs::Page::new(describe((HOST_APIS, ADMIN_APIS, PEOPLE_APIS)).swagger_ui_html());
    let mut answer = made_once(&PAGE_FOR_PEOPLE, make).await?.answer();
    answer.set_data(PAGE);
    Ok(answer)
}

#[handler]
async fn openapi_document() -> poem::Result<Response> {
    let text = made_once(&DOCUMENT_TEXT, || Bytes::from(document())).await?;
    let mut answer = Response::builder().content_type("application/json").body(Body::from_bytes(text.clone()));
    answer.set_data(DOCUMENT);
    Ok(answer)
}

#[cfg(test)]
mod auth_tests;
#[cfg(test)]
mod unread_tests;
