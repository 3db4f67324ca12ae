//! Wiring: configuration → state → listeners → background jobs → graceful stop. No rule lives here.
//!
//! A start follows the dependencies: the lock of the state directory, the stores, the secrets, the sockets (the system
//! may choose their ports), the names and the certificate, the service, the files with the bound addresses, the
//! listeners. A crash at any line leaves what the next start expects: each write is a transaction of the records or an
//! atomic replacement of a file.
//!
//! The daemon replaces its process by exec in three cases ([`recovery`]): its store failed and the disk accepts writes
//! again, the store is no longer the one it started with, or hot state could not be read. It stops as usual, but keeps
//! the listening sockets open.

pub mod background;
mod certificates;
mod descriptors;
mod files;
pub mod format;
pub mod hardening;
pub mod listen_file;
pub mod logging;
pub mod manager;
mod memory;
pub mod owner;
pub mod prober;
mod programs;
mod promotion;
mod provider;
pub mod recovery;
mod running;
pub mod sockets;
pub mod state;
mod stores;
pub mod tls;
mod upgrade;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::listener::ControlError;
use crate::pki::PkiError;
use crate::service::ServiceError;

use manager::Telling;
use recovery::Recovery;
use running::Running;
use sockets::{Sockets, SocketsError};
use state::StateError;

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("cannot write {path}: {cause}", path = path.display())]
    Write { path: std::path::PathBuf, cause: std::io::Error },
    #[error("cannot start: {}", cause_of(.0))]
    Service(#[from] ServiceError),
    #[error("cannot make a client for the identity provider: {0}")]
    Provider(String),
    #[error("a listener stopped: {0}")]
    Listener(std::io::Error),
    #[error("cannot keep this process out of core dumps: {0}")]
    Harden(std::io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
    #[error("this process cannot replace itself by a fresh one: {0}; start the daemon again")]
    Replace(std::io::Error),
}

/// At a start the operator reads the error, so the cause is not hidden.
fn cause_of(error: &ServiceError) -> String {
    match error {
        ServiceError::Unavailable { cause }
        | ServiceError::RecordsAway { cause }
        | ServiceError::StoreFailed { cause }
        | ServiceError::Internal { cause } => cause.clone(),
        error => error.to_string(),
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> Result<(), DaemonError> {
    let mut signals = Signals::watch().map_err(DaemonError::Signals)?;
    let recovery = Recovery::begin();
    let starting = manager::Starting::begin();
    // A successor inherits the sockets of its predecessor. They must survive a start that fails.
    let inherited = recovery.is_successor().then(|| Sockets::take(&config.listen)).transpose()?;
    let spare = inherited.as_ref().map(Sockets::duplicate).transpose()?;
    let running = match (Running::start(&config, &recovery, inherited).await, spare) {
        (Ok(running), _) => running,
        // It has recorded the failure, so the next process does not try the same.
        (Err(DaemonError::State(error @ StateError::HotUnfinished(_))), spare) => {
            log::error!(event = "hot_state_unfinished", cause:% = error; "replacing this process by one that sets hot state aside");
            return Err(match spare {
                Some(sockets) => replace(&recovery, sockets),
                None => DaemonError::Replace(recovery::replace_process(recovery::same_again())),
            });
        }
        (Err(error), Some(sockets)) if recovery.tries_again() => {
            let wait = recovery.first_wait();
            log::error!(event = "start_failed", wait:? = wait; "this process cannot start as the successor of the last one, and will be replaced: {error}");
            tokio::select! {
                () = signals.until_stop(|| ()) => return Err(error),
                () = tokio::time::sleep(wait) => return Err(replace(&recovery, sockets)),
            }
        }
        (Err(error), _) => return Err(error),
    };
    log::info!(event = "listening", hosts:% = running.bound.hosts, admin:% = running.bound.admin, control:% = running.bound.control.display(); "ready");
    drop(starting);
    memory::give_all_that_is_free_back();
    // Pings go on until the very end: a slow stop is no reason to kill the process.
    let telling = manager::Telling::begin(&running.areas);
    tokio::select! {
        () = signals.until_stop(|| reload(&config, &running, &telling)) => {
            telling.end_status();
            running.stop().await
        }
        why = recovery.wait(&running.areas, &config.state_dir) => {
            telling.end_status();
            Err(running.be_replaced(&recovery, why).await)
        }
    }
}

fn replace(recovery: &Recovery, sockets: Sockets) -> DaemonError {
    let mut successor = recovery.successor();
    match sockets.hand_on(&mut successor) {
        Ok(()) => DaemonError::Replace(recovery::replace_process(successor)),
        Err(error) => error.into(),
    }
}

fn reload(config: &Config, running: &Running, telling: &Telling) {
    let Running { tls, bound, areas, .. } = running;
    manager::reloading();
    match tls.reload() {
        Ok(()) => {
            areas.core.set_policy(tls.policy(config, bound));
            log::info!(event = "reloaded"; "certificates were read again");
            telling.reloaded(None);
        }
        Err(error) => {
            log::error!(event = "reload_failed", cause:% = error; "the certificates in force stay");
            telling.reloaded(Some(error.to_string()));
        }
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn until_stop(&mut self, on_hangup: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => on_hangup(),
            }
        }
    }
}
