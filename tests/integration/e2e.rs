//! The full sequence, with the real Codex: seed, host, installer, `cdx exec`, a newer login to a second host,
//! uninstall.

use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::support::daemon::Daemon;
use crate::support::host::{Host, Program, Ran};
use crate::support::upstream::Upstream;
use crate::wrapper::machine::as_root;

const PROMPT: [&str; 5] = ["exec", "Reply Banana if this works.", "-s", "read-only", "--skip-git-repo-check"];

crate::for_both_programs!(a_login_reaches_every_host_and_comes_back_newer);

fn a_login_reaches_every_host_and_comes_back_newer(program: Program) {
    let upstream = Upstream::start();
    let daemon = Daemon::start_for(program);
    let seed = daemon.state.path().join("auth.json");
    std::fs::write(&seed, upstream.login("acc-1", 864_000).to_string()).unwrap();
    assert_eq!(daemon.cli_json(&["auth", "upload", seed.to_str().unwrap()])["status"], "updated");

    // The first host: the printed command, in a clean home, as an admin pastes it.
    let first = Machine::new(program, &upstream);
    let command = installer_command(&daemon, "first.test");
    let installed = first.bash(&command);
    assert_eq!(installed.code, Some(0), "{installed:#?}");
    assert_eq!(digest_of(&first.auth()), canonical_digest(&daemon), "the login is there, byte for byte");
    let is_script = std::fs::read(first.cdx_file()).unwrap().starts_with(b"#!");
    assert_eq!(is_script, !program.is_native(), "the other program was installed");
    let again = Machine::new(program, &upstream).bash(&command);
    assert!(again.code != Some(0) && again.err.contains("already used"), "the token is spent: {again:#?}");

    // A launch without a newer login costs one request.
    let before = requests(&daemon);
    let ran = first.cdx(&PROMPT);
    assert_eq!((ran.code, ran.out.trim()), (Some(0), "Banana"), "{ran:#?}");
    assert_eq!(requests(&daemon) - before, 1, "{}", daemon.log());
    assert!(upstream.calls_to("POST", "/oauth/token").is_empty(), "a valid login was refreshed");

    // Upstream withdraws the access token: Codex refreshes on this host, and cdx stores the new login.
    let second = Machine::new(program, &upstream);
    assert_eq!(second.bash(&installer_command(&daemon, "second.test")).code, Some(0));
    let old = canonical_digest(&daemon);
    upstream.withdraw_access();
    let ran = first.cdx(&PROMPT);
    assert_eq!((ran.code, ran.out.trim()), (Some(0), "Banana"), "{ran:#?}");
    let new = canonical_digest(&daemon);
    assert_ne!(new, old, "{ran:#?}");
    assert_eq!(digest_of(&first.auth()), new);
    let history = daemon.cli_json(&["auth", "history"]);
    assert_eq!(history["versions"][0]["source_name"], "first.test");

    // The second host gets it before its Codex starts: the single-use refresh token is used only once.
    let ran = second.cdx(&PROMPT);
    assert_eq!((ran.code, ran.out.trim()), (Some(0), "Banana"), "{ran:#?}");
    assert_eq!(digest_of(&second.auth()), new);
    let refreshes = upstream.calls_to("POST", "/oauth/token");
    assert_eq!(refreshes.iter().map(|call| call.status).collect::<Vec<_>>(), [200], "one successful refresh");

    // The host is removed on both sides.
    let gone = first.cdx(&["--uninstall"]);
    assert_eq!(gone.code, Some(0), "{gone:#?}");
    assert!(!first.cdx_file().exists(), "{gone:#?}");
    assert!(!first.host.auth_file().exists(), "{gone:#?}");
    let hosts = daemon.cli_json(&["hosts", "list"]);
    let names: Vec<&str> =
        hosts["hosts"].as_array().unwrap().iter().map(|host| host["fqdn"].as_str().unwrap()).collect();
    assert_eq!(names, ["second.test"]);

    // The admin removes this host: its next launch stops before Codex starts, and says so.
    daemon.cli_json(&["hosts", "remove", "second.test"]);
    let asked = upstream.calls().len();
    let refused = second.cdx(&PROMPT);
    assert_eq!(refused.code, Some(77), "{refused:#?}");
    assert!(refused.err.contains("Invalid API key"), "{refused:#?}");
    assert_eq!(upstream.calls().len(), asked, "Codex was not started");
}

/// A machine: its own home, and, if the tests run as root, its own /usr/local/bin and /etc.
struct Machine {
    host: Host,
}

impl Machine {
    fn new(program: Program, upstream: &Upstream) -> Self {
        let host = Host::bare_for(program).with_real_codex(upstream);
        Self { host }
    }

    fn bash(&self, script: &str) -> Ran {
        self.run(&["bash", "-c", &format!("set -o pipefail; {script}")])
    }

    fn cdx(&self, arguments: &[&str]) -> Ran {
        let cdx = if is_root() { "/usr/local/bin/cdx".into() } else { self.cdx_file().display().to_string() };
        let mut all = vec![cdx.as_str()];
        all.extend(arguments);
        self.run(&all)
    }

    fn cdx_file(&self) -> std::path::PathBuf {
        self.host.file(if is_root() { "usr-local-bin/cdx" } else { ".local/bin/cdx" })
    }

    fn auth(&self) -> Vec<u8> {
        std::fs::read(self.host.auth_file()).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command: Command;
        if is_root() {
            command = as_root(&self.host, arguments);
        } else {
            command = self.host.command(arguments[0]);
            command.args(&arguments[1..]);
        }
        Ran::from(command.output().unwrap())
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn installer_command(daemon: &Daemon, fqdn: &str) -> String {
    daemon.cli_json(&["hosts", "add", fqdn])["installer"]["command"].as_str().unwrap().to_owned()
}

fn canonical_digest(daemon: &Daemon) -> String {
    daemon.cli_json(&["auth", "show"])["digest"].as_str().unwrap().to_owned()
}

fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The number of hosts' requests in the daemon's log.
fn requests(daemon: &Daemon) -> usize {
    daemon.log().matches("event=request ").count()
}
