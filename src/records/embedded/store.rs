//! The store itself: first boot, health, state, change feed.

use async_trait::async_trait;

use super::tables::{authorities, sealed_index};
use super::transaction::{self, StoreRow};
use super::{Embedded, change_feed, rows};
use crate::model::audit::AuditNote;
use crate::records::rules::being_filled;
use crate::records::{Changes, Epoch, RecordStore, RecordsError, Result, Seed, StoreFailure, StoreState};
use crate::seal::Place;

#[async_trait]
impl RecordStore for Embedded {
    async fn initialise(&self, seed: &Seed, note: &AuditNote) -> Result<bool> {
        self.change(|staged| {
            if staged.get(rows::INITIALISED)?.is_some() {
                return Ok(false);
            }
            rows::put(staged, rows::sealing_key(seed.sealing_key.id), &seed.sealing_key)?;
            for authority in &seed.authorities {
                authorities::put(staged, authority)?;
            }
            rows::put(staged, rows::SERVER_KEY, &seed.server_key)?;
            sealed_index::update(staged, &Place::new("settings", "server_key", 0), None, Some(&seed.server_key));
            staged.insert(rows::INITIALISED, "");
            transaction::note(staged, note)?;
            Ok(true)
        })
        .await
    }

    async fn is_initialised(&self) -> Result<bool> {
        self.read(|data| {
            transaction::check_whole(data)?;
            Ok(data.get(rows::INITIALISED)?.is_some())
        })
        .await
    }

    async fn check(&self) -> Result<()> {
        self.read(transaction::check_writable).await
    }

    fn failure(&self) -> Option<StoreFailure> {
        self.data.failure().map(|(place, cause)| StoreFailure { place, cause })
    }

    fn may_be_away(&self) -> bool {
        false
    }

    async fn verify(&self) -> Result<Option<u64>> {
        self.read_much(|data| {
            data.scan("").try_fold(0, |rows, row| row.map(|_| rows + 1)).map(Some).map_err(RecordsError::from)
        })
        .await
    }

    fn conflicts(&self) -> u64 {
        0
    }

    async fn epoch(&self) -> Result<Epoch> {
        self.read(transaction::epoch).await
    }

    async fn state(&self) -> Result<StoreState> {
        self.read(|data| {
            let StoreRow { incarnation, standstill, filling } = transaction::store_row(data)?;
            if filling.is_some() {
                return Err(being_filled());
            }
            Ok(StoreState { epoch: transaction::epoch(data)?, incarnation, standstill })
        })
        .await
    }

    async fn changes_since(&self, epoch: Epoch) -> Result<Changes> {
        #[cfg(test)]
        if self.following_fails.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(RecordsError::Unavailable("a test cut this node off".into()));
        }
        // Nearly every poll finds nothing, and then needs no other thread.
        let now = self.epoch().await?;
        if now <= epoch {
            return Ok(Changes { epoch: now, ..Changes::default() });
        }
        self.read_much(move |data| change_feed::since(data, epoch)).await
    }
}
