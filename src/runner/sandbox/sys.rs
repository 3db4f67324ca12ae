//! System calls of the sandbox that no crate wraps, each as a small safe function. Other unsafe code is only in
//! `daemon/memory.rs` and `doctor/unit.rs`.
//!
//! All of it except [`receive`] may be called between the clone and the exec: it does not allocate, lock or panic. It
//! must not know why it is called.
#![allow(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::unreachable,
    clippy::undocumented_unsafe_blocks
)]

use std::ffi::CString;
use std::io::IoSliceMut;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, c_ulong, pid_t};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::Ending;

/// Takes a descriptor that this process inherited.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only queries a number, which may be any.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open. The caller runs at the start of the process, so nothing else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes the descriptor that a system call has just returned.
fn made(number: c_int) -> Result<OwnedFd, Errno> {
    Errno::result(number)?;
    // SAFETY: the kernel has just made it for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads the bytes that have arrived, and the descriptor that came with them.
pub fn receive(socket: BorrowedFd, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptor = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            for number in numbers {
                descriptor = made(number).ok();
            }
        }
    }
    Ok((message.bytes, descriptor))
}

/// Closes all descriptors from `first` on.
pub fn close_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: the caller owns none of them.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } == 0 {
        return Ok(());
    }
    for number in first..65_536 {
        // SAFETY: as above; closing what is not open does nothing.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Closes a descriptor whose owner is never used again in this process.
pub fn close_one(number: RawFd) {
    // SAFETY: the caller is a fresh clone. It never returns to code in which the owner would use or close it.
    unsafe { libc::close(number) };
}

/// Replaces the descriptor `number` by `from`. The executed program inherits it.
pub fn place(from: BorrowedFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: only 0, 1 and 2 are replaced, and no object owns those.
    Errno::result(unsafe { libc::dup2(from.as_raw_fd(), number) }).map(drop)
}

/// Clones this process, which must have only one thread, as `fork` does. Returns 0 in the child.
pub fn clone(flags: c_int) -> Result<pid_t, Errno> {
    let flags = c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without its own stack, the child continues on a copy of this one. There is only one thread, so no other
    // thread holds anything in memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0 as c_long, 0 as c_long, 0 as c_long, 0 as c_long) };
    Errno::result(pid).map(|pid| pid_t::try_from(pid).unwrap_or(0))
}

/// The state of the children.
pub enum Reaped {
    Child(pid_t, Ending),
    /// There are children, and none has ended.
    NoneYet,
    NoChildren,
}

/// `block`: wait until a child has ended.
pub fn reap(block: bool) -> Reaped {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a local that the kernel may write.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, if block { 0 } else { libc::WNOHANG }) };
        match pid {
            0 => return Reaped::NoneYet,
            1.. => {
                let ending = if libc::WIFSIGNALED(status) {
                    Ending::Killed(libc::WTERMSIG(status))
                } else {
                    Ending::Exited(libc::WEXITSTATUS(status))
                };
                return Reaped::Child(pid, ending);
            }
            _ if Errno::last() == Errno::EINTR => {}
            _ => return Reaped::NoChildren,
        }
    }
}

/// Kills everything that this process, the first of its pid namespace, can see.
pub fn kill_all() {
    // SAFETY: no memory is touched.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

pub fn exit(code: c_int) -> ! {
    // SAFETY: ends the process; nothing of it runs afterwards.
    unsafe { libc::_exit(code) }
}

/// A program, its arguments and its environment, in the layout that `execve` needs.
pub struct Program {
    path: CString,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    // The pointers point into these; they are never changed.
    _texts: (Vec<CString>, Vec<CString>),
}

impl Program {
    pub fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        let pointers =
            |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
        Self {
            path,
            arguments: pointers(&arguments),
            environment: pointers(&environment),
            _texts: (arguments, environment),
        }
    }

    /// Replaces this process by the program. Returns only on failure.
    pub fn execute(&self) -> Errno {
        // SAFETY: both lists end with null, and what they point to lives as long as `self`.
        unsafe { libc::execve(self.path.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr()) };
        Errno::last()
    }
}

/// Blocks all signals that can be blocked.
pub fn block_signals() -> Result<(), Errno> {
    set_mask(true)
}

fn set_mask(blocked: bool) -> Result<(), Errno> {
    // SAFETY: a signal set is plain data, and is filled before it is used.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a local.
    unsafe { if blocked { libc::sigfillset(&raw mut set) } else { libc::sigemptyset(&raw mut set) } };
    // SAFETY: `set` is initialised; the old set is not requested.
    Errno::result(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) }).map(drop)
}

/// Resets the handling of every signal to the default.
pub fn default_signals() -> Result<(), Errno> {
    for number in 1..=64 {
        // SAFETY: no handler of ours is set; the numbers that cannot be changed are refused.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    set_mask(false)
}

/// Returns a descriptor that reports ended children and requests to end.
pub fn signals() -> Result<OwnedFd, Errno> {
    // SAFETY: plain data, filled below.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a local, the numbers are signals.
    let fd = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    made(fd)
}

/// The senders whose signals count as a request to end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    Anybody,
    /// Only processes outside of this pid namespace.
    Outside,
}

/// Reports whether one of the signals since the last call asks this process to end.
pub fn asked_to_end(signals: BorrowedFd, by: Asker) -> bool {
    let mut asked = false;
    loop {
        // SAFETY: plain data that the kernel fills.
        let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
        let size = mem::size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` has that size.
        let length = unsafe { libc::read(signals.as_raw_fd(), (&raw mut info).cast(), size) };
        if usize::try_from(length) != Ok(size) {
            return asked;
        }
        // A sender inside the sandbox has a process id here; a sender outside has 0.
        let counts = by == Asker::Anybody || info.ssi_pid == 0;
        asked |= info.ssi_signo != libc::SIGCHLD.cast_unsigned() && counts;
    }
}

/// Sends as many bytes as the socket takes now, with a descriptor.
pub fn send(socket: BorrowedFd, bytes: &[u8], descriptor: Option<BorrowedFd>) -> Result<usize, Errno> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        number: RawFd,
        padding: c_int,
    }
    // SAFETY: plain data.
    let mut control: Control = unsafe { mem::zeroed() };
    // SAFETY: plain data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if let Some(descriptor) = descriptor {
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SCM_RIGHTS;
        control.header.cmsg_len = mem::offset_of!(Control, padding) as _;
        control.number = descriptor.as_raw_fd();
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = mem::size_of::<Control>() as _;
    }
    // SAFETY: everything the message points to lives in this function or is `bytes`, and `bytes` is only read.
    let sent =
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(|sent| usize::try_from(sent).unwrap_or(0))
}

/// Brings up the loopback interface of this network namespace.
pub fn loopback_up() -> Result<(), Errno> {
    // SAFETY: no memory is touched.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = made(fd)?;
    // SAFETY: plain data.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed() as libc::c_char;
    }
    // SAFETY: `request` has the type that both calls expect.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
    // SAFETY: the call above filled in this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP as libc::c_short);
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) }).map(drop)
}

pub fn set_domain_name(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are of one slice.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

fn prctl(option: c_int, value: c_ulong) -> Result<c_int, Errno> {
    // SAFETY: every option that is used here takes numbers only.
    Errno::result(unsafe { libc::prctl(option, value, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) })
}

/// The kernel kills this process when its parent dies, for any reason.
pub fn die_with_parent() -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong).map(drop)
}

/// No exec can gain a capability after this.
pub fn empty_bounding_set() -> Result<(), Errno> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            // The kernel knows fewer capabilities.
            Err(Errno::EINVAL) if capability > 0 => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Root has no special rights after this, for good. Changes of ids neither remove nor add capabilities.
pub fn lock_securebits() -> Result<(), Errno> {
    // NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE; these and KEEP_CAPS are locked.
    prctl(libc::PR_SET_SECUREBITS, 0b1110_1111).map(drop)
}

pub fn drop_capabilities() -> Result<(), Errno> {
    prctl_ambient()?;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let nothing = [0_u32; 6];
    // SAFETY: version 3 needs this header and two times three words.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const nothing) }).map(drop)
}

fn prctl_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong).map(drop)
}

pub fn no_new_privileges() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

pub fn set_dumpable(yes: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, c_ulong::from(yes)).map(drop)
}

/// Restricts this process to the first `count` processors that it may use.
pub fn keep_processors(count: usize) -> Result<(), Errno> {
    const WORDS: usize = 128;
    let mut words = [0_u64; WORDS];
    let size = mem::size_of_val(&words);
    // SAFETY: the kernel writes at most `size` bytes.
    let length = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size, words.as_mut_ptr()) };
    Errno::result(length)?;
    let mut left = count;
    for word in &mut words {
        let mut kept = 0;
        while left > 0 && *word != 0 {
            let lowest = *word & word.wrapping_neg();
            kept |= lowest;
            *word ^= lowest;
            left = left.saturating_sub(1);
        }
        *word = kept;
    }
    // SAFETY: the kernel reads `size` bytes, the size of `words`.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, words.as_ptr()) }).map(drop)
}

/// Lowers the priority of this process.
pub fn be_nice() -> Result<(), Errno> {
    // SAFETY: no memory is touched.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, 10) }).map(drop)
}
