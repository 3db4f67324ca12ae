//! The exchanges recorded from the former service (tests/data/vectors), replayed against real daemons in their recorded
//! order.
//!
//! An exchange matches if the status is equal and every recorded member is there with the same type. Its value must be
//! the same too, unless it is a key, an id, a time, a version or a counter ([`OF_THE_RUN`]). Intended differences are
//! in [`DEVIATIONS`]. A deviation that no longer occurs fails the test, and so does a file that no step replays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Instant;

use codex_authd::model::audit::{Actor, AuditNote};
use codex_authd::model::digest::Digest;
use codex_authd::records::embedded::Embedded;
use codex_authd::records::{NewInstallToken, Registration, prelude::*};
use poem::listener::{Acceptor as _, Listener as _};
use reqwest::{Client, Method};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::daemon::{BOUND, Daemon, identity, pause};
use crate::support::raw_tls::{Outcome, RawClient};

struct Deviation {
    /// `*`: every exchange whose recording has the member.
    vector: &'static str,
    what: &'static str,
    why: &'static str,
}

const fn deviation(vector: &'static str, what: &'static str, why: &'static str) -> Deviation {
    Deviation { vector, what, why }
}

/// Intended differences from the recording, with their reasons.
const DEVIATIONS: &[Deviation] = &[
    deviation("*", "data.chatgpt_usage missing", "usage and quota come with an issue of their own"),
    deviation("*", "data.installer.command value", "the command pins the server's key"),
    deviation(
        "admin_register_new",
        "data.installer.url value",
        "the address comes from the configuration, not from the request's Host and X-Forwarded-Proto",
    ),
    deviation("admin_register_again_rotates", "data.installer.url value", "as admin_register_new"),
    deviation("admin_register_insecure", "data.installer.url value", "as admin_register_new"),
    deviation(
        "admin_register_insecure",
        "data.host.api_key type",
        "null was a mistake; an insecure host's key is shown like any other",
    ),
    deviation(
        "admin_register_no_mtls_apache",
        "status handshake refused",
        "without a certificate of our authority the handshake fails before HTTP",
    ),
    deviation("admin_register_no_present_header", "status handshake refused", "a header is no certificate"),
    deviation("auth_get", "status 405", "a path answers which methods it has"),
    deviation("admin_runner_run", "status 409", "a runner that is switched off is no outage; waiting does not help"),
    deviation("auth_hash_as_key_accepted", "status 401", "a stored digest is never a key"),
    deviation("auth_date_words_accepted", "status 422", "only RFC 3339 is a date"),
    deviation("auth_future_date", "status 200", "the host's clock is wrong: its login is asked for, and decides"),
    deviation("auth_bearer_under_mod_php", "status 200", "the former web server lost the header; it is accepted"),
    deviation(
        "admin_upload_system",
        "data.versions.reported_client_version type",
        "no host has called, so none has reported a version",
    ),
    deviation(
        "admin_host_auth",
        "data.recent_digests[] value",
        "one of the three was stored by a call that is not recorded, one is of the text with the empty object",
    ),
    deviation("admin_host_auth_body", "data.recent_digests[] value", "as admin_host_auth"),
    deviation("admin_hosts", "data.hosts[].recent_digests[] value", "as admin_host_auth"),
    deviation("admin_hosts", "data.hosts[].last_refresh value", "as the document spells it, with Z and not +00:00"),
    deviation("admin_hosts", "data.hosts[].token_usage missing", "usage and quota come with an issue of their own"),
    deviation("admin_hosts", "data.hosts[].users missing", "host users come with an issue of their own"),
    deviation("admin_logs", "data.logs[].action value", "who did what is noted, not every call"),
    deviation("admin_logs", "data.logs[].details value", "as the action"),
    deviation(
        "admin_overview",
        "data.mtls.subject type",
        "the former web server did not pass it on; it is the certificate's name",
    ),
    deviation("admin_overview", "data.mtls.issuer type", "it was not told by the web server; it is the authority's id"),
    deviation(
        "admin_overview",
        "data.versions.reported_client_version type",
        "the report of one of many hosts does not describe the fleet",
    ),
    deviation("admin_runner", "data.base_url value", "the address that hosts are given, not one between containers"),
    deviation("admin_runner", "data.boot_id value", "it names the node"),
    deviation("admin_runner", "data.timeout_seconds value", "the runner is off; the former service showed it anyway"),
    deviation("admin_overview", "data.chatgpt_cached missing", "usage and quota come with an issue of their own"),
    deviation("admin_overview", "data.chatgpt_next_eligible_at missing", "as chatgpt_cached"),
    deviation("admin_overview", "data.pricing missing", "as chatgpt_cached"),
    deviation("admin_overview", "data.pricing_month_cost missing", "as chatgpt_cached"),
    deviation("admin_overview", "data.tokens missing", "as chatgpt_cached"),
    deviation("admin_overview", "data.tokens_month missing", "as chatgpt_cached"),
    deviation("store_auths_entries", "data.auth.custom.a type", "an empty object stays one"),
    deviation("store_auths_entries", "data.canonical_digest value", "of the text with the empty object"),
];

/// Members whose value belongs to the recorded run: keys, ids, times, versions and counters of ours.
const OF_THE_RUN: &[&str] = &[
    "data.api_calls",
    "data.avg_refresh_age_days",
    "data.host.api_calls",
    "data.host.api_key",
    "data.host.id",
    "data.host.insecure_enabled_until",
    "data.host.insecure_grace_until",
    "data.host.updated_at",
    "data.installer.expires_at",
    "data.hosts[].api_calls",
    "data.hosts[].created_at",
    "data.hosts[].id",
    "data.hosts[].insecure_enabled_until",
    "data.hosts[].updated_at",
    "data.installer.token",
    "data.latest_log_at",
    "data.logs[].created_at",
    "data.logs[].host_id",
    "data.logs[].id",
    "data.mtls.fingerprint",
    "data.reset_at",
    "data.client_version_checked_at",
    "data.wrapper_sha256",
    "data.wrapper_version",
    "data.versions.client_version_checked_at",
    "data.versions.wrapper_sha256",
    "data.versions.wrapper_version",
    "data.sha256",
    "data.size_bytes",
    "data.updated_at",
    "data.version",
];

const OURS: &str = "127.0.0.1";
/// The addresses of the recorded run, which were in a header that is no longer trusted, and the addresses that call
/// instead.
const ADDRESSES: &[(&str, &str)] = &[
    ("203.0.113.9", "127.0.0.2"),
    ("203.0.113.10", "127.0.0.3"),
    ("198.51.100.7", "127.0.0.4"),
    ("192.0.2.1", "127.0.0.5"),
    ("192.0.2.2", "127.0.0.6"),
];

/// Bodies that are not JSON objects and are in no recording.
const RAW_BODIES: &[(&str, &str)] =
    &[("auth_empty_body", ""), ("auth_invalid_json", "{nope"), ("auth_json_scalar", "42")];

const NEWEST_CODEX: &str = "rust-v0.63.0";

/// The recorded keys of hosts whose registration was not recorded.
const H1: &str = "e8c72181e3218b05d0a16766c673187de6fb89d46eeca19d70c208120d159558";
const H2: &str = "229788816b711c867ab0f7a1272f5202efdc59d785edc46be7182a8dfdc8ac51";
const INSECURE: &str = "800b4788a28dd8ee0c42b837a6f0b710115a46c40628c2259fd26d9bc2eb5260";
const SHORT_TOKENS: &str = "8261b7";

/// One daemon of the recorded run, and its steps.
struct Section {
    settings: &'static [(&'static str, &'static str)],
    knows_releases: bool,
    /// A token that exists but has expired when the daemon starts.
    expired_installer: Option<&'static str>,
    steps: &'static [Step],
}

enum Step {
    Replay(&'static str),
    /// Registers a host whose registration was not recorded; its recorded key begins with this.
    Host(&'static str, &'static str),
    /// The key that is recorded only in calls of this host.
    Alias(&'static str, &'static str),
    /// A retrieve with this recorded key from this recorded address; not recorded itself.
    Call(&'static str, &'static str),
    /// This many calls of `/versions` from this recorded address.
    Versions(usize, &'static str),
    /// This many calls with an unknown key from this recorded address.
    WrongKeys(usize, &'static str),
    AwaitRelease,
    /// Waits until the overview has hosts' activity, which takes about a second.
    AwaitAges,
    /// Waits for the audit entry of a refusal, which comes a moment later, so that it does not fall between later
    /// steps.
    AwaitNoted(&'static str),
    Remove(&'static str),
}

use Step::{Alias, AwaitAges, AwaitNoted, AwaitRelease, Call, Host, Remove, Replay, Versions, WrongKeys};

const SECTIONS: &[Section] = &[
    Section {
        settings: &[("LIMITS__GLOBAL_PER_MINUTE", "5")],
        knows_releases: false,
        expired_installer: None,
        steps: &[
            Replay("versions_no_client_known"),
            Versions(5, "192.0.2.2"),
            Replay("global_rate_limited"),
            Replay("admin_not_rate_limited"),
        ],
    },
    Section {
        settings: &[("LIMITS__AUTH_FAIL_COUNT", "20"), ("AUTH__MIN_TOKEN_LENGTH", "8")],
        knows_releases: false,
        expired_installer: Some("3936e765-8d56-418a-b138-60d0ac2ea1f1"),
        steps: &[
            Replay("install_expired"),
            Host("h1.example.test", H1),
            Call(H1, OURS),
            Host("h8.example.test", SHORT_TOKENS),
            Replay("store_token_short_min8"),
            Replay("store_token_placeholder_min8"),
            WrongKeys(20, "198.51.100.7"),
            Replay("auth_fail_throttled"),
            Replay("auth_good_key_while_throttled"),
        ],
    },
    Section {
        settings: &[("PUBLIC_BASE_URL", "https://codex.example.test")],
        knows_releases: true,
        expired_installer: None,
        steps: &[
            Replay("admin_api_state"),
            Replay("route_not_found"),
            AwaitRelease,
            Replay("versions"),
            Replay("admin_register_no_mtls_apache"),
            Replay("admin_register_no_present_header"),
            Replay("admin_register_no_fqdn"),
            Replay("admin_register_bad_secure"),
            Replay("admin_register_new"),
            Replay("admin_register_again_rotates"),
            Replay("auth_old_key_after_rotation"),
            Replay("admin_register_https"),
            Replay("install_unknown"),
            Replay("install_first"),
            Replay("install_second_used"),
            Replay("auth_no_key"),
            Replay("auth_bad_key"),
            Replay("auth_get"),
            Replay("auth_retrieve_missing"),
            Replay("admin_upload_not_json"),
            Replay("admin_upload_unknown_host"),
            Replay("admin_upload_system"),
            Replay("auth_retrieve_valid"),
            Replay("auth_hash_as_key_accepted"),
            Replay("auth_bearer_under_mod_php"),
            Replay("auth_retrieve_valid_auth_sha_alias"),
            Replay("auth_no_command_is_retrieve"),
            Replay("auth_retrieve_outdated_older"),
            Replay("auth_retrieve_outdated_same_date"),
            Replay("auth_retrieve_client_version_query"),
            Replay("auth_no_digest"),
            Replay("auth_bad_digest"),
            Replay("auth_no_last_refresh"),
            Replay("auth_bad_date"),
            Replay("auth_date_words_accepted"),
            Replay("auth_future_date"),
            Replay("auth_bad_command"),
            Replay("auth_empty_body"),
            Replay("auth_json_scalar"),
            Replay("auth_invalid_json"),
            Replay("auth_trailing_slash"),
            Replay("auth_wrong_ip"),
            Replay("auth_wrong_ip_x_real_ip"),
            AwaitNoted("key.refused"),
            AwaitNoted("address.refused"),
            Replay("admin_roaming_on"),
            Replay("auth_roaming_rebinds"),
            Call(H1, OURS),
            Replay("admin_roaming_off"),
            Replay("admin_api_state_off"),
            Replay("auth_api_disabled"),
            Replay("admin_api_state_on"),
            Replay("store_same_date_other_content_unchanged"),
            Replay("store_updated"),
            Replay("retrieve_after_store_valid"),
            Replay("retrieve_after_store_outdated"),
            Replay("store_auths_entries"),
            Replay("store_no_auth"),
            Replay("store_no_tokens"),
            Replay("store_bad_date"),
            Replay("store_future"),
            Replay("store_token_short"),
            Replay("store_token_space"),
            Replay("store_token_empty"),
            Replay("store_openai_api_key_only"),
            Replay("admin_host_auth"),
            Replay("admin_host_auth_body"),
            Replay("admin_logs"),
            Replay("wrapper_meta"),
            Replay("wrapper_meta_bad_key"),
            Replay("wrapper_download"),
            Replay("admin_host_clear"),
            Call(H1, OURS),
            Replay("admin_register_insecure"),
            Alias("ins.example.test", INSECURE),
            Replay("install_insecure_host"),
            Replay("admin_insecure_disable"),
            Replay("insecure_closed_retrieve"),
            Replay("admin_insecure_enable"),
            Replay("insecure_open_retrieve"),
            Replay("admin_hosts"),
            AwaitAges,
            Replay("admin_overview"),
            Replay("admin_runner"),
            Replay("admin_runner_run"),
            Host("h2.example.test", H2),
            Replay("auth_first_contact_binds_ip"),
            Replay("delete_wrong_ip"),
            Replay("delete_auth"),
            Replay("delete_auth_again"),
            Remove("h1.example.test"),
            Replay("auth_after_delete"),
        ],
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_exchanges_are_answered_as_they_were() {
    let vectors = vectors();
    let mut verdicts = Verdicts::default();
    let releases = release_server().await;
    for section in SECTIONS {
        let mut run = Run::start(section, &vectors, &releases).await;
        for step in section.steps {
            run.take(step, &mut verdicts).await;
        }
    }
    let unused = vectors.keys().filter(|name| !verdicts.replayed.contains(*name));
    verdicts.wrong.extend(unused.map(|name| format!("{name}: no step replays it")));
    for (index, deviation) in DEVIATIONS.iter().enumerate() {
        if !verdicts.seen.contains(&index) {
            verdicts.wrong.push(format!("{}: no exchange has the deviation {:?}", deviation.vector, deviation.what));
        }
    }
    assert!(verdicts.wrong.is_empty(), "\n{}", verdicts.wrong.join("\n"));
}

fn vectors() -> BTreeMap<String, Vector> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vectors");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let vector = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), vector)
    };
    std::fs::read_dir(directory).unwrap().map(read).collect()
}

#[derive(Default)]
struct Verdicts {
    replayed: BTreeSet<String>,
    /// Indexes of the deviations that occurred.
    seen: BTreeSet<usize>,
    wrong: Vec<String>,
}

impl Verdicts {
    fn judge(&mut self, name: &str, recorded: &Value, differences: &BTreeSet<String>, answer: &Answer) {
        assert!(self.replayed.insert(name.to_owned()), "{name} is replayed twice");
        let wrong = self.wrong.len();
        let same_status = !differences.iter().any(|what| what.starts_with("status "));
        let mut expected = BTreeSet::new();
        for (index, Deviation { vector, what, why }) in DEVIATIONS.iter().enumerate() {
            let member = what.rsplit_once(' ').unwrap().0;
            let has_member = || same_status && find(&recorded["body"], member).is_some();
            if *vector != name && (*vector != "*" || !has_member()) {
                continue;
            }
            expected.insert(what.to_string());
            if differences.contains(*what) {
                self.seen.insert(index);
            } else {
                self.wrong.push(format!("{name}: the deviation {what:?} ({why}) is none any more"));
            }
        }
        self.wrong.extend(differences.difference(&expected).map(|what| format!("{name}: {what}")));
        if self.wrong.len() > wrong {
            self.wrong.push(format!("   recorded {recorded}\n   answered {:?} {}", answer.status, answer.text));
        }
    }
}

/// A daemon, and the names of the recorded run mapped to this run.
struct Run<'a> {
    daemon: Daemon,
    vectors: &'a BTreeMap<String, Vector>,
    /// Recorded keys, tokens and paths, and their values in this run.
    ours: HashMap<String, String>,
    /// By name, as registered in this run.
    hosts: HashMap<String, Value>,
    /// By address.
    clients: HashMap<String, Client>,
    admins: HashMap<String, Client>,
}

#[derive(Deserialize)]
struct Vector {
    request: Request,
    response: Value,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    /// Sent unchanged: the order of members decides a digest.
    body: Option<Box<RawValue>>,
}

struct Answer {
    /// None: refused in the handshake.
    status: Option<u16>,
    headers: BTreeMap<String, String>,
    text: String,
}

impl<'a> Run<'a> {
    async fn start(section: &Section, vectors: &'a BTreeMap<String, Vector>, releases: &str) -> Self {
        let mut settings = section.settings.to_vec();
        // The recorded logins have artificial tokens.
        settings.push(("AUTH__STRICT", "false"));
        if section.knows_releases {
            settings.push(("UPSTREAM__RELEASES_URL", releases));
        }
        let mut daemon = Daemon::prepare(&settings);
        if let Some(token) = section.expired_installer {
            expire(&daemon, token).await;
        }
        daemon.launch();
        let (clients, admins) = (HashMap::new(), HashMap::new());
        Self { daemon, vectors, ours: HashMap::new(), clients, admins, hosts: HashMap::new() }
    }

    async fn take(&mut self, step: &Step, verdicts: &mut Verdicts) {
        match *step {
            Replay(name) => self.replay(name, verdicts).await,
            Host(fqdn, recorded) => {
                let answer = self.admin_call(Method::POST, "/admin/hosts/register", json!({ "fqdn": fqdn })).await;
                self.learn(None, &answer["data"]);
                self.alias(fqdn, recorded);
            }
            Alias(fqdn, recorded) => self.alias(fqdn, recorded),
            Call(recorded, address) => {
                let key = self.ours[recorded].clone();
                assert_ne!(self.retrieve(&key, address).await, 403, "{recorded} from {address}");
            }
            Versions(count, address) => {
                for _ in 0..count {
                    let url = self.daemon.hosts_url("/versions");
                    assert_eq!(self.client(address).get(url).send().await.unwrap().status(), 200);
                }
            }
            WrongKeys(count, address) => {
                for _ in 0..count {
                    assert_eq!(self.retrieve(&"e".repeat(64), address).await, 401);
                }
            }
            AwaitRelease => {
                let url = self.daemon.hosts_url("/versions");
                let client = self.client(OURS);
                self.await_member(client, url, "/client_version").await;
            }
            AwaitAges => {
                let url = self.daemon.admin_url("/admin/overview");
                let admin = self.admin(OURS);
                self.await_member(admin, url, "/avg_refresh_age_days").await;
            }
            AwaitNoted(action) => {
                let url = self.daemon.admin_url(&format!("/admin/audit?action={action}"));
                let admin = self.admin(OURS);
                self.await_member(admin, url, "/entries/0").await;
            }
            Remove(fqdn) => {
                let path = format!("/admin/hosts/{}", self.hosts[fqdn]["id"]);
                assert_eq!(self.admin_call(Method::DELETE, &path, json!({})).await["data"]["deleted"], fqdn);
            }
        }
    }

    async fn replay(&mut self, name: &str, verdicts: &mut Verdicts) {
        let vector = self.vectors.get(name).unwrap_or_else(|| panic!("there is no recording {name}"));
        let answer = self.send(name, &vector.request).await;
        let recorded = &vector.response;
        if let Ok(body) = serde_json::from_str::<Value>(&answer.text) {
            self.learn(recorded.get("body").map(|body| &body["data"]), &body["data"]);
        }
        verdicts.judge(name, recorded, &self.differences(recorded, &answer), &answer);
    }

    async fn send(&mut self, name: &str, request: &Request) -> Answer {
        let path = self.translate(&request.path);
        let method: Method = request.method.parse().unwrap();
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        let address = header("X-Forwarded-For").or(header("X-Real-IP")).unwrap_or(OURS).split(',').next().unwrap();
        let is_admin = path.starts_with("/admin/");
        let call = match (is_admin, header("X-mTLS-Present")) {
            (true, Some(_)) => self.admin(address).request(method, self.daemon.admin_url(&path)),
            (true, None) => self.client(address).request(method, self.daemon.admin_url(&path)),
            _ => self.client(address).request(method, self.daemon.hosts_url(&path)),
        };
        let spoken_by_the_connection = ["Host", "X-Forwarded-For", "X-Real-IP"];
        let mut call = request
            .headers
            .iter()
            .filter(|(name, _)| !spoken_by_the_connection.contains(&name.as_str()))
            .fold(call, |call, (name, value)| call.header(name, self.translate(value)));
        if let Some(body) = &request.body {
            call = call.body(body.get().to_owned());
        } else if let Some((_, body)) = RAW_BODIES.iter().find(|(known, _)| *known == name) {
            call = call.body(*body);
        } else {
            assert_ne!(request.method, "POST", "{name}: the body was not recorded");
        }
        if is_admin && header("X-mTLS-Present").is_none() {
            let outcome = RawClient::anonymous(&self.daemon).call(call).await;
            assert!(matches!(outcome, Outcome::Alert(_)), "{name}: {outcome:?}");
            return Answer { status: None, headers: BTreeMap::new(), text: format!("{outcome:?}") };
        }
        let answer = call.send().await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let told = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        Answer {
            status: Some(answer.status().as_u16()),
            headers: answer.headers().iter().map(told).collect(),
            text: answer.text().await.unwrap(),
        }
    }

    fn differences(&self, recorded: &Value, answer: &Answer) -> BTreeSet<String> {
        if recorded["status"].as_u64() != answer.status.map(u64::from) {
            let status = answer.status.map_or("handshake refused".into(), |status| status.to_string());
            return BTreeSet::from([format!("status {status}")]);
        }
        let mut differences = BTreeSet::new();
        for (name, value) in recorded["headers"].as_object().unwrap() {
            match answer.headers.get(name) {
                Some(ours) if same_header(name, value.as_str().unwrap(), ours) => {}
                Some(_) => {
                    differences.insert(format!("headers.{name} value"));
                }
                None => {
                    differences.insert(format!("headers.{name} missing"));
                }
            }
        }
        if let Some(body) = recorded.get("body") {
            match serde_json::from_str(&answer.text) {
                Ok(ours) => self.compare("", body, &ours, &mut differences),
                Err(_) => {
                    differences.insert("body type".into());
                }
            }
        } else if let Some(script) = recorded.get("body_text") {
            // Scripts are equal if they behave equally.
            if said_by(script.as_str().unwrap()) != said_by(&answer.text) {
                differences.insert("script value".into());
            }
        } else if !answer.text.starts_with("#!") {
            differences.insert("script missing".into());
        }
        differences
    }

    fn compare(&self, path: &str, recorded: &Value, ours: &Value, differences: &mut BTreeSet<String>) {
        let value_counts = !OF_THE_RUN.contains(&path);
        match (recorded, ours) {
            (Value::Object(recorded), Value::Object(ours)) => {
                for (name, value) in recorded {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    match ours.get(name) {
                        Some(ours) => self.compare(&path, value, ours, differences),
                        None => {
                            differences.insert(format!("{path} missing"));
                        }
                    }
                }
            }
            (Value::Array(recorded), Value::Array(ours)) if recorded.len() == ours.len() => {
                for (recorded, ours) in recorded.iter().zip(ours) {
                    self.compare(&format!("{path}[]"), recorded, ours, differences);
                }
            }
            _ if std::mem::discriminant(recorded) != std::mem::discriminant(ours) => {
                differences.insert(format!("{path} type"));
            }
            (Value::String(text), Value::String(ours)) if value_counts && self.translate(text) != *ours => {
                differences.insert(format!("{path} value"));
            }
            (Value::String(_), Value::String(_)) => {}
            _ if value_counts && recorded != ours => {
                differences.insert(format!("{path} value"));
            }
            _ => {}
        }
    }

    /// Maps recorded values to those of an answer.
    fn learn(&mut self, recorded: Option<&Value>, ours: &Value) {
        for member in ["host.api_key", "installer.token"] {
            if let (Some(Value::String(theirs)), Some(Value::String(ours))) =
                (recorded.and_then(|recorded| find(recorded, member)), find(ours, member))
            {
                self.ours.insert(theirs.clone(), ours.clone());
                // The former service accepted a key's digest as the key.
                self.ours.insert(digest(theirs), digest(ours));
            }
        }
        if let (Some(fqdn), Some(_)) = (ours["host"]["fqdn"].as_str(), ours["host"].get("api_key")) {
            if let Some(id) = recorded.and_then(|recorded| find(recorded, "host.id")) {
                let ours = format!("/admin/hosts/{}/", ours["host"]["id"]);
                self.ours.insert(format!("/admin/hosts/{id}/"), ours);
            }
            self.hosts.insert(fqdn.to_owned(), ours["host"].clone());
        }
    }

    fn alias(&mut self, fqdn: &str, recorded: &str) {
        let known =
            |vector: &Vector| vector.request.headers.get("X-API-Key").filter(|key| key.starts_with(recorded)).cloned();
        let recorded = self.vectors.values().find_map(known).expect("a call with this key was recorded");
        self.ours.insert(recorded, self.hosts[fqdn]["api_key"].as_str().unwrap().to_owned());
    }

    fn translate(&self, text: &str) -> String {
        self.ours.iter().fold(text.to_owned(), |text, (recorded, ours)| text.replace(recorded, ours))
    }

    async fn retrieve(&mut self, key: &str, address: &str) -> u16 {
        let body = json!({ "last_refresh": "2025-11-19T08:00:00Z", "digest": "0".repeat(64) });
        let url = self.daemon.hosts_url("/auth");
        let call = self.client(address).post(url).header("X-API-Key", key).json(&body);
        call.send().await.unwrap().status().as_u16()
    }

    async fn await_member(&self, client: Client, url: String, member: &str) {
        let begun = Instant::now();
        loop {
            let body: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
            if body["data"].pointer(member).is_some_and(|value| !value.is_null()) {
                return;
            }
            assert!(begun.elapsed() < BOUND, "{url} does not have {member}");
            pause();
        }
    }

    async fn admin_call(&mut self, method: Method, path: &str, body: Value) -> Value {
        let url = self.daemon.admin_url(path);
        let answer = self.admin(OURS).request(method, url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    }

    fn client(&mut self, address: &str) -> Client {
        let daemon = &self.daemon;
        self.clients.entry(address.into()).or_insert_with(|| daemon.client_from(loopback(address))).clone()
    }

    fn admin(&mut self, address: &str) -> Client {
        let daemon = &self.daemon;
        let make = || {
            let directory = daemon.state.path().join("admin-replay");
            if !directory.exists() {
                daemon.admin_certificate("replay");
            }
            let builder = daemon.client_builder().local_address(loopback(address));
            builder.identity(identity(&directory, "replay")).build().unwrap()
        };
        self.admins.entry(address.into()).or_insert_with(make).clone()
    }
}

fn loopback(recorded: &str) -> IpAddr {
    let known = ADDRESSES.iter().find(|(known, _)| *known == recorded);
    known.map_or(OURS, |(_, ours)| ours).parse().unwrap()
}

fn same_header(name: &str, recorded: &str, ours: &str) -> bool {
    let essence = |text: &str| text.split(';').next().unwrap().trim().to_ascii_lowercase();
    match name {
        "content-type" => essence(recorded) == essence(ours),
        "cache-control" | "x-content-type-options" => recorded == ours,
        // Other headers have lengths, times, digests and versions of the run.
        _ => true,
    }
}

fn find<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, name| value.get(name))
}

fn digest(text: &str) -> String {
    Digest::of(text.as_bytes()).to_string()
}

/// The exit code and the output of a script.
fn said_by(script: &str) -> (Option<i32>, String, String) {
    let output = std::process::Command::new("bash").args(["-c", script]).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A host with an expired installer. The shortest configurable lifetime is a minute, so it is written into the records
/// while no daemon runs.
pub async fn expire(daemon: &Daemon, token: &str) {
    daemon.cli_json(&["hosts", "add", "h1b.example.test"]);
    let records = Embedded::open(&daemon.state_dir().join("records")).unwrap();
    let host = records.host_list().await.unwrap().remove(0);
    let at = host.created_at;
    let token = NewInstallToken { digest: Digest::of(token.as_bytes()), base_url: "https://h".into(), expires_at: at };
    let registration = Registration {
        id: host.id,
        fqdn: host.fqdn,
        key_digest: host.key_digest,
        api_key: host.api_key,
        secure: None,
        expires_at: None,
        insecure_enabled_until: None,
        token,
        at,
    };
    let note = AuditNote::new(at, Actor::Daemon, None, "host.register");
    records.host_register(&registration, &note).await.unwrap();
}

/// The URL of a test server for Codex releases.
async fn release_server() -> String {
    let answer = poem::endpoint::make_sync(|_| json!({ "tag_name": NEWEST_CODEX, "draft": false }).to_string());
    let acceptor = poem::listener::TcpListener::bind("127.0.0.1:0").into_acceptor().await.unwrap();
    let address = acceptor.local_addr()[0].to_string();
    tokio::spawn(poem::Server::new_with_acceptor(acceptor).run(answer));
    format!("{}/latest", address.replace("socket://", "http://"))
}
