//! Probes: the real Codex run on a version of the canonical login, and what it said.
//!
//! Several daemons share the records, and one of them probes at a time: it holds a lease, from its claim until it writes
//! what it found, or until the lease is over, for it may have died. A probe whose lease is over and that has no outcome
//! stays without: it was cut short.
//!
//! What is decided here is the same for every store. It reads no clock, and knows not how probes are kept.

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::Result;
use super::rules::is_over;

/// How many probes are kept.
pub(super) const KEPT: usize = 1000;
/// How much is kept of the reason for an outcome, in bytes.
const LONGEST_REASON: usize = 4 * 1024;

/// What made somebody probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeTrigger {
    /// A host brought a new version.
    Store,
    /// The first request of a UTC day.
    Daily,
    /// An admin asked for it.
    Admin,
    /// An admin uploaded a version, and asked for it.
    Upload,
    /// The one before failed.
    Retry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// Codex works with this login.
    Ok,
    /// It does not.
    Fail,
    /// It could not be tried here: nothing is known of the login.
    Unavailable,
}

/// Who wants to probe what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeClaim {
    /// Names the attempt; made anew for each.
    pub id: Uuid,
    pub node: Uuid,
    pub version: u64,
    pub trigger: ProbeTrigger,
    pub at: OffsetDateTime,
    /// When the lease is over.
    pub until: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeOutcome {
    pub state: ProbeState,
    /// Why not, for people; no secret. What is longer than 4 KiB is cut off.
    pub reason: Option<String>,
    /// The version that was made of tokens that Codex refreshed.
    pub adopted: Option<u64>,
    #[serde(with = "time::serde::rfc3339")]
    pub finished_at: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub id: Uuid,
    pub node: Uuid,
    /// The version that is probed.
    pub version: u64,
    pub trigger: ProbeTrigger,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When the lease is over.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// `None`: it is under way, or was cut short.
    pub outcome: Option<ProbeOutcome>,
}

/// What became of a claim.
// A box would only be in everybody's way: there is one at a time.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Ours.
    Begun,
    /// Another one is under way (its lease is not over).
    Busy(Probe),
    /// A daily one was begun on this UTC day already.
    NotDue,
}

/// "Newest" is by the order of the claims, whatever the clocks said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSummary {
    pub latest: Option<Probe>,
    pub latest_finished: Option<Probe>,
    /// When the newest that ended so was finished.
    pub last_ok: Option<OffsetDateTime>,
    /// Of those that said that the login does not work: where it could not be tried, nothing failed.
    pub last_failure: Option<OffsetDateTime>,
    /// When the newest daily one was begun.
    pub last_daily: Option<OffsetDateTime>,
    /// How many were finished since the asked moment and said whether the login works.
    pub validations: u64,
    /// How many were finished since then and made a version.
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

    /// Whether somebody is at it now. One that is neither under way nor finished was cut short.
    pub fn is_under_way(&self, now: OffsetDateTime) -> bool {
        self.outcome.is_none() && !is_over(self.started_at, self.until, now)
    }

    fn is_daily_of(&self, day: OffsetDateTime) -> bool {
        let date = |at: OffsetDateTime| at.to_offset(UtcOffset::UTC).date();
        self.trigger == ProbeTrigger::Daily && date(self.started_at) == date(day)
    }

    pub(super) fn is(&self, what: Mark) -> bool {
        let state = self.outcome.as_ref().map(|outcome| outcome.state);
        match what {
            Mark::Finished => state.is_some(),
            Mark::Ok => state == Some(ProbeState::Ok),
            Mark::Failed => state == Some(ProbeState::Fail),
            Mark::Daily => self.trigger == ProbeTrigger::Daily,
            Mark::Adopted => self.outcome.as_ref().is_some_and(|outcome| outcome.adopted.is_some()),
        }
    }
}

/// The newest of each of these is kept, however many came after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Finished,
    Ok,
    Failed,
    Daily,
    Adopted,
}

impl Mark {
    pub const ALL: [Self; 5] = [Self::Finished, Self::Ok, Self::Failed, Self::Daily, Self::Adopted];
}

impl ProbeClaim {
    /// Why it cannot be had, if it cannot, with what there is, newest first. That it was had before is for the caller to see.
    pub(super) fn refused(&self, newest_first: impl IntoIterator<Item = Result<Probe>>) -> Result<Option<Claimed>> {
        let is_daily = self.trigger == ProbeTrigger::Daily;
        let mut busy = None;
        for probe in newest_first {
            let probe = probe?;
            if is_daily && probe.is_daily_of(self.at) {
                return Ok(Some(Claimed::NotDue));
            }
            if busy.is_none() && probe.is_under_way(self.at) {
                busy = Some(Claimed::Busy(probe));
                // What came before it is no matter to others.
                if !is_daily {
                    break;
                }
            }
        }
        Ok(busy)
    }
}

impl ProbeOutcome {
    /// As it is kept.
    pub(super) fn cut(&self) -> Self {
        let reason =
            self.reason.as_deref().map(|reason| reason[..reason.floor_char_boundary(LONGEST_REASON)].to_owned());
        Self { reason, ..self.clone() }
    }
}

impl ProbeSummary {
    /// Of all probes, newest first; or of the newest one, the newest of each [`Mark`], and those finished since.
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
            let says_something = probe.is(Mark::Ok) || probe.is(Mark::Failed);
            let counts = |what: bool| u64::from(what && finished_at.is_some_and(|at| at >= since));
            *validations += counts(says_something);
            *adoptions += counts(probe.is(Mark::Adopted));
            for (mark, last, at) in [
                (Mark::Ok, last_ok, finished_at),
                (Mark::Failed, last_failure, finished_at),
                (Mark::Daily, last_daily, Some(probe.started_at)),
            ] {
                if last.is_none() && probe.is(mark) {
                    *last = at;
                }
            }
            for (is, newest) in [
                (true, latest),
                (probe.is(Mark::Finished), latest_finished),
                (probe.is(Mark::Adopted), latest_adoption),
            ] {
                if newest.is_none() && is {
                    *newest = Some(probe.clone());
                }
            }
        }
        Ok(summary)
    }
}
