//! Files, users and units that a package may leave behind, listed before and after.

use std::collections::BTreeSet;

use super::machine::Machine;

/// Files that change by themselves on a running machine, or that package managers keep, unless their name contains
/// ours.
const BY_OTHERS: &[&str] = &[
    "/var/cache/",
    "/var/lib/apt/",
    "/var/lib/dpkg/",
    "/var/log/",
    "/var/lib/systemd/",
    "/var/tmp/",
    // systemd 252 leaves one if it stops a unit while it still prepares the process (`PrivateDevices=`).
    "/tmp/namespace-dev-",
    "/var/backups/dpkg",
    "/run/agetty.reload",
    "/run/systemd/",
    "/run/log/",
    "/run/credentials",
    "/run/dbus/",
    "/run/user/",
    "/run/lock/",
    "/etc/.pwd.lock",
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
];

#[derive(Debug)]
pub struct Listing {
    files: BTreeSet<String>,
    /// Accounts and units.
    names: BTreeSet<String>,
}

impl Listing {
    pub fn of(machine: &Machine) -> Self {
        let found = machine.done(&["find", "/etc", "/opt", "/run", "/srv", "/tmp", "/usr", "/var", "/lib/systemd/"]);
        let by_others = |path: &str| !path.contains("codex-authd") && BY_OTHERS.iter().any(|it| path.starts_with(it));
        let files = found.lines().filter(|path| !by_others(path)).map(String::from).collect();
        let accounts = machine.done(&["getent", "passwd"]) + &machine.done(&["getent", "group"]);
        let units = machine.done(&["systemctl", "list-unit-files", "--no-legend", "--plain"]);
        let names = accounts.lines().chain(units.lines()).map(String::from).collect();
        Self { files, names }
    }

    /// Names that are new since then.
    pub fn since(&self, then: &Self) -> Vec<String> {
        let files = self.files.difference(&then.files);
        files.chain(self.names.difference(&then.names)).cloned().collect()
    }
}
