//! A disk that is full or read-only: what needs it is refused, what memory can answer is answered, nothing that was
//! acknowledged is lost, and it is over without anybody's help. On real file systems, mounted for the test alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::support::daemon::{BOUND, Daemon, auth_json};
use crate::support::disk::{Disk, Kind};
use crate::support::documents::canonical_digest;
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
    load.end(daemon, disk).await;
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
    load.end(daemon, disk).await;
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
            assert!(said.contains("on a disk with room"), "it says what to do: {said}");
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

/// Everybody who needs the store is refused, the daemon says why and since when, and logins are served on.
async fn degraded(daemon: &Daemon, load: &Load, reason: &str) {
    let refused = load.refused.load(Ordering::SeqCst);
    until("both a store and a registration are refused", async || load.refused.load(Ordering::SeqCst) > refused + 20)
        .await;
    let client = &load.asking;
    let readiness = client.get(daemon.hosts_url("/readyz")).send().await.unwrap();
    assert_eq!(readiness.status(), 503);
    assert!(readiness.headers().contains_key("retry-after"));
    let readiness: Value = readiness.json().await.unwrap();
    assert_eq!(readiness["code"], "degraded");
    let message = readiness["message"].as_str().unwrap();
    assert!(message.contains("since 20") && message.contains(reason), "{message}");
    assert!(!message.contains(daemon.state_dir().to_str().unwrap()), "hosts need not know where: {message}");
    assert_eq!(client.get(daemon.hosts_url("/healthz")).send().await.unwrap().status(), 200);
    let retrieved = load.retrieved.load(Ordering::SeqCst);
    until("logins are served on", async || load.retrieved.load(Ordering::SeqCst) > retrieved + 100).await;
    let log = daemon.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("event=degraded")).collect();
    let last = told.last().expect("the log tells of it");
    assert!(last.contains(daemon.state_dir().to_str().unwrap()) && last.contains("free space"), "{last}");
    assert!(told.len() <= 4, "once, and then every minute: {told:#?}");
    let answered = log.lines().filter(|line| line.contains("was answered 503")).count();
    assert_eq!(answered, 0, "and not for every call");
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

/// Several clients of each kind, until they are told to stop.
struct Load {
    /// Made while the disk was well: it holds what is to be trusted.
    asking: Client,
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    registered: AtomicU64,
    stored: AtomicU64,
    retrieved: AtomicU64,
    refused: AtomicU64,
    /// Connections that ended without an answer. None may be refused, but the one process may hang up on a call.
    cut: AtomicU64,
    /// The daemon is told to stop.
    cut_is_expected: AtomicBool,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    hosts: Vec<(String, String)>,
    versions: Vec<String>,
}

impl std::ops::Deref for Load {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Load {
    async fn begin(daemon: &Daemon) -> Self {
        let shared = Arc::new(Shared::default());
        let admin = daemon.admin();
        let mut keys = Vec::new();
        for number in 0..6 {
            let name = format!("first-{number}.test");
            let key = daemon.register(&admin, &name).await.api_key;
            shared.ledger.lock().await.hosts.push((name, key.clone()));
            keys.push(key);
        }
        // Each is bound to its address: that takes the store.
        for key in &keys {
            let url = daemon.hosts_url("/auth");
            assert!(
                shared.answer(unpooled(daemon).post(url).header("x-api-key", key).json(&retrieval())).await.is_some()
            );
        }
        let mut clients = JoinSet::new();
        let instants = Arc::new(AtomicU64::new(1));
        for (number, key) in keys.into_iter().enumerate() {
            let (client, url, shared) = (unpooled(daemon), daemon.hosts_url("/auth"), shared.clone());
            if number < 2 {
                clients.spawn(keep_storing(client, url, key, instants.clone(), shared));
            } else {
                clients.spawn(keep_retrieving(client, url, key, shared));
            }
        }
        for number in 0..2 {
            let (client, url) = (daemon.admin(), daemon.admin_url("/admin/hosts/register"));
            clients.spawn(keep_registering(client, url, format!("r{number}"), shared.clone()));
        }
        Self { asking: unpooled(daemon), clients, shared }
    }

    async fn until_all_go_well(&self, when: &str) {
        let done = || [&self.registered, &self.stored, &self.retrieved].map(|count| count.load(Ordering::SeqCst));
        let before = done();
        until(&format!("every kind of call succeeds {when}"), async || {
            done().iter().zip(before).all(|(now, before)| *now > before + 5)
        })
        .await;
    }

    fn told(&self) -> String {
        let [registered, stored, retrieved, refused, cut] =
            [&self.registered, &self.stored, &self.retrieved, &self.refused, &self.cut]
                .map(|n| n.load(Ordering::SeqCst));
        format!("{registered} registrations, {stored} stores, {retrieved} retrieves, {refused} times 503, {cut} cut")
    }

    /// What was acknowledged is there, once, after a kill -9.
    async fn end(mut self, mut daemon: Daemon, disk: Disk) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        daemon.kill();
        // A runtime of its own within.
        let state = daemon.state_dir();
        let within = std::thread::spawn(move || look_within(&state)).join().unwrap();
        let ledger = self.ledger.lock().await;
        for (name, key) in &ledger.hosts {
            assert_eq!(within.hosts.get(name), Some(key), "{name} is lost or has another key");
        }
        let stored: BTreeSet<&String> = within.versions.iter().collect();
        assert_eq!(stored.len(), within.versions.len(), "a version is there twice");
        for digest in &ledger.versions {
            assert!(stored.contains(digest), "the version {digest} is lost");
        }
        assert!(self.cut.load(Ordering::SeqCst) < 20, "{}", self.told());
        drop(disk);
    }
}

async fn keep_registering(client: Client, url: String, prefix: String, shared: Arc<Shared>) {
    for number in 0u64.. {
        let name = format!("{prefix}-{number}.test");
        if let Some(data) = shared.answer(client.post(&url).json(&json!({ "fqdn": name }))).await {
            let key = data["host"]["api_key"].as_str().unwrap().to_owned();
            shared.ledger.lock().await.hosts.push((name, key));
            shared.registered.fetch_add(1, Ordering::SeqCst);
        }
        if shared.paused().await {
            return;
        }
    }
}

async fn keep_storing(client: Client, url: String, key: String, instants: Arc<AtomicU64>, shared: Arc<Shared>) {
    loop {
        let n = instants.fetch_add(1, Ordering::SeqCst);
        let login = auth_json(&format!("2025-11-20T09:27:43.{n:09}Z"), n);
        let digest = canonical_digest(&login);
        let body = json!({ "command": "store", "auth": login });
        if let Some(data) = shared.answer(client.post(&url).header("x-api-key", &key).json(&body)).await {
            match data["status"].as_str() {
                Some("updated") => {
                    shared.ledger.lock().await.versions.push(digest);
                    shared.stored.fetch_add(1, Ordering::SeqCst);
                }
                Some("outdated") => {}
                other => panic!("{other:?}"),
            }
        }
        if shared.paused().await {
            return;
        }
    }
}

fn retrieval() -> Value {
    json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" })
}

/// Of a retrieve nothing but success is expected, once the host is bound.
async fn keep_retrieving(client: Client, url: String, key: String, shared: Arc<Shared>) {
    loop {
        let request = client.post(&url).header("x-api-key", &key).json(&retrieval());
        if let Some((status, data)) = shared.send(request).await {
            assert_eq!(status, 200, "a login was not served: {data}");
            shared.retrieved.fetch_add(1, Ordering::SeqCst);
        }
        if shared.paused().await {
            return;
        }
    }
}

impl Shared {
    /// `None`: refused for the store's sake, or cut.
    async fn answer(&self, request: reqwest::RequestBuilder) -> Option<Value> {
        let (status, mut body) = self.send(request).await?;
        if status == 503 {
            assert_eq!(body["code"], "unavailable", "{body}");
            self.refused.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        assert_eq!(status, 200, "{body}");
        Some(body["data"].take())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Option<(StatusCode, Value)> {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let stopping = self.cut_is_expected.load(Ordering::SeqCst);
                assert!(!refused(&error) || stopping, "a connection was refused: {error:?}");
                assert!(!error.is_timeout(), "a call was never answered");
                self.cut.fetch_add(1, Ordering::SeqCst);
                return None;
            }
        };
        let status = answer.status();
        if status == 503 {
            assert!(answer.headers().contains_key("retry-after"));
        }
        let Ok(body) = answer.bytes().await else {
            self.cut.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        Some((status, serde_json::from_slice(&body).unwrap()))
    }

    /// A moment between calls; `true` when it is enough.
    async fn paused(&self) -> bool {
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.stop.load(Ordering::SeqCst)
    }
}

fn refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Each call on a connection of its own.
fn unpooled(daemon: &Daemon) -> Client {
    daemon.client_builder().pool_max_idle_per_host(0).build().unwrap()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < 2 * BOUND, "not within {:?}: {what}", 2 * BOUND);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
