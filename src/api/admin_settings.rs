//! `/admin/api/state` (the kill switch) and `/admin/keys/rotate`.

use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::Tag;
use super::area::Area;
use super::errors::{Answer, ok};
use super::guards::{Admin, Viewer};
use super::json::JsonBody;
use crate::service::{Admission, Core, Trust};

pub struct AdminSettingsApi;

#[OpenApi(tag = "Tag::AdminSettings", prefix_path = "/admin")]
impl AdminSettingsApi {
    /// Whether hosts are served
    ///
    /// And if not, the reason that they are given.
    #[oai(path = "/api/state", method = "get", operation_id = "getApiState")]
    async fn state(&self, core: Area<'_, Core>, _viewer: Viewer) -> Answer<ApiState> {
        ok(ApiState::of(&core))
    }

    /// Stop serving hosts, or go on
    ///
    /// While it is off, hosts are answered 503; the admin listener stays.
    #[oai(path = "/api/state", method = "post", operation_id = "setApiState")]
    async fn set_state(
        &self,
        core: Area<'_, Core>,
        admission: Area<'_, Admission>,
        admin: Admin,
        body: JsonBody<ApiState>,
    ) -> Answer<ApiState> {
        admission.disable_api(body.0.disabled, body.0.reason.as_deref(), &admin.0).await?;
        ok(ApiState::of(&core))
    }

    /// Make a new data key and seal every secret with it
    ///
    /// Older keys are removed once nothing is sealed with them.
    #[oai(path = "/keys/rotate", method = "post", operation_id = "rotateKeys")]
    async fn rotate(&self, trust: Area<'_, Trust>, admin: Admin) -> Answer<Rotation> {
        let rotation = trust.rotate_keys(&admin.0).await?;
        ok(Rotation {
            active_key: rotation.active.0,
            resealed: rotation.resealed,
            removed_keys: rotation.removed as u64,
        })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct ApiState {
    /// Hosts are answered 503.
    pub disabled: bool,
    /// What hosts are told with it; one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl ApiState {
    fn of(core: &Core) -> Self {
        let settings = core.settings();
        Self { disabled: settings.api_disabled, reason: settings.api_disabled_reason.clone() }
    }
}

/// What a rotation did.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Rotation {
    /// The number of the key that is in force.
    pub active_key: u32,
    /// How many secrets were sealed again.
    pub resealed: u64,
    /// How many older keys are gone.
    pub removed_keys: u64,
}
