//! Hosts and their installer tokens.

use std::net::IpAddr;

use time::OffsetDateTime;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostId};
use crate::model::people::UserId;
use crate::records::rules::taken;
use crate::records::{
    Epoch, Host, HostChange, InstallToken, Owner, Redemption, Registered, Registration, Restoration, Result,
};
use crate::seal::{Place, Sealed};

use super::changes::{self, Kind};
use super::rows::{self, Marked, Source};
use super::{audit, sealed, users};

pub(super) fn register(staged: &mut Staged<'_>, registration: &Registration, note: &AuditNote) -> Result<Host> {
    if let Some(host) = registered_before(staged, registration)? {
        return Ok(host);
    }
    let present = by_name(staged, &registration.fqdn)?;
    put_registered(staged, registration, present, None, note)
}

pub(super) fn register_owned(
    staged: &mut Staged<'_>,
    registration: &Registration,
    owner: &Owner,
    note: &AuditNote,
) -> Result<Registered> {
    let of_owner = |host: Host| Registered::Host(Box::new(host));
    if let Some(host) = registered_before(staged, registration)? {
        return Ok(if host.owner == Some(owner.user) { of_owner(host) } else { Registered::NotTheirs });
    }
    let present = by_name(staged, &registration.fqdn)?;
    let mut count = 0;
    for host in staged.scan(rows::owned_hosts(owner.user)) {
        host?;
        count += 1;
    }
    let is_disabled = users::by_id(staged, owner.user)?.is_some_and(|user| user.disabled);
    if let Some(refused) = owner.refused(is_disabled, present.as_ref(), count) {
        return Ok(refused);
    }
    put_registered(staged, registration, present, Some(owner.user), note).map(of_owner)
}

/// The host, if this very call was done before. Doing it again could bring a spent token, or a replaced key, back to life.
fn registered_before(staged: &Staged<'_>, registration: &Registration) -> Result<Option<Host>> {
    let token: Option<Marked<InstallToken>> = rows::get(staged, rows::token(&registration.token.digest))?;
    let Some(token) = token else { return Ok(None) };
    by_id(staged, token.row.host)?.map(Some).ok_or_else(|| taken("installer token"))
}

/// Over the host that has the name, if there is one; it is the owner's from here on.
fn put_registered(
    staged: &mut Staged<'_>,
    registration: &Registration,
    present: Option<Host>,
    owner: Option<UserId>,
    note: &AuditNote,
) -> Result<Host> {
    let note = &registration.noted(present.as_ref(), owner, note);
    let host = match present {
        Some(present) if present.id != registration.id => return Ok(present),
        Some(present) => present.given_new_key(registration, owner),
        None if staged.get(rows::host(registration.id))?.is_some() => return Err(taken("host id")),
        None => {
            rows::put(staged, rows::host_name(&registration.fqdn), &registration.id)?;
            Host::registered(registration, owner)
        }
    };
    let epoch = changes::bump(staged)?;
    put(staged, &host, epoch)?;
    revoke_pending_tokens(staged, host.id, registration.at, epoch)?;
    put_token(staged, InstallToken::issued(registration, &host), epoch)?;
    audit::append(staged, note)?;
    Ok(host)
}

/// `owner`: only if it is theirs.
pub(super) fn remove(
    staged: &mut Staged<'_>,
    id: HostId,
    owner: Option<UserId>,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Option<Host>> {
    let found = by_id(staged, id)?.filter(|host| owner.is_none() || host.owner == owner);
    let Some(mut host) = found else { return Ok(None) };
    host.removed_at = Some(at);
    host.updated_at = at;
    let epoch = changes::bump(staged)?;
    put(staged, &host, epoch)?;
    staged.remove(rows::host_name(&host.fqdn));
    // Its key and its activity stay for a while: it may be brought back.
    staged.insert(rows::removed_host(id), "");
    revoke_pending_tokens(staged, id, at, epoch)?;
    audit::append(staged, note)?;
    Ok(Some(host))
}

pub(super) fn restore(
    staged: &mut Staged<'_>,
    id: HostId,
    removed_after: OffsetDateTime,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Restoration> {
    let marked: Option<Marked<Host>> = rows::get(staged, rows::host(id))?;
    let Some(mut host) = marked.map(|marked| marked.row) else { return Ok(Restoration::Unknown) };
    if !host.can_be_restored(removed_after) {
        return Ok(Restoration::Unknown);
    }
    if staged.get(rows::host_name(&host.fqdn))?.is_some() {
        return Ok(Restoration::NameTaken);
    }
    host.removed_at = None;
    host.updated_at = at;
    let epoch = changes::bump(staged)?;
    put(staged, &host, epoch)?;
    rows::put(staged, rows::host_name(&host.fqdn), &id)?;
    staged.remove(rows::removed_host(id));
    audit::append(staged, note)?;
    Ok(Restoration::Restored(host))
}

/// The hosts of a user, those included whose removal can be undone.
pub(super) fn of_user(staged: &Staged<'_>, user: UserId) -> Result<Vec<Host>> {
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

/// The last one first.
pub(super) fn removed(data: &Snapshot) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    for row in data.scan(rows::REMOVED_HOST) {
        let id = rows::read_removed_host(&row?.0)?;
        let marked: Option<Marked<Host>> = rows::get(data, rows::host(id))?;
        // Brought back since the index was read.
        hosts.extend(marked.map(|marked| marked.row).filter(|host| host.removed_at.is_some()));
    }
    hosts.sort_by_key(|host| std::cmp::Reverse((host.removed_at, host.id)));
    Ok(hosts)
}

pub(super) fn purge_removed(staged: &mut Staged<'_>, when: OffsetDateTime) -> Result<usize> {
    let rows: Vec<_> = staged.scan(rows::REMOVED_HOST).collect::<std::result::Result<_, _>>()?;
    let mut gone = Vec::new();
    for (key, _) in rows {
        let id = rows::read_removed_host(&key)?;
        let marked: Marked<Host> = rows::get(staged, rows::host(id))?.ok_or_else(|| rows::missing("host"))?;
        if marked.row.removed_at.is_some_and(|removed| removed < when) {
            gone.push(marked.row);
        }
    }
    if gone.is_empty() {
        return Ok(0);
    }
    let epoch = changes::bump(staged)?;
    for host in &gone {
        put(staged, &host.purged(), epoch)?;
        staged.remove(rows::removed_host(host.id));
        staged.remove(rows::activity(host.id));
    }
    Ok(gone.len())
}

pub(super) fn all(data: &Snapshot) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    for row in data.scan(rows::HOST) {
        let (key, value) = row?;
        let host = rows::decode::<Marked<Host>>(&key, &value)?.row;
        if host.removed_at.is_none() {
            hosts.push(host);
        }
    }
    hosts.sort_by(|a, b| (&a.fqdn, b.created_at).cmp(&(&b.fqdn, a.created_at)));
    // The rows are read while others change them: a host that was removed, and its successor of the same name.
    hosts.dedup_by(|later, earlier| later.fqdn == earlier.fqdn);
    Ok(hosts)
}

pub(super) fn by_id(source: &impl Source, id: HostId) -> Result<Option<Host>> {
    let marked: Option<Marked<Host>> = rows::get(source, rows::host(id))?;
    Ok(marked.map(|marked| marked.row).filter(|host| host.removed_at.is_none()))
}

/// [`by_id`] for whoever wants to know no more: the row is not taken apart.
pub(super) fn is_there(source: &impl Source, id: HostId) -> Result<bool> {
    #[derive(serde::Deserialize)]
    struct Removal {
        removed_at: Option<serde::de::IgnoredAny>,
    }
    let marked: Option<Marked<Removal>> = rows::get(source, rows::host(id))?;
    Ok(marked.is_some_and(|marked| marked.row.removed_at.is_none()))
}

pub(super) fn by_name(source: &impl Source, fqdn: &Fqdn) -> Result<Option<Host>> {
    match rows::get(source, rows::host_name(fqdn))? {
        Some(id) => by_id(source, id)?.map(Some).ok_or_else(|| rows::missing("host")),
        None => Ok(None),
    }
}

pub(super) fn change(
    staged: &mut Staged<'_>,
    id: HostId,
    change: &HostChange,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Option<Host>> {
    let Some(mut host) = by_id(staged, id)? else { return Ok(None) };
    change.apply(&mut host, at);
    let epoch = changes::bump(staged)?;
    put(staged, &host, epoch)?;
    audit::append(staged, note)?;
    Ok(Some(host))
}

pub(super) fn bind_ip(
    staged: &mut Staged<'_>,
    id: HostId,
    key: &Digest,
    ip: IpAddr,
    ipv6_prefix: u8,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Option<Host>> {
    let Some(mut host) = by_id(staged, id)? else { return Ok(None) };
    if !host.has_key(key) {
        return Ok(None);
    }
    if host.bind(ip, ipv6_prefix, at) {
        let epoch = changes::bump(staged)?;
        put(staged, &host, epoch)?;
        audit::append(staged, note)?;
    }
    Ok(Some(host))
}

pub(super) fn keep_agent_identity(
    staged: &mut Staged<'_>,
    id: HostId,
    key: &Digest,
    identity: &Sealed,
    note: &AuditNote,
) -> Result<bool> {
    let Some(host) = by_id(staged, id)?.filter(|host| host.key_digest == *key) else { return Ok(false) };
    if let Some(host) = host.with_agent_identity(identity) {
        let epoch = changes::bump(staged)?;
        put(staged, &host, epoch)?;
        audit::append(staged, note)?;
    }
    Ok(true)
}

pub(super) fn redeem(
    staged: &mut Staged<'_>,
    digest: &Digest,
    key: &Digest,
    at: OffsetDateTime,
    from: IpAddr,
    note: &AuditNote,
) -> Result<Redemption> {
    let marked: Option<Marked<InstallToken>> = rows::get(staged, rows::token(digest))?;
    let Some(mut token) = marked.map(|marked| marked.row) else { return Ok(Redemption::Unknown) };
    let Some(host) = by_id(staged, token.host)? else { return Ok(Redemption::Unknown) };
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
    token.redeemed_at = Some(at);
    token.redeemed_from = Some(from.to_canonical());
    let epoch = changes::bump(staged)?;
    put_token(staged, token.clone(), epoch)?;
    audit::append(staged, note)?;
    Ok(Redemption::Redeemed { host, token })
}

/// The newest first.
pub(super) fn tokens(data: &Snapshot) -> Result<Vec<InstallToken>> {
    let rows = rows::all::<Marked<InstallToken>>(data, rows::TOKEN)?;
    let mut tokens: Vec<_> = rows.into_iter().map(|marked| marked.row).collect();
    tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at));
    Ok(tokens)
}

pub(super) fn revoke_token(
    staged: &mut Staged<'_>,
    digest: &Digest,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Option<InstallToken>> {
    let marked: Option<Marked<InstallToken>> = rows::get(staged, rows::token(digest))?;
    let Some(mut token) = marked.map(|marked| marked.row).filter(InstallToken::is_pending) else { return Ok(None) };
    token.revoked_at = Some(at);
    let epoch = changes::bump(staged)?;
    put_token(staged, token.clone(), epoch)?;
    audit::append(staged, note)?;
    Ok(Some(token))
}

/// Writes a host, its mark, and the indexes of its sealed values and its owner.
pub(super) fn put(staged: &mut Staged<'_>, host: &Host, epoch: Epoch) -> Result<()> {
    let old: Option<Marked<Host>> = rows::get(staged, rows::host(host.id))?;
    let place = Place::new("hosts", "api_key", host.id);
    sealed::index(staged, &place, old.as_ref().map(|old| &old.row.api_key), Some(&host.api_key));
    let place = Place::new("hosts", "agent_identity", host.id);
    let had = old.as_ref().and_then(|old| old.row.agent_identity.as_ref());
    sealed::index(staged, &place, had, host.agent_identity.as_ref());
    let owned = |host: &Host| host.owner.filter(|_| host.removed_at.is_none());
    if let Some(owner) = old.as_ref().and_then(|old| owned(&old.row)) {
        staged.remove(rows::owned_host(owner, host.id));
    }
    if let Some(owner) = owned(host) {
        staged.insert(rows::owned_host(owner, host.id), "");
    }
    changes::mark(staged, Kind::Host, &host.id.0.to_be_bytes(), old.map(|old| old.epoch), epoch);
    rows::put(staged, rows::host(host.id), &Marked { epoch, row: host })
}

pub(super) fn put_token(staged: &mut Staged<'_>, token: InstallToken, epoch: Epoch) -> Result<()> {
    let key = rows::token(&token.digest);
    let old: Option<Marked<InstallToken>> = rows::get(staged, &key)?;
    changes::mark(staged, Kind::InstallToken, token.digest.as_bytes(), old.map(|old| old.epoch), epoch);
    let pending = rows::pending_token(token.host, &token.digest);
    if token.is_pending() {
        staged.insert(pending, "");
    } else {
        staged.remove(pending);
    }
    rows::put(staged, key, &Marked { epoch, row: token })
}

fn revoke_pending_tokens(staged: &mut Staged<'_>, host: HostId, at: OffsetDateTime, epoch: Epoch) -> Result<()> {
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
