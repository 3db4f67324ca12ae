//! The dashboard: pages for people, on the admin listener only. [`Dashboard::mount`] lists the pages and the role that
//! each needs.
//!
//! Each page has its own file, and calls the same functions of the service as the API. Every page works without
//! JavaScript: a form is posted, the answer is a redirect, and the next page shows the result.
//!
//! This room must not touch storage and holds no rules. Results that a page shows once are kept in memory for some
//! minutes (`flash_store.rs`). A crash loses only these: each change is durable before its result is kept.

mod account;
mod assets;
mod certificates;
mod context;
mod flash_store;
mod form;
mod format;
mod history;
mod host;
mod hosts;
mod layout;
mod new_host;
mod runner;
mod sign_in;
mod switch;
mod upload;
mod users;

use std::sync::Arc;

use poem::http::Method;
use poem::http::header::{HeaderName, HeaderValue};
use poem::web::Redirect;
use poem::{Endpoint, EndpointExt, IntoResponse, Request, Response, Route, RouteMethod, get, post};
use time::OffsetDateTime;

use crate::api::errors;
use crate::api::guards::Principal;
use crate::config::AdminAccess;
use crate::model::people::Role;
use crate::platform::Platform;
use crate::service::Areas;

use context::{PageContext, PageError};

/// The state that all pages share.
pub struct Dashboard {
    areas: Arc<Areas>,
    platform: Arc<dyn Platform>,
    tokens: form::Tokens,
    flashes: flash_store::FlashStore<String>,
    installers: flash_store::FlashStore<new_host::ShownInstaller>,
    renewed: flash_store::FlashStore<certificates::Renewed>,
    downloads: flash_store::FlashStore<certificates::Download>,
}

impl Dashboard {
    pub fn new(areas: Arc<Areas>, platform: Arc<dyn Platform>) -> Arc<Self> {
        Arc::new(Self {
            tokens: form::Tokens::new(&*platform),
            flashes: flash_store::FlashStore::new(),
            installers: flash_store::FlashStore::new(),
            renewed: flash_store::FlashStore::new(),
            downloads: flash_store::FlashStore::new(),
            areas,
            platform,
        })
    }

    /// Adds the pages and their assets to the API's routes.
    pub fn mount(self: &Arc<Self>, route: Route) -> impl Endpoint<Output = Response> + 'static {
        // Viewers may look at the fleet and admins may change it. Every signed-in user may change their own hosts and
        // sessions.
        let of_fleet = Needs { to_look: Role::Viewer, to_change: Role::Admin };
        let of_ones_own = Needs { to_look: Role::Member, to_change: Role::Member };
        let pages: Vec<(&str, Needs, RouteMethod)> = vec![
            ("/hosts", of_fleet, get(hosts::page)),
            ("/login", of_fleet, get(upload::page).post(upload::upload)),
            ("/login/versions", of_fleet, get(history::page)),
            ("/hosts/new", of_fleet, get(new_host::page).post(new_host::make)),
            ("/hosts/installer/:shown", of_ones_own, get(new_host::installer)),
            ("/hosts/:id", of_fleet, get(host::page)),
            ("/hosts/:id/remove", of_fleet, get(host::confirm).post(host::remove)),
            ("/hosts/:id/roaming", of_fleet, post(host::roaming)),
            ("/hosts/:id/clear", of_fleet, post(host::clear)),
            ("/hosts/:id/window", of_fleet, post(host::window)),
            ("/runner", of_fleet, get(runner::page).post(runner::run)),
            ("/switch", of_fleet, get(switch::page).post(switch::set)),
            ("/users", of_fleet, get(users::list).post(users::add)),
            ("/users/:id", of_fleet, get(users::page).post(users::change)),
            ("/certificates", of_fleet, get(certificates::page).post(certificates::renew)),
            ("/certificates/renewed/:shown", of_fleet, get(certificates::show_renewed)),
            ("/certificates/file/:shown", of_fleet, get(certificates::send_file)),
        ];
        let of_who_signed_in: Vec<(&str, Needs, RouteMethod)> = vec![
            ("/mine", of_ones_own, get(account::page).post(account::install)),
            ("/mine/:id/remove", of_ones_own, post(account::remove)),
            ("/mine/sessions/:id/end", of_ones_own, post(account::end_session)),
            ("/mine/password", of_ones_own, post(account::set_password)),
            ("/sign-out", of_ones_own, post(sign_in::sign_out)),
        ];
        let signs_in = self.areas.people.people_policy().access != AdminAccess::Mtls;
        let pages = pages.into_iter().chain(of_who_signed_in.into_iter().filter(|_| signs_in));
        let route = pages.fold(route, |route, (path, needs, methods)| {
            let dashboard = self.clone();
            let page = methods.around(move |page, request| answer(dashboard.clone(), needs, page, request));
            route.at(path, page)
        });
        let route = if signs_in {
            let sign_in = get(sign_in::page).post(sign_in::sign_in).data(self.clone());
            route.at("/sign-in", sign_in.around(async |page, request| page.call(request).await.map(with_headers)))
        } else {
            route
        };
        route.at("/assets/:name", get(assets::asset)).around(|route, mut request| async move {
            // The API's operations are nested below `/`, and poem allows no page at the same route.
            if request.uri().path() == "/" {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                *request.uri_mut() = format!("/hosts{query}").parse().map_err(poem::error::BadRequest)?;
            }
            route.call(request).await
        })
    }

    fn now(&self) -> OffsetDateTime {
        self.platform.now()
    }
}

/// Identifies the caller, checks its role and its form, and calls the page. A failure is shown as a page.
async fn answer<E: Endpoint>(
    dashboard: Arc<Dashboard>,
    needs: Needs,
    page: Arc<E>,
    mut request: Request,
) -> poem::Result<Response> {
    let principal = match Principal::of_page(&request, &dashboard.areas).await {
        Ok(principal) => principal,
        Err(failure) => return Ok(with_headers(sign_in::turned_away(failure, &request))),
    };
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if looks && principal.role < needs.to_look && principal.signed_in.is_some() && request.uri().path() == "/hosts" {
        // A member may not see the fleet; their own page is the start page.
        return Ok(with_headers(Redirect::see_other("/mine").into_response()));
    }
    let context = PageContext::new(dashboard, principal, &request);
    let answer = match call(&context, if looks { needs.to_look } else { needs.to_change }, page, &mut request).await {
        Ok(answer) => answer,
        Err(error) => match error.downcast::<PageError>() {
            Ok(PageError(failure)) => layout::failure_page(&context, &failure),
            Err(error) => layout::failure_page(&context, &errors::failure_of(&error)),
        },
    };
    Ok(with_headers(answer))
}

async fn call<E: Endpoint>(
    context: &PageContext,
    needs: Role,
    page: Arc<E>,
    request: &mut Request,
) -> poem::Result<Response> {
    context.principal.needs(needs).map_err(PageError::from)?;
    form::check(context, request).await?;
    request.set_data(context.clone());
    page.call(std::mem::take(request)).await.map(IntoResponse::into_response)
}

/// The lowest role that may see a page, and the lowest that may change something there.
#[derive(Clone, Copy)]
struct Needs {
    to_look: Role,
    to_change: Role,
}

fn with_headers(answer: impl IntoResponse) -> Response {
    let mut answer = answer.into_response();
    for (name, value) in HEADERS {
        answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    answer
}

/// The listener itself adds `Cache-Control: no-store` and `nosniff` to every answer.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
    ),
    // Not `no-referrer`: then browsers send our own forms with `Origin: null`, which is refused as another site's.
    ("referrer-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];
