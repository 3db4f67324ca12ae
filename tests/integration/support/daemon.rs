//! A real daemon: the binary of this build, with its own state directory, on ports that the system chooses.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client, ClientBuilder, Identity};
use serde_json::Value;
use tempfile::TempDir;

use super::documents::{account_claims, jwt};
use super::host::{Program, copy_program, native_program};
use super::standin::machine_target;

pub const BINARY: &str = env!("CARGO_BIN_EXE_codex-authd");
/// The time limit for every condition that a test waits for, also on slow machines.
pub const BOUND: Duration = Duration::from_secs(60);

pub struct Daemon {
    pub state: TempDir,
    settings: Vec<(String, String)>,
    child: Option<Child>,
    pub listen: Listen,
    /// Additional environment variables.
    pub environment: Vec<(String, String)>,
    /// A command that gets the daemon as its last arguments and becomes it: for a daemon with other rights.
    pub within: Vec<String>,
    /// The program: of this build, unless a test compares it with another.
    pub binary: PathBuf,
    /// The log level; otherwise `RUST_LOG` of the tests, otherwise everything.
    pub log_level: Option<&'static str>,
}

#[derive(Clone, serde::Deserialize)]
pub struct Listen {
    pub hosts: SocketAddr,
    pub admin: SocketAddr,
}

impl Daemon {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// `settings` are `SECTION__KEY`, value. Rate limits are off unless the settings set them.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let mut daemon = Self::prepare(settings);
        daemon.launch();
        daemon
    }

    /// Its installers install this program.
    pub fn start_for(program: Program) -> Self {
        let mut daemon = Self::prepare(&[]);
        daemon.set_native_program(program.is_native().then(native_program));
        daemon.launch();
        daemon
    }

    /// Sets the native program that the daemon has for this machine from its next start.
    pub fn set_native_program(&self, program: Option<&Path>) {
        let place = self.state.path().join("programs").join(format!("cdx-{}", machine_target()));
        match program {
            Some(program) => copy_program(program, &place, 0o644),
            None => drop(std::fs::remove_file(place)),
        }
    }

    /// A daemon that does not run yet, for tests of its start and of commands without a daemon.
    pub fn prepare(settings: &[(&str, &str)]) -> Self {
        Self::prepare_in(&std::env::temp_dir(), settings)
    }

    /// Like [`Self::prepare`], with all its files in a new directory below `parent`.
    pub fn prepare_in(parent: &Path, settings: &[(&str, &str)]) -> Self {
        let state = tempfile::Builder::new().prefix("authd-").tempdir_in(parent).unwrap();
        let mut all: Vec<(String, String)> = vec![
            ("STATE_DIR".into(), state.path().join("state").display().to_string()),
            ("LISTEN__HOSTS".into(), "127.0.0.1:0".into()),
            ("LISTEN__ADMIN".into(), "127.0.0.1:0".into()),
            ("LISTEN__CONTROL".into(), state.path().join("control.sock").display().to_string()),
            ("LIMITS__GLOBAL_PER_MINUTE".into(), "0".into()),
            ("LIMITS__HOST_PER_MINUTE".into(), "0".into()),
            ("LIMITS__AUTH_FAIL_COUNT".into(), "0".into()),
            ("AUTH__STORES_PER_HOST_PER_HOUR".into(), "0".into()),
            ("UPSTREAM__RELEASES_URL".into(), String::new()),
            ("RUNNER__ENABLED".into(), "false".into()),
            ("INSTALL__PROGRAMS_DIR".into(), state.path().join("programs").display().to_string()),
        ];
        for (name, value) in settings {
            all.retain(|(known, _)| known != name);
            all.push((name.to_string(), value.to_string()));
        }
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            state,
            settings: all,
            child: None,
            listen: Listen { hosts: nowhere, admin: nowhere },
            environment: Vec::new(),
            within: Vec::new(),
            binary: BINARY.into(),
            log_level: None,
        }
    }

    /// Removes the settings of [`Self::prepare`] whose names begin with `prefix`, so the program's defaults hold.
    pub fn unset(&mut self, prefix: &str) {
        self.settings.retain(|(name, _)| !name.starts_with(prefix));
    }

    pub fn state_dir(&self) -> PathBuf {
        self.state.path().join("state")
    }

    pub fn log_file(&self) -> PathBuf {
        self.state.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The binary with only this daemon's settings in its environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        self.settings_for(&mut command);
        command.args(arguments);
        command
    }

    pub fn settings_for(&self, command: &mut Command) {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CODEX_AUTHD_")) {
            command.env_remove(name);
        }
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.envs(self.settings.iter().map(|(name, value)| (format!("CODEX_AUTHD_{name}"), value)));
    }

    /// Runs `codex-authd ARGUMENTS` to its end.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs it, asserts success, and reads its `--json`.
    pub fn cli_json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.cli(&all);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts the process and waits until it listens.
    pub fn launch(&mut self) {
        self.try_launch().unwrap_or_else(|refused| panic!("{refused}:\n{}", self.log()));
    }

    /// `Err`: the reason why it did not start.
    pub fn try_launch(&mut self) -> Result<(), String> {
        let _ = std::fs::remove_file(self.state_dir().join("listen.json"));
        let log = std::fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = match self.within.split_first() {
            None => self.command(&["serve"]),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                self.settings_for(&mut command);
                command.args(rest).arg(&self.binary).arg("serve");
                command
            }
        };
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let level = self.log_level.map(String::from).or_else(|| std::env::var("RUST_LOG").ok());
        command.env("RUST_LOG", level.unwrap_or_else(|| "trace".into()));
        self.child = Some(command.spawn().unwrap());
        self.wait_until_it_listens()
    }

    fn wait_until_it_listens(&mut self) -> Result<(), String> {
        let file = self.state_dir().join("listen.json");
        let started = Instant::now();
        loop {
            if let Some(listen) = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                self.listen = listen;
                if std::net::TcpStream::connect(self.listen.admin).is_ok() {
                    return Ok(());
                }
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                return Err(format!("the daemon ended with {status}"));
            }
            if started.elapsed() >= BOUND {
                return Err("the daemon does not listen".into());
            }
            pause();
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Sends kill -9, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Sends SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait();
        self.child = None;
        status
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < BOUND, "the daemon does not end:\n{}", self.log());
            pause();
        }
    }

    pub fn hosts_url(&self, path: &str) -> String {
        format!("https://{}{path}", self.listen.hosts)
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("https://{}{path}", self.listen.admin)
    }

    pub fn server_ca(&self) -> Certificate {
        Certificate::from_pem(&std::fs::read(self.state_dir().join("pki/server-ca.crt")).unwrap()).unwrap()
    }

    /// A client like a host's: it trusts our CA and shows no certificate.
    pub fn client(&self) -> Client {
        self.client_builder().build().unwrap()
    }

    /// A client that calls from another loopback address.
    pub fn client_from(&self, address: IpAddr) -> Client {
        self.client_builder().local_address(address).build().unwrap()
    }

    pub fn client_builder(&self) -> ClientBuilder {
        install_provider();
        Client::builder()
            .tls_built_in_root_certs(false)
            .add_root_certificate(self.server_ca())
            .no_proxy()
            .timeout(BOUND)
    }

    /// Issues a certificate by the command line; the directory holds NAME.crt, NAME.key and ca.crt.
    pub fn admin_certificate(&self, name: &str) -> PathBuf {
        let directory = self.state.path().join(format!("admin-{name}"));
        self.cli_json(&["admin-cert", name, "--pem", directory.to_str().unwrap()]);
        directory
    }

    /// A client with an admin's certificate.
    pub fn admin(&self) -> Client {
        self.admin_named("tester")
    }

    pub fn admin_named(&self, name: &str) -> Client {
        let directory = self.state.path().join(format!("admin-{name}"));
        if !directory.exists() {
            self.admin_certificate(name);
        }
        self.client_builder().identity(identity(&directory, name)).build().unwrap()
    }

    /// Registers a host over the admin listener.
    pub async fn register(&self, admin: &Client, fqdn: &str) -> Registered {
        let answer = admin
            .post(self.admin_url("/admin/hosts/register"))
            .json(&serde_json::json!({ "fqdn": fqdn }))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        let body: Value = answer.json().await.unwrap();
        Registered::from(&body["data"])
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

#[derive(Clone)]
pub struct Registered {
    pub id: u64,
    pub api_key: String,
    pub token: String,
    pub command: String,
}

/// `data` of the answer to a registration.
impl From<&Value> for Registered {
    fn from(data: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            id: data["host"]["id"].as_u64().unwrap(),
            api_key: text(&data["host"]["api_key"]),
            token: text(&data["installer"]["token"]),
            command: text(&data["installer"]["command"]),
        }
    }
}

pub fn identity(directory: &Path, name: &str) -> Identity {
    let mut pem = std::fs::read(directory.join(format!("{name}.crt"))).unwrap();
    pem.extend(std::fs::read(directory.join(format!("{name}.key"))).unwrap());
    Identity::from_pem(&pem).unwrap()
}

pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// A pause between two checks of a condition.
#[allow(clippy::disallowed_methods)]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// An auth.json as `codex login` writes it. `n` makes logins different. All are renewals of one login, and only their
/// dates decide which is newer.
pub fn auth_json(last_refresh: &str, n: u64) -> Value {
    let claims = |kind: &str| account_claims("acc-1234", "user-1", &format!("{kind}-{n}"));
    serde_json::json!({
        "OPENAI_API_KEY": null,
        "tokens": {
            "id_token": jwt(&claims("id"), &format!("id-{n}")),
            "access_token": jwt(&claims("access"), &format!("Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6-{n}")),
            "refresh_token": format!("rt_abc/def-{n}"),
            "account_id": "acc-1234",
        },
        "last_refresh": last_refresh,
    })
}
