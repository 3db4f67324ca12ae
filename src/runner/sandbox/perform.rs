//! Performs the steps, in the first process of the sandbox.
//!
//! It runs on a copy of the launcher's memory: nothing here allocates, and no line can panic. A crash at any line ends
//! the process and its namespaces. Nothing was written outside of them.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::unreachable
)]

use std::ffi::CStr;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::setrlimit;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket};
use nix::sys::stat::Mode;
use nix::sys::statfs::statfs;
use nix::sys::statvfs::FsFlags;
use nix::unistd::{self, chdir, mkdir, pivot_root, sethostname, symlinkat, write};

use super::steps::{Planned, Step};
use super::{PROXY_PORT, sys};

/// Results of the steps.
#[derive(Default)]
pub struct Built {
    pub listener: Option<OwnedFd>,
}

/// Performs the steps in order, and stops at the first failure.
pub fn perform(steps: &[Planned], built: &mut Built) -> Result<(), (usize, Errno)> {
    for (number, planned) in steps.iter().enumerate() {
        step(&planned.step, built).map_err(|errno| (number, errno))?;
    }
    Ok(())
}

fn step(step: &Step, built: &mut Built) -> Result<(), Errno> {
    match step {
        Step::PrivateMounts => set_flags(c"/", MsFlags::MS_REC | MsFlags::MS_PRIVATE),
        Step::NewRoot => new_root(),
        Step::Directory { path, mode } => mkdir(path.as_c_str(), Mode::from_bits_truncate(*mode)),
        Step::Bind { from, to, flags } => bind_file(from, to, *flags),
        Step::Symlink { target, path } => symlinkat(target.as_c_str(), nix::fcntl::AT_FDCWD, path.as_c_str()),
        Step::Tmpfs { path, options } => tmpfs(path, MsFlags::MS_NOEXEC, options),
        Step::Sysctl { path, value } => match set_sysctl(path, value) {
            // The daemon's surroundings made it read-only or hid it.
            Err(Errno::EROFS | Errno::EACCES | Errno::EPERM | Errno::ENOENT) => Ok(()),
            other => other,
        },
        Step::LeaveOldRoot => {
            umount2(c"/old", MntFlags::MNT_DETACH)?;
            unistd::unlinkat(nix::fcntl::AT_FDCWD, c"/old", unistd::UnlinkatFlags::RemoveDir)
        }
        Step::ReadOnlyRoot => {
            let strict = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            set_flags(c"/", MsFlags::MS_REMOUNT | MsFlags::MS_BIND | strict)
        }
        Step::Names => {
            sethostname("probe")?;
            sys::set_domain_name(b"(none)")
        }
        Step::Loopback => sys::loopback_up(),
        Step::Listen => {
            built.listener = Some(listener()?);
            Ok(())
        }
        Step::NullInput => {
            let null = open(c"/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            sys::place(null.as_fd(), 0)
        }
        Step::EmptyBoundingSet => sys::empty_bounding_set(),
        Step::LockSecurebits => sys::lock_securebits(),
        Step::Become { uid, gid } => {
            unistd::setgroups(&[])?;
            unistd::setresgid(*gid, *gid, *gid)?;
            unistd::setresuid(*uid, *uid, *uid)
        }
        Step::NoCapabilities => sys::drop_capabilities(),
        Step::File { path, content, mode } => write_file(path, &content.0, *mode),
        Step::Enter { path } => chdir(path.as_c_str()),
        Step::Processors(count) => sys::keep_processors(*count),
        Step::Nice => sys::be_nice(),
        Step::Limit { resource, value } => setrlimit(*resource, *value, *value),
        Step::NoNewPrivileges => sys::no_new_privileges(),
        Step::NotDumpable => sys::set_dumpable(false),
        Step::DieWithParent => sys::die_with_parent(),
        Step::Filter(program) => program.apply(),
    }
}

const NOTHING: Option<&CStr> = None;

fn set_flags(path: &CStr, flags: MsFlags) -> Result<(), Errno> {
    mount(NOTHING, path, NOTHING, flags, NOTHING)
}

fn tmpfs(path: &CStr, flags: MsFlags, options: &CStr) -> Result<(), Errno> {
    let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(options))
}

/// Mounts over the old `/tmp`. This hides nothing: after the pivot, the host's `/tmp` is at `/old/tmp`.
fn new_root() -> Result<(), Errno> {
    tmpfs(c"/tmp", MsFlags::MS_NOEXEC, c"mode=0755,size=1m,nr_inodes=64")?;
    mkdir(c"/tmp/old", Mode::S_IRWXU)?;
    pivot_root(c"/tmp", c"/tmp/old")?;
    chdir(c"/")
}

fn bind_file(from: &CStr, to: &CStr, flags: MsFlags) -> Result<(), Errno> {
    let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    drop(open(to, create, Mode::S_IRUSR)?);
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND, NOTHING)?;
    // The flags that the mount has on the host are locked: the kernel refuses a remount without them.
    let present = statfs(to)?.flags();
    let mut flags = flags;
    for (is, flag) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if present.contains(is) {
            flags |= flag;
        }
    }
    set_flags(to, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags)
}

fn listener() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    let [a, b, c, d] = Ipv4Addr::LOCALHOST.octets();
    bind(listener.as_raw_fd(), &SockaddrIn::new(a, b, c, d, PROXY_PORT))?;
    listen(&listener, Backlog::MAXCONN)?;
    Ok(listener)
}

fn set_sysctl(path: &CStr, value: &[u8]) -> Result<(), Errno> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, value).map(drop)
}

fn write_file(path: &CStr, content: &[u8], mode: u32) -> Result<(), Errno> {
    let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = open(path, create, Mode::from_bits_truncate(mode))?;
    let mut left = content;
    while !left.is_empty() {
        let written = write(&file, left)?;
        left = left.get(written..).unwrap_or_default();
    }
    Ok(())
}
