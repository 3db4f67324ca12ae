//! Rate limits: the answers to callers above the limit, and blocks that outlast a restart.

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::daemon::Daemon;
use crate::support::now;
use crate::support::people::{add_user, ask, control, sign_in};

fn retrieve(daemon: &Daemon, client: &Client) -> RequestBuilder {
    let body = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
    client.post(daemon.hosts_url("/auth")).json(&body)
}

async fn call(daemon: &Daemon, client: &Client, key: &str) -> u16 {
    retrieve(daemon, client).bearer_auth(key).send().await.unwrap().status().as_u16()
}

/// Asserts a refusal; returns the end of the limit.
async fn refused(answer: Response, bucket: &str, limit: u32) -> OffsetDateTime {
    assert_eq!(answer.status(), 429);
    let retry_after: i64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    let body: Value = answer.json().await.unwrap();
    assert_eq!((&body["status"], &body["code"]), (&json!("error"), &json!("rate_limited")));
    assert_eq!(body["message"], "Rate limit exceeded");
    assert_eq!((&body["data"]["bucket"], &body["data"]["limit"]), (&json!(bucket), &json!(limit)));
    let reset_at = OffsetDateTime::parse(body["data"]["reset_at"].as_str().unwrap(), &Rfc3339).unwrap();
    let left = (reset_at - now()).whole_seconds();
    assert!((1..=60).contains(&retry_after) && (left - 5..=left + 5).contains(&retry_after), "{retry_after}, {left}");
    reset_at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_good_for_so_many_calls_a_minute_in_either_header_and_for_leaving() {
    let daemon = Daemon::start_with(&[("LIMITS__HOST_PER_MINUTE", "4")]);
    let (admin, client) = (daemon.admin(), daemon.client());
    let (host, other) = (daemon.register(&admin, "h.test").await, daemon.register(&admin, "o.test").await);
    for round in 0..2 {
        assert_eq!(call(&daemon, &client, &host.api_key).await, 200, "{round}");
        let wrapper = client.get(daemon.hosts_url("/wrapper")).header("X-API-Key", &host.api_key).send().await.unwrap();
        assert_eq!(wrapper.status(), 200, "{round}");
    }
    let by_bearer = retrieve(&daemon, &client).bearer_auth(&host.api_key).send().await.unwrap();
    let reset_at = refused(by_bearer, "host", 4).await;
    let by_header = retrieve(&daemon, &client).header("X-API-Key", &host.api_key).send().await.unwrap();
    assert_eq!(refused(by_header, "host", 4).await, reset_at, "a refusal moved the end of the limit");
    let download = client.get(daemon.hosts_url("/wrapper/download")).bearer_auth(&host.api_key).send().await.unwrap();
    refused(download, "host", 4).await;
    let lines = client.post(daemon.hosts_url("/auth/lines")).bearer_auth(&host.api_key);
    let lines = lines.json(&json!({})).send().await.unwrap();
    assert_eq!(lines.status(), 429);
    assert!(lines.text().await.unwrap().contains("\nmessage Rate limit exceeded\nretry_after "));

    assert_eq!(call(&daemon, &client, &other.api_key).await, 200, "another host of the same address");
    assert_eq!(call(&daemon, &client, "wrong").await, 401, "a wrong key gets no limit answer");
    let left = client.delete(daemon.hosts_url("/auth")).bearer_auth(&host.api_key).send().await.unwrap();
    assert_eq!(left.status(), 200, "a host that leaves is never refused");
    assert_eq!(call(&daemon, &client, &host.api_key).await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_outlasts_a_kill_and_a_stop() {
    let mut daemon = Daemon::start_with(&[("LIMITS__AUTH_FAIL_COUNT", "3")]);
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let client = daemon.client();
    for _ in 0..3 {
        assert_eq!(call(&daemon, &client, "wrong").await, 401);
    }
    for killed in [true, false] {
        if killed {
            daemon.kill();
        } else {
            assert!(daemon.stop().success());
        }
        daemon.launch();
        let answer = retrieve(&daemon, &daemon.client()).bearer_auth("wrong").send().await.unwrap();
        assert_eq!(answer.status(), 429, "killed: {killed}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!((&body["code"], &body["data"]["bucket"]), (&json!("auth_blocked"), &json!("auth_failures")));
    }
    assert_eq!(call(&daemon, &daemon.client(), &host.api_key).await, 200, "a good key is never blocked");
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

/// If admins need no certificate, the admin listener is as open to everybody as the hosts' listener.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_limited_on_the_admin_listener_and_who_is_known_is_not() {
    let daemon = Daemon::start_with(&[("ADMIN__ACCESS", "login"), ("LIMITS__GLOBAL_PER_MINUTE", "6")]);
    add_user(&daemon, "root@limits.test", "admin").await;
    let (token, client) = (sign_in(&daemon, "root@limits.test").await, daemon.client());
    let url = |path: &str| daemon.admin_url(path);
    // Pages, assets, documents, refusals and sign-ins are all counted.
    for (path, wanted) in [("/sign-in", 200), ("/docs", 200), ("/admin/hosts", 401), ("/nothing", 404)] {
        assert_eq!(status(client.get(url(path))).await, wanted, "{path}");
    }
    let wrong = json!({ "email": "root@limits.test", "password": "wrong" });
    assert_eq!(status(client.post(url("/auth/session")).json(&wrong)).await, 401);
    assert_eq!(status(client.post(url("/admin/hosts/register")).bearer_auth("cxa_wrong").json(&wrong)).await, 401);
    for path in ["/sign-in", "/docs", "/admin/hosts", "/healthz", "/assets/none"] {
        refused(client.get(url(path)).send().await.unwrap(), "global", 6).await;
    }
    assert_eq!(status(client.post(url("/auth/session")).json(&wrong)).await, 429);
    // A signed-in user is not limited, even from the same address. Another address, the other listener and the control
    // socket are not limited either.
    for _ in 0..10 {
        assert_eq!(status(client.get(url("/admin/hosts")).bearer_auth(&token)).await, 200);
    }
    let cookie = format!("__Host-codex-authd-session={token}");
    assert_eq!(status(client.get(url("/hosts")).header("cookie", &cookie)).await, 200);
    assert_eq!(status(daemon.client_from([127, 0, 0, 2].into()).get(url("/sign-in"))).await, 200);
    assert_eq!(status(client.get(daemon.hosts_url("/versions"))).await, 200);
    assert_eq!(status(control(&daemon).get("http://control/admin/hosts")).await, 200);
}

/// On the hosts' listener too, signed-in users are counted separately.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_calls_of_their_own_on_the_hosts_listener() {
    let daemon = Daemon::start_with(&[("LIMITS__GLOBAL_PER_MINUTE", "5"), ("LIMITS__HOST_PER_MINUTE", "4")]);
    add_user(&daemon, "ada@limits.test", "member").await;
    let (token, client) = (sign_in(&daemon, "ada@limits.test").await, daemon.client());
    for _ in 0..4 {
        assert_eq!(status(client.get(daemon.hosts_url("/auth/me")).bearer_auth(&token)).await, 200);
    }
    let me = client.get(daemon.hosts_url("/auth/me")).bearer_auth(&token).send().await.unwrap();
    refused(me, "host", 4).await;
    // The sign-in itself had no credential and counts against the address.
    for _ in 0..4 {
        assert_eq!(status(client.get(daemon.hosts_url("/versions"))).await, 200);
    }
    refused(client.get(daemon.hosts_url("/versions")).send().await.unwrap(), "global", 5).await;
}

/// A caller that is refused again and again does not flood the audit log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_a_known_user_are_one_entry_in_a_minute() {
    let daemon = Daemon::start_with(&[("ADMIN__ACCESS", "login")]);
    add_user(&daemon, "ada@limits.test", "member").await;
    let (token, client) = (sign_in(&daemon, "ada@limits.test").await, daemon.client());
    let noted = async || {
        let log = ask(&daemon, "/admin/audit?limit=1000").await;
        let entries = log["entries"].as_array().unwrap().clone();
        let of = |action: &str| entries.iter().filter(|entry| entry["action"] == action).count();
        [of("registerHost"), of("addUser")]
    };
    let begun = std::time::Instant::now();
    for number in 1..=40 {
        let register = client.post(daemon.admin_url("/admin/hosts/register")).bearer_auth(&token);
        assert_eq!(status(register.json(&json!({ "fqdn": "x.test" }))).await, 403);
        if number == 1 {
            assert_eq!(noted().await, [1, 0], "the first refusal is in the audit log before the answer");
        }
    }
    let add = client.post(daemon.admin_url("/auth/users")).bearer_auth(&token);
    assert_eq!(status(add.json(&json!({ "email": "eve@limits.test", "role": "admin" }))).await, 403);
    // If the machine is so slow that the minute is over, there are two entries.
    if begun.elapsed().as_secs() < 55 {
        assert_eq!(noted().await, [1, 1]);
    }
}

/// A sign-in needs an address and a password, not a megabyte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_of_a_sign_in_is_bounded() {
    let daemon = Daemon::start_with(&[("ADMIN__ACCESS", "login")]);
    add_user(&daemon, "ada@limits.test", "member").await;
    let client = daemon.client();
    for (length, wanted) in [(1000, 401), (20_000, 413)] {
        let body = json!({ "email": "ada@limits.test", "password": "x".repeat(length) });
        for url in [daemon.hosts_url("/auth/session"), daemon.admin_url("/auth/session")] {
            assert_eq!(status(client.post(url).json(&body)).await, wanted, "{length}");
        }
        let form = [("email", "ada@limits.test"), ("password", &"x".repeat(length))];
        assert_eq!(status(client.post(daemon.admin_url("/sign-in")).form(&form)).await, wanted, "{length}");
    }
}
