//! `/admin/auth`: upload, show, history, comparison and rollback of the canonical login.

use std::sync::Arc;

use poem_openapi::param::{Header, Query};
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::admin_runner::RestoredLoginBody;
use super::area::Area;
use super::bodies::RawBody;
use super::closed_set::closed_set;
use super::errors::{Answer, ok};
use super::flags::Flag;
use super::guards::{Admin, Principal, Viewer};
use super::json::{ExactText, JsonBody, Verbatim};
use super::pages::{self, default_limit};
use super::types::auth::AuthAnswer;
use crate::model::people::Role;
use crate::records::{CanonicalSource, CanonicalSummary};
use crate::service::core::replays::Repeatable;
use crate::service::login::history::Difference;
use crate::service::login::history::History;
use crate::service::{Core, Hosts, Login, Probes, ServiceError};

pub struct AdminAuthApi;

#[OpenApi(tag = "Tag::AdminAuth", prefix_path = "/admin/auth")]
impl AdminAuthApi {
    /// Upload an auth.json
    ///
    /// It becomes the canonical one if it is newer (`updated`), by the same rules as a host's store, and if it is of the
    /// same account (409 `other_account`), unless the request says that it may change the account or be older.
    #[oai(path = "/upload", method = "post", operation_id = "uploadAuth")]
    async fn upload(
        &self,
        core: Area<'_, Core>,
        hosts: Area<'_, Hosts>,
        login: Area<'_, Login>,
        admin: Admin,
        /// A repeated request with the same key is given the first answer, for a day, and is not done again.
        #[oai(name = "Idempotency-Key")]
        key: Header<Option<String>>,
        body: RawBody<UploadRequest>,
    ) -> Answer<AuthAnswer> {
        let (hosts, login, by, text) = (hosts.share(), login.share(), admin.0.clone(), body.text.clone());
        let body = body.text.as_bytes();
        let request = Repeatable { key: key.0.as_deref(), by: &admin.0, operation: "uploadAuth", body };
        let upload = async move {
            let sync = login.upload(&text, &by).await?;
            AuthAnswer::of(&hosts, &login, sync)
        };
        ok(core.share().once(request, upload).await?)
    }

    /// The canonical login, without its secrets unless asked
    ///
    /// Its version, where it came from, and when it was stored.
    #[oai(path = "/", method = "get", operation_id = "showAuth")]
    async fn show(
        &self,
        core: Area<'_, Core>,
        login: Area<'_, Login>,
        probes: Area<'_, Probes>,
        asking: Principal,
        /// With the document, for admins only. This is noted in the audit log.
        include_body: Query<Option<Flag>>,
    ) -> Answer<AuthShown> {
        let reveal = include_body.0.is_some_and(Flag::is_set);
        asking.needs(if reveal { Role::Admin } else { Role::Viewer })?;
        let canonical = if reveal { login.reveal_canonical(&asking.by).await? } else { core.canonical() };
        let canonical = canonical.ok_or(ServiceError::NotFound("Canonical auth"))?;
        let text = reveal.then(|| Arc::clone(&canonical.text));
        let restored_login = probes.restored_login().map(RestoredLoginBody::from);
        ok(AuthShown {
            version: canonical.summary.clone().into(),
            auth_text: text.clone().map(ExactText::from),
            auth: text.map(Verbatim::from),
            restored_login,
        })
    }

    /// The versions that are kept, newest first, without the secrets
    ///
    /// Kept are the newest ones (`auth.keep_versions`), those of the last 30 days, and the canonical one.
    #[oai(path = "/history", method = "get", operation_id = "getAuthHistory")]
    async fn history(
        &self,
        login: Area<'_, Login>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<AuthHistory> {
        let History { versions, next } = login.canonical_history(pages::number(&cursor)?, limit.0 as usize).await?;
        let next = next.map(|next| next.to_string());
        ok(AuthHistory { versions: versions.into_iter().map(AuthVersion::from).collect(), next })
    }

    /// What differs between two versions, without the secrets
    ///
    /// Of a secret only the beginning of its SHA-256 is shown.
    #[oai(path = "/diff", method = "get", operation_id = "diffAuth")]
    async fn diff(
        &self,
        login: Area<'_, Login>,
        _viewer: Viewer,
        /// The number of the earlier version.
        from: Query<u64>,
        /// The number of the later version.
        to: Query<u64>,
    ) -> Answer<AuthDiff> {
        let differences = login.diff(from.0, to.0).await?;
        let differences =
            differences.into_iter().map(|Difference { path, before, after }| AuthDifference { path, before, after });
        ok(AuthDiff { differences: differences.collect() })
    }

    /// Bring back the login of an earlier version
    ///
    /// It becomes a new version with the present instant as its `last_refresh`, so that every host takes it. What upstream
    /// has withdrawn since (a refresh token is good once) does not come back with it.
    #[oai(path = "/rollback", method = "post", operation_id = "rollBackAuth")]
    async fn roll_back(
        &self,
        login: Area<'_, Login>,
        admin: Admin,
        body: JsonBody<RollbackRequest>,
    ) -> Answer<RolledBack> {
        let canonical = login.roll_back(body.0.version, &admin.0).await?;
        ok(RolledBack { version: canonical.summary.clone().into() })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// The number of the version whose login is to be the canonical one again.
    version: u64,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct RolledBack {
    pub version: AuthVersion,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthDiff {
    pub differences: Vec<AuthDifference>,
}

/// A member that differs.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthDifference {
    /// A JSON pointer.
    pub path: String,
    /// What was there; of a secret only the beginning of its SHA-256. Null: nothing.
    pub before: Option<String>,
    /// What is there now, in the same way.
    pub after: Option<String>,
}

/// What an admin uploads.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct UploadRequest {
    /// The exact text of the auth.json. The former service's `auth`, which holds the document itself, is accepted too.
    auth_text: String,
    /// The host it came from, if any; it must be there.
    host_id: Option<u64>,
    /// Have the canonical login proved afterwards, in the background.
    probe: Option<bool>,
    /// The login may be of another account, user or kind than the canonical one, and takes its place whatever their dates.
    change_account: Option<bool>,
    /// The login takes the canonical one's place even if it is older.
    even_if_older: Option<bool>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthShown {
    #[serde(flatten)]
    #[oai(flatten)]
    pub version: AuthVersion,
    /// The exact text, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_text: Option<ExactText>,
    /// The same as JSON. A JSON library may change its bytes: use `auth_text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Verbatim>,
    /// It came back from a backup, and its refresh token may have been spent since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_login: Option<RestoredLoginBody>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthHistory {
    pub versions: Vec<AuthVersion>,
    pub next: Option<String>,
}

pages::listed!(AuthHistory: versions);

closed_set! {
    /// Where a version came from. `override`: an admin's upload that won although it was older. `runner`: Codex refreshed
    /// the tokens while a version was probed.
    pub enum AuthSource {
        Admin = "admin",
        Override = "override",
        Rollback = "rollback",
        Runner = "runner",
        Host = "host",
    }
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
    pub source: AuthSource,
    /// Which admin, which host, or of which version.
    pub source_name: String,
    #[serde(with = "time::serde::rfc3339")]
    pub stored_at: OffsetDateTime,
}

impl From<CanonicalSummary> for AuthVersion {
    fn from(summary: CanonicalSummary) -> Self {
        let (source, source_name) = match summary.source {
            CanonicalSource::Admin { by } => (AuthSource::Admin, by),
            CanonicalSource::Override { by } => (AuthSource::Override, by),
            CanonicalSource::Rollback { by, of } => (AuthSource::Rollback, format!("version {of}, by {by}")),
            CanonicalSource::Runner { of } => (AuthSource::Runner, format!("version {of}")),
            CanonicalSource::Host { fqdn, .. } => (AuthSource::Host, fqdn.into()),
        };
        Self {
            version: summary.version,
            digest: summary.digest.to_string(),
            last_refresh: summary.last_refresh,
            source,
            source_name,
            stored_at: summary.stored_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_codex_refreshed_names_the_one_that_was_probed() {
        let summary = CanonicalSummary {
            version: 8,
            digest: crate::model::digest::Digest::of(b""),
            last_refresh: "2026-11-26T12:00:00Z".into(),
            source: CanonicalSource::Runner { of: 7 },
            stored_at: OffsetDateTime::UNIX_EPOCH,
        };
        let shown = AuthVersion::from(summary);
        assert_eq!((shown.source.as_str(), shown.source_name.as_str()), ("runner", "version 7"));
    }
}
