//! The whole story in every shell, with few tools on the PATH.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{in_step, login, sparse_path};
use crate::support::host::Program;
use crate::support::skip::skipped;

crate::for_both_programs!(
    the_whole_story_runs_in_every_shell_on_a_bare_path,
    the_version_of_codex_is_asked_once_for_each_codex,
);

fn the_whole_story_runs_in_every_shell_on_a_bare_path(program: Program) {
    let busybox = Path::new("/bin/busybox");
    for shell in program.shells() {
        for tools in ["coreutils", "busybox"] {
            if tools == "busybox" && program.is_native() {
                continue; // it runs none of these tools
            }
            if tools == "busybox" && !busybox.exists() {
                skipped("no busybox here");
                continue;
            }
            let (daemon, mut host, _) = in_step(program);
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

fn the_version_of_codex_is_asked_once_for_each_codex(program: Program) {
    let (daemon, host, _) = in_step(program);
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
