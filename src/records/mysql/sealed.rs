//! Data keys, and which values are sealed with which.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value};
use uuid::Uuid;

use super::changes::{Change, Set};
use super::connections::Outcome;
use super::rows::{self, Columns};
use crate::model::audit::AuditNote;
use crate::records::{RecordsError, Result, SealingKey};
use crate::seal::{KeyId, Place, Sealed};

/// A column of sealed values, beside the one with their keys (`…_key`).
struct Holder {
    table: &'static str,
    column: &'static str,
    /// An expression for the id as a place has it, and how that is found again.
    id: &'static str,
    which: Which,
}

#[derive(Clone, Copy)]
enum Which {
    Number,
    Id,
    /// Payload and target.
    Entry,
}

const HOLDERS: [Holder; 6] = [
    Holder { table: "hosts", column: "api_key", id: "CONCAT(id, '')", which: Which::Number },
    Holder { table: "hosts", column: "agent_identity", id: "CONCAT(id, '')", which: Which::Number },
    Holder { table: "authorities", column: "private_key", id: "HEX(id)", which: Which::Id },
    Holder { table: "settings", column: "server_key", id: "CONCAT(id, '')", which: Which::Number },
    Holder { table: "auth_payloads", column: "body", id: "HEX(id)", which: Which::Id },
    Holder { table: "auth_entries", column: "token", id: "CONCAT(HEX(payload_id), '/', target)", which: Which::Entry },
];

impl Holder {
    /// The id of a place, from the text that [`Self::id`] gives.
    fn place(&self, id: &str) -> Result<Place> {
        let uuid = |hex: &str| Uuid::parse_str(hex).map_err(|error| rows::corrupt(self.table, error));
        let id = match (self.which, id.split_once('/')) {
            (Which::Number, _) => id.to_owned(),
            (Which::Id, _) => uuid(id)?.to_string(),
            (Which::Entry, Some((payload, target))) => format!("{}/{target}", uuid(payload)?),
            (Which::Entry, None) => return Err(rows::corrupt(self.table, "a token of no payload")),
        };
        Ok(Place::new(self.table, self.column, id))
    }

    /// The condition that finds a place's row; `None`: there is no such id.
    fn find(&self, id: &str) -> Option<(&'static str, Vec<Value>)> {
        match self.which {
            Which::Number => Some(("id = ?", vec![id.parse::<u64>().ok()?.into()])),
            Which::Id => Some(("id = ?", vec![rows::id(Uuid::parse_str(id).ok()?)])),
            Which::Entry => {
                let (payload, target) = id.split_once('/')?;
                let payload = rows::id(Uuid::parse_str(payload).ok()?);
                Some(("payload_id = ? AND target = ?", vec![payload, target.into()]))
            }
        }
    }
}

pub(super) async fn keys(connection: &mut Conn) -> Outcome<Vec<SealingKey>> {
    let rows: Vec<Row> = connection.exec("SELECT id, sealed, created_at FROM sealing_keys ORDER BY id", ()).await?;
    let read = |row| {
        let mut columns = Columns::of("sealing_keys", row);
        let id = columns.number()?.try_into().map_err(|error| rows::corrupt("sealing_keys", error))?;
        Ok(SealingKey { id: KeyId(id), sealed: columns.sealed()?, created_at: columns.time()? })
    };
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}

pub(super) async fn put_key(change: &mut Change<'_>, key: &SealingKey) -> Outcome<()> {
    let values = vec![key.id.0.into(), rows::sealed(&key.sealed), rows::time(key.created_at)];
    change.run("INSERT INTO sealing_keys (id, sealed, created_at) VALUES (?, ?, ?)", values).await
}

pub(super) async fn add_key(change: &mut Change<'_>, key: &SealingKey, note: &AuditNote) -> Outcome<bool> {
    if keys(change.connection).await?.iter().any(|known| known.id == key.id) {
        return Ok(false);
    }
    put_key(change, key).await?;
    change.note(note);
    Ok(true)
}

/// The ids of the data keys that there are, as a column of a statement that asks for other things as well.
pub(super) const KNOWN: &str = "(SELECT GROUP_CONCAT(id) FROM sealing_keys)";

/// Which data keys there are.
pub(super) struct Known(Vec<KeyId>);

impl Known {
    /// From [`KNOWN`].
    pub fn read(columns: &mut Columns) -> Result<Self> {
        let ids = columns.optional_text()?.unwrap_or_default();
        let ids = ids.split(',').filter(|id| !id.is_empty()).map(|id| id.parse().map(KeyId));
        Ok(Self(ids.collect::<std::result::Result<_, _>>().map_err(|error| rows::corrupt("sealing_keys", error))?))
    }

    /// Refuses what was sealed with a data key that is gone: a node that has not heard of a rotation yet would write what
    /// nobody can open once it is restarted. Where there are no keys yet, nothing is sealed with them.
    pub fn check<'a>(&self, values: impl IntoIterator<Item = &'a Sealed>) -> Result<()> {
        for value in values {
            let Ok(id) = crate::seal::key_of(value) else { continue };
            if !self.0.is_empty() && id != KeyId::SECRETBOX && !self.0.contains(&id) {
                let cause = format!("it was sealed with the data key {id}, which another node has replaced; try again");
                return Err(RecordsError::Unavailable(cause));
            }
        }
        Ok(())
    }
}

pub(super) async fn check(change: &mut Change<'_>, values: impl IntoIterator<Item = &Sealed>) -> Outcome<()> {
    let row: Option<Row> = change.connection.exec_first(format!("SELECT {KNOWN}"), ()).await?;
    let row = row.ok_or_else(|| rows::corrupt("sealing_keys", "no answer"))?;
    Ok(Known::read(&mut Columns::of("sealing_keys", row))?.check(values)?)
}

pub(super) async fn remove_key(change: &mut Change<'_>, id: KeyId) -> Outcome<bool> {
    let keys = keys(change.connection).await?;
    let is_there = keys.iter().any(|key| key.id == id);
    if !is_there || keys.iter().all(|key| key.id <= id) {
        return Ok(false);
    }
    for Holder { table, column, .. } in &HOLDERS {
        let statement = format!("SELECT 1 FROM {table} WHERE {column}_key = ? LIMIT 1");
        let used: Option<u64> = change.connection.exec_first(statement, (id.0,)).await?;
        if used.is_some() {
            return Ok(false);
        }
    }
    change.run("DELETE FROM sealing_keys WHERE id = ?", vec![id.0.into()]).await?;
    // Nobody caches it, but whoever seals with this key at the same time on another node of a cluster must meet us.
    change.epoch();
    Ok(true)
}

pub(super) async fn values_before(connection: &mut Conn, active: KeyId, limit: usize) -> Outcome<Vec<(Place, Sealed)>> {
    let mut found = Vec::new();
    for holder in &HOLDERS {
        let Holder { table, column, id, .. } = holder;
        let statement = format!("SELECT {id}, {column} FROM {table} WHERE {column}_key < ? LIMIT ?");
        let rows: Vec<Row> = connection.exec(statement, (active.0, (limit - found.len()) as u64)).await?;
        for row in rows {
            let mut columns = Columns::of(table, row);
            found.push((holder.place(&columns.text()?)?, columns.sealed()?));
        }
        if found.len() >= limit {
            break;
        }
    }
    Ok(found)
}

pub(super) async fn reseal(change: &mut Change<'_>, place: &Place, old: &Sealed, new: &Sealed) -> Outcome<bool> {
    let holder = HOLDERS.iter().find(|holder| holder.table == place.table && holder.column == place.column);
    let Some((holder, (which, id))) = holder.and_then(|holder| Some((holder, holder.find(&place.id)?))) else {
        return Ok(false);
    };
    check(change, [new]).await?;
    let Holder { table, column, .. } = holder;
    let present = format!("SELECT {column} FROM {table} WHERE {which}");
    let row: Option<Row> = change.connection.exec_first(present, id.clone()).await?;
    let present = row.map(|row| Columns::of(table, row).optional_sealed()).transpose()?.flatten();
    if present.as_ref() != Some(old) {
        return Ok(false);
    }
    let mut values = vec![rows::sealed(new), rows::key_of(new)];
    values.extend(id.iter().cloned());
    change.run(&format!("UPDATE {table} SET {column} = ?, {column}_key = ? WHERE {which}"), values).await?;
    mark(change, holder, &id).await?;
    Ok(true)
}

/// Marks what nodes cache of it.
async fn mark(change: &mut Change<'_>, holder: &Holder, id: &[Value]) -> Outcome<()> {
    let epoch = change.epoch();
    match holder.table {
        "hosts" => {
            let values = [Value::from(epoch.0)].into_iter().chain(id.iter().cloned()).collect();
            change.run("UPDATE hosts SET epoch = ? WHERE id = ?", values).await?;
        }
        "authorities" => {
            change.mark(Set::Authorities);
        }
        "auth_payloads" | "auth_entries" => {
            // Of both the first is the payload's id.
            let payload = id.first().cloned().unwrap_or(Value::NULL);
            let statement = "SELECT version FROM auth_payloads WHERE id = ?";
            let version: Option<u64> = change.connection.exec_first(statement, (payload,)).await?;
            if version.is_some() && version == change.heads.canonical_version {
                change.mark(Set::Canonical);
            }
        }
        _ => {}
    }
    Ok(())
}
