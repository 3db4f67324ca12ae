//! A cgroup for one sandbox, below a cgroup of the daemon. It limits what no limit of a single process can limit, above
//! all the kernel's memory for sockets. It is of version 2, or of version 1's memory hierarchy, which has no other
//! limits.
//!
//! The launcher makes it, puts the first process into it before that process goes on, and removes it when the sandbox
//! is empty. A launcher that is killed leaves an empty directory behind.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;

use super::Limits;

/// Prefix of each name; the launcher's process id follows.
pub const NAME: &str = "codex-authd-sandbox-";
/// A file that only the memory hierarchy of version 1 has.
pub const V1_LIMIT: &str = "memory.limit_in_bytes";

/// The kernel may need a moment after the last process has ended.
const REMOVE_ATTEMPTS: u32 = 50;
const REMOVE_INTERVAL: Duration = Duration::from_millis(10);

pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup of this process in `parent`. `parent` must have the controllers enabled for its children.
    pub fn make(parent: &Path, limits: &Limits) -> io::Result<Self> {
        let path = parent.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Self { path };
        let memory = limits.memory.to_string();
        if cgroup.path.join(V1_LIMIT).exists() {
            cgroup.set(V1_LIMIT, &memory)?;
            // Swap accounting may be off. TCP buffers are counted separately, if at all.
            cgroup.set_if_there("memory.memsw.limit_in_bytes", &memory)?;
            cgroup.set_if_there("memory.kmem.tcp.limit_in_bytes", &memory)?;
            return Ok(cgroup);
        }
        cgroup.set("memory.max", &memory)?;
        cgroup.set("pids.max", &limits.processes.to_string())?;
        // Out of memory kills all processes, not one of them. There may be no swap, or no swap accounting.
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

/// Writes to an existing file. If the kernel does not offer it, the file is not created.
pub fn put(file: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(file)?, value.as_bytes())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Older kernels have no `cgroup.kill`. By now there should be no process left to kill.
        _ = self.set("cgroup.kill", "1");
        for _ in 0..REMOVE_ATTEMPTS {
            match fs::remove_dir(&self.path) {
                Err(e) if e.kind() == ErrorKind::ResourceBusy => std::thread::park_timeout(REMOVE_INTERVAL),
                _ => return,
            }
        }
    }
}
