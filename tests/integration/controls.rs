//! What admins can do to hosts, installers, certificates and the login, and the audit entries of it, over the API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use codex_authd::durable::Store;
use codex_authd::model::digest::Digest;
use codex_authd::platform::{Clock as _, System};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::support::daemon::{BOUND, Daemon, Registered, auth_json, identity, pause};
use crate::support::raw_tls::{Outcome, RawClient};

const FIRST: &str = "2025-11-20T09:27:43.373506211Z";
const SECOND: &str = "2025-11-21T09:27:43.373506211Z";

type Answered = (u16, Value);

async fn call(client: &Client, method: Method, url: String, key: Option<&str>, body: Option<Value>) -> Answered {
    let mut call = client.request(method, url);
    if let Some(key) = key {
        call = call.header("X-API-Key", key);
    }
    if let Some(body) = body {
        call = call.json(&body);
    }
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn admin_post(daemon: &Daemon, admin: &Client, path: &str, body: Value) -> Answered {
    call(admin, Method::POST, daemon.admin_url(path), None, Some(body)).await
}

async fn admin_get(daemon: &Daemon, admin: &Client, path: &str) -> Value {
    let (status, body) = call(admin, Method::GET, daemon.admin_url(path), None, None).await;
    assert_eq!(status, 200, "{path}: {body}");
    body["data"].clone()
}

async fn retrieve(daemon: &Daemon, client: &Client, host: &Registered) -> Answered {
    let body = json!({ "last_refresh": "2024-01-01T00:00:00Z", "digest": "0".repeat(64) });
    call(client, Method::POST, daemon.hosts_url("/auth"), Some(&host.api_key), Some(body)).await
}

async fn upload(daemon: &Daemon, admin: &Client, last_refresh: &str, n: u64) {
    let body = json!({ "auth": auth_json(last_refresh, n) });
    let (status, body) = admin_post(daemon, admin, "/admin/auth/upload", body).await;
    assert_eq!((status, body["data"]["status"].as_str()), (200, Some("updated")), "{body}");
}

/// Polls until `found` is true.
async fn until<F: Future<Output = bool>>(what: &str, mut found: impl FnMut() -> F) {
    let begun = std::time::Instant::now();
    while !found().await {
        assert!(begun.elapsed() < BOUND, "{what}");
        tokio::task::spawn_blocking(pause).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_host_is_refused_until_it_is_enabled_with_the_key_it_had() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    let (status, body) = admin_post(&daemon, &admin, &format!("/admin/hosts/{}/disable", host.id), json!({})).await;
    assert_eq!((status, body["data"]["host"]["status"].as_str()), (200, Some("disabled")));
    let (status, body) = retrieve(&daemon, &client, &host).await;
    assert_eq!((status, body["code"].as_str()), (403, Some("host_disabled")));
    // A wrong key from a disabled host's machine is still only a wrong key.
    let (status, body) = admin_post(&daemon, &admin, &format!("/admin/hosts/{}/enable", host.id), json!({})).await;
    assert_eq!((status, body["data"]["host"]["status"].as_str()), (200, Some("active")));
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_host_is_served_until_its_end() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    let path = format!("/admin/hosts/{}/expiry", host.id);
    let (status, body) = admin_post(&daemon, &admin, &path, json!({ "expires_at": "2020-01-01T00:00:00Z" })).await;
    assert_eq!((status, body["code"].as_str()), (422, Some("invalid")), "{body}");
    let soon = System.now() + time::Duration::milliseconds(700);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).unwrap();
    assert_eq!(admin_post(&daemon, &admin, &path, json!({ "expires_at": soon })).await.0, 200);
    until("it expires", || async {
        let (status, body) = retrieve(&daemon, &client, &host).await;
        assert!(status == 200 || body["code"] == "host_expired", "{body}");
        status == 403
    })
    .await;
    let shown = admin_get(&daemon, &admin, &format!("/admin/hosts/{}", host.id)).await;
    assert_eq!(shown["host"]["status"], "expired");
    assert_eq!(admin_post(&daemon, &admin, &path, json!({ "expires_at": null })).await.0, 200);
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_stand_in_place_of_the_bound_address() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let clients: Vec<Client> = (1..=4).map(|last| daemon.client_from([127, 0, 0, last].into())).collect();
    let host = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &clients[0], &host).await.0, 200);
    let path = format!("/admin/hosts/{}/networks", host.id);
    for bad in ["10.0.0.0/33", "nonsense", "10.0.0.0/8; rm", "", "1.2.3.4.5"] {
        let (status, body) = admin_post(&daemon, &admin, &path, json!({ "networks": [bad] })).await;
        assert_eq!((status, body["code"].as_str()), (422, Some("invalid")), "{bad:?}: {body}");
    }
    let (status, body) =
        admin_post(&daemon, &admin, &path, json!({ "networks": ["127.0.0.2/31", "2001:db8::1"] })).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["data"]["host"]["allowed_networks"], json!(["127.0.0.2/31", "2001:db8::1/128"]));
    let mut served = Vec::new();
    for client in &clients {
        served.push(retrieve(&daemon, client, &host).await.0);
    }
    assert_eq!(served, [403, 200, 200, 403]);
    assert_eq!(admin_post(&daemon, &admin, &path, json!({ "networks": [] })).await.0, 200);
    assert_eq!(retrieve(&daemon, &clients[0], &host).await.0, 200, "the host is bound to its old address again");
    assert_eq!(retrieve(&daemon, &clients[1], &host).await.0, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleared_host_is_bound_to_the_next_address() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let (here, there) = (daemon.client(), daemon.client_from([127, 0, 0, 2].into()));
    let host = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &here, &host).await.0, 200);
    assert_eq!(retrieve(&daemon, &there, &host).await.0, 403);
    assert_eq!(admin_post(&daemon, &admin, &format!("/admin/hosts/{}/clear", host.id), json!({})).await.0, 200);
    assert_eq!(retrieve(&daemon, &there, &host).await.0, 200);
    assert_eq!(retrieve(&daemon, &here, &host).await.0, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_is_undone_within_a_day() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    for calls in 1..=3 {
        assert_eq!(retrieve(&daemon, &client, &host).await.1["data"]["api_calls"], calls);
    }
    let url = daemon.admin_url(&format!("/admin/hosts/{}", host.id));
    assert_eq!(call(&admin, Method::DELETE, url, None, None).await.0, 200);
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 401);
    let removed = admin_get(&daemon, &admin, "/admin/hosts/removed").await;
    assert_eq!(removed["hosts"][0]["fqdn"], "h.test");

    let restore = format!("/admin/hosts/{}/restore", host.id);
    let successor = daemon.register(&admin, "h.test").await;
    let (status, body) = admin_post(&daemon, &admin, &restore, json!({})).await;
    assert_eq!((status, body["code"].as_str()), (409, Some("conflict")), "{body}");
    let url = daemon.admin_url(&format!("/admin/hosts/{}", successor.id));
    assert_eq!(call(&admin, Method::DELETE, url, None, None).await.0, 200);

    assert_eq!(admin_post(&daemon, &admin, &restore, json!({})).await.0, 200);
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200, "the old key is valid again");
    assert_eq!(retrieve(&daemon, &client, &successor).await.0, 401);
    assert_eq!(admin_post(&daemon, &admin, &restore, json!({})).await.0, 404);
    let installer = client.get(daemon.hosts_url(&format!("/install/{}", host.token))).send().await.unwrap();
    assert_eq!(installer.status(), 404, "its installers stay revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_switch_tells_its_reason() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    let (status, _) =
        admin_post(&daemon, &admin, "/admin/api/state", json!({ "disabled": true, "reason": "a\nb" })).await;
    assert_eq!(status, 422);
    let body = json!({ "disabled": true, "reason": "moving house until 18:00" });
    assert_eq!(
        admin_post(&daemon, &admin, "/admin/api/state", body.clone()).await,
        (200, json!({ "status": "ok", "data": body }))
    );
    let (status, body) = retrieve(&daemon, &client, &host).await;
    assert_eq!((status, body["code"].as_str()), (503, Some("api_disabled")));
    assert_eq!(body["message"], "API disabled by administrator: moving house until 18:00");
    assert_eq!(admin_post(&daemon, &admin, "/admin/api/state", json!({ "disabled": false })).await.0, 200);
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    assert_eq!(admin_get(&daemon, &admin, "/admin/api/state").await, json!({ "disabled": false }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outstanding_installers_are_listed_and_revoked_and_a_second_redemption_is_an_alarm() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let (first, second) = (daemon.register(&admin, "h1.test").await, daemon.register(&admin, "h2.test").await);
    let listed = admin_get(&daemon, &admin, "/admin/installers?state=outstanding").await;
    assert_eq!(listed["installers"].as_array().unwrap().len(), 2);
    let id = Digest::of(first.token.as_bytes()).to_string();
    assert!(!listed.to_string().contains(&first.token), "the token itself is not kept");
    let revoke = format!("/admin/installers/{id}/revoke");
    assert_eq!(admin_post(&daemon, &admin, &revoke, json!({})).await.0, 200);
    assert_eq!(admin_post(&daemon, &admin, &revoke, json!({})).await.0, 404);
    let redeem = |host: &Registered| client.get(daemon.hosts_url(&format!("/install/{}", host.token))).send();
    assert_eq!(redeem(&first).await.unwrap().status(), 404);
    assert_eq!(redeem(&second).await.unwrap().status(), 200);
    for _ in 0..5 {
        assert_eq!(redeem(&second).await.unwrap().status(), 410);
    }
    let listed = admin_get(&daemon, &admin, "/admin/installers").await;
    let of =
        |host: &str| listed["installers"].as_array().unwrap().iter().find(|it| it["fqdn"] == host).unwrap().clone();
    assert_eq!((of("h1.test")["state"].as_str(), of("h2.test")["state"].as_str()), (Some("revoked"), Some("redeemed")));
    assert_eq!(of("h2.test")["redeemed_from"], "127.0.0.1");
    until("the alarm is noted", || async {
        let alarms = admin_get(&daemon, &admin, "/admin/audit?alarms=true&action=installer.used_again").await;
        let entries = alarms["entries"].as_array().unwrap().clone();
        if let Some(entry) = entries.first() {
            assert_eq!((entry["target"].as_str(), entry["from"].as_str()), (Some("h2.test"), Some("127.0.0.1")));
        }
        assert!(entries.len() <= 1, "repeats within a minute are one entry: {entries:?}");
        entries.len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_what_is_noted_and_the_chain_holds() {
    let mut daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    upload(&daemon, &admin, FIRST, 1).await;
    admin_get(&daemon, &admin, "/admin/auth?include_body=1").await;
    assert_eq!(admin_post(&daemon, &admin, "/admin/hosts/9/clear", json!({})).await.0, 404);
    for _ in 0..30 {
        let wrong = Registered { api_key: "f".repeat(64), ..host.clone() };
        assert_eq!(retrieve(&daemon, &client, &wrong).await.0, 401);
    }
    daemon.cli_json(&["hosts", "disable", "h.test"]);
    until("the wrong keys are noted", || async {
        let noted = admin_get(&daemon, &admin, "/admin/audit?action=key.refused").await;
        noted["entries"].as_array().unwrap().len() == 1
    })
    .await;

    let log = admin_get(&daemon, &admin, "/admin/audit?limit=1000").await;
    let entries = log["entries"].as_array().unwrap();
    let of = |action: &str| {
        let found: Vec<&Value> = entries.iter().filter(|entry| entry["action"] == action).collect();
        assert_eq!(found.len(), 1, "{action}: {entries:#?}");
        found[0]
    };
    assert_eq!(of("state.initialise")["number"], 1);
    let register = of("host.register");
    assert_eq!((register["actor_kind"].as_str(), register["target"].as_str()), (Some("certificate"), Some("h.test")));
    assert!(register["actor"].as_str().unwrap().starts_with("certificate tester ("));
    assert_eq!((register["from"].as_str(), register["outcome"].as_str()), (Some("127.0.0.1"), Some("done")));
    assert_eq!(of("host.bind")["actor"], "host h.test");
    assert_eq!(of("auth.upload")["target"], "1");
    of("auth.reveal");
    let refused = of("clearHost");
    assert_eq!((refused["outcome"].as_str(), refused["actor_kind"].as_str()), (Some("404"), Some("certificate")));
    assert_eq!(of("host.disable")["actor_kind"], "control");
    let text = log.to_string();
    for secret in [&host.api_key, &host.token, "Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6"] {
        assert!(!text.contains(secret));
    }
    assert!(daemon.log().contains("event=audit"), "it goes to the log as well");

    let verified = daemon.cli_json(&["audit", "verify"]);
    assert_eq!(verified["intact"], true);
    let (noted, length) = (verified["hash"].as_str().unwrap().to_owned(), verified["entries"].as_u64().unwrap());
    daemon.cli_json(&["hosts", "enable", "h.test"]);
    assert_eq!(daemon.cli_json(&["audit", "verify", "--hash", &noted])["noted_found"], true);
    assert!(!daemon.cli(&["audit", "verify", "--hash", &"0".repeat(64)]).status.success());

    // An attacker edits the store: one entry has another content.
    daemon.stop();
    let key = [b"audit/".as_slice(), &(length / 2).to_be_bytes()].concat();
    let store = Store::durable(&daemon.state_dir().join("records"), "records").unwrap();
    let mut entry: Value = serde_json::from_slice(&store.get(&key).unwrap().unwrap()).unwrap();
    entry["outcome"] = json!("nothing to see");
    let forged = entry.to_string();
    store
        .write::<_, codex_authd::durable::DurableError>(|staged| {
            staged.insert(key, forged);
            Ok(())
        })
        .unwrap();
    store.commit_blocking().unwrap();
    drop(store);
    let output = daemon.cli(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("BROKEN: entry {}", length / 2)), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_brought_back_and_reaches_the_hosts() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    upload(&daemon, &admin, FIRST, 1).await;
    upload(&daemon, &admin, SECOND, 2).await;
    let diff = admin_get(&daemon, &admin, "/admin/auth/diff?from=1&to=2").await;
    let text = diff.to_string();
    assert!(text.contains("/tokens/access_token") && text.contains(FIRST) && !text.contains("Zk3vQ9"), "{text}");
    assert!(!text.contains("account_id"), "an equal member is in the difference: {text}");

    let (status, body) = admin_post(&daemon, &admin, "/admin/auth/rollback", json!({ "version": 2 })).await;
    assert_eq!((status, body["code"].as_str()), (409, Some("conflict")), "{body}");
    assert_eq!(admin_post(&daemon, &admin, "/admin/auth/rollback", json!({ "version": 7 })).await.0, 404);
    let (status, body) = admin_post(&daemon, &admin, "/admin/auth/rollback", json!({ "version": 1 })).await;
    assert_eq!((status, body["data"]["version"]["version"].as_u64()), (200, Some(3)), "{body}");
    assert_eq!(body["data"]["version"]["source"], "rollback");

    // A host with the second version gets `outdated`, and the first one's tokens.
    let question = json!({ "last_refresh": SECOND, "digest": "1".repeat(64) });
    let url = daemon.hosts_url("/auth");
    let (_, answer) = call(&client, Method::POST, url, Some(&host.api_key), Some(question)).await;
    assert_eq!(answer["data"]["status"], "outdated");
    assert_eq!(answer["data"]["auth"]["tokens"]["refresh_token"], "rt_abc/def-1");
    assert_ne!(answer["data"]["auth"]["last_refresh"], FIRST);
}

/// A store at the same time as a rollback wins or loses; if both are acknowledged, both are in the history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_and_stores_at_once_leave_one_history() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    upload(&daemon, &admin, FIRST, 1).await;
    upload(&daemon, &admin, SECOND, 2).await;
    let mut acknowledged = 2;
    for round in 0..10u64 {
        let store = async {
            // The date is ahead of the clock, so that it may win against a rollback, which is dated now.
            let ahead = System.now() + time::Duration::milliseconds(200 * (round as i64 % 2));
            let dated = ahead.format(&time::format_description::well_known::Rfc3339).unwrap();
            let body = json!({ "command": "store", "auth": auth_json(&dated, 100 + round) });
            call(&client, Method::POST, daemon.hosts_url("/auth"), Some(&host.api_key), Some(body)).await
        };
        let rollback = admin_post(&daemon, &admin, "/admin/auth/rollback", json!({ "version": 1 }));
        let (stored, rolled) = tokio::join!(store, rollback);
        assert_eq!((stored.0, rolled.0), (200, 200), "{stored:?} {rolled:?}");
        acknowledged += 1 + u64::from(stored.1["data"]["status"] == "updated");
        let history = admin_get(&daemon, &admin, "/admin/auth/history?limit=1000").await;
        let versions = history["versions"].as_array().unwrap();
        let numbers: Vec<u64> = versions.iter().map(|version| version["version"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=acknowledged).rev().collect::<Vec<_>>());
        // The newest is last: no version is older than the one before it.
        let mut dates: Vec<_> = versions
            .iter()
            .map(|version| {
                let text = version["last_refresh"].as_str().unwrap();
                time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
            })
            .collect();
        dates.reverse();
        assert!(dates.is_sorted(), "{dates:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_rotated_while_64_clients_retrieve() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    upload(&daemon, &admin, FIRST, 1).await;
    assert_eq!(retrieve(&daemon, &daemon.client(), &host).await.0, 200);
    let (rotated, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let calls = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (client, url, key) = (daemon.client(), daemon.hosts_url("/auth"), host.api_key.clone());
            let (rotated, stop, calls) = (rotated.clone(), stop.clone(), calls.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let begun_after = rotated.load(Ordering::SeqCst);
                    let body = json!({ "last_refresh": "2024-01-01T00:00:00Z", "digest": "0".repeat(64) });
                    let (status, body) = call(&client, Method::POST, url.clone(), Some(&key), Some(body)).await;
                    assert!(status == 200 || status == 401, "{status}: {body}");
                    assert!(status == 401 || !begun_after, "the old key was good after the answer that replaced it");
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    until("all are at it", || async { calls.load(Ordering::SeqCst) > 500 }).await;
    let renewed = daemon.register(&admin, "h.test").await;
    rotated.store(true, Ordering::SeqCst);
    let seen = calls.load(Ordering::SeqCst);
    until("they went on", || async { calls.load(Ordering::SeqCst) > seen + 500 }).await;
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(retrieve(&daemon, &daemon.client(), &renewed).await.0, 200, "an old call bound the new key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_and_a_redemption_at_once_never_leave_a_served_removed_host() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    for round in 0..20 {
        let host = daemon.register(&admin, &format!("h{round}.test")).await;
        let removing = call(&admin, Method::DELETE, daemon.admin_url(&format!("/admin/hosts/{}", host.id)), None, None);
        let redeeming = client.get(daemon.hosts_url(&format!("/install/{}", host.token))).send();
        let (removed, redeemed) = tokio::join!(removing, redeeming);
        let redeemed = redeemed.unwrap().status().as_u16();
        assert_eq!(removed.0, 200);
        assert!(redeemed == 200 || redeemed == 404, "{redeemed}");
        assert_eq!(retrieve(&daemon, &client, &host).await.0, 401, "the key in the script is still valid");
        let again = client.get(daemon.hosts_url(&format!("/install/{}", host.token))).send().await.unwrap().status();
        assert!(again == 404 || again == 410, "{again}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_refused_at_once_on_open_connections_too() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let directory = daemon.admin_certificate("mallory");
    let mallory = RawClient::with_certificate(&daemon, &directory, "mallory");
    let hosts = || admin.get(daemon.admin_url("/admin/hosts"));
    let mut open = mallory.open(hosts()).await;
    let listed = admin_get(&daemon, &admin, "/admin/certificates").await;
    let of = |name: &str| {
        let all = listed["certificates"].as_array().unwrap();
        all.iter().find(|it| it["name"] == name).unwrap()["fingerprint"].as_str().unwrap().to_owned()
    };
    let revoke = format!("/admin/certificates/{}/revoke", of("mallory"));
    assert_eq!(admin_post(&daemon, &admin, &revoke, json!({})).await.0, 200);
    // The check of each call may be faster than the one that closes the connection.
    let on_the_open_one = open.call(hosts()).await;
    assert!(matches!(on_the_open_one, None | Some(403)), "{on_the_open_one:?}");
    assert_eq!(mallory.call(hosts()).await, Outcome::Closed, "a new connection was accepted");
    assert_eq!(admin_post(&daemon, &admin, &revoke, json!({})).await.0, 409);
    admin_get(&daemon, &admin, "/admin/hosts").await;
    let listed = daemon.cli_json(&["certificates", "list"]);
    let states: Vec<_> =
        listed["certificates"].as_array().unwrap().iter().map(|it| it["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["valid", "revoked"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_authority_is_rolled_over_and_nobody_is_cut_off() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    // A host that knows only the first authority, and opens a new connection for every call.
    let old = daemon.client_builder().pool_max_idle_per_host(0).build().unwrap();
    assert_eq!(retrieve(&daemon, &old, &host).await.0, 200);
    let step = |step: &'static str| {
        let admin = admin.clone();
        let url = daemon.admin_url(&format!("/admin/authorities/server/{step}"));
        async move { call(&admin, Method::POST, url, None, Some(json!({}))).await }
    };
    assert_eq!(step("activate").await.0, 409);
    assert_eq!(step("prepare").await.0, 200);
    assert_eq!(step("prepare").await.0, 409);
    assert_eq!(retrieve(&daemon, &old, &host).await.0, 200);
    assert_eq!(step("activate").await.0, 200);
    until("the new one signs", || async {
        std::fs::read_to_string(daemon.state_dir().join("pki/server-ca.crt")).unwrap().matches("BEGIN").count() == 2
    })
    .await;
    assert_eq!(retrieve(&daemon, &old, &host).await.0, 200, "the old authority did not certify the new one");

    let (status, body) = step("retire").await;
    assert_eq!((status, body["code"].as_str()), (409, Some("conflict")));
    assert!(body["message"].as_str().unwrap().contains("h.test"), "{body}");
    // The host updates its wrapper, and trusts the authorities in it.
    let download =
        old.get(daemon.hosts_url("/wrapper/download")).header("X-API-Key", &host.api_key).send().await.unwrap();
    assert!(download.text().await.unwrap().matches("BEGIN CERTIFICATE").count() >= 2);
    assert_eq!(step("retire").await.0, 200);
    until("the old one is trusted no more", || async {
        std::fs::read_to_string(daemon.state_dir().join("pki/server-ca.crt")).unwrap().matches("BEGIN").count() == 1
    })
    .await;
    assert_eq!(retrieve(&daemon, &daemon.client(), &host).await.0, 200);
    let list = daemon.cli_json(&["authorities", "list"]);
    let slots: Vec<_> = list["authorities"].as_array().unwrap().iter().map(|it| it["slot"].as_str().unwrap()).collect();
    assert_eq!(slots, ["active", "active"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_authority_is_rolled_over_and_its_certificates_stay_good_until_it_is_retired() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let step = |step: &'static str| daemon.cli(&["authorities", step, "client"]);
    assert!(step("prepare").status.success());
    assert!(step("activate").status.success());
    let directory = daemon.admin_certificate("new");
    let new = daemon.client_builder().identity(identity(&directory, "new")).build().unwrap();
    until("both are accepted", || async {
        let fresh = daemon.client_builder().identity(identity(&directory, "new")).build().unwrap();
        fresh.get(daemon.admin_url("/admin/hosts")).send().await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    admin_get(&daemon, &admin, "/admin/hosts").await;
    admin_get(&daemon, &daemon.admin(), "/admin/hosts").await;
    let old = RawClient::with_certificate(&daemon, &daemon.state.path().join("admin-tester"), "tester");
    let hosts = || admin.get(daemon.admin_url("/admin/hosts"));
    let mut open = old.open(hosts()).await;
    let refused = step("retire");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1 certificate(s) in force"), "{refused:?}");
    assert!(daemon.cli(&["authorities", "retire", "client", "--force"]).status.success());
    let on_the_open_one = open.call(hosts()).await;
    assert!(matches!(on_the_open_one, None | Some(403)), "{on_the_open_one:?}");
    let outcome = old.call(hosts()).await;
    assert!(matches!(outcome, Outcome::Alert(_) | Outcome::Closed), "{outcome:?}");
    admin_get(&daemon, &new, "/admin/hosts").await;
}
