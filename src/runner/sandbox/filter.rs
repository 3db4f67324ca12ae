//! System call filters (seccomp): a list of permitted calls. Every other call fails with `ENOSYS`, as if the kernel did
//! not have it. So future calls and the calls of other ABIs are refused too.
//!
//! The list was measured with Codex 0.169. Deliberately missing:
//! - everything that asks the kernel for more than a process, an own file or a connection (`ptrace`, `mount`, `bpf`,
//!   `keyctl`, `userfaultfd`, `perf_event_open`, `io_uring_*`, modules, `kexec`, `unshare`, `setns` …);
//! - changes of ids;
//! - memory that no limit counts (`memfd_create`, shared anonymous mappings, System V memory);
//! - larger buffers of sockets and pipes;
//! - new sessions: the scheduler may give each one a share of its own.
//!
//! Two filters are stacked: one for the first process, and a stricter one for the program. With `one_process`, the
//! program may start threads but no process, and its threads share one table of open files. Then each limit of one
//! process is a limit of the whole sandbox: memory, open files, and so the buffers of sockets.
//!
//! Filters are compiled before the clone. Installing them allocates nothing.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use nix::errno::Errno;
use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

/// A filter, ready to be installed.
#[derive(Clone, PartialEq, Eq)]
pub struct FilterProgram(BpfProgram);

impl Debug for FilterProgram {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} instructions", self.0.len())
    }
}

impl FilterProgram {
    pub fn apply(&self) -> Result<(), Errno> {
        apply_filter(&self.0).map_err(|_| Errno::last())
    }
}

/// The process whose calls are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// Starts the program, and may install the program's filter.
    FirstProcess,
    /// A program that may start others.
    Program,
    /// A program that may start only threads.
    LoneProgram,
}

pub fn compile(whose: Filtered) -> Result<FilterProgram, String> {
    let arch = std::env::consts::ARCH.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
    let rules = rules(whose).map_err(|e| e.to_string())?;
    let refused = SeccompAction::Errno(Errno::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch).map_err(|e| e.to_string())?;
    Ok(FilterProgram(filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?))
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn rules(whose: Filtered) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ALLOWED.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    if whose == Filtered::LoneProgram {
        rules.retain(|call, _| !PROCESSES.contains(call));
    }
    let mut when = |call: c_long, alternatives: Vec<Vec<SeccompCondition>>| {
        let alternatives = alternatives.into_iter().map(SeccompRule::new).collect::<Result<_, _>>()?;
        rules.insert(call, alternatives);
        Ok::<_, seccompiler::BackendError>(())
    };
    // Threads and processes, in the existing namespaces only. A filter cannot see the flags of clone3, so it is not
    // permitted.
    let clones = if whose == Filtered::LoneProgram {
        masked(0, NAMESPACES | THREAD, THREAD)?
    } else {
        masked(0, NAMESPACES, 0)?
    };
    when(libc::SYS_clone, vec![vec![clones]])?;
    if whose == Filtered::FirstProcess {
        when(libc::SYS_seccomp, vec![vec![number(0, libc::SECCOMP_SET_MODE_FILTER.into())?]])?;
    }
    let mut sockets = Vec::new();
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                sockets.push(vec![
                    equal(0, family)?,
                    masked(1, 0xf, kind.cast_unsigned().into())?,
                    equal(2, protocol)?,
                ]);
            }
        }
    }
    when(libc::SYS_socket, sockets)?;
    when(libc::SYS_socketpair, vec![vec![equal(0, libc::AF_UNIX)?]])?;
    when(
        libc::SYS_setsockopt,
        vec![
            // No BPF program in the kernel, and no larger buffers than the default of each socket.
            vec![
                equal(1, libc::SOL_SOCKET)?,
                differs(2, libc::SO_SNDBUF)?,
                differs(2, libc::SO_RCVBUF)?,
                differs(2, libc::SO_SNDBUFFORCE)?,
                differs(2, libc::SO_RCVBUFFORCE)?,
                differs(2, libc::SO_ATTACH_FILTER)?,
                differs(2, libc::SO_ATTACH_BPF)?,
                differs(2, libc::SO_ATTACH_REUSEPORT_CBPF)?,
                differs(2, libc::SO_ATTACH_REUSEPORT_EBPF)?,
            ],
            vec![equal(1, libc::IPPROTO_TCP)?, differs(2, libc::TCP_ULP)?],
            vec![equal(1, libc::IPPROTO_IPV6)?, equal(2, libc::IPV6_V6ONLY)?],
        ],
    )?;
    when(libc::SYS_fcntl, vec![vec![differs(1, libc::F_SETPIPE_SZ)?]])?;
    // Only queries about a terminal. The sandbox has none, and input must not be injected (TIOCSTI, TIOCLINUX).
    let ioctls = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX];
    let ioctls = ioctls.into_iter().map(|request| Ok(vec![number(1, request)?])).collect::<Result<_, _>>()?;
    when(libc::SYS_ioctl, ioctls)?;
    // Shared memory without a file is not counted by any limit of a process.
    let shared = u64::from(libc::MAP_SHARED.cast_unsigned());
    let anonymous = u64::from(libc::MAP_ANONYMOUS.cast_unsigned());
    when(libc::SYS_mmap, vec![vec![masked(3, shared, 0)?], vec![masked(3, anonymous, 0)?]])?;
    // Limits may be read, not set.
    let null = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    when(libc::SYS_prlimit64, vec![vec![null]])?;
    let options = PRCTL.iter().map(|option| Ok(vec![equal(0, *option)?])).collect::<Result<_, _>>()?;
    when(libc::SYS_prctl, options)?;
    Ok(rules)
}

const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// What a thread shares with its process, above all its open files.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;

/// Calls that start a process, besides `clone`.
#[cfg(target_arch = "x86_64")]
const PROCESSES: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const PROCESSES: &[c_long] = &[];

type Condition = Result<SeccompCondition, seccompiler::BackendError>;

fn equal(argument: u8, value: i32) -> Condition {
    number(argument, value.cast_unsigned().into())
}

/// The kernel reads only the low 32 bits of these arguments, so only those are compared.
fn number(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn differs(argument: u8, value: i32) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value.cast_unsigned().into())
}

fn masked(argument: u8, mask: u64, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

const PRCTL: &[i32] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_DUMPABLE,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_PDEATHSIG,
    libc::PR_GET_PDEATHSIG,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_CAPBSET_READ,
    libc::PR_SET_VMA,
];

const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Processes and threads.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Connections.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // The machine.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];
