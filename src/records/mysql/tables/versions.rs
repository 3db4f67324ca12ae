//! Rows of versions and their entries.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use crate::model::host::HostId;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{AuthEntry, CanonicalSource, CanonicalSummary, CanonicalVersion, Result};

pub const TABLE: &str = "auth_payloads";

/// Entries written by one statement.
const ENTRIES_PER_INSERT: usize = 100;

pub const SUMMARY_COLUMNS: &str = "version, digest, last_refresh, source_kind, source_by, source_version, \
                                   source_host_id, source_fqdn, stored_at";

pub async fn insert(change: &mut Change<'_>, new: &CanonicalVersion) -> Outcome<()> {
    let CanonicalSummary { version, digest, last_refresh, source, stored_at } = &new.summary;
    let (kind, by, of, host): (_, _, Option<u64>, _) = match source {
        CanonicalSource::Admin { by } => ("admin", Some(by), None, None),
        CanonicalSource::Override { by } => ("override", Some(by), None, None),
        CanonicalSource::Rollback { by, of } => ("rollback", Some(by), Some(*of), None),
        CanonicalSource::Runner { of } => ("runner", None, Some(*of), None),
        CanonicalSource::Host { id, fqdn } => ("host", None, None, Some((id, fqdn))),
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
    // Usually there are few entries, but their number is unlimited. The number of a statement's values is limited.
    for (chunk, entries) in (0_u64..).zip(new.entries.chunks(ENTRIES_PER_INSERT)) {
        let mut values = Vec::with_capacity(entries.len() * 9);
        let first = chunk * ENTRIES_PER_INSERT as u64;
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

/// Only resealing changes a version, so its parts need not be read in one snapshot.
pub async fn fetch(connection: &mut Conn, number: u64) -> Outcome<Option<CanonicalVersion>> {
    let statement = format!("SELECT {SUMMARY_COLUMNS}, id, body FROM auth_payloads WHERE version = ?");
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

pub fn read_summary(columns: &mut Columns) -> Result<CanonicalSummary> {
    let (version, digest, last_refresh) = (columns.number()?, columns.digest()?, columns.text()?);
    let (kind, by, of) = (columns.text()?, columns.optional_text()?, columns.optional_number()?);
    let (host, fqdn) = (columns.optional_number()?, columns.optional_parsed()?);
    let source = match (kind.as_str(), by, of, host, fqdn) {
        ("admin", Some(by), ..) => CanonicalSource::Admin { by },
        ("override", Some(by), ..) => CanonicalSource::Override { by },
        ("rollback", Some(by), Some(of), ..) => CanonicalSource::Rollback { by, of },
        ("runner", _, Some(of), ..) => CanonicalSource::Runner { of },
        ("host", _, _, Some(id), Some(fqdn)) => CanonicalSource::Host { id: HostId(id), fqdn },
        _ => return Err(rows::corrupt(TABLE, format!("version {version} has an incomplete or unknown source"))),
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
