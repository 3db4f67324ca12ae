//! What a page handler receives: the caller, the areas, and the result of the last action.
//!
//! `mod.rs` makes it once per request, after it has identified the caller. A page's error stays typed until `mod.rs`
//! renders it.

use std::sync::Arc;

use poem::http::StatusCode;
use poem::web::Redirect;
use poem::{FromRequest, IntoResponse, Request, RequestBody, Response};
use time::OffsetDateTime;

use super::Dashboard;
use super::flash_store::FlashStore;
use crate::api::errors::Failure;
use crate::api::guards::Principal;
use crate::service::{Areas, Initiator, ServiceError};

#[derive(Clone)]
pub struct PageContext {
    pub(super) dashboard: Arc<Dashboard>,
    pub principal: Principal,
    /// The result of the last action.
    pub(super) flash: Option<String>,
}

/// `?told=ID`: the result of the last action.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct FlashQuery {
    told: String,
}

impl PageContext {
    pub(super) fn new(dashboard: Arc<Dashboard>, principal: Principal, request: &Request) -> Self {
        let flash = request
            .params::<FlashQuery>()
            .ok()
            .and_then(|query| dashboard.flashes.take(&principal, &query.told, dashboard.now()));
        Self { dashboard, principal, flash }
    }

    pub fn areas(&self) -> &Arc<Areas> {
        &self.dashboard.areas
    }

    pub fn now(&self) -> OffsetDateTime {
        self.dashboard.now()
    }

    /// For the audit log.
    pub fn by(&self) -> &Initiator {
        &self.principal.by
    }

    pub(super) fn form_token(&self) -> String {
        self.dashboard.tokens.token(&self.principal)
    }

    /// Keeps `value` for this caller. Returns the id for `take`.
    pub(super) fn keep<T>(&self, store: impl Fn(&Dashboard) -> &FlashStore<T>, value: T) -> String {
        store(&self.dashboard).put(&self.principal, value, &*self.dashboard.platform)
    }

    pub(super) fn take<T>(&self, store: impl Fn(&Dashboard) -> &FlashStore<T>, id: &str) -> Option<T> {
        store(&self.dashboard).take(&self.principal, id, self.now())
    }

    /// Redirects to `path`, which shows `sentence` first.
    pub fn redirect(&self, path: &str, sentence: String) -> Response {
        let id = self.keep(|dashboard| &dashboard.flashes, sentence);
        Redirect::see_other(format!("{path}?told={id}")).into_response()
    }
}

impl<'a> FromRequest<'a> for PageContext {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        Ok(request.data::<Self>().ok_or_else(|| PageError::from(ServiceError::SessionRequired))?.clone())
    }
}

/// Why a page cannot be shown.
#[derive(thiserror::Error)]
#[error("{}", self.0.body().1.message)]
pub struct PageError(pub Failure);

/// Omits the message, which may contain the user's input.
impl std::fmt::Debug for PageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PageError").field(&self.0.body().0).finish()
    }
}

impl poem::error::ResponseError for PageError {
    fn status(&self) -> StatusCode {
        self.0.body().0
    }
}

impl<E: Into<Failure>> From<E> for PageError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}
