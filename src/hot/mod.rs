//! Hot state: the data for answering a host, in memory and on disk, so that no call waits for the records.
//!
//! It is kept in two stores of the state directory:
//! - `hot/`, the *cache*, on sled ([`cache_store`]): hosts by the digest of a key and their activity, the sealed
//!   canonical version, settings, installer tokens. All this comes from the records ([`Hot::apply`]). It also keeps
//!   the blocks of failed callers; losing these ends the blocks. The cache survives a kill but no power cut.
//! - `outbox/`, which survives a power cut: this node's id, acknowledged telemetry that is not in the records yet
//!   ([`outbox`]), and how the cache was left ([`trust`]). Also a login that a probe refreshed while the records were
//!   away ([`refreshed`]). If the outbox is lost, these are lost. The node then gets a new id, so that the records
//!   never mistake new batches for old ones.
//!
//! A damaged cache never stops the daemon: it is set aside and rebuilt ([`opening`]). If a read fails later, the call
//! is refused, and a new process must replace this one and set the cache aside ([`Hot::broken`]).
//!
//! A crash: rows are applied in batches, and the epoch is written with the last one. So an interrupted [`Hot::apply`]
//! is repeated as a whole. Rows do not wait for a flush: the log keeps their order, so an epoch on disk has its rows on
//! disk. The outbox does wait. Batches that the cache has not counted yet are counted when both stores are opened.
//!
//! This module knows no plaintext secret, and does not know what the rules of a host mean.

mod aside;
mod cache_store;
mod foundation;
mod hosts;
mod memo;
mod opening;
mod outbox;
mod refreshed;
mod replays;
mod states;
pub mod throttle;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::durable::{DurableError, Staged, Store};
use crate::model::digest::Digest;
use crate::model::host::{HostActivity, HostId};
use crate::platform::{Platform, SecureRandom};
use crate::records::{CanonicalVersion, Changes, Epoch, Host, InstallToken, Settings, StoreFailure, Telemetry};

use cache_store::{CacheStore, Change};
use trust::LeftState;

pub use aside::set_aside;
pub use hosts::{AgentIdentity, CountedCall, HotHost, InHand};
pub use opening::SetAside;
pub use refreshed::Refreshed;
pub use states::HostStates;

#[derive(Debug, thiserror::Error)]
pub enum HotError {
    #[error(transparent)]
    Store(#[from] DurableError),
    #[error("hot state contains unreadable data ({0}); it is rebuilt at the next start")]
    Corrupt(String),
    /// Only another process can continue: this one may still write there.
    #[error("hot state in {} could not be opened, and sled still holds it; the next start sets it aside", .0.display())]
    Unfinished(PathBuf),
}

pub type Result<T> = std::result::Result<T, HotError>;

pub struct Hot {
    // The first three are dropped in this order: the cache is closed, the close is recorded, the outbox is closed.
    cache: CacheStore,
    closing: trust::Closing,
    outbox: Arc<Store>,
    /// Only one batch is counted or removed at a time.
    counting: tokio::sync::Mutex<()>,
    /// Only one change of the cached rows runs at a time.
    applying: Mutex<()>,
    hosts: hosts::Cache,
    canonical: ArcSwapOption<CanonicalVersion>,
    settings: ArcSwap<Settings>,
    epoch: AtomicU64,
    node: Uuid,
    depth: AtomicU64,
    set_aside: Option<SetAside>,
}

/// The directories of the two stores, in the state directory.
pub const CACHE: &str = "hot";
pub const OUTBOX: &str = "outbox";

impl Hot {
    /// Opens hot state in `state_dir`; creates what is missing. A damaged cache is set aside, and the new one is empty.
    pub fn open(state_dir: &Path, platform: &dyn Platform) -> Result<Self> {
        let outbox = Store::durable(&state_dir.join(OUTBOX), OUTBOX)?;
        let (directory, boot) = (state_dir.join(CACHE), trust::boot());
        let (cache, set_aside) = opening::open(&directory, &outbox, boot.as_deref(), platform.now())?;
        let mut hot = Self::on(cache, outbox, directory, platform)?;
        hot.set_aside = set_aside;
        hot.closing.boot = boot;
        Ok(hot)
    }

    /// Opens hot state with a cache on a disk that fails while `failing` is set.
    #[cfg(test)]
    pub(crate) fn on_failing_disk(
        state_dir: &Path,
        failing: Arc<std::sync::atomic::AtomicBool>,
        rng: &dyn SecureRandom,
    ) -> Result<Self> {
        let directory = state_dir.join(CACHE);
        let cache = CacheStore::new(Store::durable_on_failing_disk(&directory, CACHE, failing)?);
        Self::on(cache, Store::durable(&state_dir.join(OUTBOX), OUTBOX)?, directory, rng)
    }

    fn on(cache: CacheStore, outbox: Store, directory: PathBuf, rng: &dyn SecureRandom) -> Result<Self> {
        let node = outbox::node(&outbox, rng)?;
        states::count_if_missing(&cache)?;
        let canonical = cache.get(CANONICAL)?;
        let settings: Option<Settings> = cache.get(SETTINGS)?;
        let epoch: Option<Epoch> = cache.get(EPOCH)?;
        let depth = outbox.scan(outbox::BATCH).count() as u64;
        let outbox = Arc::new(outbox);
        let hot = Self {
            cache,
            closing: trust::Closing { outbox: Arc::clone(&outbox), directory, boot: None, sum: None },
            outbox,
            counting: tokio::sync::Mutex::new(()),
            applying: Mutex::new(()),
            hosts: hosts::Cache::default(),
            canonical: ArcSwapOption::from_pointee(canonical),
            settings: ArcSwap::from_pointee(settings.unwrap_or_default()),
            epoch: AtomicU64::new(epoch.unwrap_or_default().0),
            node,
            depth: AtomicU64::new(depth),
            set_aside: None,
        };
        hot.count_missed()?;
        Ok(hot)
    }

    /// The damage to the cache, if this process found it damaged and set it aside.
    pub fn set_aside(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// The cause, if reading the cache failed: another process must set it aside.
    pub fn broken(&self) -> Option<String> {
        self.cache.broken()
    }

    /// Records for the next process that the cache is broken. On return this survives a power cut.
    pub async fn note_broken(&self, cause: &str) -> Result<()> {
        trust::leave(&self.outbox, self.closing.boot.as_deref(), LeftState::Broken(cause.into()))?;
        Ok(self.outbox.commit().await?)
    }

    /// Says which records the cache belongs to: `identity` names them. If it was filled from other records, it is
    /// dropped, and `true` is returned.
    pub fn belongs_to(&self, identity: &str) -> Result<bool> {
        let known: Option<String> = self.cache.get(IDENTITY)?;
        let others = known.as_deref().is_some_and(|known| known != identity);
        if others {
            self.reset()?;
            self.forget_refreshed()?;
            self.forget_answers()?;
        }
        if known.as_deref() != Some(identity) {
            self.cache.write(|change| change.put(IDENTITY, &identity))?;
        }
        Ok(others)
    }

    /// The epoch up to which the records' changes are applied; `Epoch(0)`: no change is.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::SeqCst))
    }

    /// Applies the changes that the records returned for [`Hot::epoch`]. After it returns, a removed or replaced key is
    /// no longer found. Repeated or outdated changes do no harm. Very many changes take a while: then do not call it in
    /// an async task.
    pub fn apply(&self, changes: &Changes) -> Result<()> {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.epoch < self.epoch() {
            return Ok(());
        }
        for hosts in changes.hosts.chunks(BATCH_ROWS) {
            self.cache.write(|change| hosts.iter().try_for_each(|host| hosts::write(change, host)))?;
            self.hosts.replace(hosts);
        }
        for tokens in changes.install_tokens.chunks(BATCH_ROWS) {
            self.cache
                .write(|change| tokens.iter().try_for_each(|token| change.put(token_key(&token.digest), token)))?;
        }
        self.cache.write(|change| {
            if let Some(canonical) = &changes.canonical {
                change.put(CANONICAL, canonical)?;
            }
            if let Some(settings) = &changes.settings {
                change.put(SETTINGS, settings)?;
            }
            foundation::take_over(change, changes)?;
            change.put(EPOCH, &changes.epoch)
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

    /// Replaces hosts and settings in memory only, for a cache that cannot be written or may be newer than the records.
    /// The next changes from the records replace them; ask for those after `changes.epoch`.
    pub fn overrule(&self, changes: &Changes) {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        self.hosts.overrule(&self.cache, &changes.hosts);
        if let Some(settings) = &changes.settings {
            self.settings.store(Arc::new(settings.clone()));
        }
        self.epoch.fetch_min(changes.epoch.0, Ordering::SeqCst);
    }

    /// Drops everything that comes from the records, because it is ahead of them or comes from other records. The
    /// outbox stays.
    pub fn reset(&self) -> Result<()> {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        // Remove the epoch first: after a crash in between, the cache is known to be empty.
        self.cache.write(|change| {
            [EPOCH, IDENTITY, SETTINGS, states::STATES, CANONICAL].into_iter().try_for_each(|key| change.remove(key))
        })?;
        for prefix in [HOST, hosts::KEY, hosts::ACTIVITY, hosts::UNKNOWN, TOKEN] {
            let keys = self.cache.rows(prefix).map(|row| row.map(|(key, _)| key)).collect::<Result<Vec<_>>>()?;
            self.cache.remove_all(&keys)?;
        }
        states::count_if_missing(&self.cache)?;
        self.hosts.clear();
        self.canonical.store(None);
        self.settings.store(Arc::default());
        self.epoch.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// The host whose key has this digest.
    pub fn host_by_key(&self, key: &Digest) -> Result<Option<Arc<HotHost>>> {
        self.hosts.by_key(&self.cache, key)
    }

    pub fn host_by_id(&self, id: HostId) -> Result<Option<Arc<HotHost>>> {
        self.hosts.by_id(&self.cache, id)
    }

    /// An installer token in its last state from the records; spent and revoked ones are included.
    pub fn install_token(&self, token: &Digest) -> Result<Option<InstallToken>> {
        self.cache.get(token_key(token))
    }

    /// Removes the installer tokens that expired before `when`; returns how many.
    pub fn purge_install_tokens(&self, when: OffsetDateTime) -> Result<usize> {
        let mut expired = Vec::new();
        for row in self.cache.rows(TOKEN) {
            let (key, value) = row?;
            if self.cache.decode::<InstallToken>("token", &value)?.expires_at < when {
                expired.push(key);
            }
        }
        self.cache.remove_all(&expired)?;
        Ok(expired.len())
    }

    /// The canonical version, sealed.
    pub fn canonical(&self) -> Option<Arc<CanonicalVersion>> {
        self.canonical.load_full()
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Takes the reports that were not gathered yet, one for each of at most `limit` hosts. The hosts that have waited
    /// longest come first. Pass them to [`Hot::outbox_append`].
    pub fn gather_seen(&self, limit: usize) -> Vec<Telemetry> {
        self.hosts.gather_seen(limit)
    }

    /// Calls `tell` for every host, with its activity up to the last gathering. It does not block changes: a host that
    /// changes meanwhile may be reported in its old or new state. Do not call it in an async task.
    pub fn each_host(&self, tell: impl FnMut(Host, HostActivity)) -> Result<()> {
        hosts::each(&self.cache, tell)
    }

    /// The hosts whose activity is not in this cache. After a rebuild the caller fetches it from the records and passes
    /// it to [`Hot::set_activities`], before the hosts are served.
    pub fn hosts_without_activity(&self) -> Result<Vec<HostId>> {
        hosts::without_activity(&self.cache)
    }

    /// Stores the hosts' activity from the records. Empty the outbox first: the records do not have its telemetry.
    pub fn set_activities(&self, known: &[(HostId, HostActivity)]) -> Result<()> {
        for known in known.chunks(BATCH_ROWS) {
            self.cache.write(|change| {
                known.iter().try_for_each(|(id, activity)| hosts::write_activity(change, *id, activity))
            })?;
            for (id, activity) in known {
                self.hosts.set_activity(*id, activity);
            }
        }
        Ok(())
    }

    /// Returns once everything written to the cache so far survives a kill.
    pub async fn settled(&self) -> Result<()> {
        self.cache.settled().await
    }

    /// `false` once a write could not be made safe or the cache cannot be read. Only another process can open it again.
    pub fn healthy(&self) -> bool {
        self.failure().is_none()
    }

    /// Calls `cache` and `outbox` with the duration of each of their flushes.
    pub fn on_flush(
        &self,
        cache: impl Fn(Duration) + Send + Sync + 'static,
        outbox: impl Fn(Duration) + Send + Sync + 'static,
    ) {
        self.cache.on_flush(cache);
        self.outbox.on_flush(outbox);
    }

    /// The place and the cause, if hot state takes no more changes or cannot be read.
    pub fn failure(&self) -> Option<StoreFailure> {
        let failed = self.outbox.failure().or_else(|| self.cache.failure());
        let broken = || self.broken().map(|cause| (self.closing.directory.clone(), cause));
        failed.or_else(broken).map(|(place, cause)| StoreFailure { place, cause })
    }
}

impl Drop for Hot {
    fn drop(&mut self) {
        if self.healthy() {
            self.closing.sum = self.cache.sum().ok();
        }
    }
}

/// The number of rows in a batch: all readers of sled wait while a batch is applied.
const BATCH_ROWS: usize = 500;

/// Increased with every change of what the rows mean. Hot state of another format is rebuilt.
const PRESENT_FORMAT: u32 = 3;
/// The prefix of rows of hosts; hosts and their states are read by it.
const HOST: &[u8] = b"host/";
const FORMAT: &[u8] = b"format";
const EPOCH: &[u8] = b"epoch";
const IDENTITY: &[u8] = b"identity";
const SETTINGS: &[u8] = b"settings";
const CANONICAL: &[u8] = b"canonical";
const TOKEN: &[u8] = b"token/";

fn token_key(token: &Digest) -> Vec<u8> {
    [TOKEN, token.as_bytes()].concat()
}

fn get<T: DeserializeOwned>(data: &Store, key: impl AsRef<[u8]>) -> Result<Option<T>> {
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

/// The prefix of the key, for messages.
fn table_of(key: &[u8]) -> String {
    String::from_utf8_lossy(key.split(|byte| *byte == b'/').next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests;
