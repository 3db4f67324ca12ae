//! A store in a sled directory: it survives a kill, and nothing may be in it that cannot be made anew.
//!
//! sled 0.34 writes a segment's header, which declares what stands before it stable, before the earlier segments have
//! reached the disk, and uses segments again on the strength of that. A kill harms nothing, since the kernel keeps what
//! was written; after a power cut the directory may hold anything, also what makes sled panic when it opens it. So every
//! call into sled is made where a panic is caught, and is a failure like any other.
//!
//! sled keeps `conf` (three parameters), `db` (the log), `snap.*` (where recovery may begin) and `blobs/*` (pages too large
//! for the log). Two kills it cannot open after are mended here before it is asked to: a snapshot that was being written
//! (`snap.*.generating`, which it would read as if it were whole), and a half-written `conf` of a database that was just
//! being made.

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

/// Both fixed for ever: they are what `conf` says.
const SEGMENT_BYTES: u64 = 512 * 1024;
/// How often sled flushes by itself and clears out its log; the latter happens nowhere else.
const SLED_FLUSH_MS: u64 = 1000;
/// The most that sled's page cache may take, by the size of pages on disk; a small fleet never comes near it, and of a large
/// one the kernel keeps the rest.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

type Outcome<T> = std::result::Result<T, DiskError>;

pub(super) struct Sled {
    database: sled::Db,
    tree: sled::Tree,
}

impl Sled {
    /// Opens what is in `dir`, which is locked.
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
                // sled has a lock of its own, and in this process lets go of it when its last thread is done.
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

    /// sled can wait for ever inside `flush` when a write of its own fails in the background: it notes the error and wakes
    /// nobody. Another call of `flush` finds the error and wakes the first.
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

/// How the cause begins where sled broke, rather than the disk: it panicked, or found what it does not understand.
const BROKE: &str = "sled broke: ";

/// Whether the cause of a failure is that sled broke.
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
    /// Whether every call of this thread into sled panics.
    pub static PANICS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn is_busy(error: &io::Error) -> bool {
    error.to_string().contains(BUSY)
}

const BUSY: &str = "could not acquire lock";

/// Whether the last thread of sled has let go of the database in `dir`, which was closed; waits some seconds for it. Until
/// then sled may write there, to files that it finds by their path.
pub fn is_released(dir: &Path) -> bool {
    let begun = Instant::now();
    let mut file = match File::open(dir.join("db")) {
        Ok(file) => file,
        // It was never made, or is something else.
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
    // `conf` is written before the first byte of the log, always with the same content, and again when it is missing.
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
