//! Tests of the native `cdx` that have no meaning for the script: its configuration file, the locks that it shares with
//! Codex, its watch over auth.json, and its answers as JSON.

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use codex_authd::model::digest::Digest;
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use super::{in_step, litter, login};
use crate::support::answers::refusal;
use crate::support::eventually;
use crate::support::host::{Host, HostConfig, Program, Ran, baked, is_root};
use crate::support::skip::skipped;
use crate::support::standin::{KEY, StandIn, machine_target};

const MACHINE_PROFILES: &str = "/etc/cdx";

// ------------------------------------------------------------------------------------------------ locks

fn hold(host: &Host, name: &str) -> Flock<File> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(host.codex_home.join(name));
    Flock::lock(file.unwrap(), FlockArg::LockExclusiveNonblock).unwrap()
}

/// Whether a process holds a lock on this file, or waits for one.
fn is_free(host: &Host, name: &str) -> bool {
    let file = File::options().write(true).open(host.codex_home.join(name)).unwrap();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok()
}

fn finished(mut child: Child) -> Ran {
    eventually("cdx ends", || child.try_wait().unwrap());
    Ran::from(child.wait_with_output().unwrap())
}

#[test]
fn a_login_is_replaced_only_under_both_locks() {
    for held in ["auth.lock", "auth.json.lock"] {
        let (daemon, host, before) = in_step(Program::Native);
        let canonical = daemon.set_canonical(&login(20));
        let lock = hold(&host, held);
        let child = host.cdx(&["--sync"]).spawn().unwrap();
        eventually("it has the answer", || (daemon.server.calls().first()?.status == 200).then_some(()));
        if held == "auth.json.lock" {
            // Codex takes them in this order; in the other order both could wait for ever.
            eventually("it holds the first lock", || (!is_free(&host, "auth.lock")).then_some(()));
        }
        assert_eq!(host.auth(), Some(before), "{held}: it was replaced");
        drop(lock);
        let ran = finished(child);
        assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{held}: {ran:?}");
        assert!(is_free(&host, "auth.lock") && is_free(&host, "auth.json.lock"));
    }
}

#[test]
fn a_lock_that_is_never_released_changes_nothing() {
    for held in ["auth.lock", "auth.json.lock"] {
        let (daemon, host, before) = in_step(Program::Native);
        daemon.set_canonical(&login(20));
        let lock = hold(&host, held);
        let ran = finished(host.cdx(&["x"]).spawn().unwrap());
        assert_eq!((ran.code, host.codex_was_started()), (Some(74), false), "{held}: {ran:?}");
        assert!(ran.err.contains(held), "{held}: {ran:?}");
        assert_eq!(host.auth(), Some(before));
        assert_eq!(litter(&host), Vec::<PathBuf>::new());
        drop(lock);
    }
}

#[test]
fn a_login_that_changes_while_cdx_waits_for_a_lock_is_not_lost() {
    let (daemon, host, _) = in_step(Program::Native);
    daemon.set_canonical(&login(20));
    let lock = hold(&host, "auth.lock");
    let child = host.cdx(&["--sync"]).spawn().unwrap();
    eventually("it has the answer", || (daemon.server.calls().first()?.status == 200).then_some(()));
    // Codex renews while it holds the lock.
    host.set_auth(&login(30).to_string());
    drop(lock);
    let ran = finished(child);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!((host.auth(), daemon.canonical()), (Some(login(30).to_string()), Some(login(30).to_string())));
}

// ------------------------------------------------------------------------------------------------ the watch

/// A `cdx` whose codex runs until the file `enough` is there.
fn running(host: &Host) -> Child {
    let codex = r#"touch "$HOME/running"; until [ -e "$HOME/enough" ]; do sleep 0.02; done; exit 6"#;
    let child = host.cdx(&[]).env("FAKE_CODEX", codex).spawn().unwrap();
    eventually("codex runs", || host.file("running").exists().then_some(()));
    child
}

fn end(host: &Host, child: Child) -> Ran {
    fs::write(host.file("enough"), "").unwrap();
    finished(child)
}

/// Writes like Codex: a new file that replaces the old one.
fn renew(host: &Host, second: u8) -> String {
    let text = login(second).to_string();
    fs::write(host.codex_home.join(".auth-new"), &text).unwrap();
    fs::rename(host.codex_home.join(".auth-new"), host.auth_file()).unwrap();
    text
}

#[test]
fn a_renewed_login_reaches_the_daemon_while_codex_runs() {
    let (daemon, host, _) = in_step(Program::Native);
    let child = running(&host);
    for second in [20, 30] {
        let start = Instant::now();
        let text = renew(&host, second);
        eventually("the daemon has it", || (daemon.canonical()? == text).then_some(()));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
    let ran = end(&host, child);
    assert_eq!((ran.code, ran.err.as_str()), (Some(6), ""), "nothing is printed into the terminal of codex: {ran:?}");
    assert_eq!(daemon.commands(), ["retrieve", "store", "store"], "nothing is sent twice");
    assert_eq!(host.auth(), daemon.canonical());
}

#[test]
fn a_login_behind_a_link_is_watched() {
    let (daemon, host, canonical) = in_step(Program::Native);
    fs::create_dir(host.file("elsewhere")).unwrap();
    fs::write(host.file("elsewhere/real.json"), &canonical).unwrap();
    fs::remove_file(host.auth_file()).unwrap();
    symlink("../elsewhere/real.json", host.auth_file()).unwrap();
    let child = running(&host);
    let text = login(20).to_string();
    fs::write(host.file("elsewhere/new"), &text).unwrap();
    fs::rename(host.file("elsewhere/new"), host.file("elsewhere/real.json")).unwrap();
    eventually("the daemon has it", || (daemon.canonical()? == text).then_some(()));
    let ran = end(&host, child);
    assert_eq!((ran.code, daemon.commands()), (Some(6), vec!["retrieve".into(), "store".into()]), "{ran:?}");
    assert!(host.auth_file().is_symlink());
}

#[test]
fn half_a_login_is_not_sent() {
    let (daemon, host, _) = in_step(Program::Native);
    let child = running(&host);
    let text = login(20).to_string();
    for half in [&text[..text.len() - 5], "", "{}", "\0"] {
        fs::write(host.auth_file(), half).unwrap();
    }
    fs::remove_file(host.auth_file()).unwrap();
    fs::write(host.auth_file(), &text).unwrap();
    eventually("the daemon has it", || (daemon.canonical()? == text).then_some(()));
    let ran = end(&host, child);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert_eq!(daemon.commands(), ["retrieve", "store"], "{ran:?}");
}

#[test]
fn a_login_that_could_not_be_sent_while_codex_ran_is_sent_at_its_end() {
    let (daemon, host, _) = in_step(Program::Native);
    let child = running(&host);
    daemon.answer_stores(503, refusal("degraded"));
    let text = renew(&host, 20);
    eventually("it was offered", || daemon.commands().contains(&"store".into()).then_some(()));
    daemon.answer_well();
    let ran = end(&host, child);
    assert_eq!((ran.code, daemon.canonical()), (Some(6), Some(text)), "{ran:?}");
}

// ------------------------------------------------------------------------------------------------ host.toml

/// A daemon, and a host whose host.toml the test spoils.
fn configured() -> (StandIn, Host, String) {
    let (daemon, host, _) = in_step(Program::Native);
    let good = fs::read_to_string(host.host_toml()).unwrap();
    (daemon, host, good)
}

fn refused(daemon: &StandIn, host: &Host, what: &str) -> Ran {
    let ran = finished(host.cdx(&["x"]).spawn().unwrap());
    assert_eq!((ran.code, host.codex_was_started()), (Some(78), false), "{what}: {ran:?}");
    assert!(ran.err.contains("host.toml") && !ran.err.contains("panicked"), "{what}: {ran:?}");
    assert!(!format!("{ran:?}").contains(KEY), "{what}: the key is printed: {ran:?}");
    assert_eq!(daemon.server.calls().len(), 0, "{what}: the daemon was called");
    ran
}

#[test]
fn a_configuration_that_is_none_is_refused_without_a_word_of_it() {
    let (daemon, host, good) = configured();
    let url = daemon.server.url();
    let with = |name: &str, value: &str| {
        let lines = good.lines().map(|line| match line.split_once(" = ") {
            Some((known, _)) if known == name => format!("{name} = {value}\n"),
            _ => format!("{line}\n"),
        });
        lines.collect::<String>().into_bytes()
    };
    let spoiled: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("half", good.as_bytes()[..good.len() / 2].to_vec()),
        ("not UTF-8", [good.as_bytes(), b"x = \"\xff\"\n"].concat()),
        ("a NUL byte", [good.as_bytes(), b"\0"].concat()),
        ("a second key", [good.as_bytes(), good.as_bytes()].concat()),
        ("no TOML", b"base_url: x\n".to_vec()),
        ("JSON", format!(r#"{{"base_url": "{url}", "api_key": "{KEY}"}}"#).into_bytes()),
        ("deep", [b"x = ".to_vec(), b"[".repeat(200_000)].concat()),
        ("deep tables", [b"x = ".to_vec(), b"{a=".repeat(100_000)].concat()),
        ("long", [good.as_bytes(), &b"#".repeat(8 << 20)].concat()),
        ("no key", with("api_key", "\"\"")),
        ("a number for a key", with("api_key", "7")),
        ("a header in the key", with("api_key", &format!("\"{KEY}\\r\\nX-Injected: 1\""))),
        ("a key that is no ASCII", with("api_key", "\"k\u{e4}\"")),
        ("no address", with("base_url", "\"\"")),
        ("an address of a file", with("base_url", "\"file:///etc/passwd\"")),
        ("an address without a host", with("base_url", "\"https://\"")),
        ("an address with a line break", with("base_url", &format!("\"{url}\\n\""))),
        ("an address with a password", with("base_url", "\"http://user:canary@127.0.0.1:1\"")),
        ("an address with a query", with("base_url", &format!("\"{url}?x=\""))),
        ("an address with a fragment", with("base_url", &format!("\"{url}#\""))),
        ("an address without a scheme", with("base_url", "\"127.0.0.1:8443\"")),
        ("text for a switch", with("system_ca", "\"yes\"")),
        ("a list of authorities", with("ca_pem", "[\"x\"]")),
        ("an option for a package", with("codex_npm", "\"--prefix=/\"")),
    ];
    for (what, content) in spoiled {
        fs::write(host.host_toml(), content).unwrap();
        let ran = refused(&daemon, &host, what);
        assert!(!ran.err.contains("canary"), "{what}: {ran:?}");
    }
    // A newer daemon may write more.
    let more = format!("{good}\n# a comment\nfuture = [1, {{ a = 2 }}]\n\n[table]\nx = 1979-05-27\n");
    fs::write(host.host_toml(), more).unwrap();
    assert_eq!(host.run(&["x"]).code, Some(0));
}

#[test]
fn a_bad_authority_in_the_configuration_is_not_replaced_by_the_machines() {
    let (ca, certificate, key) = crate::support::authority::authority("127.0.0.1");
    let daemon = StandIn::start_tls(&certificate, &key);
    daemon.set_canonical(&login(10));
    let url = daemon.server.url();
    for ca_pem in ["garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", " "] {
        let mut host = Host::with_ca(Program::Native, &url, ca_pem);
        fs::write(host.file("machine.pem"), &ca).unwrap();
        host.env("SSL_CERT_FILE", host.file("machine.pem").to_str().unwrap());
        let ran = host.run(&["x"]);
        assert!(ran.code == Some(76) || ran.code == Some(78), "{ca_pem:?}: {ran:?}");
        assert!(daemon.server.calls().is_empty(), "{ca_pem:?}: the key was sent");
    }
}

#[test]
fn a_configuration_that_others_can_reach_is_refused_with_the_remedy() {
    let (daemon, host, _) = configured();
    for mode in [0o604, 0o602, 0o644, 0o666, 0o646, 0o777] {
        fs::set_permissions(host.host_toml(), fs::Permissions::from_mode(mode)).unwrap();
        let ran = refused(&daemon, &host, &format!("{mode:o}"));
        assert!(ran.err.contains("chmod"), "{mode:o}: {ran:?}");
    }
    for mode in [0o400, 0o600, 0o640] {
        fs::set_permissions(host.host_toml(), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(host.run(&["x"]).code, Some(0), "{mode:o}");
    }
}

#[test]
fn a_configuration_that_is_no_file_is_refused_at_once() {
    let (daemon, host, good) = configured();
    fs::remove_file(host.host_toml()).unwrap();
    fs::create_dir(host.host_toml()).unwrap();
    refused(&daemon, &host, "a directory");
    fs::remove_dir(host.host_toml()).unwrap();
    nix::unistd::mkfifo(&host.host_toml(), nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    refused(&daemon, &host, "a pipe that nobody writes");
    fs::remove_file(host.host_toml()).unwrap();
    symlink("host.toml", host.host_toml()).unwrap();
    refused(&daemon, &host, "a loop of links");
    fs::remove_file(host.host_toml()).unwrap();
    symlink("/dev/zero", host.host_toml()).unwrap();
    refused(&daemon, &host, "a device");
    fs::remove_file(host.host_toml()).unwrap();
    refused(&daemon, &host, "nothing");
    // A link of the owner's to a private file is a file.
    fs::write(host.file("elsewhere.toml"), good).unwrap();
    fs::set_permissions(host.file("elsewhere.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(host.file("elsewhere.toml"), host.host_toml()).unwrap();
    assert_eq!(host.run(&["x"]).code, Some(0));
}

#[test]
fn a_configuration_of_somebody_else_is_refused() {
    if !is_root("another user") {
        return;
    }
    let (daemon, host, _) = configured();
    let chown = |owner: &str| Command::new("chown").arg(owner).arg(host.host_toml()).status().unwrap().success();
    assert!(chown("4242:4242"));
    let ran = refused(&daemon, &host, "of user 4242");
    assert!(ran.err.contains("chown"), "{ran:?}");
    assert!(chown("0:0"));
    assert_eq!(host.run(&["x"]).code, Some(0));
}

#[test]
fn a_user_outside_the_group_is_told_who_can_help() {
    if !is_root("another user") {
        return;
    }
    let (daemon, host, _) = configured();
    // Root's file, and a home of nobody's: what a user meets whom the group does not contain.
    let theirs = Host::bare_for(Program::Native);
    theirs.write_host_toml(&fs::read_to_string(host.host_toml()).unwrap());
    fs::set_permissions(theirs.host_toml(), fs::Permissions::from_mode(0o640)).unwrap();
    for directory in [host.file(""), host.file(".local"), host.file(".local/bin")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(host.cdx_file(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new("chown").args(["65534:65534"]).arg(theirs.file("")).status().unwrap().success());
    fs::set_permissions(theirs.file(".config"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(theirs.file(".config/cdx"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = theirs.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(host.cdx_file()).arg("x");
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(ran.err.contains("chgrp") && ran.err.contains("chmod 640"), "{ran:?}");
    assert!(daemon.server.calls().is_empty());
}

#[test]
fn a_profile_is_another_daemon() {
    if fs::metadata(MACHINE_PROFILES).is_ok() {
        skipped("there is a /etc/cdx here, and the test is about a machine without one");
        return;
    }
    let (daemon, host, canonical) = in_step(Program::Native);
    let other = StandIn::start();
    let others = other.set_canonical(&login(40));
    let config = HostConfig { base_url: &other.server.url(), ..HostConfig::default() };
    fs::write(host.file(".config/cdx/work.toml"), config.toml()).unwrap();
    fs::set_permissions(host.file(".config/cdx/work.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let elsewhere = host.file("other-home");
    let run = |arguments: &[&str], profile: Option<&str>| {
        let mut command = host.cdx(arguments);
        command.env("CODEX_HOME", &elsewhere).envs(profile.map(|profile| ("CDX_PROFILE", profile)));
        Ran::from(command.output().unwrap())
    };
    for (arguments, profile) in [(&["--profile", "work", "--sync"][..], None), (&["--sync"], Some("work"))] {
        let ran = run(arguments, profile);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        assert_eq!(fs::read_to_string(elsewhere.join("auth.json")).unwrap(), others);
        assert_eq!((other.commands().len(), daemon.commands().len()), (1, 0));
        other.server.forget_calls();
        fs::remove_file(elsewhere.join("auth.json")).unwrap();
    }
    for name in ["missing", "../cdx/work", "/etc/passwd", "", "."] {
        let ran = run(&["--profile", name, "--sync"], None);
        assert_eq!(ran.code, Some(78), "{name:?}: {ran:?}");
    }
    assert_eq!((host.auth(), daemon.commands().len()), (Some(canonical), 0));
}

/// The script carries a host's values; an update of the native program reads them there.
#[test]
fn an_update_brings_the_values_that_the_daemon_has_now() {
    let (daemon, host, _) = in_step(Program::Native);
    host.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
    let program = fs::read(host.cdx_file()).unwrap();
    let url = daemon.server.url();
    let config = HostConfig {
        base_url: &url,
        ca_pem: "-----BEGIN CERTIFICATE-----\nMII'B\n-----END CERTIFICATE-----\n",
        trusts_system: true,
        codex_release_url: "https://x.test/'\\''{target}.tar.gz",
        codex_release_sha256: "a=1 b=2",
    };
    let script = baked(&config).0;
    let digest = script.digest().to_string();
    daemon.set_program(&program, &Digest::of(&program).to_string());
    for (script, announced) in [("garbage", Digest::of(b"garbage").to_string()), (script.expose(), "0".repeat(64))] {
        daemon.set_wrapper(script.as_bytes(), &announced);
        let before = fs::read_to_string(host.host_toml()).unwrap();
        let ran = host.run(&["--update"]);
        assert_eq!((ran.code, fs::read_to_string(host.host_toml()).unwrap()), (Some(1), before), "{ran:?}");
    }
    daemon.set_wrapper(script.expose().as_bytes(), &digest);
    let ran = host.run(&["--update"]);
    let values = |text: &str| text.parse::<toml::Table>().unwrap();
    let written = fs::read_to_string(host.host_toml()).unwrap();
    assert_eq!(values(&written), values(&config.toml()), "{ran:?}");
    assert_eq!(fs::metadata(host.host_toml()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!format!("{ran:?}").contains(KEY));
    assert_eq!(litter(&host), Vec::<PathBuf>::new());
}

#[test]
fn a_move_back_to_the_script_keeps_the_key_from_others() {
    let (daemon, host, canonical) = in_step(Program::Native);
    host.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
    let program = fs::read(host.cdx_file()).unwrap();
    let url = daemon.server.url();
    let script = baked(&HostConfig { base_url: &url, ..HostConfig::default() }).0;
    daemon.set_wrapper(script.expose().as_bytes(), &"0".repeat(64));
    let ran = host.run(&["--update", "--to-bash"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(fs::read(host.cdx_file()).unwrap() == program && host.host_toml().exists(), "{ran:?}");

    // The native program of a machine can be in a directory for everybody; the script is the key's.
    fs::set_permissions(host.cdx_file(), fs::Permissions::from_mode(0o755)).unwrap();
    daemon.set_wrapper(script.expose().as_bytes(), &script.digest().to_string());
    let ran = host.run(&["--update", "--to-bash"]);
    assert!(ran.err.contains("cdx is now the script"), "{ran:?}");
    assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), script.expose());
    assert_eq!(fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(!host.host_toml().exists());
    daemon.answer_always(503, refusal("degraded"));
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "the state is the same: {ran:?}");
}

// ------------------------------------------------------------------------------------------------ answers as JSON

fn as_json(host: &Host, arguments: &[&str]) -> (Option<i32>, Value) {
    let ran = host.run(arguments);
    assert!(!format!("{ran:?}").contains(KEY) && !format!("{ran:?}").contains("access-"), "a secret: {ran:?}");
    let value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {ran:?}"));
    (ran.code, value)
}

#[test]
fn status_says_the_same_to_people_and_to_programs() {
    let (daemon, host, canonical) = in_step(Program::Native);
    let digest = Digest::of(canonical.as_bytes()).to_string();
    let (code, status) = as_json(&host, &["status", "--json"]);
    assert_eq!(code, Some(0), "{status}");
    assert_eq!(status["daemon"], daemon.server.url(), "{status}");
    assert!(status.to_string().contains(&digest), "{status}");
    assert_eq!(host.auth(), Some(canonical), "status changes nothing");
    assert!(daemon.commands().iter().all(|command| command == "retrieve"), "status stores nothing");
    let said = host.run(&["status"]);
    assert!(said.code == Some(0) && said.out.contains(&daemon.server.url()), "{said:?}");

    daemon.answer_always(503, refusal("degraded"));
    let (code, status) = as_json(&host, &["status", "--json"]);
    assert_ne!(code, Some(0), "{status}");
    daemon.answer_always(401, refusal("Invalid API key"));
    let (code, status) = as_json(&host, &["status", "--json"]);
    assert_eq!(code, Some(77), "{status}");
    assert!(status.to_string().contains("Invalid API key"), "{status}");
}

#[test]
fn the_other_commands_have_json_too() {
    let (daemon, host, _) = in_step(Program::Native);
    let (code, versions) = as_json(&host, &["--version", "--json"]);
    assert_eq!(code, Some(0));
    assert_eq!((&versions["codex"], &versions["target"]), (&"0.1.2".into(), &machine_target().into()), "{versions}");
    let (code, report) = as_json(&host, &["--doctor", "--json"]);
    assert_eq!(code, Some(0), "{report}");
    let (code, _) = as_json(&host, &["--sync", "--json"]);
    assert_eq!(code, Some(0));
    daemon.answer_always(401, refusal("Invalid API key"));
    let (code, report) = as_json(&host, &["--doctor", "--json"]);
    assert_eq!(code, Some(1), "{report}");
    assert!(report.to_string().contains("Invalid API key"), "{report}");
}

// ------------------------------------------------------------------------------------------------ uninstall

/// The kernel kills `cdx` at one of its removals. (The script's test kills it at a call of `rm`.)
#[test]
fn a_crash_of_an_uninstall_is_finished_by_the_next_one() {
    let mut killed = 0;
    for point in 1.. {
        let (daemon, host, _) = in_step(Program::Native);
        let mut command = host.command("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=unlink,unlinkat,rmdir", "-e"]);
        command.arg(format!("inject=unlink,unlinkat,rmdir:signal=KILL:when={point}"));
        command.arg(host.cdx_file()).arg("--uninstall").stdin(Stdio::null());
        let ran = Ran::from(command.output().unwrap());
        if ran.code == Some(0) {
            assert!(!host.cdx_file().exists() && !host.host_toml().exists(), "{ran:?}");
            break;
        }
        assert!(point < 40, "{ran:?}");
        if !host.cdx_file().exists() {
            continue; // It was killed at its last removals.
        }
        killed += 1;
        // The daemon's answer to an unknown key.
        daemon.answer_always(401, refusal("Invalid API key"));
        let ran = host.run(&["--uninstall"]);
        assert_eq!(ran.code, Some(0), "{point}: {ran:?}");
        assert!(!host.cdx_file().exists() && !host.host_toml().exists(), "{point}: {ran:?}");
        assert!(!host.file(".cache/cdx").exists() && !host.auth_file().exists(), "{point}: {ran:?}");
    }
    assert!(killed > 2, "{killed}");
}
