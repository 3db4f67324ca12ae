//! Limits how many logins one host may store within an hour, so that a broken or hostile host does not fill the store
//! with versions.
//!
//! Each node counts in memory, only for hosts that stored something within the last hour. A restart resets the counts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

use crate::model::host::HostId;
use crate::service::error::Throttled;

const BUDGET_WINDOW: Duration = Duration::HOUR;
/// The number of windows at which expired ones are first removed.
const FIRST_SWEEP_HOSTS: usize = 1024;

#[derive(Default)]
pub struct StoreBudget(Mutex<Windows>);

#[derive(Default)]
struct Windows {
    of_host: HashMap<HostId, BudgetWindow>,
    /// The number of windows at which expired ones are removed next.
    sweep_at: usize,
}

struct BudgetWindow {
    begun: OffsetDateTime,
    stores: u32,
}

impl BudgetWindow {
    /// A window that begins in the future is over: the clock was set back.
    fn is_over(&self, now: OffsetDateTime) -> bool {
        now < self.begun || now - self.begun >= BUDGET_WINDOW
    }
}

impl StoreBudget {
    /// Counts a store of `host`. `limit` 0: any number is allowed.
    pub fn take(&self, host: HostId, limit: u32, now: OffsetDateTime) -> Result<(), Throttled> {
        if limit == 0 {
            return Ok(());
        }
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.of_host.len() >= windows.sweep_at.max(FIRST_SWEEP_HOSTS) {
            windows.of_host.retain(|_, window| !window.is_over(now));
            windows.sweep_at = windows.of_host.len() * 2;
        }
        let window = windows.of_host.entry(host).or_insert(BudgetWindow { begun: now, stores: 0 });
        if window.is_over(now) {
            *window = BudgetWindow { begun: now, stores: 0 };
        }
        if window.stores >= limit {
            return Err(Throttled::new(limit, window.begun + BUDGET_WINDOW, now));
        }
        window.stores += 1;
        Ok(())
    }

    /// Takes back a counted store that made no new version.
    pub fn give_back(&self, host: HostId) {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = windows.of_host.get_mut(&host) {
            window.stores = window.stores.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-29 12:00 UTC);

    #[test]
    fn a_host_has_its_own_hour() {
        let budget = StoreBudget::default();
        for minute in 0..3 {
            budget.take(HostId(1), 3, NOW + Duration::minutes(minute)).unwrap();
        }
        let refused = budget.take(HostId(1), 3, NOW + Duration::minutes(10)).unwrap_err();
        assert_eq!((refused.limit, refused.retry_after_seconds), (3, 50 * 60));
        assert_eq!(refused.reset_at, NOW + Duration::HOUR);
        budget.take(HostId(2), 3, NOW).unwrap();
        budget.give_back(HostId(1));
        budget.take(HostId(1), 3, NOW + Duration::minutes(11)).unwrap();
        assert!(budget.take(HostId(1), 3, NOW + Duration::minutes(59)).is_err());
        budget.take(HostId(1), 3, NOW + Duration::HOUR).unwrap();
        (0..9).for_each(|_| budget.take(HostId(3), 0, NOW).unwrap());
    }

    #[test]
    fn a_clock_that_was_set_back_refuses_nobody_for_longer() {
        let budget = StoreBudget::default();
        budget.take(HostId(1), 1, NOW).unwrap();
        budget.take(HostId(1), 1, NOW - Duration::hours(5)).unwrap();
        assert!(budget.take(HostId(1), 1, NOW - Duration::hours(5)).is_err());
    }

    #[test]
    fn hosts_that_stored_long_ago_take_no_memory() {
        let budget = StoreBudget::default();
        for hour in 0..4 {
            for host in 0..3000 {
                let now = NOW + Duration::hours(hour) + Duration::seconds(i64::from(host as u16) / 100);
                budget.take(HostId(hour as u64 * 3000 + host), 1, now).unwrap();
            }
        }
        let held = budget.0.lock().unwrap().of_host.len();
        assert!(held <= 3 * 3000, "{held}");
    }
}
