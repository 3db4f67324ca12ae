//! The data that remains of a machine: after a purge, and in a backup with a passphrase.

use std::fs;
use std::net::TcpStream;

use super::fleet::Fleet;
use super::install::{TIMER, put, runs};
use super::leftovers::Listing;
use super::machine::Machine;
use super::package::Package;
use super::service::the_doctor_says;

const CREDENTIAL: &str = "/etc/credstore/codex-authd.master.key";
const MASTER_KEY: &str = "/var/lib/codex-authd/master.key";
const COPY: &str = "/root/copy";
/// What the test added, as an operator could.
const OWN: &[&str] = &["/usr/local/bin/codex", "/usr/local/bin/cdx", "/etc/cdx", "/etc/cdx/host.toml"];
const PASSPHRASE: &str = "mild otter juggles seven lanterns\n";
/// The directory of the unit's backups.
const COPIES: &str = "/var/backups/codex-authd";

/// A master key outside the state directory. The doctor allows to remove the file there only after the daemon has
/// received the credential.
pub fn the_master_key_may_be_a_credential(fleet: &Fleet) {
    let machine = fleet.machine;
    machine.done(&["install", "-d", "-m", "0700", "/etc/credstore"]);
    machine.done(&["install", "-m", "0600", "-o", "root", MASTER_KEY, CREDENTIAL]);
    let (not_yet, may_go) = (format!("{CREDENTIAL} is not in force"), format!("rm {MASTER_KEY}"));
    let told = of_credentials(machine);
    assert!(told.contains(&not_yet) && !told.contains(&may_go), "before the daemon has it: {told}");
    fleet.restart();
    machine.done(&["cmp", CREDENTIAL, "/run/credentials/codex-authd.service/master.key"]);
    let told = of_credentials(machine);
    assert!(told.contains(&format!("{CREDENTIAL} is in force")) && told.contains(&may_go), "the daemon has it: {told}");
    machine.done(&["rm", MASTER_KEY]);
    fleet.restart();
    assert!(!machine.file(MASTER_KEY).exists(), "another key was made");
    fleet.everybody_goes_on();
    // The daemon, which has the key, answers commands that need a secret.
    let added = machine.authd(&["hosts", "add", "after-the-credential.test"]);
    assert_eq!(added["host"]["fqdn"], "after-the-credential.test");
}

/// The doctor's checks of credentials, with their remedies.
fn of_credentials(machine: &Machine) -> String {
    let checks = the_doctor_says(machine, "credentials");
    checks.iter().map(|check| format!("{}: {}\n", check["found"], check["remedy"])).collect()
}

/// Returns its path; it contains the master key, under a passphrase.
pub fn a_copy_of_the_running_daemon(fleet: &Fleet) -> String {
    let machine = fleet.machine;
    machine.write("/root/passphrase", PASSPHRASE);
    let key = fs::read_to_string(machine.file(CREDENTIAL)).unwrap();
    machine.done(&["codex-authd", "backup", COPY, "--passphrase-file", "/root/passphrase"]);
    println!(
        "{}",
        machine.done(&["codex-authd", "backup", "--verify", COPY, "--passphrase-file", "/root/passphrase"]).trim()
    );
    let clear = machine.run(&["grep", "-rlF", key.trim(), COPY]);
    assert_eq!(clear.code, Some(1), "the master key is in the backup: {clear:?}");
    COPY.into()
}

/// Runs with its own hardening, and the passphrase from its credential; off until an operator enables it.
pub fn the_backup_unit_makes_one_too(fleet: &Fleet) {
    let machine = fleet.machine;
    assert_eq!(machine.property(TIMER, "UnitFileState"), "disabled");
    machine.write("/etc/credstore/codex-authd.backup.passphrase", PASSPHRASE);
    machine.done(&["chmod", "0600", "/etc/credstore/codex-authd.backup.passphrase"]);
    machine.done(&["systemctl", "start", "codex-authd-backup.service"]);
    let made = machine.done(&["ls", COPIES]);
    println!("the unit made {}", made.trim());
    let copy = format!("{COPIES}/{}", made.trim());
    println!(
        "{}",
        machine.done(&["codex-authd", "backup", "--verify", &copy, "--passphrase-file", "/root/passphrase"]).trim()
    );
    machine.done(&["systemctl", "enable", "--now", TIMER]);
    assert_eq!(machine.property(TIMER, "ActiveState"), "active");
}

pub fn a_purge_leaves_nothing(machine: &Machine, untouched: &Listing) {
    let purged = machine.run(&["apt-get", "purge", "--yes", "codex-authd"]);
    assert_eq!(purged.code, Some(0), "{purged:?}");
    let told = purged.out + &purged.err;
    for own in [CREDENTIAL, COPIES] {
        if machine.file(own).exists() {
            assert!(told.contains(own), "the operator's files stay, and are named: {told}");
        }
    }
    // The steps to remove the rest after a purge.
    machine.done(&["rm", "-rf", "/etc/credstore", COPIES]);
    let left: Vec<String> = Listing::of(machine).since(untouched);
    let left: Vec<&String> = left.iter().filter(|name| !OWN.contains(&name.as_str())).collect();
    println!("left after the purge: {left:?}");
    assert!(left.is_empty(), "{left:#?}");
    for port in [8443, 9443] {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}

/// With only the backup and the passphrase; the package has already started a daemon.
pub fn restored_on_a_fresh_machine_the_hosts_go_on(fleet: &mut Fleet, package: &Package, copy: &str) {
    let machine = fleet.machine;
    put(machine, package);
    runs(machine);
    let refused = fleet.synced();
    assert_ne!(refused.code, Some(0), "a new daemon knows no host: {refused:?}");
    let restored = machine.done(&[
        "codex-authd",
        "restore",
        copy,
        "--passphrase-file",
        "/root/passphrase",
        "--with-config",
        "--yes",
    ]);
    println!("{}", restored.trim());
    fleet.restart();
    fleet.everybody_goes_on();
    fleet.the_host_goes_on();
    let hosts = machine.authd(&["hosts", "list"]);
    assert_eq!(hosts["hosts"].as_array().unwrap().len(), 6, "{hosts:#}");
}
