//! `/admin/doctor`: what is wrong, as far as only the daemon knows.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::OpenApi;

use super::Tag;
use super::checks::Checks;
use super::guards::Viewer;
use super::json::{Answer, ok};
use crate::service::Service;

pub struct AdminDoctorApi;

#[OpenApi(tag = "Tag::AdminOverview")]
impl AdminDoctorApi {
    /// What is wrong, and what mends it
    ///
    /// As far as the node that is asked knows it: its clock, the store, the authorities, who may come in, the login, what
    /// probes need. `codex-authd doctor` looks at the machine besides.
    #[oai(path = "/admin/doctor", method = "get", operation_id = "examine")]
    async fn examine(&self, service: Data<&Arc<Service>>, _viewer: Viewer) -> Answer<Checks> {
        ok(Checks::from(service.examine().await))
    }
}
