//! Rows of hosts, with their networks.

use ipnet::IpNet;
use mysql_async::{Conn, Row, Value};

use crate::model::host::{Fqdn, HostId, HostRules};
use crate::model::people::UserId;
use crate::records::mysql::connections::Outcome;
use crate::records::mysql::rows::{self, Columns};
use crate::records::mysql::transaction::Change;
use crate::records::{Epoch, Host, Result};

const TABLE: &str = "hosts";

/// The networks are read as one column, so that one statement reads everything as of one moment.
const SELECT: &str = "SELECT id, fqdn, key_digest, imported_key_digest, api_key, secure, allow_roaming_ips, bound_ip, \
                      bound_ip_other, insecure_enabled_until, insecure_grace_until, disabled, disabled_with_user, \
                      expires_at, created_at, updated_at, removed_at, owner, agent_identity, \
                      (SELECT GROUP_CONCAT(network ORDER BY place SEPARATOR ',') FROM host_networks \
                      WHERE host_networks.host_id = hosts.id) FROM hosts";

/// The columns in the order of [`written`]; the id is last.
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

pub async fn by_id(connection: &mut Conn, id: HostId) -> Outcome<Option<Host>> {
    Ok(select(connection, "WHERE id = ? AND removed_at IS NULL", vec![id.0.into()]).await?.pop())
}

/// Finds removed hosts too.
pub async fn fetch_any(connection: &mut Conn, id: HostId) -> Outcome<Option<Host>> {
    Ok(select(connection, "WHERE id = ?", vec![id.0.into()]).await?.pop())
}

pub async fn by_name(connection: &mut Conn, fqdn: &Fqdn) -> Outcome<Option<Host>> {
    Ok(select(connection, "WHERE live_fqdn = ?", vec![fqdn.as_str().into()]).await?.pop())
}

/// The hosts of a user, restorable ones included.
pub async fn of_user(connection: &mut Conn, user: UserId) -> Outcome<Vec<Host>> {
    let which = "WHERE owner = ? AND (removed_at IS NULL OR api_key <> '') ORDER BY removed_at IS NOT NULL, id";
    select(connection, which, vec![user.0.into()]).await
}

pub async fn changed(connection: &mut Conn, since: Epoch) -> Outcome<Vec<Host>> {
    select(connection, "WHERE epoch > ? ORDER BY epoch", vec![since.0.into()]).await
}

/// Hosts in the order of their ids, after `after`, removed ones included.
pub async fn page(connection: &mut Conn, after: Option<HostId>, limit: usize) -> Outcome<Vec<Host>> {
    let (page, values) = rows::page_after("id", after.map(|after| after.0.into()), limit);
    select(connection, &page, values).await
}

pub async fn select(connection: &mut Conn, which: &str, values: Vec<Value>) -> Outcome<Vec<Host>> {
    rows::read_all(connection, format!("{SELECT} {which}"), values, read).await
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

pub async fn insert(change: &mut Change<'_>, host: &Host) -> Outcome<()> {
    let epoch = change.epoch();
    insert_all(change, &[host], epoch).await
}

/// Inserts hosts with their networks and empty activity.
pub async fn insert_all(change: &mut Change<'_>, hosts: &[&Host], epoch: Epoch) -> Outcome<()> {
    let places = rows::places(hosts.len(), WRITTEN.len());
    let statement = format!("INSERT INTO hosts ({}) VALUES {places}", WRITTEN.join(", "));
    change.run(&statement, hosts.iter().flat_map(|host| written(host, epoch)).collect()).await?;
    let statement =
        format!("INSERT INTO host_auth_states (host_id, api_calls) VALUES {}", rows::places(hosts.len(), 2));
    change.run(&statement, hosts.iter().flat_map(|host| [host.id.0.into(), 0.into()]).collect()).await?;
    insert_networks(change, hosts).await
}

/// Updates everything except the networks.
pub async fn update(change: &mut Change<'_>, host: &Host) -> Outcome<()> {
    let epoch = change.epoch();
    let set: Vec<_> = WRITTEN[..WRITTEN.len() - 1].iter().map(|column| format!("{column} = ?")).collect();
    change.run(&format!("UPDATE hosts SET {} WHERE id = ?", set.join(", ")), written(host, epoch)).await
}

pub async fn put_networks(change: &mut Change<'_>, host: &Host) -> Outcome<()> {
    change.run("DELETE FROM host_networks WHERE host_id = ?", vec![host.id.0.into()]).await?;
    insert_networks(change, &[host]).await
}

async fn insert_networks(change: &mut Change<'_>, hosts: &[&Host]) -> Outcome<()> {
    let of = |host: &Host| -> Vec<[Value; 3]> {
        let networks = (0_u64..).zip(&host.rules.allowed_networks);
        networks.map(|(place, network)| [host.id.0.into(), place.into(), network.to_string().into()]).collect()
    };
    let all: Vec<_> = hosts.iter().flat_map(|host| of(host)).collect();
    // A statement may have at most 65535 values.
    for some in all.chunks(1000) {
        let places = rows::places(some.len(), 3);
        let statement = format!("INSERT INTO host_networks (host_id, place, network) VALUES {places}");
        change.run(&statement, some.iter().flatten().cloned().collect()).await?;
    }
    Ok(())
}
