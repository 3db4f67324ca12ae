//! `/admin/authorities`: the two authorities, and rolling one over.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::param::{Path, Query};
use poem_openapi::{Enum, Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::guards::{Admin, Viewer};
use super::json::{Answer, ok};
use crate::model::authority::AuthorityRole;
use crate::records::AuthoritySlot;
use crate::service::Service;

pub struct AdminAuthoritiesApi;

#[OpenApi(tag = "Tag::AdminCertificates", prefix_path = "/admin/authorities")]
impl AdminAuthoritiesApi {
    /// The authorities in their slots
    #[oai(path = "/", method = "get", operation_id = "listAuthorities")]
    async fn list(&self, service: Data<&Arc<Service>>, _viewer: Viewer) -> Answer<AuthorityList> {
        ok(AuthorityList::of(&service))
    }

    /// Prepare a new authority
    ///
    /// It is trusted from here on by whatever is baked or read anew, and signs nothing yet.
    #[oai(path = "/:role/prepare", method = "post", operation_id = "prepareAuthority")]
    async fn prepare(&self, service: Data<&Arc<Service>>, admin: Admin, role: Path<Role>) -> Answer<AuthorityList> {
        service.prepare_authority(role.0.into(), &admin.0).await?;
        ok(AuthorityList::of(&service))
    }

    /// Let the prepared authority sign
    ///
    /// The one before stays trusted. Refused (409) while hosts would be cut off by it, unless forced.
    #[oai(path = "/:role/activate", method = "post", operation_id = "activateAuthority")]
    async fn activate(
        &self,
        service: Data<&Arc<Service>>,
        admin: Admin,
        role: Path<Role>,
        /// Also where somebody is cut off.
        force: Query<Option<bool>>,
    ) -> Answer<AuthorityList> {
        service.activate_authority(role.0.into(), force.0.unwrap_or_default(), &admin.0).await?;
        ok(AuthorityList::of(&service))
    }

    /// Trust the old authority no more
    ///
    /// Refused (409) while hosts or admins depend on it, unless forced.
    #[oai(path = "/:role/retire", method = "post", operation_id = "retireAuthority")]
    async fn retire(
        &self,
        service: Data<&Arc<Service>>,
        admin: Admin,
        role: Path<Role>,
        /// Also where somebody is cut off.
        force: Query<Option<bool>>,
    ) -> Answer<AuthorityList> {
        service.retire_authority(role.0.into(), force.0.unwrap_or_default(), &admin.0).await?;
        ok(AuthorityList::of(&service))
    }
}

/// Which authority: `server` signs the daemon's certificate, `client` the admins'.
#[derive(Clone, Copy, Debug, Enum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase")]
pub enum Role {
    Server,
    Client,
}

impl From<Role> for AuthorityRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Server => Self::Server,
            Role::Client => Self::Client,
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthorityList {
    pub authorities: Vec<AuthorityBody>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthorityBody {
    pub id: String,
    pub role: Role,
    /// `next`, `active` or `old`.
    pub slot: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    pub certificate_pem: String,
    /// The one before certified it: whoever trusts that one is not cut off when this one signs.
    pub cross_certified: bool,
}

impl AuthorityList {
    fn of(service: &Service) -> Self {
        let authorities = service.authorities();
        let bodies = authorities.all().iter().map(|held| AuthorityBody {
            id: held.id.to_string(),
            role: match held.role {
                AuthorityRole::Server => Role::Server,
                AuthorityRole::Client => Role::Client,
            },
            slot: match held.slot {
                AuthoritySlot::Next => "next",
                AuthoritySlot::Active => "active",
                AuthoritySlot::Old => "old",
            }
            .into(),
            expires_at: held.key.not_after(),
            certificate_pem: held.key.certificate_pem().to_owned(),
            cross_certified: held.cross_certificate_pem.is_some(),
        });
        Self { authorities: bodies.collect() }
    }
}
