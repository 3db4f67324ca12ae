//! The layout of every page: the user, the state of the service, the result of the last action. Also the failure page.

use askama::Template;
use poem::http::StatusCode;
use poem::http::header::RETRY_AFTER;
use poem::web::Html;
use poem::{IntoResponse, Response};

use super::assets;
use super::context::{PageContext, PageError};
use super::format::When;
use crate::api::ErrorBody;
use crate::api::errors::{self, Failure};
use crate::model::audit::Actor;
use crate::model::digest::Digest;
use crate::model::people::Role;
use crate::service::probes::restored::reason;
use crate::service::trust::certificates::CertificateState;
use crate::service::{ServiceError, core::health};

pub struct Layout {
    pub title: &'static str,
    /// The name of the certificate, the user's e-mail address, or another actor's name.
    pub admin: String,
    pub fingerprint: Option<String>,
    /// When the certificate of this connection expires. Set only if that is soon.
    pub certificate_ends: Option<When>,
    pub api_disabled: bool,
    pub degraded: Option<DegradedNotice>,
    pub standstill: Option<StandstillNotice>,
    /// Set if the canonical login came from a backup: why it is not probed automatically.
    pub restored: Option<String>,
    /// The result of the last action.
    pub told: Option<String>,
    /// The token for the page's forms.
    pub token: String,
    /// Whether actions that change the fleet are shown.
    pub may_change: bool,
    pub may_look: bool,
    /// Whether the caller has a session, which can be ended.
    pub signed_in: bool,
    pub style: &'static str,
    pub script: &'static str,
    pub icon: &'static str,
}

/// The banner of every page while the service is degraded.
pub struct DegradedNotice {
    pub since: When,
    pub why: String,
    /// The time of the served data, if it differs from `since`.
    pub known_at: Option<When>,
    pub goes_on: &'static str,
    pub refused: &'static str,
}

impl DegradedNotice {
    fn of(context: &PageContext) -> Option<Self> {
        let health::Degraded { since, why, known_at } = context.areas().core.health.degraded()?;
        let when = |at| When::new(at, context.now());
        Some(Self {
            known_at: known_at.filter(|at| *at != since).map(when),
            since: when(since),
            why: full_stop(&why),
            goes_on: health::GOES_ON,
            refused: health::REFUSED,
        })
    }
}

/// The banner while the store refuses changes.
pub struct StandstillNotice {
    pub since: String,
    pub reason: String,
}

impl Layout {
    pub fn new(context: &PageContext, title: &'static str) -> Self {
        let (areas, principal) = (context.areas(), &context.principal);
        let (name, fingerprint) = match &principal.by.actor {
            Actor::Certificate { name, fingerprint } => (name.clone(), Some(fingerprint.to_string())),
            Actor::User { email, .. } => (email.to_string(), None),
            other => (other.to_string(), None),
        };
        let may_look = principal.role >= Role::Viewer;
        let standstill = areas.core.health.standstill();
        Self {
            title,
            admin: name,
            fingerprint,
            certificate_ends: principal.certificate.and_then(|it| ending(context, &it)),
            api_disabled: areas.core.settings().api_disabled,
            degraded: DegradedNotice::of(context),
            standstill: standstill
                .map(|still| StandstillNotice { since: errors::rfc3339(still.since), reason: still.reason.clone() }),
            restored: areas.probes.restored_login().filter(|_| may_look).as_ref().map(reason),
            told: context.flash.clone(),
            token: context.form_token(),
            may_change: principal.role == Role::Admin,
            may_look,
            signed_in: principal.signed_in.is_some(),
            style: &assets::STYLE.name,
            script: &assets::SCRIPT.name,
            icon: &assets::ICON.name,
        }
    }
}

fn ending(context: &PageContext, fingerprint: &Digest) -> Option<When> {
    let trust = &context.areas().trust;
    let certificate = trust.admitted_certificate(fingerprint)?;
    let is_soon = trust.state_of(&certificate) == CertificateState::Expiring;
    is_soon.then(|| When::new(certificate.expires_at, context.now()))
}

/// Renders a page.
pub fn show(status: StatusCode, page: &impl Template) -> Result<Response, PageError> {
    let text = page.render().map_err(ServiceError::internal)?;
    Ok(Html(text).with_status(status).into_response())
}

/// Explains a failure: what happened, and what to do next.
pub fn explain(body: &ErrorBody) -> Explained {
    let reasons = body.errors.iter().flatten().map(|(field, reasons)| format!("{field}: {}", reasons.join("; ")));
    let next = match body.code.as_str() {
        "unavailable" => {
            "Wait a moment and send it again. If it fails again, check the daemon's log, and its disk or database."
        }
        "stands_still" => "Nothing can be changed until the migration or restore ends. Ask the admin who began it.",
        "internal" => "The cause is not what you entered. The daemon's log says what failed.",
        "form_stale" => {
            "Open the page again and repeat what you did there. This happens after the daemon was restarted."
        }
        "not_found" | "route_not_found" => "It may have been removed meanwhile. Go back to the hosts and look again.",
        "other_account" => {
            "To give the fleet that account from now on, send it again and tick the box that changes the account."
        }
        "too_large" => "An auth.json is a few kilobytes long: was it the right file?",
        "invalid_json" => "Send the complete file as Codex wrote it: ~/.codex/auth.json.",
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
    layout: Layout,
    explained: Explained,
}

/// Renders a failure as a page.
pub fn failure_page(context: &PageContext, failure: &Failure) -> Response {
    let (status, body) = failure.body();
    let layout = Layout::new(context, "That did not work");
    match show(status, &FailurePage { layout, explained: explain(body) }) {
        Ok(mut page) => {
            page.headers_mut().extend(failure.retry_after().map(|seconds| (RETRY_AFTER, seconds.into())));
            page
        }
        Err(PageError(failure)) => failure.into_response(),
    }
}
