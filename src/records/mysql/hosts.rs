//! Hosts.

use std::net::IpAddr;

use ipnet::IpNet;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use time::OffsetDateTime;

use super::changes::Change;
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::{install_tokens, sealed};
use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostId, HostRules};
use crate::model::people::UserId;
use crate::records::rules::taken;
use crate::records::{Epoch, Host, HostChange, InstallToken, Owner, Registered, Registration, Restoration, Result};
use crate::seal::Sealed;

const TABLE: &str = "hosts";

/// With the networks in one column, so that a host is read as it was at one moment.
const SELECT: &str = "SELECT id, fqdn, key_digest, imported_key_digest, api_key, secure, allow_roaming_ips, bound_ip, \
                      bound_ip_other, insecure_enabled_until, insecure_grace_until, disabled, disabled_with_user, \
                      expires_at, created_at, updated_at, removed_at, owner, agent_identity, \
                      (SELECT GROUP_CONCAT(network ORDER BY place SEPARATOR ',') FROM host_networks \
                      WHERE host_networks.host_id = hosts.id) FROM hosts";

pub(super) async fn by_id(connection: &mut Conn, id: HostId) -> Outcome<Option<Host>> {
    Ok(select(connection, "WHERE id = ? AND removed_at IS NULL", vec![id.0.into()]).await?.pop())
}

/// Removed or not.
async fn known(connection: &mut Conn, id: HostId) -> Outcome<Option<Host>> {
    Ok(select(connection, "WHERE id = ?", vec![id.0.into()]).await?.pop())
}

pub(super) async fn by_name(connection: &mut Conn, fqdn: &Fqdn) -> Outcome<Option<Host>> {
    Ok(select(connection, "WHERE live_fqdn = ?", vec![fqdn.as_str().into()]).await?.pop())
}

pub(super) async fn all(connection: &mut Conn) -> Outcome<Vec<Host>> {
    select(connection, "WHERE live_fqdn IS NOT NULL ORDER BY live_fqdn", vec![]).await
}

/// The hosts of a user, those included whose removal can be undone.
pub(super) async fn of_user(connection: &mut Conn, user: UserId) -> Outcome<Vec<Host>> {
    let which = "WHERE owner = ? AND (removed_at IS NULL OR api_key <> '') ORDER BY removed_at IS NOT NULL, id";
    select(connection, which, vec![user.0.into()]).await
}

/// The last one first.
pub(super) async fn removed(connection: &mut Conn) -> Outcome<Vec<Host>> {
    let which = "WHERE removed_at IS NOT NULL AND api_key <> '' ORDER BY removed_at DESC, id DESC";
    select(connection, which, vec![]).await
}

pub(super) async fn changed(connection: &mut Conn, since: Epoch) -> Outcome<Vec<Host>> {
    select(connection, "WHERE epoch > ? ORDER BY epoch", vec![since.0.into()]).await
}

/// By id, removed or not, from the first one after `after`.
pub(super) async fn page(connection: &mut Conn, after: Option<HostId>, limit: usize) -> Outcome<Vec<Host>> {
    let (from, values) = match after {
        Some(after) => ("WHERE id > ?", vec![after.0.into(), (limit as u64).into()]),
        None => ("", vec![(limit as u64).into()]),
    };
    select(connection, &format!("{from} ORDER BY id LIMIT ?"), values).await
}

async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<Host>> {
    let rows: Vec<Row> = connection.exec(format!("{SELECT} {which}"), Params::Positional(values)).await?;
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}

fn read(row: Row) -> Result<Host> {
    let mut columns = Columns::of(TABLE, row);
    let (id, fqdn) = (HostId(columns.number()?), columns.parsed()?);
    let (key_digest, imported_key_digest, api_key) = (columns.digest()?, columns.optional_digest()?, columns.sealed()?);
    let rules = HostRules {
        secure: columns.truth()?,
        allow_roaming_ips: columns.truth()?,
        bound_ip: columns.optional_parsed()?,
        bound_ip_other: columns.optional_parsed()?,
        insecure_enabled_until: columns.optional_time()?,
        insecure_grace_until: columns.optional_time()?,
        disabled: columns.truth()?,
        disabled_with_user: columns.truth()?,
        expires_at: columns.optional_time()?,
        allowed_networks: Vec::new(),
    };
    let (created_at, updated_at, removed_at) = (columns.time()?, columns.time()?, columns.optional_time()?);
    let (owner, agent_identity) = (columns.optional_number()?.map(UserId), columns.optional_sealed()?);
    let networks = columns.optional_text()?.unwrap_or_default();
    let networks = networks.split(',').filter(|network| !network.is_empty()).map(str::parse);
    let allowed_networks: Vec<IpNet> =
        networks.collect::<std::result::Result<_, _>>().map_err(|error| rows::corrupt("host_networks", error))?;
    let rules = HostRules { allowed_networks, ..rules };
    Ok(Host {
        id,
        fqdn,
        key_digest,
        imported_key_digest,
        api_key,
        rules,
        created_at,
        updated_at,
        removed_at,
        owner,
        agent_identity,
    })
}

/// All columns but the id, in this order.
const WRITTEN: [&str; 23] = [
    "fqdn",
    "live_fqdn",
    "key_digest",
    "imported_key_digest",
    "api_key",
    "api_key_key",
    "secure",
    "allow_roaming_ips",
    "bound_ip",
    "bound_ip_other",
    "insecure_enabled_until",
    "insecure_grace_until",
    "disabled",
    "disabled_with_user",
    "expires_at",
    "created_at",
    "updated_at",
    "removed_at",
    "owner",
    "agent_identity",
    "agent_identity_key",
    "epoch",
    "id",
];

fn written(host: &Host, epoch: Epoch) -> Vec<Value> {
    let rules = &host.rules;
    let live = host.removed_at.is_none().then(|| host.fqdn.as_str());
    let values: [Value; WRITTEN.len()] = [
        host.fqdn.as_str().into(),
        live.into(),
        rows::digest(&host.key_digest),
        rows::optional_digest(host.imported_key_digest.as_ref()),
        rows::sealed(&host.api_key),
        rows::key_of(&host.api_key),
        rules.secure.into(),
        rules.allow_roaming_ips.into(),
        rows::address(rules.bound_ip),
        rows::address(rules.bound_ip_other),
        rows::optional_time(rules.insecure_enabled_until),
        rows::optional_time(rules.insecure_grace_until),
        rules.disabled.into(),
        rules.disabled_with_user.into(),
        rows::optional_time(rules.expires_at),
        rows::time(host.created_at),
        rows::time(host.updated_at),
        rows::optional_time(host.removed_at),
        host.owner.map(|owner| owner.0).into(),
        host.agent_identity.as_ref().map_or(Value::NULL, rows::sealed),
        host.agent_identity.as_ref().map_or(Value::NULL, rows::key_of),
        epoch.0.into(),
        host.id.0.into(),
    ];
    values.into()
}

async fn insert(change: &mut Change<'_>, host: &Host) -> Outcome<()> {
    let epoch = change.epoch();
    insert_all(change, &[host], epoch).await
}

/// With their networks, and no activity.
pub(super) async fn insert_all(change: &mut Change<'_>, hosts: &[&Host], epoch: Epoch) -> Outcome<()> {
    let places = rows::places(hosts.len(), WRITTEN.len());
    let statement = format!("INSERT INTO hosts ({}) VALUES {places}", WRITTEN.join(", "));
    change.run(&statement, hosts.iter().flat_map(|host| written(host, epoch)).collect()).await?;
    let statement =
        format!("INSERT INTO host_auth_states (host_id, api_calls) VALUES {}", rows::places(hosts.len(), 2));
    change.run(&statement, hosts.iter().flat_map(|host| [host.id.0.into(), 0.into()]).collect()).await?;
    insert_networks(change, hosts).await
}

/// Everything but the networks.
pub(super) async fn update(change: &mut Change<'_>, host: &Host) -> Outcome<()> {
    let epoch = change.epoch();
    let set: Vec<_> = WRITTEN[..WRITTEN.len() - 1].iter().map(|column| format!("{column} = ?")).collect();
    change.run(&format!("UPDATE hosts SET {} WHERE id = ?", set.join(", ")), written(host, epoch)).await
}

async fn put_networks(change: &mut Change<'_>, host: &Host) -> Outcome<()> {
    change.run("DELETE FROM host_networks WHERE host_id = ?", vec![host.id.0.into()]).await?;
    insert_networks(change, &[host]).await
}

async fn insert_networks(change: &mut Change<'_>, hosts: &[&Host]) -> Outcome<()> {
    let of = |host: &Host| -> Vec<[Value; 3]> {
        let networks = (0_u64..).zip(&host.rules.allowed_networks);
        networks.map(|(place, network)| [host.id.0.into(), place.into(), network.to_string().into()]).collect()
    };
    let all: Vec<_> = hosts.iter().flat_map(|host| of(host)).collect();
    // A statement takes no more than 65535 values.
    for some in all.chunks(1000) {
        let places = rows::places(some.len(), 3);
        let statement = format!("INSERT INTO host_networks (host_id, place, network) VALUES {places}");
        change.run(&statement, some.iter().flatten().cloned().collect()).await?;
    }
    Ok(())
}

pub(super) async fn register(change: &mut Change<'_>, registration: &Registration, note: &AuditNote) -> Outcome<Host> {
    let known = install_tokens::known(change.connection, &registration.token.digest, None).await?;
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
) -> Outcome<Registered> {
    let of_owner = |host: Host| Registered::Host(Box::new(host));
    let known = install_tokens::known(change.connection, &registration.token.digest, Some(owner.user)).await?;
    if let Some(host) = known.host {
        let host = registered_before(change, host).await?;
        return Ok(if host.owner == Some(owner.user) { of_owner(host) } else { Registered::NotTheirs });
    }
    known.keys.check([&registration.api_key])?;
    let present = of_name_or_id(change, registration).await?;
    let named = present.iter().find(|host| is_named(host, registration));
    if let Some(refused) = owner.refused(known.owner_disabled, named, known.owned) {
        return Ok(refused);
    }
    put_registered(change, registration, present, Some(owner.user), note).await.map(of_owner)
}

/// This very call was done before. Doing it again could bring a spent token, or a replaced key, back to life.
async fn registered_before(change: &mut Change<'_>, host: HostId) -> Outcome<Host> {
    Ok(by_id(change.connection, host).await?.ok_or_else(|| taken("installer token"))?)
}

async fn of_name_or_id(change: &mut Change<'_>, registration: &Registration) -> Outcome<Vec<Host>> {
    let values = vec![registration.fqdn.as_str().into(), registration.id.0.into()];
    select(change.connection, "WHERE live_fqdn = ? OR id = ?", values).await
}

fn is_named(host: &Host, registration: &Registration) -> bool {
    host.removed_at.is_none() && host.fqdn == registration.fqdn
}

/// Over the host that has the name, if there is one in `known`; it is the owner's from here on.
async fn put_registered(
    change: &mut Change<'_>,
    registration: &Registration,
    known: Vec<Host>,
    owner: Option<UserId>,
    note: &AuditNote,
) -> Outcome<Host> {
    let named = known.iter().find(|host| is_named(host, registration));
    let note = &registration.noted(named, owner, note);
    let host = match named {
        Some(present) if present.id != registration.id => return Ok(present.clone()),
        Some(present) => {
            let host = present.clone().given_new_key(registration, owner);
            update(change, &host).await?;
            install_tokens::revoke_pending(change, host.id, registration.at).await?;
            host
        }
        None if !known.is_empty() => return Err(taken("host id").into()),
        None => {
            let host = Host::registered(registration, owner);
            insert(change, &host).await?;
            host
        }
    };
    install_tokens::insert(change, &InstallToken::issued(registration, &host)).await?;
    change.note(note);
    Ok(kept(host))
}

/// As it is read back.
fn kept(mut host: Host) -> Host {
    let rules = &mut host.rules;
    for at in [&mut rules.insecure_enabled_until, &mut rules.insecure_grace_until, &mut rules.expires_at] {
        *at = at.map(rows::cut);
    }
    host.created_at = rows::cut(host.created_at);
    host.updated_at = rows::cut(host.updated_at);
    host.removed_at = host.removed_at.map(rows::cut);
    host
}

/// `owner`: only if it is theirs.
pub(super) async fn remove(
    change: &mut Change<'_>,
    id: HostId,
    owner: Option<UserId>,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<Host>> {
    let found = by_id(change.connection, id).await?.filter(|host| owner.is_none() || host.owner == owner);
    let Some(mut host) = found else { return Ok(None) };
    let at = rows::cut(at);
    host.removed_at = Some(at);
    host.updated_at = at;
    // Its key and its activity stay for a while: it may be brought back.
    update(change, &host).await?;
    install_tokens::revoke_pending(change, id, at).await?;
    change.note(note);
    Ok(Some(host))
}

pub(super) async fn restore(
    change: &mut Change<'_>,
    id: HostId,
    removed_after: OffsetDateTime,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Restoration> {
    let found = known(change.connection, id).await?;
    let Some(mut host) = found.filter(|host| host.can_be_restored(removed_after)) else {
        return Ok(Restoration::Unknown);
    };
    if by_name(change.connection, &host.fqdn).await?.is_some() {
        return Ok(Restoration::NameTaken);
    }
    host.removed_at = None;
    host.updated_at = rows::cut(at);
    update(change, &host).await?;
    change.note(note);
    Ok(Restoration::Restored(host))
}

pub(super) async fn purge_removed(change: &mut Change<'_>, when: OffsetDateTime) -> Outcome<usize> {
    let which = "WHERE removed_at < ? AND api_key <> ''";
    let gone = select(change.connection, which, vec![rows::time(when)]).await?;
    for host in &gone {
        update(change, &host.purged()).await?;
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
}

pub(super) async fn change(
    change: &mut Change<'_>,
    id: HostId,
    wanted: &HostChange,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<Host>> {
    let Some(mut host) = by_id(change.connection, id).await? else { return Ok(None) };
    wanted.apply(&mut host, at);
    update(change, &host).await?;
    if wanted.allowed_networks.is_some() {
        put_networks(change, &host).await?;
    }
    change.note(note);
    Ok(Some(kept(host)))
}

pub(super) async fn bind_ip(
    change: &mut Change<'_>,
    id: HostId,
    key: &Digest,
    ip: IpAddr,
    ipv6_prefix: u8,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Outcome<Option<Host>> {
    let Some(mut host) = by_id(change.connection, id).await? else { return Ok(None) };
    if !host.has_key(key) {
        return Ok(None);
    }
    if host.bind(ip, ipv6_prefix, at) {
        update(change, &host).await?;
        change.note(note);
    }
    Ok(Some(kept(host)))
}

pub(super) async fn keep_agent_identity(
    change: &mut Change<'_>,
    id: HostId,
    key: &Digest,
    identity: &Sealed,
    note: &AuditNote,
) -> Outcome<bool> {
    let host = by_id(change.connection, id).await?.filter(|host| host.key_digest == *key);
    let Some(host) = host else { return Ok(false) };
    if let Some(host) = host.with_agent_identity(identity) {
        sealed::check(change, [identity]).await?;
        update(change, &host).await?;
        change.note(note);
    }
    Ok(true)
}
