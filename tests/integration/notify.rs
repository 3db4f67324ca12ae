//! The messages to the service manager, on a socket of the test.

use std::net::TcpListener;

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};

use crate::support::daemon::{BOUND, Daemon, auth_json, pause};
use crate::support::disk::{Disk, Kind};
use crate::support::manager::Manager;

#[test]
fn a_start_a_reload_and_a_stop_are_told_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("own.crt"), directory.path().join("own.key"));
    let pair = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&pair).unwrap();
    std::fs::write(&certificate, made.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let manager = Manager::new();
    let mut daemon = Daemon::prepare(&[
        ("TLS__CERTIFICATE", certificate.to_str().unwrap()),
        ("TLS__PRIVATE_KEY", key.to_str().unwrap()),
    ]);
    manager.manage(&mut daemon, None);
    daemon.launch();
    let (extended, _) = manager.wait(0, "EXTEND_TIMEOUT_USEC=30000000");
    let (ready, message) = manager.wait(0, "READY=1");
    assert!(extended < ready);
    assert!(message.contains("STATUS=0 hosts, no login yet"), "{message}");

    // The status follows changes.
    let login = directory.path().join("auth.json");
    std::fs::write(&login, auth_json("2025-11-20T09:27:43.373506211Z", 1).to_string()).unwrap();
    daemon.cli_json(&["auth", "upload", login.to_str().unwrap()]);
    daemon.cli_json(&["hosts", "add", "h.test"]);
    let (mut at, _) = manager.wait(ready, "STATUS=1 host, login version 1");

    // A successful reload, a failed one, and another successful one.
    let good = std::fs::read(&key).unwrap();
    for (content, wanted) in [
        (good.as_slice(), "STATUS=1 host, login version 1\n"),
        (b"no key", "the last reload failed, the certificates in force stay"),
        (good.as_slice(), "STATUS=1 host, login version 1\n"),
    ] {
        std::fs::write(&key, content).unwrap();
        daemon.signal(Signal::SIGHUP);
        let (reloading, message) = manager.wait(at + 1, "RELOADING=1");
        let clock =
            message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("the message has the clock");
        assert!(clock.parse::<u64>().unwrap() > 0, "{message}");
        let (ready, message) = manager.wait(reloading, "READY=1");
        assert!(message.contains(wanted), "{message}");
        at = ready;
    }
    assert!(daemon.stop().success());
    let (_, message) = manager.wait(at, "STOPPING=1");
    assert!(message.contains("STATUS=stopping"), "{message}");
    let told = manager.told();
    assert!(told.last().unwrap().contains("STOPPING=1"), "no message follows it: {told:#?}");
    assert!(
        told.iter().all(|message| !message.contains("WATCHDOG=1") || message.contains("EXTEND")),
        "pings were not requested"
    );
}

#[test]
fn pings_come_while_it_works_and_none_while_it_is_held_up() {
    let manager = Manager::new();
    let mut daemon = Daemon::prepare(&[]);
    manager.manage(&mut daemon, Some(400_000));
    daemon.launch();
    let (ready, _) = manager.wait(0, "READY=1");
    let mut at = ready;
    for _ in 0..5 {
        at = manager.wait(at + 1, "WATCHDOG=1").0;
    }
    // The unit tests of the pings cover a stuck runtime. Here the whole process is stopped.
    daemon.signal(Signal::SIGSTOP);
    let begun = std::time::Instant::now();
    let mut before = manager.told().len();
    while begun.elapsed().as_millis() < 1000 {
        // Messages that were under way.
        if begun.elapsed().as_millis() < 200 {
            before = manager.told().len();
        }
        pause();
    }
    assert_eq!(manager.told().len(), before);
    daemon.signal(Signal::SIGCONT);
    manager.wait(before, "WATCHDOG=1");
    assert!(daemon.stop().success());
}

#[test]
fn a_store_that_fails_gets_nobody_killed_and_the_successor_goes_on_telling() {
    let manager = Manager::new();
    let mut daemon = Daemon::prepare(&[]);
    let Some(disk) = Disk::mount(Kind::Tmpfs, &daemon.state_dir(), 48) else { return };
    manager.manage(&mut daemon, Some(1_000_000));
    daemon.launch();
    let (first, _) = manager.wait(0, "READY=1");
    let pid = daemon.pid();
    let balloon = disk.fill();
    // A change that must be written.
    let begun = std::time::Instant::now();
    while daemon.cli(&["hosts", "add", "--rotate", "h.test"]).status.success() {
        assert!(begun.elapsed() < BOUND, "the disk is not full");
    }
    let (degraded, message) = manager.wait(first, "STATUS=degraded since ");
    assert!(message.contains("could not be written"), "{message}");
    let mut at = degraded;
    for _ in 0..4 {
        at = manager.wait(at + 1, "WATCHDOG=1").0;
    }
    std::fs::remove_file(balloon).unwrap();
    let (again, _) = manager.wait(at, "READY=1");
    for _ in 0..3 {
        at = manager.wait(again.max(at) + 1, "WATCHDOG=1").0;
    }
    assert_eq!(daemon.pid(), pid);
    assert!(daemon.stop().success(), "the started process does not end successfully");
}

#[test]
fn a_database_that_does_not_answer_holds_up_the_start_with_the_managers_patience() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mysql://authd@127.0.0.1:{}/authd", silent.local_addr().unwrap().port());
    let manager = Manager::new();
    let mut daemon = Daemon::prepare(&[("DATABASE__URL", &url), ("DATABASE__TIMEOUT_SECONDS", "6")]);
    manager.manage(&mut daemon, None);
    let output = daemon.cli(&["serve"]);
    assert_eq!(output.status.code(), Some(1), "it started without any state");
    let told = manager.told();
    assert!(told.iter().filter(|message| message.contains("EXTEND_TIMEOUT_USEC")).count() > 1, "{told:#?}");
    assert!(told.iter().any(|message| message.contains("STATUS=starting: connecting to the database")), "{told:#?}");
    assert!(!told.iter().any(|message| message.contains("READY=1")), "{told:#?}");
}
