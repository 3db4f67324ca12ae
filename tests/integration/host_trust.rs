//! Switching `[tls]` on and off with real daemons, cdx and curl. No host is cut off without need, and `check-config`
//! counts the hosts that would be cut off.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::database::with_key_of;
use crate::doctor::{a_free_port, doctor};
use crate::support::authority::authority;
use crate::support::daemon::{BOUND, Daemon, auth_json, install_provider, pause};
use crate::support::eventually;
use crate::support::host::{Host, Ran, native_program};
use crate::support::mariadb::MariaDb;

const TRUST: &str = "trust of hosts";
/// The exit code of cdx if it does not trust the daemon.
const UNTRUSTED: i32 = 76;

/// A daemon with a name, and an operator's certificate for that name. The hosts' machines trust its authority.
struct Fleet {
    daemon: Daemon,
    port: u16,
    certificate: PathBuf,
    key: PathBuf,
    machine_ca: PathBuf,
}

impl Fleet {
    /// A fleet whose daemon is not started yet.
    fn new() -> Self {
        Self::of(Daemon::prepare(&[]))
    }

    fn of(mut daemon: Daemon) -> Self {
        daemon.unset("LISTEN__HOSTS");
        let port = a_free_port().port();
        let file = |name: &str| daemon.state.path().join(name);
        let (ca, leaf, key) = authority("localhost");
        for (name, text) in [("machine-ca.pem", ca), ("own.crt", leaf), ("own.key", key)] {
            std::fs::write(file(name), text).unwrap();
        }
        let (machine_ca, certificate, key) = (file("machine-ca.pem"), file("own.crt"), file("own.key"));
        let mut fleet = Self { daemon, port, certificate, key, machine_ca };
        fleet.set("LISTEN__HOSTS", &format!("127.0.0.1:{port}"));
        fleet.set("PUBLIC_BASE_URL", &format!("https://localhost:{port}"));
        fleet
    }

    fn set(&mut self, name: &str, value: &str) {
        let name = format!("CODEX_AUTHD_{name}");
        self.daemon.environment.retain(|(known, _)| *known != name);
        self.daemon.environment.push((name, value.into()));
    }

    fn set_tls(&mut self, switch: &str) {
        let (certificate, key) = (self.certificate.display().to_string(), self.key.display().to_string());
        self.set("TLS__CERTIFICATE", &certificate);
        self.set("TLS__PRIVATE_KEY", &key);
        self.set("TLS__SWITCH", switch);
    }

    fn take_tls_out(&mut self) {
        self.daemon.environment.retain(|(name, _)| !name.starts_with("CODEX_AUTHD_TLS__"));
    }

    fn start(&mut self) {
        self.daemon.launch();
    }

    fn restart(&mut self) {
        assert!(self.daemon.stop().success(), "{}", self.daemon.log());
        self.start();
    }

    fn upload(&self) {
        let file = self.daemon.state.path().join("auth.json");
        std::fs::write(&file, auth_json("2025-11-20T09:27:43.373506211Z", 1).to_string()).unwrap();
        self.daemon.cli_json(&["auth", "upload", file.to_str().unwrap()]);
    }

    /// Installs a host by the printed command, as an ordinary user. Its machine trusts the operator's authority.
    fn install(&self, name: &str) -> Host {
        let mut host = Host::bare();
        host.env("CURL_CA_BUNDLE", self.machine_ca.to_str().unwrap());
        host.write_program("bin/id", "#!/bin/sh\necho 1000\n", 0o755);
        host.write_program("bin/codex", "#!/bin/sh\n[ \"$1\" != --version ] || echo codex-cli 0.1.2\n", 0o755);
        let made = self.daemon.cli_json(&["hosts", "add", name]);
        let command = made["installer"]["command"].as_str().unwrap();
        let ran = Ran::from(host.command("bash").args(["-c", command]).output().unwrap());
        assert_eq!(ran.code, Some(0), "{ran:?}\n{}", self.daemon.log());
        host
    }

    /// Installs a cdx as an earlier release baked it, which trusts one kind of certificate, and lets it call.
    fn make_old(&self, host: &Host, trusts_system: bool) {
        let cdx = std::fs::read_to_string(host.cdx_file()).unwrap();
        let with = |cdx: &str, name: &str, value: &str| {
            let begin = cdx.find(&format!("\n{name}='")).unwrap() + name.len() + 3;
            let end = begin + cdx[begin..].find('\'').unwrap();
            format!("{}{value}{}", &cdx[..begin], &cdx[end..])
        };
        let cdx = with(&with(&cdx, "CDX_WRAPPER_VERSION", "2026.11.29-02"), "CDX_SYSTEM_CA", "");
        let cdx = if trusts_system { with(&cdx, "CDX_CA_PEM", "") } else { cdx };
        host.write_program(".local/bin/cdx", &cdx, 0o700);
        self.syncs(host);
    }

    fn syncs(&self, host: &Host) {
        let ran = host.run(&["--sync"]);
        assert_eq!(ran.code, Some(0), "{ran:?}\n{}", self.daemon.log());
    }

    fn is_cut_off(&self, host: &Host) {
        let ran = host.run(&["--sync"]);
        assert_eq!(ran.code, Some(UNTRUSTED), "{ran:?}\n{}", self.daemon.log());
    }

    fn updates(&self, host: &Host) {
        let ran = host.run(&["--update"]);
        assert!(ran.err.contains("cdx is now "), "{ran:?}");
    }

    fn check_config(&self, more: &[&str]) -> Ran {
        Ran::from(self.daemon.cli(&[&["check-config"], more].concat()))
    }

    /// Whether a client that asks for this name gets the operator's certificate.
    fn shows_operators(&self, name: &str) -> bool {
        let pem = std::fs::read(&self.certificate).unwrap();
        let own = codex_authd::pki::spki_pin_of_certificate(std::str::from_utf8(&pem).unwrap()).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-q", "-sS", "-k", "--pinnedpubkey", &format!("sha256//{own}")]);
        let output = curl.arg(format!("https://{name}:{}/healthz", self.port)).stderr(Stdio::piped()).output().unwrap();
        match output.status.code() {
            Some(0) => true,
            // curl's code for another key.
            Some(90) => false,
            _ => panic!("{output:?}"),
        }
    }

    fn until_operators_is_shown(&self) {
        eventually("the operator's certificate is shown", || self.shows_operators("localhost").then_some(()));
    }
}

#[test]
fn a_prepared_switch_cuts_nobody_off_at_any_moment() {
    let mut fleet = Fleet::new();
    fleet.start();
    fleet.upload();
    let hosts: Vec<Host> = ["a.test", "b.test", "c.test"].map(|name| fleet.install(name)).into();
    hosts.iter().for_each(|host| fleet.make_old(host, false));
    doctor(&fleet.daemon, &[]).is(TRUST, "good", "accepts", "");

    fleet.set_tls("when-safe");
    let said = fleet.check_config(&[]);
    assert!(said.code == Some(0) && said.out.contains("3 host(s) (a.test, b.test, c.test)"), "{said:?}");
    fleet.restart();
    assert!(!fleet.shows_operators("localhost"), "no host would trust it");
    let told =
        eventually("it is logged", || Some(fleet.daemon.log()).filter(|log| log.contains("certificate_held_back")));
    assert!(told.contains("3 host(s) (a.test, b.test, c.test)"), "{told}");
    doctor(&fleet.daemon, &[]).is(TRUST, "weak", "3 host(s) (a.test, b.test, c.test)", "cdx --update");

    let (rounds, ends) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (fleet, rounds, ends) = (&fleet, &rounds, &ends);
        for host in &hosts {
            scope.spawn(move || {
                while !ends.load(Ordering::SeqCst) {
                    fleet.syncs(host);
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Ends the callers too if something fails here.
        let ended = Ended(ends);
        for (left, host) in hosts.iter().enumerate().map(|(number, host)| (2 - number, host)) {
            assert!(!fleet.shows_operators("localhost"), "{left}");
            fleet.updates(host);
            if left > 0 {
                // It counts when its next call has reported it.
                let told = format!("{left} host(s) (");
                eventually("the daemon no longer waits for it", || {
                    doctor(&fleet.daemon, &[]).text.contains(&told).then_some(())
                });
            }
        }
        fleet.until_operators_is_shown();
        let before = rounds.load(Ordering::SeqCst);
        eventually("every host has called since", || (rounds.load(Ordering::SeqCst) >= before + 9).then_some(()));
        drop(ended);
    });
    doctor(&fleet.daemon, &[]).is(TRUST, "good", "accepts", "");
    assert!(fleet.daemon.log().contains("certificate_switched"));
    let remembered = std::fs::read_dir(hosts[0].file(".cache/cdx")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read_to_string(remembered.join("trust")).unwrap(), "system\n");
    // A client that uses an address sends no name, and still gets our certificate.
    assert!(!fleet.shows_operators("127.0.0.1"));
    // The printed pin is that of the new certificate.
    let new = fleet.install("d.test");
    fleet.syncs(&new);

    // An old cdx that appears afterwards does not bring our certificate back, neither while the daemon runs nor at a
    // start.
    let key = fleet.daemon.cli_json(&["hosts", "add", "old.test"])["host"]["api_key"].as_str().unwrap().to_owned();
    let body = format!(
        r#"{{"command":"retrieve","digest":"{}","last_refresh":"2000-01-01T00:00:00Z","wrapper_version":"2026.11.29-02"}}"#,
        "0".repeat(64)
    );
    let ca = fleet.daemon.state_dir().join("pki/server-ca.crt");
    let mut call = Command::new("curl");
    call.args(["-q", "-sS", "--cacert", ca.to_str().unwrap(), "-H", &format!("X-API-Key: {key}"), "-d", &body]);
    call.args(["-H", "Content-Type: application/json", &format!("https://127.0.0.1:{}/auth", fleet.port)]);
    let called = Ran::from(call.output().unwrap());
    assert!(called.code == Some(0) && called.out.contains("\"status\""), "{called:?}");
    doctor(&fleet.daemon, &[]).is(TRUST, "missing", "1 host(s) (old.test)", "tls.switch = \"prepare\"");
    fleet.restart();
    assert!(fleet.shows_operators("localhost"));
    assert!(fleet.daemon.log().contains("hosts_cut_off"));
    assert_eq!(fleet.check_config(&[]).code, Some(0), "that host was cut off before");
    hosts.iter().for_each(|host| fleet.syncs(host));
}

/// The native program has the authorities in its configuration, which an update renews.
#[test]
fn a_switch_waits_for_native_hosts_as_well() {
    let mut fleet = Fleet::new();
    fleet.daemon.set_native_program(Some(native_program()));
    fleet.start();
    fleet.upload();
    let hosts: Vec<Host> = ["a.test", "b.test"].map(|name| fleet.install(name)).into();
    fleet.set_tls("when-safe");
    fleet.restart();
    assert!(!fleet.shows_operators("localhost"), "no host would trust it");
    doctor(&fleet.daemon, &[]).is(TRUST, "weak", "2 host(s) (a.test, b.test)", "cdx --update");
    for host in &hosts {
        assert!(!fleet.shows_operators("localhost"));
        let before = std::fs::read_to_string(host.host_toml()).unwrap();
        assert!(before.contains("system_ca = false"), "{}", host.host_toml().display());
        let ran = host.run(&["--update"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(std::fs::read_to_string(host.host_toml()).unwrap().contains("system_ca = true"), "{ran:?}");
        fleet.syncs(host);
    }
    fleet.until_operators_is_shown();
    hosts.iter().for_each(|host| fleet.syncs(host));
    doctor(&fleet.daemon, &[]).is(TRUST, "good", "accepts", "");
    let trust = hosts[0].state_file().with_file_name("trust");
    assert_eq!(std::fs::read_to_string(trust).unwrap(), "system\n");
}

/// Tells threads to end when the scope is left.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_unprepared_switch_waits_is_forced_and_taken_back() {
    let mut fleet = Fleet::new();
    fleet.start();
    fleet.upload();
    let hosts: Vec<Host> = ["a.test", "b.test"].map(|name| fleet.install(name)).into();
    hosts.iter().for_each(|host| fleet.make_old(host, false));
    // The daemon does not wait for hosts that were never installed or are disabled.
    fleet.daemon.cli_json(&["hosts", "add", "never.test"]);

    fleet.set_tls("when-safe");
    fleet.restart();
    hosts.iter().for_each(|host| fleet.syncs(host));
    fleet.set_tls("now");
    let refused = fleet.check_config(&[]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("2 host(s) (a.test, b.test) would be cut off"), "{refused:?}");
    assert!(refused.err.contains("when-safe") && refused.err.contains("--force"), "{refused:?}");
    let forced = fleet.check_config(&["--force"]);
    assert!(forced.code == Some(0) && forced.out.contains("2 host(s)"), "{forced:?}");
    // The same without a daemon to ask, and for a proxy that takes over TLS.
    assert!(fleet.daemon.stop().success());
    assert_eq!(fleet.check_config(&[]).code, Some(1));
    fleet.take_tls_out();
    fleet.set("LISTEN__HOSTS_TLS", "false");
    let refused = fleet.check_config(&[]);
    assert!(refused.code == Some(1) && refused.err.contains("tls.switch = \"prepare\""), "{refused:?}");
    fleet.set("LISTEN__HOSTS_TLS", "true");
    assert_eq!(fleet.check_config(&[]).code, Some(0), "nothing changes for hosts");

    fleet.set_tls("now");
    fleet.start();
    assert!(fleet.shows_operators("localhost"));
    assert!(fleet.daemon.log().contains("hosts_cut_off"));
    hosts.iter().for_each(|host| fleet.is_cut_off(host));
    doctor(&fleet.daemon, &[]).is(TRUST, "missing", "2 host(s) (a.test, b.test)", "tls.switch = \"prepare\"");

    // Goes back, until the hosts have learnt it.
    fleet.set_tls("prepare");
    fleet.restart();
    hosts.iter().for_each(|host| fleet.syncs(host));
    doctor(&fleet.daemon, &[]).is(TRUST, "weak", "2 host(s) (a.test, b.test)", "cdx --update");
    fleet.updates(&hosts[0]);
    fleet.syncs(&hosts[0]);
    fleet.daemon.cli_json(&["hosts", "disable", "b.test"]);
    fleet.set_tls("when-safe");
    fleet.restart();
    assert!(fleet.shows_operators("localhost"), "no host is left: {}", fleet.daemon.log());
    fleet.syncs(&hosts[0]);

    // Off again: a host with a current cdx trusts our certificate as well.
    fleet.take_tls_out();
    assert_eq!(fleet.check_config(&[]).code, Some(0));
    fleet.restart();
    fleet.syncs(&hosts[0]);
    doctor(&fleet.daemon, &[]).is(TRUST, "good", "accepts", "");
}

#[test]
fn taking_tls_out_counts_who_trusts_the_machine_alone() {
    let mut fleet = Fleet::new();
    // A fleet that an earlier release installed with [tls].
    fleet.set_tls("when-safe");
    fleet.start();
    fleet.upload();
    let host = fleet.install("a.test");
    fleet.make_old(&host, true);
    assert!(fleet.shows_operators("localhost"));

    fleet.take_tls_out();
    let refused = fleet.check_config(&[]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("1 host(s) (a.test) would be cut off"), "{refused:?}");
    fleet.restart();
    assert!(fleet.daemon.log().contains("hosts_cut_off"));
    doctor(&fleet.daemon, &[]).is(TRUST, "missing", "1 host(s) (a.test)", "cdx --update");
    fleet.is_cut_off(&host);

    fleet.set_tls("when-safe");
    fleet.restart();
    assert!(fleet.shows_operators("localhost"));
    fleet.updates(&host);
    fleet.syncs(&host);
    fleet.take_tls_out();
    assert_eq!(fleet.check_config(&[]).code, Some(0));
    fleet.restart();
    fleet.syncs(&host);
}

#[test]
fn hosts_that_were_installed_under_another_name_go_on() {
    let mut fleet = Fleet::new();
    fleet.set("PUBLIC_BASE_URL", &format!("https://old.localhost:{}", fleet.port));
    fleet.start();
    fleet.upload();
    let host = fleet.install("a.test");
    // The operator's certificate is for another name, and no host needs it.
    fleet.set("PUBLIC_BASE_URL", &format!("https://localhost:{}", fleet.port));
    fleet.set_tls("now");
    fleet.restart();
    assert!(fleet.shows_operators("localhost") && !fleet.shows_operators("old.localhost"));
    fleet.syncs(&host);
    let new = fleet.install("b.test");
    fleet.syncs(&new);
    doctor(&fleet.daemon, &[]).is("certificate", "good", "holds until", "");

    fleet.set("PUBLIC_BASE_URL", &format!("https://other.localhost:{}", fleet.port));
    fleet.restart();
    doctor(&fleet.daemon, &[]).is("tls.certificate", "weak", "not for other.localhost", "another public_base_url");
    let other = fleet.install("c.test");
    fleet.syncs(&other);
}

#[test]
fn a_name_that_hosts_were_given_by_an_update_stays_in_the_certificate() {
    let mut fleet = Fleet::new();
    fleet.start();
    fleet.upload();
    let host = fleet.install("a.test");
    // No installer is printed with the second name.
    for name in ["second.localhost", "third.localhost"] {
        fleet.set("PUBLIC_BASE_URL", &format!("https://{name}:{}", fleet.port));
        fleet.restart();
        fleet.syncs(&host);
        fleet.updates(&host);
        fleet.syncs(&host);
    }
    fleet.set("PUBLIC_BASE_URL", &format!("https://localhost:{}", fleet.port));
    fleet.restart();
    fleet.syncs(&host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_on_one_database_switch_together() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let node = || Fleet::of(Daemon::prepare(&[("DATABASE__URL", url.as_str())]));
    let (mut one, mut two) = (node(), node());
    one.start();
    with_key_of(&one.daemon, &two.daemon);
    one.upload();
    let host = one.install("a.test");
    one.make_old(&host, false);
    // The same certificate on both.
    for (from, to) in [(&one.certificate, &two.certificate), (&one.key, &two.key)] {
        std::fs::copy(from, to).unwrap();
    }
    one.set_tls("when-safe");
    two.set_tls("when-safe");
    one.restart();
    two.start();
    for fleet in [&one, &two] {
        assert!(!fleet.shows_operators("localhost"), "{}", fleet.daemon.log());
    }
    let trust = || one.daemon.cli_json(&["audit", "list"]).to_string().matches("host_trust.system").count();
    assert_eq!(trust(), 1, "one of the two recorded it");

    // The host fetches its wrapper from the second node; the first learns it from the records.
    let key = api_key(&host);
    install_provider();
    let client = two.daemon.client_builder().build().unwrap();
    let address = format!("https://127.0.0.1:{}/wrapper/download", two.port);
    let answer = client.get(&address).header("X-API-Key", &key).timeout(BOUND).send().await.unwrap();
    let cdx = answer.text().await.unwrap();
    assert!(cdx.contains("\nCDX_SYSTEM_CA='1'\n"));
    host.write_program(".local/bin/cdx", &cdx, 0o700);
    // It counts when the host reports it.
    assert!(!one.shows_operators("localhost") && !two.shows_operators("localhost"));
    let version = cdx.split("\nCDX_WRAPPER_VERSION='").nth(1).unwrap().split('\'').next().unwrap();
    let body = serde_json::json!({
        "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2000-01-01T00:00:00Z", "wrapper_version": version,
    });
    let call = client.post(format!("https://127.0.0.1:{}/auth", two.port)).header("X-API-Key", &key).json(&body);
    assert_eq!(call.send().await.unwrap().status(), 200);
    let started = std::time::Instant::now();
    while !(one.shows_operators("localhost") && two.shows_operators("localhost")) {
        assert!(started.elapsed() < BOUND, "{}\n{}", one.daemon.log(), two.daemon.log());
        pause();
    }
    // The first node reads the second's report from the records.
    eventually("both know that no host is left", || {
        let counts = [&one, &two].map(|fleet| doctor(&fleet.daemon, &[]).text.contains("each accepts the certificate"));
        (counts == [true, true]).then_some(())
    });
}

/// The key that is baked into a host's cdx.
fn api_key(host: &Host) -> String {
    let cdx = std::fs::read_to_string(host.cdx_file()).unwrap();
    cdx.split("\nCDX_API_KEY='").nth(1).unwrap().split('\'').next().unwrap().to_owned()
}
