//! Rows of the audit log.

use std::collections::BTreeMap;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};

use crate::model::audit::{Actor, AuditEntry, AuditNote};
use crate::model::host::HostId;
use crate::model::people::UserId;
use crate::records::Result;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};

const TABLE: &str = "audit_log";

const COLUMNS: [&str; 14] = [
    "number",
    "at",
    "actor_kind",
    "actor_name",
    "actor_fingerprint",
    "actor_uid",
    "actor_host_id",
    "source_ip",
    "action",
    "target",
    "outcome",
    "alarm",
    "details",
    "hash",
];

/// Entries written by one statement.
const ROWS_PER_INSERT: usize = 100;

pub async fn write(connection: &mut Conn, entries: &[AuditEntry]) -> Outcome<()> {
    for entries in entries.chunks(ROWS_PER_INSERT) {
        let places = rows::places(entries.len(), COLUMNS.len());
        let statement = format!("INSERT INTO audit_log ({}) VALUES {places}", COLUMNS.join(", "));
        let mut values = Vec::with_capacity(entries.len() * COLUMNS.len());
        for entry in entries {
            values.extend(written(entry)?);
        }
        connection.exec_drop(statement, Params::Positional(values)).await?;
    }
    Ok(())
}

pub async fn page(connection: &mut Conn, number: u64, limit: usize) -> Outcome<Vec<AuditEntry>> {
    select(connection, "WHERE number >= ? ORDER BY number LIMIT ?", vec![number.into(), (limit as u64).into()]).await
}

pub async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<AuditEntry>> {
    let statement = format!("SELECT {} FROM audit_log {which}", COLUMNS.join(", "));
    rows::read_all(connection, statement, values, read).await
}

fn written(entry: &AuditEntry) -> Result<[Value; COLUMNS.len()]> {
    let note = &entry.note;
    let (kind, name, fingerprint, uid, host) = match &note.actor {
        Actor::Certificate { name, fingerprint } => ("certificate", Some(name.as_str()), Some(fingerprint), None, None),
        Actor::Control { uid } => ("control", None, None, Some(*uid), None),
        Actor::Offline { uid } => ("offline", None, None, Some(*uid), None),
        Actor::Host { id, fqdn } => ("host", Some(fqdn.as_str()), None, None, Some(id.0)),
        Actor::User { id, email } => ("user", Some(email.as_str()), None, None, Some(id.0)),
        Actor::Anybody => ("anybody", None, None, None, None),
        Actor::Daemon => ("daemon", None, None, None, None),
    };
    let details = serde_json::to_string(&note.details).map_err(|error| rows::corrupt(TABLE, error))?;
    Ok([
        entry.number.into(),
        rows::time(note.at),
        kind.into(),
        name.into(),
        rows::optional_digest(fingerprint),
        uid.into(),
        host.into(),
        rows::address(note.from),
        note.action.as_str().into(),
        note.target.as_deref().into(),
        note.outcome.as_str().into(),
        note.alarm.into(),
        details.into(),
        rows::digest(&entry.hash),
    ])
}

fn read(row: Row) -> Result<AuditEntry> {
    let mut columns = Columns::of(TABLE, row);
    let (number, at, kind) = (columns.number()?, columns.time()?, columns.text()?);
    let (name, fingerprint) = (columns.optional_text()?, columns.optional_digest()?);
    let (uid, host) = (columns.optional_number()?, columns.optional_number()?);
    let missing = || rows::corrupt(TABLE, format!("entry {number} does not identify its {kind}"));
    let uid = || uid.and_then(|uid| u32::try_from(uid).ok()).ok_or_else(missing);
    let actor = match kind.as_str() {
        "certificate" => {
            Actor::Certificate { name: name.ok_or_else(missing)?, fingerprint: fingerprint.ok_or_else(missing)? }
        }
        "control" => Actor::Control { uid: uid()? },
        "offline" => Actor::Offline { uid: uid()? },
        "host" => Actor::Host {
            id: HostId(host.ok_or_else(missing)?),
            fqdn: name.ok_or_else(missing)?.parse().map_err(|error| rows::corrupt(TABLE, error))?,
        },
        "user" => Actor::User {
            id: UserId(host.ok_or_else(missing)?),
            email: name.ok_or_else(missing)?.parse().map_err(|error| rows::corrupt(TABLE, error))?,
        },
        "anybody" => Actor::Anybody,
        "daemon" => Actor::Daemon,
        _ => return Err(rows::corrupt(TABLE, format!("entry {number} has a kind of actor from another version"))),
    };
    let from = columns.optional_parsed()?;
    let (action, target, outcome, alarm) =
        (columns.text()?, columns.optional_text()?, columns.text()?, columns.truth()?);
    let details: BTreeMap<String, String> =
        serde_json::from_str(&columns.text()?).map_err(|error| rows::corrupt(TABLE, error))?;
    let note = AuditNote { at, actor, from, action, target, outcome, alarm, details };
    Ok(AuditEntry { number, note, hash: columns.digest()? })
}
