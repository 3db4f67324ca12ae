//! Wiring: configuration → state → listeners → background jobs → graceful stop. No rule lives here.
//!
//! The order of a start is the order of what depends on what: the lock of the state directory, the stores, the secrets,
//! the sockets (whose ports may be chosen by the system), the names and the certificate, the service, the files that
//! say where it listens, the listeners. A crash anywhere leaves what the next start expects: everything it writes is
//! either a transaction of the records or a file replaced as a whole.

pub mod background;
pub mod hardening;
pub mod listen_file;
pub mod logging;
pub mod state;
pub mod tls;

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use poem::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api;
use crate::config::Config;
use crate::listener::{ControlAcceptor, ControlError, Limits, PlainAcceptor, TlsAcceptor};
use crate::outside::{Outside, System};
use crate::pki::PkiError;
use crate::service::{Service, ServiceError};

use state::{State, StateError};

/// How long calls in flight may take once the daemon was told to stop.
const DRAIN: Duration = Duration::from_secs(20);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(90);

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot listen on {address} for {whom}: {cause}; choose another address in [listen], or stop what has it")]
    Bind { address: SocketAddr, whom: &'static str, cause: std::io::Error },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("cannot write {path}: {cause}", path = path.display())]
    Write { path: std::path::PathBuf, cause: std::io::Error },
    #[error("cannot start: {}", cause_of(.0))]
    Service(#[from] ServiceError),
    #[error("a listener stopped: {0}")]
    Listener(std::io::Error),
    #[error("cannot keep this process out of core dumps: {0}")]
    Harden(std::io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
}

/// At a start there is no caller to keep the cause from: the operator reads it.
fn cause_of(error: &ServiceError) -> String {
    match error {
        ServiceError::Unavailable { cause } | ServiceError::Internal { cause } => cause.clone(),
        error => error.to_string(),
    }
}

/// Runs the daemon until it is told to stop (SIGTERM, SIGINT).
pub async fn serve(config: Config) -> Result<(), DaemonError> {
    let signals = Signals::watch().map_err(DaemonError::Signals)?;
    let outside: Arc<dyn Outside> = Arc::new(System);
    let state = State::open(&config, outside.clone()).await?;

    let hosts = bind(config.listen.hosts, "hosts")?;
    let admin = bind(config.listen.admin, "admins")?;
    let bound = listen_file::Bound {
        hosts: local_address(&hosts, config.listen.hosts)?,
        admin: local_address(&admin, config.listen.admin)?,
        control: config.listen.control.clone(),
    };
    let tls = Arc::new(tls::Tls::new(&config, &bound, &state.secrets, outside.clone())?);
    make_parent(&config.listen.control)?;
    let control = ControlAcceptor::bind(&config.listen.control, Limits::default()).await?;
    let service = Arc::new(state.service(tls.policy(&config, &bound)).await?);
    tls.write_files(&config.state_dir)?;
    listen_file::write(&config.state_dir, &bound)?;

    let (stop, stopping) = watch::channel(false);
    let hosts_endpoint = api::hosts_listener(service.clone());
    let hosts_server = if config.listen.hosts_tls {
        let acceptor =
            TlsAcceptor::from_listener(hosts, tls.hosts(), Limits::default()).map_err(DaemonError::Listener)?;
        tokio::spawn(run(server(acceptor), hosts_endpoint, stopping.clone()))
    } else {
        let acceptor = PlainAcceptor::from_listener(hosts, Limits::default()).map_err(DaemonError::Listener)?;
        tokio::spawn(run(server(acceptor), hosts_endpoint, stopping.clone()))
    };
    let acceptor = TlsAcceptor::from_listener(admin, tls.admin(), Limits::default()).map_err(DaemonError::Listener)?;
    let admin_server = tokio::spawn(run(server(acceptor), api::admin_listener(service.clone()), stopping.clone()));
    let control_server = tokio::spawn(run(server(control), api::admin_listener(service.clone()), stopping.clone()));
    let jobs = background::start(&config, service.clone(), tls.clone(), outside, stopping);

    log::info!(event = "listening", hosts:% = bound.hosts, admin:% = bound.admin, control:% = bound.control.display(); "ready");
    notify(&[sd_notify::NotifyState::Ready]);
    signals.until_stop(|| reload(&config, &bound, &tls, &service)).await;

    log::info!(event = "stopping"; "stopping: calls in flight are finished");
    notify(&[sd_notify::NotifyState::Stopping]);
    stop.send_replace(true);
    for server in [hosts_server, admin_server, control_server] {
        match server.await {
            Ok(outcome) => outcome.map_err(DaemonError::Listener)?,
            Err(panic) => log::error!(event = "listener_panicked", cause:% = panic; "a listener ended badly"),
        }
    }
    jobs.finish().await;
    background::flush(&service).await;
    log::info!(event = "stopped"; "stopped");
    Ok(())
}

/// A client that is done with its handshake and says nothing is let go after a while.
fn server<A: poem::listener::Acceptor + 'static>(acceptor: A) -> Server<std::convert::Infallible, A> {
    Server::new_with_acceptor(acceptor).idle_timeout(IDLE)
}

async fn run<A, E>(
    server: Server<std::convert::Infallible, A>,
    endpoint: E,
    mut stopping: watch::Receiver<bool>,
) -> std::io::Result<()>
where
    A: poem::listener::Acceptor + 'static,
    E: poem::Endpoint + 'static,
{
    let stopped = async move { background::stopped(&mut stopping).await };
    server.run_with_graceful_shutdown(endpoint, stopped, Some(DRAIN)).await
}

fn reload(config: &Config, bound: &listen_file::Bound, tls: &tls::Tls, service: &Service) {
    notify(&[sd_notify::NotifyState::Reloading]);
    match tls.reload() {
        Ok(()) => {
            service.set_policy(tls.policy(config, bound));
            log::info!(event = "reloaded"; "certificates were read again");
        }
        Err(error) => log::error!(event = "reload_failed", cause:% = error; "the certificates in force stay"),
    }
    notify(&[sd_notify::NotifyState::Ready]);
}

fn notify(state: &[sd_notify::NotifyState]) {
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(state);
}

/// The directory of the control socket, where systemd has not made it.
fn make_parent(path: &Path) -> Result<(), DaemonError> {
    match path.parent() {
        Some(parent) if !parent.exists() => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(parent)
            .map_err(|cause| DaemonError::Write { path: parent.to_path_buf(), cause }),
        _ => Ok(()),
    }
}

fn bind(address: SocketAddr, whom: &'static str) -> Result<std::net::TcpListener, DaemonError> {
    std::net::TcpListener::bind(address).map_err(|cause| DaemonError::Bind { address, whom, cause })
}

fn local_address(listener: &std::net::TcpListener, wanted: SocketAddr) -> Result<SocketAddr, DaemonError> {
    listener.local_addr().map_err(|cause| DaemonError::Bind { address: wanted, whom: "anybody", cause })
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

    async fn until_stop(mut self, on_hangup: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => on_hangup(),
            }
        }
    }
}
