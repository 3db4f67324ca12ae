//! The outbox: telemetry that is acknowledged and not in the records yet.
//!
//! Batches are numbered without end. A number is handed out only once its batch is on disk, and the records apply each
//! number of a node once. So a batch may be sent again after any crash. No batch is sent under a number that a crash
//! could hand out again.
//!
//! For each batch the cache counts what the hosts did, so a restart continues with these counts. It stores the number
//! of the batch together with the counts, and only after the batch is safe. So the cache is never ahead of the outbox.
//! After a crash it may be behind, and the next open counts the missed batches. A batch is removed from the outbox once
//! its counts would survive a kill. If the cache still missed removed batches (it is an older copy), its counts are
//! unknown, and the records are asked for them.

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Change, Hot, HotError, Result, decode, get, get_staged, hosts, put};
use crate::durable::Store;
use crate::model::host::HostActivity;
use crate::platform::{SecureRandom, random};
use crate::records::Telemetry;

pub(super) const BATCH: &[u8] = b"outbox/";
const NODE: &[u8] = b"node";
/// The number of the last batch.
const LAST: &[u8] = b"last-batch";
/// The highest number of a batch that was removed.
const FORGOTTEN: &[u8] = b"forgotten";
/// A row of the cache: the last batch that its counts include.
pub(super) const COUNTED: &[u8] = b"counted";

#[derive(Debug, Serialize, Deserialize)]
struct CountedHost {
    node: Uuid,
    number: u64,
}

impl Hot {
    /// The id of this node in the records. If the outbox is lost, the id and its batch numbers are lost too.
    pub fn node(&self) -> Uuid {
        self.node
    }

    /// Returns once the batch would survive a power cut. An empty batch is not stored.
    pub async fn outbox_append(&self, batch: Vec<Telemetry>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let _alone = self.counting.lock().await;
        // Count it first: otherwise a concurrent [`Hot::outbox_forget`] could take the depth below zero.
        self.depth.fetch_add(1, Ordering::SeqCst);
        let written = self.outbox.write(|staged| -> Result<u64> {
            let number = get_staged::<u64>(staged, LAST)?.unwrap_or_default() + 1;
            put(staged, LAST, &number)?;
            put(staged, batch_key(number), &batch)?;
            Ok(number)
        });
        let number = written.inspect_err(|_| {
            self.depth.fetch_sub(1, Ordering::SeqCst);
        })?;
        self.outbox.settled().await?;
        if self.counted()?.is_some_and(|counted| counted.number + 1 == number) {
            return self.count(number, &batch);
        }
        self.count_missed()
    }

    /// The oldest batches with their numbers, at most `limit`, to pass to `telemetry_append` in this order.
    pub async fn outbox_next(&self, limit: usize) -> Result<Vec<(u64, Vec<Telemetry>)>> {
        let mut batches = Vec::new();
        for row in self.outbox.scan(BATCH).take(limit) {
            let (key, value) = row?;
            batches.push((number_of(&key)?, decode("outbox", &value)?));
        }
        self.outbox.settled().await?;
        Ok(batches)
    }

    /// Removes the batches up to this number, which the records have applied.
    pub async fn outbox_forget(&self, up_to: u64) -> Result<()> {
        let _alone = self.counting.lock().await;
        self.count_missed()?;
        self.cache.settled().await?;
        let (from, to) = (BATCH.to_vec(), batch_key(up_to.saturating_add(1)));
        let sent = self.outbox.range(from, to).map(|row| row.map(|(key, _)| key));
        let sent = sent.collect::<std::result::Result<Vec<_>, _>>()?;
        for keys in sent.chunks(super::BATCH_ROWS) {
            self.outbox.write(|staged| {
                keys.iter().for_each(|key| staged.remove(key.to_vec()));
                let known = get_staged::<u64>(staged, FORGOTTEN)?.unwrap_or_default();
                put(staged, FORGOTTEN, &known.max(up_to))
            })?;
        }
        self.depth.fetch_sub(sent.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    /// The number of waiting batches.
    pub fn outbox_depth(&self) -> u64 {
        self.depth.load(Ordering::SeqCst)
    }

    /// Counts the safe batches that the cache has not counted.
    pub(super) fn count_missed(&self) -> Result<()> {
        let number = |key| get::<u64>(&self.outbox, key).map(Option::unwrap_or_default);
        let (last, forgotten) = (number(LAST)?, number(FORGOTTEN)?);
        match self.counted()? {
            Some(CountedHost { node, number }) if node == self.node && (forgotten..=last).contains(&number) => {
                for row in self.batches(number + 1..=last) {
                    let (number, batch) = row?;
                    self.count(number, &batch)?;
                }
                Ok(())
            }
            // A new cache gets the hosts' activity from the records, once the outbox is empty.
            None => self.note_counted(last),
            Some(_) => {
                hosts::forget_activities(&self.cache)?;
                self.note_counted(last)
            }
        }
    }

    fn batches(&self, numbers: RangeInclusive<u64>) -> impl Iterator<Item = Result<(u64, Vec<Telemetry>)>> {
        let rows = self.outbox.range(batch_key(*numbers.start()), batch_key(numbers.end().saturating_add(1)));
        rows.map(|row| {
            let (key, value) = row?;
            Ok((number_of(&key)?, decode("outbox", &value)?))
        })
    }

    fn counted(&self) -> Result<Option<CountedHost>> {
        self.cache.get(COUNTED)
    }

    fn note_counted(&self, number: u64) -> Result<()> {
        self.cache.write(|change| change.put(COUNTED, &CountedHost { node: self.node, number }))
    }

    /// Counts batch `number`, the one after the last counted batch.
    fn count(&self, number: u64, batch: &[Telemetry]) -> Result<()> {
        self.cache.write(|change| {
            batch.iter().try_for_each(|telemetry| count(change, telemetry))?;
            change.put(COUNTED, &CountedHost { node: self.node, number })
        })
    }
}

/// Adds one report to the counts of its host.
fn count(change: &mut Change<'_, '_>, telemetry: &Telemetry) -> Result<()> {
    let Telemetry::Seen { host, .. } = telemetry else { return Ok(()) };
    if change.get_bytes(hosts::host_key(*host))?.is_none() {
        return Ok(());
    }
    let mut activity: HostActivity = change.get(hosts::activity_key(*host))?.unwrap_or_default();
    telemetry.apply_to(&mut activity);
    hosts::write_activity(change, *host, &activity)
}

/// The node's id; creates it if there is none. No batch is sent under it before it is safe: see [`Hot::outbox_next`].
pub(super) fn node(outbox: &Store, rng: &dyn SecureRandom) -> Result<Uuid> {
    if let Some(node) = get(outbox, NODE)? {
        return Ok(node);
    }
    let node = uuid::Builder::from_random_bytes(random(rng)).into_uuid();
    outbox.write(|staged| put(staged, NODE, &node))?;
    Ok(node)
}

fn batch_key(number: u64) -> Vec<u8> {
    [BATCH, &number.to_be_bytes()].concat()
}

fn number_of(key: &[u8]) -> Result<u64> {
    let number = key.get(BATCH.len()..).and_then(|number| number.try_into().ok());
    number.map(u64::from_be_bytes).ok_or_else(|| HotError::Corrupt("outbox: its key is wrong".into()))
}
