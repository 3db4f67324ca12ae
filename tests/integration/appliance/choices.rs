//! An operator's choices survive a removal: the configuration, the enabled units, drop-ins. A purge removes them.

use std::fs;
use std::net::TcpStream;

use super::fleet::Fleet;
use super::install::{CONFIG, SOCKET, TIMER, UNIT, put, runs};
use super::package::Package;
use crate::support::eventually;

const MASTER_KEY: &str = "/var/lib/codex-authd/master.key";

pub fn outlive_a_removal(fleet: &Fleet, package: &Package) {
    let machine = fleet.machine;
    let config = fs::read(machine.file(CONFIG)).unwrap();
    let state = |unit| (machine.property(unit, "UnitFileState"), machine.property(unit, "ActiveState"));
    let drop_in = format!("/etc/systemd/system/{UNIT}.d/own.conf");
    machine.write(&drop_in, "[Service]\nNice=-1\n");

    machine.done(&["systemctl", "enable", "--now", TIMER]);
    remove(fleet);
    assert_eq!(machine.done(&["stat", "--format=%a %U", MASTER_KEY]).trim(), "600 codex-authd");
    put(machine, package);
    runs(machine);
    fleet.everybody_goes_on();
    assert_eq!(state(TIMER), ("enabled".into(), "active".into()));
    assert_eq!(machine.property(UNIT, "Nice"), "-1");
    assert_eq!(fs::read(machine.file(CONFIG)).unwrap(), config);

    machine.done(&["systemctl", "disable", "--now", TIMER, SOCKET, UNIT]);
    remove(fleet);
    put(machine, package);
    for unit in [TIMER, SOCKET, UNIT] {
        assert_eq!(state(unit), ("disabled".into(), "inactive".into()), "{unit}");
    }
    machine.done(&["rm", "-r", &format!("/etc/systemd/system/{UNIT}.d")]);
    machine.done(&["systemctl", "daemon-reload"]);
    machine.done(&["systemctl", "enable", "--now", SOCKET, UNIT]);
    runs(machine);
    fleet.everybody_goes_on();
    assert_eq!(fs::read(machine.file(CONFIG)).unwrap(), config);
}

fn remove(fleet: &Fleet) {
    let machine = fleet.machine;
    machine.done(&["apt-get", "remove", "--yes", "codex-authd"]);
    for port in [8443, 9443] {
        eventually("the port is closed", || TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
    }
    for unit in [UNIT, SOCKET, TIMER] {
        assert_eq!(machine.property(unit, "LoadState"), "not-found", "{unit}");
    }
    assert!(!machine.file("/usr/bin/codex-authd").exists());
}
