//! Notifies the service manager (`sd_notify`): ready, status, reload and stop, and watchdog pings while the daemon
//! works.
//!
//! A ping is sent only if the runtime answers. Each time, a task is spawned through the workers, as for every call, and
//! reads the state from which calls are answered. Without an answer no ping is sent, and the manager kills and restarts
//! the process. A store that has failed or is away does not stop the pings.
//!
//! Without a service manager nothing is sent. Nothing is stored here. The environment variables that name the manager
//! stay, because a process that replaces this one needs them.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sd_notify::NotifyState;
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::model::checkup;
use crate::service::Areas;

/// A long start asks for this much more time again and again.
const EXTENSION_USEC: u32 = 30_000_000;
const EXTEND_INTERVAL: Duration = Duration::from_secs(5);
/// A start may not be extended beyond this.
const MAX_START_TIME: Duration = Duration::from_secs(3600);
/// The status is at most this old.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

pub fn notify(state: &[NotifyState<'_>]) {
    // Without a service manager there is no receiver.
    let _ = sd_notify::notify(state);
}

pub fn status(line: &str) {
    notify(&[NotifyState::Status(line)]);
}

pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping: finishing calls in flight")]);
}

/// Certificates are being read again. [`Telling::reloaded`] reports the result.
pub fn reloading() {
    // The timestamp lets the manager tell this reload from an earlier one.
    let now = NotifyState::monotonic_usec_now();
    let mut state = vec![NotifyState::Reloading, NotifyState::Status("reading the certificates again")];
    state.extend(now);
    notify(&state);
}

/// A running start. It asks the manager for more time until it is dropped.
pub struct Starting(JoinHandle<()>);

impl Starting {
    pub fn begin() -> Self {
        let period = sd_notify::watchdog_enabled()
            .map_or(EXTEND_INTERVAL, |limit| EXTEND_INTERVAL.min(limit / 2))
            .max(MIN_PING_INTERVAL);
        Self(tokio::spawn(async move {
            let mut ticks = interval(period);
            for _ in 0..MAX_START_TIME.as_secs() / period.as_secs().max(1) {
                ticks.tick().await;
                // A process that replaced another one must send pings during its start, too.
                notify(&[NotifyState::ExtendTimeoutUsec(EXTENSION_USEC), NotifyState::Watchdog]);
            }
        }))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reports the status of a running daemon until it is dropped.
pub struct Telling {
    areas: Weak<Areas>,
    /// Why the last reload of certificates failed.
    trouble: Arc<Mutex<Option<String>>>,
    status: JoinHandle<()>,
    watchdog: Option<JoinHandle<()>>,
}

const MIN_PING_INTERVAL: Duration = Duration::from_millis(10);

impl Telling {
    /// Reports that the daemon is ready, then keeps the status current.
    pub fn begin(areas: &Arc<Areas>) -> Self {
        let trouble = Arc::new(Mutex::new(None));
        let line = DaemonStatus::of(areas, None).line();
        notify(&[NotifyState::Ready, NotifyState::Status(&line)]);
        let told = (Arc::downgrade(areas), trouble.clone());
        let watched = Arc::downgrade(areas);
        let watchdog = sd_notify::watchdog_enabled().map(|limit| {
            tokio::spawn(ping(
                (limit / 2).max(MIN_PING_INTERVAL),
                move || pulse(watched.clone()),
                || notify(&[NotifyState::Watchdog]),
            ))
        });
        Self {
            areas: Arc::downgrade(areas),
            trouble,
            status: tokio::spawn(tell_status(told.0, told.1, line)),
            watchdog,
        }
    }

    /// Reports that a reload has ended, and the result.
    pub fn reloaded(&self, trouble: Option<String>) {
        let seen = self.areas.upgrade().map(|areas| DaemonStatus::of(&areas, trouble.clone()).line());
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        notify(&[NotifyState::Ready, NotifyState::Status(&seen.unwrap_or_default())]);
    }

    /// Stops the status reports; the caller reports from here on.
    pub fn end_status(&self) {
        self.status.abort();
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.status.abort();
        if let Some(watchdog) = &self.watchdog {
            watchdog.abort();
        }
    }
}

async fn tell_status(areas: Weak<Areas>, trouble: Arc<Mutex<Option<String>>>, mut told: String) {
    let mut ticks = interval(STATUS_INTERVAL);
    loop {
        ticks.tick().await;
        let Some(areas) = areas.upgrade() else { return };
        let trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let line = DaemonStatus::of(&areas, trouble).line();
        if line != told {
            status(&line);
            told = line;
        }
    }
}

/// The first check of every call.
async fn pulse(areas: Weak<Areas>) {
    if let Some(areas) = areas.upgrade() {
        areas.core.pulse();
    }
}

/// Sends a ping in each `period` in which the workers complete a `pulse`.
async fn ping<P>(period: Duration, pulse: impl Fn() -> P, send: impl Fn())
where
    P: Future<Output = ()> + Send + 'static,
{
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = tokio::spawn(pulse());
        match timeout(period, answer).await {
            Ok(Ok(())) => send(),
            // A late answer is abandoned; the next one may be in time.
            Ok(Err(_)) | Err(_) => {
                log::error!(event = "watchdog_withheld"; "the runtime does not answer in time: the service manager gets no ping for it");
            }
        }
    }
}

/// The daemon's status as one line.
struct DaemonStatus {
    hosts: u64,
    login: Option<u64>,
    degraded: Option<(OffsetDateTime, String)>,
    trouble: Option<String>,
}

impl DaemonStatus {
    fn of(areas: &Areas, trouble: Option<String>) -> Self {
        Self {
            hosts: areas.core.host_count(),
            login: areas.core.canonical().map(|canonical| canonical.summary.version),
            degraded: areas.core.health.degraded().map(|degraded| (degraded.since, degraded.why)),
            trouble,
        }
    }

    fn line(&self) -> String {
        let hosts = if self.hosts == 1 { "1 host".into() } else { format!("{} hosts", self.hosts) };
        let mut line = match self.login {
            Some(version) => format!("{hosts}, login version {version}"),
            None => format!("{hosts}, no login yet: codex-authd auth upload FILE"),
        };
        if let Some((since, why)) = &self.degraded {
            let since = checkup::shown(*since);
            line = format!("degraded since {since}: {why}; {line}");
        }
        if let Some(trouble) = &self.trouble {
            line.push_str(&format!("; the last reload failed, the certificates in force stay: {trouble}"));
        }
        // The protocol permits only one line.
        line.replace('\n', " ")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    use time::macros::datetime;

    use super::*;

    const PERIOD: Duration = Duration::from_millis(20);

    fn until(what: &str, condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn pinged<P: Future<Output = ()> + Send + 'static>(
        runtime: &tokio::runtime::Runtime,
        pulse: impl Fn() -> P + Send + Sync + 'static,
    ) -> Arc<AtomicUsize> {
        let pings = Arc::new(AtomicUsize::new(0));
        let counted = pings.clone();
        runtime.spawn(ping(PERIOD, pulse, move || {
            counted.fetch_add(1, Ordering::SeqCst);
        }));
        pings
    }

    #[test]
    fn workers_that_are_stuck_stop_the_pings_and_workers_that_go_on_send_them_again() {
        const WORKERS: usize = 2;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(WORKERS).enable_all().build().unwrap();
        let pings = pinged(&runtime, async || ());
        until("pings come", || pings.load(Ordering::SeqCst) > 2);
        // Each worker waits without yielding.
        let stuck = Arc::new(AtomicUsize::new(0));
        let releases: Vec<_> = (0..WORKERS)
            .map(|_| {
                let (release, held) = mpsc::channel::<()>();
                let stuck = stuck.clone();
                runtime.spawn(async move {
                    stuck.fetch_add(1, Ordering::SeqCst);
                    let _ = held.recv();
                });
                release
            })
            .collect();
        until("all are stuck", || stuck.load(Ordering::SeqCst) == WORKERS);
        let before = pings.load(Ordering::SeqCst);
        let begun = Instant::now();
        until("time goes by", || begun.elapsed() > PERIOD * 10);
        assert_eq!(pings.load(Ordering::SeqCst), before, "nobody works, and pings are sent");
        drop(releases);
        until("pings come again", || pings.load(Ordering::SeqCst) > before);
    }

    #[test]
    fn a_pulse_that_does_not_end_stops_the_pings() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (hold, held) = tokio::sync::watch::channel(false);
        let pings = pinged(&runtime, move || {
            let mut held = held.clone();
            async move {
                let _ = held.wait_for(|held| !held).await;
            }
        });
        until("pings come", || pings.load(Ordering::SeqCst) > 2);
        hold.send_replace(true);
        let begun = Instant::now();
        // A pulse that is already running may still end.
        until("time goes by", || begun.elapsed() > PERIOD * 3);
        let before = pings.load(Ordering::SeqCst);
        until("more of it", || begun.elapsed() > PERIOD * 12);
        assert_eq!(pings.load(Ordering::SeqCst), before);
        hold.send_replace(false);
        until("pings come again", || pings.load(Ordering::SeqCst) > before);
    }

    #[test]
    fn the_status_is_one_line_that_says_what_matters_first() {
        let seen = |login, degraded: Option<&str>, trouble: Option<&str>| {
            let degraded = degraded.map(|why| (datetime!(2026-11-26 10:11:12.5 UTC), why.to_owned()));
            DaemonStatus { hosts: 12, login, degraded, trouble: trouble.map(String::from) }.line()
        };
        assert_eq!(seen(Some(3), None, None), "12 hosts, login version 3");
        assert_eq!(seen(None, None, None), "12 hosts, no login yet: codex-authd auth upload FILE");
        let line = seen(Some(3), Some("the records are not available\n(gone)"), Some("no such file"));
        assert!(line.starts_with("degraded since 2026-11-26 10:11 UTC: "), "{line}");
        assert!(line.contains("the last reload failed") && !line.contains('\n'), "{line}");
    }
}
