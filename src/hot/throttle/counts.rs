//! Windows by subject (an address, a host, a user or an account), bounded in memory.
//!
//! Refused subjects are remembered in a cache of their own. So a flood of other addresses evicts counts, but evicts no subject
//! that is blocked before one that is not. If that cache is full too, the subject refused first is evicted first.
//!
//! The cost for a call is one lookup in a concurrent map, and one lock that it shares with calls of the same subject only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::SECOND;

/// Added to the lifetime of refused subjects: real time may run slower than the throttle's.
const COUNT_RETENTION: Duration = Duration::from_secs(600);

/// All times in nanoseconds of [`super::clock::ThrottleClock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub begun: i64,
    pub count: u32,
    /// The time that the block began and the time that it ends.
    pub block: Option<(i64, i64)>,
    /// Whether the next request is refused, for as long as this window or block lasts.
    pub refusing: bool,
}

impl Window {
    /// Starts a new window if this one is over.
    pub(super) fn turn(&mut self, now: i64, length: i64) {
        // A call in between may have started a window that begins a little later than `now`.
        if now.saturating_sub(self.begun) >= length || self.begun.saturating_sub(now) > 2 * SECOND {
            *self = Self { begun: now, ..Self::default() };
        }
    }

    pub(super) fn blocked_until(&self, now: i64) -> Option<i64> {
        self.block.filter(|(_, until)| now < *until).map(|(_, until)| until)
    }
}

type SharedWindow = Arc<Mutex<Window>>;

pub(super) struct WindowCounts {
    known: Cache<u128, SharedWindow>,
    /// The subjects that are refused, or were until a moment ago.
    refused: Cache<u128, SharedWindow>,
}

impl WindowCounts {
    /// `window` and `block` are the lengths of a window and of a block, in nanoseconds.
    pub(super) fn new(bound: u64, window: i64, block: i64) -> Self {
        // These lengths are of real time. After an idle window nothing of it counts any more.
        let length = |nanoseconds: i64| Duration::from_nanos(nanoseconds.max(SECOND).unsigned_abs());
        Self {
            known: Cache::builder().max_capacity(bound).time_to_idle(length(window)).build(),
            refused: Cache::builder()
                .max_capacity(bound)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(2 * length(window.max(block)) + COUNT_RETENTION)
                .build(),
        }
    }

    pub(super) fn with<T>(&self, subject: u128, count: impl FnOnce(&mut Window) -> T) -> T {
        let entry = match self.known.get(&subject) {
            Some(entry) => entry,
            None => self.known.get_with(subject, || self.refused.get(&subject).unwrap_or_default()),
        };
        let mut window = lock(&entry);
        let was_refusing = window.refusing;
        let outcome = count(&mut window);
        let is_refusing = window.refusing;
        drop(window);
        if is_refusing && !was_refusing {
            self.refused.insert(subject, entry);
        }
        outcome
    }

    /// Reads the window of a subject, without remembering a new one.
    pub(super) fn peek<T>(&self, subject: u128, look: impl FnOnce(&Window) -> T) -> Option<T> {
        let entry = self.known.get(&subject).or_else(|| self.refused.get(&subject))?;
        let window = lock(&entry);
        Some(look(&window))
    }

    /// Takes over the window of a refused subject from the last run.
    pub(super) fn restore(&self, subject: u128, window: Window) {
        let entry = Arc::new(Mutex::new(window));
        self.refused.insert(subject, Arc::clone(&entry));
        self.known.insert(subject, entry);
    }

    /// How many subjects are remembered, and how many of them as refused.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (u64, u64) {
        self.known.run_pending_tasks();
        self.refused.run_pending_tasks();
        (self.known.entry_count(), self.refused.entry_count())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
