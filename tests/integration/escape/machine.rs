//! The host's files, processes and terminals.

use std::fs;

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use crate::support::daemon::Daemon;
use crate::support::eventually;

use super::{By, HOME, Hostile, NOBODY, REFUSED, Running, assert_escapes, assert_refused, lines};

/// A process of the host, which runs during the test.
struct Bystander(Child);

impl Bystander {
    fn start() -> Self {
        let mut command = Command::new("sleep");
        command.arg("300").env("A_SECRET", "of the host's").stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn is_there(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_file_of_the_host_is_read() {
    let hostile = Hostile::build();
    let daemon = Daemon::start();
    let state = daemon.state_dir().display().to_string();
    let (key, log) = (format!("{state}/master.key"), daemon.log_file().display().to_string());
    let (environment, memory) = (format!("/proc/{}/environ", daemon.pid()), format!("/proc/{}/mem", daemon.pid()));
    let bystander = Bystander::start();
    let theirs = format!("/proc/{}/environ", bystander.pid());
    let old = format!("/old{key}");
    for (path, is_of_the_host) in [
        ("/etc/shadow", true),
        ("/etc/passwd", true),
        ("/../../../etc/shadow", true),
        (&key, true),
        (&log, true),
        (&theirs, true),
        ("/proc/self/environ", true),
        ("/proc/version", true),
        ("/proc/self/root/etc/shadow", true),
        // Some machines have none of these, or no user can read them.
        (&environment, false),
        ("/proc/1/environ", false),
        ("/dev/kmsg", false),
        ("/sys/kernel/notes", true),
        (&memory, false),
        (&old, false),
        ("/dev/mem", false),
        ("/dev/tty", false),
        ("/dev/pts/0", false),
        ("/dev/shm/x", false),
        ("/run/systemd/private", false),
    ] {
        println!("{path}");
        if is_of_the_host {
            assert_escapes(&hostile.outside(&["read", path]));
        }
        // In the sandbox /proc holds only /proc/self/exe, a link to the program.
        assert_refused(&hostile, &["read", path], "ENOENT");
    }
}

#[test]
fn there_is_nothing_but_what_it_needs() {
    let hostile = Hostile::build();
    for by in [By::Root, By::Nobody] {
        let ran = hostile.inside(by, &["tree"]);
        let mut found: Vec<&str> = ran.output.lines().collect();
        found.sort_unstable();
        // Name lookups get no answer; a file that says so may exist.
        found.retain(|path| *path != "/etc/resolv.conf");
        let mut expected = vec![
            "/bin",
            "/bin/codex",
            "/dev",
            "/dev/full",
            "/dev/null",
            "/dev/random",
            "/dev/urandom",
            "/etc",
            "/etc/ssl",
            "/etc/ssl/certs",
            "/etc/ssl/certs/ca-certificates.crt",
            "/home",
            HOME,
            "/home/probe/.codex",
            "/home/probe/.codex/auth.json",
            "/proc",
            "/proc/self",
            "/proc/self/exe",
            "/tmp",
        ];
        expected.sort_unstable();
        assert_eq!(found, expected, "{by:?}");
    }
}

#[test]
fn nothing_is_written_outside_of_its_home() {
    let hostile = Hostile::build();
    // The program owns its file, so the host's rights would allow the write.
    std::os::unix::fs::chown(hostile.program(), Some(NOBODY), Some(NOBODY)).unwrap();
    for path in [
        "/x",
        "/bin/x",
        "/etc/x",
        "/etc/passwd",
        "/dev/x",
        "/dev/shm",
        "/proc/x",
        "/proc/self/oom_score_adj",
        "/proc/sysrq-trigger",
        "/home/x",
    ] {
        assert_refused(&hostile, &["write", path], "EROFS");
        if path.ends_with('x') {
            assert_refused(&hostile, &["mkdir", path], "EROFS");
        }
    }
    assert_refused(&hostile, &["write", "/bin/codex"], "ETXTBSY");
    for path in ["/bin/codex", "/etc/ssl/certs/ca-certificates.crt", "/dev/null"] {
        assert_refused(&hostile, &["chmod", path], "EROFS");
        let ran = hostile.inside(By::Root, &["remove", path]);
        assert!(["refused: EROFS\n", "refused: EBUSY\n"].contains(&ran.output.as_str()), "{path}: {ran:#?}");
    }
    for path in ["/proc/sys/kernel/core_pattern", "/sys/power/state"] {
        assert_refused(&hostile, &["write", path], "ENOENT");
    }
    let place = hostile.directory.path().join("x");
    assert_escapes(&hostile.outside(&["write", place.to_str().unwrap()]));
    let in_home = format!("{HOME}/x");
    let ran = hostile.inside(By::Root, &["write", &in_home]);
    assert!(ran.output.starts_with("ESCAPED"), "the control: it may write to its home: {ran:#?}");
}

#[test]
fn no_file_gives_it_rights_by_being_executed() {
    let hostile = Hostile::build();
    let outside = hostile.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    assert_escapes(&hostile.outside(&["setuid-copy", outside.to_str().unwrap()]));
    for directory in [HOME, "/tmp"] {
        assert_refused(&hostile, &["setuid-copy", directory], "EACCES");
    }
    // The program itself, as a setuid-root file of the host.
    fs::set_permissions(hostile.program(), fs::Permissions::from_mode(0o6755)).unwrap();
    let nobody = format!("--reuid={NOBODY}");
    let control = hostile.command(&["setpriv", &nobody, "--regid=65534", "--clear-groups"], &["ids"]).output().unwrap();
    assert_escapes(&control);
    hostile.inside(By::Root, &["ids"]).assert_refused("uid 65534, euid 65534");
    hostile.inside(By::Nobody, &["ids"]).assert_refused("uid 1000, euid 1000");
}

#[test]
fn no_process_of_the_host_is_seen_or_signalled() {
    let hostile = Hostile::build();
    let mut bystander = Bystander::start();
    let daemon = Daemon::start();
    let (ours, theirs, daemons) = (std::process::id().to_string(), bystander.pid(), daemon.pid().to_string());
    assert_escapes(&hostile.outside(&["signal", "0", &ours, &theirs, &daemons]));
    let mut all = vec![ours, theirs, daemons];
    // Its own process ids are small numbers.
    let others = fs::read_dir("/proc").unwrap().flatten();
    let others = others.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    all.extend(others.filter(|pid| *pid > 64).map(|pid| pid.to_string()));
    for by in [By::Root, By::Nobody] {
        // First the harmless signal: without a pid namespace, nothing is killed here.
        for signal in ["0", "9"] {
            let attempt: Vec<&str> = ["signal", signal].into_iter().chain(all.iter().map(String::as_str)).collect();
            hostile.inside(by, &attempt).assert_refused("ESRCH");
        }
        hostile.inside(by, &["signal-all"]).assert_refused("its own child ended by signal 9");
    }
    assert!(bystander.is_there() && std::net::TcpStream::connect(daemon.listen.hosts).is_ok());
}

#[test]
fn no_memory_of_the_host_is_read() {
    let hostile = Hostile::build();
    let secret = Box::leak(Box::new(*b"a secret of the host's"));
    let (pid, address) = (std::process::id().to_string(), format!("{:p}", secret.as_ptr()));
    for (attempt, how) in [("memory-of", "ENOSYS"), ("memory-file-of", "ENOENT")] {
        assert_escapes(&hostile.outside(&[attempt, &pid, &address]));
        assert_refused(&hostile, &[attempt, &pid, &address], how);
    }
}

#[test]
fn no_descriptor_and_no_word_of_the_environment_is_inherited() {
    let hostile = Hostile::build();
    let more = format!("exec 7</etc/passwd; exec {} descriptors", hostile.program().display());
    assert_escapes(&Command::new("sh").args(["-c", &more]).output().unwrap());
    assert_refused(&hostile, &["descriptors"], "0, 1 and 2 are all");
    for by in [By::Root, By::Nobody] {
        let ran = hostile.inside(by, &["environment"]);
        assert_eq!((ran.output.as_str(), ran.ending), ("HOME=/home/probe\nPATH=/bin\n", REFUSED));
    }
}

#[test]
fn the_kernel_says_that_it_has_no_rights() {
    let hostile = Hostile::build();
    let ours = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for by in [By::Root, By::Nobody] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut plan = hostile.plan(&["be-seen"]);
            plan.limits.time = std::time::Duration::from_secs(60);
            let running = Running::start(&hostile, by, &plan).await;
            let program = eventually("the program runs", || hostile.left().first().copied());
            let parent = |pid: u32| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                field(&status, "PPid").parse::<u32>().unwrap()
            };
            // The first process has the same rights as the program that it watches.
            for pid in [program, parent(program)] {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                    assert_eq!(field(&status, set), "0000000000000000", "{by:?}: {set}");
                }
                for (name, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", "")] {
                    assert_eq!(field(&status, name), value, "{by:?}: {name}");
                }
                assert!(field(&status, "Uid").split_whitespace().all(|id| id == "65534"), "{status}");
                for name in ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"] {
                    let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
                    assert_ne!(theirs, ours(name), "{by:?}: its own {name} namespace");
                }
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
                let environment = String::from_utf8_lossy(&environment).into_owned();
                assert!(!environment.contains("CARGO"), "{environment}");
                assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "1000");
            }
            let open = fs::read_dir(format!("/proc/{program}/fd")).unwrap().count();
            assert_eq!(open, 3, "{by:?}");
            drop(running);
        });
        eventually("no process is left", || hostile.left().is_empty().then_some(()));
    }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name}: {status}")).trim()
}

#[test]
fn no_words_are_put_into_the_mouth_of_who_sits_at_the_terminal() {
    let hostile = Hostile::build();
    let plan = hostile.directory.path().join("plan");
    fs::write(&plan, serde_json::to_string(&hostile.plan(&["terminal", "1"])).unwrap()).unwrap();
    let (inside, outside) = (
        format!("exec {} sandbox-exec --plan {}", super::BINARY, plan.display()),
        format!("exec {} terminal 1", hostile.program().display()),
    );
    let on_terminal = |command: &str| {
        // `script` opens a terminal, makes it the terminal of a new session, and copies its output.
        let output = Command::new("script").args(["-qec", command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).replace('\r', "")
    };
    let control = on_terminal(&outside);
    assert!(control.contains("TIOCSTI ESCAPED: done"), "the control: {control}");
    let said = on_terminal(&inside);
    let said = lines(&said);
    assert_eq!(said.len(), 7, "{said:?}");
    assert!(said.iter().all(|(_, how)| *how == "refused: ENOSYS"), "{said:?}");
}
