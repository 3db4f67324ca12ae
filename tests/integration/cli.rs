//! The command line, with and without a running daemon.

use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::support::daemon::{Daemon, auth_json};
use crate::support::eventually;

#[test]
fn every_command_works_without_a_daemon_and_with_one() {
    let mut daemon = Daemon::prepare(&[]);
    let login = daemon.state.path().join("auth.json");
    std::fs::write(&login, auth_json("2025-11-20T09:27:43.373506211Z", 1).to_string()).unwrap();
    for round in ["offline", "online"] {
        if round == "online" {
            daemon.launch();
        }
        let host = format!("{round}.test");
        let made = daemon.cli_json(&["hosts", "add", &host]);
        let command = made["installer"]["command"].as_str().unwrap();
        assert!(command.starts_with("curl -sSL -k --pinnedpubkey \"sha256//"), "{command}");
        let uploaded = daemon.cli_json(&["auth", "upload", login.to_str().unwrap()]);
        assert_eq!(uploaded["status"], if round == "offline" { "updated" } else { "unchanged" });
        assert_eq!(daemon.cli_json(&["auth", "show"])["version"], 1);
        assert_eq!(daemon.cli_json(&["auth", "history"])["versions"].as_array().unwrap().len(), 1);
        let names = |value: serde_json::Value| -> Vec<String> {
            value["hosts"].as_array().unwrap().iter().map(|host| host["fqdn"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(daemon.cli_json(&["hosts", "list"])), std::slice::from_ref(&host));
        assert!(daemon.cli_json(&["keys", "rotate"])["resealed"].as_u64().unwrap() > 3);
        let p12 = daemon.state.path().join(format!("{round}.p12"));
        let issued = daemon.cli_json(&["admin-cert", "alice", "--out", p12.to_str().unwrap()]);
        assert!(issued["pkcs12_password"].as_str().unwrap().len() > 20);
        assert!(p12.exists());
        daemon.cli_json(&["hosts", "remove", &host]);
        assert!(names(daemon.cli_json(&["hosts", "list"])).is_empty());
    }
}

#[test]
fn what_is_refused_says_why_and_exits_1() {
    let daemon = Daemon::prepare(&[]);
    let pem = daemon.state.path().join("pem");
    for (arguments, wanted) in [
        (vec!["hosts", "remove", "nobody.test"], "there is no host nobody.test"),
        (vec!["hosts", "add", "$(id)"], "fqdn must be a host name"),
        (vec!["auth", "show"], "Canonical auth not found"),
        (vec!["auth", "upload", "/does/not/exist"], "cannot read /does/not/exist"),
        (vec!["admin-cert", "a\nb", "--pem", pem.to_str().unwrap()], "printable characters"),
    ] {
        let output = daemon.cli(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
}

#[test]
fn what_is_no_command_exits_2() {
    let daemon = Daemon::prepare(&[]);
    for arguments in [vec!["nonsense"], vec!["hosts"], vec!["admin-cert", "alice"], vec!["serve", "--nonsense"]] {
        assert_eq!(daemon.cli(&arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_second_daemon_says_who_has_the_state() {
    let daemon = Daemon::start();
    let output = daemon.cli(&["serve"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("in use by process {}", daemon.pid())), "{said}");
}

#[test]
fn a_state_that_is_in_use_for_a_moment_is_waited_for() {
    let daemon = Daemon::prepare(&[]);
    daemon.cli_json(&["hosts", "list"]);
    let path = daemon.state_dir().join("daemon.lock");
    let file = std::fs::File::open(&path).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
    std::thread::scope(|scope| {
        let command = scope.spawn(|| daemon.cli(&["hosts", "list"]));
        eventually("the command looks at the lock", || {
            (is_open_elsewhere(&path) || command.is_finished()).then_some(())
        });
        assert!(!command.is_finished(), "{:?}", command.join());
        drop(held);
        let output = command.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

/// Whether another process has the file open.
fn is_open_elsewhere(path: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
    let others = processes.filter(|process| !process.ends_with(std::process::id().to_string()));
    let files = others.filter_map(|process| std::fs::read_dir(process.join("fd")).ok()).flatten().flatten();
    files.into_iter().any(|file| std::fs::read_link(file.path()).is_ok_and(|link| link == path))
}

#[test]
fn check_config_names_the_nearest_key() {
    let daemon = Daemon::prepare(&[("LISTEN__HOST", "127.0.0.1:1")]);
    let output = daemon.cli(&["check-config"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("did you mean 'CODEX_AUTHD_LISTEN__HOSTS'"), "{said}");
}

#[test]
fn the_openapi_document_is_the_one_checked_in() {
    let daemon = Daemon::prepare(&[]);
    let printed = daemon.cli(&["openapi"]).stdout;
    assert_eq!(String::from_utf8(printed).unwrap(), include_str!("../../openapi/openapi.json"));
}
