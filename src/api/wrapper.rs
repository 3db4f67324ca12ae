//! `GET /wrapper` and `GET /wrapper/download`: the host's own `cdx`.

use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::errors::{Answer, Failure, ok};
use super::guards::HostCaller;
use super::install::Script;
use crate::service::admission::Purpose;
use crate::service::{Admission, Hosts};

pub struct WrapperApi;

#[OpenApi(tag = "Tag::Wrapper")]
impl WrapperApi {
    /// What the host's wrapper is
    #[oai(path = "/wrapper", method = "get", operation_id = "getWrapper")]
    async fn wrapper(
        &self,
        hosts: Area<'_, Hosts>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
    ) -> Answer<WrapperBody> {
        let host = caller.admit(&admission, Purpose::Service).await?;
        let wrapper = hosts.wrapper(&host)?;
        ok(WrapperBody {
            version: wrapper.version.into(),
            sha256: wrapper.digest.to_string(),
            size_bytes: wrapper.script.expose().len() as u64,
            updated_at: wrapper.updated_at,
            url: "/wrapper/download".into(),
        })
    }

    /// The host's wrapper, its own values baked in
    #[oai(path = "/wrapper/download", method = "get", operation_id = "downloadWrapper")]
    async fn download(
        &self,
        hosts: Area<'_, Hosts>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
    ) -> Result<WrapperDownload, Failure> {
        let host = caller.admit(&admission, Purpose::Service).await?;
        let wrapper = hosts.download_wrapper(&host)?;
        Ok(WrapperDownload::Script(
            Script(wrapper.script),
            format!("attachment; filename=\"cdx-{}.sh\"", wrapper.version),
            wrapper.digest.to_string(),
            format!("\"{}\"", wrapper.digest),
        ))
    }
}

/// The wrapper at `url`.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct WrapperBody {
    version: String,
    sha256: String,
    size_bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    url: String,
}

#[derive(ApiResponse)]
enum WrapperDownload {
    /// A bash script.
    #[oai(status = 200)]
    Script(
        Script,
        #[oai(header = "Content-Disposition")] String,
        /// SHA-256 of the script.
        #[oai(header = "X-SHA256")]
        String,
        #[oai(header = "ETag")] String,
    ),
}
