//! Rows of authorities.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value};

use crate::model::authority::AuthorityRole;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{Authority, AuthoritySlot, Result};

const TABLE: &str = "authorities";

pub async fn all(connection: &mut Conn) -> Outcome<Vec<Authority>> {
    let statement = "SELECT id, role, slot, certificate_pem, cross_certificate_pem, private_key, created_at \
                     FROM authorities ORDER BY id";
    let rows: Vec<Row> = connection.exec(statement, ()).await?;
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}

fn read(row: Row) -> Result<Authority> {
    let mut columns = Columns::of(TABLE, row);
    let id = columns.id()?;
    let role = match columns.text()?.as_str() {
        "server" => AuthorityRole::Server,
        "client" => AuthorityRole::Client,
        _ => return Err(rows::corrupt(TABLE, "a role written by another version")),
    };
    let slot = match columns.text()?.as_str() {
        "next" => AuthoritySlot::Next,
        "active" => AuthoritySlot::Active,
        "old" => AuthoritySlot::Old,
        _ => return Err(rows::corrupt(TABLE, "a slot written by another version")),
    };
    Ok(Authority {
        id,
        role,
        slot,
        certificate_pem: columns.text()?,
        cross_certificate_pem: columns.optional_text()?,
        private_key: columns.sealed()?,
        created_at: columns.optional_time()?,
    })
}

fn role(role: AuthorityRole) -> Value {
    match role {
        AuthorityRole::Server => "server",
        AuthorityRole::Client => "client",
    }
    .into()
}

pub fn slot(slot: AuthoritySlot) -> Value {
    match slot {
        AuthoritySlot::Next => "next",
        AuthoritySlot::Active => "active",
        AuthoritySlot::Old => "old",
    }
    .into()
}

pub async fn insert(change: &mut Change<'_>, authority: &Authority) -> Outcome<()> {
    let values = vec![
        rows::id(authority.id),
        role(authority.role),
        slot(authority.slot),
        authority.certificate_pem.as_str().into(),
        authority.cross_certificate_pem.as_deref().into(),
        rows::sealed(&authority.private_key),
        rows::key_of(&authority.private_key),
        rows::optional_time(authority.created_at),
    ];
    change
        .run(
            "INSERT INTO authorities (id, role, slot, certificate_pem, cross_certificate_pem, private_key, \
             private_key_key, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        .await
}
