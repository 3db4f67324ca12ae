//! Windows by address or host, bounded in memory.
//!
//! Whoever is being refused is remembered apart as well: a flood of other addresses makes us forget counts, but never
//! somebody who is blocked before somebody who is not. Where even those are too many, the one refused first goes first.
//!
//! On the way of a call: one look into a concurrent map, one lock that only calls of the same address or host share, and,
//! for the first of them in a second, one short push.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::SECOND;

/// Real time may run slower than ours; there are few of these, so they may stay a little.
const COUNT_RETENTION: Duration = Duration::from_secs(600);

/// All times in nanoseconds of [`super::clock::Clock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub begun: i64,
    pub count: u32,
    /// From and until.
    pub block: Option<(i64, i64)>,
    /// Whether the next one is refused, for as long as this window or block lasts.
    pub refusing: bool,
}

impl Window {
    /// Begins anew when the window is over.
    pub(super) fn turn(&mut self, now: i64, length: i64) {
        // One that begins a little later than now was begun by a call that came in between.
        if now.saturating_sub(self.begun) >= length || self.begun.saturating_sub(now) > 2 * SECOND {
            *self = Self { begun: now, ..Self::default() };
        }
    }

    pub(super) fn blocked_until(&self, now: i64) -> Option<i64> {
        self.block.filter(|(_, until)| now < *until).map(|(_, until)| until)
    }

    /// When nothing of this matters any more.
    fn over(&self, length: i64) -> i64 {
        self.begun.saturating_add(length).max(self.block.map_or(i64::MIN, |(_, until)| until))
    }
}

struct Entry {
    who: u128,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    window: Window,
    /// It stands in `changed`.
    noted: bool,
}

pub(super) struct Counts {
    bound: usize,
    window: i64,
    known: Cache<u128, Arc<Entry>>,
    /// Those of them who are refused, or were a moment ago.
    refused: Cache<u128, Arc<Entry>>,
    changed: Mutex<Vec<Arc<Entry>>>,
    /// Who has a row in hot state, and until when it matters.
    kept: Mutex<HashMap<u128, i64>>,
}

impl Counts {
    /// Windows of `window`, and blocks of `block` where there are any.
    pub(super) fn new(bound: u64, window: i64, block: i64) -> Self {
        // Who was not here for a window's length has nothing that counts; these lengths are of real time.
        let length = |nanoseconds: i64| Duration::from_nanos(nanoseconds.max(SECOND).unsigned_abs());
        Self {
            bound: usize::try_from(bound).unwrap_or(usize::MAX),
            window,
            known: Cache::builder().max_capacity(bound).time_to_idle(length(window)).build(),
            refused: Cache::builder()
                .max_capacity(bound)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(2 * length(window.max(block)) + COUNT_RETENTION)
                .build(),
            changed: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    pub(super) fn with<T>(&self, who: u128, count: impl FnOnce(&mut Window) -> T) -> T {
        let entry = match self.known.get(&who) {
            Some(entry) => entry,
            None => self.known.get_with(who, || {
                let remembered = self.refused.get(&who);
                remembered.unwrap_or_else(|| Arc::new(Entry { who, state: Mutex::default() }))
            }),
        };
        let mut state = lock(&entry.state);
        let before = state.window;
        let outcome = count(&mut state.window);
        let after = state.window;
        let note = before != after && !state.noted && self.note(&entry);
        state.noted |= note;
        drop(state);
        if after.refusing && !before.refusing {
            self.refused.insert(who, entry);
        }
        outcome
    }

    /// Remembers nothing new.
    pub(super) fn peek<T>(&self, who: u128, look: impl FnOnce(&Window) -> T) -> Option<T> {
        let entry = self.known.get(&who).or_else(|| self.refused.get(&who))?;
        let state = lock(&entry.state);
        Some(look(&state.window))
    }

    /// `false` in a flood: then this one is kept when it changes again.
    fn note(&self, entry: &Arc<Entry>) -> bool {
        let mut changed = lock(&self.changed);
        let room = changed.len() < self.bound;
        if room {
            changed.push(Arc::clone(entry));
        }
        room
    }

    /// What changed since the last time, with `None` for whom nothing counts any more. There are never more rows than
    /// addresses that are remembered: in a flood, the rows that are there have precedence.
    pub(super) fn gather(&self, now: i64) -> Vec<(u128, Option<Window>)> {
        self.known.run_pending_tasks();
        self.refused.run_pending_tasks();
        let changed = std::mem::take(&mut *lock(&self.changed));
        let mut kept = lock(&self.kept);
        let mut rows = Vec::with_capacity(changed.len());
        kept.retain(|who, over| {
            let counts = *over > now;
            if !counts {
                rows.push((*who, None));
            }
            counts
        });
        for entry in changed {
            let window = {
                let mut state = lock(&entry.state);
                state.noted = false;
                state.window
            };
            let over = window.over(self.window);
            if over > now && (kept.len() < self.bound || kept.contains_key(&entry.who)) {
                kept.insert(entry.who, over);
                rows.push((entry.who, Some(window)));
            }
        }
        if kept.capacity() > 4 * kept.len() + 1024 {
            kept.shrink_to_fit();
        }
        rows
    }

    /// This one's window alone, to be kept at once.
    pub(super) fn gather_one(&self, who: u128) -> Option<(u128, Window)> {
        let window = self.peek(who, |window| *window)?;
        let mut kept = lock(&self.kept);
        let room = kept.len() < self.bound || kept.contains_key(&who);
        room.then(|| {
            kept.insert(who, window.over(self.window));
            (who, window)
        })
    }

    /// Takes over a row of the last run. `false`: it counts no more.
    pub(super) fn restore(&self, who: u128, window: Window, now: i64) -> bool {
        let over = window.over(self.window);
        let mut kept = lock(&self.kept);
        if over <= now || kept.len() >= self.bound {
            return false;
        }
        kept.insert(who, over);
        let entry = Arc::new(Entry { who, state: Mutex::new(State { window, noted: false }) });
        if window.refusing {
            self.refused.insert(who, Arc::clone(&entry));
        }
        self.known.insert(who, entry);
        true
    }

    /// Remembered in memory, among them refused, and kept as rows.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (u64, u64, usize) {
        self.known.run_pending_tasks();
        self.refused.run_pending_tasks();
        (self.known.entry_count(), self.refused.entry_count(), lock(&self.kept).len())
    }

    #[cfg(test)]
    pub(super) fn changed_len(&self) -> usize {
        lock(&self.changed).len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
