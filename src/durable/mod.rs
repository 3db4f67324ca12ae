//! Stores of rows, key to value, with one change at a time, one flusher and group commit. This module knows nothing of
//! what the keys and values mean.
//!
//! **What is acknowledged survives a power cut.** [`Store::durable`] keeps its rows in one redb file ([`redb`]). redb
//! documents that a transaction with `Durability::Immediate` "is guaranteed to be persistent as soon as `commit`
//! returns". It also documents that a transaction is applied completely or not at all. The reasons, step by step:
//! 1. A commit never overwrites a page that the last commit refers to. It writes copies elsewhere in the file.
//! 2. A two-phase commit (`set_two_phase_commit`) syncs the copies first. Then it flips the one byte of the header that
//!    selects the current root, and syncs again. A cut before the flip is on disk leaves the old root and all its
//!    pages. If all copies of the new root are there too, the new root is taken ([`held`]): complete, although it was
//!    never acknowledged.
//! 3. Pages that a commit frees are reused only by a later commit, after that flip was synced.
//! 4. Each root holds a checksum of its whole tree, and every open verifies it ([`redb`] explains why). So a disk that
//!    lost a synced write is detected, and its rows are never served.
//! 5. The file gets its name by a rename after its first commit, and then the directory is synced. So no half-made file
//!    is ever opened.
//!
//! [`Store::rebuildable`] keeps its rows in a sled directory ([`sled`]). It survives a kill (the kernel keeps what was
//! written), but **no power cut**. Store only data there that can be rebuilt.
//!
//! For both:
//! - A change is *applied* (others can read it, from memory) a little before it is *safe*. [`Store::settled`] resolves
//!   once everything that could have been read is safe. Await it before you report anything to the outside.
//! - The flusher writes all waiting changes in one transaction ([`flusher`]).
//! - After a failed write or sync the content of the disk is unknown. The failure is permanent: every later change and
//!   commit is refused. Only opening the store again reads what the disk holds; [`reread`] drops the kernel's cached
//!   pages first.

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
    #[error("the store in {path} is damaged: {cause}. It was left unchanged")]
    Damaged { path: PathBuf, cause: String },
    #[error("cannot read or change the store in {path}: {cause}")]
    Storage { path: PathBuf, cause: String },
    #[error(
        "the store in {path} could not be written safely ({cause}); it refuses changes until it is opened again. A \
         running daemon does that by itself once the disk takes writes again"
    )]
    Failed { path: PathBuf, cause: String },
}

pub type Result<T> = std::result::Result<T, DurableError>;

/// An error of a store's file, without its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The content differs from what was written.
    Damaged(String),
    Other(String),
}

/// The storage below a store. Only the flusher uses it.
trait Disk: Send + 'static {
    /// Writes all of `rows` or nothing (`None` removes a row). On return the rows are as safe as this disk makes them,
    /// and the returned view reads them.
    fn commit(&mut self, rows: &Layer) -> std::result::Result<Arc<dyn View>, DiskError>;

    /// Returns a function that unblocks a slow commit whose wake-up was lost.
    fn nudge(&self) -> flusher::Nudge {
        Box::new(|| {})
    }
}

type DiskRow = std::result::Result<(Bytes, Bytes), DiskError>;
type DiskRows = Box<dyn DoubleEndedIterator<Item = DiskRow> + Send>;

/// Reads committed rows.
trait View: Send + Sync {
    fn get(&self, key: &[u8]) -> std::result::Result<Option<Bytes>, DiskError>;

    /// The rows from `from` up to, but without, `to`; `None`: up to the last row.
    fn range(&self, from: &[u8], to: Option<&[u8]>) -> std::result::Result<DiskRows, DiskError>;
}

/// Dropping the store flushes all changes and closes it.
pub struct Store {
    // Dropped first: its thread holds the files open.
    flusher: Flusher,
    present: Arc<PresentRows>,
    writer: Mutex<()>,
    // Dropped last: another process may open the files only after they are closed.
    _lock: lock::DirectoryLock,
}

/// The current rows. A snapshot is a copy of this.
struct PresentRows(RwLock<Snapshot>);

/// The rows that one change writes, collected and then applied together. Reads include them.
pub struct Staged<'a> {
    store: &'a Store,
    rows: Layer,
}

/// Counts since the store was opened: requested commits, and the flushes that served them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub commits: u64,
    pub flushes: u64,
}

/// If more than this is in memory, a writer waits for a flush first.
const MAX_IN_MEMORY_BYTES: usize = 8 * 1024 * 1024;

impl Store {
    /// Opens the store called `name` in `dir`, whose rows survive a power cut. Creates the store, and `dir` (mode
    /// 0700), if they are missing. Verifies the whole current root. Waits up to 10 s for a process that is just ending.
    pub fn durable(dir: &Path, name: &'static str) -> Result<Self> {
        let lock = lock::take(dir)?;
        let disk = redb::Redb::open(dir, name)?;
        Self::on(dir, lock, disk)
    }

    /// Opens the store in `dir`, whose rows survive a kill but no power cut. Creates it if it is missing.
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

    /// The current rows whose key begins with `prefix`, in key order.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Rows {
        self.snapshot().scan(prefix)
    }

    /// The current rows from `from` up to, but without, `to`.
    pub fn range(&self, from: Vec<u8>, to: Vec<u8>) -> Rows {
        self.snapshot().range(from, to)
    }

    /// The current rows, unaffected by later changes. In a rebuildable store this is not guaranteed: rows may be newer.
    pub fn snapshot(&self) -> Snapshot {
        self.present.read().clone()
    }

    /// Applies everything that `change` stages, or nothing if `change` fails. One change runs at a time, so the rows
    /// that it reads do not change before it is applied. Await [`Store::settled`] before you report the change to
    /// anybody.
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

    /// Resolves once everything written before this call is safe. The commit is queued by the call itself, not by the
    /// first poll.
    pub fn commit(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        self.flusher.commit()
    }

    /// [`Store::commit`] for a thread. Never call it in an async task.
    pub fn commit_blocking(&self) -> Result<()> {
        self.flusher.commit_blocking()
    }

    /// Resolves once everything that could have been read before this call is safe: at once if no change is in
    /// progress.
    pub fn settled(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        self.flusher.settled()
    }

    /// `false` once a change could not be made safe. It never becomes `true` again.
    pub fn healthy(&self) -> bool {
        self.flusher.check().is_ok()
    }

    /// Calls `observe` with the duration of each flush, on the flusher's thread. A second observer is ignored.
    pub fn on_flush(&self, observe: impl Fn(std::time::Duration) + Send + Sync + 'static) {
        self.flusher.on_flush(Box::new(observe));
    }

    /// The path and the cause, if the store refuses changes.
    pub fn failure(&self) -> Option<(PathBuf, String)> {
        self.flusher.failure().map(|cause| (self.present.read().path().to_path_buf(), cause))
    }

    pub fn counters(&self) -> Counters {
        self.flusher.counters()
    }

    /// Opens a store on a disk that fails while `failing` is set.
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

    /// Commits the pending rows. If that fails they stay readable, and the flusher never reports them as safe.
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

    /// The rows as they were before this change.
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
