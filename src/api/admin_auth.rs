//! `/admin/auth`: upload, show, history.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::param::Query;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::auth::{AuthAnswer, answer};
use super::guards::Admin;
use super::json::{Answer, RawBody, Verbatim, ok};
use crate::records::{CanonicalSummary, Source};
use crate::service::{Service, ServiceError};

const MAX_HISTORY: usize = 1000;

pub struct AdminAuthApi;

#[OpenApi(tag = "Tag::AdminAuth", prefix_path = "/admin/auth")]
impl AdminAuthApi {
    /// Upload an auth.json
    ///
    /// It becomes the canonical one if it is newer (`updated`), by the same rules as a host's store.
    #[oai(path = "/upload", method = "post", operation_id = "uploadAuth")]
    async fn upload(
        &self,
        service: Data<&Arc<Service>>,
        admin: Admin,
        body: RawBody<UploadRequest>,
    ) -> Answer<AuthAnswer> {
        let sync = service.upload(&body.text, &admin.name()).await?;
        ok(answer(&service, sync)?)
    }

    /// The canonical login, without its secrets unless asked
    #[oai(path = "/", method = "get", operation_id = "showAuth")]
    async fn show(
        &self,
        service: Data<&Arc<Service>>,
        _admin: Admin,
        /// `1`: with the document.
        include_body: Query<Option<String>>,
    ) -> Answer<AuthShown> {
        let canonical = service.canonical().ok_or(ServiceError::NotFound("Canonical auth"))?;
        let auth = include_body
            .0
            .filter(|include| include == "1" || include == "true")
            .map(|_| Verbatim::new(&canonical.text))
            .transpose()
            .map_err(ServiceError::internal)?;
        ok(AuthShown { version: canonical.summary.clone().into(), auth })
    }

    /// Every version, newest first, without the secrets
    #[oai(path = "/history", method = "get", operation_id = "getAuthHistory")]
    async fn history(
        &self,
        service: Data<&Arc<Service>>,
        _admin: Admin,
        /// At most this many, 1 to 1000.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u64>,
    ) -> Answer<AuthHistory> {
        let limit = usize::try_from(limit.0).unwrap_or(MAX_HISTORY).min(MAX_HISTORY);
        let versions = service.canonical_history(limit).await?;
        ok(AuthHistory { versions: versions.into_iter().map(AuthVersion::from).collect() })
    }
}

fn default_limit() -> u64 {
    100
}

/// What an admin uploads.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct UploadRequest {
    /// The document; a text that holds it is accepted too.
    auth: Verbatim,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthShown {
    #[serde(flatten)]
    #[oai(flatten)]
    pub version: AuthVersion,
    /// The document, byte for byte as it was hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Verbatim>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthHistory {
    pub versions: Vec<AuthVersion>,
}

/// A version of the canonical login.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthVersion {
    /// 1, 2, 3, …
    pub version: u64,
    /// SHA-256 of the text, 64 lower-case hex digits.
    pub digest: String,
    /// RFC 3339, spelled as in the document.
    pub last_refresh: String,
    /// `admin` or `host`.
    pub source: String,
    /// Which admin or which host.
    pub source_name: String,
    #[serde(with = "time::serde::rfc3339")]
    pub stored_at: OffsetDateTime,
}

impl From<CanonicalSummary> for AuthVersion {
    fn from(summary: CanonicalSummary) -> Self {
        let (source, source_name) = match summary.source {
            Source::Admin { by } => ("admin", by),
            Source::Host { fqdn, .. } => ("host", fqdn.into()),
        };
        Self {
            version: summary.version,
            digest: summary.digest.to_string(),
            last_refresh: summary.last_refresh,
            source: source.into(),
            source_name,
            stored_at: summary.stored_at,
        }
    }
}
