//! `codex-authd sandbox-exec`: reads the plan from the daemon, turns it into steps, clones the first process of the
//! sandbox, and stays until the sandbox is gone.
//!
//! It runs before the rest of this program starts, on one thread. It must not outlive the daemon: when its socket
//! closes or a signal arrives, it kills the sandbox and ends. It writes only the ids of the new user namespace, and a
//! cgroup if there is one.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getegid, geteuid, pipe2, write};
use zeroize::Zeroizing;

use super::cgroup::Cgroup;
use super::init::{Init, Watched};
use super::steps::{self, Ids, Launch, PlanError};
use super::sys::{self, Asker, Reaped};
use super::wire::{self, FrameKind};
use super::{Plan, SandboxPart};

/// The file descriptor number of the daemon's socket, inherited.
pub const SOCKET: i32 = 3;
/// How long the first process may take to end after it was asked to.
const START_TIMEOUT: Duration = Duration::from_secs(5);

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWNET;

/// Must be called at the very start of a process that has done nothing yet.
pub fn launch() -> ExitCode {
    let socket = sys::inherited(SOCKET).filter(|socket| getsockopt(socket, sockopt::SockType).is_ok());
    let Some(socket) = socket else {
        eprintln!(
            "codex-authd: sandbox-exec is what the daemon starts to run Codex in a sandbox; to try one by hand, write \
             a plan and use `codex-authd sandbox-exec --plan FILE`"
        );
        return ExitCode::from(2);
    };
    let socket = UnixStream::from(socket);
    match run(&socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(LaunchFailure { part, errno, what }) => {
            // If the daemon no longer reads, the failure need not be reported.
            let start = wire::failed(part, errno as i32);
            let header = wire::header(FrameKind::Failed, start.len() + what.len());
            _ = sys::send(socket.as_fd(), &[&header, &start, what.as_bytes()].concat(), None);
            ExitCode::FAILURE
        }
    }
}

struct LaunchFailure {
    part: SandboxPart,
    errno: Errno,
    what: String,
}

impl LaunchFailure {
    fn new(part: SandboxPart, what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { part, errno, what: what.into() }
    }
}

impl From<PlanError> for LaunchFailure {
    fn from(error: PlanError) -> Self {
        Self { part: SandboxPart::Plan, errno: Errno::EINVAL, what: error.to_string() }
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn run(socket: &UnixStream) -> Result<(), LaunchFailure> {
    let prepared = prepare(socket).map_err(LaunchFailure::new(SandboxPart::Privileges, "prepare the launcher"));
    let signals = prepared?;
    let plan = read_plan(socket)
        .map_err(|e| LaunchFailure::new(SandboxPart::Plan, format!("the plan cannot be read: {e}"))(errno(&e)))?;
    let ids = match geteuid() {
        root if root.is_root() => Ids::Root,
        user => Ids::User { uid: user.as_raw(), gid: getegid().as_raw() },
    };
    let launch = look(&plan, ids)?;
    let (lifeline, life) = pipe2(OFlag::O_CLOEXEC).map_err(LaunchFailure::new(SandboxPart::Limits, "make a pipe"))?;
    let init = init(&plan, &launch, socket, lifeline)?;
    let failed = |what| move |e: io::Error| LaunchFailure::new(SandboxPart::Cgroup, what)(errno(&e));
    // Dropped after the child: values drop in reverse order of declaration.
    let cgroup = match &plan.cgroup {
        Some(parent) => Some(Cgroup::make(parent, &plan.limits).map_err(failed("make a cgroup with its limits"))?),
        None => None,
    };
    drop(plan);
    // The /proc files of a process that is not dumpable belong to root; so would those of its child.
    let dumpable =
        |yes| sys::set_dumpable(yes).map_err(LaunchFailure::new(SandboxPart::Privileges, "prepare the launcher"));
    dumpable(true)?;
    let pid = sys::clone(NAMESPACES).map_err(LaunchFailure::new(SandboxPart::Namespaces, "make new namespaces"))?;
    if pid == 0 {
        drop((life, signals));
        sys::close_one(SOCKET);
        init.run();
    }
    drop(init);
    let child = Child(Pid::from_raw(pid));
    if let Some(cgroup) = &cgroup {
        cgroup.take(child.0).map_err(failed("put the sandbox into its cgroup"))?;
    }
    map_ids(child.0, ids)?;
    dumpable(false)?;
    release_outputs().map_err(LaunchFailure::new(SandboxPart::Limits, "release the outputs"))?;
    write(&life, b"1").map_err(LaunchFailure::new(SandboxPart::Limits, "let the sandbox go on"))?;
    wait(&child, socket, &signals);
    Ok(())
}

/// The first process. Dropping this kills what is left of the sandbox, and waits until it is gone.
struct Child(Pid);

impl Drop for Child {
    fn drop(&mut self) {
        _ = kill(self.0, Signal::SIGKILL);
        while !matches!(sys::reap(true), Reaped::NoChildren) {}
    }
}

fn prepare(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    // If memory runs out, the kernel kills this process first, with everything it starts. If the write is refused,
    // nothing is less safe. It must come first: these files of a process that is not dumpable belong to root.
    _ = fs::write("/proc/self/oom_score_adj", "1000");
    sys::set_dumpable(false)?;
    sys::block_signals()?;
    sys::close_from(SOCKET + 1)?;
    fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    umask(Mode::empty());
    sys::signals()
}

fn read_plan(socket: &UnixStream) -> io::Result<Plan> {
    let mut socket = socket;
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length > wire::LARGEST_PLAN {
        return Err(io::Error::other("it is too large"));
    }
    let mut text = Zeroizing::new(vec![0; length]);
    socket.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn look(plan: &Plan, ids: Ids) -> Result<Launch, LaunchFailure> {
    let failed = |path: &Path| {
        let what = format!("find {}", path.display());
        |e: io::Error| LaunchFailure::new(SandboxPart::Program, what)(errno(&e))
    };
    let program = fs::canonicalize(&plan.program).map_err(failed(&plan.program))?;
    let program_size = fs::metadata(&program).map_err(failed(&program))?.len();
    let ca_bundle = match &plan.ca_bundle {
        Some(bundle) => Some(fs::canonicalize(bundle).map_err(failed(bundle))?),
        None => None,
    };
    Ok(Launch { ids, program, program_size, ca_bundle })
}

fn init(plan: &Plan, launch: &Launch, socket: &UnixStream, lifeline: OwnedFd) -> Result<Init, LaunchFailure> {
    let text = |text: String| CString::new(text).map_err(PlanError::from);
    let name = std::iter::once("codex".to_owned());
    let arguments = name.chain(plan.arguments.iter().cloned()).map(text).collect::<Result<_, _>>()?;
    let environment =
        plan.environment.iter().map(|(name, value)| text(format!("{name}={value}"))).collect::<Result<_, _>>()?;
    let content = plan.home.iter().find(|file| file.path == plan.watched).map_or("", |file| &file.content);
    let socket =
        socket.try_clone().map_err(|e| LaunchFailure::new(SandboxPart::Limits, "share the socket")(errno(&e)))?;
    Ok(Init {
        steps: steps::steps(plan, launch)?,
        program: sys::Program::new(text(super::PROGRAM.to_owned())?, arguments, environment),
        program_filter: steps::program_filter(&plan.limits)?,
        socket: socket.into(),
        lifeline,
        time: plan.limits.time,
        only_build: plan.only_build,
        watched: Watched::new(steps::in_home(&plan.watched)?, content.as_bytes()),
    })
}

fn map_ids(pid: Pid, ids: Ids) -> Result<(), LaunchFailure> {
    let (users, groups) = ids.maps();
    let put = |file: &str, text: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text).map_err(|e| LaunchFailure::new(SandboxPart::Ids, format!("write {file}"))(errno(&e)))
    };
    if let Ids::User { .. } = ids {
        put("setgroups", "deny")?;
    }
    put("uid_map", &users)?;
    put("gid_map", &groups)
}

/// Releases this process's copies of the outputs, so that they end with the program.
fn release_outputs() -> Result<(), Errno> {
    let input = io::stdin();
    sys::place(input.as_fd(), 1)?;
    sys::place(input.as_fd(), 2)
}

/// Waits until the first process is dead, or must be killed.
fn wait(child: &Child, socket: &UnixStream, signals: &OwnedFd) {
    let mut patience: Option<Instant> = None;
    loop {
        if let Reaped::Child(..) | Reaped::NoChildren = sys::reap(false) {
            return;
        }
        // The data is for the first process. This process only checks that the daemon is alive.
        let mut polled =
            [PollFd::new(socket.as_fd(), PollFlags::empty()), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let timeout = patience.map_or(PollTimeout::NONE, |until| {
            PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => continue,
            Err(_) | Ok(0) => return,
            Ok(_) => {}
        }
        let [gone, signalled] = polled.map(|one| one.any().unwrap_or(true));
        if gone {
            return;
        }
        if signalled && sys::asked_to_end(signals.as_fd(), Asker::Anybody) && patience.is_none() {
            // The first process reports the watched file before it ends.
            _ = kill(child.0, Signal::SIGTERM);
            patience = Instant::now().checked_add(START_TIMEOUT);
        }
    }
}
