//! Stores of rows, key to value: one change at a time, one flusher, group commit.
//!
//! **What is acknowledged survives a power cut.** [`Store::durable`] keeps its rows in one redb file ([`redb`]). redb
//! documents that a transaction with `Durability::Immediate` "is guaranteed to be persistent as soon as `commit` returns",
//! and that it is all there or not at all. Why we believe it, step by step:
//! 1. A commit never overwrites a page that the last commit refers to; it writes copies elsewhere in the file.
//! 2. In two phases (`set_two_phase_commit`) it syncs the copies first, and only then flips the one byte of the header that
//!    says which root counts, and syncs again. A cut before the flip is on disk leaves the old root and all its pages;
//!    where all copies of the new root are there as well, the new one is taken ([`held`]): as a whole, told to nobody.
//! 3. Pages that are free from a commit on are used again only by a later commit, after that flip was synced.
//! 4. Each root holds a checksum of its whole tree. Every open verifies it ([`redb`] says why at every open), so a disk that
//!    broke a promise is noticed and refused, never served.
//! 5. The file gets its name by a rename after its first commit, and the directory is synced: no half-made file is opened.
//!
//! [`Store::rebuildable`] keeps its rows in a sled directory ([`sled`]). It survives a kill (the kernel keeps what was
//! written) and **no power cut**; only what can be made anew may be in it.
//!
//! For both:
//! - A change is *applied* (others can read it, from memory) a little before it is *safe*. [`Store::settled`] resolves once
//!   all that could have been read by now is safe: whoever tells the outside about something awaits it first.
//! - Changes that wait together are written by one transaction of the flusher ([`flusher`]).
//! - After a failed write or sync nobody knows what the disk holds: the failure sticks, every later change and commit is
//!   refused, and only a fresh process reads back what is there ([`reread`] makes sure that it does not read what the kernel
//!   still remembers).
//!
//! This module knows nothing of what the keys and values mean.

mod flusher;
mod held;
mod lock;
pub mod panics;
mod redb;
mod rows;
mod salvage;
mod sled;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use flusher::Flusher;
use rows::Layer;

pub use lock::{reread, sync_whole};
pub use redb::holds_store;
pub use rows::{Rows, Snapshot};
pub use salvage::{Salvaged, salvage};
pub use sled::{is_damage, is_released};

#[cfg(test)]
pub use sled::PANICS;

#[derive(Clone, Debug, thiserror::Error)]
pub enum DurableError {
    #[error("cannot open the store in {path}: {cause}")]
    Open { path: PathBuf, cause: String },
    #[error("the store in {path} is in use by another process; stop that one, or choose another state_dir")]
    Busy { path: PathBuf },
    #[error("the store in {path} is damaged: {cause}. It was left as it is")]
    Damaged { path: PathBuf, cause: String },
    #[error("cannot read or change the store in {path}: {cause}")]
    Storage { path: PathBuf, cause: String },
    #[error(
        "the store in {path} could not be written safely ({cause}); it takes no more changes until it is opened anew, \
         which a running daemon does by itself once the disk takes writes again"
    )]
    Failed { path: PathBuf, cause: String },
}

pub type Result<T> = std::result::Result<T, DurableError>;

/// What went wrong with a file, without saying which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// What is there is not what was written.
    Damaged(String),
    Other(String),
}

/// Where rows are kept. Used by the flusher alone.
trait Disk: Send + 'static {
    /// Writes all of `rows` or nothing (`None` removes a row). When it returns they are as safe as this disk makes them;
    /// what it gives back reads them.
    fn commit(&mut self, rows: &Layer) -> std::result::Result<Arc<dyn View>, DiskError>;

    /// Asks a commit that takes long for what it may not have heard.
    fn nudge(&self) -> flusher::Nudge {
        Box::new(|| {})
    }
}

type DiskRow = std::result::Result<(Bytes, Bytes), DiskError>;
type DiskRows = Box<dyn DoubleEndedIterator<Item = DiskRow> + Send>;

/// Reads what was committed.
trait View: Send + Sync {
    fn get(&self, key: &[u8]) -> std::result::Result<Option<Bytes>, DiskError>;

    /// The rows from `from` on, up to and without `to`, which may be absent.
    fn range(&self, from: &[u8], to: Option<&[u8]>) -> std::result::Result<DiskRows, DiskError>;
}

/// Dropping it makes everything safe and closes it.
pub struct Store {
    // Dropped first: its thread holds the files open.
    flusher: Flusher,
    present: Arc<PresentRows>,
    writer: Mutex<()>,
    // Dropped last: the files must be closed before somebody else may have them.
    _lock: lock::DirectoryLock,
}

/// The rows as they stand now. A snapshot is a copy of it.
struct PresentRows(RwLock<Snapshot>);

/// What one change writes, gathered before it is applied as a whole. Reads see it.
pub struct Staged<'a> {
    store: &'a Store,
    rows: Layer,
}

/// What has been counted since the store was opened: commits asked for, and the flushes that served them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub commits: u64,
    pub flushes: u64,
}

/// With more in memory than this, who writes waits until it is written.
const MAX_IN_MEMORY_BYTES: usize = 8 * 1024 * 1024;

impl Store {
    /// Opens the store called `name` in `dir`, whose rows survive a power cut; makes it where it is missing, `dir` (0700) as
    /// well. Every byte that counts is read and verified. Waits some seconds for a process that is just going away.
    pub fn durable(dir: &Path, name: &'static str) -> Result<Self> {
        let lock = lock::take(dir)?;
        let disk = redb::Redb::open(dir, name)?;
        Self::on(dir, lock, disk)
    }

    /// Opens the store in `dir`, whose rows survive a kill and no power cut; makes it where it is missing.
    pub fn rebuildable(dir: &Path) -> Result<Self> {
        let lock = lock::take(dir)?;
        let disk = sled::Sled::open(dir)?;
        Self::on(dir, lock, disk)
    }

    fn on(dir: &Path, lock: lock::DirectoryLock, mut disk: impl Disk) -> Result<Self> {
        let view = disk.commit(&Layer::new()).map_err(|error| of_disk(dir, error))?;
        let present = Arc::new(PresentRows(RwLock::new(Snapshot::new(dir, view))));
        let nudge = disk.nudge();
        let make_safe = {
            let present = Arc::clone(&present);
            move || present.flush(&mut disk)
        };
        let flusher = Flusher::start(dir, make_safe, nudge)?;
        Ok(Self { flusher, present, writer: Mutex::new(()), _lock: lock })
    }

    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        self.snapshot().get(key)
    }

    /// The rows whose key begins with `prefix`, in order of their keys, as they stand now.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Rows {
        self.snapshot().scan(prefix)
    }

    /// The rows from `from` on, up to and without `to`, as they stand now.
    pub fn range(&self, from: Vec<u8>, to: Vec<u8>) -> Rows {
        self.snapshot().range(from, to)
    }

    /// The rows as they stand now, while others go on changing them. Of a rebuildable store it is no more than a look: rows
    /// may be newer.
    pub fn snapshot(&self) -> Snapshot {
        self.present.read().clone()
    }

    /// Applies what `change` stages, all or nothing; an error of `change` writes nothing. One change runs at a time, so
    /// what it reads stays true until it is applied. Await [`Store::settled`] before telling anybody.
    pub fn write<T, E: From<DurableError>>(
        &self,
        change: impl FnOnce(&mut Staged<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if self.present.read().in_memory() > MAX_IN_MEMORY_BYTES {
            self.flusher.commit_blocking()?;
        }
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.flusher.check()?;
        let mut staged = Staged { store: self, rows: Layer::new() };
        let value = change(&mut staged)?;
        if !staged.rows.is_empty() {
            self.flusher.change_begins();
            self.present.write().apply(staged.rows);
            self.flusher.change_ends();
        }
        Ok(value)
    }

    /// Resolves once everything written before this call is safe. The ticket is taken by the call itself.
    pub fn commit(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        self.flusher.commit()
    }

    /// [`Store::commit`] for a thread; never to be called within an async task.
    pub fn commit_blocking(&self) -> Result<()> {
        self.flusher.commit_blocking()
    }

    /// Resolves once everything that could have been read before this call is safe: at once where nothing is under way.
    pub fn settled(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        self.flusher.settled()
    }

    /// `false` once a change could not be made safe. It never becomes `true` again.
    pub fn healthy(&self) -> bool {
        self.flusher.check().is_ok()
    }

    /// `observe` is told how long each flush takes, from the flusher's thread. Only the first one given is.
    pub fn on_flush(&self, observe: impl Fn(std::time::Duration) + Send + Sync + 'static) {
        self.flusher.on_flush(Box::new(observe));
    }

    /// Where and why it takes no more changes, if it does not.
    pub fn failure(&self) -> Option<(PathBuf, String)> {
        self.flusher.failure().map(|cause| (self.present.read().path().to_path_buf(), cause))
    }

    pub fn counters(&self) -> Counters {
        self.flusher.counters()
    }

    /// On a disk that fails as long as `failing` is set.
    #[cfg(test)]
    pub fn durable_on_failing_disk(
        dir: &Path,
        name: &'static str,
        failing: Arc<std::sync::atomic::AtomicBool>,
    ) -> Result<Self> {
        tests::durable_after(dir, name, move || tests::fail_if(&failing))
    }
}

impl PresentRows {
    fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Snapshot> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits what waits. What fails stays readable, and the flusher sees to it that nobody is told of it.
    fn flush(&self, disk: &mut impl Disk) -> std::result::Result<(), String> {
        let rows = self.write().begin_flush();
        if rows.is_empty() {
            return Ok(());
        }
        match disk.commit(&rows) {
            Ok(view) => self.write().end_flush(view),
            Err(DiskError::Damaged(cause) | DiskError::Other(cause)) => return Err(cause),
        }
        Ok(())
    }
}

fn of_disk(path: &Path, error: DiskError) -> DurableError {
    match error {
        DiskError::Damaged(cause) => DurableError::Damaged { path: path.into(), cause },
        DiskError::Other(cause) => DurableError::Storage { path: path.into(), cause },
    }
}

impl Staged<'_> {
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        match self.rows.get(key.as_ref()) {
            Some(row) => Ok(row.clone()),
            None => self.store.get(key),
        }
    }

    /// The rows as they stood before this change.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Rows {
        self.store.scan(prefix)
    }

    pub fn insert(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.rows.insert(key.into(), Some(Bytes::from(value.into())));
    }

    pub fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.rows.insert(key.into(), None);
    }
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
