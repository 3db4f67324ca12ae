//! The sandbox: its plan as plain data ([`Plan`]), the process that builds it and becomes the program (`codex-authd
//! sandbox-exec`), and the daemon's end.
//!
//! There are three processes. The daemon starts the *launcher* (`launcher`) and sends it the plan. The launcher turns
//! the plan into a list of steps (`steps`) and clones the *first process* of the sandbox (`init`). The first process
//! performs the steps (`perform`), starts the program and supervises it. If any of the three dies, the sandbox dies.
//! Nothing is written outside of the namespaces except a cgroup, if there is one; a crash at any line leaves at most
//! that.

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

pub use error::{SandboxError, SandboxPart};
pub use handle::{Event, Sandbox};
pub use launcher::launch;

/// What to run, and in which environment. The sandbox contains nothing else.
#[derive(Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The path on the host, of a statically linked program. In the sandbox it is `/bin/codex`.
    pub program: PathBuf,
    /// Without the program's name.
    pub arguments: Vec<String>,
    /// The complete environment.
    pub environment: Vec<(String, String)>,
    /// The trusted CA bundle on the host. In the sandbox it is `/etc/ssl/certs/ca-certificates.crt`.
    pub ca_bundle: Option<PathBuf>,
    pub home: Vec<HomeFile>,
    /// A path relative to the home. The content of this file is reported whenever it changes, and at the end.
    pub watched: String,
    pub limits: Limits,
    /// A cgroup of the daemon, in which this sandbox gets its own.
    pub cgroup: Option<PathBuf>,
    /// Build everything, run nothing.
    pub only_build: bool,
}

/// A file in the home, with mode 0600.
#[derive(Clone, Serialize, Deserialize)]
pub struct HomeFile {
    /// Relative to the home, without `..`.
    pub path: String,
    pub content: Zeroizing<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The time after which everything in the sandbox is killed.
    pub time: Duration,
    /// Bytes of memory: of each process, and with a cgroup of all together.
    pub memory: u64,
    /// The program may start threads but no process. Then each limit of a process is a limit of the whole sandbox.
    pub one_process: bool,
    /// Processes and threads.
    pub processes: u64,
    /// Open files of each process. Each may be a socket, with some 200 KiB of buffers in kernel memory.
    pub open_files: u64,
    /// Bytes in the home, in `/tmp`, and in a single file: each up to this size.
    pub disk: u64,
    /// Files in the home and in `/tmp`: this many in each.
    pub files: u64,
    /// CPU seconds of each process.
    pub cpu_seconds: u64,
}

impl Default for Limits {
    /// The need of Codex and some reserve. Measured with 0.169: 512 MiB and 64 files are enough, half of that is not.
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

/// The path of the home in the sandbox.
pub const HOME: &str = "/home/probe";
/// The path of the program in the sandbox.
pub const PROGRAM: &str = "/bin/codex";
/// The path of the trusted CA bundle in the sandbox.
pub const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The address of the daemon's proxy, on the sandbox's own loopback interface.
pub const PROXY: &str = "127.0.0.1:3128";
const PROXY_PORT: u16 = 3128;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    Exited(i32),
    /// The number of the signal.
    Killed(i32),
    /// It was still running when its time was up.
    OutOfTime,
}
