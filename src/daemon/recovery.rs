//! Out of the degraded state without anybody's help.
//!
//! A store that has failed stays so in its process (see `durable`), so the process is replaced: this job notices the
//! failure, says what to do, tries the disk at growing intervals, and ends when the disk takes writes again. Then the
//! daemon executes itself anew ([`Successor`]): same program, arguments, environment and process id, the same listening
//! sockets. The stores are left as they are, without being closed, which may never end after an error: that is a crash
//! like any other, and the successor reads back what the disk really holds.
//!
//! The same is done when the records were restored, or filled anew, under a daemon that runs; and when hot state could not be
//! read: the successor sets it aside.
//!
//! A disk that fails again at once must not make a busy loop: how often the process was replaced in a row travels in
//! the environment, and the first try of the disk waits the longer for it. A crash while the disk is tried leaves a file
//! `.probe` that the next try, or the next start, removes.

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

/// How often this process's forerunners were replaced in a row. No `CODEX_AUTHD_`: nobody is to configure it.
const VARIABLE: &str = "AUTHD_REPLACED";
const POLL_INTERVAL: Duration = Duration::from_millis(250);
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);
/// A process that has lived so long is not part of a row.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(300);
/// How often in a row a successor that cannot even start is replaced by another one.
const MAX_FAILED_STARTS: u32 = 20;
/// More than a start and the first changes need, so that the disk is not only just not full.
const PROBE_BYTES: usize = 2 * 1024 * 1024;
/// Of a start, which is to cost little.
const SMALL_PROBE_BYTES: usize = 64 * 1024;
const PROBE_NAME: &str = ".probe";
/// Their directories, in the state directory.
const STORES: [&str; 3] = ["records", crate::hot::CACHE, crate::hot::OUTBOX];

/// What this process knows of those it took the place of.
#[derive(Clone, Copy)]
pub struct Recovery {
    replaced: u32,
    begun: Instant,
}

/// Why a process is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    DiskIsBack,
    /// They were restored, or filled anew: what is in memory, and open, belongs to others.
    OtherRecords,
    /// Only a fresh process can set it aside.
    HotStateBroken,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DiskIsBack => "the disk takes writes again",
            Self::OtherRecords => "the records are others than it was started with",
            Self::HotStateBroken => "hot state could not be read",
        })
    }
}

impl Recovery {
    pub fn begin() -> Self {
        let replaced = std::env::var(VARIABLE).ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        Self { replaced, begun: Instant::now() }
    }

    /// Whether this process took another one's place.
    pub fn is_successor(&self) -> bool {
        self.replaced > 0
    }

    /// Whether a start that failed is worth another one: only in the place of a daemon that ran.
    pub fn tries_again(&self) -> bool {
        (1..=MAX_FAILED_STARTS).contains(&self.replaced)
    }

    /// The wait before the disk is tried for the first time, or before a start that failed is tried again.
    pub fn first_wait(&self) -> Duration {
        (MIN_BACKOFF * 2u32.saturating_pow(self.in_a_row().min(16))).min(MAX_BACKOFF)
    }

    fn in_a_row(&self) -> u32 {
        if self.begun.elapsed() < BACKOFF_RESET_AFTER { self.replaced } else { 0 }
    }

    /// Waits for a store to fail and then for the disk to take writes again; or for the store to be another one.
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
            log::error!(event = "hot_state_broken", cause = cause.as_str(); "hot state could not be read: calls that need it are answered 503 until this process is replaced by one that builds it anew");
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
                    "the store in {} could not be written: logins are served from memory, everything else is answered \
                     503; free space on its disk or make it writable, the daemon goes on by itself", failure.place.display()
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

    /// The process that is to take this one's place. It is to be told of the sockets before it begins.
    pub fn successor(&self) -> Command {
        let mut command = same_again();
        command.env(VARIABLE, self.in_a_row().saturating_add(1).to_string());
        command
    }
}

/// As this one was begun.
pub fn same_again() -> Command {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("codex-authd"));
    // Not by its path: that may be another version by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(arguments);
    command
}

/// Replaces this process; comes back only when that fails.
pub fn replace_process(mut command: Command) -> io::Error {
    log::logger().flush();
    command.exec()
}

/// To be called by a successor before it opens the stores: what the kernel remembers of them may not be on the disk.
pub fn reread_stores(state_dir: &Path) {
    for store in STORES {
        let directory = state_dir.join(store);
        if let Err(cause) = crate::durable::reread(&directory) {
            log::warn!(event = "reread_failed", directory:% = directory.display(), cause:% = cause; "the store may be read from memory instead of the disk");
        }
    }
}

/// Whether the disk of the state directory, and of a store that may have one of its own, takes writes.
async fn probe(state_dir: &Path, store: &Path) -> io::Result<()> {
    let directories = [state_dir.to_path_buf(), store.to_path_buf()];
    // A disk that hangs holds up this one thread, and the next try waits for it.
    tokio::task::spawn_blocking(move || {
        directories.iter().try_for_each(|directory| probe_directory(directory, PROBE_BYTES))
    })
    .await
    .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Whether a start on this disk can come to anything; removes what a try that was cut short left.
pub fn check_disk(state_dir: &Path) -> io::Result<()> {
    for store in STORES {
        // What cannot be removed is in nobody's way.
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
    // Not zeros, which some file systems make room for only when it is too late.
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
