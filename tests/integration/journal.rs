//! Under systemd the log goes to the journal, with structured fields. Here a test socket replaces the journal.

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
    // The log entry of a change names its target.
    daemon.cli_json(&["hosts", "add", "h.test"]);
    while !entries.iter().any(|entry: &String| holds(entry, "ACTION", "host.register")) {
        let length = journal.recv(&mut datagram).unwrap_or_else(|error| panic!("{error}: {entries:#?}"));
        entries.push(String::from_utf8_lossy(&datagram[..length]).into_owned());
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    child.0.wait().unwrap();

    let first = entries.iter().find(|entry| holds(entry, "EVENT", "initialised")).unwrap();
    for field in ["PRIORITY=", "SYSLOG_IDENTIFIER=codex-authd", "CODE_FILE=src/service/core/boot.rs"] {
        assert!(first.contains(field), "{field} is missing: {first}");
    }
    assert!(entries.iter().any(|entry| holds(entry, "SUBJECT", "h.test")), "{entries:#?}");
    // The first entry only tests whether the journal is there, and is empty.
    for entry in entries.iter().filter(|entry| !entry.is_empty()) {
        for field in ["TARGET", "MESSAGE", "CODE_FILE"] {
            let lines = entry.lines().filter(|line| *line == field || line.starts_with(&format!("{field}=")));
            assert_eq!(lines.count(), 1, "{field} occurs once: {entry}");
        }
    }
    assert_eq!(daemon.log(), "", "nothing goes to stderr as well");
}

/// Fields that systemd-journal-logger sets for each record, and fields with a meaning to journald and others
/// (systemd.journal-fields(7)). A second value of such a field would be hidden by the first one.
const TAKEN: [&str; 22] = [
    "priority",
    "message",
    "message_id",
    "syslog_pid",
    "syslog_identifier",
    "syslog_facility",
    "syslog_timestamp",
    "syslog_raw",
    "code_file",
    "code_line",
    "code_func",
    "code_module",
    "target",
    "errno",
    "invocation_id",
    "user_invocation_id",
    "documentation",
    "tid",
    "unit",
    "user_unit",
    "object_pid",
    "coredump_unit",
];

/// The keys of all log statements of a source text.
fn log_keys(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for level in ["error", "warn", "info", "debug", "trace", "log"] {
        for statement in text.split(&format!("log::{level}!(")).skip(1) {
            // Keys end with the first `;` outside of brackets and strings; without a `;` there are none.
            let (mut depth, mut is_text, mut parts, mut part) = (0, false, Vec::new(), String::new());
            let mut has_keys = false;
            for c in statement.chars() {
                match c {
                    '"' => is_text = !is_text,
                    _ if is_text => {}
                    '(' | '[' | '{' => depth += 1,
                    ')' if depth == 0 => break,
                    ')' | ']' | '}' => depth -= 1,
                    ',' if depth == 0 => {
                        parts.push(std::mem::take(&mut part));
                        continue;
                    }
                    ';' if depth == 0 => {
                        has_keys = true;
                        break;
                    }
                    _ => {}
                }
                part.push(c);
            }
            parts.push(part);
            let name = |part: &String| part.split([':', '=']).next().unwrap_or_default().trim().to_owned();
            keys.extend(parts.iter().filter(|_| has_keys).map(name));
        }
    }
    keys
}

#[test]
fn no_log_statement_has_a_key_that_the_journal_sets_itself() {
    let seen = log_keys(
        "log::info!(event = \"a;b\", target, code_file:% = f(x, y); \"text; {}\", z); log::warn!(\"tid = {}\", tid);",
    );
    assert_eq!(seen, ["event", "target", "code_file"]);
    let (mut directories, mut count) = (vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))], 0);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                for key in log_keys(&std::fs::read_to_string(&path).unwrap()) {
                    assert!(!TAKEN.contains(&key.as_str()) && !key.starts_with('_'), "{}: {key}", path.display());
                    count += 1;
                }
            }
        }
    }
    assert!(count > 200, "{count} keys were found");
}

/// Whether an entry has a field in the journal protocol's binary form: name, length, value.
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
