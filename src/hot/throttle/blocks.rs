//! Blocks in hot state, so that a restart ends none of them.
//!
//! A block is one row, `throttle/f` + subject: when it began and when it ends, by the wall clock. [`Hot::keep_block`] writes the
//! row when the block begins and removes rows whose block has ended; [`Hot::restore_blocks`] reads them when the daemon starts.
//! There are at most [`MAX_REMEMBERED`] rows. A crash between two writes, or a row that cannot be read, costs one block.
//!
//! A block that began in the future was written before the clock was set back. It is dropped: nobody is locked out for longer
//! than the configured time after a start.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::clock::MAX_CLOCK_BACK;
use super::counts::Window;
use super::{Failing, MAX_REMEMBERED, Throttle, seconds};
use crate::hot::{BATCH_ROWS, Hot, Result};

/// The prefix of every key here.
pub(in crate::hot) const ROWS: &[u8] = b"throttle";
const BLOCKS: &[u8] = b"throttle/f";

/// The blocks that have a row: when each ends, and its subject.
#[derive(Debug, Default)]
pub(super) struct KeptBlocks(Mutex<BTreeSet<(i64, u128)>>);

impl Throttle {
    /// Takes over a row. `false`: its block has ended, or it is no row of a block.
    fn restore(&self, key: &[u8], value: &[u8], now: i64) -> bool {
        let Some(subject) = read_key(key) else { return false };
        let Some((from, until)) = decode(value) else { return false };
        // No block lasts longer than is configured now.
        let until = until.min(from.saturating_add(seconds(self.limits.auth_fail_block_seconds)));
        let begins_later = from > now.saturating_add(MAX_CLOCK_BACK);
        if self.failures_off() || begins_later || until <= now {
            return false;
        }
        self.failures.restore(subject, Window { begun: from, count: 0, block: Some((from, until)), refusing: true });
        self.kept_blocks.0.lock().unwrap_or_else(PoisonError::into_inner).insert((until, subject));
        true
    }
}

#[cfg(test)]
impl Throttle {
    /// Adds kept blocks without rows, which never end, up to the bound.
    pub(super) fn fill_kept_blocks(&self) {
        let mut kept = self.kept_blocks.0.lock().unwrap();
        let missing = MAX_REMEMBERED - kept.len() as u64;
        kept.extend((0..missing).map(|number| (i64::MAX, number.into())));
    }
}

impl Hot {
    /// Writes the present block of `who`. The row survives a kill once [`Hot::settled`] is through.
    pub fn keep_block(&self, throttle: &Throttle, who: &Failing<'_>, now: OffsetDateTime) -> Result<()> {
        let subject = who.subject();
        let (now, behind) = (throttle.clock.at(now), throttle.clock.behind());
        let block = throttle.failures.peek(subject, |window| window.block).flatten();
        // The lock is held for the write: rows are removed and written in the order of the blocks.
        let mut kept = throttle.kept_blocks.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended: Vec<_> = kept.iter().take_while(|(until, _)| *until <= now).take(BATCH_ROWS).copied().collect();
        for block in &ended {
            kept.remove(block);
        }
        let has_room = (kept.len() as u64) < MAX_REMEMBERED;
        let block = block.filter(|_| has_room);
        self.cache.write(|change| {
            for (_, subject) in ended {
                change.remove(key_of(subject))?;
            }
            if let Some((from, until)) = block {
                kept.insert((until, subject));
                change.insert(
                    key_of(subject),
                    [from, until].map(|time| time.saturating_sub(behind).to_be_bytes()).concat(),
                )?;
            }
            Ok(())
        })
    }

    /// Gives `throttle` the blocks of the last run, and removes rows that are none.
    pub fn restore_blocks(&self, throttle: &Throttle, now: OffsetDateTime) -> Result<()> {
        let now = throttle.clock.at(now);
        let mut dropped = Vec::new();
        for row in self.cache.rows(ROWS) {
            let (key, value) = row?;
            if !throttle.restore(&key, &value, now) {
                dropped.push(key);
            }
        }
        self.cache.remove_all(&dropped)
    }

    #[cfg(test)]
    pub(super) fn kept_blocks(&self) -> usize {
        self.cache.rows(ROWS).count()
    }
}

fn key_of(subject: u128) -> Vec<u8> {
    [BLOCKS, &subject.to_be_bytes()].concat()
}

fn read_key(key: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(key.strip_prefix(BLOCKS)?.try_into().ok()?))
}

fn decode(row: &[u8]) -> Option<(i64, i64)> {
    let (from, until) = row.split_at_checked(8)?;
    Some((i64::from_be_bytes(from.try_into().ok()?), i64::from_be_bytes(until.try_into().ok()?)))
}
