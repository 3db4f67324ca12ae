//! The outbox: telemetry that was acknowledged, on its way to the records.
//!
//! Batches are numbered without end. A number is handed out only with its batch on disk, and the records apply each
//! number of a node once; so a batch may be sent again after any crash, and none is sent under a number that a crash
//! could hand out again.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use crate::durable::Durable;
use crate::model::host::HostActivity;
use crate::outside::{Outside, random};
use crate::records::Telemetry;

use super::{Hot, Result, decode, get, get_staged, hosts, put};

pub(super) const BATCH: &[u8] = b"outbox/";
const NODE: &[u8] = b"node";
/// The number of the last batch.
const LAST: &[u8] = b"last-batch";

impl Hot {
    /// This node, as the records know it. Lost with the directory, together with the numbers given out under it.
    pub fn node(&self) -> Uuid {
        self.node
    }

    /// Returns once the batch would survive a power cut. An empty one is none.
    pub async fn outbox_append(&self, batch: Vec<Telemetry>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        // Counted before, so that whoever sends it at once does not count below nothing.
        self.depth.fetch_add(1, Ordering::SeqCst);
        let written = self.data.write(|staged| -> Result<()> {
            let last: Option<u64> = get_staged(staged, LAST)?;
            let number = last.unwrap_or_default() + 1;
            put(staged, LAST, &number)?;
            put(staged, batch_key(number), &batch)?;
            // The counts that a restart goes on from.
            for telemetry in &batch {
                let Telemetry::Seen { host, .. } = telemetry else { continue };
                if staged.get(hosts::host_key(*host))?.is_none() {
                    continue;
                }
                let mut activity: HostActivity = get_staged(staged, hosts::activity_key(*host))?.unwrap_or_default();
                telemetry.apply_to(&mut activity);
                hosts::write_activity(staged, *host, &activity)?;
            }
            Ok(())
        });
        if let Err(error) = written {
            self.depth.fetch_sub(1, Ordering::SeqCst);
            return Err(error);
        }
        Ok(self.data.settled().await?)
    }

    /// The oldest batches with their numbers, at most `limit`: for `append_telemetry`, in this order.
    pub async fn outbox_next(&self, limit: usize) -> Result<Vec<(u64, Vec<Telemetry>)>> {
        let mut batches = Vec::new();
        for row in self.data.scan(BATCH).take(limit) {
            let (key, value) = row?;
            batches.push((number_of(&key)?, decode("outbox", &value)?));
        }
        self.data.settled().await?;
        Ok(batches)
    }

    /// Drops the batches up to this number: they are in the records.
    pub fn outbox_forget(&self, up_to: u64) -> Result<()> {
        let (from, to) = (BATCH.to_vec(), batch_key(up_to.saturating_add(1)));
        let sent = self.data.range(from, to).map(|row| row.map(|(key, _)| key));
        let sent = sent.collect::<std::result::Result<Vec<_>, _>>()?;
        self.remove_rows(&sent)?;
        self.depth.fetch_sub(sent.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    /// How many batches wait.
    pub fn outbox_depth(&self) -> u64 {
        self.depth.load(Ordering::SeqCst)
    }
}

/// The node's id, made where there is none. Nothing leaves under it before it is safe: see [`Hot::outbox_next`].
pub(super) fn node(data: &Durable, outside: &dyn Outside) -> Result<Uuid> {
    if let Some(node) = get(data, NODE)? {
        return Ok(node);
    }
    let node = uuid::Builder::from_random_bytes(random(outside)).into_uuid();
    data.write(|staged| put(staged, NODE, &node))?;
    Ok(node)
}

fn batch_key(number: u64) -> Vec<u8> {
    [BATCH, &number.to_be_bytes()].concat()
}

fn number_of(key: &[u8]) -> Result<u64> {
    let number = key.get(BATCH.len()..).and_then(|number| number.try_into().ok());
    number.map(u64::from_be_bytes).ok_or_else(|| super::HotError::Corrupt("outbox: its key is wrong".into()))
}
