//! What hosts' calls leave behind, on its way to the records: counted in memory, gathered into the outbox every second,
//! drained from there in batches.
//!
//! At most so many hosts are gathered at a time, those that wait longest.
//!
//! A crash loses at most what was counted of a host since it was last gathered (calls and last-seen times, which nobody was
//! promised); what is in the outbox is power-safe and is drained after the next boot. A batch that reached the records but was not
//! forgotten here is sent again, and its sequence number makes the second time change nothing. The throttles' counts go
//! to hot state with it, so that a restart does not forgive.

use crate::records::Telemetry;
use crate::service::{Hosts, Result, ServiceError};

const MAX_BATCHES: usize = 16;
/// How many hosts are gathered at a time. With a larger fleet at work each host's calls are gathered less often, together,
/// and what it costs to keep them does not grow with the fleet.
const MAX_HOSTS_PER_BATCH: usize = 1000;

impl Hosts {
    /// Counts that hot state has lost, or never had, come from the records.
    pub(in crate::service) async fn adopt_activity(&self) -> Result<()> {
        match self.drain_outbox().await {
            // They can be read and not written: what the outbox holds is not counted there yet. The next start does it.
            Err(ServiceError::RecordsAway { .. }) => return Ok(()),
            // What waits in the outbox would be missing: the hosts stay listed for the next start.
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

    /// Moves what was counted of the hosts that wait longest into the outbox; says whether there were any.
    pub async fn gather_telemetry(&self) -> Result<bool> {
        let batch = self.core.hot.gather_seen(MAX_HOSTS_PER_BATCH);
        let any = !batch.is_empty();
        self.note_in_directory(&batch)?;
        self.core.hot.outbox_append(batch).await?;
        // Apart: entries of the audit log wait for everybody's changes, and nothing else should wait with them.
        self.core.hot.outbox_append(self.core.security_events.gather(self.core.outside.now())).await?;
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
            // This may have been in others' way; records that take no change at all are degraded. What it finds is noted.
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
