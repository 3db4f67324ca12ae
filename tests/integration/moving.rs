//! Migration, backup and restore, with real daemons, a real MariaDB and the command line.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use codex_authd::model::audit::{Actor, AuditNote};
use codex_authd::model::host::HostId;
use codex_authd::records::embedded::Embedded;
use codex_authd::records::mysql::{MySql, Options, Tls};
use codex_authd::records::prelude::*;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::daemon::{BOUND, Daemon, Registered, auth_json, pause};
use crate::support::mariadb::MariaDb;

/// A daemon with a configuration file that may name a database.
struct House {
    daemon: Daemon,
    config: PathBuf,
    _directory: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        let mut daemon = Daemon::prepare(&[("CONFIG", config.to_str().unwrap())]);
        daemon.log_level = Some("info");
        let house = Self { daemon, config, _directory: directory };
        house.lives_in("");
        house
    }

    fn started() -> Self {
        let mut house = Self::new();
        house.daemon.launch();
        house
    }

    /// A daemon with the master key of another one on the same database.
    fn beside(other: &Daemon, url: &str) -> Self {
        let mut house = Self::new();
        house.lives_in(url);
        std::fs::create_dir_all(house.daemon.state_dir()).unwrap();
        std::fs::copy(other.state_dir().join("master.key"), house.daemon.state_dir().join("master.key")).unwrap();
        house.daemon.launch();
        house
    }

    fn lives_in(&self, url: &str) {
        std::fs::write(&self.config, format!("[database]\nurl = \"{url}\"\ntimeout_seconds = 3\n")).unwrap();
    }

    fn restart_in(&mut self, url: &str) {
        assert!(self.daemon.stop().success());
        self.lives_in(url);
        self.daemon.launch();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.state.path().join(name)
    }

    /// Writes the URL of a database into a file, as an operator would.
    fn url_file(&self, url: &str) -> String {
        let path = self.path("url");
        std::fs::write(&path, format!("{url}\n")).unwrap();
        path.display().to_string()
    }

    fn backup(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        self.daemon.cli_json(&["backup", path.to_str().unwrap()]);
        path
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.daemon.cli(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Hosts that have called, an admin's certificate, a login.
async fn furnish(daemon: &Daemon) -> Vec<Registered> {
    let admin = daemon.admin();
    let mut hosts = Vec::new();
    for name in ["a.test", "b.test", "c.test"] {
        let host = daemon.register(&admin, name).await;
        assert_eq!(retrieve(daemon, &host.api_key).await, 200);
        hosts.push(host);
    }
    assert_eq!(upload(daemon, "2026-11-20T12:00:00Z", 1).await.status(), 200);
    hosts
}

fn retrieval() -> Value {
    json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" })
}

pub async fn retrieve(daemon: &Daemon, key: &str) -> StatusCode {
    let body = retrieval();
    let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", key).json(&body);
    call.send().await.unwrap().status()
}

async fn upload(daemon: &Daemon, last_refresh: &str, n: u64) -> reqwest::Response {
    let body = json!({ "auth": auth_json(last_refresh, n) });
    daemon.admin().post(daemon.admin_url("/admin/auth/upload")).json(&body).send().await.unwrap()
}

async fn store(daemon: &Daemon, key: &str, last_refresh: &str, n: u64) -> reqwest::Response {
    let body = json!({ "command": "store", "auth": auth_json(last_refresh, n) });
    daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", key).json(&body).send().await.unwrap()
}

async fn is_refused_standing_still(answer: reqwest::Response) {
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["code"], "stands_still", "{body}");
    assert!(body["message"].as_str().unwrap().contains("codex-authd migrate --abort"), "{body}");
}

pub fn names(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.cli_json(&["hosts", "list"]);
    listed["hosts"].as_array().unwrap().iter().map(|host| host["fqdn"].as_str().unwrap().to_owned()).collect()
}

fn is_intact(daemon: &Daemon) -> u64 {
    let verified = daemon.cli_json(&["audit", "verify"]);
    assert_eq!(verified["intact"], true, "{verified}");
    verified["entries"].as_u64().unwrap()
}

async fn is_ready(daemon: &Daemon) -> bool {
    let asked = daemon.admin().get(daemon.admin_url("/readyz")).send().await;
    asked.is_ok_and(|answer| answer.status() == 200)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        pause();
    }
}

/// Hosts that retrieve continuously.
struct Principal {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Principal {
    fn begin(daemon: &Daemon, hosts: &[Registered]) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let ask = |host: &Registered| {
            // A connection for each call, because a replaced process closes open connections.
            let client = daemon.client_builder().pool_max_idle_per_host(0).build().unwrap();
            let (url, key, stop, asked) =
                (daemon.hosts_url("/auth"), host.api_key.clone(), stop.clone(), asked.clone());
            let body = retrieval();
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    match client.post(&url).header("x-api-key", &key).json(&body).send().await {
                        Ok(answer) if answer.status() == 200 => {}
                        Ok(answer) => failed.push(answer.status().to_string()),
                        Err(error) => failed.push(format!("{error:?}")),
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                }
                failed
            })
        };
        let tasks = hosts.iter().map(ask).collect();
        Self { stop, asked, tasks }
    }

    /// Returns the number of calls; all of them were served.
    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            assert_eq!(task.await.unwrap(), Vec::<String>::new());
        }
        self.asked.load(Ordering::SeqCst)
    }
}

/// Writes so many entries that copying them takes a while. No daemon runs.
pub async fn write_much(daemon: &Daemon) {
    let records = Embedded::open(&daemon.state_dir().join("records")).unwrap();
    let at = time::OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
    let note = AuditNote::new(at, Actor::Daemon, None, "test.note").with("why", "x".repeat(200));
    for _ in 0..10 {
        records.audit_append(&vec![note.clone(); 1000]).await.unwrap();
    }
}

async fn records(url: &str) -> MySql {
    MySql::new(&Options { url: url.into(), tls: Tls::Off, ca: None, connections: 2, timeout: BOUND }).unwrap()
}

fn calls(daemon: &Daemon, name: &str) -> u64 {
    let listed = daemon.cli_json(&["hosts", "list", "--search", name]);
    listed["hosts"][0]["api_calls"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_moves_into_a_database_and_back_and_hosts_are_served_all_the_while() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let mut house = House::started();
    let hosts = furnish(&house.daemon).await;
    assert!(house.daemon.stop().success());
    write_much(&house.daemon).await;
    house.daemon.launch();
    let entries = is_intact(&house.daemon);

    let asking = Principal::begin(&house.daemon, &hosts);
    let moved = house.daemon.cli_json(&["migrate", "--to-file", &house.url_file(&url)]);
    for table in moved["tables"].as_array().unwrap() {
        assert_eq!(table["from"], table["to"], "{table}");
    }
    assert!(moved["to"].as_str().unwrap().starts_with("mysql://localhost/authd"), "{moved}");

    // The old store acknowledges no more changes, and every output says why.
    is_refused_standing_still(store(&house.daemon, &hosts[0].api_key, "2026-11-21T12:00:00Z", 2).await).await;
    is_refused_standing_still(upload(&house.daemon, "2026-11-21T12:00:00Z", 2).await).await;
    let ready = house.daemon.admin().get(house.daemon.admin_url("/readyz")).send().await.unwrap();
    is_refused_standing_still(ready).await;
    let page = house.daemon.admin().get(house.daemon.admin_url("/hosts")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("takes no changes") && page.contains("was moved to mysql://localhost/authd"), "{page}");
    let asked = asking.end().await;
    println!("{asked} retrieves");
    assert!(asked > 0);
    let known = calls(&house.daemon, "a.test");

    // The daemon on the database continues where the other one stopped. Telemetry that waited arrives once.
    house.restart_in(&url);
    assert_eq!(names(&house.daemon), ["a.test", "b.test", "c.test"]);
    assert_eq!(retrieve(&house.daemon, &hosts[1].api_key).await, 200);
    assert!(calls(&house.daemon, "a.test") >= known);
    let database = records(&url).await;
    let counted = async || {
        let mut all = 0;
        for host in &hosts {
            all += database.host_activity(HostId(host.id)).await.unwrap().api_calls;
        }
        all
    };
    let retrieved = asked + hosts.len() as u64;
    until("what waited in the outbox arrives", async || counted().await >= retrieved).await;
    assert!(is_intact(&house.daemon) > entries);
    let stored = store(&house.daemon, &hosts[0].api_key, "2026-11-21T12:00:00Z", 2).await;
    assert_eq!(stored.status(), 200);
    let admin = house.daemon.admin();
    assert_eq!(
        admin.get(house.daemon.admin_url("/admin/hosts")).send().await.unwrap().status(),
        200,
        "an earlier certificate"
    );
    let served = calls(&house.daemon, "a.test");
    // The count may include this host's two stores and the retrieve since; a batch that arrived twice would be many
    // more.
    let counted = counted().await;
    println!("{counted} calls counted of {retrieved} before");
    assert!(counted <= retrieved + 3);

    // Back again. The old embedded store is in the way, and is not changed.
    let refused = house.refused(&["migrate", "--to", "embedded"]);
    assert!(refused.contains("holds something"), "{refused}");
    assert_eq!(
        upload(&house.daemon, "2026-11-22T12:00:00Z", 3).await.status(),
        200,
        "a refused migration changes nothing"
    );
    std::fs::rename(house.daemon.state_dir().join("records"), house.path("left")).unwrap();
    house.daemon.cli_json(&["migrate", "--to", "embedded"]);
    is_refused_standing_still(upload(&house.daemon, "2026-11-23T12:00:00Z", 4).await).await;
    house.restart_in("");
    assert_eq!(names(&house.daemon), ["a.test", "b.test", "c.test"]);
    assert_eq!(retrieve(&house.daemon, &hosts[2].api_key).await, 200);
    until("telemetry arrives", async || calls(&house.daemon, "a.test") >= served).await;
    assert_eq!(house.daemon.cli_json(&["auth", "show"])["version"], 3);
    assert_eq!(upload(&house.daemon, "2026-11-23T12:00:00Z", 4).await.status(), 200);
    is_intact(&house.daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_is_killed_in_the_middle_is_done_again_or_taken_back() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let mut house = House::started();
    let hosts = furnish(&house.daemon).await;
    assert!(house.daemon.stop().success());
    write_much(&house.daemon).await;
    house.daemon.launch();

    let file = house.url_file(&url);
    let mut migrating = house.daemon.command(&["migrate", "--to-file", &file]).spawn().unwrap();
    let database = records(&url).await;
    // Some of the data is in the database.
    until("the migration has begun", async || {
        database.audit_list_from(1, 1).await.is_ok_and(|entries| !entries.is_empty())
    })
    .await;
    house.daemon.kill();
    assert!(!migrating.wait().unwrap().success());
    let left = database.audit_list_from(1, 100_000).await.unwrap().len();
    println!("{left} entries had been copied");
    assert!((1..10_000).contains(&left));
    assert!(matches!(database.state().await, Err(error) if error.to_string().contains("being filled")));

    // No daemon uses the incomplete database.
    let mut other = House::new();
    other.lives_in(&url);
    let output = other.daemon.command(&["serve"]).env("RUST_LOG", "warn").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("being filled"), "{said}");

    // The old store stands still after the crash too, and still serves retrieves.
    house.daemon.launch();
    assert_eq!(retrieve(&house.daemon, &hosts[0].api_key).await, 200);
    is_refused_standing_still(upload(&house.daemon, "2026-11-21T12:00:00Z", 2).await).await;
    assert_eq!(house.daemon.cli_json(&["migrate", "--abort"])["stood_still"], true);
    assert_eq!(upload(&house.daemon, "2026-11-21T12:00:00Z", 2).await.status(), 200);
    assert!(is_ready(&house.daemon).await);
    assert_eq!(house.daemon.cli_json(&["migrate", "--abort"])["stood_still"], false);

    // The configuration names the present store, and the environment the target.
    let output =
        house.daemon.command(&["migrate", "--to", "env"]).env("CODEX_AUTHD_DATABASE__URL", &url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("equal") && !said.contains("NOT EQUAL"), "{said}");
    println!("{said}");
    house.restart_in(&url);
    assert_eq!(house.daemon.cli_json(&["auth", "show"])["version"], 2);
    is_intact(&house.daemon);
    other.daemon.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_fails_lets_the_store_go_on() {
    let mut server = MariaDb::start();
    let url = server.create("authd").await;
    let mut house = House::started();
    furnish(&house.daemon).await;
    assert!(house.daemon.stop().success());
    write_much(&house.daemon).await;
    house.daemon.launch();
    let file = house.url_file(&url);
    let migrating =
        house.daemon.command(&["migrate", "--to-file", &file]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let database = records(&url).await;
    until("it is in the middle", async || {
        database.audit_list_from(1, 1).await.is_ok_and(|entries| !entries.is_empty())
    })
    .await;
    server.freeze();
    let output = migrating.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(upload(&house.daemon, "2026-11-21T12:00:00Z", 2).await.status(), 200);
    assert!(is_ready(&house.daemon).await);
    server.end();

    let nowhere = house.url_file("mysql://authd:canary-password@127.0.0.1:1/authd");
    let refused = house.refused(&["migrate", "--to-file", &nowhere, "--no-database-tls"]);
    assert!(refused.contains("mysql://127.0.0.1:1/authd") && !refused.contains("canary"), "{refused}");
    let refused = house.refused(&["migrate", "--to", "mysql://authd:canary-password@"]);
    assert!(!refused.contains("canary"), "{refused}");
    assert!(!house.daemon.log().contains("canary-password"));
    assert_eq!(upload(&house.daemon, "2026-11-22T12:00:00Z", 3).await.status(), 200);
    assert_eq!(house.daemon.cli(&["migrate"]).status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_put_back_while_the_daemon_runs_and_while_it_does_not() {
    let mut house = House::started();
    let hosts = furnish(&house.daemon).await;
    let backup = house.backup("backup");
    let later = house.daemon.register(&house.daemon.admin(), "later.test").await;
    assert_eq!(retrieve(&house.daemon, &later.api_key).await, 200);
    assert_eq!(upload(&house.daemon, "2026-11-21T12:00:00Z", 2).await.status(), 200);
    let pid = house.daemon.pid();

    let refused = house.refused(&["restore", backup.to_str().unwrap()]);
    assert!(refused.contains("--yes"), "{refused}");
    let asking = Principal::begin(&house.daemon, &hosts);
    house.daemon.cli_json(&["restore", backup.to_str().unwrap(), "--yes"]);
    assert_eq!(names(&house.daemon), ["a.test", "b.test", "c.test"]);
    assert_eq!(house.daemon.cli_json(&["auth", "show"])["version"], 1);
    assert_eq!(retrieve(&house.daemon, &later.api_key).await, 401, "its key is newer than the backup");
    println!("{} retrieves", asking.end().await);
    assert_eq!(house.daemon.pid(), pid);
    is_intact(&house.daemon);
    let newest = house.daemon.cli_json(&["audit", "list", "--action", "state.restore"]);
    assert_eq!(newest["entries"][0]["actor_kind"], "control", "{newest}");
    assert!(newest["entries"][0]["details"]["backup_of"].as_str().is_some(), "{newest}");
    assert_eq!(upload(&house.daemon, "2026-11-22T12:00:00Z", 3).await.status(), 200);
    let before = house.daemon.state_dir().join("before-restore/records");
    assert!(before.is_dir());

    // Without a daemon; and on a machine that has only the backup and the key.
    assert!(house.daemon.stop().success());
    house.daemon.cli_json(&["restore", backup.to_str().unwrap(), "--yes"]);
    assert_eq!(house.daemon.cli_json(&["auth", "show"])["version"], 1);
    let offline = house.backup("offline");
    let mut new = House::new();
    let key = house.daemon.state_dir().join("master.key");
    let refused = new.refused(&["restore", offline.to_str().unwrap(), "--yes"]);
    assert!(refused.contains("--master-key"), "{refused}");
    new.daemon.cli_json(&["restore", offline.to_str().unwrap(), "--yes", "--master-key", key.to_str().unwrap()]);
    new.daemon.launch();
    assert_eq!(names(&new.daemon), ["a.test", "b.test", "c.test"]);
    assert_eq!(retrieve(&new.daemon, &hosts[0].api_key).await, 200);
    is_intact(&new.daemon);

    // Over a running daemon that has its own key.
    let mut third = House::started();
    third.daemon.cli_json(&["restore", offline.to_str().unwrap(), "--yes", "--master-key", key.to_str().unwrap()]);
    assert_eq!(names(&third.daemon), ["a.test", "b.test", "c.test"]);
    assert_eq!(std::fs::read(third.daemon.state_dir().join("master.key")).unwrap(), std::fs::read(&key).unwrap());
    assert!(third.daemon.stop().success());
    third.daemon.launch();
    is_intact(&third.daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_daemons_on_a_database_start_anew_from_a_restored_backup() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let mut house = House::new();
    house.lives_in(&url);
    house.daemon.launch();
    let hosts = furnish(&house.daemon).await;
    let other = House::beside(&house.daemon, &url);
    until("the other one knows the hosts", async || retrieve(&other.daemon, &hosts[0].api_key).await == 200).await;
    let backup = house.backup("backup");
    let later = house.daemon.register(&house.daemon.admin(), "later.test").await;
    until("the other one knows it", async || retrieve(&other.daemon, &later.api_key).await == 200).await;
    let pids = [house.daemon.pid(), other.daemon.pid()];

    let asking = Principal::begin(&other.daemon, &hosts);
    house.daemon.cli_json(&["restore", backup.to_str().unwrap(), "--yes"]);
    until("the other one forgets it", async || retrieve(&other.daemon, &later.api_key).await == 401).await;
    for daemon in [&house.daemon, &other.daemon] {
        until("it is ready", async || is_ready(daemon).await).await;
        assert_eq!(retrieve(daemon, &hosts[1].api_key).await, 200);
        assert_eq!(names(daemon), ["a.test", "b.test", "c.test"]);
    }
    println!("{} retrieves", asking.end().await);
    assert_eq!([house.daemon.pid(), other.daemon.pid()], pids);
    assert_eq!(upload(&other.daemon, "2026-11-22T12:00:00Z", 3).await.status(), 200);
    is_intact(&house.daemon);

    // A backup of a database can be restored into the embedded store of a new machine.
    let mut new = House::new();
    let key = house.daemon.state_dir().join("master.key");
    new.daemon.cli_json(&["restore", backup.to_str().unwrap(), "--yes", "--master-key", key.to_str().unwrap()]);
    new.daemon.launch();
    assert_eq!(names(&new.daemon), ["a.test", "b.test", "c.test"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_was_damaged_is_refused_and_nothing_is_changed() {
    let house = House::started();
    let hosts = furnish(&house.daemon).await;
    let backup = house.backup("backup");
    let later = house.daemon.register(&house.daemon.admin(), "later.test").await;
    assert_eq!(retrieve(&house.daemon, &later.api_key).await, 200);
    let stranger = House::started();
    let foreign_key = stranger.daemon.state_dir().join("master.key");

    // No secret in it is in the clear, and no other user can read it.
    let all = [read(&backup.join("records.jsonl")), read(&backup.join("manifest.json"))].concat();
    let key = std::fs::read_to_string(house.daemon.state_dir().join("master.key")).unwrap();
    let login = auth_json("", 1);
    let secret = |name: &str| login["tokens"][name].as_str().unwrap().to_owned();
    let secrets = [
        key.trim().to_owned(),
        hosts[0].api_key.clone(),
        hosts[0].token.clone(),
        secret("access_token"),
        secret("refresh_token"),
    ];
    for secret in &secrets {
        assert!(!all.contains(secret.as_str()), "{secret}");
    }
    assert!(all.contains("a.test"));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let modes = [mode(&backup), mode(&backup.join("records.jsonl")), mode(&backup.join("manifest.json"))];
    assert_eq!(modes, [0o700, 0o600, 0o600]);

    let text = read(&backup.join("records.jsonl"));
    let manifest = read(&backup.join("manifest.json"));
    let lines: Vec<&str> = text.lines().collect();
    let without = |wanted: &str| {
        let place = lines.iter().position(|line| line.contains(wanted)).unwrap();
        [&lines[..place], &lines[place + 1..]].concat().join("\n") + "\n"
    };
    let damages = [
        ("one byte", text.replacen("a.test", "x.test", 1), manifest.clone(), "digest"),
        ("a missing host", without("c.test"), manifest.clone(), ""),
        ("a missing entry", without("\"audit_log\""), manifest.clone(), "audit log"),
        ("cut off", text[..text.len() - 20].to_owned(), manifest.clone(), ""),
        ("nothing", String::new(), manifest.clone(), ""),
        ("another format", text.clone(), manifest.replace("\"format\": 2", "\"format\": 3"), "format 3"),
        ("no manifest", text.clone(), "{}".into(), "not a backup manifest"),
    ];
    let refuse = |name: &str, directory: &Path, more: &[&str]| {
        let mut arguments = vec!["restore", directory.to_str().unwrap(), "--yes"];
        arguments.extend(more);
        let said = house.refused(&arguments);
        println!("{name}: {said}");
        said
    };
    for (number, (name, rows, manifest, expected)) in damages.iter().enumerate() {
        let directory = house.path(&format!("damaged-{number}"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("records.jsonl"), rows).unwrap();
        std::fs::write(directory.join("manifest.json"), manifest).unwrap();
        assert!(refuse(name, &directory, &[]).contains(expected), "{name}");
    }
    let said = refuse("another master key", &backup, &["--master-key", foreign_key.to_str().unwrap()]);
    assert!(said.contains("does not open this backup"), "{said}");
    let of_stranger = stranger.backup("backup");
    assert!(refuse("another installation's", &of_stranger, &[]).contains("does not open this backup"));

    assert_eq!(names(&house.daemon), ["a.test", "b.test", "c.test", "later.test"]);
    assert_eq!(retrieve(&house.daemon, &later.api_key).await, 200);
    assert_eq!(upload(&house.daemon, "2026-11-22T12:00:00Z", 3).await.status(), 200);
    for left in ["records.restored", "before-restore", "restore.spool", "restored"] {
        assert!(!house.daemon.state_dir().join(left).exists(), "{left}");
    }
    let refused = house.refused(&["backup", backup.to_str().unwrap()]);
    assert!(refused.contains("not empty"), "{refused}");
}

/// A backup of a daemon whose records had no tables of probes and people.
#[tokio::test]
async fn a_backup_from_before_there_were_probes_is_put_back_and_a_row_too_many_is_not() {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/backup-before-probes");
    for table in ["probes", "users", "sessions", "external_identities"] {
        assert!(!read(&made.join("manifest.json")).contains(table));
    }
    let house = House::started();
    furnish(&house.daemon).await;
    let key = house.path("key");
    std::fs::copy(made.join("master.key"), &key).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let restore = |directory: &Path| {
        ["restore", directory.to_str().unwrap(), "--master-key", key.to_str().unwrap(), "--yes"].map(String::from)
    };

    // A table that the manifest does not name must be empty.
    let padded = house.path("padded");
    std::fs::create_dir(&padded).unwrap();
    let probe = json!({ "table": "probes", "row": { "number": 1, "probe": {
        "id": "00000000-0000-0000-0000-000000000000", "node": "00000000-0000-0000-0000-000000000000", "version": 1,
        "trigger": "store", "started_at": "2026-11-26T12:00:00Z", "until": "2026-11-26T12:00:00Z", "outcome": null,
    } } });
    let rows = read(&made.join("records.jsonl"));
    let place = rows.find("{\"table\":\"outbox_positions\"").unwrap();
    std::fs::write(padded.join("records.jsonl"), format!("{}{probe}\n{}", &rows[..place], &rows[place..])).unwrap();
    let manifest: Value = serde_json::from_str(&read(&made.join("manifest.json"))).unwrap();
    let mut counted = manifest.clone();
    counted["rows"] = (manifest["rows"].as_u64().unwrap() + 1).into();
    std::fs::write(padded.join("manifest.json"), counted.to_string()).unwrap();
    let said = house.refused(&restore(&padded).each_ref().map(String::as_str));
    assert!(said.contains("the rows of probes do not have the digest"), "{said}");
    assert_eq!(names(&house.daemon), ["a.test", "b.test", "c.test"]);

    let restored = house.daemon.cli_json(&restore(&made).each_ref().map(String::as_str));
    assert_eq!(
        restored["restored"]["tables"].as_array().unwrap().len(),
        manifest["tables"].as_object().unwrap().len() + 4
    );
    assert_eq!(names(&house.daemon), ["h1.example.test", "h2.example.test"]);
    let history = house.daemon.cli_json(&["auth", "history"]);
    assert_eq!(history["versions"].as_array().unwrap().len(), 1);
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
