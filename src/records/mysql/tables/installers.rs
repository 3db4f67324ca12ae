//! Rows of installer tokens.

use mysql_async::{Conn, Row, Value};
use time::OffsetDateTime;

use crate::model::digest::Digest;
use crate::model::host::HostId;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{Epoch, InstallToken, Result};

pub const TABLE: &str = "install_tokens";

pub async fn changed(connection: &mut Conn, since: Epoch) -> Outcome<Vec<InstallToken>> {
    select(connection, "WHERE epoch > ? ORDER BY epoch", vec![since.0.into()]).await
}

pub async fn by_digest(connection: &mut Conn, digest: &Digest) -> Outcome<Option<InstallToken>> {
    Ok(select(connection, "WHERE digest = ?", vec![rows::digest(digest)]).await?.pop())
}

/// Tokens in the order of their digests, after `after`.
pub async fn page(connection: &mut Conn, after: Option<Digest>, limit: usize) -> Outcome<Vec<InstallToken>> {
    let (page, values) = rows::page_after("digest", after.map(|after| rows::digest(&after)), limit);
    select(connection, &page, values).await
}

pub async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<InstallToken>> {
    let statement = format!(
        "SELECT digest, host_id, base_url, created_at, expires_at, redeemed_at, redeemed_from, revoked_at \
         FROM install_tokens {which}"
    );
    rows::read_all(connection, statement, values, read).await
}

fn read(row: Row) -> Result<InstallToken> {
    let mut columns = Columns::of(TABLE, row);
    Ok(InstallToken {
        digest: columns.digest()?,
        host: HostId(columns.number()?),
        base_url: columns.text()?,
        created_at: columns.time()?,
        expires_at: columns.time()?,
        redeemed_at: columns.optional_time()?,
        redeemed_from: columns.optional_parsed()?,
        revoked_at: columns.optional_time()?,
    })
}

pub async fn insert(change: &mut Change<'_>, token: &InstallToken) -> Outcome<()> {
    let epoch = change.epoch();
    insert_all(change, &[token], epoch).await
}

pub async fn insert_all(change: &mut Change<'_>, tokens: &[&InstallToken], epoch: Epoch) -> Outcome<()> {
    let written = |token: &&InstallToken| -> [Value; 9] {
        [
            rows::digest(&token.digest),
            token.host.0.into(),
            token.base_url.as_str().into(),
            rows::time(token.created_at),
            rows::time(token.expires_at),
            rows::optional_time(token.redeemed_at),
            rows::address(token.redeemed_from),
            rows::optional_time(token.revoked_at),
            epoch.0.into(),
        ]
    };
    let statement = format!(
        "INSERT INTO install_tokens (digest, host_id, base_url, created_at, expires_at, redeemed_at, redeemed_from, \
         revoked_at, epoch) VALUES {}",
        rows::places(tokens.len(), 9)
    );
    change.run(&statement, tokens.iter().flat_map(written).collect()).await
}

pub async fn revoke_pending(change: &mut Change<'_>, host: HostId, at: OffsetDateTime) -> Outcome<()> {
    let values = vec![rows::time(at), change.epoch().0.into(), host.0.into()];
    change
        .run(
            "UPDATE install_tokens SET revoked_at = ?, epoch = ? \
             WHERE host_id = ? AND redeemed_at IS NULL AND revoked_at IS NULL",
            values,
        )
        .await
}
