//! Time for the throttles: the wall clock, but when that is set back, time goes on from where it was. So a block lasts as
//! long as it was meant to, whatever the clock does; one that is set forward ends it early, which locks nobody out.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::SECOND;

/// Calls read the clock before they come here, so they may come a little out of order; that is no clock set back.
pub(super) const MAX_CLOCK_BACK: i64 = SECOND;
/// `latest` is written this rarely, so that calls share it without fighting for it.
const CLOCK_STEP: i64 = SECOND / 10;

#[derive(Default)]
pub(super) struct Clock {
    /// How far the wall clock was set back in all, in nanoseconds.
    behind: AtomicI64,
    latest: AtomicI64,
    turning: Mutex<()>,
}

impl Clock {
    /// Nanoseconds that never jump back.
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

    /// What the wall clock shows at `time`, if nobody sets it again.
    pub(super) fn wall(&self, time: i64) -> OffsetDateTime {
        let wall = time.saturating_sub(self.behind());
        OffsetDateTime::from_unix_timestamp_nanos(wall.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    pub(super) fn behind(&self) -> i64 {
        self.behind.load(Ordering::Acquire)
    }

    /// Goes on from where another run was. `false`: the clock was set back in between; then time begins anew.
    pub(super) fn resume(&self, latest: i64, behind: i64, now: OffsetDateTime) -> bool {
        let in_order = latest.saturating_sub(nanoseconds(now).saturating_add(behind)) <= MAX_CLOCK_BACK;
        if in_order {
            self.behind.store(behind, Ordering::Release);
        }
        in_order
    }
}

fn nanoseconds(instant: OffsetDateTime) -> i64 {
    i64::try_from(instant.unix_timestamp_nanos()).unwrap_or(0)
}
