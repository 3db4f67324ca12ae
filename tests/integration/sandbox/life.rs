//! The beginning and the end of a sandbox, and its events in between.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use codex_authd::runner::sandbox::{Ending, Event, HOME, HomeFile, PROXY, Plan, Sandbox, SandboxError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use super::{Bench, DAEMON, EVERYBODY, plan};
use crate::support::daemon::pause;
use crate::support::host::codex_itself;
use crate::support::processes::{children, is_alive};
use crate::support::skip::skipped;
use crate::support::upstream::Upstream;

async fn started(plan: &Plan) -> Sandbox {
    Sandbox::start(Path::new(DAEMON), plan).await.unwrap()
}

/// All reported logins until the end.
async fn told(plan: &Plan) -> (Vec<String>, Ending) {
    let mut sandbox = started(plan).await;
    sandbox.go().unwrap();
    let mut watched = Vec::new();
    loop {
        match sandbox.next().await.unwrap() {
            Event::Watched(content) => watched.push(String::from_utf8(content.to_vec()).unwrap()),
            Event::Ended(ending) => {
                assert_eq!(sandbox.end().await.unwrap(), (None, ending));
                return (watched, ending);
            }
        }
    }
}

/// The processes with this word in their command line, and all their descendants.
fn family(word: &str) -> Vec<u32> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let parent: u32 = rest.split(' ').nth(1).unwrap().parse().unwrap();
        all.push((pid, parent, line));
    }
    let mut found: Vec<u32> = all.iter().filter(|(_, _, line)| line.contains(word)).map(|(pid, ..)| *pid).collect();
    let mut from = 0;
    while from < found.len() {
        let children = all.iter().filter(|(_, parent, _)| *parent == found[from]).map(|(pid, ..)| *pid);
        let new: Vec<u32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        from += 1;
    }
    found
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        pause();
    }
}

#[tokio::test]
async fn the_program_runs_only_once_it_is_let_go() {
    let bench = Bench::new();
    let mut sandbox = started(&bench.plan(&["open", "/x"])).await;
    let (mut stdout, _stderr) = sandbox.output().unwrap();
    let mut some = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(200), stdout.read(&mut some)).await;
    assert!(early.is_err(), "nothing was written");
    sandbox.go().unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "/x ENOENT\n");
    assert_eq!(sandbox.next().await.unwrap(), Event::Ended(Ending::Exited(7)));
    assert!(matches!(sandbox.next().await, Err(SandboxError::Died)));
}

#[tokio::test]
async fn what_listens_inside_is_reached_from_inside_only() {
    let bench = Bench::new();
    let mut sandbox = started(&bench.plan(&["connect", "3128", "/x", "x"])).await;
    let listener = sandbox.listener().unwrap();
    assert!(sandbox.listener().is_none());
    let address = listener.local_addr().unwrap();
    assert_eq!(address.to_string(), PROXY);
    assert!(TcpStream::connect(address).is_err(), "the host's loopback is reachable");
    let (mut stdout, _stderr) = sandbox.output().unwrap();
    sandbox.go().unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    listener.accept().await.unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("127.0.0.1 ok\n"), "{text}");
}

#[tokio::test]
async fn the_end_of_the_program_is_told_as_it_was() {
    let bench = Bench::new();
    let mut limited = bench.plan(&["spin"]);
    limited.limits.cpu_seconds = 1;
    let mut endless = bench.plan(&["for ever"]);
    endless.limits.time = Duration::from_millis(300);
    let mut built = bench.plan(&["crash"]);
    built.only_build = true;
    for (plan, ending) in [
        (bench.plan(&["open"]), Ending::Exited(7)),
        (bench.plan(&["nonsense"]), Ending::Exited(99)),
        (bench.plan(&["crash"]), Ending::Killed(6)),
        (limited, Ending::Killed(9)),
        (endless, Ending::OutOfTime),
        (built, Ending::Exited(0)),
    ] {
        assert_eq!(told(&plan).await, (Vec::new(), ending), "{:?}", plan.arguments);
    }
}

#[tokio::test]
async fn a_login_is_told_while_the_program_goes_on() {
    let bench = Bench::new();
    let mut sandbox = started(&bench.plan(&["login"])).await;
    let (mut stdout, _stderr) = sandbox.output().unwrap();
    sandbox.go().unwrap();
    let mut line = [0; 11];
    stdout.read_exact(&mut line).await.unwrap();
    let renamed = Instant::now();
    assert_eq!(sandbox.next().await.unwrap(), Event::Watched(Zeroizing::new(b"one".to_vec())));
    assert!(renamed.elapsed() < Duration::from_secs(1), "{:?}", renamed.elapsed());
    // This was reported before: it is not repeated.
    assert_eq!(sandbox.end().await.unwrap(), (None, Ending::OutOfTime));
}

#[tokio::test]
async fn what_a_login_is_in_the_end_is_told_once() {
    let bench = Bench::new();
    assert_eq!(told(&bench.plan(&["login at the end"])).await, (vec!["last".to_owned()], Ending::Exited(7)));
    let (watched, ending) = told(&bench.plan(&["rewrite"])).await;
    assert_eq!(ending, Ending::Exited(7));
    assert!(watched.len() <= 65, "{}", watched.len());
    assert_eq!(watched.last().unwrap(), "19999");
}

#[tokio::test]
async fn what_is_no_plain_file_of_a_mebibyte_is_no_login() {
    let bench = Bench::new();
    for attempt in ["fifo", "symlink for login", "huge login"] {
        assert_eq!(told(&bench.plan(&[attempt])).await, (Vec::new(), Ending::Exited(7)), "{attempt}");
    }
}

#[tokio::test]
async fn ending_it_or_letting_go_of_it_leaves_nothing_behind() {
    let bench = Bench::new();
    let word = format!("marker-{}", std::process::id());
    assert_eq!(told(&bench.plan_of_many(&["daemon", &word])).await, (Vec::new(), Ending::Exited(7)));
    assert!(family(&word).is_empty(), "the program's processes end with it");
    for (round, attempt) in ["both", "for ever", "both", "for ever"].into_iter().enumerate() {
        let word = format!("marker-{}-{round}", std::process::id());
        let mut sandbox = started(&bench.plan_of_many(&[attempt, &word])).await;
        sandbox.go().unwrap();
        until("it runs", || family(&word).len() >= if attempt == "for ever" { 1 } else { 2 });
        if round < 2 {
            assert_eq!(sandbox.end().await.unwrap(), (None, Ending::OutOfTime));
            assert!(family(&word).is_empty(), "no process is left after the end");
        } else {
            drop(sandbox);
            until("nothing is left", || family(&word).is_empty());
        }
    }
}

#[test]
fn whoever_of_the_three_is_killed_takes_the_sandbox_along() {
    let bench = Bench::new();
    for who in EVERYBODY {
        for victim in ["daemon", "launcher", "first process"] {
            let word = format!("marker-{}-{who:?}-{}", std::process::id(), victim.len());
            let mut command = bench.command(who, &bench.plan_of_many(&["both", &word]));
            let mut daemon = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            until("it runs", || family(&word).len() >= 2);
            let pid = daemon.id();
            let below = |pid: u32| children(pid)[0];
            let launcher = below(pid);
            let first = below(launcher);
            let all = [family(&word), vec![pid, launcher, first]].concat();
            assert!(all.len() >= 5, "{all:?}");
            let target = match victim {
                "daemon" => pid,
                "launcher" => launcher,
                _ => first,
            };
            kill(Pid::from_raw(target.cast_signed()), Signal::SIGKILL).unwrap();
            let status = daemon.wait().unwrap();
            assert!(!status.success() || status.signal().is_some(), "{status}");
            until(&format!("{who:?}: nothing outlives the {victim}"), || !all.iter().any(|pid| is_alive(*pid)));
        }
    }
}

#[tokio::test]
async fn a_hundred_sandboxes_leave_no_descriptor_process_or_mount_behind() {
    let bench = Bench::new();
    let count = |path: &str| fs::read_dir(path).unwrap().count();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let plan = bench.plan(&["open"]);
    told(&plan).await;
    let before = (count("/proc/self/fd"), mounts());
    for _ in 0..100 {
        told(&plan).await;
    }
    assert_eq!((count("/proc/self/fd"), mounts()), before);
    assert_eq!(children(std::process::id()), Vec::<u32>::new());
}

#[tokio::test]
async fn what_cannot_be_run_says_why() {
    let bench = Bench::new();
    let script = bench.file("script");
    fs::File::create(&script).unwrap().write_all(b"#!/bin/sh\n").unwrap();
    let fails = async |plan: Plan| match Sandbox::start(Path::new(DAEMON), &plan).await {
        Err(error) => error.to_string(),
        Ok(mut sandbox) => {
            sandbox.go().unwrap();
            sandbox.next().await.unwrap_err().to_string()
        }
    };
    for (program, wanted) in [
        (Path::new("/does/not/exist"), "cannot find /does/not/exist: No such file or directory; it must be there"),
        (&script, "cannot execute the program: Permission denied; every user must be allowed to read and execute it"),
        (
            Path::new("/bin/ls"),
            "cannot execute the program: No such file or directory; it must be there, and need no loader",
        ),
    ] {
        let said = fails(plan(program, &[])).await;
        assert!(said.contains(wanted), "{said}");
    }
    let mut outside = bench.plan(&[]);
    outside.home.push(HomeFile { path: "../x".into(), content: Zeroizing::default() });
    assert!(fails(outside).await.contains("the path '../x' leaves the home"), "it is refused");
    let mut full = bench.plan(&[]);
    full.home.push(HomeFile { path: "x".into(), content: Zeroizing::new("x".repeat(2 << 20)) });
    full.limits.disk = 1 << 20;
    assert!(fails(full).await.contains("cannot write x: No space left on device"), "it is refused");
}

#[tokio::test]
async fn a_cgroup_without_its_controllers_is_refused_and_removed() {
    // The mount point of version 2, on machines that also have version 1, or only version 2.
    let Some(root) = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|root| root.join("cgroup.controllers").exists())
    else {
        return skipped("there is no cgroup v2 here");
    };
    let parent = root.join(format!("authd-test-{}", std::process::id()));
    if let Err(e) = fs::create_dir(&parent) {
        return skipped(format!("no cgroup can be made here: {e}"));
    }
    let bench = Bench::new();
    let mut plan = bench.plan(&["open"]);
    plan.cgroup = Some(parent.clone());
    let refused = Sandbox::start(Path::new(DAEMON), &plan).await;
    let said = refused.err().map(|error| error.to_string()).unwrap_or_default();
    // The launcher may still be removing it.
    let mut removed = Ok(());
    until("nothing is left below it", || {
        removed = fs::remove_dir(&parent);
        removed.is_ok()
    });
    assert!(said.contains("gives a sandbox no cgroup: cannot make a cgroup with its limits"), "{said}");
    assert!(said.contains("Delegate="), "{said}");
}

#[test]
fn by_hand_it_says_what_it_is_for() {
    let output = std::process::Command::new(DAEMON).arg("sandbox-exec").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sandbox-exec is what the daemon starts"), "{output:?}");
}

#[tokio::test]
async fn the_real_codex_refreshes_its_login_and_answers() {
    let upstream = Upstream::start();
    let address = upstream.token_url().split('/').nth(2).unwrap().to_owned();
    let login = upstream.login("acc-1", -60);
    let inside = |text: String| text.replace(&address, PROXY);
    let arguments = ["exec", "Reply Banana if this works.", "-s", "read-only", "--skip-git-repo-check"];
    let mut plan = plan(&codex_itself(), &arguments);
    plan.home = vec![
        HomeFile { path: ".codex/auth.json".into(), content: Zeroizing::new(login.to_string()) },
        HomeFile { path: ".codex/config.toml".into(), content: Zeroizing::new(inside(upstream.config_toml())) },
    ];
    plan.environment =
        vec![("HOME".into(), HOME.into()), ("CODEX_REFRESH_TOKEN_URL_OVERRIDE".into(), inside(upstream.token_url()))];
    let mut sandbox = started(&plan).await;
    let listener = tokio::net::TcpListener::from_std(sandbox.listener().unwrap()).unwrap();
    let to = address.clone();
    let bridge = tokio::spawn(async move {
        loop {
            let (mut inside, _) = listener.accept().await.unwrap();
            let to = to.clone();
            tokio::spawn(async move {
                let mut outside = tokio::net::TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    let (mut stdout, mut stderr) = sandbox.output().unwrap();
    let begun = Instant::now();
    sandbox.go().unwrap();
    let (mut answer, mut log) = (String::new(), String::new());
    let (_, _, events) = tokio::join!(stdout.read_to_string(&mut answer), stderr.read_to_string(&mut log), async {
        let mut events = Vec::new();
        loop {
            events.push(sandbox.next().await.unwrap());
            if let Some(Event::Ended(_)) = events.last() {
                return events;
            }
        }
    });
    // Codex looks up a name outside its proxy, gets no answer, and does not wait for one.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    bridge.abort();
    let calls = upstream.calls_to("POST", "/oauth/token").len();
    // It has its own runtime.
    tokio::task::spawn_blocking(move || drop(upstream)).await.unwrap();
    assert!(answer.to_lowercase().contains("banana"), "{answer}\n{log}");
    assert_eq!(events.last(), Some(&Event::Ended(Ending::Exited(0))), "{log}");
    let Event::Watched(told) = &events[0] else { panic!("the refreshed login is reported first") };
    let told: serde_json::Value = serde_json::from_slice(told).unwrap();
    assert_eq!(calls, 1);
    assert_ne!(told["tokens"]["refresh_token"], login["tokens"]["refresh_token"]);
}
