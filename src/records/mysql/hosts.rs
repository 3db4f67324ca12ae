//! Hosts, their installer tokens, and what their calls leave behind.

use std::net::IpAddr;

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::connections::Outcome;
use super::rows::{self, Columns};
use super::tables::sealing::{self, KeyIds};
use super::tables::{hosts, installers};
use super::transaction::Change;
use super::{MySql, telemetry};
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
impl HostRecords for MySql {
    async fn host_register(&self, registration: &Registration, audit: &AuditNote) -> Result<Host> {
        change!(self, |change| register(change, registration, audit).await)
    }

    async fn host_register_owned(
        &self,
        registration: &Registration,
        owner: &Owner,
        audit: &AuditNote,
    ) -> Result<RegistrationOutcome> {
        change!(self, |change| register_owned(change, registration, owner, audit).await)
    }

    async fn host_remove(&self, id: HostId, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Host>> {
        change!(self, |change| remove(change, id, None, at, audit).await)
    }

    async fn host_remove_owned(
        &self,
        id: HostId,
        owner: UserId,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        change!(self, |change| remove(change, id, Some(owner), at, audit).await)
    }

    async fn host_restore(
        &self,
        id: HostId,
        removed_after: OffsetDateTime,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Restoration> {
        change!(self, |change| {
            let found = hosts::fetch_any(change.connection, id).await?;
            let Some(mut host) = found.filter(|host| host.can_be_restored(removed_after)) else {
                return Ok(Restoration::Unknown);
            };
            if hosts::by_name(change.connection, &host.fqdn).await?.is_some() {
                return Ok(Restoration::NameTaken);
            }
            host.removed_at = None;
            host.updated_at = rows::truncated(at);
            hosts::update(change, &host).await?;
            change.note(note);
            Ok(Restoration::Restored(host))
        })
    }

    async fn host_list_removed(&self) -> Result<Vec<Host>> {
        read!(self, |connection| {
            let which = "WHERE removed_at IS NOT NULL AND api_key <> '' ORDER BY removed_at DESC, id DESC";
            hosts::select(connection, which, vec![]).await
        })
    }

    async fn host_purge_removed(&self, when: OffsetDateTime) -> Result<usize> {
        change!(self, |change| {
            let which = "WHERE removed_at < ? AND api_key <> ''";
            let gone = hosts::select(change.connection, which, vec![rows::time(when)]).await?;
            for host in &gone {
                hosts::update(change, &host.purged()).await?;
                let id = || vec![host.id.0.into()];
                change.run("DELETE FROM host_auth_digests WHERE host_id = ?", id()).await?;
                change
            .run(
                "UPDATE host_auth_states SET api_calls = 0, last_seen = NULL, last_refresh = NULL, client_version = NULL, \
                 wrapper_version = NULL, wrapper_fetched_at = NULL WHERE host_id = ?",
                id(),
            )
            .await?;
            }
            Ok(gone.len())
        })
    }

    async fn host_list(&self) -> Result<Vec<Host>> {
        read!(self, |connection| hosts::select(connection, "WHERE live_fqdn IS NOT NULL ORDER BY live_fqdn", vec![])
            .await)
    }

    async fn host_fetch(&self, id: HostId) -> Result<Option<Host>> {
        read!(self, |connection| hosts::by_id(connection, id).await)
    }

    async fn host_fetch_by_name(&self, fqdn: &Fqdn) -> Result<Option<Host>> {
        read!(self, |connection| hosts::by_name(connection, fqdn).await)
    }

    async fn host_change(
        &self,
        id: HostId,
        wanted: &HostChange,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<Host>> {
        change!(self, |change| {
            let Some(mut host) = hosts::by_id(change.connection, id).await? else { return Ok(None) };
            wanted.apply(&mut host, at);
            hosts::update(change, &host).await?;
            if wanted.allowed_networks.is_some() {
                hosts::put_networks(change, &host).await?;
            }
            change.note(note);
            host.truncate_times();
            Ok(Some(host))
        })
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
        change!(self, |change| {
            let Some(mut host) = hosts::by_id(change.connection, id).await? else { return Ok(None) };
            if !host.has_key(key) {
                return Ok(None);
            }
            if host.bind(ip, ipv6_prefix, at) {
                hosts::update(change, &host).await?;
                change.note(note);
            }
            host.truncate_times();
            Ok(Some(host))
        })
    }

    async fn host_set_agent_identity(
        &self,
        id: HostId,
        key: &Digest,
        identity: &Sealed,
        note: &AuditNote,
    ) -> Result<bool> {
        change!(self, |change| {
            let host = hosts::by_id(change.connection, id).await?.filter(|host| host.key_digest == *key);
            let Some(host) = host else { return Ok(false) };
            if let Some(host) = host.with_agent_identity(identity) {
                sealing::check(change, [identity]).await?;
                hosts::update(change, &host).await?;
                change.note(note);
            }
            Ok(true)
        })
    }

    async fn host_activity(&self, id: HostId) -> Result<HostActivity> {
        read!(self, |connection| telemetry::activity(connection, id).await)
    }

    async fn installer_redeem(
        &self,
        digest: &Digest,
        key: &Digest,
        at: OffsetDateTime,
        from: IpAddr,
        note: &AuditNote,
    ) -> Result<Redemption> {
        change!(self, |change| {
            let Some(token) = installers::by_digest(change.connection, digest).await? else {
                return Ok(Redemption::Unknown);
            };
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
            let token = InstallToken { redeemed_at: Some(rows::truncated(at)), redeemed_from: Some(from), ..token };
            Ok(Redemption::Redeemed { host, token })
        })
    }

    async fn installer_list(&self) -> Result<Vec<InstallToken>> {
        read!(self, |connection| installers::select(connection, "ORDER BY created_at DESC", vec![]).await)
    }

    async fn installer_revoke(
        &self,
        digest: &Digest,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<InstallToken>> {
        change!(self, |change| {
            let found = installers::by_digest(change.connection, digest).await?;
            let Some(token) = found.filter(InstallToken::is_pending) else { return Ok(None) };
            let values = vec![rows::time(at), change.epoch().0.into(), rows::digest(digest)];
            change.run("UPDATE install_tokens SET revoked_at = ?, epoch = ? WHERE digest = ?", values).await?;
            change.note(note);
            Ok(Some(InstallToken { revoked_at: Some(rows::truncated(at)), ..token }))
        })
    }

    async fn telemetry_append(&self, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()> {
        if telemetry::is_noted(batch) {
            return change!(self, |change| telemetry::append(change, node, seq, batch).await);
        }
        transaction!(self, self.connections.deadline(), |connection| {
            telemetry::append_apart(connection, node, seq, batch).await
        })
    }
}

/// The data for deciding a registration, read by one statement.
struct RegistrationState {
    /// The host of the token, if the token is known.
    pub host: Option<HostId>,
    /// The number of hosts that the owner has.
    pub owned: u64,
    pub owner_disabled: bool,
    pub keys: KeyIds,
}

async fn registration_state(
    connection: &mut Conn,
    digest: &Digest,
    owner: Option<UserId>,
) -> Outcome<RegistrationState> {
    let statement = format!(
        "SELECT (SELECT host_id FROM install_tokens WHERE digest = ?), \
         (SELECT COUNT(*) FROM hosts WHERE owner = ? AND removed_at IS NULL), \
         (SELECT disabled FROM users WHERE id = ?), {}",
        sealing::KEY_IDS
    );
    let owner = owner.map(|owner| owner.0);
    let values = (rows::digest(digest), owner, owner);
    let row: Option<Row> = connection.exec_first(statement, values).await?;
    let mut columns = Columns::of(installers::TABLE, row.ok_or_else(|| rows::corrupt(installers::TABLE, "no answer"))?);
    let (host, owned) = (columns.optional_number()?.map(HostId), columns.number()?);
    let owner_disabled = columns.optional_number()?.is_some_and(|disabled| disabled != 0);
    Ok(RegistrationState { host, owned, owner_disabled, keys: KeyIds::read(&mut columns)? })
}

pub(super) async fn register(change: &mut Change<'_>, registration: &Registration, note: &AuditNote) -> Outcome<Host> {
    let known = registration_state(change.connection, &registration.token.digest, None).await?;
    if let Some(host) = known.host {
        return registered_before(change, host).await;
    }
    known.keys.check([&registration.api_key])?;
    let present = of_name_or_id(change, registration).await?;
    put_registered(change, registration, present, None, note).await
}

pub(super) async fn register_owned(
    change: &mut Change<'_>,
    registration: &Registration,
    owner: &Owner,
    note: &AuditNote,
) -> Outcome<RegistrationOutcome> {
    let of_owner = |host: Host| RegistrationOutcome::Host(Box::new(host));
    let known = registration_state(change.connection, &registration.token.digest, Some(owner.user)).await?;
    if let Some(host) = known.host {
        let host = registered_before(change, host).await?;
        return Ok(if host.owner == Some(owner.user) { of_owner(host) } else { RegistrationOutcome::NotTheirs });
    }
    known.keys.check([&registration.api_key])?;
    let present = of_name_or_id(change, registration).await?;
    let named = present.iter().find(|host| is_named(host, registration));
    if let Some(refused) = owner.refused(known.owner_disabled, named, known.owned) {
        return Ok(refused);
    }
    put_registered(change, registration, present, Some(owner.user), note).await.map(of_owner)
}

/// The host of a call that was made before. Repeating it could revive a spent token or a replaced key.
async fn registered_before(change: &mut Change<'_>, host: HostId) -> Outcome<Host> {
    Ok(hosts::by_id(change.connection, host).await?.ok_or_else(|| taken("installer token"))?)
}

async fn of_name_or_id(change: &mut Change<'_>, registration: &Registration) -> Outcome<Vec<Host>> {
    let values = vec![registration.fqdn.as_str().into(), registration.id.0.into()];
    hosts::select(change.connection, "WHERE live_fqdn = ? OR id = ?", values).await
}

fn is_named(host: &Host, registration: &Registration) -> bool {
    host.removed_at.is_none() && host.fqdn == registration.fqdn
}

/// Registers over the host with the name, if `known` contains it, or makes a new host. `owner` then owns it.
async fn put_registered(
    change: &mut Change<'_>,
    registration: &Registration,
    known: Vec<Host>,
    owner: Option<UserId>,
    note: &AuditNote,
) -> Outcome<Host> {
    let named = known.iter().find(|host| is_named(host, registration));
    let note = &registration.noted(named, owner, note);
    let mut host = match named {
        Some(present) if present.id != registration.id => return Ok(present.clone()),
        Some(present) => {
            let host = present.clone().given_new_key(registration, owner);
            hosts::update(change, &host).await?;
            installers::revoke_pending(change, host.id, registration.at).await?;
            host
        }
        None if !known.is_empty() => return Err(taken("host id").into()),
        None => {
            let host = Host::registered(registration, owner);
            hosts::insert(change, &host).await?;
            host
        }
    };
    installers::insert(change, &InstallToken::issued(registration, &host)).await?;
    change.note(note);
    host.truncate_times();
    Ok(host)
}

/// With `owner`: removes the host only if the user owns it.
pub(super) async fn remove(
    change: &mut Change<'_>,
    id: HostId,
    owner: Option<UserId>,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<Host>> {
    let found = hosts::by_id(change.connection, id).await?.filter(|host| owner.is_none() || host.owner == owner);
    let Some(mut host) = found else { return Ok(None) };
    let at = rows::truncated(at);
    host.removed_at = Some(at);
    host.updated_at = at;
    // Its key and its activity stay, so that it can be restored.
    hosts::update(change, &host).await?;
    installers::revoke_pending(change, id, at).await?;
    change.note(note);
    Ok(Some(host))
}
