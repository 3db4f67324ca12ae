//! Daemons on a real MariaDB: several on one database, and what becomes of them while it is away.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use codex_authd::records::Records as _;
use codex_authd::records::mysql::{MySql, Options, Tls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::daemon::{Daemon, auth_json};
use crate::support::load::{Ledger, Load, until};
use crate::support::mariadb::MariaDb;

/// In force everywhere, says docs/OPERATIONS.md.
const IN_FORCE: Duration = Duration::from_secs(1);

/// A daemon on this database, with the master key of the first one that ran on it.
fn prepare(url: &str, first: Option<&Daemon>) -> Daemon {
    let mut daemon = Daemon::prepare(&[("DATABASE__URL", url), ("DATABASE__TIMEOUT_SECONDS", "2")]);
    daemon.log_level = Some("info");
    if let Some(first) = first {
        std::fs::create_dir_all(daemon.state_dir()).unwrap();
        std::fs::copy(first.state_dir().join("master.key"), daemon.state_dir().join("master.key")).unwrap();
    }
    daemon
}

fn start(url: &str, first: Option<&Daemon>) -> Daemon {
    let mut daemon = prepare(url, first);
    daemon.launch();
    daemon
}

async fn records(url: &str) -> MySql {
    let timeout = Duration::from_secs(20);
    MySql::new(&Options { url: url.into(), tls: Tls::Off, ca: None, connections: 2, timeout }).unwrap()
}

async fn retrieve(daemon: &Daemon, key: &str) -> StatusCode {
    let body = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
    let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", key).json(&body);
    call.send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_daemon_decides_is_in_force_on_the_other() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let one = start(&url, None);
    let two = start(&url, Some(&one));
    let (admin_of_one, admin_of_two) = (one.admin(), two.admin());

    // A host of the one is the other's.
    let host = one.register(&admin_of_one, "a.test").await;
    assert_eq!(retrieve(&one, &host.api_key).await, 200);
    within(IN_FORCE, "a new host", async || retrieve(&two, &host.api_key).await == 200).await;

    // Its installer is redeemed once, whoever is asked.
    let again = one.register(&admin_of_one, "b.test").await;
    within(IN_FORCE, "a new installer", async || knows(&two, &again.api_key).await).await;
    let mut asked = JoinSet::new();
    for round in 0..20 {
        let daemon = if round % 2 == 0 { &one } else { &two };
        let call = daemon.client().get(daemon.hosts_url(&format!("/install/{}", again.token)));
        asked.spawn(async move { call.send().await.unwrap().status() });
    }
    let answers = asked.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|status| [200, 410].contains(&status.as_u16())), "{answers:?}");

    // A key that was replaced is dead everywhere.
    let renewed = two.register(&admin_of_two, "a.test").await;
    assert_eq!(retrieve(&two, &host.api_key).await, 401);
    within(IN_FORCE, "a replaced key", async || retrieve(&one, &host.api_key).await == 401).await;
    assert_eq!(retrieve(&one, &renewed.api_key).await, 200);

    // So is a certificate that was revoked.
    let fingerprint = certificate(&two, "alice").await;
    let alice =
        two.client_builder().identity(crate::support::daemon::identity(&two.state.path().join("admin-alice"), "alice"));
    let alice = alice.build().unwrap();
    assert_eq!(alice.get(two.admin_url("/admin/hosts")).send().await.unwrap().status(), 200);
    let revoke = format!("/admin/certificates/{fingerprint}/revoke");
    assert_eq!(admin_of_one.post(one.admin_url(&revoke)).send().await.unwrap().status(), 200);
    within(
        IN_FORCE,
        "a revoked certificate",
        async || !matches!(alice.get(two.admin_url("/admin/hosts")).send().await, Ok(answer) if answer.status() == 200),
    )
    .await;

    // And the kill switch.
    let switch = async |disabled: bool| {
        let body = json!({ "disabled": disabled });
        let call = admin_of_two.post(two.admin_url("/admin/api/state")).json(&body);
        assert_eq!(call.send().await.unwrap().status(), 200);
    };
    switch(true).await;
    within(IN_FORCE, "the kill switch", async || retrieve(&one, &renewed.api_key).await == 503).await;
    switch(false).await;
    within(IN_FORCE, "the kill switch", async || retrieve(&one, &renewed.api_key).await == 200).await;

    // One chain, whoever wrote it.
    let verified = one.cli_json(&["audit", "verify"]);
    assert_eq!(verified["intact"], true, "{verified}");
}

/// Whether the daemon has heard of a key, and of all that was written with it. Binds nothing: what is sent is refused once
/// the key was found.
async fn knows(daemon: &Daemon, key: &str) -> bool {
    let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", key).body("{");
    call.send().await.unwrap().status() != 401
}

async fn certificate(daemon: &Daemon, name: &str) -> String {
    daemon.admin_certificate(name);
    let listed = daemon.cli_json(&["certificates", "list"]);
    let certificates = listed["certificates"].as_array().unwrap();
    let found = certificates.iter().find(|certificate| certificate["name"] == name).unwrap();
    found["fingerprint"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_without_the_master_key_of_the_first_one_does_not_start() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let _first = start(&url, None);
    let second = prepare(&url, None);
    let output = second.command(&["serve"]).env("RUST_LOG", "warn").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("from another daemon on the same database"), "{said}");
    assert!(!second.state_dir().join("master.key").exists());
}

/// First-use binding is decided once, whichever daemons are called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_first_contacts_with_two_daemons_one_binds() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let one = start(&url, None);
    let two = start(&url, Some(&one));
    let admin = one.admin();
    for round in 0..10 {
        let host = one.register(&admin, &format!("h{round}.test")).await;
        until("the other one knows the key", async || knows(&two, &host.api_key).await).await;
        let mut calls = JoinSet::new();
        for (daemon, address) in [(&one, "127.0.0.2"), (&two, "127.0.0.3")] {
            let client = daemon.client_from(address.parse().unwrap());
            let body =
                json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
            let call = client.post(daemon.hosts_url("/auth")).header("x-api-key", &host.api_key).json(&body);
            calls.spawn(async move { call.send().await.unwrap().status().as_u16() });
        }
        let mut answers = calls.join_all().await;
        answers.sort();
        assert!(answers == [200, 403] || answers == [403, 403], "{answers:?}");
    }
}

/// How the database goes away, and comes back.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Stopped,
    Frozen,
    ReadOnly,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_served_while_the_database_is_stopped() {
    outage(Outage::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_served_while_the_database_is_frozen() {
    outage(Outage::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_served_while_the_database_is_read_only() {
    outage(Outage::ReadOnly).await;
}

async fn outage(outage: Outage) {
    let mut server = MariaDb::start();
    let url = server.create("authd").await;
    server.query("CREATE USER authd@localhost IDENTIFIED BY 'canary-of-the-database'").await;
    server.query("GRANT ALL ON authd.* TO authd@localhost").await;
    let own = url.replace("root@", "authd:canary-of-the-database@");
    let daemon = start(&own, None);
    let load = Load::begin(&daemon).await;
    load.until_all_go_well("at first").await;

    let process = Pid::from_raw(server.pid().try_into().unwrap());
    match outage {
        Outage::Stopped => server.end(),
        Outage::Frozen => kill(process, Signal::SIGSTOP).unwrap(),
        Outage::ReadOnly => drop(server.query("SET GLOBAL read_only = 1").await),
    }
    let refused = load.refused.load(Ordering::SeqCst);
    until("stores and registrations are refused", async || load.refused.load(Ordering::SeqCst) > refused + 4).await;
    load.longest.store(0, Ordering::SeqCst);
    let client = &load.asking;
    let readiness = async || client.get(daemon.hosts_url("/readyz")).send().await.unwrap();
    until("it says that it is degraded", async || readiness().await.status() == 503).await;
    let answer = readiness().await;
    assert!(answer.headers().contains_key("retry-after"));
    let told: Value = answer.json().await.unwrap();
    if !matches!(outage, Outage::ReadOnly) {
        assert_eq!(told["code"], "degraded", "{told}");
        assert!(told["message"].as_str().unwrap().contains("since 20"), "{told}");
        assert!(daemon.log().contains("event=degraded"), "{}", daemon.log());
    }
    let retrieved = load.retrieved.load(Ordering::SeqCst);
    until("logins are served on", async || load.retrieved.load(Ordering::SeqCst) > retrieved + 300).await;
    let longest = load.longest.load(Ordering::SeqCst);
    println!("{outage:?}: {}; the longest retrieve took {longest} ms", load.told());

    match outage {
        Outage::Stopped => server.run(),
        Outage::Frozen => kill(process, Signal::SIGCONT).unwrap(),
        Outage::ReadOnly => drop(server.query("SET GLOBAL read_only = 0").await),
    }
    until("it is ready again", async || readiness().await.status() == 200).await;
    load.until_all_go_well("after it").await;
    let retrieved = load.retrieved.load(Ordering::SeqCst) + load.stored.load(Ordering::SeqCst);
    let ledger = load.end().await;

    let records = records(&url).await;
    holds(&records, [ledger]).await;
    let hosts = records.hosts().await.unwrap();
    until("every call has reached the records", async || {
        let mut calls = 0;
        for host in &hosts {
            calls += records.activity(host.id).await.unwrap().api_calls;
        }
        calls >= retrieved
    })
    .await;
    assert!(!daemon.log().contains("canary-of-the-database"), "the password is in the log");
}

/// What was acknowledged is there, once.
async fn holds(records: &MySql, ledgers: impl IntoIterator<Item = Ledger>) {
    let hosts = records.hosts().await.unwrap();
    let names: BTreeSet<_> = hosts.iter().map(|host| host.fqdn.as_str()).collect();
    let history = records.canonical_history(1_000_000).await.unwrap();
    let stored: Vec<_> = history.iter().map(|version| version.digest.to_string()).collect();
    let once: BTreeSet<_> = stored.iter().collect();
    assert_eq!(once.len(), stored.len(), "a version is there twice");
    for ledger in ledgers {
        for (name, key) in &ledger.hosts {
            assert!(names.contains(name.as_str()), "the registration of {name} is lost");
            let digest = codex_authd::model::digest::Digest::of(key.as_bytes());
            assert!(hosts.iter().any(|host| host.key_digest == digest), "{name} has another key");
        }
        assert!(ledger.versions.iter().all(|digest| once.contains(digest)), "a store is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_starts_without_its_database_serves_what_it_last_knew() {
    let mut server = MariaDb::start();
    let url = server.create("authd").await;
    let mut daemon = start(&url, None);
    let admin = daemon.admin();
    let host = daemon.register(&admin, "a.test").await;
    assert_eq!(retrieve(&daemon, &host.api_key).await, 200);
    let upload = admin
        .post(daemon.admin_url("/admin/auth/upload"))
        .json(&json!({ "auth": auth_json("2025-11-20T09:27:43Z", 1) }));
    assert_eq!(upload.send().await.unwrap().status(), 200);
    let fingerprint = certificate(&daemon, "mallory").await;
    let mallory = crate::support::daemon::identity(&daemon.state.path().join("admin-mallory"), "mallory");
    let revoke = format!("/admin/certificates/{fingerprint}/revoke");
    assert_eq!(admin.post(daemon.admin_url(&revoke)).send().await.unwrap().status(), 200);
    daemon.kill();
    server.end();

    daemon.launch();
    assert_eq!(retrieve(&daemon, &host.api_key).await, 200);
    assert_eq!(retrieve(&daemon, &"e".repeat(64)).await, 401);
    let ready: Value = daemon.client().get(daemon.hosts_url("/readyz")).send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["code"], "degraded");
    assert!(ready["message"].as_str().unwrap().contains("what is served is of 20"), "{ready}");
    let mallory = daemon.client_builder().identity(mallory).build().unwrap();
    assert!(mallory.get(daemon.admin_url("/admin/hosts")).send().await.is_err(), "revoked before, and let in now");

    server.run();
    until("it is ready again", async || {
        daemon.client().get(daemon.hosts_url("/readyz")).send().await.unwrap().status() == 200
    })
    .await;
    let other = daemon.register(&daemon.admin(), "b.test").await;
    assert_eq!(retrieve(&daemon, &other.api_key).await, 200);
}

async fn within(bound: Duration, what: &str, condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        // Ten times as long, so that a busy machine decides nothing; how long it took is told.
        assert!(begun.elapsed() < 10 * bound, "not in force: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{what}: in force after {:?}", begun.elapsed());
}
