//! The HTTP APIs, one file per tag, and where each of them is reachable.
//!
//! A handler reads a request, asks the service and shapes the answer; it holds no rule and touches no storage. Guards
//! (`guards.rs`) are parameters of the handlers, so that a handler without one shows it in its signature. `errors.rs` is
//! the one place where errors become HTTP.

mod admin_auth;
mod admin_certificates;
mod admin_hosts;
mod admin_settings;
mod auth;
mod errors;
mod guards;
mod health;
mod install;
mod json;
mod lines;
mod versions;
mod wrapper;

use std::sync::Arc;

use poem::middleware::{NormalizePath, TrailingSlash};
use poem::{Endpoint, EndpointExt, IntoEndpoint, Response, Route, get, handler};
use poem_openapi::{LicenseObject, OpenApiService, Tags};
use serde_json::{Value, json};

use crate::service::Service;

pub use json::Envelope;
pub use {
    admin_auth::{AuthHistory, AuthShown},
    admin_certificates::{CertificateList, CertificateRequest, IssuedCertificate},
    admin_hosts::{AdminHost, AdminHostAnswer, AdminHostList, RegisterRequest, Registration},
    admin_settings::Rotation,
    auth::AuthAnswer,
    errors::ErrorBody,
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
    /// Admin listener only: hosts.
    AdminHosts,
    /// Admin listener only: the canonical login.
    AdminAuth,
    /// Admin listener only: admins' client certificates.
    AdminCertificates,
    /// Admin listener only: settings and keys.
    AdminSettings,
}

const DESCRIPTION: &str = "Keeps one canonical Codex `auth.json` and gives it to every host that may have it.\n\n\
    Hosts present their API key, as `X-API-Key` or `Authorization: Bearer`. Operations under `/admin` exist on the admin \
    listener only, which requires a client certificate of the daemon's own authority in the TLS handshake (and on the \
    control socket, which lets in root and the daemon's user).\n\n\
    Every JSON answer is an envelope: `{\"status\": \"ok\", \"data\": …}` or `{\"status\": \"error\", \"code\": …, \
    \"message\": …}`. `code` is stable; `message` is for people.";

type HostApis = (auth::AuthApi, install::InstallApi, wrapper::WrapperApi, versions::VersionsApi, health::HealthApi);
type AdminApis = (
    admin_hosts::AdminHostsApi,
    admin_auth::AdminAuthApi,
    admin_certificates::AdminCertificatesApi,
    admin_settings::AdminSettingsApi,
);

const HOST_APIS: HostApis =
    (auth::AuthApi, install::InstallApi, wrapper::WrapperApi, versions::VersionsApi, health::HealthApi);
const ADMIN_APIS: AdminApis = (
    admin_hosts::AdminHostsApi,
    admin_auth::AdminAuthApi,
    admin_certificates::AdminCertificatesApi,
    admin_settings::AdminSettingsApi,
);

fn describe<T: poem_openapi::OpenApi>(apis: T) -> OpenApiService<T, ()> {
    OpenApiService::new(apis, "codex-authd", env!("CARGO_PKG_VERSION"))
        .description(DESCRIPTION)
        .license(LicenseObject::new("Apache-2.0"))
}

/// The OpenAPI document of both listeners, as it is checked in.
pub fn document() -> String {
    let spec = describe((HOST_APIS, ADMIN_APIS)).spec();
    let Ok(mut document) = serde_json::from_str::<Value>(&spec) else { return spec };
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        schemas.values_mut().for_each(allow_null);
    }
    format!("{document:#}\n")
}

/// Every member that may be absent may be null as well, in requests and in answers; poem-openapi does not say so, and a
/// generated client would stumble over the first null.
fn allow_null(schema: &mut Value) {
    let required: Vec<String> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(String::from))
        .collect();
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (_, property) in properties.iter_mut().filter(|(name, _)| !required.contains(name)) {
        if property.get("$ref").is_some() {
            // Beside a reference nothing else counts.
            *property = json!({ "allOf": [property.take()] });
        }
        property["nullable"] = Value::Bool(true);
    }
}

/// What hosts reach.
pub fn hosts_listener(service: Arc<Service>) -> impl Endpoint<Output = Response> + 'static {
    finish(with_documents(Route::new().nest("/", describe(HOST_APIS))).around(guards::count_request), service)
}

/// What admins reach, over a client certificate or the control socket. Hosts' operations are not here.
pub fn admin_listener(service: Arc<Service>) -> impl Endpoint<Output = Response> + 'static {
    finish(with_documents(Route::new().nest("/", describe((health::HealthApi, ADMIN_APIS)))), service)
}

/// What a command reaches that works on the state itself, as `uid`.
pub fn admin_in_process(service: Arc<Service>, uid: u32) -> impl Endpoint<Output = Response> + 'static {
    admin_listener(service).data(guards::Admin::InProcess { uid })
}

fn with_documents(route: Route) -> Route {
    let page = describe((HOST_APIS, ADMIN_APIS)).swagger_ui_html();
    route
        .at("/openapi.json", get(openapi_document))
        .at("/docs", poem::endpoint::make_sync(move |_| poem::web::Html(page.clone())))
}

#[handler]
fn openapi_document() -> Response {
    Response::builder().content_type("application/json").body(document())
}

fn finish(
    endpoint: impl IntoEndpoint<Endpoint: 'static>,
    service: Arc<Service>,
) -> impl Endpoint<Output = Response> + 'static {
    endpoint.into_endpoint().with(NormalizePath::new(TrailingSlash::Trim)).data(service).around(
        |endpoint, request| async move {
            let answer = match endpoint.call(request).await {
                Ok(answer) => poem::IntoResponse::into_response(answer),
                Err(error) => errors::from_poem(error),
            };
            Ok(guards::harden(answer))
        },
    )
}
