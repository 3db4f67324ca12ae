//! The files of a sled database: whose they are, what a crash may have left of them, and how they are made safe.
//!
//! sled 0.34 keeps `conf` (three parameters), `db` (the log), `snap.*` (where recovery may begin) and `blobs/*` (pages
//! too large for the log). It syncs the snapshots, none of the others, and no directory.
//!
//! Two crashes it cannot open after are mended here before it is asked to: a snapshot that was being written
//! (`snap.*.generating`, which it would read as if it were whole), and a half-written `conf` of a database that was just
//! being made.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::syncfs;

use super::{DurableError, Result};

/// A process that was killed lets go of its lock only when the kernel is done with it.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// Both fixed for ever: they are what `conf` says.
const SEGMENT: u64 = 512 * 1024;
/// How often sled flushes by itself and clears out its log; the latter happens nowhere else.
const SLED_FLUSH_MS: u64 = 1000;
/// The most that sled's page cache may take, by the size of pages on disk; a small fleet never comes near it, and of a large
/// one the kernel keeps the rest.
const CACHE: u64 = 4 * 1024 * 1024;

/// What is to be done after sled's `flush` for its writes to survive a power cut.
pub(super) trait Files: Send + 'static {
    fn sync(&mut self) -> io::Result<()>;
}

pub(super) struct DiskFiles {
    // Opened apart from sled's own descriptor: an error of the disk is told once to each, and sled only logs its.
    db: File,
    blobs: PathBuf,
    safe_blobs: HashSet<OsString>,
}

/// Held as long as the database is open, so that what is mended here belongs to nobody else.
pub(super) struct DirectoryLock {
    _lock: Flock<File>,
}

/// Makes `dir` (0700) where it is missing, and takes it.
pub(super) fn lock(dir: &Path) -> Result<DirectoryLock> {
    let failed = |e: io::Error| DurableError::Open { path: dir.into(), cause: e.to_string() };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
    let path = dir.join("lock");
    let mut file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(DirectoryLock { _lock: lock }),
            Err((busy, Errno::EWOULDBLOCK | Errno::EINTR)) if begun.elapsed() < LOCK_PATIENCE => file = busy,
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Err(DurableError::Busy { path: dir.into() }),
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        std::thread::park_timeout(LOCK_RETRY);
    }
}

/// Opens what is in `dir`. To be called under its lock.
pub(super) fn open_sled(dir: &Path) -> Result<sled::Db> {
    let failed = |cause: String| DurableError::Open { path: dir.into(), cause };
    clear_half_made(dir).map_err(|e| failed(e.to_string()))?;
    let config = sled::Config::new().path(dir).cache_capacity(CACHE).flush_every_ms(Some(SLED_FLUSH_MS));
    let begun = Instant::now();
    let db = loop {
        match config.open() {
            Ok(db) => break db,
            // sled has a lock of its own, and in this process lets go of it when its last thread is done.
            Err(sled::Error::Io(e)) if e.to_string().contains("could not acquire lock") => {
                if begun.elapsed() >= LOCK_PATIENCE {
                    return Err(DurableError::Busy { path: dir.into() });
                }
            }
            Err(e) => return Err(failed(e.to_string())),
        }
        std::thread::park_timeout(LOCK_RETRY);
    };
    Ok(db)
}

/// Makes the files in `dir` safe, and their names, and its own name.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(dir)?.sync_all()?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Makes the kernel forget what it remembers of the files in `dir`, so that the next open reads the disk. After a failed
/// write it may hold, as if they were safe, pages that never got there. A directory that is not there holds none.
pub fn reread(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            reread(&path)?;
            continue;
        }
        let file = File::open(path)?;
        // What is still to be written is not forgotten; an error here is the old one, told once more.
        let _ = file.sync_all();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)?;
    }
    Ok(())
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
    if logged < SEGMENT {
        match std::fs::remove_file(dir.join("conf")) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// This process, or the machine, has as many files open as it may have. It passes.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

impl DiskFiles {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let db = OpenOptions::new().read(true).write(true).open(dir.join("db"))?;
        Ok(Self { db, blobs: dir.join("blobs"), safe_blobs: HashSet::new() })
    }

    #[cfg(test)]
    pub(super) fn safe_blob_count(&self) -> usize {
        self.safe_blobs.len()
    }

    /// sled writes a blob before the log refers to it, under a name never used before, and syncs neither file nor name.
    fn sync_new_blobs(&mut self) -> io::Result<()> {
        let mut present = HashSet::new();
        let mut any_new = false;
        for entry in std::fs::read_dir(&self.blobs)? {
            let entry = entry?;
            if !self.safe_blobs.contains(&entry.file_name()) {
                match File::open(entry.path()) {
                    Ok(blob) => blob.sync_all()?,
                    // Replaced, and removed, since the directory was read.
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                }
                any_new = true;
            }
            present.insert(entry.file_name());
        }
        self.safe_blobs = present;
        if any_new { File::open(&self.blobs)?.sync_all() } else { Ok(()) }
    }
}

impl Files for DiskFiles {
    fn sync(&mut self) -> io::Result<()> {
        match self.sync_new_blobs() {
            // Whoever has taken all descriptors must not fail the store: without one, the whole file system is synced.
            Err(error) if is_out_of_descriptors(&error) => syncfs(&self.db)?,
            synced => synced?,
        }
        self.db.sync_data()
    }
}
