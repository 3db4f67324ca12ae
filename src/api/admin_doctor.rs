//! `/admin/doctor`: the checks that only the daemon can make.

use poem_openapi::OpenApi;

use super::Tag;
use super::area::Area;
use super::checks::Checks;
use super::errors::{Answer, ok};
use super::guards::{Admin, Viewer};
use crate::service::Status;

pub struct AdminDoctorApi;

#[OpenApi(tag = "Tag::AdminOverview")]
impl AdminDoctorApi {
    /// What is wrong, and what mends it
    ///
    /// As far as the node that is asked knows it: its clock, the store, the authorities, who may come in, the login, what
    /// probes need. `codex-authd doctor` looks at the machine besides.
    #[oai(path = "/admin/doctor", method = "get", operation_id = "examine")]
    async fn examine(&self, status: Area<'_, Status>, _viewer: Viewer) -> Answer<Checks> {
        ok(Checks::from(status.examine().await))
    }

    /// Read every row of the embedded store and its checksum
    ///
    /// One at a time. A store that is a database is not read: it sees to that itself.
    #[oai(path = "/admin/records/verify", method = "post", operation_id = "verifyRecords")]
    async fn verify_records(&self, status: Area<'_, Status>, _admin: Admin) -> Answer<Checks> {
        ok(Checks::from(Vec::from_iter(status.verify_records().await)))
    }
}
