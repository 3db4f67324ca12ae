//! The operator's own certificate: shown to hosts, pinned by installers, read again on SIGHUP.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};

use reqwest::redirect::Policy;
use serde_json::{Value, json};

use crate::dashboard::token_in;
use crate::support::daemon::{BOUND, Daemon, identity, install_provider, pause};
use crate::support::people::{PASSWORD, add_user, ask, control, redeeming};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_own_certificate_is_shown_pinned_and_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let files = (directory.path().join("own.crt"), directory.path().join("own.key"));
    let first = own_certificate(&files);
    let address = crate::doctor::a_free_port();
    let daemon = Daemon::start_with(&[
        ("TLS__CERTIFICATE", files.0.to_str().unwrap()),
        ("TLS__PRIVATE_KEY", files.1.to_str().unwrap()),
        ("PUBLIC_BASE_URL", &format!("https://localhost:{}", address.port())),
        ("LISTEN__HOSTS", &address.to_string()),
    ]);
    assert_eq!(shown(&daemon).await, first);
    let before = daemon.register(&daemon.admin(), "h1.test").await;
    let script = fetch(&daemon, &before.command).await;
    // In the installer the wrapper is one quoted word, so each of its quotes is written as '\''.
    assert!(script.contains(r"CDX_SYSTEM_CA='\''1'\''"), "hosts trust the authorities of their system");
    assert!(script.contains("BEGIN CERTIFICATE"), "hosts trust our authority");

    let second = own_certificate(&files);
    daemon.signal(Signal::SIGHUP);
    let started = std::time::Instant::now();
    while shown(&daemon).await != second {
        assert!(started.elapsed() < BOUND, "the certificate was not read again:\n{}", daemon.log());
        pause();
    }
    let after = daemon.register(&daemon.admin(), "h1.test").await;
    let pin = |command: &str| command.split('"').nth(1).unwrap().to_owned();
    assert_ne!(pin(&before.command), pin(&after.command), "the pin is not that of the new key");
    fetch(&daemon, &after.command).await;

    // An unusable file changes nothing.
    std::fs::write(&files.1, "no key").unwrap();
    daemon.signal(Signal::SIGHUP);
    while !daemon.log().contains("the certificates in force stay") {
        assert!(started.elapsed() < BOUND, "{}", daemon.log());
        pause();
    }
    assert_eq!(shown(&daemon).await, second);
}

/// Fetches the installer as the printed command does: curl checks the pin. Returns the script.
async fn fetch(daemon: &Daemon, command: &str) -> String {
    let curl = redeeming(command);
    let output = tokio::process::Command::new("bash").args(["-c", &curl]).output().await.unwrap();
    assert!(output.status.success(), "{curl}: {}\n{}", String::from_utf8_lossy(&output.stderr), daemon.log());
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a self-signed certificate and its key to the files; returns the DER of the certificate.
fn own_certificate((certificate, key): &(PathBuf, PathBuf)) -> Vec<u8> {
    let pair = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&pair).unwrap();
    replace(certificate, &made.pem());
    replace(key, &pair.serialize_pem());
    made.der().to_vec()
}

fn replace(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// The certificate that a host's new connection gets.
async fn shown(daemon: &Daemon) -> Vec<u8> {
    install_provider();
    let client =
        reqwest::Client::builder().danger_accept_invalid_certs(true).tls_info(true).no_proxy().build().unwrap();
    let url = format!("https://localhost:{}/healthz", daemon.listen.hosts.port());
    let answer = client.get(url).send().await.unwrap();
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().unwrap();
    info.peer_certificate().unwrap().to_vec()
}

async fn listed(daemon: &Daemon, name: &str) -> Vec<Value> {
    let list = ask(daemon, "/admin/certificates").await;
    list["certificates"].as_array().unwrap().iter().filter(|it| it["name"] == name).cloned().collect()
}

/// A chosen password for the file must pass the rules for users' passwords.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weak_password_protects_no_key() {
    let daemon = Daemon::start();
    for weak in ["password", "alice2026", "codex-authd", "1234567890", "short"] {
        let body = json!({ "name": "alice2026", "password": weak });
        let answer = control(&daemon).post("http://control/admin/certificates").json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 422, "{weak}");
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["errors"]["password"].is_array(), "{answer}");
    }
    assert!(listed(&daemon, "alice2026").await.is_empty(), "nothing was issued");
    let body = json!({ "name": "alice2026", "password": PASSWORD });
    let answer = control(&daemon).post("http://control/admin/certificates").json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(listed(&daemon, "alice2026").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_by_command_with_its_user_and_the_old_one_holds() {
    let daemon = Daemon::start();
    add_user(&daemon, "vera@example.test", "viewer").await;
    let (first, second, third) =
        (daemon.admin_certificate("vera"), daemon.state.path().join("second"), daemon.state.path().join("third"));
    let old = listed(&daemon, "vera").await.remove(0)["fingerprint"].as_str().unwrap().to_owned();
    daemon.cli_json(&["certificates", "tie", &old, "vera@example.test"]);
    let renewed =
        daemon.cli_json(&["certificates", "renew", "vera", "--pem", second.to_str().unwrap(), "--days", "20"]);
    assert_eq!((&renewed["name"], &renewed["user"]), (&json!("vera"), &json!("vera@example.test")));

    let client = |directory: &Path| {
        let builder = daemon.client_builder().identity(identity(directory, "vera")).pool_max_idle_per_host(0);
        builder.http1_only().timeout(BOUND).build().unwrap()
    };
    for directory in [&first, &second] {
        let vera = client(directory);
        assert_eq!(vera.get(daemon.admin_url("/admin/hosts")).send().await.unwrap().status(), 200);
        let refused = vera.post(daemon.admin_url("/admin/hosts/register")).json(&json!({ "fqdn": "h.test" }));
        assert_eq!(refused.send().await.unwrap().status(), 403, "the new certificate has the role of a viewer");
    }
    // The name means the certificate that expires last. A fingerprint can name any of them. The old one is revoked on
    // request.
    let renew = ["certificates", "renew", &old[..12], "--pem", third.to_str().unwrap(), "--revoke"];
    daemon.cli_json(&renew);
    match client(&first).get(daemon.admin_url("/admin/hosts")).send().await {
        Err(error) => assert!(!error.is_timeout(), "{error}"),
        Ok(answer) => assert_eq!(answer.status(), 403, "the old one is revoked"),
    }
    assert_eq!(client(&third).get(daemon.admin_url("/admin/hosts")).send().await.unwrap().status(), 200);
    // If no file can be written, no certificate is issued or revoked.
    let nowhere = daemon.cli(&["certificates", "renew", "vera", "--out", "/proc/nowhere.p12", "--revoke"]);
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    assert_eq!(listed(&daemon, "vera").await.len(), 3);
    let again = daemon.cli(&["certificates", "renew", &old, "--pem", third.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("revoked"), "{again:?}");
    let states: Vec<Value> = listed(&daemon, "vera").await.iter().map(|it| it["state"].clone()).collect();
    assert_eq!(states, ["revoked", "expiring", "valid"]);
    let log = ask(&daemon, "/admin/audit?action=certificate.renew").await;
    let entries = log["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2, "{log}");
    assert!(entries.iter().all(|it| it["details"]["renews"] == *old && it["target"] == "vera"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_sees_that_the_certificate_ends_and_renews_it_in_the_dashboard() {
    let daemon = Daemon::start();
    let directory = daemon.state.path().join("ada");
    daemon.cli_json(&["admin-cert", "ada", "--pem", directory.to_str().unwrap(), "--days", "20"]);
    let ada = daemon.client_builder().identity(identity(&directory, "ada")).redirect(Policy::none()).build().unwrap();
    let page = async |path: &str| {
        let answer = ada.get(daemon.admin_url(path)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert!(page("/").await.1.contains("Your certificate ends"));
    let elsewhere = daemon.admin().get(daemon.admin_url("/")).send().await.unwrap().text().await.unwrap();
    assert!(!elsewhere.contains("Your certificate ends"), "other admins see no warning");

    let old = listed(&daemon, "ada").await.remove(0)["fingerprint"].as_str().unwrap().to_owned();
    let (status, shown) = page("/certificates").await;
    assert!(status == 200 && shown.contains(&old) && shown.contains("(yours)"), "{shown}");
    let token = token_in(&shown).to_owned();
    let renew = async |more: &[(&str, &str)]| {
        let form: Vec<_> =
            [("token", &*token), ("fingerprint", &*old)].into_iter().chain(more.iter().copied()).collect();
        ada.post(daemon.admin_url("/certificates")).form(&form).send().await.unwrap()
    };
    assert_eq!(renew(&[("revoke", "yes")]).await.status(), 422, "that would cut this very connection");
    assert_eq!(listed(&daemon, "ada").await.len(), 1);
    let answer = renew(&[]).await;
    assert_eq!(answer.status(), 303);
    let to = answer.headers()["location"].to_str().unwrap().to_owned();
    let (_, shown) = page(&to).await;
    let password = shown.split("<code id=\"password\">").nth(1).unwrap().split('<').next().unwrap();
    let file = shown.split("href=\"/certificates/file/").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(page(&to).await.0, 410, "shown once");

    let other = daemon.admin().get(daemon.admin_url(&format!("/certificates/file/{file}"))).send().await.unwrap();
    assert_eq!(other.status(), 410, "another admin gets the new certificate");
    let download = ada.get(daemon.admin_url(&format!("/certificates/file/{file}"))).send().await.unwrap();
    assert_eq!(download.headers()["content-disposition"], "attachment; filename=\"ada.p12\"");
    assert_eq!(download.headers()["cache-control"], "no-store, must-revalidate");
    let bytes = download.bytes().await.unwrap();
    assert_eq!(page(&format!("/certificates/file/{file}")).await.0, 410, "given once");

    let path = daemon.state.path().join("ada.p12");
    std::fs::write(&path, &bytes).unwrap();
    let opened = std::process::Command::new("openssl")
        .args(["pkcs12", "-nodes", "-passin", &format!("pass:{password}"), "-in"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(opened.status.success(), "{opened:?}");
    let renewed = reqwest::Identity::from_pem(&opened.stdout).unwrap();
    let renewed = daemon.client_builder().identity(renewed).build().unwrap();
    let answer = renewed.get(daemon.admin_url("/")).send().await.unwrap().text().await.unwrap();
    assert!(answer.contains(">ada<") && !answer.contains("Your certificate ends"), "{answer}");
    assert_eq!(page("/").await.0, 200, "the old certificate is still valid");
    // A renewal with `revoke` revokes the old certificate.
    let token = token_in(&answer_of(&renewed, &daemon.admin_url("/certificates")).await).to_owned();
    let form = [("token", &*token), ("fingerprint", &*old), ("revoke", "yes")];
    let answer = renewed.post(daemon.admin_url("/certificates")).form(&form).send().await.unwrap();
    assert_eq!(answer.status(), 200, "the answer redirects to the page that shows it");
    let states: Vec<Value> = listed(&daemon, "ada").await.iter().map(|it| it["state"].clone()).collect();
    assert_eq!(states, ["revoked", "valid", "valid"]);
}

async fn answer_of(client: &reqwest::Client, url: &str) -> String {
    client.get(url).send().await.unwrap().text().await.unwrap()
}
