//! The canonical version and all that were.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use uuid::Uuid;

use super::changes::{self, Change, Set};
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::sealed;
use crate::model::audit::AuditNote;
use crate::model::host::HostId;
use crate::records::rules::pruned_note;
use crate::records::{
    AuthEntry, CanonicalSummary, CanonicalVersion, Condition, Epoch, NewCanonical, Replacement, Result, Retention,
    Source,
};

const TABLE: &str = "auth_payloads";
/// How many entries are written with one statement.
const ENTRIES: usize = 100;
const SUMMARY: &str = "version, digest, last_refresh, source_kind, source_by, source_version, source_host_id, \
                       source_fqdn, stored_at";

pub(super) async fn replace(
    change: &mut Change<'_>,
    condition: &Condition,
    new: &NewCanonical,
    note: &AuditNote,
) -> Outcome<Replacement> {
    let present = change.heads.canonical_version;
    let known = known(change.connection, new.id).await?;
    if let Some(number) = known.number {
        let version =
            version(change.connection, number).await?.ok_or_else(|| rows::corrupt(TABLE, "a version left"))?;
        let epoch = if present == Some(number) { change.heads.canonical_epoch } else { Epoch(0) };
        return Ok(Replacement::Replaced { version, epoch });
    }
    let Condition::Version(expected) = condition;
    if present != *expected {
        let present = match present {
            Some(number) => version(change.connection, number).await?,
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
            stored_at: rows::cut(new.at),
        },
        body: new.body.clone(),
        entries: new.entries.clone(),
    };
    insert(change, &made).await?;
    change.heads.canonical_version = Some(number);
    let epoch = change.mark(Set::Canonical);
    change.note(&note.clone().on(number));
    Ok(Replacement::Replaced { version: made, epoch })
}

/// What decides, asked for at once.
struct Known {
    /// Of the version with this id.
    number: Option<u64>,
    highest: u64,
    keys: sealed::Known,
}

async fn known(connection: &mut Conn, id: Uuid) -> Outcome<Known> {
    let statement = format!(
        "SELECT (SELECT version FROM auth_payloads WHERE id = ?), (SELECT MAX(version) FROM auth_payloads), \
         {}",
        sealed::KNOWN
    );
    let row: Option<Row> = connection.exec_first(statement, (rows::id(id),)).await?;
    let mut columns = Columns::of(TABLE, row.ok_or_else(|| rows::corrupt(TABLE, "no answer"))?);
    Ok(Known {
        number: columns.optional_number()?,
        highest: columns.optional_number()?.unwrap_or_default(),
        keys: sealed::Known::read(&mut columns)?,
    })
}

pub(super) async fn insert(change: &mut Change<'_>, new: &CanonicalVersion) -> Outcome<()> {
    let CanonicalSummary { version, digest, last_refresh, source, stored_at } = &new.summary;
    let (kind, by, of, host): (_, _, Option<u64>, _) = match source {
        Source::Admin { by } => ("admin", Some(by), None, None),
        Source::Override { by } => ("override", Some(by), None, None),
        Source::Rollback { by, of } => ("rollback", Some(by), Some(*of), None),
        Source::Runner { of } => ("runner", None, Some(*of), None),
        Source::Host { id, fqdn } => ("host", None, None, Some((id, fqdn))),
    };
    let values = vec![
        version.into(),
        rows::id(new.id),
        rows::digest(digest),
        last_refresh.as_str().into(),
        rows::sealed(&new.body),
        rows::key_of(&new.body),
        kind.into(),
        by.into(),
        of.into(),
        host.map(|(id, _)| id.0).into(),
        host.map(|(_, fqdn)| fqdn.as_str()).into(),
        rows::time(*stored_at),
    ];
    change
        .run(
            "INSERT INTO auth_payloads (version, id, digest, last_refresh, body, body_key, source_kind, source_by, \
             source_version, source_host_id, source_fqdn, stored_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        .await?;
    // Few, but nobody says how few: a statement has room for so many values.
    for (chunk, entries) in (0_u64..).zip(new.entries.chunks(ENTRIES)) {
        let mut values = Vec::with_capacity(entries.len() * 9);
        let first = chunk * ENTRIES as u64;
        for (place, entry) in (first..).zip(entries) {
            values.extend([
                rows::id(new.id),
                place.into(),
                entry.target.as_str().into(),
                rows::sealed(&entry.token),
                rows::key_of(&entry.token),
                entry.token_type.as_str().into(),
                entry.organization.as_deref().into(),
                entry.project.as_deref().into(),
                entry.api_base.as_deref().into(),
            ]);
        }
        let statement = format!(
            "INSERT INTO auth_entries (payload_id, place, target, token, token_key, token_type, organization, project, \
             api_base) VALUES {}",
            rows::places(entries.len(), 9)
        );
        change.run(&statement, values).await?;
    }
    Ok(())
}

pub(super) async fn present(connection: &mut Conn) -> Outcome<Option<CanonicalVersion>> {
    match changes::heads(connection).await?.canonical_version {
        Some(number) => version(connection, number).await,
        None => Ok(None),
    }
}

/// A version is never changed but for the key that it is sealed with, so its parts need not be read at one moment.
pub(super) async fn version(connection: &mut Conn, number: u64) -> Outcome<Option<CanonicalVersion>> {
    let statement = format!("SELECT {SUMMARY}, id, body FROM auth_payloads WHERE version = ?");
    let row: Option<Row> = connection.exec_first(statement, (number,)).await?;
    let Some(row) = row else { return Ok(None) };
    let mut columns = Columns::of(TABLE, row);
    let (summary, id, body) = (read_summary(&mut columns)?, columns.id()?, columns.sealed()?);
    let statement = "SELECT target, token, token_type, organization, project, api_base FROM auth_entries \
                     WHERE payload_id = ? ORDER BY place";
    let rows: Vec<Row> = connection.exec(statement, (rows::id(id),)).await?;
    let entries = rows.into_iter().map(read_entry).collect::<Result<_>>()?;
    Ok(Some(CanonicalVersion { id, summary, body, entries }))
}

/// Looked for and removed under the lock; what is large is not read.
pub(super) async fn prune(
    change: &mut Change<'_>,
    retention: &Retention,
    limit: usize,
    note: &AuditNote,
) -> Outcome<Vec<u64>> {
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
    for (table, column) in [("auth_entries", "payload_id"), (TABLE, "id")] {
        let statement = format!("DELETE FROM {table} WHERE {column} IN {}", rows::places(1, ids.len()));
        change.run(&statement, ids.clone()).await?;
    }
    change.note(&note);
    Ok(pruned)
}

pub(super) async fn history(
    connection: &mut Conn,
    before: Option<u64>,
    limit: usize,
) -> Outcome<Vec<CanonicalSummary>> {
    let (which, mut values) = match before {
        Some(before) => ("WHERE version < ?", vec![before.into()]),
        None => ("", Vec::<Value>::new()),
    };
    values.push((limit as u64).into());
    let statement = format!("SELECT {SUMMARY} FROM auth_payloads {which} ORDER BY version DESC LIMIT ?");
    let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
    let rows = rows.into_iter().map(|row| read_summary(&mut Columns::of(TABLE, row)));
    Ok(rows.collect::<Result<_>>()?)
}

fn read_summary(columns: &mut Columns) -> Result<CanonicalSummary> {
    let (version, digest, last_refresh) = (columns.number()?, columns.digest()?, columns.text()?);
    let (kind, by, of) = (columns.text()?, columns.optional_text()?, columns.optional_number()?);
    let (host, fqdn) = (columns.optional_number()?, columns.optional_parsed()?);
    let source = match (kind.as_str(), by, of, host, fqdn) {
        ("admin", Some(by), ..) => Source::Admin { by },
        ("override", Some(by), ..) => Source::Override { by },
        ("rollback", Some(by), Some(of), ..) => Source::Rollback { by, of },
        ("runner", _, Some(of), ..) => Source::Runner { of },
        ("host", _, _, Some(id), Some(fqdn)) => Source::Host { id: HostId(id), fqdn },
        _ => return Err(rows::corrupt(TABLE, format!("version {version} does not say where it came from"))),
    };
    Ok(CanonicalSummary { version, digest, last_refresh, source, stored_at: columns.time()? })
}

fn read_entry(row: Row) -> Result<AuthEntry> {
    let mut columns = Columns::of("auth_entries", row);
    Ok(AuthEntry {
        target: columns.text()?,
        token: columns.sealed()?,
        token_type: columns.text()?,
        organization: columns.optional_text()?,
        project: columns.optional_text()?,
        api_base: columns.optional_text()?,
    })
}
