//! The rules for replacing the fleet's login, over the API and by the command line: who may do it, and which of two
//! logins is newer. An accepted login can be loaded by the real Codex.

use std::process::{Command, Output, Stdio};

use codex_authd::model::auth_document::{AuthDocument, DocumentRules};
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::support::daemon::{Daemon, Registered};
use crate::support::documents::{account_claims, issued_login, jwt};
use crate::support::host::codex_itself;
use crate::support::now;

async fn ask(daemon: &Daemon, client: &Client, host: &Registered, body: Value) -> (u16, Value) {
    let call = client.post(daemon.hosts_url("/auth")).header("x-api-key", &host.api_key).json(&body);
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn store(daemon: &Daemon, client: &Client, host: &Registered, auth: &Value) -> (u16, Value) {
    ask(daemon, client, host, json!({ "command": "store", "auth": auth })).await
}

fn dated(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap()
}

/// A login of this account, issued this many seconds ago, with this date.
fn login(account: &str, age: i64, last_refresh: OffsetDateTime) -> Value {
    issued_login(account, now().unix_timestamp() - age, &dated(last_refresh))
}

fn upload(daemon: &Daemon, login: &Value, more: &[&str]) -> Output {
    let file = daemon.state.path().join("login.json");
    std::fs::write(&file, login.to_string()).unwrap();
    let arguments = [&["auth", "upload", file.to_str().unwrap()], more].concat();
    daemon.cli(&arguments)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_is_changed_by_an_admin_who_says_so_and_by_nobody_else() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    assert!(upload(&daemon, &login("account-number-one", 60, now()), &[]).status.success());

    let other = login("account-number-two", 30, now());
    let (status, body) = store(&daemon, &client, &host, &other).await;
    assert_eq!((status, body["code"].as_str()), (409, Some("other_account")), "{body}");
    let message = body["message"].as_str().unwrap();
    assert!(message.contains("acco…-one") && message.contains("acco…-two"), "{message}");
    let audit = daemon.cli_json(&["audit", "list"]).to_string();
    assert!(audit.contains("another account") && audit.contains("auth.store"), "{audit}");
    assert!(!audit.contains("account-number"), "it is masked there too");

    let refused = upload(&daemon, &other, &[]);
    assert!(!refused.status.success());
    let told = said(&refused);
    assert!(told.contains("acco…-one") && told.contains("acco…-two") && told.contains("--change-account"), "{told}");
    let done = upload(&daemon, &other, &["--change-account"]);
    assert!(done.status.success(), "{}", said(&done));

    // Back again by a form, and forward by the API.
    let back = login("account-number-one", 10, now()).to_string();
    let page = admin.get(daemon.admin_url("/login")).send().await.unwrap().text().await.unwrap();
    let token = page.split(r#"name="token" value=""#).nth(1).unwrap().split('"').next().unwrap();
    for (box_ticked, status) in [(false, 409), (true, 200)] {
        let mut fields = vec![("token", token), ("file", ""), ("pasted", back.as_str())];
        if box_ticked {
            fields.push(("change_account", "true"));
        }
        let form = form(&fields);
        let call = admin.post(daemon.admin_url("/login")).header(CONTENT_TYPE, form.0).body(form.1);
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status(), status);
        let page = answer.text().await.unwrap();
        assert_eq!(page.contains("acco…-two"), !box_ticked, "{page}");
    }
    for (change, status) in [(json!(null), 409), (json!("true"), 422), (json!(true), 200)] {
        let body = json!({ "auth": other, "change_account": change });
        let answer = admin.post(daemon.admin_url("/admin/auth/upload")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), status, "{change}");
    }
}

fn form(fields: &[(&str, &str)]) -> (String, String) {
    const BOUNDARY: &str = "the-boundary";
    let part = |(name, value): &(&str, &str)| {
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let parts: String = fields.iter().map(part).collect();
    (format!("multipart/form-data; boundary={BOUNDARY}"), format!("{parts}--{BOUNDARY}--\r\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_login_is_the_fleets_whatever_the_hosts_clock_says() {
    for days in [-1, 1] {
        let daemon = Daemon::start();
        let (admin, client) = (daemon.admin(), daemon.client());
        let host = daemon.register(&admin, "h.test").await;
        let spent = login("account-1", 7200, now() - Duration::HOUR);
        assert!(upload(&daemon, &spent, &[]).status.success());

        let wrong = now() + Duration::days(days);
        let question = json!({ "digest": "0".repeat(64), "last_refresh": dated(wrong) });
        let (status, body) = ask(&daemon, &client, &host, question).await;
        let expected = if days > 0 { "upload_required" } else { "outdated" };
        assert_eq!((status, body["data"]["status"].as_str()), (200, Some(expected)), "{body}");

        let renewed = login("account-1", 60, wrong);
        let (status, body) = store(&daemon, &client, &host, &renewed).await;
        assert_eq!((status, body["data"]["status"].as_str()), (200, Some("updated")), "{body}");
        let given = &body["data"]["auth"];
        assert_eq!(given["tokens"], renewed["tokens"]);
        let date = OffsetDateTime::parse(given["last_refresh"].as_str().unwrap(), &Rfc3339).unwrap();
        assert!((now() - date).abs() < Duration::MINUTE, "{date} is the server's now");
        let question = json!({ "digest": body["data"]["canonical_digest"], "last_refresh": given["last_refresh"] });
        let (_, answer) = ask(&daemon, &client, &host, question).await;
        assert_eq!(answer["data"]["status"], "valid", "{answer}");

        // The answer to each store has the login that the host should have.
        for (auth, status) in [(given.clone(), "unchanged"), (login("account-1", 7200, wrong), "outdated")] {
            let (code, body) = store(&daemon, &client, &host, &auth).await;
            assert_eq!((code, body["data"]["status"].as_str()), (200, Some(status)), "{body}");
            assert_eq!(&body["data"]["auth"], given);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_login_wins_where_an_admin_says_so() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    let (older, newer) = (login("account-1", 7200, now() - Duration::HOUR), login("account-1", 60, now()));
    assert!(upload(&daemon, &newer, &[]).status.success());
    let refused = upload(&daemon, &older, &[]);
    assert!(!refused.status.success() && said(&refused).contains("--even-if-older"), "{}", said(&refused));
    let done = upload(&daemon, &older, &["--even-if-older"]);
    assert!(done.status.success(), "{}", said(&done));
    let (_, body) = store(&daemon, &client, &host, &newer).await;
    assert_eq!(body["data"]["status"], "outdated", "a host brought back a replaced login");
    assert_eq!(body["data"]["auth"]["tokens"], older["tokens"]);
    assert_eq!(daemon.cli_json(&["auth", "show"])["source"], "override");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_of_more_than_64_kib_is_refused_with_the_limit_named() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    let mut large = login("account-1", 60, now());
    large["filler"] = "x".repeat(64 * 1024).into();
    let (status, body) = store(&daemon, &client, &host, &large).await;
    assert_eq!((status, body["code"].as_str()), (413, Some("too_large")), "{body}");
    assert!(body["message"].as_str().unwrap().contains("64 KiB"), "{body}");
    let answer = admin.post(daemon.admin_url("/admin/auth/upload")).json(&json!({ "auth": large })).send().await;
    assert_eq!(answer.unwrap().status(), 413);
    let refused = upload(&daemon, &large, &[]);
    assert!(!refused.status.success() && said(&refused).contains("64 KiB"), "{}", said(&refused));
}

/// The real Codex loads every accepted login, and refused ones are those that it cannot load.
#[test]
fn what_is_taken_is_what_the_real_codex_can_load() {
    let auth = "https://api.openai.com/auth";
    let good = issued_login("account-1", 1_700_000_000, "2026-11-20T00:00:00Z");
    let agent = json!({
        "agent_runtime_id": "r", "agent_private_key": "k", "account_id": "a", "chatgpt_user_id": "u", "plan_type": "pro",
        "chatgpt_account_is_fedramp": false,
    });
    let with = |pointer: &str, value: Value| {
        let mut login = good.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        login.pointer_mut(parent).unwrap()[name] = value;
        login
    };
    let token = |claims: Value| with("/tokens/id_token", jwt(&claims, "c2ln").into());
    let mut candidates = vec![
        good.clone(),
        with("/auth_mode", Value::Null),
        with("/auth_mode", json!("bogus")),
        with("/auth_mode", json!("headers")),
        with("/auth_mode", json!("chatgptAuthTokens")),
        with("/tokens/oauth_provenance", json!({ "issuer": "https://a", "client_id": "b" })),
        with("/tokens/oauth_provenance", json!({ "issuer": "https://a" })),
        with("/tokens/refresh_token", json!("")),
        with("/last_refresh", json!("")),
        with("/last_refresh", json!("2026-11-20t00:00:00.1234567890123z")),
        with("/last_refresh", json!("2016-12-31T23:59:60Z")),
        with("/agent_identity", agent.clone()),
        with("/agent_identity", json!({ "agent_runtime_id": "r" })),
        with("/bedrock_api_key", json!({ "api_key": "x" })),
        with("/bedrock_api_key", json!({ "api_key": "x", "region": "eu-1" })),
        with("/bedrock_access_keys", json!({ "access_key_id": "x" })),
        with("/tokens/id_token", json!("opaque")),
        with("/tokens/id_token", json!("e30.eyJhIjoxfQ==.c")),
        with("/tokens/access_token", json!("an-opaque-token-0123456789abcdef")),
        token(json!({})),
        token(json!({ "email": 5 })),
        token(json!({ auth: null })),
        token(json!({ auth: { "chatgpt_plan_type": null } })),
        token(json!({ auth: { "chatgpt_account_is_fedramp": null } })),
        token(account_claims("account-1", "user-1", "x")),
        json!({ "auth_mode": "apikey", "OPENAI_API_KEY": "sk-Zk3vQ9xT1mB7rLp0sWc5yHd8" }),
        json!({ "OPENAI_API_KEY": "sk-Zk3vQ9xT1mB7rLp0sWc5yHd8" }),
        json!({ "auth_mode": "apikey", "OPENAI_API_KEY": null }),
        json!({ "auth_mode": "bedrockApiKey", "bedrock_api_key": { "api_key": "x", "region": "eu-1" } }),
        json!({ "auth_mode": "bedrockApiKey" }),
        json!({ "bedrock_access_keys": { "access_key_id": "x", "secret_access_key": "y" } }),
    ];
    let texts = ["/OPENAI_API_KEY", "/tokens/id_token", "/tokens/access_token", "/tokens/refresh_token"];
    let others = ["/tokens", "/tokens/account_id", "/tokens/oauth_provenance", "/last_refresh", "/agent_identity"];
    let more = ["/personal_access_token", "/bedrock_api_key", "/bedrock_access_keys", "/auth_mode"];
    for pointer in texts.iter().chain(&others).chain(&more) {
        candidates.push(with(pointer, json!(5)));
    }
    let (mut taken, mut refused) = (0, 0);
    for candidate in candidates {
        let ours = AuthDocument::parse(&candidate.to_string(), now(), &DocumentRules::default());
        // For an accepted login, the served text counts.
        let text = ours.as_ref().map_or_else(|_| candidate.to_string(), |document| document.text().to_owned());
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("auth.json"), text).unwrap();
        let mut codex = Command::new(codex_itself());
        codex.args(["login", "status"]).env_clear().env("HOME", home.path()).env("CODEX_HOME", home.path());
        let output = codex.stdin(Stdio::null()).output().unwrap();
        let loads = output.status.success() && !said(&output).contains("Not logged in");
        assert_eq!(ours.is_ok(), loads, "{ours:?}, but Codex of {candidate}: {}", said(&output));
        if loads { taken += 1 } else { refused += 1 }
    }
    assert!(taken > 10 && refused > 20, "{taken} {refused}");
}
