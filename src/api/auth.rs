//! `POST /auth` and `DELETE /auth`: the canonical login, retrieved or stored, and a host that leaves.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::param::Query;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::errors::Failure;
use super::guards::{Caller, HostKey};
use super::json::{Answer, Envelope, JsonBody, UnreadBody, Verbatim, ok};
use super::lines::Lines;
use super::versions::VersionsBody;
use crate::hot::HotHost;
use crate::model::host::{Fqdn, HostActivity, HostRules};
use crate::service::admission::Purpose;
use crate::service::sync::{QueryVersions, Sync};
use crate::service::{Service, ServiceError};

pub struct AuthApi;

#[OpenApi(tag = "Tag::Auth")]
impl AuthApi {
    /// Retrieve or store the canonical login
    ///
    /// Retrieve: the digest is compared with the canonical one (`valid`); where it differs, the newer `last_refresh`
    /// decides between `outdated` (the answer holds `auth`) and `upload_required`, which is also the answer to a date that is
    /// in the future; `missing`: there is none yet. Store: a newer document of the same account becomes the canonical one
    /// (`updated`), dated anew if the host's clock is wrong; the same one is `unchanged`, an older one `outdated`. Each of
    /// these answers holds the `auth` that the host should have. Another account: 409 `other_account`. Newer is what the
    /// access token's `iat` says, or `last_refresh` where a token has none. Without a command it is a retrieve, or, where
    /// the body is itself an auth.json, a store of it.
    ///
    /// The SHA-256 of the bytes of `auth` is `canonical_digest`. A host whose store held `agent_identity` gets that back as
    /// the last member, and nobody else does: its digest is its own.
    #[oai(path = "/auth", method = "post", operation_id = "syncAuth")]
    #[allow(clippy::too_many_arguments)] // One parameter each of the operation.
    async fn sync(
        &self,
        service: Data<&Arc<Service>>,
        caller: Caller,
        key: HostKey,
        /// For bodies that have none.
        client_version: Query<Option<String>>,
        /// For bodies that have none.
        wrapper_version: Query<Option<String>>,
        /// `lines`: the answer as lines of text, for shells (see the default response).
        format: Query<Option<Format>>,
        body: UnreadBody<AuthRequest>,
    ) -> Result<SyncAnswer, Failure> {
        let versions = QueryVersions {
            client_version: client_version.0.as_deref(),
            wrapper_version: wrapper_version.0.as_deref(),
        };
        let done = async {
            // Before a byte of the body: who is refused has sent none that counts.
            let host = key.admit(&service, caller, Purpose::Service).await?;
            let text = body.read(&host).await?;
            Ok::<_, Failure>(answer(&service, service.sync(host, caller.0, &text, versions).await?)?)
        }
        .await;
        match (format.0, done) {
            (None, done) => ok(done?).map(SyncAnswer::Done),
            (Some(Format::Lines), Ok(data)) => Ok(SyncAnswer::lines(Lines::of_answer(&data))),
            (Some(Format::Lines), Err(failure)) => Ok(SyncAnswer::lines(Lines::of_failure(&failure))),
        }
    }

    /// Take this host out
    ///
    /// The host, its key and its pending installers are gone. `force=1` works from any address.
    #[oai(path = "/auth", method = "delete", operation_id = "leave")]
    async fn leave(
        &self,
        service: Data<&Arc<Service>>,
        caller: Caller,
        key: HostKey,
        /// `1`: from whatever address the call comes.
        force: Query<Option<String>>,
    ) -> Answer<Left> {
        let anywhere = force.0.as_deref().is_some_and(|force| force == "1" || force == "true");
        let host = key.admit(&service, caller, Purpose::Leave { anywhere }).await?;
        let removed = service.leave(&host, caller.0).await?;
        ok(Left { deleted: removed.fqdn.into() })
    }
}

/// The answer to a sync; `data` holds `auth` as its last member when there is one.
pub fn answer(service: &Service, sync: Sync) -> Result<AuthAnswer, ServiceError> {
    let host = sync.host.as_ref().map(|host| &*host.host);
    let canonical = sync.canonical.as_deref();
    let delivery = canonical.filter(|_| sync.outcome.carries_auth()).map(|it| match service.deliver(it, host) {
        // A store is durable by now, and nothing may turn it into a failure: a host whose agent identity cannot be opened
        // is answered without it.
        Err(_) if sync.stored => service.deliver(it, None),
        delivered => delivered,
    });
    let delivery = delivery.transpose()?;
    let canonical_digest = match (&delivery, canonical) {
        (Some(delivery), _) => Some(delivery.digest),
        (None, Some(canonical)) => Some(service.delivered_digest(canonical, host)?),
        (None, None) => None,
    };
    let auth = delivery.map(|delivery| Verbatim::new(&delivery.text)).transpose().map_err(ServiceError::internal)?;
    let versions = service.versions(host)?;
    Ok(AuthAnswer {
        status: sync.outcome.as_str().into(),
        canonical_last_refresh: sync.canonical.as_ref().map(|canonical| canonical.summary.last_refresh.clone()),
        canonical_digest: canonical_digest.map(|digest| digest.to_string()),
        action: sync.outcome.asks_for_store().then(|| "store".into()),
        api_calls: sync.host.as_ref().map_or(0, |host| host.activity.api_calls),
        token_usage_month: sync.host.as_ref().map(|_| TokenUsage::default()),
        host: sync.host.as_ref().map(|host| HostBody::of_hot(&host.host, host.activity.clone())),
        versions: versions.into(),
        quota_hard_fail: true,
        runner_applied: sync.stored.then_some(false),
        auth,
    })
}

#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "lowercase")]
pub enum Format {
    Lines,
}

/// What a host sends. A store may also be the auth.json itself as the whole body.
#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(example)]
pub struct AuthRequest {
    /// `retrieve` (also when it is left out) or `store`.
    command: Option<String>,
    /// RFC 3339; of the host's auth.json. Not before 2000-01-01. For a retrieve.
    last_refresh: Option<String>,
    /// SHA-256 of the host's auth.json, 64 hex digits. For a retrieve.
    digest: Option<String>,
    /// The same as `digest`.
    auth_digest: Option<String>,
    /// The same as `digest`.
    auth_sha: Option<String>,
    client_version: Option<String>,
    wrapper_version: Option<String>,
    /// The document. For a store.
    auth: Option<Verbatim>,
}

impl poem_openapi::types::Example for AuthRequest {
    fn example() -> Self {
        Self {
            command: Some("retrieve".into()),
            last_refresh: Some("2025-11-20T09:27:43.373506211Z".into()),
            digest: Some("4ca8999f9c1e77edd48fd23c9c0ff9182c3dd3604f11131e286139a9d948db33".into()),
            auth_digest: None,
            auth_sha: None,
            client_version: Some("0.169.0".into()),
            wrapper_version: None,
            auth: None,
        }
    }
}

/// The canonical login, as far as the caller needs it.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthAnswer {
    /// `valid`, `outdated`, `upload_required`, `missing`, `updated` or `unchanged`.
    pub status: String,
    /// RFC 3339, spelled as in the document.
    pub canonical_last_refresh: Option<String>,
    /// SHA-256 of the document as this host is given it, 64 lower-case hex digits.
    pub canonical_digest: Option<String>,
    /// `store`: the host's own document is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Calls of this host so far, this one included.
    pub api_calls: u64,
    pub token_usage_month: Option<TokenUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostBody>,
    pub versions: VersionsBody,
    /// Whether the wrapper stops when the quota is used up.
    pub quota_hard_fail: bool,
    /// Whether the runner changed what was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_applied: Option<bool>,
    /// The canonical document, byte for byte as it was hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Verbatim>,
}

/// Tokens used this month, in tokens.
#[derive(Debug, Default, Object, Serialize, Deserialize)]
pub struct TokenUsage {
    total: u64,
    input: u64,
    output: u64,
    cached: u64,
    reasoning: u64,
    events: u64,
}

/// A host as it is told of itself.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct HostBody {
    pub fqdn: String,
    /// `active`; an admin also sees `disabled`, `expired` and `removed`.
    pub status: String,
    /// `last_refresh` of the canonical document that the host last had in hand.
    pub last_refresh: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    pub client_version: Option<String>,
    pub wrapper_version: Option<String>,
    pub api_calls: u64,
    pub allow_roaming_ips: bool,
    pub secure: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_enabled_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_grace_until: Option<OffsetDateTime>,
}

impl HostBody {
    pub fn new(fqdn: &Fqdn, rules: &HostRules, activity: HostActivity, updated_at: OffsetDateTime) -> Self {
        Self {
            fqdn: fqdn.as_str().into(),
            status: "active".into(),
            last_refresh: activity.last_refresh,
            updated_at,
            client_version: activity.client_version,
            wrapper_version: activity.wrapper_version,
            api_calls: activity.api_calls,
            allow_roaming_ips: rules.allow_roaming_ips,
            secure: rules.secure,
            insecure_enabled_until: rules.insecure_enabled_until,
            insecure_grace_until: rules.insecure_grace_until,
        }
    }

    fn of_hot(host: &HotHost, activity: HostActivity) -> Self {
        Self::new(&host.fqdn, &host.rules, activity, host.updated_at)
    }
}

/// The host that was taken out.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Left {
    deleted: String,
}

#[derive(ApiResponse)]
enum SyncAnswer {
    /// Retrieved or stored.
    #[oai(status = 200)]
    Done(JsonBody<Envelope<AuthAnswer>>),
    /// Every answer when `format=lines`: lines `name value`, then, where there is a document, a line `auth LENGTH` and
    /// that many bytes.
    Lines(poem::http::StatusCode, Lines),
}

impl SyncAnswer {
    fn lines((status, lines): (poem::http::StatusCode, Lines)) -> Self {
        Self::Lines(status, lines)
    }
}
