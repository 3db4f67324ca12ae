//! The two listening TCP sockets: inherited by the socket activation protocol (`LISTEN_FDS`), or bound. They are passed
//! to a process that replaces this one by the same protocol.
//!
//! It must not know what is served on them. It stores nothing. A passed socket is never closed, so new connections wait
//! in the kernel's queue meanwhile, and none is refused.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::process::Command;

use command_fds::{CommandFdExt as _, FdMapping};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike as _, SockaddrStorage, getsockname, getsockopt, sockopt};

use crate::config::Listen;

/// The names in `FileDescriptorName=` of a systemd socket unit.
const HOSTS: &str = "hosts";
const ADMIN: &str = "admin";
/// The first descriptor of the protocol.
const FIRST: i32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    #[error(
        "cannot listen on {address} for {whom}: {cause}; choose another address in [listen], or stop the program that uses it"
    )]
    Bind { address: SocketAddr, whom: &'static str, cause: io::Error },
    #[error(
        "LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES do not agree on which sockets were inherited; \
         start the daemon from its socket unit, or unset these variables"
    )]
    Environment,
    #[error(
        "the inherited descriptor {number} ('{name}') is not a listening TCP socket ({reason}); the socket unit needs \
         ListenStream= with an address and Accept=no"
    )]
    NotListening { number: i32, name: String, reason: String },
    #[error(
        "{count} sockets were inherited for '{name}', but only one is possible; give each its own FileDescriptorName=, \
         'hosts' or 'admin'"
    )]
    TooMany { name: String, count: usize },
    #[error("cannot use a listening socket: {0}")]
    Io(#[from] io::Error),
}

/// Both sockets, listening.
pub struct Sockets {
    pub hosts: TcpListener,
    pub admin: TcpListener,
}

impl Sockets {
    /// Takes the inherited sockets, and binds the others as configured. Once in the life of a process: the result owns
    /// the descriptors.
    pub fn take(listen: &Listen) -> Result<Self, SocketsError> {
        let Inherited { hosts, admin } = Inherited::assign(inherited()?)?;
        Ok(Self {
            hosts: hosts.map_or_else(|| bind(listen.hosts, "hosts"), Ok)?,
            admin: admin.map_or_else(|| bind(listen.admin, "admins"), Ok)?,
        })
    }

    /// Logs a warning if a passed socket differs from the configuration, which has no effect then. `is_successor`: the
    /// previous process passed the sockets, and it may have had another configuration.
    pub fn warn_of_others(&self, listen: &Listen, is_successor: bool) {
        for (name, socket, configured) in [(HOSTS, &self.hosts, listen.hosts), (ADMIN, &self.admin, listen.admin)] {
            let Ok(bound) = socket.local_addr() else { continue };
            if !is_elsewhere(configured, bound) {
                continue;
            }
            let remedy = if is_successor { "systemctl restart codex-authd" } else { UNIT_REMEDY };
            log::warn!(
                event = "other_address", listener = name, configured:% = configured, bound:% = bound;
                "the socket for '{name}' was inherited and listens on {bound}, but listen.{name} is {configured}: the \
                 socket has priority; change it with `{remedy}`"
            );
        }
    }

    /// Duplicates both sockets. They listen until both copies are dropped. A copy is kept for a successor while the
    /// listeners use the originals; a final stop drops it.
    pub fn duplicate(&self) -> Result<Self, SocketsError> {
        Ok(Self { hosts: self.hosts.try_clone()?, admin: self.admin.try_clone()? })
    }

    /// Makes `command` inherit the sockets, for a successor that replaces this process by `exec` (the process id, which
    /// the protocol names, stays). The descriptors are moved at the moment of the `exec`. If the `exec` fails, this
    /// process must end: whatever used those descriptor numbers has lost them.
    pub fn hand_on(self, command: &mut Command) -> Result<(), SocketsError> {
        let mappings = [self.hosts, self.admin]
            .into_iter()
            .zip(FIRST..)
            .map(|(socket, child_fd)| FdMapping { parent_fd: socket.into(), child_fd })
            .collect();
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        command
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", format!("{HOSTS}:{ADMIN}"))
            .env("LISTEN_PID", std::process::id().to_string());
        Ok(())
    }
}

/// The command that changes the addresses of sockets from systemd.
pub const UNIT_REMEDY: &str = "systemctl edit codex-authd.socket";

/// Whether a client of the configured address would not reach this socket. A socket for all addresses of both families
/// covers one for all IPv4 addresses.
pub fn is_elsewhere(configured: SocketAddr, bound: SocketAddr) -> bool {
    let is_port = configured.port() == 0 || configured.port() == bound.port();
    let is_address = configured.ip().to_canonical() == bound.ip().to_canonical()
        || bound.ip().is_unspecified() && (bound.is_ipv6() || configured.is_ipv4());
    !is_port || !is_address
}

#[derive(Default)]
struct Inherited {
    hosts: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Inherited {
    /// Assigns sockets by name. Those with another name, or without one, fill the free places in order.
    fn assign(sockets: Vec<(String, TcpListener)>) -> Result<Self, SocketsError> {
        let mut assigned = Self::default();
        let count = |name: &str| sockets.iter().filter(|(known, _)| known == name).count();
        for name in [HOSTS, ADMIN] {
            if count(name) > 1 {
                return Err(SocketsError::TooMany { name: name.into(), count: count(name) });
            }
        }
        let total = sockets.len();
        let (named, others): (Vec<_>, Vec<_>) =
            sockets.into_iter().partition(|(name, _)| name == HOSTS || name == ADMIN);
        for (name, socket) in named {
            *(if name == HOSTS { &mut assigned.hosts } else { &mut assigned.admin }) = Some(socket);
        }
        for (_, socket) in others {
            let free = if assigned.hosts.is_none() { &mut assigned.hosts } else { &mut assigned.admin };
            if free.replace(socket).is_some() {
                return Err(SocketsError::TooMany { name: format!("{HOSTS} and {ADMIN}"), count: total });
            }
        }
        Ok(assigned)
    }
}

/// All inherited sockets with their names; empty if none were passed to this process.
fn inherited() -> Result<Vec<(String, TcpListener)>, SocketsError> {
    // A value that cannot be a number of descriptors is refused: as many would be taken, open or not.
    let count = std::env::var("LISTEN_FDS").ok().map(|count| count.parse::<u32>());
    if !matches!(count, None | Some(Ok(0..=64))) {
        return Err(SocketsError::Environment);
    }
    let descriptors = sd_listen_fds::get().map_err(|_| SocketsError::Environment)?;
    let named: Vec<_> = descriptors.into_iter().map(|(name, fd)| (name.unwrap_or_default(), fd.into_std())).collect();
    adopt(named)
}

fn adopt(descriptors: Vec<(String, OwnedFd)>) -> Result<Vec<(String, TcpListener)>, SocketsError> {
    let bad = descriptors.iter().find_map(|(name, fd)| {
        let reason = refusal(fd)?;
        Some(SocketsError::NotListening { number: fd.as_raw_fd(), name: name.clone(), reason })
    });
    if let Some(error) = bad {
        // They may belong to someone else or not be open at all: leave them as they are.
        for (_, fd) in descriptors {
            let _ = fd.into_raw_fd();
        }
        return Err(error);
    }
    let mut sockets = Vec::new();
    for (name, fd) in descriptors {
        // Child processes must not inherit them.
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(io::Error::from)?;
        sockets.push((name, TcpListener::from(fd)));
    }
    Ok(sockets)
}

/// Why a descriptor is not a listening TCP socket.
fn refusal(fd: &OwnedFd) -> Option<String> {
    let family = match getsockname::<SockaddrStorage>(fd.as_raw_fd()) {
        Ok(address) => address.family(),
        Err(error) => return Some(format!("its address cannot be read: {}", error.desc())),
    };
    if !matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6)) {
        return Some("its address is not an Internet address".into());
    }
    if getsockopt(fd, sockopt::SockType) != Ok(SockType::Stream) {
        return Some("it is not a stream socket".into());
    }
    match getsockopt(fd, sockopt::AcceptConn) {
        Ok(true) => None,
        _ => Some("it does not listen".into()),
    }
}

fn bind(address: SocketAddr, whom: &'static str) -> Result<TcpListener, SocketsError> {
    TcpListener::bind(address).map_err(|cause| SocketsError::Bind { address, whom, cause })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn listening() -> (TcpListener, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn assign(names: &[&str]) -> (Result<Inherited, SocketsError>, Vec<SocketAddr>) {
        let (sockets, addresses): (Vec<_>, Vec<_>) = names
            .iter()
            .map(|name| {
                let (socket, address) = listening();
                ((name.to_string(), OwnedFd::from(socket)), address)
            })
            .unzip();
        (adopt(sockets).and_then(Inherited::assign), addresses)
    }

    #[test]
    fn inherited_sockets_are_told_apart_by_name_and_else_by_order() {
        for (names, hosts, admin) in [
            (vec![], None, None),
            (vec!["hosts", "admin"], Some(0), Some(1)),
            (vec!["admin", "hosts"], Some(1), Some(0)),
            (vec!["admin"], None, Some(0)),
            (vec!["", ""], Some(0), Some(1)),
            (vec!["codex-authd.socket", "codex-authd.socket"], Some(0), Some(1)),
            (vec!["other", "hosts"], Some(1), Some(0)),
            (vec![""], Some(0), None),
        ] {
            let (assigned, addresses) = assign(&names);
            let assigned = assigned.unwrap();
            let of = |socket: &Option<TcpListener>| socket.as_ref().map(|socket| socket.local_addr().unwrap());
            assert_eq!(of(&assigned.hosts), hosts.map(|at: usize| addresses[at]), "{names:?}");
            assert_eq!(of(&assigned.admin), admin.map(|at: usize| addresses[at]), "{names:?}");
        }
    }

    #[test]
    fn a_socket_elsewhere_is_one_that_callers_of_the_configured_address_do_not_reach() {
        for (configured, bound, elsewhere) in [
            ("0.0.0.0:8443", "0.0.0.0:8443", false),
            ("0.0.0.0:8443", "[::]:8443", false),
            ("127.0.0.1:8443", "[::]:8443", false),
            ("127.0.0.1:0", "127.0.0.1:34567", false),
            ("127.0.0.1:8443", "[::ffff:127.0.0.1]:8443", false),
            ("0.0.0.0:8443", "[::]:443", true),
            ("0.0.0.0:8443", "127.0.0.1:8443", true),
            ("[::]:8443", "0.0.0.0:8443", true),
            ("192.0.2.1:8443", "192.0.2.2:8443", true),
        ] {
            assert_eq!(
                is_elsewhere(configured.parse().unwrap(), bound.parse().unwrap()),
                elsewhere,
                "{configured} {bound}"
            );
        }
    }

    #[test]
    fn more_sockets_than_there_is_use_for_are_refused() {
        for names in [vec!["hosts", "hosts"], vec!["", "", ""], vec!["hosts", "admin", ""], vec!["admin", "x", "y"]] {
            let (assigned, _) = assign(&names);
            let error = assigned.err().expect("refused").to_string();
            assert!(error.contains("sockets were inherited"), "{names:?}: {error}");
        }
    }

    #[test]
    fn what_is_not_a_listening_tcp_socket_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, address) = listening();
        let connected = TcpStream::connect(address).unwrap();
        let unix = UnixListener::bind(directory.path().join("socket")).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for (fd, reason) in [
            (OwnedFd::from(connected), "does not listen"),
            (OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap()), "not a stream socket"),
            (OwnedFd::from(unix), "not an Internet address"),
            (OwnedFd::from(file), "address cannot be read"),
        ] {
            let error = adopt(vec![("hosts".into(), fd)]).expect_err("refused").to_string();
            assert!(error.contains(reason) && error.contains("'hosts'"), "{error}");
        }
        drop(listener);
    }

    #[test]
    fn a_duplicate_keeps_the_socket_listening() {
        let sockets = Sockets { hosts: listening().0, admin: listening().0 };
        let address = sockets.hosts.local_addr().unwrap();
        let kept = sockets.duplicate().unwrap();
        drop(sockets);
        TcpStream::connect(address).unwrap();
        drop(kept);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn a_successor_finds_both_where_the_protocol_says() {
        let sockets = Sockets { hosts: listening().0, admin: listening().0 };
        let inodes: Vec<String> = [&sockets.hosts, &sockets.admin]
            .map(|socket| std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap())
            .map(|link| link.display().to_string())
            .into();
        let mut command = Command::new("sh");
        command.args(["-c", "echo $LISTEN_FDS $LISTEN_FDNAMES $LISTEN_PID; readlink /proc/$$/fd/3 /proc/$$/fd/4"]);
        sockets.duplicate().unwrap().hand_on(&mut command).unwrap();
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(output, format!("2 hosts:admin {}\n{}\n{}\n", std::process::id(), inodes[0], inodes[1]));
    }
}
