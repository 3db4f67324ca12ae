//! A running daemon: its listeners and jobs, from their start to a graceful end.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::certificates::Certificates;
use super::owner::as_caller;
use super::programs::read_programs;
use super::recovery::{self, Recovery, Why};
use super::sockets::{Sockets, SocketsError};
use super::state::{State, wait_until_free};
use super::tls::Tls;
use super::{DaemonError, background, descriptors, listen_file, manager, prober, provider, replace};
use crate::api;
use crate::config::{Config, ForwardedHeader, Listen};
use crate::dashboard::Dashboard;
use crate::listener::{
    Behind, ControlAcceptor, Counters, Drain, Gate, Handed, Limits, PlainAcceptor, RefusalReason, Server, TlsAcceptor,
};
use crate::metrics::{ConnectionCounts, Listener, Metrics};
use crate::model::forwarded::{Header, TrustedProxies};
use crate::platform::{Platform, System};
use crate::runner::delegation;
use crate::service::Areas;

/// How long the daemon waits at its start for a command that uses the state.
const COMMAND_WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long calls in flight may take after the request to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// The same if the process is to be replaced: calls that wait for the failed store cannot succeed.
const SHORT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls of admins may take long.
const TRUSTED_LISTENER_LIMITS: Limits = Limits::patient();

pub struct Running {
    // Dropped first: the state is closed only when nothing uses it any more.
    pub areas: Arc<Areas>,
    _state: State,
    pub tls: Arc<Tls>,
    pub bound: listen_file::Bound,
    /// Kept for a successor.
    sockets: Sockets,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<std::io::Result<()>>>,
    jobs: background::Jobs,
}

impl Running {
    pub async fn start(config: &Config, recovery: &Recovery, inherited: Option<Sockets>) -> Result<Self, DaemonError> {
        if recovery.is_successor() {
            recovery::reread_stores(&config.state_dir);
        }
        let platform: Arc<dyn Platform> = Arc::new(System);
        let shares = descriptors::share_out(config);
        wait_until_free(&config.state_dir, COMMAND_WAIT_TIMEOUT).await;
        let state = State::open(config, platform.clone()).await?;
        // After the lock: it removes leftovers, and another daemon's cgroups must not be removed. As root, if the
        // daemon is root: cgroups are not files of the state.
        let cgroup = as_caller(delegation::prepare);

        let sockets = inherited.map_or_else(|| Sockets::take(&config.listen), Ok)?;
        let bound = listen_file::Bound {
            hosts: sockets.hosts.local_addr().map_err(SocketsError::Io)?,
            admin: sockets.admin.local_addr().map_err(SocketsError::Io)?,
            control: config.listen.control.clone(),
        };
        sockets.warn_of_others(&config.listen, recovery.is_successor());
        let tls = Arc::new(Tls::new(config, &bound, &state.secrets, platform.clone())?);
        make_parent(&config.listen.control, &config.state_dir)?;
        let control = ControlAcceptor::bind(
            &config.listen.control,
            descriptors::bounded(TRUSTED_LISTENER_LIMITS, shares.control, config),
        )
        .await?;
        watch(&state.metrics, Listener::Control, control.counters());
        let watched = tls.clone();
        state.metrics.watch_server_certificate(move || watched.not_after().unix_timestamp());
        let prober = prober::prober(config, cgroup);
        let provider = provider::provider(config, platform.clone())?;
        let programs = Arc::new(read_programs(&config.install.programs_dir));
        let areas = Arc::new(state.start_areas(tls.policy(config, &bound), prober, provider, programs).await?);
        let certificates = Certificates { config: config.clone(), bound: bound.clone(), tls: tls.clone() };
        certificates.begin(&areas).await?;
        areas.people.warn_of_no_admin();
        areas.probes.warn_of_restored_login();
        tls.write_files(&config.state_dir)?;
        listen_file::write(&config.state_dir, &bound)?;

        let (stop, stopping) = watch::channel(false);
        let Sockets { hosts, admin } = sockets.duplicate()?;
        let trust = Arc::new(trust(&config.listen));
        let hosts_endpoint = api::hosts_listener(areas.clone(), trust.clone());
        let hosts_limits = descriptors::bounded(Limits::default(), shares.hosts, config);
        let hosts_server = if config.listen.hosts_tls {
            let proxies = config.listen.proxy_protocol.then(|| trust.clone());
            let gate = Gate { proxies, forwarders: trust, ..Gate::default() };
            let acceptor = TlsAcceptor::guarded(hosts, tls.hosts(), hosts_limits, gate);
            let acceptor = acceptor.map_err(DaemonError::Listener)?;
            watch(&state.metrics, Listener::Hosts, acceptor.counters());
            let drain = acceptor.drain();
            tokio::spawn(run(Server::new(acceptor), hosts_endpoint, drain, stopping.clone()))
        } else {
            let behind = Behind { proxies: trust, proxy_protocol: config.listen.proxy_protocol };
            let acceptor = PlainAcceptor::behind(hosts, hosts_limits, behind).map_err(DaemonError::Listener)?;
            watch(&state.metrics, Listener::Hosts, acceptor.counters());
            let drain = acceptor.drain();
            tokio::spawn(run(Server::new(acceptor), hosts_endpoint, drain, stopping.clone()))
        };
        // A client certificate is checked twice: in the handshake, and again for every call.
        let admitting = areas.clone();
        let gate = Gate {
            admits: Some(Arc::new(move |fingerprint| admitting.trust.admitted_certificate(fingerprint).is_some())),
            ..Gate::default()
        };
        let admins = gate.connections.clone();
        let acceptor = TlsAcceptor::guarded(
            admin,
            tls.admin(),
            descriptors::bounded(TRUSTED_LISTENER_LIMITS, shares.admin, config),
            gate,
        );
        let acceptor = acceptor.map_err(DaemonError::Listener)?;
        watch(&state.metrics, Listener::Admin, acceptor.counters());
        let drain = acceptor.drain();
        let dashboard = Dashboard::new(areas.clone(), platform.clone());
        let admin_endpoint = api::admin_listener(areas.clone(), |route| dashboard.mount(route));
        let admin_server = tokio::spawn(run(Server::new(acceptor), admin_endpoint, drain, stopping.clone()));
        let drain = control.drain();
        let control_endpoint = api::admin_over_control(areas.clone());
        let control_server = tokio::spawn(run(Server::new(control), control_endpoint, drain, stopping.clone()));
        let mut jobs = background::start(config, areas.clone(), tls.clone(), platform, stopping.clone());
        jobs.add(certificates.follow(areas.clone(), admins, stopping));
        let servers = vec![hosts_server, admin_server, control_server];
        Ok(Self { areas, _state: state, tls, bound, sockets, stop, servers, jobs })
    }

    pub async fn stop(self) -> Result<(), DaemonError> {
        log::info!(event = "stopping"; "stopping: finishing calls in flight");
        manager::stopping();
        // New connections are refused, not kept waiting.
        drop(self.sockets);
        self.stop.send_replace(true);
        for server in self.servers {
            match server.await {
                Ok(outcome) => outcome.map_err(DaemonError::Listener)?,
                Err(panic) => log::error!(event = "listener_panicked", cause:% = panic; "a listener panicked"),
            }
        }
        self.jobs.finish().await;
        background::flush(&self.areas).await;
        log::info!(event = "stopped"; "stopped");
        Ok(())
    }

    /// Returns only on failure.
    pub async fn be_replaced(self, recovery: &Recovery, why: Why) -> DaemonError {
        log::warn!(event = "replaced"; "{why}: replacing this process by a fresh one");
        manager::status(&format!("{why}: replacing this process by a fresh one"));
        self.stop.send_replace(true);
        let (servers, jobs, areas) = (self.servers, self.jobs, &self.areas);
        let ended = async {
            for server in servers {
                let _ = server.await;
            }
            jobs.finish().await;
            background::flush(areas).await;
        };
        // Tasks that cannot end are cut here. The stores are not closed: that might hang.
        if tokio::time::timeout(SHORT_DRAIN_TIMEOUT, ended).await.is_err() {
            log::warn!(event = "drain_cut_short"; "some calls in flight were cut off");
        }
        replace(recovery, self.sockets)
    }
}

/// Connects a listener's counters to the metrics.
fn watch(metrics: &Metrics, listener: Listener, counters: Arc<Counters>) {
    metrics.watch_listener(listener, move || ConnectionCounts {
        admitted: counters.admitted.load(Ordering::Relaxed),
        refused: counters.refused.load(Ordering::Relaxed),
        accept_errors: counters.accept_errors.load(Ordering::Relaxed),
        open: counters.open.load(Ordering::Relaxed),
        refused_by_reason: RefusalReason::ALL
            .map(|reason| (reason.name(), counters.by_reason[reason as usize].load(Ordering::Relaxed))),
    });
}

async fn run<A, E>(
    server: Server<A>,
    endpoint: E,
    drain: Drain,
    mut stopping: watch::Receiver<bool>,
) -> std::io::Result<()>
where
    A: poem::listener::Acceptor,
    A::Io: Handed + 'static,
    E: poem::Endpoint + 'static,
{
    let stopped = async move {
        background::stopped(&mut stopping).await;
        drain.finish().await;
    };
    server.run_with_graceful_shutdown(endpoint, stopped, Some(DRAIN_TIMEOUT)).await
}

/// The proxies that are trusted to name the caller's address.
fn trust(listen: &Listen) -> TrustedProxies {
    let header = match listen.forwarded_header {
        ForwardedHeader::XForwardedFor => Some(Header::XForwardedFor),
        ForwardedHeader::Forwarded => Some(Header::Forwarded),
        ForwardedHeader::None => None,
    };
    TrustedProxies::new(listen.trusted_networks(), header).with_proxy_protocol(listen.proxy_protocol)
}

/// Makes the directory of the control socket, if systemd has not made it, for the owner of the state directory.
fn make_parent(path: &Path, state_dir: &Path) -> Result<(), DaemonError> {
    let Some(parent) = path.parent().filter(|parent| !parent.exists()) else { return Ok(()) };
    let make = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
        let owner = std::fs::metadata(state_dir)?;
        std::os::unix::fs::chown(parent, Some(owner.uid()), Some(owner.gid()))
    };
    as_caller(make).map_err(|cause| DaemonError::Write { path: parent.to_path_buf(), cause })
}
