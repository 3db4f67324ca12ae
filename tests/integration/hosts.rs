//! The life of hosts, over the API: single events happen only once, revoked keys are refused at once, and the served
//! bytes are the hashed bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use codex_authd::model::digest::Digest;
use nix::sys::signal::Signal;
use reqwest::{Client, Version};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::support::daemon::{BOUND, Daemon, Registered, auth_json, pause};
use crate::support::skip::skipped;

const OTHER_ADDRESS: &str = "127.0.0.2";
const FIRST: &str = "2025-11-20T09:27:43.373506211Z";

/// Status and body of an answer.
type Answered = (u16, Value);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_200_redemptions_at_once_one_gets_the_installer() {
    let daemon = Daemon::start();
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let url = daemon.hosts_url(&format!("/install/{}", host.token));
    // Some calls on one connection, some on many.
    let clients = [daemon.client(), daemon.client_builder().http1_only().build().unwrap()];
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let call = clients[n % clients.len()].get(&url).send();
            tokio::spawn(async move {
                let answer = call.await.unwrap();
                (answer.status().as_u16(), answer.text().await.unwrap())
            })
        })
        .collect();
    let mut statuses = BTreeMap::new();
    for call in calls {
        let (status, script) = call.await.unwrap();
        assert_eq!(script.contains(&host.api_key), status == 200, "{status}: {script}");
        *statuses.entry(status).or_insert(0) += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(200, 1), (410, 199)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_first_contacts_at_once_one_binds_the_host() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let clients = [daemon.client(), daemon.client_from(OTHER_ADDRESS.parse().unwrap())];
    for client in &clients {
        client.get(daemon.hosts_url("/healthz")).send().await.unwrap();
    }
    for round in 0..20 {
        let host = daemon.register(&admin, &format!("h{round}.test")).await;
        let (here, there) = tokio::join!(retrieve(&daemon, &clients[0], &host), retrieve(&daemon, &clients[1], &host));
        let mut statuses = [here.0, there.0];
        let winner = usize::from(here.0 != 200);
        statuses.sort();
        assert_eq!(statuses, [200, 403], "{here:?} {there:?}");
        // The binding stays.
        assert_eq!(retrieve(&daemon, &clients[winner], &host).await.0, 200);
        assert_eq!(retrieve(&daemon, &clients[1 - winner], &host).await.0, 403);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_again_kills_the_old_key_and_the_old_installers_and_unbinds_the_address() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let elsewhere = daemon.client_from(OTHER_ADDRESS.parse().unwrap());
    let first = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &client, &first).await.0, 200);
    let second = daemon.register(&admin, "H.Test").await;
    assert_eq!(second.id, first.id);
    assert_eq!(retrieve(&daemon, &client, &first).await.0, 401);
    assert_eq!(install(&daemon, &client, &first).await.0, 404);
    assert_eq!(retrieve(&daemon, &elsewhere, &second).await.0, 200, "the second host was bound");
    assert_eq!(retrieve(&daemon, &client, &second).await.0, 403);
    let (status, script) = install(&daemon, &elsewhere, &second).await;
    assert!(status == 200 && script.contains(&second.api_key) && !script.contains(&first.api_key), "{script}");

    let third = daemon.register(&admin, "h.test").await;
    assert_eq!(install(&daemon, &client, &second).await.0, 410, "a redeemed token was accepted again");
    assert_eq!(install(&daemon, &client, &third).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_host_is_refused_from_the_answer_on() {
    let daemon = Arc::new(Daemon::start());
    let admin = daemon.admin();
    for round in 0..3 {
        let host = daemon.register(&admin, &format!("h{round}.test")).await;
        let client = daemon.client();
        assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
        let removed = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (daemon, client, host, removed) = (daemon.clone(), client.clone(), host.clone(), removed.clone());
                tokio::spawn(async move {
                    let mut refused = 0;
                    while refused < 20 {
                        let was_removed = removed.load(Ordering::SeqCst);
                        let (status, body) = retrieve(&daemon, &client, &host).await;
                        assert!(status == 401 || (status == 200 && !was_removed), "{was_removed}: {status} {body}");
                        refused += usize::from(was_removed);
                    }
                })
            })
            .collect();
        let url = daemon.admin_url(&format!("/admin/hosts/{}", host.id));
        assert_eq!(admin.delete(&url).send().await.unwrap().status(), 200);
        removed.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.await.unwrap();
        }
        assert_eq!(install(&daemon, &client, &host).await.0, 404, "its installer is revoked too");
        assert_eq!(admin.delete(&url).send().await.unwrap().status(), 404);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_takes_itself_out_from_its_address_and_by_force_from_any() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let elsewhere = daemon.client_from(OTHER_ADDRESS.parse().unwrap());
    for (force, wanted) in [("", 403), ("?force=0", 403), ("?force=1", 200)] {
        let host = daemon.register(&admin, "h.test").await;
        assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
        let url = daemon.hosts_url(&format!("/auth{force}"));
        let left = elsewhere.delete(url).header("X-API-Key", &host.api_key).send().await.unwrap();
        assert_eq!(left.status(), wanted, "{force}");
        assert_eq!(retrieve(&daemon, &client, &host).await.0, if wanted == 200 { 401 } else { 200 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kill_switch_stops_every_host_and_outlives_a_restart() {
    let mut daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    let (status, body) = admin_post(&daemon, &admin, "/admin/api/state", json!({ "disabled": true })).await;
    assert_eq!((status, &body["data"]["disabled"]), (200, &json!(true)));
    for _ in 0..2 {
        let client = daemon.client();
        for (method, path) in
            [("POST", "/auth"), ("DELETE", "/auth"), ("GET", "/wrapper"), ("GET", "/wrapper/download")]
        {
            let call = client.request(method.parse().unwrap(), daemon.hosts_url(path));
            let answer = call.header("X-API-Key", &host.api_key).send().await.unwrap();
            assert_eq!(answer.status(), 503, "{method} {path}");
            assert!(answer.headers().contains_key("retry-after"));
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "api_disabled");
        }
        let install = daemon.hosts_url(&format!("/install/{}", host.token));
        assert_eq!(client.get(install).send().await.unwrap().status(), 503);
        assert_eq!(daemon.stop().code(), Some(0));
        daemon.launch();
    }
    let admin = daemon.admin();
    admin_post(&daemon, &admin, "/admin/api/state", json!({ "disabled": false })).await;
    assert_eq!(retrieve(&daemon, &daemon.client(), &host).await.0, 200);
    let install = daemon.hosts_url(&format!("/install/{}", host.token));
    assert_eq!(daemon.client().get(install).send().await.unwrap().status(), 200, "the kill switch spent the token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_socket_for_both_a_v4_caller_is_its_v4_and_a_v6_caller_its_v6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        skipped("this machine has no IPv6 loopback");
        return;
    }
    let daemon = Daemon::start_with(&[("LISTEN__HOSTS", "[::]:0"), ("PUBLIC_BASE_URL", "https://auth.test")]);
    let (admin, client) = (daemon.admin(), daemon.client());
    let port = daemon.listen.hosts.port();
    let status = async |address: &str, host: &Registered| {
        let call = client.post(format!("https://{address}:{port}/auth")).header("X-API-Key", &host.api_key);
        call.json(&question()).send().await.unwrap().status().as_u16()
    };
    let elsewhere = daemon.client_from(OTHER_ADDRESS.parse().unwrap());
    for (own, other, ip, other_ip) in
        [("127.0.0.1", "[::1]", "127.0.0.1", "::1"), ("[::1]", "127.0.0.1", "::1", "127.0.0.1")]
    {
        let host = daemon.register(&admin, "h.test").await;
        assert_eq!(status(own, &host).await, 200);
        let listed = daemon.cli_json(&["hosts", "list"])["hosts"][0].clone();
        assert_eq!((&listed["ip"], listed.get("other_ip")), (&json!(ip), None), "only one address is listed");
        assert_eq!(status(other, &host).await, 200, "one address of each family");
        let listed = daemon.cli_json(&["hosts", "list"])["hosts"][0].clone();
        assert_eq!((&listed["ip"], &listed["other_ip"]), (&json!(ip), &json!(other_ip)));
        let call = elsewhere.post(format!("https://127.0.0.1:{port}/auth")).header("X-API-Key", &host.api_key);
        assert_eq!(call.json(&question()).send().await.unwrap().status(), 403, "bound to 127.0.0.1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roaming_host_is_bound_to_where_it_called_from_last() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let elsewhere = daemon.client_from(OTHER_ADDRESS.parse().unwrap());
    let host = daemon.register(&admin, "h.test").await;
    let roaming = format!("/admin/hosts/{}/roaming", host.id);
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    // No header changes the caller's address.
    for header in ["X-Forwarded-For", "X-Real-IP", "Forwarded"] {
        let value = if header == "Forwarded" { "for=127.0.0.1" } else { "127.0.0.1" };
        let call = elsewhere.post(daemon.hosts_url("/auth")).header(header, value);
        let answer = call.header("X-API-Key", &host.api_key).json(&question()).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{header}");
    }
    admin_post(&daemon, &admin, &roaming, json!({ "allow": true })).await;
    for client in [&elsewhere, &client, &elsewhere] {
        assert_eq!(retrieve(&daemon, client, &host).await.0, 200);
    }
    let shown = admin.get(daemon.admin_url(&format!("/admin/hosts/{}", host.id))).send().await.unwrap();
    assert_eq!(shown.json::<Value>().await.unwrap()["data"]["host"]["ip"], OTHER_ADDRESS);
    admin_post(&daemon, &admin, &roaming, json!({ "allow": false })).await;
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 403);
    assert_eq!(retrieve(&daemon, &elsewhere, &host).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insecure_host_is_served_while_its_window_is_open() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let registration = json!({ "fqdn": "shared.test", "secure": false });
    let (status, body) = admin_post(&daemon, &admin, "/admin/hosts/register", registration).await;
    assert_eq!(status, 200);
    let host = registered(&body);
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200, "registering opens the window");
    let window = |what: &str| format!("/admin/hosts/{}/insecure/{what}", host.id);
    for _ in 0..2 {
        admin_post(&daemon, &admin, &window("disable"), json!({})).await;
        let (status, body) = retrieve(&daemon, &client, &host).await;
        assert_eq!((status, &body["code"]), (403, &json!("insecure_closed")));
        let (_, body) = admin_post(&daemon, &admin, &window("enable"), json!({})).await;
        assert!(body["data"]["host"]["insecure_enabled_until"].is_string(), "{body}");
        assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    }
    let secure = daemon.register(&admin, "own.test").await;
    let path = format!("/admin/hosts/{}/insecure/enable", secure.id);
    assert_eq!(admin_post(&daemon, &admin, &path, json!({})).await.0, 422, "a secure host has no window");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_closes_by_itself() {
    let daemon = Daemon::start_with(&[("HOSTS__INSECURE_WINDOW_SECONDS", "3")]);
    let (admin, client) = (daemon.admin(), daemon.client());
    let registration = json!({ "fqdn": "shared.test", "secure": false });
    let (_, body) = admin_post(&daemon, &admin, "/admin/hosts/register", registration).await;
    let host = registered(&body);
    let begun = Instant::now();
    while retrieve(&daemon, &client, &host).await.0 == 200 {
        assert!(begun.elapsed() < BOUND, "the window stays open");
        pause();
    }
    assert_eq!(retrieve(&daemon, &client, &host).await.1["code"], "insecure_closed");
}

/// Member order, number spelling, empty objects and non-ASCII: a rewritten document would lose them.
const ODD: &str = r#"{ "z": [1.0, 1E5, -0, 1e-7, 12345678901234567890123, 0.10], "last_refresh": "2025-11-21T11:00:00.100Z",
    "tokens": {"refresh_token": "rt_a/b", "access_token": "Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6", "id_token": "\u00653.e30.e30"},
    "e": {}, "a": [ ], "u": "é/€ \u2028 😀", "n": null, "b": {"y": true, "x": {}} }"#;
const ODD_CANONICAL: &str = concat!(
    r#"{"z":[1.0,1E5,-0,1e-7,12345678901234567890123,0.10],"last_refresh":"2025-11-21T11:00:00.100Z","#,
    r#""tokens":{"refresh_token":"rt_a/b","access_token":"Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6","id_token":"e3.e30.e30"},"#,
    "\"e\":{},\"a\":[],\"u\":\"é/€ \u{2028} 😀\",\"n\":null,\"b\":{\"y\":true,\"x\":{}},",
    r#""auths":{"api.openai.com":{"token":"Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6","token_type":"bearer"}}}"#,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_served_are_the_bytes_hashed() {
    let mut daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    let digest = Digest::of(ODD_CANONICAL.as_bytes()).to_string();
    let store = format!(r#"{{"command":"store","auth":{ODD}}}"#);
    let ask = question().to_string();
    for (body, status) in [(&store, "updated"), (&ask, "outdated")] {
        let body = post_raw(&daemon, &client, &host, "/auth", body.clone()).await;
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains(&format!(r#""status":"{status}""#)), "{text}");
        assert!(text.contains(&format!(r#""canonical_digest":"{digest}""#)), "{text}");
        // `auth` is the last member of the data.
        let (_, auth) = text.split_once(r#","auth":"#).unwrap();
        assert_eq!(auth.strip_suffix("}}").unwrap(), ODD_CANONICAL);
        let answer: Value = serde_json::from_str(text).unwrap();
        assert_eq!(answer["data"]["auth_text"], ODD_CANONICAL, "no JSON library can change a string");
    }
    for round in 0..2 {
        let body = post_raw(&daemon, &daemon.client(), &host, "/auth/lines", ask.clone()).await;
        let text = std::str::from_utf8(&body).unwrap();
        let (head, auth) = text.split_once("\nauth ").unwrap();
        assert!(head.lines().any(|line| line == format!("digest {digest}")), "{head}");
        assert_eq!(auth, format!("{}\n{ODD_CANONICAL}", ODD_CANONICAL.len()));
        if round == 0 {
            // The bytes from the disk are the same.
            assert_eq!(daemon.stop().code(), Some(0));
            daemon.launch();
        }
    }
    let valid = json!({ "last_refresh": FIRST, "digest": digest.to_uppercase() });
    let body = post_raw(&daemon, &daemon.client(), &host, "/auth", valid.to_string()).await;
    assert!(!String::from_utf8(body).unwrap().contains(r#""auth":"#));
    let shown = daemon.admin().get(daemon.admin_url("/admin/auth?include_body=1")).send().await.unwrap();
    assert!(shown.text().await.unwrap().contains(&format!(r#""auth":{ODD_CANONICAL}"#)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_stores_at_once_the_history_holds_those_that_were_answered_updated() {
    let daemon = Arc::new(Daemon::start());
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    let instant = |n: u64| format!("2025-11-20T09:27:43.{n:09}Z");
    let stores: Vec<_> = (0..64)
        .map(|n| {
            let (daemon, client, host) = (daemon.clone(), client.clone(), host.clone());
            tokio::spawn(async move { (n, store(&daemon, &client, &host, auth_json(&instant(n), n)).await) })
        })
        .collect();
    let mut updated = BTreeSet::new();
    for call in stores {
        let (n, (status, body)) = call.await.unwrap();
        assert_eq!(status, 200, "{body}");
        match body["data"]["status"].as_str().unwrap() {
            "updated" => drop(updated.insert(instant(n))),
            "outdated" => assert!(body["data"]["canonical_last_refresh"].as_str().unwrap() > instant(n).as_str()),
            other => panic!("{other}: {body}"),
        }
    }
    assert!(updated.contains(&instant(63)), "the newest of all was refused: {updated:?}");
    let history = admin.get(daemon.admin_url("/admin/auth/history?limit=1000")).send().await.unwrap();
    let history: Value = history.json().await.unwrap();
    let mut versions = history["data"]["versions"].as_array().unwrap().clone();
    versions.reverse();
    let numbers: Vec<_> = versions.iter().map(|version| version["version"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=updated.len() as u64).collect::<Vec<_>>());
    let instants: Vec<_> =
        versions.iter().map(|version| version["last_refresh"].as_str().unwrap().to_owned()).collect();
    assert_eq!(instants, updated.into_iter().collect::<Vec<_>>(), "each is newer than the previous one");
    let (_, body) = retrieve(&daemon, &client, &host).await;
    assert_eq!(body["data"]["canonical_last_refresh"], instant(63));
    assert_eq!(body["data"]["canonical_digest"], versions.last().unwrap()["digest"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_stores_of_one_instant_one_is_stored() {
    let daemon = Arc::new(Daemon::start());
    let host = daemon.register(&daemon.admin(), "h.test").await;
    // Separate connections, so that the calls are simultaneous.
    let clients: Vec<_> = (0..8).map(|_| daemon.client()).collect();
    for client in &clients {
        assert_eq!(retrieve(&daemon, client, &host).await.0, 200);
    }
    for round in 0..20 {
        let instant = format!("2025-11-20T09:27:43.{round:09}Z");
        let stores: Vec<_> = (0..16)
            .map(|n| {
                let (daemon, client, host) = (daemon.clone(), clients[n % clients.len()].clone(), host.clone());
                let auth = auth_json(&instant, n as u64);
                tokio::spawn(async move { store(&daemon, &client, &host, auth).await })
            })
            .collect();
        let mut answers = BTreeMap::new();
        let mut digests = BTreeSet::new();
        for call in stores {
            let (status, body) = call.await.unwrap();
            assert_eq!(status, 200, "{body}");
            *answers.entry(body["data"]["status"].as_str().unwrap().to_owned()).or_insert(0) += 1;
            digests.insert(body["data"]["canonical_digest"].as_str().unwrap().to_owned());
        }
        assert_eq!(answers, BTreeMap::from([("unchanged".into(), 15), ("updated".into(), 1)]), "round {round}");
        assert_eq!(digests.len(), 1, "all get the same digest");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_of_a_host_survives_a_restart() {
    let mut daemon = Daemon::start();
    let host = daemon.register(&daemon.admin(), "h.test").await;
    for restart in 0..3 {
        let client = daemon.client();
        for call in 1..=7 {
            let (status, body) = retrieve(&daemon, &client, &host).await;
            assert_eq!((status, &body["data"]["api_calls"]), (200, &json!(restart * 7 + call)), "{body}");
        }
        assert_eq!(daemon.stop().code(), Some(0));
        daemon.launch();
    }
    let url = daemon.admin_url(&format!("/admin/hosts/{}", host.id));
    let shown: Value = daemon.admin().get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!(shown["data"]["host"]["api_calls"], 21);
    assert_eq!(shown["data"]["host"]["client_version"], "0.169.0");
    assert_eq!(shown["data"]["host"]["ip"], "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_http_versions_are_spoken() {
    let daemon = Daemon::start();
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let old = daemon.client_builder().http1_only().build().unwrap();
    for (client, version) in [(daemon.client(), Version::HTTP_2), (old, Version::HTTP_11)] {
        let call = client.post(daemon.hosts_url("/auth")).header("X-API-Key", &host.api_key).json(&question());
        let answer = call.send().await.unwrap();
        assert_eq!((answer.version(), answer.status().as_u16()), (version, 200));
        assert_eq!(answer.json::<Value>().await.unwrap()["data"]["status"], "missing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_swaps_the_certificate_and_cuts_nobody_off() {
    let daemon = Daemon::start();
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let mut open = Wire::connect(&daemon).await;
    assert_eq!(open.retrieve(&host).await.0, 200);
    daemon.signal(Signal::SIGHUP);
    let begun = Instant::now();
    let renewed = loop {
        let wire = Wire::connect(&daemon).await;
        if wire.serial() != open.serial() {
            break wire;
        }
        assert!(begun.elapsed() < BOUND, "the certificate was not replaced");
        pause();
    };
    assert_eq!(renewed.public_key(), open.public_key(), "installer commands pin the key");
    assert_eq!(open.retrieve(&host).await.0, 200, "the open connection was cut");
    assert_eq!(
        daemon.register(&daemon.admin(), "i.test").await.command.split('"').nth(1),
        host.command.split('"').nth(1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_the_call_in_flight_finish() {
    let mut daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    assert_eq!(retrieve(&daemon, &client, &host).await.0, 200);
    let mut idle = Wire::connect(&daemon).await;
    assert_eq!(idle.retrieve(&host).await.0, 200);

    let mut slow = Wire::connect(&daemon).await;
    let body = json!({ "command": "store", "auth": auth_json(FIRST, 1) }).to_string();
    let (sent, held_back) = body.split_at(body.len() / 2);
    let head = post_head(&host, body.len()).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    slow.send(&head).await;
    // The 100 answer asks for the body: so the call has begun before the stop.
    assert!(slow.read().await.starts_with(b"HTTP/1.1 100 "));
    slow.send(sent).await;
    daemon.signal(Signal::SIGTERM);
    let begun = Instant::now();
    while !daemon.log().contains("stopping: finishing calls in flight") {
        assert!(begun.elapsed() < BOUND, "the daemon does not stop");
        pause();
    }
    idle.ends().await;
    slow.send(held_back).await;
    let (status, answer) = slow.receive().await;
    assert_eq!((status, &answer["data"]["status"]), (200, &json!("updated")), "{answer}");
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.kill();
    assert!(begun.elapsed() < Duration::from_secs(15), "the stop took too long: {:?}", begun.elapsed());

    daemon.launch();
    let (_, body) = retrieve(&daemon, &daemon.client(), &host).await;
    assert_eq!(body["data"]["canonical_last_refresh"], FIRST);
}

fn question() -> Value {
    json!({ "last_refresh": FIRST, "digest": "0".repeat(64), "client_version": "0.169.0" })
}

async fn retrieve(daemon: &Daemon, client: &Client, host: &Registered) -> Answered {
    post(daemon, client, host, question()).await
}

async fn store(daemon: &Daemon, client: &Client, host: &Registered, auth: Value) -> Answered {
    post(daemon, client, host, json!({ "command": "store", "auth": auth })).await
}

async fn post(daemon: &Daemon, client: &Client, host: &Registered, body: Value) -> Answered {
    let call = client.post(daemon.hosts_url("/auth")).header("X-API-Key", &host.api_key).json(&body);
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn post_raw(daemon: &Daemon, client: &Client, host: &Registered, path: &str, body: String) -> Vec<u8> {
    let call = client.post(daemon.hosts_url(path)).header("X-API-Key", &host.api_key).body(body);
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap().into()
}

async fn install(daemon: &Daemon, client: &Client, host: &Registered) -> (u16, String) {
    let answer = client.get(daemon.hosts_url(&format!("/install/{}", host.token))).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn admin_post(daemon: &Daemon, admin: &Client, path: &str, body: Value) -> Answered {
    let answer = admin.post(daemon.admin_url(path)).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn registered(body: &Value) -> Registered {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Registered {
        id: body["data"]["host"]["id"].as_u64().unwrap(),
        api_key: text(&body["data"]["host"]["api_key"]),
        token: text(&body["data"]["installer"]["token"]),
        command: text(&body["data"]["installer"]["command"]),
    }
}

fn post_head(host: &Registered, length: usize) -> String {
    format!(
        "POST /auth HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n",
        host.api_key
    )
}

/// One connection with raw HTTP/1.1 over TLS.
struct Wire(TlsStream<TcpStream>);

impl Wire {
    async fn connect(daemon: &Daemon) -> Self {
        let authority = std::fs::read(daemon.state_dir().join("pki/server-ca.crt")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&authority).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address: SocketAddr = daemon.listen.hosts;
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::from(address.ip());
        Self(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap())
    }

    async fn retrieve(&mut self, host: &Registered) -> Answered {
        let body = question().to_string();
        self.send(&format!("{}{body}", post_head(host, body.len()))).await;
        self.receive().await
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn receive(&mut self) -> Answered {
        let mut received = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&received);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                if body.len() == length.parse::<usize>().unwrap() {
                    return (status, serde_json::from_str(body).unwrap());
                }
            }
            let more = self.read().await;
            assert!(!more.is_empty(), "cut off after {text}");
            received.extend(more);
        }
    }

    async fn read(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 4096];
        let read = tokio::time::timeout(BOUND, self.0.read(&mut buffer)).await.expect("an answer").unwrap();
        buffer.truncate(read);
        buffer
    }

    /// Waits until the other side closes.
    async fn ends(&mut self) {
        let mut buffer = [0; 64];
        let read = tokio::time::timeout(BOUND, self.0.read(&mut buffer)).await.expect("the connection ends");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }

    fn serial(&self) -> String {
        self.certificate().raw_serial_as_string()
    }

    fn public_key(&self) -> Vec<u8> {
        self.certificate().public_key().raw.to_vec()
    }

    fn certificate(&self) -> X509Certificate<'_> {
        let chain = self.0.get_ref().1.peer_certificates().unwrap();
        X509Certificate::from_der(&chain[0]).unwrap().1
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_hosts_comes_in_pages_and_all_at_once() {
    let mut daemon = Daemon::start();
    let admin = daemon.admin();
    for name in ["b.test", "a.test", "c.test"] {
        daemon.register(&admin, name).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let hosts = list["hosts"].as_array().unwrap().iter();
        hosts.map(|host| host["fqdn"].as_str().unwrap().to_owned()).collect()
    };
    let url = daemon.admin_url("/admin/hosts");
    let get = async |query: &str| -> Answered {
        let answer = admin.get(format!("{url}{query}")).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    let (_, first) = get("?limit=2&order=desc").await;
    assert_eq!(names(&first["data"]), ["c.test", "b.test"]);
    let next = first["data"]["next"].as_str().unwrap();
    let (_, last) = get(&format!("?limit=2&order=desc&cursor={next}")).await;
    assert_eq!((names(&last["data"]), &last["data"]["next"]), (vec!["a.test".to_owned()], &Value::Null));
    for (query, found, matching) in [
        ("?limit=2", &["a.test", "b.test"][..], 3),
        ("", &["a.test", "b.test", "c.test"], 3),
        ("?sort=fqdn&order=desc", &["c.test", "b.test", "a.test"], 3),
        ("?sort=last_seen&order=desc", &["a.test", "b.test", "c.test"], 3),
        ("?search=B.TE", &["b.test"], 1),
        ("?search=", &["a.test", "b.test", "c.test"], 3),
        ("?search=%25%27%22%0a%00%3Cscript%3E", &[], 0),
        ("?state=unbound&limit=1", &["a.test"], 3),
        ("?state=insecure", &[], 0),
    ] {
        let (status, page) = get(query).await;
        assert_eq!(status, 200, "{query}: {page}");
        assert_eq!(names(&page["data"]), found, "{query}");
        assert_eq!((&page["data"]["total"], &page["data"]["matching"]), (&json!(3), &json!(matching)), "{query}");
    }
    for query in [
        "?limit=0",
        "?limit=1001",
        "?limit=-1",
        "?limit=x",
        "?offset=1",
        "?limt=1",
        "?sort=key",
        "?order=up",
        "?state=x",
    ] {
        let (status, refused) = get(query).await;
        assert_eq!((status, &refused["status"]), (400, &json!("error")), "{query}: {refused}");
    }
    // The same from the command line, with and without a daemon.
    for runs in [true, false] {
        let page = daemon
            .cli_json(&["hosts", "list", "--sort", "fqdn", "--order", "desc", "--limit", "1", "--search", "test"]);
        assert_eq!((names(&page), &page["matching"]), (vec!["c.test".to_owned()], &json!(3)));
        let none = daemon.cli_json(&["hosts", "list", "--search", "a&b=c #%\u{fc}"]);
        assert_eq!((names(&none), &none["matching"]), (Vec::new(), &json!(0)));
        if runs {
            daemon.stop();
        }
    }
}
