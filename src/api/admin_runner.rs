//! `/admin/runner`: shows whether the canonical login works, and requests probes.

use poem_openapi::param::Query;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::checks::Checks;
use super::closed_set::closed_set;
use super::errors::{Answer, ok};
use super::flags::Flag;
use super::guards::{Admin, Viewer};
use crate::records::{self, Probe, RestoredLogin};
use crate::service::probes::restored::reason;
use crate::service::probes::{RunnerState, RunnerView, Underway};
use crate::service::{Core, Probes};

const MAX_PROBES: usize = 1000;

pub struct AdminRunnerApi;

#[OpenApi(tag = "Tag::AdminRunner", prefix_path = "/admin/runner")]
impl AdminRunnerApi {
    /// Whether the canonical login works, as far as is known
    ///
    /// And the last probes, the newest first.
    #[oai(path = "/", method = "get", operation_id = "getRunner")]
    async fn show(
        &self,
        core: Area<'_, Core>,
        probes: Area<'_, Probes>,
        _viewer: Viewer,
        /// How many of the last probes are listed, 0 to 1000; no more are kept.
        #[oai(default = "default_limit", validator(maximum(value = "1000")))]
        limit: Query<u64>,
    ) -> Answer<RunnerBody> {
        let limit = usize::try_from(limit.0).unwrap_or(MAX_PROBES).min(MAX_PROBES);
        ok(RunnerBody::of(&core, probes.runner(limit).await?))
    }

    /// Have the canonical login proved now
    ///
    /// Answered at once; the probe is made in the background. One that is under way for the same login is not made again,
    /// its result is shared. `getRunner` tells when `answered` has reached `asked` of this answer. A login that came back
    /// from a backup is refused (409), because its refresh token may be spent.
    #[oai(path = "/run", method = "post", operation_id = "runRunner")]
    async fn run(
        &self,
        probes: Area<'_, Probes>,
        admin: Admin,
        /// Also if the login came back from a backup: nothing was refreshed since.
        restored: Query<Option<Flag>>,
    ) -> Answer<ProbeAsked> {
        ok(ProbeAsked { asked: probes.ask_for_probe(&admin.0, restored.0.is_some_and(Flag::is_set))? })
    }

    /// What probes need, and whether it is there
    ///
    /// Looked for on the node that is asked, with a sandbox that is built for it and in which nothing is run.
    #[oai(path = "/doctor", method = "get", operation_id = "examineRunner")]
    async fn examine(&self, probes: Area<'_, Probes>, _viewer: Viewer) -> Answer<Checks> {
        ok(Checks::from(probes.examine_runner().await?))
    }
}

fn default_limit() -> u64 {
    20
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ProbeAsked {
    /// The number of this request.
    pub asked: u64,
}

closed_set! {
    /// `unavailable`: it could not be tried. `never`: it was not tried yet.
    pub enum LoginState { Ok = "ok", Fail = "fail", Unavailable = "unavailable", Never = "never" }
}

impl LoginState {
    fn of(state: RunnerState) -> Option<Self> {
        match state {
            RunnerState::Known(records::ProbeState::Ok) => Some(Self::Ok),
            RunnerState::Known(records::ProbeState::Fail) => Some(Self::Fail),
            RunnerState::Known(records::ProbeState::Unavailable) => Some(Self::Unavailable),
            RunnerState::Never => Some(Self::Never),
            RunnerState::Off | RunnerState::Unknown => None,
        }
    }
}

closed_set! {
    /// `unavailable`: the login could not be tried.
    pub enum ProbeState { Ok = "ok", Fail = "fail", Unavailable = "unavailable" } of records::ProbeState
}

closed_set! {
    /// Why a probe was made. `store`: a host stored a new login. `daily`: a day began. `admin`, `upload`: an admin asked
    /// for it. `retry`: the probe before failed.
    pub enum ProbeTrigger {
        Store = "store",
        Daily = "daily",
        Admin = "admin",
        Upload = "upload",
        Retry = "retry",
    } of records::ProbeTrigger
}

/// What is known of the canonical login.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RunnerBody {
    /// Whether probes are made (`runner.enabled`).
    pub enabled: bool,
    /// null: probes are switched off, or the records are away.
    pub state: Option<LoginState>,
    /// Why it is not `ok`: what Codex said last, without secrets, or what is missing and what mends it.
    pub reason: Option<String>,
    /// The login came back from a backup, and is not tried by itself; left out: it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_login: Option<RestoredLoginBody>,
    /// The probe under way on the node that is asked; left out: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<RunningProbe>,
    /// How many have asked the node for a probe since its start.
    pub asked: u64,
    /// Up to whom of them they are answered.
    pub answered: u64,
    /// When a probe was last begun because a day had begun.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_daily_check: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_failure: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_ok: Option<OffsetDateTime>,
    pub counts: RunnerCounts,
    /// The last probe that has ended.
    pub latest_validation: Option<ProbeBody>,
    /// The last probe in which Codex refreshed the login.
    pub latest_runner_store: Option<ProbeBody>,
    /// The newest first.
    pub probes: Vec<ProbeBody>,
    /// Whether older probes are kept than `probes` lists: a higher `limit` lists them.
    pub has_more_probes: bool,
    /// How long a probe may take.
    pub timeout_seconds: u64,
    /// Names the node that is asked.
    pub boot_id: String,
    /// The address that hosts are given.
    pub base_url: String,
    /// Always empty: the runner is part of the daemon.
    pub runner_url: String,
}

/// A canonical login that came back from a backup: its refresh token may have been spent since.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RestoredLoginBody {
    pub version: u64,
    /// Of when the backup is.
    #[serde(with = "time::serde::rfc3339")]
    pub backup_of: OffsetDateTime,
    /// What that means, and what to do.
    pub reason: String,
}

impl From<RestoredLogin> for RestoredLoginBody {
    fn from(restored: RestoredLogin) -> Self {
        Self { reason: reason(&restored), version: restored.version, backup_of: restored.backup_of }
    }
}

/// In the last 24 hours.
#[derive(Debug, Default, Object, Serialize, Deserialize)]
pub struct RunnerCounts {
    /// Probes that found the login to work, or not to.
    pub validations_24h: u64,
    /// Probes in which Codex refreshed the login.
    pub runner_store_24h: u64,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RunningProbe {
    /// The version of the login.
    pub version: u64,
    pub trigger: ProbeTrigger,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// A probe: the real Codex, run on a version of the login.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ProbeBody {
    pub id: String,
    /// The version of the login.
    pub version: u64,
    pub trigger: ProbeTrigger,
    /// Left out: it has not ended, or its daemon has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ProbeState>,
    /// Why it is not `ok`.
    pub reason: Option<String>,
    /// The version that was made of the login that Codex refreshed.
    pub adopted: Option<u64>,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// The node that made it.
    pub node: String,
}

impl From<Probe> for ProbeBody {
    fn from(Probe { id, node, version, trigger, started_at, outcome, .. }: Probe) -> Self {
        Self {
            id: id.to_string(),
            version,
            trigger: trigger.into(),
            state: outcome.as_ref().map(|outcome| outcome.state.into()),
            adopted: outcome.as_ref().and_then(|outcome| outcome.adopted),
            started_at,
            finished_at: outcome.as_ref().map(|outcome| outcome.finished_at),
            reason: outcome.and_then(|outcome| outcome.reason),
            node: node.to_string(),
        }
    }
}

impl RunnerBody {
    fn of(core: &Core, view: RunnerView) -> Self {
        let reason = view.reason();
        let running = view.underway.map(|Underway { version, trigger, since }| RunningProbe {
            version,
            trigger: trigger.into(),
            since,
        });
        let summary = view.summary;
        let summary = summary.as_ref();
        Self {
            enabled: view.enabled,
            state: LoginState::of(view.state),
            reason,
            restored_login: view.restored.map(RestoredLoginBody::from),
            running,
            asked: view.asked,
            answered: view.answered,
            last_daily_check: summary.and_then(|summary| summary.last_daily),
            last_failure: summary.and_then(|summary| summary.last_failure),
            last_ok: summary.and_then(|summary| summary.last_ok),
            counts: RunnerCounts {
                validations_24h: summary.map_or(0, |summary| summary.validations),
                runner_store_24h: summary.map_or(0, |summary| summary.adoptions),
            },
            latest_validation: summary.and_then(|summary| summary.latest_finished.clone()).map(ProbeBody::from),
            latest_runner_store: summary.and_then(|summary| summary.latest_adoption.clone()).map(ProbeBody::from),
            probes: view.probes.into_iter().map(ProbeBody::from).collect(),
            has_more_probes: view.has_more_probes,
            timeout_seconds: view.time.as_secs(),
            boot_id: core.node().to_string(),
            base_url: core.policy().base_url.clone(),
            runner_url: String::new(),
        }
    }
}
