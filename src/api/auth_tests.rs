//! Tests of `POST /auth` through the whole hosts' listener.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use poem::endpoint::BoxEndpoint;
use poem::http::uri::Scheme;
use poem::http::{HeaderValue, Request as HttpRequest};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Body, Endpoint as _, EndpointExt as _, Request, RequestParts};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::errors::rfc3339;
use crate::hot::throttle::{Limits, Throttle};
use crate::hot::{Hot, HotHost};
use crate::metrics::Metrics;
use crate::model::auth_document::DocumentRules;
use crate::model::auth_document::fixture;
use crate::model::digest::Digest;
use crate::model::forwarded::TrustedProxies;
use crate::platform::{Clock, SecureRandom};
use crate::records::conformance::{at, noted};
use crate::records::embedded::Embedded;
use crate::records::{HostChange, Records};
use crate::service::admission::Credential;
use crate::service::hosts::enrol::HostOptions;
use crate::service::{Adapters, Areas, Initiator, Parts, Policy, core::boot};

/// A clock that the test sets, and deterministic random bytes.
struct Turned {
    now: Mutex<OffsetDateTime>,
    asked: AtomicU64,
}

impl Clock for Turned {
    fn now(&self) -> OffsetDateTime {
        *self.now.lock().unwrap()
    }
}

impl SecureRandom for Turned {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(32) {
            let asked = self.asked.fetch_add(1, Ordering::SeqCst);
            chunk.copy_from_slice(&Digest::of(&asked.to_be_bytes()).as_bytes()[..chunk.len()]);
        }
    }
}

pub struct World {
    platform: Arc<Turned>,
    records: Arc<dyn Records>,
    pub areas: Arc<Areas>,
    pub listener: BoxEndpoint<'static>,
    pub keys: Vec<String>,
    _directory: tempfile::TempDir,
}

pub const LIMITS: Limits = Limits {
    global_per_minute: 0,
    host_per_minute: 0,
    auth_fail_count: 3,
    auth_fail_window_seconds: 600,
    auth_fail_block_seconds: 1800,
};

fn policy(base_url: &str) -> Policy {
    Policy {
        base_url: base_url.into(),
        base_url_doubt: None,
        config_file: String::new(),
        trusted_ca_pem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into(),
        host_certificate: Default::default(),
        server_pin: None,
        install_token_ttl: Duration::minutes(30),
        insecure_window: Duration::minutes(10),
        ipv6_prefix: 64,
        codex_release_url: "https://releases.example.test/codex".into(),
        codex_release_sha256: String::new(),
        document_rules: DocumentRules::default(),
        versions: crate::service::core::policy::VersionPolicy::default(),
        people: crate::service::core::policy::PeoplePolicy::default(),
    }
}

impl World {
    pub async fn new(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let platform = Arc::new(Turned { now: Mutex::new(at(0)), asked: AtomicU64::new(0) });
        let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
        let hot = Arc::new(Hot::open(&directory.path().join("hot"), &*platform).unwrap());
        let master = directory.path().join("master.key");
        let secrets = Arc::new(boot::unlock(&*records, &master, None, &*platform).await.unwrap());
        let parts = Parts {
            records: records.clone(),
            hot,
            throttle: Throttle::new(limits),
            platform: platform.clone(),
            policy: policy("https://auth.example.test:8443"),
            secrets,
            metrics: Arc::new(Metrics::new(&crate::api::operations(), at(0)).unwrap()),
        };
        let areas = Arc::new(Areas::start(parts, Adapters::default()).await.unwrap());
        let listener = super::hosts_listener(areas.clone(), Arc::new(TrustedProxies::new(Vec::new(), None))).boxed();
        Self { platform, records, areas, listener, keys: Vec::new(), _directory: directory }
    }

    pub async fn add_host(&mut self, name: &str, secure: Option<bool>) {
        let registered = self
            .areas
            .hosts
            .register(name, HostOptions { secure, ..HostOptions::default() }, &Initiator::daemon())
            .await
            .unwrap();
        self.keys.push(registered.api_key.expose().to_owned());
    }

    fn turn_clock(&self, by: Duration) {
        *self.platform.now.lock().unwrap() += by;
    }

    /// One secure host and one shared host.
    async fn with_two_hosts(limits: Limits) -> Self {
        let mut world = Self::new(limits).await;
        world.add_host("h1.example.test", None).await;
        world.add_host("h2.example.test", Some(false)).await;
        world
    }

    async fn upload(&self, last_refresh: &str) {
        let body = json!({ "auth": document(last_refresh) }).to_string();
        self.areas.login.upload(&body, &Initiator::daemon()).await.unwrap();
    }

    async fn ask(&self, ask: &Ask) -> Answered {
        let mut request = HttpRequest::post(ask.path);
        match &ask.key {
            Key::Header(host) => request = request.header("X-API-Key", &self.keys[*host]),
            Key::Bearer(host) => request = request.header("Authorization", format!("Bearer {}", self.keys[*host])),
            Key::Other(name, value) => {
                request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            Key::None => {}
        }
        for content_type in &ask.content_type {
            request = request.header("Content-Type", *content_type);
        }
        request = request.header("Content-Length", ask.body.len());
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let remote = RemoteAddr(Addr::SocketAddr(SocketAddr::new(ask.from, 40000)));
        let parts = RequestParts::from((parts, LocalAddr::default(), remote, Scheme::HTTP));
        let request = Request::from_parts(parts, Body::from_vec(ask.body.clone()));
        let mut answer = self.listener.get_response(request).await;
        let headers = answer.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        Answered { status: answer.status().as_u16(), headers, body: answer.take_body().into_string().await.unwrap() }
    }
}

#[derive(Debug, PartialEq)]
struct Answered {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

#[derive(Clone, Debug)]
enum Key {
    Header(usize),
    Bearer(usize),
    Other(&'static str, &'static str),
    None,
}

#[derive(Clone, Debug)]
struct Ask {
    path: &'static str,
    key: Key,
    content_type: Vec<&'static str>,
    from: IpAddr,
    body: Vec<u8>,
}

fn ask(key: Key, body: impl Into<Vec<u8>>) -> Ask {
    let from = IpAddr::from([192, 0, 2, 1]);
    Ask { path: "/auth", key, content_type: vec!["application/json"], from, body: body.into() }
}

impl World {
    /// Makes every kind of retrieve from both hosts. Each answer must describe its host and the current canonical
    /// login.
    async fn retrieves(&self, statuses: [&str; 3]) {
        let canonical = self.areas.core.canonical();
        let same = canonical.as_ref().map_or_else(|| "0".repeat(64), |canonical| canonical.summary.digest.to_string());
        for (host, fqdn) in [(0, "h1.example.test"), (1, "h2.example.test")] {
            for key in [Key::Header(host), Key::Bearer(host)] {
                for (digest, last_refresh, status) in [
                    (same.as_str(), "2026-09-20T09:27:43.373506211Z", statuses[0]),
                    (&"1".repeat(64), "2026-01-01T00:00:00Z", statuses[1]),
                    (&"1".repeat(64), "2026-09-21T13:00:00Z", statuses[2]),
                ] {
                    let calls = self.host(host).activity().api_calls;
                    let body = json!({ "command": "retrieve", "digest": digest, "last_refresh": last_refresh });
                    let answered = self.ask(&ask(key.clone(), body.to_string())).await;
                    assert_eq!(status_of(&answered), status, "{answered:?}");
                    let data = data_of(&answered);
                    assert_eq!((&data["host"]["fqdn"], &data["api_calls"]), (&json!(fqdn), &json!(calls + 1)));
                    assert_eq!(data["host"]["api_calls"], data["api_calls"]);
                    let digest = canonical.as_ref().map(|canonical| canonical.summary.digest.to_string());
                    assert_eq!(data["canonical_digest"], json!(digest));
                    let document = answered.body.split_once("\"auth\":").map(|(_, rest)| &rest[..rest.len() - 2]);
                    let given = canonical.as_ref().filter(|_| status == "outdated").map(|canonical| &**canonical.text);
                    assert_eq!(document, given);
                    self.assert_present(&data, &self.host(host));
                }
            }
        }
    }

    fn host(&self, host: usize) -> Arc<HotHost> {
        match self.areas.admission.credential(&self.keys[host]) {
            Credential::Host(_, host) => host,
            _ => panic!("the key of no host"),
        }
    }

    /// The host in the answer must match the current records and settings.
    fn assert_present(&self, data: &Value, host: &HotHost) {
        assert_eq!(data["host"]["allow_roaming_ips"], json!(host.rules.allow_roaming_ips));
        let until = |until: Option<OffsetDateTime>| json!(until.map(rfc3339));
        assert_eq!(data["host"]["insecure_grace_until"], until(host.rules.insecure_grace_until));
        assert_eq!(data["host"]["insecure_enabled_until"], until(host.rules.insecure_enabled_until));
        let settings = self.areas.core.settings();
        let release = settings.client_release.as_ref().map(|release| &release.version);
        assert_eq!(data["versions"]["client_version"], json!(release));
        let wrapper = self.areas.hosts.wrapper(host).unwrap().digest.to_string();
        assert_eq!(data["versions"]["wrapper_sha256"], json!(wrapper));
    }
}

fn status_of(answered: &Answered) -> String {
    let body: Value = serde_json::from_str(&answered.body).unwrap();
    body["data"]["status"].as_str().or(body["code"].as_str()).unwrap().to_owned()
}

fn data_of(answered: &Answered) -> Value {
    serde_json::from_str::<Value>(&answered.body).unwrap()["data"].take()
}

fn bucket_of(answered: &Answered) -> String {
    let body: Value = serde_json::from_str(&answered.body).unwrap();
    body["data"]["bucket"].as_str().unwrap().to_owned()
}

fn document(last_refresh: &str) -> Value {
    let token = "Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6";
    // Uses names that the answer also has, to test that the document is cut out of the answer correctly.
    json!({ "api_calls": 0, "OPENAI_API_KEY": token, "last_refresh": last_refresh, "nested": { "api_calls": 7, "é": "\"api_calls\":1}}" } })
}

const KINDS: [&str; 3] = ["valid", "outdated", "upload_required"];
const CANONICAL: &str = "2026-09-20T09:27:43.373506211Z";

#[tokio::test]
async fn each_answer_follows_every_change() {
    let mut world = World::with_two_hosts(LIMITS).await;
    world.retrieves(["missing"; 3]).await;
    world.upload(CANONICAL).await;
    world.retrieves(KINDS).await;

    // Parts of answers that do not depend on the host.
    world.areas.hosts.note_client_release("rust-v0.170.0").await.unwrap();
    world.retrieves(KINDS).await;
    world.areas.core.set_policy(policy("https://other.example.test"));
    world.retrieves(KINDS).await;
    world.upload("2026-09-20T10:00:00Z").await;
    world.retrieves(KINDS).await;
    world.areas.trust.rotate_keys(&Initiator::daemon()).await.unwrap();
    world.retrieves(KINDS).await;

    // The host's rules.
    for change in [
        HostChange { allow_roaming_ips: Some(true), ..HostChange::default() },
        HostChange { insecure_grace_until: Some(Some(at(900))), ..HostChange::default() },
        HostChange { insecure_enabled_until: Some(Some(at(1000))), ..HostChange::default() },
        HostChange { insecure_grace_until: Some(None), ..HostChange::default() },
    ] {
        world.turn_clock(Duration::seconds(1));
        for host in world.records.host_list().await.unwrap() {
            world.records.host_change(host.id, &change, world.platform.now(), &noted()).await.unwrap();
        }
        world.areas.core.catch_up().await.unwrap();
        world.retrieves(KINDS).await;
    }

    // The host's activity, after it is gathered and drained.
    world.areas.hosts.gather_telemetry().await.unwrap();
    world.areas.hosts.drain_outbox().await.unwrap();
    world.retrieves(KINDS).await;

    // Roaming, a new key, and the end of a window.
    let elsewhere = |host| {
        let body = json!({ "digest": "1".repeat(64), "last_refresh": CANONICAL }).to_string();
        Ask { from: IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]), ..ask(Key::Header(host), body) }
    };
    assert_eq!(status_of(&world.ask(&elsewhere(0)).await), "outdated");
    world.add_host("h1.example.test", None).await;
    assert_eq!(status_of(&world.ask(&elsewhere(0)).await), "key_invalid");
    assert_eq!(status_of(&world.ask(&elsewhere(2)).await), "outdated");
    world.turn_clock(Duration::hours(1));
    assert_eq!(status_of(&world.ask(&elsewhere(1)).await), "insecure_closed");
}

/// Compares every byte, because hosts and clients of the recorded service read it.
#[tokio::test]
async fn an_answer_is_these_bytes() {
    let world = World::with_two_hosts(LIMITS).await;
    world.upload(CANONICAL).await;
    world.areas.hosts.note_client_release("rust-v0.170.0").await.unwrap();
    let canonical = world.areas.core.canonical().unwrap();
    let digest = canonical.summary.digest.to_string();
    let body =
        json!({ "digest": digest, "last_refresh": CANONICAL, "client_version": "0.169.0", "wrapper_version": "0.1.0" });
    let expected = |calls: u64, last_refresh: &str| {
        let wrapper = world.areas.hosts.wrapper(&world.host(0)).unwrap();
        format!(
            concat!(
                r#"{{"status":"ok","data":{{"status":"valid","canonical_last_refresh":"{canonical}","canonical_digest":"{digest}","#,
                r#""api_calls":{calls},"token_usage_month":{{"total":0,"input":0,"output":0,"cached":0,"reasoning":0,"events":0}},"#,
                r#""host":{{"fqdn":"h1.example.test","status":"active","last_refresh":{last_refresh},"updated_at":"{at}","#,
                r#""client_version":"0.169.0","wrapper_version":"0.1.0","api_calls":{calls},"allow_roaming_ips":false,"secure":true,"#,
                r#""insecure_enabled_until":null,"insecure_grace_until":null}},"versions":{{"client_version":"0.170.0","#,
                r#""client_version_checked_at":"{at}","client_version_source":"cache","wrapper_version":"{version}","#,
                r#""wrapper_sha256":"{wrapper}","wrapper_url":"/wrapper/download","reported_client_version":"0.169.0","#,
                r#""quota_hard_fail":true}},"quota_hard_fail":true}}}}"#
            ),
            canonical = CANONICAL,
            digest = digest,
            calls = calls,
            last_refresh = last_refresh,
            at = rfc3339(at(0)),
            version = wrapper.version,
            wrapper = wrapper.digest,
        )
    };
    let headers = [
        ("content-type", "application/json"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store, must-revalidate"),
    ];
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    // The first answer has the state before the call.
    for (calls, last_refresh) in
        [(1, "null".to_owned()), (2, format!("\"{CANONICAL}\"")), (3, format!("\"{CANONICAL}\""))]
    {
        let answered = world.ask(&ask(Key::Header(0), body.to_string())).await;
        assert_eq!((answered.status, &answered.headers), (200, &headers));
        assert_eq!(answered.body, expected(calls, &last_refresh));
    }
}

#[tokio::test]
async fn a_host_stores_and_is_refused() {
    let world = World::with_two_hosts(LIMITS).await;
    let store = |last_refresh: &str| json!({ "command": " STORE ", "auth": document(last_refresh) }).to_string();
    for (last_refresh, status) in
        [(CANONICAL, "updated"), (CANONICAL, "unchanged"), ("2026-01-01T00:00:00Z", "outdated"), ("nope", "invalid")]
    {
        assert_eq!(status_of(&world.ask(&ask(Key::Header(0), store(last_refresh))).await), status);
    }
    // The document itself as the body.
    let mut bare = document("2026-09-20T11:00:00Z");
    bare["tokens"] = Value::Null;
    assert_eq!(status_of(&world.ask(&ask(Key::Bearer(0), bare.to_string())).await), "updated");

    let digest = "1".repeat(64);
    let good = json!({ "digest": digest, "last_refresh": CANONICAL }).to_string();
    let refused: Vec<(Vec<u8>, u16)> = vec![
        (b"".to_vec(), 422),
        (b"[]".to_vec(), 422),
        (b"{".to_vec(), 400),
        (b"\xff".to_vec(), 400),
        (format!(r#"{{"digest":"{digest}","digest":"{digest}","last_refresh":"{CANONICAL}"}}"#).into(), 400),
        (format!(r#"{{"digest":"{digest}","d\u0069gest":"{digest}","last_refresh":"{CANONICAL}"}}"#).into(), 400),
        (json!({ "digest": "12", "last_refresh": CANONICAL }).to_string().into(), 422),
        (json!({ "digest": digest }).to_string().into(), 422),
        (json!({ "digest": digest, "last_refresh": "1999-01-01T00:00:00Z" }).to_string().into(), 422),
        (json!({ "digest": digest, "last_refresh": CANONICAL, "command": "sync" }).to_string().into(), 422),
        (json!({ "digest": digest, "last_refresh": CANONICAL, "command": 1 }).to_string().into(), 422),
        (json!({ "command": "store" }).to_string().into(), 422),
        (vec![b' '; 1024 * 1024 + 1], 413),
        (vec![b' '; 1024 * 1024], 422),
    ];
    for (body, status) in refused {
        assert_eq!(world.ask(&ask(Key::Header(0), body)).await.status, status);
    }
    for (content_type, status) in [
        (vec![], 200),
        (vec!["application/json; charset=utf-8"], 200),
        (vec!["Application/Problem+JSON"], 200),
        (vec!["text/plain"], 415),
        (vec!["application/json", "text/plain"], 200),
    ] {
        let asked = Ask { content_type, ..ask(Key::Header(0), good.as_str()) };
        assert_eq!(world.ask(&asked).await.status, status, "{asked:?}");
    }
    let elsewhere = Ask { from: IpAddr::from([192, 0, 2, 9]), ..ask(Key::Header(0), good.as_str()) };
    assert_eq!(status_of(&world.ask(&elsewhere).await), "address_refused");
    world.areas.admission.disable_api(true, None, &Initiator::daemon()).await.unwrap();
    assert_eq!(world.ask(&ask(Key::Header(0), good.as_str())).await.status, 503);
    world.areas.admission.disable_api(false, None, &Initiator::daemon()).await.unwrap();
    assert_eq!(world.ask(&ask(Key::Header(0), good.as_str())).await.status, 200);
}

#[tokio::test]
async fn a_failure_counts_once_and_a_request_once() {
    let world = World::with_two_hosts(Limits { global_per_minute: 9, host_per_minute: 30, ..LIMITS }).await;
    let body = json!({ "digest": "1".repeat(64), "last_refresh": CANONICAL }).to_string();
    for (key, code) in [
        (Key::None, "key_missing"),
        (Key::Other("x-api-key", "  "), "key_missing"),
        (Key::Other("x-api-key", "wrong"), "key_invalid"),
        (Key::Other("authorization", "bearer wrong"), "key_invalid"),
        (Key::Other("x-api-key", "é"), "key_missing"),
        (Key::Other("authorization", "Basic d3Jvbmc6"), "key_missing"),
        (Key::Header(0), "missing"),
        (Key::Other("x-api-key", "wrong"), "key_invalid"),
        (Key::Other("x-api-key", "wrong"), "auth_blocked"),
        (Key::Header(0), "missing"),
    ] {
        assert_eq!(status_of(&world.ask(&ask(key, body.as_str())).await), code);
    }
    // Eight requests had no valid key. A valid key is counted only for itself, however often its address was refused.
    for (code, bucket) in [("auth_blocked", "auth_failures"), ("rate_limited", "global"), ("rate_limited", "global")] {
        let refused = world.ask(&ask(Key::Other("x-api-key", "wrong"), body.as_str())).await;
        assert_eq!((refused.status, status_of(&refused).as_str(), bucket_of(&refused).as_str()), (429, code, bucket));
    }
    for _ in 0..28 {
        assert_eq!(world.ask(&ask(Key::Header(0), body.as_str())).await.status, 200);
    }
    let limited = world.ask(&ask(Key::Header(0), body.as_str())).await;
    assert_eq!((limited.status, bucket_of(&limited).as_str()), (429, "host"));
    assert_eq!(world.ask(&ask(Key::Header(1), body.as_str())).await.status, 200, "another host of the address");
}

/// Fifty hosts behind one address make three calls each, while another client of the address floods the daemon.
#[tokio::test]
async fn an_office_behind_one_address_is_served_beside_a_flood() {
    let limits = Limits { global_per_minute: 120, host_per_minute: 600, ..LIMITS };
    let mut world = World::new(limits).await;
    for host in 0..50 {
        world.add_host(&format!("h{host}.example.test"), None).await;
    }
    let body = json!({ "digest": "1".repeat(64), "last_refresh": CANONICAL }).to_string();
    let mut refused = 0;
    for _ in 0..200 {
        refused += u32::from(world.ask(&ask(Key::None, body.as_str())).await.status == 429);
    }
    assert_eq!(refused, 80, "the flood itself");
    for call in 0..150 {
        assert_eq!(world.ask(&ask(Key::Header(call % 50), body.as_str())).await.status, 200, "{call}");
    }
}

#[tokio::test]
async fn an_agent_identity_is_delivered_to_its_host_alone() {
    let world = World::with_two_hosts(LIMITS).await;
    world.upload(CANONICAL).await;
    let shared = world.areas.core.canonical().unwrap().summary.digest.to_string();
    let retrieve = |digest: &str| json!({ "digest": digest, "last_refresh": CANONICAL }).to_string();
    // Fill the caches of both hosts before the store.
    for host in [0, 1, 0, 1, 0, 1] {
        assert_eq!(status_of(&world.ask(&ask(Key::Header(host), retrieve(&"1".repeat(64)))).await), "outdated");
        assert_eq!(status_of(&world.ask(&ask(Key::Header(host), retrieve(&shared))).await), "valid");
    }
    let mut auth = document(CANONICAL);
    auth["agent_identity"] = fixture::agent("\"canonical_digest\":\"canary\"}}");
    let stored = world.ask(&ask(Key::Header(0), json!({ "command": "store", "auth": auth }).to_string())).await;
    assert_eq!(status_of(&stored), "unchanged", "{stored:?}");
    let stored: Value = serde_json::from_str(&stored.body).unwrap();
    let own = stored["data"]["canonical_digest"].as_str().unwrap().to_owned();
    assert_ne!(own, shared);
    for _ in 0..3 {
        let given = world.ask(&ask(Key::Header(0), retrieve(&shared))).await;
        assert_eq!(status_of(&given), "outdated");
        let document = given.body.split_once("\"auth\":").unwrap().1.strip_suffix("}}").unwrap();
        assert_eq!(Digest::of(document.as_bytes()).to_string(), own);
        assert!(given.body.contains(&own) && document.contains("canary"));
        assert_eq!(status_of(&world.ask(&ask(Key::Header(0), retrieve(&own))).await), "valid");

        let other = world.ask(&ask(Key::Header(1), retrieve(&own))).await;
        assert_eq!(status_of(&other), "outdated");
        assert!(!other.body.contains("canary") && other.body.contains(&shared), "{other:?}");
        assert_eq!(status_of(&world.ask(&ask(Key::Header(1), retrieve(&shared))).await), "valid");
    }
}
