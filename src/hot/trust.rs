//! How the cache was last left: a row in the outbox, which survives a power cut where sled does not.
//!
//! | the row | means | the next open |
//! | --- | --- | --- |
//! | none | new, or just upgraded | uses what is there |
//! | `closed`, with the sum of the rows | everything was synced | uses it, if its sum is that one |
//! | `open`, of this boot of the machine | the daemon was killed; the kernel kept what was written | uses it |
//! | `open`, of another boot | the power may have been cut | throws it away |
//! | `opening` | the last process ended inside sled: it aborted, ran out of memory, or hung | sets it aside unread |
//! | `broken` | a read failed while the daemon ran | sets it aside unread |
//!
//! A crash leaves: before `opening` is safe, the former row; then `opening` until everything was read; from `closed` on a
//! directory that was synced before. Where the boot cannot be told, it counts as another one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cache_store::Sum;
use super::{Result, encode, get};
use crate::durable::{self, Store};

/// The kernel's id of this boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The same id, set by the unit: its `ProcSubset=pid` hides that file.
const BOOT_ID_VARIABLE: &str = "BOOT_ID";
const LEFT: &[u8] = b"cache";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    pub boot: Option<String>,
    pub state: LeftState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LeftState {
    Opening,
    Open,
    /// With the sum of its rows.
    Closed(String),
    Broken(String),
}

/// What is to be done with the cache that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// `Some`: if this is the sum of its rows.
    Use(Option<String>),
    /// The machine may have lost its power.
    Discard,
    SetAside(String),
}

/// The id of this boot of the machine, 32 hex digits; `None`: it is not known.
pub(super) fn boot() -> Option<String> {
    let id = std::fs::read_to_string(BOOT_ID).ok().or_else(|| std::env::var(BOOT_ID_VARIABLE).ok())?;
    // systemd writes it without dashes.
    let id = id.trim().replace('-', "");
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

pub(super) fn trust(left: Option<Left>, boot: Option<&str>) -> Trust {
    let Some(Left { boot: then, state }) = left else { return Trust::Use(None) };
    match state {
        LeftState::Closed(sum) => Trust::Use(Some(sum)),
        LeftState::Opening => Trust::SetAside("the last process that opened it ended while it did".into()),
        LeftState::Broken(cause) => Trust::SetAside(cause),
        LeftState::Open if boot.is_some() && then.as_deref() == boot => Trust::Use(None),
        LeftState::Open => Trust::Discard,
    }
}

pub(super) fn left(outbox: &Store) -> Result<Option<Left>> {
    get(outbox, LEFT)
}

/// Notes it; power-safe once the outbox is settled.
pub(super) fn leave(outbox: &Store, boot: Option<&str>, state: LeftState) -> Result<()> {
    put_back(outbox, Some(&Left { boot: boot.map(Into::into), state }))
}

/// Notes what was noted before.
pub(super) fn put_back(outbox: &Store, left: Option<&Left>) -> Result<()> {
    let row = left.map(|left| encode("cache", left)).transpose()?;
    outbox.write(|staged| {
        match row {
            Some(row) => staged.insert(LEFT, row),
            None => staged.remove(LEFT),
        }
        Ok(())
    })
}

/// Notes, when it is dropped, that the cache was closed well: to be dropped after the cache and before the outbox.
pub(super) struct Closing {
    pub outbox: Arc<Store>,
    pub directory: PathBuf,
    pub boot: Option<String>,
    /// Of the rows as they are closed; `None`: nothing can be said of them.
    pub sum: Option<Sum>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Some(sum) = self.sum else { return };
        if let Err(cause) = self.close(sum) {
            log::warn!(event = "hot_state_unsynced", directory:% = self.directory.display(), cause = cause.as_str(); "hot state is closed and may not survive a power cut; it is rebuilt after one");
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

/// sled syncs little of what it writes.
fn sync(directory: &Path) -> std::result::Result<(), String> {
    if !durable::is_released(directory) {
        return Err("sled did not let go of it".into());
    }
    durable::sync_whole(directory).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_decides_what_is_used() {
        let left = |state, boot: Option<&str>| Some(Left { boot: boot.map(Into::into), state });
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
