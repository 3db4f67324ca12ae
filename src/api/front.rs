//! What every request of the hosts' listener passes first: it is counted, and a `POST /auth` of the usual shape is
//! answered here, without routing, extractors and rendering.
//!
//! Nothing is decided here: who is let in, what the body means and what is answered is asked of the same functions that
//! the handler in `auth.rs` asks, in the same order, and both give the same bytes (the test below compares them). What
//! is unusual in any way (another path or method, a query, a body without a declared length, a key in some other form)
//! goes to the handlers.

use std::sync::Arc;

use poem::endpoint::{DynEndpoint, ToDynEndpoint};
use poem::http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER};
use poem::http::{Method, StatusCode};
use poem::{Body, Endpoint, IntoResponse, Request, Response};
use time::OffsetDateTime;

use super::auth::answer;
use super::errors::Failure;
use super::guards::{Caller, HostKey, count_request, harden};
use super::install;
use super::json::{self, ok};
use super::kept::Answers;
use super::lines::Lines;
use super::metrics::Measured;
use super::origins::is_from_browser;
use crate::metrics::{Listener, Metrics, Operation};
use crate::model::forwarded::Trust;
use crate::service::admission::{Admission, Purpose};
use crate::service::sync::{QueryVersions, SyncRequest};
use crate::service::{Service, ServiceError};

pub struct Front {
    service: Arc<Service>,
    /// Whose word counts about who calls.
    trust: Arc<Trust>,
    answers: Answers,
    /// Of an answer that holds JSON.
    headers: HeaderMap,
    handlers: Box<dyn DynEndpoint<Output = Response>>,
    metrics: Arc<Metrics>,
    sync: Operation,
}

impl Front {
    pub fn new(service: Arc<Service>, trust: Arc<Trust>, handlers: impl Endpoint<Output = Response> + 'static) -> Self {
        let answer = harden(Response::builder().content_type("application/json").finish());
        Self {
            trust,
            answers: Answers::new(),
            headers: answer.headers().clone(),
            handlers: Box::new(ToDynEndpoint(handlers)),
            sync: service.metrics().operation("syncAuth"),
            metrics: service.metrics().clone(),
            service,
        }
    }

    /// By reference and in few steps, because what a future holds is moved about with it.
    async fn sync(
        &self,
        request: &mut Request,
        key: HostKey,
        caller: Caller,
        now: OffsetDateTime,
    ) -> Result<Response, Failure> {
        let host = match self.service.admit_now(Some(key.text()), caller.0, Purpose::Service, now) {
            Ok(Admission::Admitted(host)) => host,
            Ok(Admission::Unbound(host, key)) => Box::pin(self.service.bind(host, &key, caller.0, now)).await?,
            Err(ServiceError::KeyInvalid) => return Err(Box::pin(self.service.key_failed(caller.0, now)).await.into()),
            Err(refusal) => return Err(refusal.into()),
        };
        // The key is good: only now is the body read.
        let body = request.take_body();
        let body = json::read_bytes(request, body, json::MAX_BODY).await?;
        let sync = SyncRequest::read(json::text(&body)?, QueryVersions::default())?;
        if sync.is_retrieve() {
            let retrieved = self.service.retrieve(host, &sync, now)?;
            return Ok(self.answer(self.answers.body(&self.service, retrieved)?));
        }
        let stored = Box::pin(self.service.sync_as(host, caller.0, sync)).await?;
        Ok(harden(ok(answer(&self.service, stored)?)?.into_response()))
    }

    fn answer(&self, body: Vec<u8>) -> Response {
        let mut answer = Response::default();
        answer.set_status(StatusCode::OK);
        *answer.headers_mut() = self.headers.clone();
        answer.set_body(Body::from_vec(body));
        answer
    }
}

impl Endpoint for Front {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let now = self.service.now();
        let measured = Measured::begin(&self.metrics, Listener::Hosts);
        let key = HostKey::of(&request);
        let is_installer = install::is_installer(request.uri().path());
        let (operation, answered) = match count_request(&self.service, &self.trust, &mut request, key.as_ref(), now) {
            Err(failure) => (self.metrics.unknown_operation(), Err(failure)),
            Ok(caller) => match key.filter(|_| is_usual(&request)) {
                Some(key) => (self.sync, self.sync(&mut request, key, caller, now).await),
                None => {
                    // They measure for themselves.
                    drop(measured);
                    return self.handlers.call(request).await;
                }
            },
        };
        let answer = match answered {
            Ok(answer) => answer,
            Err(failure) if is_installer => harden(Box::pin(install::script_of(failure.into_response())).await),
            Err(failure) => harden(refusal(&request, failure)),
        };
        measured.end_as(operation, &answer);
        Ok(answer)
    }
}

/// Whether it can be answered here, if it has a key.
fn is_usual(request: &Request) -> bool {
    is_sync(request)
        && request.uri().query().is_none()
        && request.headers().contains_key(CONTENT_LENGTH)
        && !is_from_browser(request)
}

fn is_sync(request: &Request) -> bool {
    request.method() == Method::POST && matches!(request.uri().path(), "/auth" | "/auth/")
}

/// In the form that the caller asked for.
fn refusal(request: &Request, failure: Failure) -> Response {
    let mut parameters = request.uri().query().unwrap_or_default().split('&');
    if is_sync(request) && parameters.any(|parameter| parameter == "format=lines") {
        let (status, lines) = Lines::of_failure(&failure);
        let mut answer = lines.with_status(status).into_response();
        let wait = failure.retry_after().map(HeaderValue::from);
        answer.headers_mut().extend(wait.map(|seconds| (RETRY_AFTER, seconds)));
        return answer;
    }
    failure.into_response()
}

#[cfg(test)]
pub(super) mod tests;
