//! From nothing to a running daemon: what apt prints, what is there afterwards, and how fast.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::machine::Machine;
use super::package::Package;

pub const UNIT: &str = "codex-authd.service";
pub const SOCKET: &str = "codex-authd.socket";
/// First boot to READY, and idle memory of the unit.
const START: Duration = Duration::from_secs(1);
const MEMORY_KB: u64 = 30 * 1024;

pub fn from_nothing(machine: &Machine, package: &Package) {
    let begun = Instant::now();
    let told = put(machine, package);
    println!("installed in {:?}", begun.elapsed());
    let closing = told.split_once("Setting up codex-authd").unwrap().1;
    for line in ["https://", ":9443/", "codex-authd admin-cert NAME --out NAME.p12", "codex-authd doctor"] {
        assert!(closing.contains(line), "the closing lines lack {line}: {told}");
    }
    println!("{}", closing.trim());

    runs(machine);
    for (path, wanted) in [
        ("/etc/codex-authd", "750 root codex-authd"),
        ("/etc/codex-authd/config.toml", "640 root codex-authd"),
        ("/var/lib/codex-authd", "700 codex-authd codex-authd"),
        ("/var/lib/codex-authd/master.key", "600 codex-authd codex-authd"),
        ("/usr/bin/codex-authd", "755 root root"),
    ] {
        assert_eq!(machine.done(&["stat", "--format=%a %U %G", path]).trim(), wanted, "{path}");
    }
    let took = started_in(machine);
    println!("first boot to READY: {took:?}");
    // The aim is a second; how fast the machine is today decides nothing.
    assert!(took <= 5 * START, "{took:?}");
    memory(machine);
    journal(machine);
}

/// `apt install ./FILE`, and what it printed.
pub fn put(machine: &Machine, package: &Package) -> String {
    let ran = try_to_put(machine, package, &[]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    ran.out + &ran.err
}

pub fn try_to_put(machine: &Machine, package: &Package, options: &[&str]) -> crate::support::host::Ran {
    let path = format!("/root/{}", package.file.file_name().unwrap().display());
    std::fs::copy(&package.file, machine.file(&path)).unwrap();
    // What an operator wrote into a conffile stays, as apt suggests.
    let all = ["apt-get", "install", "--yes", "-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Use-Pty=0"];
    let ran = machine.run(&[&all, options, &[path.as_str()]].concat());
    std::fs::remove_file(machine.file(&path)).unwrap();
    ran
}

/// Both units are active and enabled, and both ports are open.
pub fn runs(machine: &Machine) {
    for unit in [UNIT, SOCKET] {
        assert_eq!(machine.property(unit, "ActiveState"), "active", "{unit}");
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    for port in [8443, 9443] {
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_or_else(|error| panic!("port {port}: {error}"));
    }
    let failed = machine.done(&["systemctl", "list-units", "--failed", "--plain", "--no-legend"]);
    assert_eq!(failed, "", "units that failed");
}

/// From `Starting` to `Started`, as systemd took the time.
pub fn started_in(machine: &Machine) -> Duration {
    let at = |name| machine.property(UNIT, name).parse::<u64>().unwrap();
    Duration::from_micros(at("ActiveEnterTimestampMonotonic") - at("InactiveExitTimestampMonotonic"))
}

/// As the cgroup counts it, where there is a memory controller, and as the process has it.
fn memory(machine: &Machine) {
    let counted = machine.property(UNIT, "MemoryCurrent").parse::<u64>().ok().map(|bytes| bytes / 1024);
    let rollup = machine.done(&["cat", &format!("/proc/{}/smaps_rollup", machine.property(UNIT, "MainPID"))]);
    let of = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let (rss, pss, anonymous) = (of("Rss:"), of("Pss:"), of("Anonymous:"));
    println!("idle memory in KiB: unit {counted:?}, resident {rss}, proportional {pss}, anonymous {anonymous}");
    assert!(counted.unwrap_or(pss) <= MEMORY_KB, "more than 30 MiB");
}

fn journal(machine: &Machine) {
    let entries = machine.journal(UNIT);
    let event = |name: &str| {
        let found = entries.iter().find(|entry| entry["EVENT"] == name);
        found.unwrap_or_else(|| panic!("the journal lacks the event {name}: {entries:#?}"))
    };
    for name in ["initialised", "listening"] {
        let entry = event(name);
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "codex-authd", "{entry}");
        assert_eq!(entry["_SYSTEMD_UNIT"], UNIT, "{entry}");
        // `info` is a notice in syslog's words.
        assert_eq!(entry["PRIORITY"], "5", "{entry}");
    }
    let printed: Vec<&Value> = entries.iter().filter(|entry| entry["_TRANSPORT"] == "stdout").collect();
    assert!(printed.is_empty(), "lines without fields: {printed:#?}");
}

/// An operator at the dashboard, with the certificate that the printed command has made.
pub struct Operator<'a> {
    machine: &'a Machine,
    curl: String,
}

impl<'a> Operator<'a> {
    /// Lets nobody in who has no certificate.
    pub fn with_the_printed_command(machine: &'a Machine) -> Self {
        let issued = machine.bash("codex-authd admin-cert alice --out alice.p12");
        assert_eq!(issued.code, Some(0), "{issued:?}");
        let password = issued.out.split("(password: ").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
        let without = "curl -sS --location --cacert /var/lib/codex-authd/pki/server-ca.crt";
        let refused = machine.bash(&format!("{without} https://localhost:9443/"));
        assert!(refused.code != Some(0) && refused.out.is_empty(), "{refused:?}");
        let operator = Self { machine, curl: format!("{without} --cert-type P12 --cert 'alice.p12:{password}'") };
        operator.page("/", "");
        operator
    }

    /// `more`: further arguments, such as the fields of a form.
    pub fn page(&self, path: &str, more: &str) -> String {
        let page = self.machine.bash(&format!("{} {more} https://localhost:9443{path}", self.curl));
        assert!(page.code == Some(0) && page.out.contains("<html"), "{page:?}");
        page.out
    }
}
