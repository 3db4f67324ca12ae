//! Checks the certificate that hosts are shown, and the address that they were given.

use std::net::SocketAddr;
use std::time::Duration as Wait;

use reqwest::StatusCode;
use time::Duration;

use super::ports::reachable;
use crate::config::Config;
use crate::daemon::listen_file::Bound;
use crate::daemon::owner::as_caller;
use crate::model::check::Check;
use crate::model::checkup;
use crate::pki::{ServerIdentity, ServerName, Shown};
use crate::platform::Clock;

const CERTIFICATE: &str = "certificate";
const PUBLIC: &str = "public_base_url";
const CONNECT: Wait = Wait::from_secs(5);
const ANSWER: Wait = Wait::from_secs(10);
/// For the operator's certificate.
const EXPIRY_WARNING: Duration = Duration::days(21);
/// Our certificate is renewed a month before it expires; if less time is left than this, the renewal has failed.
const RENEWAL_OVERDUE: Duration = Duration::days(25);

/// Checks how long the certificate of the hosts' listener is valid. If no daemon runs, it checks the configured file.
pub async fn certificate(config: &Config, bound: Option<&Bound>, clock: &dyn Clock) -> Vec<Check> {
    let now = clock.now();
    let mut checks = Vec::new();
    let mut own_ends = None;
    let renew = "install a new one at tls.certificate and tls.private_key, then systemctl reload codex-authd";
    if config.tls.is_own() {
        // A file that the daemon's user cannot read is reported elsewhere.
        match as_caller(|| ServerIdentity::load(&config.tls.certificate, &config.tls.private_key)) {
            Ok(own) => {
                own_ends = Some(own.not_after());
                checks.push(checkup::ends("tls.certificate", "the file", own.not_after(), now, EXPIRY_WARNING, renew));
                checks.extend(covers_public(&own, &config.public_base_url));
            }
            Err(error) => {
                let remedy = "install a certificate chain and its key (PEM) there, readable by the daemon's user";
                checks.push(Check::missing("tls.certificate", error.to_string(), remedy));
            }
        }
    }
    // Connections without the proxy's header are refused, so this check cannot be made; `public` goes through the
    // proxy.
    let is_direct = config.listen.hosts_tls && !config.listen.proxy_protocol;
    let Some(bound) = bound.filter(|_| is_direct) else { return checks };
    match shown_here(config, reachable(bound.hosts)).await {
        Ok(shown) if Some(shown.not_after) == own_ends => {
            checks.push(checkup::ends(
                CERTIFICATE,
                "the certificate that hosts get",
                shown.not_after,
                now,
                EXPIRY_WARNING,
                renew,
            ));
        }
        Ok(shown) if shown.not_before > now => {
            let found = format!(
                "the certificate that hosts get is valid from {} on: the clock was ahead when it was issued",
                checkup::shown(shown.not_before)
            );
            checks.push(Check::missing(CERTIFICATE, found, "systemctl reload codex-authd"));
        }
        Ok(shown) => {
            let remedy = "systemctl reload codex-authd, and search the log for certificate_renewal";
            checks.push(checkup::ends(
                CERTIFICATE,
                "the certificate that hosts get",
                shown.not_after,
                now,
                RENEWAL_OVERDUE,
                remedy,
            ));
        }
        Err(cause) => {
            let found = format!("{} shows no certificate: {cause}", bound.hosts);
            checks.push(Check::missing(CERTIFICATE, found, "systemctl restart codex-authd, and check its log"));
        }
    }
    checks
}

/// For a name that the operator's certificate does not cover, hosts are shown ours.
fn covers_public(own: &ServerIdentity, base: &str) -> Option<Check> {
    let url = reqwest::Url::parse(base).ok()?;
    let host = url.host_str()?;
    let name = ServerName::parse(host)?;
    (!own.covers(&name)).then(|| {
        Check::weak(
            "tls.certificate",
            format!(
                "it is not for {host} (public_base_url): hosts that use this name get the daemon's own certificate"
            ),
            "use a certificate with this name, or another public_base_url",
        )
    })
}

/// The certificate that the hosts' listener shows for the public name, or for its address if there is none.
async fn shown_here(config: &Config, address: SocketAddr) -> Result<Shown, String> {
    let url = reqwest::Url::parse(&config.public_base_url).ok();
    let name = url.as_ref().and_then(reqwest::Url::domain);
    let host = name.map_or_else(|| address.to_string(), |name| format!("{name}:{}", address.port()));
    let answer = shown_at_address(&format!("https://{host}/healthz"), name.map(|name| (name, address))).await;
    answer.map(|(shown, _)| shown)
}

/// Checks whether the address that is baked into wrappers is reachable, as seen from this machine.
pub async fn public(config: &Config, clock: &dyn Clock) -> Option<Check> {
    let base = config.public_base_url.as_str();
    if base.is_empty() {
        return Some(Check::weak(
            PUBLIC,
            "it is not set: hosts get this machine's name and port",
            "set public_base_url to the address that hosts can reach, then systemctl restart codex-authd",
        ));
    }
    let url = reqwest::Url::parse(base).ok()?;
    let host = url.host_str()?.to_owned();
    let port = url.port_or_known_default()?;
    let name = ServerName::parse(&host);
    let looked_up = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host.trim_matches(['[', ']']), port))).await;
    if !matches!(looked_up, Ok(Ok(_))) {
        let remedy = format!("give {host} an address in DNS, or correct public_base_url");
        // Only a weakness: hosts may resolve names in another way.
        return Some(Check::weak(PUBLIC, format!("{host} cannot be resolved here"), remedy));
    }
    if url.scheme() != "https" {
        return Some(Check::weak(
            PUBLIC,
            format!("{base} is not encrypted: logins are sent unencrypted"),
            "set an https:// address",
        ));
    }
    Some(match shown_at(&format!("{base}/healthz")).await {
        Ok((shown, _)) if !name.as_ref().is_some_and(|name| shown.covers(name)) => Check::missing(
            PUBLIC,
            format!("the server at {host}:{port} has a certificate that is not for {host}"),
            "systemctl restart codex-authd (its own certificate then gets the name), or use a certificate with the name",
        ),
        Ok((shown, _)) if shown.not_after <= clock.now() => Check::missing(
            PUBLIC,
            format!("the server at {host}:{port} has an expired certificate"),
            "renew that certificate",
        ),
        Ok((_, StatusCode::TOO_MANY_REQUESTS)) => Check::weak(
            PUBLIC,
            format!("{base} answers, but refuses this machine's address because of its rate limit"),
            "run codex-authd doctor again in a minute",
        ),
        Ok((_, status)) if status.is_client_error() => Check::missing(
            PUBLIC,
            format!("{base}/healthz answers {status}"),
            "check the line `proxies`, and the reverse proxy in front, if there is one",
        ),
        Ok((_, status)) if !status.is_success() => Check::missing(
            PUBLIC,
            format!("{base}/healthz answers {status}"),
            "if there is a reverse proxy in front, check whether it reaches the daemon; then check the daemon's log",
        ),
        Ok(_) => Check::good(PUBLIC, format!("{base} answers, with a certificate for {host}")),
        Err(cause) => Check::weak(
            PUBLIC,
            format!("{base} does not answer from here: {cause}"),
            "try it from a host: curl -k ADDRESS/healthz; check packet filters and proxies",
        ),
    })
}

/// Returns the certificate that is shown there, unverified, and the status of the answer.
async fn shown_at(url: &str) -> Result<(Shown, StatusCode), String> {
    shown_at_address(url, None).await
}

/// The same for a name at this address, without DNS.
async fn shown_at_address(url: &str, known: Option<(&str, SocketAddr)>) -> Result<(Shown, StatusCode), String> {
    let mut builder = reqwest::Client::builder();
    if let Some((name, address)) = known {
        builder = builder.resolve(name, address);
    }
    let client = builder
        .danger_accept_invalid_certs(true)
        .tls_info(true)
        .no_proxy()
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let answer = client.get(url).send().await.map_err(|error| innermost(&error))?;
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>();
    let certificate = info.and_then(|info| info.peer_certificate()).ok_or("no certificate was shown")?;
    let shown = Shown::read(certificate).map_err(|error| error.to_string())?;
    Ok((shown, answer.status()))
}

fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
