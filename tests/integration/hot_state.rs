//! Hot state that is lost, damaged, or perhaps older than a power cut: the daemon starts, and loses nothing.

use std::path::Path;
use std::process::Command;

use codex_authd::durable::Store;
use codex_authd::hot::{CACHE, OUTBOX};
use codex_authd::model::host::HostId;
use codex_authd::records::embedded::Embedded;
use codex_authd::records::prelude::*;
use reqwest::Client;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, Registered, auth_json};
use crate::support::skip::skipped;

/// A daemon with hosts in each state, which have called.
struct Fleet {
    daemon: Daemon,
    kept: Vec<Registered>,
    disabled: Registered,
    removed: Registered,
    /// Calls of the first host that were answered 200.
    calls: u64,
}

impl Fleet {
    async fn start() -> Self {
        let mut daemon = Daemon::prepare(&[]);
        daemon.log_level = Some("info");
        daemon.launch();
        let admin = daemon.admin();
        let login = json!({ "auth": auth_json("2025-11-20T09:27:43Z", 1) });
        let upload = admin.post(daemon.admin_url("/admin/auth/upload")).json(&login).send().await.unwrap();
        assert_eq!(upload.status(), 200);
        let mut hosts = Vec::new();
        for n in 0..6 {
            hosts.push(daemon.register(&admin, &format!("h{n}.test")).await);
        }
        let (disabled, removed) = (hosts.pop().unwrap(), hosts.pop().unwrap());
        let mut fleet = Self { daemon, kept: hosts, disabled, removed, calls: 0 };
        for host in [&fleet.disabled, &fleet.removed] {
            assert_eq!(fleet.status_of(&fleet.daemon.client(), host).await, 200);
        }
        fleet.daemon.cli_json(&["hosts", "disable", "h5.test"]);
        fleet.daemon.cli_json(&["hosts", "remove", "h4.test"]);
        fleet.is_served().await;
        fleet
    }

    async fn status_of(&self, client: &Client, host: &Registered) -> u16 {
        let asked = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
        let call = client.post(self.daemon.hosts_url("/auth")).header("x-api-key", &host.api_key);
        call.json(&asked).send().await.unwrap().status().as_u16()
    }

    /// From the start on, exactly the permitted hosts are served.
    async fn is_served(&mut self) {
        let client = self.daemon.client();
        for host in &self.kept {
            assert_eq!(self.status_of(&client, host).await, 200);
        }
        self.calls += 1;
        assert_eq!(self.status_of(&client, &self.disabled).await, 403);
        assert_eq!(self.status_of(&client, &self.removed).await, 401);
    }

    fn cache(&self) -> std::path::PathBuf {
        self.daemon.state_dir().join(CACHE)
    }

    /// The daemon has found the damage, and reports it everywhere.
    async fn tells(&self) {
        let log = self.daemon.log();
        assert!(log.contains("event=hot_state_set_aside"), "{log}");
        let admin = self.daemon.admin();
        let metrics = admin.get(self.daemon.admin_url("/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("\ncodex_authd_hot_state_set_aside 1\n"), "{metrics}");
        let output = self.daemon.cli(&["doctor", "--json"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = found["checks"].as_array().unwrap();
        let told = checks.iter().filter(|check| check["name"] == "hot state").collect::<Vec<_>>();
        assert_eq!(told.len(), 1, "{found}");
        assert!(told[0]["found"].as_str().unwrap().contains("hot.broken-20"), "{found}");
    }

    /// Every answered call is counted once.
    async fn end_counted(mut self) {
        self.daemon.stop();
        let records = Embedded::open(&self.daemon.state_dir().join("records")).unwrap();
        let activity = records.host_activity(HostId(self.kept[0].id)).await.unwrap();
        assert_eq!(activity.api_calls, self.calls);
    }
}

/// Damages the state directory, or the cache in it.
type Damage = fn(&Path, &Path);

fn truncate(path: &Path, length: u64) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn leave(state_dir: &Path, row: &str) {
    let outbox = Store::durable(&state_dir.join(OUTBOX), OUTBOX).unwrap();
    let written = outbox.write::<_, codex_authd::durable::DurableError>(|staged| {
        staged.insert("cache", row);
        Ok(())
    });
    written.unwrap();
    outbox.commit_blocking().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_hot_state_is_set_aside_and_nothing_is_lost() {
    let mut fleet = Fleet::start().await;
    let damages: [(&str, Damage); 5] = [
        ("the log is cut in half", |_, cache| {
            let length = std::fs::metadata(cache.join("db")).unwrap().len();
            truncate(&cache.join("db"), length / 2);
        }),
        ("the log is empty", |_, cache| truncate(&cache.join("db"), 0)),
        ("the log is something else", |_, cache| std::fs::write(cache.join("db"), vec![0x5a; 1 << 20]).unwrap()),
        ("a bit in every page is flipped", |_, cache| {
            let mut log = std::fs::read(cache.join("db")).unwrap();
            log.iter_mut().step_by(509).for_each(|byte| *byte ^= 1);
            std::fs::write(cache.join("db"), log).unwrap();
        }),
        ("the last process ended while it opened it", |state, _| {
            leave(state, r#"{"boot":null,"state":"opening"}"#);
        }),
    ];
    for (name, damage) in damages {
        println!("{name}");
        assert!(fleet.daemon.stop().success());
        damage(&fleet.daemon.state_dir(), &fleet.cache());
        std::fs::remove_file(fleet.daemon.log_file()).unwrap();
        fleet.daemon.launch();
        fleet.is_served().await;
        fleet.tells().await;
    }
    fleet.end_counted().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_state_that_was_removed_is_built_anew() {
    let mut fleet = Fleet::start().await;
    for _ in 0..2 {
        assert!(fleet.daemon.stop().success());
        std::fs::remove_dir_all(fleet.cache()).unwrap();
        fleet.daemon.launch();
        fleet.is_served().await;
        assert!(!fleet.daemon.log().contains("event=hot_state_set_aside"));
    }
    fleet.end_counted().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_state_is_used_after_a_kill_and_not_after_another_boot_of_the_machine() {
    let can = Command::new("unshare").args(["--mount", "true"]).output();
    if !can.is_ok_and(|done| done.status.success()) {
        return skipped("no mount namespace of the test's own");
    }
    let mut fleet = Fleet::start().await;
    fleet.daemon.kill();
    fleet.daemon.launch();
    fleet.is_served().await;
    let log = fleet.daemon.log();
    assert!(!log.contains("event=hot_state_discarded") && !log.contains("event=hot_state_set_aside"), "{log}");

    fleet.daemon.kill();
    let boot = fleet.daemon.state.path().join("boot_id");
    std::fs::write(&boot, "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f\n").unwrap();
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", boot.display());
    fleet.daemon.within = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(String::from).into();
    fleet.daemon.launch();
    fleet.is_served().await;
    assert!(fleet.daemon.log().contains("event=hot_state_discarded"), "{}", fleet.daemon.log());
    assert!(fleet.daemon.stop().success());

    // Hot state was closed: closed state survives a power cut.
    fleet.daemon.within.clear();
    std::fs::remove_file(fleet.daemon.log_file()).unwrap();
    fleet.daemon.launch();
    fleet.is_served().await;
    let log = fleet.daemon.log();
    assert!(!log.contains("event=hot_state_discarded") && !log.contains("event=hot_state_set_aside"), "{log}");
}
