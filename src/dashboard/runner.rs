//! `/runner`: whether the canonical login works, the last probes, and a button for a probe now.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Query};
use poem::{Response, handler};
use time::OffsetDateTime;

use super::context::{PageContext, PageError};
use super::form::Form;
use super::format::When;
use super::layout::{Layout, show};
use crate::records::{Probe, ProbeState, ProbeTrigger};
use crate::service::Areas;
use crate::service::probes::{RunnerState, RunnerView, Underway};

/// Number of probes that the page shows at first.
const PROBES_SHOWN: usize = 25;
/// The records keep at most this many probes.
const MAX_PROBES: usize = 1000;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct RunnerQuery {
    told: String,
    /// `all`: all probes that are kept.
    probes: String,
}

#[derive(Template)]
#[template(path = "runner.html")]
struct RunnerPage {
    layout: Layout,
    has_login: bool,
    enabled: bool,
    proof: Proof,
    probes: Vec<ProbeRow>,
    has_more_probes: bool,
}

/// What is known of the canonical login.
pub struct Proof {
    /// The CSS class.
    pub class: &'static str,
    pub words: String,
    /// When the last probe finished.
    pub found: Option<When>,
    /// Why the login does not work, in lines.
    pub reason: Vec<String>,
    /// A sentence about a probe that is under way or will start soon.
    pub underway: Option<String>,
}

struct ProbeRow {
    started: When,
    version: u64,
    trigger: &'static str,
    class: &'static str,
    state: &'static str,
    took: Option<String>,
    adopted: Option<u64>,
    reason: Vec<String>,
}

#[handler]
pub async fn page(
    context: PageContext,
    Query(RunnerQuery { told: _, probes }): Query<RunnerQuery>,
) -> Result<Response, PageError> {
    let now = context.now();
    let view = context.areas().probes.runner(if probes == "all" { MAX_PROBES } else { PROBES_SHOWN }).await?;
    let page = RunnerPage {
        layout: Layout::new(&context, "Runner"),
        has_login: context.areas().core.canonical().is_some(),
        enabled: view.enabled,
        proof: Proof::of(&view, now),
        has_more_probes: view.has_more_probes,
        probes: view.probes.into_iter().map(|probe| ProbeRow::new(probe, now)).collect(),
    };
    show(StatusCode::OK, &page)
}

#[handler]
pub async fn run(context: PageContext, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    context.areas().probes.ask_for_probe(context.by(), form.is("restored", "yes"))?;
    let sentence = "Codex is being run on the canonical login. Reload this page in a moment to see the result.";
    Ok(context.redirect("/runner", sentence.into()))
}

/// What is known of the canonical login. `None`: probes are switched off, or the probes cannot be read.
pub async fn proof(areas: &Areas, now: OffsetDateTime) -> Option<Proof> {
    let view = areas.probes.runner(0).await.ok()?;
    view.enabled.then(|| Proof::of(&view, now))
}

impl Proof {
    fn of(view: &RunnerView, now: OffsetDateTime) -> Self {
        let (class, words) = match view.state {
            RunnerState::Known(state) => told(Some(state)),
            RunnerState::Never => ("waiting", "Not tried yet"),
            RunnerState::Off => ("waiting", "Not tried: probes are switched off"),
            RunnerState::Unknown => ("waiting", "Unknown: the store is not available just now"),
        };
        let outcome = view.latest.as_ref().and_then(|probe| probe.outcome.as_ref());
        let underway = view.underway.as_ref().map(|Underway { version, since, .. }| {
            format!("Codex is being run on version {version}, since {}.", When::new(*since, now).distance)
        });
        let waiting = || view.is_wanted.then(|| "It will be tried again soon.".to_owned());
        Self {
            class,
            words: words.into(),
            found: outcome.map(|outcome| When::new(outcome.finished_at, now)),
            reason: lines(view.reason().as_deref()),
            underway: underway.or_else(waiting),
        }
    }
}

impl ProbeRow {
    fn new(probe: Probe, now: OffsetDateTime) -> Self {
        let is_under_way = probe.is_under_way(now);
        let Probe { version, trigger, started_at, outcome, .. } = probe;
        let (class, state) = match outcome.as_ref().map(|outcome| outcome.state) {
            None if is_under_way => ("waiting", "Under way"),
            None => ("closed", "Interrupted"),
            state => told(state),
        };
        let took = outcome.as_ref().map(|outcome| (outcome.finished_at - started_at).as_seconds_f64().max(0.0));
        Self {
            started: When::new(started_at, now),
            version,
            trigger: why(trigger),
            class,
            state,
            took: took.map(|seconds| format!("{seconds:.1} s")),
            adopted: outcome.as_ref().and_then(|outcome| outcome.adopted),
            reason: lines(outcome.as_ref().and_then(|outcome| outcome.reason.as_deref())),
        }
    }
}

fn told(state: Option<ProbeState>) -> (&'static str, &'static str) {
    match state {
        Some(ProbeState::Ok) => ("good", "Works"),
        Some(ProbeState::Fail) => ("closed", "Does not work"),
        Some(ProbeState::Unavailable) => ("waiting", "Could not be tried"),
        None => ("waiting", "Not known"),
    }
}

fn why(trigger: ProbeTrigger) -> &'static str {
    match trigger {
        ProbeTrigger::Store => "a host stored it",
        ProbeTrigger::Daily => "once a day",
        ProbeTrigger::Admin => "an admin asked",
        ProbeTrigger::Upload => "requested with the upload",
        ProbeTrigger::Retry => "retry after a failure",
    }
}

fn lines(reason: Option<&str>) -> Vec<String> {
    reason.iter().flat_map(|reason| reason.lines()).map(String::from).collect()
}
