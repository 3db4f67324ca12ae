//! Requests with an `Idempotency-Key`, and the exact document with its `ETag`.

use codex_authd::model::digest::Digest;
use reqwest::Client;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, auth_json};

const KEY: &str = "Idempotency-Key";

async fn post(admin: &Client, daemon: &Daemon, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let answer = admin.post(daemon.admin_url(path)).header(KEY, key).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// How often the audit log has this action.
async fn done(admin: &Client, daemon: &Daemon, action: &str) -> usize {
    let url = daemon.admin_url(&format!("/admin/audit?limit=1000&action={action}"));
    let page: Value = admin.get(url).send().await.unwrap().json().await.unwrap();
    page["data"]["entries"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_is_given_the_first_answer_and_is_not_done_again() {
    let mut daemon = Daemon::start();
    let admin = daemon.admin();
    let host = json!({ "fqdn": "h.test" });
    let register = "/admin/hosts/register";
    let first = post(&admin, &daemon, register, "one", &host).await;
    assert_eq!(first.0, 200, "{first:?}");
    assert_eq!(post(&admin, &daemon, register, "one", &host).await, first);
    let (status, other) = post(&admin, &daemon, register, "one", &json!({ "fqdn": "other.test" })).await;
    assert_eq!((status, other["errors"][KEY].is_array()), (422, true), "another request with the same key: {other}");
    for wrong in ["", " ", &"k".repeat(256)] {
        assert_eq!(post(&admin, &daemon, register, wrong, &host).await.0, 422, "{wrong:?}");
    }
    // The answer survives a kill, and no file holds it in the clear.
    daemon.kill();
    let key = first.1["data"]["host"]["api_key"].as_str().unwrap().as_bytes().to_vec();
    for file in files_below(&daemon.state_dir()) {
        let content = std::fs::read(&file).unwrap();
        assert!(!content.windows(key.len()).any(|window| window == key), "{}", file.display());
    }
    daemon.launch();
    assert_eq!(post(&admin, &daemon, register, "one", &host).await, first);
    assert_eq!(done(&admin, &daemon, "host.register").await, 1);
    let again = post(&admin, &daemon, register, "two", &host).await;
    assert_ne!(
        again.1["data"]["host"]["api_key"], first.1["data"]["host"]["api_key"],
        "another key is another request"
    );

    let upload = json!({ "auth_text": auth_json("2026-11-20T12:00:00Z", 1).to_string() });
    let stored = post(&admin, &daemon, "/admin/auth/upload", "three", &upload).await;
    assert_eq!((stored.0, &stored.1["data"]["status"]), (200, &json!("updated")), "{stored:?}");
    assert_eq!(post(&admin, &daemon, "/admin/auth/upload", "three", &upload).await, stored);
    let certificate = json!({ "name": "bob", "pkcs12": false });
    let issued = post(&admin, &daemon, "/admin/certificates", "four", &certificate).await;
    assert_eq!(post(&admin, &daemon, "/admin/certificates", "four", &certificate).await, issued);
    assert_eq!(issued.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_with_one_key_one_is_done() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = json!({ "fqdn": "h.test" });
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let call = admin.post(daemon.admin_url("/admin/hosts/register")).header(KEY, "one").json(&host);
        calls.spawn(async move {
            let answer = call.send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        });
    }
    let mut keys = std::collections::BTreeSet::new();
    for (status, answer) in calls.join_all().await {
        match status {
            200 => drop(keys.insert(answer["data"]["host"]["api_key"].as_str().unwrap().to_owned())),
            // The first one is under way.
            409 => assert_eq!(answer["code"], "conflict", "{answer}"),
            _ => panic!("{status}: {answer}"),
        }
    }
    assert_eq!((keys.len(), done(&admin, &daemon, "host.register").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_of_its_caller_and_is_void_after_a_rotation_of_the_data_keys() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = json!({ "fqdn": "h.test" });
    let first = post(&admin, &daemon, "/admin/hosts/register", "one", &host).await;
    let other = daemon.cli_json(&["hosts", "list"]);
    assert_eq!(other["total"], 1);
    let bob = daemon.admin_named("bob");
    let of_bob = post(&bob, &daemon, "/admin/hosts/register", "one", &host).await;
    assert_ne!(of_bob.1["data"]["host"]["api_key"], first.1["data"]["host"]["api_key"]);
    assert_eq!(post(&admin, &daemon, "/admin/hosts/register", "one", &host).await, first);
    let rotated = admin.post(daemon.admin_url("/admin/keys/rotate")).send().await.unwrap();
    assert_eq!(rotated.status(), 200);
    let (status, refused) = post(&admin, &daemon, "/admin/hosts/register", "one", &host).await;
    assert_eq!(status, 409, "{refused}");
    assert_eq!(done(&admin, &daemon, "host.register").await, 2, "it is not done again either");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_served_byte_for_byte_with_its_digest() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    let ask = |etag: Option<String>| {
        let call = client.get(daemon.hosts_url("/auth/document")).header("X-API-Key", &host.api_key);
        etag.into_iter().fold(call, |call, etag| call.header("If-None-Match", etag)).send()
    };
    assert_eq!(ask(None).await.unwrap().status(), 404);
    // No JSON library writes these spaces and this number again.
    let text = auth_json("2026-11-20T12:00:00Z", 1).to_string().replacen(':', " : ", 1);
    let uploaded = post(&admin, &daemon, "/admin/auth/upload", "one", &json!({ "auth_text": text })).await;
    let answer = ask(None).await.unwrap();
    let etag = answer.headers()["etag"].to_str().unwrap().to_owned();
    let bytes = answer.bytes().await.unwrap();
    assert_eq!(bytes, uploaded.1["data"]["auth_text"].as_str().unwrap());
    let digest = Digest::of(&bytes).to_string();
    assert_eq!((&etag, &uploaded.1["data"]["canonical_digest"]), (&format!("\"{digest}\""), &json!(digest)));
    for same in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".into()] {
        let answer = ask(Some(same)).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["etag"].to_str().unwrap()), (304, etag.as_str()));
        assert!(answer.bytes().await.unwrap().is_empty());
    }
    assert_eq!(ask(Some("\"x\"".into())).await.unwrap().status(), 200);
}

fn files_below(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
