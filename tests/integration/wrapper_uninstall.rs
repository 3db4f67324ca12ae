//! `cdx --uninstall`: it calls the daemon only if everything can be removed, and can be repeated after a crash in
//! between.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use crate::support::host::{Host, Ran, is_root};
use crate::support::skip::skipped;
use crate::wrapper::in_step;

/// Puts the program into a directory of root, as an installation by root does.
fn install_for_all(host: &Host) {
    let file = host.cdx_file();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    for directory in [file.parent().unwrap(), &host.file(".local"), &host.file("")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Runs `cdx` as the user nobody with their own home.
fn as_nobody(host: &Host, theirs: &Host, arguments: &[&str]) -> Ran {
    assert!(Command::new("chown").args(["-R", "65534:65534"]).arg(theirs.file("")).status().unwrap().success());
    let mut command = theirs.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(host.cdx_file()).args(arguments);
    command.env("PATH", &host.path);
    Ran::from(command.output().unwrap())
}

#[test]
fn a_user_who_may_not_remove_cdx_does_not_take_the_host_out() {
    if !is_root("another user, and files of root's") {
        return;
    }
    for what in ["the directory is root's", "a sticky directory", "an immutable program", "a program mounted by itself"]
    {
        let (daemon, host, canonical) = in_step();
        install_for_all(&host);
        let (theirs, directory) = (Host::bare(), host.file(".local/bin"));
        let attribute =
            |change: &str| Command::new("chattr").arg(change).arg(host.cdx_file()).status().unwrap().success();
        let ran = match what {
            "the directory is root's" => as_nobody(&host, &theirs, &["--uninstall", "--yes"]),
            "a sticky directory" => {
                fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)).unwrap();
                as_nobody(&host, &theirs, &["--uninstall", "--force"])
            }
            "an immutable program" => {
                if !attribute("+i") {
                    skipped("no immutable files on this file system");
                    continue;
                }
                let ran = host.run(&["--uninstall"]);
                assert!(attribute("-i"));
                ran
            }
            _ => host.cdx_within(r#"mount --bind "$HOME/.local/bin/cdx" "$HOME/.local/bin/cdx""#, &["--uninstall"]),
        };
        assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
        assert!(ran.err.contains("cannot remove") && ran.err.contains("sudo cdx --uninstall"), "{what}: {ran:?}");
        assert!(ran.err.contains("Nothing was done"), "{what}: {ran:?}");
        assert_eq!(daemon.commands(), [""; 0], "{what}: the daemon was called");
        assert_eq!((host.auth(), host.cdx_file().exists()), (Some(canonical), true), "{what}");
    }
}

#[test]
fn a_login_that_cannot_be_removed_keeps_the_host_in() {
    if !is_root("mounts of the test's own") {
        return;
    }
    let (daemon, host, canonical) = in_step();
    fs::write(host.file("mounted.json"), &canonical).unwrap();
    let ran = host.cdx_within(r#"mount --bind "$HOME/mounted.json" "$HOME/.codex/auth.json""#, &["--uninstall"]);
    assert_eq!((ran.code, daemon.commands().len()), (Some(1), 0), "{ran:?}");
    assert!(ran.err.contains(".codex/auth.json: it is mounted by itself"), "{ran:?}");
    assert_eq!(host.run(&["--uninstall"]).code, Some(0));
}

/// Runs the command in a new terminal, and types `typed`.
fn in_a_terminal(host: &Host, arguments: &str, typed: &str) -> Ran {
    let command = format!("exec {} {arguments}", host.cdx_file().display());
    let mut script = host.command("script");
    script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]).stdin(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(typed.as_bytes()).unwrap();
    keyboard.flush().unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keyboard);
    Ran::from(output)
}

#[test]
fn on_a_terminal_uninstall_asks_first() {
    for (arguments, typed, goes) in [
        ("--uninstall", "n\n", false),
        ("--uninstall", "\n", false),
        ("--uninstall --force", "no\n", false),
        ("--uninstall", "y\n", true),
        ("--uninstall", "YES\n", true),
        ("--uninstall --yes", "n\n", true),
    ] {
        let (daemon, host, _) = in_step();
        let ran = in_a_terminal(&host, arguments, typed);
        let said = format!("{arguments} {typed:?}: {ran:?}");
        assert_eq!(ran.code, Some(if goes { 0 } else { 1 }), "{said}");
        assert_eq!(daemon.commands().len(), usize::from(goes), "{said}");
        assert_eq!(host.cdx_file().exists(), !goes, "{said}");
        let asked = format!("take this host (h1.example.test) out of {} and remove cdx? [y/N]", daemon.server.url());
        assert_eq!(ran.out.contains(&asked), !arguments.contains("--yes"), "{said}");
        assert_eq!(ran.out.contains("nothing was done"), !goes, "{said}");
    }
    let (daemon, host, _) = in_step();
    let ran = host.run(&["--uninstall", "--froce"]);
    assert_eq!((ran.code, daemon.commands().len(), host.cdx_file().exists()), (Some(1), 0, true), "{ran:?}");
}

#[test]
fn a_crash_after_the_daemon_was_asked_is_finished_by_the_next_uninstall() {
    // Killed before it removes the login, before its remembered state, and before the program itself.
    for point in 1..=3 {
        let (daemon, host, _) = in_step();
        host.write_program("bin/rm", "#!/bin/sh\necho >>\"$HOME/removals\"\n[ \"$(wc -l <\"$HOME/removals\")\" != \"$(cat \"$HOME/point\")\" ] || { kill -9 $PPID; exit 1; }\nexec /bin/rm \"$@\"\n", 0o755);
        fs::write(host.file("point"), point.to_string()).unwrap();
        let ran = host.run(&["--uninstall"]);
        assert_eq!((ran.code, daemon.commands()), (None, vec!["DELETE".into()]), "{point}: {ran:?}");
        assert!(host.cdx_file().exists(), "{point}: it was killed too late");
        fs::remove_file(host.file("bin/rm")).unwrap();
        // The daemon's answer to an unknown key.
        daemon.answer_always(401, r#"{"status":"error","code":"key_invalid","message":"Invalid API key"}"#);
        let ran = host.run(&["--uninstall"]);
        assert_eq!(ran.code, Some(0), "{point}: {ran:?}");
        assert!(!host.cdx_file().exists() && !host.file(".cache/cdx").exists(), "{point}: {ran:?}");
        assert!(!host.auth_file().exists(), "{point}: {ran:?}");
    }
}

#[test]
fn a_host_that_the_daemon_refuses_stays_whole_without_force() {
    let (daemon, host, canonical) = in_step();
    daemon.answer_always(403, "status error\ncode 403\nmessage Host disabled by administrator\n");
    let ran = host.run(&["--uninstall"]);
    assert_eq!(ran.code, Some(77), "{ran:?}");
    assert!(ran.err.contains("nothing was removed") && ran.err.contains("Host disabled by administrator"), "{ran:?}");
    assert_eq!((host.auth(), host.cdx_file().exists()), (Some(canonical), true));
    let ran = host.run(&["--uninstall", "--force"]);
    assert_eq!((ran.code, host.cdx_file().exists()), (Some(0), false), "{ran:?}");
    assert!(ran.err.contains("ask the daemon's admin to remove h1.example.test"), "{ran:?}");
}
