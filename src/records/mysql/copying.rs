//! The store as a whole: copied out, filled from a copy, standing still.
//!
//! A copy is read in one transaction with a consistent snapshot, page by page. A store that is being filled says so in
//! `store_state` from the first transaction to the last one; each in between looks there, under the lock of `heads`,
//! whether it is still the one that fills. A crash in between leaves a store that nobody takes for whole, and that the next
//! filling empties first.

use std::collections::BTreeMap;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row as Found, Value};
use tokio::sync::mpsc;

use super::changes::{self, Change, Going};
use super::connections::{self, Connections, Outcome};
use super::rows::{self, Columns};
use super::{
    audit, authorities, canonical, hosts, identities, install_tokens, probes, sealed, sessions, settings, telemetry,
    users,
};
use crate::model::audit::{AuditHead, AuditNote};
use crate::model::host::{HostActivity, HostId};
use crate::records::copy::{Activity, Chunks, Heads, OutboxPosition, Row};
use crate::records::rules::taken_over;
use crate::records::{Epoch, Filling, Result, Standstill};

pub(super) async fn set_standstill(
    change: &mut Change<'_>,
    standstill: Option<&Standstill>,
    note: &AuditNote,
) -> Outcome<()> {
    let values = vec![
        standstill.map(|standstill| standstill.reason.as_str()).into(),
        rows::optional_time(standstill.map(|standstill| standstill.since)),
    ];
    change.run("UPDATE store_state SET standstill_reason = ?, standstill_since = ? WHERE id = 0", values).await?;
    change.note(note);
    Ok(())
}

/// Once the store stands still: returns when the telemetry of whoever looked before is through; and whether there may be
/// more of it on other nodes of a cluster.
pub(super) async fn wait_for_telemetry(connection: &mut Conn) -> Outcome<bool> {
    connection.query_drop("START TRANSACTION").await?;
    let waited = telemetry::wait_for_others(connection).await;
    changes::end(connection, waited).await?;
    connections::is_of_a_cluster(connection).await
}

/// How many rows are read with one statement.
const PAGE: usize = 500;
/// Versions are large.
const VERSIONS: usize = 20;

pub(super) async fn export(
    connections: &Connections,
    connection: &mut Conn,
    chunks: mpsc::Sender<Vec<Row>>,
) -> Outcome<()> {
    // Whoever takes the chunks may take a while for each, and the server is not to hang up meanwhile.
    connections.in_time(connections.set_patience(connection, PATIENCE)).await?;
    connections.in_time(changes::begin_snapshot(connection)).await?;
    let read = Export { connections, connection, chunks: Chunks::new(chunks) }.run().await;
    connections.in_time(changes::end_snapshot(connection)).await?;
    connections.in_time(connections.set_patience(connection, connections.timeout())).await?;
    read
}

/// How long a chunk may wait for whoever takes it.
const PATIENCE: Duration = Duration::from_secs(3600);

struct Export<'a> {
    connections: &'a Connections,
    connection: &'a mut Conn,
    chunks: Chunks,
}

/// Hands on the rows of a table, page by page; `$key` is what a page begins after.
macro_rules! pages {
    ($self:ident, $table:ident, $row:path, |$last:ident| $key:expr) => {
        let mut after = None;
        loop {
            let page = $self.connections.in_time($table::page($self.connection, after, PAGE)).await?;
            let Some($last) = page.last() else { break };
            after = Some($key);
            $self.push(page.into_iter().map($row)).await?;
        }
    };
}

impl Export<'_> {
    async fn run(mut self) -> Outcome<()> {
        let heads = self.connections.in_time(changes::heads(self.connection)).await?;
        let heads = Heads { canonical_version: heads.canonical_version, audit: heads.audit };
        let present = self.connections.in_time(settings::present(self.connection)).await?;
        self.push([Row::Heads(heads), Row::Settings(present)]).await?;
        let server_key = self.connections.in_time(settings::server_key(self.connection)).await?;
        self.push(server_key.map(Row::ServerKey)).await?;
        let keys = self.connections.in_time(sealed::keys(self.connection)).await?;
        self.push(keys.into_iter().map(Row::SealingKeys)).await?;
        let authorities = self.connections.in_time(authorities::all(self.connection)).await?;
        self.push(authorities.into_iter().map(Row::Authorities)).await?;
        pages!(self, users, Row::Users, |user| user.id);
        pages!(self, sessions, Row::Sessions, |session| session.id);
        pages!(self, identities, Row::ExternalIdentities, |identity| identity.clone());
        let mut certificates = self.connections.in_time(authorities::certificates(self.connection)).await?;
        certificates.sort_by_key(|certificate| *certificate.fingerprint.as_bytes());
        self.push(certificates.into_iter().map(Row::Certificates)).await?;
        pages!(self, hosts, Row::Hosts, |host| host.id);
        self.activities().await?;
        pages!(self, install_tokens, Row::InstallTokens, |token| token.digest);
        self.versions().await?;
        self.probes().await?;
        let positions = self.connections.in_time(outbox_positions(self.connection)).await?;
        self.push(positions.into_iter().map(Row::OutboxPositions)).await?;
        self.audit_log().await?;
        Ok(self.chunks.end().await?)
    }

    async fn push(&mut self, rows: impl IntoIterator<Item = Row>) -> Outcome<()> {
        for row in rows {
            self.chunks.push(row).await?;
        }
        Ok(())
    }

    async fn activities(&mut self) -> Outcome<()> {
        let mut after = None;
        loop {
            let page = self.connections.in_time(activities(self.connection, after)).await?;
            let Some(last) = page.last_key_value().map(|(id, _)| *id) else { return Ok(()) };
            after = Some(last);
            let any = page.into_iter().filter(|(_, activity)| *activity != HostActivity::default());
            self.push(any.map(|(host, activity)| Row::Activity(Activity { host, activity }))).await?;
        }
    }

    async fn versions(&mut self) -> Outcome<()> {
        let mut after = 0;
        loop {
            let numbers = self.connections.in_time(version_numbers(self.connection, after)).await?;
            let Some(last) = numbers.last() else { return Ok(()) };
            after = *last;
            for number in numbers {
                let version = self.connections.in_time(canonical::version(self.connection, number)).await?;
                self.push(version.map(|version| Row::Versions(Box::new(version)))).await?;
            }
        }
    }

    async fn probes(&mut self) -> Outcome<()> {
        let mut after = 0;
        loop {
            let page = self.connections.in_time(probes::page(self.connection, after, PAGE)).await?;
            let Some(last) = page.last().map(|probe| probe.number) else { return Ok(()) };
            after = last;
            self.push(page.into_iter().map(Row::Probes)).await?;
        }
    }

    async fn audit_log(&mut self) -> Outcome<()> {
        let mut next = 1;
        loop {
            let page = self.connections.in_time(audit::from(self.connection, next, PAGE)).await?;
            let Some(last) = page.last().map(|entry| entry.number) else { return Ok(()) };
            next = last + 1;
            self.push(page.into_iter().map(Row::AuditLog)).await?;
        }
    }
}

async fn version_numbers(connection: &mut Conn, after: u64) -> Outcome<Vec<u64>> {
    let statement = "SELECT version FROM auth_payloads WHERE version > ? ORDER BY version LIMIT ?";
    Ok(connection.exec(statement, (after, VERSIONS as u64)).await?)
}

async fn activities(connection: &mut Conn, after: Option<HostId>) -> Outcome<BTreeMap<HostId, HostActivity>> {
    let (from, mut values) = match after {
        Some(after) => ("WHERE host_id > ?", vec![after.0.into()]),
        None => ("", vec![]),
    };
    values.push((PAGE as u64).into());
    telemetry::activities(connection, &format!("{from} ORDER BY host_id LIMIT ?"), values).await
}

async fn outbox_positions(connection: &mut Conn) -> Outcome<Vec<OutboxPosition>> {
    let found: Vec<Found> = connection.exec("SELECT node, seq FROM outbox_positions ORDER BY node", ()).await?;
    let read = |row| {
        let mut columns = Columns::of("outbox_positions", row);
        Ok(OutboxPosition { node: columns.id()?, seq: columns.number()? })
    };
    Ok(found.into_iter().map(read).collect::<Result<_>>()?)
}

pub(super) async fn begin(change: &mut Change<'_>, filling: &Filling, replaces: bool) -> Outcome<bool> {
    let heads = change.heads;
    let holds_something = heads.epoch > Epoch(0)
        || heads.audit != AuditHead::default()
        || settings::initialised(change.connection).await?;
    if holds_something && !matches!(change.going, Going::Filled(_)) && !replaces {
        return Ok(false);
    }
    // What an earlier filling was to be above of may have been known to somebody.
    let earlier = match &change.going {
        Going::Filled(earlier) => earlier.above,
        _ => Epoch(0),
    };
    let above = filling.above.max(heads.epoch).max(earlier);
    let values = vec![rows::id(filling.id), above.0.into()];
    let statement = "UPDATE store_state SET incarnation = NULL, standstill_reason = NULL, standstill_since = NULL, \
                     filling = ?, filling_above = ? WHERE id = 0";
    change.run(statement, values).await?;
    change
        .run(
            "UPDATE settings SET initialised = 0, server_key = NULL, server_key_key = NULL, api_disabled = 0, \
             api_disabled_reason = NULL, client_version = NULL, client_version_checked_at = NULL, restored_version = NULL, \
             restored_backup_of = NULL, old_wrappers_trust_system = NULL, system_trust_since = NULL, switched_at = NULL, \
             verified_backup_of = NULL, verified_backup_has_keys = 0, public_urls = NULL \
             WHERE id = 0",
            vec![],
        )
        .await?;
    change.heads.canonical_version = None;
    change.heads.audit = AuditHead::default();
    Ok(true)
}

/// What refers to others comes first.
const WIPED: [&str; 16] = [
    "host_networks",
    "host_auth_states",
    "host_auth_digests",
    "install_tokens",
    "hosts",
    "auth_entries",
    "auth_payloads",
    "probes",
    "outbox_positions",
    "audit_log",
    "admin_certificates",
    "external_identities",
    "sessions",
    "users",
    "authorities",
    "sealing_keys",
];

/// Removes some rows; says whether there may be more.
pub(super) async fn wipe_some(change: &mut Change<'_>, filling: &Filling) -> Outcome<bool> {
    ours(change, filling)?;
    for table in WIPED {
        let limit = if table.starts_with("auth_") { VERSIONS } else { 2 * PAGE };
        change.run(&format!("DELETE FROM {table} LIMIT {limit}"), vec![]).await?;
        if change.connection.affected_rows() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The epoch that everything in the filled store is of.
fn ours(change: &Change<'_>, filling: &Filling) -> Result<Epoch> {
    match &change.going {
        Going::Filled(present) if present.id == filling.id => Ok(Epoch(present.above.0 + 1)),
        _ => Err(taken_over()),
    }
}

pub(super) async fn fill(change: &mut Change<'_>, filling: &Filling, rows: &[Row]) -> Outcome<()> {
    let epoch = ours(change, filling)?;
    // Rows of one table go together; versions, which are large, one by one.
    let together = |a: &Row, b: &Row| a.table() == b.table() && !matches!(a, Row::Versions(_));
    for rows in rows.chunk_by(together) {
        put(change, rows, epoch).await?;
    }
    Ok(())
}

async fn put(change: &mut Change<'_>, rows: &[Row], epoch: Epoch) -> Outcome<()> {
    /// What is in the rows, which are all of one table.
    macro_rules! all {
        ($table:ident) => {
            rows.iter().filter_map(|row| if let Row::$table(row) = row { Some(row) } else { None })
        };
    }
    match rows.first() {
        None => {}
        Some(Row::Heads(Heads { canonical_version, audit })) => {
            change.heads.canonical_version = *canonical_version;
            change.heads.audit = *audit;
        }
        Some(Row::Settings(present)) => settings::put(change, present).await?,
        Some(Row::ServerKey(key)) => settings::put_server_key(change, key).await?,
        Some(Row::SealingKeys(_)) => {
            for key in all!(SealingKeys) {
                sealed::put_key(change, key).await?;
            }
        }
        Some(Row::Authorities(_)) => {
            for authority in all!(Authorities) {
                authorities::insert(change, authority).await?;
            }
        }
        Some(Row::Users(_)) => users::insert_all(change, &all!(Users).collect::<Vec<_>>()).await?,
        Some(Row::Sessions(_)) => sessions::insert_all(change, &all!(Sessions).collect::<Vec<_>>(), epoch).await?,
        Some(Row::ExternalIdentities(_)) => {
            identities::insert_all(change, &all!(ExternalIdentities).collect::<Vec<_>>()).await?;
        }
        Some(Row::Certificates(_)) => {
            for certificate in all!(Certificates) {
                authorities::insert_certificate(change, certificate).await?;
            }
        }
        Some(Row::Hosts(_)) => hosts::insert_all(change, &all!(Hosts).collect::<Vec<_>>(), epoch).await?,
        Some(Row::Activity(_)) => {
            // Over the rows that came with the hosts.
            let activities = all!(Activity).map(|row| (row.host, row.activity.clone())).collect();
            telemetry::put(change.connection, &activities).await?;
        }
        Some(Row::InstallTokens(_)) => {
            install_tokens::insert_all(change, &all!(InstallTokens).collect::<Vec<_>>(), epoch).await?;
        }
        Some(Row::Versions(version)) => canonical::insert(change, version).await?,
        Some(Row::Probes(_)) => probes::insert_all(change, &all!(Probes).collect::<Vec<_>>()).await?,
        Some(Row::OutboxPositions(_)) => {
            let values: Vec<Value> =
                all!(OutboxPositions).flat_map(|row| [rows::id(row.node), row.seq.into()]).collect();
            let places = rows::places(rows.len(), 2);
            change.run(&format!("INSERT INTO outbox_positions (node, seq) VALUES {places}"), values).await?;
        }
        Some(Row::AuditLog(_)) => {
            audit::write(change.connection, &all!(AuditLog).cloned().collect::<Vec<_>>()).await?;
        }
    }
    Ok(())
}

pub(super) async fn finish(change: &mut Change<'_>, filling: &Filling, note: &AuditNote) -> Outcome<()> {
    let epoch = ours(change, filling)?;
    change.run("UPDATE settings SET initialised = 1 WHERE id = 0", vec![]).await?;
    let statement = "UPDATE store_state SET incarnation = ?, filling = NULL, filling_above = NULL WHERE id = 0";
    change.connection.exec_drop(statement, Params::Positional(vec![rows::id(filling.id)])).await?;
    change.heads.epoch = epoch;
    change.heads.canonical_epoch = epoch;
    change.heads.settings_epoch = epoch;
    change.heads.certificates_epoch = epoch;
    change.heads.authorities_epoch = epoch;
    change.heads.users_epoch = epoch;
    change.heads.sessions_epoch = epoch;
    change.note(note);
    Ok(())
}
