//! Degraded: the store has failed, or is away, so what needs it is refused, while what memory can answer is answered.
//!
//! An embedded store that failed stays so for the life of its process (see `durable`); whoever runs the daemon sees it
//! here and replaces the process. A database that is away comes back: the poll notices both, and what was kept meanwhile
//! goes to it. A store that stands still is served from and takes no changes. Records that were filled anew under a daemon
//! are others than it knows: it applies nothing of them, and whoever runs it replaces the process. Nothing is stored here but, now and then, when the records were last reached, for a daemon that starts
//! without them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use time::{Duration, OffsetDateTime};

use super::{Result, Service, ServiceError};
use crate::records::{Epoch, RecordsError, Standstill, StoreFailure, StoreState};

/// A store that takes no more changes in this process.
pub struct Failed {
    pub since: OffsetDateTime,
    pub failure: StoreFailure,
}

/// Records that cannot be reached, or not written.
pub struct Away {
    pub since: OffsetDateTime,
    /// When they were reached last; what is served was true then. `None`: not in the life of this hot state.
    pub known_at: Option<OffsetDateTime>,
    pub why: String,
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

    /// Since when and why, if the store stands still.
    pub fn standstill(&self) -> Option<Arc<Standstill>> {
        self.standstill.load_full()
    }

    /// Of the store that this process runs on.
    pub fn incarnation(&self) -> Option<uuid::Uuid> {
        self.secrets.incarnation
    }

    /// Whether this process is to be replaced, since its store is, or will be, another one.
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::SeqCst)
    }

    pub(super) fn ask_to_be_replaced(&self) {
        self.superseded.store(true, Ordering::SeqCst);
    }

    /// Takes note of how the store is as a whole; gives its epoch.
    pub(super) fn note_state(&self, state: StoreState) -> Result<Epoch> {
        let StoreState { epoch, incarnation, standstill } = state;
        if incarnation != self.secrets.incarnation {
            if !self.superseded.swap(true, Ordering::SeqCst) {
                log::warn!(event = "records_replaced"; "the records were restored, or filled anew: this process is replaced by one that starts from them");
            }
            let cause = "the records were restored: this process ends, and another one takes its place".into();
            return Err(ServiceError::RecordsAway { cause });
        }
        let known = self.standstill.load();
        match (&standstill, known.is_some()) {
            (Some(Standstill { reason, since }), false) => {
                log::warn!(event = "stands_still", since:%, cause = reason.as_str(); "the store takes no changes: {reason}");
            }
            (None, true) => log::info!(event = "goes_on"; "the store takes changes again"),
            _ => {}
        }
        if known.as_deref() != standstill.as_ref() {
            self.standstill.store(standstill.map(Arc::new));
        }
        Ok(epoch)
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
            None => match self.standstill() {
                Some(still) => Err(ServiceError::StandsStill { since: still.since, reason: still.reason.clone() }),
                None => Ok(()),
            },
        }
    }

    /// Takes note of whether the records could be reached.
    pub(super) fn note_reached<T>(&self, outcome: std::result::Result<T, RecordsError>) -> Result<T> {
        match &outcome {
            Ok(_) => self.is_back(),
            Err(RecordsError::Unavailable(why)) => self.is_away(why),
            Err(_) => {}
        }
        Ok(outcome?)
    }

    fn is_away(&self, why: &str) {
        if self.away.load().is_some() {
            return;
        }
        let (since, known_at) = (self.outside.now(), self.hot.reached_at().ok().flatten());
        self.away.store(Some(Arc::new(Away { since, known_at, why: why.into() })));
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
