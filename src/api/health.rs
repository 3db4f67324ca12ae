//! `GET /healthz` and `GET /readyz`.

use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::Tag;
use super::area::Area;
use super::closed_set::closed_set;
use super::errors::{Answer, ok};
use crate::service::Core;

pub struct HealthApi;

#[OpenApi(tag = "Tag::Health")]
impl HealthApi {
    /// Whether the process answers
    ///
    /// It says nothing of the store.
    #[oai(path = "/healthz", method = "get", operation_id = "getHealth")]
    async fn health(&self) -> Answer<Health> {
        ok(Health { state: HealthState::Alive })
    }

    /// Whether calls can be served
    ///
    /// 503 while the store cannot be read or written.
    #[oai(path = "/readyz", method = "get", operation_id = "getReadiness")]
    async fn readiness(&self, core: Area<'_, Core>) -> Answer<Health> {
        core.health.ready().await?;
        ok(Health { state: HealthState::Ready })
    }
}

closed_set! {
    /// `alive`: the process answers. `ready`: calls can be served.
    pub enum HealthState { Alive = "alive", Ready = "ready" }
}

/// How the daemon is.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Health {
    state: HealthState,
}
