//! If a login cannot be saved, codex is not started, so that no refresh token is wasted. With the real Codex on real
//! mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::json;

use super::{BANANA, LOCKS, in_step, login};
use crate::support::host::{Host, Program, Ran, is_root};
use crate::support::standin::StandIn;
use crate::support::upstream::Upstream;

crate::for_both_programs!(
    nothing_is_spent_where_a_renewed_login_cannot_be_saved,
    a_file_that_is_mounted_by_itself_is_written_in_place,
    a_full_disk_leaves_the_login_as_it_is,
    a_login_that_is_not_ours_to_write_stops_codex,
    a_login_that_codex_never_renews_needs_no_room,
    a_home_without_room_for_what_cdx_remembers_says_so,
    a_login_kept_elsewhere_is_named,
);

const MOUNT_FILE: &str = r#"mount --bind "$HOME/mounted.json" "$HOME/.codex/auth.json""#;
/// A disk with so little room that `balloon` fills it.
const FULL_DISK: &str = r#"mount -t tmpfs -o size=1m,mode=700 none "$HOME/.codex" && cp "$HOME"/seed/* "$HOME/.codex/" && { head -c 2000000 /dev/zero >"$HOME/.codex/balloon" || :; } 2>/dev/null"#;
const READ_ONLY_HOME: &str = r#"mount --bind "$HOME/.codex" "$HOME/.codex" && mount -o remount,ro,bind "$HOME/.codex""#;

/// The real Codex with a login that must be renewed at once, and a `cdx` with the canonical login.
fn about_to_renew(program: Program) -> (Upstream, StandIn, Host, String) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", -60));
    let host = Host::new(program, &daemon.server.url()).with_real_codex(&upstream);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    fs::copy(host.auth_file(), host.file("mounted.json")).unwrap();
    fs::set_permissions(host.file("mounted.json"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(host.file("seed")).unwrap();
    for name in ["auth.json", "config.toml"] {
        fs::copy(host.codex_home.join(name), host.file("seed").join(name)).unwrap();
    }
    (upstream, daemon, host, canonical)
}

fn nothing_is_spent_where_a_renewed_login_cannot_be_saved(program: Program) {
    if !is_root("mounts of the test's own") {
        return;
    }
    for (setup, said) in
        [(MOUNT_FILE, "mounted by itself"), (READ_ONLY_HOME, "read-only"), (FULL_DISK, "have space left")]
    {
        let (upstream, daemon, host, canonical) = about_to_renew(program);
        let ran = host.cdx_within(setup, &BANANA);
        assert_eq!(ran.code, Some(74), "{setup}: {ran:?}");
        assert!(ran.err.contains(said), "{setup}: the reason: {ran:?}");
        assert_eq!(upstream.calls_to("POST", "/oauth/token").len(), 0, "{setup}: a refresh token was spent");
        assert_eq!(daemon.canonical(), Some(canonical), "{setup}");
        // The same login works when there is room for the next one.
        let ran = host.run(&BANANA);
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), "Banana\n"), "{setup}: {ran:?}");
        assert_eq!(upstream.calls_to("POST", "/oauth/token").len(), 1);
        assert_eq!(daemon.canonical(), host.auth());
    }
}

fn a_file_that_is_mounted_by_itself_is_written_in_place(program: Program) {
    if !is_root("mounts of the test's own") {
        return;
    }
    for shell in program.shells() {
        let (daemon, mut host, canonical) = in_step(program);
        host.shell = shell;
        let name = "with space \\ and\ttab";
        fs::create_dir(host.file(name)).unwrap();
        fs::rename(host.auth_file(), host.file(name).join("auth.json")).unwrap();
        host.codex_home = host.file(name);
        fs::write(host.file("mounted.json"), &canonical).unwrap();
        host.env("AT", host.auth_file().to_str().unwrap());
        let mount = r#"mount --bind "$HOME/mounted.json" "$AT""#;
        assert_eq!(host.cdx_within(mount, &["--sync"]).code, Some(0));
        let ran = host.cdx_within(mount, &["x"]);
        assert_eq!((ran.code, ran.err.contains("mounted by itself")), (Some(74), true), "{ran:?}");
        let newer = daemon.set_canonical(&login(20));
        let ran = host.cdx_within(mount, &["--sync"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let mounted = fs::read_to_string(host.file("mounted.json")).unwrap();
        assert_eq!(mounted, newer, "the file that was mounted is the same file");
        let names =
            fs::read_dir(&host.codex_home).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let names: Vec<_> = names.filter(|name| !(program.is_native() && LOCKS.contains(&&**name))).collect();
        assert_eq!(names, ["auth.json"], "no litter");
        // A login that another program wrote is offered and kept there too.
        fs::write(host.file("mounted.json"), login(5).to_string()).unwrap();
        let ran = host.cdx_within(mount, &["--sync"]);
        assert_eq!((ran.code, fs::read_to_string(host.file("mounted.json")).unwrap()), (Some(0), newer), "{ran:?}");
        assert_eq!(fs::read_to_string(host.codex_home.join("auth.json.cdx-replaced")).unwrap(), login(5).to_string());
    }
}

fn a_full_disk_leaves_the_login_as_it_is(program: Program) {
    if !is_root("mounts of the test's own") {
        return;
    }
    let (daemon, host, canonical) = in_step(program);
    fs::create_dir(host.file("seed")).unwrap();
    fs::copy(host.auth_file(), host.file("seed/auth.json")).unwrap();
    let mut newer = login(20);
    newer["padding"] = "x".repeat(200_000).into();
    daemon.set_canonical(&newer);
    let copy_out = format!(r#"{FULL_DISK}; trap 'cp "$HOME/.codex/auth.json" "$HOME/after.json"' EXIT; "$@"; exit"#);
    let ran = host.cdx_within(&copy_out, &["x"]);
    assert_eq!((ran.code, host.codex_was_started()), (Some(74), false), "{ran:?}");
    assert!(ran.err.contains("space left"), "{ran:?}");
    assert_eq!(fs::read_to_string(host.file("after.json")).unwrap(), canonical);
}

/// Runs `cdx` as the user nobody, who owns the host's home.
fn as_nobody(host: &Host, arguments: &[&str]) -> Ran {
    let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(host.file("")).status().unwrap();
    assert!(owned.success());
    as_nobody_in_place(host, arguments)
}

fn as_nobody_in_place(host: &Host, arguments: &[&str]) -> Ran {
    let mut command = host.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(host.cdx_file()).args(arguments);
    Ran::from(command.output().unwrap())
}

fn a_login_that_is_not_ours_to_write_stops_codex(program: Program) {
    if !is_root("another user") {
        return;
    }
    let renewable =
        json!({"tokens": {"access_token": "a", "refresh_token": "r"}, "last_refresh": "2025-11-20T09:27:10Z"});
    for (what, said) in [
        ("auth.json is 0400", "cannot be written"),
        ("the lock is root's", "auth.json.lock"),
        ("the directory is 0500", "takes no new file"),
        ("auth.json is root's", "cannot be written"),
    ] {
        let daemon = StandIn::start();
        daemon.set_canonical(&renewable);
        let host = Host::new(program, &daemon.server.url());
        let ran = as_nobody(&host, &["x"]);
        assert_eq!(ran.code, Some(0), "{what}: {ran:?}");
        fs::remove_file(host.file("codex.arguments")).unwrap();
        let mode =
            |path: std::path::PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        match what {
            "auth.json is 0400" => mode(host.auth_file(), 0o400),
            "the directory is 0500" => mode(host.codex_home.clone(), 0o500),
            "the lock is root's" => {
                let _ = fs::remove_file(host.codex_home.join("auth.json.lock")); // nobody's
                fs::write(host.codex_home.join("auth.json.lock"), "").unwrap();
                mode(host.codex_home.join("auth.json.lock"), 0o600);
            }
            _ => {
                let text = host.auth().unwrap();
                fs::remove_file(host.auth_file()).unwrap();
                fs::write(host.auth_file(), text).unwrap();
                mode(host.auth_file(), 0o644);
            }
        }
        let ran = as_nobody_in_place(&host, &["x"]);
        assert_eq!((ran.code, host.codex_was_started()), (Some(74), false), "{what}: {ran:?}");
        assert!(ran.err.contains(said), "{what}: {ran:?}");
        let ran = as_nobody_in_place(&host, &["--doctor"]);
        assert!(ran.out.lines().any(|line| line.starts_with("fail ") && line.contains(said)), "{what}: {ran:?}");
    }
}

fn a_login_that_codex_never_renews_needs_no_room(program: Program) {
    if !is_root("mounts of the test's own") {
        return;
    }
    let daemon = StandIn::start();
    daemon.set_canonical(&json!({"auth_mode": "apikey", "OPENAI_API_KEY": "key-1"}));
    let host = Host::new(program, &daemon.server.url());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    let ran = host.cdx_within(READ_ONLY_HOME, &["x"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

fn a_home_without_room_for_what_cdx_remembers_says_so(program: Program) {
    if !is_root("mounts of the test's own") {
        return;
    }
    let (_daemon, host, _) = in_step(program);
    fs::remove_dir_all(host.file(".cache")).unwrap();
    let ran = host.cdx_within(r#"mount --bind "$HOME" "$HOME" && mount -o remount,ro,bind "$HOME""#, &["x"]);
    assert_eq!((ran.code, host.codex_was_started()), (Some(74), false), "{ran:?}");
    assert!(ran.err.contains("XDG_CACHE_HOME"), "{ran:?}");
}

fn a_login_kept_elsewhere_is_named(program: Program) {
    let (_daemon, host, _) = in_step(program);
    for (line, named) in [
        ("cli_auth_credentials_store = \"keyring\"", true),
        ("model = \"x\"\n  \"cli_auth_credentials_store\"='auto'", true),
        ("cli_auth_credentials_store=\"file\"", false),
        ("# cli_auth_credentials_store = \"keyring\"", false),
        ("", false),
    ] {
        fs::write(host.codex_home.join("config.toml"), format!("{line}\n")).unwrap();
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, ran.err.contains("cli_auth_credentials_store")), (Some(0), named), "{line}: {ran:?}");
        let ran = host.run(&["--doctor"]);
        let fails =
            ran.out.lines().any(|line| line.starts_with("fail ") && line.contains("cli_auth_credentials_store"));
        assert_eq!((fails, ran.code), (named, Some(i32::from(named))), "{line}: {ran:?}");
    }
}
