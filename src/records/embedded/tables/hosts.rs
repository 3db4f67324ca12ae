//! Rows of hosts and installer tokens, with their indexes.

use time::OffsetDateTime;

use super::sealed_index;
use crate::durable::Staged;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostId};
use crate::model::people::UserId;
use crate::records::embedded::rows::{self, Marked, RowSource};
use crate::records::embedded::transaction::{self, ChangeKind};
use crate::records::{Epoch, Host, InstallToken, Result};
use crate::seal::Place;

/// The hosts of a user, restorable ones included.
pub fn of_user(staged: &Staged<'_>, user: UserId) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    let prefix = rows::owned_hosts(user);
    for row in staged.scan(&prefix) {
        let id = rows::read_owned_host(&prefix, &row?.0)?;
        hosts.push(by_id(staged, id)?.ok_or_else(|| rows::missing("host"))?);
    }
    for row in staged.scan(rows::REMOVED_HOST) {
        let id = rows::read_removed_host(&row?.0)?;
        let marked: Marked<Host> = rows::get(staged, rows::host(id))?.ok_or_else(|| rows::missing("host"))?;
        hosts.extend(Some(marked.row).filter(|host| host.owner == Some(user)));
    }
    Ok(hosts)
}

pub fn by_id(source: &impl RowSource, id: HostId) -> Result<Option<Host>> {
    let marked: Option<Marked<Host>> = rows::get(source, rows::host(id))?;
    Ok(marked.map(|marked| marked.row).filter(|host| host.removed_at.is_none()))
}

/// [`by_id`] without decoding the whole row.
pub fn exists(source: &impl RowSource, id: HostId) -> Result<bool> {
    #[derive(serde::Deserialize)]
    struct Removal {
        removed_at: Option<serde::de::IgnoredAny>,
    }
    let marked: Option<Marked<Removal>> = rows::get(source, rows::host(id))?;
    Ok(marked.is_some_and(|marked| marked.row.removed_at.is_none()))
}

pub fn by_name(source: &impl RowSource, fqdn: &Fqdn) -> Result<Option<Host>> {
    match rows::get(source, rows::host_name(fqdn))? {
        Some(id) => by_id(source, id)?.map(Some).ok_or_else(|| rows::missing("host")),
        None => Ok(None),
    }
}

/// Writes a host, its mark, and the indexes of its sealed values and its owner.
pub fn put(staged: &mut Staged<'_>, host: &Host, epoch: Epoch) -> Result<()> {
    let old: Option<Marked<Host>> = rows::get(staged, rows::host(host.id))?;
    let place = Place::new("hosts", "api_key", host.id);
    sealed_index::update(staged, &place, old.as_ref().map(|old| &old.row.api_key), Some(&host.api_key));
    let place = Place::new("hosts", "agent_identity", host.id);
    let had = old.as_ref().and_then(|old| old.row.agent_identity.as_ref());
    sealed_index::update(staged, &place, had, host.agent_identity.as_ref());
    let owned = |host: &Host| host.owner.filter(|_| host.removed_at.is_none());
    if let Some(owner) = old.as_ref().and_then(|old| owned(&old.row)) {
        staged.remove(rows::owned_host(owner, host.id));
    }
    if let Some(owner) = owned(host) {
        staged.insert(rows::owned_host(owner, host.id), "");
    }
    transaction::mark(staged, ChangeKind::Host, &host.id.0.to_be_bytes(), old.map(|old| old.epoch), epoch);
    rows::put(staged, rows::host(host.id), &Marked { epoch, row: host })
}

pub fn put_token(staged: &mut Staged<'_>, token: InstallToken, epoch: Epoch) -> Result<()> {
    let key = rows::token(&token.digest);
    let old: Option<Marked<InstallToken>> = rows::get(staged, &key)?;
    transaction::mark(staged, ChangeKind::InstallToken, token.digest.as_bytes(), old.map(|old| old.epoch), epoch);
    let pending = rows::pending_token(token.host, &token.digest);
    if token.is_pending() {
        staged.insert(pending, "");
    } else {
        staged.remove(pending);
    }
    rows::put(staged, key, &Marked { epoch, row: token })
}

pub fn revoke_pending_tokens(staged: &mut Staged<'_>, host: HostId, at: OffsetDateTime, epoch: Epoch) -> Result<()> {
    let prefix = rows::pending_tokens(host);
    let pending: Vec<_> = staged.scan(&prefix).collect::<std::result::Result<_, _>>()?;
    for (key, _) in pending {
        let digest = key.get(prefix.len()..).and_then(|digest| <[u8; 32]>::try_from(digest).ok());
        let digest =
            digest.map(Digest::from_bytes).ok_or_else(|| rows::corrupt("pending-token", "its key is wrong"))?;
        let marked: Option<Marked<InstallToken>> = rows::get(staged, rows::token(&digest))?;
        let mut token = marked.ok_or_else(|| rows::missing("token"))?.row;
        token.revoked_at = Some(at);
        put_token(staged, token, epoch)?;
    }
    Ok(())
}
