//! What happens without being asked for: telemetry to the records, changes of other nodes, certificate renewal, the
//! newest release of Codex.
//!
//! Each job is a loop over its own interval that logs a failure and goes on; none holds anything that a crash loses.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::tls::Tls;
use crate::config::Config;
use crate::outside::Outside;
use crate::service::login::retention::PRUNE_PAUSE;
use crate::service::{Areas, ServiceError};
use crate::upstream::releases::Releases;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
const TELEMETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How late the records learn when a session was last used.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(60);
/// Short, because the clock may be set meanwhile: no host accepts a certificate that is not valid yet, or any more.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);
const EXPIRY_WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const RELEASES_INTERVAL: Duration = Duration::from_secs(3 * 3600);

pub struct Jobs(JoinSet<()>);

impl Jobs {
    /// `job` ends when it sees the stop.
    pub fn add(&mut self, job: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(job);
    }

    /// Waits until every job has seen the stop.
    pub async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

pub fn start(
    config: &Config,
    areas: Arc<Areas>,
    tls: Arc<Tls>,
    outside: Arc<dyn Outside>,
    stopping: watch::Receiver<bool>,
) -> Jobs {
    let mut jobs = JoinSet::new();
    let resumed = areas.clone();
    jobs.spawn(async move { report_use("key_rotation", resumed.trust.resume_rotation().await) });
    let listed = areas.clone();
    jobs.spawn(async move { report_use("directory", listed.hosts.prepare_directory().await) });
    let polled = areas.clone();
    jobs.spawn(every(POLL_INTERVAL, stopping.clone(), move || {
        let areas = polled.clone();
        async move { report_use("catch_up", areas.core.catch_up().await) }
    }));
    let counted = areas.clone();
    jobs.spawn(every(TELEMETRY_INTERVAL, stopping.clone(), move || {
        let areas = counted.clone();
        async move { gather(&areas).await }
    }));
    // Records that do not answer keep nothing from being gathered.
    let drained = areas.clone();
    jobs.spawn(every(TELEMETRY_INTERVAL, stopping.clone(), move || {
        let areas = drained.clone();
        async move { report_use("outbox", areas.hosts.drain_outbox().await) }
    }));
    jobs.spawn(every(RENEWAL_INTERVAL, stopping.clone(), move || {
        let (tls, now) = (tls.clone(), outside.now());
        async move {
            if tls.is_due(now) {
                report("certificate_renewal", tls.reload());
            }
        }
    }));
    let purged = areas.clone();
    jobs.spawn(every(PURGE_INTERVAL, stopping.clone(), move || {
        let areas = purged.clone();
        async move {
            report_use("removed_hosts", areas.hosts.purge_removed().await);
            report_use("installers", areas.hosts.purge_installers().await);
            report_use("sessions", areas.people.purge_sessions().await);
        }
    }));
    let used = areas.clone();
    jobs.spawn(every(SESSIONS_INTERVAL, stopping.clone(), move || {
        let areas = used.clone();
        async move { report_use("sessions", areas.people.keep_sessions().await) }
    }));
    if config.oidc.is_configured() {
        let (looking, refresh) = (areas.clone(), Duration::from_secs(config.oidc.jwks_cache_refresh.into()));
        jobs.spawn(every(refresh, stopping.clone(), move || {
            let areas = looking.clone();
            async move { areas.people.look_after_provider().await }
        }));
    }
    let warned = areas.clone();
    jobs.spawn(every(EXPIRY_WARNING_INTERVAL, stopping.clone(), move || {
        let areas = warned.clone();
        async move { areas.trust.warn_of_expiring_certificates() }
    }));
    let (pruning, stops) = (areas.clone(), stopping.clone());
    jobs.spawn(async move {
        pruning.login.look_after_versions(PRUNE_PAUSE, stops, |outcome| report_use("versions", outcome)).await;
    });
    let proving = areas.clone();
    let stops = stopping.clone();
    jobs.spawn(async move { proving.probes.make_probes(stops).await });
    match Releases::new(&config.upstream.releases_url) {
        Some(releases) => {
            let releases = Arc::new(releases);
            jobs.spawn(every(RELEASES_INTERVAL, stopping, move || {
                let (releases, areas) = (releases.clone(), areas.clone());
                async move {
                    match releases.newest().await {
                        Ok(tag) => report_use("releases", areas.hosts.note_client_release(&tag).await),
                        Err(error) => log::info!(event = "releases_failed", cause:% = error; "the newest release of Codex could not be asked for"),
                    }
                }
            }));
        }
        None => log::info!(event = "releases_off"; "upstream is not asked for releases"),
    }
    Jobs(jobs)
}

/// Moves some of what was counted to the outbox.
async fn gather(areas: &Areas) {
    report_use("throttle", areas.admission.keep_throttle().await);
    report_use("telemetry", areas.hosts.gather_telemetry().await.map(|_any| ()));
}

/// Moves all that was counted to the records.
pub async fn flush(areas: &Areas) {
    report_use("throttle", areas.admission.keep_throttle().await);
    loop {
        match areas.hosts.gather_telemetry().await {
            Ok(true) => {}
            done => {
                report_use("telemetry", done.map(|_none| ()));
                break;
            }
        }
    }
    report_use("outbox", areas.hosts.drain_outbox().await);
    report_use("sessions", areas.people.keep_sessions().await);
}

async fn every<F, W>(period: Duration, mut stopping: watch::Receiver<bool>, mut work: F)
where
    F: FnMut() -> W,
    W: Future<Output = ()>,
{
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopped(&mut stopping) => return,
            _ = ticks.tick() => work().await,
        }
    }
}

/// Waits for the stop. An error means that the sender is gone: then it is time to stop as well.
pub async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A store that has failed is told of by `recovery`, once a minute, and records that are away by who polls them: not by
/// every job.
fn report_use(job: &str, outcome: Result<(), ServiceError>) {
    match outcome {
        Err(
            ServiceError::StoreFailed { cause }
            | ServiceError::RecordsAway { cause }
            | ServiceError::StandsStill { reason: cause, .. },
        ) => {
            log::debug!(event = "job_failed", job, cause = cause.as_str(); "a background job waits for the store")
        }
        outcome => report(job, outcome),
    }
}

fn report<E: std::fmt::Debug + std::fmt::Display>(job: &str, outcome: Result<(), E>) {
    if let Err(error) = outcome {
        log::warn!(event = "job_failed", job, cause:? = error; "a background job failed and will be tried again: {error}");
    }
}
