//! Time for the throttles: the wall clock, except that a wall clock that is set back does not set this time back. So no block lasts
//! longer than configured. A wall clock that is set forward ends a block early.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::SECOND;

/// Calls read the clock before they are counted, so their times may be out of order by this much. More is a clock set back.
pub(super) const MAX_CLOCK_BACK: i64 = SECOND;
/// `latest` is written at most this often, so that calls do not contend for its cache line.
const CLOCK_STEP: i64 = SECOND / 10;

#[derive(Default)]
pub(super) struct ThrottleClock {
    /// The sum of all steps back of the wall clock, in nanoseconds.
    behind: AtomicI64,
    latest: AtomicI64,
    turning: Mutex<()>,
}

impl ThrottleClock {
    /// Nanoseconds since 1970; they never go back by more than [`MAX_CLOCK_BACK`].
    pub(super) fn at(&self, now: OffsetDateTime) -> i64 {
        let wall = nanoseconds(now);
        let time = wall.saturating_add(self.behind.load(Ordering::Acquire));
        let latest = self.latest.load(Ordering::Acquire);
        if time >= latest {
            if time - latest > CLOCK_STEP {
                self.latest.fetch_max(time, Ordering::AcqRel);
            }
            return time;
        }
        if latest - time <= MAX_CLOCK_BACK { time } else { self.set_back(wall) }
    }

    #[cold]
    fn set_back(&self, wall: i64) -> i64 {
        let _alone = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let (behind, latest) = (self.behind.load(Ordering::Acquire), self.latest.load(Ordering::Acquire));
        let time = wall.saturating_add(behind);
        if latest.saturating_sub(time) <= MAX_CLOCK_BACK {
            return time;
        }
        self.behind.store(latest.saturating_sub(wall), Ordering::Release);
        latest
    }

    /// The wall clock's time at `time`, unless it is set again.
    pub(super) fn wall(&self, time: i64) -> OffsetDateTime {
        let wall = time.saturating_sub(self.behind());
        OffsetDateTime::from_unix_timestamp_nanos(wall.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    pub(super) fn behind(&self) -> i64 {
        self.behind.load(Ordering::Acquire)
    }
}

fn nanoseconds(instant: OffsetDateTime) -> i64 {
    i64::try_from(instant.unix_timestamp_nanos()).unwrap_or(0)
}
