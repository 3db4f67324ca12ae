//! Background jobs: telemetry to the records, changes of other nodes, certificate renewal, pruning, probes, the newest release of
//! Codex.
//!
//! Each job is a loop with its own interval. A failure is logged and the job goes on. A crash loses nothing that a job holds.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::tls::Tls;
use crate::config::Config;
use crate::platform::Platform;
use crate::service::login::retention::PRUNE_PAUSE;
use crate::service::{Areas, ServiceError};
use crate::upstream::releases::Releases;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
const TELEMETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often the last use of each session is written to the records.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(60);
/// Short, because the clock may be set: hosts refuse a certificate that has expired or is not valid yet.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);
const EXPIRY_WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const RELEASES_INTERVAL: Duration = Duration::from_secs(3 * 3600);

pub struct Jobs(JoinSet<()>);

impl Jobs {
    /// Adds a job. It must end when the daemon stops.
    pub fn add(&mut self, job: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(job);
    }

    /// Waits until every job has ended.
    pub async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

pub fn start(
    config: &Config,
    areas: Arc<Areas>,
    tls: Arc<Tls>,
    platform: Arc<dyn Platform>,
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
        async move { report_use("telemetry", areas.hosts.gather_telemetry().await.map(|_any| ())) }
    }));
    // A job of its own: telemetry is gathered even while the records do not answer.
    let drained = areas.clone();
    jobs.spawn(every(TELEMETRY_INTERVAL, stopping.clone(), move || {
        let areas = drained.clone();
        async move { report_use("outbox", areas.hosts.drain_outbox().await) }
    }));
    jobs.spawn(every(RENEWAL_INTERVAL, stopping.clone(), move || {
        let (tls, now) = (tls.clone(), platform.now());
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

/// Moves all counted telemetry to the records, when the daemon stops.
pub async fn flush(areas: &Areas) {
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

/// Waits until the daemon stops. An error means that the sender is gone, which is a stop too.
pub async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Logs a failure, except a failed store and records that are away: `recovery` and `catch_up` log these once for all jobs.
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
