//! `/admin/hosts`: registers, lists, shows, changes and removes hosts.

use std::sync::Arc;

use poem_openapi::param::{Path, Query};
use poem_openapi::{Enum, Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::errors::{Answer, ok};
use super::guards::{Admin, Principal, Viewer};
use super::json::{JsonBody, Verbatim};
use super::types::auth::HostBody;
use crate::model::host::HostId;
use crate::model::people::Role;
use crate::records::Host;
use crate::service::core::directory::{HostPage, HostState, ListQuery, ListedHost, Sort};
use crate::service::hosts::enrol::{HostOptions, HostStatus, HostView, RESTORE_WINDOW, Registered};
use crate::service::{Core, Hosts, Login, ServiceError};

pub struct AdminHostsApi;

/// Hosts per page, if the request does not say.
const DEFAULT_PAGE_HOSTS: usize = 100;

#[OpenApi(tag = "Tag::AdminHosts", prefix_path = "/admin/hosts")]
impl AdminHostsApi {
    /// Make a host, or give a known one a new key
    ///
    /// Answers with the key and the installer command, which are shown here only. For a known name the old key and all
    /// pending installers are dead at once, and the host is bound to the next address it calls from.
    #[oai(path = "/register", method = "post", operation_id = "registerHost")]
    async fn register(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        body: JsonBody<RegisterRequest>,
    ) -> Answer<Registration> {
        let RegisterRequest { fqdn, secure, expires_at, allow_short_name } = body.0;
        let secure = secure
            .map(|secure| serde_json::from_str(secure.text()))
            .transpose()
            .map_err(|_| ServiceError::Refused("secure must be boolean".into()))?
            .flatten();
        let fqdn = fqdn.as_deref().unwrap_or_default();
        let options = HostOptions { secure, expires_at, allow_short_name: allow_short_name.unwrap_or_default() };
        ok(hosts.register(fqdn, options, &admin.0).await?.into())
    }

    /// Hosts
    ///
    /// Without a parameter: all of them, by name. With any: a page of those that are asked for, and how many there are.
    /// Equal hosts stand in the order of their names. What hosts did is told some seconds late.
    #[allow(clippy::too_many_arguments)] // One for each parameter of the operation.
    #[oai(path = "/", method = "get", operation_id = "listHosts")]
    async fn list(
        &self,
        core: Area<'_, Core>,
        hosts: Area<'_, Hosts>,
        _viewer: Viewer,
        /// How many hosts a page has at most; 100 where another parameter is given.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<Option<u32>>,
        /// How many hosts stand before the page.
        offset: Query<Option<u32>>,
        /// `fqdn` where another parameter is given.
        sort: Query<Option<HostSort>>,
        /// `asc` where another parameter is given.
        order: Query<Option<SortOrder>>,
        /// Part of the name, the address or the client version, in capitals or not.
        search: Query<Option<String>>,
        state: Query<Option<HostStateFilter>>,
    ) -> Answer<AdminHostList> {
        let is_plain = limit.is_none() && offset.is_none() && sort.is_none() && order.is_none();
        if is_plain && search.is_none() && state.is_none() {
            let hosts = hosts.hosts().await?.into_iter().map(AdminHost::from).collect();
            return ok(AdminHostList { hosts, total: None, matching: None });
        }
        let query = ListQuery {
            limit: limit.0.map_or(DEFAULT_PAGE_HOSTS, |limit| limit as usize),
            offset: offset.0.unwrap_or_default() as usize,
            sort: sort.0.map(Sort::from).unwrap_or_default(),
            descending: matches!(order.0, Some(SortOrder::Desc)),
            search: search.0,
            state: state.0.map(HostState::from),
        };
        ok(AdminHostList::of(hosts.list_hosts(query).await?, core.now()))
    }

    /// One host
    #[oai(path = "/:id", method = "get", operation_id = "getHost")]
    async fn show(&self, hosts: Area<'_, Hosts>, _viewer: Viewer, id: Path<u64>) -> Answer<AdminHostAnswer> {
        ok(AdminHostAnswer { host: hosts.host(HostId(id.0)).await?.into() })
    }

    /// Which login a host has, as far as it told
    ///
    /// With the canonical login beside it.
    #[oai(path = "/:id/auth", method = "get", operation_id = "getHostAuth")]
    async fn auth(
        &self,
        core: Area<'_, Core>,
        hosts: Area<'_, Hosts>,
        login: Area<'_, Login>,
        asking: Principal,
        id: Path<u64>,
        /// `1`: with the canonical document, for admins only; this is noted in the audit log.
        include_body: Query<Option<String>>,
    ) -> Answer<HostAuth> {
        let reveal = include_body.0.is_some_and(|include| include == "1" || include == "true");
        asking.needs(if reveal { Role::Admin } else { Role::Viewer })?;
        let view = hosts.host(HostId(id.0)).await?;
        let canonical = if reveal { login.reveal_canonical(&asking.by).await? } else { core.canonical() };
        let auth = canonical.as_ref().filter(|_| reveal).map(|canonical| Arc::clone(&canonical.text).into());
        let host = AdminHost::from(view);
        ok(HostAuth {
            api_calls: host.host.api_calls,
            canonical_last_refresh: canonical.as_ref().map(|canonical| canonical.summary.last_refresh.clone()),
            canonical_digest: canonical.map(|canonical| canonical.summary.digest.to_string()),
            recent_digests: host.recent_digests.clone(),
            auth,
            host,
        })
    }

    /// Remove a host
    ///
    /// Its key and its pending installers are refused from here on. Within a day it can be restored.
    #[oai(path = "/:id", method = "delete", operation_id = "removeHost")]
    async fn remove(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<Removed> {
        let host = hosts.remove(HostId(id.0), &admin.0).await?;
        ok(Removed { deleted: host.fqdn.into() })
    }

    /// Let a host call from other addresses, or not
    ///
    /// While it may, a call from another address binds the host to that one.
    #[oai(path = "/:id/roaming", method = "post", operation_id = "setRoaming")]
    async fn roaming(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<RoamingRequest>,
    ) -> Answer<RoamingAnswer> {
        let host = hosts.allow_roaming(HostId(id.0), body.0.allow, &admin.0).await?;
        ok(RoamingAnswer {
            host: RoamingHost {
                id: host.id.0,
                allow_roaming_ips: host.rules.allow_roaming_ips,
                fqdn: host.fqdn.into(),
            },
        })
    }

    /// Open the window of an insecure host
    #[oai(path = "/:id/insecure/enable", method = "post", operation_id = "openInsecureWindow")]
    async fn open_window(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<WindowAnswer> {
        ok(hosts.open_window(HostId(id.0), &admin.0).await?.into())
    }

    /// Close the window of an insecure host
    #[oai(path = "/:id/insecure/disable", method = "post", operation_id = "closeInsecureWindow")]
    async fn close_window(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<WindowAnswer> {
        ok(hosts.close_window(HostId(id.0), &admin.0).await?.into())
    }

    /// Forget the addresses that a host is bound to
    ///
    /// It is bound to the next address that it calls from, one IPv4 address and one IPv6 network.
    #[oai(path = "/:id/clear", method = "post", operation_id = "clearHost")]
    async fn clear(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<ClearedHost> {
        ok(ClearedHost::of(hosts.clear(HostId(id.0), &admin.0).await?))
    }

    /// Switch a host off
    ///
    /// Its key stays and is refused with `host_disabled`.
    #[oai(path = "/:id/disable", method = "post", operation_id = "disableHost")]
    async fn disable(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<AdminHostAnswer> {
        let host = hosts.disable(HostId(id.0), true, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// Switch a host on again
    #[oai(path = "/:id/enable", method = "post", operation_id = "enableHost")]
    async fn enable(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<AdminHostAnswer> {
        let host = hosts.disable(HostId(id.0), false, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// Make a host temporary, or lasting again
    ///
    /// From `expires_at` on its key is refused with `host_expired`.
    #[oai(path = "/:id/expiry", method = "post", operation_id = "setHostExpiry")]
    async fn expiry(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<ExpiryRequest>,
    ) -> Answer<AdminHostAnswer> {
        let host = hosts.set_expiry(HostId(id.0), body.0.expires_at, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// Say from which networks a host may call
    ///
    /// Where there are any, they stand in place of the bound address: the host is served from all of them and from nowhere
    /// else. An empty list: from the address that it is bound to, as before.
    #[oai(path = "/:id/networks", method = "post", operation_id = "setHostNetworks")]
    async fn networks(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<NetworksRequest>,
    ) -> Answer<AdminHostAnswer> {
        let host = hosts.set_networks(HostId(id.0), &body.0.networks, &admin.0).await?;
        ok(AdminHostAnswer { host: hosts.view(host).into() })
    }

    /// The hosts that were removed within a day, the last one first
    #[oai(path = "/removed", method = "get", operation_id = "listRemovedHosts")]
    async fn removed(&self, hosts: Area<'_, Hosts>, _viewer: Viewer) -> Answer<RemovedHostList> {
        let hosts = hosts.removed_hosts().await?;
        ok(RemovedHostList { hosts: hosts.into_iter().filter_map(RemovedHost::of).collect() })
    }

    /// Undo a removal
    ///
    /// Within a day. The host is served again with the key, the rules and the counts that it had; installers that were
    /// outstanding stay revoked.
    #[oai(path = "/:id/restore", method = "post", operation_id = "restoreHost")]
    async fn restore(&self, hosts: Area<'_, Hosts>, admin: Admin, id: Path<u64>) -> Answer<AdminHostAnswer> {
        ok(AdminHostAnswer { host: hosts.restore(HostId(id.0), &admin.0).await?.into() })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(example)]
pub struct RegisterRequest {
    /// The host's name: letters, digits, `-` and `_` in labels of at most 63, separated by dots, 253 in all.
    pub fqdn: Option<String>,
    /// Boolean. `false`: a shared machine, which is served only while an admin holds its window open. Left out: as it
    /// was, `true` for a new host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<Verbatim>,
    /// Until when a temporary host is served; left out: as it was, for ever for a new host.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<OffsetDateTime>,
    /// `true`: the host finds this daemon at the address that was guessed because public_base_url is not set, even if that
    /// is a name without a domain, `localhost` or a loopback address. Else such a registration is refused
    /// (`base_url_guessed`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_short_name: Option<bool>,
}

impl poem_openapi::types::Example for RegisterRequest {
    fn example() -> Self {
        Self { fqdn: Some("build-7.example.com".into()), secure: None, expires_at: None, allow_short_name: None }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Registration {
    pub host: RegisteredHost,
    pub installer: InstallerBody,
}

/// A host with its key.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RegisteredHost {
    #[serde(flatten)]
    #[oai(flatten)]
    pub host: HostBody,
    /// Shown here only.
    pub api_key: String,
    pub id: u64,
}

/// How to make a machine this host; shown here only.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct InstallerBody {
    pub token: String,
    pub url: String,
    /// To be run on the machine, once.
    pub command: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

impl From<Registered> for Registration {
    fn from(registered: Registered) -> Self {
        let Registered { host: HostView { host, activity, .. }, api_key, installer } = registered;
        Self {
            host: RegisteredHost {
                host: HostBody::new(&host.fqdn, &host.rules, activity, host.updated_at),
                api_key: api_key.expose().into(),
                id: host.id.0,
            },
            installer: InstallerBody {
                token: installer.token.expose().into(),
                url: installer.url.expose().into(),
                command: installer.command.expose().into(),
                expires_at: installer.expires_at,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
enum HostSort {
    Fqdn,
    LastSeen,
    CreatedAt,
    UpdatedAt,
    ApiCalls,
    ClientVersion,
}

#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "lowercase")]
enum SortOrder {
    Asc,
    Desc,
}

/// `unbound`: not used from any address yet. `insecure`: a shared machine.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "lowercase")]
enum HostStateFilter {
    Active,
    Unbound,
    Insecure,
    Disabled,
}

impl From<HostSort> for Sort {
    fn from(sort: HostSort) -> Self {
        match sort {
            HostSort::Fqdn => Self::Fqdn,
            HostSort::LastSeen => Self::LastSeen,
            HostSort::CreatedAt => Self::CreatedAt,
            HostSort::UpdatedAt => Self::UpdatedAt,
            HostSort::ApiCalls => Self::ApiCalls,
            HostSort::ClientVersion => Self::ClientVersion,
        }
    }
}

impl From<HostStateFilter> for HostState {
    fn from(state: HostStateFilter) -> Self {
        match state {
            HostStateFilter::Active => Self::Active,
            HostStateFilter::Unbound => Self::Unbound,
            HostStateFilter::Insecure => Self::Insecure,
            HostStateFilter::Disabled => Self::Disabled,
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AdminHostList {
    pub hosts: Vec<AdminHost>,
    /// How many hosts there are; where a page was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// How many of them are what was asked for, this page's and all others'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matching: Option<u64>,
}

impl AdminHostList {
    fn of(page: HostPage, now: OffsetDateTime) -> Self {
        Self {
            hosts: page
                .hosts
                .into_iter()
                .map(|listed| {
                    let status = HostStatus::of_rules(&listed.rules, now);
                    AdminHost::new(listed, status)
                })
                .collect(),
            total: Some(page.total as u64),
            matching: Some(page.matching as u64),
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AdminHostAnswer {
    pub host: AdminHost,
}

/// A host as an admin sees it.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AdminHost {
    pub id: u64,
    #[serde(flatten)]
    #[oai(flatten)]
    pub host: HostBody,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The number of the user who installed it for themselves; null: an admin made it.
    #[serde(default)]
    pub owner_id: Option<u64>,
    /// The address that the host's key was first bound to; null before its first call.
    pub ip: Option<String>,
    /// The address of the other family (IPv4, IPv6) that the key is bound to as well; left out where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_ip: Option<String>,
    /// `true`: it is disabled because its owner is, and is enabled with them; else left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_with_user: Option<bool>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen: Option<OffsetDateTime>,
    /// Of a temporary host: until when it is served.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// Where there are any: the networks that the host is served from, in place of `ip`.
    pub allowed_networks: Vec<String>,
    /// SHA-256 of the canonical document that the host last had in hand; null: none that is known.
    pub canonical_digest: Option<String>,
    /// The last three, the latest first.
    pub recent_digests: Vec<String>,
    /// Whether the host has had the canonical login.
    pub authed: bool,
}

impl From<HostView> for AdminHost {
    fn from(HostView { host, activity, status }: HostView) -> Self {
        Self::new(ListedHost::new(&host, activity), status)
    }
}

impl AdminHost {
    fn new(listed: ListedHost, status: HostStatus) -> Self {
        let ListedHost { id, fqdn, rules, owner, created_at, updated_at, activity } = listed;
        let recent_digests: Vec<_> = activity.digests.as_slice().iter().map(ToString::to_string).collect();
        let status = status.as_str().into();
        Self {
            authed: activity.last_refresh.is_some(),
            canonical_digest: recent_digests.first().cloned(),
            recent_digests,
            expires_at: rules.expires_at,
            allowed_networks: rules.allowed_networks.iter().map(|network| network.to_string()).collect(),
            id: id.0,
            owner_id: owner.map(|owner| owner.0),
            ip: rules.bound_ip.map(|ip| ip.to_string()),
            other_ip: rules.bound_ip_other.map(|ip| ip.to_string()),
            disabled_with_user: rules.disabled_with_user.then_some(true),
            last_seen: activity.last_seen,
            host: HostBody { status, ..HostBody::new(&fqdn, &rules, activity, updated_at) },
            created_at,
        }
    }
}

/// A host and its login.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct HostAuth {
    host: AdminHost,
    canonical_last_refresh: Option<String>,
    /// SHA-256 of the canonical text.
    canonical_digest: Option<String>,
    /// As in `host`.
    recent_digests: Vec<String>,
    /// The canonical document, where it was asked for.
    auth: Option<Verbatim>,
    api_calls: u64,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ExpiryRequest {
    /// RFC 3339, in the future; null: never.
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct NetworksRequest {
    /// CIDR (`192.0.2.0/24`, `2001:db8::/64`) or single addresses; at most 64.
    networks: Vec<String>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ClearedHost {
    host: ClearedHostBody,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ClearedHostBody {
    id: u64,
    fqdn: String,
    /// `active`: what it is called in the recorded answer.
    status: String,
}

impl ClearedHost {
    fn of(host: Host) -> Self {
        Self { host: ClearedHostBody { id: host.id.0, fqdn: host.fqdn.into(), status: "active".into() } }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RemovedHostList {
    pub hosts: Vec<RemovedHost>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RemovedHost {
    pub id: u64,
    pub fqdn: String,
    #[serde(with = "time::serde::rfc3339")]
    pub removed_at: OffsetDateTime,
    /// Until when the removal can be undone.
    #[serde(with = "time::serde::rfc3339")]
    pub restorable_until: OffsetDateTime,
}

impl RemovedHost {
    fn of(host: Host) -> Option<Self> {
        let removed_at = host.removed_at?;
        Some(Self { id: host.id.0, fqdn: host.fqdn.into(), removed_at, restorable_until: removed_at + RESTORE_WINDOW })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Removed {
    pub deleted: String,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RoamingRequest {
    allow: bool,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RoamingAnswer {
    host: RoamingHost,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RoamingHost {
    id: u64,
    fqdn: String,
    allow_roaming_ips: bool,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct WindowAnswer {
    host: WindowHost,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct WindowHost {
    id: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    insecure_enabled_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    insecure_grace_until: Option<OffsetDateTime>,
}

impl From<Host> for WindowAnswer {
    fn from(host: Host) -> Self {
        let rules = host.rules;
        Self {
            host: WindowHost {
                id: host.id.0,
                insecure_enabled_until: rules.insecure_enabled_until,
                insecure_grace_until: rules.insecure_grace_until,
            },
        }
    }
}
