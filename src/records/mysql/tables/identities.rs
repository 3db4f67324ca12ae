//! Rows of linked identities.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Value};

use crate::model::people::UserId;
use crate::records::mysql::connections::{DUPLICATE_KEY, Outcome, Problem};
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{ExternalIdentity, Result};

pub const TABLE: &str = "external_identities";

pub const COLUMNS: &str = "issuer, subject, user_id, external_identities.email, linked_at";

/// Identities in the order of issuer and subject, after `after`.
pub async fn page(
    connection: &mut Conn,
    after: Option<ExternalIdentity>,
    limit: usize,
) -> Outcome<Vec<ExternalIdentity>> {
    let (from, mut values): (_, Vec<Value>) = match after {
        Some(ExternalIdentity { issuer, subject, .. }) => (
            "WHERE issuer > ? OR (issuer = ? AND subject > ?)",
            vec![issuer.as_str().into(), issuer.into(), subject.into()],
        ),
        None => ("", vec![]),
    };
    values.push((limit as u64).into());
    select(connection, &format!("{from} ORDER BY issuer, subject LIMIT ?"), values).await
}

pub async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<ExternalIdentity>> {
    let statement = format!("SELECT {COLUMNS} FROM external_identities {which}");
    rows::read_all(connection, statement, values, |row| read(&mut Columns::of(TABLE, row))).await
}

pub fn read(columns: &mut Columns) -> Result<ExternalIdentity> {
    Ok(ExternalIdentity {
        issuer: columns.text()?,
        subject: columns.text()?,
        user: UserId(columns.number()?),
        email: columns.optional_text()?,
        linked_at: columns.time()?,
    })
}

pub async fn insert_all(change: &mut Change<'_>, identities: &[&ExternalIdentity]) -> Outcome<()> {
    let written = |identity: &&ExternalIdentity| -> [Value; 5] {
        [
            identity.issuer.as_str().into(),
            identity.subject.as_str().into(),
            identity.user.0.into(),
            identity.email.as_deref().into(),
            rows::time(identity.linked_at),
        ]
    };
    let statement = format!(
        "INSERT INTO external_identities (issuer, subject, user_id, email, linked_at) VALUES {}",
        rows::places(identities.len(), 5)
    );
    let values = Params::Positional(identities.iter().flat_map(written).collect());
    match change.connection.exec_drop(statement, values).await {
        // An operator inserted the identity after the lookup.
        Err(mysql_async::Error::Server(error)) if error.code == DUPLICATE_KEY => {
            Err(Problem::Conflict(error.to_string()))
        }
        done => Ok(done?),
    }
}
