//! Rows of sessions.

use mysql_async::{Conn, Row, Value};
use uuid::Uuid;

use crate::model::people::UserId;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{Epoch, Result, Session, SignInMethod};

pub const TABLE: &str = "sessions";

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

pub async fn changed(connection: &mut Conn, since: Epoch) -> Outcome<Vec<Session>> {
    select(connection, "WHERE epoch > ? ORDER BY epoch", vec![since.0.into()]).await
}

/// Sessions in the order of their ids, after `after`.
pub async fn page(connection: &mut Conn, after: Option<Uuid>, limit: usize) -> Outcome<Vec<Session>> {
    let (page, values) = rows::page_after("id", after.map(rows::id), limit);
    select(connection, &page, values).await
}

pub async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<Session>> {
    let statement = format!("SELECT {} FROM sessions {which}", COLUMNS.join(", "));
    rows::read_all(connection, statement, values, read).await
}

fn read(row: Row) -> Result<Session> {
    let mut columns = Columns::of(TABLE, row);
    let (id, token, user) = (columns.id()?, columns.digest()?, UserId(columns.number()?));
    let (generation, method) = (columns.number()?, columns.text()?);
    let method = match (method.as_str(), columns.optional_text()?.zip(columns.optional_text()?)) {
        ("password", _) => SignInMethod::Password,
        ("oidc", Some((issuer, subject))) => SignInMethod::Oidc { issuer, subject },
        _ => return Err(rows::corrupt(TABLE, "a sign-in method written by another version")),
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

pub async fn insert_all(change: &mut Change<'_>, sessions: &[&Session], epoch: Epoch) -> Outcome<()> {
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
