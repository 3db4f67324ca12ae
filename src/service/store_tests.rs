//! Stores of many hosts at once, on real records.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::hot::throttle::{Limits, Throttle};
use crate::hot::{Hot, HotHost};
use crate::metrics::Metrics;
use crate::model::auth_document::{DocumentRules, fixture};
use crate::model::instant::Instant;
use crate::platform::{Clock as _, System};
use crate::records::Epoch;
use crate::records::embedded::Embedded;
use crate::service::Initiator;
use crate::service::admission::Purpose;
use crate::service::core::boot;
use crate::service::core::policy::{PeoplePolicy, VersionPolicy};
use crate::service::hosts::enrol::HostOptions;
use crate::service::login::sync::{self, Outcome, QueryVersions};
use crate::service::{Adapters, Areas, Parts, Policy, Result, ServiceError};

async fn open(dir: &Path) -> Areas {
    open_on(dir, Embedded::open(&dir.join("records")).unwrap()).await
}

async fn open_on(dir: &Path, records: Embedded) -> Areas {
    let limits = Limits {
        global_per_minute: 0,
        host_per_minute: 0,
        auth_fail_count: 0,
        auth_fail_window_seconds: 1,
        auth_fail_block_seconds: 1,
    };
    let secrets = boot::unlock(&records, &dir.join("master.key"), None, &System).await.unwrap();
    let policy = Policy {
        base_url: "https://auth.example.test".into(),
        base_url_doubt: None,
        config_file: String::new(),
        trusted_ca_pem: String::new(),
        host_certificate: Default::default(),
        server_pin: None,
        install_token_ttl: time::Duration::minutes(30),
        insecure_window: time::Duration::minutes(10),
        ipv6_prefix: 64,
        codex_release_url: String::new(),
        codex_release_sha256: String::new(),
        document_rules: DocumentRules::default(),
        versions: VersionPolicy { stores_per_host_per_hour: 0, ..Default::default() },
        people: PeoplePolicy::default(),
    };
    let parts = Parts {
        records: Arc::new(records),
        hot: Arc::new(Hot::open(&dir.join("hot"), &System).unwrap()),
        throttle: Throttle::new(limits),
        platform: Arc::new(System),
        policy,
        secrets: Arc::new(secrets),
        metrics: Arc::new(Metrics::new(&crate::api::operations(), System.now()).unwrap()),
    };
    Areas::start(parts, Adapters::default()).await.unwrap()
}

async fn a_host(areas: &Areas) -> Arc<HotHost> {
    let registered = areas.hosts.register("h1.test", HostOptions::default(), &Initiator::daemon()).await.unwrap();
    areas
        .admission
        .admit(&areas.admission.credential(registered.api_key.expose()), [127, 0, 0, 1].into(), Purpose::Service)
        .await
        .unwrap()
}

/// The `number`th nanosecond of a second.
fn instant(number: u32) -> String {
    format!("2026-11-20T12:00:00.{number:09}Z")
}

async fn store(areas: &Areas, host: &Arc<HotHost>, number: u32) -> Result<sync::Sync> {
    let auth = fixture::chatgpt("account-1", "user-1", "any", None, &instant(number));
    let body = json!({ "command": "store", "auth": auth }).to_string();
    areas.login.sync(host.clone(), [127, 0, 0, 1].into(), &body, QueryVersions::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_stores_stand_in_one_line_and_the_newest_wins() {
    const STORES: u32 = 600;
    let dir = tempfile::tempdir().unwrap();
    let areas = Arc::new(open(dir.path()).await);
    let host = a_host(&areas).await;
    let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let (areas, host, next) = (areas.clone(), host.clone(), next.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                loop {
                    // Nearly in order, as from hosts that refresh at about the same time.
                    let number = next.fetch_add(1, Ordering::SeqCst) ^ 5;
                    if number >= STORES {
                        return told;
                    }
                    let answer = store(&areas, &host, number).await.unwrap();
                    let served = areas.core.canonical().unwrap().last_refresh.clone();
                    let own = Instant::parse(&instant(number)).unwrap();
                    assert!(served >= own, "nothing older is served after the answer, whatever it was");
                    let canonical = answer.canonical.unwrap();
                    match answer.outcome {
                        Outcome::Updated => {
                            assert!(canonical.last_refresh >= own);
                            told.push(instant(number));
                        }
                        Outcome::Outdated => assert!(canonical.last_refresh > own),
                        other => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    let mut told = HashSet::new();
    for client in clients {
        for one in client.await.unwrap() {
            assert!(told.insert(one), "told twice");
        }
    }
    let mut line = areas.login.canonical_history(None, usize::MAX).await.unwrap().versions;
    line.reverse();
    let numbers: Vec<_> = line.iter().map(|summary| summary.version).collect();
    assert_eq!(numbers, (1..=line.len() as u64).collect::<Vec<_>>(), "no gap");
    assert!(line.is_sorted_by(|a, b| a.last_refresh < b.last_refresh), "each is newer than the one before it");
    let stands: HashSet<_> = line.iter().map(|summary| summary.last_refresh.clone()).collect();
    assert_eq!(told, stands, "the history has exactly the stores that were answered `updated`");
    let newest = instant(STORES - 1);
    assert_eq!(line.last().map(|summary| summary.last_refresh.clone()), Some(newest.clone()));
    assert_eq!(areas.core.canonical().unwrap().summary.last_refresh, newest);
}

#[tokio::test]
async fn a_store_is_served_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let digest = {
        let areas = open(dir.path()).await;
        let host = a_host(&areas).await;
        let known = areas.core.hot.epoch();
        assert_eq!(store(&areas, &host, 1).await.unwrap().outcome, Outcome::Updated);
        let canonical = areas.core.canonical().unwrap();
        assert_eq!(canonical.summary.version, 1);
        // Hot state does not have it yet. A catch-up changes nothing that is served.
        assert_eq!(areas.core.hot.epoch(), known);
        areas.core.catch_up().await.unwrap();
        assert!(areas.core.hot.epoch() > known);
        assert_eq!(areas.core.canonical().unwrap().summary, canonical.summary);
        store(&areas, &host, 2).await.unwrap();
        areas.core.canonical().unwrap().summary.digest
    };
    let areas = open(dir.path()).await;
    assert_eq!(areas.core.canonical().unwrap().summary.digest, digest);
}

#[tokio::test]
async fn what_came_later_is_not_replaced_by_what_was_read_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let areas = open(dir.path()).await;
    let host = a_host(&areas).await;
    store(&areas, &host, 1).await.unwrap();
    let read = areas.core.records.changes_since(Epoch(0)).await.unwrap();
    store(&areas, &host, 2).await.unwrap();
    let late = areas.core.open_canonical(&read.canonical.unwrap(), read.epoch).unwrap();
    areas.core.adopt_canonical(late);
    assert_eq!(areas.core.canonical().unwrap().summary.version, 2);
}

#[tokio::test]
async fn a_store_that_the_disk_did_not_take_is_neither_acknowledged_nor_served() {
    let dir = tempfile::tempdir().unwrap();
    let failing = Arc::new(AtomicBool::new(false));
    let data = crate::durable::Store::durable_on_failing_disk(&dir.path().join("records"), "records", failing.clone())
        .unwrap();
    let areas = open_on(dir.path(), Embedded::on(data)).await;
    let host = a_host(&areas).await;
    store(&areas, &host, 1).await.unwrap();
    failing.store(true, Ordering::SeqCst);
    for number in [2, 3] {
        let refused = store(&areas, &host, number).await.err();
        assert!(
            matches!(refused, Some(ServiceError::StoreFailed { .. } | ServiceError::Degraded { .. })),
            "{refused:?}"
        );
        assert_eq!(areas.core.canonical().unwrap().summary.version, 1);
    }
}

/// The list of hosts follows their activity and admins' changes, also across a restart.
#[tokio::test]
async fn the_list_of_hosts_follows() {
    use crate::service::core::directory::{ListQuery, ListedHost};
    let dir = tempfile::tempdir().unwrap();
    let listed =
        async |areas: &Areas| -> Vec<ListedHost> { areas.hosts.list_hosts(ListQuery::default()).await.unwrap().hosts };
    {
        let areas = open(dir.path()).await;
        let host = a_host(&areas).await;
        assert_eq!(listed(&areas).await[0].rules.bound_ip, Some([127, 0, 0, 1].into()));
        areas
            .hosts
            .register("a0.test", HostOptions { secure: Some(false), ..HostOptions::default() }, &Initiator::daemon())
            .await
            .unwrap();
        store(&areas, &host, 1).await.unwrap();
        assert!(areas.hosts.gather_telemetry().await.unwrap());
        assert!(!areas.hosts.gather_telemetry().await.unwrap());
        let hosts = listed(&areas).await;
        assert_eq!(hosts.iter().map(|host| host.fqdn.as_str()).collect::<Vec<_>>(), ["a0.test", "h1.test"]);
        assert_eq!(hosts.iter().map(|host| host.activity.api_calls).collect::<Vec<_>>(), [0, 1]);
        let other = hosts[0].id;
        areas.hosts.remove(other, &Initiator::daemon()).await.unwrap();
        areas.hosts.drain_outbox().await.unwrap();
    }
    let areas = open(dir.path()).await;
    let hosts = listed(&areas).await;
    assert_eq!((hosts.len(), hosts[0].fqdn.as_str(), hosts[0].activity.api_calls), (1, "h1.test", 1));
    for host in areas.hosts.hosts().await.unwrap() {
        assert_eq!(hosts[0], ListedHost::new(&host.host, host.activity));
    }
}
