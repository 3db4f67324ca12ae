//! A login that Codex refreshed in a probe and that the records have not taken yet: nobody else has it, and its
//! forerunner is spent. It waits here, sealed, for records that are away, whatever becomes of this process meanwhile.

use serde::{Deserialize, Serialize};

use super::{Hot, HotError, Result, get, put};
use crate::seal::Sealed;

pub(super) const REFRESHED: &[u8] = b"refreshed";

#[derive(Debug, Serialize, Deserialize)]
pub struct Refreshed {
    /// The version that was probed.
    pub of: u64,
    /// At place `hot/refreshed/<of>`.
    pub login: Sealed,
}

impl Hot {
    /// Power-safe when it returns. A later one takes the place of an earlier one.
    pub async fn keep_refreshed(&self, refreshed: &Refreshed) -> Result<()> {
        self.outbox.write(|staged| put(staged, REFRESHED, refreshed))?;
        Ok(self.outbox.settled().await?)
    }

    pub fn refreshed(&self) -> Result<Option<Refreshed>> {
        get(&self.outbox, REFRESHED)
    }

    pub fn forget_refreshed(&self) -> Result<()> {
        self.outbox.write::<_, HotError>(|staged| {
            staged.remove(REFRESHED);
            Ok(())
        })
    }
}
