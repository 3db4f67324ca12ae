//! A process that dies in place of its N-th call that changes what is on disk (see crash_at.c).

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::program::build_preloaded;

pub struct CrashPoints {
    directory: TempDir,
}

impl CrashPoints {
    /// Builds the library that is preloaded; whoever can link Rust has `cc`.
    pub fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        build_preloaded("crash_at.c", &directory.path().join("crash_at.so"));
        Self { directory }
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("crash_at.so")
    }

    /// Lets `command` die in place of its `at`-th call (0: never), and write down each in `log`.
    pub fn arm(&self, command: &mut Command, at: usize, log: &Path) {
        let _ = std::fs::remove_file(log);
        command.env("LD_PRELOAD", self.library()).env("CRASH_AT", at.to_string()).env("CRASH_LOG", log);
        // Of some writes, whichever points are tried, half reaches the file.
        command.env("CRASH_TORN", ((at / 2) % 2).to_string());
    }
}

/// The calls that were made, the fatal one included.
pub fn steps(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(String::from).collect()
}
