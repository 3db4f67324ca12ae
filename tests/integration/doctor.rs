//! `codex-authd doctor`: on a healthy machine, and with each kind of real damage.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

use crate::support::daemon::{Daemon, auth_json};
use crate::support::disk::{Disk, Kind};
use crate::support::mariadb::MariaDb;
use crate::support::skip::skipped;
use crate::support::{eventually, now};

pub struct Found {
    /// The exit code.
    code: i32,
    checks: Vec<Value>,
    pub text: String,
}

impl Found {
    /// Verdict, finding and remedy of the first check of this name that is not good, otherwise of the first.
    #[track_caller]
    fn of(&self, name: &str) -> (&str, &str, &str) {
        let all: Vec<&Value> = self.checks.iter().filter(|check| check["name"] == name).collect();
        let check = all.iter().find(|check| check["verdict"] != "good").or(all.first());
        let check = check.unwrap_or_else(|| panic!("there is no check {name}: {}", self.text));
        let text = |member: &str| check[member].as_str().unwrap_or_default();
        (text("verdict"), text("found"), text("remedy"))
    }

    #[track_caller]
    pub fn is(&self, name: &str, verdict: &str, found: &str, remedy: &str) {
        let told = self.of(name);
        assert!(told.0 == verdict && told.1.contains(found) && told.2.contains(remedy), "{told:?}");
    }

    /// The names of all checks that are not good.
    fn not_good(&self) -> Vec<&str> {
        self.checks
            .iter()
            .filter(|check| check["verdict"] != "good")
            .map(|check| check["name"].as_str().unwrap())
            .collect()
    }
}

pub fn doctor(daemon: &Daemon, more: &[&str]) -> Found {
    let output = daemon.cli(&[&["doctor", "--json"], more].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let found: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    let code = output.status.code().unwrap();
    let missing = found["checks"].as_array().unwrap().iter().any(|check| check["verdict"] == "missing");
    assert_eq!((code, found["works"].as_bool().unwrap()), (i32::from(missing), !missing), "{text}");
    let checks = found["checks"].as_array().unwrap().clone();
    assert!(checks.iter().all(|check| check["verdict"] == "good" || check["remedy"].is_string()), "{text}");
    Found { code, checks, text }
}

pub fn a_free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn upload(daemon: &Daemon) {
    let file = daemon.state.path().join("auth.json");
    std::fs::write(&file, auth_json("2025-11-20T09:27:43.373506211Z", 1).to_string()).unwrap();
    daemon.cli_json(&["auth", "upload", file.to_str().unwrap()]);
}

#[test]
fn a_healthy_machine_has_nothing_to_mend_and_no_secret_is_told() {
    let address = a_free_port();
    let mut daemon =
        Daemon::prepare(&[("LISTEN__HOSTS", &address.to_string()), ("PUBLIC_BASE_URL", &format!("https://{address}"))]);
    daemon.launch();
    daemon.admin_certificate("alice");
    upload(&daemon);
    daemon.cli_json(&["backup", daemon.state.path().join("backup").to_str().unwrap()]);
    let found = doctor(&daemon, &[]);
    println!("{}", String::from_utf8_lossy(&daemon.cli(&["doctor"]).stdout));
    assert_eq!((found.not_good(), found.code), (Vec::new(), 0), "{}", found.text);
    for name in [
        "configuration",
        "state directory",
        "disk",
        "clock",
        "port of hosts",
        "port of admins",
        "certificate",
        "public_base_url",
        "daemon",
        "records",
        "server authority",
        "client authority",
        "admins",
        "login",
        "runner",
    ] {
        found.of(name);
    }
    for secret in ["Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6-1", "rt_abc/def-1", "BEGIN"] {
        assert!(!found.text.contains(secret), "{}", found.text);
    }
}

#[test]
fn while_no_daemon_runs_its_state_is_told_of_all_the_same() {
    let mut daemon = Daemon::prepare(&[]);
    let found = doctor(&daemon, &[]);
    found.is("state directory", "weak", "no daemon has run yet", "systemctl start");
    found.is("daemon", "missing", "does not run", "systemctl start codex-authd");
    assert!(!daemon.state_dir().exists(), "the command made files");

    daemon.launch();
    assert!(daemon.stop().success());
    let found = doctor(&daemon, &[]);
    found.is("daemon", "missing", "does not run", "systemctl start codex-authd");
    found.is("login", "weak", "no login yet", "codex-authd auth upload");
    found.is("admins", "weak", "nobody has a certificate", "codex-authd admin-cert");
    found.is("state directory", "good", "format 5", "");
    found.is("checksums", "good", "rows of the records", "");
    found.is("records", "good", "embedded", "");
}

#[test]
fn a_state_that_cannot_be_opened_is_a_finding_and_not_the_end() {
    let mut daemon = Daemon::prepare(&[]);
    daemon.launch();
    assert!(daemon.stop().success());
    let key = daemon.state_dir().join("master.key");
    std::fs::rename(&key, key.with_extension("away")).unwrap();
    let found = doctor(&daemon, &[]);
    found.is("state", "missing", "master key", "journalctl");
    found.is("disk", "good", "MiB are free", "");
    std::fs::write(daemon.state_dir().join("format"), "99\n").unwrap();
    doctor(&daemon, &[]).is("state directory", "missing", "its format is 99", "before-format-99");
}

#[test]
fn a_configuration_that_is_refused_is_told_with_the_nearest_key() {
    let daemon = Daemon::prepare(&[]);
    let file = daemon.state.path().join("config.toml");
    std::fs::write(&file, "[limits]\nglobal_per_minut = 5\n").unwrap();
    let found = doctor(&daemon, &["--config", file.to_str().unwrap()]);
    found.is("configuration", "missing", "did you mean 'limits.global_per_minute'", "check-config");
}

#[test]
fn a_clock_behind_the_records_is_told() {
    let mut daemon = Daemon::prepare(&[]);
    daemon.launch();
    let file = std::fs::File::options().write(true).open(daemon.state_dir().join("records/rows.redb")).unwrap();
    file.set_modified(SystemTime::from(now()) + Duration::from_secs(86_400)).unwrap();
    doctor(&daemon, &[]).is("clock", "missing", "it is behind by 23 hours", "timedatectl set-ntp true");
}

#[test]
fn a_full_disk_is_told_while_the_daemon_runs_and_while_it_does_not() {
    let mut daemon = Daemon::prepare(&[]);
    let Some(disk) = Disk::mount(Kind::Tmpfs, &daemon.state_dir(), 48) else { return };
    daemon.launch();
    doctor(&daemon, &[]).is("disk", "weak", "MiB are free", "df -h");
    disk.fill();
    // The file of the records may still have room for some changes.
    let mut hosts = 0;
    eventually("a change does not fit", || {
        hosts += 1;
        let added = daemon.cli(&["hosts", "add", &format!("h{hosts}.test")]);
        (!added.status.success()).then_some(())
    });
    let found = doctor(&daemon, &[]);
    found.is("disk", "missing", "0 MiB are free", "df -h");
    eventually("the daemon notices it", || {
        doctor(&daemon, &[])
            .checks
            .iter()
            .any(|check| check["name"] == "records" && check["verdict"] == "missing")
            .then_some(())
    });
    daemon.kill();
    let found = doctor(&daemon, &[]);
    found.is("disk", "missing", "0 MiB are free", "df -h");
    found.is("state", "missing", "No space left", "");
}

#[test]
fn a_taken_port_is_told_with_who_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let daemon = Daemon::prepare(&[("LISTEN__ADMIN", &address)]);
    let found = doctor(&daemon, &[]);
    found.is("port of admins", "missing", &format!("process {}", std::process::id()), "choose another address");
}

#[test]
fn a_certificate_that_has_ended_is_told_and_so_is_a_name_it_is_not_for() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("own.crt"), directory.path().join("own.key"));
    let write = |names: &[&str], ends: time::OffsetDateTime| {
        let pair = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = ends;
        std::fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
    };
    let address = a_free_port();
    let settings = [
        ("LISTEN__HOSTS", address.to_string()),
        ("PUBLIC_BASE_URL", format!("https://{address}")),
        ("TLS__CERTIFICATE", certificate.display().to_string()),
        ("TLS__PRIVATE_KEY", key.display().to_string()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    write(&["elsewhere.test"], now() + Duration::from_secs(90 * 86_400));
    let mut daemon = Daemon::prepare(&settings);
    daemon.launch();
    let found = doctor(&daemon, &[]);
    found.is("certificate", "good", "holds until", "");
    found.is("public_base_url", "good", "a certificate for 127.0.0.1", "");
    found.is("tls.certificate", "weak", "not for 127.0.0.1", "another public_base_url");
    assert!(daemon.stop().success());

    write(&["127.0.0.1"], now() - Duration::from_secs(86_400));
    doctor(&daemon, &[]).is("tls.certificate", "missing", "ended", "systemctl reload codex-authd");
    std::fs::write(&key, "no key").unwrap();
    doctor(&daemon, &[]).is("tls.certificate", "missing", "key", "readable by the daemon's user");
}

#[test]
fn a_database_that_was_stopped_is_told_since_when() {
    let mut server = MariaDb::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = runtime.block_on(server.create("authd"));
    let mut daemon = Daemon::prepare(&[("DATABASE__URL", &url), ("DATABASE__TIMEOUT_SECONDS", "2")]);
    daemon.launch();
    // The daemon does not start on hot state without hosts.
    daemon.cli_json(&["hosts", "add", "h.test"]);
    let found = doctor(&daemon, &[]);
    found.is("records", "good", "tables of migration", "");
    found.is("database clock", "good", "agrees", "");
    server.end();
    let told = eventually("the time of the failure is shown", || {
        let found = doctor(&daemon, &[]);
        found.of("records").1.contains("degraded since").then_some(found)
    });
    told.is("records", "missing", "the database is not available", "start the database");
    daemon.kill();
    let found = doctor(&daemon, &[]);
    found.is("state", "missing", "cannot start", "start the database");
}

#[test]
fn no_codex_and_an_upstream_that_refuses_or_hangs_are_told_and_keep_nothing_from_working() {
    let refuses = a_free_port();
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut daemon = Daemon::prepare(&[
        ("RUNNER__ENABLED", "true"),
        ("RUNNER__CODEX", "/nowhere/codex"),
        ("UPSTREAM__TOKEN_URL", &format!("http://{refuses}/oauth/token")),
        ("UPSTREAM__RELEASES_URL", &format!("http://{}/latest", hangs.local_addr().unwrap())),
        ("RUNNER__EGRESS", &refuses.to_string()),
    ]);
    daemon.launch();
    let found = doctor(&daemon, &[]);
    assert_eq!(found.code, 0, "{}", found.text);
    found.is("runner codex", "weak", "there is no Codex at /nowhere/codex", "npm install -g @openai/codex");
    found.is("token_url", "weak", "no connection", "permit this connection");
    found.is("releases_url", "weak", "no answer in time", "permit this connection");
}

#[test]
fn a_file_of_somebody_else_among_the_stores_is_told() {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can change the owner of a file");
        return;
    }
    let mut daemon = Daemon::prepare(&[]);
    daemon.launch();
    assert!(daemon.stop().success());
    let give = |path: &Path| std::os::unix::fs::chown(path, Some(4711), Some(4711)).unwrap();
    give(&daemon.state_dir());
    let found = doctor(&daemon, &[]);
    found.is("state directory", "missing", "do not belong to the daemon's user 4711, such as", "chown -R 4711:4711");
}

/// A machine whose systemd returns `answer` for the unit.
fn with_systemd(daemon: &Daemon, arguments: &[&str], answer: &str) -> Command {
    let directory = daemon.state.path().join("bin");
    std::fs::create_dir_all(&directory).unwrap();
    let program = directory.join("systemctl");
    std::fs::write(directory.join("answer"), answer).unwrap();
    std::fs::write(&program, format!("#!/bin/sh\nexec cat {}/answer\n", directory.display())).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = daemon.command(arguments);
    command.env("PATH", format!("{}:{}", directory.display(), std::env::var("PATH").unwrap())).stdin(Stdio::null());
    command
}

/// The settings of a daemon as a file of variables, and a unit that reads it and runs as `nobody`.
fn unit_of(daemon: &Daemon, more: &str) -> (PathBuf, String) {
    let file = daemon.state.path().join("environment");
    let text: String = daemon
        .command(&[])
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)))
        .filter(|(name, _)| name.starts_with("CODEX_AUTHD_"))
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    std::fs::write(&file, format!("{more}{text}")).unwrap();
    let answer = format!(
        "User=nobody\nGroup=\nEnvironmentFiles={} (ignore_errors=yes)\nId=codex-authd.service\nLoadState=loaded\n\
         ActiveState=inactive\n",
        file.display()
    );
    (file, answer)
}

#[test]
fn what_the_unit_sees_is_looked_at_and_nothing_of_the_callers_shell() {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can take the view of the unit");
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let tls = tempfile::tempdir().unwrap();
    std::fs::set_permissions(tls.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let (certificate, key) = (tls.path().join("own.crt"), tls.path().join("own.key"));
    let pair = KeyPair::generate().unwrap();
    std::fs::write(&certificate, CertificateParams::new(["a.test".into()]).unwrap().self_signed(&pair).unwrap().pem())
        .unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let daemon = Daemon::prepare(&[
        ("TLS__CERTIFICATE", certificate.to_str().unwrap()),
        ("TLS__PRIVATE_KEY", key.to_str().unwrap()),
    ]);
    let (file, mut answer) = unit_of(&daemon, "export CODEX_AUTHD_OIDC__CLIENT_SECRET=canary\n");
    answer +=
        &format!("\nListen={taken} (Stream)\nListen=127.0.0.1:1 (Stream)\nId=codex-authd.socket\nLoadState=loaded\n");
    let doctor = |answer: &str| {
        let mut command = with_systemd(&daemon, &["doctor", "--json"], answer);
        let output = command.env("CODEX_AUTHD_STATE_DIR", "/nowhere/of/the/caller").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("canary"), "{text}");
        let checks = serde_json::from_str::<Value>(&text).unwrap()["checks"].as_array().unwrap().clone();
        Found { code: output.status.code().unwrap(), checks, text }
    };
    let group = nix::unistd::User::from_name("nobody").unwrap().unwrap().gid;
    let group = nix::unistd::Group::from_gid(group).unwrap().unwrap().name;
    // The file of the key is in a directory that only root can read.
    let found = doctor(&answer);
    found.is("view", "good", "as the unit codex-authd.service sees it, with the rights of its user nobody", "");
    assert!(found.of("view").1.contains("CODEX_AUTHD_STATE_DIR"), "{}", found.text);
    assert!(!found.text.contains("/nowhere/of/the/caller"), "{}", found.text);
    let place = tls.path().display().to_string();
    let wanted = format!("chgrp {group} {place} && chmod g+x {place}");
    found.is("tls.private_key", "missing", &format!("the daemon's user nobody, who may not pass {place}"), &wanted);
    found.is("environment", "missing", &format!("{}, line 1: it begins with 'export'", file.display()), "");
    found.is("port of hosts", "missing", "is taken by", "systemctl edit codex-authd.socket");

    // The printed remedies work, one after the other.
    let mend = |remedy: &str| {
        let remedy = remedy.split("; then").next().unwrap();
        assert!(Command::new("sh").args(["-ec", remedy]).status().unwrap().success(), "{remedy}");
    };
    mend(&wanted);
    let found = doctor(&answer);
    found.is("tls.private_key", "missing", "nobody, who may not read it", "chgrp");
    mend(found.of("tls.private_key").2);
    assert!(!doctor(&answer).text.contains("tls.private_key"));

    let check = |answer: &str| {
        let output = with_systemd(&daemon, &["check-config"], answer).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = check(&answer);
    assert!(code == Some(1) && said.contains(", line 1: it begins with 'export'"), "{said}");
    let (file, answer) = unit_of(&daemon, "# mine\nCODEX_AUTHD_LISTEN__HOST=x\n");
    let (code, said) = check(&answer);
    assert_eq!(code, Some(1));
    let wanted = format!("{}, line 2: there is no key 'CODEX_AUTHD_LISTEN__HOST'; did you mean", file.display());
    assert!(said.contains(&wanted), "{said}");
    let (_, answer) = unit_of(&daemon, "");
    let (code, said) = check(&answer);
    assert!(code == Some(0) && said.contains("is valid, as the unit codex-authd.service sees it"), "{said}");
    let (code, said) = check(&answer.replace("Group=\n", "Group=\nPrivateTmp=yes\n"));
    assert!(code == Some(1) && said.contains("hidden from the unit, which has PrivateTmp="), "{said}");

    // While systemd starts the daemon, the command does not advise to stop it.
    let starting = answer.replace("ActiveState=inactive", "ActiveState=activating");
    assert_ne!(starting, answer);
    doctor(&starting).is("daemon", "weak", "it is starting", "in a moment");
    let failing = answer.replace("ActiveState=inactive", "ActiveState=activating\nSubState=auto-restart\nNRestarts=4");
    let found = doctor(&failing);
    found.is("daemon", "missing", "failed to start 4 times", "journalctl");
    assert_eq!(found.code, 1, "{}", found.text);
    let (code, said) = check(&starting);
    assert!(code == Some(0) && said.contains("the daemon is starting"), "{said}");
}
