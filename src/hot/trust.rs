//! The state in which the cache was last left: a row in the outbox, which survives a power cut; sled does not.
//!
//! | row | meaning | the next open |
//! | --- | --- | --- |
//! | none | new, or just upgraded | uses the cache |
//! | `closed`, with the sum of the rows | everything was synced | uses the cache if its sum matches |
//! | `open`, of this boot of the machine | the daemon was killed; the kernel kept what was written | uses the cache |
//! | `open`, of another boot | the power may have been cut | discards the cache |
//! | `opening` | the last process ended inside sled: it aborted, ran out of memory, or hung | sets it aside unread |
//! | `broken` | a read failed while the daemon ran | sets it aside unread |
//!
//! A crash before `opening` is safe leaves the former row. Later it leaves `opening` until everything was read.
//! `closed` is written only after the directory was synced. If the boot is unknown, it counts as another one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cache_store::Sum;
use super::{Result, encode, get};
use crate::durable::{self, Store};

/// The kernel's id of this boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The unit sets the same id in this variable: its `ProcSubset=pid` hides that file.
const BOOT_ID_VARIABLE: &str = "BOOT_ID";
const LEFT: &[u8] = b"cache";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CacheMark {
    pub boot: Option<String>,
    pub state: LeftState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LeftState {
    Opening,
    Open,
    /// Closed; its rows have this sum.
    Closed(String),
    Broken(String),
}

/// What to do with the existing cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Use it; `Some`: only if its rows have this sum.
    Use(Option<String>),
    /// The machine may have lost power.
    Discard,
    SetAside(String),
}

/// The id of this boot of the machine, 32 hex digits; `None`: it is not known.
pub(super) fn boot() -> Option<String> {
    let id = std::fs::read_to_string(BOOT_ID).ok().or_else(|| std::env::var(BOOT_ID_VARIABLE).ok())?;
    // systemd omits the dashes.
    let id = id.trim().replace('-', "");
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

pub(super) fn trust(left: Option<CacheMark>, boot: Option<&str>) -> Trust {
    let Some(CacheMark { boot: then, state }) = left else { return Trust::Use(None) };
    match state {
        LeftState::Closed(sum) => Trust::Use(Some(sum)),
        LeftState::Opening => Trust::SetAside("the last process ended while it opened it".into()),
        LeftState::Broken(cause) => Trust::SetAside(cause),
        LeftState::Open if boot.is_some() && then.as_deref() == boot => Trust::Use(None),
        LeftState::Open => Trust::Discard,
    }
}

pub(super) fn left(outbox: &Store) -> Result<Option<CacheMark>> {
    get(outbox, LEFT)
}

/// Records the state of the cache; safe once the outbox is settled.
pub(super) fn leave(outbox: &Store, boot: Option<&str>, state: LeftState) -> Result<()> {
    put_back(outbox, Some(&CacheMark { boot: boot.map(Into::into), state }))
}

/// Restores the earlier row.
pub(super) fn put_back(outbox: &Store, left: Option<&CacheMark>) -> Result<()> {
    let row = left.map(|left| encode("cache", left)).transpose()?;
    outbox.write(|staged| {
        match row {
            Some(row) => staged.insert(LEFT, row),
            None => staged.remove(LEFT),
        }
        Ok(())
    })
}

/// Dropping it records that the cache was closed cleanly. Drop it after the cache and before the outbox.
pub(super) struct Closing {
    pub outbox: Arc<Store>,
    pub directory: PathBuf,
    pub boot: Option<String>,
    /// The sum of the rows at the close; `None`: it is unknown.
    pub sum: Option<Sum>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Some(sum) = self.sum else { return };
        if let Err(cause) = self.close(sum) {
            log::warn!(event = "hot_state_unsynced", directory:% = self.directory.display(), cause = cause.as_str(); "hot state is closed but may not survive a power cut; it would then be rebuilt");
        }
    }
}

impl Closing {
    fn close(&self, sum: Sum) -> std::result::Result<(), String> {
        sync(&self.directory)?;
        let noted = leave(&self.outbox, self.boot.as_deref(), LeftState::Closed(sum.to_string()));
        noted.map_err(|error| error.to_string())?;
        self.outbox.commit_blocking().map_err(|error| error.to_string())
    }
}

/// Needed because sled syncs little of what it writes.
fn sync(directory: &Path) -> std::result::Result<(), String> {
    if !durable::is_released(directory) {
        return Err("sled did not release it".into());
    }
    durable::sync_whole(directory).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_decides_what_is_used() {
        let left = |state, boot: Option<&str>| Some(CacheMark { boot: boot.map(Into::into), state });
        let (ours, other) = (Some("this"), Some("that"));
        assert_eq!(trust(None, ours), Trust::Use(None));
        for (then, now) in [(ours, ours), (other, ours), (None, ours), (ours, None), (None, None)] {
            let closed = trust(left(LeftState::Closed("7".into()), then), now);
            assert_eq!(closed, Trust::Use(Some("7".into())), "{then:?} {now:?}");
            let open = if then == ours && now == ours { Trust::Use(None) } else { Trust::Discard };
            assert_eq!(trust(left(LeftState::Open, then), now), open, "{then:?} {now:?}");
            for state in [LeftState::Opening, LeftState::Broken("worn".into())] {
                let aside = trust(left(state, then), now);
                assert!(matches!(aside, Trust::SetAside(_)), "{then:?} {now:?}: {aside:?}");
            }
        }
    }
}
