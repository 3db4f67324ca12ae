//! `GET /versions`.

use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::closed_set::closed_set;
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
        ok(hosts.versions(None, None)?.into())
    }
}

closed_set! {
    /// `unknown`: upstream was not reached yet.
    pub enum VersionSource { Cache = "cache", Unknown = "unknown" }
}

/// Versions of Codex (`client`) and of the wrapper.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct VersionsBody {
    /// The newest release of Codex; null while upstream was not heard of.
    pub client_version: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub client_version_checked_at: Option<OffsetDateTime>,
    pub client_version_source: VersionSource,
    pub wrapper_version: String,
    /// SHA-256 of the wrapper at `wrapper_url`; with a key, of that host's own.
    pub wrapper_sha256: String,
    /// The kind of machine whose native program `wrapper_sha256` is of; left out: it is the bash script's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapper_target: Option<String>,
    pub wrapper_url: String,
    /// What the calling host said it has.
    pub reported_client_version: Option<String>,
    pub quota_hard_fail: bool,
}

impl From<Versions> for VersionsBody {
    fn from(versions: Versions) -> Self {
        Self {
            client_version_source: match versions.client_version {
                Some(_) => VersionSource::Cache,
                None => VersionSource::Unknown,
            },
            client_version: versions.client_version,
            client_version_checked_at: versions.client_version_checked_at,
            wrapper_version: versions.wrapper_version.into(),
            wrapper_sha256: versions.wrapper_digest.to_string(),
            wrapper_target: versions.wrapper_target.map(|target| target.to_string()),
            wrapper_url: "/wrapper/download".into(),
            reported_client_version: None,
            quota_hard_fail: true,
        }
    }
}
