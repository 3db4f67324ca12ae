//! The tables are created and changed by numbered files, `migrations/NNNN_name.sql`. Each file is applied once.
//!
//! Each daemon applies the missing ones at boot. Daemons that boot together take turns. The one that migrates holds a
//! lease: a row with an end time that every statement extends. (A `GET_LOCK` holds on one Galera node only, and the
//! first `CREATE TABLE` releases a row lock.)
//!
//! DDL cannot be rolled back, so a crash leaves a migration half applied and not recorded. The next daemon waits for
//! the end of the lease and applies it from the beginning. Therefore **every statement of a migration must be
//! repeatable** (`IF NOT EXISTS`, `INSERT IGNORE`), also concurrently, if a lease ended too early. MySQL has no `ADD
//! COLUMN IF NOT EXISTS`: an existing column counts as added. So everything added with it is in the same statement. An
//! existing key counts as added too.
//!
//! Each applied migration is recorded with the SHA-256 of its file. An unknown migration means that a newer version
//! used the database. Another checksum means that the file was edited. In both cases the database is refused and left
//! unchanged.

use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::connections::{Connections, Outcome, Problem};
use super::rows::{self, Columns};
use crate::model::digest::Digest;
use crate::records::{RecordsError, Result, ServerHealth};

pub(super) struct Migration {
    version: u32,
    name: &'static str,
    text: &'static str,
}

pub(super) const MIGRATIONS: [Migration; 10] = [
    Migration { version: 1, name: "records", text: include_str!("../../../migrations/0001_records.sql") },
    Migration { version: 2, name: "store_state", text: include_str!("../../../migrations/0002_store_state.sql") },
    Migration { version: 3, name: "probes", text: include_str!("../../../migrations/0003_probes.sql") },
    Migration { version: 4, name: "people", text: include_str!("../../../migrations/0004_people.sql") },
    Migration { version: 5, name: "restored_login", text: include_str!("../../../migrations/0005_restored_login.sql") },
    Migration { version: 6, name: "versions", text: include_str!("../../../migrations/0006_versions.sql") },
    Migration { version: 7, name: "hosts_of_users", text: include_str!("../../../migrations/0007_hosts_of_users.sql") },
    Migration { version: 8, name: "host_trust", text: include_str!("../../../migrations/0008_host_trust.sql") },
    Migration {
        version: 9,
        name: "verified_backup",
        text: include_str!("../../../migrations/0009_verified_backup.sql"),
    },
    Migration { version: 10, name: "public_urls", text: include_str!("../../../migrations/0010_public_urls.sql") },
];

impl Migration {
    fn checksum(&self) -> Digest {
        Digest::of(self.text.as_bytes())
    }

    /// A statement ends with a semicolon at the end of a line; a line that begins with `--` is a comment.
    fn statements(&self) -> impl Iterator<Item = String> {
        let lines: Vec<_> = self.text.lines().filter(|line| !line.starts_with("--")).collect();
        let statements: Vec<_> = lines.join("\n").split(";\n").map(|statement| statement.trim().to_owned()).collect();
        statements.into_iter().map(|text| text.trim_end_matches(';').to_owned()).filter(|text| !text.is_empty())
    }
}

/// How long a lease lasts after the start of the last statement.
const LEASE_SECONDS: u32 = 60;
/// How long to wait for another daemon that migrates.
const LEASE_WAIT_TIMEOUT: Duration = Duration::from_secs(180);
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Limit for one statement: changing a large table takes a while.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3600);

const TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS schema_migrations (version INT UNSIGNED NOT NULL PRIMARY KEY, name VARCHAR(255) NOT \
     NULL, checksum BINARY(32) NOT NULL, applied_at DATETIME(6) NOT NULL) \
     ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
    "CREATE TABLE IF NOT EXISTS schema_lease (id TINYINT UNSIGNED NOT NULL PRIMARY KEY, holder BINARY(16) NOT NULL, \
     ends_at DATETIME(6) NOT NULL) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
];
const NO_SUCH_TABLE: u16 = 1146;
const COLUMN_IS_THERE: u16 = 1060;
const KEY_IS_THERE: u16 = 1061;

pub(super) async fn migrate(connections: &Connections) -> Result<()> {
    let mut lease = connections.lease(connections.deadline()).await?;
    let migrated = match lease.connection() {
        Ok(connection) => migrate_with(connections, connection).await,
        Err(problem) => Err(problem),
    };
    Ok(lease.end(migrated)?)
}

async fn migrate_with(connections: &Connections, connection: &mut Conn) -> Outcome<()> {
    if connections.in_time(missing(connection)).await?.is_empty() {
        return Ok(());
    }
    for table in TABLES {
        connections.in_time(async { Ok(connection.query_drop(table).await?) }).await?;
    }
    let holder = connections.id();
    wait_for_lease(connections, connection, holder).await?;
    let applied = apply(connection, holder).await;
    let given_back = connections.in_time(give_back(connection, holder)).await;
    applied.and(given_back)
}

/// The migrations that are not applied. Refuses a database that another version made.
async fn missing(connection: &mut Conn) -> Outcome<Vec<&'static Migration>> {
    let statement = "SELECT version, name, checksum FROM schema_migrations ORDER BY version";
    let rows: Vec<Row> = match connection.exec(statement, ()).await {
        Err(mysql_async::Error::Server(error)) if error.code == NO_SUCH_TABLE => Vec::new(),
        read => read?,
    };
    let mut missing: Vec<_> = MIGRATIONS.iter().collect();
    for row in rows {
        let mut columns = Columns::of("schema_migrations", row);
        let (version, name, checksum) = (columns.number()?, columns.text()?, columns.digest()?);
        let Some(place) = missing.iter().position(|migration| u64::from(migration.version) == version) else {
            return Err(refused(format!(
                "migration {version} ({name}) of the database was applied by a newer codex-authd; this one knows \
                 {} migrations: install the newer version, or use another database",
                MIGRATIONS.len()
            )));
        };
        if missing.remove(place).checksum() != checksum {
            return Err(refused(format!(
                "migration {version} ({name}) of the database is not the one of this codex-authd: its file was edited \
                 after it had been applied; install the version that applied it"
            )));
        }
    }
    Ok(missing)
}

/// The health of the server and its schema.
pub(super) async fn examine(connection: &mut Conn) -> Outcome<ServerHealth> {
    let corrupt = || Problem::from(rows::corrupt("server", "it did not return its version and time"));
    let told: Option<(String, i64, Option<u32>)> = connection
        .query_first("SELECT VERSION(), UNIX_TIMESTAMP(), (SELECT MAX(version) FROM schema_migrations)")
        .await?;
    let (version, seconds, migration) = told.ok_or_else(corrupt)?;
    let cipher: Option<(String, String)> = connection.query_first("SHOW SESSION STATUS LIKE 'Ssl_cipher'").await?;
    let options = connection.opts();
    let is_loopback = options.ip_or_hostname().parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    Ok(ServerHealth {
        version,
        is_encrypted: cipher.is_some_and(|(_, cipher)| !cipher.is_empty()),
        is_local: options.socket().is_some() || is_loopback || options.ip_or_hostname() == "localhost",
        now: OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| corrupt())?,
        migration: migration.unwrap_or_default(),
        newest: MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default(),
    })
}

fn refused(cause: String) -> Problem {
    RecordsError::Corrupt(cause).into()
}

async fn wait_for_lease(connections: &Connections, connection: &mut Conn, holder: Uuid) -> Outcome<()> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match connections.in_time(take_lease(connection, holder)).await {
            Ok(true) => return Ok(()),
            // Another node of the cluster may have tried at the same moment.
            Ok(false) | Err(Problem::Conflict(_)) => {}
            Err(problem) => return Err(problem),
        }
        if begun.elapsed() > LEASE_WAIT_TIMEOUT {
            return Err(Problem::Lost(format!(
                "another daemon has been migrating the tables for more than {LEASE_WAIT_TIMEOUT:?} (schema_lease)"
            )));
        }
        if !told {
            told = true;
            log::info!(event = "migration_awaited"; "another daemon is migrating the tables: waiting");
        }
        tokio::time::sleep(LEASE_POLL_INTERVAL).await;
    }
}

/// The lease uses the clock of the database, which all daemons share.
async fn take_lease(connection: &mut Conn, holder: Uuid) -> Outcome<bool> {
    connection
        .query_drop(
            "INSERT IGNORE INTO schema_lease (id, holder, ends_at) VALUES (0, REPEAT(CHAR(0), 16), '2000-01-01')",
        )
        .await?;
    let statement = format!(
        "UPDATE schema_lease SET holder = ?, ends_at = UTC_TIMESTAMP(6) + INTERVAL {LEASE_SECONDS} SECOND \
         WHERE id = 0 AND (holder = ? OR ends_at < UTC_TIMESTAMP(6))"
    );
    connection.exec_drop(statement, (rows::id(holder), rows::id(holder))).await?;
    Ok(connection.affected_rows() == 1)
}

async fn give_back(connection: &mut Conn, holder: Uuid) -> Outcome<()> {
    let statement = "UPDATE schema_lease SET ends_at = '2000-01-01' WHERE id = 0 AND holder = ?";
    Ok(connection.exec_drop(statement, (rows::id(holder),)).await?)
}

async fn apply(connection: &mut Conn, holder: Uuid) -> Outcome<()> {
    // The daemon that held the lease before may have applied some of them.
    for migration in missing(connection).await? {
        log::info!(event = "migrating", version = migration.version, name = migration.name; "migrating the tables");
        for statement in migration.statements() {
            if !take_lease(connection, holder).await? {
                return Err(Problem::Lost("another daemon took over the migration".into()));
            }
            let run = tokio::time::timeout(STATEMENT_TIMEOUT, connection.query_drop(statement)).await;
            match run.map_err(|_| {
                Problem::Lost(format!("a statement of a migration took longer than {STATEMENT_TIMEOUT:?}"))
            })? {
                Err(mysql_async::Error::Server(error)) if [COLUMN_IS_THERE, KEY_IS_THERE].contains(&error.code) => {}
                run => run?,
            }
        }
        let statement = "INSERT INTO schema_migrations (version, name, checksum, applied_at) \
                         VALUES (?, ?, ?, UTC_TIMESTAMP(6))";
        let values = (migration.version, migration.name, rows::digest(&migration.checksum()));
        connection.exec_drop(statement, values).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_the_migrations() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let names =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        let known = MIGRATIONS.iter().map(|known| format!("{:04}_{}.sql", known.version, known.name));
        assert_eq!(names, known.collect::<Vec<_>>());
    }

    #[test]
    fn a_file_is_cut_into_statements() {
        let text = "-- Why;\nCREATE TABLE a (\n  b INT\n);\n\n-- More.\nINSERT IGNORE INTO a VALUES (';', 1);\n";
        let statements: Vec<_> = Migration { version: 1, name: "test", text }.statements().collect();
        assert_eq!(statements, ["CREATE TABLE a (\n  b INT\n)", "INSERT IGNORE INTO a VALUES (';', 1)"]);
    }

    /// Repeatable statements make a crash during a migration harmless.
    #[test]
    fn every_statement_may_be_run_again() {
        for migration in &MIGRATIONS {
            for statement in migration.statements() {
                let may = ["CREATE TABLE IF NOT EXISTS ", "INSERT IGNORE INTO "];
                let added: Vec<_> = statement.lines().skip(1).collect();
                let begins_well = match added[..] {
                    [only] => only.starts_with("  ADD COLUMN ") || only.starts_with("  ADD KEY "),
                    _ => added.first().is_some_and(|line| line.starts_with("  ADD COLUMN ")),
                };
                let adds = statement.starts_with("ALTER TABLE ")
                    && begins_well
                    && added.iter().all(|line| line.starts_with("  ADD "));
                assert!(adds || may.iter().any(|beginning| statement.starts_with(beginning)), "{statement}");
            }
        }
    }
}
