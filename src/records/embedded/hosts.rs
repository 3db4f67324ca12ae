//! Hosts, their installer tokens, and what their calls leave behind.

use std::net::IpAddr;

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::{self, Marked};
use super::tables::{hosts, people};
use super::{Embedded, transaction};
use crate::durable::Staged;
use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId};
use crate::model::people::UserId;
use crate::records::rules::taken;
use crate::records::{
    Host, HostChange, HostRecords, InstallToken, Owner, Redemption, Registration, RegistrationOutcome, Restoration,
    Result, Telemetry,
};
use crate::seal::Sealed;

#[async_trait]
impl HostRecords for Embedded {
    async fn host_register(&self, registration: &Registration, audit: &AuditNote) -> Result<Host> {
        self.change(|staged| register(staged, registration, audit)).await
    }

    async fn host_register_owned(
        &self,
        registration: &Registration,
        owner: &Owner,
        audit: &AuditNote,
    ) -> Result<RegistrationOutcome> {
        self.change(|staged| register_owned(staged, registration, owner, audit)).await
    }

    async fn host_remove(&self, id: HostId, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Host>> {
        self.change(|staged| remove(staged, id, None, at, audit)).await
    }

    async fn host_remove_owned(
        &self,
        id: HostId,
        owner: UserId,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        self.change(|staged| remove(staged, id, Some(owner), at, audit)).await
    }

    async fn host_restore(
        &self,
        id: HostId,
        removed_after: OffsetDateTime,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Restoration> {
        self.change(|staged| {
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
            let epoch = transaction::bump(staged)?;
            hosts::put(staged, &host, epoch)?;
            rows::put(staged, rows::host_name(&host.fqdn), &id)?;
            staged.remove(rows::removed_host(id));
            transaction::note(staged, note)?;
            Ok(Restoration::Restored(host))
        })
        .await
    }

    async fn host_list_removed(&self) -> Result<Vec<Host>> {
        self.read_much(|data| {
            let mut hosts = Vec::new();
            for row in data.scan(rows::REMOVED_HOST) {
                let id = rows::read_removed_host(&row?.0)?;
                let marked: Option<Marked<Host>> = rows::get(data, rows::host(id))?;
                // Skips a host that was restored after the index was read.
                hosts.extend(marked.map(|marked| marked.row).filter(|host| host.removed_at.is_some()));
            }
            hosts.sort_by_key(|host| std::cmp::Reverse((host.removed_at, host.id)));
            Ok(hosts)
        })
        .await
    }

    async fn host_purge_removed(&self, when: OffsetDateTime) -> Result<usize> {
        self.change(|staged| {
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
            let epoch = transaction::bump(staged)?;
            for host in &gone {
                hosts::put(staged, &host.purged(), epoch)?;
                staged.remove(rows::removed_host(host.id));
                staged.remove(rows::activity(host.id));
            }
            Ok(gone.len())
        })
        .await
    }

    async fn host_list(&self) -> Result<Vec<Host>> {
        self.read_much(|data| {
            let mut hosts = Vec::new();
            for row in data.scan(rows::HOST) {
                let (key, value) = row?;
                let host = rows::decode::<Marked<Host>>(&key, &value)?.row;
                if host.removed_at.is_none() {
                    hosts.push(host);
                }
            }
            hosts.sort_by(|a, b| (&a.fqdn, b.created_at).cmp(&(&b.fqdn, a.created_at)));
            // Drops a removed host if its successor of the same name was read too.
            hosts.dedup_by(|later, earlier| later.fqdn == earlier.fqdn);
            Ok(hosts)
        })
        .await
    }

    async fn host_fetch(&self, id: HostId) -> Result<Option<Host>> {
        self.read(|data| hosts::by_id(data, id)).await
    }

    async fn host_fetch_by_name(&self, fqdn: &Fqdn) -> Result<Option<Host>> {
        self.read(|data| hosts::by_name(data, fqdn)).await
    }

    async fn host_change(
        &self,
        id: HostId,
        change: &HostChange,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<Host>> {
        self.change(|staged| {
            let Some(mut host) = hosts::by_id(staged, id)? else { return Ok(None) };
            change.apply(&mut host, at);
            let epoch = transaction::bump(staged)?;
            hosts::put(staged, &host, epoch)?;
            transaction::note(staged, note)?;
            Ok(Some(host))
        })
        .await
    }

    async fn host_bind_ip(
        &self,
        id: HostId,
        key: &Digest,
        ip: IpAddr,
        ipv6_prefix: u8,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<Host>> {
        self.change(|staged| {
            let Some(mut host) = hosts::by_id(staged, id)? else { return Ok(None) };
            if !host.has_key(key) {
                return Ok(None);
            }
            if host.bind(ip, ipv6_prefix, at) {
                let epoch = transaction::bump(staged)?;
                hosts::put(staged, &host, epoch)?;
                transaction::note(staged, note)?;
            }
            Ok(Some(host))
        })
        .await
    }

    async fn host_set_agent_identity(
        &self,
        id: HostId,
        key: &Digest,
        identity: &Sealed,
        note: &AuditNote,
    ) -> Result<bool> {
        self.change(|staged| {
            let Some(host) = hosts::by_id(staged, id)?.filter(|host| host.key_digest == *key) else { return Ok(false) };
            if let Some(host) = host.with_agent_identity(identity) {
                let epoch = transaction::bump(staged)?;
                hosts::put(staged, &host, epoch)?;
                transaction::note(staged, note)?;
            }
            Ok(true)
        })
        .await
    }

    async fn host_activity(&self, id: HostId) -> Result<HostActivity> {
        self.read(|data| Ok(rows::get(data, rows::activity(id))?.unwrap_or_default())).await
    }

    async fn installer_redeem(
        &self,
        digest: &Digest,
        key: &Digest,
        at: OffsetDateTime,
        from: IpAddr,
        note: &AuditNote,
    ) -> Result<Redemption> {
        self.change(|staged| {
            let marked: Option<Marked<InstallToken>> = rows::get(staged, rows::token(digest))?;
            let Some(mut token) = marked.map(|marked| marked.row) else { return Ok(Redemption::Unknown) };
            let Some(host) = hosts::by_id(staged, token.host)? else { return Ok(Redemption::Unknown) };
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
            let epoch = transaction::bump(staged)?;
            hosts::put_token(staged, token.clone(), epoch)?;
            transaction::note(staged, note)?;
            Ok(Redemption::Redeemed { host, token })
        })
        .await
    }

    async fn installer_list(&self) -> Result<Vec<InstallToken>> {
        self.read_much(|data| {
            let rows = rows::all::<Marked<InstallToken>>(data, rows::TOKEN)?;
            let mut tokens: Vec<_> = rows.into_iter().map(|marked| marked.row).collect();
            tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at));
            Ok(tokens)
        })
        .await
    }

    async fn installer_revoke(
        &self,
        digest: &Digest,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<InstallToken>> {
        self.change(|staged| {
            let marked: Option<Marked<InstallToken>> = rows::get(staged, rows::token(digest))?;
            let Some(mut token) = marked.map(|marked| marked.row).filter(InstallToken::is_pending) else {
                return Ok(None);
            };
            token.revoked_at = Some(at);
            let epoch = transaction::bump(staged)?;
            hosts::put_token(staged, token.clone(), epoch)?;
            transaction::note(staged, note)?;
            Ok(Some(token))
        })
        .await
    }

    async fn telemetry_append(&self, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()> {
        self.change(|staged| {
            let applied: Option<u64> = rows::get(staged, rows::node(node))?;
            if applied.is_some_and(|applied| seq <= applied) {
                return Ok(());
            }
            rows::put(staged, rows::node(node), &seq)?;
            for telemetry in batch {
                match telemetry {
                    // A removed host keeps no activity.
                    Telemetry::Noted { note } => transaction::note(staged, note)?,
                    Telemetry::Seen { host, .. } if !hosts::exists(staged, *host)? => {}
                    Telemetry::Seen { host, .. } => {
                        let mut activity: HostActivity = rows::get(staged, rows::activity(*host))?.unwrap_or_default();
                        telemetry.apply_to(&mut activity);
                        rows::put(staged, rows::activity(*host), &activity)?;
                    }
                }
            }
            Ok(())
        })
        .await
    }
}

pub(super) fn register(staged: &mut Staged<'_>, registration: &Registration, note: &AuditNote) -> Result<Host> {
    if let Some(host) = registered_before(staged, registration)? {
        return Ok(host);
    }
    let present = hosts::by_name(staged, &registration.fqdn)?;
    put_registered(staged, registration, present, None, note)
}

pub(super) fn register_owned(
    staged: &mut Staged<'_>,
    registration: &Registration,
    owner: &Owner,
    note: &AuditNote,
) -> Result<RegistrationOutcome> {
    let of_owner = |host: Host| RegistrationOutcome::Host(Box::new(host));
    if let Some(host) = registered_before(staged, registration)? {
        return Ok(if host.owner == Some(owner.user) { of_owner(host) } else { RegistrationOutcome::NotTheirs });
    }
    let present = hosts::by_name(staged, &registration.fqdn)?;
    let mut count = 0;
    for host in staged.scan(rows::owned_hosts(owner.user)) {
        host?;
        count += 1;
    }
    let is_disabled = people::user(staged, owner.user)?.is_some_and(|user| user.disabled);
    if let Some(refused) = owner.refused(is_disabled, present.as_ref(), count) {
        return Ok(refused);
    }
    put_registered(staged, registration, present, Some(owner.user), note).map(of_owner)
}

/// The host, if this call was made before. Repeating it could revive a spent token or a replaced key.
fn registered_before(staged: &Staged<'_>, registration: &Registration) -> Result<Option<Host>> {
    let token: Option<Marked<InstallToken>> = rows::get(staged, rows::token(&registration.token.digest))?;
    let Some(token) = token else { return Ok(None) };
    hosts::by_id(staged, token.row.host)?.map(Some).ok_or_else(|| taken("installer token"))
}

/// Registers over `present`, the host with the name, or makes a new host. `owner` then owns it.
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
    let epoch = transaction::bump(staged)?;
    hosts::put(staged, &host, epoch)?;
    hosts::revoke_pending_tokens(staged, host.id, registration.at, epoch)?;
    hosts::put_token(staged, InstallToken::issued(registration, &host), epoch)?;
    transaction::note(staged, note)?;
    Ok(host)
}

/// With `owner`: removes the host only if the user owns it.
pub(super) fn remove(
    staged: &mut Staged<'_>,
    id: HostId,
    owner: Option<UserId>,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Option<Host>> {
    let found = hosts::by_id(staged, id)?.filter(|host| owner.is_none() || host.owner == owner);
    let Some(mut host) = found else { return Ok(None) };
    host.removed_at = Some(at);
    host.updated_at = at;
    let epoch = transaction::bump(staged)?;
    hosts::put(staged, &host, epoch)?;
    staged.remove(rows::host_name(&host.fqdn));
    // Its key and its activity stay, so that it can be restored.
    staged.insert(rows::removed_host(id), "");
    hosts::revoke_pending_tokens(staged, id, at, epoch)?;
    transaction::note(staged, note)?;
    Ok(Some(host))
}
