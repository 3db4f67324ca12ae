//! The state of the runner, for the API and the dashboard.

use time::{Duration, OffsetDateTime};

use crate::records::{Probe, ProbeState, ProbeSummary, ProbeTrigger, RestoredLogin};
use crate::service::probes::concerns;
use crate::service::probes::restored::reason;
use crate::service::{Probes, Result, ServiceError};

pub struct RunnerView {
    pub enabled: bool,
    pub state: RunnerState,
    /// The probe that the state comes from.
    pub latest: Option<Probe>,
    /// Set if the login came back from a backup and no probe of it starts by itself.
    pub restored: Option<RestoredLogin>,
    /// The running probe of this node.
    pub underway: Option<Underway>,
    /// Whether a probe is requested on this node and has not begun.
    pub is_wanted: bool,
    /// How many probes were requested from this daemon. Requests up to `answered` have their answer.
    pub asked: u64,
    pub answered: u64,
    /// `None`: the records are away.
    pub summary: Option<ProbeSummary>,
    /// The newest first.
    pub probes: Vec<Probe>,
    /// Whether there are older probes.
    pub has_more_probes: bool,
    pub time: std::time::Duration,
}

/// The state of the canonical login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunnerState {
    Known(ProbeState),
    /// It was never probed.
    Never,
    /// Probes are switched off.
    Off,
    /// The records are away.
    Unknown,
}

impl RunnerState {
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Known(state) => Some(state.as_str()),
            Self::Never => Some("never"),
            Self::Off | Self::Unknown => None,
        }
    }
}

impl RunnerView {
    /// Why the state is not `ok`.
    pub fn reason(&self) -> Option<String> {
        let found = self.latest.as_ref().and_then(|probe| probe.outcome.as_ref());
        found.map_or_else(|| self.restored.as_ref().map(reason), |outcome| outcome.reason.clone())
    }
}

pub struct Underway {
    pub version: u64,
    pub trigger: ProbeTrigger,
    pub since: OffsetDateTime,
}

impl Probes {
    /// The state of the runner, with up to `limit` of the last probes.
    pub async fn runner(&self, limit: usize) -> Result<RunnerView> {
        // Read before the records: if a request is answered by now, they hold the answer.
        let mut view = self.underway();
        let found = match self.read_probes(limit).await {
            Ok(found) => Some(found),
            Err(ServiceError::RecordsAway { .. } | ServiceError::StoreFailed { .. }) => None,
            Err(error) => return Err(error),
        };
        let (summary, mut probes) = found.map_or((None, Vec::new()), |(summary, probes)| (Some(summary), probes));
        let has_more_probes = probes.len() > limit;
        probes.truncate(limit);
        let finished = summary.as_ref().and_then(|summary| summary.latest_finished.clone());
        let version = self.core.canonical().map(|canonical| canonical.summary.version);
        let restored = self.restored_login();
        // A finding from before the backup says nothing about the time since.
        let is_after = |probe: &Probe| {
            restored
                .as_ref()
                .is_none_or(|it| probe.outcome.as_ref().is_some_and(|found| found.finished_at > it.backup_of))
        };
        // `Unavailable` is true of every login: no probe can be made here.
        let latest = finished.filter(|probe| {
            let is_so = state_of(probe) == Some(ProbeState::Unavailable);
            (is_so || version.is_some_and(|version| concerns(probe, version))) && is_after(probe)
        });
        view.state = match latest.as_ref().and_then(state_of) {
            _ if !view.enabled => RunnerState::Off,
            _ if summary.is_none() => RunnerState::Unknown,
            Some(state) => RunnerState::Known(state),
            None if restored.is_some() => RunnerState::Known(ProbeState::Unavailable),
            None => RunnerState::Never,
        };
        Ok(RunnerView { latest, restored, summary, probes, has_more_probes, ..view })
    }

    /// What this node knows without the records.
    fn underway(&self) -> RunnerView {
        let board = self.queue.board();
        let underway = board.running().map(|running| Underway {
            version: running.versions.first().copied().unwrap_or_default(),
            trigger: running.trigger,
            since: running.since,
        });
        RunnerView {
            enabled: self.prober.is_some(),
            state: RunnerState::Unknown,
            latest: None,
            restored: None,
            underway,
            is_wanted: board.is_wanted(),
            asked: board.asked(),
            answered: board.answered(),
            summary: None,
            probes: Vec::new(),
            has_more_probes: false,
            time: self.prober.as_ref().map(|prober| prober.time()).unwrap_or_default(),
        }
    }

    /// Returns one probe more than `limit`, if there is one.
    async fn read_probes(&self, limit: usize) -> Result<(ProbeSummary, Vec<Probe>)> {
        let summary = self.core.records.probe_summary(self.core.platform.now() - Duration::DAY).await?;
        let probes =
            if limit == 0 { Vec::new() } else { self.core.records.probe_list(limit.saturating_add(1)).await? };
        Ok((summary, probes))
    }
}

fn state_of(probe: &Probe) -> Option<ProbeState> {
    probe.outcome.as_ref().map(|outcome| outcome.state)
}
