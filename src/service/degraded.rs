//! Degraded: a store has failed, so what needs it is refused, while what memory can answer is answered.
//!
//! A store that failed stays so for the life of its process (see `durable`). Whoever runs the daemon sees it here and
//! replaces the process; nothing here tries to mend anything, and nothing is stored.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{Result, Service, ServiceError};
use crate::records::StoreFailure;

pub struct Degraded {
    pub since: OffsetDateTime,
    pub failure: StoreFailure,
}

impl Service {
    /// Since when and why, if a store has failed.
    pub fn degraded(&self) -> Option<Arc<Degraded>> {
        if let Some(known) = self.degraded.load_full() {
            return Some(known);
        }
        let failure = self.records.failure().or_else(|| self.hot.failure())?;
        let found = Arc::new(Degraded { since: self.outside.now(), failure });
        // The first who saw it says since when.
        self.degraded.compare_and_swap(&None::<Arc<Degraded>>, Some(found));
        self.degraded.load_full()
    }

    pub(super) fn check_degraded(&self) -> Result<()> {
        match self.degraded() {
            Some(degraded) => {
                Err(ServiceError::Degraded { since: degraded.since, why: degraded.failure.cause.clone() })
            }
            None => Ok(()),
        }
    }
}
