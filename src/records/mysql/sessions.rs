//! Sessions. Which of them are in force their users decide.
//!
//! When one was last used, and that it is forgotten, moves no row of `heads`: each is written to the row that it is decided by.

use std::collections::BTreeMap;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use super::changes::{Change, Set};
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::users;
use crate::model::audit::AuditNote;
use crate::model::people::UserId;
use crate::records::{Begun, Epoch, Result, Session, SignedInBy};

const TABLE: &str = "sessions";
const COLUMNS: [&str; 15] = [
    "id",
    "token",
    "user_id",
    "generation",
    "method",
    "issuer",
    "subject",
    "browser",
    "started_at",
    "expires_at",
    "last_used_at",
    "from_ip",
    "agent",
    "ended_at",
    "epoch",
];

/// The newest first.
pub(super) async fn all(connection: &mut Conn) -> Outcome<Vec<Session>> {
    select(connection, "ORDER BY started_at DESC, id DESC", vec![]).await
}

pub(super) async fn changed(connection: &mut Conn, since: Epoch) -> Outcome<Vec<Session>> {
    select(connection, "WHERE epoch > ? ORDER BY epoch", vec![since.0.into()]).await
}

/// By id, from the first one after `after`.
pub(super) async fn page(connection: &mut Conn, after: Option<Uuid>, limit: usize) -> Outcome<Vec<Session>> {
    let (from, values) = match after {
        Some(after) => ("WHERE id > ?", vec![rows::id(after), (limit as u64).into()]),
        None => ("", vec![(limit as u64).into()]),
    };
    select(connection, &format!("{from} ORDER BY id LIMIT ?"), values).await
}

async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<Session>> {
    let statement = format!("SELECT {} FROM sessions {which}", COLUMNS.join(", "));
    let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}

fn read(row: Row) -> Result<Session> {
    let mut columns = Columns::of(TABLE, row);
    let (id, token, user) = (columns.id()?, columns.digest()?, UserId(columns.number()?));
    let (generation, method) = (columns.number()?, columns.text()?);
    let method = match (method.as_str(), columns.optional_text()?.zip(columns.optional_text()?)) {
        ("password", _) => SignedInBy::Password,
        ("oidc", Some((issuer, subject))) => SignedInBy::Oidc { issuer, subject },
        _ => return Err(rows::corrupt(TABLE, "a way to sign in that was written by another version")),
    };
    Ok(Session {
        id,
        token,
        user,
        generation,
        method,
        browser: columns.truth()?,
        started_at: columns.time()?,
        expires_at: columns.time()?,
        last_used_at: columns.time()?,
        from: columns.optional_parsed()?,
        agent: columns.optional_text()?,
        ended_at: columns.optional_time()?,
    })
}

pub(super) async fn insert_all(change: &mut Change<'_>, sessions: &[&Session], epoch: Epoch) -> Outcome<()> {
    let written = |session: &&Session| -> [Value; COLUMNS.len()] {
        let (issuer, subject) = session.identity().unzip();
        let method = if issuer.is_some() { "oidc" } else { "password" };
        [
            rows::id(session.id),
            rows::digest(&session.token),
            session.user.0.into(),
            session.generation.into(),
            method.into(),
            issuer.into(),
            subject.into(),
            session.browser.into(),
            rows::time(session.started_at),
            rows::time(session.expires_at),
            rows::time(session.last_used_at),
            rows::address(session.from),
            session.agent.as_deref().into(),
            rows::optional_time(session.ended_at),
            epoch.0.into(),
        ]
    };
    let places = rows::places(sessions.len(), COLUMNS.len());
    let statement = format!("INSERT INTO sessions ({}) VALUES {places}", COLUMNS.join(", "));
    change.run(&statement, sessions.iter().flat_map(written).collect()).await
}

pub(super) async fn begin(change: &mut Change<'_>, session: &Session, note: &AuditNote) -> Outcome<Begun> {
    let statement = format!(
        "SELECT {}, (SELECT token FROM sessions WHERE id = ?), \
         (SELECT user_id FROM external_identities WHERE issuer = ? AND subject = ?) FROM users WHERE id = ?",
        users::COLUMNS
    );
    let (issuer, subject) = session.identity().unzip();
    let values = (rows::id(session.id), issuer, subject, session.user.0);
    let row: Option<Row> = change.connection.exec_first(statement, values).await?;
    let Some(row) = row else { return Ok(Begun::Refused) };
    let mut columns = Columns::of(TABLE, row);
    let (user, token) = (users::read(&mut columns)?, columns.optional_digest()?);
    if let Some(known) = token {
        return Ok(if known == session.token { Begun::Begun } else { Begun::Known });
    }
    if !session.may_begin(Some(&user), columns.optional_number()?.map(UserId)) {
        return Ok(Begun::Refused);
    }
    let epoch = change.mark(Set::Sessions);
    insert_all(change, &[session], epoch).await?;
    change.note(note);
    Ok(Begun::Begun)
}

pub(super) async fn end(
    change: &mut Change<'_>,
    id: Uuid,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<Session>> {
    let found = select(change.connection, "WHERE id = ? AND ended_at IS NULL", vec![rows::id(id)]).await?.pop();
    let Some(session) = found else { return Ok(None) };
    let epoch = change.mark(Set::Sessions);
    let values = vec![rows::time(at), epoch.0.into(), rows::id(id)];
    change.run("UPDATE sessions SET ended_at = ?, epoch = ? WHERE id = ?", values).await?;
    change.note(note);
    Ok(Some(Session { ended_at: Some(rows::cut(at)), ..session }))
}

/// How many are written with one statement.
const TOGETHER: usize = 500;

pub(super) async fn touch(change: &mut Change<'_>, used: &[(Uuid, OffsetDateTime)]) -> Outcome<()> {
    let mut last: BTreeMap<Uuid, OffsetDateTime> = BTreeMap::new();
    for (id, at) in used {
        last.entry(*id).and_modify(|known| *known = (*known).max(*at)).or_insert(*at);
    }
    for some in last.into_iter().collect::<Vec<_>>().chunks(TOGETHER) {
        // Said to be a time, or it would be compared as text.
        let cases = " WHEN ? THEN CAST(? AS DATETIME(6))".repeat(some.len());
        let statement = format!(
            "UPDATE sessions SET last_used_at = GREATEST(last_used_at, CASE id{cases} END) WHERE id IN {}",
            rows::places(1, some.len())
        );
        let cases = some.iter().flat_map(|(id, at)| [rows::id(*id), rows::time(*at)]);
        change.run(&statement, cases.chain(some.iter().map(|(id, _)| rows::id(*id))).collect()).await?;
    }
    Ok(())
}

pub(super) async fn purge(change: &mut Change<'_>, when: OffsetDateTime) -> Outcome<usize> {
    let values = vec![rows::time(when), rows::time(when)];
    change.run("DELETE FROM sessions WHERE expires_at < ? OR ended_at < ?", values).await?;
    Ok(change.connection.affected_rows().try_into().unwrap_or(usize::MAX))
}
