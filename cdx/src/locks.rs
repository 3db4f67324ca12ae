//! The two locks that Codex takes around a change of `auth.json`, in its order: `auth.lock`, then `auth.json.lock`.
//!
//! The files stay, as Codex leaves them: removing a lock file would let two programs hold it. A killed `cdx` leaves no
//! lock. Where the files cannot be opened, Codex can change nothing either (`store::can_save`).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Codex holds a lock for milliseconds, and itself gives up on the second one after this time.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(5);

pub struct Locks {
    _held: Vec<Flock<File>>,
}

impl Locks {
    /// Fails with the name of a lock that another program holds for too long.
    pub async fn take(codex_home: &Path) -> Result<Self, &'static str> {
        let mut held = Vec::new();
        for name in ["auth.lock", "auth.json.lock"] {
            let Ok(file) = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(codex_home.join(name))
            else {
                continue;
            };
            held.extend(lock(file).await.map_err(|()| name)?);
        }
        Ok(Self { _held: held })
    }
}

/// `None`: this file system has no locks.
async fn lock(mut file: File) -> Result<Option<Flock<File>>, ()> {
    let waited = tokio::time::timeout(LOCK_TIMEOUT, async {
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Some(lock),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
                Err(_) => return None,
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    });
    waited.await.map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn one_program_at_a_time_holds_them_and_they_stay() {
        let home = tempfile::tempdir().unwrap();
        block_on(async {
            let first = Locks::take(home.path()).await.unwrap();
            let second = Locks::take(home.path());
            tokio::pin!(second);
            let waited = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
            assert!(waited.is_err(), "two programs hold the locks");
            drop(first);
            second.await.unwrap();
        });
        assert!(home.path().join("auth.lock").exists() && home.path().join("auth.json.lock").exists());
    }

    #[test]
    fn a_directory_without_room_for_locks_has_none() {
        block_on(async { Locks::take(Path::new("/proc/self")).await.unwrap() });
    }
}
