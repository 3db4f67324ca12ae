//! Probes of the canonical login: when one is made, by which node, and what follows from its finding.
//!
//! A probe is made after every store of a host, once a UTC day on the first call of a host, and when an admin asks.
//! After a failure it is retried. No call waits for a probe. One worker on each node makes them, one at a time
//! ([`board`]). The records let only one node make a probe at a time ([`ProbeRecords::probe_claim`]).
//!
//! A crash before the claim leaves nothing: the last finding in the records decides what the next start retries. A
//! crash between the claim and the finding leaves an unfinished probe. The next start on this node finishes it as cut
//! short, and other nodes may begin one when the lease is over. A login that Codex refreshed is stored as soon as the
//! probe reports it ([`adopt`]). If the records do not take it, it waits in hot state, sealed, for them or for the next
//! start. A refresh that had not been reported is lost with the process, and the next probe says so.
//!
//! [`ProbeRecords::probe_claim`]: crate::records::ProbeRecords::probe_claim

mod adopt;
pub mod restored;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::model::audit::AuditNote;
use crate::records::{ClaimOutcome, Probe, ProbeClaim, ProbeOutcome, ProbeState, ProbeTrigger};
use crate::runner::{Check, Finding, Prober, Probing, Told};
use crate::service::core::canonical::Canonical;
use crate::service::probe_queue::ProbeQueue;
use crate::service::probe_queue::board::{self, WantedProbe};
use crate::service::{Audit, Core, Initiator, Login, Result, ServiceError};
use adopt::Adopted;

pub use view::{RunnerState, RunnerView, Underway};

/// The probes of this node.
pub struct Probes {
    pub(in crate::service) core: Arc<Core>,
    audit: Arc<Audit>,
    login: Arc<Login>,
    queue: Arc<ProbeQueue>,
    prober: Option<Arc<dyn Prober>>,
}

/// How much longer a lease is than the longest probe.
const LEASE_MARGIN: Duration = Duration::from_secs(60);
/// How often this node checks whether another node's probe is over.
const SHARED_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is checked whether all requests are answered.
const ANSWER_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The wait before records that are away are asked again.
const RECORDS_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// The wait between attempts to write a finding or a refreshed login.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long a finding is kept while the records do not take it.
const FINDING_WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stopping daemon waits for the running probe, and again for what the probe reports at its end.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// How often this node checks whether another node has abandoned a failure.
const OTHERS_INTERVAL: Duration = Duration::from_secs(60);
/// A failure is abandoned if nobody has retried it for so long: the node that found it retries after 15 minutes.
const ABANDONED_AFTER: time::Duration = time::Duration::minutes(20);
/// How many of the last probes are searched.
const RECENT_PROBES: usize = 20;
const STOPPED: &str = "the daemon was stopped before Codex had answered";

impl Probes {
    pub(in crate::service) fn new(
        core: Arc<Core>,
        audit: Arc<Audit>,
        login: Arc<Login>,
        queue: Arc<ProbeQueue>,
        prober: Option<Arc<dyn Prober>>,
    ) -> Self {
        Self { core, audit, login, queue, prober }
    }

    /// Requests a probe for an admin. Returns a ticket: the answer is there when [`RunnerView::answered`] has reached
    /// it. `of_restored`: probe also a login that came back from a backup; the admin confirms that nothing was
    /// refreshed since.
    pub fn ask_for_probe(&self, by: &Initiator, of_restored: bool) -> Result<u64> {
        if self.prober.is_none() {
            return Err(ServiceError::RunnerOff);
        }
        if self.core.canonical().is_none() {
            return Err(ServiceError::NotFound("Canonical auth"));
        }
        self.check_not_restored(of_restored)?;
        Ok(self.queue.ask(ProbeTrigger::Admin, Some(by.clone()), of_restored))
    }

    /// Checks whether the machine and the configuration let the runner work.
    pub async fn examine_runner(&self) -> Result<Vec<Check>> {
        let prober = self.prober.as_ref().ok_or(ServiceError::RunnerOff)?;
        Ok(prober.examine().await)
    }

    /// Makes the requested probes, and retries failures, until the stop.
    pub async fn make_probes(&self, stopping: watch::Receiver<bool>) {
        self.work(stopping, true).await;
    }

    /// Makes the requested probes only. For a process that ends with its command: it must not end in the middle of a
    /// probe that nobody waits for.
    pub async fn make_asked_probes(&self, stopping: watch::Receiver<bool>) {
        self.work(stopping, false).await;
    }

    /// Waits until every request to this process is answered.
    pub async fn all_answered(&self) {
        loop {
            let (asked, answered) = {
                let board = self.queue.board();
                (board.asked(), board.answered())
            };
            if answered >= asked {
                return;
            }
            tokio::time::sleep(ANSWER_POLL_INTERVAL).await;
        }
    }

    async fn work(&self, mut stopping: watch::Receiver<bool>, tries_again: bool) {
        let Some(prober) = self.prober.clone() else { return };
        let mut begun = false;
        loop {
            if !begun {
                begun = self.take_up_probes(tries_again).await.is_ok();
            }
            let due = self.queue.board().due();
            let look = Instant::now() + if begun { OTHERS_INTERVAL } else { RECORDS_RETRY_INTERVAL };
            tokio::select! {
                () = stopped(&mut stopping) => return,
                () = self.queue.changed.notified() => {}
                () = tokio::time::sleep_until(due.unwrap_or(look)), if due.is_some() => {}
                () = tokio::time::sleep_until(look) => {
                    if begun && tries_again {
                        self.look_after_others().await;
                    }
                }
            }
            let wanted = self.queue.board().take(Instant::now());
            if let Some(wanted) = wanted {
                self.probe(&*prober, wanted, &mut stopping).await;
            }
        }
    }

    /// Takes up what an earlier process of this node left.
    async fn take_up_probes(&self, tries_again: bool) -> Result<()> {
        self.take_up_refreshed().await?;
        let now = self.core.platform.now();
        for cut_short in self
            .core
            .records
            .probe_list(RECENT_PROBES)
            .await?
            .into_iter()
            .filter(|probe| probe.node == self.core.hot.node() && probe.outcome.is_none())
        {
            let reason = "the daemon ended before the probe did; if Codex refreshed the login in it, the next probe fails, and a \
                          fresh login has to be uploaded";
            let outcome = ProbeOutcome {
                state: ProbeState::Unavailable,
                reason: Some(reason.into()),
                adopted: None,
                finished_at: now,
            };
            self.core.records.probe_finish(cut_short.id, &outcome, None).await?;
        }
        if !tries_again {
            return Ok(());
        }
        let summary = self.core.records.probe_summary(now).await?;
        if let Some((finished_at, _)) = self.unproved(summary.latest_finished.as_ref()) {
            let waited = Duration::try_from(now - finished_at).unwrap_or_default();
            self.queue.board().retry_in(board::RETRY_AFTER_FAILURE.saturating_sub(waited), Instant::now());
        }
        Ok(())
    }

    /// Retries the failure of a node that has gone away and does not retry it itself.
    async fn look_after_others(&self) {
        let now = self.core.platform.now();
        let Ok(summary) = self.core.records.probe_summary(now).await else { return };
        let left_alone = self
            .unproved(summary.latest_finished.as_ref())
            .is_some_and(|(finished_at, node)| node != self.core.hot.node() && now - finished_at > ABANDONED_AFTER);
        if left_alone {
            self.queue.want_probe(ProbeTrigger::Retry);
        }
    }

    /// When and by which node the canonical login was found not to work, if that is the latest finding.
    fn unproved(&self, last: Option<&Probe>) -> Option<(OffsetDateTime, Uuid)> {
        let canonical = self.core.canonical()?.summary.version;
        let probe = last.filter(|probe| concerns(probe, canonical))?;
        let outcome = probe.outcome.as_ref().filter(|outcome| outcome.state != ProbeState::Ok)?;
        Some((outcome.finished_at, probe.node))
    }

    async fn probe(&self, prober: &dyn Prober, wanted: WantedProbe, stopping: &mut watch::Receiver<bool>) {
        match self.claim(prober, &wanted).await {
            Ok(Begin::Now(id, canonical)) => self.make_probe(prober, &wanted, id, canonical, stopping).await,
            Ok(Begin::Never) => self.queue.board().answer(wanted.ticket),
            Ok(Begin::After(sharing)) => {
                log::debug!(event = "probe_elsewhere", shared = sharing.is_some(); "another node is making a probe");
                self.queue.board().put_back(WantedProbe { sharing, ..wanted }, Instant::now() + SHARED_POLL_INTERVAL);
            }
            Err(error) => {
                log::debug!(event = "probe_waits", cause:% = error; "a probe waits for the records: {error}");
                self.queue.board().put_back(wanted, Instant::now() + RECORDS_RETRY_INTERVAL);
            }
        }
    }

    async fn claim(&self, prober: &dyn Prober, wanted: &WantedProbe) -> Result<Begin> {
        let Some(canonical) = self.core.canonical() else { return Ok(Begin::Never) };
        let version = canonical.summary.version;
        if !self.may_be_redeemed(version, wanted.of_restored).await? {
            return Ok(Begin::Never);
        }
        let now = self.core.platform.now();
        if let Some(id) = wanted.sharing
            && let Some(other) = self.core.records.probe_list(RECENT_PROBES).await?.iter().find(|probe| probe.id == id)
        {
            // No claim before the end of that probe is seen: it might end in between, and be repeated.
            if other.is_under_way(now) {
                return Ok(Begin::After(Some(id)));
            }
            if other.outcome.is_some() && concerns(other, version) {
                return Ok(Begin::Never);
            }
        }
        let id = Uuid::new_v4();
        let until = now + prober.time() + LEASE_MARGIN;
        let claim = ProbeClaim { id, node: self.core.hot.node(), version, trigger: wanted.trigger, at: now, until };
        let note = wanted.by.as_ref().map(|by| by.note(now, "runner.run").on(version));
        Ok(match self.core.records.probe_claim(&claim, note.as_ref()).await? {
            ClaimOutcome::Begun => {
                note.iter().for_each(crate::service::core::initiator::log_note);
                self.queue.board().began(wanted, version, now);
                Begin::Now(id, canonical)
            }
            ClaimOutcome::NotDue => Begin::Never,
            ClaimOutcome::Busy(other) => Begin::After((other.version == version).then_some(other.id)),
        })
    }

    async fn make_probe(
        &self,
        prober: &dyn Prober,
        wanted: &WantedProbe,
        id: Uuid,
        canonical: Arc<Canonical>,
        stopping: &mut watch::Receiver<bool>,
    ) {
        let version = canonical.summary.version;
        let begun = Instant::now();
        log::info!(event = "probe_begun", version, trigger:? = wanted.trigger; "version {version} of the canonical login is being proved");
        let (finding, adopted) = match prober.begin(&canonical.text).await {
            Ok(mut probing) => self.follow(&mut *probing, canonical, stopping).await,
            Err(finding) => (finding, None),
        };
        let (state, reason) = match finding {
            Finding::Works => (ProbeState::Ok, None),
            Finding::Fails(reason) => (ProbeState::Fail, Some(reason)),
            Finding::Unavailable(reason) => (ProbeState::Unavailable, Some(reason)),
        };
        let outcome = ProbeOutcome { state, reason, adopted, finished_at: self.core.platform.now() };
        self.core.metrics.probed(state.as_str(), begun.elapsed());
        tell(version, &outcome);
        self.finish(id, version, &outcome, stopping).await;
        if state == ProbeState::Ok {
            self.end_restored(version).await;
        }
        self.queue.board().ended(state, Instant::now());
    }

    /// Follows a probe to its end. Returns the finding, and the version of the last refreshed login that was adopted.
    async fn follow(
        &self,
        probing: &mut dyn Probing,
        mut from: Arc<Canonical>,
        stopping: &watch::Receiver<bool>,
    ) -> (Finding, Option<u64>) {
        let (mut adopted, mut refused) = (None, None);
        let mut asked_to_end = false;
        let stop = stopped_for_long(stopping.clone());
        tokio::pin!(stop);
        loop {
            let told = tokio::select! {
                told = probing.next() => told,
                () = &mut stop, if !asked_to_end => {
                    probing.end(STOPPED);
                    asked_to_end = true;
                    continue;
                }
            };
            match told {
                Told::Refreshed(login) => match self.adopt_at_last(&from, &login, stopping).await {
                    Some(Adopted::Version(version)) => {
                        self.queue.board().made(version);
                        adopted = Some(version);
                        from = self.core.canonical().filter(|known| known.summary.version == version).unwrap_or(from);
                        log::info!(event = "login_adopted", version; "Codex refreshed the login in the probe: it is the canonical one now, version {version}");
                    }
                    Some(Adopted::Overtaken) => {
                        log::info!(event = "login_overtaken"; "Codex refreshed the login in the probe, and a later one is canonical by now");
                    }
                    Some(Adopted::Refused(why)) => refused = Some(why),
                    None => {
                        refused = Some(
                            "Codex refreshed the login, and it could not be stored yet; the daemon's log says more"
                                .into(),
                        )
                    }
                },
                Told::Found(finding) => {
                    let finding = if *stopping.borrow() { cut_short(finding) } else { finding };
                    return (spoiled(finding, refused), adopted);
                }
            }
        }
    }

    async fn finish(&self, id: Uuid, version: u64, outcome: &ProbeOutcome, stopping: &mut watch::Receiver<bool>) {
        let note = (outcome.state == ProbeState::Fail).then(|| failure(version, outcome));
        let until = Instant::now() + FINDING_WRITE_TIMEOUT;
        loop {
            match self.core.records.probe_finish(id, outcome, note.as_ref()).await {
                Ok(_) => return note.iter().for_each(crate::service::core::initiator::log_note),
                Err(error) if Instant::now() >= until => {
                    log::warn!(event = "finding_unwritten", cause:% = error; "the finding of a probe could not be written: {error}");
                    return;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(WRITE_RETRY_INTERVAL) => {}
                () = stopped(stopping) => return,
            }
        }
    }
}

/// What happens to a requested probe.
enum Begin {
    Now(Uuid, Arc<Canonical>),
    /// Another node is making a probe. `Some`: of the same version, so its result is shared.
    After(Option<Uuid>),
    Never,
}

/// A failure after the daemon was asked to stop says nothing about the login: the stop may be its cause. If both are in
/// one process group, the signal that stops the daemon also reaches the sandbox.
fn cut_short(finding: Finding) -> Finding {
    match finding {
        Finding::Fails(_) => Finding::Unavailable(STOPPED.into()),
        finding => finding,
    }
}

/// A probe fails if the login that Codex refreshed in it could not be stored.
fn spoiled(finding: Finding, refused: Option<String>) -> Finding {
    match (finding, refused) {
        (Finding::Works, Some(why)) => Finding::Fails(why),
        (Finding::Fails(reason) | Finding::Unavailable(reason), Some(why)) => {
            Finding::Fails(format!("{why}\n{reason}"))
        }
        (finding, None) => finding,
    }
}

/// Whether a finding of this probe applies to this version.
fn concerns(probe: &Probe, version: u64) -> bool {
    probe.version == version || probe.outcome.as_ref().is_some_and(|outcome| outcome.adopted == Some(version))
}

fn failure(version: u64, outcome: &ProbeOutcome) -> AuditNote {
    let note = Initiator::daemon().note(outcome.finished_at, "runner.probe").on(version).refused("fail").alarm();
    // The probe keeps the whole reason.
    let first = outcome.reason.iter().flat_map(|reason| reason.lines()).next().unwrap_or_default();
    note.with("reason", first)
}

fn tell(version: u64, outcome: &ProbeOutcome) {
    // One event, one line.
    let reason = outcome.reason.as_deref().unwrap_or_default().replace('\n', " | ");
    let reason = reason.as_str();
    match outcome.state {
        ProbeState::Ok => log::info!(event = "probe_ok", version; "version {version} of the canonical login works"),
        ProbeState::Fail => {
            log::warn!(event = "probe_failed", version, reason; "version {version} of the canonical login does not work: {reason}")
        }
        ProbeState::Unavailable => {
            log::warn!(event = "probe_unavailable", version, reason; "the canonical login could not be proved: {reason}")
        }
    }
}

/// Waits for the stop, and then for `STOP_TIMEOUT`.
async fn stopped_for_long(mut stopping: watch::Receiver<bool>) {
    stopped(&mut stopping).await;
    tokio::time::sleep(STOP_TIMEOUT).await;
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A dropped sender means stop, too.
    let _ = stopping.wait_for(|stop| *stop).await;
}
