//! Hot state: what answering a host needs, in memory and on a sled database of its own, so that no call waits for the
//! records. Rebuilt from them at any time by [`Hot::apply`].
//!
//! It is the only copy of nothing but the outbox (telemetry that was acknowledged and is not in the records yet) and of a
//! login that a probe refreshed while the records were away ([`refreshed`]). Losing
//! the directory costs speed, unsent telemetry, and the node's id: a new one is made, so that the records never mistake
//! new batches for old ones.
//!
//! What a crash leaves: rows are applied in batches and the epoch is written with the last, so a torn [`Hot::apply`] is
//! done again, whole. Rows wait for no flush (the log keeps their order, so an epoch on disk has its rows on disk); the
//! outbox does.
//!
//! It knows no plaintext secret, and not what the rules of a host mean.

mod foundation;
mod hosts;
mod memo;
mod outbox;
mod refreshed;
mod states;
pub mod throttle;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::durable::{Durable, DurableError, Staged};
use crate::model::digest::Digest;
use crate::model::host::{HostActivity, HostId};
use crate::outside::Outside;
use crate::records::{CanonicalVersion, Changes, Epoch, Host, InstallToken, Settings, StoreFailure, Telemetry};

pub use hosts::{AgentIdentity, HostRevision, HotHost, InHand, Seen};
pub use memo::Pieces;
pub use refreshed::Refreshed;
pub use states::HostStates;

#[derive(Debug, thiserror::Error)]
pub enum HotError {
    #[error(transparent)]
    Store(#[from] DurableError),
    #[error("the hot state holds something unreadable ({0}); stop codex-authd and remove its directory, it is rebuilt")]
    Corrupt(String),
}

pub type Result<T> = std::result::Result<T, HotError>;

pub struct Hot {
    data: Durable,
    /// One change of what is cached at a time.
    applying: Mutex<()>,
    hosts: hosts::Cache,
    canonical: ArcSwapOption<CanonicalVersion>,
    settings: ArcSwap<Settings>,
    epoch: AtomicU64,
    node: Uuid,
    depth: AtomicU64,
}

impl Hot {
    /// Opens the hot state in `dir`, making it where it is missing.
    pub fn open(dir: &Path, outside: &dyn Outside) -> Result<Self> {
        Self::on(Durable::open(dir)?, outside)
    }

    /// On a disk that fails as long as `failing` is set.
    #[cfg(test)]
    pub(crate) fn on_failing_disk(
        dir: &Path,
        failing: Arc<std::sync::atomic::AtomicBool>,
        outside: &dyn Outside,
    ) -> Result<Self> {
        Self::on(Durable::open_on_failing_disk(dir, failing)?, outside)
    }

    fn on(data: Durable, outside: &dyn Outside) -> Result<Self> {
        let node = outbox::node(&data, outside)?;
        states::count_if_missing(&data)?;
        let canonical = data.get_large(CANONICAL)?.map(|value| decode("canonical", &value)).transpose()?;
        let settings: Option<Settings> = get(&data, SETTINGS)?;
        let epoch: Option<Epoch> = get(&data, EPOCH)?;
        let depth = data.scan(outbox::BATCH).count() as u64;
        let format: Option<u32> = get(&data, FORMAT)?;
        let hot = Self {
            data,
            applying: Mutex::new(()),
            hosts: hosts::Cache::default(),
            canonical: ArcSwapOption::from_pointee(canonical),
            settings: ArcSwap::from_pointee(settings.unwrap_or_default()),
            epoch: AtomicU64::new(epoch.unwrap_or_default().0),
            node,
            depth: AtomicU64::new(depth),
        };
        match format {
            Some(PRESENT_FORMAT) => return Ok(hot),
            // The first format, which said nothing of itself, had no list of hosts without activity.
            None => hosts::list_without_activity(&hot.data)?,
            // What comes from the records is built anew; the outbox and the node's numbers are read by every version.
            Some(_) => hot.reset()?,
        }
        hot.data.write(|staged| put(staged, FORMAT, &PRESENT_FORMAT))?;
        Ok(hot)
    }

    /// Says whose cache this is: `identity` names the records. Whatever was cached from others is dropped; then `true`.
    pub fn belongs_to(&self, identity: &str) -> Result<bool> {
        let known: Option<String> = get(&self.data, IDENTITY)?;
        let others = known.as_deref().is_some_and(|known| known != identity);
        if others {
            self.reset()?;
            self.forget_refreshed()?;
        }
        if known.as_deref() != Some(identity) {
            self.data.write(|staged| put(staged, IDENTITY, &identity))?;
        }
        Ok(others)
    }

    /// Up to where the records' changes have been applied; `Epoch(0)`: none are.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::SeqCst))
    }

    /// Takes over what the records told; they were asked for what changed since [`Hot::epoch`]. When it returns, a removed
    /// or replaced key is found no more. Doing it again, or with changes that are overtaken, is harmless. With a great
    /// many changes it takes a while: not for an async task then.
    pub fn apply(&self, changes: &Changes) -> Result<()> {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.epoch < self.epoch() {
            return Ok(());
        }
        for hosts in changes.hosts.chunks(BATCH_ROWS) {
            self.data.write(|staged| hosts.iter().try_for_each(|host| hosts::write(staged, host)))?;
            self.hosts.replace(hosts);
        }
        for tokens in changes.install_tokens.chunks(BATCH_ROWS) {
            self.data
                .write(|staged| tokens.iter().try_for_each(|token| put(staged, token_key(&token.digest), token)))?;
        }
        self.data.write(|staged| -> Result<()> {
            if let Some(canonical) = &changes.canonical {
                staged.insert_large(CANONICAL, &encode("canonical", canonical)?)?;
            }
            if let Some(settings) = &changes.settings {
                put(staged, SETTINGS, settings)?;
            }
            foundation::take_over(staged, changes)?;
            put(staged, EPOCH, &changes.epoch)
        })?;
        if let Some(canonical) = &changes.canonical {
            self.canonical.store(Some(Arc::new(canonical.clone())));
        }
        if let Some(settings) = &changes.settings {
            self.settings.store(Arc::new(settings.clone()));
        }
        self.epoch.store(changes.epoch.0, Ordering::SeqCst);
        Ok(())
    }

    /// Puts hosts and settings over what is stored, in memory: for where that cannot be written, or may be newer. What the
    /// records tell after `changes.epoch`, which is to be asked for again, takes their place.
    pub fn overrule(&self, changes: &Changes) {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        self.hosts.overrule(&self.data, &changes.hosts);
        if let Some(settings) = &changes.settings {
            self.settings.store(Arc::new(settings.clone()));
        }
        self.epoch.fetch_min(changes.epoch.0, Ordering::SeqCst);
    }

    /// Forgets everything that comes from the records, when it is ahead of them or of others. The outbox stays.
    pub fn reset(&self) -> Result<()> {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        // The epoch first: a crash in between leaves a cache that knows it is empty.
        self.data.write::<_, HotError>(|staged| {
            staged.remove(EPOCH);
            staged.remove(IDENTITY);
            staged.remove(SETTINGS);
            staged.remove(states::STATES);
            Ok(staged.remove_large(CANONICAL)?)
        })?;
        for prefix in [hosts::HOST, hosts::KEY, hosts::ACTIVITY, hosts::UNKNOWN, TOKEN] {
            let keys = self
                .data
                .scan(prefix)
                .map(|row| row.map(|(key, _)| key))
                .collect::<std::result::Result<Vec<_>, _>>()?;
            self.remove_rows(&keys)?;
        }
        states::count_if_missing(&self.data)?;
        self.hosts.clear();
        self.canonical.store(None);
        self.settings.store(Arc::default());
        self.epoch.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// The host that a key with this digest belongs to.
    pub fn host_by_key(&self, key: &Digest) -> Result<Option<Arc<HotHost>>> {
        self.hosts.by_key(&self.data, key)
    }

    pub fn host_by_id(&self, id: HostId) -> Result<Option<Arc<HotHost>>> {
        self.hosts.by_id(&self.data, id)
    }

    /// An installer token as it was when the records last told of it; spent and revoked ones are there too.
    pub fn install_token(&self, token: &Digest) -> Result<Option<InstallToken>> {
        get(&self.data, token_key(token))
    }

    /// Forgets the installer tokens that expired before `when`; says how many.
    pub fn purge_install_tokens(&self, when: OffsetDateTime) -> Result<usize> {
        let mut expired = Vec::new();
        for row in self.data.scan(TOKEN) {
            let (key, value) = row?;
            if decode::<InstallToken>("token", &value)?.expires_at < when {
                expired.push(key);
            }
        }
        self.remove_rows(&expired)?;
        Ok(expired.len())
    }

    /// The canonical version, sealed.
    pub fn canonical(&self) -> Option<Arc<CanonicalVersion>> {
        self.canonical.load_full()
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// What hosts did and was not gathered yet, one for each of at most `limit` hosts, those that wait longest: for
    /// [`Hot::outbox_append`].
    pub fn gather_seen(&self, limit: usize) -> Vec<Telemetry> {
        self.hosts.gather_seen(limit)
    }

    /// Tells of every host, with what it did up to the last gathering. Changes go on meanwhile: what changes after it was
    /// told, or before, may be told either way. Not for an async task.
    pub fn each_host(&self, tell: impl FnMut(Host, HostActivity)) -> Result<()> {
        hosts::each(&self.data, tell)
    }

    /// The hosts whose activity this cache never learnt: after a rebuild the caller asks the records, and tells it by
    /// [`Hot::set_activities`], before the hosts are served.
    pub fn hosts_without_activity(&self) -> Result<Vec<HostId>> {
        hosts::without_activity(&self.data)
    }

    /// What the records know of hosts' activity. What they do not know yet (the outbox) should be drained before.
    pub fn set_activities(&self, known: &[(HostId, HostActivity)]) -> Result<()> {
        for known in known.chunks(BATCH_ROWS) {
            self.data.write(|staged| {
                known.iter().try_for_each(|(id, activity)| hosts::write_activity(staged, *id, activity))
            })?;
            for (id, activity) in known {
                self.hosts.set_activity(*id, activity);
            }
        }
        Ok(())
    }

    /// Returns once everything written so far survives a crash.
    pub async fn settled(&self) -> Result<()> {
        Ok(self.data.settled().await?)
    }

    /// `false` once something could not be made safe; only another process can open it anew.
    pub fn healthy(&self) -> bool {
        self.data.healthy()
    }

    /// `observe` is told how long each flush takes.
    pub fn on_flush(&self, observe: impl Fn(std::time::Duration) + Send + Sync + 'static) {
        self.data.on_flush(observe);
    }

    /// Why it takes no more changes, if it does not.
    pub fn failure(&self) -> Option<StoreFailure> {
        self.data.failure().map(|(place, cause)| StoreFailure { place, cause })
    }

    fn remove_rows(&self, keys: &[sled::IVec]) -> Result<()> {
        for keys in keys.chunks(BATCH_ROWS) {
            self.data.write::<_, HotError>(|staged| {
                keys.iter().for_each(|key| staged.remove(key.to_vec()));
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// How many rows one batch takes: all readers of sled wait while one is applied.
const BATCH_ROWS: usize = 500;

/// Raised with every change of what the rows mean; hot state of another format is built anew.
const PRESENT_FORMAT: u32 = 2;
const FORMAT: &[u8] = b"format";
const EPOCH: &[u8] = b"epoch";
const IDENTITY: &[u8] = b"identity";
const SETTINGS: &[u8] = b"settings";
const CANONICAL: &[u8] = b"canonical";
const TOKEN: &[u8] = b"token/";

fn token_key(token: &Digest) -> Vec<u8> {
    [TOKEN, token.as_bytes()].concat()
}

fn get<T: DeserializeOwned>(data: &Durable, key: impl AsRef<[u8]>) -> Result<Option<T>> {
    data.get(key.as_ref())?.map(|value| decode(&table_of(key.as_ref()), &value)).transpose()
}

fn get_staged<T: DeserializeOwned>(staged: &Staged<'_>, key: impl AsRef<[u8]>) -> Result<Option<T>> {
    staged.get(key.as_ref())?.map(|value| decode(&table_of(key.as_ref()), &value)).transpose()
}

fn put(staged: &mut Staged<'_>, key: impl Into<Vec<u8>>, row: &impl Serialize) -> Result<()> {
    let key = key.into();
    let value = encode(&table_of(&key), row)?;
    staged.insert(key, value);
    Ok(())
}

fn encode(what: &str, row: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(row).map_err(|e| HotError::Corrupt(format!("{what}: {e}")))
}

fn decode<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| HotError::Corrupt(format!("{what}: {e}")))
}

/// For messages: the prefix alone.
fn table_of(key: &[u8]) -> String {
    String::from_utf8_lossy(key.split(|byte| *byte == b'/').next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests;
