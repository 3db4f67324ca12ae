//! Wraps all routes of a listener. It normalizes paths, identifies and counts the callers of the hosts' listener,
//! converts errors to answers, measures, and adds the common headers.
//!
//! This module knows nothing of single operations, except that two of them need their refusals in a special format.

use std::sync::Arc;

use poem::middleware::{NormalizePath, TrailingSlash};
use poem::{Endpoint, EndpointExt as _, IntoEndpoint, IntoResponse, Request, Response};

use super::auth_context::AuthContext;
use super::document::routes;
use super::errors::Asked;
use super::metrics::Measured;
use super::{errors, guards, install, lines};
use crate::metrics::Listener;
use crate::model::forwarded::TrustedProxies;
use crate::service::Areas;

pub fn finish(
    routes: impl IntoEndpoint<Endpoint: 'static>,
    areas: Arc<Areas>,
    listener: Listener,
    trust: Option<Arc<TrustedProxies>>,
) -> impl Endpoint<Output = Response> + 'static {
    let routes = routes.into_endpoint();
    ListenerEndpoint { routes, areas, listener, trust }.with(NormalizePath::new(TrailingSlash::Trim))
}

struct ListenerEndpoint<E> {
    routes: E,
    areas: Arc<Areas>,
    listener: Listener,
    /// `Some` on the hosts' listener: the trusted proxies. Its requests are counted, and carry an [`AuthContext`].
    trust: Option<Arc<TrustedProxies>>,
}

impl<E: Endpoint> ListenerEndpoint<E> {
    async fn answer(&self, mut request: Request) -> poem::Result<Response> {
        if let Some(trust) = &self.trust {
            let context = AuthContext::of(&self.areas, trust, &request);
            request.set_data(context?);
        }
        if let Some(refusal) = guards::refuse_head(&request, self.listener) {
            return Err(refusal.into());
        }
        routes::refuse_unknown_parameters(&request)?;
        request.set_data(self.areas.clone());
        request.set_data(self.listener);
        request.set_data(guards::CallerKnown::default());
        self.routes.call(request).await.map(IntoResponse::into_response)
    }
}

impl<E> ListenerEndpoint<E> {
    /// Refusals are JSON, except where no program reads them.
    async fn format(&self, refusal: Response, path: &str) -> Response {
        if self.trust.is_none() {
            refusal
        } else if install::is_installer(path) {
            Box::pin(install::script_of(refusal)).await
        } else if path == lines::PATH {
            Box::pin(lines::lines_of(refusal)).await
        } else {
            refusal
        }
    }
}

impl<E: Endpoint> Endpoint for ListenerEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let measured = Measured::begin(self.areas.core.metrics(), self.listener);
        let asked = Asked::of(&request, self.listener);
        let (operation, answer) = match self.answer(request).await {
            Ok(answer) => (answer.data().copied(), answer),
            Err(error) => {
                let operation = error.data().copied();
                let refusal = errors::from_poem(error, &asked);
                (operation, self.format(refusal, asked.uri.path()).await)
            }
        };
        measured.end(operation, &answer);
        Ok(guards::harden(answer))
    }
}
