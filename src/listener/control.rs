//! The control socket: how the command line reaches the running daemon.
//!
//! A peer on this socket may do everything. Only root and the daemon's own user are accepted. Two checks enforce this:
//! the socket file's mode, and the peer credentials from the kernel. A lock file beside the socket (`….lock`, never
//! removed) is held while the socket is served. Without it, each of two daemons that start at once could take the
//! other's new socket for a stale one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::geteuid;
use poem::Addr;
use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::net::{UnixListener, UnixStream};

use super::accept::{Accepted, Incoming, Source};
use super::connection::Connection;
use super::counters::Counters;
use super::stop::Drain;
use super::{Limits, peer_address};

/// The peer of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// 0 if the kernel does not know it (the peer is in another pid namespace).
    pub pid: i32,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("another daemon is listening on {}: stop it first, or set another [listen] control", .0.display())]
    Taken(PathBuf),
    #[error("{} exists and is not a socket: remove it, or set another [listen] control", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot listen on the control socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

pub struct ControlAcceptor {
    // The order matters. On drop: accepting ends, then the file is removed, and the lock is released last.
    incoming: Incoming<UnixStream>,
    file: SocketFile,
    _lock: Flock<File>,
}

impl ControlAcceptor {
    /// The directory must exist; the caller sets its mode.
    pub async fn bind(path: &Path, limits: Limits) -> Result<Self, ControlError> {
        Self::bind_admitting(path, limits, |peer| may_enter(peer, geteuid().as_raw())).await
    }

    async fn bind_admitting(
        path: &Path,
        limits: Limits,
        admits: impl Fn(Peer) -> bool + Clone + Send + 'static,
    ) -> Result<Self, ControlError> {
        let failed = |source: io::Error| ControlError::Io { path: path.into(), source };
        let lock = lock_beside(path).map_err(failed)?.ok_or_else(|| ControlError::Taken(path.into()))?;
        remove_stale(path).await?;
        let listener = listen_at(path).map_err(failed)?;
        let file = SocketFile(path.into());
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        // All connections belong to the same one or two users, so there is no limit per address.
        let share = |_: &UnixStream| None;
        let incoming = Incoming::start(listener, limits, share, move |stream, _| {
            let admitted = admit(stream, &admits);
            async move { admitted }
        });
        Ok(Self { incoming, file, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.file.0
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.incoming.counters()
    }

    pub fn drain(&self) -> Drain {
        self.incoming.drain()
    }
}

impl Acceptor for ControlAcceptor {
    type Io = Connection<UnixStream>;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(Addr::custom("unix", self.file.0.display().to_string()))]
    }

    async fn accept(&mut self) -> io::Result<(Self::Io, LocalAddr, RemoteAddr, Scheme)> {
        let ((stream, local, remote, scheme), place) = self.incoming.next().await?;
        Ok((self.incoming.hand_out(stream, place), local, remote, scheme))
    }
}

impl Source for UnixListener {
    type Raw = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Root and the daemon's own user can read the daemon's state anyway.
fn may_enter(peer: Peer, own_uid: u32) -> bool {
    peer.uid == 0 || peer.uid == own_uid
}

fn admit(stream: UnixStream, admits: &impl Fn(Peer) -> bool) -> Option<Accepted<UnixStream>> {
    let peer = match stream.peer_cred() {
        Ok(credentials) => Peer { uid: credentials.uid(), pid: credentials.pid().unwrap_or(0) },
        Err(error) => {
            log::warn!("a control connection was dropped: the kernel did not report its user id: {error}");
            return None;
        }
    };
    if !admits(peer) {
        log::warn!(
            "a control connection of uid {} (pid {}) was dropped: only root and the daemon's user are allowed",
            peer.uid,
            peer.pid
        );
        return None;
    }
    Some((stream, peer_address(peer), RemoteAddr(Addr::custom("unix", "control")), Scheme::HTTP))
}

/// `None`: another process holds the lock.
fn lock_beside(path: &Path) -> io::Result<Option<Flock<File>>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(name)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Removes a stale socket file. Errors if a process answers on it or if the file is not a socket.
async fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let failed = |source: io::Error| ControlError::Io { path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(ControlError::NotASocket(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full queue (`WouldBlock`) also means that a daemon is listening.
        Ok(_) => Err(ControlError::Taken(path.into())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ControlError::Taken(path.into())),
        Err(error) => Err(failed(error)),
    }
}

/// Creates a listening socket whose file has mode 0600 from the start. On Linux the file takes the mode of the unbound
/// socket. (The umask would work too, but all threads share it.)
fn listen_at(path: &Path) -> io::Result<StdUnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(StdUnixListener::from(socket))
}

/// The socket's file, removed with the listener. No other daemon can have replaced it, because the lock is still held.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If this fails, the next start finds a stale socket and removes it.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use poem::{Request, handler};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::listener::{Server, control_peer};

    const BOUND: Duration = Duration::from_secs(20);

    #[handler]
    fn who(request: &Request) -> String {
        control_peer(request).map_or("nobody".into(), |peer| format!("{}:{}", peer.uid, peer.pid))
    }

    /// Sends a request over the socket and reads until the daemon closes it.
    async fn ask(path: &Path) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        // The daemon may have hung up already.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("it is answered or closed");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn only_root_and_the_daemons_own_user_may_enter() {
        let peer = |uid| Peer { uid, pid: 1 };
        assert!(may_enter(peer(0), 990) && may_enter(peer(990), 990));
        assert!(!may_enter(peer(991), 990) && !may_enter(peer(65534), 0));
    }

    #[tokio::test]
    async fn the_handler_knows_who_asks_and_the_socket_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let acceptor = ControlAcceptor::bind(&path, Limits::default()).await.unwrap();
        for file in [path.clone(), directory.path().join("control.sock.lock")] {
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
        tokio::spawn(Server::new(acceptor).run(who));
        let me = format!("{}:{}", geteuid(), std::process::id());
        let answer = ask(&path).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{me}")), "{answer}");
    }

    #[tokio::test]
    async fn a_peer_who_may_not_enter_reaches_no_handler() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let acceptor = ControlAcceptor::bind_admitting(&path, Limits::default(), |_| false).await.unwrap();
        let counters = acceptor.counters();
        let reached = Arc::new(AtomicUsize::new(0));
        let count = reached.clone();
        tokio::spawn(Server::new(acceptor).run(poem::endpoint::make_sync(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        })));
        assert_eq!(ask(&path).await, "");
        assert_eq!(reached.load(Ordering::SeqCst), 0);
        // The refusal is counted a moment after the connection is closed.
        let counted = async {
            while counters.refused.load(Ordering::SeqCst) != 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(BOUND, counted).await.expect("the refusal is counted");
    }

    /// With the socket file world-writable by mistake, the peer credentials still decide.
    #[tokio::test]
    async fn another_user_is_dropped_even_where_the_file_lets_him_in() {
        if !geteuid().is_root() || Command::new("curl").arg("--version").output().is_err() {
            crate::skip::skipped("running curl as another user needs root and curl");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = directory.path().join("control.sock");
        let acceptor = ControlAcceptor::bind(&path, Limits::default()).await.unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        tokio::spawn(Server::new(acceptor).run(who));
        let curl = |uid: u32| {
            let path = path.clone();
            tokio::task::spawn_blocking(move || {
                let mut command = Command::new("curl");
                command.args(["-s", "--max-time", "10", "--unix-socket"]).arg(path).arg("http://control/").uid(uid);
                String::from_utf8(command.output().unwrap().stdout).unwrap()
            })
        };
        assert!(curl(0).await.unwrap().starts_with("0:"));
        assert_eq!(curl(65534).await.unwrap(), "");
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_daemon_is_replaced_and_a_live_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        // A dropped std listener leaves its file, as a killed daemon does.
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = ControlAcceptor::bind(&path, Limits::default()).await.unwrap();

        let second = ControlAcceptor::bind(&path, Limits::default()).await.err().expect("the first one is alive");
        assert!(matches!(second, ControlError::Taken(_)), "{second}");
        assert!(second.to_string().contains("another daemon is listening on"), "{second}");
        assert!(path.exists());

        drop(first);
        assert!(!path.exists(), "a daemon that stops removes its socket");
        ControlAcceptor::bind(&path, Limits::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_live_socket_without_our_lock_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let live = StdUnixListener::bind(&path).unwrap();
        let refused = ControlAcceptor::bind(&path, Limits::default()).await.err().expect("a process listens there");
        assert!(matches!(refused, ControlError::Taken(_)), "{refused}");
        assert!(path.exists());
        drop(live);
    }

    /// Another daemon has checked the stale socket and not yet bound its own. The stale socket must not be removed
    /// here.
    #[tokio::test]
    async fn a_dead_socket_that_another_daemon_is_replacing_just_now_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(StdUnixListener::bind(&path).unwrap());
        let held = lock_beside(&path).unwrap();
        let refused = ControlAcceptor::bind(&path, Limits::default()).await.err().expect("another daemon holds it");
        assert!(matches!(refused, ControlError::Taken(_)), "{refused}");
        assert!(path.exists());
        drop(held);
        ControlAcceptor::bind(&path, Limits::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        let refused = ControlAcceptor::bind(&path, Limits::default()).await.err().expect("it is a file");
        assert!(matches!(refused, ControlError::NotASocket(_)), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
