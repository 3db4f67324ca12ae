//! Tests of a daemon whose wall clock is set by hours while it runs.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use time::{Duration, OffsetDateTime};

use crate::hot::Hot;
use crate::hot::throttle::{Limits, Throttle};
use crate::metrics::Metrics;
use crate::model::auth_document::{DocumentRules, fixture};
use crate::platform::{Clock, SecureRandom, System};
use crate::records::Records;
use crate::records::embedded::Embedded;
use crate::service::admission::Purpose;
use crate::service::core::boot;
use crate::service::error::InstallerRefusal;
use crate::service::hosts::enrol::HostOptions;
use crate::service::login::sync::{Outcome, QueryVersions};
use crate::service::{Adapters, Areas, Initiator, Parts, Policy, ServiceError};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(in crate::service) struct TestClock(Mutex<OffsetDateTime>);

impl TestClock {
    /// Starts at the present time.
    pub(in crate::service) fn new() -> Self {
        Self(Mutex::new(System.now()))
    }

    pub(in crate::service) fn go_on(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }

    pub(in crate::service) fn step(&self, hours: i64) {
        *self.0.lock().unwrap() += Duration::hours(hours);
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap()
    }
}

impl SecureRandom for TestClock {
    fn fill(&self, buffer: &mut [u8]) {
        System.fill(buffer);
    }
}

pub(in crate::service) async fn areas() -> (Areas, Arc<TestClock>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock(Mutex::new(OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap())));
    let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
    (node(&directory, "hot", records, clock.clone()).await, clock, directory)
}

/// One of the daemons that share the records; `hot` is its own.
pub(in crate::service) async fn node(
    directory: &tempfile::TempDir,
    hot: &str,
    records: Arc<dyn Records>,
    clock: Arc<TestClock>,
) -> Areas {
    let hot = Hot::open(&directory.path().join(hot), &*clock).unwrap();
    node_on(directory, hot, records, clock).await
}

pub(in crate::service) async fn node_on(
    directory: &tempfile::TempDir,
    hot: Hot,
    records: Arc<dyn Records>,
    clock: Arc<TestClock>,
) -> Areas {
    let hot = Arc::new(hot);
    let secrets = boot::unlock(&*records, &directory.path().join("master.key"), None, &*clock).await.unwrap();
    let limits = Limits {
        global_per_minute: 0,
        host_per_minute: 0,
        auth_fail_count: 3,
        auth_fail_window_seconds: 600,
        auth_fail_block_seconds: 1800,
    };
    let policy = Policy {
        base_url: "https://auth.test".into(),
        base_url_doubt: None,
        config_file: String::new(),
        trusted_ca_pem: String::new(),
        host_certificate: Default::default(),
        server_pin: None,
        install_token_ttl: Duration::minutes(30),
        insecure_window: Duration::minutes(30),
        ipv6_prefix: 64,
        codex_release_url: String::new(),
        codex_release_sha256: String::new(),
        document_rules: DocumentRules { min_token_length: 8, strict: true },
        versions: crate::service::core::policy::VersionPolicy::default(),
        people: crate::service::core::policy::PeoplePolicy::default(),
    };
    let parts = Parts {
        records,
        hot,
        throttle: Throttle::new(limits),
        platform: clock.clone(),
        policy,
        secrets: Arc::new(secrets),
        metrics: Arc::new(Metrics::new(&crate::api::operations(), clock.now()).unwrap()),
    };
    Areas::start(parts, Adapters::default()).await.unwrap()
}

pub(in crate::service) fn login(at: OffsetDateTime, tag: &str) -> (String, String) {
    let at = at.format(&time::format_description::well_known::Rfc3339).unwrap();
    (fixture::chatgpt("account-1", "user-1", tag, None, &at).to_string(), at)
}

#[tokio::test]
async fn an_installer_token_lives_no_longer_because_the_clock_was_set_back() {
    let (areas, clock, _directory) = areas().await;
    let over = ServiceError::Installer(InstallerRefusal::Expired).to_string();
    for hours in [-5, 5] {
        let token = areas
            .hosts
            .register("h1.test", HostOptions::default(), &Initiator::daemon())
            .await
            .unwrap()
            .installer
            .token;
        clock.step(hours);
        let refused = areas.hosts.redeem(token.expose(), HERE).await.err().expect("it is over").to_string();
        assert_eq!(refused, over, "{hours} h");
        clock.step(-hours);
        areas.hosts.redeem(token.expose(), HERE).await.unwrap();
    }
}

#[tokio::test]
async fn the_window_of_an_insecure_host_stays_open_no_longer_because_the_clock_was_set_back() {
    let (areas, clock, _directory) = areas().await;
    let made = areas
        .hosts
        .register("h1.test", HostOptions { secure: Some(false), ..HostOptions::default() }, &Initiator::daemon())
        .await
        .unwrap();
    let (id, key) = (made.host.host.id, made.api_key.expose());
    areas.admission.admit(&areas.admission.credential(key), HERE, Purpose::Service).await.unwrap();
    for hours in [-5, 5] {
        clock.step(hours);
        let refused = areas.admission.admit(&areas.admission.credential(key), HERE, Purpose::Service).await;
        assert!(matches!(refused, Err(ServiceError::InsecureClosed)), "{hours} h");
        // An admin can open it by the clock as it is now.
        areas.hosts.open_window(id, &Initiator::daemon()).await.unwrap();
        areas.admission.admit(&areas.admission.credential(key), HERE, Purpose::Service).await.unwrap();
        clock.step(-hours);
        areas.hosts.open_window(id, &Initiator::daemon()).await.unwrap();
    }
}

#[tokio::test]
async fn hosts_that_have_the_login_are_served_by_a_clock_that_was_set_back() {
    let (areas, clock, _directory) = areas().await;
    let key = areas.hosts.register("h1.test", HostOptions::default(), &Initiator::daemon()).await.unwrap().api_key;
    let (auth, at) = login(clock.now(), "one");
    areas.login.upload(&format!("{{\"auth\":{auth}}}"), &Initiator::daemon()).await.unwrap();
    let digest = areas.core.canonical().unwrap().summary.digest;
    clock.step(-5);
    let host = areas.admission.admit(&areas.admission.credential(key.expose()), HERE, Purpose::Service).await.unwrap();
    for (digest, outcome) in [(digest.to_string(), Outcome::Valid), ("0".repeat(64), Outcome::Outdated)] {
        let body = serde_json::json!({ "command": "retrieve", "digest": digest, "last_refresh": at }).to_string();
        let answer = areas.login.sync(host.clone(), HERE, &body, QueryVersions::default()).await.unwrap();
        assert_eq!(answer.outcome, outcome);
    }
    let again = format!("{{\"command\":\"store\",\"auth\":{auth}}}");
    assert_eq!(
        areas.login.sync(host.clone(), HERE, &again, QueryVersions::default()).await.unwrap().outcome,
        Outcome::Unchanged
    );
    // A login that is not the canonical one is refused if it is in the future.
    let (ahead, _) = login(clock.now() + Duration::hours(6), "two");
    let ahead = format!("{{\"command\":\"store\",\"auth\":{ahead}}}");
    let refused = areas.login.sync(host, HERE, &ahead, QueryVersions::default()).await;
    assert!(matches!(refused, Err(ServiceError::Invalid { .. })));
}

#[tokio::test]
async fn what_a_host_tells_of_itself_is_taken_from_a_clock_that_was_set_back() {
    let (areas, clock, _directory) = areas().await;
    let key = areas.hosts.register("h1.test", HostOptions::default(), &Initiator::daemon()).await.unwrap().api_key;
    for (hours, version) in [(0, "0.168.0"), (-5, "0.169.0"), (10, "0.170.0")] {
        clock.step(hours);
        let host =
            areas.admission.admit(&areas.admission.credential(key.expose()), HERE, Purpose::Service).await.unwrap();
        let body = serde_json::json!({
            "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z",
            "client_version": version,
        });
        areas.login.sync(host.clone(), HERE, &body.to_string(), QueryVersions::default()).await.unwrap();
        assert_eq!(host.activity().client_version.as_deref(), Some(version));
        areas.hosts.gather_telemetry().await.unwrap();
        areas.hosts.drain_outbox().await.unwrap();
        let kept = areas.core.records.host_activity(host.id).await.unwrap();
        assert_eq!(kept.client_version.as_deref(), Some(version), "in the records as well");
    }
}

#[tokio::test]
async fn nobody_is_blocked_for_longer_because_the_clock_was_set() {
    for hours in [-5, 5] {
        let (areas, clock, _directory) = areas().await;
        for _ in 0..3 {
            assert!(matches!(
                areas.admission.admit(&areas.admission.credential("wrong"), HERE, Purpose::Service).await,
                Err(ServiceError::KeyInvalid)
            ));
        }
        assert!(matches!(
            areas.admission.admit(&areas.admission.credential("wrong"), HERE, Purpose::Service).await,
            Err(ServiceError::AuthBlocked(_))
        ));
        clock.step(hours);
        if hours < 0 {
            // The block lasts as long as intended, counted from the new time.
            let blocked = areas.admission.admit(&areas.admission.credential("wrong"), HERE, Purpose::Service).await;
            assert!(matches!(blocked, Err(ServiceError::AuthBlocked(_))));
            clock.step(1);
        }
        assert!(
            matches!(
                areas.admission.admit(&areas.admission.credential("wrong"), HERE, Purpose::Service).await,
                Err(ServiceError::KeyInvalid)
            ),
            "{hours} h"
        );
    }
}
