//! Refuses requests that a browser sends for another site's page, and knows our own origins. One rule for all
//! listeners.
//!
//! A browser adds an admin's certificate, cookies and its own address to every request, even if another site's page
//! caused it. `Origin` and `Sec-Fetch-Site` name that page; a page cannot change these headers. Programs send neither,
//! and are accepted. This module knows nothing of sessions, certificates and forms.

use std::sync::Arc;

use poem::http::Method;
use poem::http::header::{HOST, HeaderMap, HeaderValue, ORIGIN};
use poem::{Endpoint, IntoResponse, Request, Response};

use super::errors::Failure;
use crate::service::Areas;

/// A GET below this path has an effect: it begins or finishes a sign-in.
const SIGN_IN_PATHS: &str = "/auth/oidc/";
const FETCH_SITE: &str = "sec-fetch-site";
const FETCH_MODE: &str = "sec-fetch-mode";
const FETCH_DEST: &str = "sec-fetch-dest";

/// Refuses a request from another site's page if it could have an effect.
///
/// The provider redirects the browser back to us from its own site. So a GET of the sign-in may come from another site
/// if the browser navigates to it. Then the person sees the page, and no script of the other site can read the answer.
pub async fn refuse_cross_site<E: Endpoint>(endpoint: Arc<E>, request: Request) -> poem::Result<Response> {
    let is_allowed = match *request.method() {
        Method::OPTIONS => true,
        Method::GET | Method::HEAD => {
            !request.uri().path().starts_with(SIGN_IN_PATHS)
                || is_same_site(&request)
                || is_navigation(request.headers())
        }
        _ => is_same_site(&request),
    };
    if !is_allowed {
        log::warn!(event = "cross_site", method:% = request.method(); "a request from another site's page was refused");
        return Err(Failure::cross_site().into());
    }
    Ok(endpoint.call(request).await?.into_response())
}

/// Each of the two headers must name one of our own pages. An absent header decides nothing.
fn is_same_site(request: &Request) -> bool {
    let headers = request.headers();
    // `none`: the person typed the address, or opened a bookmark.
    headers.get_all(FETCH_SITE).iter().all(|site| site == "same-origin" || site == "none")
        && headers.get_all(ORIGIN).iter().all(|origin| is_own(request, origin))
}

/// Whether a browser window navigates to the page: not a script's request, an image or a frame.
fn is_navigation(headers: &HeaderMap) -> bool {
    let is_only = |name: &str, wanted: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().is_some_and(|value| value == wanted) && values.next().is_none()
    };
    is_only(FETCH_MODE, "navigate") && is_only(FETCH_DEST, "document") && !headers.contains_key(ORIGIN)
}

/// Whether `origin` is the origin that the request was sent to. Behind a TLS proxy, the browser's scheme differs from
/// this connection's. Then the origin must be one that the operator configured.
fn is_own(request: &Request, origin: &HeaderValue) -> bool {
    let (Some(own), Ok(origin)) = (own_origin(request), origin.to_str()) else { return false };
    let without_scheme = |origin: &str| origin.split_once("://").map(|(_, authority)| authority.to_owned());
    own == origin || without_scheme(&own) == without_scheme(origin) && is_configured(request, origin)
}

fn is_configured(request: &Request, origin: &str) -> bool {
    let areas = request.data::<Arc<Areas>>();
    areas.is_some_and(|areas| areas.core.policy().people.origins.iter().any(|own| own == origin))
}

/// The origin of the request, if it is configured or listened on. The `Host` header alone proves nothing, because the
/// caller sets it.
pub fn trusted_origin(request: &Request) -> Option<String> {
    own_origin(request).filter(|origin| is_configured(request, origin))
}

/// Scheme and authority of the request, in the form that browsers use. In HTTP/2 the authority is in the URI.
pub fn own_origin(request: &Request) -> Option<String> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let authority = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok()?,
        (None, None) => request.original_uri().authority()?.as_str(),
        _ => return None,
    };
    Some(format!("{}://{}", request.scheme(), authority.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use poem::http::StatusCode;
    use poem::{EndpointExt as _, endpoint::make_sync};

    use super::*;

    async fn answered(method: Method, path: &str, headers: &[(&str, &str)]) -> StatusCode {
        let endpoint = make_sync(|_| StatusCode::OK).around(refuse_cross_site);
        let request = Request::builder().method(method).uri(path.parse().unwrap()).header("host", "auth.test");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).finish();
        match endpoint.call(request).await {
            Ok(answer) => answer.status(),
            Err(error) => error.status(),
        }
    }

    #[tokio::test]
    async fn what_another_sites_page_sends_is_refused_where_it_has_an_effect() {
        let foreign: [&[(&str, &str)]; 5] = [
            &[("origin", "https://evil.test")],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "http://auth.test"), ("sec-fetch-site", "cross-site")],
        ];
        for headers in foreign {
            for (method, path) in
                [(Method::POST, "/auth/session"), (Method::DELETE, "/auth"), (Method::GET, "/auth/oidc/callback")]
            {
                assert_eq!(answered(method, path, headers).await, StatusCode::FORBIDDEN, "{path} {headers:?}");
            }
            assert_eq!(answered(Method::GET, "/healthz", headers).await, StatusCode::OK, "{headers:?}");
        }
        let own: [&[(&str, &str)]; 4] = [
            &[],
            &[("origin", "http://auth.test")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin")],
        ];
        for headers in own {
            assert_eq!(answered(Method::POST, "/auth/session", headers).await, StatusCode::OK, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn the_provider_may_lead_the_window_back_and_nothing_else() {
        let go = async |mode, dest, more: &[(&str, &str)]| {
            let headers = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
            let headers: Vec<_> = headers.iter().chain(more).copied().collect();
            answered(Method::GET, "/auth/oidc/callback", &headers).await
        };
        assert_eq!(go("navigate", "document", &[]).await, StatusCode::OK);
        for (mode, dest) in [("navigate", "iframe"), ("no-cors", "image"), ("cors", "empty"), ("no-cors", "script")] {
            assert_eq!(go(mode, dest, &[]).await, StatusCode::FORBIDDEN, "{mode} {dest}");
        }
        let with_origin = go("navigate", "document", &[("origin", "https://evil.test")]).await;
        assert_eq!(with_origin, StatusCode::FORBIDDEN);
    }
}
