//! What a daemon needs of the records to start without them: the keys, sealed as they are there, and who is trusted.
//!
//! It changes in the same batch as the epoch: a daemon that starts from it trusts nobody who was refused at that epoch.

use time::OffsetDateTime;

use super::{Change, Hot, Result};
use crate::records::{BootMaterial, Changes, SealingKey};
use crate::seal::Sealed;

pub(super) const FOUNDATION: &[u8] = b"foundation";
/// When the records were last reached, as far as it was noted.
pub(super) const REACHED: &[u8] = b"reached";

impl Hot {
    pub fn foundation(&self) -> Result<Option<BootMaterial>> {
        self.cache.get(FOUNDATION)
    }

    pub fn keep_foundation(&self, foundation: &BootMaterial) -> Result<()> {
        self.cache.write(|change| change.put(FOUNDATION, foundation))
    }

    /// The data keys, which change without an epoch, and the server's key, which a rotation seals anew with them.
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
    // Without one there is nothing to start from, and nothing to keep up to date.
    let Some(mut foundation) = rows.get::<BootMaterial>(FOUNDATION)? else { return Ok(()) };
    change(&mut foundation);
    rows.put(FOUNDATION, &foundation)
}
