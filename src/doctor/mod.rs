//! What is wrong with an installation, as far as this machine shows it: the configuration, the state directory, its disk,
//! the ports, the certificates that are shown, and whether upstream can be reached. What only the daemon knows is its own
//! to say (`service/status/examine.rs`).
//!
//! This room looks, and writes nothing. What is good and what is not is decided in `model/checkup`, or by a function here
//! that takes what was found. It works while the daemon runs and while it does not, and whatever it cannot look at is a
//! finding like any other. Nothing that it says is secret.
//!
//! [`look`] comes first, with the caller's rights and one thread. [`examine`] asks over the network, and may have threads.

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
use crate::outside::Outside;

pub use credentials::Places;
pub use installation::{Holder, StateFound};
pub use unit::View;

use ports::Port;

/// Whether a daemon runs, and whether a command can open the state if none does.
pub struct Presence {
    pub state: StateFound,
    /// Whether a daemon listens on the control socket.
    pub is_running: bool,
    /// systemd is starting it.
    pub is_starting: bool,
    /// How often systemd has tried in vain.
    pub failed_starts: u32,
    /// Names of credentials that the state cannot be opened without, and that only a start of the daemon brings.
    pub awaiting_start: Vec<String>,
    /// What lies in the credential stores, beside what the daemon received.
    credentials: Vec<Check>,
}

/// What the machine shows without the network.
pub struct Seen {
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

/// `file` is the configuration's. Call it with the caller's rights, while the process has one thread.
pub fn look(config: &Config, file: Option<&Path>, view: &View, places: &Places, outside: &dyn Outside) -> Seen {
    let mut presence = presence(config, view, places);
    let mut checks = view.checks();
    checks.push(installation::configuration(file, config, identity(config, view).as_ref()));
    checks.extend(readable(config, view));
    checks.append(&mut presence.credentials);
    let Presence { is_running, is_starting, failed_starts, .. } = presence;
    // A daemon that systemd tries to start has the lock for a moment each time, and is not to be stopped for that.
    checks.extend(presence.state.checks(is_running || is_starting || failed_starts > 0));
    checks.extend(installation::set_aside(&config.state_dir));
    checks.extend(installation::disk(&config.state_dir));
    checks.extend(installation::newest_file(&config.state_dir, outside.now()));
    checks.push(installation::time_service(Path::new("/run/systemd/timesync")));
    let sockets = view.unit().and_then(|unit| unit.sockets);
    let port = |name, configured, at: usize| Port { name, configured, socket: sockets.map(|sockets| sockets[at]) };
    let ports = [port("port of hosts", config.listen.hosts, 0), port("port of admins", config.listen.admin, 1)];
    let bound = if is_running { listen_file::read(&config.state_dir) } else { None };
    if bound.is_none() && !is_starting {
        checks.extend(ports.iter().map(Port::is_free));
    }
    Seen { checks, presence, bound, ports }
}

/// What the configuration points to and the daemon's user cannot read. To be called as [`look`] is.
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

/// The daemon's user; `None`: nobody knows, or the caller may not take that user's rights.
fn identity(config: &Config, view: &View) -> Option<OwnerIdentity> {
    let identity = match view.unit() {
        Some(unit) => unit.identity.clone(),
        None => installation::owner(&config.state_dir),
    };
    identity.filter(|identity| geteuid().is_root() || identity.uid == geteuid())
}

/// Without waiting: a daemon whose queue is full is there, too.
fn is_listening(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|socket| connect(socket.as_raw_fd(), &UnixAddr::new(path)?));
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

/// What is asked over the network.
pub async fn examine(config: &Config, seen: &Seen, outside: &dyn Outside) -> Vec<Check> {
    let Seen { bound, ports: [hosts, admin], .. } = seen;
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
        served::certificate(config, bound.as_ref(), outside),
        served::public(config, outside),
        reach::upstream(config, outside),
    );
    checks.extend(certificate);
    checks.extend(public);
    checks.extend(upstream);
    checks
}
