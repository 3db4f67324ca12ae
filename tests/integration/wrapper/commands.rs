//! The other commands: `--doctor`, `--update`, `--uninstall`, and `CDX_QUIET`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use codex_authd::model::digest::Digest;

use super::{in_step, litter, login};
use crate::support::answers::refusal;
use crate::support::host::{HostConfig, Program, baked};
use crate::support::standin::StandIn;

crate::for_both_programs!(
    update_brings_the_program_that_was_announced,
    doctor_says_what_is_wrong,
    uninstall_takes_everything_of_its_own_and_nothing_else,
    quiet_leaves_only_errors,
);

fn doctor_says_what_is_wrong(program: Program) {
    let (daemon, mut host, _) = in_step(program);
    let ran = host.run(&["--doctor"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.lines().all(|line| line.starts_with("ok ")), "{ran:?}");

    fs::set_permissions(host.auth_file(), fs::Permissions::from_mode(0o644)).unwrap();
    host.env("CODEX_API_KEY", "x");
    daemon.answer_always(401, refusal("Invalid API key"));
    let ran = host.run(&["--doctor"]);
    assert_eq!(ran.code, Some(1));
    for said in ["chmod 600", "CODEX_API_KEY", "Invalid API key"] {
        assert!(ran.out.lines().any(|line| line.starts_with("fail ") && line.contains(said)), "{said}: {ran:?}");
    }
    drop(daemon);
    let ran = host.run(&["--doctor"]);
    assert!(ran.out.contains("fail  the daemon cannot be reached"), "{ran:?}");
}

/// Makes the daemon offer this as the host's program.
fn offer(program: Program, daemon: &StandIn, bytes: &[u8], announced: &str) {
    match program {
        Program::Bash => daemon.set_wrapper(bytes, announced),
        Program::Native => {
            // An update also reads the host's values, which are in its script.
            let config = HostConfig { base_url: &daemon.server.url(), ..HostConfig::default() };
            let script = baked(&config).0;
            daemon.set_wrapper(script.expose().as_bytes(), &script.digest().to_string());
            daemon.set_program(bytes, announced);
        }
    }
}

/// Makes the daemon offer a newer program than the one in this place, and returns it.
pub fn newer_program(placed: &Path, program: Program, daemon: &StandIn) -> Vec<u8> {
    let mut newer = fs::read(placed).unwrap();
    match program {
        Program::Bash => newer = String::from_utf8(newer).unwrap().replace("VERSION='", "VERSION='9").into_bytes(),
        // It runs with whatever comes after its end.
        Program::Native => newer.extend(b"newer"),
    }
    offer(program, daemon, &newer, &Digest::of(&newer).to_string());
    newer
}

fn update_brings_the_program_that_was_announced(program: Program) {
    let (daemon, host, _) = in_step(program);
    let before = fs::read(host.cdx_file()).unwrap();
    // The codex of this host is not the version that the stand-in names; there is no npm to install another.
    host.write_program("bin/npm", "#!/bin/sh\nexit 1\n", 0o755);
    let newer = newer_program(&host.cdx_file(), program, &daemon);
    let half = &newer[..newer.len() / 2];
    let other = b"#!/bin/sh\necho\n";
    for (bytes, announced) in [
        (&newer[..], "0".repeat(64)),
        (&newer, String::new()),
        (half, Digest::of(half).to_string()),
        (other, Digest::of(other).to_string()),
    ] {
        offer(program, &daemon, bytes, &announced);
        let ran = host.run(&["--update"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(fs::read(host.cdx_file()).unwrap() == before, "{ran:?}");
        assert_eq!(litter(&host), Vec::<PathBuf>::new());
    }
    offer(program, &daemon, &newer, &Digest::of(&newer).to_string());
    let ran = host.run(&["--update"]);
    assert!(ran.err.contains("cdx is now "), "{ran:?}");
    assert!(fs::read(host.cdx_file()).unwrap() == newer);
    assert_eq!(fs::metadata(host.cdx_file()).unwrap().permissions().mode() & 0o777, 0o700);
    let names: Vec<_> = fs::read_dir(host.file(".local/bin")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["cdx"], "no litter");
}

fn uninstall_takes_everything_of_its_own_and_nothing_else(program: Program) {
    let (daemon, host, _) = in_step(program);
    let ran = host.run(&["--uninstall"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(daemon.commands(), ["DELETE"]);
    assert!(!host.cdx_file().exists() && !host.auth_file().exists() && !host.file(".cache/cdx").exists());
    assert!(!host.host_toml().exists(), "the key is left");
    assert!(host.file("bin/codex").exists());

    let (daemon, host, _) = in_step(program);
    host.set_auth(&login(60).to_string());
    let ran = host.run(&["--uninstall"]);
    assert!(host.auth_file().exists(), "a login that did not come from the daemon was removed: {ran:?}");
    drop(daemon);

    let (daemon, host, _) = in_step(program);
    drop(daemon);
    assert_eq!(host.run(&["--uninstall"]).code, Some(69));
    assert!(host.cdx_file().exists() && host.auth_file().exists(), "a partial removal removed files");
    assert_eq!(host.run(&["--uninstall", "--force"]).code, Some(0));
    assert!(!host.cdx_file().exists());
}

fn quiet_leaves_only_errors(program: Program) {
    let (daemon, mut host, _) = in_step(program);
    daemon.answer_always(503, "");
    host.env("CDX_QUIET", "1");
    assert_eq!(host.run(&["x"]).err, "");
    host.shift_last_sync(-90_000);
    assert_ne!(host.run(&["x"]).err, "");
}
