//! A MariaDB for one test: a directory and a socket that no other test uses, removed with the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const BOUND: Duration = Duration::from_secs(60);

pub struct MariaDb {
    directory: tempfile::TempDir,
    process: Option<Child>,
    settings: Vec<String>,
    user: String,
    /// An additional directory for its programs.
    pub path: Option<PathBuf>,
    /// Another program that runs the server and becomes it.
    pub by_way_of: Vec<String>,
}

impl MariaDb {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// `settings`: additional arguments of the server.
    pub fn with(settings: &[&str]) -> Self {
        let mut server = Self::prepare(settings, &user());
        server.install();
        server.run();
        server
    }

    /// A server without data.
    pub fn prepare(settings: &[&str], user: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings.iter().map(ToString::to_string).collect();
        Self { directory, process: None, settings, user: user.into(), path: None, by_way_of: Vec::new() }
    }

    pub fn install(&self) {
        let made = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--user={}", self.user))
            .arg(format!("--datadir={}", self.data().display()))
            // In the system's directory, two servers would conflict.
            .env("TMPDIR", self.directory())
            .output()
            .expect("mariadb-install-db is installed (tests/needs.sh)");
        assert!(made.status.success(), "mariadb-install-db: {made:?}");
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn data(&self) -> PathBuf {
        self.directory().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory().join("socket")
    }

    /// Starts, or restarts, on the existing data.
    #[allow(clippy::disallowed_methods)] // Between two looks, within a bound.
    pub fn run(&mut self) {
        self.spawn(&[]);
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(begun.elapsed() < BOUND, "mariadbd does not come up:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same without waiting for it.
    pub fn spawn(&mut self, more: &[&str]) {
        self.end();
        let log = std::fs::File::options().create(true).append(true).open(self.directory().join("log")).unwrap();
        let mut line = self.by_way_of.clone();
        line.push("mariadbd".into());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .arg("--no-defaults")
            .arg(format!("--user={}", self.user))
            .arg(format!("--datadir={}", self.data().display()))
            .arg(format!("--socket={}", self.socket().display()))
            .args(["--skip-log-bin", "--innodb-buffer-pool-size=64M", "--max-connections=300"])
            .args(&self.settings)
            .args(more)
            .env("TMPDIR", self.directory());
        // Listens on no port, so it cannot conflict with another server.
        if !self.settings.iter().any(|setting| setting.starts_with("--bind-address")) {
            command.arg("--skip-networking");
        }
        if let Some(path) = &self.path {
            command.env("PATH", format!("{}:{}", path.display(), std::env::var("PATH").unwrap()));
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(process.expect("mariadbd is installed (tests/needs.sh)"));
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Returns when every thread has stopped: for a moment after the signal a thread may still answer.
    pub fn freeze(&self) {
        kill(self.process(), Signal::SIGSTOP).unwrap();
        assert!(matches!(waitpid(self.process(), Some(WaitPidFlag::WUNTRACED)), Ok(WaitStatus::Stopped(..))));
    }

    pub fn thaw(&self) {
        kill(self.process(), Signal::SIGCONT).unwrap();
    }

    fn process(&self) -> Pid {
        Pid::from_raw(self.pid().try_into().unwrap())
    }

    /// Ends the server as a power cut would.
    pub fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
            let _ = std::fs::remove_file(self.socket());
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@localhost/{database}?socket={}", self.socket().display())
    }

    pub async fn create(&self, database: &str) -> String {
        self.query(&format!("CREATE DATABASE {database}")).await;
        self.url(database)
    }

    pub async fn query(&self, statement: &str) -> Vec<mysql_async::Row> {
        self.try_query(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    pub async fn try_query(&self, statement: &str) -> mysql_async::Result<Vec<mysql_async::Row>> {
        let mut connection = self.connection().await?;
        let rows = connection.query(statement).await?;
        connection.disconnect().await?;
        Ok(rows)
    }

    /// A connection as root.
    pub async fn connection(&self) -> mysql_async::Result<mysql_async::Conn> {
        mysql_async::Conn::new(mysql_async::Opts::from_url(&self.url("mysql"))?).await
    }

    /// Whether the process runs.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.end();
    }
}

/// The user for the server: mariadbd refuses to run as root without this option.
pub fn user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}
