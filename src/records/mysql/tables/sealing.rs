//! Rows of data keys, and the columns of values that are sealed with them.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value};
use uuid::Uuid;

use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{RecordsError, Result, SealingKey};
use crate::seal::{KeyId, Place, Sealed};

pub const SEALED_COLUMNS: [SealedColumn; 6] = [
    SealedColumn { table: "hosts", column: "api_key", id: "CONCAT(id, '')", which: RowKey::Number },
    SealedColumn { table: "hosts", column: "agent_identity", id: "CONCAT(id, '')", which: RowKey::Number },
    SealedColumn { table: "authorities", column: "private_key", id: "HEX(id)", which: RowKey::Id },
    SealedColumn { table: "settings", column: "server_key", id: "CONCAT(id, '')", which: RowKey::Number },
    SealedColumn { table: "auth_payloads", column: "body", id: "HEX(id)", which: RowKey::Id },
    SealedColumn {
        table: "auth_entries",
        column: "token",
        id: "CONCAT(HEX(payload_id), '/', target)",
        which: RowKey::Entry,
    },
];

/// The ids of the data keys, as a column of a larger statement.
pub const KEY_IDS: &str = "(SELECT GROUP_CONCAT(id) FROM sealing_keys)";

/// A column of sealed values. A column named `…_key` contains their data keys.
pub struct SealedColumn {
    pub table: &'static str,
    pub column: &'static str,
    /// An SQL expression for the id of a place.
    pub id: &'static str,
    which: RowKey,
}

impl SealedColumn {
    /// The place for the text that the expression [`Self::id`] returns.
    pub fn place(&self, id: &str) -> Result<Place> {
        let uuid = |hex: &str| Uuid::parse_str(hex).map_err(|error| rows::corrupt(self.table, error));
        let id = match (self.which, id.split_once('/')) {
            (RowKey::Number, _) => id.to_owned(),
            (RowKey::Id, _) => uuid(id)?.to_string(),
            (RowKey::Entry, Some((payload, target))) => format!("{}/{target}", uuid(payload)?),
            (RowKey::Entry, None) => return Err(rows::corrupt(self.table, "a token of no payload")),
        };
        Ok(Place::new(self.table, self.column, id))
    }

    /// The condition that finds the row of a place; `None`: the id is not possible.
    pub fn find(&self, id: &str) -> Option<(&'static str, Vec<Value>)> {
        match self.which {
            RowKey::Number => Some(("id = ?", vec![id.parse::<u64>().ok()?.into()])),
            RowKey::Id => Some(("id = ?", vec![rows::id(Uuid::parse_str(id).ok()?)])),
            RowKey::Entry => {
                let (payload, target) = id.split_once('/')?;
                let payload = rows::id(Uuid::parse_str(payload).ok()?);
                Some(("payload_id = ? AND target = ?", vec![payload, target.into()]))
            }
        }
    }
}

#[derive(Clone, Copy)]
enum RowKey {
    Number,
    Id,
    /// Keyed by payload and target.
    Entry,
}

pub async fn all(connection: &mut Conn) -> Outcome<Vec<SealingKey>> {
    let rows: Vec<Row> = connection.exec("SELECT id, sealed, created_at FROM sealing_keys ORDER BY id", ()).await?;
    let read = |row| {
        let mut columns = Columns::of("sealing_keys", row);
        let id = columns.number()?.try_into().map_err(|error| rows::corrupt("sealing_keys", error))?;
        Ok(SealingKey { id: KeyId(id), sealed: columns.sealed()?, created_at: columns.time()? })
    };
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}

pub async fn insert(change: &mut Change<'_>, key: &SealingKey) -> Outcome<()> {
    let values = vec![key.id.0.into(), rows::sealed(&key.sealed), rows::time(key.created_at)];
    change.run("INSERT INTO sealing_keys (id, sealed, created_at) VALUES (?, ?, ?)", values).await
}

/// The ids of the data keys.
pub struct KeyIds(Vec<KeyId>);

impl KeyIds {
    /// Reads the value of [`KEY_IDS`].
    pub fn read(columns: &mut Columns) -> Result<Self> {
        let ids = columns.optional_text()?.unwrap_or_default();
        let ids = ids.split(',').filter(|id| !id.is_empty()).map(|id| id.parse().map(KeyId));
        Ok(Self(ids.collect::<std::result::Result<_, _>>().map_err(|error| rows::corrupt("sealing_keys", error))?))
    }

    /// Refuses a value sealed with a removed data key. A node that has not read a rotation yet would otherwise write a
    /// value that no node can open later. If there are no data keys, everything passes.
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

pub async fn check(change: &mut Change<'_>, values: impl IntoIterator<Item = &Sealed>) -> Outcome<()> {
    let row: Option<Row> = change.connection.exec_first(format!("SELECT {KEY_IDS}"), ()).await?;
    let row = row.ok_or_else(|| rows::corrupt("sealing_keys", "no answer"))?;
    Ok(KeyIds::read(&mut Columns::of("sealing_keys", row))?.check(values)?)
}
