//! Whether the daemon can be reached where it should listen; and while it does not run, who has its ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::daemon::sockets::{self, UNIT_REMEDY};
use crate::model::check::Check;

const PATIENCE: Duration = Duration::from_secs(3);

/// A daemon runs, and listens on `bound`.
pub async fn answers(name: &'static str, configured: SocketAddr, bound: SocketAddr) -> Check {
    let called = reachable(bound);
    match timeout(PATIENCE, TcpStream::connect(called)).await {
        Ok(Ok(_)) => {}
        failed => {
            let cause = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => "no answer in three seconds".into(),
            };
            let remedy = "look for a packet filter (nft list ruleset), then systemctl restart codex-authd";
            return Check::missing(
                name,
                format!("the daemon says that it listens on {bound}, and {called} does not answer: {cause}"),
                remedy,
            );
        }
    }
    if sockets::is_elsewhere(configured, bound) {
        let found = format!("it listens on {bound}, and [listen] says {configured}");
        return Check::weak(
            name,
            found,
            format!("{UNIT_REMEDY} (a socket unit's address is what counts), else systemctl restart codex-authd"),
        );
    }
    Check::good(name, format!("the daemon listens on {bound}"))
}

/// Where to call what listens on every address.
pub fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, bound.port())),
        _ => bound,
    }
}

/// No daemon runs: may it listen there?
pub fn is_free(name: &'static str, configured: SocketAddr) -> Check {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let held = tables.iter().flat_map(|table| listeners(table)).find(|listener| listener.is_in_the_way_of(configured));
    let Some(held) = held else {
        return Check::good(name, format!("{configured} is free for the daemon, which does not run"));
    };
    match process_of(held.inode) {
        // Its socket unit: the first call starts the daemon.
        Some((1, _)) => {
            Check::good(name, format!("systemd listens on {} for the daemon, which does not run", held.address))
        }
        Some((id, command)) => Check::missing(
            name,
            format!("{} is taken by process {id} ({command})", held.address),
            format!("stop that one, or choose another address in [listen]: systemctl status {id}"),
        ),
        None => Check::missing(
            name,
            format!("{} is taken by a process of user {}", held.address, held.uid),
            format!(
                "as root: ss -ltnp 'sport = :{}'; stop that one, or choose another address in [listen]",
                configured.port()
            ),
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    uid: u32,
    inode: u64,
}

impl Listener {
    fn is_in_the_way_of(&self, wanted: SocketAddr) -> bool {
        let (own, wanted_ip) = (self.address.ip().to_canonical(), wanted.ip().to_canonical());
        let both = own.is_unspecified() || wanted_ip.is_unspecified() || own == wanted_ip;
        // One for every IPv6 address takes those of IPv4 as well, unless it was told otherwise.
        let family = own.is_ipv4() == wanted_ip.is_ipv4() || own.is_unspecified() && own.is_ipv6();
        wanted.port() != 0 && self.address.port() == wanted.port() && both && family
    }
}

/// Those who listen, of `/proc/net/tcp` or `tcp6`.
fn listeners(table: &str) -> impl Iterator<Item = Listener> + '_ {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (words.get(1)?, words.get(3)?);
        (*state == LISTEN).then_some(())?;
        let (address, port) = local.split_once(':')?;
        let ip = address_of(address)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Listener {
            address: (ip, port).into(),
            uid: words.get(7)?.parse().ok()?,
            inode: words.get(9)?.parse().ok()?,
        })
    })
}

/// Words of 32 bits, each in this machine's order.
fn address_of(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let four = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
}

/// Who has the socket, as far as one may look.
fn process_of(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has = descriptors
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()));
        if has {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((id, command.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::Verdict;

    #[test]
    fn a_taken_port_is_told_with_who_has_it() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        for wanted in [address, SocketAddr::from(([0, 0, 0, 0], address.port()))] {
            let check = is_free("port", wanted);
            assert_eq!(check.verdict, Verdict::Missing, "{check:?}");
            assert!(check.found.contains(&format!("process {}", std::process::id())), "{check:?}");
        }
        drop(taken);
        assert_eq!(is_free("port", address).verdict, Verdict::Good);
        assert_eq!(is_free("port", "0.0.0.0:0".parse().unwrap()).verdict, Verdict::Good);
    }

    #[test]
    fn sockets_of_both_families_are_read_from_the_kernels_tables() {
        let six = std::net::TcpListener::bind("[::1]:0").unwrap();
        let table = std::fs::read_to_string("/proc/net/tcp6").unwrap();
        let address = six.local_addr().unwrap();
        let found: Vec<Listener> = listeners(&table).filter(|listener| listener.address == address).collect();
        assert_eq!(found.len(), 1, "{table}");
        let all = Listener { address: "[::]:8443".parse().unwrap(), uid: 0, inode: 1 };
        for (wanted, in_the_way) in
            [("0.0.0.0:8443", true), ("127.0.0.1:8443", true), ("[::1]:8443", true), ("0.0.0.0:8444", false)]
        {
            assert_eq!(all.is_in_the_way_of(wanted.parse().unwrap()), in_the_way, "{wanted}");
        }
        let four = Listener { address: "127.0.0.1:8443".parse().unwrap(), uid: 0, inode: 1 };
        for (wanted, in_the_way) in [("0.0.0.0:8443", true), ("127.0.0.2:8443", false), ("[::1]:8443", false)] {
            assert_eq!(four.is_in_the_way_of(wanted.parse().unwrap()), in_the_way, "{wanted}");
        }
    }

    #[tokio::test]
    async fn a_daemon_that_listens_elsewhere_or_not_at_all_is_told_of() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = socket.local_addr().unwrap();
        assert_eq!(answers("port", bound, bound).await.verdict, Verdict::Good);
        let check = answers("port", "127.0.0.1:1".parse().unwrap(), bound).await;
        assert_eq!(check.verdict, Verdict::Weak);
        assert!(check.remedy.unwrap().contains("systemctl edit codex-authd.socket"));
        drop(socket);
        assert_eq!(answers("port", bound, bound).await.verdict, Verdict::Missing);
    }
}
