//! A crash between any two steps. The process is killed instead of its first, second, third … call that changes the
//! disk, until a run completes. After each kill a normal start must boot, and find all of the change or none.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::crash_points::{CrashPoints, steps};
use crate::support::daemon::{BOUND, Daemon, auth_json, pause};
use crate::support::skip::skipped;
use crate::support::within::{Within, look_within};

/// The largest number of crashes in one scenario.
const MOST: usize = 80;
const HOSTS: [&str; 3] = ["a.test", "b.test", "c.test"];

#[test]
fn a_crash_anywhere_in_the_first_boot_leaves_what_the_next_one_goes_on_with() {
    let crash = Crashes { what: "first boot", template: None };
    crash.everywhere(serve_until_it_listens, |daemon, _| {
        // After the daemon has logged its address, a client may have its CA.
        let told = daemon.state_dir().join("listen.json").exists();
        let shown = std::fs::read_to_string(daemon.state_dir().join("pki/server-ca.crt")).ok();
        assert!(shown.is_some() || !told);
        let after = recover(daemon);
        assert!(shown.is_none_or(|shown| shown == after.server_ca), "another CA than the one that a client has");
        assert!(after.hosts.is_empty() && after.versions.is_empty());
    });
}

#[test]
fn a_crash_anywhere_in_an_upload_leaves_the_new_login_or_the_old() {
    let template = Template::make();
    let crash = Crashes { what: "auth upload", template: Some(&template) };
    let newer = |daemon: &Daemon| daemon.state.path().join("newer.json");
    let act = |daemon: &Daemon, arm: &dyn Fn(&mut Command)| {
        std::fs::write(newer(daemon), auth_json("2026-01-01T00:00:00Z", 99).to_string()).unwrap();
        run(daemon, &["auth", "upload", newer(daemon).to_str().unwrap(), "--json"], arm)
    };
    let both = AtomicUsize::new(0);
    crash.everywhere(act, |daemon, output| {
        let after = recover(daemon);
        let (old, new) = after.versions.split_at(template.within.versions.len());
        assert_eq!(old, template.within.versions);
        assert!(new.len() <= 1);
        let acknowledged = String::from_utf8_lossy(&output.stdout).contains("\"updated\"");
        assert!(!acknowledged || new.len() == 1, "an acknowledged upload is lost");
        both.fetch_or(1 << new.len(), Ordering::SeqCst);
        template.assert_unchanged(Within { versions: old.to_vec(), ..after });
    });
    assert_eq!(both.load(Ordering::SeqCst), 3, "the crashes came before the change and after it");
}

#[test]
fn a_crash_anywhere_in_a_rotation_of_the_keys_leaves_every_secret_readable() {
    let template = Template::make();
    let crash = Crashes { what: "keys rotate", template: Some(&template) };
    let act = |daemon: &Daemon, arm: &dyn Fn(&mut Command)| run(daemon, &["keys", "rotate", "--json"], arm);
    crash.everywhere(act, |daemon, _| template.assert_unchanged(recover(daemon)));
}

#[test]
fn a_crash_anywhere_in_registering_a_known_host_leaves_its_new_key_or_the_old() {
    let template = Template::make();
    let crash = Crashes { what: "hosts add", template: Some(&template) };
    let act = |daemon: &Daemon, arm: &dyn Fn(&mut Command)| {
        run(daemon, &["hosts", "add", "--rotate", "b.test", "--json"], arm)
    };
    let both = AtomicUsize::new(0);
    crash.everywhere(act, |daemon, output| {
        let mut after = recover(daemon);
        let old = template.within.hosts["b.test"].clone();
        let key = after.hosts.insert("b.test".into(), old.clone()).unwrap();
        if let Ok(told) = serde_json::from_slice::<serde_json::Value>(&output.stdout) {
            assert_eq!(key, told["host"]["api_key"], "an acknowledged key is lost");
        }
        both.fetch_or(if key == old { 1 } else { 2 }, Ordering::SeqCst);
        template.assert_unchanged(after);
    });
    assert_eq!(both.load(Ordering::SeqCst), 3, "the crashes came before the change and after it");
}

/// The kernel sees the same calls as the count in the process: no call that changes the disk is missed.
#[test]
fn the_crash_points_are_all_the_calls_that_change_the_disk() {
    const CALLS: &str = "open,openat,creat,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,syncfs,sync_file_range,\
        msync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,\
        truncate,ftruncate,fallocate,chmod,fchmod,fchmodat,copy_file_range,sendfile,io_uring_enter,bind";
    match Command::new("strace").args(["-f", "-qq", "-e", "trace=none", "true"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return skipped(format!("strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Err(error) => return skipped(format!("strace: {error}")),
    }
    let points = CrashPoints::build();
    let daemon = Daemon::prepare(&[]);
    let (counted, traced) = (daemon.state.path().join("counted"), daemon.state.path().join("traced"));
    let mut command = daemon.command(&[]);
    points.arm(&mut command, 0, &counted);
    // Preloaded only into the daemon, not into strace.
    let library = command.get_envs().find(|(name, _)| *name == "LD_PRELOAD").unwrap().1.unwrap().to_owned();
    let mut strace = Command::new("strace");
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("LD_PRELOAD");
    strace.args(["-f", "-y", "-qq", "-e", "signal=none", "-e", &format!("trace={CALLS}"), "-o"]).arg(&traced);
    strace.arg("-E").arg(format!("LD_PRELOAD={}", library.display()));
    strace.arg(crate::support::daemon::BINARY).args(["hosts", "add", "a.test"]);
    let output = strace.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let traced = std::fs::read_to_string(traced).unwrap();
    let seen: Vec<&str> = traced.lines().filter(|line| changes_the_disk(line, &counted)).collect();
    let counted = steps(&counted);
    println!("{} calls that change the disk, strace saw {}", counted.len(), seen.len());
    assert!(counted.len() > 50);
    assert_eq!(counted.len(), seen.len(), "counted: {counted:?}\nseen: {seen:#?}");
}

/// Parses a line of `strace -f -y`: `PID call(3</path>, …`.
fn changes_the_disk(line: &str, log: &Path) -> bool {
    let Some((call, rest)) = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('(')) else {
        return false;
    };
    if rest.contains(log.to_str().unwrap()) || call.starts_with("<...") {
        return false;
    }
    match call {
        "open" | "openat" | "creat" => rest.contains("O_CREAT") || rest.contains("O_TRUNC"),
        "bind" => rest.contains("sun_path=\"/"),
        "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" | "fsync" | "fdatasync" | "syncfs"
        | "sync_file_range" | "ftruncate" | "fallocate" | "fchmod" => {
            rest.split_once('<').is_some_and(|(_, path)| path.starts_with('/'))
        }
        _ => true,
    }
}

#[test]
fn a_second_boot_changes_nothing() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (hosts, admin) = (free(), free());
    let address = |listener: std::net::TcpListener| listener.local_addr().unwrap().to_string();
    let (hosts, admin) = (address(hosts), address(admin));
    let mut daemon = Daemon::start_with(&[("LISTEN__HOSTS", &hosts), ("LISTEN__ADMIN", &admin)]);
    assert!(daemon.stop().success());
    let first = (files_of(&daemon.state_dir()), look_within(&daemon.state_dir()));
    for name in ["master.key", "listen.json", "pki/server-ca.crt", "pki/client-ca.crt"] {
        assert!(first.0.contains_key(Path::new(name)), "{name}: {:?}", first.0.keys());
    }
    daemon.launch();
    assert!(daemon.stop().success());
    assert!(first == (files_of(&daemon.state_dir()), look_within(&daemon.state_dir())));
}

#[test]
fn a_lost_master_key_is_refused_with_a_sentence_and_nothing_is_made() {
    let mut daemon = Daemon::start();
    daemon.cli_json(&["hosts", "add", "a.test"]);
    daemon.kill();
    let key = daemon.state_dir().join("master.key");
    let away = daemon.state.path().join("master.key");
    std::fs::rename(&key, &away).unwrap();
    let before = files_of(&daemon.state_dir());
    for arguments in [&["serve"][..], &["hosts", "list"], &["keys", "rotate"]] {
        let output = daemon.cli(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(&format!("the master key {}", key.display())) && said.contains("put it back"), "{said}");
        assert!(before == files_of(&daemon.state_dir()), "{arguments:?}");
    }
    std::fs::rename(&away, &key).unwrap();
    assert_eq!(daemon.cli_json(&["hosts", "list"])["hosts"][0]["fqdn"], "a.test");
}

#[test]
fn a_master_key_that_others_may_read_is_refused() {
    let daemon = Daemon::prepare(&[]);
    daemon.cli_json(&["hosts", "list"]);
    let key = daemon.state_dir().join("master.key");
    for mode in [0o640, 0o604, 0o620] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let output = daemon.cli(&["serve"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("master.key") && said.contains(&format!("{mode:o}")), "{said}");
    }
}

/// A state with hosts and versions, which is copied for each crash.
struct Template {
    daemon: Daemon,
    within: Within,
}

impl Template {
    fn make() -> Self {
        let daemon = Daemon::prepare(&[]);
        for host in HOSTS {
            daemon.cli_json(&["hosts", "add", host]);
        }
        let login = daemon.state.path().join("auth.json");
        for n in 1..=3 {
            std::fs::write(&login, auth_json(&format!("2025-11-0{n}T00:00:00Z"), n).to_string()).unwrap();
            daemon.cli_json(&["auth", "upload", login.to_str().unwrap()]);
        }
        let within = look_within(&daemon.state_dir());
        assert_eq!((within.hosts.len(), within.versions.len()), (3, 3));
        Self { daemon, within }
    }

    fn assert_unchanged(&self, after: Within) {
        assert_eq!(Within { sealing_keys: Vec::new(), ..after }, Within { sealing_keys: Vec::new(), ..self.copy() });
    }

    fn copy(&self) -> Within {
        let Within { hosts, versions, server_ca, client_ca, server_key, sealing_keys } = &self.within;
        Within {
            hosts: hosts.clone(),
            versions: versions.clone(),
            server_ca: server_ca.clone(),
            client_ca: client_ca.clone(),
            server_key: server_key.clone(),
            sealing_keys: sealing_keys.clone(),
        }
    }
}

struct Crashes<'a> {
    what: &'a str,
    /// `None`: the state directory does not exist yet.
    template: Option<&'a Template>,
}

impl Crashes<'_> {
    /// Runs `act`, armed to die at each point in turn, and then `check`.
    fn everywhere(
        &self,
        act: impl Fn(&Daemon, &dyn Fn(&mut Command)) -> Output + Sync,
        check: impl Fn(&mut Daemon, &Output) + Sync,
    ) {
        let begun = Instant::now();
        let points = CrashPoints::build();
        let crash_at = |at: usize| {
            let _told = Told { what: self.what, at };
            let mut daemon = Daemon::prepare(&[]);
            daemon.log_level = Some("info");
            if let Some(template) = self.template {
                copy_directory(&template.daemon.state_dir(), &daemon.state_dir());
            }
            let log = daemon.state.path().join("steps");
            let output = act(&daemon, &|command| points.arm(command, at, &log));
            let killed = output.status.signal() == Some(9);
            assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            check(&mut daemon, &output);
            (killed, steps(&log))
        };

        let (killed, all) = crash_at(0);
        assert!(!killed);
        let chosen = self.choose(&all);
        let (next, crashes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(at) = chosen.get(next.fetch_add(1, Ordering::SeqCst)) {
                        crashes.fetch_add(usize::from(crash_at(*at).0), Ordering::SeqCst);
                    }
                });
            }
        });
        // Two runs are never exactly equal: continues until a run completes.
        let beyond = (all.len() + 1..).take_while(|at| crash_at(*at).0).count();
        let crashes = crashes.load(Ordering::SeqCst) + beyond;
        println!("{}: {crashes} crashes, {} steps, {:.0?}", self.what, all.len(), begun.elapsed());
        assert!(crashes * 10 > chosen.len() * 9, "only {crashes} of {} runs were killed", chosen.len());
    }

    /// Every point of the first boot. For other scenarios: every third point while the stores are opened, which the
    /// first boot covers, and every point after that, reduced to a run time of a minute or two. `AUTHD_LONG_TESTS=1`:
    /// every point.
    fn choose(&self, steps: &[String]) -> Vec<usize> {
        let long = std::env::var("AUTHD_LONG_TESTS").is_ok_and(|value| value == "1");
        let opened = match self.template {
            Some(_) if !long => steps.iter().rposition(|step| step == "mkdir").unwrap(),
            _ => 0,
        };
        let mut chosen: Vec<usize> = (1..=steps.len()).filter(|at| *at > opened || at % 3 == 1).collect();
        let every = if long { 1 } else { chosen.len().div_ceil(MOST) };
        chosen.reverse();
        chosen.into_iter().step_by(every).collect()
    }
}

/// Prints the crash point when a check fails.
struct Told<'a> {
    what: &'a str,
    at: usize,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: this was the crash in place of step {}", self.what, self.at);
        }
    }
}

fn run(daemon: &Daemon, arguments: &[&str], arm: &dyn Fn(&mut Command)) -> Output {
    let mut command = daemon.command(arguments);
    arm(&mut command);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs `serve` and stops it as soon as it logs its address.
fn serve_until_it_listens(daemon: &Daemon, arm: &dyn Fn(&mut Command)) -> Output {
    let mut command = daemon.command(&["serve"]);
    arm(&mut command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env("RUST_LOG", "warn")
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut told = false;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if !told && daemon.state_dir().join("listen.json").exists() {
            told = true;
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        }
        assert!(begun.elapsed() < BOUND, "neither dead nor listening");
        pause();
    };
    let mut stderr = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Output { status, stdout: Vec::new(), stderr }
}

/// A normal start after the crash, a second one, and a rotation of the keys. Returns what it found.
fn recover(daemon: &mut Daemon) -> Within {
    daemon.launch();
    let certificate = |daemon: &Daemon| std::fs::read(daemon.state_dir().join("pki/server-ca.crt")).unwrap();
    let shown = certificate(daemon);
    daemon.kill();
    let found = look_within(&daemon.state_dir());
    assert_eq!(String::from_utf8(shown.clone()).unwrap(), found.server_ca);

    daemon.launch();
    assert_eq!(certificate(daemon), shown, "a second boot has another CA");
    assert_every_host_is_served(daemon, &found.hosts);
    daemon.cli_json(&["keys", "rotate"]);
    daemon.kill();
    let rotated = look_within(&daemon.state_dir());
    assert_eq!(rotated.sealing_keys.len(), 1, "{:?}", rotated.sealing_keys);
    assert!(found.sealing_keys.iter().all(|key| *key < rotated.sealing_keys[0]));
    assert_eq!(
        (&rotated.hosts, &rotated.versions, &rotated.server_key, &rotated.client_ca),
        (&found.hosts, &found.versions, &found.server_key, &found.client_ca)
    );
    found
}

fn assert_every_host_is_served(daemon: &Daemon, hosts: &BTreeMap<String, String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = daemon.client();
        for (name, key) in hosts {
            let answer =
                client.get(daemon.hosts_url("/wrapper/download")).header("x-api-key", key).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{name}");
            let wrapper = answer.text().await.unwrap();
            assert!(wrapper.contains(key) && wrapper.contains(name), "{name} has another wrapper");
        }
    });
}

/// All files below `directory` without the lock and sled's files: mode and bytes.
fn files_of(directory: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().to_path_buf();
            let about = std::fs::symlink_metadata(&path).unwrap();
            let mode = about.permissions().mode();
            if about.is_dir() {
                if !["records", "hot", "outbox"].iter().any(|store| name == Path::new(store)) {
                    left.push(path);
                }
                files.insert(name, (mode, Vec::new()));
            } else if name != Path::new("daemon.lock") {
                files.insert(name, (mode, std::fs::read(&path).unwrap()));
            }
        }
    }
    files
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
