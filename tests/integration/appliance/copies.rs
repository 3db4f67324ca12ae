//! What stays of a machine: after a purge, and in a copy under a passphrase.

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
/// What the test put there itself, and what the operator's own would be.
const OWN: &[&str] = &["/usr/local/bin/codex", "/usr/local/bin/cdx"];
const PASSPHRASE: &str = "mild otter juggles seven lanterns\n";
/// Where the unit's copies go.
const COPIES: &str = "/var/backups/codex-authd";

/// A key that is not in the state directory at all. It is removed there when the daemon is seen to have the other, and not
/// before.
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
    assert!(!machine.file(MASTER_KEY).exists(), "another one was made");
    fleet.everybody_goes_on();
    // Commands that a secret has to be opened for are answered by the daemon, which has it.
    let added = machine.authd(&["hosts", "add", "after-the-credential.test"]);
    assert_eq!(added["host"]["fqdn"], "after-the-credential.test");
}

/// What `doctor` finds of them, and what mends it.
fn of_credentials(machine: &Machine) -> String {
    let checks = the_doctor_says(machine, "credentials");
    checks.iter().map(|check| format!("{}: {}\n", check["found"], check["remedy"])).collect()
}

/// Its place; the master key is in it, under a passphrase.
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
    assert_eq!(clear.code, Some(1), "the master key stands in the copy: {clear:?}");
    COPY.into()
}

/// Under its own hardening, with the passphrase from where credentials are kept; off until somebody switches it on.
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
            assert!(told.contains(own), "what is the operator's stays, and is named: {told}");
        }
    }
    // What somebody who wants nothing of it does then.
    machine.done(&["rm", "-rf", "/etc/credstore", COPIES]);
    let left: Vec<String> = Listing::of(machine).since(untouched);
    let left: Vec<&String> = left.iter().filter(|name| !OWN.contains(&name.as_str())).collect();
    println!("left after the purge: {left:?}");
    assert!(left.is_empty(), "{left:#?}");
    for port in [8443, 9443] {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}

/// With nothing but the copy and the passphrase; the package has started a daemon of its own by then.
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
