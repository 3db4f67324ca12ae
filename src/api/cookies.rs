//! The cookies of a browser: the dashboard's session, and a sign-in that has begun at the identity provider.

use cookie::{Cookie, SameSite};
use poem::Request;
use poem::http::header::{COOKIE, HeaderMap};

use crate::service::Areas;

pub fn cookies(headers: &HeaderMap) -> Vec<Cookie<'static>> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(Cookie::split_parse).flatten().map(Cookie::into_owned).collect()
}

/// The value of the first cookie of this name, unless it is empty.
pub fn cookie_in(cookies: &[Cookie<'static>], name: &str) -> Option<String> {
    let found = cookies.iter().find(|cookie| cookie.name() == name)?;
    Some(found.value().to_owned()).filter(|value| !value.is_empty())
}

/// `__Host-`: browsers accept such a cookie over TLS only, for the whole of one host. It needs TLS, so it is left out without.
fn host_prefix(secure: bool) -> &'static str {
    if secure { "__Host-" } else { "" }
}

pub fn flow_cookie(tag: &str, secure: bool) -> String {
    format!("{}codex-authd-oidc-{tag}", host_prefix(secure))
}

fn session_cookie_name(secure: bool) -> String {
    format!("{}codex-authd-session", host_prefix(secure))
}

/// The session token of a browser; good for pages only.
pub fn token_of_page(areas: &Areas, request: &Request) -> Option<String> {
    let cookies = cookies(request.headers());
    let plain = || cookie_in(&cookies, &session_cookie_name(false)).filter(|_| !areas.people.comes_back_over_tls());
    cookie_in(&cookies, &session_cookie_name(true)).or_else(plain)
}

/// The browser keeps it until it is closed; the daemon decides when the session ends.
pub fn session_cookie(token: &str, secure: bool) -> String {
    set_cookie(&session_cookie_name(secure), token, secure, None)
}

pub fn forget_session_cookie(secure: bool) -> String {
    set_cookie(&session_cookie_name(secure), "", secure, Some(time::Duration::ZERO))
}

/// `Lax`: the browser sends it when the provider redirects back, and never with a form of another site.
pub fn set_cookie(name: &str, value: &str, secure: bool, max_age: Option<time::Duration>) -> String {
    let mut cookie =
        Cookie::build((name, value)).path("/").http_only(true).secure(secure).same_site(SameSite::Lax).build();
    cookie.set_max_age(max_age);
    cookie.to_string()
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    #[test]
    fn cookies_are_read_as_they_were_set() {
        let set = session_cookie("cxa_t", true);
        assert_eq!(set, "__Host-codex-authd-session=cxa_t; HttpOnly; SameSite=Lax; Secure; Path=/");
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; __Host-codex-authd-session=cxa_t; b"));
        headers.append(COOKIE, HeaderValue::from_static("__Host-codex-authd-session=later"));
        let found = cookies(&headers);
        assert_eq!(cookie_in(&found, &session_cookie_name(true)).as_deref(), Some("cxa_t"));
        assert_eq!(cookie_in(&found, &session_cookie_name(false)), None);
    }
}
