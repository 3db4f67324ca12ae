//! Keeping hot state equal to the records: what changed after the epoch that hot state has is read and applied.
//!
//! A crash at any line leaves hot state at an older epoch; the next catching up applies the same changes again, which
//! changes nothing where they were applied already.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::service::{Core, Result, ServiceError};

/// What became of the last one; catchings up are numbered as they are asked for.
#[derive(Default)]
pub(in crate::service) struct CaughtUp {
    /// The last one that is served.
    served: u64,
    /// The last one that waited for one that did not reach the records, and why.
    away: Option<(u64, String)>,
}

impl Core {
    /// Applies what changed in the records. Called after each change of our own by [`Core::commit`] (a store alone takes
    /// itself over), and by the background poll.
    ///
    /// Each waits for a flush or two, so those who queue up are served together: whoever asked before the present one
    /// began to read has what it read. Whoever waited for one that did not reach the records is not kept waiting for
    /// another.
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
        // What is opened comes first: where that fails, hot state stays where it is, and this is done again.
        if changes.authorities.is_some() && self.records.may_be_away() {
            // A rotation of another node seals the authorities anew.
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
            // Who is refused from now on is refused after a crash, too, with the records away.
            self.hot.settled().await?;
        }
        Ok(())
    }

    /// Starts from what hot state still knows of the last run. What it knows may be sealed with a key that a rotation has
    /// removed since, or belong to other records (a restored backup): then hot state is emptied, and built anew.
    pub(in crate::service) async fn adopt_hot(&self) -> Result<()> {
        let opened = self.hot.canonical().map(|version| self.open_canonical(&version, self.hot.epoch())).transpose();
        let is_ahead = !self.secrets.are_from_hot && self.hot.epoch() > self.records.epoch().await?;
        if is_ahead || opened.is_err() {
            log::warn!(event = "hot_state_rebuilt"; "hot state does not belong to the records: it is built anew");
            self.hot.reset()?;
            if self.secrets.are_from_hot {
                // Nobody would be known until they are back.
                return Err(ServiceError::RecordsAway { cause: "hot state cannot be used without the records".into() });
            }
            return Ok(());
        }
        self.canonical.store(opened?.map(Arc::new));
        self.adopt_settings(self.hot.settings());
        Ok(())
    }
}
