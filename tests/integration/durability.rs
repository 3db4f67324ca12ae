//! Every acknowledged change survives a kill at any time; and many calls at once are all answered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::support::daemon::{Daemon, auth_json};
use crate::support::documents::canonical_digest;
use crate::support::within::look_within;

const ROUNDS: u64 = 15;
const STORING: u64 = 8;
const REGISTERING: u64 = 8;
/// A call that waits longer for an answer is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// The acknowledged changes.
#[derive(Default)]
struct Ledger {
    /// Name and key, in the order of the answers.
    hosts: Vec<(String, String)>,
    /// Digests.
    versions: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_acknowledged_survives_kill_9_under_load() {
    let begun = Instant::now();
    let mut daemon = start();
    daemon.admin_certificate("tester");
    let storing = register_all(&daemon, (0..STORING).map(|n| format!("storing-{n}.test"))).await;
    let ledger = Arc::new(Mutex::new(Ledger { hosts: storing.clone(), versions: Vec::new() }));
    let instants = Arc::new(AtomicU64::new(0));
    let (mut hosts, mut versions) = (0, 0);
    for round in 0..ROUNDS {
        let mut clients = JoinSet::new();
        for (_, key) in &storing {
            let (client, url) = (daemon.client(), daemon.hosts_url("/auth"));
            clients.spawn(keep_storing(client, url, key.clone(), instants.clone(), ledger.clone()));
        }
        for number in 0..REGISTERING {
            let (client, url) = (daemon.admin(), daemon.admin_url("/admin/hosts/register"));
            clients.spawn(keep_registering(client, url, format!("r{round}-{number}"), ledger.clone()));
        }
        // From a few acknowledgements to a few hundred.
        let enough = [1, 150, 12, 60, 300][round as usize % 5];
        until(|| async {
            let ledger = ledger.lock().await;
            ledger.hosts.len() - hosts + ledger.versions.len() - versions > enough
        })
        .await;
        daemon.kill();
        // Each client ends at its first call without an answer; everything answered before is in the ledger.
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        daemon.launch();
        let ledger = ledger.lock().await;
        check(&daemon, &ledger, hosts, versions).await;
        (hosts, versions) = (ledger.hosts.len(), ledger.versions.len());
    }
    daemon.kill();

    let ledger = ledger.lock().await;
    // This also checks that no name is there twice, and that the versions have no gap.
    let state = daemon.state_dir();
    let within = tokio::task::spawn_blocking(move || look_within(&state)).await.unwrap();
    for (name, key) in &ledger.hosts {
        assert_eq!(within.hosts.get(name), Some(key), "{name} is lost or has another key");
    }
    let stored: BTreeSet<&String> = within.versions.iter().collect();
    assert_eq!(stored.len(), within.versions.len(), "a version is stored twice");
    for digest in &ledger.versions {
        assert!(stored.contains(digest), "the version {digest} is lost");
    }
    println!(
        "{ROUNDS} kills in {:.0?}: {} registrations and {} stores were acknowledged, {} and {} are there",
        begun.elapsed(),
        ledger.hosts.len(),
        ledger.versions.len(),
        within.hosts.len(),
        within.versions.len()
    );
    assert!(ledger.hosts.len() > 200 && ledger.versions.len() > 100, "too few changes");
}

/// Every change acknowledged since the last kill is there, and works.
async fn check(daemon: &Daemon, ledger: &Ledger, hosts: usize, versions: usize) {
    let admin = daemon.admin();
    let listed = hosts_of(&admin, daemon).await;
    let names: Vec<&str> = each(&listed, "fqdn");
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), unique.len(), "a name is listed twice");
    for (name, _) in &ledger.hosts {
        assert!(unique.contains(name.as_str()), "{name} is lost");
    }
    let client = daemon.client();
    for (name, key) in &ledger.hosts[hosts..] {
        let answer = client.get(daemon.hosts_url("/wrapper/download")).header("x-api-key", key).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{name} is refused");
        assert!(answer.text().await.unwrap().contains(key), "{name} has another key in its wrapper");
    }
    let history = get(&admin, &daemon.admin_url("/admin/auth/history?limit=1000")).await;
    let stored: BTreeSet<&str> = each(&history["versions"], "digest").into_iter().collect();
    for digest in &ledger.versions[versions..] {
        assert!(stored.contains(digest.as_str()), "the version {digest} is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_writers_at_once_are_all_answered_and_none_is_stuck() {
    let minute = std::env::var("AUTHD_LONG_TESTS").is_ok_and(|value| value == "1");
    let daemon = start();
    let end = Instant::now() + Duration::from_secs(if minute { 60 } else { 10 });
    let mut writers = JoinSet::new();
    for writer in 0..64 {
        let (client, url) = (daemon.admin(), daemon.admin_url("/admin/hosts/register"));
        writers.spawn(async move {
            let (mut written, mut longest) = (0u64, Duration::ZERO);
            while Instant::now() < end {
                let asked = Instant::now();
                let body = json!({ "fqdn": format!("w{writer}-{written}.test") });
                let answer = tokio::time::timeout(STUCK, client.post(&url).json(&body).send()).await;
                let answer = answer.expect("a writer is stuck").unwrap();
                assert_eq!(answer.status(), 200);
                answer.bytes().await.unwrap();
                longest = longest.max(asked.elapsed());
                written += 1;
            }
            (written, longest)
        });
    }
    let (mut all, mut longest) = (0, Duration::ZERO);
    while let Some(writer) = writers.join_next().await {
        let (written, slowest) = writer.unwrap();
        assert!(written > 0, "a writer never got a turn");
        (all, longest) = (all + written, longest.max(slowest));
    }
    println!("64 writers: {all} registrations, the slowest answer after {longest:.0?}");
    let client = daemon.client();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(client.get(daemon.hosts_url(path)).send().await.unwrap().status(), 200, "{path}");
    }
    assert_eq!(each(&hosts_of(&daemon.admin(), &daemon).await, "fqdn").len() as u64, all);
}

/// Not with the highest log level, which would take most of the time.
fn start() -> Daemon {
    let mut daemon = Daemon::prepare(&[]);
    daemon.log_level = Some("info");
    daemon.launch();
    daemon
}

/// Stores newer and newer logins until the daemon is gone.
async fn keep_storing(client: Client, url: String, key: String, instants: Arc<AtomicU64>, ledger: Arc<Mutex<Ledger>>) {
    loop {
        let n = instants.fetch_add(1, Ordering::SeqCst);
        let instant = format!("2025-11-20T09:27:43.{n:09}Z");
        let login = auth_json(&instant, n);
        let digest = canonical_digest(&login);
        let body = json!({ "command": "store", "auth": login });
        let Some(answer) = answered(client.post(&url).header("x-api-key", &key).json(&body)).await else { return };
        match answer["status"].as_str() {
            Some("updated") => ledger.lock().await.versions.push(digest),
            Some("outdated") => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Registers new names until the daemon is gone.
async fn keep_registering(client: Client, url: String, prefix: String, ledger: Arc<Mutex<Ledger>>) {
    for number in 0u64.. {
        let name = format!("{prefix}-{number}.test");
        let Some(answer) = answered(client.post(&url).json(&json!({ "fqdn": name }))).await else { return };
        let key = answer["host"]["api_key"].as_str().unwrap().to_owned();
        ledger.lock().await.hosts.push((name, key));
    }
}

/// `None`: the daemon died before the complete answer arrived.
async fn answered(request: reqwest::RequestBuilder) -> Option<Value> {
    let answer = request.send().await.ok()?;
    let status = answer.status();
    let body = answer.bytes().await.ok()?;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    Some(body["data"].take())
}

async fn register_all(daemon: &Daemon, names: impl Iterator<Item = String>) -> Vec<(String, String)> {
    let admin = daemon.admin();
    let mut all = Vec::new();
    for name in names {
        let key = daemon.register(&admin, &name).await.api_key;
        all.push((name, key));
    }
    all
}

async fn get(client: &Client, url: &str) -> Value {
    answered(client.get(url)).await.unwrap()
}

/// All hosts, page by page.
async fn hosts_of(admin: &Client, daemon: &Daemon) -> Value {
    let (mut all, mut next) = (Vec::new(), String::new());
    loop {
        let mut page = get(admin, &daemon.admin_url(&format!("/admin/hosts?limit=1000{next}"))).await;
        all.append(page["hosts"].as_array_mut().unwrap());
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => return Value::Array(all),
        }
    }
}

fn each<'a>(list: &'a Value, member: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|item| item[member].as_str().unwrap()).collect()
}

async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < crate::support::daemon::BOUND, "the condition was not reached");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
