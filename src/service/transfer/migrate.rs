//! Migration: copies everything into another, empty store.
//!
//! 1. Filling the other store begins first: if it cannot be filled, that is known before anything else happens.
//! 2. The present store stands still: it acknowledges nothing that the other store would lack. Reads and retrieves go
//!    on. Telemetry waits in the outbox; its position is copied too, so each batch arrives once.
//! 3. Every row is copied, read back and compared; then the other store is marked as complete.
//! 4. The present store keeps standing still: daemons must be started on the other one.
//!
//! If a step fails, the present store takes changes again. After a crash it still stands still, and its reason says
//! what to do: migrating again begins anew, [`Transfer::abort_migration`] ends the standstill.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::platform::random;
use crate::records::{Epoch, Filling, Standstill};
use crate::service::core::initiator::log_note;
use crate::service::transfer::{Compared, Opened, ProgressReporter, RunningExport, Target, fill_from, finish, of};
use crate::service::{Initiator, Result, ServiceError, Transfer};

#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    /// The name of the new store, without secrets.
    pub to: String,
    pub tables: Vec<Compared>,
    /// What the operator must do next.
    pub next: String,
}

const BACK: &str = "`codex-authd migrate --abort` lets this store go on";

impl Transfer {
    pub async fn migrate(&self, by: &Initiator, target: &Target, reporter: &ProgressReporter) -> Result<Moved> {
        let _one_at_a_time = self.begin_moving()?;
        let stores = self.stores()?;
        let opened = stores.open(target).await?;
        let filling = Filling { id: self.new_id(), above: Epoch(0) };
        begin(&opened, &filling).await?;
        let from = stores.present();
        let reason = format!("it is being moved to {}; if that was cut short, migrate again, or {BACK}", opened.name);
        let moving = async {
            self.stand_still(by, Some(&reason), "state.migrate", &opened.name).await?;
            self.copy_to(by, &from, &opened, filling, reporter).await
        };
        let moved = moving.await;
        let after = match &moved {
            Ok(_) => {
                let moved = format!("it was moved to {}: start the daemons on that one; {BACK}", opened.name);
                self.restate(&moved).await
            }
            Err(_) => self.stand_still(by, None, "state.migrate_failed", &opened.name).await,
        };
        if let Err(error) = after {
            // The store keeps the earlier reason, which also says what to do.
            log::warn!(event = "standstill_unchanged", cause:% = error; "the standstill could not be updated: the store stands still as during the migration");
        }
        moved
    }

    /// Ends a standstill. Returns whether there was one.
    pub async fn abort_migration(&self, by: &Initiator) -> Result<bool> {
        let _one_at_a_time = self.begin_moving()?;
        let stands_still = self.core.records.state().await?.standstill.is_some();
        if stands_still {
            self.stand_still(by, None, "state.migrate_abort", &self.stores()?.present()).await?;
        }
        Ok(stands_still)
    }

    async fn copy_to(
        &self,
        by: &Initiator,
        from: &str,
        opened: &Opened,
        filling: Filling,
        reporter: &ProgressReporter,
    ) -> Result<Moved> {
        // The store stands still, so no node will ever know a later epoch.
        let filling = Filling { above: self.core.records.epoch().await?, ..filling };
        begin(opened, &filling).await?;
        let about = self.about_rows().await?;
        let mut export = RunningExport::begin(&self.core.records);
        let tables = fill_from(&opened.records, &opened.name, &filling, &mut export.chunks, about, reporter).await?;
        // A failed export ends the rows too early; this reports it.
        export.end().await?;
        let note = by.note(self.core.platform.now(), "state.migrate").on(&opened.name).with("from", from);
        finish(&opened.records, &filling, &note).await?;
        log_note(&note);
        Ok(Moved { to: opened.name.clone(), tables, next: opened.next.clone() })
    }

    pub(in crate::service) fn begin_moving(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let busy = |_| ServiceError::Conflict("a migration or a restore is under way; wait for its end".into());
        self.moving.try_lock().map_err(busy)
    }

    pub(in crate::service) fn new_id(&self) -> Uuid {
        uuid::Builder::from_random_bytes(random(&*self.core.platform)).into_uuid()
    }

    pub(in crate::service) async fn stand_still(
        &self,
        by: &Initiator,
        reason: Option<&str>,
        action: &str,
        target: &str,
    ) -> Result<()> {
        let now = self.core.platform.now();
        let standstill = reason.map(|reason| Standstill { reason: reason.into(), since: now });
        let note = by.note(now, action).on(target);
        self.core.records.standstill_set(standstill.as_ref(), &note).await?;
        log_note(&note);
        self.look().await;
        Ok(())
    }

    /// Learns of the standstill at once, before the next poll.
    async fn look(&self) {
        if let Err(error) = self.core.catch_up().await {
            log::debug!(event = "not_caught_up", cause:% = error; "the poll will look again");
        }
    }

    /// Replaces the reason of the standstill.
    async fn restate(&self, reason: &str) -> Result<()> {
        let Some(present) = self.core.records.state().await?.standstill else { return Ok(()) };
        let standstill = Standstill { reason: reason.into(), ..present };
        let note = Initiator::daemon().note(self.core.platform.now(), "state.moved");
        self.core.records.standstill_set(Some(&standstill), &note).await?;
        self.look().await;
        Ok(())
    }
}

async fn begin(opened: &Opened, filling: &Filling) -> Result<()> {
    let name = &opened.name;
    if opened.records.fill_begin(filling, false).await.map_err(|error| of(name, error))? {
        return Ok(());
    }
    Err(ServiceError::Refused(format!("{name} holds something: name one that is empty, or empty it first")))
}
