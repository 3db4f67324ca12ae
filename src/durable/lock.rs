//! The lock of a store's directory, syncs of its files, and dropping its pages from the kernel's cache.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};

use super::{DurableError, Result};

/// The kernel releases the lock of a killed process only after it has finished with that process.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Held while the store is open. Without it, another process could use the directory while it is repaired.
pub(super) struct DirectoryLock {
    _lock: Flock<File>,
}

/// Creates `dir` (mode 0700) if it is missing, and locks it.
pub(super) fn take(dir: &Path) -> Result<DirectoryLock> {
    let failed = |error: io::Error| failed(dir, &error);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
    let path = dir.join("lock");
    let mut file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(DirectoryLock { _lock: lock }),
            Err((busy, Errno::EWOULDBLOCK | Errno::EINTR)) if begun.elapsed() < LOCK_TIMEOUT => file = busy,
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Err(DurableError::Busy { path: dir.into() }),
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        std::thread::park_timeout(LOCK_RETRY_INTERVAL);
    }
}

/// Whether the error comes from the machine (no space, memory, file descriptors or permission) and not from the store's
/// content.
pub(super) fn is_of_the_machine(error: &io::Error) -> bool {
    use ErrorKind::{
        Interrupted, OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, ResourceBusy, StorageFull,
    };
    let full = [Errno::EMFILE, Errno::ENFILE].map(|errno| Some(errno as i32));
    full.contains(&error.raw_os_error())
        || matches!(
            error.kind(),
            StorageFull
                | QuotaExceeded
                | ReadOnlyFilesystem
                | PermissionDenied
                | OutOfMemory
                | Interrupted
                | ResourceBusy
        )
}

/// Converts an I/O error on the store in `dir`. A file of the wrong type is damage.
pub(super) fn failed(dir: &Path, error: &io::Error) -> DurableError {
    let (path, cause) = (dir.into(), error.to_string());
    match error.kind() {
        ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            DurableError::Damaged { path, cause }
        }
        _ => DurableError::Open { path, cause },
    }
}

/// Makes everything in `dir` survive a power cut: each file, the directories, and the name of `dir` itself.
pub fn sync_whole(dir: &Path) -> io::Result<()> {
    sync_files(dir)?;
    sync_names(dir)
}

fn sync_files(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_files(&path)?;
        }
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// Makes the file names in `dir`, and the name of `dir` itself, survive a power cut.
pub(super) fn sync_names(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Drops the kernel's cached pages of the files in `dir`, so that the next open reads the disk. After a failed write
/// the cache may hold pages that never reached the disk. Succeeds if `dir` does not exist.
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
        // Unwritten pages are not dropped. An error here is ignored: it is the earlier error, reported again.
        let _ = file.sync_all();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)?;
    }
    Ok(())
}
