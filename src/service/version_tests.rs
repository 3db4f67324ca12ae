//! Versions that are kept and pruned, what one host may store, and what belongs to one host alone.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde_json::json;
use time::Duration;
use tokio::sync::watch;

use crate::model::auth_document::fixture;
use crate::model::digest::Digest;
use crate::platform::Clock as _;
use crate::records::embedded::Embedded;
use crate::records::{Records, Standstill};
use crate::service::admission::Purpose;
use crate::service::clock_tests::{TestClock, areas, login, node};
use crate::service::core::policy::VersionPolicy;
use crate::service::hosts::enrol::HostOptions;
use crate::service::login::sync::{Outcome, QueryVersions, Sync};
use crate::service::{Areas, Initiator, Policy, Result, ServiceError};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const IDENTITY: &str = r#"{"agent_private_key":"canary-of-one-host","n":1.0,"agent_runtime_id":"r","account_id":"a","plan_type":"p","chatgpt_user_id":"u","chatgpt_account_is_fedramp":false}"#;

fn set_versions(areas: &Areas, versions: VersionPolicy) {
    areas.core.set_policy(Policy { versions, ..(*areas.core.policy()).clone() });
}

async fn register(areas: &Areas, name: &str) -> String {
    areas.hosts.register(name, HostOptions::default(), &Initiator::daemon()).await.unwrap().api_key.expose().to_owned()
}

async fn call(areas: &Areas, key: &str, body: &str) -> Result<Sync> {
    let host = areas.admission.admit(&areas.admission.credential(key), HERE, Purpose::Service).await?;
    areas.login.sync(host, HERE, body, QueryVersions::default()).await
}

async fn store(areas: &Areas, key: &str, auth: &str) -> Result<Sync> {
    call(areas, key, &format!(r#"{{"command":"store","auth":{auth}}}"#)).await
}

async fn retrieve(areas: &Areas, key: &str, digest: Digest) -> Sync {
    let at = areas.core.canonical().unwrap().summary.last_refresh.clone();
    let body = json!({ "command": "retrieve", "digest": digest.to_string(), "last_refresh": at }).to_string();
    call(areas, key, &body).await.unwrap()
}

async fn upload(areas: &Areas, auth: &str) {
    areas.login.upload(&format!(r#"{{"auth":{auth}}}"#), &Initiator::daemon()).await.unwrap();
}

/// What the calling host receives.
fn delivered(areas: &Areas, sync: &Sync) -> (String, Digest) {
    let host = sync.host.as_ref().map(|host| &*host.host);
    let canonical = sync.canonical.as_deref().unwrap();
    let delivery = areas.login.deliver(canonical, host).unwrap();
    assert_eq!(Digest::of(delivery.text.as_bytes()), delivery.digest);
    assert_eq!(areas.login.delivered_digest(canonical, host).unwrap(), delivery.digest);
    (delivery.text.to_string(), delivery.digest)
}

fn with_identity(auth: &str, identity: &str) -> String {
    format!(r#"{{"agent_identity": {identity}, {}"#, auth.strip_prefix('{').unwrap())
}

/// One version a day, the last one on the day that the clock shows then.
async fn store_daily(areas: &Areas, clock: &TestClock, days: u32) {
    for day in 0..days {
        if day > 0 {
            clock.step(24);
        }
        upload(areas, &login(clock.now(), &day.to_string()).0).await;
    }
}

async fn kept(areas: &Areas) -> Vec<u64> {
    let history = areas.login.canonical_history(None, 1000).await.unwrap();
    assert_eq!(history.next, None);
    history.versions.iter().map(|summary| summary.version).collect()
}

#[tokio::test]
async fn an_agent_identity_comes_back_to_its_host_alone() {
    let (areas, clock, _directory) = areas().await;
    let (a, b) = (register(&areas, "a.test").await, register(&areas, "b.test").await);
    let (auth, _) = login(clock.now(), "one");
    upload(&areas, &auth).await;
    let canonical = areas.core.canonical().unwrap();
    let shared = canonical.summary.digest;
    assert_eq!(retrieve(&areas, &a, shared).await.outcome, Outcome::Valid);

    // Codex has added it to the file; the login is the same.
    let answer = store(&areas, &a, &with_identity(&auth, IDENTITY)).await.unwrap();
    assert_eq!(answer.outcome, Outcome::Unchanged);
    assert_eq!(areas.core.canonical().unwrap().summary.version, 1, "no new version was made");
    let expected = format!(r#"{},"agent_identity":{IDENTITY}}}"#, canonical.text.strip_suffix('}').unwrap());
    let given = retrieve(&areas, &a, shared).await;
    assert_eq!(given.outcome, Outcome::Outdated, "its file lacks the identity");
    let (text, own) = delivered(&areas, &given);
    assert_eq!(text, expected);
    assert_eq!(retrieve(&areas, &a, own).await.outcome, Outcome::Valid);

    // No other host gets it.
    let of_b = retrieve(&areas, &b, shared).await;
    assert_eq!((of_b.outcome, delivered(&areas, &of_b).0), (Outcome::Valid, canonical.text.to_string()));
    assert_eq!(retrieve(&areas, &b, own).await.outcome, Outcome::Outdated);
    let revealed = areas.login.reveal_canonical(&Initiator::daemon()).await.unwrap().unwrap();
    assert!(!revealed.text.contains("canary"));

    // Neither a newer login of another host nor a store of this host without the identity removes it.
    clock.step(1);
    store(&areas, &b, &login(clock.now(), "two").0).await.unwrap();
    let (text, _) = delivered(&areas, &retrieve(&areas, &a, own).await);
    assert!(text.contains(IDENTITY) && text.contains("rt_two"), "{text}");
    clock.step(1);
    let answer = store(&areas, &a, &login(clock.now(), "three").0).await.unwrap();
    assert_eq!(answer.outcome, Outcome::Updated);
    assert!(delivered(&areas, &answer).0.contains(IDENTITY), "the answer to its own store has it");

    // A new identity replaces it, also with an older login.
    let (old, _) = login(clock.now() - Duration::hours(9), "old");
    let answer = store(&areas, &a, &with_identity(&old, r#""second-canary""#)).await.unwrap();
    assert_eq!(answer.outcome, Outcome::Outdated);
    let (text, _) = delivered(&areas, &answer);
    assert!(text.ends_with(r#","agent_identity":"second-canary"}"#), "{text}");

    // The new key may be for another machine.
    let again = register(&areas, "a.test").await;
    let answer = retrieve(&areas, &again, areas.core.canonical().unwrap().summary.digest).await;
    assert_eq!(answer.outcome, Outcome::Valid);
}

#[tokio::test]
async fn an_agent_identity_outlasts_restarts_rotations_and_is_known_to_every_node() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::new());
    let key;
    let own;
    {
        let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
        let one = node(&directory, "one", records.clone(), clock.clone()).await;
        let two = node(&directory, "two", records.clone(), clock.clone()).await;
        key = register(&one, "a.test").await;
        let (auth, _) = login(clock.now(), "one");
        upload(&one, &auth).await;
        store(&one, &key, &with_identity(&auth, IDENTITY)).await.unwrap();
        two.core.catch_up().await.unwrap();
        let shared = two.core.canonical().unwrap().summary.digest;
        let given = retrieve(&two, &key, shared).await;
        let (text, digest) = delivered(&two, &given);
        assert!(text.contains(IDENTITY), "{text}");
        own = digest;
        one.trust.rotate_keys(&Initiator::daemon()).await.unwrap();
        assert!(delivered(&one, &retrieve(&one, &key, shared).await).0.contains(IDENTITY));
        assert_eq!(retrieve(&one, &key, own).await.outcome, Outcome::Valid);
    }
    let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
    let one = node(&directory, "one", records, clock).await;
    assert_eq!(retrieve(&one, &key, own).await.outcome, Outcome::Valid);
    // It is stored nowhere in the clear.
    for file in walk(directory.path()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(memchr::memmem::find(&bytes, b"canary-of-one-host").is_none(), "{}", file.display());
    }
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn an_agent_identity_that_is_too_long_is_refused_and_one_that_is_known_writes_nothing() {
    let (areas, clock, _directory) = areas().await;
    let key = register(&areas, "a.test").await;
    let (auth, _) = login(clock.now(), "one");
    upload(&areas, &auth).await;
    let of_length = |length: usize| with_identity(&auth, &format!("\"{}\"", "a".repeat(length - 2)));
    match store(&areas, &key, &of_length(16 * 1024 + 1)).await {
        Err(ServiceError::Invalid { field, .. }) => assert_eq!(field, "auth.agent_identity"),
        other => panic!("{:?}", other.map(|sync| sync.outcome)),
    }
    store(&areas, &key, &of_length(16 * 1024)).await.unwrap();
    let before = areas.core.records.audit_head().await.unwrap();
    for identity in [of_length(16 * 1024), with_identity(&auth, "null"), auth.clone()] {
        assert_eq!(store(&areas, &key, &identity).await.unwrap().outcome, Outcome::Unchanged);
    }
    assert_eq!(areas.core.records.audit_head().await.unwrap(), before);
}

#[tokio::test]
async fn an_agent_identity_of_a_refused_login_is_not_kept() {
    let (areas, clock, _directory) = areas().await;
    let key = register(&areas, "a.test").await;
    upload(&areas, &login(clock.now(), "one").0).await;
    let date = &areas.core.canonical().unwrap().summary.last_refresh.clone();
    let other = fixture::chatgpt("account-2", "user-2", "other", None, date).to_string();
    let refused = store(&areas, &key, &with_identity(&other, IDENTITY)).await.map(drop);
    assert!(matches!(refused, Err(ServiceError::OtherAccount { .. })), "{refused:?}");
    let shared = areas.core.canonical().unwrap().summary.digest;
    assert_eq!(retrieve(&areas, &key, shared).await.outcome, Outcome::Valid, "the host has no identity");
}

#[tokio::test]
async fn an_agent_identity_that_came_with_a_replaced_key_is_not_kept() {
    let (areas, clock, _directory) = areas().await;
    let old = register(&areas, "a.test").await;
    let (auth, _) = login(clock.now(), "one");
    upload(&areas, &auth).await;
    let let_in = areas.admission.admit(&areas.admission.credential(&old), HERE, Purpose::Service).await.unwrap();
    // While its call is under way, the host is given a new key.
    let new = register(&areas, "a.test").await;
    let body = format!(r#"{{"command":"store","auth":{}}}"#, with_identity(&auth, IDENTITY));
    let refused = areas.login.sync(let_in, HERE, &body, QueryVersions::default()).await.map(drop);
    assert!(matches!(refused, Err(ServiceError::KeyInvalid)), "{refused:?}");
    let shared = areas.core.canonical().unwrap().summary.digest;
    assert_eq!(retrieve(&areas, &new, shared).await.outcome, Outcome::Valid);
}

#[tokio::test]
async fn a_store_that_fails_does_not_count_against_a_hosts_hour() {
    let (areas, clock, _directory) = areas().await;
    set_versions(&areas, VersionPolicy { keep: 50, stores_per_host_per_hour: 1 });
    let key = register(&areas, "a.test").await;
    // Its first contact binds it, which is a change of its own.
    areas.admission.admit(&areas.admission.credential(&key), HERE, Purpose::Service).await.unwrap();
    let note = Initiator::daemon().note(clock.now(), "store.standstill");
    let standstill = Standstill { reason: "the records are being moved".into(), since: clock.now() };
    areas.core.records.standstill_set(Some(&standstill), &note).await.unwrap();
    let auth = login(clock.now(), "one").0;
    for _ in 0..3 {
        let failed = store(&areas, &key, &auth).await.map(drop);
        assert!(matches!(failed, Err(ServiceError::StandsStill { .. })), "{failed:?}");
    }
    areas.core.records.standstill_set(None, &note).await.unwrap();
    assert_eq!(store(&areas, &key, &auth).await.unwrap().outcome, Outcome::Updated);
}

/// The refusal of another account is written to the audit log.
#[tokio::test]
async fn logins_of_another_account_count_against_a_hosts_hour() {
    let (areas, clock, _directory) = areas().await;
    set_versions(&areas, VersionPolicy { keep: 50, stores_per_host_per_hour: 2 });
    let key = register(&areas, "a.test").await;
    upload(&areas, &login(clock.now(), "one").0).await;
    let at = login(clock.now(), "two").1;
    let other = fixture::chatgpt("account-2", "user-1", "two", None, &at).to_string();
    for _ in 0..2 {
        let refused = store(&areas, &key, &other).await.map(drop);
        assert!(matches!(refused, Err(ServiceError::OtherAccount { .. })), "{refused:?}");
    }
    let limited = store(&areas, &key, &other).await.map(drop);
    assert!(matches!(limited, Err(ServiceError::StoresLimited(_))), "{limited:?}");
}

/// In that kind of login, the member of this name is the login itself.
#[tokio::test]
async fn an_agent_identity_takes_the_place_of_no_login() {
    let (areas, clock, _directory) = areas().await;
    let key = register(&areas, "a.test").await;
    let (auth, _) = login(clock.now(), "one");
    upload(&areas, &auth).await;
    store(&areas, &key, &with_identity(&auth, IDENTITY)).await.unwrap();
    clock.step(1);
    let token = fixture::jwt(&json!({ "agent_runtime_id": "the login itself" }));
    let agent = json!({ "auth_mode": "agentIdentity", "agent_identity": token });
    let body = json!({ "auth": agent, "change_account": true }).to_string();
    areas.login.upload(&body, &Initiator::daemon()).await.unwrap();
    let canonical = areas.core.canonical().unwrap();
    assert!(canonical.text.contains(&token));
    let given = retrieve(&areas, &key, canonical.summary.digest).await;
    assert_eq!((given.outcome, delivered(&areas, &given).0), (Outcome::Valid, canonical.text.to_string()));
}

#[tokio::test]
async fn old_versions_are_removed_and_a_call_that_names_one_is_told() {
    let (areas, clock, _directory) = areas().await;
    store_daily(&areas, &clock, 40).await;
    set_versions(&areas, VersionPolicy { keep: 50, ..VersionPolicy::default() });
    assert_eq!(areas.login.prune_versions().await.unwrap(), 0, "so many are kept, whatever their age");
    set_versions(&areas, VersionPolicy { keep: 5, ..VersionPolicy::default() });
    // The last 30 days are kept: versions 10 to 40.
    assert_eq!(areas.login.prune_versions().await.unwrap(), 9);
    assert_eq!(kept(&areas).await, (10..=40).rev().collect::<Vec<_>>());
    for named in
        [areas.login.roll_back(9, &Initiator::daemon()).await.map(drop), areas.login.diff(9, 40).await.map(drop)]
    {
        let told = named.unwrap_err();
        assert!(matches!(told, ServiceError::VersionNotKept(9)), "{told:?}");
        assert!(told.to_string().contains("auth.keep_versions"), "{told}");
    }
    for unknown in [0, 41] {
        let told = areas.login.roll_back(unknown, &Initiator::daemon()).await.map(drop).unwrap_err();
        assert!(matches!(told, ServiceError::NotFound("Version")), "{told:?}");
    }
    areas.login.roll_back(10, &Initiator::daemon()).await.unwrap();
    // A year without a store.
    clock.step(365 * 24);
    areas.login.prune_versions().await.unwrap();
    assert_eq!(kept(&areas).await, [41, 40, 39, 38, 37]);
    assert!(areas.audit.verify_audit(None).await.unwrap().broken.is_none());
    areas.trust.rotate_keys(&Initiator::daemon()).await.unwrap();
}

/// More than one transaction removes.
#[tokio::test]
async fn any_number_of_old_versions_is_removed() {
    let (areas, clock, _directory) = areas().await;
    store_daily(&areas, &clock, 231).await;
    set_versions(&areas, VersionPolicy { keep: 1, ..VersionPolicy::default() });
    clock.step(31 * 24);
    assert_eq!(areas.login.prune_versions().await.unwrap(), 230);
    assert_eq!(kept(&areas).await, [231]);
}

#[tokio::test]
async fn a_store_has_old_versions_removed() {
    let (areas, clock, _directory) = areas().await;
    let areas = Arc::new(areas);
    store_daily(&areas, &clock, 3).await;
    set_versions(&areas, VersionPolicy { keep: 2, ..VersionPolicy::default() });
    let (stop, stopping) = watch::channel(false);
    let (looked, mut looks) = watch::channel(0);
    let pruning = areas.clone();
    let looking = tokio::spawn(async move {
        let report = |outcome: Result<()>| looked.send_modify(|rounds| *rounds += outcome.map_or(0, |()| 1));
        pruning.login.look_after_versions(std::time::Duration::from_millis(1), stopping, report).await;
    });
    // Once at the start, and once more for the stores before it.
    bounded(looks.wait_for(|rounds| *rounds >= 2)).await.unwrap();
    assert_eq!(kept(&areas).await, [3, 2, 1]);
    clock.step(31 * 24);
    upload(&areas, &login(clock.now(), "new").0).await;
    // The hourly round is farther away than the bound of this wait.
    bounded(looks.wait_for(|rounds| *rounds >= 3)).await.unwrap();
    assert_eq!(kept(&areas).await, [4, 3]);
    stop.send_replace(true);
    bounded(looking).await.unwrap();
}

async fn bounded<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(60), what).await.expect("it takes too long")
}

#[tokio::test]
async fn the_history_is_read_page_by_page() {
    let (areas, clock, _directory) = areas().await;
    store_daily(&areas, &clock, 7).await;
    let (mut before, mut pages) = (None, Vec::new());
    loop {
        let page = areas.login.canonical_history(before, 3).await.unwrap();
        pages.push(page.versions.iter().map(|summary| summary.version).collect::<Vec<_>>());
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(pages, [vec![7, 6, 5], vec![4, 3, 2], vec![1]]);
    let all = areas.login.canonical_history(None, 7).await.unwrap();
    assert_eq!((all.versions.len(), all.next), (7, None), "a full page that is the last one");
}

#[tokio::test]
async fn a_host_stores_so_many_new_logins_within_an_hour() {
    let (areas, clock, _directory) = areas().await;
    set_versions(&areas, VersionPolicy { stores_per_host_per_hour: 3, ..VersionPolicy::default() });
    let (a, b) = (register(&areas, "a.test").await, register(&areas, "b.test").await);
    let mut made = 0;
    let mut newer = |clock: &TestClock| {
        made += 1;
        clock.go_on(Duration::SECOND);
        login(clock.now(), &made.to_string()).0
    };
    let first = clock.now();
    for _ in 0..3 {
        let auth = newer(&clock);
        assert_eq!(store(&areas, &a, &auth).await.unwrap().outcome, Outcome::Updated);
        // A store that makes no version is not counted.
        for _ in 0..5 {
            assert_eq!(store(&areas, &a, &auth).await.unwrap().outcome, Outcome::Unchanged);
            let old = login(first - Duration::DAY, "old").0;
            assert_eq!(store(&areas, &a, &old).await.unwrap().outcome, Outcome::Outdated);
        }
    }
    let auth = newer(&clock);
    let refused = store(&areas, &a, &auth).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("auth.stores_per_host_per_hour"), "{refused}");
    match refused {
        ServiceError::StoresLimited(throttled) => {
            assert_eq!(throttled.limit, 3);
            assert!((3590..=3600).contains(&throttled.retry_after_seconds), "{throttled:?}");
        }
        other => panic!("{other:?}"),
    }
    // An agent identity is a write, too, so it is counted.
    let same = areas.core.canonical().unwrap().text.to_string();
    let refused = store(&areas, &a, &with_identity(&same, IDENTITY)).await.map(drop);
    assert!(matches!(refused, Err(ServiceError::StoresLimited(_))));
    assert_eq!(retrieve(&areas, &a, Digest::of(b"")).await.outcome, Outcome::Outdated, "it is served all the same");
    // Other hosts and admins may still store.
    assert_eq!(store(&areas, &b, &auth).await.unwrap().outcome, Outcome::Updated);
    for _ in 0..9 {
        let auth = newer(&clock);
        upload(&areas, &auth).await;
    }
    clock.go_on(Duration::HOUR);
    let auth = newer(&clock);
    assert_eq!(store(&areas, &a, &auth).await.unwrap().outcome, Outcome::Updated);
    set_versions(&areas, VersionPolicy { stores_per_host_per_hour: 0, ..VersionPolicy::default() });
    for _ in 0..9 {
        let auth = newer(&clock);
        assert_eq!(store(&areas, &a, &auth).await.unwrap().outcome, Outcome::Updated);
    }
}
