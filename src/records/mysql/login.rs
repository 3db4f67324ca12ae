//! The canonical version and the versions before it.

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use uuid::Uuid;

use super::MySql;
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::tables::sealing::{self, KeyIds};
use super::tables::versions::{self, SUMMARY_COLUMNS};
use super::transaction::{self, Set};
use crate::model::audit::AuditNote;
use crate::records::rules::pruned_note;
use crate::records::{
    CanonicalSummary, CanonicalVersion, Epoch, LoginRecords, NewCanonical, ReplaceCondition, Replacement, Result,
    Retention,
};

#[async_trait]
impl LoginRecords for MySql {
    async fn canonical_replace(
        &self,
        condition: &ReplaceCondition,
        new: &NewCanonical,
        note: &AuditNote,
    ) -> Result<Replacement> {
        change!(self, |change| {
            let present = change.heads.canonical_version;
            let known = replacement_state(change.connection, new.id).await?;
            if let Some(number) = known.number {
                let version = versions::fetch(change.connection, number)
                    .await?
                    .ok_or_else(|| rows::corrupt(versions::TABLE, "a version is missing"))?;
                let epoch = if present == Some(number) { change.heads.canonical_epoch } else { Epoch(0) };
                return Ok(Replacement::Replaced { version, epoch });
            }
            let ReplaceCondition::Version(expected) = condition;
            if present != *expected {
                let present = match present {
                    Some(number) => versions::fetch(change.connection, number).await?,
                    None => None,
                };
                return Ok(Replacement::Conflict(present));
            }
            known.keys.check(new.entries.iter().map(|entry| &entry.token).chain([&new.body]))?;
            let number = known.highest + 1;
            let made = CanonicalVersion {
                id: new.id,
                summary: CanonicalSummary {
                    version: number,
                    digest: new.digest,
                    last_refresh: new.last_refresh.clone(),
                    source: new.source.clone(),
                    stored_at: rows::truncated(new.at),
                },
                body: new.body.clone(),
                entries: new.entries.clone(),
            };
            versions::insert(change, &made).await?;
            change.heads.canonical_version = Some(number);
            let epoch = change.mark(Set::Canonical);
            change.note(&note.clone().on(number));
            Ok(Replacement::Replaced { version: made, epoch })
        })
    }

    async fn canonical_fetch(&self) -> Result<Option<CanonicalVersion>> {
        read!(self, |connection| {
            match transaction::heads(connection).await?.canonical_version {
                Some(number) => versions::fetch(connection, number).await,
                None => Ok(None),
            }
        })
    }

    async fn canonical_fetch_version(&self, version: u64) -> Result<Option<CanonicalVersion>> {
        read!(self, |connection| versions::fetch(connection, version).await)
    }

    async fn canonical_list(&self, before: Option<u64>, limit: usize) -> Result<Vec<CanonicalSummary>> {
        read!(self, |connection| {
            let (which, mut values) = match before {
                Some(before) => ("WHERE version < ?", vec![before.into()]),
                None => ("", Vec::<Value>::new()),
            };
            values.push((limit as u64).into());
            let statement =
                format!("SELECT {SUMMARY_COLUMNS} FROM auth_payloads {which} ORDER BY version DESC LIMIT ?");
            let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
            let rows = rows.into_iter().map(|row| versions::read_summary(&mut Columns::of(versions::TABLE, row)));
            Ok(rows.collect::<Result<_>>()?)
        })
    }

    async fn canonical_prune(&self, retention: &Retention, limit: usize, note: &AuditNote) -> Result<Vec<u64>> {
        change!(self, |change| {
            let statement = "SELECT version FROM auth_payloads ORDER BY version DESC LIMIT 1 OFFSET ?";
            let highest: Option<u64> = change.connection.exec_first(statement, (retention.newest.max(1),)).await?;
            let Some(highest) = highest else { return Ok(Vec::new()) };
            let canonical = change.heads.canonical_version.unwrap_or_default();
            let statement = "SELECT version, id FROM auth_payloads WHERE version <= ? AND version <> ? AND stored_at < ? \
                     ORDER BY stored_at LIMIT ?";
            let values = vec![highest.into(), canonical.into(), rows::time(retention.since), (limit as u64).into()];
            let mut found: Vec<(u64, Vec<u8>)> = change.connection.exec(statement, Params::Positional(values)).await?;
            found.sort();
            let (pruned, ids): (Vec<u64>, Vec<Value>) =
                found.into_iter().map(|(number, id)| (number, Value::Bytes(id))).unzip();
            let Some(note) = pruned_note(note, &pruned) else { return Ok(pruned) };
            for (table, column) in [("auth_entries", "payload_id"), (versions::TABLE, "id")] {
                let statement = format!("DELETE FROM {table} WHERE {column} IN {}", rows::places(1, ids.len()));
                change.run(&statement, ids.clone()).await?;
            }
            change.note(&note);
            Ok(pruned)
        })
    }
}

/// The data for deciding a replacement, read by one statement.
struct ReplacementState {
    /// The number of the version with this id.
    number: Option<u64>,
    highest: u64,
    keys: KeyIds,
}

async fn replacement_state(connection: &mut Conn, id: Uuid) -> Outcome<ReplacementState> {
    let statement = format!(
        "SELECT (SELECT version FROM auth_payloads WHERE id = ?), (SELECT MAX(version) FROM auth_payloads), \
         {}",
        sealing::KEY_IDS
    );
    let row: Option<Row> = connection.exec_first(statement, (rows::id(id),)).await?;
    let mut columns = Columns::of(versions::TABLE, row.ok_or_else(|| rows::corrupt(versions::TABLE, "no answer"))?);
    Ok(ReplacementState {
        number: columns.optional_number()?,
        highest: columns.optional_number()?.unwrap_or_default(),
        keys: KeyIds::read(&mut columns)?,
    })
}
