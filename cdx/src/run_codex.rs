//! Runs Codex in the foreground of this terminal, and hands a login over that it renews meanwhile.
//!
//! Codex is a child in the process group of `cdx`, so the terminal's signals reach both: Ctrl-C is for Codex, and `cdx`
//! only outlives it. A TERM or HUP for `cdx` alone is passed on. A handover while Codex runs prints nothing. What it
//! could not hand over, the last one after Codex does, or the next `cdx`.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::codex::{Codex, OVERRIDES};
use crate::home::shown;
use crate::login::{Login, Pushed};
use crate::messages::{Result, failure, mute};
use crate::platform;
use crate::watch::Watch;

/// How long to wait before another attempt, when the daemon could not be asked.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Runs codex to its end; the exit code is codex's own, or 128+n when a signal ended it.
pub async fn run(login: &mut Login<'_>, codex: &Codex, arguments: &[OsString]) -> Result<u8> {
    let mut command = login.home.command(&codex.program);
    command.args(arguments);
    for name in OVERRIDES {
        command.env_remove(name);
    }
    let cannot = |error: std::io::Error| failure(126, format!("cannot start {}: {error}", shown(&codex.program)));
    let mut signals = Signals::new().map_err(cannot)?;
    let mut watch = Watch::new(&login.home.auth_file);
    let mut child = tokio::process::Command::from(command).spawn().map_err(cannot)?;
    let process = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let pass_on = |signal| {
        if let Some(process) = process {
            // It may have ended just now.
            let _ = kill(process, signal);
        }
    };
    mute(true);
    let (mut ended, mut is_pending) = (None, false);
    while ended.is_none() {
        tokio::select! {
            status = child.wait() => ended = Some(status),
            signal = signals.next() => pass_on(signal),
            () = next_change(&mut watch, is_pending) => {
                let handover = hand_over(login, is_pending);
                tokio::pin!(handover);
                // When codex ends meanwhile, the call still goes to its end: the daemon must not be asked twice.
                is_pending = loop {
                    tokio::select! {
                        is_pending = &mut handover => break is_pending,
                        status = child.wait(), if ended.is_none() => ended = Some(status),
                        signal = signals.next() => pass_on(signal),
                    }
                };
            }
        }
    }
    mute(false);
    let status = ended.unwrap_or_else(|| Err(std::io::ErrorKind::Other.into()));
    Ok(code(status.map_err(cannot)?))
}

/// Waits until the login has changed, or until another attempt is due: the daemon may be back, also when the login does
/// not change again.
async fn next_change(watch: &mut Watch, is_pending: bool) {
    if is_pending {
        let _ = tokio::time::timeout(RETRY_INTERVAL, watch.changed()).await;
    } else {
        watch.changed().await;
    }
}

/// Hands the login over if it is another one. Returns whether another attempt may succeed.
async fn hand_over(login: &mut Login<'_>, is_pending: bool) -> bool {
    let before = login.local.digest.clone();
    // A file that cannot be read, or is not whole, changes again.
    if login.read().is_err() || login.local.fault.is_some() || !is_pending && login.local.digest == before {
        return is_pending;
    }
    !matches!(login.push().await, Ok(Pushed::Done))
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The signals that would end `cdx`, unless it was started with them ignored.
struct Signals {
    streams: Vec<(Signal, tokio::signal::unix::Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let mut streams = Vec::new();
        for (number, kind) in [
            (Signal::SIGINT, SignalKind::interrupt()),
            (Signal::SIGQUIT, SignalKind::quit()),
            (Signal::SIGTERM, SignalKind::terminate()),
            (Signal::SIGHUP, SignalKind::hangup()),
        ] {
            if !platform::is_ignored(number) {
                streams.push((number, signal(kind)?));
            }
        }
        Ok(Self { streams })
    }

    /// The next signal that is to be passed on.
    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                while let std::task::Poll::Ready(Some(())) = stream.poll_recv(context) {
                    if matches!(number, Signal::SIGTERM | Signal::SIGHUP) {
                        return std::task::Poll::Ready(*number);
                    }
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_codexs_or_names_the_signal() {
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }
}
