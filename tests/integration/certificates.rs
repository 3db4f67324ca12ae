//! The operator's own certificate: shown to hosts, pinned by installers, read again on SIGHUP.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};

use crate::support::daemon::{BOUND, Daemon, install_provider, pause};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_own_certificate_is_shown_pinned_and_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let files = (directory.path().join("own.crt"), directory.path().join("own.key"));
    let first = own_certificate(&files);
    let daemon = Daemon::start_with(&[
        ("TLS__CERTIFICATE", files.0.to_str().unwrap()),
        ("TLS__PRIVATE_KEY", files.1.to_str().unwrap()),
    ]);
    assert_eq!(shown(&daemon).await, first);
    let before = daemon.register(&daemon.admin(), "h1.test").await;
    let script = fetch(&daemon, &before.command).await;
    // Within the installer the wrapper is one quoted word, so each of its quotes stands as '\''.
    assert!(script.contains(r"CDX_CA_PEM='\'''\''"), "hosts trust what their system trusts");
    assert!(!script.contains("BEGIN CERTIFICATE"));

    let second = own_certificate(&files);
    daemon.signal(Signal::SIGHUP);
    let started = std::time::Instant::now();
    while shown(&daemon).await != second {
        assert!(started.elapsed() < BOUND, "the certificate was not read again:\n{}", daemon.log());
        pause();
    }
    let after = daemon.register(&daemon.admin(), "h1.test").await;
    let pin = |command: &str| command.split('"').nth(1).unwrap().to_owned();
    assert_ne!(pin(&before.command), pin(&after.command), "the pin is that of the key that is shown");
    fetch(&daemon, &after.command).await;

    // A file that cannot be used changes nothing.
    std::fs::write(&files.1, "no key").unwrap();
    daemon.signal(Signal::SIGHUP);
    while !daemon.log().contains("the certificates in force stay") {
        assert!(started.elapsed() < BOUND, "{}", daemon.log());
        pause();
    }
    assert_eq!(shown(&daemon).await, second);
}

/// Runs the printed command up to the pipe: curl checks the pin, and gives the script.
async fn fetch(daemon: &Daemon, command: &str) -> String {
    let curl = command.strip_suffix(" | bash").unwrap().to_owned();
    let output = tokio::process::Command::new("bash").args(["-c", &curl]).output().await.unwrap();
    assert!(output.status.success(), "{curl}: {}\n{}", String::from_utf8_lossy(&output.stderr), daemon.log());
    String::from_utf8(output.stdout).unwrap()
}

/// A self-signed certificate and its key, written to the files; the DER of the certificate.
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

/// The certificate that a new connection of a host is shown.
async fn shown(daemon: &Daemon) -> Vec<u8> {
    install_provider();
    let client =
        reqwest::Client::builder().danger_accept_invalid_certs(true).tls_info(true).no_proxy().build().unwrap();
    let answer = client.get(daemon.hosts_url("/healthz")).send().await.unwrap();
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().unwrap();
    info.peer_certificate().unwrap().to_vec()
}
