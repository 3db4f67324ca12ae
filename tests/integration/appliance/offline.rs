//! Commands that root runs while the daemon is stopped.

use super::install::{SOCKET, UNIT, runs};
use super::machine::Machine;

const COMMANDS: &[&[&str]] = &[
    &["doctor"],
    &["check-config"],
    &["hosts", "list"],
    &["auth", "show"],
    &["runner", "doctor"],
    &["admin-cert", "offline", "--out", "/tmp/offline.p12"],
    &["doctor", "--json"],
];

/// Files of these commands belong to the daemon's user, and the daemon starts.
pub fn what_root_runs_meanwhile_lets_the_daemon_start(machine: &Machine) {
    machine.done(&["systemctl", "stop", SOCKET, UNIT]);
    for command in COMMANDS {
        let ran = machine.run(&[&["codex-authd"], *command].concat());
        // `doctor` exits with 1, because the daemon does not run.
        assert!(ran.code.is_some_and(|code| code < 2), "{command:?}: {ran:?}");
        let places = ["/var/lib/codex-authd", "/run/codex-authd", "/var/backups/codex-authd"];
        let script = format!("find {} ! -user codex-authd 2>/dev/null; true", places.join(" "));
        assert_eq!(machine.bash(&script).out, "", "files of another user's after {command:?}");
    }
    machine.done(&["rm", "/tmp/offline.p12"]);
    machine.done(&["systemctl", "start", SOCKET, UNIT]);
    runs(machine);
}
