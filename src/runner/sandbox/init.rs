//! The first process of a sandbox: builds it, starts the program in it, and stays. When it dies, everything inside
//! dies.
//!
//! It kills everything and ends in these cases: the program has ended, its time is up, it is asked to end, or the
//! daemon or the launcher is gone. Before any of the program runs, this process has only the program's rights and is
//! under its own filter. It holds only two descriptors of the host: the daemon's socket and the launcher's pipe.
//!
//! It runs on a copy of the launcher's memory: nothing here allocates, and no line can panic. A crash at any line kills
//! the sandbox, and the daemon reads the end of its socket. A login that the program refreshed just before, and that
//! was not reported yet, is lost then.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::unreachable
)]

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::pid_t;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::{Mode, SFlag, fstat, lstat, umask};
use nix::unistd::{Pid, pipe2, read, setpgid, setsid, write};
use zeroize::Zeroize as _;

use super::perform::{Built, perform};
use super::steps::Planned;
use super::sys::{self, Asker, Reaped};
use super::wire::{self, FrameKind};
use super::{Ending, SandboxPart, filter};

/// How long the daemon may take to read the last reports.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the daemon may take to let the program run.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the watched file is checked for a change. inotify would report changes, but the kernel takes 15 ms to
/// release it at the end: three times as long as everything else.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);
/// The most reports while the program runs, and one more at the end: a program may rewrite its login without end.
const MAX_WATCHED_REPORTS: u32 = 64;

/// Made by the launcher before the clone.
pub struct Init {
    pub steps: Vec<Planned>,
    pub program: sys::Program,
    /// Stacked on the filter that is among the steps.
    pub program_filter: filter::FilterProgram,
    pub socket: OwnedFd,
    /// The launcher writes a byte when the ids are mapped. End of file means that the launcher died.
    pub lifeline: OwnedFd,
    pub time: Duration,
    pub only_build: bool,
    pub watched: Watched,
}

/// The file that is reported whenever it changes.
pub struct Watched {
    path: CString,
    /// The content that the daemon knows, and a buffer for the present content. Neither ever grows.
    known: Vec<u8>,
    present: Vec<u8>,
    times: u32,
    /// The file's stamp when it was last checked.
    stamp: Option<Stamp>,
}

/// Identifies the file and its last change.
type Stamp = (u64, i64, i64, i64, i64, i64);

impl Watched {
    /// `content`: the content at the start.
    pub fn new(path: CString, content: &[u8]) -> Self {
        let mut known = Vec::with_capacity(content.len().max(wire::LARGEST_WATCHED));
        known.extend_from_slice(content);
        Self { path, known, present: vec![0; wire::LARGEST_WATCHED], times: 0, stamp: None }
    }
}

/// Runs in the launcher. `present` was never written there, so it need not be wiped.
impl Drop for Watched {
    fn drop(&mut self) {
        self.known.as_mut_slice().zeroize();
    }
}

impl Init {
    pub fn run(mut self) -> ! {
        sys::exit(match self.live() {
            Ok(()) => 0,
            Err(Gone) => 1,
        })
    }

    fn live(&mut self) -> Result<(), Gone> {
        // Nothing may be done before the ids are mapped.
        let mut mapped = [0];
        if read(&self.lifeline, &mut mapped) != Ok(1) {
            return Err(Gone);
        }
        // One session for everything inside: the scheduler may give each session a share of the processors.
        self.done(setsid().map(drop), SandboxPart::Limits, "make a session")?;
        let signals = self.done(sys::signals(), SandboxPart::Limits, "receive signals")?;
        let mut built = Built::default();
        if let Err((number, errno)) = perform(&self.steps, &mut built) {
            let planned = self.steps.get(number);
            let part = planned.map_or(SandboxPart::Mounts, |planned| planned.part);
            return self.fail(part, errno, planned.map_or("", |planned| planned.what.as_str()));
        }
        let mut sender =
            MessageSender { socket: self.socket.as_fd(), lifeline: self.lifeline.as_fd(), until: None, killed: false };
        let listener = built.listener.take();
        sender.tell(FrameKind::Built, &[], &[], listener.as_ref().map(OwnedFd::as_fd))?;
        drop(listener);

        let ending = self.until_over(&signals)?;
        // Kills every process that is left, in any session.
        loop {
            sys::kill_all();
            if let Reaped::NoChildren = sys::reap(true) {
                break;
            }
        }
        let mut sender = MessageSender {
            socket: self.socket.as_fd(),
            lifeline: self.lifeline.as_fd(),
            until: Instant::now().checked_add(OUTPUT_TIMEOUT),
            killed: true,
        };
        tell_watched(&mut self.watched, &mut sender)?;
        sender.tell(FrameKind::Ended, &wire::ended(ending), &[], None)
    }

    /// Waits for the permission to run, runs the program, and returns when it must end.
    fn until_over(&mut self, signals: &OwnedFd) -> Result<Ending, Gone> {
        let mut program: Option<pid_t> = None;
        // If the daemon never answers, it does not wait for ever.
        let mut deadline = Instant::now().checked_add(EXIT_TIMEOUT);
        loop {
            let mut polled = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.lifeline.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            let look = if program.is_some() { Instant::now().checked_add(WATCH_INTERVAL) } else { None };
            let Ok(_) = (match poll(&mut polled, timeout([look, deadline].into_iter().flatten().min())) {
                Err(Errno::EINTR) => continue,
                other => other,
            }) else {
                return Err(Gone);
            };
            let [commands, lifeline, signalled] = polled.map(|one| one.any().unwrap_or(true));
            if lifeline {
                return Err(Gone);
            }
            if commands {
                match self.command()? {
                    Some(wire::GO) if program.is_none() => {
                        if self.only_build {
                            return Ok(Ending::Exited(0));
                        }
                        deadline = Instant::now().checked_add(self.time);
                        program = Some(self.start()?);
                    }
                    Some(wire::END) => return Ok(Ending::OutOfTime),
                    Some(_) => return Err(Gone),
                    None => {}
                }
            }
            if signalled && sys::asked_to_end(signals.as_fd(), Asker::Outside) {
                return Ok(Ending::OutOfTime);
            }
            if program.is_some() {
                self.look(deadline)?;
            }
            // Reaps orphaned processes as well.
            while let Reaped::Child(pid, ending) = sys::reap(false) {
                if Some(pid) == program {
                    return Ok(ending);
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Ending::OutOfTime);
            }
        }
    }

    /// Reports the watched file if it was replaced or written to.
    fn look(&mut self, deadline: Option<Instant>) -> Result<(), Gone> {
        let stamp = stamp(&self.watched.path);
        if stamp == self.watched.stamp || self.watched.times >= MAX_WATCHED_REPORTS {
            return Ok(());
        }
        self.watched.stamp = stamp;
        self.watched.times = self.watched.times.saturating_add(1);
        let mut sender = MessageSender {
            socket: self.socket.as_fd(),
            lifeline: self.lifeline.as_fd(),
            until: deadline,
            killed: false,
        };
        tell_watched(&mut self.watched, &mut sender)
    }

    fn command(&self) -> Result<Option<u8>, Gone> {
        let mut byte = [0];
        match recv(self.socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(1) => Ok(byte.first().copied()),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            _ => Err(Gone),
        }
    }

    /// Starts the program in its own process group, with standard input and its two outputs and nothing else.
    fn start(&mut self) -> Result<pid_t, Gone> {
        // A successful exec closes the pipe. A failed one sends its error number.
        let (failure, fails) = self.done(pipe2(OFlag::O_CLOEXEC), SandboxPart::Program, "make a pipe")?;
        let pid = self.done(sys::clone(0), SandboxPart::Program, "start a process")?;
        if pid == 0 {
            drop(failure);
            let errno = self.execute();
            _ = write(&fails, &(errno as i32).to_le_bytes());
            sys::exit(127);
        }
        drop(fails);
        let mut errno = [0; 4];
        if read(&failure, &mut errno) == Ok(4) {
            let errno = Errno::from_raw(i32::from_le_bytes(errno));
            return self.fail(SandboxPart::Program, errno, "execute the program");
        }
        // Close our copies, so that readers of the outputs see their end when the program ends.
        for output in [1, 2] {
            let null =
                self.done(open(c"/dev/null", OFlag::O_RDONLY, Mode::empty()), SandboxPart::Program, "open /dev/null")?;
            self.done(sys::place(null.as_fd(), output), SandboxPart::Program, "release the outputs")?;
        }
        Ok(pid)
    }

    fn execute(&self) -> Errno {
        umask(Mode::from_bits_truncate(0o077));
        if let Err(errno) = setpgid(Pid::from_raw(0), Pid::from_raw(0))
            .and_then(|()| sys::default_signals())
            .and_then(|()| self.program_filter.apply())
        {
            return errno;
        }
        self.program.execute()
    }

    fn done<T>(&self, result: Result<T, Errno>, part: SandboxPart, what: &str) -> Result<T, Gone> {
        result.or_else(|errno| self.fail(part, errno, what))
    }

    fn fail<T>(&self, part: SandboxPart, errno: Errno, what: &str) -> Result<T, Gone> {
        let mut sender = MessageSender {
            socket: self.socket.as_fd(),
            lifeline: self.lifeline.as_fd(),
            until: Instant::now().checked_add(OUTPUT_TIMEOUT),
            killed: true,
        };
        sender.tell(FrameKind::Failed, &wire::failed(part, errno as i32), what.as_bytes(), None)?;
        Err(Gone)
    }
}

/// Nobody is left to receive a report: the sandbox must end.
struct Gone;

fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    // Rounded up, so that the deadline has passed when poll returns.
    let left = deadline.saturating_duration_since(Instant::now()).saturating_add(Duration::from_micros(999));
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// Reads the watched file, and reports it if the daemon does not know this content.
fn tell_watched(watched: &mut Watched, sender: &mut MessageSender) -> Result<(), Gone> {
    let Some(length) = read_watched(&watched.path, &mut watched.present) else { return Ok(()) };
    let Some(content) = watched.present.get(..length) else { return Ok(()) };
    if content == watched.known.as_slice() {
        return Ok(());
    }
    sender.tell(FrameKind::Watched, content, &[], None)?;
    watched.known.clear();
    // The capacity suffices: nothing is allocated.
    watched.known.extend_from_slice(content);
    Ok(())
}

fn stamp(path: &CString) -> Option<Stamp> {
    let about = lstat(path.as_c_str()).ok()?;
    Some((about.st_ino, about.st_size, about.st_mtime, about.st_mtime_nsec, about.st_ctime, about.st_ctime_nsec))
}

/// Returns the number of bytes read. The program is hostile: another kind of file, or a larger one, counts as missing.
/// So does a file that changed its size meanwhile; it is checked again.
fn read_watched(path: &CString, buffer: &mut [u8]) -> Option<usize> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = open(path.as_c_str(), flags, Mode::empty()).ok()?;
    let about = fstat(&file).ok()?;
    let regular = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    if !regular || usize::try_from(about.st_size).ok()? > buffer.len() {
        return None;
    }
    let mut length = 0_usize;
    loop {
        let left = buffer.get_mut(length..)?;
        if left.is_empty() {
            break;
        }
        match read(&file, left) {
            Ok(0) => break,
            Ok(read) => length = length.checked_add(read)?,
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
    let is_whole = usize::try_from(fstat(&file).ok()?.st_size).ok()? == length;
    is_whole.then_some(length)
}

/// Sends reports to the daemon, which may read slowly.
struct MessageSender<'a> {
    socket: BorrowedFd<'a>,
    lifeline: BorrowedFd<'a>,
    /// The deadline for sending. While the program runs, the program is killed at the deadline, and a few more seconds
    /// remain.
    until: Option<Instant>,
    killed: bool,
}

impl MessageSender<'_> {
    fn tell(&mut self, kind: FrameKind, start: &[u8], rest: &[u8], descriptor: Option<BorrowedFd>) -> Result<(), Gone> {
        let header = wire::header(kind, start.len().saturating_add(rest.len()));
        self.send(&header, descriptor)?;
        self.send(start, None)?;
        self.send(rest, None)
    }

    fn send(&mut self, bytes: &[u8], descriptor: Option<BorrowedFd>) -> Result<(), Gone> {
        let mut left = bytes;
        let mut descriptor = descriptor;
        while !left.is_empty() {
            match sys::send(self.socket, left, descriptor) {
                Ok(sent) => {
                    left = left.get(sent..).unwrap_or_default();
                    descriptor = None;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait()?,
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Gone> {
        let mut polled = [PollFd::new(self.socket, PollFlags::POLLOUT), PollFd::new(self.lifeline, PollFlags::POLLIN)];
        match poll(&mut polled, timeout(self.until)) {
            Ok(0) if self.killed => Err(Gone),
            Ok(0) => {
                sys::kill_all();
                self.killed = true;
                self.until = Instant::now().checked_add(OUTPUT_TIMEOUT);
                Ok(())
            }
            Ok(_) => {
                let [_, lifeline] = polled.map(|one| one.any().unwrap_or(true));
                if lifeline { Err(Gone) } else { Ok(()) }
            }
            Err(Errno::EINTR) => Ok(()),
            Err(_) => Err(Gone),
        }
    }
}
