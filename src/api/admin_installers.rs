//! `/admin/installers`: lists and revokes installers.

use poem_openapi::param::{Path, Query};
use poem_openapi::{Enum, Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::errors::{Answer, ok};
use super::guards::{Admin, Viewer};
use super::pages::{self, Page, default_limit};
use crate::model::host::Fqdn;
use crate::records::InstallToken;
use crate::service::{Hosts, ServiceError};

pub struct AdminInstallersApi;

#[OpenApi(tag = "Tag::AdminInstallers", prefix_path = "/admin/installers")]
impl AdminInstallersApi {
    /// Installers, the newest first
    ///
    /// Who redeemed which, and from where; the token itself is not kept.
    #[oai(path = "/", method = "get", operation_id = "listInstallers")]
    async fn list(
        &self,
        hosts: Area<'_, Hosts>,
        _viewer: Viewer,
        /// Only those in this state.
        state: Query<Option<InstallerState>>,
        /// Only those of the host with this number.
        #[oai(validator(minimum(value = "1")))]
        host_id: Query<Option<i64>>,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<InstallerList> {
        let (installers, now) = hosts.installers().await?;
        let found = installers
            .into_iter()
            .filter(|(token, _)| host_id.0.is_none_or(|id| i64::try_from(token.host.0) == Ok(id)));
        let found = found.map(|(token, fqdn)| InstallerEntry::new(token, fqdn, now));
        let found = found.filter(|entry| state.0.is_none_or(|state| entry.state == state)).collect();
        let Page { entries: installers, next } = Page::cut(found, &cursor, &limit, |entry| entry.id.clone())?;
        ok(InstallerList { installers, next })
    }

    /// Revoke an outstanding installer
    ///
    /// Its command is refused from here on.
    #[oai(path = "/:id/revoke", method = "post", operation_id = "revokeInstaller")]
    async fn revoke(
        &self,
        hosts: Area<'_, Hosts>,
        admin: Admin,
        /// As in the list: SHA-256 of the token.
        id: Path<String>,
    ) -> Answer<RevokedInstaller> {
        let digest = id.0.parse().map_err(|_| ServiceError::NotFound("Outstanding installer"))?;
        let revoked = hosts.revoke_installer(&digest, &admin.0).await?;
        ok(RevokedInstaller { revoked: revoked.digest.to_string() })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct InstallerList {
    pub installers: Vec<InstallerEntry>,
    pub next: Option<String>,
}

pages::listed!(InstallerList: installers);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase")]
pub enum InstallerState {
    Outstanding,
    Redeemed,
    Revoked,
    Expired,
}

/// An installer.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct InstallerEntry {
    /// SHA-256 of the token, 64 lower-case hex digits.
    pub id: String,
    pub state: InstallerState,
    pub host_id: u64,
    /// Null: the host is removed.
    pub fqdn: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub redeemed_at: Option<OffsetDateTime>,
    /// The address that redeemed it.
    pub redeemed_from: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

impl InstallerEntry {
    fn new(token: InstallToken, fqdn: Option<Fqdn>, now: OffsetDateTime) -> Self {
        let state = match &token {
            InstallToken { redeemed_at: Some(_), .. } => InstallerState::Redeemed,
            InstallToken { revoked_at: Some(_), .. } => InstallerState::Revoked,
            InstallToken { expires_at, .. } if *expires_at <= now => InstallerState::Expired,
            _ => InstallerState::Outstanding,
        };
        Self {
            id: token.digest.to_string(),
            state,
            host_id: token.host.0,
            fqdn: fqdn.map(String::from),
            created_at: token.created_at,
            expires_at: token.expires_at,
            redeemed_at: token.redeemed_at,
            redeemed_from: token.redeemed_from.map(|from| from.to_string()),
            revoked_at: token.revoked_at,
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RevokedInstaller {
    pub revoked: String,
}
