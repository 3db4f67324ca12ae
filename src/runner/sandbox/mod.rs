//! The sandbox: what is run in it as plain data ([`Plan`]), the process that builds it and becomes the program
//! (`codex-authd sandbox-exec`), and the daemon's end of it.
//!
//! Three processes. The daemon starts the *launcher* (`launcher`) and hands it the plan; the launcher makes a list of
//! steps of it (`steps`) and clones the *first process* of the sandbox (`init`), which does them (`perform`), starts the
//! program and watches over it. Whoever of the three dies takes the sandbox along. Nothing is written outside of the
//! namespaces, but for a cgroup where there is one, so a crash at any line leaves at most that.

pub(super) mod cgroup;
mod error;
mod filter;
mod handle;
mod init;
mod launcher;
mod perform;
mod steps;
mod sys;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use error::{Part, SandboxError};
pub use handle::{Event, Sandbox};
pub use launcher::launch;

/// What is run, and in what. Everything that is not named here is not in the sandbox.
#[derive(Clone, Serialize, Deserialize)]
pub struct Plan {
    /// On the host; a program that needs no library. In the sandbox it is `/bin/codex`.
    pub program: PathBuf,
    /// Without the program's name.
    pub arguments: Vec<String>,
    /// All of it.
    pub environment: Vec<(String, String)>,
    /// The certificates that are trusted, on the host; `/etc/ssl/certs/ca-certificates.crt` in the sandbox.
    pub ca_bundle: Option<PathBuf>,
    pub home: Vec<HomeFile>,
    /// Relative to the home: what it holds is told whenever it changes, and at the end.
    pub watched: String,
    pub limits: Limits,
    /// A cgroup that is ours, in which one for this sandbox is made.
    pub cgroup: Option<PathBuf>,
    /// Build everything, run nothing.
    pub only_build: bool,
}

/// A file in the home, 0600.
#[derive(Clone, Serialize, Deserialize)]
pub struct HomeFile {
    /// Relative to the home, without `..`.
    pub path: String,
    pub content: Zeroizing<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// When everything in the sandbox is killed.
    pub time: Duration,
    /// Bytes of memory, of a process and, with a cgroup, of all.
    pub memory: u64,
    /// The program may start threads and no process: then each limit of a process is one of all.
    pub one_process: bool,
    /// Processes and threads.
    pub processes: u64,
    /// Of a process. Each may be a socket, with buffers in the kernel's memory of some 200 KiB.
    pub open_files: u64,
    /// Bytes of the home, and as many of `/tmp`; of one file as well.
    pub disk: u64,
    /// Files in each.
    pub files: u64,
    /// CPU seconds of a process.
    pub cpu_seconds: u64,
}

impl Default for Limits {
    /// What Codex needs and some more (measured with 0.169: 512 MiB and 64 files are enough, half of that is not).
    fn default() -> Self {
        Self {
            time: Duration::from_secs(60),
            memory: 768 << 20,
            one_process: true,
            processes: 256,
            open_files: 128,
            disk: 64 << 20,
            files: 4096,
            cpu_seconds: 60,
        }
    }
}

/// The home, as the program sees it.
pub const HOME: &str = "/home/probe";
/// The program, as it sees itself.
pub const PROGRAM: &str = "/bin/codex";
/// The certificates that are trusted, as the program sees them.
pub const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where the daemon's proxy listens, on the sandbox's own loopback.
pub const PROXY: &str = "127.0.0.1:3128";
const PROXY_PORT: u16 = 3128;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It was still there when its time was up.
    OutOfTime,
}
