//! The only place where errors become HTTP: status, stable code and message. Causes go to the log, not to the caller.

use std::collections::BTreeMap;

use poem::error::NotFoundError;
use poem::http::{Method, StatusCode, Uri};
use poem::{IntoResponse, Request, Response};
use poem_openapi::error::ParseParamError;
use poem_openapi::types::{ParseFromJSON, ToJSON, Type};
use poem_openapi::{ApiResponse, Object};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::closed_set::closed_set;
use super::document::routes;
use super::json::{Envelope, JsonBody, OkStatus};
use crate::metrics::Listener;
use crate::service::ServiceError;
use crate::service::error::Throttled;

/// `Retry-After` if a store is not available, in seconds.
const RETRY_AFTER_SECONDS: u64 = 5;

/// The result of a handler with one kind of success.
pub type Answer<T> = Result<JsonBody<Envelope<T>>, Failure>;

pub fn ok<T: Type + ParseFromJSON + ToJSON>(data: T) -> Answer<T> {
    Ok(JsonBody(Envelope { status: OkStatus::Ok, data }))
}

/// Why a request was not done.
#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(example)]
pub struct ErrorBody {
    pub status: ErrorStatus,
    /// Stable; programs decide by this.
    pub code: String,
    /// For people: what happened, and what to do next where there is something.
    pub message: String,
    /// What is wrong with which member of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<BTreeMap<String, Vec<String>>>,
    /// With 429 and 503: after how many seconds it is worth trying again, as in the header `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// With 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<ThrottledBody>,
    /// With `address_refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<RefusedAddressBody>,
}

/// From where a host called with its good key, and from where it may.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RefusedAddressBody {
    /// The host's name.
    pub host: String,
    /// The address that the call came from, as this daemon sees it.
    pub called_from: String,
    /// The address that the key is bound to; left out where the host is served from networks instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_to: Option<String>,
}

impl poem_openapi::types::Example for ErrorBody {
    fn example() -> Self {
        Self {
            status: ErrorStatus::Error,
            code: "key_invalid".into(),
            message: "Invalid API key".into(),
            errors: None,
            retry_after: None,
            data: None,
            address: None,
        }
    }
}

closed_set! {
    pub enum ErrorStatus { Error = "error" }
}

closed_set! {
    /// `global`: requests from the address without a good credential. `host`: requests with the key, or of the user who is
    /// signed in. `host_stores`: new logins of the host. `auth_failures`: refused keys and sign-ins from the address.
    pub enum Limit {
        Global = "global",
        Host = "host",
        HostStores = "host_stores",
        AuthFailures = "auth_failures",
    }
}

/// Which limit was reached.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ThrottledBody {
    pub bucket: Limit,
    #[serde(with = "time::serde::rfc3339")]
    pub reset_at: OffsetDateTime,
    pub limit: u32,
}

#[derive(ApiResponse)]
pub enum Failure {
    /// The request cannot be read: the body is no JSON, or a parameter is unknown or has a wrong value.
    #[oai(status = 400)]
    BadRequest(JsonBody<ErrorBody>),
    /// No API key or session, or one that is not good.
    #[oai(status = 401)]
    Unauthorized(JsonBody<ErrorBody>),
    /// The caller is known and may not do this.
    #[oai(status = 403)]
    Forbidden(JsonBody<ErrorBody>),
    /// There is no such thing.
    #[oai(status = 404)]
    NotFound(JsonBody<ErrorBody>),
    /// The path does not have this method.
    #[oai(status = 405)]
    MethodNotAllowed(JsonBody<ErrorBody>, #[oai(header = "Allow")] String),
    /// It is so already, or something else is in its place.
    #[oai(status = 409)]
    Conflict(JsonBody<ErrorBody>),
    /// The body is longer than 1 MiB, or than 16 KiB where the caller is not known; or the auth.json in it is longer than
    /// 64 KiB.
    #[oai(status = 413)]
    TooLarge(JsonBody<ErrorBody>),
    /// The body is something else than JSON.
    #[oai(status = 415)]
    UnsupportedMediaType(JsonBody<ErrorBody>),
    /// The request can be read and is refused: `errors` names the member, or `message` says why.
    #[oai(status = 422)]
    Unprocessable(JsonBody<ErrorBody>),
    /// Too many requests or failures from this address, or requests with this credential.
    #[oai(status = 429)]
    Throttled(
        JsonBody<ErrorBody>,
        /* Seconds until it is worth trying again. */ #[oai(header = "Retry-After")] u64,
    ),
    /// A fault of the daemon; its log says more.
    #[oai(status = 500)]
    Internal(JsonBody<ErrorBody>),
    /// Switched off, or the store is not available just now.
    #[oai(status = 503)]
    Unavailable(
        JsonBody<ErrorBody>,
        /* Seconds until it is worth trying again. */ #[oai(header = "Retry-After")] u64,
    ),
}

impl Failure {
    pub fn too_large() -> Self {
        Self::TooLarge(body("too_large", "The body is longer than 1 MiB"))
    }

    /// For callers that are not authenticated, including those that sign in.
    pub fn too_large_of_stranger() -> Self {
        Self::TooLarge(body("too_large", "The body is longer than 16 KiB, the limit for unauthenticated callers"))
    }

    pub fn route_not_found() -> Self {
        Self::NotFound(body("route_not_found", "Route not found"))
    }

    pub fn bad_parameter(name: &str, reason: &str) -> Self {
        let JsonBody(mut body) = body("bad_request", &format!("The parameter {name} is refused: {reason}"));
        body.errors = Some(BTreeMap::from([(name.to_owned(), vec![reason.to_owned()])]));
        Self::BadRequest(JsonBody(body))
    }

    /// The answer to a method that the path does not have. `allowed`: those that it has, separated by commas.
    pub fn method_not_allowed(allowed: String) -> Self {
        let message = format!("This path allows {allowed} only");
        Self::MethodNotAllowed(body("method_not_allowed", &message), allowed)
    }

    pub fn unsupported_media_type(given: &str) -> Self {
        let given: String = given.chars().take(80).collect();
        Self::UnsupportedMediaType(body(
            "unsupported_media_type",
            &format!("The body must be application/json, not {given:?}"),
        ))
    }

    pub fn forwarded_unreadable(header: &str, reason: &str) -> Self {
        let message = format!("The {header} header does not name the caller's address: {reason}");
        Self::BadRequest(body("forwarded_unreadable", &message))
    }

    pub fn certificate_required() -> Self {
        Self::Forbidden(body("certificate_required", "Client certificate required for admin access"))
    }

    /// For operations that a certificate or session does not permit.
    pub fn control_socket_only() -> Self {
        Self::Forbidden(body(
            "control_socket_only",
            "This works over the control socket only: run the codex-authd command on the daemon's machine instead",
        ))
    }

    /// A browser sent the request for another site's page.
    pub fn cross_site() -> Self {
        Self::Forbidden(body(
            "cross_site",
            "The request comes from another site's page; open the dashboard, or call from a program",
        ))
    }

    /// A form without a token that this process gave this admin.
    pub fn form_stale() -> Self {
        Self::Forbidden(body("form_stale", "This form is out of date, and nothing was changed"))
    }

    fn throttled(JsonBody(mut body): JsonBody<ErrorBody>, bucket: Limit, throttled: Throttled) -> Self {
        let Throttled { limit, reset_at, retry_after_seconds } = throttled;
        body.data = Some(ThrottledBody { bucket, reset_at, limit });
        body.retry_after = Some(retry_after_seconds);
        Self::Throttled(JsonBody(body), retry_after_seconds)
    }

    pub fn body(&self) -> (StatusCode, &ErrorBody) {
        match self {
            Self::BadRequest(JsonBody(body)) => (StatusCode::BAD_REQUEST, body),
            Self::Unauthorized(JsonBody(body)) => (StatusCode::UNAUTHORIZED, body),
            Self::Forbidden(JsonBody(body)) => (StatusCode::FORBIDDEN, body),
            Self::NotFound(JsonBody(body)) => (StatusCode::NOT_FOUND, body),
            Self::MethodNotAllowed(JsonBody(body), _) => (StatusCode::METHOD_NOT_ALLOWED, body),
            Self::Conflict(JsonBody(body)) => (StatusCode::CONFLICT, body),
            Self::TooLarge(JsonBody(body)) => (StatusCode::PAYLOAD_TOO_LARGE, body),
            Self::UnsupportedMediaType(JsonBody(body)) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, body),
            Self::Unprocessable(JsonBody(body)) => (StatusCode::UNPROCESSABLE_ENTITY, body),
            Self::Throttled(JsonBody(body), _) => (StatusCode::TOO_MANY_REQUESTS, body),
            Self::Internal(JsonBody(body)) => (StatusCode::INTERNAL_SERVER_ERROR, body),
            Self::Unavailable(JsonBody(body), _) => (StatusCode::SERVICE_UNAVAILABLE, body),
        }
    }

    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Throttled(_, seconds) | Self::Unavailable(_, seconds) => Some(*seconds),
            _ => None,
        }
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::KeyMissing => Self::Unauthorized(body("key_missing", &message)),
            ServiceError::KeyInvalid => Self::Unauthorized(body("key_invalid", &message)),
            ServiceError::AddressRefused(refused) => {
                let JsonBody(mut body) = body("address_refused", &message);
                body.address = Some(RefusedAddressBody {
                    host: refused.fqdn.to_string(),
                    called_from: refused.called_from.to_string(),
                    bound_to: refused.bound_to.map(|bound| bound.to_string()),
                });
                Self::Forbidden(JsonBody(body))
            }
            ServiceError::InsecureClosed => Self::Forbidden(body("insecure_closed", &message)),
            ServiceError::HostDisabled => Self::Forbidden(body("host_disabled", &message)),
            ServiceError::HostExpired => Self::Forbidden(body("host_expired", &message)),
            ServiceError::CertificateRefused => Self::Forbidden(body("certificate_refused", &message)),
            ServiceError::SessionRequired => Self::Unauthorized(body("session_required", &message)),
            ServiceError::SessionInvalid => Self::Unauthorized(body("session_invalid", &message)),
            ServiceError::SignInRefused => Self::Unauthorized(body("sign_in_refused", &message)),
            ServiceError::OidcRefused => Self::Forbidden(body("oidc_refused", &message)),
            ServiceError::NotLinked { .. } => Self::Forbidden(body("identity_not_linked", &message)),
            ServiceError::RoleInsufficient { .. } => Self::Forbidden(body("role_insufficient", &message)),
            ServiceError::CertificateOfAnother => Self::Forbidden(body("certificate_of_another", &message)),
            ServiceError::ProviderUnavailable => unavailable("provider_unavailable", &message, RETRY_AFTER_SECONDS),
            ServiceError::Busy => unavailable("busy", &message, 1),
            ServiceError::Conflict(_) => Self::Conflict(body("conflict", &message)),
            ServiceError::OtherAccount { .. } => Self::Conflict(body("other_account", &message)),
            ServiceError::DocumentTooLarge(_) => Self::TooLarge(body("too_large", &message)),
            ServiceError::ApiDisabled { .. } => unavailable("api_disabled", &message, RETRY_AFTER_SECONDS),
            ServiceError::RunnerOff => Self::Conflict(body("runner_off", &message)),
            ServiceError::AuthBlocked(throttled) => {
                Self::throttled(body("auth_blocked", &message), Limit::AuthFailures, throttled)
            }
            ServiceError::RateLimited(throttled) => {
                Self::throttled(body("rate_limited", &message), Limit::Global, throttled)
            }
            ServiceError::HostRateLimited(throttled) => {
                Self::throttled(body("rate_limited", &message), Limit::Host, throttled)
            }
            ServiceError::StoresLimited(throttled) => {
                Self::throttled(body("stores_limited", &message), Limit::HostStores, throttled)
            }
            ServiceError::NoProgram(_) => Self::NotFound(body("no_program", &message)),
            ServiceError::VersionNotKept(_) => Self::NotFound(body("version_not_kept", &message)),
            ServiceError::InvalidJson { reason } => {
                let JsonBody(mut body) = body("invalid_json", &message);
                body.errors = Some(BTreeMap::from([("body".into(), vec![reason])]));
                Self::BadRequest(JsonBody(body))
            }
            ServiceError::Invalid { field, message: reason } => {
                let JsonBody(mut body) = body("invalid", &message);
                body.errors = Some(BTreeMap::from([(field, vec![reason])]));
                Self::Unprocessable(JsonBody(body))
            }
            ServiceError::BaseUrlGuessed { .. } => Self::Unprocessable(body("base_url_guessed", &message)),
            ServiceError::Refused(_) => Self::Unprocessable(body("refused", &message)),
            ServiceError::NotFound(_) | ServiceError::Installer(_) => Self::NotFound(body("not_found", &message)),
            ServiceError::Unavailable { cause } => {
                log::warn!(event = "unavailable", cause = cause.as_str(); "a request was answered 503");
                unavailable("unavailable", &message, RETRY_AFTER_SECONDS)
            }
            ServiceError::StoreFailed { cause } | ServiceError::RecordsAway { cause } => {
                log::debug!(event = "unavailable", cause = cause.as_str(); "a request was answered 503");
                unavailable("unavailable", &message, RETRY_AFTER_SECONDS)
            }
            ServiceError::StandsStill { since, .. } => {
                let message = format!("{message} (since {})", rfc3339(since));
                unavailable("stands_still", &message, RETRY_AFTER_SECONDS)
            }
            ServiceError::Degraded { since, .. } => {
                let message = format!("degraded since {}: {message}", rfc3339(since));
                unavailable("degraded", &message, RETRY_AFTER_SECONDS)
            }
            ServiceError::Internal { cause } => {
                log::error!(event = "internal_error", cause = cause.as_str(); "a request was answered 500");
                Self::Internal(body("internal", &message))
            }
        }
    }
}

/// The answer to an error that a handler returned, or the router.
pub fn from_poem(error: poem::Error, asked: &Asked) -> Response {
    if error.is_from_response() {
        return error.into_response();
    }
    let is_unrouted = error.is::<NotFoundError>() || error.status() == StatusCode::METHOD_NOT_ALLOWED;
    if is_unrouted && let Some(refusal) = asked.refuse_method() {
        return refusal.into_response();
    }
    failure_of(&error).into_response()
}

/// What a request asks for, for the answer to an error.
pub struct Asked {
    pub method: Method,
    pub uri: Uri,
    pub listener: Listener,
}

impl Asked {
    pub fn of(request: &Request, listener: Listener) -> Self {
        Self { method: request.method().clone(), uri: request.uri().clone(), listener }
    }

    /// A refusal, if the path is there and does not have the method.
    fn refuse_method(&self) -> Option<Failure> {
        let allowed = routes::allowed(self.uri.path(), self.listener)?;
        let is_allowed = allowed.split(", ").any(|method| method == self.method.as_str());
        (!is_allowed).then(|| Failure::method_not_allowed(allowed))
    }
}

/// Converts an error of the framework: an unknown route, an unreadable parameter, a missing key.
pub fn failure_of(error: &poem::Error) -> Failure {
    match error.status() {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Failure::route_not_found(),
        StatusCode::UNAUTHORIZED => ServiceError::KeyMissing.into(),
        StatusCode::PAYLOAD_TOO_LARGE => Failure::too_large(),
        status if status.is_client_error() => match error.downcast_ref::<ParseParamError>() {
            Some(ParseParamError { name, reason }) => Failure::bad_parameter(name, reason),
            None => Failure::BadRequest(body("bad_request", &error.to_string())),
        },
        _ => ServiceError::internal(error).into(),
    }
}

fn unavailable(code: &str, message: &str, retry_after_seconds: u64) -> Failure {
    let JsonBody(mut body) = body(code, message);
    body.retry_after = Some(retry_after_seconds);
    Failure::Unavailable(JsonBody(body), retry_after_seconds)
}

fn body(code: &str, message: &str) -> JsonBody<ErrorBody> {
    JsonBody(ErrorBody {
        status: ErrorStatus::Error,
        code: code.into(),
        message: message.into(),
        errors: None,
        retry_after: None,
        data: None,
        address: None,
    })
}

/// An instant in RFC 3339, for headers and lines.
pub fn rfc3339(instant: OffsetDateTime) -> String {
    instant.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json::UNWRITTEN;

    #[test]
    fn an_answer_that_cannot_be_written_is_a_fault_of_the_daemon() {
        let Failure::Internal(JsonBody(body)) = ServiceError::internal("").into() else { panic!("another failure") };
        assert_eq!(serde_json::to_string(&body).unwrap(), UNWRITTEN);
    }
}
