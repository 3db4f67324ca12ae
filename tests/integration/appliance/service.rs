//! The daemon under systemd: its hardening, a reload, and restarts after it dies or hangs.

use serde_json::Value;

use super::fleet::Fleet;
use super::install::{CONFIG, SOCKET, TIMER, UNIT, runs};
use super::machine::Machine;
use super::trust::is_shown;
use crate::support::authority::authority;
use crate::support::eventually;

/// The highest accepted value of `systemd-analyze security`. 2.0 would forbid the probes' sandbox its cgroup namespace
/// and the calls that close everything else; the unit's comments list what is left open, and why.
const EXPOSURE: f32 = 2.2;

pub fn the_doctor_is_content(machine: &Machine) {
    let doctor = machine.run(&["codex-authd", "doctor"]);
    println!("{}", doctor.out.trim());
    assert_eq!(doctor.code, Some(0), "{doctor:#?}");
}

/// The doctor's checks of that name.
pub fn the_doctor_says(machine: &Machine, name: &str) -> Vec<Value> {
    let ran = machine.run(&["codex-authd", "doctor", "--json"]);
    let told: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    told["checks"].as_array().unwrap().iter().filter(|check| check["name"] == name).cloned().collect()
}

/// Right after the installation: no tool has a finding about the units, and there were no warnings.
pub fn the_units_and_the_journal_are_quiet(machine: &Machine) {
    let units = [UNIT, SOCKET, "codex-authd-backup.service", TIMER];
    let verified = machine.run(&[&["systemd-analyze", "verify", "--man=no"][..], &units].concat());
    assert_eq!((verified.code, verified.out.as_str(), verified.err.as_str()), (Some(0), "", ""));
    // Including a unit without any credential.
    machine.done(&["systemctl", "start", "codex-authd-backup.service"]);
    machine.done(&["find", "/var/backups/codex-authd", "-mindepth", "1", "-delete"]);
    // The processes that prepare credentials belong to no unit.
    let everything = machine.done(&["journalctl", "--no-pager", "--output", "cat"]);
    let credentials: Vec<&str> = everything.lines().filter(|line| line.contains("inherited credential")).collect();
    assert!(credentials.is_empty(), "{credentials:#?}");
    // The daemon's own warnings are about this machine.
    let warned = |entry: &Value| {
        entry["SYSLOG_IDENTIFIER"] != "codex-authd"
            && entry["PRIORITY"].as_str().is_some_and(|priority| priority <= "4")
    };
    for unit in units {
        let found: Vec<Value> = machine.journal(unit).into_iter().filter(warned).collect();
        assert!(found.is_empty(), "{unit}: {found:#?}");
    }
}

/// The daemon fails more often than systemd's limits allow by default, while clients call. The operator only fixes the
/// cause.
pub fn a_daemon_that_cannot_start_is_tried_until_it_can(fleet: &Fleet) {
    let machine = fleet.machine;
    let hasty = format!("/etc/systemd/system/{UNIT}.d");
    machine.write(&format!("{hasty}/hasty.conf"), "[Service]\nRestartSec=100ms\n");
    machine.done(&["systemctl", "daemon-reload"]);
    let config = std::fs::read_to_string(machine.file(CONFIG)).unwrap();
    machine.write(CONFIG, &format!("no_such_key = 1\n{config}"));
    let opened = machine.property(SOCKET, "ActiveEnterTimestampMonotonic");
    assert_ne!(machine.run(&["systemctl", "restart", UNIT]).code, Some(0));
    eventually("systemd has tried ten times", || {
        // The connection waits in the queue of the port, and activates the daemon.
        std::net::TcpStream::connect(("127.0.0.1", 8443)).unwrap();
        (fleet.restarts() >= 10).then_some(())
    });
    assert_eq!(machine.property(SOCKET, "ActiveState"), "active");
    machine.write(CONFIG, &config);
    eventually("it runs", || is_active(fleet).then_some(()));
    assert_eq!(machine.property(SOCKET, "ActiveEnterTimestampMonotonic"), opened, "the ports were closed");
    machine.done(&["rm", "-r", &hasty]);
    machine.done(&["systemctl", "daemon-reload"]);
    runs(machine);
    fleet.everybody_goes_on();
}

/// As an operator does who tries addresses.
pub fn ports_may_be_opened_again_and_again(fleet: &Fleet) {
    for _ in 0..8 {
        fleet.machine.done(&["systemctl", "restart", SOCKET]);
        eventually("it runs", || is_active(fleet).then_some(()));
    }
    runs(fleet.machine);
}

pub fn it_is_hardened(machine: &Machine) {
    let told = machine.done(&["systemd-analyze", "security", "--no-pager", UNIT]);
    for line in told.lines().filter(|line| line.starts_with('✗')) {
        println!("{line}");
    }
    let overall = told.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    println!("{overall}");
    let figure: f32 = overall.rsplit(": ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(figure <= EXPOSURE, "{figure}");
}

/// The daemon can write its delegated cgroup, and not the one above it. Whether it has controllers depends on the
/// machine.
pub fn its_cgroup_is_its_own(fleet: &Fleet) {
    let within = |script: &str| {
        let around = "exec nsenter --mount --user --target $0 --setuid $(id -u codex-authd) -- sh -c \"$1\"";
        fleet.machine.run(&["sh", "-c", around, &fleet.main_pid(), script])
    };
    let place = format!("/sys/fs/cgroup{}", fleet.machine.property(UNIT, "ControlGroup"));
    let made = within(&format!("mkdir {place}/of-the-test && rmdir {place}/of-the-test"));
    assert_eq!(made.code, Some(0), "{made:?}");
    let refused = within(&format!("mkdir {place}/../of-the-test"));
    assert!(refused.code != Some(0) && refused.err.contains("Read-only file system"), "{refused:?}");
}

/// With an operator's certificate, because that is the purpose of a reload.
pub fn a_reload_reads_the_certificate_again(fleet: &Fleet) {
    let machine = fleet.machine;
    let put = || {
        let (ca, certificate, key) = authority("localhost");
        machine.write("/etc/codex-authd/tls/certificate.pem", &certificate);
        machine.write("/etc/codex-authd/tls/key.pem", &key);
        machine.done(&["chown", "-R", "root:codex-authd", "/etc/codex-authd/tls"]);
        machine.done(&["chmod", "0640", "/etc/codex-authd/tls/key.pem"]);
        ca
    };
    let serves = |ca: &str| is_shown(fleet, ca);
    let first = put();
    let files = "/etc/codex-authd/tls";
    // Its hosts do not trust it, and are not called here.
    let keys =
        format!("certificate = \"{files}/certificate.pem\"\nprivate_key = \"{files}/key.pem\"\nswitch = \"now\"\n");
    fleet.configure(&format!("[tls]\n{keys}"));
    assert!(serves(&first));
    let (process, second) = (fleet.main_pid(), put());
    assert!(serves(&first) && !serves(&second), "the certificate changed before the reload");
    // systemd then logs the messages that it receives.
    machine.done(&["systemctl", "log-level", "debug"]);
    machine.done(&["systemctl", "reload", UNIT]);
    machine.done(&["systemctl", "log-level", "info"]);
    eventually("the new certificate is served", || serves(&second).then_some(()));
    assert!(!serves(&first));
    assert_eq!(fleet.main_pid(), process);
    let told = machine.done(&["journalctl", "--no-pager", "--output", "cat", "--unit", UNIT]);
    for state in ["RELOADING=1", "READY=1"] {
        assert!(told.lines().any(|line| line.contains("Got notification message") && line.contains(state)), "{state}");
    }
    fleet.configure("");
    machine.done(&["rm", "-r", files]);
}

pub fn a_killed_daemon_comes_back_and_nobody_is_refused(fleet: &Fleet) {
    let (before, restarts) = (fleet.main_pid(), fleet.restarts());
    let callers = fleet.callers();
    fleet.machine.done(&["systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT]);
    eventually("it runs again", || (fleet.restarts() > restarts && is_active(fleet)).then_some(()));
    callers.go_on();
    let met = callers.end();
    println!("killed: {}", met.told());
    assert_ne!(fleet.main_pid(), before);
    // Calls under way in the dead process are cut; the sockets stay open.
    let refused = met.failed.iter().filter(|reason| reason.contains("ConnectionRefused")).count();
    assert_eq!(refused, 0, "{met:#?}");
    assert!(met.failed.len() as u64 <= 8, "{met:#?}");
    // The unit hides parts of the kernel, but the daemon must still recognise the same boot.
    let discarded = fleet.machine.bash("journalctl --unit codex-authd EVENT=hot_state_discarded --output cat");
    assert!(!discarded.out.contains("hot state"), "{discarded:?}");
    fleet.everybody_goes_on();
}

pub fn a_daemon_that_hangs_is_replaced(fleet: &Fleet) {
    let machine = fleet.machine;
    let own = machine.property(UNIT, "WatchdogUSec");
    assert!(!["0", "infinity"].contains(&own.as_str()), "the unit has no watchdog: {own}");
    let place = format!("/etc/systemd/system/{UNIT}.d/impatient.conf");
    machine.write(&place, "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n");
    machine.done(&["systemctl", "daemon-reload"]);
    fleet.restart();
    let (restarts, process) = (fleet.restarts(), fleet.main_pid());
    // systemd leaves it alone for more than one watchdog interval while it pings.
    let well = std::time::Instant::now();
    eventually("two intervals are over", || (well.elapsed().as_secs() > 4).then_some(()));
    assert_eq!((fleet.restarts(), fleet.main_pid()), (restarts, process));
    let opened = machine.property(SOCKET, "ActiveEnterTimestampMonotonic");
    machine.done(&["systemctl", "kill", "--signal=STOP", "--kill-whom=main", UNIT]);
    let begun = std::time::Instant::now();
    eventually("it is replaced", || (fleet.restarts() > restarts && is_active(fleet)).then_some(()));
    println!("hung: replaced after {:?}, watchdog of 2 s", begun.elapsed());
    let told = machine.done(&["journalctl", "--no-pager", "--output", "cat", "--unit", UNIT]);
    assert!(told.contains("Watchdog timeout"), "{told}");
    assert_eq!(machine.property(SOCKET, "ActiveEnterTimestampMonotonic"), opened);
    machine.done(&["rm", "-r", &format!("/etc/systemd/system/{UNIT}.d")]);
    machine.done(&["systemctl", "daemon-reload"]);
    fleet.restart();
    runs(machine);
}

fn is_active(fleet: &Fleet) -> bool {
    fleet.machine.property(UNIT, "ActiveState") == "active"
}
