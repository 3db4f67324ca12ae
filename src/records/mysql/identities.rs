//! Identities of other providers. Rows may be put there by hand, at any moment.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use time::OffsetDateTime;

use super::changes::Change;
use super::connections::{Outcome, Problem};
use super::rows::{self, Columns};
use super::telemetry::DUPLICATE;
use super::users;
use crate::model::audit::AuditNote;
use crate::model::people::UserId;
use crate::records::{ExternalIdentity, Linked, Result, User};

const TABLE: &str = "external_identities";
const COLUMNS: &str = "issuer, subject, user_id, external_identities.email, linked_at";

pub(super) async fn find(connection: &mut Conn, issuer: &str, subject: &str) -> Outcome<Option<ExternalIdentity>> {
    Ok(select(connection, "WHERE issuer = ? AND subject = ?", vec![issuer.into(), subject.into()]).await?.pop())
}

/// By user, then issuer and subject.
pub(super) async fn all(connection: &mut Conn) -> Outcome<Vec<ExternalIdentity>> {
    select(connection, "ORDER BY user_id, issuer, subject", vec![]).await
}

/// By issuer and subject, from the first one after `after`.
pub(super) async fn page(
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

async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<ExternalIdentity>> {
    let statement = format!("SELECT {COLUMNS} FROM external_identities {which}");
    let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
    Ok(rows.into_iter().map(|row| read(&mut Columns::of(TABLE, row))).collect::<Result<_>>()?)
}

fn read(columns: &mut Columns) -> Result<ExternalIdentity> {
    Ok(ExternalIdentity {
        issuer: columns.text()?,
        subject: columns.text()?,
        user: UserId(columns.number()?),
        email: columns.optional_text()?,
        linked_at: columns.time()?,
    })
}

pub(super) async fn insert_all(change: &mut Change<'_>, identities: &[&ExternalIdentity]) -> Outcome<()> {
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
        // Somebody put it there by hand since it was looked for.
        Err(mysql_async::Error::Server(error)) if error.code == DUPLICATE => Err(Problem::Conflict(error.to_string())),
        done => Ok(done?),
    }
}

pub(super) async fn link(change: &mut Change<'_>, identity: &ExternalIdentity, note: &AuditNote) -> Outcome<Linked> {
    let statement = "SELECT (SELECT id FROM users WHERE id = ?), \
                     (SELECT user_id FROM external_identities WHERE issuer = ? AND subject = ?)";
    let values = (identity.user.0, identity.issuer.as_str(), identity.subject.as_str());
    let known: Option<(Option<u64>, Option<u64>)> = change.connection.exec_first(statement, values).await?;
    match known {
        None | Some((None, _)) => Ok(Linked::NoUser),
        Some((_, Some(user))) if user == identity.user.0 => Ok(Linked::Linked),
        Some((_, Some(user))) => Ok(Linked::Taken(UserId(user))),
        Some((Some(_), None)) => {
            insert_all(change, &[identity]).await?;
            change.note(note);
            Ok(Linked::Linked)
        }
    }
}

pub(super) async fn unlink(
    change: &mut Change<'_>,
    issuer: &str,
    subject: &str,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<(ExternalIdentity, User)>> {
    let statement = format!(
        "SELECT {COLUMNS}, {} FROM external_identities JOIN users ON users.id = user_id WHERE issuer = ? AND subject = ?",
        users::COLUMNS
    );
    let row: Option<Row> = change.connection.exec_first(statement, (issuer, subject)).await?;
    let Some(row) = row else { return Ok(None) };
    let mut columns = Columns::of(TABLE, row);
    let (identity, user) = (read(&mut columns)?, users::read(&mut columns)?);
    let values = vec![issuer.into(), subject.into()];
    change.run("DELETE FROM external_identities WHERE issuer = ? AND subject = ?", values).await?;
    let user = user.turned(rows::cut(at));
    users::update(change, &user).await?;
    change.note(note);
    Ok(Some((identity, user)))
}
