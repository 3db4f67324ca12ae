//! A host that calls with its valid key from another address. The answer, the log, the audit log and the dashboard name
//! the host, both addresses and the commands that help. A caller without a valid key is told nothing.

use reqwest::Client;
use serde_json::{Value, json};

use crate::refusals::upload_again;
use crate::support::browser::{Browser, Looks};
use crate::support::daemon::{BOUND, Daemon, Registered, pause};
use crate::support::host::Host;

/// The address that the host is bound to; cdx calls from 127.0.0.1.
const BOUND_TO: &str = "127.0.0.2";

async fn retrieve(daemon: &Daemon, client: &Client, key: &str) -> (u16, Value) {
    let body = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
    let answer = client.post(daemon.hosts_url("/auth")).header("X-API-Key", key).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// A daemon, and a host whose `cdx` is on this machine, but which is bound to another address.
async fn moved() -> (Daemon, Registered, Host) {
    let daemon = Daemon::start();
    upload_again(&daemon).await;
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let elsewhere = daemon.client_from(BOUND_TO.parse().unwrap());
    assert_eq!(retrieve(&daemon, &elsewhere, &host.api_key).await.0, 200);
    let download = elsewhere.get(daemon.hosts_url("/wrapper/download")).header("X-API-Key", &host.api_key);
    let cdx = download.send().await.unwrap().text().await.unwrap();
    let machine = Host::bare();
    machine.write_program("bin/codex", "#!/bin/sh\necho codex-cli 0.1.2\n", 0o755);
    machine.write_program(".local/bin/cdx", &cdx, 0o700);
    (daemon, host, machine)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_refused_for_its_address_is_told_both_and_what_helps() {
    let (daemon, host, machine) = moved().await;
    let ran = machine.run(&["x"]);
    let said = "cdx: the daemon refuses this host (h.test is bound to the address 127.0.0.2, and this call came from \
                127.0.0.1); if this is that machine, its admin types 'codex-authd hosts clear h.test' (it has moved) or \
                'codex-authd hosts roaming h.test' (it moves often)\n";
    assert_eq!((ran.code, ran.err.as_str()), (Some(77), said));
    let ran = machine.run(&["--doctor"]);
    assert!(
        ran.out.contains("fail  h.test is bound to the address 127.0.0.2") && ran.out.contains("hosts clear h.test"),
        "{ran:?}"
    );

    // Programs read the message too, and hosts know this text.
    let (status, body) = retrieve(&daemon, &daemon.client(), &host.api_key).await;
    assert_eq!((status, &body["message"]), (403, &json!("API key not allowed from this IP")));
    assert_eq!(body["address"], json!({ "host": "h.test", "called_from": "127.0.0.1", "bound_to": BOUND_TO }));
    // A caller without a valid key learns nothing.
    let wrong = format!("{}x", host.api_key);
    for key in [wrong.as_str(), "x"] {
        let (status, body) = retrieve(&daemon, &daemon.client(), key).await;
        let text = body.to_string();
        assert!(status == 401 && !text.contains("127.0.0") && !text.contains("h.test"), "{status} {text}");
    }

    let log = daemon.log();
    let told = |line: &&str| {
        let parts = ["h.test", "127.0.0.1", "bound_to=127.0.0.2", "hosts clear h.test", "hosts roaming h.test"];
        line.contains("address.refused") && parts.iter().all(|part| line.contains(part))
    };
    assert!(log.lines().any(|line| told(&line)), "{log}");
    let begun = std::time::Instant::now();
    let entry = loop {
        let noted = daemon.cli_json(&["audit", "list", "--action", "address.refused"]);
        if let Some(entry) = noted["entries"].get(0) {
            break entry.clone();
        }
        assert!(begun.elapsed() < BOUND, "the audit log has no entry");
        tokio::task::spawn_blocking(pause).await.unwrap();
    };
    assert_eq!((&entry["target"], &entry["from"]), (&json!("h.test"), &json!("127.0.0.1")));
    assert_eq!(entry["details"]["bound_to"], BOUND_TO);
    let remedy = "codex-authd hosts clear h.test | codex-authd hosts roaming h.test";
    assert_eq!(entry["details"]["remedy"], remedy);
    assert!(!log.contains(&host.api_key), "the log contains the key");

    // The host cannot remove itself from here without `--force`.
    let ran = machine.run(&["--uninstall"]);
    assert_eq!((ran.code, machine.cdx_file().exists()), (Some(77), true), "{ran:?}");
    assert!(ran.err.contains("nothing was removed") && ran.err.contains("bound to the address 127.0.0.2"), "{ran:?}");
    assert_eq!(daemon.cli_json(&["hosts", "list"])["hosts"][0]["fqdn"], "h.test");

    // Networks reveal more of an operator's network than the host needs: only admins see them.
    daemon.cli_json(&["hosts", "networks", "h.test", "198.51.100.0/24"]);
    let ran = machine.run(&["x"]);
    assert_eq!(ran.code, Some(77), "{ran:?}");
    assert!(
        ran.err.contains("h.test is served from certain networks only, and this call came from 127.0.0.1"),
        "{ran:?}"
    );
    assert!(ran.err.contains("hosts networks h.test") && !ran.err.contains("198.51"), "{ran:?}");

    let ran = machine.run(&["--uninstall", "--force"]);
    assert_eq!((ran.code, machine.cdx_file().exists()), (Some(0), false), "{ran:?}");
    assert_eq!(daemon.cli_json(&["hosts", "list"])["hosts"], json!([]), "the host is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_names_both_addresses_and_lets_the_host_in_again() {
    let (daemon, host, machine) = moved().await;
    let browser = Browser::start(&daemon, "carol", Looks { no_javascript: true, ..Looks::default() }).await;
    let page = daemon.admin_url(&format!("/hosts/{}", host.id));
    browser.open(&page).await;
    assert_eq!(browser.texts("#refused-address").await, Vec::<String>::new(), "a refusal is shown before there is one");
    assert_eq!(machine.run(&["x"]).code, Some(77));
    let begun = std::time::Instant::now();
    while browser.texts("#refused-address").await.is_empty() {
        assert!(begun.elapsed() < BOUND, "the page does not show it");
        browser.open(&page).await;
    }
    for said in ["it came from 127.0.0.1", "h.test is bound to 127.0.0.2", "hosts clear h.test", "hosts roaming h.test"]
    {
        browser.says("#refused-address", said).await;
    }
    browser.press("Forget its address").await;
    browser.says("[role=status]", "The address of h.test is forgotten").await;
    browser.check(browser.texts("#refused-address").await.is_empty(), "what would be served now is no news").await;
    let ran = machine.run(&["x"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    browser.open(&page).await;
    browser.says("main", "127.0.0.1").await;
    browser.check(browser.texts("#refused-address").await.is_empty(), "and neither is it afterwards").await;
    assert_eq!(browser.console().await, Vec::<String>::new());
}
