//! A MariaDB of the test's own: a directory and a socket that nobody else knows, gone with the test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;

const BOUND: Duration = Duration::from_secs(60);

pub struct MariaDb {
    directory: tempfile::TempDir,
    process: Option<Child>,
    settings: Vec<String>,
}

impl MariaDb {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// `settings`: arguments of the server's own.
    pub fn with(settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server =
            Self { directory, process: None, settings: settings.iter().map(ToString::to_string).collect() };
        let made = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--user={}", user()))
            .arg(format!("--datadir={}", server.data().display()))
            // Two at once would meet in the system's.
            .env("TMPDIR", server.directory.path())
            .output()
            .expect("mariadb-install-db is installed (tests/needs.sh)");
        assert!(made.status.success(), "mariadb-install-db: {made:?}");
        server.run();
        server
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Begins, or begins again, on what is there.
    #[allow(clippy::disallowed_methods)] // Between two looks, within a bound.
    pub fn run(&mut self) {
        self.end();
        let log = std::fs::File::options().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let process = Command::new("mariadbd")
            .arg("--no-defaults")
            .arg(format!("--user={}", user()))
            .arg(format!("--datadir={}", self.data().display()))
            .arg(format!("--socket={}", self.socket().display()))
            .args(["--skip-networking", "--skip-log-bin", "--innodb-buffer-pool-size=64M", "--max-connections=300"])
            .args(&self.settings)
            .env("TMPDIR", self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("mariadbd is installed (tests/needs.sh)");
        self.process = Some(process);
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(begun.elapsed() < BOUND, "mariadbd does not come up:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// As a power cut would.
    pub fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
            let _ = std::fs::remove_file(self.socket());
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@localhost/{database}?socket={}", self.socket().display())
    }

    pub async fn create(&self, database: &str) -> String {
        self.query(&format!("CREATE DATABASE {database}")).await;
        self.url(database)
    }

    pub async fn query(&self, statement: &str) -> Vec<mysql_async::Row> {
        let options = mysql_async::Opts::from_url(&self.url("mysql")).unwrap();
        let mut connection = mysql_async::Conn::new(options).await.unwrap();
        let rows = connection.query(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        connection.disconnect().await.unwrap();
        rows
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.end();
    }
}

/// It will not run as root without being told.
fn user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}
