//! Records the work of a daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::task::JoinSet;

use super::clients::{Client, Kind, Run};
use super::disk::Disk;
use super::ledger::{Ledger, Positions};
use super::log::Log;
use super::tree::{Content, Tree};
use crate::support::daemon::Daemon;
use crate::support::people::control;
use crate::support::random::Random;
use crate::support::record_disk::{Marks, Recorder};

/// The control socket accepts 32 connections, and each client may have one.
const CLIENTS: [(Kind, u64); 4] = [(Kind::Store, 5), (Kind::Enrol, 12), (Kind::Retrieve, 3), (Kind::Administer, 3)];

/// A recorded run.
pub struct Workload {
    /// Contains `log` and `ledger.json`.
    pub directory: PathBuf,
    _removed: Option<TempDir>,
    pub log: Arc<Log>,
    pub ledger: Ledger,
    pub positions: Positions,
}

/// A daemon of the tested program that does not run yet.
pub fn daemon(program: &Path, parent: &Path) -> Daemon {
    let mut daemon = Daemon::prepare_in(parent, &[("AUTH__MIN_TOKEN_LENGTH", "8")]);
    daemon.binary = program.into();
    daemon.log_level = Some("warn");
    daemon
}

impl Workload {
    /// Records `calls` calls to a new daemon, and kills the daemon.
    pub fn record(program: &Path, recorder: &Recorder, seed: u64, calls: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("authd-power-").tempdir().unwrap();
        let log = directory.path().join("log");
        let mut daemon = daemon(program, &std::env::temp_dir());
        recorder.arm(&mut daemon, &log);
        let marks = begin_log(&log, &daemon.state_dir());
        daemon.launch();
        marks.mark("listening");
        let server_ca = std::fs::read_to_string(daemon.state_dir().join("pki/server-ca.crt")).unwrap();
        let (ledger, errors) = work(&daemon, marks, &CLIENTS, calls, 0, &mut Random(seed));
        assert!(errors.is_empty(), "{errors:?}");
        daemon.kill();
        let ledger = Ledger { server_ca, ..ledger };
        std::fs::write(directory.path().join("ledger.json"), serde_json::to_vec(&ledger).unwrap()).unwrap();

        let workload = Self::of(directory.path().into(), Some(directory), ledger);
        // The log must explain every byte on the disk.
        let mut disk = workload.new_disk();
        disk.follow(workload.log.events.len());
        let difference = disk.current().difference(&Tree::read(&daemon.state_dir()).0);
        assert_eq!(difference, None, "a call that changes the disk escaped the recorder");
        workload
    }

    /// Reads a run that an earlier failure kept.
    pub fn kept(directory: &Path) -> Self {
        let ledger = std::fs::read(directory.join("ledger.json")).unwrap();
        Self::of(directory.into(), None, serde_json::from_slice(&ledger).unwrap())
    }

    fn of(directory: PathBuf, removed: Option<TempDir>, ledger: Ledger) -> Self {
        let log = Arc::new(Log::read(&directory.join("log")));
        let positions = Positions::of(&log);
        Self { directory, _removed: removed, log, ledger, positions }
    }

    /// Keeps the files of this run.
    pub fn keep(&mut self) {
        if let Some(directory) = self._removed.take() {
            let _ = directory.keep();
        }
    }

    /// The empty state directory before the first event.
    pub fn new_disk(&self) -> Disk {
        let inodes = self.log.inodes();
        let mut tree = Tree::default();
        tree.nodes.insert(String::new(), (0o700, Content::Directory));
        Disk::new(Arc::clone(&self.log), &tree, &inodes)
    }
}

/// Begins a log with the inodes of everything in `directory`.
pub fn begin_log(log: &Path, directory: &Path) -> Marks {
    let marks = Marks::open(log);
    for (path, inode) in Tree::read(directory).1 {
        marks.mark(&format!("inode {inode} {path}"));
    }
    marks
}

/// Lets clients make `calls` calls to `daemon`. Generations use different names, and later generations store newer
/// logins. Returns the ledger, and the unexpected answers.
pub fn work(
    daemon: &Daemon,
    marks: Marks,
    clients: &[(Kind, u64)],
    calls: u64,
    generation: u64,
    random: &mut Random,
) -> (Ledger, Vec<String>) {
    let first_instant = 1 + generation * 10_000_000;
    let run = Arc::new(Run::new(marks, control(daemon), daemon.hosts_url(""), calls, first_instant, random));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut working = JoinSet::new();
        for (kind, count) in clients {
            for number in 0..*count {
                let client = Client::new(*kind, generation * 1000 + number, daemon.client(), random.next());
                let run = Arc::clone(&run);
                working.spawn(async move { client.work(&run).await });
            }
        }
        while let Some(ended) = working.join_next().await {
            ended.unwrap();
        }
    });
    Arc::into_inner(run).unwrap().end()
}
