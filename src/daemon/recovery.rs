//! Leaves the degraded state without an operator.
//!
//! A store that has failed stays failed in its process (see `durable`), so the process must be replaced. This job
//! notices the failure, logs the remedy, and tests the disk at growing intervals until it accepts writes again. Then
//! the daemon replaces itself by exec ([`Recovery::successor`]): same program, arguments, environment, process id and
//! listening sockets. The stores are not closed, because closing may hang after an error. This is like a crash, and the
//! successor reads the true content of the disk.
//!
//! The process is also replaced if the records were restored or filled anew under a running daemon, and if hot state
//! could not be read: the successor sets it aside.
//!
//! A disk that fails again at once must not cause a busy loop. The number of replacements in a row is passed in the
//! environment, and the first test of the disk waits longer for each. A crash during a test leaves a file `.probe`,
//! which the next test or start removes.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::service::Areas;

/// How many predecessors in a row were replaced. Not prefixed `CODEX_AUTHD_`, because it is not a setting.
const VARIABLE: &str = "AUTHD_REPLACED";
const POLL_INTERVAL: Duration = Duration::from_millis(250);
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);
/// A process that has lived this long starts a new count.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(300);
/// How often in a row a successor that cannot start is replaced.
const MAX_FAILED_STARTS: u32 = 20;
/// More than a start and the first changes need: the disk must have more than the bare minimum free.
const PROBE_BYTES: usize = 2 * 1024 * 1024;
/// For the test at a start, which must be cheap.
const SMALL_PROBE_BYTES: usize = 64 * 1024;
const PROBE_NAME: &str = ".probe";
/// Directories of the stores, in the state directory.
const STORES: [&str; 3] = ["records", crate::hot::CACHE, crate::hot::OUTBOX];

/// Knowledge about the predecessors of this process.
#[derive(Clone, Copy)]
pub struct Recovery {
    replaced: u32,
    begun: Instant,
}

/// The reason for a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    DiskIsBack,
    /// The records were restored or filled anew: memory and open files belong to the old ones.
    OtherRecords,
    /// Only a fresh process can set hot state aside.
    HotStateBroken,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DiskIsBack => "the disk accepts writes again",
            Self::OtherRecords => "the records are not the ones that this process started with",
            Self::HotStateBroken => "hot state could not be read",
        })
    }
}

impl Recovery {
    pub fn begin() -> Self {
        let replaced = std::env::var(VARIABLE).ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        Self { replaced, begun: Instant::now() }
    }

    /// Whether this process replaced another one.
    pub fn is_successor(&self) -> bool {
        self.replaced > 0
    }

    /// Whether a failed start should be tried again: only for the successor of a daemon that ran.
    pub fn tries_again(&self) -> bool {
        (1..=MAX_FAILED_STARTS).contains(&self.replaced)
    }

    /// The wait before the first test of the disk, or before a failed start is tried again.
    pub fn first_wait(&self) -> Duration {
        (MIN_BACKOFF * 2u32.saturating_pow(self.in_a_row().min(16))).min(MAX_BACKOFF)
    }

    fn in_a_row(&self) -> u32 {
        if self.begun.elapsed() < BACKOFF_RESET_AFTER { self.replaced } else { 0 }
    }

    /// Waits until a store has failed and the disk accepts writes again, or until the store is a different one.
    pub async fn wait(&self, areas: &Areas, state_dir: &Path) -> Why {
        let degraded = loop {
            if areas.core.health.is_superseded() {
                return Why::OtherRecords;
            }
            if let Some(degraded) = areas.core.health.store_failed() {
                break degraded;
            }
            sleep(POLL_INTERVAL).await;
        };
        if let Some(cause) = areas.core.health.hot_state_broken() {
            log::error!(event = "hot_state_broken", cause = cause.as_str(); "hot state could not be read: calls that need it get 503 until this process is replaced by one that builds it anew");
            sleep(self.first_wait()).await;
            areas.core.health.note_hot_state_broken(&cause).await;
            return Why::HotStateBroken;
        }
        let failure = &degraded.failure;
        let (mut wait, mut last, mut told) = (self.first_wait(), failure.cause.clone(), None::<Instant>);
        loop {
            if told.is_none_or(|at| at.elapsed() >= REMINDER_INTERVAL) {
                log::error!(
                    event = "degraded", directory:% = failure.place.display(), since:% = degraded.since, cause = last.as_str();
                    "the store in {} could not be written: logins are served from memory, all other calls get \
                     503; free space on its disk or make it writable, then the daemon recovers by itself", failure.place.display()
                );
                told = Some(Instant::now());
            }
            sleep(wait).await;
            wait = (wait * 2).min(MAX_BACKOFF);
            match probe(state_dir, &failure.place).await {
                Ok(()) => return Why::DiskIsBack,
                Err(cause) => last = cause.to_string(),
            }
        }
    }

    /// The command for the successor. The caller must add the sockets before it runs.
    pub fn successor(&self) -> Command {
        let mut command = same_again();
        command.env(VARIABLE, self.in_a_row().saturating_add(1).to_string());
        command
    }
}

/// The command with which this process was started.
pub fn same_again() -> Command {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("codex-authd"));
    // Not by its path: that may hold another version by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(arguments);
    command
}

/// Replaces this process; returns only on failure.
pub fn replace_process(mut command: Command) -> io::Error {
    log::logger().flush();
    command.exec()
}

/// A successor must call this before it opens the stores: the kernel's page cache may differ from the disk.
pub fn reread_stores(state_dir: &Path) {
    for store in STORES {
        let directory = state_dir.join(store);
        if let Err(cause) = crate::durable::reread(&directory) {
            log::warn!(event = "reread_failed", directory:% = directory.display(), cause:% = cause; "the store may be read from the page cache instead of the disk");
        }
    }
}

/// Tests whether the disk of the state directory, and of a store that may be on another disk, accepts writes.
async fn probe(state_dir: &Path, store: &Path) -> io::Result<()> {
    let directories = [state_dir.to_path_buf(), store.to_path_buf()];
    // A disk that hangs blocks only this thread, and the next test waits for it.
    tokio::task::spawn_blocking(move || {
        directories.iter().try_for_each(|directory| probe_directory(directory, PROBE_BYTES))
    })
    .await
    .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Tests whether a start on this disk can succeed; removes files of an interrupted test.
pub fn check_disk(state_dir: &Path) -> io::Result<()> {
    for store in STORES {
        // A leftover that cannot be removed does no harm.
        let _ = remove(&state_dir.join(store).join(PROBE_NAME));
    }
    probe_directory(state_dir, SMALL_PROBE_BYTES)
}

fn probe_directory(directory: &Path, length: usize) -> io::Result<()> {
    let path = directory.join(PROBE_NAME);
    let written = write_probe(&path, length);
    let removed = remove(&path);
    written?;
    removed?;
    File::open(directory)?.sync_all()
}

fn write_probe(path: &Path, length: usize) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // Not zeros: some file systems allocate space for zeros only later.
    file.write_all(&vec![0x5a; length])?;
    file.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_again_and_again_is_tried_ever_more_seldom() {
        let waits = |replaced: u32| Recovery { replaced, begun: Instant::now() }.first_wait().as_secs();
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 1000, u32::MAX].map(waits), [1, 2, 4, 8, 16, 30, 30, 30, 30]);
        let recovery = Recovery { replaced: 5, begun: Instant::now() };
        let count = |recovery: &Recovery| {
            let successor = recovery.successor();
            let told = successor.get_envs().find(|(name, _)| *name == VARIABLE).unwrap().1.unwrap().to_owned();
            told.into_string().unwrap()
        };
        assert_eq!(count(&recovery), "6");
        let recovery = Recovery { replaced: 5, begun: Instant::now().checked_sub(BACKOFF_RESET_AFTER).unwrap() };
        assert_eq!((recovery.first_wait().as_secs(), count(&recovery)), (1, "1".into()), "it ran well for a while");
    }

    #[test]
    fn a_start_that_fails_is_tried_again_only_in_the_place_of_a_daemon_that_ran_and_not_for_ever() {
        let tries = |replaced| Recovery { replaced, begun: Instant::now() }.tries_again();
        assert_eq!([0, 1, MAX_FAILED_STARTS, MAX_FAILED_STARTS + 1].map(tries), [false, true, true, false]);
    }

    #[test]
    fn trying_the_disk_leaves_nothing_and_takes_away_what_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        std::fs::create_dir(state.join("records")).unwrap();
        std::fs::write(state.join("records").join(PROBE_NAME), "left").unwrap();
        std::fs::write(state.join(PROBE_NAME), "left").unwrap();
        check_disk(state).unwrap();
        probe_directory(&state.join("records"), PROBE_BYTES).unwrap();
        let left = |path: &Path| std::fs::read_dir(path).unwrap().count();
        assert_eq!((left(state), left(&state.join("records"))), (1, 0));
        assert!(check_disk(&state.join("nowhere")).is_err());
    }
}
