//! Records the writes and syncs of a daemon, in one order with marks of the test (see record_disk.c).

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::daemon::Daemon;
use super::program::build_preloaded;

/// The kind of the records that the test writes.
const MARK: u32 = 12;
/// The bytes of a record before its data.
pub const HEADER: usize = 32;

pub struct Recorder {
    directory: TempDir,
}

impl Recorder {
    /// Compiles record_disk.c.
    pub fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        build_preloaded("record_disk.c", &directory.path().join("record_disk.so"));
        Self { directory }
    }

    /// Records all changes below the state directory from the next start on. Creates the directory, because its own
    /// creation is not recorded.
    pub fn arm(&self, daemon: &mut Daemon, log: &Path) {
        let state = daemon.state_dir();
        std::fs::create_dir_all(&state).unwrap();
        let preload = format!("LD_PRELOAD={}", self.library().display());
        // `env` directly before the daemon: commands of `within` must not be recorded.
        daemon.within.extend(["env".into(), preload]);
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        daemon.environment.push(("RECORD_DIRECTORY".into(), text(state.canonicalize().unwrap())));
        daemon.environment.push(("RECORD_LOG".into(), text(log.to_owned())));
    }

    pub fn library(&self) -> PathBuf {
        self.directory.path().join("record_disk.so")
    }
}

/// Writes marks between the records of the daemon.
pub struct Marks(File);

impl Marks {
    pub fn open(log: &Path) -> Self {
        Self(File::options().create(true).append(true).open(log).unwrap())
    }

    /// One write. Everything that the daemon does after this returns is after the mark in the log.
    pub fn mark(&self, text: &str) {
        let mut record = vec![0; HEADER];
        record[..4].copy_from_slice(&u32::try_from(HEADER + text.len()).unwrap().to_ne_bytes());
        record[4..8].copy_from_slice(&MARK.to_ne_bytes());
        record.extend_from_slice(text.as_bytes());
        (&self.0).write_all(&record).unwrap();
    }
}
