//! Under systemd the log goes to the journal, with structured fields: here to a socket of our own in its place.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use crate::support::daemon::{BINARY, BOUND, Daemon};
use crate::support::skip::skipped;

#[test]
fn the_journal_gets_fields() {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can put a socket in the journal's place, in a mount namespace");
        return;
    }
    let daemon = Daemon::prepare(&[]);
    let place = daemon.state.path().join("journal");
    std::fs::create_dir(&place).unwrap();
    let journal = UnixDatagram::bind(place.join("socket")).unwrap();
    journal.set_read_timeout(Some(BOUND)).unwrap();
    let log = std::fs::File::create(daemon.log_file()).unwrap();
    let stream = log.metadata().unwrap();

    let mut command = Command::new("unshare");
    let own = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind '{}' /run/systemd/journal && exec \"$@\"",
        place.display()
    );
    command.args(["--mount", "--propagation", "private", "sh", "-c", &own, "sh", BINARY, "serve"]);
    daemon.settings_for(&mut command);
    command.env("JOURNAL_STREAM", format!("{}:{}", stream.dev(), stream.ino()));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = Ended(command.spawn().unwrap());

    let mut entries = Vec::new();
    let mut datagram = vec![0; 64 * 1024];
    while !entries.iter().any(|entry: &String| holds(entry, "EVENT", "listening")) {
        let length = journal.recv(&mut datagram).unwrap_or_else(|error| panic!("{error}: {entries:#?}"));
        entries.push(String::from_utf8_lossy(&datagram[..length]).into_owned());
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    child.0.wait().unwrap();

    let first = entries.iter().find(|entry| holds(entry, "EVENT", "initialised")).unwrap();
    for field in ["PRIORITY=", "SYSLOG_IDENTIFIER=codex-authd", "CODE_FILE=src/service/boot.rs"] {
        assert!(first.contains(field), "{field} is missing: {first}");
    }
    assert_eq!(daemon.log(), "", "nothing goes to stderr as well");
}

/// A field as the journal's protocol writes one of any content: name, length, value.
fn holds(entry: &str, name: &str, value: &str) -> bool {
    entry.contains(&format!("\n{name}\n")) && entry.contains(&format!("\0{value}\n"))
}

struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
