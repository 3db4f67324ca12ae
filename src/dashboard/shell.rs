//! What stands on every page: who is asking, whether hosts are served and everything works, what became of the last action;
//! and the page that tells of a failure.

use askama::Template;
use poem::http::StatusCode;
use poem::http::header::RETRY_AFTER;
use poem::web::{Html, Redirect};
use poem::{IntoResponse, Response};

use super::words::When;
use super::{Dashboard, assets};
use crate::api::ErrorBody;
use crate::api::errors::{self, Failure};
use crate::api::guards::Asking;
use crate::model::audit::Actor;
use crate::model::digest::Digest;
use crate::model::people::Role;
use crate::service::probes::restored::reason;
use crate::service::trust::certificates::CertificateState;
use crate::service::{ServiceError, core::health};

pub struct Shell {
    pub title: &'static str,
    /// Name of the admin's certificate, or of the admin otherwise.
    pub admin: String,
    pub fingerprint: Option<String>,
    /// When the certificate of this connection ends, where that is soon.
    pub certificate_ends: Option<When>,
    pub api_disabled: bool,
    pub degraded: Option<Degraded>,
    pub standstill: Option<Standstill>,
    /// Why the canonical login, which came from a backup, is not tried by itself.
    pub restored: Option<String>,
    /// What became of the last action.
    pub told: Option<String>,
    /// For the forms of the page.
    pub token: String,
    /// Whether what changes the fleet is offered.
    pub may_change: bool,
    pub may_look: bool,
    /// By a session, which can be ended.
    pub signed_in: bool,
    pub style: &'static str,
    pub script: &'static str,
    pub icon: &'static str,
}

/// What everybody who looks is to know before anything else.
pub struct Degraded {
    pub since: When,
    pub why: String,
    /// Of when it is what is served, where that is another time.
    pub known_at: Option<When>,
    pub goes_on: &'static str,
    pub refused: &'static str,
}

impl Degraded {
    fn of(dashboard: &Dashboard) -> Option<Self> {
        let health::Degraded { since, why, known_at } = dashboard.areas.core.health.degraded()?;
        let when = |at| When::new(at, dashboard.now());
        Some(Self {
            known_at: known_at.filter(|at| *at != since).map(when),
            since: when(since),
            why: full_stop(&why),
            goes_on: health::GOES_ON,
            refused: health::REFUSED,
        })
    }
}

/// Why the store takes no changes.
pub struct Standstill {
    pub since: String,
    pub reason: String,
}

/// `?told=ID`: which sentence to say first.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Told {
    pub told: String,
}

impl Shell {
    pub fn new(dashboard: &Dashboard, asking: &Asking, title: &'static str, told: &str) -> Self {
        let (name, fingerprint) = match &asking.by.actor {
            Actor::Certificate { name, fingerprint } => (name.clone(), Some(fingerprint.to_string())),
            Actor::User { email, .. } => (email.to_string(), None),
            other => (other.to_string(), None),
        };
        Self {
            title,
            admin: name,
            fingerprint,
            certificate_ends: asking.certificate.and_then(|it| ending(dashboard, &it)),
            api_disabled: dashboard.areas.core.settings().api_disabled,
            degraded: Degraded::of(dashboard),
            standstill: dashboard
                .areas
                .core
                .health
                .standstill()
                .map(|still| Standstill { since: errors::rfc3339(still.since), reason: still.reason.clone() }),
            restored: dashboard
                .areas
                .probes
                .restored_login()
                .filter(|_| asking.role >= Role::Viewer)
                .as_ref()
                .map(reason),
            told: dashboard.told.take(asking, told, dashboard.now()),
            token: dashboard.tokens.token(asking),
            may_change: asking.role == Role::Admin,
            may_look: asking.role >= Role::Viewer,
            signed_in: asking.signed_in.is_some(),
            style: &assets::STYLE.name,
            script: &assets::SCRIPT.name,
            icon: &assets::ICON.name,
        }
    }
}

fn ending(dashboard: &Dashboard, fingerprint: &Digest) -> Option<When> {
    let certificate = dashboard.areas.trust.admitted_certificate(fingerprint)?;
    let is_soon = dashboard.areas.trust.state_of(&certificate) == CertificateState::Expiring;
    is_soon.then(|| When::new(certificate.expires_at, dashboard.now()))
}

/// A page, or the failure to write it.
pub fn show(status: StatusCode, page: &impl Template) -> Result<Response, Failure> {
    let text = page.render().map_err(ServiceError::internal)?;
    Ok(Html(text).with_status(status).into_response())
}

/// Leads to `path`, which says `sentence` first.
pub fn tell(dashboard: &Dashboard, asking: &Asking, path: &str, sentence: String) -> Response {
    let told = dashboard.told.put(asking, sentence, &*dashboard.outside);
    Redirect::see_other(format!("{path}?told={told}")).into_response()
}

/// What happened, and what to do next.
pub fn explain(body: &ErrorBody) -> Explained {
    let reasons = body.errors.iter().flatten().map(|(field, reasons)| format!("{field}: {}", reasons.join("; ")));
    let next = match body.code.as_str() {
        "unavailable" => {
            "Wait a moment and send it again. If it stays so, look at the daemon's log, and at its disk or its database."
        }
        "stands_still" => "Whoever began the migration or restore can end it; until then nothing can be changed.",
        "internal" => "Nothing you entered is wrong. The log of the daemon says what failed.",
        "form_stale" => {
            "Open the page again and repeat what you did there. This happens after the daemon was restarted."
        }
        "not_found" | "route_not_found" => "It may have been removed meanwhile. Go back to the hosts and look again.",
        "other_account" => {
            "If the fleet is to have that account from now on, send it again and tick the box that changes the account."
        }
        "too_large" => "An auth.json is a few kilobytes long: was it the right file?",
        "invalid_json" => "Take the file as Codex wrote it, ~/.codex/auth.json, and send all of it.",
        _ => "",
    };
    Explained { happened: full_stop(&body.message), reasons: reasons.collect(), next }
}

pub struct Explained {
    pub happened: String,
    pub reasons: Vec<String>,
    pub next: &'static str,
}

pub fn full_stop(sentence: &str) -> String {
    let mut letters = sentence.trim_end_matches('.').chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

#[derive(Template)]
#[template(path = "failure.html")]
struct FailurePage {
    shell: Shell,
    explained: Explained,
}

/// Whatever went wrong below a page, as a page.
pub async fn failure(dashboard: &Dashboard, asking: &Asking, error: poem::Error) -> Response {
    let answer = errors::from_poem(error);
    let status = answer.status();
    let retry_after = answer.headers().get(RETRY_AFTER).cloned();
    let body = answer.into_body().into_vec().await.unwrap_or_default();
    let Ok(body) = serde_json::from_slice::<ErrorBody>(&body) else { return status.into() };
    let shell = Shell::new(dashboard, asking, "That did not work", "");
    match show(status, &FailurePage { shell, explained: explain(&body) }) {
        Ok(mut page) => {
            page.headers_mut().extend(retry_after.map(|seconds| (RETRY_AFTER, seconds)));
            page
        }
        Err(failure) => failure.into_response(),
    }
}
