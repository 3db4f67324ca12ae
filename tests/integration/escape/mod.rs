//! The escape suite: a hostile program replaces Codex (`support/hostile.c`). It tries to get out of its sandbox, or to
//! overload the machine. Each attempt must be refused in the way that the test names.
//!
//! Each attempt is made in a sandbox like the daemon's, by a launcher that is root and by one that is nobody. If
//! possible it is also made outside, as the control: there it succeeds, so no test passes only because the attempt was
//! wrong. No attempt sends a packet beyond a loopback interface.

mod burden;
mod endings;
mod kernel;
mod machine;
mod network;
mod probe;
mod watched;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use codex_authd::runner::sandbox::{Ending, Event, HOME, HomeFile, Limits, Plan, Sandbox};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use crate::support::daemon::{BINARY, BOUND};
use crate::support::program;

/// The user of the sandbox's launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Root,
    /// An unprivileged user, like the daemon's own in a unit: it cannot gain rights.
    Nobody,
}

const NOBODY: u32 = 65_534;
const LOGIN: &str = "the login";

/// The hostile program, and its launchers.
struct Hostile {
    directory: TempDir,
    /// A word in its command line, and in those of all processes that it starts.
    marker: String,
}

impl Hostile {
    fn build() -> Self {
        // Every user can enter it, because the launcher is also nobody.
        let directory = tempfile::Builder::new().prefix("hostile-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("codex");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/support/hostile.c");
        program::build(source, &program);
        let marker = format!("marker-{}", directory.path().file_name().unwrap().display());
        Self { directory, marker }
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("codex")
    }

    /// For nobody: a script that becomes nobody and then runs the daemon's binary, wherever that is.
    fn launcher(&self, by: By) -> PathBuf {
        if by == By::Root {
            return BINARY.into();
        }
        let script = self.directory.path().join("launcher");
        let line = format!(
            "#!/bin/sh\nexec 9<{BINARY}\nexec /usr/bin/setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups \
             --no-new-privs --bounding-set=-all --inh-caps=-all /proc/self/fd/9 \"$@\"\n"
        );
        // Written only once, because a file that is being executed cannot be written.
        if !script.exists() {
            fs::write(&script, line).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        }
        script
    }

    fn plan(&self, attempt: &[&str]) -> Plan {
        let text = |text: &str| Zeroizing::new(text.to_owned());
        Plan {
            program: self.program(),
            arguments: attempt.iter().copied().chain([self.marker.as_str()]).map(String::from).collect(),
            environment: vec![("HOME".into(), HOME.into()), ("PATH".into(), "/bin".into())],
            ca_bundle: Some("/etc/ssl/certs/ca-certificates.crt".into()),
            home: vec![HomeFile { path: ".codex/auth.json".into(), content: text(LOGIN) }],
            watched: ".codex/auth.json".into(),
            // The assertions must also hold for a program that may start others.
            limits: Limits { time: Duration::from_secs(20), one_process: false, ..Limits::default() },
            cgroup: None,
            only_build: false,
        }
    }

    /// The attempt with the limits of a probe: one process.
    fn plan_of_one(&self, attempt: &[&str]) -> Plan {
        let mut plan = self.plan(attempt);
        plan.limits.one_process = true;
        plan
    }

    /// Runs the attempt in a sandbox, to its end.
    fn inside(&self, by: By, attempt: &[&str]) -> Ran {
        self.run(by, &self.plan(attempt))
    }

    fn run(&self, by: By, plan: &Plan) -> Ran {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ran = runtime.block_on(async { Running::start(self, by, plan).await.end().await });
        assert_eq!(self.left(), Vec::<u32>::new(), "nothing of {:?} is left", plan.arguments);
        ran
    }

    /// Runs the attempt outside: the control.
    fn outside(&self, attempt: &[&str]) -> Output {
        self.command(&[], attempt).output().unwrap()
    }

    /// Runs it in its own namespaces, with root's rights in them: this cannot affect other processes.
    fn contained(&self, attempt: &[&str]) -> Output {
        let around = ["unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--kill-child"];
        self.command(&around, attempt).output().unwrap()
    }

    fn command(&self, around: &[&str], attempt: &[&str]) -> Command {
        let program = self.program();
        let line: Vec<_> = around.iter().map(Path::new).chain([program.as_path()]).collect();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).args(attempt).arg(&self.marker).stdin(Stdio::null());
        command
    }

    /// Its processes as the host sees them: by the word in their command line, or by the file that they execute. It
    /// cannot change both.
    fn left(&self) -> Vec<u32> {
        let program = fs::metadata(self.program()).unwrap();
        let is_of_it = |process: &Path| {
            let words = fs::read(process.join("cmdline")).unwrap_or_default();
            let file = fs::metadata(process.join("exe"));
            words.split(|byte| *byte == 0).any(|word| word == self.marker.as_bytes())
                || file.is_ok_and(|file| (file.dev(), file.ino()) == (program.dev(), program.ino()))
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
        pids.filter(|(_, process)| is_of_it(process)).map(|(pid, _)| pid).collect()
    }
}

/// A sandbox in which the program runs.
struct Running {
    sandbox: Sandbox,
    output: tokio::task::JoinHandle<String>,
    begun: Instant,
}

impl Running {
    async fn start(hostile: &Hostile, by: By, plan: &Plan) -> Self {
        let mut sandbox = Sandbox::start(&hostile.launcher(by), plan).await.unwrap();
        // The proxy's port has no proxy.
        drop(sandbox.listener());
        let (stdout, mut stderr) = sandbox.output().unwrap();
        let output = tokio::spawn(async move {
            let mut text = Vec::new();
            let flood = tokio::spawn(async move { tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await });
            // A flood is read to its end, and dropped.
            let mut stdout = stdout;
            (&mut stdout).take(1 << 20).read_to_end(&mut text).await.unwrap();
            tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await.unwrap();
            flood.await.unwrap().unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        sandbox.go().unwrap();
        Self { sandbox, output, begun: Instant::now() }
    }

    async fn end(mut self) -> Ran {
        let mut told = Vec::new();
        let ending = loop {
            match tokio::time::timeout(BOUND, self.sandbox.next()).await.expect("the sandbox ends").unwrap() {
                Event::Watched(content) => told.push(String::from_utf8_lossy(&content).into_owned()),
                Event::Ended(ending) => break ending,
            }
        };
        let took = self.begun.elapsed();
        self.sandbox.end().await.unwrap();
        // No process holds the outputs open any more.
        let output = tokio::time::timeout(BOUND, self.output).await.expect("the outputs end").unwrap();
        Ran { ending, output, told, took }
    }
}

/// The result of an attempt.
#[derive(Debug)]
struct Ran {
    ending: Ending,
    output: String,
    /// The contents that were reported as its login.
    told: Vec<String>,
    took: Duration,
}

const REFUSED: Ending = Ending::Exited(10);

impl Ran {
    #[track_caller]
    fn assert_refused(&self, how: &str) {
        assert_eq!((self.output.trim_end(), self.ending), (format!("refused: {how}").as_str(), REFUSED), "{self:#?}");
    }
}

#[track_caller]
fn assert_escapes(outside: &Output) {
    let said = String::from_utf8_lossy(&outside.stdout);
    assert!(outside.status.code() == Some(0) && said.contains("ESCAPED: "), "the control: {outside:?}");
}

/// With both launchers.
#[track_caller]
fn assert_refused(hostile: &Hostile, attempt: &[&str], how: &str) {
    for by in [By::Root, By::Nobody] {
        println!("{by:?}: {attempt:?}: {how}");
        hostile.inside(by, attempt).assert_refused(how);
    }
}

/// The lines of an attempt with several parts: the name and the result of each.
fn lines(output: &str) -> Vec<(&str, &str)> {
    output.lines().filter_map(|line| line.split_once(' ')).collect()
}
