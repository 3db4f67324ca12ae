use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::host::{Host, KEY, Ran, StandIn, config, login};

fn script(url: &str, ca: &str) -> String {
    format!(
        "#!/usr/bin/env bash\n# --- baked: begin\nCDX_BASE_URL='{url}'\nCDX_API_KEY='{KEY}'\nCDX_FQDN='h1.example.test'\nCDX_CA_PEM='{ca}'\n\
         CDX_SYSTEM_CA=''\nCDX_CODEX_RELEASE_URL=''\nCDX_CODEX_RELEASE_SHA256=''\nCDX_CODEX_NPM='@openai/codex'\n# --- baked: end\nmain \"$@\"\n"
    )
}

/// A host with its own copy of the program, and a daemon that has its script.
fn installed() -> (StandIn, Host) {
    let daemon = StandIn::with_canonical(&login(10));
    daemon.state.lock().unwrap().script = script(&daemon.url, "").into_bytes();
    let host = Host::new(&daemon);
    fs::create_dir_all(host.file(".local/bin")).unwrap();
    // A process of its own writes the copy: a file that is open for writing here could not be executed.
    let copied = Command::new("cp").args([Path::new(env!("CARGO_BIN_EXE_cdx")), &host.file(".local/bin/cdx")]).status();
    assert!(copied.unwrap().success());
    (daemon, host)
}

fn update(host: &Host, arguments: &[&str]) -> Ran {
    let arguments = [&["--update"], arguments].concat();
    Ran::from(host.command(&host.file(".local/bin/cdx"), &arguments).output().unwrap())
}

#[test]
fn an_update_renews_the_configuration_and_keeps_its_mode() {
    let (daemon, host) = installed();
    let file = host.file(".config/cdx/host.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read_to_string(&file).unwrap();
    let ran = update(&host, &[]);
    assert!(ran.code == Some(0) && ran.err.contains("the daemon has no native cdx for"), "{ran:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before, "nothing is new: {ran:?}");

    daemon.state.lock().unwrap().script = script(&daemon.url, "-----BEGIN CERTIFICATE-----\nit'\\''s\n").into_bytes();
    assert_eq!(update(&host, &[]).code, Some(0));
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.contains(r#"ca_pem = "-----BEGIN CERTIFICATE-----\nit's\n""#), "{after}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);

    daemon.state.lock().unwrap().script = b"#!/bin/sh\necho canary\n".to_vec();
    let ran = update(&host, &[]);
    assert!(ran.code == Some(1) && ran.err.contains("not a cdx"), "{ran:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
}

#[test]
fn a_new_program_is_run_before_it_takes_the_place_and_goes_on_once() {
    let (daemon, host) = installed();
    let program = host.file(".local/bin/cdx");
    let before = fs::read(&program).unwrap();
    for broken in ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n", "\x7fELF", ""] {
        daemon.state.lock().unwrap().program = Some(broken.into());
        let ran = update(&host, &[]);
        assert!(ran.code == Some(1) && ran.err.contains("not a cdx; cdx was not changed"), "{broken:?}: {ran:?}");
        assert!(fs::read(&program).unwrap() == before);
    }
    let newer =
        "#!/bin/sh\n[ -z \"${CDX_ASKS_CODEX+set}\" ] || { echo cdx 9; exit; }\necho \"$@\" >>\"$HOME/went on\"\n";
    daemon.state.lock().unwrap().program = Some(newer.into());
    let ran = update(&host, &[]);
    assert!(ran.code == Some(0) && ran.err.contains("cdx is now 9"), "{ran:?}");
    assert_eq!(fs::read_to_string(&program).unwrap(), newer);
    assert_eq!(fs::read_to_string(host.file("went on")).unwrap(), "--update\n");
    assert_eq!(fs::read_dir(host.file(".local/bin")).unwrap().count(), 1, "no litter");
}

#[test]
fn the_way_back_to_the_script_keeps_key_state_and_rights() {
    for (mode, wanted) in [(0o600, 0o700), (0o640, 0o750)] {
        let (daemon, host) = installed();
        host.write(".config/cdx/host.toml", &config(&daemon.url), mode);
        assert_eq!(host.run(&["--sync"]).code, Some(0));
        let ran = update(&host, &["--to-bash"]);
        assert!(ran.code == Some(0) && ran.err.contains("cdx is now the script"), "{ran:?}");
        let program = host.file(".local/bin/cdx");
        assert_eq!(fs::read(&program).unwrap(), daemon.state.lock().unwrap().script);
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, wanted);
        assert!(!host.file(".config/cdx").exists() && host.file(".cache/cdx").exists());
        assert_eq!(host.auth(), Some(login(10)));
    }
    let (daemon, host) = installed();
    daemon.state.lock().unwrap().script = script(&daemon.url, "").replace("main", "if then").into_bytes();
    let ran = update(&host, &["--to-bash"]);
    assert!(ran.code == Some(1) && ran.err.contains("the bash cdx does not run here"), "{ran:?}");
    assert!(host.file(".config/cdx/host.toml").exists());
}
