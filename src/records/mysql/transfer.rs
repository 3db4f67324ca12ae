//! Fills and standstills of the whole database.
//!
//! A fill marks `store_state` in its first transaction and clears the mark in its last. Each transaction in between
//! checks the mark under the lock of `heads`. A crash leaves a store that refuses every call; the next fill empties it
//! first.

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Value};
use tokio::sync::mpsc;

use super::connections::{self, Outcome};
use super::tables::{
    audit_log, authorities, certificates, hosts, identities, installers, sealing, sessions, settings, users, versions,
};
use super::transaction::{self, Change, StoreCondition};
use super::{MySql, export, probes, rows, telemetry};
use crate::model::audit::{AuditHead, AuditNote};
use crate::records::copy::{Heads, Row};
use crate::records::rules::taken_over;
use crate::records::{Epoch, Filling, RecordsError, Result, Standstill, TransferRecords};

/// A table comes before the tables it refers to.
const TABLES_TO_WIPE: [&str; 16] = [
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

#[async_trait]
impl TransferRecords for MySql {
    async fn standstill_set(&self, standstill: Option<&Standstill>, audit: &AuditNote) -> Result<()> {
        read!(self, |connection| transaction::check_whole(connection).await)?;
        change!(self, begin_anyway, |change| {
            let values = vec![
                standstill.map(|standstill| standstill.reason.as_str()).into(),
                rows::optional_time(standstill.map(|standstill| standstill.since)),
            ];
            change
                .run("UPDATE store_state SET standstill_reason = ?, standstill_since = ? WHERE id = 0", values)
                .await?;
            change.note(audit);
            Ok(())
        })?;
        match standstill {
            Some(_) => self.telemetry_is_through().await,
            None => Ok(()),
        }
    }

    async fn copy_export(&self, chunks: mpsc::Sender<Vec<Row>>) -> Result<()> {
        let mut lease = self.lease(self.connections.deadline()).await?;
        // Each statement has the timeout. The whole export may take as long as the receiver.
        let exporting = async { export::export(&self.connections, lease.connection()?, chunks).await };
        let outcome = exporting.await;
        lease.end(outcome).map_err(RecordsError::from)
    }

    async fn fill_begin(&self, filling: &Filling, replaces: bool) -> Result<bool> {
        if !change!(self, begin_anyway, |change| begin(change, filling, replaces).await)? {
            return Ok(false);
        }
        self.telemetry_is_through().await?;
        while change!(self, begin_anyway, |change| wipe_some(change, filling).await)? {}
        Ok(true)
    }

    async fn fill_append(&self, filling: &Filling, rows: &[Row]) -> Result<()> {
        change!(self, begin_anyway, |change| {
            let epoch = fill_epoch(change, filling)?;
            // Rows of one table are written together. Versions are large and are written one by one.
            let together = |a: &Row, b: &Row| a.table() == b.table() && !matches!(a, Row::Versions(_));
            for rows in rows.chunk_by(together) {
                put(change, rows, epoch).await?;
            }
            Ok(())
        })
    }

    async fn fill_finish(&self, filling: &Filling, note: &AuditNote) -> Result<()> {
        change!(self, begin_anyway, |change| {
            let epoch = fill_epoch(change, filling)?;
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
        })
    }
}

/// Call it after a standstill was written. Waits for running telemetry; returns whether other nodes of a cluster may
/// have more.
pub(super) async fn wait_for_telemetry(connection: &mut Conn) -> Outcome<bool> {
    connection.query_drop("START TRANSACTION").await?;
    let waited = telemetry::wait_for_others(connection).await;
    transaction::end(connection, waited).await?;
    connections::is_of_a_cluster(connection).await
}

async fn begin(change: &mut Change<'_>, filling: &Filling, replaces: bool) -> Outcome<bool> {
    let heads = change.heads;
    let holds_something = heads.epoch > Epoch(0)
        || heads.audit != AuditHead::default()
        || settings::initialised(change.connection).await?;
    if holds_something && !matches!(change.condition, StoreCondition::BeingFilled(_)) && !replaces {
        return Ok(false);
    }
    // A node may know epochs that an earlier fill was meant to exceed.
    let earlier = match &change.condition {
        StoreCondition::BeingFilled(earlier) => earlier.above,
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

/// Removes some rows; returns whether there may be more.
async fn wipe_some(change: &mut Change<'_>, filling: &Filling) -> Outcome<bool> {
    fill_epoch(change, filling)?;
    for table in TABLES_TO_WIPE {
        let limit = if table.starts_with("auth_") { export::PAGE_VERSIONS } else { 2 * export::PAGE_ROWS };
        change.run(&format!("DELETE FROM {table} LIMIT {limit}"), vec![]).await?;
        if change.connection.affected_rows() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The epoch of all rows in the filled store.
fn fill_epoch(change: &Change<'_>, filling: &Filling) -> Result<Epoch> {
    match &change.condition {
        StoreCondition::BeingFilled(present) if present.id == filling.id => Ok(Epoch(present.above.0 + 1)),
        _ => Err(taken_over()),
    }
}

async fn put(change: &mut Change<'_>, rows: &[Row], epoch: Epoch) -> Outcome<()> {
    /// The contents of the rows, which are all of one table.
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
                sealing::insert(change, key).await?;
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
                certificates::insert(change, certificate).await?;
            }
        }
        Some(Row::Hosts(_)) => hosts::insert_all(change, &all!(Hosts).collect::<Vec<_>>(), epoch).await?,
        Some(Row::Activity(_)) => {
            // Replaces the empty rows inserted with the hosts.
            let activities = all!(Activity).map(|row| (row.host, row.activity.clone())).collect();
            telemetry::put(change.connection, &activities).await?;
        }
        Some(Row::InstallTokens(_)) => {
            installers::insert_all(change, &all!(InstallTokens).collect::<Vec<_>>(), epoch).await?;
        }
        Some(Row::Versions(version)) => versions::insert(change, version).await?,
        Some(Row::Probes(_)) => probes::insert_all(change, &all!(Probes).collect::<Vec<_>>()).await?,
        Some(Row::OutboxPositions(_)) => {
            let values: Vec<Value> =
                all!(OutboxPositions).flat_map(|row| [rows::id(row.node), row.seq.into()]).collect();
            let places = rows::places(rows.len(), 2);
            change.run(&format!("INSERT INTO outbox_positions (node, seq) VALUES {places}"), values).await?;
        }
        Some(Row::AuditLog(_)) => {
            audit_log::write(change.connection, &all!(AuditLog).cloned().collect::<Vec<_>>()).await?;
        }
    }
    Ok(())
}
