//! File descriptors: raises the limit of the process, and divides it between the listeners.
//!
//! The stores, the control socket and probes need descriptors too. Clients must not be the reason why a store cannot
//! open a file. So the listeners get only the rest. Nothing is stored.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;
use crate::listener::Limits;

/// The most that is asked for, even if the system permits more.
const MAX_DESCRIPTORS: u64 = 65_536;
/// Reserved for both stores, their copies, the journal, standard streams and the runtime.
const STORE_DESCRIPTORS: u64 = 64;
/// Reserved for a probe: its pipes, and the connections through its proxy.
const PROBE_DESCRIPTORS: u64 = 64;
/// Reserved for connections of the control socket.
const CONTROL_DESCRIPTORS: u64 = 32;
/// Each listener gets at least this many, even with a lower limit.
const MIN_CONNECTIONS: u64 = 16;

/// The most connections of each listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    pub hosts: usize,
    pub admin: usize,
    pub control: usize,
}

/// Raises the limit of this process as far as permitted, and divides it.
pub fn share_out(config: &Config) -> Shares {
    let limit = raise();
    let shares = shares(limit, config);
    let wanted = config.limits.connections as usize;
    if wanted > shares.hosts {
        log::warn!(
            event = "few_descriptors", limit:% = limit, connections:% = shares.hosts;
            "limits.connections is {wanted}, and the process may open {limit} files: the hosts' listener takes {} \
             connections; raise LimitNOFILE= of the unit", shares.hosts
        );
    } else if limit < 1024 {
        log::warn!(
            event = "few_descriptors", limit:% = limit, connections:% = shares.hosts;
            "the process may open {limit} files only: the hosts' listener takes {} connections; raise LimitNOFILE= of the \
             unit", shares.hosts
        );
    }
    shares
}

fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let wanted = hard.min(MAX_DESCRIPTORS).max(soft);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}

fn shares(limit: u64, config: &Config) -> Shares {
    let of_database = if config.database.url.is_empty() { 0 } else { u64::from(config.database.connections) + 8 };
    let reserved = STORE_DESCRIPTORS + PROBE_DESCRIPTORS + CONTROL_DESCRIPTORS + of_database;
    let left = limit.saturating_sub(reserved);
    let admin = (left / 4).clamp(MIN_CONNECTIONS, 512);
    let most = match u64::from(config.limits.connections) {
        0 => Limits::default().max_connections as u64,
        wanted => wanted,
    };
    let hosts = left.saturating_sub(admin).min(most).max(MIN_CONNECTIONS);
    let [hosts, admin, control] =
        [hosts, admin, CONTROL_DESCRIPTORS].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    Shares { hosts, admin, control }
}

/// Limits for a listener with this many connections.
pub fn bounded(limits: Limits, connections: usize, config: &Config) -> Limits {
    let buffered = config.limits.buffered_mib as usize * 1024 * 1024;
    Limits {
        max_connections: connections,
        // One address must not take all connections of a small listener.
        max_connections_per_address: (config.limits.connections_per_address as usize).min((connections / 2).max(8)),
        max_handshakes: limits.max_handshakes.min(connections),
        max_handshakes_per_address: (config.limits.handshakes_per_address as usize).min((connections / 4).max(4)),
        max_buffered_bytes: buffered,
        max_buffered_bytes_per_address: buffered / 4,
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_control_socket_and_admins_have_theirs_whatever_hosts_ask_for() {
        for limit in [256, 512, 1024, 4096, 65_536] {
            for wanted in [0, 60_000] {
                let mut config = Config::default();
                config.limits.connections = wanted;
                let Shares { hosts, admin, control } = shares(limit, &config);
                let rest = limit - (hosts + admin + control) as u64;
                assert!(rest >= STORE_DESCRIPTORS + PROBE_DESCRIPTORS, "{limit}: {rest} are left");
                assert!(admin >= 16 && control == 32 && hosts >= 16, "{limit}");
            }
        }
        let config = Config::default();
        assert_eq!(shares(65_536, &config).hosts, 4096);
        assert_eq!(shares(64, &config), Shares { hosts: 16, admin: 16, control: 32 }, "too few for anything");
    }

    #[test]
    fn connections_of_the_database_are_kept_too() {
        let mut config = Config::default();
        let without = shares(1024, &config).hosts;
        config.database.url = "mysql://u:p@db.test/authd".into();
        config.database.connections = 200;
        assert!(shares(1024, &config).hosts + 150 < without);
    }

    #[test]
    fn one_address_never_has_all_of_a_listener() {
        let config = Config::default();
        for connections in [16, 100, 4096] {
            let limits = bounded(Limits::default(), connections, &config);
            assert!(limits.max_connections_per_address <= connections / 2, "{connections}");
            assert!(limits.max_handshakes_per_address <= connections / 4, "{connections}");
        }
    }
}
