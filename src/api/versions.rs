//! `GET /versions`.

use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::errors::{Answer, ok};
use crate::service::Hosts;
use crate::service::hosts::versions::Versions;

pub struct VersionsApi;

#[OpenApi(tag = "Tag::Versions")]
impl VersionsApi {
    /// The versions a host should have
    ///
    /// Needs no key.
    #[oai(path = "/versions", method = "get", operation_id = "getVersions")]
    async fn versions(&self, hosts: Area<'_, Hosts>) -> Answer<VersionsBody> {
        ok(hosts.versions(None)?.into())
    }
}

/// Versions of Codex (`client`) and of the wrapper.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct VersionsBody {
    /// The newest release of Codex; null while upstream was not heard of.
    pub client_version: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub client_version_checked_at: Option<OffsetDateTime>,
    /// `cache` or `unknown`.
    pub client_version_source: String,
    pub wrapper_version: String,
    /// SHA-256 of the wrapper at `wrapper_url`; with a key, of that host's own.
    pub wrapper_sha256: String,
    pub wrapper_url: String,
    /// What the calling host said it has.
    pub reported_client_version: Option<String>,
    pub quota_hard_fail: bool,
}

impl From<Versions> for VersionsBody {
    fn from(versions: Versions) -> Self {
        Self {
            client_version_source: if versions.client_version.is_some() { "cache" } else { "unknown" }.into(),
            client_version: versions.client_version,
            client_version_checked_at: versions.client_version_checked_at,
            wrapper_version: versions.wrapper_version.into(),
            wrapper_sha256: versions.wrapper_digest.to_string(),
            wrapper_url: "/wrapper/download".into(),
            reported_client_version: None,
            quota_hard_fail: true,
        }
    }
}
