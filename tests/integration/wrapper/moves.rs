//! A host moves from the bash `cdx` to the native one, by an update or by the installer. At every moment there is a
//! working `cdx`, and a native one has its whole configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use codex_authd::model::digest::Digest;
use serde_json::json;

use super::commands::newer_program;
use super::machine::{as_root, host_of_root, install_as_root, rights};
use super::{assert_has, bare_host, login, pipe_installer};
use crate::doctor::a_free_port;
use crate::support::answers::refusal;
use crate::support::daemon::{Daemon, auth_json};
use crate::support::host::{Host, HostConfig, Program, Ran, baked, baked_with, is_root, native_program};
use crate::support::standin::{KEY, StandIn, machine_target};

/// Stands for the native program where only its placement is tested: it says its version, and logs its arguments.
const PROGRAM: &str = "#!/bin/sh\n[ -z \"${CDX_ASKS_CODEX+set}\" ] || { echo cdx 9-native; exit; }\n\
                       [ \"$1\" != --version ] || { echo cdx 9-native; echo codex 0.1.2; exit; }\n\
                       echo \"$@\" >>\"$HOME/native.arguments\"\n";

fn digest(program: &str) -> String {
    Digest::of(program.as_bytes()).to_string()
}

/// A daemon that has this program, and a host with the script.
fn with_program(program: &str) -> (StandIn, Host) {
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    daemon.set_program(program.as_bytes(), &digest(program));
    let host = Host::new(Program::Bash, &daemon.server.url());
    host.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    daemon.server.forget_calls();
    (daemon, host)
}

fn has_script(host: &Host) -> bool {
    fs::read(host.cdx_file()).unwrap().starts_with(b"#!/usr/bin/env bash\n")
}

/// The files beside `file` that belong to no installed program.
fn beside(file: &Path) -> Vec<String> {
    let Ok(files) = fs::read_dir(file.parent().unwrap()) else { return Vec::new() };
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| *name != *file.file_name().unwrap().to_str().unwrap()).collect()
}

fn assert_no_litter(host: &Host) {
    assert_eq!(beside(&host.cdx_file()), [""; 0]);
    assert_eq!(beside(&host.host_toml()), [""; 0]);
    let state = host.state_file();
    let left: Vec<_> = beside(&state).into_iter().filter(|name| name.contains(".cdx.")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn an_update_moves_the_script_to_the_program_with_its_key_and_state() {
    for shell in Program::Bash.shells() {
        let (daemon, mut host) = with_program(PROGRAM);
        host.shell = shell;
        let config = HostConfig {
            base_url: &daemon.server.url(),
            ca_pem: "-----BEGIN CERTIFICATE-----\nMII\\B\"'$(touch canary)\n-----END CERTIFICATE-----\n",
            trusts_system: true,
            codex_release_url: "https://x.test/\\\"{target}'`touch canary`\u{fc}",
            codex_release_sha256: "a=1 b=2",
        };
        host.install(&config);
        let (state, before) = (host.state_file(), fs::read_to_string(host.state_file()).unwrap());
        let command_lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&command_lines);
        daemon.on_call(move || {
            for process in fs::read_dir("/proc").unwrap().flatten() {
                for name in ["cmdline", "environ"] {
                    let text = fs::read(process.path().join(name)).unwrap_or_default();
                    seen.lock().unwrap().push(String::from_utf8_lossy(&text).into_owned());
                }
            }
        });
        let ran = host.run(&["--update"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.err.contains("cdx is now the native one, 9-native"), "{ran:?}");
        assert!(!format!("{ran:?}").contains(KEY));
        assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), PROGRAM);
        assert_eq!(fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_to_string(host.file("native.arguments")).unwrap(), "--update\n", "it goes on once");

        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&host.host_toml()), mode(host.host_toml().parent().unwrap())), (0o600, 0o700));
        let written: toml::Table = fs::read_to_string(host.host_toml()).unwrap().parse().unwrap();
        let wanted: toml::Table = config.toml().parse().unwrap();
        assert_eq!(written, wanted);
        assert!(!host.file("canary").exists());
        assert_eq!(fs::read_to_string(state).unwrap(), before, "the state was changed");
        assert_no_litter(&host);

        let calls: Vec<_> = daemon.server.calls().iter().map(|call| (call.path.clone(), call.query.clone())).collect();
        let target = format!("target={}", machine_target());
        assert_eq!(calls, [("/auth/lines".into(), String::new()), ("/wrapper/download".into(), target)]);
        assert_eq!(daemon.server.calls()[0].json()["wrapper_target"], machine_target());
        let command_lines = command_lines.lock().unwrap();
        assert!(command_lines.iter().any(|line| line.contains("curl")), "the calls were watched while curl ran");
        assert!(!command_lines.iter().any(|line| line.contains(KEY)));
    }
}

#[test]
fn an_ordinary_call_does_not_say_what_the_machine_is() {
    let (daemon, host) = with_program(PROGRAM);
    assert_eq!(host.run(&["x"]).code, Some(0));
    assert_eq!(daemon.server.calls()[0].json()["wrapper_target"], json!(null));
    assert!(has_script(&host));
}

#[test]
fn a_program_that_is_not_the_announced_one_is_not_installed() {
    let other = PROGRAM.replace("9-native", "8-native");
    for (served, announced) in
        [(PROGRAM, "0".repeat(64)), (&other, digest(PROGRAM)), (&PROGRAM[..40], digest(PROGRAM)), ("", digest(PROGRAM))]
    {
        let (daemon, host) = with_program(PROGRAM);
        daemon.set_program(served.as_bytes(), &announced);
        let before = fs::read(host.cdx_file()).unwrap();
        host.write_host_toml("# the one before\n");
        let ran = host.run(&["--update"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("does not match its digest; cdx was not changed"), "{ran:?}");
        assert!(fs::read(host.cdx_file()).unwrap() == before);
        assert_eq!(fs::read_to_string(host.host_toml()).unwrap(), "# the one before\n");
        assert!(!host.file("native.arguments").exists(), "it was run");
        assert_no_litter(&host);
    }
}

#[test]
fn a_program_that_does_not_run_here_leaves_the_script_which_is_updated() {
    for program in ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n", "#!/no/such/interpreter\n", "\x7fELF\0\0\0"] {
        let (daemon, host) = with_program(program);
        let newer = newer_program(&host.cdx_file(), Program::Bash, &daemon);
        let ran = host.run(&["--update"]);
        assert!(ran.err.contains("cdx stays a script: the native cdx does not run here"), "{ran:?}");
        assert!(ran.err.contains("cdx is now 9"), "{ran:?}");
        assert!(fs::read(host.cdx_file()).unwrap() == newer, "{ran:?}");
        assert!(!host.host_toml().exists());
        assert_no_litter(&host);
    }
}

#[test]
fn a_program_that_is_gone_when_it_is_fetched_leaves_the_script() {
    let (daemon, host) = with_program(PROGRAM);
    let newer = newer_program(&host.cdx_file(), Program::Bash, &daemon);
    host.write_program("bin/uname", "#!/bin/sh\n[ $1 = -m ] && echo sparc || echo Linux\n", 0o755);
    let ran = host.run(&["--update"]);
    assert!(ran.err.contains("cdx is now 9") && !ran.err.contains("native"), "{ran:?}");
    assert!(fs::read(host.cdx_file()).unwrap() == newer);
    assert_eq!(daemon.server.calls()[0].json()["wrapper_target"], json!(null));
    assert!(!host.host_toml().exists());
}

#[test]
fn an_update_of_a_daemon_that_is_away_changes_nothing() {
    let (daemon, host) = with_program(PROGRAM);
    let before = fs::read(host.cdx_file()).unwrap();
    daemon.answer_always(503, refusal("degraded"));
    let ran = host.run(&["--update"]);
    assert_eq!(ran.code, Some(69), "{ran:?}");
    assert!(fs::read(host.cdx_file()).unwrap() == before && !host.host_toml().exists());
}

#[test]
fn a_script_for_every_user_moves_only_for_a_group() {
    if !is_root("an installation by root") {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    let config = HostConfig { base_url: &daemon.server.url(), ..HostConfig::default() };
    let host = host_of_root(Program::Bash);
    host.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
    assert_eq!(install_as_root(&host, baked(&config).1.expose(), None).code, Some(0));
    let (placed, written) = (host.file("usr-local-bin/cdx"), host.file("etc/cdx/host.toml"));
    assert_eq!(rights(&placed), (0o755, 0, 0));

    daemon.set_program(PROGRAM.as_bytes(), &digest(PROGRAM));
    let newer = newer_program(&placed, Program::Bash, &daemon);
    let ran = Ran::from(as_root(&host, &["/usr/local/bin/cdx", "--update"]).output().unwrap());
    assert!(ran.err.contains("'CDX_GROUP=name cdx --update' moves it"), "{ran:?}");
    assert!(ran.err.contains("cdx is now 9"), "the script is updated: {ran:?}");
    assert!(fs::read(&placed).unwrap() == newer && !written.exists());
    assert_eq!(rights(&placed), (0o755, 0, 0));

    let update = |group: &str| {
        Ran::from(as_root(&host, &["/usr/local/bin/cdx", "--update"]).env("CDX_GROUP", group).output().unwrap())
    };
    let ran = update("no-such-group");
    assert!(ran.code == Some(1) && ran.err.contains("there is no group no-such-group"), "{ran:?}");
    assert!(fs::read(&placed).unwrap() == newer && !written.exists());
    let ran = update("daemon");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(fs::read_to_string(&placed).unwrap(), PROGRAM);
    let gid = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    assert_eq!((rights(&placed), rights(&written)), ((0o750, 0, gid), (0o640, 0, gid)));
    assert_eq!(rights(written.parent().unwrap()), (0o755, 0, 0));
    assert!(written.parent().unwrap().read_dir().unwrap().count() == 1 && beside(&placed).is_empty(), "no litter");
}

/// Tools that end the whole process group at the call with the number in `$HOME/point`.
fn deadly_tools(host: &mut Host) {
    for tool in ["cp", "cat", "mv", "rm", "mkdir", "chmod", "chgrp", "sync", "sha256sum", "curl", "ls", "sed", "head"] {
        let text = format!(
            // A pipe calls two tools at once: a directory is made by one of them.
            "#!/bin/sh\nn=1\nuntil /bin/mkdir \"$HOME/call.$n\" 2>/dev/null; do n=$((n + 1)); done\n\
             read -r point <\"$HOME/point\"\n[ $n != \"$point\" ] || kill -9 0\n\
             [ -x /usr/bin/{tool} ] && exec /usr/bin/{tool} \"$@\"\nexec /bin/{tool} \"$@\"\n"
        );
        host.write_program(&format!("deadly/{tool}"), &text, 0o755);
    }
    host.path = format!("{}:{}", host.file("deadly").display(), host.path);
}

/// What a kill may leave: the script, or the program with its whole configuration.
fn assert_usable(host: &Host, config: &HostConfig, said: &str) {
    let written = fs::read_to_string(host.host_toml()).ok();
    if let Some(written) = &written {
        assert_eq!(written.parse::<toml::Table>().ok(), config.toml().parse().ok(), "{said}: a torn configuration");
    }
    let placed = fs::read_to_string(host.cdx_file()).unwrap();
    if placed == PROGRAM {
        assert!(written.is_some(), "{said}: a program without its configuration");
    } else {
        assert_eq!(placed, baked(config).0.expose(), "{said}: neither the script nor the program");
    }
}

#[test]
fn a_kill_during_a_move_leaves_a_cdx_that_works() {
    let mut moved = 0;
    for point in 1.. {
        let (daemon, mut host) = with_program(PROGRAM);
        deadly_tools(&mut host);
        fs::write(host.file("point"), point.to_string()).unwrap();
        let ran = Ran::from(host.cdx(&["--update"]).process_group(0).output().unwrap());
        let url = daemon.server.url();
        let config = HostConfig { base_url: &url, ..HostConfig::default() };
        assert_usable(&host, &config, &format!("killed at {point}: {ran:?}"));
        fs::write(host.file("point"), "0").unwrap();
        if has_script(&host) {
            let again = host.run(&["--update"]);
            assert_eq!(again.code, Some(0), "{point}: {again:?}");
            assert_no_litter(&host);
        } else {
            moved += 1;
        }
        assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), PROGRAM, "{point}");
        if ran.code == Some(0) {
            assert!(point > 10, "it was never killed");
            break;
        }
        assert_eq!(ran.code, None, "{point}: {ran:?}");
    }
    assert!(moved > 0);
}

/// With the real daemon and the real programs.
#[test]
fn a_host_moves_there_and_back_without_a_new_installer() {
    let mut daemon = Daemon::prepare(&[]);
    daemon.unset("LISTEN__HOSTS");
    let port = a_free_port().port();
    daemon.environment.push(("CODEX_AUTHD_LISTEN__HOSTS".into(), format!("127.0.0.1:{port}")));
    daemon.launch();
    let seed = daemon.state.path().join("auth.json");
    fs::write(&seed, auth_json("2025-11-20T09:27:43.373506211Z", 1).to_string()).unwrap();
    assert_eq!(daemon.cli_json(&["auth", "upload", seed.to_str().unwrap()])["status"], "updated");
    let host = bare_host(Program::Bash);
    let made = daemon.cli_json(&["hosts", "add", "h1.test"]);
    let command = made["installer"]["command"].as_str().unwrap();
    let ran = Ran::from(host.command("bash").args(["-c", command]).output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_has(&host, Program::Bash);
    let key = |text: &str, before: &str, after: &str| -> String {
        let line = text.lines().find_map(|line| line.strip_prefix(before)).unwrap();
        line.strip_suffix(after).unwrap().to_owned()
    };
    let first_key = key(&fs::read_to_string(host.cdx_file()).unwrap(), "CDX_API_KEY='", "'");
    let (login, state) = (host.auth(), host.state_file());

    // Without a program there is nothing to move to.
    let ran = host.run(&["--update"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_has(&host, Program::Bash);
    daemon.stop();
    daemon.set_native_program(Some(native_program()));
    daemon.launch();

    for round in 0..2 {
        let ran = host.run(&["--update"]);
        assert_eq!(ran.code, Some(0), "{round}: {ran:?}");
        assert!(ran.err.contains("cdx is now the native one"), "{round}: {ran:?}");
        assert_has(&host, Program::Native);
        assert_eq!(key(&fs::read_to_string(host.host_toml()).unwrap(), "api_key = \"", "\""), first_key);
        let again = host.run(&["--update"]);
        assert!(again.code == Some(0) && again.err.contains("is current"), "{round}: {again:?}");
        assert_eq!((host.run(&["x"]).code, host.auth(), host.state_file()), (Some(0), login.clone(), state.clone()));

        let ran = host.run(&["--update", "--to-bash"]);
        assert_eq!(ran.code, Some(0), "{round}: {ran:?}");
        assert_has(&host, Program::Bash);
        assert_eq!(key(&fs::read_to_string(host.cdx_file()).unwrap(), "CDX_API_KEY='", "'"), first_key);
        assert_eq!((host.run(&["x"]).code, host.auth(), host.state_file()), (Some(0), login.clone(), state.clone()));
    }
    let hosts = daemon.cli_json(&["hosts", "list"]);
    assert_eq!(hosts["hosts"].as_array().unwrap().len(), 1);
    assert_eq!(daemon.log().matches("action=installer.redeem").count(), 1, "it was installed again");
}

// ------------------------------------------------------------------------------------------------ the installer

#[test]
fn an_installer_installs_the_program_it_knows() {
    for shell in Program::Bash.shells() {
        let daemon = StandIn::start();
        daemon.set_canonical(&login(10));
        daemon.set_program(PROGRAM.as_bytes(), &digest(PROGRAM));
        let url = daemon.server.url();
        let config = HostConfig { base_url: &url, ..HostConfig::default() };
        let programs = format!("aarch64-darwin={} {}={}", "0".repeat(64), machine_target(), digest(PROGRAM));
        let mut host = bare_host(Program::Native);
        host.shell = shell;
        let ran = pipe_installer(&host, baked_with(&config, &programs).1.expose().as_bytes());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), PROGRAM);
        assert_eq!(fs::read_to_string(host.file("native.arguments")).unwrap(), "--sync\n");
        assert_usable(&host, &config, "installed");
        assert!(!format!("{ran:?}").contains(KEY) && !ran.out.contains("only root"), "{ran:?}");
        assert!(beside(&host.cdx_file()).is_empty() && beside(&host.host_toml()).is_empty(), "no litter");
    }
}

/// Until the program is in place, the script stands in a directory that every user can read.
#[test]
fn the_key_is_roots_alone_while_root_installs_the_program() {
    if !is_root("an installation by root") {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    daemon.set_program(PROGRAM.as_bytes(), &digest(PROGRAM));
    let url = daemon.server.url();
    let config = HostConfig { base_url: &url, ..HostConfig::default() };
    let programs = format!("{}={}", machine_target(), digest(PROGRAM));
    let host = host_of_root(Program::Native);
    let placed = host.file("usr-local-bin/cdx");
    let (during, seen) = (placed.clone(), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&seen);
    daemon.on_call(move || log.lock().unwrap().push(rights(&during)));
    let ran = install_as_root(&host, baked_with(&config, &programs).1.expose(), None);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(*seen.lock().unwrap(), [(0o700, 0, 0)], "while the program was fetched");
    assert_eq!(fs::read_to_string(&placed).unwrap(), PROGRAM);
    assert_eq!((rights(&placed), rights(&host.file("etc/cdx/host.toml"))), ((0o755, 0, 0), (0o600, 0, 0)));
    let advice = "only root can use it: /etc/cdx/host.toml, which contains the key, is root's. To let a group use it:  \
                  chgrp NAME /etc/cdx/host.toml && chmod 640 /etc/cdx/host.toml";
    assert!(ran.out.contains(advice), "{ran:?}");

    // The group that root gave it afterwards stays.
    let given = "chgrp daemon /etc/cdx/host.toml && chmod 640 /etc/cdx/host.toml";
    assert!(as_root(&host, &["sh", "-c", given]).status().unwrap().success());
    let ran = install_as_root(&host, baked_with(&config, &programs).1.expose(), None);
    assert!(ran.code == Some(0) && !ran.out.contains("only root"), "{ran:?}");
    let gid = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    assert_eq!((rights(&placed), rights(&host.file("etc/cdx/host.toml"))), ((0o750, 0, gid), (0o640, 0, gid)));
}

#[test]
fn an_installer_falls_back_to_the_script() {
    let broken = "#!/bin/sh\nexit 1\n";
    for (what, programs, said) in [
        ("none", String::new(), ""),
        ("other machines", format!("other={}", digest(PROGRAM)), "the daemon has no native cdx for"),
        ("gone", format!("{}={}", machine_target(), digest(PROGRAM)), "the daemon has no native cdx for"),
        ("does not run", format!("{}={}", machine_target(), digest(broken)), "does not run here"),
    ] {
        let daemon = StandIn::start();
        let canonical = daemon.set_canonical(&login(10));
        if what == "does not run" {
            daemon.set_program(broken.as_bytes(), &digest(broken));
        }
        let url = daemon.server.url();
        let config = HostConfig { base_url: &url, ..HostConfig::default() };
        let host = bare_host(Program::Bash);
        let ran = pipe_installer(&host, baked_with(&config, &programs).1.expose().as_bytes());
        assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{what}: {ran:?}");
        assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), baked(&config).0.expose(), "{what}");
        assert!(ran.err.contains(said), "{what}: {ran:?}");
        assert_eq!(ran.err.contains("script"), !said.is_empty(), "{what}: {ran:?}");
        assert!(!host.host_toml().exists(), "{what}");
        assert_no_litter(&host);
    }
}

#[test]
fn an_installer_whose_program_is_another_one_undoes_itself() {
    let daemon = StandIn::start();
    daemon.set_canonical(&login(10));
    daemon.set_program(PROGRAM.as_bytes(), &digest(PROGRAM));
    let url = daemon.server.url();
    let config = HostConfig { base_url: &url, ..HostConfig::default() };
    let programs = format!("{}={}", machine_target(), "1".repeat(64));
    for previous in [None, Some("# the one before\n")] {
        let host = bare_host(Program::Native);
        if let Some(previous) = previous {
            host.write_program(".local/bin/cdx", previous, 0o711);
            host.write_host_toml(previous);
        }
        let ran = pipe_installer(&host, baked_with(&config, &programs).1.expose().as_bytes());
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("does not match its digest") && ran.err.contains("undone"), "{ran:?}");
        assert_eq!(fs::read_to_string(host.cdx_file()).ok().as_deref(), previous);
        assert_eq!(fs::read_to_string(host.host_toml()).ok().as_deref(), previous);
        assert!(beside(&host.cdx_file()).is_empty() && beside(&host.host_toml()).is_empty(), "no litter");
        assert_eq!(host.auth(), None);
    }
}

#[test]
fn a_kill_during_an_installation_leaves_a_cdx_that_works_or_none() {
    for point in 1.. {
        let daemon = StandIn::start();
        daemon.set_canonical(&login(10));
        daemon.set_program(PROGRAM.as_bytes(), &digest(PROGRAM));
        let url = daemon.server.url();
        let config = HostConfig { base_url: &url, ..HostConfig::default() };
        let programs = format!("{}={}", machine_target(), digest(PROGRAM));
        let installer = baked_with(&config, &programs).1;
        let mut host = bare_host(Program::Native);
        host.write_program("installer", installer.expose(), 0o600);
        deadly_tools(&mut host);
        fs::write(host.file("point"), point.to_string()).unwrap();
        let mut command = host.command("bash");
        command.stdin(fs::File::open(host.file("installer")).unwrap()).process_group(0);
        let ran = Ran::from(command.output().unwrap());
        if host.cdx_file().exists() {
            assert_usable(&host, &config, &format!("killed at {point}: {ran:?}"));
        } else {
            assert!(!host.host_toml().exists(), "{point}: a key without a program");
        }
        fs::write(host.file("point"), "0").unwrap();
        let again = pipe_installer(&host, installer.expose().as_bytes());
        assert_eq!(again.code, Some(0), "{point}: {again:?}");
        assert_usable(&host, &config, "installed again");
        assert_eq!(fs::read_to_string(host.cdx_file()).unwrap(), PROGRAM);
        if ran.code == Some(0) {
            assert!(point > 10, "it was never killed");
            return;
        }
        assert_eq!(ran.code, None, "{point}: {ran:?}");
    }
}
