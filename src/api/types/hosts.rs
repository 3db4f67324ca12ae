//! The bodies of `/admin/hosts`.

use poem_openapi::{Enum, Object};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::super::flags::SecureFlag;
use super::super::json::{ExactText, Verbatim};
use super::super::pages;
use super::auth::HostBody;
use crate::records::Host;
use crate::service::ServiceError;
use crate::service::core::directory::{HostPage, HostState, ListedHost, Mark, MarkKey, Sort};
use crate::service::hosts::enrol::{HostStatus, HostView, RESTORE_WINDOW, Registered};

#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(example)]
pub struct RegisterRequest {
    /// The host's name: letters, digits, `-` and `_` in labels of at most 63, separated by dots, 253 in all.
    #[serde(default)]
    pub fqdn: String,
    /// `false`: a shared machine, which is served only while an admin holds its window open. Left out: as it was, `true`
    /// for a new host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<SecureFlag>,
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
        Self { fqdn: "build-7.example.com".into(), secure: None, expires_at: None, allow_short_name: None }
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
pub enum HostSort {
    Fqdn,
    LastSeen,
    CreatedAt,
    UpdatedAt,
    ApiCalls,
    ClientVersion,
}

#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "lowercase")]
pub enum SortOrder {
    Asc,
    Desc,
}

/// `unbound`: not used from any address yet. `insecure`: a shared machine.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "lowercase")]
pub enum HostStateFilter {
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
    /// How many hosts there are.
    pub total: u64,
    /// How many of them the request selects, on all pages.
    pub matching: u64,
    pub next: Option<String>,
}

pages::listed!(AdminHostList: hosts, RemovedHostList: hosts);

/// A cursor: the sort key of the last host of a page, and its name.
pub fn write_mark(Mark { key, name }: &Mark) -> String {
    pages::encode(&match key {
        MarkKey::Number(number) => format!("{number} {name}"),
        MarkKey::Version(version) => format!("v{} {name}", version.as_deref().unwrap_or_default()),
    })
}

pub fn read_mark(cursor: &str) -> Result<Mark, ServiceError> {
    let read = || {
        let text = pages::decode(cursor)?;
        let (key, name) = text.split_once(' ')?;
        let key = match key.strip_prefix('v') {
            Some(version) => MarkKey::Version(Some(version.to_owned()).filter(|version| !version.is_empty())),
            None => MarkKey::Number(key.parse().ok()?),
        };
        Some(Mark { key, name: name.parse().ok()? })
    };
    read().ok_or_else(pages::foreign)
}

impl AdminHostList {
    pub fn of(page: HostPage, now: OffsetDateTime) -> Self {
        Self {
            hosts: page
                .hosts
                .into_iter()
                .map(|listed| {
                    let status = HostStatus::of_rules(&listed.rules, now);
                    AdminHost::new(listed, status)
                })
                .collect(),
            total: page.total as u64,
            matching: page.matching as u64,
            next: page.next.as_ref().map(write_mark),
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
    pub fn new(listed: ListedHost, status: HostStatus) -> Self {
        let ListedHost { id, fqdn, rules, owner, created_at, updated_at, activity } = listed;
        let recent_digests: Vec<_> = activity.digests.as_slice().iter().map(ToString::to_string).collect();
        let status = status.into();
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
    pub host: AdminHost,
    pub canonical_last_refresh: Option<String>,
    /// SHA-256 of the canonical text.
    pub canonical_digest: Option<String>,
    /// As in `host`.
    pub recent_digests: Vec<String>,
    /// The exact text of the canonical login, if it was requested.
    pub auth_text: Option<ExactText>,
    /// The same as JSON. A JSON library may change its bytes: use `auth_text`.
    pub auth: Option<Verbatim>,
    pub api_calls: u64,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ExpiryRequest {
    /// RFC 3339, in the future; null: never.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct NetworksRequest {
    /// CIDR (`192.0.2.0/24`, `2001:db8::/64`) or single addresses; at most 64.
    pub networks: Vec<String>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ClearedHost {
    pub host: ClearedHostBody,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ClearedHostBody {
    pub id: u64,
    pub fqdn: String,
    /// `active`: what it is called in the recorded answer.
    pub status: super::auth::HostStatus,
}

impl ClearedHost {
    pub fn of(host: Host) -> Self {
        Self {
            host: ClearedHostBody { id: host.id.0, fqdn: host.fqdn.into(), status: super::auth::HostStatus::Active },
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RemovedHostList {
    pub hosts: Vec<RemovedHost>,
    pub next: Option<String>,
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
    pub fn of(host: Host) -> Option<Self> {
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
    pub allow: bool,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RoamingAnswer {
    pub host: RoamingHost,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RoamingHost {
    pub id: u64,
    pub fqdn: String,
    pub allow_roaming_ips: bool,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct WindowAnswer {
    pub host: WindowHost,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct WindowHost {
    pub id: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_enabled_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_grace_until: Option<OffsetDateTime>,
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
