//! Telemetry of hosts' calls on its way to the records: counted in memory, gathered into the outbox every second,
//! drained from there in batches.
//!
//! Each round gathers at most `MAX_HOSTS_PER_BATCH` hosts, the longest waiting first.
//!
//! A crash loses at most what was counted of a host since it was last gathered: calls and last-seen times, which were
//! not acknowledged. The outbox survives a power cut and is drained after the next boot. A batch that reached the
//! records but was not forgotten here is sent again; its sequence number makes the second write change nothing. The
//! throttles' counts go to hot state at the same time, so that a restart does not reset them.

use crate::records::Telemetry;
use crate::service::{Hosts, Result, ServiceError};

const MAX_BATCHES: usize = 16;
/// How many hosts are gathered at a time. In a larger busy fleet each host is gathered less often, with more calls at
/// once. So the cost of storing the counts does not grow with the fleet.
const MAX_HOSTS_PER_BATCH: usize = 1000;

impl Hosts {
    /// Takes from the records the counts that hot state has lost or never had.
    pub(in crate::service) async fn adopt_activity(&self) -> Result<()> {
        match self.drain_outbox().await {
            // The records can be read but not written, so the outbox's counts are missing there. The next start adopts
            // them.
            Err(ServiceError::RecordsAway { .. }) => return Ok(()),
            // The outbox's counts would be missing: the hosts stay listed for the next start.
            Err(ServiceError::StandsStill { .. }) => return Ok(()),
            drained => drained?,
        }
        let mut known = Vec::new();
        for id in self.core.hot.hosts_without_activity()? {
            known.push((id, self.core.records.host_activity(id).await?));
        }
        self.core.hot.set_activities(&known)?;
        Ok(())
    }

    /// Moves the counts of the longest waiting hosts into the outbox. Returns whether there were any.
    pub async fn gather_telemetry(&self) -> Result<bool> {
        let batch = self.core.hot.gather_seen(MAX_HOSTS_PER_BATCH);
        let any = !batch.is_empty();
        self.note_in_directory(&batch)?;
        self.core.hot.outbox_append(batch).await?;
        // A separate batch: audit entries wait for all other changes, and the counts should not wait with them.
        self.core.hot.outbox_append(self.core.security_events.gather(self.core.platform.now())).await?;
        Ok(any)
    }

    fn note_in_directory(&self, batch: &[Telemetry]) -> Result<()> {
        let seen = batch.iter().filter_map(|telemetry| match telemetry {
            Telemetry::Seen { host, .. } => Some(*host),
            Telemetry::Noted { .. } => None,
        });
        let hosts = seen.map(|host| self.core.hot.host_by_id(host));
        let hosts = hosts.filter_map(std::result::Result::transpose).collect::<std::result::Result<Vec<_>, _>>()?;
        self.core.directory.set_activity(hosts.into_iter().map(|host| (host.id, host.activity())));
        Ok(())
    }

    /// Writes what is in the outbox to the records.
    pub async fn drain_outbox(&self) -> Result<()> {
        let drained = self.drain().await;
        if matches!(drained, Err(ServiceError::RecordsAway { .. })) && self.core.health.away().is_none() {
            // The failure may be a conflict with another writer; but if the records take no change at all, they are
            // degraded. `try_writing` finds out, and notes what it finds.
            let _ = self.core.health.try_writing().await;
        }
        drained
    }

    async fn drain(&self) -> Result<()> {
        loop {
            let batches = self.core.hot.outbox_next(MAX_BATCHES).await?;
            let Some(last) = batches.last().map(|(seq, _)| *seq) else {
                return Ok(());
            };
            for (seq, batch) in &batches {
                self.core.records.telemetry_append(self.core.hot.node(), *seq, batch).await?;
            }
            self.core.hot.outbox_forget(last).await?;
        }
    }
}
