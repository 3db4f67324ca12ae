//! Another version replaces the present one: forward under load, and backward only if it can read the state.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use codex_authd::daemon::format::CURRENT;
use sha2::{Digest as _, Sha256};

use super::fleet::Fleet;
use super::install::{CONFIG, REFERENCE, SOCKET, conffiles, put, runs, try_to_put, upgraded_unattended};
use super::machine::Machine;
use super::package::Package;

/// The same program with one more byte, so that old and new process can be distinguished. The reference and all
/// conffiles have changed.
fn newer(package: &Package) -> Package {
    package.remade(&format!("{}+next", package.version), |tree| {
        let program = tree.join("usr/bin/codex-authd");
        fs::File::options().append(true).open(program).unwrap().write_all(b"\n").unwrap();
        fs::write(tree.join("usr/share/doc/codex-authd/NEWS-OF-THE-NEXT"), "It has one.\n").unwrap();
        let asked_about = fs::read_to_string(tree.join("DEBIAN/conffiles")).unwrap_or_default();
        for file in asked_about.lines().chain([REFERENCE]) {
            let file = fs::File::options().append(true).open(tree.join(file.trim_start_matches('/')));
            file.unwrap().write_all(b"# Of the next.\n").unwrap();
        }
    })
}

/// The layout of 0.1.0: the reference is the configuration, and a conffile; the units are in /lib.
fn of_the_old_layout(package: &Package) -> Package {
    package.remade("0.0.2", |tree| {
        fs::create_dir_all(tree.join("etc/codex-authd")).unwrap();
        fs::rename(tree.join(REFERENCE.trim_start_matches('/')), tree.join(CONFIG.trim_start_matches('/'))).unwrap();
        fs::write(tree.join("DEBIAN/conffiles"), format!("{CONFIG}\n")).unwrap();
        fs::create_dir(tree.join("lib")).unwrap();
        fs::rename(tree.join("usr/lib/systemd"), tree.join("lib/systemd")).unwrap();
    })
}

/// By `apt-get upgrade` without a terminal or options: from the old layout to the present one, and then to the next
/// version.
pub fn from_the_old_layout_unattended(machine: &Machine, package: &Package) {
    put(machine, &of_the_old_layout(package));
    let packaged = fs::read_to_string(machine.file(CONFIG)).unwrap();
    assert!(packaged.contains("\n[listen]\n"), "{packaged}");
    // An edit in the middle of the file, where the reference changes as well.
    let edited = packaged.replace("\n[limits]\n", "\n[limits]\nhost_per_minute = 77\n") + "# Mine.\n";
    assert_eq!(edited.lines().count(), packaged.lines().count() + 2, "{packaged}");
    fs::write(machine.file(CONFIG), &edited).unwrap();
    let kept = || {
        assert_eq!(fs::read_to_string(machine.file(CONFIG)).unwrap(), edited);
        assert_eq!(machine.done(&["ls", "--almost-all", "/etc/codex-authd"]), "config.toml\n");
        assert_eq!(machine.done(&["stat", "--format=%a %U %G", CONFIG]).trim(), "640 root codex-authd");
        machine.done(&["codex-authd", "check-config"]);
        runs(machine);
    };
    for package in [package, &newer(package)] {
        let told = upgraded_unattended(machine, package);
        assert!(!told.contains("onfiguration file"), "{told}");
        kept();
    }
    // dpkg does not ask about the file that it still knows; an older version that contains it would not ask either.
    assert!(conffiles(machine).ends_with(" obsolete"), "{}", conffiles(machine));
    let units = machine.done(&["dpkg", "--listfiles", "codex-authd"]);
    let units: Vec<&str> = units.lines().filter(|path| path.contains("systemd/system/codex-authd")).collect();
    assert!(units.len() == 4 && units.iter().all(|path| path.starts_with("/usr/lib/")), "{units:?}");
}

pub fn under_load_no_request_fails(fleet: &Fleet, package: &Package) {
    let (machine, newer) = (fleet.machine, newer(package));
    let (process, opened) = (fleet.main_pid(), machine.property(SOCKET, "ActiveEnterTimestampMonotonic"));
    let config = fs::read(machine.file(CONFIG)).unwrap();
    let callers = fleet.callers();
    put(machine, &newer);
    callers.go_on();
    let met = callers.end();
    println!("upgraded: {}", met.told());
    assert_eq!(met.failed, Vec::<String>::new());
    assert_eq!(machine.version(), newer.version);
    assert_ne!(fleet.main_pid(), process);
    let digest = |path: &Path| hex::encode(Sha256::digest(fs::read(path).unwrap()));
    let running = machine.done(&["sha256sum", &format!("/proc/{}/exe", fleet.main_pid())]);
    assert_eq!(running[..64], digest(&machine.file("/usr/bin/codex-authd")), "the old version still runs");
    assert_eq!(machine.property(SOCKET, "ActiveEnterTimestampMonotonic"), opened, "the ports were closed");
    assert_eq!(fs::read(machine.file(CONFIG)).unwrap(), config);
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
    let (process, before) = (fleet.main_pid(), fleet.machine.version());
    let refused = try_to_put(fleet.machine, &older, &["--allow-downgrades"]);
    assert_ne!(refused.code, Some(0), "{refused:#?}");
    let told = refused.out + &refused.err;
    println!("{}", told.lines().filter(|line| line.contains("format")).collect::<Vec<_>>().join("\n"));
    // This state never had an older format, so the only way back is a backup.
    assert!(told.contains(&format!("format {CURRENT}")) && told.contains("restore a backup"), "{told}");
    assert_eq!((fleet.main_pid(), fleet.machine.version()), (process, before), "the present version does not run");
    runs(fleet.machine);
    fleet.everybody_goes_on();

    // A version that can read it is accepted.
    put_back(fleet, package);
}

fn put_back(fleet: &Fleet, package: &Package) {
    let back = try_to_put(fleet.machine, package, &["--allow-downgrades"]);
    assert_eq!(back.code, Some(0), "{back:#?}");
    assert_eq!(fleet.machine.version(), package.version);
    runs(fleet.machine);
    fleet.everybody_goes_on();
}
