//! Rows of users.

use mysql_async::{Conn, Value};

use crate::model::people::UserId;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::{Change, Set};
use crate::records::{PasswordHash, Result, User};

const TABLE: &str = "users";

/// The columns that [`read`] expects, in this order.
pub const COLUMNS: &str = "users.id, users.email, users.role, users.password, users.disabled, users.generation, \
                           users.max_hosts, users.created_at, users.updated_at";

/// By e-mail address.
pub async fn all(connection: &mut Conn) -> Outcome<Vec<User>> {
    select(connection, "ORDER BY email", vec![]).await
}

pub async fn by_id(connection: &mut Conn, id: UserId) -> Outcome<Option<User>> {
    Ok(select(connection, "WHERE id = ?", vec![id.0.into()]).await?.pop())
}

/// Users in the order of their ids, after `after`.
pub async fn page(connection: &mut Conn, after: Option<UserId>, limit: usize) -> Outcome<Vec<User>> {
    let (page, values) = rows::page_after("id", after.map(|after| after.0.into()), limit);
    select(connection, &page, values).await
}

pub async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<User>> {
    let statement = format!("SELECT {COLUMNS} FROM users {which}");
    rows::read_all(connection, statement, values, |row| read(&mut Columns::of(TABLE, row))).await
}

pub fn read(columns: &mut Columns) -> Result<User> {
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

pub async fn insert_all(change: &mut Change<'_>, users: &[&User]) -> Outcome<()> {
    let statement = format!(
        "INSERT INTO users (email, role, password, disabled, generation, max_hosts, created_at, updated_at, id) VALUES {}",
        rows::places(users.len(), 9)
    );
    change.run(&statement, users.iter().flat_map(|user| written(user)).collect()).await
}

pub async fn update(change: &mut Change<'_>, user: &User) -> Outcome<()> {
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
