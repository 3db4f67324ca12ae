//! Checks whether upstream is reachable, each step with a timeout: the name, the connection, TLS, an answer. Compares
//! the clock as well.

use std::error::Error as _;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::config::Config;
use crate::model::check::{Check, Verdict};
use crate::model::checkup;
use crate::platform::Clock;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks each external address that the daemon and its probes use. The clock is compared with the first answer that
/// has a date.
pub async fn upstream(config: &Config, clock: &dyn Clock) -> Vec<Check> {
    let issuer = config
        .oidc
        .is_configured()
        .then(|| format!("{}/.well-known/openid-configuration", config.oidc.issuer.trim_end_matches('/')));
    let token_url = config.runner.enabled.then_some(config.upstream.token_url.as_str());
    let (token, releases, provider) = tokio::join!(
        ask("token_url", token_url, Verdict::Weak, "probes cannot refresh the login"),
        ask(
            "releases_url",
            Some(config.upstream.releases_url.as_str()),
            Verdict::Weak,
            "the newest Codex is unknown; an empty URL switches this off"
        ),
        ask("identity provider", issuer.as_deref(), Verdict::Missing, "users cannot sign in through it"),
    );
    let asked = [token, releases, provider];
    let date = asked.iter().flatten().find_map(|(_, date)| *date);
    let mut checks: Vec<Check> = asked.into_iter().flatten().map(|(check, _)| check).collect();
    checks.extend(date.map(|date| checkup::clock_and_other("upstream clock", clock.now(), date, "upstream")));
    checks
}

async fn ask(
    name: &'static str,
    url: Option<&str>,
    verdict: Verdict,
    without: &str,
) -> Option<(Check, Option<OffsetDateTime>)> {
    let url = url.filter(|url| !url.is_empty())?;
    let place = place(url);
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("codex-authd/", env!("CARGO_PKG_VERSION")))
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            return Some((Check::weak(name, format!("no client can be made: {error}"), "check HTTPS_PROXY"), None));
        }
    };
    Some(match client.get(url).send().await {
        // Any answer proves that it is reachable.
        Ok(answer) => {
            let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
            let date = date.and_then(|date| OffsetDateTime::parse(&date.replace("GMT", "+0000"), &Rfc2822).ok());
            (Check::good(name, format!("{place} answers")), date)
        }
        Err(error) => {
            let failure = ReachFailure::of(&error);
            let found = format!("{place}: {}; {without}", failure.found);
            (Check::not(name, verdict, found, failure.remedy), None)
        }
    })
}

/// Only host and port: a path or a user name may be confidential.
fn place(url: &str) -> String {
    let parsed = reqwest::Url::parse(url).ok();
    let named = parsed.as_ref().and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    named.unwrap_or_else(|| "an invalid URL".into())
}

struct ReachFailure {
    found: String,
    remedy: &'static str,
}

impl ReachFailure {
    /// Describes the innermost cause, without the URL.
    fn of(error: &reqwest::Error) -> Self {
        let (mut causes, mut is_tls) = (Vec::new(), false);
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            is_tls |= is_of_tls(cause);
            next = cause.source();
        }
        let all = causes.join(": ").to_lowercase();
        let last = causes.last().cloned().unwrap_or_else(|| "no answer".into());
        let (what, remedy) = if all.contains("dns") || all.contains("lookup address") {
            ("its name cannot be resolved", "getent hosts NAME; check /etc/resolv.conf")
        } else if is_tls {
            ("TLS fails", "apt-get install ca-certificates; if a proxy opens TLS, add its authority")
        } else if error.is_timeout() {
            ("no answer in time", "permit this connection; if there is a proxy, set HTTPS_PROXY")
        } else if error.is_connect() {
            ("no connection", "permit this connection; if there is a proxy, set HTTPS_PROXY")
        } else {
            ("no valid answer", "check proxies and firewalls between this machine and it")
        };
        Self { found: format!("{what} ({last})"), remedy }
    }
}

/// `source()` of an I/O error skips the inner error, which may be an I/O error again.
fn is_of_tls(cause: &(dyn std::error::Error + 'static)) -> bool {
    let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    cause.is::<rustls::Error>() || inner.is_some_and(|inner| is_of_tls(inner))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::platform::System;

    async fn asked(url: &str) -> (Check, Option<OffsetDateTime>) {
        crate::pki::tls::install_default_provider();
        ask("token_url", Some(url), Verdict::Weak, "nothing works").await.unwrap()
    }

    /// Sends `answer` to the first client.
    fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        });
        url
    }

    #[tokio::test]
    async fn an_upstream_that_answers_is_reached_and_its_clock_is_read() {
        let place = server(
            "HTTP/1.1 405 Method Not Allowed\r\ndate: Thu, 26 Nov 2026 10:11:12 GMT\r\ncontent-length: 0\r\n\r\n",
        );
        let (check, date) = asked(&format!("http://{place}/oauth/token?secret=canary")).await;
        assert_eq!(check.verdict, Verdict::Good, "{check:?}");
        assert!(check.found.contains(&place) && !check.found.contains("canary"), "{}", check.found);
        assert_eq!(date, Some(time::macros::datetime!(2026-11-26 10:11:12 UTC)));
    }

    #[tokio::test]
    async fn what_fails_is_said_by_its_part() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let no_tls = server("HTTP/1.1 400 Bad Request\r\n\r\n");
        for (url, part) in [
            (format!("http://{closed}/"), "no connection"),
            (format!("https://{no_tls}/"), "TLS fails"),
            ("https://name.invalid/".to_owned(), "cannot be resolved"),
        ] {
            let (check, _) = asked(&url).await;
            assert_eq!(check.verdict, Verdict::Weak, "{check:?}");
            assert!(check.found.contains(part) && check.remedy.is_some(), "{url}: {check:?}");
        }
    }

    #[tokio::test]
    async fn an_upstream_that_hangs_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (check, _) = asked(&format!("http://{}/", listener.local_addr().unwrap())).await;
        assert!(check.found.contains("no answer in time"), "{check:?}");
    }

    #[tokio::test]
    async fn nothing_is_asked_that_is_not_configured() {
        let mut config = Config::default();
        config.runner.enabled = false;
        config.upstream.releases_url.clear();
        assert!(upstream(&config, &System).await.is_empty());
    }
}
