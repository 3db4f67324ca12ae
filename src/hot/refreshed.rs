//! A login that Codex refreshed in a probe and that the records have not taken yet. There is no other copy, and the
//! login before it is spent. It is stored here, sealed, until the records are available, and survives the end of this
//! process.

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
    /// On return it survives a power cut. A later login replaces an earlier one.
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
