//! Makes the list of steps with which the first process builds the sandbox: plain data, which tests compare in full.
//! `perform` performs the steps.
//!
//! Everything that the steps need is allocated here. This module does no I/O: facts about the machine come in as
//! [`Launch`].

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;

use std::ffi::CString;
use std::fmt::{self, Debug};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::resource::Resource;
use nix::unistd::{Gid, Uid};
use zeroize::Zeroizing;

use super::filter::Filtered;
use super::{CA_BUNDLE, HOME, Limits, PROGRAM, Plan, SandboxPart, filter};

/// The user that runs the program if root built the sandbox.
pub const NOBODY: u32 = 65_534;
/// The user id inside, if an unprivileged user built the sandbox.
pub const SOMEBODY: u32 = 1000;
/// How many processors the program sees. With more, the memory it reserves for each thread would exceed its limit.
const PROCESSORS: usize = 4;

/// The sandbox has no name server. Without these options, musl waits five seconds for an answer (Codex 0.169 looks up a
/// name before it exits, without using its proxy).
const NO_NAMES: &[u8] = b"options timeout:0 attempts:1\n";

/// Limits of the buffers of a TCP connection in the network namespace. By default they may grow to 10 MiB.
const TCP_BUFFERS: [(&str, &[u8]); 2] = [("tcp_rmem", b"4096 131072 262144"), ("tcp_wmem", b"4096 16384 262144")];

/// Facts that the launcher found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub ids: Ids,
    /// The program, with no symbolic link in its path.
    pub program: PathBuf,
    pub program_size: u64,
    pub ca_bundle: Option<PathBuf>,
}

/// The mapping of ids inside to ids outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// 0 and 65534 map to themselves: root builds the sandbox, 65534 runs the program.
    Root,
    /// One user and one group are mapped, to these numbers outside.
    User { uid: u32, gid: u32 },
}

impl Ids {
    /// The content of `uid_map` and `gid_map`.
    pub fn maps(self) -> (String, String) {
        match self {
            Self::Root => {
                let both = format!("0 0 1\n{NOBODY} {NOBODY} 1\n");
                (both.clone(), both)
            }
            Self::User { uid, gid } => (format!("{SOMEBODY} {uid} 1\n"), format!("{SOMEBODY} {gid} 1\n")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Later mounts here are not visible outside.
    PrivateMounts,
    /// A small tmpfs becomes the root; the old root is at `/old`.
    NewRoot,
    Directory {
        path: CString,
        mode: u32,
    },
    /// Binds a file of the old root, and adds these flags to those of its mount.
    Bind {
        from: CString,
        to: CString,
        flags: MsFlags,
    },
    Symlink {
        target: CString,
        path: CString,
    },
    Tmpfs {
        path: CString,
        options: CString,
    },
    /// A sysctl of the network namespace. It is skipped where /proc/sys is not writable; in a hardened unit it is not,
    /// but there a cgroup limits the memory.
    Sysctl {
        path: CString,
        value: &'static [u8],
    },
    /// Unmounts the old root.
    LeaveOldRoot,
    ReadOnlyRoot,
    Names,
    Loopback,
    Listen,
    /// Replaces standard input, which would be a descriptor of the host.
    NullInput,
    EmptyBoundingSet,
    LockSecurebits,
    /// Switches to these ids for good, without any group.
    Become {
        uid: Uid,
        gid: Gid,
    },
    NoCapabilities,
    File {
        path: CString,
        content: Content,
        mode: u32,
    },
    Enter {
        path: CString,
    },
    Processors(usize),
    Nice,
    Limit {
        resource: Resource,
        value: u64,
    },
    NoNewPrivileges,
    NotDumpable,
    DieWithParent,
    Filter(filter::FilterProgram),
}

/// The content of a file, which may be a login.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(pub Zeroizing<Vec<u8>>);

impl Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("***")
    }
}

/// A step, and the words for an error message if it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub step: Step,
    pub part: SandboxPart,
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("the path '{0}' leaves the home of the sandbox; give one below it, without '..'")]
    LeavesHome(String),
    #[error("a text of the plan holds a zero byte: {0}")]
    ZeroByte(#[from] std::ffi::NulError),
    #[error("the filter of system calls cannot be made for this machine: {0}")]
    Filter(String),
}

/// Returns all steps in order.
pub fn steps(plan: &Plan, launch: &Launch) -> Result<Vec<Planned>, PlanError> {
    let mut list = StepList(Vec::new());
    root(&mut list, plan, launch)?;
    list.add(SandboxPart::Names, "set the host name", Step::Names);
    list.add(SandboxPart::Network, "bring up the loopback interface", Step::Loopback);
    list.add(SandboxPart::Network, "listen on the loopback interface", Step::Listen);
    list.add(SandboxPart::Mounts, "open /dev/null", Step::NullInput);
    list.add(SandboxPart::Privileges, "empty the bounding set", Step::EmptyBoundingSet);
    list.add(SandboxPart::Privileges, "lock the securebits", Step::LockSecurebits);
    if launch.ids == Ids::Root {
        let step = Step::Become { uid: Uid::from_raw(NOBODY), gid: Gid::from_raw(NOBODY) };
        list.add(SandboxPart::Privileges, "become an ordinary user", step);
    }
    list.add(SandboxPart::Privileges, "drop all capabilities", Step::NoCapabilities);
    home(&mut list, plan)?;
    list.add(SandboxPart::Limits, "keep to a few processors", Step::Processors(PROCESSORS));
    list.add(SandboxPart::Limits, "lower the priority", Step::Nice);
    limits(&mut list, &plan.limits, launch.program_size);
    list.add(SandboxPart::Privileges, "give up new privileges", Step::NoNewPrivileges);
    list.add(SandboxPart::Privileges, "keep others out of its memory", Step::NotDumpable);
    list.add(SandboxPart::Privileges, "die with its parent", Step::DieWithParent);
    let program = filter::compile(Filtered::FirstProcess).map_err(PlanError::Filter)?;
    list.add(SandboxPart::Filter, "filter system calls", Step::Filter(program));
    Ok(list.0)
}

/// The filter for the program's calls, in addition to the filter of the first process.
pub fn program_filter(limits: &Limits) -> Result<filter::FilterProgram, PlanError> {
    let whose = if limits.one_process { Filtered::LoneProgram } else { Filtered::Program };
    filter::compile(whose).map_err(PlanError::Filter)
}

/// The path in the sandbox for a path of the plan.
pub fn in_home(path: &str) -> Result<CString, PlanError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain {
        return Err(PlanError::LeavesHome(path.to_owned()));
    }
    Ok(CString::new(format!("{HOME}/{path}"))?)
}

struct StepList(Vec<Planned>);

impl StepList {
    fn add(&mut self, part: SandboxPart, what: impl Into<String>, step: Step) {
        self.0.push(Planned { step, part, what: what.into() });
    }

    fn directory(&mut self, part: SandboxPart, path: &str, mode: u32) -> Result<(), PlanError> {
        let step = Step::Directory { path: CString::new(path)?, mode };
        self.add(part, format!("make the directory {path}"), step);
        Ok(())
    }

    fn bind(&mut self, part: SandboxPart, from: &Path, to: &str, flags: MsFlags) -> Result<(), PlanError> {
        let old = [b"/old", from.as_os_str().as_bytes()].concat();
        let step = Step::Bind { from: CString::new(old)?, to: CString::new(to)?, flags };
        self.add(part, format!("show {} as {to}", from.display()), step);
        Ok(())
    }

    fn tmpfs(&mut self, path: &str, owner: u32, limits: &Limits) -> Result<(), PlanError> {
        let Limits { disk, files, .. } = limits;
        let options = format!("mode=0700,uid={owner},gid={owner},size={disk},nr_inodes={files}");
        let step = Step::Tmpfs { path: CString::new(path)?, options: CString::new(options)? };
        self.add(SandboxPart::Mounts, format!("mount a tmpfs on {path}"), step);
        Ok(())
    }
}

fn root(list: &mut StepList, plan: &Plan, launch: &Launch) -> Result<(), PlanError> {
    let strict = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    list.add(SandboxPart::Mounts, "make all mounts private", Step::PrivateMounts);
    list.add(SandboxPart::Mounts, "change the root", Step::NewRoot);
    list.directory(SandboxPart::Mounts, "/bin", 0o755)?;
    list.bind(SandboxPart::Program, &launch.program, PROGRAM, strict | MsFlags::MS_NODEV)?;
    list.directory(SandboxPart::Mounts, "/etc", 0o755)?;
    let content = Content(Zeroizing::new(NO_NAMES.to_vec()));
    let step = Step::File { path: c"/etc/resolv.conf".to_owned(), content, mode: 0o444 };
    list.add(SandboxPart::Mounts, "write /etc/resolv.conf", step);
    if let Some(bundle) = &launch.ca_bundle {
        list.directory(SandboxPart::Mounts, "/etc/ssl", 0o755)?;
        list.directory(SandboxPart::Mounts, "/etc/ssl/certs", 0o755)?;
        let flags = strict | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        list.bind(SandboxPart::Program, bundle, CA_BUNDLE, flags)?;
    }
    list.directory(SandboxPart::Mounts, "/dev", 0o755)?;
    // Not /dev/zero: a shared mapping of it is shared memory that no limit counts.
    for device in ["/dev/null", "/dev/full", "/dev/random", "/dev/urandom"] {
        list.bind(SandboxPart::Mounts, Path::new(device), device, strict | MsFlags::MS_NOEXEC)?;
    }
    // No proc file system: the program only reads the link to its own path.
    list.directory(SandboxPart::Mounts, "/proc", 0o755)?;
    list.directory(SandboxPart::Mounts, "/proc/self", 0o755)?;
    let step = Step::Symlink { target: CString::new(PROGRAM)?, path: c"/proc/self/exe".to_owned() };
    list.add(SandboxPart::Mounts, "make /proc/self/exe", step);
    let owner = match launch.ids {
        Ids::Root => NOBODY,
        Ids::User { .. } => SOMEBODY,
    };
    list.directory(SandboxPart::Mounts, "/home", 0o755)?;
    for path in [HOME, "/tmp"] {
        list.directory(SandboxPart::Mounts, path, 0o755)?;
        list.tmpfs(path, owner, &plan.limits)?;
    }
    for (name, value) in TCP_BUFFERS {
        let step = Step::Sysctl { path: CString::new(format!("/old/proc/sys/net/ipv4/{name}"))?, value };
        list.add(SandboxPart::Network, format!("set {name}"), step);
    }
    list.add(SandboxPart::Mounts, "leave the old root", Step::LeaveOldRoot);
    list.add(SandboxPart::Mounts, "make the root read-only", Step::ReadOnlyRoot);
    Ok(())
}

/// Files are written by their later owner, so that no ownership has to change.
fn home(list: &mut StepList, plan: &Plan) -> Result<(), PlanError> {
    let mut made: Vec<&Path> = Vec::new();
    let watched = Some(plan.watched.as_str());
    for path in plan.home.iter().map(|file| file.path.as_str()).chain(watched) {
        in_home(path)?;
        let above: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
        for directory in above.into_iter().rev().filter(|directory| !directory.as_os_str().is_empty()) {
            if !made.contains(&directory) {
                made.push(directory);
                list.directory(SandboxPart::Home, &format!("{HOME}/{}", directory.display()), 0o700)?;
            }
        }
    }
    for file in &plan.home {
        let content = Content(Zeroizing::new(file.content.as_bytes().to_vec()));
        let step = Step::File { path: in_home(&file.path)?, content, mode: 0o600 };
        list.add(SandboxPart::Home, format!("write {}", file.path), step);
    }
    list.add(SandboxPart::Home, "enter the home", Step::Enter { path: CString::new(HOME)? });
    Ok(())
}

fn limits(list: &mut StepList, limits: &Limits, program_size: u64) {
    // Mappings of the program's own file count as well.
    let address_space = limits.memory.saturating_add(program_size).saturating_add(64 << 20);
    for (resource, value, what) in [
        (Resource::RLIMIT_AS, address_space, "address space"),
        (Resource::RLIMIT_DATA, limits.memory, "memory"),
        (Resource::RLIMIT_NPROC, limits.processes, "processes"),
        (Resource::RLIMIT_NOFILE, limits.open_files, "open files"),
        (Resource::RLIMIT_FSIZE, limits.disk, "file size"),
        (Resource::RLIMIT_CPU, limits.cpu_seconds, "processor time"),
        (Resource::RLIMIT_CORE, 0, "core dumps"),
        (Resource::RLIMIT_MEMLOCK, 0, "locked memory"),
        (Resource::RLIMIT_MSGQUEUE, 0, "message queues"),
        (Resource::RLIMIT_SIGPENDING, 64, "queued signals"),
    ] {
        list.add(SandboxPart::Limits, format!("limit {what} to {value}"), Step::Limit { resource, value });
    }
}
