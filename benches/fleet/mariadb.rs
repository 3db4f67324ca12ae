//! A MariaDB of the benchmark: it has its own directory and socket, flushes each commit, and ends with the benchmark.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mysql_async::prelude::{FromRow, Queryable as _};
use mysql_async::{Conn, Opts};
use tokio::time::Instant;

use crate::Result;
use crate::process::{Process, pause};

pub struct MariaDb {
    directory: PathBuf,
    process: Process,
}

impl MariaDb {
    /// `None` if it is not installed.
    pub async fn start(directory: PathBuf) -> Result<Option<Self>> {
        std::fs::create_dir_all(&directory)?;
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?.ok_or("the current user has no name")?.name;
        let data = directory.join("data");
        let made = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--user={user}"))
            .arg(format!("--datadir={}", data.display()))
            .env("TMPDIR", &directory)
            .output();
        match made {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            made => {
                let made = made?;
                if !made.status.success() {
                    return Err(format!("mariadb-install-db: {}", String::from_utf8_lossy(&made.stderr)).into());
                }
            }
        }
        let log = File::options().create(true).append(true).open(directory.join("log"))?;
        let mut command = Command::new("mariadbd");
        command
            .arg("--no-defaults")
            .arg(format!("--user={user}"))
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", directory.join("socket").display()))
            .args(["--skip-networking", "--innodb-flush-log-at-trx-commit=1", "--max-connections=300"])
            .env("TMPDIR", &directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let started = Instant::now();
        let mut server = Self { directory, process: Process(command.spawn()?) };
        while server.connect("mysql").await.is_err() {
            server.process.check(started)?;
            pause().await;
        }
        Ok(Some(server))
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@localhost/{database}?socket={}", self.directory.join("socket").display())
    }

    /// Creates a database; returns its URL.
    pub async fn create(&self, database: &str) -> Result<String> {
        let mut connection = self.connect("mysql").await?;
        connection.query_drop(format!("CREATE DATABASE {database}")).await?;
        connection.disconnect().await?;
        Ok(self.url(database))
    }

    pub async fn query<T: FromRow + Send + 'static>(&self, statement: &str) -> Result<Vec<T>> {
        let mut connection = self.connect("mysql").await?;
        let rows = connection.query(statement).await?;
        connection.disconnect().await?;
        Ok(rows)
    }

    async fn connect(&self, database: &str) -> Result<Conn> {
        Ok(Conn::new(Opts::from_url(&self.url(database))?).await?)
    }
}
