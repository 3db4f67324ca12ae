//! `/admin/hosts`: register, list, show, remove, and the rules of a host.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::param::Path;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::auth::HostBody;
use super::guards::Admin;
use super::json::{Answer, JsonBody, Verbatim, ok};
use crate::model::host::HostId;
use crate::records::Host;
use crate::service::enrol::{HostView, Registered};
use crate::service::{Service, ServiceError};

pub struct AdminHostsApi;

#[OpenApi(tag = "Tag::AdminHosts", prefix_path = "/admin/hosts")]
impl AdminHostsApi {
    /// Make a host, or give a known one a new key
    ///
    /// Answers with the key and the installer command, which are shown here only. For a known name the old key and all
    /// pending installers are dead at once, and the host is bound to the next address it calls from.
    #[oai(path = "/register", method = "post", operation_id = "registerHost")]
    async fn register(
        &self,
        service: Data<&Arc<Service>>,
        _admin: Admin,
        body: JsonBody<RegisterRequest>,
    ) -> Answer<Registration> {
        let RegisterRequest { fqdn, secure } = body.0;
        let secure = secure
            .map(|secure| serde_json::from_str(secure.text()))
            .transpose()
            .map_err(|_| ServiceError::Refused("secure must be boolean".into()))?
            .flatten();
        ok(service.register(fqdn.as_deref().unwrap_or_default(), secure).await?.into())
    }

    /// All hosts, by name
    #[oai(path = "/", method = "get", operation_id = "listHosts")]
    async fn list(&self, service: Data<&Arc<Service>>, _admin: Admin) -> Answer<AdminHostList> {
        ok(AdminHostList { hosts: service.hosts().await?.into_iter().map(AdminHost::from).collect() })
    }

    /// One host
    #[oai(path = "/:id", method = "get", operation_id = "getHost")]
    async fn show(&self, service: Data<&Arc<Service>>, _admin: Admin, id: Path<u64>) -> Answer<AdminHostAnswer> {
        ok(AdminHostAnswer { host: service.host(HostId(id.0)).await?.into() })
    }

    /// Remove a host
    ///
    /// Its key and its pending installers are refused from here on.
    #[oai(path = "/:id", method = "delete", operation_id = "removeHost")]
    async fn remove(&self, service: Data<&Arc<Service>>, _admin: Admin, id: Path<u64>) -> Answer<Removed> {
        let host = service.remove(HostId(id.0)).await?;
        ok(Removed { deleted: host.fqdn.into() })
    }

    /// Let a host call from other addresses, or not
    ///
    /// While it may, a call from another address binds the host to that one.
    #[oai(path = "/:id/roaming", method = "post", operation_id = "setRoaming")]
    async fn roaming(
        &self,
        service: Data<&Arc<Service>>,
        _admin: Admin,
        id: Path<u64>,
        body: JsonBody<RoamingRequest>,
    ) -> Answer<RoamingAnswer> {
        let host = service.allow_roaming(HostId(id.0), body.0.allow).await?;
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
    async fn open_window(&self, service: Data<&Arc<Service>>, _admin: Admin, id: Path<u64>) -> Answer<WindowAnswer> {
        ok(service.open_window(HostId(id.0)).await?.into())
    }

    /// Close the window of an insecure host
    #[oai(path = "/:id/insecure/disable", method = "post", operation_id = "closeInsecureWindow")]
    async fn close_window(&self, service: Data<&Arc<Service>>, _admin: Admin, id: Path<u64>) -> Answer<WindowAnswer> {
        ok(service.close_window(HostId(id.0)).await?.into())
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
}

impl poem_openapi::types::Example for RegisterRequest {
    fn example() -> Self {
        Self { fqdn: Some("build-7.example.com".into()), secure: None }
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
        let Registered { host: HostView { host, activity }, api_key, installer } = registered;
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

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AdminHostList {
    pub hosts: Vec<AdminHost>,
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
    /// The address that the host's key is bound to; null before its first call.
    pub ip: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen: Option<OffsetDateTime>,
}

impl From<HostView> for AdminHost {
    fn from(HostView { host, activity }: HostView) -> Self {
        Self {
            id: host.id.0,
            ip: host.rules.bound_ip.map(|ip| ip.to_string()),
            last_seen: activity.last_seen,
            host: HostBody::new(&host.fqdn, &host.rules, activity, host.updated_at),
            created_at: host.created_at,
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Removed {
    deleted: String,
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
