use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::host::{Host, KEY, StandIn, config, login};

#[test]
fn a_host_without_a_configuration_was_never_set_up() {
    let host = Host::new(&StandIn::start());
    fs::remove_file(host.file(".config/cdx/host.toml")).unwrap();
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.file("arguments").exists()), (Some(78), false), "{ran:?}");
    assert!(ran.err.contains("never set up") && ran.err.contains(".config/cdx/host.toml"), "{ran:?}");
    assert_eq!(host.run(&["--version"]).code, Some(0));
    // What a crash of an uninstallation may leave.
    let copied = Command::new("cp").args([Path::new(env!("CARGO_BIN_EXE_cdx")), &host.file("bin/cdx")]).status();
    assert!(copied.unwrap().success());
    let gone = host.command(&host.file("bin/cdx"), &["--uninstall"]).status().unwrap();
    assert!(gone.success() && !host.file("bin/cdx").exists());
}

#[test]
fn a_hostile_configuration_is_refused_and_not_quoted() {
    let daemon = StandIn::with_canonical(&login(10));
    let good = config(&daemon.url);
    for (text, mode, said) in [
        (good.clone(), 0o644, "chmod 640"),
        (good.clone(), 0o602, "chmod 600"),
        (format!("{good}\nca_pem = [\"{KEY}\"]"), 0o600, "line 5"),
        (good.replace("http:", "file:"), 0o600, "no http or https address"),
        (good.replace("http://", "http://user:canary@"), 0o600, "without user and query"),
        (good.replace(KEY, "canary\\r\\nX-Evil: 1"), 0o600, "api_key"),
        (format!("{KEY} = = {KEY}"), 0o600, "no configuration of cdx"),
        ("x".repeat(2 << 20), 0o600, "longer than 1 MiB"),
    ] {
        let host = Host::new(&daemon);
        host.write(".config/cdx/host.toml", &text, mode);
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.file("arguments").exists()), (Some(78), false), "{said}: {ran:?}");
        assert!(ran.err.contains(said) && !ran.err.contains("canary"), "{said}: {ran:?}");
    }
    let host = Host::new(&daemon);
    fs::remove_file(host.file(".config/cdx/host.toml")).unwrap();
    nix::unistd::mkfifo(&host.file(".config/cdx/host.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(host.run(&["x"]).code, Some(78), "a FIFO blocks");
    assert!(daemon.commands().is_empty());
}

#[test]
fn a_profile_is_another_daemon_beside_the_first() {
    let (first, second) = (StandIn::with_canonical(&login(10)), StandIn::with_canonical(&login(20)));
    let host = Host::new(&first);
    host.write(".config/cdx/work.toml", &config(&second.url), 0o600);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(host.auth(), Some(login(10)));
    let other = host
        .cdx(&["--profile", "work", "exec", "--profile", "o3"])
        .env("CODEX_HOME", host.file("other"))
        .output()
        .unwrap();
    assert!(other.status.success(), "{other:?}");
    assert_eq!(fs::read_to_string(host.file("other/auth.json")).unwrap(), login(20));
    assert_eq!(fs::read_to_string(host.file("arguments")).unwrap(), "exec --profile o3\n", "the second is of codex");
    assert_eq!(host.run(&["--profile", "o3", "exec"]).code, Some(0));
    assert_eq!(fs::read_to_string(host.file("arguments")).unwrap(), "--profile o3 exec\n", "cdx has no such profile");
    for arguments in
        [&["--sync", "--profile", "none"][..], &["--profile=none", "--doctor"], &["--sync", "--profile=../host"]]
    {
        assert_eq!(host.run(arguments).code, Some(78), "{arguments:?}");
    }
    assert_eq!(host.cdx(&["x"]).env("CDX_PROFILE", "none").status().unwrap().code(), Some(78));
}

#[test]
fn json_is_for_programs_and_holds_no_secret() {
    let daemon = StandIn::with_canonical(&login(10));
    let host = Host::new(&daemon);
    let json = |arguments: &[&str], code: i32| -> Value {
        let ran = host.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
        assert!(!ran.out.contains("canary") && !ran.out.contains("refresh_token"), "{ran:?}");
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {ran:?}"))
    };
    let status = json(&["status", "--json"], 0);
    assert_eq!((&status["status"], &status["login"]["digest"]), (&"outdated".into(), &Value::Null));
    assert!(host.auth().is_none(), "status changes nothing");
    assert_eq!(json(&["--sync", "--json"], 0)["in_step"], true);
    let status = json(&["status", "--json"], 0);
    assert_eq!((&status["status"], &status["host"]), (&"valid".into(), &"h1.example.test".into()));
    assert_eq!((&status["login"]["is_synchronised"], &status["codex"]), (&true.into(), &"0.1.2".into()));
    assert_eq!(json(&["--version", "--json"], 0)["codex"], "0.1.2");
    let doctor = json(&["--doctor", "--json"], 0);
    assert!(doctor["checks"].as_array().unwrap().iter().all(|check| check["ok"] == true), "{doctor}");
    daemon.state.lock().unwrap().refuses = Some(401);
    assert_eq!(json(&["status", "--json"], 77)["error"], "Not now");
    assert_eq!(json(&["--doctor", "--json"], 1)["failures"], 1);
    let ran = host.run(&["status"]);
    assert!(ran.code == Some(77) && ran.out.contains("login    ") && ran.out.contains(": Not now"), "{ran:?}");
}
