//! `cdx` runs Codex: the real one where a login is renewed, else a script.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use codex_authd::model::digest::Digest;

use super::{BANANA, codex_is_installed_here, in_step, login};
use crate::support::answers::sync;
use crate::support::eventually;
use crate::support::host::{Host, Program, Ran};
use crate::support::standin::StandIn;
use crate::support::upstream::Upstream;

crate::for_both_programs!(
    a_launch_with_nothing_new_costs_one_request,
    a_login_that_codex_renews_reaches_the_next_host,
    a_login_that_the_upstream_withdrew_is_renewed_and_handed_back,
    the_upstream_takes_a_refresh_token_once,
    what_goes_before_the_login_is_not_passed_to_codex,
    codex_gets_the_arguments_the_input_and_gives_its_exit_code,
    codex_gets_the_environment_as_it_was,
    ctrl_c_is_for_codex_and_cdx_still_hands_the_login_back,
    a_signal_that_ends_cdx_ends_codex,
    codex_that_is_not_there_is_said_to_be_missing,
);

fn a_launch_with_nothing_new_costs_one_request(program: Program) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", 864_000));
    let host = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
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

fn a_login_that_codex_renews_reaches_the_next_host(program: Program) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", -60));
    let first = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
    let ran = first.run(&BANANA);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "Banana\n"), "{ran:?}");
    assert_eq!(upstream.calls_to("POST", "/oauth/token").len(), 1);
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    let renewed = daemon.canonical().unwrap();
    assert_ne!(renewed, canonical);
    assert_eq!(first.auth().as_ref(), Some(&renewed), "the host holds the canonical text");

    let second = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
    assert_eq!(second.run(&BANANA).out, "Banana\n");
    assert_eq!(second.auth(), Some(renewed));
    assert_eq!(upstream.calls_to("POST", "/oauth/token").len(), 1, "the second host found it fresh");
}

fn a_login_that_the_upstream_withdrew_is_renewed_and_handed_back(program: Program) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", 864_000));
    upstream.withdraw_access();
    upstream.set_lifetime(3600);
    let host = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
    assert_eq!(host.run(&BANANA).out, "Banana\n");
    let refreshes = upstream.calls_to("POST", "/oauth/token");
    assert_eq!((refreshes.len(), refreshes[0].status), (1, 200));
    assert_ne!(daemon.canonical(), Some(canonical));
    assert_eq!(daemon.canonical(), host.auth());
}

fn the_upstream_takes_a_refresh_token_once(program: Program) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let stale = upstream.login("acc-1", -60).to_string();
    for (expected, status) in [(Some(0), 200), (Some(1), 401)] {
        daemon.answer_always(200, sync("valid", None));
        let host = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
        host.set_auth(&stale);
        let ran = host.run(&BANANA);
        assert_eq!(ran.code, expected, "{ran:?}");
        assert_eq!(upstream.calls_to("POST", "/oauth/token").last().unwrap().status, status);
    }
}

fn what_goes_before_the_login_is_not_passed_to_codex(program: Program) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let login = upstream.login("acc-1", 864_000);
    daemon.set_canonical(&login);
    let mut host = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
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

fn codex_gets_the_arguments_the_input_and_gives_its_exit_code(program: Program) {
    let (_daemon, host, _) = in_step(program);
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

fn codex_gets_the_environment_as_it_was(program: Program) {
    let (_daemon, mut host, _) = in_step(program);
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
        if !program.is_native() {
            // The script's own values have these names, so it removes the caller's.
            bare.retain(|line| !line.starts_with("CDX_API_KEY="));
        }
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

fn ctrl_c_is_for_codex_and_cdx_still_hands_the_login_back(program: Program) {
    for shell in program.shells() {
        let (daemon, mut host, _) = in_step(program);
        host.shell = shell.clone();
        let renewed = login(20);
        host.write_program("renewed.json", &renewed.to_string(), 0o600);
        let ran = press_ctrl_c(
            &host,
            r#"trap 'cp "$HOME/renewed.json" "$HOME/.codex/auth.json"; exit 9' INT; touch "$HOME/running"; test -t 0 || exit 3; for i in {1..100}; do sleep 0.1; done; exit 5"#,
        );
        assert_eq!(ran.code, Some(9), "{shell:?} {ran:?}");
        assert_eq!(daemon.commands(), ["retrieve", "store"]);

        let (_daemon, mut host, _) = in_step(program);
        host.shell = shell.clone();
        // It reports that it runs when the program has replaced the shell, so the signal ends the program.
        let ran = press_ctrl_c(
            &host,
            r#"(until [ "$(cat /proc/$$/comm)" = sleep ]; do :; done; touch "$HOME/running") & exec sleep 10"#,
        );
        assert_eq!(ran.code, Some(130), "a codex that does not catch it dies of it: {shell:?} {ran:?}");
    }
}

fn a_signal_that_ends_cdx_ends_codex(program: Program) {
    for shell in program.shells() {
        for signal in ["TERM", "HUP"] {
            let (_daemon, mut host, _) = in_step(program);
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

fn codex_that_is_not_there_is_said_to_be_missing(program: Program) {
    if codex_is_installed_here() {
        return;
    }
    let (_daemon, host, _) = in_step(program);
    fs::remove_file(host.file("bin/codex")).unwrap();
    let ran = host.run(&["exec"]);
    assert_eq!(ran.code, Some(127));
    assert!(ran.err.contains("cdx --update"), "{ran:?}");
}
