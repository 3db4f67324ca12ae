//! Daemons on a real MariaDB: several on one database, a start without it, and changes in it by others.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use codex_authd::records::mysql::{MySql, Options, Tls};
use codex_authd::records::prelude::*;
use mysql_async::prelude::Queryable as _;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::daemon::{Daemon, auth_json};
use crate::support::load::{Ledger, until};
use crate::support::mariadb::MariaDb;
use crate::support::raw_tls::{Outcome, RawClient};

/// The time limit for any answer: the configured timeout, a handshake, and a busy machine.
const LONGEST: Duration = Duration::from_millis(1000 * TIMEOUT_SECONDS + 1500);
/// The time until a change is in force on every daemon (docs/OPERATIONS.md).
const IN_FORCE: Duration = Duration::from_secs(1);

pub const TIMEOUT_SECONDS: u64 = 2;

/// A daemon that is not started yet.
pub fn on_database(url: &str, settings: &[(&str, &str)]) -> Daemon {
    let timeout = TIMEOUT_SECONDS.to_string();
    let mut all = vec![("DATABASE__URL", url), ("DATABASE__TIMEOUT_SECONDS", &timeout)];
    all.extend(settings);
    let mut daemon = Daemon::prepare(&all);
    daemon.log_level = Some("info");
    daemon
}

/// A daemon on this database, with the master key of the first daemon that ran on it.
fn prepare(url: &str, first: Option<&Daemon>) -> Daemon {
    let daemon = on_database(url, &[]);
    if let Some(first) = first {
        with_key_of(first, &daemon);
    }
    daemon
}

/// Gives a second daemon on a database the master key of the first.
pub fn with_key_of(first: &Daemon, second: &Daemon) {
    std::fs::create_dir_all(second.state_dir()).unwrap();
    std::fs::copy(first.state_dir().join("master.key"), second.state_dir().join("master.key")).unwrap();
}

pub fn start(url: &str, first: Option<&Daemon>) -> Daemon {
    let mut daemon = prepare(url, first);
    daemon.launch();
    daemon
}

pub async fn records(url: &str) -> MySql {
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

    // Both daemons know a host of one of them.
    let host = one.register(&admin_of_one, "a.test").await;
    assert_eq!(retrieve(&one, &host.api_key).await, 200);
    within(IN_FORCE, "a new host", async || retrieve(&two, &host.api_key).await == 200).await;

    // An installer is redeemed once, whichever daemon is called.
    let again = one.register(&admin_of_one, "b.test").await;
    within(IN_FORCE, "a new installer", async || has_heard(&two, &again.api_key).await).await;
    let mut asked = JoinSet::new();
    for round in 0..20 {
        let daemon = if round % 2 == 0 { &one } else { &two };
        let call = daemon.client().get(daemon.hosts_url(&format!("/install/{}", again.token)));
        asked.spawn(async move { call.send().await.unwrap().status() });
    }
    let answers = asked.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|status| [200, 410].contains(&status.as_u16())), "{answers:?}");

    // A replaced key is refused on both.
    let renewed = two.register(&admin_of_two, "a.test").await;
    assert_eq!(retrieve(&two, &host.api_key).await, 401);
    within(IN_FORCE, "a replaced key", async || retrieve(&one, &host.api_key).await == 401).await;
    assert_eq!(retrieve(&one, &renewed.api_key).await, 200);

    // So is a revoked certificate.
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

    // The kill switch is in force on both.
    let switch = async |disabled: bool| {
        let body = json!({ "disabled": disabled });
        let call = admin_of_two.post(two.admin_url("/admin/api/state")).json(&body);
        assert_eq!(call.send().await.unwrap().status(), 200);
    };
    switch(true).await;
    within(IN_FORCE, "the kill switch", async || retrieve(&one, &renewed.api_key).await == 503).await;
    switch(false).await;
    within(IN_FORCE, "the kill switch", async || retrieve(&one, &renewed.api_key).await == 200).await;

    // There is one audit chain for both.
    let verified = one.cli_json(&["audit", "verify"]);
    assert_eq!(verified["intact"], true, "{verified}");
}

/// Whether the daemon knows a key, and every change that was written with it. Binds nothing: the daemon finds the key
/// and then refuses the body.
async fn has_heard(daemon: &Daemon, key: &str) -> bool {
    knows(&daemon.client(), &daemon.hosts_url("/auth"), key).await
}

/// The same with a client; a daemon that does not answer knows nothing.
pub async fn knows(client: &Client, url: &str, key: &str) -> bool {
    let call = client.post(url).header("x-api-key", key).body("{");
    call.send().await.is_ok_and(|answer| answer.status() != 401)
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

/// A key is bound once, whichever daemons are called at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_first_contacts_with_two_daemons_one_binds() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let one = start(&url, None);
    let two = start(&url, Some(&one));
    let admin = one.admin();
    for round in 0..10 {
        let host = one.register(&admin, &format!("h{round}.test")).await;
        until("the other one knows the key", async || has_heard(&two, &host.api_key).await).await;
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

/// Every acknowledged change is there, once.
pub async fn holds(records: &MySql, ledgers: impl IntoIterator<Item = &Ledger>) {
    let hosts = records.host_list().await.unwrap();
    let names: BTreeSet<_> = hosts.iter().map(|host| host.fqdn.as_str()).collect();
    let history = records.canonical_list(None, 1_000_000).await.unwrap();
    let stored: Vec<_> = history.iter().map(|version| version.digest.to_string()).collect();
    let once: BTreeSet<_> = stored.iter().collect();
    assert_eq!(once.len(), stored.len(), "a version is stored twice");
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
    let revoke = format!("/admin/certificates/{fingerprint}/revoke");
    assert_eq!(admin.post(daemon.admin_url(&revoke)).send().await.unwrap().status(), 200);
    daemon.cli_json(&["keys", "rotate"]);
    daemon.kill();
    server.end();

    daemon.launch();
    assert_eq!(retrieve(&daemon, &host.api_key).await, 200);
    assert_eq!(retrieve(&daemon, &"e".repeat(64)).await, 401);
    let ready: Value = daemon.client().get(daemon.hosts_url("/readyz")).send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["code"], "degraded");
    assert!(ready["message"].as_str().unwrap().contains("answers are as of 20"), "{ready}");
    let mallory = RawClient::with_certificate(&daemon, &daemon.state.path().join("admin-mallory"), "mallory");
    let refused = mallory.call(daemon.client().get(daemon.admin_url("/admin/hosts"))).await;
    assert_eq!(refused, Outcome::Closed, "a revoked certificate was accepted");

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
        // Allows ten times as long, so that a busy machine does not fail the test; the real time is printed.
        assert!(begun.elapsed() < 10 * bound, "not in force: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{what}: in force after {:?}", begun.elapsed());
}

/// Far more calls than connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_share_two_connections() {
    let server = MariaDb::start();
    let mut daemon = on_database(&server.create("authd").await, &[("DATABASE__CONNECTIONS", "2")]);
    daemon.launch();
    let admin = daemon.admin();
    let mut asked = JoinSet::new();
    for number in 0..64 {
        let request = match number % 2 {
            0 => admin
                .post(daemon.admin_url("/admin/hosts/register"))
                .json(&json!({ "fqdn": format!("h{number}.test") })),
            _ => admin.get(daemon.admin_url("/admin/auth/history")),
        };
        asked.spawn(async move {
            let begun = Instant::now();
            (request.send().await.unwrap().status(), begun.elapsed())
        });
    }
    let answers = asked.join_all().await;
    let longest = answers.iter().map(|(_, took)| *took).max().unwrap();
    let done = answers.iter().filter(|(status, _)| *status == 200).count();
    println!("64 at once on two connections: {done} done, the longest took {longest:?}");
    assert!(answers.iter().all(|(status, _)| [200, 503].contains(&status.as_u16())), "{answers:?}");
    assert!(longest < LONGEST, "{longest:?}");
    assert!(done >= 48, "{answers:?}");
    let in_use = server.query("SELECT COUNT(*) FROM information_schema.processlist WHERE db = 'authd'").await;
    let in_use: u64 = mysql_async::from_row(in_use.into_iter().next().unwrap());
    assert!(in_use <= 2, "{in_use} connections");
}

/// For example an operator's session that changes something and was left open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_somebody_else_holds_is_answered_503_in_time_and_over_when_it_is_given_back() {
    let server = MariaDb::start();
    let daemon = start(&server.create("authd").await, None);
    let admin = daemon.admin();
    let host = daemon.register(&admin, "a.test").await;
    assert_eq!(retrieve(&daemon, &host.api_key).await, 200);
    let mut somebody = server.connection().await.unwrap();
    somebody.query_drop("START TRANSACTION").await.unwrap();
    somebody.query_drop("SELECT * FROM authd.heads FOR UPDATE").await.unwrap();

    let register = async |name: &str| {
        let begun = Instant::now();
        let request = admin.post(daemon.admin_url("/admin/hosts/register")).json(&json!({ "fqdn": name }));
        (request.send().await.unwrap(), begun.elapsed())
    };
    for round in 0..3 {
        let (refused, took) = register(&format!("b{round}.test")).await;
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key("retry-after"));
        assert!(took < LONGEST, "{took:?}");
        println!("with the lock held: refused after {took:?}");
        assert_eq!(retrieve(&daemon, &host.api_key).await, 200);
    }
    somebody.query_drop("ROLLBACK").await.unwrap();
    until("a registration goes well", async || register("c.test").await.0.status() == 200).await;
    until("it is ready", async || {
        daemon.client().get(daemon.hosts_url("/readyz")).send().await.unwrap().status() == 200
    })
    .await;
}
