//! Users.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use time::OffsetDateTime;

use super::changes::{Change, Set};
use super::connections::Outcome;
use super::hosts;
use super::rows::{self, Columns};
use crate::model::audit::AuditNote;
use crate::model::people::{Email, UserId};
use crate::records::rules::taken;
use crate::records::{ChangedUser, PasswordHash, Result, User, UserChange};

const TABLE: &str = "users";

/// What [`read`] takes, in this order.
pub(super) const COLUMNS: &str = "users.id, users.email, users.role, users.password, users.disabled, users.generation, \
                                  users.max_hosts, users.created_at, users.updated_at";

/// By e-mail address.
pub(super) async fn all(connection: &mut Conn) -> Outcome<Vec<User>> {
    select(connection, "ORDER BY email", vec![]).await
}

pub(super) async fn by_id(connection: &mut Conn, id: UserId) -> Outcome<Option<User>> {
    Ok(select(connection, "WHERE id = ?", vec![id.0.into()]).await?.pop())
}

pub(super) async fn by_email(connection: &mut Conn, email: &Email) -> Outcome<Option<User>> {
    Ok(select(connection, "WHERE email = ?", vec![email.as_str().into()]).await?.pop())
}

/// By id, from the first one after `after`.
pub(super) async fn page(connection: &mut Conn, after: Option<UserId>, limit: usize) -> Outcome<Vec<User>> {
    let (from, values) = match after {
        Some(after) => ("WHERE id > ?", vec![after.0.into(), (limit as u64).into()]),
        None => ("", vec![(limit as u64).into()]),
    };
    select(connection, &format!("{from} ORDER BY id LIMIT ?"), values).await
}

async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<User>> {
    let statement = format!("SELECT {COLUMNS} FROM users {which}");
    let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
    Ok(rows.into_iter().map(|row| read(&mut Columns::of(TABLE, row))).collect::<Result<_>>()?)
}

pub(super) fn read(columns: &mut Columns) -> Result<User> {
    Ok(User {
        id: UserId(columns.number()?),
        email: columns.parsed()?,
        role: columns.parsed()?,
        password: columns.optional_text()?.map(PasswordHash),
        disabled: columns.truth()?,
        generation: columns.number()?,
        max_hosts: columns
            .optional_number()?
            .map(|most| most.try_into().map_err(|error| rows::corrupt(TABLE, error)))
            .transpose()?,
        created_at: columns.time()?,
        updated_at: columns.time()?,
    })
}

fn written(user: &User) -> [Value; 9] {
    [
        user.email.as_str().into(),
        user.role.as_str().into(),
        user.password.as_ref().map(|password| password.0.as_str()).into(),
        user.disabled.into(),
        user.generation.into(),
        user.max_hosts.into(),
        rows::time(user.created_at),
        rows::time(user.updated_at),
        user.id.0.into(),
    ]
}

pub(super) async fn insert_all(change: &mut Change<'_>, users: &[&User]) -> Outcome<()> {
    let statement = format!(
        "INSERT INTO users (email, role, password, disabled, generation, max_hosts, created_at, updated_at, id) VALUES {}",
        rows::places(users.len(), 9)
    );
    change.run(&statement, users.iter().flat_map(|user| written(user)).collect()).await
}

pub(super) async fn add(change: &mut Change<'_>, user: &User, note: &AuditNote) -> Outcome<bool> {
    let values = vec![user.id.0.into(), user.email.as_str().into()];
    let known = select(change.connection, "WHERE id = ? OR email = ?", values).await?;
    if let Some(known) = known.iter().find(|known| known.id == user.id) {
        return if known.email == user.email { Ok(true) } else { Err(taken("user id").into()) };
    }
    if !known.is_empty() {
        return Ok(false);
    }
    insert_all(change, &[user]).await?;
    change.mark(Set::Users);
    change.note(note);
    Ok(true)
}

pub(super) async fn change(
    change: &mut Change<'_>,
    id: UserId,
    wanted: &UserChange,
    at: OffsetDateTime,
    note: Option<&AuditNote>,
) -> Outcome<Option<ChangedUser>> {
    let at = rows::cut(at);
    let Some(before) = by_id(change.connection, id).await? else { return Ok(None) };
    let Some(user) = wanted.applied(&before, at) else { return Ok(None) };
    let owned = if wanted.concerns_hosts() { hosts::of_user(change.connection, id).await? } else { Vec::new() };
    let changed = ChangedUser { hosts: wanted.applied_to_hosts(owned, at), user };
    if changed.user != before || !changed.hosts.is_empty() {
        update(change, &changed.user).await?;
        for host in &changed.hosts {
            hosts::update(change, host).await?;
        }
        note.into_iter().for_each(|note| change.note(note));
    }
    Ok(Some(changed))
}

pub(super) async fn update(change: &mut Change<'_>, user: &User) -> Outcome<()> {
    change
        .run(
            "UPDATE users SET email = ?, role = ?, password = ?, disabled = ?, generation = ?, max_hosts = ?, \
             created_at = ?, updated_at = ? WHERE id = ?",
            written(user).into(),
        )
        .await?;
    change.mark(Set::Users);
    Ok(())
}
