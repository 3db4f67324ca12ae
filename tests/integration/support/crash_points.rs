//! A process that dies instead of its N-th call that changes the disk (see crash_at.c).

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::program::build_preloaded;

pub struct CrashPoints {
    directory: TempDir,
}

impl CrashPoints {
    /// Builds the library to preload; every machine that can link Rust has `cc`.
    pub fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        build_preloaded("crash_at.c", &directory.path().join("crash_at.so"));
        Self { directory }
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("crash_at.so")
    }

    /// Makes `command` die instead of its `at`-th call (0: never), and log each call in `log`.
    pub fn arm(&self, command: &mut Command, at: usize, log: &Path) {
        let _ = std::fs::remove_file(log);
        command.env("LD_PRELOAD", self.library()).env("CRASH_AT", at.to_string()).env("CRASH_LOG", log);
        // Some writes are torn: half of the data reaches the file. Every choice of points includes such writes.
        command.env("CRASH_TORN", ((at / 2) % 2).to_string());
    }
}

/// The calls that were made, with the fatal one.
pub fn steps(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(String::from).collect()
}
