//! From nothing to a running daemon: apt's output, the installed state, and the time.

use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::machine::Machine;
use super::package::Package;
use crate::support::skip::skipped;

pub const UNIT: &str = "codex-authd.service";
pub const SOCKET: &str = "codex-authd.socket";
pub const TIMER: &str = "codex-authd-backup.timer";
pub const CONFIG: &str = "/etc/codex-authd/config.toml";
pub const REFERENCE: &str = "/usr/share/codex-authd/config.toml";
/// The expected time from first boot to READY.
const START: Duration = Duration::from_secs(1);
const MEMORY_KB: u64 = 30 * 1024;

/// `install` installs the package, and returns the output.
pub fn from_nothing(machine: &Machine, install: impl FnOnce() -> String) {
    let begun = Instant::now();
    let told = install();
    println!("installed in {:?}", begun.elapsed());
    let closing = told.split_once("Setting up codex-authd (").unwrap().1;
    for line in ["https://", ":9443/", "codex-authd admin-cert NAME --out NAME.p12", "codex-authd doctor"] {
        assert!(closing.contains(line), "the closing lines lack {line}: {told}");
    }
    println!("{}", closing.trim());

    runs(machine);
    for (path, wanted) in [
        ("/etc/codex-authd", "750 root codex-authd"),
        (CONFIG, "640 root codex-authd"),
        (REFERENCE, "644 root root"),
        ("/var/lib/codex-authd", "700 codex-authd codex-authd"),
        ("/var/lib/codex-authd/master.key", "600 codex-authd codex-authd"),
        ("/usr/bin/codex-authd", "755 root root"),
    ] {
        assert_eq!(machine.done(&["stat", "--format=%a %U %G", path]).trim(), wanted, "{path}");
    }
    // The configuration is short, and is not a file of the package.
    let config = std::fs::read_to_string(machine.file(CONFIG)).unwrap();
    assert!(config.contains(REFERENCE) && config.lines().all(|line| line.starts_with('#')), "{config}");
    assert_eq!(conffiles(machine), "");
    let took = started_in(machine);
    println!("first boot to READY: {took:?}");
    // The expected time is a second; a slow machine may take more.
    assert!(took <= 5 * START, "{took:?}");
    memory(machine);
    journal(machine);
}

/// Runs `apt install ./FILE`; returns the output.
pub fn put(machine: &Machine, package: &Package) -> String {
    let ran = try_to_put(machine, package, &[]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    ran.out + &ran.err
}

pub fn try_to_put(machine: &Machine, package: &Package, options: &[&str]) -> crate::support::host::Ran {
    let path = format!("/root/{}", package.file.file_name().unwrap().display());
    std::fs::copy(&package.file, machine.file(&path)).unwrap();
    // No option tells dpkg what to do with edited files: it must not need to ask.
    let all = ["apt-get", "install", "--yes", "-o", "Dpkg::Use-Pty=0"];
    let ran = machine.run(&[&all, options, &[path.as_str()]].concat());
    std::fs::remove_file(machine.file(&path)).unwrap();
    ran
}

/// The package's conffiles.
pub fn conffiles(machine: &Machine) -> String {
    machine.done(&["dpkg-query", "--show", "--showformat=${Conffiles}", "codex-authd"]).trim().to_owned()
}

/// Runs `apt-get upgrade` of everything, like an unattended machine, with `package` in a repository.
pub fn upgraded_unattended(machine: &Machine, package: &Package) -> String {
    const OFFERED: &str = "/srv/offered";
    const LIST: &str = "/etc/apt/sources.list.d/offered.list";
    let name = package.file.file_name().unwrap().to_str().unwrap();
    let bytes = std::fs::read(&package.file).unwrap();
    let about = format!(
        "{}\nFilename: ./{name}\nSize: {}\nSHA256: {}\n",
        package.control().trim_end(),
        bytes.len(),
        hex::encode(Sha256::digest(&bytes))
    );
    machine.write(&format!("{OFFERED}/Packages"), &about);
    std::fs::write(machine.file(&format!("{OFFERED}/{name}")), bytes).unwrap();
    machine.write(LIST, &format!("deb [trusted=yes] file:{OFFERED} ./\n"));
    // The other sources are not reachable from the machine's network.
    let only = ["-o", "Dir::Etc::SourceList=/dev/null"];
    machine.done(&[&["apt-get", "update"][..], &only].concat());
    let ran = machine.run(&[&["apt-get", "upgrade", "--yes", "-o", "Dpkg::Use-Pty=0"][..], &only].concat());
    machine.done(&["rm", "-r", OFFERED, LIST]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert_eq!(machine.version(), package.version, "{}{}", ran.out, ran.err);
    ran.out + &ran.err
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

/// The time from `Starting` to `Started`, by systemd.
pub fn started_in(machine: &Machine) -> Duration {
    let at = |name| machine.property(UNIT, name).parse::<u64>().unwrap();
    Duration::from_micros(at("ActiveEnterTimestampMonotonic") - at("InactiveExitTimestampMonotonic"))
}

/// The memory by the cgroup, if there is a memory controller, and by the process.
fn memory(machine: &Machine) {
    let counted = machine.property(UNIT, "MemoryCurrent").parse::<u64>().ok().map(|bytes| bytes / 1024);
    let rollup = machine.done(&["cat", &format!("/proc/{}/smaps_rollup", machine.property(UNIT, "MainPID"))]);
    let of = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let (rss, pss, anonymous) = (of("Rss:"), of("Pss:"), of("Anonymous:"));
    println!("idle memory in KiB: unit {counted:?}, resident {rss}, proportional {pss}, anonymous {anonymous}");
    if std::env::var_os("AUTHD_PACKAGE_UNMAPPED").is_some() {
        return skipped(
            "AUTHD_PACKAGE_UNMAPPED says that the program was not built for a package: its memory is not judged",
        );
    }
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
        // systemd's `info` is syslog's priority `notice`.
        assert_eq!(entry["PRIORITY"], "5", "{entry}");
    }
    let printed: Vec<&Value> = entries.iter().filter(|entry| entry["_TRANSPORT"] == "stdout").collect();
    assert!(printed.is_empty(), "lines without fields: {printed:#?}");
}

/// An operator at the dashboard, with a certificate from the printed command.
pub struct Operator<'a> {
    machine: &'a Machine,
    curl: String,
}

impl<'a> Operator<'a> {
    /// Also checks that clients without a certificate are refused.
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
