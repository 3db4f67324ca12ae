//! Tests against a real MariaDB, which each test starts.

use std::sync::Arc;

use super::*;
use crate::model::audit::AuditHead;
use crate::model::host::HostId;
use crate::model::people::UserId;
use crate::records::prelude::*;
use crate::records::{
    ClaimOutcome, Epoch, Filling, HostChange, LinkOutcome, NewCanonical, Owner, ProbeTrigger, Redemption, Registration,
    RegistrationOutcome, ReplaceCondition, SealingKey, Session, SessionOutcome, Standstill, Telemetry, UserChange,
    conformance,
};
use crate::seal::KeyId;

// The integration tests use the rest.
#[allow(dead_code)]
#[path = "../../../tests/integration/support/galera.rs"]
mod galera;
#[allow(dead_code)]
#[path = "../../../tests/integration/support/mariadb.rs"]
pub(crate) mod mariadb;

use mariadb::MariaDb;

mod people;
mod round_trips;
mod telemetry;

fn options(url: String) -> Options {
    Options { url, tls: Tls::Off, ca: None, connections: 8, timeout: Duration::from_secs(10) }
}

async fn open(options: &Options) -> Result<MySql> {
    let records = MySql::new(options)?;
    records.prepare().await?;
    Ok(records)
}

/// One test for the whole suite: a server takes seconds to start, and each test is a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_suite_holds_on_mariadb() {
    let server = MariaDb::start();
    let mut failed = Vec::new();
    for (name, case) in conformance::list() {
        let url = server.create(name).await;
        let store = Arc::new(open(&options(url)).await.unwrap());
        let begun = std::time::Instant::now();
        let outcome = tokio::spawn(case(store)).await;
        println!("{:>7.0?} {name}{}", begun.elapsed(), if outcome.is_ok() { "" } else { ": FAILED" });
        if outcome.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "these cases fail on MariaDB: {failed:?}");
}

/// Copies into a database and back. The rows, and their counts and digests, stay the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_from_one_store_to_the_other_stays_the_same() {
    use crate::records::conformance::copying::{export, fill, furnish};
    use crate::records::embedded::Embedded;

    let server = MariaDb::start();
    let directory = tempfile::tempdir().unwrap();
    let here: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("here")).unwrap());
    furnish(&here).await;
    let rows = export(&here).await;
    let database: Arc<dyn Records> = Arc::new(open(&options(server.create("authd").await)).await.unwrap());
    let back: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("back")).unwrap());
    for store in [&database, &back] {
        let filling = Filling { id: Uuid::new_v4(), above: here.epoch().await.unwrap() };
        assert!(store.fill_begin(&filling, false).await.unwrap());
        fill(store, &filling, &rows).await;
        assert_eq!(export(store).await, rows);
        store.fill_finish(&filling, &conformance::note("migrate")).await.unwrap();
        assert!(!store.fill_begin(&filling, false).await.unwrap(), "the filled store is not empty");
    }
    assert_eq!(database.host_list().await.unwrap(), back.host_list().await.unwrap());
    assert_eq!(database.audit_head().await.unwrap(), back.audit_head().await.unwrap());
}

/// Simulates a node that has not read a rotation yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sealed_with_a_key_that_is_gone_is_refused() {
    let server = MariaDb::start();
    let records = open(&options(server.create("authd").await)).await.unwrap();
    let key = |id| SealingKey { id: KeyId(id), sealed: conformance::sealed(0, "key"), created_at: conformance::at(0) };
    for id in [1, 2] {
        assert!(records.sealing_key_add(&key(id), &conformance::noted()).await.unwrap());
    }
    assert!(records.sealing_key_remove(KeyId(1)).await.unwrap());
    let registration = conformance::registration(1, "h1.test", "a");
    let refused = records.host_register(&registration, &conformance::noted()).await;
    assert!(matches!(&refused, Err(RecordsError::Unavailable(cause)) if cause.contains("data key 1")), "{refused:?}");
    assert_eq!(records.host_list().await.unwrap(), []);
    let with_the_new_one = Registration { api_key: conformance::sealed(2, "a"), ..registration };
    records.host_register(&with_the_new_one, &conformance::noted()).await.unwrap();
}

/// Each node has connections of its own, like a daemon. The nodes share only the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_redeem_once_and_probe_once_and_leave_one_chain() {
    let server = MariaDb::start();
    let options = options(server.create("authd").await);
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Arc::new(open(&options).await.unwrap()));
    }
    let registration = conformance::registration(1, "h1.test", "a");
    nodes[0].host_register(&registration, &conformance::noted()).await.unwrap();
    let (token, key) = (registration.token.digest, registration.key_digest);
    let redemptions = conformance::race(60, |number| {
        let node = Arc::clone(&nodes[number % 3]);
        async move {
            let from = conformance::ip("192.0.2.1");
            node.installer_redeem(&token, &key, conformance::at(1), from, &conformance::noted()).await.unwrap()
        }
    })
    .await;
    let redeemed = redemptions.iter().filter(|redemption| matches!(redemption, Redemption::Redeemed { .. })).count();
    assert_eq!(redeemed, 1);
    conformance::race(60, |number| {
        let node = Arc::clone(&nodes[number % 3]);
        async move { node.audit_append(&[conformance::noted(), conformance::noted()]).await.unwrap() }
    })
    .await;
    let claims = conformance::race(60, |number| {
        let node = Arc::clone(&nodes[number % 3]);
        let claim = conformance::probes::claim(0, ProbeTrigger::Daily);
        async move { node.probe_claim(&claim, None).await.unwrap() }
    })
    .await;
    assert_eq!(claims.iter().filter(|claimed| **claimed == ClaimOutcome::Begun).count(), 1);
    let mut head = AuditHead::default();
    for entry in nodes[1].audit_list_from(1, 1000).await.unwrap() {
        head.follow(&entry).unwrap();
    }
    assert_eq!(head, nodes[2].audit_head().await.unwrap());
    assert_eq!(head.number, 2 + 2 * 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_change_the_settings_undo_nothing_of_each_other() {
    let server = MariaDb::start();
    let options = options(server.create("authd").await);
    let nodes: [conformance::Store; 2] =
        [Arc::new(open(&options).await.unwrap()), Arc::new(open(&options).await.unwrap())];
    conformance::settings_race(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_daemons_that_boot_at_once_migrate_once() {
    let server = MariaDb::with(&["--general-log=1", "--log-output=TABLE"]);
    let url = server.create("authd").await;
    let boots = conformance::race(10, |_| {
        let options = options(url.clone());
        async move { open(&options).await.map(|_| ()) }
    })
    .await;
    for boot in boots {
        boot.unwrap();
    }
    // Each statement of the file reached the server once.
    let made = server
        .query("SELECT argument FROM mysql.general_log WHERE argument LIKE 'CREATE TABLE IF NOT EXISTS hosts %'")
        .await;
    assert_eq!(made.len(), 1);
    let recorded = server.query("SELECT version FROM authd.schema_migrations").await;
    assert_eq!(recorded.len(), super::schema::MIGRATIONS.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_another_making_are_refused_and_left_alone() {
    let server = MariaDb::start();
    let options = options(server.create("authd").await);
    let refusal = async || open(&options).await.err().unwrap().to_string();
    open(&options).await.unwrap();
    server.query("INSERT INTO authd.schema_migrations VALUES (999, 'later', REPEAT('x', 32), '2030-01-01')").await;
    assert!(refusal().await.contains("by a newer codex-authd"), "{}", refusal().await);
    server.query("DELETE FROM authd.schema_migrations WHERE version = 999").await;
    server.query("UPDATE authd.schema_migrations SET checksum = REPEAT('x', 32)").await;
    assert!(refusal().await.contains("was edited"), "{}", refusal().await);
}

/// A daemon died during a migration: its lease ends, and its migration is applied again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_was_cut_short_is_done_again() {
    let server = MariaDb::start();
    let options = options(server.create("authd").await);
    open(&options).await.unwrap();
    server.query("DROP TABLE authd.audit_log").await;
    server.query("DELETE FROM authd.schema_migrations").await;
    server
        .query("UPDATE authd.schema_lease SET ends_at = UTC_TIMESTAMP(6) + INTERVAL 2 SECOND, holder = REPEAT('y', 16)")
        .await;
    let begun = std::time::Instant::now();
    let records = open(&options).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "the migration did not wait for the end of the lease");
    assert_eq!(records.audit_head().await.unwrap().number, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_database_is_unavailable_in_time_and_comes_back() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let records = open(&Options { timeout: Duration::from_millis(500), ..options(url) }).await.unwrap();
    server.freeze();
    for _ in 0..12 {
        let begun = std::time::Instant::now();
        let error = records.settings_fetch().await.unwrap_err();
        assert!(matches!(error, RecordsError::Unavailable(_)), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
    server.thaw();
    records.settings_fetch().await.unwrap();
    records.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_restarted_is_used_again_at_once() {
    let mut server = MariaDb::start();
    let records = open(&options(server.create("authd").await)).await.unwrap();
    records.settings_fetch().await.unwrap();
    server.end();
    assert!(matches!(records.settings_fetch().await, Err(RecordsError::Unavailable(_))));
    server.run();
    records.settings_fetch().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_says_so() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let records = open(&options(url)).await.unwrap();
    records.check().await.unwrap();
    server.query("CREATE USER reader@localhost").await;
    server.query("GRANT SELECT, UPDATE, INSERT, DELETE ON authd.* TO reader@localhost").await;
    server.query("SET GLOBAL read_only = 1").await;
    let url = server.url("authd").replace("root@", "reader@");
    let reader = open(&options(url)).await.unwrap();
    let error = reader.check().await.unwrap_err();
    assert!(matches!(&error, RecordsError::Unavailable(cause) if cause.contains("read-only")), "{error}");
    reader.settings_fetch().await.unwrap();
}

#[test]
fn a_wrong_address_is_refused_without_its_password() {
    for url in ["mysql://u:canary@h:port/d", "http://u:canary@h/d", "canary"] {
        let Err(error) = Connections::new(&options(url.into())) else { panic!("{url}") };
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}

/// Two nodes of a cluster write at once, each with a lock that the other does not see. The second one decides by a
/// state that is no longer true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_the_second_of_two_changes_is_refused_and_tried_again() {
    let cluster = galera::Galera::start().await;
    let one = open(&options(cluster.nodes[0].create("authd").await)).await.unwrap();
    let two = open(&options(cluster.nodes[1].url("authd"))).await.unwrap();
    let key = |id| SealingKey { id: KeyId(id), sealed: conformance::sealed(0, "key"), created_at: conformance::at(0) };
    for id in [1, 2] {
        assert!(one.sealing_key_add(&key(id), &conformance::noted()).await.unwrap());
    }
    let deadline = two.connections.deadline();
    let registration = conformance::registration(1, "h1.test", "a");
    for round in ["a registration", "the removal of a key"] {
        // Everything but the commit, on the first node.
        let mut lease = two.connections.lease(deadline).await.unwrap();
        let mut late = transaction::Change::begin(lease.connection().unwrap()).await.unwrap();
        let registered = hosts::register(&mut late, &registration, &conformance::noted()).await;
        // The whole change on the other node.
        match round {
            "a registration" => {
                let other = conformance::registration(2, "h2.test", "b");
                let other = Registration { api_key: conformance::sealed(2, "b"), ..other };
                one.host_register(&other, &conformance::noted()).await.unwrap();
            }
            // The registration has just sealed its key with this data key.
            _ => assert!(one.sealing_key_remove(KeyId(1)).await.unwrap()),
        }
        let refused = late.end(registered).await;
        println!("after {round}: {:?}", refused.as_ref().map(|host| &host.fqdn));
        assert!(matches!(refused, Err(Problem::Conflict(_))), "{refused:?}");
        drop(lease);
    }
    // Two claims write the same probe number. This is the only row that both write.
    let [late_claim, claim] = [(); 2].map(|()| conformance::probes::claim(0, ProbeTrigger::Store));
    let mut lease = two.connections.lease(deadline).await.unwrap();
    let mut late = transaction::Change::begin(lease.connection().unwrap()).await.unwrap();
    let begun = probes::claim(&mut late, &late_claim, None).await;
    assert!(matches!(begun, Ok(ClaimOutcome::Begun)), "{begun:?}");
    assert_eq!(one.probe_claim(&claim, None).await.unwrap(), ClaimOutcome::Begun);
    let refused = late.end(begun).await;
    println!("after another claim: {refused:?}");
    assert!(matches!(refused, Err(Problem::Conflict(_))), "{refused:?}");
    drop(lease);
    let busy = two.probe_claim(&late_claim, None).await.unwrap();
    assert!(matches!(&busy, ClaimOutcome::Busy(probe) if probe.id == claim.id), "{busy:?}");
    // The production path: retries until there is no conflict.
    let (mut racing, hosts) = (tokio::task::JoinSet::new(), 40);
    let nodes = [Arc::new(one), Arc::new(two)];
    for number in 0..hosts {
        let node = nodes[number % 2].clone();
        racing.spawn(async move {
            let name = format!("r{number}.test");
            let registration = conformance::registration(100 + number as u64, &name, &name);
            let registration = Registration { api_key: conformance::sealed(2, "a"), ..registration };
            node.host_register(&registration, &conformance::noted()).await.unwrap();
        });
    }
    racing.join_all().await;
    let conflicts = nodes[0].conflicts() + nodes[1].conflicts();
    println!("{hosts} registrations on two nodes, {conflicts} conflicts");
    assert!(conflicts > 0);
    assert_eq!(nodes[0].host_list().await.unwrap().len(), hosts + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_loses_every_race_is_told_that_the_records_are_not_available() {
    let server = MariaDb::start();
    let records = open(&options(server.create("authd").await)).await.unwrap();
    let lose = async |_: &mut transaction::Change<'_>| Err::<(), _>(Problem::Conflict("a test".into()));
    let lost = async || -> Result<()> { change!(records, |change| lose(change).await) };
    let begun = std::time::Instant::now();
    let refused = lost().await;
    assert!(
        matches!(&refused, Err(RecordsError::Unavailable(cause)) if cause.contains("conflicted again and again")),
        "{refused:?}"
    );
    assert_eq!(records.conflicts(), u64::from(MAX_ATTEMPTS) - 1);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// The machine lost power or network, and the server does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_vanishes_in_the_middle_of_a_change_keeps_the_others_waiting_for_seconds_only() {
    let server = MariaDb::start();
    let options = Options { timeout: Duration::from_secs(2), ..options(server.create("authd").await) };
    let (gone, other) = (open(&options).await.unwrap(), open(&options).await.unwrap());
    let mut lease = gone.connections.lease(gone.connections.deadline()).await.unwrap();
    let _change = transaction::Change::begin(lease.connection().unwrap()).await.unwrap();
    let begun = std::time::Instant::now();
    let mut answers = Vec::new();
    while other
        .audit_append(&[conformance::noted()])
        .await
        .inspect_err(|error| answers.push(error.to_string()))
        .is_err()
    {
        assert!(begun.elapsed() < Duration::from_secs(20), "{answers:?}");
    }
    println!("the others waited for {:?}: {answers:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(8));
}
