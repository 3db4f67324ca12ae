//! Rotating the data keys while the daemon runs.
//!
//! 1. A new key is added to the records, sealed under the master key.
//! 2. The ring with it takes effect: everything written from then on is sealed with it.
//! 3. Values sealed with older keys are sealed again, one by one. Each is replaced only if it is still what was read.
//! 4. Older keys that nothing is sealed with are removed.
//!
//! A crash after 1, 2 or 3 leaves a ring with several keys, which opens everything. The next boot sees that and goes on
//! at 3. A value written with an old ring just before 2 keeps its key from being removed at 4; then 3 is repeated.

use crate::records::SealingKey;
use crate::seal::{KeyId, KeyRing};
use crate::service::core::initiator::log_note;
use crate::service::{Initiator, Result, ServiceError, Trust};

const VALUES_PER_BATCH: usize = 256;
/// Rounds of resealing before the rest is left to the next boot. One is enough unless writers with an old ring
/// interfere.
const MAX_RESEAL_ROUNDS: usize = 16;

pub struct Rotation {
    pub active: KeyId,
    pub resealed: u64,
    pub removed: usize,
}

impl Trust {
    /// Makes a new data key, seals everything with it and removes the old ones.
    pub async fn rotate_keys(&self, by: &Initiator) -> Result<Rotation> {
        let _one_at_a_time = self.rotating.lock().await;
        let present = self.core.reload_ring().await?;
        let id = KeyId(present.0.checked_add(1).ok_or_else(|| ServiceError::internal("the key ids are used up"))?);
        let key = SealingKey {
            id,
            sealed: KeyRing::new_key(&self.core.secrets.master, id, &*self.core.platform)?,
            created_at: self.core.platform.now(),
        };
        let note = by.note(key.created_at, "keys.rotate").on(id);
        if !self.core.records.sealing_key_add(&key, &note).await? {
            return Err(ServiceError::Unavailable { cause: "another node is rotating the keys".into() });
        }
        log_note(&note);
        self.core.reload_ring().await?;
        let rotation = self.retire_old_keys().await?;
        log::info!(event = "keys_rotated", active = rotation.active.0, resealed = rotation.resealed; "the data keys were rotated");
        Ok(rotation)
    }

    /// Resumes a rotation that a crash cut short. Does nothing on an ordinary boot.
    pub async fn resume_rotation(&self) -> Result<()> {
        let _one_at_a_time = self.rotating.lock().await;
        if self.core.health.standstill().is_some() {
            return Ok(());
        }
        if self.core.records.sealing_key_list().await?.len() > 1 {
            let rotation = self.retire_old_keys().await?;
            log::info!(event = "keys_rotated", active = rotation.active.0, resealed = rotation.resealed; "a rotation of the data keys that was cut short is finished");
        }
        Ok(())
    }

    async fn retire_old_keys(&self) -> Result<Rotation> {
        let active = self.core.ring.load().active();
        let mut rotation = Rotation { active, resealed: 0, removed: 0 };
        for _ in 0..MAX_RESEAL_ROUNDS {
            rotation.resealed += self.reseal_older(active).await?;
            for key in self.core.records.sealing_key_list().await?.into_iter().filter(|key| key.id != active) {
                rotation.removed += usize::from(self.core.records.sealing_key_remove(key.id).await?);
            }
            if self.core.records.sealing_key_list().await?.len() == 1 {
                break;
            }
        }
        // Hot state holds sealed values too. It takes over the resealed ones while the ring still opens the old ones.
        // If that fails, the ring goes on opening all of them.
        let followed = async {
            self.core.catch_up().await?;
            self.core.reload_ring().await
        };
        if let Err(error) = followed.await {
            log::warn!(event = "old_keys_in_memory", cause:% = error; "the data keys are rotated; this node keeps the old ones in memory until it is started again");
        }
        Ok(rotation)
    }

    async fn reseal_older(&self, active: KeyId) -> Result<u64> {
        let mut resealed = 0;
        loop {
            let values = self.core.records.sealed_value_list_before(active, VALUES_PER_BATCH).await?;
            if values.is_empty() {
                return Ok(resealed);
            }
            let ring = self.core.ring.load_full();
            for (place, old) in values {
                let plain = ring.open(&place, &old)?;
                let new = ring.seal(&place, &plain, &*self.core.platform)?;
                resealed += u64::from(self.core.records.sealed_value_replace(&place, &old, &new).await?);
            }
        }
    }
}
