//! The programs for hosts, and their installer, against a stand-in of the daemon's endpoints and, if necessary, the real
//! Codex CLI.
//!
//! Each test runs with the bash `cdx` and with the native one. What only one of them can do, or can be made to do, is in
//! [`bash_alone`] or [`native_alone`].

mod absence;
mod answers;
mod bash_alone;
mod causes;
mod commands;
mod everywhere;
mod fleet;
mod installer;
mod login;
pub mod machine;
mod moves;
mod native_alone;
mod offers;
mod running;
mod saving;
mod tls;
mod uninstall;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use codex_authd::model::digest::Digest;
use codex_authd::model::secret::Secret;
use serde_json::{Value, json};

use crate::support::host::{Host, HostConfig, Program, Ran, baked_with, native_program};
use crate::support::skip::skipped;
use crate::support::standin::{StandIn, machine_target};

pub const BANANA: [&str; 5] = ["exec", "Reply Banana if this works.", "-s", "read-only", "--skip-git-repo-check"];

/// A login whose `last_refresh` is that second of an hour in the past.
pub fn login(second: u8) -> Value {
    let tokens = json!({"access_token": format!("access-{second}"), "refresh_token": format!("refresh-{second}")});
    json!({"tokens": tokens, "last_refresh": format!("2025-11-20T09:27:{second:02}Z")})
}

/// A daemon with a canonical login, and a host that has it.
pub fn in_step(program: Program) -> (StandIn, Host, String) {
    let daemon = StandIn::start();
    let canonical = daemon.set_canonical(&login(10));
    let host = Host::new(program, &daemon.server.url());
    let ran = host.run(&["--sync"]);
    assert_eq!((ran.code, host.auth().as_ref()), (Some(0), Some(&canonical)), "{ran:?}");
    daemon.server.forget_calls();
    (daemon, host, canonical)
}

/// The files that Codex and the native cdx lock. They stay: to remove one would be a race.
pub const LOCKS: [&str; 2] = ["auth.lock", "auth.json.lock"];

/// Files of cdx that should have been removed.
pub fn litter(host: &Host) -> Vec<PathBuf> {
    let state = host.state_file().parent().unwrap().to_owned();
    let mut left = Vec::new();
    for directory in [&host.codex_home, &state] {
        for file in fs::read_dir(directory).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let is_state =
                ["auth.json", "codex-version", "ca.pem", "trust"].contains(&&*name) || name.starts_with("synced-");
            let is_lock = host.program.is_native() && LOCKS.contains(&&*name);
            if !is_state && !is_lock {
                left.push(file);
            }
        }
    }
    left
}

/// Pipes a script into bash, as `curl … | bash` does.
pub fn pipe_installer(host: &Host, script: &[u8]) -> Ran {
    let bash = host.shell.clone().unwrap_or_else(|| "bash".into());
    let mut child = host.command(bash).stdin(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(script);
    Ran::from(child.wait_with_output().unwrap())
}

/// A host on which `id -u` prints 1000, so that the installer installs for that user.
pub fn bare_host(program: Program) -> Host {
    let host = Host::bare_for(program);
    host.write_codex();
    host.write_program("bin/id", "#!/bin/sh\necho 1000\n", 0o755);
    host
}

/// An installer that installs `program`: for the native one, the daemon has it, and the installer knows its digest.
pub fn installer_of(program: Program, daemon: &StandIn, config: &HostConfig) -> Secret {
    if !program.is_native() {
        return baked_with(config, "").1;
    }
    let bytes = fs::read(native_program()).unwrap();
    let digest = Digest::of(&bytes).to_string();
    daemon.set_program(&bytes, &digest);
    baked_with(config, &format!("other-target={} {}={digest}", "0".repeat(64), machine_target())).1
}

/// The same for a daemon that has nothing else to say.
pub fn plain_installer(program: Program, daemon: &StandIn) -> Secret {
    installer_of(program, daemon, &HostConfig { base_url: &daemon.server.url(), ..HostConfig::default() })
}

/// Whether the host has exactly this program.
pub fn assert_has(host: &Host, program: Program) {
    let placed = fs::read(host.cdx_file()).unwrap();
    match program {
        Program::Bash => assert!(placed.starts_with(b"#!/usr/bin/env bash\n") && !host.host_toml().exists()),
        Program::Native => {
            assert!(placed == fs::read(native_program()).unwrap(), "it is another program");
            assert!(host.host_toml().exists());
        }
    }
}

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

/// Whether a codex is in /usr/local/bin, where `cdx` finds it with any PATH. Then this machine has no host without one.
pub fn codex_is_installed_here() -> bool {
    let here = Path::new("/usr/local/bin/codex").exists();
    if here {
        skipped("there is a codex in /usr/local/bin, and the test is about a host without one");
    }
    here
}
