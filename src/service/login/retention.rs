//! Retention of the canonical login's versions: prunes those that need not be kept.
//!
//! The canonical version, the newest ones ([`VersionPolicy::keep`]) and all of the last 30 days are kept. The records
//! apply this rule within each transaction. A crash between two transactions leaves versions that the next round
//! removes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::records::Retention;
use crate::service::core::initiator::log_note;
use crate::service::{Initiator, Login, Result};

/// Younger versions are kept, however many there are.
const VERSION_RETENTION: time::Duration = time::Duration::days(30);
/// How many versions one transaction removes.
const VERSIONS_PER_BATCH: usize = 100;
/// Versions grow old even if nothing is stored.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
/// The shortest time between two prunings: a burst of stores must not search the versions each time.
pub const PRUNE_PAUSE: Duration = Duration::from_secs(60);

impl Login {
    /// Removes the versions that are not kept; returns how many.
    pub async fn prune_versions(&self) -> Result<usize> {
        let mut pruned = 0;
        loop {
            let now = self.core.platform.now();
            let retention = Retention { newest: self.core.policy.load().versions.keep, since: now - VERSION_RETENTION };
            let note = Initiator::daemon().note(now, "auth.prune");
            let removed = self.core.records.canonical_prune(&retention, VERSIONS_PER_BATCH, &note).await?;
            if let Some((first, last)) = removed.first().zip(removed.last()) {
                log_note(&note.on(format_args!("{first}-{last}")).with("versions", removed.len()));
            }
            pruned += removed.len();
            if removed.len() < VERSIONS_PER_BATCH {
                return Ok(pruned);
            }
        }
    }

    /// Prunes after stores, at least `pause` apart, and every `PRUNE_INTERVAL`, until the stop. `report` gets each
    /// result.
    pub async fn look_after_versions(
        &self,
        pause: Duration,
        mut stopping: watch::Receiver<bool>,
        report: impl Fn(Result<()>),
    ) {
        loop {
            report(self.prune_versions().await.map(|_| ()));
            let next = Instant::now() + PRUNE_INTERVAL;
            let earliest = Instant::now() + pause;
            let due = async {
                tokio::select! {
                    () = self.version_stored.notified() => sleep_until(earliest).await,
                    () = sleep_until(next) => {}
                }
            };
            tokio::select! {
                // A dropped sender means stop, too.
                _ = stopping.wait_for(|stop| *stop) => return,
                () = due => {}
            }
        }
    }
}
