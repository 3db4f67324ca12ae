//! The throttles in hot state, so that a restart does not forgive.
//!
//! One row for whoever has a window that still counts, `throttle/` + bucket + who, and one with the time that they are
//! told in. Each row stands for itself: a crash between two of them, or a row that cannot be read, costs that one's
//! count. Rows whose time is over are removed while the daemon runs, so there are about as many as there were callers
//! within the last minute, and never more than a bound.
//!
//! If the clock shows less than when the last row was written, it was set back while nobody looked, and how long ago that
//! was cannot be known: then the rows are dropped, so that nobody is locked out for longer than was meant.

use time::OffsetDateTime;

use super::clock::MAX_CLOCK_BACK;
use super::counts::{Counts, Window};
use super::{Failing, Throttle, seconds};
use crate::hot::{BATCH_ROWS, Hot, Result};

/// How every key of these rows begins.
pub(in crate::hot) const ROWS: &[u8] = b"throttle";
pub(super) const THROTTLE: &[u8] = b"throttle/";
const CLOCK: &[u8] = b"throttle-clock";

/// What is to be written.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The time of writing, and how far the wall clock is behind it.
    clock: [i64; 2],
}

impl Rows {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Bucket {
    Global = b'g',
    Host = b'h',
    AuthFailures = b'f',
}

const BUCKETS: [Bucket; 3] = [Bucket::Global, Bucket::Host, Bucket::AuthFailures];

impl Throttle {
    /// What changed since the last time.
    pub fn gather(&self, now: OffsetDateTime) -> Rows {
        let time = self.clock.at(now);
        let mut rows = Vec::new();
        for bucket in BUCKETS {
            for (who, window) in self.counts(bucket).gather(time) {
                rows.push((key_of(bucket, who), window.map(|window| encode(&window))));
            }
        }
        Rows { rows, clock: [time, self.clock.behind()] }
    }

    /// These failures alone.
    pub fn gather_failures(&self, who: &Failing<'_>, now: OffsetDateTime) -> Rows {
        let row = self.failures.gather_one(who.who());
        let row = row.map(|(who, window)| (key_of(Bucket::AuthFailures, who), Some(encode(&window))));
        Rows { rows: row.into_iter().collect(), clock: [self.clock.at(now), self.clock.behind()] }
    }

    fn counts(&self, bucket: Bucket) -> &Counts {
        match bucket {
            Bucket::Global => &self.calls,
            Bucket::Host => &self.hosts,
            Bucket::AuthFailures => &self.failures,
        }
    }

    /// Takes over a row. `false`: it counts no more, or says nothing.
    fn restore(&self, key: &[u8], value: &[u8], now: i64) -> bool {
        let Some((bucket, who)) = read_key(key) else { return false };
        let Some(mut window) = decode(value) else { return false };
        let (off, limit, block) = match bucket {
            Bucket::Global => (self.limits.global_per_minute == 0, self.limits.global_per_minute, 0),
            Bucket::Host => (self.limits.host_per_minute == 0, self.limits.host_per_minute, 0),
            Bucket::AuthFailures => (self.failures_off(), u32::MAX, seconds(self.limits.auth_fail_block_seconds)),
        };
        let soon = now.saturating_add(MAX_CLOCK_BACK);
        if off || window.begun > soon || window.block.is_some_and(|(from, _)| from > soon) {
            return false;
        }
        // None lasts longer than is configured now.
        window.block = window.block.map(|(from, until)| (from, until.min(from.saturating_add(block))));
        window.refusing = window.count >= limit || window.block.is_some();
        self.counts(bucket).restore(who, window, now)
    }
}

impl Hot {
    /// Writes what was gathered; it is kept once [`Hot::settled`] is through. With a great many rows it takes a
    /// while: not for an async task then.
    pub fn keep_throttle(&self, rows: Rows) -> Result<()> {
        let mut rest = rows.rows.into_iter().peekable();
        while rest.peek().is_some() {
            self.cache.write(|change| {
                for (key, value) in rest.by_ref().take(BATCH_ROWS) {
                    match value {
                        Some(value) => change.insert(key, value)?,
                        None => change.remove(key)?,
                    }
                }
                change.insert(CLOCK, rows.clock.map(i64::to_be_bytes).concat())
            })?;
        }
        Ok(())
    }

    /// Gives `throttle` what the last run kept, and removes what counts no more.
    pub fn restore_throttle(&self, throttle: &Throttle, now: OffsetDateTime) -> Result<()> {
        let clock = self.cache.get_bytes(CLOCK)?;
        let clock = clock.as_deref().and_then(|row| Some([read_i64(row.get(..8)?)?, read_i64(row.get(8..)?)?]));
        let in_order = clock.is_none_or(|[written_at, behind]| throttle.clock.resume(written_at, behind, now));
        let now = throttle.clock.at(now);
        let mut over = Vec::new();
        for row in self.cache.rows(THROTTLE) {
            let (key, value) = row?;
            if !in_order || !throttle.restore(&key, &value, now) {
                over.push(key);
            }
        }
        self.cache.remove_all(&over)
    }
}

fn key_of(bucket: Bucket, who: u128) -> Vec<u8> {
    [THROTTLE, &[bucket as u8], &who.to_be_bytes()].concat()
}

fn read_key(key: &[u8]) -> Option<(Bucket, u128)> {
    let (name, who) = key.strip_prefix(THROTTLE)?.split_first()?;
    let bucket = BUCKETS.into_iter().find(|bucket| *bucket as u8 == *name)?;
    Some((bucket, u128::from_be_bytes(who.try_into().ok()?)))
}

/// Three times and a count.
const ROW: usize = 3 * 8 + 4;

fn encode(window: &Window) -> Vec<u8> {
    let (from, until) = window.block.unwrap_or_default();
    let times = [window.begun, from, until].map(i64::to_be_bytes).concat();
    [&times[..], &window.count.to_be_bytes()].concat()
}

fn decode(row: &[u8]) -> Option<Window> {
    if row.len() != ROW {
        return None;
    }
    let (begun, from, until) = (read_i64(row.get(..8)?)?, read_i64(row.get(8..16)?)?, read_i64(row.get(16..24)?)?);
    let count = u32::from_be_bytes(row.get(24..)?.try_into().ok()?);
    let block = (until != 0).then_some((from, until));
    Some(Window { begun, count, block, refusing: false })
}

fn read_i64(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}
