//! Installer tokens.

use std::net::IpAddr;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use time::OffsetDateTime;

use super::changes::Change;
use super::connections::Outcome;
use super::hosts;
use super::rows::{self, Columns};
use super::sealed;
use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::host::HostId;
use crate::model::people::UserId;
use crate::records::{Epoch, InstallToken, Redemption, Result};

const TABLE: &str = "install_tokens";

/// The newest first.
pub(super) async fn all(connection: &mut Conn) -> Outcome<Vec<InstallToken>> {
    select(connection, "ORDER BY created_at DESC", vec![]).await
}

pub(super) async fn changed(connection: &mut Conn, since: Epoch) -> Outcome<Vec<InstallToken>> {
    select(connection, "WHERE epoch > ? ORDER BY epoch", vec![since.0.into()]).await
}

pub(super) async fn by_digest(connection: &mut Conn, digest: &Digest) -> Outcome<Option<InstallToken>> {
    Ok(select(connection, "WHERE digest = ?", vec![rows::digest(digest)]).await?.pop())
}

/// What a registration is decided by, to spare questions.
pub(super) struct Known {
    /// Whose the token is, if there is one.
    pub host: Option<HostId>,
    /// How many hosts the owner has.
    pub owned: u64,
    pub owner_disabled: bool,
    /// Which data keys there are.
    pub keys: sealed::Known,
}

pub(super) async fn known(connection: &mut Conn, digest: &Digest, owner: Option<UserId>) -> Outcome<Known> {
    let statement = format!(
        "SELECT (SELECT host_id FROM install_tokens WHERE digest = ?), \
         (SELECT COUNT(*) FROM hosts WHERE owner = ? AND removed_at IS NULL), \
         (SELECT disabled FROM users WHERE id = ?), {}",
        sealed::KNOWN
    );
    let owner = owner.map(|owner| owner.0);
    let values = (rows::digest(digest), owner, owner);
    let row: Option<Row> = connection.exec_first(statement, values).await?;
    let mut columns = Columns::of(TABLE, row.ok_or_else(|| rows::corrupt(TABLE, "no answer"))?);
    let (host, owned) = (columns.optional_number()?.map(HostId), columns.number()?);
    let owner_disabled = columns.optional_number()?.is_some_and(|disabled| disabled != 0);
    Ok(Known { host, owned, owner_disabled, keys: sealed::Known::read(&mut columns)? })
}

/// By digest, from the first one after `after`.
pub(super) async fn page(connection: &mut Conn, after: Option<Digest>, limit: usize) -> Outcome<Vec<InstallToken>> {
    let (from, values) = match after {
        Some(after) => ("WHERE digest > ?", vec![rows::digest(&after), (limit as u64).into()]),
        None => ("", vec![(limit as u64).into()]),
    };
    select(connection, &format!("{from} ORDER BY digest LIMIT ?"), values).await
}

async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<InstallToken>> {
    let statement = format!(
        "SELECT digest, host_id, base_url, created_at, expires_at, redeemed_at, redeemed_from, revoked_at \
         FROM install_tokens {which}"
    );
    let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
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

pub(super) async fn insert(change: &mut Change<'_>, token: &InstallToken) -> Outcome<()> {
    let epoch = change.epoch();
    insert_all(change, &[token], epoch).await
}

pub(super) async fn insert_all(change: &mut Change<'_>, tokens: &[&InstallToken], epoch: Epoch) -> Outcome<()> {
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

pub(super) async fn revoke_pending(change: &mut Change<'_>, host: HostId, at: OffsetDateTime) -> Outcome<()> {
    let values = vec![rows::time(at), change.epoch().0.into(), host.0.into()];
    change
        .run(
            "UPDATE install_tokens SET revoked_at = ?, epoch = ? \
             WHERE host_id = ? AND redeemed_at IS NULL AND revoked_at IS NULL",
            values,
        )
        .await
}

pub(super) async fn redeem(
    change: &mut Change<'_>,
    digest: &Digest,
    key: &Digest,
    at: OffsetDateTime,
    from: IpAddr,
    note: &AuditNote,
) -> Outcome<Redemption> {
    let Some(token) = by_digest(change.connection, digest).await? else { return Ok(Redemption::Unknown) };
    let Some(host) = hosts::by_id(change.connection, token.host).await? else { return Ok(Redemption::Unknown) };
    if token.revoked_at.is_some() {
        return Ok(Redemption::Unknown);
    }
    if token.redeemed_at.is_some() {
        return Ok(Redemption::AlreadyUsed);
    }
    if token.is_over(at) {
        return Ok(Redemption::Expired);
    }
    if host.key_digest != *key {
        return Ok(Redemption::KeyChanged);
    }
    let from = from.to_canonical();
    let values = vec![rows::time(at), rows::address(Some(from)), change.epoch().0.into(), rows::digest(digest)];
    change
        .run("UPDATE install_tokens SET redeemed_at = ?, redeemed_from = ?, epoch = ? WHERE digest = ?", values)
        .await?;
    change.note(note);
    let token = InstallToken { redeemed_at: Some(rows::cut(at)), redeemed_from: Some(from), ..token };
    Ok(Redemption::Redeemed { host, token })
}

pub(super) async fn revoke(
    change: &mut Change<'_>,
    digest: &Digest,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<InstallToken>> {
    let found = by_digest(change.connection, digest).await?;
    let Some(token) = found.filter(InstallToken::is_pending) else { return Ok(None) };
    let values = vec![rows::time(at), change.epoch().0.into(), rows::digest(digest)];
    change.run("UPDATE install_tokens SET revoked_at = ?, epoch = ? WHERE digest = ?", values).await?;
    change.note(note);
    Ok(Some(InstallToken { revoked_at: Some(rows::cut(at)), ..token }))
}
