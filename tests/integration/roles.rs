//! The rights of a role: every operation of the checked-in document is in [`ROLES`] with its lowest role, and is called
//! as every kind of caller.

use std::collections::BTreeSet;

use reqwest::{Client, Response};
use rustls::AlertDescription;
use serde_json::{Value, json};

use crate::forms::{COOKIE, is_sign_in};
use crate::refusals::{DOCUMENT, Targets, call, operation, refused, upload_again};
use crate::support::daemon::{Daemon, identity};
use crate::support::people::{PASSWORD, add_user, ask, me, register, sign_in, tell};
use crate::support::raw_tls::{Outcome, RawClient};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Least {
    /// Any caller; other conditions are no role.
    Nobody,
    /// A host, by its API key: no role is enough.
    Host,
    Member,
    Viewer,
    Admin,
    /// A caller on the control socket: no role is enough.
    Machine,
}

use Least::{Admin, Host, Machine, Member, Nobody, Viewer};

pub const ROLES: &[(&str, &str, Least)] = &[
    ("GET", "/healthz", Nobody),
    ("GET", "/readyz", Nobody),
    ("GET", "/versions", Nobody),
    ("GET", "/install/{token}/start", Nobody),
    ("GET", "/install/{token}", Nobody),
    ("POST", "/auth/session", Nobody),
    ("GET", "/auth/oidc/login", Nobody),
    ("GET", "/auth/oidc/callback", Nobody),
    ("POST", "/auth", Host),
    ("POST", "/auth/lines", Host),
    ("GET", "/auth/document", Host),
    ("DELETE", "/auth", Host),
    ("GET", "/wrapper", Host),
    ("GET", "/wrapper/download", Host),
    ("GET", "/auth/me", Member),
    ("GET", "/auth/me/sessions", Member),
    ("DELETE", "/auth/me/sessions/{id}", Member),
    ("POST", "/auth/me/password", Member),
    ("GET", "/auth/me/hosts", Member),
    ("POST", "/auth/me/hosts", Member),
    ("DELETE", "/auth/me/hosts/{id}", Member),
    ("DELETE", "/auth/session", Member),
    ("GET", "/auth/users", Viewer),
    ("GET", "/auth/users/{id}", Viewer),
    ("GET", "/auth/users/{id}/sessions", Viewer),
    ("GET", "/auth/sessions", Viewer),
    ("GET", "/auth/identities", Viewer),
    ("GET", "/admin/overview", Viewer),
    ("GET", "/admin/auth", Viewer),
    ("GET", "/admin/auth/history", Viewer),
    ("GET", "/admin/auth/diff", Viewer),
    ("GET", "/admin/hosts", Viewer),
    ("GET", "/admin/hosts/removed", Viewer),
    ("GET", "/admin/hosts/{id}", Viewer),
    ("GET", "/admin/hosts/{id}/auth", Viewer),
    ("GET", "/admin/installers", Viewer),
    ("GET", "/admin/audit", Viewer),
    ("GET", "/admin/logs", Viewer),
    ("GET", "/admin/audit/verify", Viewer),
    ("GET", "/admin/certificates", Viewer),
    ("GET", "/admin/authorities", Viewer),
    ("GET", "/admin/authorities/hosts", Viewer),
    ("GET", "/admin/api/state", Viewer),
    ("GET", "/admin/runner", Viewer),
    ("GET", "/admin/runner/doctor", Viewer),
    ("GET", "/admin/doctor", Viewer),
    ("POST", "/admin/records/verify", Admin),
    ("GET", "/metrics", Viewer),
    ("POST", "/admin/auth/upload", Admin),
    ("POST", "/admin/auth/rollback", Admin),
    ("POST", "/admin/hosts/register", Admin),
    ("POST", "/admin/hosts/{id}/roaming", Admin),
    ("POST", "/admin/hosts/{id}/insecure/enable", Admin),
    ("POST", "/admin/hosts/{id}/insecure/disable", Admin),
    ("POST", "/admin/hosts/{id}/clear", Admin),
    ("POST", "/admin/hosts/{id}/disable", Admin),
    ("POST", "/admin/hosts/{id}/enable", Admin),
    ("POST", "/admin/hosts/{id}/expiry", Admin),
    ("POST", "/admin/hosts/{id}/networks", Admin),
    ("DELETE", "/admin/hosts/{id}", Admin),
    ("POST", "/admin/hosts/{id}/restore", Admin),
    ("POST", "/admin/installers/{id}/revoke", Admin),
    ("POST", "/admin/certificates", Admin),
    ("POST", "/admin/certificates/{fingerprint}/renew", Admin),
    ("POST", "/admin/certificates/{fingerprint}/user", Admin),
    ("POST", "/admin/certificates/{fingerprint}/revoke", Admin),
    ("POST", "/admin/authorities/{role}/prepare", Admin),
    ("POST", "/admin/authorities/{role}/activate", Admin),
    ("POST", "/admin/authorities/{role}/retire", Admin),
    ("POST", "/admin/api/state", Admin),
    ("POST", "/admin/runner/run", Admin),
    ("POST", "/admin/keys/rotate", Admin),
    ("POST", "/auth/users", Admin),
    ("POST", "/auth/users/{id}/role", Admin),
    ("POST", "/auth/users/{id}/disable", Admin),
    ("POST", "/auth/users/{id}/enable", Admin),
    ("POST", "/auth/users/{id}/password", Admin),
    ("POST", "/auth/users/{id}/max-hosts", Admin),
    ("POST", "/auth/sessions/{id}/end", Admin),
    ("POST", "/auth/identities", Admin),
    ("POST", "/auth/identities/unlink", Admin),
    ("GET", "/admin/backup", Machine),
    ("POST", "/admin/backup/keys", Machine),
    ("POST", "/admin/backup/verified", Machine),
    ("POST", "/admin/restore", Machine),
    ("POST", "/admin/migrate", Machine),
    ("POST", "/admin/migrate/abort", Machine),
];

/// Users sign in with a session, and there is a runner.
pub const LOGIN: [(&str, &str); 3] =
    [("ADMIN__ACCESS", "login"), ("RUNNER__ENABLED", "true"), ("RUNNER__CODEX", "/nowhere/codex")];

#[test]
fn every_operation_of_the_document_has_a_least_role() {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let described: BTreeSet<(String, String)> = paths
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let listed: BTreeSet<(String, String)> =
        ROLES.iter().map(|(method, path, _)| (method.to_string(), path.to_string())).collect();
    let without_a_row: Vec<_> = described.difference(&listed).collect();
    let without_an_operation: Vec<_> = listed.difference(&described).collect();
    assert!(without_a_row.is_empty(), "not in ROLES: {without_a_row:?}");
    assert!(without_an_operation.is_empty(), "no operation of the document: {without_an_operation:?}");
    assert_eq!(ROLES.len(), listed.len(), "an operation is in ROLES twice");
}

/// A caller, and the expected refusals.
struct Somebody {
    who: &'static str,
    client: Client,
    token: Option<String>,
    may: Least,
    /// The answer to operations beyond [`Self::may`] that are not for hosts or the control socket.
    turned_away: (u16, &'static str),
    /// Secrets that no answer may show to this caller.
    hidden: Vec<String>,
}

/// The secrets of a host, of a user, of the canonical login.
fn secrets(targets: &Targets) -> Vec<String> {
    let Targets { host, token, .. } = targets;
    let marks = ["$argon2", "Zk3vQ9xT1mB7rLp0", "rt_abc/def", PASSWORD].map(String::from);
    marks.into_iter().chain([host.api_key.clone(), host.token.clone(), token.clone()]).collect()
}

impl Somebody {
    async fn call(&self, daemon: &Daemon, row: &(&str, &str, Least), targets: &Targets, on_admin: bool) -> Response {
        let base = if on_admin { daemon.admin_url("") } else { daemon.hosts_url("") };
        let call = call(&self.client, &base, operation(row.0, row.1), targets);
        let call = match &self.token {
            Some(token) => call.bearer_auth(token),
            None => call,
        };
        call.send().await.unwrap()
    }

    async fn is_answered(&self, least: Least, answer: Response, what: &str) {
        match self.expected(least) {
            Some((status, code)) => refused(answer, status, code, what).await,
            None if least < Viewer => let_in(answer, what).await,
            None => {
                let (status, text) = (answer.status(), answer.text().await.unwrap());
                assert_eq!(status, 200, "{what}: {text}");
                for secret in &self.hidden {
                    assert!(!text.contains(secret), "{what}: it shows {secret}: {text}");
                }
            }
        }
    }

    /// The expected answer; `None`: anything but a refusal because of the role.
    fn expected(&self, least: Least) -> Option<(u16, &'static str)> {
        match least {
            Nobody => None,
            Host => Some((401, if self.token.is_some() { "key_invalid" } else { "key_missing" })),
            Machine if self.may >= Member => Some((403, "control_socket_only")),
            _ if least <= self.may => None,
            _ => Some(self.turned_away),
        }
    }
}

/// Every refusal because of the caller's role has one of these codes.
const OF_ROLES: [&str; 6] = [
    "session_required",
    "session_invalid",
    "role_insufficient",
    "certificate_required",
    "certificate_refused",
    "certificate_of_another",
];

/// Calls every operation, on each listener that has it.
async fn call_everything(daemon: &Daemon, somebody: &Somebody, targets: &Targets) {
    for row in ROLES {
        let (method, path, least) = row;
        let on_both = *least == Member || ["/auth/session", "/auth/oidc/login", "/healthz"].contains(path);
        for on_admin in [false, true] {
            if !on_both && on_admin != (*least >= Viewer) {
                continue;
            }
            let what = format!("{} calls {method} {path}, admin listener: {on_admin}", somebody.who);
            let answer = somebody.call(daemon, row, targets, on_admin).await;
            somebody.is_answered(*least, answer, &what).await;
        }
    }
}

async fn let_in(answer: Response, what: &str) {
    let status = answer.status().as_u16();
    let body = answer.text().await.unwrap();
    let code = serde_json::from_str::<Value>(&body).unwrap_or_default()["code"].as_str().unwrap_or_default().to_owned();
    assert!(!OF_ROLES.contains(&&*code), "{what}: {status} {body}");
    assert!(status < 500 || code == "provider_unavailable", "{what}: {status} {body}");
}

/// Every kind of caller calls every operation, on a daemon with sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_is_for_its_least_role_and_those_above() {
    let daemon = Daemon::start_with(&LOGIN);
    let host = register(&daemon, "h.test").await;
    let targets = Targets::with_people(&daemon, &host).await;
    upload_again(&daemon).await;
    let insufficient = (403, "role_insufficient");
    let invalid = (401, "session_invalid");
    let client = || daemon.client();
    let hidden = secrets(&targets);
    let somebody = |who, token, may, turned_away| {
        let hidden = hidden.clone();
        Somebody { who, client: client(), token, may, turned_away, hidden }
    };

    for (email, role) in [
        ("member@roles.test", "member"),
        ("viewer@roles.test", "viewer"),
        ("admin@roles.test", "admin"),
        ("disabled@roles.test", "admin"),
        ("ended@roles.test", "admin"),
        ("changed@roles.test", "admin"),
        ("lowered@roles.test", "admin"),
    ] {
        add_user(&daemon, email, role).await;
    }
    let token = async |name: &str| Some(sign_in(&daemon, &format!("{name}@roles.test")).await);
    let users = ask(&daemon, "/auth/users").await;
    let number = |name: &str| {
        let users = users["users"].as_array().unwrap();
        let user = users.iter().find(|user| user["email"] == format!("{name}@roles.test"));
        user.unwrap()["id"].as_u64().unwrap()
    };

    // Refused operations change nothing: they come first, and the targets exist afterwards.
    let disabled = somebody("an admin who was disabled", token("disabled").await, Nobody, invalid);
    tell(&daemon, &format!("/auth/users/{}/disable", number("disabled")), &Value::Null).await;
    call_everything(&daemon, &disabled, &targets).await;
    let again = json!({ "email": "disabled@roles.test", "password": PASSWORD });
    let again = client().post(daemon.hosts_url("/auth/session")).json(&again).send().await.unwrap();
    refused(again, 401, "sign_in_refused", "signing in again").await;

    let ended = somebody("a session that was ended", token("ended").await, Nobody, invalid);
    let out = client().delete(daemon.hosts_url("/auth/session")).bearer_auth(ended.token.as_ref().unwrap());
    assert_eq!(out.send().await.unwrap().status(), 200);
    call_everything(&daemon, &ended, &targets).await;

    let changed = somebody("a session of an old password", token("changed").await, Nobody, invalid);
    let other = json!({ "password": format!("{PASSWORD}-and-another") });
    tell(&daemon, &format!("/auth/users/{}/password", number("changed")), &other).await;
    call_everything(&daemon, &changed, &targets).await;

    call_everything(&daemon, &somebody("nobody", None, Nobody, (401, "session_required")), &targets).await;
    let host_key = Somebody { token: Some(host.api_key.clone()), ..somebody("a host's key", None, Nobody, invalid) };
    for row in ROLES.iter().filter(|(_, _, least)| *least >= Viewer) {
        refused(host_key.call(&daemon, row, &targets, true).await, 401, "session_invalid", row.1).await;
    }

    // An admin who gets a lower role has it at once, in an existing session too.
    let lowered = token("lowered").await;
    tell(&daemon, &format!("/auth/users/{}/role", number("lowered")), &json!({ "role": "viewer" })).await;
    for (somebody, own) in [
        (somebody("a member", token("member").await, Member, insufficient), "member"),
        (somebody("a viewer", token("viewer").await, Viewer, insufficient), "viewer"),
        (somebody("an admin made viewer", lowered, Viewer, insufficient), "lowered"),
    ] {
        let untouched = state(&daemon).await;
        for row in ROLES.iter().filter(|row| row.2 >= Viewer) {
            let what = format!("{} calls {} {}", somebody.who, row.0, row.1);
            let answer = somebody.call(&daemon, row, &targets, true).await;
            somebody.is_answered(row.2, answer, &what).await;
        }
        // The version with the document is for admins only.
        for path in ["/admin/auth?include_body=1".into(), format!("/admin/hosts/{}/auth?include_body=1", host.id)] {
            let answer = somebody.client.get(daemon.admin_url(&path)).bearer_auth(somebody.token.as_ref().unwrap());
            refused(answer.send().await.unwrap(), 403, "role_insufficient", &path).await;
        }
        assert_eq!(state(&daemon).await, untouched, "{} changed something", somebody.who);
        // The audit log has each attempt.
        let tries = ROLES.iter().filter(|row| row.0 != "GET" && row.2 > Viewer).count();
        let log = ask(&daemon, "/admin/audit?limit=1000").await;
        let by = |entry: &&Value| entry["actor"] == format!("user {own}@roles.test") && entry["outcome"] == "403";
        assert_eq!(log["entries"].as_array().unwrap().iter().filter(by).count(), tries, "{}", somebody.who);
        of_ones_own(&daemon, &somebody, own).await;
    }
    let admin = somebody("an admin", token("admin").await, Admin, insufficient);
    // The installer of this host has not been redeemed.
    let targets = Targets { host: register(&daemon, "h2.test").await, ..targets };
    for operation in crate::refusals::OPERATIONS {
        let row = ROLES.iter().find(|row| (row.0, row.1) == (operation.0, operation.1)).unwrap();
        if row.2 < Viewer || row.2 == Machine {
            continue;
        }
        let answer = admin.call(&daemon, row, &targets, true).await;
        let what = format!("an admin calls {} {}", row.0, row.1);
        // Each succeeds, except that some report a missing window or runner.
        let status = answer.status().as_u16();
        assert!(status == 200 || [409, 422].contains(&status), "{what}: {status} {}", answer.text().await.unwrap());
    }
    for row in ROLES.iter().filter(|row| row.2 == Machine) {
        refused(admin.call(&daemon, row, &targets, true).await, 403, "control_socket_only", row.1).await;
    }
    of_ones_own(&daemon, &admin, "admin").await;
}

/// Operations that every role may do on its own things, on both listeners; the session is ended last.
async fn of_ones_own(daemon: &Daemon, somebody: &Somebody, name: &str) {
    for listener in [daemon.hosts_url(""), daemon.admin_url("")] {
        let email = format!("{name}@roles.test");
        let session = sign_in(daemon, &email).await;
        let id = me(daemon, &sign_in(daemon, &email).await).await["session"]["id"].clone();
        let done = async |method: &str, path: String, body: Option<Value>| {
            let call = somebody.client.request(method.parse().unwrap(), format!("{listener}{path}"));
            let call = body.iter().fold(call.bearer_auth(&session), |call, body| call.json(body));
            let answer = call.send().await.unwrap();
            let status = answer.status();
            let text = answer.text().await.unwrap();
            assert_eq!(status, 200, "{} calls {method} {path}: {text}", somebody.who);
            serde_json::from_str::<Value>(&text).unwrap()["data"].take()
        };
        let fqdn = format!("{name}.own.test");
        let made = done("POST", "/auth/me/hosts".into(), Some(json!({ "fqdn": fqdn }))).await;
        assert_eq!(done("GET", "/auth/me/hosts".into(), None).await["hosts"].as_array().unwrap().len(), 1);
        done("DELETE", format!("/auth/me/hosts/{}", made["host"]["id"]), None).await;
        done("DELETE", format!("/auth/me/sessions/{}", id.as_str().unwrap()), None).await;
        done("GET", "/auth/me/sessions".into(), None).await;
        done("GET", "/auth/me".into(), None).await;
        done("DELETE", "/auth/session".into(), None).await;
        let password = json!({ "current": PASSWORD, "new": PASSWORD });
        let own = sign_in(daemon, &email).await;
        let call = somebody.client.post(format!("{listener}/auth/me/password")).bearer_auth(&own).json(&password);
        assert_eq!(call.send().await.unwrap().status(), 200, "{} gives themselves a password", somebody.who);
        let after = somebody.client.get(format!("{listener}/auth/me")).bearer_auth(&session).send().await.unwrap();
        refused(after, 401, "session_invalid", "after signing out").await;
    }
}

/// The data that a forbidden call could have changed.
pub async fn state(daemon: &Daemon) -> Value {
    let mut all = json!({});
    for path in ["/admin/auth", "/auth/users", "/auth/identities", "/admin/certificates", "/admin/authorities"] {
        all[path] = ask(daemon, path).await;
    }
    for path in ["/admin/api/state", "/admin/hosts/removed", "/admin/installers"] {
        all[path] = ask(daemon, path).await;
    }
    all
}

/// Nobody reaches another user's things through the paths for one's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ones_own_is_nobody_elses() {
    let daemon = Daemon::start_with(&LOGIN);
    let host = register(&daemon, "h.test").await;
    let targets = Targets::with_people(&daemon, &host).await;
    for (role, email) in [("member", "m@roles.test"), ("admin", "a@roles.test")] {
        add_user(&daemon, email, role).await;
        let token = sign_in(&daemon, email).await;
        let client = daemon.client();
        for (path, id) in [
            ("/auth/me/hosts", targets.own_host.to_string()),
            ("/auth/me/hosts", host.id.to_string()),
            ("/auth/me/sessions", targets.own_session.clone()),
        ] {
            let call = client.delete(daemon.hosts_url(&format!("{path}/{id}"))).bearer_auth(&token);
            refused(call.send().await.unwrap(), 404, "not_found", &format!("{role} deletes {path}/{id}")).await;
        }
        for fqdn in ["own.test", "h.test"] {
            let call =
                client.post(daemon.hosts_url("/auth/me/hosts")).bearer_auth(&token).json(&json!({ "fqdn": fqdn }));
            refused(call.send().await.unwrap(), 409, "conflict", &format!("{role} takes {fqdn}")).await;
        }
    }
    let mine = daemon.client().get(daemon.hosts_url("/auth/me/hosts")).bearer_auth(&targets.token);
    let mine: Value = mine.send().await.unwrap().json().await.unwrap();
    assert_eq!(mine["data"]["hosts"].as_array().unwrap().len(), 1, "{mine}");
}

/// A certificate of a user has the user's role, and no role if the user is disabled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_tied_to_a_user_has_the_users_role() {
    let daemon = Daemon::start_with(&LOGIN[1..]);
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let targets = Targets::with_people(&daemon, &host).await;
    upload_again(&daemon).await;
    let directory = daemon.admin_certificate("viewer");
    let viewer = add_user(&daemon, "viewer@roles.test", "viewer").await;
    tie(&daemon, "viewer", json!("viewer@roles.test")).await;
    let client = daemon.client_builder().identity(identity(&directory, "viewer")).build().unwrap();
    let somebody = Somebody {
        who: "a viewer's certificate",
        client,
        token: None,
        may: Viewer,
        turned_away: (403, "role_insufficient"),
        hidden: secrets(&targets),
    };
    let untouched = state(&daemon).await;
    for row in ROLES.iter().filter(|row| row.2 >= Member) {
        let what = format!("{} calls {} {}", somebody.who, row.0, row.1);
        let answer = somebody.call(&daemon, row, &targets, true).await;
        match row.2 {
            // A certificate is no session.
            Member => refused(answer, 401, "session_required", &what).await,
            least => somebody.is_answered(least, answer, &what).await,
        }
    }
    assert_eq!(state(&daemon).await, untouched);

    tell(&daemon, &format!("/auth/users/{viewer}/disable"), &Value::Null).await;
    for row in ROLES.iter().filter(|row| row.2 >= Viewer) {
        let answer = somebody.call(&daemon, row, &targets, true).await;
        refused(answer, 403, "certificate_refused", &format!("disabled: {} {}", row.0, row.1)).await;
    }
    tie(&daemon, "viewer", Value::Null).await;
    let again = somebody.client.post(daemon.admin_url("/admin/keys/rotate")).send().await.unwrap();
    assert_eq!(again.status(), 200, "a certificate without a user is an admin's");
}

async fn tie(daemon: &Daemon, name: &str, user: Value) {
    let fingerprint = fingerprint(daemon, name);
    tell(daemon, &format!("/admin/certificates/{fingerprint}/user"), &json!({ "user": user })).await;
}

fn fingerprint(daemon: &Daemon, name: &str) -> String {
    let listed = daemon.cli_json(&["certificates", "list"]);
    let found = listed["certificates"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
    found["fingerprint"].as_str().unwrap().to_owned()
}

/// If a certificate and a session are required, one alone is not enough, nor a session of another user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_and_session_go_together() {
    let daemon = Daemon::start_with(&[("ADMIN__ACCESS", "mtls+login")]);
    for (email, role) in [("ada@roles.test", "admin"), ("vera@roles.test", "viewer")] {
        add_user(&daemon, email, role).await;
    }
    let (ada, vera) = (sign_in(&daemon, "ada@roles.test").await, sign_in(&daemon, "vera@roles.test").await);
    let with = |name: &str| {
        let directory = daemon.admin_certificate(name);
        daemon.client_builder().identity(identity(&directory, name)).build().unwrap()
    };
    let (of_ada, of_nobody) = (with("ada"), with("nobody"));
    tie(&daemon, "ada", json!("ada@roles.test")).await;
    let hosts = daemon.admin_url("/admin/hosts");
    let change = |client: &Client, token: &str| {
        client.post(daemon.admin_url("/admin/api/state")).bearer_auth(token).json(&json!({ "disabled": false })).send()
    };

    let without = RawClient::anonymous(&daemon).call(daemon.client().get(&hosts).bearer_auth(&ada)).await;
    assert_eq!(without, Outcome::Alert(AlertDescription::CertificateRequired), "no certificate: no handshake");
    for client in [&of_ada, &of_nobody] {
        refused(client.get(&hosts).send().await.unwrap(), 401, "session_required", "no session").await;
        let made_up = client.get(&hosts).bearer_auth(format!("cxa_{}", "A".repeat(43)));
        refused(made_up.send().await.unwrap(), 401, "session_invalid", "a session of nobody's").await;
    }
    assert_eq!(change(&of_ada, &ada).await.unwrap().status(), 200, "both");
    assert_eq!(change(&of_nobody, &ada).await.unwrap().status(), 200, "a certificate without a user");
    refused(change(&of_nobody, &vera).await.unwrap(), 403, "role_insufficient", "the session's role").await;
    for path in ["/admin/hosts", "/auth/me"] {
        let answer = of_ada.get(daemon.admin_url(path)).bearer_auth(&vera).send().await.unwrap();
        refused(answer, 403, "certificate_of_another", path).await;
    }

    // The pages have the same rule.
    let page = |client: &Client, token: &str| {
        let client = client.get(daemon.admin_url("/hosts"));
        client.header("cookie", format!("{COOKIE}={token}")).send()
    };
    assert!(is_sign_in(&of_ada.get(daemon.admin_url("/hosts")).send().await.unwrap()));
    assert_eq!(page(&of_ada, &ada).await.unwrap().status(), 200);
    assert_eq!(page(&of_ada, &vera).await.unwrap().status(), 403);
    assert_eq!(page(&of_nobody, &vera).await.unwrap().status(), 200);

    // A session is refused through a revoked certificate.
    daemon.cli_json(&["certificates", "revoke", &fingerprint(&daemon, "ada")]);
    let revoked = RawClient::with_certificate(&daemon, &daemon.state.path().join("admin-ada"), "ada");
    let call = daemon.client().post(daemon.admin_url("/admin/api/state")).bearer_auth(&ada);
    assert_eq!(revoked.call(call.json(&json!({ "disabled": false }))).await, Outcome::Closed, "revoked");
    assert_eq!(change(&of_nobody, &ada).await.unwrap().status(), 200, "the session works through another certificate");
}
