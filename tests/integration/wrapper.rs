//! The scripts for hosts: `cdx` and its installer, against a stand-in of the daemon's endpoints and, if necessary, the
//! real Codex CLI.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use codex_authd::model::digest::Digest;
use serde_json::{Value, json};

use crate::support::authority::authority;
use crate::support::eventually;
use crate::support::host::{Host, Ran, baked, baked_with_digests};
use crate::support::skip::{Unavailable, bash32, skipped};
use crate::support::standin::{KEY, StandIn, lines};
use crate::support::upstream::Upstream;

pub const BANANA: [&str; 5] = ["exec", "Reply Banana if this works.", "-s", "read-only", "--skip-git-repo-check"];

/// A login whose `last_refresh` is that second of an hour in the past.
pub fn login(second: u8) -> Value {
    let tokens = json!({"access_token": format!("access-{second}"), "refresh_token": format!("refresh-{second}")});
    json!({"tokens": tokens, "last_refresh": format!("2025-11-20T09:27:{second:02}Z")})
}

/// A daemon with a canonical login, and a host that has it.
pub fn in_step() -> (StandIn, Host, String) {
    let daemon = StandIn::start();
    let canonical = daemon.set_canonical(&login(10));
    let host = Host::new(&daemon.server.url());
    let ran = host.run(&["--sync"]);
    assert_eq!((ran.code, host.auth().as_ref()), (Some(0), Some(&canonical)), "{ran:?}");
    daemon.server.forget_calls();
    (daemon, host, canonical)
}

// ------------------------------------------------------------------------------------------------ with the real Codex

#[test]
fn a_launch_with_nothing_new_costs_one_request() {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", 864_000));
    let host = Host::new(&daemon.server.url()).with_real_codex(&upstream);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    daemon.server.forget_calls();

    let ran = host.run(&BANANA);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "Banana\n"), "{ran:?}");
    assert_eq!(daemon.commands(), ["retrieve"]);
    let asked = daemon.server.calls()[0].json();
    assert_eq!(asked["digest"], Digest::of(canonical.as_bytes()).to_string());
    assert_eq!(asked["client_version"], "0.169.0");
    assert_eq!(host.auth(), Some(canonical));
}

#[test]
fn a_login_that_codex_renews_reaches_the_next_host() {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", -60));
    let first = Host::new(&daemon.server.url()).with_real_codex(&upstream);
    let ran = first.run(&BANANA);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "Banana\n"), "{ran:?}");
    assert_eq!(upstream.calls_to("POST", "/oauth/token").len(), 1);
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    let renewed = daemon.canonical().unwrap();
    assert_ne!(renewed, canonical);
    assert_eq!(first.auth().as_ref(), Some(&renewed), "the host holds the canonical text");

    let second = Host::new(&daemon.server.url()).with_real_codex(&upstream);
    assert_eq!(second.run(&BANANA).out, "Banana\n");
    assert_eq!(second.auth(), Some(renewed));
    assert_eq!(upstream.calls_to("POST", "/oauth/token").len(), 1, "the second host found it fresh");
}

#[test]
fn a_login_that_the_upstream_withdrew_is_renewed_and_handed_back() {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", 864_000));
    upstream.withdraw_access();
    upstream.set_lifetime(3600);
    let host = Host::new(&daemon.server.url()).with_real_codex(&upstream);
    assert_eq!(host.run(&BANANA).out, "Banana\n");
    let refreshes = upstream.calls_to("POST", "/oauth/token");
    assert_eq!((refreshes.len(), refreshes[0].status), (1, 200));
    assert_ne!(daemon.canonical(), Some(canonical));
    assert_eq!(daemon.canonical(), host.auth());
}

#[test]
fn the_upstream_takes_a_refresh_token_once() {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let stale = upstream.login("acc-1", -60).to_string();
    for (expected, status) in [(Some(0), 200), (Some(1), 401)] {
        daemon.answer_always(200, lines("valid", None));
        let host = Host::new(&daemon.server.url()).with_real_codex(&upstream);
        host.set_auth(&stale);
        let ran = host.run(&BANANA);
        assert_eq!(ran.code, expected, "{ran:?}");
        assert_eq!(upstream.calls_to("POST", "/oauth/token").last().unwrap().status, status);
    }
}

#[test]
fn what_goes_before_the_login_is_not_passed_to_codex() {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let login = upstream.login("acc-1", 864_000);
    daemon.set_canonical(&login);
    let mut host = Host::new(&daemon.server.url()).with_real_codex(&upstream);
    for name in ["CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "OPENAI_FEDERATION_RULE_ID", "OPENAI_IDENTITY_TOKEN_FILE"] {
        host.env(name, "stray-value-of-the-environment");
    }
    let ran = host.run(&BANANA);
    assert_eq!(ran.out, "Banana\n", "{ran:?}");
    let bearer = format!("Bearer {}", login["tokens"]["access_token"].as_str().unwrap());
    for call in upstream.calls_to("POST", "/v1/responses") {
        assert_eq!(call.header("authorization"), Some(bearer.as_str()));
    }
    assert_eq!(ran.err.matches("not passed to codex").count(), 1);
    assert!(ran.err.contains("CODEX_ACCESS_TOKEN") && !ran.err.contains("stray-value"));
}

// ------------------------------------------------------------------------------------------------ running codex

#[test]
fn codex_gets_the_arguments_the_input_and_gives_its_exit_code() {
    let (_daemon, host, _) = in_step();
    let arguments = ["exec", "a b", "", "it's \"$HOME\"", "*", "--version"];
    let mut child = host.cdx(&arguments).env("FAKE_CODEX", "cat; exit 7").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\ntwo").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(7), "one\ntwo", ""));
    assert_eq!(fs::read_to_string(host.file("codex.arguments")).unwrap(), arguments.join("\n") + "\n");

    assert_eq!(host.run_codex("", &["--", "--sync", "--", "x"]).code, Some(0));
    assert_eq!(fs::read_to_string(host.file("codex.arguments")).unwrap(), "--sync\n--\nx\n");
    assert_eq!(host.run_codex("kill -KILL $$", &[]).code, Some(137));
}

#[test]
fn codex_gets_the_environment_as_it_was() {
    let (_daemon, mut host, _) = in_step();
    let environment = |host: &Host| -> Vec<String> {
        let text = fs::read_to_string(host.file("codex.environment")).unwrap();
        // Variables that bash sets for its children.
        let own = ["_=", "SHLVL=", "PWD=", "OLDPWD=", "FAKE_CODEX="];
        let mut lines: Vec<_> =
            text.lines().filter(|line| !own.iter().any(|name| line.starts_with(name))).map(String::from).collect();
        lines.sort();
        lines
    };
    for locale in [None, Some("de_DE.UTF-8")] {
        if let Some(locale) = locale {
            host.env("LC_ALL", locale);
        }
        // Variables with cdx's own names must not lead the key into codex.
        host.env("CDX_API_KEY", "mine");
        assert!(host.command(host.file("bin/codex")).status().unwrap().success());
        let mut bare = environment(&host);
        bare.retain(|line| !line.starts_with("CDX_API_KEY="));
        assert_eq!(host.run(&["x"]).code, Some(0));
        assert_eq!(environment(&host), bare);
        assert_eq!(
            host.run_codex("umask", &[]).out,
            Ran::from(host.command("bash").args(["-c", "umask"]).output().unwrap()).out
        );
    }
}

/// Runs `cdx` in a new terminal, and presses Ctrl-C when `codex` runs; returns the terminal's output.
fn press_ctrl_c(host: &Host, codex: &str) -> Ran {
    let command = match &host.shell {
        Some(shell) => format!("exec {} {}", shell.display(), host.cdx_file().display()),
        None => format!("exec {}", host.cdx_file().display()),
    };
    let mut child = host
        .command("script")
        .args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"])
        .env("FAKE_CODEX", codex)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    eventually("codex runs", || host.file("running").exists().then_some(()));
    keyboard.write_all(b"\x03").unwrap();
    keyboard.flush().unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keyboard);
    Ran::from(output)
}

#[test]
fn ctrl_c_is_for_codex_and_cdx_still_hands_the_login_back() {
    for shell in shells() {
        let (daemon, mut host, _) = in_step();
        host.shell = shell.clone();
        let renewed = login(20);
        host.write_program("renewed.json", &renewed.to_string(), 0o600);
        let ran = press_ctrl_c(
            &host,
            r#"trap 'cp "$HOME/renewed.json" "$HOME/.codex/auth.json"; exit 9' INT; touch "$HOME/running"; test -t 0 || exit 3; for i in {1..100}; do sleep 0.1; done; exit 5"#,
        );
        assert_eq!(ran.code, Some(9), "{shell:?} {ran:?}");
        assert_eq!(daemon.commands(), ["retrieve", "store"]);

        let (_daemon, mut host, _) = in_step();
        host.shell = shell.clone();
        // It reports that it runs when the program has replaced the shell, so the signal ends the program.
        let ran = press_ctrl_c(
            &host,
            r#"(until [ "$(cat /proc/$$/comm)" = sleep ]; do :; done; touch "$HOME/running") & exec sleep 10"#,
        );
        assert_eq!(ran.code, Some(130), "a codex that does not catch it dies of it: {shell:?} {ran:?}");
    }
}

#[test]
fn a_signal_that_ends_cdx_ends_codex() {
    for shell in shells() {
        for signal in ["TERM", "HUP"] {
            let (_daemon, mut host, _) = in_step();
            host.shell = shell.clone();
            let codex = r#"echo $$ >"$HOME/pid.new"; mv "$HOME/pid.new" "$HOME/pid"; exec sleep 60"#;
            let mut child =
                host.cdx(&[]).env("FAKE_CODEX", codex).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let pid = eventually("codex runs", || fs::read_to_string(host.file("pid")).ok());
            // A zombie process has an empty command line.
            let codex_lives =
                || fs::read(Path::new("/proc").join(pid.trim()).join("cmdline")).is_ok_and(|line| !line.is_empty());
            // While it executes `sleep`, it has no command line for a moment.
            eventually("codex has become sleep", || codex_lives().then_some(()));
            let pid_of_cdx = nix::unistd::Pid::from_raw(child.id() as i32);
            nix::sys::signal::kill(pid_of_cdx, format!("SIG{signal}").parse::<nix::sys::signal::Signal>().unwrap())
                .unwrap();
            let status = eventually("cdx ends", || child.try_wait().unwrap());
            let number = if signal == "TERM" { 15 } else { 1 };
            use std::os::unix::process::ExitStatusExt as _;
            assert!(
                status.code() == Some(128 + number) || status.signal() == Some(number),
                "{shell:?} {signal} {status:?}"
            );
            eventually(&format!("codex ends ({shell:?} {signal})"), || (!codex_lives()).then_some(()));
        }
    }
}

#[test]
fn codex_that_is_not_there_is_said_to_be_missing() {
    if codex_is_installed_here() {
        return;
    }
    let (_daemon, host, _) = in_step();
    fs::remove_file(host.file("bin/codex")).unwrap();
    let ran = host.run(&["exec"]);
    assert_eq!(ran.code, Some(127));
    assert!(ran.err.contains("cdx --update"), "{ran:?}");
}

// ------------------------------------------------------------------------------------------------ the login

#[test]
fn a_login_is_written_private_and_whole() {
    let (_daemon, host, _) = in_step();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&host.codex_home), mode(&host.auth_file())), (0o700, 0o600));
    assert_eq!(mode(&host.state_file()), 0o600);
    assert_eq!(litter(&host), Vec::<PathBuf>::new());
}

#[test]
fn a_newer_local_login_is_handed_over_before_codex_starts() {
    let (daemon, host, _) = in_step();
    host.set_auth(&login(20).to_string());
    assert_eq!(host.run(&["x"]).code, Some(0));
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    assert_eq!(host.auth(), daemon.canonical());
}

#[test]
fn an_older_login_gives_way_to_the_canonical_one() {
    let (daemon, host, canonical) = in_step();
    assert_eq!(host.run_codex(&format!("printf '%s' '{}' >\"$HOME/.codex/auth.json\"", login(5)), &[]).code, Some(0));
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    assert_eq!(host.auth(), Some(canonical));
}

#[test]
fn the_first_host_brings_the_first_login() {
    let daemon = StandIn::start();
    let host = Host::new(&daemon.server.url());
    let ran = host.run(&["x"]);
    assert_eq!(ran.code, Some(0), "codex is not started to log in: {ran:?}");
    assert!(ran.err.contains("nobody has logged in yet"), "{ran:?}");
    host.set_auth(&login(1).to_string());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.canonical(), Some(login(1).to_string()));
}

#[test]
fn a_login_renewed_by_another_codex_meanwhile_is_not_lost() {
    let (daemon, host, _) = in_step();
    daemon.set_canonical(&login(15));
    let (file, newer) = (host.auth_file(), login(30).to_string());
    let text = newer.clone();
    let mut once = Some(());
    daemon.on_call(move || {
        if once.take().is_some() {
            fs::write(&file, &text).unwrap();
        }
    });
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.commands(), ["retrieve", "retrieve", "store"]);
    assert_eq!((host.auth().as_ref(), daemon.canonical().as_ref()), (Some(&newer), Some(&newer)));
}

#[test]
fn a_symbolic_link_stays_and_its_target_is_replaced() {
    let (daemon, host, _) = in_step();
    let real = host.file("elsewhere/real.json");
    fs::create_dir(host.file("elsewhere")).unwrap();
    fs::rename(host.auth_file(), &real).unwrap();
    symlink("../elsewhere/link.json", host.auth_file()).unwrap();
    symlink(&real, host.file("elsewhere/link.json")).unwrap();
    let canonical = daemon.set_canonical(&login(20));
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert!(host.auth_file().is_symlink() && host.file("elsewhere/link.json").is_symlink());
    assert_eq!(fs::read_to_string(&real).unwrap(), canonical);

    fs::remove_file(host.auth_file()).unwrap();
    symlink("auth.json", host.auth_file()).unwrap();
    assert_eq!(host.run(&["--sync"]).code, Some(74), "a loop of links is an error");
}

#[test]
fn a_home_with_a_strange_name_is_a_home() {
    let daemon = StandIn::start();
    let canonical = daemon.set_canonical(&login(10));
    for name in ["with space", "it's \"$(touch canary)\" `x`", "-n", "back\\slash", "ü\u{1f34c}", "*"] {
        let mut host = Host::new(&daemon.server.url());
        host.codex_home = host.file(name);
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical.clone())), "{name}: {ran:?}");
        daemon.answer_always(503, "");
        assert_eq!(host.run(&["x"]).code, Some(0), "its state is not found again: {name}");
        daemon.answer_well();
        assert!(!host.file("canary").exists());
    }
}

#[test]
fn a_large_login_goes_both_ways() {
    let (daemon, host, _) = in_step();
    let mut large = login(20);
    large["custom"] = "x\\\"é".repeat(60_000).into();
    host.set_auth(&large.to_string());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.canonical(), Some(large.to_string()));
    large["last_refresh"] = "2025-11-20T09:27:40Z".into();
    let canonical = daemon.set_canonical(&large);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(host.auth(), Some(canonical));
}

/// Files of cdx that should have been removed.
pub fn litter(host: &Host) -> Vec<PathBuf> {
    let state = host.state_file().parent().unwrap().to_owned();
    let mut left = Vec::new();
    for directory in [&host.codex_home, &state] {
        for file in fs::read_dir(directory).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if !(name == "auth.json" || name == "codex-version" || name == "ca.pem" || name.starts_with("synced-")) {
                left.push(file);
            }
        }
    }
    left
}

// ------------------------------------------------------------------------------------------------ bad answers

#[test]
fn answers_that_are_not_whole_change_nothing() {
    let (daemon, host, canonical) = in_step();
    let other = login(50).to_string();
    let good = lines("outdated", Some(&other));
    let text = String::from_utf8(good.clone()).unwrap();
    let digest = Digest::of(other.as_bytes()).to_string();
    let spoiled: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"<html>Log in to the network</html>".to_vec(),
        good[..good.len() - 1].to_vec(),
        [good.as_slice(), b" "].concat(),
        text.replace("access-50", "access-51").into_bytes(),
        text.replace(&digest, &"0".repeat(64)).into_bytes(),
        text.replace(&digest, "").into_bytes(),
        text.replace("digest ", "Digest ").into_bytes(),
        text.replace("auth ", "auth -").into_bytes(),
        text.replace("auth ", "auth 1").into_bytes(),
        text.replace("auth ", "auth a[$(touch canary)]+").into_bytes(),
        text.replace("status outdated", "status $(touch canary)").into_bytes(),
        text.replace("status outdated\n", "").into_bytes(),
        text.replace(&other, "").into_bytes(),
        lines("outdated", None),
        lines("outdated", Some("")),
        lines("outdated", Some("not json")),
        b"x y\n".repeat(100),
        vec![b'x'; 9 << 20],
        [b"status valid\nmessage ".to_vec(), vec![b'x'; 100_000], b"\n".to_vec()].concat(),
    ];
    for shell in shells() {
        let mut host_shell = Host::new(&daemon.server.url());
        host_shell.shell = shell.clone();
        daemon.answer_well();
        assert_eq!(host_shell.run(&["--sync"]).code, Some(0));
        for host in [&host, &host_shell] {
            for answer in &spoiled {
                daemon.answer_always(200, answer.clone());
                let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
                let ran = host.run(&["x"]);
                assert_eq!(ran.code, Some(0), "the login of a moment ago is good enough: {shown:?} {ran:?}");
                assert_eq!(host.auth().as_ref(), Some(&canonical), "{shown:?}");
                assert!(ran.err.contains("continuing with the login"), "{shown:?} {ran:?}");
                assert!(!host.file("canary").exists());
                assert_eq!(litter(host), Vec::<PathBuf>::new());
            }
        }
    }
}

#[test]
fn a_bad_answer_to_a_store_leaves_the_renewed_login() {
    let (daemon, host, _) = in_step();
    let renewed = login(40).to_string();
    daemon.answer_always(200, lines("updated", Some(&login(50).to_string())).split_last().unwrap().1.to_vec());
    // The first answer is damaged as well; codex runs on the recent login, and renews it.
    let ran = host.run_codex(&format!("printf '%s' '{renewed}' >\"$HOME/.codex/auth.json\"; exit 4"), &[]);
    assert_eq!(ran.code, Some(4), "the exit code is codex's: {ran:?}");
    assert_eq!(host.auth(), Some(renewed.clone()));
    daemon.answer_well();
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.canonical(), Some(renewed), "the next cdx stores it");
}

#[test]
fn a_connection_cut_in_the_middle_changes_nothing() {
    let (daemon, host, canonical) = in_step();
    let port = daemon.server.port;
    drop(daemon);
    let listener = eventually("the port is free", || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
    let answer = lines("outdated", Some(&login(50).to_string()));
    let cut = std::thread::spawn(move || {
        use std::io::Read as _;
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&answer[..answer.len() - 20]).unwrap();
    });
    let ran = host.run(&["x"]);
    cut.join().unwrap();
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{ran:?}");
    assert!(ran.err.contains("the connection to the daemon broke"), "{ran:?}");
}

// ------------------------------------------------------------------------------------------------ no daemon, no right

#[test]
fn without_the_daemon_a_login_is_good_for_a_day() {
    let (daemon, host, _) = in_step();
    for (status, body) in
        [(500, ""), (502, "<html>"), (503, "status error\nmessage degraded\nretry_after 5\n"), (429, "")]
    {
        daemon.answer_always(status, body);
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, ran.err.lines().count()), (Some(0), 1), "{status}: {ran:?}");
    }
    drop(daemon);
    assert_eq!(host.run(&["x"]).code, Some(0), "no server listens");

    host.shift_last_sync(-23 * 3600);
    let ran = host.run(&["x"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("23 h"), "{ran:?}");

    host.shift_last_sync(-3700);
    fs::remove_file(host.file("codex.arguments")).unwrap();
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.codex_was_started()), (Some(69), false), "{ran:?}");
    assert!(ran.err.contains("more than a day old"), "{ran:?}");
}

#[test]
fn a_clock_that_steps_back_does_not_make_a_login_last() {
    let (daemon, host, _) = in_step();
    drop(daemon);
    host.shift_last_sync(200);
    assert_eq!(host.run(&["x"]).code, Some(0), "a small change of the clock is ignored");
    host.shift_last_sync(3600);
    assert_eq!(host.run(&["x"]).code, Some(69));
}

#[test]
fn without_the_daemon_only_a_login_that_was_in_step_counts() {
    let (daemon, host, _) = in_step();
    drop(daemon);
    let text = fs::read_to_string(host.state_file()).unwrap();
    for spoiled in ["", "x", "08", "99999999999999999999 a b", &text.replace("127.0.0.1", "127.0.0.2")] {
        fs::write(host.state_file(), spoiled).unwrap();
        assert_eq!(host.run(&["x"]).code, Some(69), "{spoiled:?}");
    }
    fs::write(host.state_file(), text).unwrap();
    assert_eq!(host.run(&["x"]).code, Some(0));
    fs::remove_file(host.auth_file()).unwrap();
    assert_eq!(host.run(&["x"]).code, Some(69), "there is no login at all");
    assert_eq!(host.run(&["--sync"]).code, Some(69));
}

#[test]
fn a_refused_key_stops_and_says_so() {
    let (daemon, host, canonical) = in_step();
    for status in [401, 403] {
        daemon.answer_always(status, "status error\nmessage Not \u{1b}[31mthis host\n");
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.codex_was_started()), (Some(77), false), "{ran:?}");
        assert!(ran.err.contains("refuses this host (Not  [31mthis host)"), "no control characters: {ran:?}");
        assert_eq!(host.auth().as_ref(), Some(&canonical));
    }
}

#[test]
fn a_key_is_in_no_argument_list_and_no_environment() {
    let (daemon, mut host, _) = in_step();
    // Variables of these names are exported already; cdx's values must not be exported.
    for name in ["DOCUMENT", "A_AUTH", "PIPED", "body", "answer"] {
        host.env(name, "x");
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    daemon.on_call(move || {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            for name in ["cmdline", "environ"] {
                if let Ok(text) = fs::read(process.path().join(name)) {
                    log.lock().unwrap().push(String::from_utf8_lossy(&text).into_owned());
                }
            }
        }
    });
    host.set_auth(&login(20).to_string());
    let ran = host.run_codex("env", &[]);
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(seen.iter().any(|line| line.contains("curl")), "the call was watched while curl ran");
    assert!(!seen.iter().any(|line| line.contains(KEY) || line.contains("access-20")));
    assert!(!format!("{ran:?}").contains(KEY));
    // A shell that traces or exports everything does not reveal it either.
    let traced = host.cdx(&["x"]).env("SHELLOPTS", "xtrace:verbose:allexport").output().unwrap();
    assert!(!String::from_utf8_lossy(&traced.stderr).contains(KEY));
    assert!(!fs::read_to_string(host.file("codex.environment")).unwrap().contains(KEY));
}

#[test]
fn a_curlrc_cannot_weaken_the_call() {
    let (daemon, host, _) = in_step();
    host.write_program(".curlrc", "header = \"X-From-Curlrc: 1\"\ninsecure\n", 0o600);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.server.calls()[0].header("x-from-curlrc"), None);
}

// ------------------------------------------------------------------------------------------------ TLS

#[test]
fn only_a_daemon_of_the_baked_ca_is_spoken_to() {
    let (ca, certificate, key) = authority("127.0.0.1");
    let daemon = StandIn::start_tls(&certificate, &key);
    let canonical = daemon.set_canonical(&login(10));
    let host = Host::with_ca(&daemon.server.url(), &ca);
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{ran:?}");
    daemon.server.forget_calls();

    // The system's store, and another CA: neither trusts it. The recent login does not help.
    for foreign in [String::new(), authority("127.0.0.1").0] {
        let (cdx, _) = baked(&daemon.server.url(), &foreign, "");
        host.write_program(".local/bin/cdx", cdx.expose(), 0o700);
        fs::remove_file(host.file("codex.arguments")).unwrap_or_default();
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.codex_was_started()), (Some(76), false), "{ran:?}");
        assert!(ran.err.contains("cannot be trusted"), "{ran:?}");
    }
    assert!(daemon.server.calls().is_empty(), "a call was sent to it");
}

/// A cdx that trusts its machine's store as well.
fn trusting_both(url: &str, ca: &str) -> String {
    let (cdx, _) = baked(url, ca, "");
    let both = cdx.expose().replace("\nCDX_SYSTEM_CA=''\n", "\nCDX_SYSTEM_CA='1'\n");
    assert_ne!(both, cdx.expose());
    both
}

#[test]
fn a_certificate_that_either_vouches_for_is_trusted_and_the_choice_is_remembered() {
    for shell in shells() {
        let (ca, certificate, key) = authority("127.0.0.1");
        let daemon = StandIn::start_tls(&certificate, &key);
        daemon.set_canonical(&login(10));
        let foreign = authority("127.0.0.1").0;
        for (baked_ca, machine_ca, remembered) in [(&ca, &foreign, None), (&foreign, &ca, Some("system\n"))] {
            let mut host = Host::new("http://nowhere.test");
            host.shell = shell.clone();
            host.write_program(".local/bin/cdx", &trusting_both(&daemon.server.url(), baked_ca), 0o700);
            fs::write(host.file("machine.pem"), machine_ca).unwrap();
            host.env("CURL_CA_BUNDLE", host.file("machine.pem").to_str().unwrap());
            daemon.server.forget_calls();
            for _ in 0..2 {
                let ran = host.run(&["x"]);
                assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
            }
            assert_eq!(daemon.commands(), ["retrieve", "retrieve"], "each call is sent once");
            let trust = host.state_file().with_file_name("trust");
            assert_eq!(fs::read_to_string(&trust).ok().as_deref(), remembered);
            // And back again, when the remembered trust is wrong.
            host.write_program(".local/bin/cdx", &trusting_both(&daemon.server.url(), &ca), 0o700);
            fs::write(host.file("machine.pem"), &foreign).unwrap();
            assert_eq!(host.run(&["x"]).code, Some(0));
            assert_eq!(fs::read_to_string(&trust).ok(), remembered.map(|_| "ours\n".into()));
            // If neither trusts it, nothing is sent, and nothing is remembered.
            host.write_program(".local/bin/cdx", &trusting_both(&daemon.server.url(), &foreign), 0o700);
            daemon.server.forget_calls();
            let ran = host.run(&["x"]);
            assert!(ran.code == Some(76) && ran.err.contains("cannot be trusted"), "{ran:?}");
            assert!(daemon.server.calls().is_empty());
            assert_eq!(fs::read_to_string(&trust).ok(), remembered.map(|_| "ours\n".into()));
            let gone = host.run(&["--uninstall", "--force"]);
            assert!(gone.code == Some(0) && !trust.parent().unwrap().exists(), "{gone:?}");
        }
    }
}

/// Debian's curl trusts /etc/ssl/certs in addition to the given file.
#[test]
fn an_authority_of_the_machine_does_not_count_where_ours_alone_is_trusted() {
    if !nix::unistd::geteuid().is_root() {
        skipped("nothing is mounted without root");
        return;
    }
    let (machine_ca, certificate, key) = authority("127.0.0.1");
    let daemon = StandIn::start_tls(&certificate, &key);
    daemon.set_canonical(&login(10));
    for shell in shells() {
        let mut host = Host::with_ca(&daemon.server.url(), &authority("127.0.0.1").0);
        host.shell = shell;
        fs::write(host.file("machine.pem"), &machine_ca).unwrap();
        let place = format!(
            "mount -t tmpfs none /etc/ssl/certs && cp {} /etc/ssl/certs/ca-certificates.crt && openssl rehash /etc/ssl/certs",
            host.file("machine.pem").display()
        );
        daemon.server.forget_calls();
        let ran = host.cdx_within(&place, &["--sync"]);
        assert!(ran.code == Some(76) && ran.err.contains("cannot be trusted"), "{ran:?}");
        assert!(daemon.server.calls().is_empty(), "the key was sent to a stranger");
        // The same authority is trusted if the machine's store counts.
        host.write_program(".local/bin/cdx", &trusting_both(&daemon.server.url(), &authority("127.0.0.1").0), 0o700);
        let ran = host.cdx_within(&place, &["--sync"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

/// curl gets the login through a pipe, which can be read only once.
#[test]
fn a_store_whose_certificate_changed_meanwhile_is_sent_whole_by_the_second_attempt() {
    for shell in shells() {
        let (daemon, mut host, _) = in_step();
        host.shell = shell;
        host.write_program(".local/bin/cdx", &trusting_both(&daemon.server.url(), "a CA"), 0o700);
        // The second call fails like an unknown certificate, after curl has read all of its input.
        let curl = "#!/bin/sh\nn=$(cat \"$HOME/calls\" 2>/dev/null); n=$((n + 1)); echo $n >\"$HOME/calls\"\n\
                    if [ $n = 2 ]; then cat >/dev/null; cat <&9 >\"$HOME/given\"; printf 000; exit 60; fi\n\
                    exec /usr/bin/curl \"$@\"\n";
        host.write_program("bin/curl", curl, 0o755);
        let renewed = login(20).to_string();
        let script = format!("printf '%s' '{renewed}' >\"$HOME/.codex/auth.json\"");
        let ran = host.run_codex(&script, &["x"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(daemon.commands(), ["retrieve", "store"], "{ran:?}");
        assert_eq!(daemon.canonical(), Some(renewed.clone()), "{ran:?}");
        assert!(fs::read_to_string(host.file("given")).unwrap().contains(&renewed));
        assert_eq!(fs::read_to_string(host.file("calls")).unwrap(), "3\n");
    }
}

// ------------------------------------------------------------------------------------------------ the other commands

#[test]
fn doctor_says_what_is_wrong() {
    let (daemon, mut host, _) = in_step();
    let ran = host.run(&["--doctor"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.lines().all(|line| line.starts_with("ok ")), "{ran:?}");

    fs::set_permissions(host.auth_file(), fs::Permissions::from_mode(0o644)).unwrap();
    host.env("CODEX_API_KEY", "x");
    daemon.answer_always(401, "status error\nmessage Invalid API key\n");
    let ran = host.run(&["--doctor"]);
    assert_eq!(ran.code, Some(1));
    for said in ["chmod 600", "CODEX_API_KEY", "Invalid API key"] {
        assert!(ran.out.lines().any(|line| line.starts_with("fail ") && line.contains(said)), "{said}: {ran:?}");
    }
    drop(daemon);
    let ran = host.run(&["--doctor"]);
    assert!(ran.out.contains("fail  the daemon cannot be reached"), "{ran:?}");
}

#[test]
fn update_brings_the_wrapper_that_was_announced() {
    let (daemon, host, _) = in_step();
    let before = fs::read_to_string(host.cdx_file()).unwrap();
    let newer = before.replace("CDX_WRAPPER_VERSION='", "CDX_WRAPPER_VERSION='9");
    let digest = Digest::of(newer.as_bytes()).to_string();
    // The codex of this host is not the version that the stand-in names; there is no npm to install another.
    host.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
    for (script, announced) in [
        (newer.clone(), "0".repeat(64)),
        (newer.clone(), String::new()),
        (newer[..newer.len() / 2].to_owned(), Digest::of(&newer.as_bytes()[..newer.len() / 2]).to_string()),
        ("#!/bin/sh\necho\n".to_owned(), Digest::of(b"#!/bin/sh\necho\n").to_string()),
    ] {
        daemon.set_wrapper(script.as_bytes(), &announced);
        let ran = host.run(&["--update"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), before, "{ran:?}");
        assert_eq!(litter(&host), Vec::<PathBuf>::new());
    }
    daemon.set_wrapper(newer.as_bytes(), &digest);
    let ran = host.run(&["--update"]);
    assert!(ran.err.contains("cdx is now 9"), "{ran:?}");
    assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), newer);
    assert_eq!(fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn uninstall_takes_everything_of_its_own_and_nothing_else() {
    let (daemon, host, _) = in_step();
    let ran = host.run(&["--uninstall"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(daemon.commands(), ["DELETE"]);
    assert!(!host.cdx_file().exists() && !host.auth_file().exists() && !host.file(".cache/cdx").exists());
    assert!(host.file("bin/codex").exists());

    let (daemon, host, _) = in_step();
    host.set_auth(&login(60).to_string());
    let ran = host.run(&["--uninstall"]);
    assert!(host.auth_file().exists(), "a login that did not come from the daemon was removed: {ran:?}");
    drop(daemon);

    let (daemon, host, _) = in_step();
    drop(daemon);
    assert_eq!(host.run(&["--uninstall"]).code, Some(69));
    assert!(host.cdx_file().exists() && host.auth_file().exists(), "a partial removal removed files");
    assert_eq!(host.run(&["--uninstall", "--force"]).code, Some(0));
    assert!(!host.cdx_file().exists());
}

#[test]
fn quiet_leaves_only_errors() {
    let (daemon, mut host, _) = in_step();
    daemon.answer_always(503, "");
    host.env("CDX_QUIET", "1");
    assert_eq!(host.run(&["x"]).err, "");
    host.shift_last_sync(-90_000);
    assert_ne!(host.run(&["x"]).err, "");
}

// ------------------------------------------------------------------------------------------------ the installer

/// Pipes a script into bash, as `curl … | bash` does.
pub fn pipe_installer(host: &Host, script: &[u8]) -> Ran {
    let bash = host.shell.clone().unwrap_or_else(|| "bash".into());
    let mut child = host.command(bash).stdin(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(script);
    Ran::from(child.wait_with_output().unwrap())
}

/// A host on which `id -u` prints 1000, so that the installer installs for that user.
pub fn bare_host(daemon: &StandIn) -> Host {
    let host = Host::new(&daemon.server.url());
    fs::remove_file(host.cdx_file()).unwrap();
    host.write_program("bin/id", "#!/bin/sh\necho 1000\n", 0o755);
    host
}

#[test]
fn the_installer_leaves_a_host_that_is_in_step() {
    let daemon = StandIn::start();
    let canonical = daemon.set_canonical(&login(10));
    let mut host = bare_host(&daemon);
    let (cdx, installer) = baked(&daemon.server.url(), "", "");
    let ran = pipe_installer(&host, installer.expose().as_bytes());
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{ran:?}");
    assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), cdx.expose());
    assert_eq!(fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(ran.out.contains("not on your PATH") && ran.out.contains("type next:"), "{ran:?}");
    assert_eq!(fs::read_dir(host.file(".local/bin")).unwrap().count(), 1, "no litter");

    host.path = format!("{}:{}", host.file(".local/bin").display(), host.path);
    let ran = pipe_installer(&host, installer.expose().as_bytes());
    assert!(ran.code == Some(0) && !ran.out.contains("not on your PATH"), "again is fine: {ran:?}");
    assert_eq!(fs::read_dir(host.file(".local/bin")).unwrap().count(), 1, "no litter");
}

#[test]
fn the_installer_says_in_which_file_the_path_is_set() {
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let (_, installer) = baked(&daemon.server.url(), "", "");
    for (shell, said) in [
        ("/bin/bash", "at the end of ~/.bashrc:"),
        ("/usr/bin/zsh", "at the end of ~/.zshrc:"),
        ("/bin/dash", "at the end of ~/.profile:"),
        ("", "at the end of ~/.profile:"),
        ("/usr/bin/fish", "fish_add_path \"$HOME/.local/bin\""),
    ] {
        let mut host = bare_host(&daemon);
        host.env("SHELL", shell);
        let ran = pipe_installer(&host, installer.expose().as_bytes());
        assert!(ran.code == Some(0) && ran.out.contains(said), "{shell}: {ran:?}");
        let line = ran.out.contains("  export PATH=\"$HOME/.local/bin:$PATH\"");
        assert_eq!(line, !shell.ends_with("fish"), "{shell}: {ran:?}");
    }
}

#[test]
fn half_an_installer_does_nothing() {
    let daemon = StandIn::start();
    let host = bare_host(&daemon);
    let (_, installer) = baked(&daemon.server.url(), "", "");
    let script = installer.expose().as_bytes();
    for part in [script.len() / 3, script.len() - 300, script.len() - 32] {
        pipe_installer(&host, &script[..part]);
        assert!(!host.cdx_file().exists(), "cut at {part} of {}", script.len());
    }
}

#[test]
fn an_installer_that_fails_undoes_itself() {
    if codex_is_installed_here() {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let (_, installer) = baked(&daemon.server.url(), "", "");
    let npm = "#!/bin/sh\ncase $* in *uninstall*) rm -rf \"$HOME/.local/bin/codex\" \"$HOME/.local/lib\"; exit;; esac\n\
               case $1 in prefix) echo /; exit;; esac\n\
               mkdir -p \"$HOME/.local/lib/node_modules/@openai/codex\"; cp \"$HOME/codex.kept\" \"$HOME/.local/bin/codex\"\n";
    for previous in [None, Some("#!/bin/sh\n# the one before\n")] {
        for breakage in ["no codex to be had", "npm fails", "no home for the login"] {
            let host = bare_host(&daemon);
            fs::rename(host.file("bin/codex"), host.file("codex.kept")).unwrap();
            daemon.answer_well();
            let sparse = sparse_path(&host, &["bin/id"]);
            match breakage {
                "npm fails" => host.write_program("sparse/npm", "#!/bin/sh\nexit 1\n", 0o755),
                "no home for the login" => host.write_program("sparse/npm", npm, 0o755),
                _ => {}
            }
            host.write_program("sparse/node", "#!/bin/sh\necho v18.19.0\n", 0o755);
            if let Some(previous) = previous {
                host.write_program(".local/bin/cdx", previous, 0o711);
            }
            if breakage == "no home for the login" {
                // The home cannot store a login, so the last step fails.
                fs::write(host.file(".codex"), "in the way").unwrap();
            }
            let mut host = host;
            host.path = sparse;
            let ran = pipe_installer(&host, installer.expose().as_bytes());
            assert_eq!(ran.code, Some(1), "{breakage}: {ran:?}");
            assert_eq!(fs::read_to_string(host.cdx_file()).ok().as_deref(), previous, "{breakage}: {ran:?}");
            let left = fs::read_dir(host.file(".local/bin")).unwrap().count();
            assert_eq!(left, usize::from(previous.is_some()), "{breakage}: no litter, no codex: {ran:?}");
            assert!(
                ran.err.contains("undone") && ran.err.contains("codex-authd hosts add --rotate h1.example.test"),
                "{ran:?}"
            );
            if breakage == "no codex to be had" {
                assert!(ran.err.contains("npm") && ran.err.contains("release URL"), "the reason and the fix: {ran:?}");
            }
        }
    }
}

#[test]
fn codex_comes_from_the_release_url_that_the_operator_set() {
    if codex_is_installed_here() {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let host = bare_host(&daemon);
    // The archive contains the program under the name of the project's own releases.
    let target = format!("codex-{}-unknown-linux-musl", std::env::consts::ARCH);
    fs::rename(host.file("bin/codex"), host.file(&target)).unwrap();
    let packed = host.command("tar").args(["czf", "release.tar.gz", &target]).status().unwrap();
    assert!(packed.success());
    let archive = fs::read(host.file("release.tar.gz")).unwrap();
    let releases = crate::support::http::HttpServer::plain(move |_| {
        crate::support::http::Reply::new(200, "application/gzip", archive.clone())
    });
    let url = format!("{}/rust-v{{version}}/codex-{{target}}.tar.gz", releases.url());
    let (_, installer) = baked(&daemon.server.url(), "", &url);
    let mut host = host;
    host.path = sparse_path(&host, &["bin/id"]);
    let ran = pipe_installer(&host, installer.expose().as_bytes());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(releases.calls()[0].path, format!("/rust-v0.169.0/{target}.tar.gz"));
    assert_eq!(releases.calls()[0].header("x-api-key"), None, "the key was sent to the release server");
    assert!(host.file(".local/bin/codex").exists());
    assert_eq!(host.run(&["x"]).code, Some(0));
}

/// Over plain HTTP only the digest protects: a replaced archive is not installed.
#[test]
fn a_release_that_is_not_the_named_one_is_not_installed() {
    if codex_is_installed_here() {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    for (digests, wanted) in [
        (format!("aarch64-apple-darwin={} {target}={{}}", "0".repeat(64)), None),
        (format!("{target}={}", "0".repeat(64)), Some("another SHA-256")),
        (format!("x{target}={{}} other={{}}"), Some("no SHA-256 of codex for")),
    ] {
        let mut host = bare_host(&daemon);
        let program = format!("codex-{target}");
        fs::rename(host.file("bin/codex"), host.file(&program)).unwrap();
        assert!(host.command("tar").args(["czf", "release.tar.gz", &program]).status().unwrap().success());
        let archive = fs::read(host.file("release.tar.gz")).unwrap();
        let digests = digests.replace("{}", &codex_authd::model::digest::Digest::of(&archive).to_string());
        let releases = crate::support::http::HttpServer::plain(move |_| {
            crate::support::http::Reply::new(200, "application/gzip", archive.clone())
        });
        let url = format!("{}/codex-{{target}}.tar.gz", releases.url());
        let (_, installer) = baked_with_digests(&daemon.server.url(), "", &url, &digests);
        host.path = sparse_path(&host, &["bin/id"]);
        let ran = pipe_installer(&host, installer.expose().as_bytes());
        // Without a digest nothing is fetched.
        let fetched = wanted != Some("no SHA-256 of codex for");
        assert_eq!(releases.calls().len(), usize::from(fetched), "{ran:?}");
        match wanted {
            None => assert_eq!(ran.code, Some(0), "{ran:?}"),
            Some(reason) => {
                assert_ne!(ran.code, Some(0), "{ran:?}");
                assert!(ran.err.contains(reason), "{ran:?}");
            }
        }
        assert_eq!(host.file(".local/bin/codex").exists(), wanted.is_none(), "{digests}");
    }
}

// ------------------------------------------------------------------------------------------------ everywhere

/// A PATH with only bash, curl, tar, and the tools of POSIX and coreutils.
pub fn sparse_path(host: &Host, more: &[&str]) -> String {
    let directory = host.file("sparse");
    fs::create_dir_all(&directory).unwrap();
    for program in [
        "bash",
        "sh",
        "env",
        "curl",
        "tar",
        "gzip",
        "sed",
        "grep",
        "sha256sum",
        "head",
        "cat",
        "cp",
        "mv",
        "rm",
        "rmdir",
        "mkdir",
        "chmod",
        "ls",
        "stat",
        "readlink",
        "mktemp",
        "uname",
        "id",
        "date",
        "sleep",
        "touch",
    ] {
        let real = ["/usr/bin", "/bin"].iter().map(|bin| Path::new(bin).join(program)).find(|file| file.exists());
        let _ = symlink(real.unwrap_or_else(|| panic!("{program} is not here")), directory.join(program));
    }
    for program in more {
        let file = host.file(program);
        let place = directory.join(file.file_name().unwrap());
        let _ = fs::remove_file(&place);
        symlink(file, place).unwrap();
    }
    directory.display().to_string()
}

/// The shells that the scripts must support: this machine's, and bash 3.2 (as in macOS) if `AUTHD_TEST_BASH32` names
/// one or the tests' cache has it.
pub fn shells() -> Vec<Option<PathBuf>> {
    let old = bash32();
    if old.is_none() {
        Unavailable::Bash32.skipped();
    }
    std::iter::once(None).chain(old.map(Some)).collect()
}

#[test]
fn the_whole_story_runs_in_every_shell_on_a_bare_path() {
    let busybox = Path::new("/bin/busybox");
    for shell in shells() {
        for tools in ["coreutils", "busybox"] {
            if tools == "busybox" && !busybox.exists() {
                skipped("no busybox here");
                continue;
            }
            let (daemon, mut host, _) = in_step();
            host.shell = shell.clone();
            host.path = sparse_path(&host, &["bin/codex"]);
            if tools == "busybox" {
                for program in [
                    "sed",
                    "grep",
                    "sha256sum",
                    "head",
                    "cat",
                    "cp",
                    "mv",
                    "rm",
                    "rmdir",
                    "mkdir",
                    "ls",
                    "stat",
                    "readlink",
                    "date",
                ] {
                    let place = host.file("sparse").join(program);
                    fs::remove_file(&place).unwrap();
                    symlink(busybox, place).unwrap();
                }
            }
            let said = format!("{shell:?} {tools}");
            let canonical = daemon.set_canonical(&login(20));
            let ran = host.run_codex("cat; exit 3", &["a b"]);
            assert_eq!((ran.code, ran.err.as_str(), host.auth()), (Some(3), "", Some(canonical)), "{said} {ran:?}");
            let renew = format!("printf '%s' '{}' >\"$HOME/.codex/auth.json\"", login(30));
            assert_eq!(host.run_codex(&renew, &[]).code, Some(0), "{said}");
            assert_eq!(daemon.canonical(), Some(login(30).to_string()), "{said}");
            let ran = host.run(&["--doctor"]);
            assert_eq!(ran.code, Some(0), "{said} {ran:?}");
            assert!(host.run(&["--version"]).out.contains("codex 0.1.2"), "{said}");
            daemon.answer_always(503, "");
            assert_eq!(host.run(&["x"]).code, Some(0), "{said}");
            daemon.answer_well();
            let ran = host.run(&["--uninstall"]);
            assert_eq!((ran.code, host.cdx_file().exists()), (Some(0), false), "{said} {ran:?}");
        }
    }
}

#[test]
fn the_version_of_codex_is_asked_once_for_each_codex() {
    let (daemon, host, _) = in_step();
    let versions = || -> Vec<String> {
        daemon.server.calls().iter().map(|call| call.json()["client_version"].as_str().unwrap().to_owned()).collect()
    };
    let counting = |version: &str| {
        let text =
            format!("#!/bin/sh\n[ \"$1\" = --version ] || exit 0\necho >>\"$HOME/asked\"\necho codex-cli {version}\n");
        host.write_program("bin/codex.new", &text, 0o755);
        fs::rename(host.file("bin/codex.new"), host.file("bin/codex")).unwrap();
    };
    counting("0.2.0");
    host.run(&["x"]);
    host.run(&["x"]);
    counting("0.3.0");
    host.run(&["x"]);
    assert_eq!(versions(), ["0.2.0", "0.2.0", "0.3.0"]);
    assert_eq!(fs::read_to_string(host.file("asked")).unwrap().lines().count(), 2);
}

#[test]
fn the_scripts_are_clean_to_shellcheck() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let hosts = ["wrapper/cdx", "wrapper/install.sh", "wrapper/start.sh"];
    let scripts = hosts.into_iter().chain(["tests/install-codex.sh", "tests/install-oidc-provider.sh"]);
    let output = Command::new("shellcheck").args(scripts).current_dir(root).output().expect("shellcheck is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Whether a codex is in /usr/local/bin, where `cdx` finds it with any PATH. Then this machine has no host without one.
pub fn codex_is_installed_here() -> bool {
    let here = Path::new("/usr/local/bin/codex").exists();
    if here {
        skipped("there is a codex in /usr/local/bin, and the test is about a host without one");
    }
    here
}
