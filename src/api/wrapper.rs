//! `GET /wrapper` and `GET /wrapper/download`: the host's own `cdx`, and the native programs.

use poem_openapi::param::{Header, Query};
use poem_openapi::payload::Binary;
use poem_openapi::{ApiResponse, Object, OpenApi, ResponseContent};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::auth::matches_etag;
use super::closed_set::closed_set;
use super::errors::{Answer, Failure, ok};
use super::guards::HostCaller;
use super::install::Script;
use crate::service::admission::Purpose;
use crate::service::hosts::programs::NativeTarget;
use crate::service::{Admission, Hosts, ServiceError};

pub struct WrapperApi;

#[OpenApi(tag = "Tag::Wrapper")]
impl WrapperApi {
    /// What the host's wrapper is
    ///
    /// Version, size and SHA-256 of the bash script.
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

    /// The host's wrapper
    ///
    /// Without `target`: the bash script, with the host's own values baked in. With it: the native program for this kind of
    /// machine, the same for every host; 404 `no_program` if the daemon has none. `ETag` and `X-SHA256` are the SHA-256 of the
    /// answer.
    #[oai(path = "/wrapper/download", method = "get", operation_id = "downloadWrapper")]
    async fn download(
        &self,
        hosts: Area<'_, Hosts>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
        /// The kind of machine whose native program is wanted.
        target: Query<Option<Target>>,
        /// The `ETag` of what the caller has.
        #[oai(name = "If-None-Match")]
        if_none_match: Header<Option<String>>,
    ) -> Result<WrapperDownload, Failure> {
        let host = caller.admit(&admission, Purpose::Service).await?;
        let (content, disposition, digest) = match target.0.map(NativeTarget::from) {
            Some(target) => {
                let program = hosts.native_program(target).ok_or(ServiceError::NoProgram(target))?;
                (WrapperContent::Program(Binary(program.bytes.clone())), None, program.digest)
            }
            None => {
                let wrapper = hosts.download_wrapper(&host)?;
                let disposition = format!("attachment; filename=\"cdx-{}.sh\"", wrapper.version);
                (WrapperContent::Script(Script(wrapper.script)), Some(disposition), wrapper.digest)
            }
        };
        let etag = format!("\"{digest}\"");
        Ok(match matches_etag(if_none_match.0.as_deref(), &etag) {
            true => WrapperDownload::NotModified(etag),
            false => WrapperDownload::Wrapper(content, disposition, digest.to_string(), etag),
        })
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

closed_set! {
    /// A kind of machine.
    pub enum Target {
        X86_64Linux = "x86_64-linux",
        Aarch64Linux = "aarch64-linux",
        X86_64Darwin = "x86_64-darwin",
        Aarch64Darwin = "aarch64-darwin",
    }
}

impl From<Target> for NativeTarget {
    fn from(target: Target) -> Self {
        match target {
            Target::X86_64Linux => Self::X86_64Linux,
            Target::Aarch64Linux => Self::Aarch64Linux,
            Target::X86_64Darwin => Self::X86_64Darwin,
            Target::Aarch64Darwin => Self::Aarch64Darwin,
        }
    }
}

#[derive(ApiResponse)]
enum WrapperDownload {
    /// The bash script, or the native program.
    #[oai(status = 200)]
    Wrapper(
        WrapperContent,
        /// For the script.
        #[oai(header = "Content-Disposition")]
        Option<String>,
        /// SHA-256 of the body.
        #[oai(header = "X-SHA256")]
        String,
        #[oai(header = "ETag")] String,
    ),
    /// The caller has it already.
    #[oai(status = 304)]
    NotModified(#[oai(header = "ETag")] String),
}

#[derive(ResponseContent)]
enum WrapperContent {
    Script(Script),
    Program(Binary<bytes::Bytes>),
}
