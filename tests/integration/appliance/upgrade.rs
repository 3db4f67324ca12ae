//! Another version in the place of the present one: forwards under load, and backwards only where the state can be read.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use codex_authd::daemon::format::CURRENT;
use sha2::{Digest as _, Sha256};

use super::fleet::Fleet;
use super::install::{SOCKET, put, runs, try_to_put};
use super::package::Package;

/// The same program with a byte more, so that what runs can be told from what ran.
fn newer(package: &Package) -> Package {
    package.remade(&format!("{}+next", package.version), |tree| {
        let program = tree.join("usr/bin/codex-authd");
        fs::File::options().append(true).open(program).unwrap().write_all(b"\n").unwrap();
        fs::write(tree.join("usr/share/doc/codex-authd/NEWS-OF-THE-NEXT"), "It has one.\n").unwrap();
    })
}

pub fn under_load_no_request_fails(fleet: &Fleet, package: &Package) {
    let (machine, newer) = (fleet.machine, newer(package));
    let (process, opened) = (fleet.main_pid(), machine.property(SOCKET, "ActiveEnterTimestampMonotonic"));
    let config = fs::read(machine.file("/etc/codex-authd/config.toml")).unwrap();
    let callers = fleet.callers();
    put(machine, &newer);
    callers.go_on();
    let met = callers.end();
    println!("upgraded: {}", met.told());
    assert_eq!(met.failed, Vec::<String>::new());
    assert_eq!(installed(fleet), newer.version);
    assert_ne!(fleet.main_pid(), process);
    let digest = |path: &Path| hex::encode(Sha256::digest(fs::read(path).unwrap()));
    let running = machine.done(&["sha256sum", &format!("/proc/{}/exe", fleet.main_pid())]);
    assert_eq!(running[..64], digest(&machine.file("/usr/bin/codex-authd")), "the new version runs");
    assert_eq!(machine.property(SOCKET, "ActiveEnterTimestampMonotonic"), opened, "the ports were never closed");
    assert_eq!(fs::read(machine.file("/etc/codex-authd/config.toml")).unwrap(), config);
    assert!(machine.file("/usr/share/doc/codex-authd/NEWS-OF-THE-NEXT").exists());
    runs(machine);
    fleet.everybody_goes_on();
}

pub fn back_to_one_that_cannot_read_the_state_is_refused(fleet: &Fleet, package: &Package) {
    let older = package.remade("0.0.1", |tree| {
        let script = tree.join("DEBIAN/preinst");
        let text = fs::read_to_string(&script).unwrap();
        let (knows, knew) = (format!("-gt {CURRENT} ]"), format!("-gt {} ]", CURRENT - 1));
        assert!(text.contains(&knows), "{text}");
        fs::write(&script, text.replace(&knows, &knew)).unwrap();
    });
    let (process, before) = (fleet.main_pid(), installed(fleet));
    let refused = try_to_put(fleet.machine, &older, &["--allow-downgrades"]);
    assert_ne!(refused.code, Some(0), "{refused:#?}");
    let told = refused.out + &refused.err;
    println!("{}", told.lines().filter(|line| line.contains("format")).collect::<Vec<_>>().join("\n"));
    // This state was never an older one, so the way back is a backup.
    assert!(told.contains(&format!("format {CURRENT}")) && told.contains("restore a backup"), "{told}");
    assert_eq!((fleet.main_pid(), installed(fleet)), (process, before), "the present one goes on");
    runs(fleet.machine);
    fleet.everybody_goes_on();

    // One that can read it is let in.
    put_back(fleet, package);
}

fn put_back(fleet: &Fleet, package: &Package) {
    let back = try_to_put(fleet.machine, package, &["--allow-downgrades"]);
    assert_eq!(back.code, Some(0), "{back:#?}");
    assert_eq!(installed(fleet), package.version);
    runs(fleet.machine);
    fleet.everybody_goes_on();
}

fn installed(fleet: &Fleet) -> String {
    fleet.machine.done(&["dpkg-query", "--show", "--showformat=${Version}", "codex-authd"])
}
