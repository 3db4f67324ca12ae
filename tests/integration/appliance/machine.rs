//! A booted machine: systemd as PID 1 of a container, in the network of the test, so that both share 127.0.0.1.
//!
//! Commands run in it like root's at its console. It ends with the test in all cases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::root;
use crate::support::daemon::{BOUND, pause};
use crate::support::host::Ran;
use crate::support::processes::children;

pub struct Machine {
    directory: TempDir,
    container: Child,
    /// Its PID 1, as a process id of this machine.
    init: u32,
    cgroup: Option<PathBuf>,
}

/// The time limit for the end of a killed machine's processes.
const LEAVING: Duration = Duration::from_secs(10);

/// Root's environment at the console.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
];

impl Machine {
    /// Boots a copy of `image` in the network of this thread.
    pub fn boot(image: &Path) -> Result<Self, String> {
        let directory = root::copy(image);
        let name = directory.path().file_name().unwrap().display().to_string();
        let log = fs::File::create(directory.path().join("console")).unwrap();
        let cgroup = cgroup(&name);
        let mut command = Command::new("sh");
        // Two machines at once must not share a cgroup.
        command.args(["-c", "[ -z \"$0\" ] || echo $$ >\"$0/cgroup.procs\"; exec \"$@\""]);
        command.arg(cgroup.as_deref().unwrap_or(Path::new("")));
        command.args(["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"]);
        command
            .arg(format!("--machine={name}"))
            .arg("--hostname=appliance")
            .arg("-D")
            .arg(directory.path().join("root"));
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let container = command.spawn().map_err(|error| format!("systemd-nspawn: {error}"))?;
        let mut machine = Self { directory, container, init: 0, cgroup };
        machine.wait_until_it_runs()?;
        Ok(machine)
    }

    fn wait_until_it_runs(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.container.try_wait().unwrap() {
                return Err(format!("the container ended with {status}: {}", self.console()));
            }
            let is_init =
                |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n");
            if let Some(init) = children(self.container.id()).into_iter().find(is_init) {
                self.init = init;
                if self.run(&["systemctl", "is-system-running"]).out.trim() == "running" {
                    return Ok(());
                }
            }
            if begun.elapsed() > BOUND {
                return Err(format!("the container did not boot: {}", self.console()));
            }
            pause();
        }
    }

    fn console(&self) -> String {
        fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }

    /// The path of one of its files on this machine.
    pub fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path.trim_start_matches('/'))
    }

    pub fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.file(path).parent().unwrap()).unwrap();
        fs::write(self.file(path), text).unwrap();
    }

    /// A command in it, to be run or started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.init.to_string(), "--"]).args(arguments);
        command.env_clear().envs(ENVIRONMENT).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    pub fn bash(&self, script: &str) -> Ran {
        self.run(&["bash", "-c", &format!("set -o pipefail; cd; {script}")])
    }

    /// Runs a command, which must succeed; returns its output.
    pub fn done(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs `codex-authd ARGUMENTS --json` in it.
    pub fn authd(&self, arguments: &[&str]) -> Value {
        let all = [&["codex-authd"], arguments, &["--json"]].concat();
        serde_json::from_str(&self.done(&all)).unwrap()
    }

    /// The version of the installed package.
    pub fn version(&self) -> String {
        self.done(&["dpkg-query", "--show", "--showformat=${Version}", "codex-authd"])
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.done(&["systemctl", "show", "--value", "--property", name, unit]).trim().to_owned()
    }

    /// The journal entries of a unit, and entries about it.
    pub fn journal(&self, unit: &str) -> Vec<Value> {
        let lines = self.done(&["journalctl", "--unit", unit, "--output", "json", "--all", "--no-pager"]);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Powers it off, and waits for the end.
    pub fn power_off(mut self) {
        self.run(&["systemctl", "poweroff"]);
        let begun = Instant::now();
        loop {
            if let Some(status) = self.container.try_wait().unwrap() {
                assert!(status.success(), "{status}: {}", self.console());
                println!("powered off in {:?}", begun.elapsed());
                return;
            }
            assert!(begun.elapsed() < BOUND, "the machine does not power off: {}", self.console());
            pause();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.init != 0 {
            let told = self.run(&["journalctl", "--no-pager", "--lines", "60", "--output", "short-monotonic"]);
            eprintln!("the machine's journal ends with:\n{}{}", told.out, told.err);
        }
        // If systemd-nspawn is killed, its container may continue.
        if self.init != 0 && children(self.container.id()).contains(&self.init) {
            let _ = kill(Pid::from_raw(self.init.cast_signed()), Signal::SIGKILL);
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
        if let Some(cgroup) = &self.cgroup {
            remove_cgroup(cgroup);
        }
    }
}

/// A new cgroup in the version 2 hierarchy, wherever that is mounted; `None` if it cannot be made.
fn cgroup(name: &str) -> Option<PathBuf> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let place = places
        .into_iter()
        .map(Path::new)
        .find(|place| place.join("cgroup.procs").exists() && place.join("cgroup.controllers").exists())?;
    let cgroup = place.join(name);
    fs::create_dir(&cgroup).ok().map(|()| cgroup)
}

/// Removes it with its processes, and the cgroup that systemd-nspawn made in the version 1 hierarchy, if there is one.
fn remove_cgroup(cgroup: &Path) {
    let beside = Path::new("/sys/fs/cgroup/systemd").join(cgroup.file_name().unwrap());
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    let begun = Instant::now();
    while begun.elapsed() < LEAVING && [cgroup, &beside].into_iter().any(|place| !remove_from_the_leaves(place)) {
        pause();
    }
}

/// Removes a tree of cgroups from the leaves; whether it is gone.
fn remove_from_the_leaves(at: &Path) -> bool {
    for below in fs::read_dir(at).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_from_the_leaves(&below.path());
        }
    }
    !at.exists() || fs::remove_dir(at).is_ok()
}
