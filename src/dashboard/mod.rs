//! The dashboard: pages for people, on the admin listener only.
//!
//! One file a page; what a page does goes through the same functions of the service as the API. Every page works without
//! JavaScript: a form is posted, the answer is a redirect, and the page it leads to tells what became of it.
//!
//! This room must not touch storage and holds no rule. It keeps for some minutes, in memory, what a page is to say once
//! (`shelf.rs`); a crash loses that and nothing else: the change itself was durable before it was put there.

mod assets;
mod form;
mod host;
mod hosts;
mod new_host;
mod runner;
mod shelf;
mod shell;
mod switch;
mod upload;
mod words;

use std::sync::Arc;

use poem::http::header::{HeaderName, HeaderValue};
use poem::{
    Endpoint, EndpointExt, FromRequest, IntoResponse, Request, RequestBody, Response, Route, RouteMethod, get, post,
};
use time::OffsetDateTime;

use crate::api::guards::Admin;
use crate::outside::Outside;
use crate::service::Service;

/// What the pages share.
pub struct Dashboard {
    service: Arc<Service>,
    outside: Arc<dyn Outside>,
    tokens: form::Tokens,
    told: shelf::Shelf<String>,
    installers: shelf::Shelf<new_host::Shown>,
}

impl Dashboard {
    pub fn new(service: Arc<Service>, outside: Arc<dyn Outside>) -> Arc<Self> {
        Arc::new(Self {
            tokens: form::Tokens::new(&*outside),
            told: shelf::Shelf::new(),
            installers: shelf::Shelf::new(),
            service,
            outside,
        })
    }

    /// Puts the pages and their assets beside the operations of the API.
    pub fn mount(self: &Arc<Self>, route: Route) -> impl Endpoint<Output = Response> + 'static {
        let pages: Vec<(&str, RouteMethod)> = vec![
            ("/hosts", get(hosts::page)),
            ("/login", get(upload::page).post(upload::upload)),
            ("/hosts/new", get(new_host::page).post(new_host::make)),
            ("/hosts/installer/:shown", get(new_host::installer)),
            ("/hosts/:id", get(host::page)),
            ("/hosts/:id/remove", get(host::confirm).post(host::remove)),
            ("/hosts/:id/roaming", post(host::roaming)),
            ("/hosts/:id/window", post(host::window)),
            ("/runner", get(runner::page).post(runner::run)),
            ("/switch", get(switch::page).post(switch::set)),
        ];
        let route = pages.into_iter().fold(route, |route, (path, methods)| {
            let dashboard = self.clone();
            let page = methods.data(self.clone()).around(move |page, request| answer(dashboard.clone(), page, request));
            route.at(path, page)
        });
        route.at("/assets/:name", get(assets::asset)).around(|route, mut request| async move {
            // The API's operations are nested below `/`, and a route cannot have a page there as well.
            if request.uri().path() == "/" {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                *request.uri_mut() = format!("/hosts{query}").parse().map_err(poem::error::BadRequest)?;
            }
            route.call(request).await
        })
    }

    fn now(&self) -> OffsetDateTime {
        self.outside.now()
    }
}

/// What holds for every page, whichever handler it has: an admin asks, a form that changes something carries its token,
/// a failure is told on a page, and the browser is told what the page may do.
async fn answer<E: Endpoint>(dashboard: Arc<Dashboard>, page: Arc<E>, mut request: Request) -> poem::Result<Response> {
    let admin = Admin::from_request(&request, &mut RequestBody::default()).await?;
    let outcome = match form::check(&dashboard.tokens, &admin, &mut request).await {
        Ok(()) => page.call(request).await.map(IntoResponse::into_response),
        Err(error) => Err(error),
    };
    let mut answer = match outcome {
        Ok(answer) => answer,
        Err(error) => shell::failure(&dashboard, &admin, error).await,
    };
    for (name, value) in HEADERS {
        answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Ok(answer)
}

/// `Cache-Control: no-store` and `nosniff` are on every answer of the listener.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
    ),
    // Not `no-referrer`: with that a browser sends our own forms with `Origin: null`, which is a stranger's.
    ("referrer-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];
