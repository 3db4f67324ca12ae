//! Probes: runs of the real Codex on a version of the canonical login, and their outcome.
//!
//! Of all daemons that share the records, one probes at a time. It holds a lease from its claim until it writes the
//! outcome. The lease also expires, since the daemon may have died. A probe without an outcome whose lease has expired
//! was cut short.
//!
//! The rules here hold for every store. They read no clock and do not know how probes are stored.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::Result;
use super::rules::is_over;
use crate::model::audit::AuditNote;

#[async_trait]
pub trait ProbeRecords: Send + Sync {
    /// Begins a probe unless one is running on any node, decided in the transaction. The same id again: `Begun`. A
    /// daily probe is `NotDue` if one began on that UTC day on any node, running or not. The newest thousand probes are
    /// kept; a few of them are replaced by older ones that the summary needs. Nodes do not cache probes.
    async fn probe_claim(&self, claim: &ProbeClaim, audit: Option<&AuditNote>) -> Result<ClaimOutcome>;
    /// Writes the outcome of a probe once, and ends its lease. Again: `true` if the outcome is the same. `false`:
    /// another outcome, or an unknown id. A probe whose lease has expired may still be finished.
    async fn probe_finish(&self, id: Uuid, outcome: &ProbeOutcome, audit: Option<&AuditNote>) -> Result<bool>;
    /// Up to `limit`, newest first.
    async fn probe_list(&self, limit: usize) -> Result<Vec<Probe>>;
    async fn probe_summary(&self, since: OffsetDateTime) -> Result<ProbeSummary>;
}

/// The number of probes that are kept.
pub(super) const MAX_PROBES: usize = 1000;
/// The length to which the reason of an outcome is truncated.
const MAX_REASON_BYTES: usize = 4 * 1024;

/// The cause of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeTrigger {
    /// A host stored a new version.
    Store,
    /// The first request of a UTC day.
    Daily,
    /// An admin asked for it.
    Admin,
    /// An admin uploaded a version and asked for it.
    Upload,
    /// The previous one failed.
    Retry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// Codex works with this login.
    Ok,
    /// Codex does not work with it.
    Fail,
    /// The probe could not run; the state of the login is unknown.
    Unavailable,
}

/// A node's request to probe a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeClaim {
    /// The id of the attempt.
    pub id: Uuid,
    pub node: Uuid,
    pub version: u64,
    pub trigger: ProbeTrigger,
    pub at: OffsetDateTime,
    /// The end of the lease.
    pub until: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeOutcome {
    pub state: ProbeState,
    /// A text for people, without secrets. Truncated to 4 KiB.
    pub reason: Option<String>,
    /// The version that was made of the tokens that Codex refreshed.
    pub adopted: Option<u64>,
    #[serde(with = "time::serde::rfc3339")]
    pub finished_at: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub id: Uuid,
    pub node: Uuid,
    /// The probed version.
    pub version: u64,
    pub trigger: ProbeTrigger,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// The end of the lease.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// `None`: it is running, or was cut short.
    pub outcome: Option<ProbeOutcome>,
}

/// The answer to a claim.
// One at a time, so a box is not worth it.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The caller may probe.
    Begun,
    /// This probe is running: its lease has not expired.
    Busy(Probe),
    /// A daily one began on this UTC day.
    NotDue,
}

/// "Newest" follows the order of the claims, not the clocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSummary {
    pub latest: Option<Probe>,
    pub latest_finished: Option<Probe>,
    /// The end of the newest one with [`ProbeState::Ok`].
    pub last_ok: Option<OffsetDateTime>,
    /// The end of the newest one with [`ProbeState::Fail`].
    pub last_failure: Option<OffsetDateTime>,
    /// The begin of the newest daily one.
    pub last_daily: Option<OffsetDateTime>,
    /// How many finished since the given time with `Ok` or `Fail`.
    pub validations: u64,
    /// How many finished since then and were adopted as a version.
    pub adoptions: u64,
    pub latest_adoption: Option<Probe>,
}

impl ProbeTrigger {
    pub(super) const ALL: [Self; 5] = [Self::Store, Self::Daily, Self::Admin, Self::Upload, Self::Retry];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Daily => "daily",
            Self::Admin => "admin",
            Self::Upload => "upload",
            Self::Retry => "retry",
        }
    }
}

impl ProbeState {
    pub(super) const ALL: [Self; 3] = [Self::Ok, Self::Fail, Self::Unavailable];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Probe {
    pub(super) fn begun(claim: &ProbeClaim) -> Self {
        let ProbeClaim { id, node, version, trigger, at, until } = *claim;
        Self { id, node, version, trigger, started_at: at, until, outcome: None }
    }

    /// Whether it is running. A probe that is neither running nor finished was cut short.
    pub fn is_under_way(&self, now: OffsetDateTime) -> bool {
        self.outcome.is_none() && !is_over(self.started_at, self.until, now)
    }

    fn is_daily_of(&self, day: OffsetDateTime) -> bool {
        let date = |at: OffsetDateTime| at.to_offset(UtcOffset::UTC).date();
        self.trigger == ProbeTrigger::Daily && date(self.started_at) == date(day)
    }

    pub(super) fn is(&self, what: ProbeMark) -> bool {
        let state = self.outcome.as_ref().map(|outcome| outcome.state);
        match what {
            ProbeMark::Finished => state.is_some(),
            ProbeMark::Ok => state == Some(ProbeState::Ok),
            ProbeMark::Failed => state == Some(ProbeState::Fail),
            ProbeMark::Daily => self.trigger == ProbeTrigger::Daily,
            ProbeMark::Adopted => self.outcome.as_ref().is_some_and(|outcome| outcome.adopted.is_some()),
        }
    }
}

/// The newest probe of each of these is kept, however old it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeMark {
    Finished,
    Ok,
    Failed,
    Daily,
    Adopted,
}

impl ProbeMark {
    pub const ALL: [Self; 5] = [Self::Finished, Self::Ok, Self::Failed, Self::Daily, Self::Adopted];
}

impl ProbeClaim {
    /// The refusal, if any, given the probes newest first. The caller has checked that the id is new.
    pub(super) fn refused(
        &self,
        newest_first: impl IntoIterator<Item = Result<Probe>>,
    ) -> Result<Option<ClaimOutcome>> {
        let is_daily = self.trigger == ProbeTrigger::Daily;
        let mut busy = None;
        for probe in newest_first {
            let probe = probe?;
            if is_daily && probe.is_daily_of(self.at) {
                return Ok(Some(ClaimOutcome::NotDue));
            }
            if busy.is_none() && probe.is_under_way(self.at) {
                busy = Some(ClaimOutcome::Busy(probe));
                // Only a daily claim depends on earlier ones.
                if !is_daily {
                    break;
                }
            }
        }
        Ok(busy)
    }
}

impl ProbeOutcome {
    /// The outcome as it is stored.
    pub(super) fn cut(&self) -> Self {
        let reason =
            self.reason.as_deref().map(|reason| reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned());
        Self { reason, ..self.clone() }
    }
}

impl ProbeSummary {
    /// Summarises probes, newest first. It does not need all of them: only the newest, the newest of each
    /// [`ProbeMark`], and those finished since.
    pub(super) fn of(newest_first: impl IntoIterator<Item = Result<Probe>>, since: OffsetDateTime) -> Result<Self> {
        let mut summary = Self::default();
        for probe in newest_first {
            let probe = probe?;
            let Self {
                latest,
                latest_finished,
                last_ok,
                last_failure,
                last_daily,
                validations,
                adoptions,
                latest_adoption,
            } = &mut summary;
            let finished_at = probe.outcome.as_ref().map(|outcome| outcome.finished_at);
            let says_something = probe.is(ProbeMark::Ok) || probe.is(ProbeMark::Failed);
            let counts = |what: bool| u64::from(what && finished_at.is_some_and(|at| at >= since));
            *validations += counts(says_something);
            *adoptions += counts(probe.is(ProbeMark::Adopted));
            for (mark, last, at) in [
                (ProbeMark::Ok, last_ok, finished_at),
                (ProbeMark::Failed, last_failure, finished_at),
                (ProbeMark::Daily, last_daily, Some(probe.started_at)),
            ] {
                if last.is_none() && probe.is(mark) {
                    *last = at;
                }
            }
            for (is, newest) in [
                (true, latest),
                (probe.is(ProbeMark::Finished), latest_finished),
                (probe.is(ProbeMark::Adopted), latest_adoption),
            ] {
                if newest.is_none() && is {
                    *newest = Some(probe.clone());
                }
            }
        }
        Ok(summary)
    }
}
