//! The daemon's end of a sandbox: starts the launcher, sends it the plan, and receives the reports of the first
//! process.
//!
//! The socket keeps the sandbox alive. When it closes, by a drop or by the death of the daemon, everything inside is
//! killed. Nothing is stored.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::launcher::SOCKET;
use super::wire::{self, FrameKind, HEADER};
use super::{Ending, Plan, SandboxError, sys};

/// Time limit for building, on a very busy machine.
const BUILD_SECONDS: u64 = 20;
/// How long an ending sandbox may take to report the watched file.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// A built sandbox. Dropping it kills it.
pub struct Sandbox {
    child: Child,
    socket: UnixStream,
    frame: Frame,
    listener: Option<TcpListener>,
    program: PathBuf,
    ended: Option<Ending>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The watched file has this new content, complete. A file of more than 1 MiB is not reported.
    Watched(Zeroizing<Vec<u8>>),
    /// The last event. If the watched file changed since its last report, `Watched` comes first.
    Ended(Ending),
}

impl Sandbox {
    /// Starts `launcher` (this executable), and waits until everything is built and the program is ready to run.
    pub async fn start(launcher: &Path, plan: &Plan) -> Result<Self, SandboxError> {
        Self::start_with(launcher, plan, Stdio::piped(), Stdio::piped()).await
    }

    /// Like `start`, but the program inherits the caller's outputs.
    pub async fn start_attached(launcher: &Path, plan: &Plan) -> Result<Self, SandboxError> {
        Self::start_with(launcher, plan, Stdio::inherit(), Stdio::inherit()).await
    }

    async fn start_with(launcher: &Path, plan: &Plan, stdout: Stdio, stderr: Stdio) -> Result<Self, SandboxError> {
        let failed = |cause| SandboxError::Start { launcher: launcher.into(), cause };
        let (ours, theirs) = Socket::pair().map_err(failed)?;
        ours.set_nonblocking(true)?;
        let mut command = std::process::Command::new(launcher);
        command.arg("sandbox-exec").env_clear().stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mapping = FdMapping { parent_fd: OwnedFd::from(theirs), child_fd: SOCKET };
        command.fd_mappings(vec![mapping]).map_err(|e| failed(io::Error::other(e)))?;
        let mut command = Command::from(command);
        let child = command.spawn().map_err(failed)?;
        // This also closes our copy of the launcher's end of the socket.
        drop(command);
        let mut sandbox = Self {
            child,
            socket: UnixStream::from_std(ours)?,
            frame: Frame::default(),
            listener: None,
            program: plan.program.clone(),
            ended: None,
        };
        let built = async {
            // A launcher that died early has sent the reason, or its death is reported below.
            if let Err(e) = sandbox.socket.write_all(&packed(plan)?).await
                && e.kind() != ErrorKind::BrokenPipe
            {
                return Err(SandboxError::Io(e));
            }
            match sandbox.frame().await? {
                (FrameKind::Built, _, Some(listener)) => {
                    sandbox.listener = Some(TcpListener::from(listener));
                    Ok(())
                }
                _ => Err(SandboxError::Nonsense),
            }
        };
        timeout(Duration::from_secs(BUILD_SECONDS), built).await.map_err(|_| SandboxError::Slow(BUILD_SECONDS))??;
        Ok(sandbox)
    }

    /// Takes the listener on `PROXY` inside the sandbox. Only once; it is non-blocking.
    pub fn listener(&mut self) -> Option<TcpListener> {
        self.listener.take()
    }

    /// Takes the program's outputs. Only once.
    pub fn output(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        self.child.stdout.take().zip(self.child.stderr.take())
    }

    /// Lets the program run. Nothing of it runs before.
    pub fn go(&mut self) -> Result<(), SandboxError> {
        Ok(self.command(wire::GO)?)
    }

    /// Returns the next event. Cancel safe: it may be dropped while it waits, and called again.
    pub async fn next(&mut self) -> Result<Event, SandboxError> {
        match self.frame().await? {
            (FrameKind::Watched, body, _) => Ok(Event::Watched(body)),
            (FrameKind::Ended, body, _) => {
                let ending = wire::read_ended(&body).ok_or(SandboxError::Nonsense)?;
                self.ended = Some(ending);
                Ok(Event::Ended(ending))
            }
            _ => Err(SandboxError::Nonsense),
        }
    }

    /// Asks the sandbox to end now, as if its time were up. [`Sandbox::next`] reports how it ends.
    pub fn ask_to_end(&mut self) {
        // If it is ending by itself, that ending is reported.
        let _ = self.command(wire::END);
    }

    /// Ends the sandbox now, as if its time were up, and waits until all of it is gone. Returns the last content of the
    /// watched file, if it was not reported before, and how the program ended.
    pub async fn end(mut self) -> Result<(Option<Zeroizing<Vec<u8>>>, Ending), SandboxError> {
        let told = if let Some(ending) = self.ended {
            Ok((None, ending))
        } else {
            self.ask_to_end();
            timeout(OUTPUT_TIMEOUT, self.last_words()).await.unwrap_or(Err(SandboxError::Died))
        };
        let Self { mut child, socket, .. } = self;
        // Closing the socket kills everything that has not ended.
        drop(socket);
        child.wait().await?;
        told
    }

    async fn last_words(&mut self) -> Result<(Option<Zeroizing<Vec<u8>>>, Ending), SandboxError> {
        let mut watched = None;
        loop {
            match self.next().await? {
                Event::Watched(content) => watched = Some(content),
                Event::Ended(ending) => return Ok((watched, ending)),
            }
        }
    }

    fn command(&self, byte: u8) -> io::Result<()> {
        // One byte always fits: at most two are in flight.
        self.socket.try_write(&[byte]).map(drop)
    }

    async fn frame(&mut self) -> Result<(FrameKind, Zeroizing<Vec<u8>>, Option<OwnedFd>), SandboxError> {
        let frame = &mut self.frame;
        let socket = &self.socket;
        let whole = socket.async_io(Interest::READABLE, || frame.read(socket)).await;
        let (kind, body, descriptor) = match whole {
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Err(SandboxError::Died);
            }
            Err(e) if e.kind() == ErrorKind::InvalidData => return Err(SandboxError::Nonsense),
            other => other?,
        };
        if kind == FrameKind::Failed {
            let (part, errno, what) = wire::read_failed(&body).ok_or(SandboxError::Nonsense)?;
            return Err(SandboxError::failed(part, errno, &what, self.program.clone()));
        }
        Ok((kind, body, descriptor))
    }
}

/// The received part of a frame.
#[derive(Default)]
struct Frame {
    header: [u8; HEADER],
    filled: usize,
    body: Option<(FrameKind, Zeroizing<Vec<u8>>)>,
    descriptor: Option<OwnedFd>,
}

impl Frame {
    fn read(&mut self, socket: &UnixStream) -> io::Result<(FrameKind, Zeroizing<Vec<u8>>, Option<OwnedFd>)> {
        loop {
            let place = match &mut self.body {
                None if self.filled == HEADER => {
                    let (kind, length) =
                        wire::read_header(self.header).ok_or_else(|| io::Error::from(ErrorKind::InvalidData))?;
                    self.body = Some((kind, Zeroizing::new(vec![0; length])));
                    self.filled = 0;
                    continue;
                }
                None => &mut self.header[self.filled..],
                Some((_, body)) => &mut body[self.filled..],
            };
            if place.is_empty() {
                self.filled = 0;
                let (kind, body) = self.body.take().ok_or_else(|| io::Error::from(ErrorKind::InvalidData))?;
                return Ok((kind, body, self.descriptor.take()));
            }
            let (length, descriptor) = sys::receive(socket.as_fd(), place)?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.filled += length;
            if descriptor.is_some() {
                self.descriptor = descriptor;
            }
        }
    }
}

/// The plan after its length, in memory that is never moved (it holds a login).
fn packed(plan: &Plan) -> io::Result<Zeroizing<Vec<u8>>> {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, plan)?;
    if count.0 > wire::LARGEST_PLAN {
        return Err(io::Error::other("the plan of a sandbox is too large"));
    }
    let length = u32::try_from(count.0).map_err(io::Error::other)?;
    let mut text = Zeroizing::new(Vec::with_capacity(count.0 + 4));
    text.extend_from_slice(&length.to_le_bytes());
    serde_json::to_writer(&mut *text, plan)?;
    Ok(text)
}
