//! `/admin/authorities`: the two authorities and their rollover.

use poem_openapi::param::{Path, Query};
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::closed_set::closed_set;
use super::errors::{Answer, ok};
use super::flags::Flag;
use super::guards::{Admin, Viewer};
use crate::model::authority;
use crate::records;
use crate::service::hosts::host_trust::{HostGroup, HostsByTrust};
use crate::service::{Core, Hosts, Trust};

pub struct AdminAuthoritiesApi;

#[OpenApi(tag = "Tag::AdminCertificates", prefix_path = "/admin/authorities")]
impl AdminAuthoritiesApi {
    /// The authorities in their slots
    ///
    /// At most three of each role; they are not listed in pages.
    #[oai(path = "/", method = "get", operation_id = "listAuthorities")]
    async fn list(&self, core: Area<'_, Core>, _viewer: Viewer) -> Answer<AuthorityList> {
        ok(AuthorityList::of(&core))
    }

    /// Which certificates hosts accept
    ///
    /// Those that trust one kind only, and which kind they are shown. The others accept either. Hosts that are disabled,
    /// over, or were never installed are not counted.
    #[oai(path = "/hosts", method = "get", operation_id = "getHostTrust")]
    async fn hosts(&self, hosts: Area<'_, Hosts>, _viewer: Viewer) -> Answer<HostTrustBody> {
        ok(HostTrustBody::from(hosts.hosts_by_trust().await?))
    }

    /// Prepare a new authority
    ///
    /// It is trusted from here on by whatever is baked or read anew, and signs nothing yet.
    #[oai(path = "/:role/prepare", method = "post", operation_id = "prepareAuthority")]
    async fn prepare(
        &self,
        core: Area<'_, Core>,
        trust: Area<'_, Trust>,
        admin: Admin,
        role: Path<AuthorityRole>,
    ) -> Answer<AuthorityList> {
        trust.prepare_authority(role.0.into(), &admin.0).await?;
        ok(AuthorityList::of(&core))
    }

    /// Let the prepared authority sign
    ///
    /// The one before stays trusted. Refused (409) while hosts would be cut off by it, unless forced.
    #[oai(path = "/:role/activate", method = "post", operation_id = "activateAuthority")]
    async fn activate(
        &self,
        core: Area<'_, Core>,
        trust: Area<'_, Trust>,
        admin: Admin,
        role: Path<AuthorityRole>,
        /// Also where somebody is cut off.
        force: Query<Option<Flag>>,
    ) -> Answer<AuthorityList> {
        trust.activate_authority(role.0.into(), force.0.is_some_and(Flag::is_set), &admin.0).await?;
        ok(AuthorityList::of(&core))
    }

    /// Trust the old authority no more
    ///
    /// Refused (409) while hosts or admins depend on it, unless forced.
    #[oai(path = "/:role/retire", method = "post", operation_id = "retireAuthority")]
    async fn retire(
        &self,
        core: Area<'_, Core>,
        trust: Area<'_, Trust>,
        admin: Admin,
        role: Path<AuthorityRole>,
        /// Also where somebody is cut off.
        force: Query<Option<Flag>>,
    ) -> Answer<AuthorityList> {
        trust.retire_authority(role.0.into(), force.0.is_some_and(Flag::is_set), &admin.0).await?;
        ok(AuthorityList::of(&core))
    }
}

closed_set! {
    /// Which authority: `server` signs the daemon's certificate, `client` the admins'.
    pub enum AuthorityRole { Server = "server", Client = "client" } of authority::AuthorityRole
}

impl From<AuthorityRole> for authority::AuthorityRole {
    fn from(role: AuthorityRole) -> Self {
        match role {
            AuthorityRole::Server => Self::Server,
            AuthorityRole::Client => Self::Client,
        }
    }
}

closed_set! {
    /// `next`: trusted, and signs nothing yet. `active`: signs. `old`: trusted, and signs no more.
    pub enum AuthoritySlot { Next = "next", Active = "active", Old = "old" } of records::AuthoritySlot
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthorityList {
    pub authorities: Vec<AuthorityBody>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthorityBody {
    pub id: String,
    pub role: AuthorityRole,
    pub slot: AuthoritySlot,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    pub certificate_pem: String,
    /// The one before certified it: whoever trusts that one is not cut off when this one signs.
    pub cross_certified: bool,
}

impl AuthorityList {
    fn of(core: &Core) -> Self {
        let authorities = core.authorities();
        let bodies = authorities.all().iter().map(|held| AuthorityBody {
            id: held.id.to_string(),
            role: held.role.into(),
            slot: held.slot.into(),
            expires_at: held.key.not_after(),
            certificate_pem: held.key.certificate_pem().to_owned(),
            cross_certified: held.cross_certificate_pem.is_some(),
        });
        Self { authorities: bodies.collect() }
    }
}

/// What the wrappers of hosts trust: `trust_ours_alone` accept no other certificate than one of our authority,
/// `trust_system_alone` what their machine's trust store vouches for and nothing else.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct HostTrustBody {
    /// Hosts are shown a certificate that the trust store of their machine vouches for: the operator's, or a proxy's.
    pub is_switched: bool,
    pub trust_ours_alone: HostGroupBody,
    pub trust_system_alone: HostGroupBody,
}

/// Some hosts.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct HostGroupBody {
    pub count: u64,
    /// A few of them.
    pub names: Vec<String>,
}

impl From<HostsByTrust> for HostTrustBody {
    fn from(hosts: HostsByTrust) -> Self {
        Self {
            is_switched: hosts.is_switched,
            trust_ours_alone: hosts.trust_ours_alone.into(),
            trust_system_alone: hosts.trust_system_alone.into(),
        }
    }
}

impl From<HostGroup> for HostGroupBody {
    fn from(group: HostGroup) -> Self {
        Self { count: group.count as u64, names: group.names }
    }
}

impl From<HostTrustBody> for HostsByTrust {
    fn from(body: HostTrustBody) -> Self {
        Self {
            is_switched: body.is_switched,
            trust_ours_alone: body.trust_ours_alone.into(),
            trust_system_alone: body.trust_system_alone.into(),
        }
    }
}

impl From<HostGroupBody> for HostGroup {
    fn from(body: HostGroupBody) -> Self {
        Self { count: body.count.try_into().unwrap_or(usize::MAX), names: body.names }
    }
}
