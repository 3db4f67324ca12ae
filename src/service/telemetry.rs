//! What hosts' calls leave behind, on its way to the records: counted in memory, gathered into the outbox every second,
//! drained from there in batches.
//!
//! A crash loses at most what was counted since the last gathering (calls and last-seen times, which nobody was promised);
//! what is in the outbox is power-safe and is drained after the next boot. A batch that reached the records but was not
//! forgotten here is sent again, and its sequence number makes the second time change nothing.

use super::{Result, Service};

const BATCHES: usize = 16;

impl Service {
    /// Moves what was counted since the last time into the outbox.
    pub async fn gather_telemetry(&self) -> Result<()> {
        let batch = self.hot.gather_seen();
        if !batch.is_empty() {
            self.hot.outbox_append(batch).await?;
        }
        Ok(())
    }

    /// Writes what is in the outbox to the records.
    pub async fn drain_outbox(&self) -> Result<()> {
        loop {
            let batches = self.hot.outbox_next(BATCHES).await?;
            let Some(last) = batches.last().map(|(seq, _)| *seq) else {
                return Ok(());
            };
            for (seq, batch) in &batches {
                self.records.append_telemetry(self.hot.node(), *seq, batch).await?;
            }
            self.hot.outbox_forget(last)?;
        }
    }
}
