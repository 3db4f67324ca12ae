//! The authorities in their slots, and the certificates that admins were issued.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value};
use time::OffsetDateTime;

use super::changes::{Change, Set};
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::{sealed, users};
use crate::model::audit::AuditNote;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::records::{AdminCertificate, Authority, AuthoritySlot, AuthorityStep, Result, rules};

const TABLE: &str = "authorities";

pub(super) async fn all(connection: &mut Conn) -> Outcome<Vec<Authority>> {
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

fn slot(slot: AuthoritySlot) -> Value {
    match slot {
        AuthoritySlot::Next => "next",
        AuthoritySlot::Active => "active",
        AuthoritySlot::Old => "old",
    }
    .into()
}

pub(super) async fn insert(change: &mut Change<'_>, authority: &Authority) -> Outcome<()> {
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

pub(super) async fn roll(
    change: &mut Change<'_>,
    role: AuthorityRole,
    step: &AuthorityStep,
    note: &AuditNote,
) -> Outcome<Option<Vec<Authority>>> {
    let present = all(change.connection).await?;
    let Some((written, gone)) = rules::roll(&present, role, step) else { return Ok(None) };
    sealed::check(change, written.iter().map(|authority| &authority.private_key)).await?;
    for authority in &written {
        if present.iter().any(|known| known.id == authority.id) {
            let values = vec![slot(authority.slot), rows::id(authority.id)];
            change.run("UPDATE authorities SET slot = ? WHERE id = ?", values).await?;
        } else {
            insert(change, authority).await?;
        }
    }
    if let Some(gone) = &gone {
        change.run("DELETE FROM authorities WHERE id = ?", vec![rows::id(gone.id)]).await?;
    }
    change.mark(Set::Authorities);
    change.note(note);
    Ok(Some(rules::rolled(present, written, gone)))
}

const CERTIFICATE: &str = "SELECT fingerprint, name, serial, issued_at, expires_at, revoked_at, authority, user_id \
                           FROM admin_certificates";

/// In the order in which they were issued.
pub(super) async fn certificates(connection: &mut Conn) -> Outcome<Vec<AdminCertificate>> {
    let rows: Vec<Row> = connection.exec(format!("{CERTIFICATE} ORDER BY issued_at, name, serial"), ()).await?;
    Ok(rows.into_iter().map(read_certificate).collect::<Result<_>>()?)
}

async fn certificate(connection: &mut Conn, fingerprint: &Digest) -> Outcome<Option<AdminCertificate>> {
    let statement = format!("{CERTIFICATE} WHERE fingerprint = ?");
    let row: Option<Row> = connection.exec_first(statement, (rows::digest(fingerprint),)).await?;
    Ok(row.map(read_certificate).transpose()?)
}

fn read_certificate(row: Row) -> Result<AdminCertificate> {
    let mut columns = Columns::of("admin_certificates", row);
    Ok(AdminCertificate {
        fingerprint: columns.digest()?,
        name: columns.text()?,
        serial: columns.text()?,
        issued_at: columns.time()?,
        expires_at: columns.time()?,
        revoked_at: columns.optional_time()?,
        authority: columns.optional_id()?,
        user: columns.optional_number()?.map(UserId),
    })
}

pub(super) async fn record(change: &mut Change<'_>, certificate: &AdminCertificate, note: &AuditNote) -> Outcome<()> {
    if self::certificate(change.connection, &certificate.fingerprint).await?.is_some() {
        return Ok(());
    }
    insert_certificate(change, certificate).await?;
    change.mark(Set::Certificates);
    change.note(note);
    Ok(())
}

pub(super) async fn insert_certificate(change: &mut Change<'_>, certificate: &AdminCertificate) -> Outcome<()> {
    let values = vec![
        rows::digest(&certificate.fingerprint),
        certificate.name.as_str().into(),
        certificate.serial.as_str().into(),
        rows::time(certificate.issued_at),
        rows::time(certificate.expires_at),
        rows::optional_time(certificate.revoked_at),
        certificate.authority.map_or(Value::NULL, rows::id),
        certificate.user.map(|user| user.0).into(),
    ];
    change
        .run(
            "INSERT INTO admin_certificates (fingerprint, name, serial, issued_at, expires_at, revoked_at, authority, \
             user_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        .await
}

pub(super) async fn renew(
    change: &mut Change<'_>,
    old: &Digest,
    certificate: &AdminCertificate,
    revoke_at: Option<OffsetDateTime>,
    note: &AuditNote,
) -> Outcome<Option<AdminCertificate>> {
    let known = self::certificate(change.connection, &certificate.fingerprint).await?;
    if known.is_some() {
        return Ok(known);
    }
    let found = self::certificate(change.connection, old).await?;
    let Some(old) = found.filter(|old| old.revoked_at.is_none()) else { return Ok(None) };
    let renewed = AdminCertificate { user: old.user, ..certificate.clone() };
    insert_certificate(change, &renewed).await?;
    if let Some(at) = revoke_at {
        let values = vec![rows::time(at), rows::digest(&old.fingerprint)];
        change.run("UPDATE admin_certificates SET revoked_at = ? WHERE fingerprint = ?", values).await?;
    }
    change.mark(Set::Certificates);
    change.note(note);
    Ok(Some(renewed))
}

pub(super) async fn revoke(
    change: &mut Change<'_>,
    fingerprint: &Digest,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<AdminCertificate>> {
    let found = certificate(change.connection, fingerprint).await?;
    let Some(certificate) = found.filter(|certificate| certificate.revoked_at.is_none()) else { return Ok(None) };
    let values = vec![rows::time(at), rows::digest(fingerprint)];
    change.run("UPDATE admin_certificates SET revoked_at = ? WHERE fingerprint = ?", values).await?;
    change.mark(Set::Certificates);
    change.note(note);
    Ok(Some(AdminCertificate { revoked_at: Some(rows::cut(at)), ..certificate }))
}

pub(super) async fn tie(
    change: &mut Change<'_>,
    fingerprint: &Digest,
    user: Option<UserId>,
    note: &AuditNote,
) -> Outcome<Option<AdminCertificate>> {
    let Some(certificate) = certificate(change.connection, fingerprint).await? else { return Ok(None) };
    if let Some(user) = user
        && users::by_id(change.connection, user).await?.is_none()
    {
        return Ok(None);
    }
    if certificate.user == user {
        return Ok(Some(certificate));
    }
    let values = vec![user.map(|user| user.0).into(), rows::digest(fingerprint)];
    change.run("UPDATE admin_certificates SET user_id = ? WHERE fingerprint = ?", values).await?;
    change.mark(Set::Certificates);
    change.note(note);
    Ok(Some(AdminCertificate { user, ..certificate }))
}
