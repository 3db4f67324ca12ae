//! Data that belongs to one host, the store budget of a host, and paged lists: over the API and by command.

use std::path::{Path, PathBuf};

use codex_authd::model::digest::Digest;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, Registered, auth_json};

const CANARY: &str = "canary-private-key-of-one-host";
const AT: &str = "2026-11-20T12:00:00Z";

async fn upload(daemon: &Daemon, admin: &Client, last_refresh: &str, n: u64) {
    let body = json!({ "auth": auth_json(last_refresh, n) });
    let answer = admin.post(daemon.admin_url("/admin/auth/upload")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

async fn call(daemon: &Daemon, client: &Client, host: &Registered, body: Value) -> Response {
    let call = client.post(daemon.hosts_url("/auth")).header("x-api-key", &host.api_key).json(&body);
    call.send().await.unwrap()
}

/// Status, digest and exact document of the answer.
async fn retrieve(daemon: &Daemon, client: &Client, host: &Registered, digest: &str) -> (String, String, String) {
    let answer = call(daemon, client, host, json!({ "digest": digest, "last_refresh": AT })).await;
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap();
    let document = text.split_once("\"auth\":").map(|(_, rest)| rest.strip_suffix("}}").unwrap().to_owned());
    let told = |name: &str| body["data"][name].as_str().unwrap().to_owned();
    (told("status"), told("canonical_digest"), document.unwrap_or_default())
}

async fn get(admin: &Client, url: String) -> Value {
    let answer = admin.get(&url).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{url}");
    answer.json::<Value>().await.unwrap()["data"].clone()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Also after a restart, a rotation of the keys, and on a machine with a restored backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_identity_comes_back_to_its_host_alone_and_stands_nowhere_in_the_clear() {
    let mut daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let (a, b) = (daemon.register(&admin, "a.test").await, daemon.register(&admin, "b.test").await);
    upload(&daemon, &admin, AT, 1).await;
    let (_, shared, canonical) = retrieve(&daemon, &client, &b, &"0".repeat(64)).await;
    let mut auth = auth_json(AT, 1);
    let identity = json!({
        "agent_runtime_id": "runtime", "agent_private_key": CANARY, "account_id": "account", "plan_type": "pro",
        "chatgpt_user_id": "user", "chatgpt_account_is_fedramp": false,
    });
    auth["agent_identity"] = identity.clone();
    let stored = call(&daemon, &client, &a, json!({ "command": "store", "auth": auth })).await;
    assert_eq!(stored.json::<Value>().await.unwrap()["data"]["status"], "unchanged");

    let has_it = async |daemon: &Daemon| {
        let client = daemon.client();
        // Twice, to test a cached answer too.
        for _ in 0..2 {
            let (status, own, document) = retrieve(daemon, &client, &a, &shared).await;
            assert_eq!(status, "outdated");
            assert!(document.ends_with(&format!(r#","agent_identity":{identity}}}"#)));
            assert_eq!(Digest::of(document.as_bytes()).to_string(), own);
            assert_eq!(retrieve(daemon, &client, &a, &own).await.0, "valid");
            // Not to the other host, whatever digest it sends.
            assert_eq!(retrieve(daemon, &client, &b, &shared).await, ("valid".into(), shared.clone(), String::new()));
            let (status, digest, document) = retrieve(daemon, &client, &b, &own).await;
            assert_eq!((status.as_str(), &digest, &document), ("outdated", &shared, &canonical));
        }
    };
    has_it(&daemon).await;

    // Not to an admin either, by any path.
    for path in ["/admin/auth?include_body=1", &format!("/admin/hosts/{}/auth?include_body=1", a.id), "/admin/audit"] {
        let shown = get(&admin, daemon.admin_url(path)).await.to_string();
        assert!(!shown.contains(CANARY), "{path}");
    }
    let noted = get(&admin, daemon.admin_url("/admin/audit?action=host.agent_identity")).await;
    assert_eq!(noted["entries"].as_array().map(Vec::len), Some(1), "{noted}");

    daemon.cli_json(&["keys", "rotate"]);
    has_it(&daemon).await;
    let passphrase = daemon.state.path().join("passphrase");
    std::fs::write(&passphrase, "canary walrus umbrella nineteen teapot\n").unwrap();
    let backup = daemon.state.path().join("backup");
    let [to, passphrase] = [&backup, &passphrase].map(|path| path.to_str().unwrap());
    daemon.cli_json(&["backup", to, "--passphrase-file", passphrase]);
    daemon.cli_json(&["backup", "--verify", to, "--passphrase-file", passphrase]);
    assert!(daemon.stop().success());
    let files = files_below(daemon.state.path());
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(CANARY.len()).any(|some| some == CANARY.as_bytes()), "{}", file.display());
    }
    daemon.launch();
    has_it(&daemon).await;

    let mut other = Daemon::prepare(&[]);
    other.cli_json(&["restore", to, "--yes", "--passphrase-file", passphrase]);
    other.launch();
    has_it(&other).await;

    // A restored host has it again; a new key has not, because it may be for another machine.
    daemon.cli_json(&["hosts", "remove", "a.test"]);
    assert_eq!(call(&daemon, &client, &a, json!({ "digest": shared, "last_refresh": AT })).await.status(), 401);
    daemon.cli_json(&["hosts", "restore", "a.test"]);
    has_it(&daemon).await;
    let again = daemon.register(&daemon.admin(), "a.test").await;
    assert_eq!(retrieve(&daemon, &daemon.client(), &again, &shared).await.0, "valid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stores_too_often_is_told_how_long_to_wait() {
    let daemon = Daemon::start_with(&[("AUTH__STORES_PER_HOST_PER_HOUR", "3")]);
    let (admin, client) = (daemon.admin(), daemon.client());
    let (a, b) = (daemon.register(&admin, "a.test").await, daemon.register(&admin, "b.test").await);
    let store = async |host: &Registered, n: u64| {
        let auth = auth_json(&format!("2026-11-20T12:00:00.{n:09}Z"), n);
        call(&daemon, &client, host, json!({ "command": "store", "auth": auth })).await
    };
    for n in 1..=3 {
        assert_eq!(store(&a, n).await.status(), 200);
        assert_eq!(store(&a, n).await.status(), 200, "unchanged is not counted");
    }
    let refused = store(&a, 4).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}");
    let body: Value = refused.json().await.unwrap();
    assert_eq!((&body["code"], &body["data"]["bucket"]), (&json!("stores_limited"), &json!("host_stores")));
    assert!(body["message"].as_str().unwrap().contains("auth.stores_per_host_per_hour"), "{body}");
    assert_eq!(retrieve(&daemon, &client, &a, &"0".repeat(64)).await.0, "outdated", "the host is still served");
    assert_eq!(store(&b, 5).await.status(), 200);
    for n in 6..=20 {
        upload(&daemon, &admin, &format!("2026-11-20T12:00:00.{n:09}Z"), n).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_say_that_there_is_more_and_where_it_goes_on() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    for n in 1..=5 {
        upload(&daemon, &admin, &format!("2026-11-20T12:00:0{n}Z"), n).await;
        daemon.register(&admin, &format!("h{n}.test")).await;
    }
    // Page by page, each list has every row once, in the order of the full list.
    for (path, list, id) in [
        ("/admin/auth/history", "versions", "version"),
        ("/admin/audit", "entries", "number"),
        ("/admin/logs", "logs", "id"),
        ("/admin/installers", "installers", "id"),
        ("/admin/hosts", "hosts", "id"),
    ] {
        let ids = |page: &Value| page[list].as_array().unwrap().iter().map(|row| row[id].clone()).collect::<Vec<_>>();
        let whole = get(&admin, daemon.admin_url(path)).await;
        assert!(whole["next"].is_null() && ids(&whole).len() >= 5, "{path}: {whole}");
        let (mut found, mut from) = (Vec::new(), String::new());
        loop {
            let page = get(&admin, daemon.admin_url(&format!("{path}?limit=2{from}"))).await;
            assert!(ids(&page).len() <= 2, "{path}");
            found.extend(ids(&page));
            let Some(next) = page.get("next").filter(|next| !next.is_null()) else { break };
            from = format!("&cursor={}", next.as_str().unwrap());
        }
        assert_eq!(found, ids(&whole), "{path}");
    }
    let unknown = admin.get(daemon.admin_url("/admin/installers?cursor=00")).send().await.unwrap();
    assert_eq!(unknown.status(), 422);

    let said = |arguments: &[&str]| {
        let output = daemon.cli(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let page = said(&["auth", "history", "--limit", "2"]);
    assert!(page.contains("There are more: --before 4 shows them, --all shows all."), "{page}");
    assert!(said(&["auth", "history", "--limit", "2", "--before", "2"]).lines().count() == 2);
    for whole in [said(&["auth", "history"]), said(&["auth", "history", "--all"])] {
        assert!(whole.lines().count() == 6 && !whole.contains("There are more"), "{whole}");
    }
    assert_eq!(daemon.cli_json(&["auth", "history", "--limit", "2"])["next"], "4");
    assert!(said(&["audit", "list", "--limit", "2"]).contains("There are more"));
    assert!(!said(&["audit", "list", "--all"]).contains("There are more"));

    let page = async |path: &str| admin.get(daemon.admin_url(path)).send().await.unwrap().text().await.unwrap();
    let versions = page("/login/versions").await;
    assert_eq!(versions.matches("<tr>").count(), 6, "{versions}");
    assert!(!versions.contains("Older versions"));
    assert!(page("/login/versions?before=1").await.contains("There are no older versions"));
    for n in 6..=56 {
        upload(&daemon, &admin, &format!("2026-11-20T13:00:{n:02}Z"), n).await;
    }
    let versions = page("/login/versions").await;
    assert!(versions.contains(r#"href="/login/versions?before=7""#), "{versions}");
    assert!(page("/login/versions?before=7").await.contains("Newest versions"));

    // A version that does not exist.
    let diff = admin.get(daemon.admin_url("/admin/auth/diff?from=1&to=99")).send().await.unwrap();
    assert_eq!(
        (diff.status(), diff.json::<Value>().await.unwrap()["code"].clone()),
        (StatusCode::NOT_FOUND, "not_found".into())
    );
}
