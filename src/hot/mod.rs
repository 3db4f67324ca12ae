//! Hot state: what answering a host needs, in memory and on disk, so that no call waits for the records.
//!
//! It is kept in two stores of the state directory:
//! - `hot/`, the *cache*, on sled ([`cache_store`]): hosts by the digest of a key, their activity, the canonical version
//!   sealed, settings, installer tokens, blocks. All of it but the blocks comes from the records ([`Hot::apply`]); losing it ends
//!   the blocks. It survives a kill and no power cut.
//! - `outbox/`, power-safe: this node's id, telemetry that was acknowledged and is not in the records yet ([`outbox`]), a
//!   login that a probe refreshed while the records were away ([`refreshed`]), and how the cache was left ([`trust`]).
//!   Losing it loses those; a new id is made, so that the records never mistake new batches for old ones.
//!
//! A cache that is damaged never stops the daemon: it is set aside, and built anew ([`opening`]). Where a read fails later,
//! the call is refused, and the process is to be replaced by one that sets it aside ([`Hot::broken`]).
//!
//! What a crash leaves: rows are applied in batches and the epoch is written with the last, so a torn [`Hot::apply`] is
//! done again, whole. Rows wait for no flush (the log keeps their order, so an epoch on disk has its rows on disk). The
//! outbox does; what it has and the cache has not counted yet is counted when both are opened.
//!
//! It knows no plaintext secret, and not what the rules of a host mean.

mod aside;
mod cache_store;
mod foundation;
mod hosts;
mod memo;
mod opening;
mod outbox;
mod refreshed;
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
use crate::outside::Outside;
use crate::records::{CanonicalVersion, Changes, Epoch, Host, InstallToken, Settings, StoreFailure, Telemetry};

use cache_store::{CacheStore, Change};
use trust::LeftState;

pub use aside::set_aside;
pub use hosts::{AgentIdentity, HotHost, InHand, Seen};
pub use opening::SetAside;
pub use refreshed::Refreshed;
pub use states::HostStates;

#[derive(Debug, thiserror::Error)]
pub enum HotError {
    #[error(transparent)]
    Store(#[from] DurableError),
    #[error("hot state holds something unreadable ({0}); it is rebuilt at the next start")]
    Corrupt(String),
    /// Only another process can go on: this one may still write there.
    #[error("hot state in {} could not be opened, and sled still holds it; the next start sets it aside", .0.display())]
    Unfinished(PathBuf),
}

pub type Result<T> = std::result::Result<T, HotError>;

pub struct Hot {
    // The first three are dropped in this order: the cache is closed, that is noted, the outbox is closed.
    cache: CacheStore,
    closing: trust::Closing,
    outbox: Arc<Store>,
    /// One batch at a time is counted or forgotten.
    counting: tokio::sync::Mutex<()>,
    /// One change of what is cached at a time.
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
    /// Opens hot state in `state_dir`, making what is missing. A damaged cache is set aside and is empty then.
    pub fn open(state_dir: &Path, outside: &dyn Outside) -> Result<Self> {
        let outbox = Store::durable(&state_dir.join(OUTBOX), OUTBOX)?;
        let (directory, boot) = (state_dir.join(CACHE), trust::boot());
        let (cache, set_aside) = opening::open(&directory, &outbox, boot.as_deref(), outside.now())?;
        let mut hot = Self::on(cache, outbox, directory, outside)?;
        hot.set_aside = set_aside;
        hot.closing.boot = boot;
        Ok(hot)
    }

    /// With a cache on a disk that fails as long as `failing` is set.
    #[cfg(test)]
    pub(crate) fn on_failing_disk(
        state_dir: &Path,
        failing: Arc<std::sync::atomic::AtomicBool>,
        outside: &dyn Outside,
    ) -> Result<Self> {
        let directory = state_dir.join(CACHE);
        let cache = CacheStore::new(Store::durable_on_failing_disk(&directory, CACHE, failing)?);
        Self::on(cache, Store::durable(&state_dir.join(OUTBOX), OUTBOX)?, directory, outside)
    }

    fn on(cache: CacheStore, outbox: Store, directory: PathBuf, outside: &dyn Outside) -> Result<Self> {
        let node = outbox::node(&outbox, outside)?;
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

    /// What was wrong with the cache that this process found, if it had to set it aside.
    pub fn set_aside(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// Why the cache is to be thrown away, if reading it failed: another process has to set it aside.
    pub fn broken(&self) -> Option<String> {
        self.cache.broken()
    }

    /// Tells the next process that the cache is broken, power-safe.
    pub async fn note_broken(&self, cause: &str) -> Result<()> {
        trust::leave(&self.outbox, self.closing.boot.as_deref(), LeftState::Broken(cause.into()))?;
        Ok(self.outbox.commit().await?)
    }

    /// Says whose cache this is: `identity` names the records. Whatever was cached from others is dropped; then `true`.
    pub fn belongs_to(&self, identity: &str) -> Result<bool> {
        let known: Option<String> = self.cache.get(IDENTITY)?;
        let others = known.as_deref().is_some_and(|known| known != identity);
        if others {
            self.reset()?;
            self.forget_refreshed()?;
        }
        if known.as_deref() != Some(identity) {
            self.cache.write(|change| change.put(IDENTITY, &identity))?;
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

    /// Puts hosts and settings over what is stored, in memory: for where that cannot be written, or may be newer. What the
    /// records tell after `changes.epoch`, which is to be asked for again, takes their place.
    pub fn overrule(&self, changes: &Changes) {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        self.hosts.overrule(&self.cache, &changes.hosts);
        if let Some(settings) = &changes.settings {
            self.settings.store(Arc::new(settings.clone()));
        }
        self.epoch.fetch_min(changes.epoch.0, Ordering::SeqCst);
    }

    /// Forgets everything that comes from the records, when it is ahead of them or of others. The outbox stays.
    pub fn reset(&self) -> Result<()> {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        // The epoch first: a crash in between leaves a cache that knows it is empty.
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

    /// The host that a key with this digest belongs to.
    pub fn host_by_key(&self, key: &Digest) -> Result<Option<Arc<HotHost>>> {
        self.hosts.by_key(&self.cache, key)
    }

    pub fn host_by_id(&self, id: HostId) -> Result<Option<Arc<HotHost>>> {
        self.hosts.by_id(&self.cache, id)
    }

    /// An installer token as it was when the records last told of it; spent and revoked ones are there too.
    pub fn install_token(&self, token: &Digest) -> Result<Option<InstallToken>> {
        self.cache.get(token_key(token))
    }

    /// Forgets the installer tokens that expired before `when`; says how many.
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

    /// What hosts did and was not gathered yet, one for each of at most `limit` hosts, those that wait longest: for
    /// [`Hot::outbox_append`].
    pub fn gather_seen(&self, limit: usize) -> Vec<Telemetry> {
        self.hosts.gather_seen(limit)
    }

    /// Tells of every host, with what it did up to the last gathering. Changes go on meanwhile: what changes after it was
    /// told, or before, may be told either way. Not for an async task.
    pub fn each_host(&self, tell: impl FnMut(Host, HostActivity)) -> Result<()> {
        hosts::each(&self.cache, tell)
    }

    /// The hosts whose activity this cache never learnt: after a rebuild the caller asks the records, and tells it by
    /// [`Hot::set_activities`], before the hosts are served.
    pub fn hosts_without_activity(&self) -> Result<Vec<HostId>> {
        hosts::without_activity(&self.cache)
    }

    /// What the records know of hosts' activity. What they do not know yet (the outbox) should be drained before.
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

    /// Returns once everything that was written to the cache so far survives a kill.
    pub async fn settled(&self) -> Result<()> {
        self.cache.settled().await
    }

    /// `false` once something could not be made safe; only another process can open it anew.
    pub fn healthy(&self) -> bool {
        self.failure().is_none()
    }

    /// `cache` and `outbox` are told how long each of their flushes takes.
    pub fn on_flush(
        &self,
        cache: impl Fn(Duration) + Send + Sync + 'static,
        outbox: impl Fn(Duration) + Send + Sync + 'static,
    ) {
        self.cache.on_flush(cache);
        self.outbox.on_flush(outbox);
    }

    /// Why it takes no more changes, or cannot be read, if so.
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

/// How many rows one batch takes: all readers of sled wait while one is applied.
const BATCH_ROWS: usize = 500;

/// Raised with every change of what the rows mean; hot state of another format is built anew.
const PRESENT_FORMAT: u32 = 3;
/// Rows of hosts; hosts and their states are read by it.
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

/// For messages: the prefix alone.
fn table_of(key: &[u8]) -> String {
    String::from_utf8_lossy(key.split(|byte| *byte == b'/').next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests;
