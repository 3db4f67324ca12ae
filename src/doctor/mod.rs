//! Finds problems of an installation that this machine shows: in the configuration, the state directory, its disk, the
//! ports, the served certificates, and the connection to upstream. Checks that need the daemon's knowledge are in
//! `service/status/examine.rs`.
//!
//! This room reads and never writes. The verdicts are in `model/checkup`, or in functions here that take the facts as
//! arguments. It works with and without a running daemon. If something cannot be examined, that is a finding too.
//! Findings contain no secret.
//!
//! [`look`] comes first, with the caller's rights and one thread. [`examine`] uses the network, and may start threads.

mod access;
mod credentials;
mod environment;
mod installation;
mod ports;
mod reach;
mod served;
mod systemctl;
mod unit;

use std::os::fd::AsRawFd as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::geteuid;

use crate::config::Config;
use crate::daemon::listen_file::{self, Bound};
use crate::daemon::owner::OwnerIdentity;
use crate::model::check::Check;
use crate::platform::Clock;

pub use credentials::Places;
pub use installation::{Holder, StateFound};
pub use unit::View;

use ports::Port;

/// Whether a daemon runs, and whether a command can open the state if none runs.
pub struct Presence {
    pub state: StateFound,
    /// Whether a daemon listens on the control socket.
    pub is_running: bool,
    /// systemd is starting it.
    pub is_starting: bool,
    /// How many starts by systemd have failed.
    pub failed_starts: u32,
    /// Names of credentials that are needed to open the state, and that only a start of the daemon provides.
    pub awaiting_start: Vec<String>,
    /// The credential stores, compared with the credentials that the daemon received.
    credentials: Vec<Check>,
}

/// The findings that need no network.
pub struct MachineFindings {
    pub checks: Vec<Check>,
    pub presence: Presence,
    bound: Option<Bound>,
    ports: [Port; 2],
}

/// Call it with the caller's rights, while the process has one thread.
pub fn presence(config: &Config, view: &View, places: &Places) -> Presence {
    let (unit, identity) = (view.unit(), identity(config, view));
    let compared = unit.map(|unit| places.compare(&config.state_dir, unit.is_active)).unwrap_or_default();
    let mut awaiting_start = compared.awaiting_start;
    awaiting_start.retain(|name| match name.as_str() {
        "master.key" => !config.state_dir.join(name).exists(),
        "database.password" => !config.database.url.is_empty(),
        _ => false,
    });
    let state = installation::state(&config.state_dir, identity.as_ref());
    let is_running = is_listening(&config.listen.control);
    let waiting = unit.filter(|_| !is_running);
    Presence {
        state,
        is_running,
        is_starting: waiting.is_some_and(|unit| unit.is_starting),
        failed_starts: waiting.map_or(0, |unit| unit.failed_starts),
        awaiting_start,
        credentials: compared.checks,
    }
}

/// `file`: the configuration file. Call it with the caller's rights, while the process has one thread.
pub fn look(config: &Config, file: Option<&Path>, view: &View, places: &Places, clock: &dyn Clock) -> MachineFindings {
    let mut presence = presence(config, view, places);
    let mut checks = view.checks();
    checks.push(installation::configuration(file, config, identity(config, view).as_ref()));
    checks.extend(readable(config, view));
    checks.append(&mut presence.credentials);
    let Presence { is_running, is_starting, failed_starts, .. } = presence;
    // While systemd tries to start a daemon, that daemon holds the lock briefly each time. It must not be called stuck.
    checks.extend(presence.state.checks(is_running || is_starting || failed_starts > 0));
    checks.extend(installation::set_aside(&config.state_dir));
    checks.extend(installation::disk(&config.state_dir));
    checks.extend(installation::newest_file(&config.state_dir, clock.now()));
    checks.push(installation::time_service(Path::new("/run/systemd/timesync")));
    let sockets = view.unit().and_then(|unit| unit.sockets);
    let port = |name, configured, at: usize| Port { name, configured, socket: sockets.map(|sockets| sockets[at]) };
    let ports = [port("port of hosts", config.listen.hosts, 0), port("port of admins", config.listen.admin, 1)];
    let bound = if is_running { listen_file::read(&config.state_dir) } else { None };
    if bound.is_none() && !is_starting {
        checks.extend(ports.iter().map(Port::is_free));
    }
    MachineFindings { checks, presence, bound, ports }
}

/// Finds files in the configuration that the daemon's user cannot read. Call it like [`look`].
pub fn readable(config: &Config, view: &View) -> Vec<Check> {
    let Some(identity) = identity(config, view) else { return Vec::new() };
    let files = [
        ("tls.certificate", &config.tls.certificate),
        ("tls.private_key", &config.tls.private_key),
        ("database.ca", &config.database.ca),
    ];
    let named = files.into_iter().filter(|(_, path)| !path.as_os_str().is_empty());
    let checks = named.filter_map(|(name, path)| {
        let hidden = view.unit().and_then(|unit| unit.hides(name, path));
        hidden.or_else(|| access::unreadable(name, path, &identity))
    });
    checks.collect()
}

/// The daemon's user. `None` if it is unknown, or if the caller may not take that user's rights.
fn identity(config: &Config, view: &View) -> Option<OwnerIdentity> {
    let identity = match view.unit() {
        Some(unit) => unit.identity.clone(),
        None => installation::owner(&config.state_dir),
    };
    identity.filter(|identity| geteuid().is_root() || identity.uid == geteuid())
}

/// Does not wait: a daemon with a full queue counts as listening, too.
fn is_listening(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|socket| connect(socket.as_raw_fd(), &UnixAddr::new(path)?));
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

/// Makes the checks that need the network.
pub async fn examine(config: &Config, seen: &MachineFindings, clock: &dyn Clock) -> Vec<Check> {
    let MachineFindings { bound, ports: [hosts, admin], .. } = seen;
    let answers = async {
        match bound {
            Some(bound) => {
                let (hosts, admin) = tokio::join!(hosts.answers(bound.hosts), admin.answers(bound.admin));
                vec![hosts, admin]
            }
            None => Vec::new(),
        }
    };
    let (mut checks, certificate, public, upstream) = tokio::join!(
        answers,
        served::certificate(config, bound.as_ref(), clock),
        served::public(config, clock),
        reach::upstream(config, clock),
    );
    checks.extend(certificate);
    checks.extend(public);
    checks.extend(upstream);
    checks
}
