//! A cgroup for one sandbox, below one that is ours: what no limit of a single process can bound is bounded there, the
//! kernel's memory for sockets above all. Of version 2, or of version 1's memory hierarchy, which has no other limits.
//!
//! The launcher makes it, puts the first process into it before that goes on, and removes it once nothing is left. A
//! launcher that is killed leaves an empty directory behind.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;

use super::Limits;

/// What the name of each begins with; the launcher's process id follows.
pub const NAME: &str = "codex-authd-sandbox-";
/// What a cgroup of version 1's memory hierarchy has, and no other.
pub const V1_LIMIT: &str = "memory.limit_in_bytes";

/// The kernel may need a moment after the last process is gone.
const REMOVE_ATTEMPTS: u32 = 50;
const REMOVE_INTERVAL: Duration = Duration::from_millis(10);

pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the one of this process in `parent`, whose controllers are enabled for what is below it.
    pub fn make(parent: &Path, limits: &Limits) -> io::Result<Self> {
        let path = parent.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Self { path };
        let memory = limits.memory.to_string();
        if cgroup.path.join(V1_LIMIT).exists() {
            cgroup.set(V1_LIMIT, &memory)?;
            // There may be no account of swap; and buffers of TCP are counted apart, if at all.
            cgroup.set_if_there("memory.memsw.limit_in_bytes", &memory)?;
            cgroup.set_if_there("memory.kmem.tcp.limit_in_bytes", &memory)?;
            return Ok(cgroup);
        }
        cgroup.set("memory.max", &memory)?;
        cgroup.set("pids.max", &limits.processes.to_string())?;
        // All at once, not one of many; and there may be no swap, or no account of it.
        cgroup.set("memory.oom.group", "1")?;
        cgroup.set_if_there("memory.swap.max", "0")?;
        Ok(cgroup)
    }

    pub fn take(&self, pid: Pid) -> io::Result<()> {
        self.set("cgroup.procs", &pid.to_string())
    }

    fn set_if_there(&self, file: &str, value: &str) -> io::Result<()> {
        match self.set(file, value) {
            Err(e) if e.kind() != ErrorKind::NotFound && e.kind() != ErrorKind::PermissionDenied => Err(e),
            _ => Ok(()),
        }
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        put(&self.path.join(file), value)
    }
}

/// A file that is not there is one the kernel does not give, and is not made.
pub fn put(file: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(file)?, value.as_bytes())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Older kernels have no such file; nothing should be left to be killed anyway.
        _ = self.set("cgroup.kill", "1");
        for _ in 0..REMOVE_ATTEMPTS {
            match fs::remove_dir(&self.path) {
                Err(e) if e.kind() == ErrorKind::ResourceBusy => std::thread::park_timeout(REMOVE_INTERVAL),
                _ => return,
            }
        }
    }
}
