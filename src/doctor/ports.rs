//! Checks whether the daemon is reachable on its ports, or, if it does not run, which process uses them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::daemon::sockets::{self, UNIT_REMEDY};
use crate::model::check::Check;
use crate::pki::names::local_names;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// On a machine with many addresses, only the first ones are tried.
const MAX_CALLED: usize = 16;

/// One of the two ports of the daemon.
pub struct Port {
    pub name: &'static str,
    /// The address in `[listen]`.
    pub configured: SocketAddr,
    /// The address of the socket unit, which has priority if the unit exists.
    pub socket: Option<SocketAddr>,
}

impl Port {
    /// Checks a running daemon that listens on `bound`.
    pub async fn answers(&self, bound: SocketAddr) -> Check {
        let own = local_names().map(|(_, addresses)| addresses).unwrap_or_default();
        let called = addresses(bound, &own);
        // All at once, because each call may take long.
        let calls: Vec<_> = called.into_iter().map(|address| (address, tokio::spawn(call(address)))).collect();
        let (mut reached, mut silent) = (Vec::new(), Vec::new());
        for (address, call) in calls {
            match call.await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(()) => reached.push(address.ip().to_string()),
                Err(cause) => silent.push(format!("{} ({cause})", address.ip())),
            }
        }
        let (reached, silent) = (reached.join(", "), silent.join(", "));
        if reached.is_empty() {
            let found = format!("the daemon listens on {bound}, but does not answer at {silent}");
            let remedy = "check for a packet filter (nft list ruleset), then systemctl restart codex-authd";
            return Check::missing(self.name, found, remedy);
        }
        if !silent.is_empty() {
            let found = format!("the daemon listens on {bound}; it answers at {reached}, but not at {silent}");
            let remedy = "check for a packet filter (nft list ruleset); for IPv4 on [::], the socket unit needs BindIPv6Only=both";
            return Check::weak(self.name, found, remedy);
        }
        if self.socket.is_some_and(|socket| sockets::is_elsewhere(socket, bound)) {
            let found = format!("it listens on {bound}, but its socket unit was changed since");
            return Check::weak(self.name, found, "systemctl restart codex-authd.socket");
        }
        self.differs_from_listen(bound).unwrap_or_else(|| {
            Check::good(self.name, format!("the daemon listens on {bound}, and answers at {reached}"))
        })
    }

    /// Checks whether the daemon could listen there, if it does not run.
    pub fn is_free(&self) -> Check {
        let wanted = self.socket.unwrap_or(self.configured);
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
        let held = tables.iter().flat_map(|table| listeners(table)).find(|listener| listener.is_in_the_way_of(wanted));
        let Some(held) = held else {
            let free = || Check::good(self.name, format!("{wanted} is free for the daemon, which does not run"));
            return self.differs_from_listen(wanted).unwrap_or_else(free);
        };
        let elsewhere = match self.socket {
            Some(_) => format!("choose another address: {UNIT_REMEDY}"),
            None => "choose another address in [listen]".to_owned(),
        };
        match process_of(held.inode) {
            // Process 1 holds it for the socket unit: the first connection starts the daemon.
            Some((1, _)) => {
                let found = format!("systemd listens on {} for the daemon, which does not run", held.address);
                self.differs_from_listen(held.address).unwrap_or_else(|| Check::good(self.name, found))
            }
            Some((id, command)) => Check::missing(
                self.name,
                format!("{} is taken by process {id} ({command})", held.address),
                format!("stop that process (systemctl status {id}), or {elsewhere}"),
            ),
            None => Check::missing(
                self.name,
                format!("{} is taken by a process of user {}", held.address, held.uid),
                format!("as root: ss -ltnp 'sport = :{}'; stop that process, or {elsewhere}", wanted.port()),
            ),
        }
    }

    fn differs_from_listen(&self, bound: SocketAddr) -> Option<Check> {
        let Self { name, configured, .. } = *self;
        sockets::is_elsewhere(configured, bound).then(|| {
            let found = format!("it listens on {bound}, but [listen] has {configured}");
            let remedy = format!(
                "{UNIT_REMEDY} (the address in the socket unit has priority), else systemctl restart codex-authd"
            );
            Check::weak(name, found, remedy)
        })
    }
}

/// Tries to connect; returns the cause of a failure.
async fn call(address: SocketAddr) -> Result<(), String> {
    match timeout(ANSWER_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", ANSWER_TIMEOUT.as_secs())),
    }
}

/// Returns the addresses at which a socket bound to `bound` should answer, on a machine with the addresses `own`:
/// loopback first.
fn addresses(bound: SocketAddr, own: &[IpAddr]) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let is_served = |ip: &&IpAddr| bound.is_ipv6() || ip.is_ipv4();
    let is_usable = |ip: &&IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let mut served: Vec<IpAddr> = own.iter().filter(is_served).filter(is_usable).copied().collect();
    served.push(Ipv4Addr::LOCALHOST.into());
    served.sort_by_key(|ip| (!ip.is_loopback(), *ip));
    served.dedup();
    served.truncate(MAX_CALLED);
    served.into_iter().map(|ip| SocketAddr::new(ip, bound.port())).collect()
}

/// Returns an address to connect to, for a socket that may listen on all addresses.
pub fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        // A socket for all IPv6 addresses also answers IPv4, and a machine may have no IPv6 address.
        ip if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())),
        _ => bound,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct PortHolder {
    address: SocketAddr,
    uid: u32,
    inode: u64,
}

impl PortHolder {
    fn is_in_the_way_of(&self, wanted: SocketAddr) -> bool {
        let (own, wanted_ip) = (self.address.ip().to_canonical(), wanted.ip().to_canonical());
        let both = own.is_unspecified() || wanted_ip.is_unspecified() || own == wanted_ip;
        // A socket for all IPv6 addresses also takes the IPv4 ones, unless it is IPv6-only.
        let family = own.is_ipv4() == wanted_ip.is_ipv4() || own.is_unspecified() && own.is_ipv6();
        wanted.port() != 0 && self.address.port() == wanted.port() && both && family
    }
}

/// Parses the listening sockets in `/proc/net/tcp` or `tcp6`.
fn listeners(table: &str) -> impl Iterator<Item = PortHolder> + '_ {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (words.get(1)?, words.get(3)?);
        (*state == LISTEN).then_some(())?;
        let (address, port) = local.split_once(':')?;
        let ip = address_of(address)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(PortHolder {
            address: (ip, port).into(),
            uid: words.get(7)?.parse().ok()?,
            inode: words.get(9)?.parse().ok()?,
        })
    })
}

/// Parses words of 32 bits in this machine's byte order.
fn address_of(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let four = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
}

/// Finds the process that has the socket, as far as the caller may see.
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
    use std::net::Ipv6Addr;
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
    };

    use super::*;
    use crate::model::check::Verdict;

    #[test]
    fn a_taken_port_is_told_with_who_has_it() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let port = |configured| Port { name: "port", configured, socket: None };
        let everywhere = SocketAddr::from(([0, 0, 0, 0], address.port()));
        for wanted in [address, everywhere] {
            let check = port(wanted).is_free();
            assert_eq!(check.verdict, Verdict::Missing, "{check:?}");
            assert!(check.found.contains(&format!("process {}", std::process::id())), "{check:?}");
            assert!(check.remedy.unwrap().contains("in [listen]"));
        }
        // The address of the socket unit has priority.
        let of_unit = Port { socket: Some(everywhere), ..port("127.0.0.1:1".parse().unwrap()) };
        let check = of_unit.is_free();
        assert_eq!(check.verdict, Verdict::Missing, "{check:?}");
        assert!(check.remedy.unwrap().ends_with("systemctl edit codex-authd.socket"));
        drop(taken);
        assert_eq!(of_unit.is_free().verdict, Verdict::Weak, "[listen] says another one");
        assert_eq!(port(address).is_free().verdict, Verdict::Good);
        assert_eq!(port("0.0.0.0:0".parse().unwrap()).is_free().verdict, Verdict::Good);
    }

    #[test]
    fn sockets_of_both_families_are_read_from_the_kernels_tables() {
        let six = std::net::TcpListener::bind("[::1]:0").unwrap();
        let table = std::fs::read_to_string("/proc/net/tcp6").unwrap();
        let address = six.local_addr().unwrap();
        let found: Vec<PortHolder> = listeners(&table).filter(|listener| listener.address == address).collect();
        assert_eq!(found.len(), 1, "{table}");
        let all = PortHolder { address: "[::]:8443".parse().unwrap(), uid: 0, inode: 1 };
        for (wanted, in_the_way) in
            [("0.0.0.0:8443", true), ("127.0.0.1:8443", true), ("[::1]:8443", true), ("0.0.0.0:8444", false)]
        {
            assert_eq!(all.is_in_the_way_of(wanted.parse().unwrap()), in_the_way, "{wanted}");
        }
        let four = PortHolder { address: "127.0.0.1:8443".parse().unwrap(), uid: 0, inode: 1 };
        for (wanted, in_the_way) in [("0.0.0.0:8443", true), ("127.0.0.2:8443", false), ("[::1]:8443", false)] {
            assert_eq!(four.is_in_the_way_of(wanted.parse().unwrap()), in_the_way, "{wanted}");
        }
    }

    #[test]
    fn a_socket_for_every_address_is_called_at_each_of_them() {
        let own: Vec<IpAddr> =
            ["192.0.2.7", "fe80::1", "::1", "127.0.0.1", "2001:db8::7"].map(|ip| ip.parse().unwrap()).into();
        for (bound, called) in [
            ("0.0.0.0:1", vec!["127.0.0.1:1", "192.0.2.7:1"]),
            ("[::]:1", vec!["127.0.0.1:1", "[::1]:1", "192.0.2.7:1", "[2001:db8::7]:1"]),
            ("192.0.2.9:1", vec!["192.0.2.9:1"]),
        ] {
            let found = addresses(bound.parse().unwrap(), &own);
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), called, "{bound}");
        }
        // IPv6 is switched off.
        assert_eq!(addresses("[::]:1".parse().unwrap(), &[]), ["127.0.0.1:1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_daemon_that_listens_elsewhere_or_not_at_all_is_told_of() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = socket.local_addr().unwrap();
        let port = |configured, socket| Port { name: "port", configured, socket };
        assert_eq!(port(bound, None).answers(bound).await.verdict, Verdict::Good);
        let elsewhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for (port, remedy) in [
            (port(elsewhere, None), "systemctl edit codex-authd.socket"),
            (port(bound, Some(elsewhere)), "systemctl restart codex-authd.socket"),
        ] {
            let check = port.answers(bound).await;
            assert_eq!(check.verdict, Verdict::Weak);
            assert!(check.remedy.unwrap().contains(remedy));
        }
        drop(socket);
        assert_eq!(port(bound, None).answers(bound).await.verdict, Verdict::Missing);
    }

    #[tokio::test]
    async fn both_families_are_called_and_one_that_does_not_answer_is_named() {
        let listening = |is_v6_only: bool| {
            let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), None).unwrap();
            setsockopt(&socket, sockopt::Ipv6V6Only, &is_v6_only).unwrap();
            bind(socket.as_raw_fd(), &SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)))
                .unwrap();
            listen(&socket, Backlog::new(16).unwrap()).unwrap();
            std::net::TcpListener::from(socket)
        };
        // The package's defaults: the socket unit serves both families, and [listen] names IPv4.
        let port = |bound: SocketAddr| Port {
            name: "port",
            configured: SocketAddr::from(([0, 0, 0, 0], bound.port())),
            socket: Some(bound),
        };
        let both = listening(false);
        let bound = both.local_addr().unwrap();
        let check = port(bound).answers(bound).await;
        assert_eq!(check.verdict, Verdict::Good, "{check:?}");
        assert!(check.found.contains("127.0.0.1, ::1"), "{check:?}");
        let only_v6 = listening(true);
        let bound = only_v6.local_addr().unwrap();
        let check = port(bound).answers(bound).await;
        assert_eq!(check.verdict, Verdict::Weak, "{check:?}");
        assert!(
            check.found.contains("not at 127.0.0.1 (") && check.remedy.unwrap().contains("BindIPv6Only"),
            "{}",
            check.found
        );
    }
}
