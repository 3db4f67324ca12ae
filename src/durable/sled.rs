//! A store in a sled directory, for data that can be rebuilt. It survives a kill, but no power cut.
//!
//! sled 0.34 writes the header of a segment before the earlier segments have reached the disk. That header declares the
//! earlier segments stable, and sled reuses segments because of it. A kill does no harm, since the kernel keeps what
//! was written. After a power cut the directory may hold anything, even data that makes sled panic at open. So every
//! call into sled catches panics and turns them into errors.
//!
//! sled keeps `conf` (three parameters), `db` (the log), `snap.*` (where recovery may begin) and `blobs/*` (pages too
//! large for the log). After two kinds of kill sled cannot open the directory; both are repaired here first:
//! - A half-written snapshot (`snap.*.generating`), which sled would read as complete.
//! - A half-written `conf` of a database that was just being created.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::flusher::Nudge;
use super::lock::{self, LOCK_RETRY_INTERVAL, LOCK_TIMEOUT};
use super::rows::Layer;
use super::{Disk, DiskError, DiskRow, DiskRows, DurableError, Result, View};

/// Segment size that `conf` records: sled's default. It must never change for an existing database.
const SEGMENT_BYTES: u64 = 512 * 1024;
/// How often sled flushes and cleans its log by itself. It cleans its log nowhere else.
const SLED_FLUSH_MS: u64 = 1000;
/// Limit of sled's page cache, by the size of pages on disk. A small fleet never reaches it; for a large one the kernel
/// caches the rest.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

type Outcome<T> = std::result::Result<T, DiskError>;

pub(super) struct Sled {
    database: sled::Db,
    tree: sled::Tree,
}

impl Sled {
    /// Opens the directory `dir`, which the caller has locked.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let failed = |cause: String| DurableError::Open { path: dir.into(), cause };
        clear_half_made(dir).map_err(|error| lock::failed(dir, &error))?;
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(Some(SLED_FLUSH_MS));
        let begun = Instant::now();
        loop {
            let opened = caught(|| {
                let database = config.open()?;
                let tree = database.open_tree("data")?;
                Ok(Self { database, tree })
            });
            match opened {
                Ok(sled) => return Ok(sled),
                // sled has its own lock. Within this process it releases the lock only when its last thread ends.
                Err(DiskError::Other(cause)) if cause.contains(BUSY) => {
                    if begun.elapsed() >= LOCK_TIMEOUT {
                        return Err(DurableError::Busy { path: dir.into() });
                    }
                }
                Err(DiskError::Damaged(cause)) => return Err(DurableError::Damaged { path: dir.into(), cause }),
                Err(DiskError::Other(cause)) => return Err(failed(cause)),
            }
            std::thread::park_timeout(LOCK_RETRY_INTERVAL);
        }
    }
}

impl Disk for Sled {
    fn commit(&mut self, rows: &Layer) -> Outcome<Arc<dyn View>> {
        if !rows.is_empty() {
            let mut batch = sled::Batch::default();
            for (key, value) in rows {
                match value {
                    Some(value) => batch.insert(&key[..], &value[..]),
                    None => batch.remove(&key[..]),
                }
            }
            caught(|| self.tree.apply_batch(batch))?;
            caught(|| self.database.flush())?;
        }
        Ok(Arc::new(Applied(self.tree.clone())))
    }

    /// When a background write fails, sled records the error but does not wake a waiting `flush`, which then waits for
    /// ever. Another call of `flush` finds the error and wakes the first.
    fn nudge(&self) -> Nudge {
        let database = self.database.clone();
        Box::new(move || drop(caught(|| database.flush())))
    }
}

struct Applied(sled::Tree);

impl View for Applied {
    fn get(&self, key: &[u8]) -> Outcome<Option<Bytes>> {
        Ok(caught(|| self.0.get(key))?.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn range(&self, from: &[u8], to: Option<&[u8]>) -> Outcome<DiskRows> {
        let rows = caught(|| {
            Ok(match to {
                Some(to) => self.0.range(from.to_vec()..to.to_vec()),
                None => self.0.range(from.to_vec()..),
            })
        })?;
        Ok(Box::new(Iter(rows)))
    }
}

struct Iter(sled::Iter);

impl Iterator for Iter {
    type Item = DiskRow;

    fn next(&mut self) -> Option<DiskRow> {
        row(|| self.0.next())
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<DiskRow> {
        row(|| self.0.next_back())
    }
}

fn row(read: impl FnOnce() -> Option<sled::Result<(sled::IVec, sled::IVec)>>) -> Option<DiskRow> {
    let read = caught(|| read().transpose()).transpose()?;
    Some(read.map(|(key, value)| (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))))
}

/// Prefix of a cause if sled itself failed, and not the disk: it panicked, or found data that it does not understand.
const BROKE: &str = "sled broke: ";

/// Whether `cause` says that sled itself failed.
pub fn is_damage(cause: &str) -> bool {
    cause.starts_with(BROKE)
}

fn caught<T>(call: impl FnOnce() -> sled::Result<T>) -> Outcome<T> {
    let damaged = |cause: &str| Err(DiskError::Damaged(format!("{BROKE}{cause}")));
    #[cfg(test)]
    let call = || {
        assert!(!PANICS.get(), "a test asked for it");
        call()
    };
    match super::panics::caught(call) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) if lock::is_of_the_machine(&error) || is_busy(&error) => {
            Err(DiskError::Other(error.to_string()))
        }
        Ok(Err(error)) => damaged(&error.to_string()),
        Err(panic) => damaged(&format!("it panicked: {panic}")),
    }
}

#[cfg(test)]
thread_local! {
    /// Makes every call of this thread into sled panic.
    pub static PANICS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn is_busy(error: &io::Error) -> bool {
    error.to_string().contains(BUSY)
}

const BUSY: &str = "could not acquire lock";

/// Whether sled's last thread has released the closed database in `dir`; waits up to 10 s. Until then sled may still
/// write there, to files that it finds by their path.
pub fn is_released(dir: &Path) -> bool {
    let begun = Instant::now();
    let mut file = match File::open(dir.join("db")) {
        Ok(file) => file,
        // The file was never created, or `dir` is not a directory.
        Err(error) => return matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    };
    while begun.elapsed() < LOCK_TIMEOUT {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => return true,
            Err((busy, Errno::EWOULDBLOCK | Errno::EINTR)) => file = busy,
            Err(_) => return false,
        }
        std::thread::park_timeout(LOCK_RETRY_INTERVAL);
    }
    false
}

fn clear_half_made(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    // `conf` is written before the first byte of the log. Its content is always the same, and sled writes it again if
    // it is missing.
    let logged = match std::fs::metadata(dir.join("db")) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    if logged < SEGMENT_BYTES {
        match std::fs::remove_file(dir.join("conf")) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
