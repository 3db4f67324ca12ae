//! sled, made power-safe: one writer at a time, one flusher, group commit.
//!
//! sled's own `flush` reaches the kernel but asks no disk to keep anything, and its `flush_async` hangs a process that
//! calls it from several tasks. So a [`Durable`] owns a database directory with one tree, applies every change as one
//! atomic batch, and has one thread ([`flusher`]) that gathers whoever waits and makes them safe together.
//!
//! What a crash leaves:
//! - A batch is in the log whole or not at all; sled's recovery drops a torn one.
//! - A change is *applied* (others can read it) a little before it is *safe*. [`Durable::settled`] resolves once all that
//!   could have been read by now is safe: whoever tells the outside about something awaits it first.
//! - After a failed flush or fdatasync the kernel may have dropped pages, so no later success proves anything: the
//!   failure sticks, every later change and commit is refused, and only a fresh process reads back what the disk really
//!   holds ([`reread`] makes sure that it does not read what the kernel still remembers).
//! - The files of a half-made database are put right by the next open ([`files`]).
//!
//! What it cannot mend: sled reuses a segment once its successor has *reached the kernel*. A power cut that persists the
//! reuse, and not the successor written before it, loses what both held. A journal of its own would close that.
//!
//! It knows nothing of what the keys and values mean.

mod files;
mod flusher;
mod snapshot;

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use sled::IVec;

use files::DiskFiles;
use flusher::Flusher;

#[derive(Clone, Debug, thiserror::Error)]
pub enum DurableError {
    #[error("cannot open the store in {path}: {cause}")]
    Open { path: PathBuf, cause: String },
    #[error("the store in {path} is in use by another process; stop that one, or choose another state_dir")]
    Busy { path: PathBuf },
    #[error("cannot read or change the store in {path}: {cause}")]
    Storage { path: PathBuf, cause: String },
    #[error(
        "the store in {path} could not be written safely ({cause}); it takes no more changes until it is opened anew, \
         which a running daemon does by itself once the disk takes writes again"
    )]
    Failed { path: PathBuf, cause: String },
}

pub type Result<T> = std::result::Result<T, DurableError>;

pub(crate) use files::is_out_of_descriptors;
pub use files::reread;
pub use snapshot::Snapshot;

/// A sled database with one tree whose commits survive a power cut. Dropping it makes everything safe and closes it.
pub struct Durable {
    // Dropped first: its thread holds the database open.
    flusher: Flusher,
    tree: sled::Tree,
    writer: Mutex<()>,
    /// Held shared by whoever reads several rows that must belong together.
    applying: RwLock<()>,
    snapshots: snapshot::Snapshots,
    path: PathBuf,
    // Dropped last: the database must be closed before somebody else may have it.
    _lock: files::DirectoryLock,
}

/// What one change writes, gathered before it is applied as one batch. Reads see it.
pub struct Staged<'a> {
    durable: &'a Durable,
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// What has been counted since the database was opened: commits asked for, and the flushes that served them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub commits: u64,
    pub flushes: u64,
}

impl Durable {
    /// Opens the database in `dir`, making the directory (0700) where it is missing. Waits some seconds for a process
    /// that is just going away.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, |files| files)
    }

    fn open_with<F: files::Files>(dir: &Path, wrap: impl FnOnce(DiskFiles) -> F) -> Result<Self> {
        let lock = files::lock(dir)?;
        let db = files::open_sled(dir)?;
        let failed = |cause: sled::Error| DurableError::Open { path: dir.into(), cause: cause.to_string() };
        let tree = db.open_tree("data").map_err(failed)?;
        let files = DiskFiles::open(dir).map_err(|e| DurableError::Open { path: dir.into(), cause: e.to_string() })?;
        let mut files = wrap(files);
        let nudged = db.clone();
        let nudge = Box::new(move || {
            let _ = nudged.flush();
        });
        let make_safe = move || {
            db.flush().map_err(|e| e.to_string())?;
            files.sync().map_err(|e| e.to_string())
        };
        let flusher = Flusher::start(dir, make_safe, nudge)?;
        let durable = Self {
            flusher,
            tree,
            writer: Mutex::new(()),
            applying: RwLock::new(()),
            snapshots: snapshot::Snapshots::default(),
            path: dir.into(),
            _lock: lock,
        };
        // Once for the files' names; what is in them is the flusher's.
        files::sync_directory(dir)
            .map_err(|e| DurableError::Open { path: durable.path.clone(), cause: e.to_string() })?;
        Ok(durable)
    }

    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<IVec>> {
        self.tree.get(key).map_err(|e| self.storage(e))
    }

    /// The rows whose key begins with `prefix`, in order of their keys.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> impl DoubleEndedIterator<Item = Result<(IVec, IVec)>> + '_ {
        self.tree.scan_prefix(prefix).map(|row| row.map_err(|e| self.storage(e)))
    }

    /// The rows from `from` on, up to and without `to`.
    pub fn range(&self, from: Vec<u8>, to: Vec<u8>) -> impl DoubleEndedIterator<Item = Result<(IVec, IVec)>> + '_ {
        self.tree.range(from..to).map(|row| row.map_err(|e| self.storage(e)))
    }

    /// A value written by [`Staged::insert_large`].
    pub fn get_large(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut pieces = self.scan(pieces_of(key)).peekable();
        if pieces.peek().is_none() {
            return Ok(None);
        }
        let mut value = Vec::new();
        for piece in pieces {
            value.extend_from_slice(&piece?.1);
        }
        Ok(Some(value))
    }

    /// Runs `read` while no batch is being applied, so that the rows it reads belong together.
    pub fn together<T>(&self, read: impl FnOnce() -> T) -> T {
        let _shared = self.applying.read().unwrap_or_else(PoisonError::into_inner);
        read()
    }

    /// Applies what `change` stages, all or nothing; an error of `change` writes nothing. One change runs at a time, so
    /// what it reads stays true until it is applied. Await [`Durable::settled`] before telling anybody.
    pub fn write<T, E: From<DurableError>>(
        &self,
        change: impl FnOnce(&mut Staged<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.flusher.check()?;
        let mut staged = Staged { durable: self, rows: BTreeMap::new() };
        let value = change(&mut staged)?;
        if !staged.rows.is_empty() {
            self.apply(staged.rows)?;
        }
        Ok(value)
    }

    fn apply(&self, rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<()> {
        let _alone = self.applying.write().unwrap_or_else(PoisonError::into_inner);
        self.keep_for_snapshots(rows.keys())?;
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.flusher.change_begins();
        // sled panics where it has no better answer; that is a failure like any other.
        let applied = catch_unwind(AssertUnwindSafe(|| self.tree.apply_batch(batch).map_err(|e| e.to_string())));
        self.flusher.change_ends();
        // Half a batch may stand in memory now; nobody may build on it.
        applied.unwrap_or_else(|_| Err("a write panicked".into())).map_err(|cause| self.flusher.fail(&cause))
    }

    /// Resolves once everything written before this call is power-safe. The ticket is taken by the call itself.
    pub fn commit(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        self.flusher.commit()
    }

    /// [`Durable::commit`] for a thread; never to be called within an async task.
    pub fn commit_blocking(&self) -> Result<()> {
        self.flusher.commit_blocking()
    }

    /// Resolves once everything that could have been read before this call is power-safe: at once where nothing is
    /// under way.
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
        self.flusher.failure().map(|cause| (self.path.clone(), cause))
    }

    pub fn counters(&self) -> Counters {
        self.flusher.counters()
    }

    /// On a disk that fails as long as `failing` is set.
    #[cfg(test)]
    pub fn open_on_failing_disk(dir: &Path, failing: std::sync::Arc<std::sync::atomic::AtomicBool>) -> Result<Self> {
        Self::open_with(dir, |files| tests::Failing { files, failing })
    }

    fn storage(&self, cause: sled::Error) -> DurableError {
        DurableError::Storage { path: self.path.clone(), cause: cause.to_string() }
    }
}

impl Staged<'_> {
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<IVec>> {
        match self.rows.get(key.as_ref()) {
            Some(row) => Ok(row.as_deref().map(IVec::from)),
            None => self.durable.get(key),
        }
    }

    /// The rows as they stood before this change.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> impl DoubleEndedIterator<Item = Result<(IVec, IVec)>> + '_ {
        self.durable.scan(prefix)
    }

    /// Like [`Staged::get`], it sees what was staged.
    pub fn get_large(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.staged_pieces(key).next().is_none() {
            return self.durable.get_large(key);
        }
        let mut pieces = self.durable.scan(pieces_of(key)).collect::<Result<BTreeMap<_, _>>>()?;
        for (place, piece) in self.staged_pieces(key) {
            match piece {
                Some(piece) => pieces.insert(place.as_slice().into(), piece.as_slice().into()),
                None => pieces.remove(place.as_slice()),
            };
        }
        let whole = || pieces.values().flat_map(|piece| piece.iter().copied()).collect();
        Ok((!pieces.is_empty()).then(whole))
    }

    fn staged_pieces(&self, key: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Option<Vec<u8>>)> + use<'_> {
        let prefix = pieces_of(key);
        self.rows.range(prefix.clone()..).take_while(move |(place, _)| place.starts_with(&prefix))
    }

    pub fn insert(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.rows.insert(key.into(), Some(value.into()));
    }

    pub fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.rows.insert(key.into(), None);
    }

    /// Writes a value of any size in pieces, replacing what was there. sled splits its pages by number of rows, not by
    /// size, and moves a page over 128 KiB into a file of its own, to be written and unlinked apart from the log: pieces
    /// of this size keep every page in the log.
    pub fn insert_large(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.remove_large(key)?;
        // An empty value is one empty piece, so that it differs from none.
        let pieces = value.chunks(PIECE).chain(value.is_empty().then_some(&[][..]));
        for (number, piece) in (0u32..).zip(pieces) {
            let mut place = pieces_of(key);
            place.extend_from_slice(&number.to_be_bytes());
            self.insert(place, piece);
        }
        Ok(())
    }

    pub fn remove_large(&mut self, key: &[u8]) -> Result<()> {
        let old =
            self.durable.scan(pieces_of(key)).map(|row| row.map(|(place, _)| place)).collect::<Result<Vec<_>>>()?;
        let staged: Vec<_> = self.staged_pieces(key).map(|(place, _)| place.clone()).collect();
        for place in old.iter().map(|place| place.to_vec()).chain(staged) {
            self.remove(place);
        }
        Ok(())
    }
}

const PIECE: usize = 6 * 1024;

fn pieces_of(key: &[u8]) -> Vec<u8> {
    [key, b"#"].concat()
}

#[cfg(test)]
mod tests;
