//! The service manager's side of `sd_notify`: a socket of the test, and the received messages.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::daemon::{BOUND, Daemon, pause};

pub struct Manager {
    path: PathBuf,
    _directory: tempfile::TempDir,
    told: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let kept = told.clone();
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length) = socket.recv(&mut buffer) {
                kept.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        Self { path, _directory: directory, told }
    }

    /// Gives the daemon the environment that the manager would give it.
    pub fn manage(&self, daemon: &mut Daemon, watchdog_usec: Option<u64>) {
        daemon.environment.push(("NOTIFY_SOCKET".into(), self.path.display().to_string()));
        if let Some(limit) = watchdog_usec {
            daemon.environment.push(("WATCHDOG_USEC".into(), limit.to_string()));
        }
    }

    /// Every message so far.
    pub fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    /// The first message after the first `from` messages that contains `wanted`, and its place.
    #[track_caller]
    pub fn wait(&self, from: usize, wanted: &str) -> (usize, String) {
        let begun = Instant::now();
        loop {
            let told = self.told();
            if let Some(found) = told.iter().enumerate().skip(from).find(|(_, message)| message.contains(wanted)) {
                return (found.0, found.1.clone());
            }
            assert!(begun.elapsed() < BOUND, "no message with {wanted:?}: {told:#?}");
            pause();
        }
    }
}
