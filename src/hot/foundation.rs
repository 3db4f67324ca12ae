//! The data that a daemon needs to start without the records: sealed keys, authorities and admin certificates.
//!
//! It changes in the same batch as the epoch. So a daemon that starts from it trusts no certificate that was revoked at
//! that epoch.

use time::OffsetDateTime;

use super::{Change, Hot, Result};
use crate::records::{BootMaterial, Changes, SealingKey};
use crate::seal::Sealed;

pub(super) const FOUNDATION: &[u8] = b"foundation";
/// When the records were last reached; written from time to time.
pub(super) const REACHED: &[u8] = b"reached";

impl Hot {
    pub fn foundation(&self) -> Result<Option<BootMaterial>> {
        self.cache.get(FOUNDATION)
    }

    pub fn keep_foundation(&self, foundation: &BootMaterial) -> Result<()> {
        self.cache.write(|change| change.put(FOUNDATION, foundation))
    }

    /// Stores the data keys, which change without an epoch, and the server's key, which a rotation seals again with
    /// them.
    pub fn keep_keys(&self, sealing_keys: &[SealingKey], server_key: &Sealed) -> Result<()> {
        self.cache.write(|rows| {
            change(rows, |foundation| {
                foundation.sealing_keys = sealing_keys.to_vec();
                foundation.server_key = server_key.clone();
            })
        })
    }

    pub fn reached_at(&self) -> Result<Option<OffsetDateTime>> {
        let seconds: Option<i64> = self.cache.get(REACHED)?;
        Ok(seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()))
    }

    pub fn note_reached(&self, now: OffsetDateTime) -> Result<()> {
        self.cache.write(|change| change.put(REACHED, &now.unix_timestamp()))
    }
}

pub(super) fn take_over(rows: &mut Change<'_, '_>, changes: &Changes) -> Result<()> {
    if changes.certificates.is_none() && changes.authorities.is_none() {
        return Ok(());
    }
    change(rows, |foundation| {
        if let Some(certificates) = &changes.certificates {
            foundation.certificates.clone_from(certificates);
        }
        if let Some(authorities) = &changes.authorities {
            foundation.authorities.clone_from(authorities);
        }
    })
}

fn change(rows: &mut Change<'_, '_>, change: impl FnOnce(&mut BootMaterial)) -> Result<()> {
    // Without a foundation the daemon cannot start alone, and there is nothing to update.
    let Some(mut foundation) = rows.get::<BootMaterial>(FOUNDATION)? else { return Ok(()) };
    change(&mut foundation);
    rows.put(FOUNDATION, &foundation)
}
