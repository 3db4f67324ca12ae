//! Rows of admin certificates.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value};

use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{AdminCertificate, Result};

const SELECT: &str = "SELECT fingerprint, name, serial, issued_at, expires_at, revoked_at, authority, user_id \
                           FROM admin_certificates";

/// In the order of issue.
pub async fn all(connection: &mut Conn) -> Outcome<Vec<AdminCertificate>> {
    let rows: Vec<Row> = connection.exec(format!("{SELECT} ORDER BY issued_at, name, serial"), ()).await?;
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}

pub async fn fetch(connection: &mut Conn, fingerprint: &Digest) -> Outcome<Option<AdminCertificate>> {
    let statement = format!("{SELECT} WHERE fingerprint = ?");
    let row: Option<Row> = connection.exec_first(statement, (rows::digest(fingerprint),)).await?;
    Ok(row.map(read).transpose()?)
}

fn read(row: Row) -> Result<AdminCertificate> {
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

pub async fn insert(change: &mut Change<'_>, certificate: &AdminCertificate) -> Outcome<()> {
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
