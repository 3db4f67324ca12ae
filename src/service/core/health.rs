//! The health of the stores. While the store has failed or is away, the daemon is degraded: it answers from memory what
//! it can, and refuses the rest.
//!
//! An embedded store that failed stays so for the life of its process (see `durable`); the daemon's wiring sees that
//! here and replaces the process. A database that is away comes back: the poll notices both, and then writes what was
//! kept meanwhile. A database that can only be read (a standby, `read_only`) is noticed by the outbox or by a readiness
//! check. Each poll tries it until it takes a change. A store at a standstill is read but takes no changes.
//! Records that were filled anew under a running daemon are not the ones that it knows: it applies nothing of them, and
//! the wiring replaces the process.
//!
//! Nothing is stored here, except now and then the time when the records were last reached, for a daemon that starts
//! without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::hot::Hot;
use crate::model::checkup;
use crate::platform::Platform;
use crate::records::{Epoch, Records, RecordsError, Standstill, StoreFailure, StoreState};
use crate::service::{Result, ServiceError};

/// A store that takes no more changes in this process.
pub struct Failed {
    pub since: OffsetDateTime,
    pub failure: StoreFailure,
}

/// Records that cannot be reached, or cannot be written.
pub struct Away {
    pub since: OffsetDateTime,
    /// When the records were last reached; what is served was true then. `None`: never in the life of this hot state,
    /// or they can be read all the time.
    pub known_at: Option<OffsetDateTime>,
    /// The latest cause.
    pub why: String,
    /// The records can be read and take no change. Only a change that they take ends this.
    pub unwritten: bool,
}

/// Either of the two, as admins see it.
pub struct Degraded {
    pub since: OffsetDateTime,
    pub why: String,
    /// See [`Away::known_at`]; a store that has failed was known up to `since`.
    pub known_at: Option<OffsetDateTime>,
}

/// For people: what still works meanwhile, and what does not.
pub const GOES_ON: &str = "Bound hosts get the login that was last known, and their activity is kept.";
pub const REFUSED: &str = "Stores, installations, first calls of new hosts and every change of an admin are refused until it is over; \
                           nothing can be revoked.";

/// How often the time when the records were reached is stored.
const REACHED_NOTE_INTERVAL: Duration = Duration::seconds(10);

/// The state of the stores as this node last found it.
pub struct Health {
    records: Arc<dyn Records>,
    hot: Arc<Hot>,
    platform: Arc<dyn Platform>,
    /// Of the store that this process runs on.
    incarnation: Option<Uuid>,
    store_failed: ArcSwapOption<Failed>,
    away: ArcSwapOption<Away>,
    standstill: ArcSwapOption<Standstill>,
    /// The store was replaced, or is about to be: this process must be replaced.
    superseded: AtomicBool,
}

impl Health {
    pub(in crate::service) fn new(
        records: Arc<dyn Records>,
        hot: Arc<Hot>,
        platform: Arc<dyn Platform>,
        incarnation: Option<Uuid>,
    ) -> Self {
        Self {
            records,
            hot,
            platform,
            incarnation,
            store_failed: ArcSwapOption::empty(),
            away: ArcSwapOption::empty(),
            standstill: ArcSwapOption::empty(),
            superseded: AtomicBool::new(false),
        }
    }

    /// Whether calls can be served: the records can be read and what is written becomes durable.
    pub async fn ready(&self) -> Result<()> {
        self.check_degraded()?;
        let checked = self.try_writing().await;
        // The check itself may have found a failure.
        self.check_degraded()?;
        checked
    }

    /// Since when and why, if a store has failed.
    pub fn store_failed(&self) -> Option<Arc<Failed>> {
        if let Some(known) = self.store_failed.load_full() {
            return Some(known);
        }
        let failure = self.records.failure().or_else(|| self.hot.failure())?;
        let found = Arc::new(Failed { since: self.platform.now(), failure });
        // The first caller that saw the failure sets its time.
        self.store_failed.compare_and_swap(&None::<Arc<Failed>>, Some(found));
        self.store_failed.load_full()
    }

    /// Why hot state cannot be read any more, if so. A new process sets it aside.
    pub fn hot_state_broken(&self) -> Option<String> {
        self.hot.broken()
    }

    /// Notes for the next process that hot state is broken.
    pub async fn note_hot_state_broken(&self, cause: &str) {
        if let Err(error) = self.hot.note_broken(cause).await {
            // The next process reads every row when it opens hot state, and may notice by itself.
            log::warn!(event = "not_noted", cause:% = error; "could not note for the next start that hot state is broken");
        }
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
    pub fn incarnation(&self) -> Option<Uuid> {
        self.incarnation
    }

    /// Whether this process must be replaced, because its store is, or will be, another one.
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::SeqCst)
    }

    pub(in crate::service) fn ask_to_be_replaced(&self) {
        self.superseded.store(true, Ordering::SeqCst);
    }

    /// Notes the state of the whole store; returns its epoch.
    pub(in crate::service) fn note_state(&self, state: StoreState) -> Result<Epoch> {
        let StoreState { epoch, incarnation, standstill } = state;
        if incarnation != self.incarnation {
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

    /// Since when and why the daemon is degraded, if it is. Does not wait.
    pub fn degraded(&self) -> Option<Degraded> {
        if let Some(failed) = self.store_failed() {
            let what = if self.hot.broken().is_some() {
                "hot state could not be read"
            } else {
                "the store could not be written"
            };
            let why = format!("{what} ({})", failed.failure.cause);
            return Some(Degraded { since: failed.since, why, known_at: Some(failed.since) });
        }
        let away = self.away()?;
        let what = if away.unwritten { "take no changes" } else { "are not available" };
        let why = format!("the records {what} ({})", away.why);
        Some(Degraded { since: away.since, why, known_at: away.known_at })
    }

    pub(in crate::service) fn check_degraded(&self) -> Result<()> {
        let Some(Degraded { since, mut why, known_at }) = self.degraded() else {
            return match self.standstill() {
                Some(still) => Err(ServiceError::StandsStill { since: still.since, reason: still.reason.clone() }),
                None => Ok(()),
            };
        };
        if let Some(at) = known_at.filter(|at| *at != since) {
            why.push_str(&format!(", answers are as of {}", checkup::shown(at)));
        }
        Err(ServiceError::Degraded { since, why })
    }

    /// Notes whether the records could be reached.
    pub(in crate::service) fn note_reached<T>(&self, outcome: std::result::Result<T, RecordsError>) -> Result<T> {
        match &outcome {
            Ok(_) if self.away().is_some_and(|away| away.unwritten) => self.keep_reached(),
            Ok(_) => self.is_back(),
            Err(RecordsError::Unavailable(why)) => self.is_away(why, false),
            Err(_) => {}
        }
        Ok(outcome?)
    }

    /// Tries whether the records take a change, and notes the result.
    pub(in crate::service) async fn try_writing(&self) -> Result<()> {
        let outcome = self.records.check().await;
        match &outcome {
            // A store at a standstill could take one.
            Ok(()) | Err(RecordsError::StandsStill(_)) => self.is_back(),
            Err(RecordsError::Unavailable(why)) => self.is_away(why, true),
            Err(_) => {}
        }
        Ok(outcome?)
    }

    /// Tries whether records that took no change, or not every one, take them now.
    pub(in crate::service) async fn look_after_unwritten(&self) {
        if self.records.refused_lately() || self.away().is_some_and(|away| away.unwritten) {
            // `try_writing` notes the result.
            let _ = self.try_writing().await;
        }
    }

    fn is_away(&self, why: &str, unwritten: bool) {
        let known = self.away();
        // Records that take no change may turn out to be unreadable later. The reverse does not hold: a failed write
        // does not show that they can be read again.
        let unwritten = unwritten && known.as_ref().is_none_or(|known| known.unwritten);
        if known.as_ref().is_some_and(|known| known.why == why && known.unwritten == unwritten) {
            return;
        }
        let since = known.as_ref().map_or_else(|| self.platform.now(), |known| known.since);
        // Records that can be read are up to date.
        let known_at = if unwritten { Some(since) } else { self.hot.reached_at().ok().flatten() };
        self.away.store(Some(Arc::new(Away { since, known_at, why: why.into(), unwritten })));
        if known.is_some() {
            return;
        }
        log::error!(
            event = "degraded", since:% = since, known_at:? = known_at, unwritten, cause = why;
            "the records are not available: logins are served as they were last known, everything else is answered 503; \
             the daemon goes on by itself once they are back"
        );
    }

    fn is_back(&self) {
        if let Some(away) = self.away.swap(None) {
            log::info!(event = "recovered", since:% = away.since; "the records are available again");
        }
        self.keep_reached();
    }

    /// Stores now and then that the records were reached, for a daemon that starts without them.
    fn keep_reached(&self) {
        if !self.records.may_be_away() {
            return;
        }
        let now = self.platform.now();
        let known = self.hot.reached_at().ok().flatten();
        if known.is_none_or(|known| (now - known).abs() >= REACHED_NOTE_INTERVAL)
            && let Err(error) = self.hot.note_reached(now)
        {
            log::debug!(event = "not_noted", cause:% = error; "could not note when the records were reached");
        }
    }
}
