//! A disk that is full or read-only. Calls that need it are refused, and calls that memory can answer are answered. No
//! acknowledged change is lost, and the daemon recovers by itself. The file systems are real, and mounted only for the
//! test.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::disk::{Disk, Kind};
use crate::support::load::{Load, until};
use crate::support::within::look_within;

const MEGABYTES: u64 = 48;

#[tokio::test]
async fn a_full_tmpfs_is_over_when_there_is_room_again() {
    a_full_disk(Kind::Tmpfs).await;
}

#[tokio::test]
async fn a_full_ext4_is_over_when_there_is_room_again() {
    a_full_disk(Kind::Ext4).await;
}

async fn a_full_disk(kind: Kind) {
    let mut daemon = prepare();
    let Some(disk) = Disk::mount(kind, &daemon.state_dir(), MEGABYTES) else { return };
    daemon.launch();
    let load = Load::begin(&daemon).await;
    load.until_all_go_well("at first").await;
    for round in 1..=2 {
        let balloon = disk.fill();
        degraded(&daemon, &load, "No space left").await;
        std::fs::remove_file(balloon).unwrap();
        recovered(&daemon, &load).await;
        println!("{kind:?}: full and over, {round}: {}", load.told());
    }
    end(load, daemon, disk).await;
}

#[tokio::test]
async fn a_disk_that_went_read_only_is_over_when_a_repaired_one_is_there() {
    let mut daemon = prepare();
    let Some(disk) = Disk::mount(Kind::Ext4, &daemon.state_dir(), MEGABYTES) else { return };
    daemon.launch();
    let load = Load::begin(&daemon).await;
    load.until_all_go_well("at first").await;
    disk.break_down();
    degraded(&daemon, &load, "Read-only").await;
    disk.replace_by_a_repaired_copy();
    recovered(&daemon, &load).await;
    println!("read-only and over: {}", load.told());
    end(load, daemon, disk).await;
}

#[tokio::test]
async fn a_daemon_whose_disk_is_full_stops_when_it_is_told() {
    let mut daemon = prepare();
    let Some(disk) = Disk::mount(Kind::Tmpfs, &daemon.state_dir(), MEGABYTES) else { return };
    daemon.launch();
    let load = Load::begin(&daemon).await;
    disk.fill();
    degraded(&daemon, &load, "No space left").await;
    load.cut_is_expected.store(true, Ordering::SeqCst);
    assert!(daemon.stop().success());
    drop(disk);
}

#[test]
fn a_start_on_a_full_or_read_only_disk_says_so_in_one_sentence() {
    let daemon = prepare();
    let Some(disk) = Disk::mount(Kind::Ext4, &daemon.state_dir(), MEGABYTES) else { return };
    daemon.cli_json(&["hosts", "add", "a.test"]);
    let refused = |reason: &str| {
        for arguments in [&["serve"][..], &["hosts", "list"], &["hosts", "add", "b.test"]] {
            let output = daemon.command(arguments).env("RUST_LOG", "warn").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            assert_eq!(said.trim_end().lines().count(), 1, "{said}");
            assert!(said.contains(daemon.state_dir().to_str().unwrap()) && said.contains(reason), "{said}");
            assert!(said.contains("have free disk space"), "it says what to do: {said}");
        }
    };
    let balloon = disk.fill();
    refused("No space left");
    std::fs::remove_file(balloon).unwrap();
    disk.remount_read_only(true);
    refused("Read-only");
    disk.remount_read_only(false);
    assert_eq!(daemon.cli_json(&["hosts", "list"])["hosts"][0]["fqdn"], "a.test");
}

fn prepare() -> Daemon {
    let mut daemon = Daemon::prepare(&[]);
    daemon.log_level = Some("info");
    daemon
}

/// Every call that needs the store is refused, the daemon says why and since when, and logins are still served.
async fn degraded(daemon: &Daemon, load: &Load, reason: &str) {
    let refused = load.refused();
    until("both a store and a registration are refused", async || load.refused() > refused + 20).await;
    let client = &load.asking;
    let readiness = client.get(daemon.hosts_url("/readyz")).send().await.unwrap();
    assert_eq!(readiness.status(), 503);
    assert!(readiness.headers().contains_key("retry-after"));
    let readiness: Value = readiness.json().await.unwrap();
    assert_eq!(readiness["code"], "degraded");
    let message = readiness["message"].as_str().unwrap();
    assert!(message.contains("since 20") && message.contains(reason), "{message}");
    assert!(!message.contains(daemon.state_dir().to_str().unwrap()), "the message shows the path to hosts: {message}");
    assert_eq!(client.get(daemon.hosts_url("/healthz")).send().await.unwrap().status(), 200);
    let retrieved = load.retrieved();
    until("logins are served on", async || load.retrieved() > retrieved + 100).await;
    let log = daemon.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("event=degraded")).collect();
    let last = told.last().expect("the log has the event");
    assert!(last.contains(daemon.state_dir().to_str().unwrap()) && last.contains("free space"), "{last}");
    assert!(told.len() <= 4, "the log repeats it more than once a minute: {told:#?}");
    let answered = log.lines().filter(|line| line.contains("was answered 503")).count();
    assert_eq!(answered, 0, "the log has a line for every call");
}

/// Stores and registrations succeed again in the same process id.
async fn recovered(daemon: &Daemon, load: &Load) {
    let client = &load.asking;
    until(
        "it is ready again",
        async || matches!(client.get(daemon.hosts_url("/readyz")).send().await, Ok(answer) if answer.status() == 200),
    )
    .await;
    load.until_all_go_well("after it").await;
    let lock = std::fs::read_to_string(daemon.state_dir().join("daemon.lock")).unwrap();
    assert_eq!(lock.trim(), daemon.pid().to_string());
}

/// Every acknowledged change is there, once, after a kill -9.
async fn end(mut load: Load, mut daemon: Daemon, disk: Disk) {
    let ledger = load.end().await;
    daemon.kill();
    // Opens the records on another thread, because it has its own runtime.
    let state = daemon.state_dir();
    let within = std::thread::spawn(move || look_within(&state)).join().unwrap();
    for (name, key) in &ledger.hosts {
        assert_eq!(within.hosts.get(name), Some(key), "{name} is lost or has another key");
    }
    let stored: BTreeSet<&String> = within.versions.iter().collect();
    assert_eq!(stored.len(), within.versions.len(), "a version is stored twice");
    for digest in &ledger.versions {
        assert!(stored.contains(digest), "the version {digest} is lost");
    }
    drop(disk);
}
