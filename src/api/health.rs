//! `GET /healthz` and `GET /readyz`.

use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::Tag;
use super::area::Area;
use super::errors::{Answer, ok};
use crate::service::Core;

pub struct HealthApi;

#[OpenApi(tag = "Tag::Health")]
impl HealthApi {
    /// Whether the process answers
    #[oai(path = "/healthz", method = "get", operation_id = "getHealth")]
    async fn health(&self) -> Answer<Health> {
        ok(Health { state: "alive".into() })
    }

    /// Whether calls can be served
    ///
    /// 503 while the store cannot be read or written.
    #[oai(path = "/readyz", method = "get", operation_id = "getReadiness")]
    async fn readiness(&self, core: Area<'_, Core>) -> Answer<Health> {
        core.health.ready().await?;
        ok(Health { state: "ready".into() })
    }
}

/// How the daemon is.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Health {
    /// `alive` or `ready`.
    state: String,
}
