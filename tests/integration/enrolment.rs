//! The checks before a host is registered: whether a known host shall lose its key, and whether hosts can reach the
//! daemon by a guessed name.

use std::io::Write as _;
use std::process::{Output, Stdio};

use reqwest::Client;
use serde_json::{Value, json};

use crate::dashboard::token_in;
use crate::support::browser::{Browser, Looks};
use crate::support::daemon::{BINARY, Daemon};
use crate::support::host::is_root;

async fn status_with(daemon: &Daemon, key: &str) -> u16 {
    let body = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
    let call = daemon.client().post(daemon.hosts_url("/auth")).header("X-API-Key", key).json(&body);
    call.send().await.unwrap().status().as_u16()
}

fn key_in(made: &Value) -> String {
    made["host"]["api_key"].as_str().unwrap().to_owned()
}

/// Runs the command in a new terminal, and types `typed`.
fn in_a_terminal(daemon: &Daemon, arguments: &str, typed: &str) -> Output {
    let mut command = std::process::Command::new("script");
    daemon.settings_for(&mut command);
    let line = format!("exec {BINARY} {arguments}");
    command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(typed.as_bytes()).unwrap();
    keyboard.flush().unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keyboard);
    output
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_host_loses_its_key_only_when_that_is_said() {
    let daemon = Daemon::start();
    let first = key_in(&daemon.cli_json(&["hosts", "add", "h.test"]));
    assert_eq!(status_with(&daemon, &first).await, 200);
    // Without a terminal it is refused, for a name in capitals too, and changes nothing.
    for name in ["h.test", "H.test"] {
        let refused = daemon.cli(&["hosts", "add", name]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{said}");
        assert!(said.contains("h.test is a host already") && said.contains("refused at once"), "{said}");
        assert!(said.contains("codex-authd hosts add --rotate h.test"), "{said}");
    }
    for answer in ["n\n", "\n"] {
        let kept = in_a_terminal(&daemon, "hosts add h.test", answer);
        let said = String::from_utf8_lossy(&kept.stdout).into_owned();
        assert_eq!(kept.status.code(), Some(1), "{said}");
        assert!(said.contains("Give h.test a new key? [y/N]") && said.contains("nothing was changed"), "{said}");
    }
    assert_eq!(status_with(&daemon, &first).await, 200, "its key is no longer valid");

    let rotated = in_a_terminal(&daemon, "hosts add h.test", "y\n");
    let said = String::from_utf8_lossy(&rotated.stdout).into_owned();
    assert!(rotated.status.success() && said.contains("curl -sSL"), "{said}");
    assert_eq!(status_with(&daemon, &first).await, 401, "the old key is valid after the registration");
    let third = key_in(&daemon.cli_json(&["hosts", "add", "--rotate", "h.test"]));
    assert_eq!(status_with(&daemon, &third).await, 200);
    let made = daemon.cli_json(&["audit", "list", "--action", "host.register"]);
    let rotations: Vec<_> =
        made["entries"].as_array().unwrap().iter().map(|entry| entry["details"]["rotated"].clone()).collect();
    assert_eq!(rotations, [json!("true"), json!("true"), Value::Null], "the newest first: {made}");
}

#[test]
fn without_a_daemon_a_known_host_is_asked_about_as_well() {
    let daemon = Daemon::prepare(&[]);
    daemon.cli_json(&["hosts", "add", "h.test"]);
    let refused = daemon.cli(&["hosts", "add", "h.test"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--rotate h.test"), "{refused:?}");
    daemon.cli_json(&["hosts", "add", "h.test", "--rotate"]);
}

/// A daemon on all addresses of a machine with this name.
fn on_machine(name: &str, settings: &[(&str, &str)]) -> Daemon {
    let mut daemon = Daemon::prepare(&[&[("LISTEN__HOSTS", "0.0.0.0:0")][..], settings].concat());
    let set = format!("hostname {name} && exec \"$@\"");
    daemon.within = ["unshare", "--uts", "sh", "-c", &set, "sh"].map(String::from).to_vec();
    daemon.launch();
    daemon
}

fn refused(daemon: &Daemon, url: &str, doubt: &str) {
    let refused = daemon.cli(&["hosts", "add", "h.test"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{said}");
    for part in [url, doubt, "public_base_url in /etc/codex-authd/config.toml", "--allow-short-name"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guessed_name_that_hosts_rarely_find_is_baked_only_when_told() {
    if !is_root("a machine name of the test's own") {
        return;
    }
    let daemon = on_machine("laptop", &[]);
    let url = format!("https://laptop:{}", daemon.listen.hosts.port());
    refused(&daemon, &url, "a name without a domain");
    let admin: Client = daemon.admin();
    let register = async |body: Value| {
        let answer = admin.post(daemon.admin_url("/admin/hosts/register")).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, body) = register(json!({ "fqdn": "a.test" })).await;
    assert_eq!((status, &body["code"]), (422, &json!("base_url_guessed")), "{body}");
    assert_eq!(daemon.cli_json(&["hosts", "list"])["hosts"], json!([]), "a host was made");
    let (status, body) = register(json!({ "fqdn": "a.test", "allow_short_name": true })).await;
    assert_eq!(status, 200, "{body}");
    let made = daemon.cli_json(&["hosts", "add", "b.test", "--allow-short-name"]);
    assert!(made["installer"]["url"].as_str().unwrap().starts_with(&url), "{made}");

    // The dashboard's form has a box, and also asks about a known host.
    let page = admin.get(daemon.admin_url("/hosts/new")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("public_base_url") && page.contains(&url), "{page}");
    let fields = [("token", token_in(&page)), ("name", "c.test")];
    let answer = admin.post(daemon.admin_url("/hosts/new")).form(&fields).send().await.unwrap();
    assert_eq!(answer.status(), 422);
    let browser = Browser::start(&daemon, "dora", Looks { no_javascript: true, ..Looks::default() }).await;
    browser.open(&daemon.admin_url("/hosts/new")).await;
    browser.fill("Name of the machine", "b.test").await;
    browser.press_label("This machine finds the daemon at that address").await;
    browser.press("Make the host").await;
    browser.says("[role=alert]", "b.test is a host already.").await;
    browser.says("[role=alert]", "refused as soon as you press the button").await;
    browser.press("Take the old key away and make a new installer").await;
    browser.says("#command", &url).await;
}

#[test]
fn what_the_operator_configured_is_baked_as_it_is() {
    if is_root("a machine name of the test's own") {
        refused(&on_machine("localhost", &[]), "https://localhost:", "the host itself");
        let named = on_machine("authd.example.test", &[]);
        let made = named.cli_json(&["hosts", "add", "h.test"]);
        assert!(made["installer"]["url"].as_str().unwrap().starts_with("https://authd.example.test:"), "{made}");
        let told = on_machine("laptop", &[("PUBLIC_BASE_URL", "https://laptop:8443")]);
        let made = told.cli_json(&["hosts", "add", "h.test"]);
        assert!(made["installer"]["url"].as_str().unwrap().starts_with("https://laptop:8443/"), "{made}");
    }
    // A listener on loopback is for hosts of this machine, or for a proxy with another address.
    Daemon::start().cli_json(&["hosts", "add", "h.test"]);
    let behind = Daemon::start_with(&[("LISTEN__HOSTS_TLS", "false")]);
    refused(&behind, &format!("http://{}", behind.listen.hosts), "the proxy in front of it");
    behind.cli_json(&["hosts", "add", "h.test", "--allow-short-name"]);
}
