//! `/sign-in` and `/sign-out`: where `admin.access` lets people in by a sign-in.
//!
//! The session's token stands in a cookie that no script reads and no other host is sent. It is good for pages only: the API
//! takes it from a header, so no page of another site makes a browser use it.

use std::sync::Arc;

use askama::Template;
use poem::http::header::{HeaderValue, LOCATION, RETRY_AFTER, SET_COOKIE};
use poem::http::{Method, StatusCode};
use poem::web::{Data, Query};
use poem::{Body, IntoResponse, Request, Response, handler};

use super::context::{PageContext, PageError};
use super::layout::{Explained, explain, show};
use super::{Dashboard, assets, form};
use crate::api::account::{SignInClient, to_its_end};
use crate::api::cookies::{forget_session_cookie, session_cookie};
use crate::api::errors::Failure;
use crate::api::oidc::own_page;
use crate::service::{Areas, ServiceError};

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct SignInQuery {
    return_to: String,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    style: &'static str,
    icon: &'static str,
    return_to: String,
    email: String,
    has_provider: bool,
    refused: Option<Explained>,
}

impl SignInPage {
    fn new(areas: &Areas, return_to: &str) -> Self {
        Self {
            style: &assets::STYLE.name,
            icon: &assets::ICON.name,
            return_to: own_page(return_to).to_owned(),
            email: String::new(),
            has_provider: areas.people.has_provider(),
            refused: None,
        }
    }
}

#[handler]
pub async fn page(
    dashboard: Data<&Arc<Dashboard>>,
    Query(SignInQuery { return_to }): Query<SignInQuery>,
) -> Result<Response, PageError> {
    show(StatusCode::OK, &SignInPage::new(&dashboard.areas, &return_to))
}

/// With a password. The form has no token: there is nobody yet to give one to. That no other site sends it is seen to for
/// the whole listener.
#[handler]
pub async fn sign_in(dashboard: Data<&Arc<Dashboard>>, request: &Request, body: Body) -> poem::Result<Response> {
    let client = SignInClient::of(request)?;
    let form = form::read(request, body).await?;
    let (email, return_to) = (form.text("email"), form.text("return_to"));
    let areas = &dashboard.areas;
    let (signing_in, address) = (Arc::clone(areas), email.to_owned());
    let password = zeroize::Zeroizing::new(form.exact("password").to_owned());
    let session = to_its_end(async move {
        signing_in.people.sign_in(&address, &password, true, client.from, client.agent.as_deref()).await
    });
    match session.await {
        Ok(session) => {
            let cookie = session_cookie(session.token.expose(), true);
            Ok(lead(own_page(return_to), Some(&cookie))?)
        }
        Err(error) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            let refused = Some(explain(body));
            let refusal = SignInPage { email: email.to_owned(), refused, ..SignInPage::new(areas, return_to) };
            let mut refusal = show(status, &refusal)?;
            let wait = failure.retry_after().map(HeaderValue::from);
            refusal.headers_mut().extend(wait.map(|seconds| (RETRY_AFTER, seconds)));
            Ok(refusal)
        }
    }
}

#[handler]
pub async fn sign_out(context: PageContext) -> Result<Response, PageError> {
    let areas = context.areas();
    if let Some(signed_in) = &context.principal.signed_in {
        match areas.people.end_session(signed_in.session.session.id, None, context.by()).await {
            // It is over either way.
            Ok(_) | Err(ServiceError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut response = lead("/sign-in", Some(&forget_session_cookie(true)))?;
    if !areas.people.comes_back_over_tls() {
        response.headers_mut().append(SET_COOKIE, header(&forget_session_cookie(false))?);
    }
    Ok(response)
}

/// What somebody who is not let in sees: where signing in helps, the page for that, and then the one that was asked for.
pub fn turned_away(failure: Failure, request: &Request) -> Response {
    if !matches!(failure, Failure::Unauthorized(_)) {
        return failure.into_response();
    }
    let wanted = match request.method() {
        &Method::GET => request.original_uri().path_and_query().map_or("/", |path| path.as_str()),
        _ => "/",
    };
    let target = format!("/sign-in?return_to={}", crate::model::percent::encoded(wanted));
    lead(&target, None).unwrap_or_else(|PageError(failure)| failure.into_response())
}

fn lead(to: &str, cookie: Option<&str>) -> Result<Response, PageError> {
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(LOCATION, header(to)?);
    if let Some(cookie) = cookie {
        response.headers_mut().append(SET_COOKIE, header(cookie)?);
    }
    Ok(response)
}

fn header(text: &str) -> Result<HeaderValue, PageError> {
    HeaderValue::from_str(text).map_err(|error| ServiceError::internal(error).into())
}
