//! The login: fetched, offered, written.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::{in_step, litter, login};
use crate::support::host::{Host, Program};
use crate::support::standin::StandIn;

crate::for_both_programs!(
    a_login_is_written_private_and_whole,
    a_newer_local_login_is_handed_over_before_codex_starts,
    an_older_login_gives_way_to_the_canonical_one,
    the_first_host_brings_the_first_login,
    a_login_renewed_by_another_codex_meanwhile_is_not_lost,
    a_symbolic_link_stays_and_its_target_is_replaced,
    a_home_with_a_strange_name_is_a_home,
    a_large_login_goes_both_ways,
);

fn a_login_is_written_private_and_whole(program: Program) {
    let (_daemon, host, _) = in_step(program);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&host.codex_home), mode(&host.auth_file())), (0o700, 0o600));
    assert_eq!(mode(&host.state_file()), 0o600);
    assert_eq!(litter(&host), Vec::<PathBuf>::new());
}

fn a_newer_local_login_is_handed_over_before_codex_starts(program: Program) {
    let (daemon, host, _) = in_step(program);
    host.set_auth(&login(20).to_string());
    assert_eq!(host.run(&["x"]).code, Some(0));
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    assert_eq!(host.auth(), daemon.canonical());
}

fn an_older_login_gives_way_to_the_canonical_one(program: Program) {
    let (daemon, host, canonical) = in_step(program);
    assert_eq!(host.run_codex(&format!("printf '%s' '{}' >\"$HOME/.codex/auth.json\"", login(5)), &[]).code, Some(0));
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    assert_eq!(host.auth(), Some(canonical));
}

fn the_first_host_brings_the_first_login(program: Program) {
    let daemon = StandIn::start();
    let host = Host::new(program, &daemon.server.url());
    let ran = host.run(&["x"]);
    assert_eq!(ran.code, Some(0), "codex is not started to log in: {ran:?}");
    assert!(ran.err.contains("nobody has logged in yet"), "{ran:?}");
    host.set_auth(&login(1).to_string());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.canonical(), Some(login(1).to_string()));
}

fn a_login_renewed_by_another_codex_meanwhile_is_not_lost(program: Program) {
    let (daemon, host, _) = in_step(program);
    daemon.set_canonical(&login(15));
    let (file, newer) = (host.auth_file(), login(30).to_string());
    let text = newer.clone();
    let mut once = Some(());
    daemon.on_call(move || {
        if once.take().is_some() {
            fs::write(&file, &text).unwrap();
        }
    });
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.commands(), ["retrieve", "retrieve", "store"]);
    assert_eq!((host.auth().as_ref(), daemon.canonical().as_ref()), (Some(&newer), Some(&newer)));
}

fn a_symbolic_link_stays_and_its_target_is_replaced(program: Program) {
    let (daemon, host, _) = in_step(program);
    let real = host.file("elsewhere/real.json");
    fs::create_dir(host.file("elsewhere")).unwrap();
    fs::rename(host.auth_file(), &real).unwrap();
    symlink("../elsewhere/link.json", host.auth_file()).unwrap();
    symlink(&real, host.file("elsewhere/link.json")).unwrap();
    let canonical = daemon.set_canonical(&login(20));
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert!(host.auth_file().is_symlink() && host.file("elsewhere/link.json").is_symlink());
    assert_eq!(fs::read_to_string(&real).unwrap(), canonical);

    fs::remove_file(host.auth_file()).unwrap();
    symlink("auth.json", host.auth_file()).unwrap();
    assert_eq!(host.run(&["--sync"]).code, Some(74), "a loop of links is an error");
}

fn a_home_with_a_strange_name_is_a_home(program: Program) {
    let daemon = StandIn::start();
    let canonical = daemon.set_canonical(&login(10));
    for name in ["with space", "it's \"$(touch canary)\" `x`", "-n", "back\\slash", "ü\u{1f34c}", "*"] {
        let mut host = Host::new(program, &daemon.server.url());
        host.codex_home = host.file(name);
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical.clone())), "{name}: {ran:?}");
        daemon.answer_always(503, "");
        assert_eq!(host.run(&["x"]).code, Some(0), "its state is not found again: {name}");
        daemon.answer_well();
        assert!(!host.file("canary").exists());
    }
}

fn a_large_login_goes_both_ways(program: Program) {
    let (daemon, host, _) = in_step(program);
    let mut large = login(20);
    large["custom"] = "x\\\"é".repeat(60_000).into();
    host.set_auth(&large.to_string());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.canonical(), Some(large.to_string()));
    large["last_refresh"] = "2025-11-20T09:27:40Z".into();
    let canonical = daemon.set_canonical(&large);
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(host.auth(), Some(canonical));
}
