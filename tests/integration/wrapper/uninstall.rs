//! `cdx --uninstall`: it calls the daemon only if everything can be removed, and can be repeated after a crash in
//! between.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use super::in_step;
use crate::support::answers::refusal;
use crate::support::host::{Host, Program, Ran, is_root};
use crate::support::skip::skipped;

crate::for_both_programs!(
    a_user_who_may_not_remove_cdx_does_not_take_the_host_out,
    a_login_that_cannot_be_removed_keeps_the_host_in,
    on_a_terminal_uninstall_asks_first,
    a_host_that_the_daemon_refuses_stays_whole_without_force,
);

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

fn a_user_who_may_not_remove_cdx_does_not_take_the_host_out(program: Program) {
    if !is_root("another user, and files of root's") {
        return;
    }
    for what in ["the directory is root's", "a sticky directory", "an immutable program", "a program mounted by itself"]
    {
        let (daemon, host, canonical) = in_step(program);
        install_for_all(&host);
        let (theirs, directory) = (Host::bare(), host.file(".local/bin"));
        if program.is_native() {
            theirs.write_host_toml(&fs::read_to_string(host.host_toml()).unwrap());
        }
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

fn a_login_that_cannot_be_removed_keeps_the_host_in(program: Program) {
    if !is_root("mounts of the test's own") {
        return;
    }
    let (daemon, host, canonical) = in_step(program);
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

fn on_a_terminal_uninstall_asks_first(program: Program) {
    for (arguments, typed, goes) in [
        ("--uninstall", "n\n", false),
        ("--uninstall", "\n", false),
        ("--uninstall --force", "no\n", false),
        ("--uninstall", "y\n", true),
        ("--uninstall", "YES\n", true),
        ("--uninstall --yes", "n\n", true),
    ] {
        let (daemon, host, _) = in_step(program);
        let ran = in_a_terminal(&host, arguments, typed);
        let said = format!("{arguments} {typed:?}: {ran:?}");
        assert_eq!(ran.code, Some(if goes { 0 } else { 1 }), "{said}");
        assert_eq!(daemon.commands().len(), usize::from(goes), "{said}");
        assert_eq!(host.cdx_file().exists(), !goes, "{said}");
        let asked = format!("take this host (h1.example.test) out of {} and remove cdx? [y/N]", daemon.server.url());
        assert_eq!(ran.out.contains(&asked), !arguments.contains("--yes"), "{said}");
        assert_eq!(ran.out.contains("nothing was done"), !goes, "{said}");
    }
    let (daemon, host, _) = in_step(program);
    let ran = host.run(&["--uninstall", "--froce"]);
    assert_eq!((ran.code, daemon.commands().len(), host.cdx_file().exists()), (Some(1), 0, true), "{ran:?}");
}

fn a_host_that_the_daemon_refuses_stays_whole_without_force(program: Program) {
    let (daemon, host, canonical) = in_step(program);
    daemon.answer_always(403, refusal("Host disabled by administrator"));
    let ran = host.run(&["--uninstall"]);
    assert_eq!(ran.code, Some(77), "{ran:?}");
    assert!(ran.err.contains("nothing was removed") && ran.err.contains("Host disabled by administrator"), "{ran:?}");
    assert_eq!((host.auth(), host.cdx_file().exists()), (Some(canonical), true));
    let ran = host.run(&["--uninstall", "--force"]);
    assert_eq!((ran.code, host.cdx_file().exists()), (Some(0), false), "{ran:?}");
    assert!(ran.err.contains("ask the daemon's admin to remove h1.example.test"), "{ran:?}");
}
