//! The cookies of a browser: the session of the dashboard, and a sign-in under way.

use poem::Request;
use poem::http::header::{COOKIE, HeaderMap};

use crate::service::Areas;

pub fn cookies(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).map(|pair| pair.trim().to_owned()).collect()
}

pub fn cookie_in(cookies: &[String], name: &str) -> Option<String> {
    let values = cookies.iter().filter_map(|pair| pair.split_once('='));
    let mut found = values.filter(|(known, _)| *known == name).map(|(_, value)| value.to_owned());
    found.next().filter(|value| !value.is_empty())
}

/// `__Host-`: set by this very host, over TLS, for all of it. Only where there is no TLS is it left out.
fn host_prefix(secure: bool) -> &'static str {
    if secure { "__Host-" } else { "" }
}

pub fn flow_cookie(tag: &str, secure: bool) -> String {
    format!("{}codex-authd-oidc-{tag}", host_prefix(secure))
}

fn session_cookie_name(secure: bool) -> String {
    format!("{}codex-authd-session", host_prefix(secure))
}

/// The session's token of a browser; good for pages only.
pub fn token_of_page(areas: &Areas, request: &Request) -> Option<String> {
    let cookies = cookies(request.headers());
    let plain = || cookie_in(&cookies, &session_cookie_name(false)).filter(|_| !areas.people.comes_back_over_tls());
    cookie_in(&cookies, &session_cookie_name(true)).or_else(plain)
}

/// It is a session of the browser as well: the daemon says when it is over.
pub fn session_cookie(token: &str, secure: bool) -> String {
    set_cookie(&session_cookie_name(secure), token, secure, None)
}

pub fn forget_session_cookie(secure: bool) -> String {
    set_cookie(&session_cookie_name(secure), "", secure, Some(time::Duration::ZERO))
}

/// `Lax`: it is sent when the provider leads the browser back, and never with another site's form.
pub fn set_cookie(name: &str, value: &str, secure: bool, max_age: Option<time::Duration>) -> String {
    let secure = if secure { "; Secure" } else { "" };
    let max_age = max_age.map(|age| format!("; Max-Age={}", age.whole_seconds())).unwrap_or_default();
    format!("{name}={value}; Path=/; HttpOnly{secure}; SameSite=Lax{max_age}")
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    #[test]
    fn cookies_are_read_as_they_were_set() {
        let set = session_cookie("cxa_t", true);
        assert_eq!(set, "__Host-codex-authd-session=cxa_t; Path=/; HttpOnly; Secure; SameSite=Lax");
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; __Host-codex-authd-session=cxa_t; b"));
        headers.append(COOKIE, HeaderValue::from_static("__Host-codex-authd-session=later"));
        let found = cookies(&headers);
        assert_eq!(cookie_in(&found, &session_cookie_name(true)).as_deref(), Some("cxa_t"));
        assert_eq!(cookie_in(&found, &session_cookie_name(false)), None);
    }
}
