//! `/auth/oidc`: signing in through the identity provider. On both listeners, where a provider is configured.
//!
//! It says where the browser goes, and what it keeps: the sealed sign-in in a cookie of its own, and, for the dashboard, the
//! session. A refusal says nothing of its reason, which is in the audit log.

use std::sync::Arc;

use askama::Template;
use cookie::Cookie;
use poem::http::StatusCode;
use poem::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, LOCATION, SET_COOKIE};
use poem::web::Html;
use poem::{FromRequest, IntoResponse, Request, RequestBody, Response};
use poem_openapi::param::Query;
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type as _;
use poem_openapi::{ApiResponse, OpenApi};

use super::Tag;
use super::account::{SignInClient, TokenAnswer};
use super::area::Area;
use super::cookies::{cookie_in, cookies, flow_cookie, session_cookie, set_cookie};
use super::errors::{ErrorBody, Failure};
use super::json::JsonBody;
use super::origins::{own_origin, trusted_origin};
use crate::config::AdminAccess;
use crate::metrics::Listener;
use crate::model::secret::Secret;
use crate::service::people::provider::ProviderAnswer;
use crate::service::people::provider::{Finished, NotFinished, SIGN_IN_TIMEOUT, cookie_tag};
use crate::service::{Areas, Core, People, ServiceError};

pub struct OidcApi;

#[OpenApi(tag = "Tag::Account", prefix_path = "/auth/oidc")]
impl OidcApi {
    /// Begin a sign-in through the identity provider
    ///
    /// For a browser: it is sent to the provider, and comes back to `callback` within ten minutes. `return_to` is the page of
    /// the dashboard that it came from; without it `callback` answers with the access token as JSON.
    #[oai(path = "/login", method = "get", operation_id = "beginOidcSignIn")]
    async fn login(
        &self,
        people: Area<'_, People>,
        browser: Browser,
        client: SignInClient,
        return_to: Query<Option<String>>,
    ) -> Redirected {
        let back_to = match return_to.0.map(|path| browser.back_to(&people, &path)).transpose() {
            Ok(back_to) => back_to.flatten(),
            Err(error) => return Redirected(page_of(error)),
        };
        let is_page = back_to.is_some();
        Redirected(match people.begin_sign_in(back_to, client.from).await {
            Ok(begun) => {
                let name = flow_cookie(&begun.tag, browser.secure);
                let kept = set_cookie(&name, &begun.cookie, browser.secure, Some(SIGN_IN_TIMEOUT));
                redirect(StatusCode::FOUND, &begun.location, [kept])
            }
            Err(error) if is_page => page_of(error),
            Err(error) => Failure::from(error).into_response(),
        })
    }

    /// Finish a sign-in through the identity provider
    ///
    /// Where the browser comes back to, with what the provider gave it. Answers with the access token, or leads back to the
    /// dashboard, whose cookie it sets. Each sign-in is finished once.
    #[allow(clippy::too_many_arguments)] // One for each parameter of the operation.
    #[oai(path = "/callback", method = "get", operation_id = "finishOidcSignIn")]
    async fn callback(
        &self,
        core: Area<'_, Core>,
        people: Area<'_, People>,
        browser: Browser,
        client: SignInClient,
        code: Query<Option<String>>,
        state: Query<Option<String>>,
        /// RFC 9207.
        iss: Query<Option<String>>,
        error: Query<Option<String>>,
    ) -> Finish {
        let tag = state.0.as_deref().map(cookie_tag).unwrap_or_default();
        let name = flow_cookie(&tag, browser.secure);
        let kept = browser.cookie(&name);
        let answer = ProviderAnswer {
            code: code.0.map(Secret::new),
            state: state.0.map(Secret::new),
            iss: iss.0,
            error: error.0,
        };
        let finished = people.finish_sign_in(kept.as_deref(), &answer, client.from, client.agent.as_deref()).await;
        let forget = set_cookie(&name, "", browser.secure, Some(time::Duration::ZERO));
        let mut response = match finished {
            Ok(Finished { session, back_to: Some(page) }) => {
                let session = session_cookie(session.token.expose(), browser.secure);
                redirect(StatusCode::SEE_OTHER, &page, [session])
            }
            Ok(Finished { session, back_to: None }) => JsonBody(TokenAnswer::new(session, core.now())).into_response(),
            Err(NotFinished { error, is_page: false }) => Failure::from(error).into_response(),
            Err(NotFinished { error, is_page: true }) => page_of(error),
        };
        if let Ok(forget) = HeaderValue::from_str(&forget) {
            response.headers_mut().append(SET_COOKIE, forget);
        }
        Finish(response)
    }
}

/// What the browser's request says beside its parameters.
struct Browser {
    /// Whether the cookies are for TLS only: where the browser comes back to says so.
    secure: bool,
    on_admin_listener: bool,
    /// Where the dashboard was asked for; only where that is one of its addresses.
    origin: Option<String>,
    /// The same as the request names it.
    named: String,
    cookies: Vec<Cookie<'static>>,
}

impl<'a> FromRequest<'a> for Browser {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        let areas = request.data::<Arc<Areas>>();
        Ok(Self {
            secure: areas.is_none_or(|areas| areas.people.comes_back_over_tls()),
            on_admin_listener: matches!(request.data::<Listener>(), Some(Listener::Admin)),
            origin: trusted_origin(request),
            named: own_origin(request).unwrap_or_default(),
            cookies: cookies(request.headers()),
        })
    }
}

impl Browser {
    /// A page of our own dashboard, where a sign-in lets somebody in. `None`: there is none here, and the token is answered.
    fn back_to(&self, people: &People, path: &str) -> Result<Option<String>, ServiceError> {
        if !self.on_admin_listener || people.people_policy().access == AdminAccess::Mtls {
            return Ok(None);
        }
        match &self.origin {
            Some(origin) => Ok(Some(format!("{origin}{}", own_page(path)))),
            None => Err(ServiceError::Refused(format!(
                "{:?} is not a known address of this dashboard, and a sign-in leads back to known ones only: open the \
                 dashboard by another address, or add this one to admin.origins",
                self.named
            ))),
        }
    }

    fn cookie(&self, name: &str) -> Option<String> {
        cookie_in(&self.cookies, name)
    }
}

/// A path of our own; whatever could lead elsewhere is taken for the first page.
pub fn own_page(path: &str) -> &str {
    let leads_elsewhere = !path.starts_with('/')
        || path[1..].starts_with(['/', '\\'])
        || path.len() > 500
        || path.chars().any(|letter| letter.is_control() || letter == '\\' || !letter.is_ascii());
    if leads_elsewhere { "/" } else { path }
}

fn redirect<const N: usize>(status: StatusCode, to: &str, cookies: [String; N]) -> Response {
    let mut response = Response::builder().status(status).finish();
    let headers = response.headers_mut();
    let Ok(location) = HeaderValue::from_str(to) else {
        return Failure::from(ServiceError::internal("an address to go to is none")).into_response();
    };
    headers.insert(LOCATION, location);
    for cookie in cookies {
        match HeaderValue::from_str(&cookie) {
            Ok(cookie) => drop(headers.append(SET_COOKIE, cookie)),
            Err(error) => return Failure::from(ServiceError::internal(error)).into_response(),
        }
    }
    response
}

/// Told to a person who came from the dashboard.
#[derive(Template)]
#[template(path = "not_signed_in.html")]
struct NotSignedIn {
    happened: String,
    /// Issuer and subject, for an admin to link.
    unlinked: Option<(String, String)>,
}

fn page_of(error: ServiceError) -> Response {
    let unlinked = match &error {
        ServiceError::NotLinked { issuer, subject } => Some((issuer.clone(), subject.clone())),
        _ => None,
    };
    let failure = Failure::from(error);
    let (status, ErrorBody { message, .. }) = failure.body();
    match (NotSignedIn { happened: message.clone(), unlinked }).render() {
        Ok(page) => {
            let mut page = Html(page).with_status(status).into_response();
            let policy = HeaderValue::from_static("default-src 'none'; base-uri 'none'; frame-ancestors 'none'");
            page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
            page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            page
        }
        Err(_) => failure.into_response(),
    }
}

/// Sends the browser on.
struct Redirected(Response);

impl IntoResponse for Redirected {
    fn into_response(self) -> Response {
        self.0
    }
}

impl ApiResponse for Redirected {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![
                response(302, "To the provider.", vec![], &["Location", "Set-Cookie"]),
                response(400, "A parameter is unknown or cannot be read.", refusals(), &[]),
                response(404, "No provider is configured.", refusals(), &[]),
                response(500, "A fault of the daemon; its log says more.", refusals(), &[]),
                response(403, "The provider is not what it should be; the audit log says why.", refusals(), &[]),
                response(422, "The dashboard was asked for by an address that is not known.", refusals(), &[]),
                response(429, "Too many refused sign-ins from this address.", refusals(), &[]),
                response(503, "The provider is not available just now.", refusals(), &[]),
            ],
        }
    }

    fn register(registry: &mut Registry) {
        ErrorBody::register(registry);
    }
}

/// Whatever a sign-in ends in.
struct Finish(Response);

impl IntoResponse for Finish {
    fn into_response(self) -> Response {
        self.0
    }
}

impl ApiResponse for Finish {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![
                response(200, "Done.", vec![json(TokenAnswer::schema_ref())], &["Set-Cookie"]),
                response(400, "A parameter cannot be read.", refusals(), &[]),
                response(404, "No provider is configured.", refusals(), &[]),
                response(500, "A fault of the daemon; its log says more.", refusals(), &[]),
                response(303, "Back to the page of the dashboard.", vec![], &["Location", "Set-Cookie"]),
                response(403, "Refused; the audit log says why. Or nobody is linked to the identity.", refusals(), &[]),
                response(429, "Too many refused sign-ins from this address.", refusals(), &[]),
                response(503, "The provider, or the store, is not available just now.", refusals(), &[]),
            ],
        }
    }

    fn register(registry: &mut Registry) {
        TokenAnswer::register(registry);
        ErrorBody::register(registry);
    }
}

fn json(schema: MetaSchemaRef) -> MetaMediaType {
    MetaMediaType { content_type: "application/json", schema }
}

/// For a program, and for a person who came from the dashboard.
fn refusals() -> Vec<MetaMediaType> {
    vec![json(ErrorBody::schema_ref()), MetaMediaType { content_type: "text/html", schema: String::schema_ref() }]
}

fn response(status: u16, description: &'static str, content: Vec<MetaMediaType>, headers: &[&str]) -> MetaResponse {
    let headers = headers.iter().map(|name| MetaHeader {
        name: (*name).into(),
        description: None,
        required: false,
        deprecated: false,
        schema: String::schema_ref(),
    });
    MetaResponse { description, status: Some(status), status_range: None, content, headers: headers.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_of_our_own_is_gone_back_to() {
        for own in ["/", "/hosts", "/hosts/7?told=ab", "/login"] {
            assert_eq!(own_page(own), own);
        }
        for elsewhere in [
            "",
            "hosts",
            "//evil.test",
            "/\\evil.test",
            "https://evil.test",
            "javascript:alert(1)",
            "/a\\b",
            "/a\r\nb",
            "/\u{e9}",
            " /hosts",
        ] {
            assert_eq!(own_page(elsewhere), "/", "{elsewhere:?}");
        }
        assert_eq!(own_page(&format!("/{}", "a".repeat(600))), "/");
    }
}
