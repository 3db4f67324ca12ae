//! Damaged records: the daemon refuses them, changes nothing and names the way out, which works.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::daemon::Daemon;

const PAGE: usize = 4096;

fn records(daemon: &Daemon) -> PathBuf {
    daemon.state_dir().join("records/rows.redb")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A stopped daemon with this many hosts.
async fn with_hosts(count: usize) -> Daemon {
    let mut daemon = Daemon::start();
    let admin = daemon.admin();
    for number in 0..count {
        daemon.register(&admin, &format!("h{number}.test")).await;
    }
    assert!(daemon.stop().success());
    daemon
}

fn names(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.cli_json(&["hosts", "list"]);
    listed["hosts"].as_array().unwrap().iter().map(|host| host["fqdn"].as_str().unwrap().to_owned()).collect()
}

/// Pages that seem to contain rows of hosts.
fn pages_of_hosts(bytes: &[u8]) -> Vec<usize> {
    let of_hosts = |page: &usize| bytes[page * PAGE..(page + 1) * PAGE].windows(6).any(|it| it == b"\"fqdn\"");
    (1..bytes.len() / PAGE).filter(of_hosts).collect()
}

#[tokio::test]
async fn damaged_records_are_refused_with_the_way_out_and_left_as_they_are() {
    let daemon = with_hosts(3).await;
    let good = std::fs::read(records(&daemon)).unwrap();
    let mut flipped = good.clone();
    for page in pages_of_hosts(&good) {
        flipped[page * PAGE + 100] ^= 1;
    }
    let other = tempfile::tempdir().unwrap();
    drop(codex_authd::durable::Store::durable(other.path(), "outbox").unwrap());
    let outbox = std::fs::read(other.path().join("rows.redb")).unwrap();
    let kinds: [(&str, Vec<u8>); 6] = [
        ("flipped bits", flipped),
        ("cut off", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("the outbox", outbox),
        ("text", b"h1.test\n".repeat(1000)),
        ("SQLite", [b"SQLite format 3\0".as_slice(), &[0; 8192]].concat()),
    ];
    for (kind, bytes) in kinds {
        std::fs::write(records(&daemon), &bytes).unwrap();
        for arguments in [&["serve"][..], &["hosts", "list"]] {
            let output = daemon.cli(arguments);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(1), "{kind}: {said}");
            assert!(said.contains("codex-authd restore") && said.contains("records export"), "{kind}: {said}");
            assert!(!said.contains("panicked at"), "{kind}: {said}");
            assert!(std::fs::read(records(&daemon)).unwrap() == bytes, "{kind}");
        }
    }
    // sled's file exists, and the new one does not.
    std::fs::remove_file(records(&daemon)).unwrap();
    std::fs::write(daemon.state_dir().join("records/db"), "of sled").unwrap();
    let output = daemon.cli(&["hosts", "list"]);
    assert!(said(&output).contains("older store"), "{}", said(&output));
    assert!(!records(&daemon).exists());
    std::fs::remove_file(daemon.state_dir().join("records/db")).unwrap();
    std::fs::write(records(&daemon), &good).unwrap();
    assert_eq!(names(&daemon).len(), 3);
}

#[tokio::test]
async fn a_backup_takes_the_place_of_damaged_records() {
    let daemon = with_hosts(3).await;
    let backup = daemon.state.path().join("backup");
    daemon.cli_json(&["backup", text(&backup)]);
    let damaged = b"no store at all".repeat(1000);
    std::fs::write(records(&daemon), &damaged).unwrap();

    // A bad backup changes nothing.
    let rows = std::fs::read(backup.join("records.jsonl")).unwrap();
    std::fs::write(backup.join("records.jsonl"), &rows[..rows.len() - 10]).unwrap();
    assert!(!daemon.cli(&["restore", text(&backup), "--yes"]).status.success());
    assert!(std::fs::read(records(&daemon)).unwrap() == damaged);
    std::fs::write(backup.join("records.jsonl"), &rows).unwrap();

    let output = daemon.cli(&["restore", text(&backup), "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(names(&daemon).len(), 3);
    let entries = std::fs::read_dir(daemon.state_dir()).unwrap().map(|entry| entry.unwrap().path());
    let aside: Vec<PathBuf> = entries.filter(|path| text(path).contains("/records.")).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(text(&aside[0]).contains("records.damaged-"), "{aside:?}");
    assert!(std::fs::read(aside[0].join("rows.redb")).unwrap() == damaged);
}

#[tokio::test]
async fn what_can_be_read_of_damaged_records_is_exported_and_restored() {
    let daemon = with_hosts(60).await;
    let whole = daemon.state.path().join("whole");
    let exported = daemon.cli_json(&["records", "export", text(&whole)]);
    assert_eq!((&exported["status"], &exported["exported"]["hosts"]), (&"ok".into(), &60.into()), "{exported}");
    let verified = daemon.cli_json(&["backup", "--verify", text(&whole)]);
    assert_eq!(verified["status"], "ok");

    let mut bytes = std::fs::read(records(&daemon)).unwrap();
    let pages = pages_of_hosts(&bytes);
    let page = pages[pages.len() / 2];
    bytes[page * PAGE..(page + 1) * PAGE].fill(0xa5);
    std::fs::write(records(&daemon), &bytes).unwrap();
    let part = daemon.state.path().join("part");
    let output = daemon.cli(&["records", "export", text(&part), "--json"]);
    assert!(std::fs::read(records(&daemon)).unwrap() == bytes, "the records were changed");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The page may be an unused one.
    let hosts = answer["exported"]["hosts"].as_u64().unwrap();
    let code = if answer["status"] == "ok" { 0 } else { 3 };
    assert_eq!(output.status.code(), Some(code), "{answer} {}", said(&output));
    assert!(hosts >= 30, "{answer}");
    assert_eq!(answer["restorable"], true, "{answer} {}", said(&output));
    let output = daemon.cli(&["restore", text(&part), "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(names(&daemon).len() as u64, hosts);
    assert!(!daemon.state_dir().join("records.salvage").exists());
}

#[tokio::test]
async fn a_doctor_verifies_the_checksums() {
    let mut daemon = with_hosts(3).await;
    let checks = |daemon: &Daemon| -> Vec<Value> {
        let found: Value = serde_json::from_slice(&daemon.cli(&["doctor", "--json"]).stdout).unwrap();
        found["checks"].as_array().unwrap().clone()
    };
    let of =
        |checks: &[Value], name: &str| checks.iter().find(|check| check["name"] == name).cloned().unwrap_or_default();
    assert_eq!(of(&checks(&daemon), "checksums")["verdict"], "good", "without a daemon");
    daemon.launch();
    assert_eq!(of(&checks(&daemon), "checksums")["verdict"], "good", "by the daemon");
    assert!(daemon.stop().success());
    std::fs::write(records(&daemon), "no store").unwrap();
    let state = of(&checks(&daemon), "state");
    assert!(state["verdict"] == "missing" && state["remedy"].as_str().unwrap().contains("restore"), "{state}");
}

#[tokio::test]
async fn a_damaged_outbox_is_refused_and_moved_away_by_hand() {
    let mut daemon = with_hosts(1).await;
    let outbox = daemon.state_dir().join("outbox");
    let file = outbox.join("rows.redb");
    let good = std::fs::read(&file).unwrap();
    let of_records = std::fs::read(records(&daemon)).unwrap();
    for bytes in [b"text".repeat(2000), Vec::new(), good[..good.len() / 3].to_vec(), of_records] {
        std::fs::write(&file, &bytes).unwrap();
        let output = daemon.cli(&["serve"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot open the outbox") && said.contains(&format!("move {}", text(&outbox))), "{said}");
        assert!(std::fs::read(&file).unwrap() == bytes);
    }
    std::fs::rename(&outbox, daemon.state_dir().join("outbox.away")).unwrap();
    daemon.launch();
    assert_eq!(names(&daemon), ["h0.test"]);
}
