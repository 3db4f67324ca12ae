use std::fs;
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::host::{Host, Ran, StandIn, eventually, login};

/// Replaces `auth.json` as Codex does, says so, and stays.
const RENEW: &str = r#"cp "$HOME/renewed.json" "$HOME/.codex/new" && mv "$HOME/.codex/new" "$HOME/.codex/auth.json"
    touch "$HOME/renewed"; read -r _ <"$HOME/fifo"; exit 5"#;

#[test]
fn a_renewed_login_is_handed_over_while_codex_runs() {
    let daemon = StandIn::with_canonical(&login(10));
    let host = Host::new(&daemon);
    host.write("renewed.json", &login(20), 0o600);
    nix::unistd::mkfifo(&host.file("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = host.cdx(&["x"]);
    let child = command.env("FAKE_CODEX", RENEW).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("codex renews", || host.file("renewed").exists().then_some(()));
    let renewed = fs::metadata(host.file("renewed")).unwrap().modified().unwrap();
    eventually("the daemon has it", || (daemon.canonical() == login(20)).then_some(()));
    assert!(renewed.elapsed().unwrap() < Duration::from_secs(1), "it took {:?}", renewed.elapsed());
    fs::write(host.file("fifo"), "\n").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (Some(5), ""), "{ran:?}");
    assert_eq!(daemon.commands(), ["retrieve", "store"], "it is sent once");
}

#[test]
fn a_login_that_cannot_be_handed_over_while_codex_runs_is_reported_after_it() {
    let daemon = StandIn::with_canonical(&login(10));
    let host = Host::new(&daemon);
    host.write("renewed.json", &login(20), 0o600);
    nix::unistd::mkfifo(&host.file("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    let mut command = host.cdx(&["x"]);
    let script = format!("read -r _ <\"$HOME/fifo\"\n{RENEW}");
    let child = command.env("FAKE_CODEX", script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("codex runs", || host.file("arguments").exists().then_some(()));
    daemon.state.lock().unwrap().refuses = Some(503);
    fs::write(host.file("fifo"), "\n").unwrap();
    eventually("it was offered", || daemon.commands().contains(&"store".to_owned()).then_some(()));
    fs::write(host.file("fifo"), "\n").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert_eq!(ran.err.matches("the next cdx does it").count(), 1, "{ran:?}");
}

#[test]
fn a_login_is_written_under_codexs_locks() {
    let daemon = StandIn::with_canonical(&login(10));
    for name in ["auth.lock", "auth.json.lock"] {
        let host = Host::new(&daemon);
        host.write(&format!(".codex/{name}"), "", 0o600);
        let file = fs::File::open(host.file(".codex").join(name)).unwrap();
        let held = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        let mut child = host.cdx(&["--sync"]).stderr(Stdio::null()).spawn().unwrap();
        let temporary = || {
            let names = fs::read_dir(host.file(".codex")).unwrap().map(|entry| entry.unwrap().file_name());
            names.into_iter().any(|name| name.to_string_lossy().starts_with("auth.json.cdx.")).then_some(())
        };
        eventually("the new login is beside its place", temporary);
        assert!(host.auth().is_none(), "{name}: it was written without the lock");
        drop(held);
        assert!(child.wait().unwrap().success());
        assert_eq!(host.auth(), Some(login(10)));
    }
}

#[test]
fn a_lock_that_is_never_released_stops_cdx_and_is_named() {
    let daemon = StandIn::with_canonical(&login(10));
    let host = Host::new(&daemon);
    host.write(".codex/auth.lock", "", 0o600);
    let _held = Flock::lock(fs::File::open(host.file(".codex/auth.lock")).unwrap(), FlockArg::LockExclusive).unwrap();
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.file("arguments").exists()), (Some(74), false), "{ran:?}");
    assert!(ran.err.contains("auth.lock for too long"), "{ran:?}");
}
