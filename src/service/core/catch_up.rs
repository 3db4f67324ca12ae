//! Keeps hot state equal to the records: reads and applies the changes after the epoch of hot state.
//!
//! A crash at any line leaves hot state at an older epoch. The next catch-up applies the same changes again, which is
//! harmless.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::service::{Core, Result, ServiceError};

/// The results of past catch-ups. Catch-ups are numbered in the order in which they are asked for.
#[derive(Default)]
pub(in crate::service) struct CaughtUp {
    /// Requests up to this number are served.
    served: u64,
    /// The last request that waited for a catch-up that did not reach the records, and why it did not.
    away: Option<(u64, String)>,
}

impl Core {
    /// Applies what changed in the records. Called by [`Core::commit`] after each change of this node, and by the
    /// background poll. A successful store puts its version in force itself instead.
    ///
    /// A catch-up waits for a flush or two, so queued callers are served together. A caller that asked before the
    /// present catch-up began to read shares its result. A caller that waited for one that did not reach the records
    /// gets that error, and does not wait for another.
    pub async fn catch_up(&self) -> Result<()> {
        let mine = self.catch_ups_asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last = self.catching_up.lock().await;
        if last.served >= mine {
            return Ok(());
        }
        if let Some((_, cause)) = last.away.as_ref().filter(|(asked, _)| *asked >= mine) {
            return Err(ServiceError::RecordsAway { cause: cause.clone() });
        }
        let serves = self.catch_ups_asked.load(Ordering::SeqCst);
        match self.apply_changes().await {
            Ok(()) => last.served = serves,
            Err(ServiceError::RecordsAway { cause }) => {
                last.away = Some((self.catch_ups_asked.load(Ordering::SeqCst), cause.clone()));
                return Err(ServiceError::RecordsAway { cause });
            }
            Err(error) => return Err(error),
        }
        drop(last);
        self.health.look_after_unwritten().await;
        Ok(())
    }

    async fn apply_changes(&self) -> Result<()> {
        let state = self.health.note_reached(self.records.state().await)?;
        let epoch = self.health.note_state(state)?;
        self.health.note_reached(self.load_people().await)?;
        if epoch == self.hot.epoch() {
            return Ok(());
        }
        let mut changes = self.health.note_reached(self.records.changes_since(self.hot.epoch()).await)?;
        if changes.epoch == self.hot.epoch() {
            return Ok(());
        }
        // Values that must be opened come first: if that fails, hot state stays at its epoch, and the next catch-up
        // tries again.
        if changes.authorities.is_some() && self.records.may_be_away() {
            // Another node may have rotated the data keys, which seals the authorities anew.
            self.reload_ring().await?;
        }
        if let Some(version) = &changes.canonical {
            self.adopt_canonical(self.open_canonical(version, changes.epoch)?);
        }
        if changes.certificates.is_some() || changes.authorities.is_some() {
            self.adopt_trust(changes.certificates.clone(), changes.authorities.as_deref())?;
        }
        self.adopt_people(&mut changes);
        self.hot.apply(&changes)?;
        self.directory.put(&changes.hosts);
        if let Some(settings) = changes.settings {
            self.adopt_settings(Arc::new(settings));
        }
        if self.records.may_be_away() {
            // Whatever is refused from now on must be refused after a crash, too, while the records are away.
            self.hot.settled().await?;
        }
        Ok(())
    }

    /// Starts from what hot state still knows of the last run. It may be sealed with a key that a rotation has removed
    /// since, or belong to other records (a restored backup). Then hot state is emptied and built anew.
    pub(in crate::service) async fn adopt_hot(&self) -> Result<()> {
        let opened = self.hot.canonical().map(|version| self.open_canonical(&version, self.hot.epoch())).transpose();
        let is_ahead = !self.secrets.are_from_hot && self.hot.epoch() > self.records.epoch().await?;
        if is_ahead || opened.is_err() {
            log::warn!(event = "hot_state_rebuilt"; "hot state does not belong to the records: it is built anew");
            self.hot.reset()?;
            if self.secrets.are_from_hot {
                // No host would be known until the records are back.
                return Err(ServiceError::RecordsAway { cause: "hot state cannot be used without the records".into() });
            }
            return Ok(());
        }
        self.canonical.store(opened?.map(Arc::new));
        self.adopt_settings(self.hot.settings());
        Ok(())
    }
}
