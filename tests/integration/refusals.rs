//! Refusals, operation by operation: every operation of the checked-in document must be in [`OPERATIONS`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use codex_authd::model::digest::Digest;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder};
use rustls::AlertDescription;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::support::daemon::{Daemon, Registered, auth_json};
use crate::support::people;
use crate::support::raw_tls::{Outcome, RawClient};

pub const DOCUMENT: &str = include_str!("../../openapi/openapi.json");

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// No credential; on the hosts' listener.
    Nothing,
    /// No credential; on both listeners.
    NothingAnywhere,
    /// No credential; on both listeners, if a provider is configured.
    Provider,
    Key,
    /// An access token; on both listeners.
    Session,
    Certificate,
    /// The control socket: an admin's certificate is not enough.
    ControlSocket,
}

/// Method, path as in the document, the necessary credential, and a valid body.
pub type Operation = (&'static str, &'static str, Needs, Option<fn() -> Value>);

/// In an order in which each can succeed: operations that remove a host come last.
pub const OPERATIONS: &[Operation] = &[
    ("GET", "/healthz", Needs::NothingAnywhere, None),
    ("GET", "/readyz", Needs::NothingAnywhere, None),
    ("GET", "/versions", Needs::Nothing, None),
    ("GET", "/install/{token}/start", Needs::Nothing, None),
    ("GET", "/install/{token}", Needs::Nothing, None),
    ("POST", "/admin/auth/upload", Needs::Certificate, Some(upload)),
    ("GET", "/admin/auth", Needs::Certificate, None),
    ("GET", "/admin/auth/history", Needs::Certificate, None),
    ("GET", "/admin/auth/diff", Needs::Certificate, None),
    ("POST", "/admin/auth/rollback", Needs::Certificate, Some(|| json!({ "version": 1 }))),
    ("POST", "/admin/hosts/register", Needs::Certificate, Some(|| json!({ "fqdn": "another.test" }))),
    ("GET", "/admin/overview", Needs::Certificate, None),
    ("GET", "/admin/hosts", Needs::Certificate, None),
    ("GET", "/admin/hosts/{id}", Needs::Certificate, None),
    ("GET", "/admin/hosts/{id}/auth", Needs::Certificate, None),
    ("POST", "/admin/hosts/{id}/roaming", Needs::Certificate, Some(|| json!({ "allow": false }))),
    ("POST", "/admin/hosts/{id}/insecure/enable", Needs::Certificate, None),
    ("POST", "/admin/hosts/{id}/insecure/disable", Needs::Certificate, None),
    ("POST", "/admin/hosts/{id}/clear", Needs::Certificate, None),
    ("POST", "/admin/hosts/{id}/disable", Needs::Certificate, None),
    ("POST", "/admin/hosts/{id}/enable", Needs::Certificate, None),
    ("POST", "/admin/hosts/{id}/expiry", Needs::Certificate, Some(|| json!({ "expires_at": null }))),
    ("POST", "/admin/hosts/{id}/networks", Needs::Certificate, Some(|| json!({ "networks": [] }))),
    ("GET", "/admin/hosts/removed", Needs::Certificate, None),
    ("GET", "/admin/installers", Needs::Certificate, None),
    ("POST", "/admin/installers/{id}/revoke", Needs::Certificate, None),
    ("GET", "/admin/audit", Needs::Certificate, None),
    ("GET", "/admin/logs", Needs::Certificate, None),
    ("GET", "/admin/audit/verify", Needs::Certificate, None),
    ("POST", "/admin/certificates", Needs::Certificate, Some(|| json!({ "name": "bob" }))),
    ("GET", "/admin/certificates", Needs::Certificate, None),
    ("POST", "/admin/certificates/{fingerprint}/renew", Needs::Certificate, Some(|| json!({ "pkcs12": false }))),
    ("POST", "/admin/certificates/{fingerprint}/user", Needs::Certificate, Some(|| json!({ "user": null }))),
    ("POST", "/admin/certificates/{fingerprint}/revoke", Needs::Certificate, None),
    ("GET", "/admin/authorities", Needs::Certificate, None),
    ("GET", "/admin/authorities/hosts", Needs::Certificate, None),
    ("POST", "/admin/authorities/{role}/prepare", Needs::Certificate, None),
    ("POST", "/admin/authorities/{role}/activate", Needs::Certificate, None),
    ("POST", "/admin/authorities/{role}/retire", Needs::Certificate, None),
    ("GET", "/admin/api/state", Needs::Certificate, None),
    ("POST", "/admin/api/state", Needs::Certificate, Some(|| json!({ "disabled": false }))),
    ("GET", "/admin/runner", Needs::Certificate, None),
    ("POST", "/admin/runner/run", Needs::Certificate, None),
    ("GET", "/admin/runner/doctor", Needs::Certificate, None),
    ("GET", "/admin/doctor", Needs::Certificate, None),
    ("POST", "/admin/records/verify", Needs::Certificate, None),
    ("POST", "/admin/keys/rotate", Needs::Certificate, None),
    ("GET", "/admin/backup", Needs::ControlSocket, None),
    ("POST", "/admin/backup/keys", Needs::ControlSocket, None),
    ("POST", "/admin/backup/verified", Needs::ControlSocket, None),
    ("POST", "/admin/restore", Needs::ControlSocket, None),
    ("POST", "/admin/migrate", Needs::ControlSocket, None),
    ("POST", "/admin/migrate/abort", Needs::ControlSocket, None),
    ("GET", "/metrics", Needs::Certificate, None),
    ("POST", "/auth/session", Needs::NothingAnywhere, Some(credentials)),
    ("GET", "/auth/oidc/login", Needs::Provider, None),
    ("GET", "/auth/oidc/callback", Needs::Provider, None),
    ("GET", "/auth/me", Needs::Session, None),
    ("GET", "/auth/me/sessions", Needs::Session, None),
    ("DELETE", "/auth/me/sessions/{id}", Needs::Session, None),
    ("POST", "/auth/me/hosts", Needs::Session, Some(|| json!({ "fqdn": "own.test" }))),
    ("GET", "/auth/me/hosts", Needs::Session, None),
    ("DELETE", "/auth/me/hosts/{id}", Needs::Session, None),
    ("DELETE", "/auth/session", Needs::Session, None),
    (
        "POST",
        "/auth/me/password",
        Needs::Session,
        Some(|| json!({ "current": people::PASSWORD, "new": people::PASSWORD })),
    ),
    ("POST", "/auth/users", Needs::Certificate, Some(new_user)),
    ("GET", "/auth/users", Needs::Certificate, None),
    ("GET", "/auth/users/{id}", Needs::Certificate, None),
    ("GET", "/auth/users/{id}/sessions", Needs::Certificate, None),
    ("GET", "/auth/sessions", Needs::Certificate, None),
    ("POST", "/auth/sessions/{id}/end", Needs::Certificate, None),
    ("POST", "/auth/users/{id}/role", Needs::Certificate, Some(|| json!({ "role": "member" }))),
    ("POST", "/auth/users/{id}/max-hosts", Needs::Certificate, Some(|| json!({ "max_hosts": 3 }))),
    ("POST", "/auth/identities", Needs::Certificate, Some(identity_of_user)),
    ("GET", "/auth/identities", Needs::Certificate, None),
    ("POST", "/auth/identities/unlink", Needs::Certificate, Some(|| json!({ "issuer": ISSUER, "subject": "ada" }))),
    ("POST", "/auth/users/{id}/password", Needs::Certificate, Some(|| json!({ "password": people::PASSWORD }))),
    ("POST", "/auth/users/{id}/disable", Needs::Certificate, None),
    ("POST", "/auth/users/{id}/enable", Needs::Certificate, None),
    ("POST", "/auth", Needs::Key, Some(retrieve)),
    ("POST", "/auth/lines", Needs::Key, Some(retrieve)),
    ("GET", "/auth/document", Needs::Key, None),
    ("GET", "/wrapper", Needs::Key, None),
    ("GET", "/wrapper/download", Needs::Key, None),
    ("DELETE", "/auth", Needs::Key, None),
    ("DELETE", "/admin/hosts/{id}", Needs::Certificate, None),
    ("POST", "/admin/hosts/{id}/restore", Needs::Certificate, None),
];

/// Uploads a newer login, so that there is a version to compare with and to roll back from.
pub async fn upload_again(daemon: &Daemon) {
    for (last_refresh, n) in [("2025-11-20T09:27:43.373506211Z", 1), ("2025-11-21T09:27:43Z", 2)] {
        people::tell(daemon, "/admin/auth/upload", &json!({ "auth": auth_json(last_refresh, n) })).await;
    }
}

pub fn operation(method: &str, path: &str) -> &'static Operation {
    OPERATIONS.iter().find(|operation| (operation.0, operation.1) == (method, path)).unwrap()
}

/// The user for operations on users.
const USER: &str = "ada@people.test";
const ISSUER: &str = "https://id.people.test";

fn credentials() -> Value {
    json!({ "email": USER, "password": people::PASSWORD })
}

/// A new user each time.
fn new_user() -> Value {
    static MADE: AtomicU32 = AtomicU32::new(0);
    json!({ "email": format!("user-{}@people.test", MADE.fetch_add(1, Ordering::Relaxed)), "role": "member" })
}

fn identity_of_user() -> Value {
    json!({ "issuer": ISSUER, "subject": "ada", "user": USER })
}

/// The values for the names in a path.
#[derive(Clone)]
pub struct Targets {
    pub host: Registered,
    pub user: u64,
    /// A host that belongs to the user.
    pub own_host: u64,
    /// Sessions of the user: the caller's, and two to be ended.
    pub token: String,
    pub own_session: String,
    pub session: String,
    pub fingerprint: String,
}

/// A real host; everything else does not exist.
impl From<&Registered> for Targets {
    fn from(host: &Registered) -> Self {
        let nowhere = "00000000-0000-4000-8000-000000000000".to_owned();
        Self {
            host: host.clone(),
            user: 1,
            own_host: 1,
            token: String::new(),
            own_session: nowhere.clone(),
            session: nowhere,
            fingerprint: "ab".repeat(32),
        }
    }
}

impl From<&Self> for Targets {
    fn from(targets: &Self) -> Self {
        targets.clone()
    }
}

impl Targets {
    /// Also makes a user, who signed in three times and has a host, and an unused certificate.
    pub async fn with_people(daemon: &Daemon, host: &Registered) -> Self {
        let user = people::add_user(daemon, USER, "member").await;
        let mut targets = Self { user, ..Self::from(host) };
        targets.renew(daemon).await;
        let spare = people::tell(daemon, "/admin/certificates", &json!({ "name": "spare" })).await;
        targets.fingerprint = spare["fingerprint"].as_str().unwrap().into();
        targets
    }

    /// A new token for an operation that ends all sessions.
    async fn token_for(&self, daemon: &Daemon, operation: &Operation) -> String {
        if operation.1 == "/auth/me/password" { people::sign_in(daemon, USER).await } else { self.token.clone() }
    }

    /// Makes sure that the sessions are in force and the host exists.
    pub async fn renew(&mut self, daemon: &Daemon) {
        for session in [&mut self.own_session, &mut self.session] {
            let token = people::sign_in(daemon, USER).await;
            *session = people::me(daemon, &token).await["session"]["id"].as_str().unwrap().into();
        }
        self.token = people::sign_in(daemon, USER).await;
        let own = daemon.client().post(daemon.hosts_url("/auth/me/hosts")).bearer_auth(&self.token);
        let own: Value = own.json(&json!({ "fqdn": "own.test" })).send().await.unwrap().json().await.unwrap();
        self.own_host = own["data"]["host"]["id"].as_u64().unwrap();
    }
}

fn upload() -> Value {
    json!({ "auth": auth_json("2025-11-20T09:27:43.373506211Z", 1) })
}

fn retrieve() -> Value {
    json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) })
}

#[test]
fn every_operation_of_the_document_stands_in_the_table() {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, operations)| {
            operations.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let listed: BTreeSet<_> =
        OPERATIONS.iter().map(|(method, path, ..)| (method.to_string(), path.to_string())).collect();
    assert_eq!(described, listed);
    assert_eq!(OPERATIONS.len(), listed.len(), "an operation is in the table twice");
}

/// Without this test, a refusal could be that of a call that always fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_what_it_needs_is_let_in() {
    let daemon = Daemon::start_with(&[("RUNNER__ENABLED", "true"), ("RUNNER__CODEX", "/nowhere/codex")]);
    let admin = daemon.admin();
    let insecure = register(&daemon, &admin, json!({ "fqdn": "shared.test", "secure": false })).await;
    let host = daemon.register(&admin, "h.test").await;
    let people = Targets::with_people(&daemon, &host).await;
    upload_again(&daemon).await;
    for operation in OPERATIONS {
        let (_, path, needs, _) = operation;
        let used = if path.contains("insecure") || path.starts_with("/install") { &insecure } else { &host };
        // The last operation: the host has already left by itself.
        let comes_last = ["DELETE /admin/hosts/{id}", "POST /admin/hosts/{id}/restore"];
        let used = if comes_last.contains(&&*format!("{} {path}", operation.0)) { &insecure } else { used };
        let targets = Targets { host: used.clone(), ..people.clone() };
        let call = match needs {
            Needs::Certificate => call(&admin, &daemon.admin_url(""), operation, targets),
            Needs::Session => {
                let token = people.token_for(&daemon, operation).await;
                call(&daemon.client(), &daemon.hosts_url(""), operation, targets).bearer_auth(token)
            }
            // No provider is configured.
            Needs::Provider => {
                for (client, base) in [(daemon.client(), daemon.hosts_url("")), (admin.clone(), daemon.admin_url(""))] {
                    let answer = call(&client, &base, operation, used).send().await.unwrap();
                    refused(answer, 404, "route_not_found", &format!("{operation:?}")).await;
                }
                continue;
            }
            Needs::ControlSocket => {
                let answer = call(&admin, &daemon.admin_url(""), operation, used).send().await.unwrap();
                refused(answer, 403, "control_socket_only", &format!("{operation:?}")).await;
                continue;
            }
            _ => call(&daemon.client(), &daemon.hosts_url(""), operation, used).header("X-API-Key", &used.api_key),
        };
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{} {path}: {}", operation.0, answer.text().await.unwrap());
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(admin.get(daemon.admin_url(path)).send().await.unwrap().status(), 200, "{path}");
    }
}

const SCRIPT: HeaderValue = HeaderValue::from_static("text/x-shellscript; charset=utf-8");

/// The beginnings of the paths of all admin operations.
const OF_ADMINS: [&str; 5] = ["/admin/", "/metrics", "/auth/users", "/auth/sessions", "/auth/identities"];

/// Asserts that the daemon that refuses still answers others.
async fn assert_alive(daemon: &Daemon, admin: &Client) {
    for (client, url) in [(admin, daemon.admin_url("/healthz")), (&daemon.client(), daemon.hosts_url("/healthz"))] {
        assert_eq!(client.get(&url).send().await.unwrap().status(), 200, "{url}");
    }
}

/// Clients without a certificate of our authority, and the alerts that refuse them.
fn strangers(daemon: &Daemon) -> Vec<(&'static str, RawClient, AlertDescription)> {
    let foreign = Daemon::prepare(&[]);
    let mallory = foreign.admin_certificate("mallory");
    vec![
        ("no certificate", RawClient::anonymous(daemon), AlertDescription::CertificateRequired),
        (
            "a foreign certificate",
            RawClient::with_certificate(daemon, &mallory, "mallory"),
            AlertDescription::UnknownCA,
        ),
        (
            "no certificate, TLS 1.2",
            RawClient::new(daemon, None, &[&rustls::version::TLS12]),
            AlertDescription::CertificateRequired,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_admin_operation_answers_whoever_has_no_certificate_of_ours() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let strangers = strangers(&daemon);
    let mut admin_operations = 0;
    let of_admins = [Needs::Certificate, Needs::ControlSocket];
    for operation in OPERATIONS.iter().filter(|(.., needs, _)| of_admins.contains(needs)) {
        for (who, stranger, alert) in &strangers {
            let call = call(&admin, &daemon.admin_url(""), operation, &host)
                .header("X-API-Key", &host.api_key)
                .header("X-mTLS-Present", "1")
                .header("X-mTLS-Fingerprint", "ab".repeat(32));
            assert_eq!(stranger.call(call).await, Outcome::Alert(*alert), "{operation:?}, {who}");
        }
        assert_alive(&daemon, &admin).await;
        admin_operations += 1;
    }
    assert_eq!(
        admin_operations,
        OPERATIONS.iter().filter(|(_, path, ..)| OF_ADMINS.iter().any(|start| path.starts_with(start))).count()
    );
}

/// Many rounds, many calls at once: each client gets an alert, and none waits for it. `AUTHD_REFUSAL_ROUNDS` sets the
/// number of rounds (`make refusals`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stranger_hears_the_alert_every_time() {
    const AT_ONCE: usize = 8;
    let rounds = std::env::var("AUTHD_REFUSAL_ROUNDS").ok().map_or(20, |rounds| rounds.parse::<u32>().unwrap());
    let mut daemon = Daemon::prepare(&[]);
    daemon.log_level = Some("info");
    daemon.launch();
    let admin = daemon.admin();
    let strangers = strangers(&daemon);
    let (mut refused, mut slowest) = (0_u32, Duration::ZERO);
    for _ in 0..rounds {
        for (who, stranger, alert) in &strangers {
            let mut calls = tokio::task::JoinSet::new();
            for _ in 0..AT_ONCE {
                let call = stranger.call(admin.get(daemon.admin_url("/admin/hosts")));
                calls.spawn(async move {
                    let begun = Instant::now();
                    (call.await, begun.elapsed())
                });
            }
            while let Some(called) = calls.join_next().await {
                let (outcome, took) = called.unwrap();
                assert_eq!(outcome, Outcome::Alert(*alert), "{who}");
                slowest = slowest.max(took);
                refused += 1;
            }
        }
    }
    assert_alive(&daemon, &admin).await;
    println!("{refused} refusals in {rounds} rounds, the slowest after {slowest:?}");
}

/// The client of the tests above counts only the daemon's own answer as a refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_dead_daemon_nor_silence_nor_a_reset_is_a_refusal() {
    let mut daemon = Daemon::start();
    let admin = daemon.admin();
    let call = |url: String| admin.get(url);
    let stranger = RawClient::anonymous(&daemon);
    let url = daemon.admin_url("/admin/hosts");
    assert_eq!(stranger.call(call(url.clone())).await, Outcome::Alert(AlertDescription::CertificateRequired));
    daemon.kill();
    let dead = stranger.try_call(call(url)).await.unwrap_err();
    assert!(dead.contains("refused"), "{dead}");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    // The kernel accepts the connection, and no process answers.
    let silent = stranger.clone().bounded(Duration::from_millis(300)).try_call(call(url.clone())).await.unwrap_err();
    assert!(silent.contains("no connection within"), "{silent}");
    let (reset, _) = tokio::join!(stranger.try_call(call(url)), async {
        // The client that gave up, then the client that waits.
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A client that has sent a byte is connected: from here on the handshake fails.
            let _ = stream.read_u8().await;
            stream.set_zero_linger().unwrap();
        }
    });
    let reset = reset.unwrap_err();
    assert!(reset.contains("without an alert"), "{reset}");
}

/// Every operation, called by everybody without the right to it, or without the right now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_refuses_whoever_may_not() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let disabled = daemon.register(&admin, "disabled.test").await;
    let switch_off = admin.post(daemon.admin_url(&format!("/admin/hosts/{}/disable", disabled.id)));
    assert_eq!(switch_off.send().await.unwrap().status(), 200);
    let (client, elsewhere) = (daemon.client(), daemon.client_from([127, 0, 0, 2].into()));
    // Binds the host to this address.
    let bind =
        call(&client, &daemon.hosts_url(""), operation("POST", "/auth"), &host).header("X-API-Key", &host.api_key);
    assert_eq!(bind.send().await.unwrap().status(), 200);

    let directory = daemon.admin_certificate("mallory");
    let revoked = RawClient::with_certificate(&daemon, &directory, "mallory");
    let mut open_connection = revoked.open(admin.get(daemon.admin_url("/admin/hosts"))).await;
    let certificates = daemon.cli_json(&["certificates", "list"]);
    let found = certificates["certificates"].as_array().unwrap().iter().find(|it| it["name"] == "mallory").unwrap();
    daemon.cli_json(&["certificates", "revoke", found["fingerprint"].as_str().unwrap()]);
    let on_the_open_one = open_connection.call(admin.get(daemon.admin_url("/admin/hosts"))).await;
    assert!(matches!(on_the_open_one, None | Some(403)), "{on_the_open_one:?}");
    let strangers = strangers(&daemon);

    let mut tried = 0;
    for operation in OPERATIONS {
        let name = format!("{operation:?}");
        match operation.2 {
            Needs::Certificate | Needs::ControlSocket => {
                let base = daemon.admin_url("");
                let made = || call(&admin, &base, operation, &host).header("X-API-Key", &host.api_key);
                for (who, stranger, alert) in &strangers {
                    assert_eq!(stranger.call(made()).await, Outcome::Alert(*alert), "{name}, {who}");
                }
                assert_eq!(revoked.call(made()).await, Outcome::Closed, "{name}, a revoked certificate");
                assert_alive(&daemon, &admin).await;
            }
            Needs::Key => {
                let base = daemon.hosts_url("");
                let as_host = |client: &Client, host: &Registered| {
                    call(client, &base, operation, host).header("X-API-Key", &host.api_key).send()
                };
                refused(call(&client, &base, operation, &host).send().await.unwrap(), 401, "key_missing", &name).await;
                refused(as_host(&client, &disabled).await.unwrap(), 403, "host_disabled", &name).await;
                refused(as_host(&elsewhere, &host).await.unwrap(), 403, "address_refused", &name).await;
            }
            Needs::Session => {
                for (client, base) in [(&client, daemon.hosts_url("")), (&admin, daemon.admin_url(""))] {
                    let call = || call(client, &base, operation, &host);
                    refused(call().send().await.unwrap(), 401, "session_required", &name).await;
                    for no_token in [&host.api_key, "cxa_", &format!("cxa_{}", "A".repeat(43))] {
                        let answer = call().bearer_auth(no_token).send().await.unwrap();
                        refused(answer, 401, "session_invalid", &name).await;
                    }
                }
            }
            Needs::Nothing | Needs::NothingAnywhere | Needs::Provider => {}
        }
        tried += 1;
    }
    assert_eq!(tried, OPERATIONS.len());

    daemon.cli_json(&["api", "disable"]);
    for operation in OPERATIONS {
        let name = format!("{operation:?}, kill switch on");
        let call = call(&client, &daemon.hosts_url(""), operation, &host).header("X-API-Key", &host.api_key);
        match (operation.2, operation.1) {
            (Needs::Key, _) => refused(call.send().await.unwrap(), 503, "api_disabled", &name).await,
            (Needs::Nothing, "/install/{token}" | "/install/{token}/start") => {
                assert_eq!(call.send().await.unwrap().status(), 503, "{name}")
            }
            // There is no such user.
            (_, "/auth/session") => refused(call.send().await.unwrap(), 401, "", &name).await,
            (Needs::Nothing | Needs::NothingAnywhere, _) => {
                assert_eq!(call.send().await.unwrap().status(), 200, "{name}")
            }
            // Admins are still accepted: they switch it on again. So are sign-ins: the user may be an admin.
            (Needs::Certificate | Needs::ControlSocket | Needs::Session | Needs::Provider, _) => {}
        }
    }
    for path in ["/admin/hosts", "/admin/auth/history", "/admin/audit"] {
        assert_eq!(admin.get(daemon.admin_url(path)).send().await.unwrap().status(), 200, "{path}");
    }
    daemon.cli_json(&["api", "enable"]);
    let bound =
        call(&client, &daemon.hosts_url(""), operation("POST", "/auth"), &host).header("X-API-Key", &host.api_key);
    assert_eq!(bound.send().await.unwrap().status(), 200, "the host is unchanged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_operation_is_on_the_other_listener() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    // An admin's certificate is refused on the hosts' listener, and a host's key on the admins'.
    for operation in OPERATIONS {
        let elsewhere = match operation.2 {
            Needs::NothingAnywhere | Needs::Session | Needs::Provider => continue,
            Needs::Certificate | Needs::ControlSocket => daemon.hosts_url(""),
            Needs::Key | Needs::Nothing => daemon.admin_url(""),
        };
        let answer = call(&admin, &elsewhere, operation, &host).header("X-API-Key", &host.api_key).send().await;
        refused(answer.unwrap(), 404, "route_not_found", &format!("{operation:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_host_operation_answers_without_a_key_that_is_good() {
    let daemon = Daemon::start();
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let client = daemon.client();
    let digest = Digest::of(host.api_key.as_bytes()).to_string();
    let upper = host.api_key.to_uppercase();
    let mut key_operations = 0;
    for operation in OPERATIONS.iter().filter(|(.., needs, _)| *needs == Needs::Key) {
        key_operations += 1;
        let call = || call(&client, &daemon.hosts_url(""), operation, &host);
        let name = format!("{operation:?}");
        refused(call().send().await.unwrap(), 401, "key_missing", &name).await;
        refused(call().header("X-API-Key", "").send().await.unwrap(), 401, "key_missing", &name).await;
        let wrong = ["f".repeat(64), digest.clone(), upper.clone(), host.api_key[1..].to_owned(), host.token.clone()];
        for key in &wrong {
            refused(call().header("X-API-Key", key).send().await.unwrap(), 401, "key_invalid", &name).await;
            refused(call().bearer_auth(key).send().await.unwrap(), 401, "key_invalid", &name).await;
        }
        // Only these two headers carry keys.
        for (header, value) in [
            ("Authorization", format!("Basic {}", host.api_key)),
            ("Authorization", host.api_key.clone()),
            ("Cookie", format!("X-API-Key={}", host.api_key)),
            ("X-Forwarded-For", "127.0.0.1".into()),
        ] {
            refused(call().header(header, value).send().await.unwrap(), 401, "key_missing", &name).await;
        }
    }
    assert!(key_operations >= 6);
    let left =
        call(&client, &daemon.hosts_url(""), operation("POST", "/auth"), &host).bearer_auth(&host.api_key).send().await;
    assert_eq!(left.unwrap().status(), 200, "the host still exists");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bodies_are_refused_with_a_reason() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let people = Targets::with_people(&daemon, &host).await;
    upload_again(&daemon).await;
    for operation in OPERATIONS.iter().filter(|(.., body)| body.is_some()) {
        let good = operation.3.unwrap()().to_string();
        let send = |content_type: &'static str, body: Vec<u8>| {
            let call = match operation.2 {
                Needs::Certificate => call(&admin, &daemon.admin_url(""), operation, &people),
                Needs::Session => call(&daemon.client(), &daemon.hosts_url(""), operation, &people),
                _ => call(&daemon.client(), &daemon.hosts_url(""), operation, &host).header("X-API-Key", &host.api_key),
            };
            let call = content_type_of(call, HeaderValue::from_static(content_type));
            let (daemon, people) = (&daemon, &people);
            async move {
                let call = match operation.2 {
                    Needs::Session => call.bearer_auth(people.token_for(daemon, operation).await),
                    _ => call,
                };
                call.body(body).send().await.unwrap()
            }
        };
        let json = "application/json";
        let name = format!("{operation:?}");

        // At a sign-in the user is not known yet.
        let bound = if operation.1 == "/auth/session" { 16 * 1024 } else { 1024 * 1024 };
        let long = format!("{}{good}", " ".repeat(bound + 1 - good.len()));
        assert_eq!(long.len(), bound + 1);
        refused(send(json, long[1..].into()).await, 200, "", &name).await;
        refused(send(json, long.into()).await, 413, "too_large", &name).await;

        for other in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"] {
            refused(send(other, good.clone().into()).await, 415, "unsupported_media_type", &name).await;
        }
        let twice = format!("{},{}", &good[..good.len() - 1], &good[1..]);
        let (member, rest) = good[1..].split_once(':').unwrap();
        let not_utf8 = [br#"{"a":""#, &[0xff, 0xfe][..], br#"","#, &good.as_bytes()[1..]].concat();
        for bad in [
            twice.into_bytes(),
            not_utf8,
            format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes(),
            format!("{{{member}:{}1{}}}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes(),
            format!("{{{member}:{}", "[".repeat(500_000)).into_bytes(),
            format!("{{{member}:{}", "{\"a\":".repeat(100_000)).into_bytes(),
            good[..good.len() - 1].into(),
            format!("{good}{good}").into_bytes(),
            format!("{{{member}:{rest}\0").into_bytes(),
            format!("\u{feff}{good}").into_bytes(),
            b"{".into(),
        ] {
            let shown = String::from_utf8_lossy(&bad).chars().take(80).collect::<String>();
            let (status, code) = if bad.len() > bound { (413, "too_large") } else { (400, "invalid_json") };
            refused(send(json, bad).await, status, code, &format!("{name} {shown}")).await;
        }
    }
    let state: Value = admin.get(daemon.admin_url("/admin/hosts")).send().await.unwrap().json().await.unwrap();
    assert!(state["data"]["hosts"].as_array().unwrap().len() <= 3, "{state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_requests_are_refused_and_the_daemon_goes_on() {
    let daemon = Daemon::start();
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let mut clients = vec![("HTTP/2", daemon.client())];
    clients.push(("HTTP/1.1", daemon.client_builder().http1_only().build().unwrap()));
    for (protocol, client) in clients {
        let post = || client.post(daemon.hosts_url("/auth")).json(&retrieve());
        let not_ascii = HeaderValue::from_bytes(b"\xff\xfe\x80").unwrap();
        refused(post().header("X-API-Key", not_ascii.clone()).send().await.unwrap(), 401, "", protocol).await;
        refused(post().header("X-API-Key", "a".repeat(8_000)).send().await.unwrap(), 401, "key_invalid", protocol)
            .await;
        let odd = content_type_of(post(), not_ascii).header("X-API-Key", &host.api_key);
        let answer = odd.send().await.unwrap();
        assert!(answer.status().is_client_error() || answer.status() == 200, "{protocol}: {}", answer.status());
        for method in ["TRACE", "CONNECTED", "PATCH", "PUT"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = client.request(method, daemon.hosts_url("/auth")).send().await.unwrap();
            assert_eq!(answer.headers()["allow"], "DELETE, POST", "{protocol}");
            refused(answer, 405, "method_not_allowed", protocol).await;
        }
        for path in ["//auth//x", "/auth/../admin/hosts", "/%00", "/%2e%2e/admin", "/install/", "/é"] {
            let answer = client.get(daemon.hosts_url(path)).send().await.unwrap();
            refused(answer, 404, "route_not_found", &format!("{protocol} {path}")).await;
        }
        // The answer is piped into bash: it is a script that fails.
        let odd = client.get(daemon.hosts_url("/install/a/b")).send().await.unwrap();
        assert_eq!((odd.status().as_u16(), &odd.headers()["content-type"]), (404, &SCRIPT), "{protocol}");
        assert!(odd.text().await.unwrap().ends_with("exit 1\n"), "{protocol}");
        // A path parameter that is not UTF-8 is refused too, in the right form.
        let odd = client.get(daemon.hosts_url("/install/%ff%00")).send().await.unwrap();
        assert!(odd.status().is_client_error(), "{protocol}: {}", odd.status());

        // So many headers that the connection itself refuses: before there is a request there is no envelope.
        let many = (0..2_000).fold(post(), |call, n| call.header(format!("x-{n}"), "a"));
        let long = post().header("X-Long", "a".repeat(1024 * 1024));
        for call in [many, long] {
            if let Ok(answer) = call.send().await {
                assert!(answer.status().is_client_error(), "{protocol}: {}", answer.status());
            }
        }
    }
    let alive =
        call(&daemon.client(), &daemon.hosts_url(""), operation("POST", "/auth"), &host).bearer_auth(&host.api_key);
    assert_eq!(alive.send().await.unwrap().status(), 200);
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_and_its_page_are_served_on_both_listeners() {
    let daemon = Daemon::start();
    for (client, base) in [(daemon.client(), daemon.hosts_url("")), (daemon.admin(), daemon.admin_url(""))] {
        let answer = client.get(format!("{base}/openapi.json")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(answer.text().await.unwrap(), DOCUMENT);
        let answer = client.get(format!("{base}/docs")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
        assert!(answer.text().await.unwrap().contains("<html"));
    }
}

pub fn call(client: &Client, base: &str, operation: &Operation, targets: impl Into<Targets>) -> RequestBuilder {
    let (method, path, _, body) = operation;
    let targets: Targets = targets.into();
    let (host, of) = (&targets.host, |start: &str| path.starts_with(start));
    let id = match path {
        _ if of("/admin/installers") => Digest::of(host.token.as_bytes()).to_string(),
        _ if of("/auth/users") => targets.user.to_string(),
        _ if of("/auth/sessions") => targets.session.clone(),
        _ if of("/auth/me/sessions") => targets.own_session.clone(),
        _ if of("/auth/me/hosts") => targets.own_host.to_string(),
        _ => host.id.to_string(),
    };
    let path = path.replace("{id}", &id).replace("{token}", &host.token).replace("{role}", "server");
    let path = path.replace("{fingerprint}", &targets.fingerprint);
    let query = match &*path {
        "/admin/auth/diff" => "?from=1&to=2",
        retire if retire.ends_with("/retire") => "?force=true",
        _ => "",
    };
    let path = format!("{path}{query}");
    let call = client.request(method.parse().unwrap(), format!("{base}{path}"));
    match body {
        Some(body) => call.json(&body()),
        None => call,
    }
}

/// Replaces the content type of the body.
fn content_type_of(call: RequestBuilder, content_type: HeaderValue) -> RequestBuilder {
    call.headers(HeaderMap::from_iter([(CONTENT_TYPE, content_type)]))
}

/// Asserts an envelope with this status and code; an empty code matches any.
pub async fn refused(answer: reqwest::Response, status: u16, code: &str, what: &str) {
    let (got, headers) = (answer.status(), answer.headers().clone());
    let text = answer.text().await.unwrap();
    let shown = text.chars().take(300).collect::<String>();
    assert_eq!(got, status, "{what}: {shown}");
    // The other listener does not have the operation.
    if what.contains("/auth/lines") && status != 404 {
        assert_eq!(headers["content-type"], "text/plain; charset=utf-8", "{what}");
        let beginning = if status == 200 { "status ".into() } else { format!("status error\ncode {status}\nmessage ") };
        assert!(text.starts_with(&beginning), "{what}: {shown}");
        return;
    }
    assert_eq!(headers["content-type"], "application/json", "{what}");
    assert_eq!(headers["x-content-type-options"], "nosniff", "{what}");
    if status == 200 {
        return;
    }
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{what}: {shown}"));
    assert_eq!(body["status"], "error", "{what}: {shown}");
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{what}: {shown}");
    let given = body["code"].as_str().unwrap_or_else(|| panic!("{what}: {shown}"));
    assert!(code.is_empty() || given == code, "{what}: {shown}");
}

async fn register(daemon: &Daemon, admin: &Client, body: Value) -> Registered {
    let url = daemon.admin_url("/admin/hosts/register");
    let body: Value = admin.post(url).json(&body).send().await.unwrap().json().await.unwrap();
    Registered::from(&body["data"])
}
