//! Degraded: the store has failed, or is away, so what needs it is refused, while what memory can answer is answered.
//!
//! An embedded store that failed stays so for the life of its process (see `durable`); whoever runs the daemon sees it
//! here and replaces the process. A database that is away comes back: the poll notices both, and what was kept meanwhile
//! goes to it. One that can be read and not written is noticed by who has something to write, or asks whether we are
//! ready; that it is over is tried once a second. Nothing is stored here but, now and then, when the records were last
//! reached, for a daemon that starts without them.

use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::{Result, Service, ServiceError};
use crate::records::{RecordsError, StoreFailure};

/// A store that takes no more changes in this process.
pub struct Failed {
    pub since: OffsetDateTime,
    pub failure: StoreFailure,
}

/// Records that cannot be reached, or not written.
pub struct Away {
    pub since: OffsetDateTime,
    /// When they were reached last; what is served was true then. `None`: not in the life of this hot state, or they can
    /// be read all the time.
    pub known_at: Option<OffsetDateTime>,
    /// As it was found last.
    pub why: String,
    /// They can be read, and that does not mean that they are back.
    pub can_be_read: bool,
}

/// How often it is noted that the records were reached.
const NOTED: Duration = Duration::seconds(10);

impl Service {
    /// Since when and why, if a store has failed.
    pub fn store_failed(&self) -> Option<Arc<Failed>> {
        if let Some(known) = self.store_failed.load_full() {
            return Some(known);
        }
        let failure = self.records.failure().or_else(|| self.hot.failure())?;
        let found = Arc::new(Failed { since: self.outside.now(), failure });
        // The first who saw it says since when.
        self.store_failed.compare_and_swap(&None::<Arc<Failed>>, Some(found));
        self.store_failed.load_full()
    }

    /// Since when and why, if the records are away.
    pub fn away(&self) -> Option<Arc<Away>> {
        self.away.load_full()
    }

    pub(super) fn check_degraded(&self) -> Result<()> {
        if let Some(failed) = self.store_failed() {
            let why = format!("the store could not be written ({})", failed.failure.cause);
            return Err(ServiceError::Degraded { since: failed.since, why });
        }
        match self.away() {
            Some(away) => {
                let of = away.known_at.map(|at| format!(", what is served is of {at}")).unwrap_or_default();
                let why = format!("the records are not available ({}){of}", away.why);
                Err(ServiceError::Degraded { since: away.since, why })
            }
            None => Ok(()),
        }
    }

    /// Takes note of whether the records could be reached.
    pub(super) fn note_reached<T>(&self, outcome: std::result::Result<T, RecordsError>) -> Result<T> {
        match &outcome {
            Ok(_) if self.away().is_some_and(|away| away.can_be_read) => {}
            Ok(_) => self.is_back(),
            Err(RecordsError::Unavailable(why)) => self.is_away(why, false),
            Err(_) => {}
        }
        Ok(outcome?)
    }

    /// Tries whether they can be written, and takes note of it.
    pub(super) async fn try_writing(&self) -> Result<()> {
        let outcome = self.records.check().await;
        match &outcome {
            Ok(()) => self.is_back(),
            Err(RecordsError::Unavailable(why)) if self.away().is_none() => {
                let can_be_read = self.records.epoch().await.is_ok();
                self.is_away(why, can_be_read);
            }
            Err(_) => {}
        }
        Ok(outcome?)
    }

    fn is_away(&self, why: &str, can_be_read: bool) {
        if let Some(away) = self.away() {
            // It stays away, for another reason perhaps.
            if away.why != why {
                let Away { since, known_at, can_be_read, .. } = *away;
                self.away.store(Some(Arc::new(Away { since, known_at, why: why.into(), can_be_read })));
            }
            return;
        }
        let known_at = if can_be_read { None } else { self.hot.reached_at().ok().flatten() };
        let since = self.outside.now();
        self.away.store(Some(Arc::new(Away { since, known_at, why: why.into(), can_be_read })));
        log::error!(
            event = "degraded", since:% = since, known_at:? = known_at, cause = why;
            "the records are not available: logins are served as they were last known, everything else is answered 503; \
             the daemon goes on by itself once they are back"
        );
    }

    fn is_back(&self) {
        let now = self.outside.now();
        if let Some(away) = self.away.swap(None) {
            log::info!(event = "recovered", since:% = away.since; "the records are available again");
        }
        if !self.records.may_be_away() {
            return;
        }
        let known = self.hot.reached_at().ok().flatten();
        if known.is_none_or(|known| (now - known).abs() >= NOTED)
            && let Err(error) = self.hot.note_reached(now)
        {
            log::debug!(event = "not_noted", cause:% = error; "when the records were reached is not noted");
        }
    }
}
