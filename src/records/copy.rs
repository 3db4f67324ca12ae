//! Everything that the records hold, as rows that every store gives and takes alike: for copies, and for moving house.
//!
//! The same content gives the same rows from every store: table after table ([`Table::ALL`]), each by its primary key,
//! times in UTC and cut to the microsecond, which is what every store keeps. So two stores hold the same if every table
//! has as many rows and the same SHA-256 ([`Tally`]). What is not content is not in them: epochs, indexes, which store it
//! is. Nothing in a row is secret in the clear: the records know none. (A password's hash can be guessed at by whoever has it.)
//!
//! It stores nothing, and knows not where rows come from or go to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    AdminCertificate, Authority, CanonicalVersion, ExternalIdentity, Host, InstallToken, Probe, RecordsError, Result,
    SealingKey, Session, Settings, User,
};
use crate::model::audit::{AuditEntry, AuditHead};
use crate::model::digest::{Digest, Hasher};
use crate::model::host::{HostActivity, HostId};
use crate::seal::Sealed;

/// One row, and in JSON one line of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "table", content = "row")]
pub enum Row {
    Heads(Heads),
    Settings(Settings),
    /// PKCS#8 DER, at place `settings/server_key/0`.
    ServerKey(Sealed),
    SealingKeys(SealingKey),
    Authorities(Authority),
    Users(User),
    /// Those that are over included: ended in a copy, ended where it is put back.
    Sessions(Session),
    ExternalIdentities(ExternalIdentity),
    Certificates(AdminCertificate),
    /// Removed ones included.
    Hosts(Host),
    /// Of hosts that have any.
    Activity(Activity),
    InstallTokens(InstallToken),
    Versions(Box<CanonicalVersion>),
    Probes(NumberedProbe),
    /// Up to which batch of a node's outbox telemetry is applied.
    OutboxPositions(OutboxPosition),
    AuditLog(AuditEntry),
}

/// Which version is canonical, and what the next entry of the audit log is chained to.
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

/// The tables, in the order of their rows in a copy: what others refer to comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    Heads,
    Settings,
    ServerKey,
    SealingKeys,
    Authorities,
    Users,
    Sessions,
    ExternalIdentities,
    Certificates,
    Hosts,
    Activity,
    InstallTokens,
    Versions,
    Probes,
    OutboxPositions,
    AuditLog,
}

impl Table {
    pub const ALL: [Self; 16] = [
        Self::Heads,
        Self::Settings,
        Self::ServerKey,
        Self::SealingKeys,
        Self::Authorities,
        Self::Users,
        Self::Sessions,
        Self::ExternalIdentities,
        Self::Certificates,
        Self::Hosts,
        Self::Activity,
        Self::InstallTokens,
        Self::Versions,
        Self::Probes,
        Self::OutboxPositions,
        Self::AuditLog,
    ];

    /// A copy that was made before there were these does not name them, and has no row of them.
    pub const LATER: [Self; 4] = [Self::Users, Self::Sessions, Self::ExternalIdentities, Self::Probes];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Settings => "settings",
            Self::ServerKey => "server_key",
            Self::SealingKeys => "sealing_keys",
            Self::Authorities => "authorities",
            Self::Users => "users",
            Self::Sessions => "sessions",
            Self::ExternalIdentities => "external_identities",
            Self::Certificates => "certificates",
            Self::Hosts => "hosts",
            Self::Activity => "activity",
            Self::InstallTokens => "install_tokens",
            Self::Versions => "versions",
            Self::Probes => "probes",
            Self::OutboxPositions => "outbox_positions",
            Self::AuditLog => "audit_log",
        }
    }
}

impl Row {
    pub const fn table(&self) -> Table {
        match self {
            Self::Heads(_) => Table::Heads,
            Self::Settings(_) => Table::Settings,
            Self::ServerKey(_) => Table::ServerKey,
            Self::SealingKeys(_) => Table::SealingKeys,
            Self::Authorities(_) => Table::Authorities,
            Self::Users(_) => Table::Users,
            Self::Sessions(_) => Table::Sessions,
            Self::ExternalIdentities(_) => Table::ExternalIdentities,
            Self::Certificates(_) => Table::Certificates,
            Self::Hosts(_) => Table::Hosts,
            Self::Activity(_) => Table::Activity,
            Self::InstallTokens(_) => Table::InstallTokens,
            Self::Versions(_) => Table::Versions,
            Self::Probes(_) => Table::Probes,
            Self::OutboxPositions(_) => Table::OutboxPositions,
            Self::AuditLog(_) => Table::AuditLog,
        }
    }

    /// With its times as every store keeps them. Entries of the audit log are left as they are: their hashes cover how
    /// the time is written, and they are made with whole microseconds.
    fn cut(mut self) -> Self {
        match &mut self {
            Self::Settings(settings) => {
                settings.client_release.iter_mut().for_each(|it| cut(&mut it.checked_at));
                settings.restored_login.iter_mut().for_each(|it| cut(&mut it.backup_of));
                settings.verified_backup.iter_mut().for_each(|it| cut(&mut it.made_at));
                if let Some(trust) = &mut settings.host_trust {
                    cut_any(&mut trust.system_since);
                    cut_any(&mut trust.switched_at);
                }
            }
            Self::SealingKeys(key) => cut(&mut key.created_at),
            Self::Authorities(authority) => cut_any(&mut authority.created_at),
            Self::Users(user) => {
                cut(&mut user.created_at);
                cut(&mut user.updated_at);
            }
            Self::Sessions(session) => {
                cut(&mut session.started_at);
                cut(&mut session.expires_at);
                cut(&mut session.last_used_at);
                cut_any(&mut session.ended_at);
            }
            Self::ExternalIdentities(identity) => cut(&mut identity.linked_at),
            Self::Certificates(certificate) => {
                cut(&mut certificate.issued_at);
                cut(&mut certificate.expires_at);
                cut_any(&mut certificate.revoked_at);
            }
            Self::Hosts(host) => {
                cut(&mut host.created_at);
                cut(&mut host.updated_at);
                cut_any(&mut host.removed_at);
                cut_any(&mut host.rules.insecure_enabled_until);
                cut_any(&mut host.rules.insecure_grace_until);
                cut_any(&mut host.rules.expires_at);
            }
            Self::Activity(Activity { activity, .. }) => {
                cut_any(&mut activity.last_seen);
                cut_any(&mut activity.wrapper_fetched_at);
            }
            Self::InstallTokens(token) => {
                cut(&mut token.created_at);
                cut(&mut token.expires_at);
                cut_any(&mut token.redeemed_at);
                cut_any(&mut token.revoked_at);
            }
            Self::Versions(version) => cut(&mut version.summary.stored_at),
            Self::Probes(NumberedProbe { probe, .. }) => {
                cut(&mut probe.started_at);
                cut(&mut probe.until);
                probe.outcome.iter_mut().for_each(|outcome| cut(&mut outcome.finished_at));
            }
            Self::Heads(_) | Self::ServerKey(_) | Self::OutboxPositions(_) | Self::AuditLog(_) => {}
        }
        self
    }

    /// As it stands in a copy, without the end of the line.
    pub fn line(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| RecordsError::Corrupt(format!("{}: {error}", self.table().name())))
    }
}

fn cut(at: &mut OffsetDateTime) {
    let utc = at.to_offset(UtcOffset::UTC);
    // Below a second: always in range.
    *at = utc.replace_nanosecond(utc.microsecond() * 1000).unwrap_or(utc);
}

fn cut_any(at: &mut Option<OffsetDateTime>) {
    at.iter_mut().for_each(cut);
}

/// How many rows a table has, and the SHA-256 over their lines, each with its `\n`.
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

    /// Of every table, those without a row too.
    pub fn counts(mut self) -> BTreeMap<Table, Count> {
        let mut count = |table| {
            let (rows, hasher) = self.0.remove(&table)?;
            Some(Count { rows, sha256: hasher.finish() })
        };
        Table::ALL.into_iter().map(|table| (table, count(table).unwrap_or_else(Count::of_nothing))).collect()
    }
}

/// How many rows, and about how many bytes of them, go together.
const MOST_ROWS: usize = 500;
const MOST_BYTES: usize = 1024 * 1024;

/// Gathers rows into chunks for whoever takes them.
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
        self.rows.push(row.cut());
        (self.rows.len() >= MOST_ROWS || self.bytes >= MOST_BYTES).then(|| self.take())
    }

    fn take(&mut self) -> Vec<Row> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }

    pub async fn push(&mut self, row: Row) -> Result<()> {
        match self.add(row) {
            Some(chunk) => self.sender.send(chunk).await.map_err(|_| nobody()),
            None => Ok(()),
        }
    }

    /// [`Chunks::push`] for a thread of its own.
    pub fn push_blocking(&mut self, row: Row) -> Result<()> {
        match self.add(row) {
            Some(chunk) => self.sender.blocking_send(chunk).map_err(|_| nobody()),
            None => Ok(()),
        }
    }

    pub async fn end(mut self) -> Result<()> {
        let last = self.take();
        self.sender.send(last).await.map_err(|_| nobody())
    }

    pub fn end_blocking(mut self) -> Result<()> {
        let last = self.take();
        self.sender.blocking_send(last).map_err(|_| nobody())
    }
}

fn nobody() -> RecordsError {
    RecordsError::Unavailable("whoever asked for a copy of the records has gone away".into())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_time_is_written_as_every_store_keeps_it() {
        let mut at = datetime!(2026-11-21 14:00:00.123456789 +02:00);
        cut(&mut at);
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

    /// The digests in the manifest of a backup are over the lines as they were.
    #[test]
    fn a_row_of_before_there_were_users_is_written_as_it_was() {
        let host = Row::Hosts(crate::records::conformance::host(1, "h1.test", "a"));
        let line = host.line().unwrap();
        assert!(!line.contains("owner"), "{line}");
        assert_eq!(serde_json::from_str::<Row>(&line).unwrap(), host);
    }
}
