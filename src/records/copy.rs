//! The rows of a copy, for backups and migrations: the whole content of the records, in the same form from every store.
//!
//! Equal content gives equal rows: table after table ([`Table::ALL`]), each by its primary key, times in UTC and
//! truncated to the microsecond. So two stores are equal if the number of rows and the SHA-256 of every table are equal
//! ([`Tally`]). Epochs, indexes and the incarnation are not content. No row holds a plaintext secret, but a password
//! hash can be attacked offline.
//!
//! This module stores nothing. It does not know where rows come from or go to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::rules::{truncate, truncate_any};
use super::{
    AdminCertificate, Authority, CanonicalVersion, ExternalIdentity, Host, InstallToken, Probe, RecordsError, Result,
    SealingKey, Session, Settings, User,
};
use crate::model::audit::{AuditEntry, AuditHead};
use crate::model::digest::{Digest, Hasher};
use crate::model::host::{HostActivity, HostId};
use crate::seal::Sealed;

/// Declares the tables, in the order of a copy: a table comes after the tables it refers to.
macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident($row:ty) $name:literal,)*) => {
        /// One row, and in JSON one line of a copy.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case", tag = "table", content = "row")]
        pub enum Row {
            $($(#[$doc])* $table($row),)*
        }

        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Table {
            $($table,)*
        }

        impl Table {
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$table),*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$table => $name,)*
                }
            }
        }

        impl Row {
            pub const fn table(&self) -> Table {
                match self {
                    $(Self::$table(_) => Table::$table,)*
                }
            }
        }
    };
}

tables! {
    Heads(Heads) "heads",
    Settings(Settings) "settings",
    /// PKCS#8 DER, at place `settings/server_key/0`.
    ServerKey(Sealed) "server_key",
    SealingKeys(SealingKey) "sealing_keys",
    Authorities(Authority) "authorities",
    Users(User) "users",
    /// Ended ones included, so that they stay ended after a restore.
    Sessions(Session) "sessions",
    ExternalIdentities(ExternalIdentity) "external_identities",
    Certificates(AdminCertificate) "certificates",
    /// Removed ones included.
    Hosts(Host) "hosts",
    /// Only hosts that have any activity.
    Activity(Activity) "activity",
    InstallTokens(InstallToken) "install_tokens",
    Versions(Box<CanonicalVersion>) "versions",
    Probes(NumberedProbe) "probes",
    /// The last applied telemetry batch of each node's outbox.
    OutboxPositions(OutboxPosition) "outbox_positions",
    AuditLog(AuditEntry) "audit_log",
}

impl Table {
    /// Tables that were added later: an older copy does not contain them.
    pub const LATER: [Self; 4] = [Self::Users, Self::Sessions, Self::ExternalIdentities, Self::Probes];
}

/// The number of the canonical version, and the audit entry that the next one is chained to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    pub canonical_version: Option<u64>,
    pub audit: AuditHead,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    pub host: HostId,
    pub activity: HostActivity,
}

/// A probe, and its place in the order of the claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedProbe {
    pub number: u64,
    pub probe: Probe,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxPosition {
    pub node: Uuid,
    pub seq: u64,
}

impl Row {
    /// Truncates times to what every store keeps. Audit entries stay as they are: their hashes cover the time as
    /// written, and they are made with whole microseconds.
    fn truncated(mut self) -> Self {
        match &mut self {
            Self::Settings(settings) => settings.truncate_times(),
            Self::SealingKeys(key) => truncate(&mut key.created_at),
            Self::Authorities(authority) => truncate_any(&mut authority.created_at),
            Self::Users(user) => {
                truncate(&mut user.created_at);
                truncate(&mut user.updated_at);
            }
            Self::Sessions(session) => {
                truncate(&mut session.started_at);
                truncate(&mut session.expires_at);
                truncate(&mut session.last_used_at);
                truncate_any(&mut session.ended_at);
            }
            Self::ExternalIdentities(identity) => truncate(&mut identity.linked_at),
            Self::Certificates(certificate) => {
                truncate(&mut certificate.issued_at);
                truncate(&mut certificate.expires_at);
                truncate_any(&mut certificate.revoked_at);
            }
            Self::Hosts(host) => host.truncate_times(),
            Self::Activity(Activity { activity, .. }) => {
                truncate_any(&mut activity.last_seen);
                truncate_any(&mut activity.wrapper_fetched_at);
            }
            Self::InstallTokens(token) => {
                truncate(&mut token.created_at);
                truncate(&mut token.expires_at);
                truncate_any(&mut token.redeemed_at);
                truncate_any(&mut token.revoked_at);
            }
            Self::Versions(version) => truncate(&mut version.summary.stored_at),
            Self::Probes(NumberedProbe { probe, .. }) => {
                truncate(&mut probe.started_at);
                truncate(&mut probe.until);
                probe.outcome.iter_mut().for_each(|outcome| truncate(&mut outcome.finished_at));
            }
            Self::Heads(_) | Self::ServerKey(_) | Self::OutboxPositions(_) | Self::AuditLog(_) => {}
        }
        self
    }

    /// The row's line in a copy, without the newline.
    pub fn line(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| RecordsError::Corrupt(format!("{}: {error}", self.table().name())))
    }
}

/// The number of rows of a table, and the SHA-256 over their lines, each with its `\n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub rows: u64,
    pub sha256: Digest,
}

impl Count {
    pub fn of_nothing() -> Self {
        Self { rows: 0, sha256: Hasher::default().finish() }
    }
}

/// Counts rows as they come.
#[derive(Default)]
pub struct Tally(BTreeMap<Table, (u64, Hasher)>);

impl Tally {
    pub fn add(&mut self, table: Table, line: &str) {
        let (rows, hasher) = self.0.entry(table).or_default();
        *rows += 1;
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }

    pub fn add_rows(&mut self, rows: &[Row]) -> Result<()> {
        rows.iter().try_for_each(|row| {
            self.add(row.table(), &row.line()?);
            Ok(())
        })
    }

    pub fn rows(&self) -> u64 {
        self.0.values().map(|(rows, _)| rows).sum()
    }

    /// For every table, empty ones included.
    pub fn counts(mut self) -> BTreeMap<Table, Count> {
        let mut count = |table| {
            let (rows, hasher) = self.0.remove(&table)?;
            Some(Count { rows, sha256: hasher.finish() })
        };
        Table::ALL.into_iter().map(|table| (table, count(table).unwrap_or_else(Count::of_nothing))).collect()
    }
}

/// Limits of one chunk: rows, and bytes (approximate).
const MAX_CHUNK_ROWS: usize = 500;
const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Gathers rows into chunks and sends them.
pub(super) struct Chunks {
    sender: mpsc::Sender<Vec<Row>>,
    rows: Vec<Row>,
    bytes: usize,
}

impl Chunks {
    pub fn new(sender: mpsc::Sender<Vec<Row>>) -> Self {
        Self { sender, rows: Vec::new(), bytes: 0 }
    }

    fn add(&mut self, row: Row) -> Option<Vec<Row>> {
        self.bytes += match &row {
            Row::Versions(version) => version.body.as_bytes().len() * 2,
            Row::Hosts(host) => 500 + host.agent_identity.as_ref().map_or(0, |identity| identity.as_bytes().len() * 2),
            _ => 500,
        };
        self.rows.push(row.truncated());
        (self.rows.len() >= MAX_CHUNK_ROWS || self.bytes >= MAX_CHUNK_BYTES).then(|| self.take())
    }

    fn take(&mut self) -> Vec<Row> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }

    pub async fn push(&mut self, row: Row) -> Result<()> {
        match self.add(row) {
            Some(chunk) => self.sender.send(chunk).await.map_err(|_| receiver_gone()),
            None => Ok(()),
        }
    }

    /// [`Chunks::push`] for a blocking thread.
    pub fn push_blocking(&mut self, row: Row) -> Result<()> {
        match self.add(row) {
            Some(chunk) => self.sender.blocking_send(chunk).map_err(|_| receiver_gone()),
            None => Ok(()),
        }
    }

    pub async fn end(mut self) -> Result<()> {
        let last = self.take();
        self.sender.send(last).await.map_err(|_| receiver_gone())
    }

    pub fn end_blocking(mut self) -> Result<()> {
        let last = self.take();
        self.sender.blocking_send(last).map_err(|_| receiver_gone())
    }
}

fn receiver_gone() -> RecordsError {
    RecordsError::Unavailable("the receiver of the copy has gone away".into())
}

#[cfg(test)]
mod tests {
    use time::UtcOffset;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_time_is_written_as_every_store_keeps_it() {
        let mut at = datetime!(2026-11-21 14:00:00.123456789 +02:00);
        truncate(&mut at);
        assert_eq!((at, at.offset()), (datetime!(2026-11-21 12:00:00.123456 UTC), UtcOffset::UTC));
    }

    #[test]
    fn a_table_has_its_name_in_a_copy() {
        for table in Table::ALL {
            assert_eq!(serde_json::to_value(table).unwrap(), table.name());
        }
        let row = Row::OutboxPositions(OutboxPosition { node: Uuid::nil(), seq: 7 });
        let line = row.line().unwrap();
        assert!(line.starts_with("{\"table\":\"outbox_positions\",\"row\":{"), "{line}");
        assert_eq!(serde_json::from_str::<Row>(&line).unwrap(), row);
    }

    /// The manifest of an old backup has digests of lines without the later members.
    #[test]
    fn a_row_of_before_there_were_users_is_written_as_it_was() {
        let host = Row::Hosts(crate::records::conformance::host(1, "h1.test", "a"));
        let line = host.line().unwrap();
        assert!(!line.contains("owner"), "{line}");
        assert_eq!(serde_json::from_str::<Row>(&line).unwrap(), host);
    }
}
