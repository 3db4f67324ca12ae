//! The life of a sandbox, from its plan to its end, as root and as an ordinary user, with a test program instead of
//! Codex and with the real one.

mod life;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use codex_authd::runner::sandbox::{HOME, HomeFile, Limits, Plan};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::support::program::build;

pub const DAEMON: &str = env!("CARGO_BIN_EXE_codex-authd");

/// A directory that every user can read, with a copy of the daemon and the program.
struct Bench {
    directory: TempDir,
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Root,
    User,
    /// As in a unit with `NoNewPrivileges=`, an empty bounding set and a umask.
    Unit,
}

const EVERYBODY: [Who; 3] = [Who::Root, Who::User, Who::Unit];

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let bench = Self { directory };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/sandbox/standin.c");
        build(source, &bench.program());
        fs::copy(DAEMON, bench.daemon()).unwrap();
        bench
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.file("codex")
    }

    fn daemon(&self) -> PathBuf {
        self.file("codex-authd")
    }

    fn plan(&self, arguments: &[&str]) -> Plan {
        plan(&self.program(), arguments)
    }

    /// A plan for a program that starts others.
    fn plan_of_many(&self, arguments: &[&str]) -> Plan {
        let mut plan = self.plan(arguments);
        plan.limits.one_process = false;
        plan
    }

    /// Runs `sandbox-exec --plan` directly.
    fn command(&self, who: Who, plan: &Plan) -> Command {
        let file = self.file("plan.json");
        fs::write(&file, serde_json::to_string(plan).unwrap()).unwrap();
        let mut command = match who {
            Who::Root => Command::new(self.daemon()),
            Who::User => {
                let mut command = Command::new(self.daemon());
                command.uid(4711).gid(4712);
                command
            }
            Who::Unit => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=4711", "--regid=4712", "--clear-groups", "--no-new-privs"]);
                command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(self.daemon());
                command
            }
        };
        command.args(["sandbox-exec", "--plan"]).arg(file).env("SECRET_OF_THE_DAEMON", "1");
        command
    }
}

fn plan(program: &Path, arguments: &[&str]) -> Plan {
    let auth = HomeFile { path: ".codex/auth.json".into(), content: Zeroizing::new("{}".into()) };
    Plan {
        program: program.into(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        environment: vec![("HOME".into(), HOME.into())],
        ca_bundle: Some("/etc/ssl/certs/ca-certificates.crt".into()),
        home: vec![auth],
        watched: ".codex/auth.json".into(),
        limits: Limits { time: Duration::from_secs(20), ..Limits::default() },
        cgroup: None,
        only_build: false,
    }
}
