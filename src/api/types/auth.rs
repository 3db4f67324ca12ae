//! The request and answer of `POST /auth`.

use poem_openapi::Object;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::super::json::Verbatim;
use super::super::versions::VersionsBody;
use crate::model::host::{Fqdn, HostActivity, HostRules};
use crate::service::login::sync::Sync;
use crate::service::{Hosts, Login, ServiceError};

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

impl AuthAnswer {
    /// If there is an `auth`, it is the last member.
    pub fn of(hosts: &Hosts, login: &Login, sync: Sync) -> Result<Self, ServiceError> {
        let Sync { outcome, canonical, stored, host: told } = sync;
        let (host, canonical) = (told.as_ref().map(|told| &*told.host), canonical.as_deref());
        let delivery = canonical.filter(|_| outcome.carries_auth()).map(|it| match login.deliver(it, host) {
            // A store is durable by now, so nothing may turn it into a failure. If the host's agent identity cannot be
            // opened, the answer omits it.
            Err(_) if stored => login.deliver(it, None),
            delivered => delivered,
        });
        let delivery = delivery.transpose()?;
        let canonical_digest = match (&delivery, canonical) {
            (Some(delivery), _) => Some(delivery.digest),
            (None, Some(canonical)) => Some(login.delivered_digest(canonical, host)?),
            (None, None) => None,
        };
        let reported_client_version = told.as_ref().and_then(|told| told.activity.client_version.clone());
        Ok(Self {
            status: outcome.as_str().into(),
            canonical_last_refresh: canonical.map(|canonical| canonical.summary.last_refresh.clone()),
            canonical_digest: canonical_digest.map(|digest| digest.to_string()),
            action: outcome.asks_for_store().then(|| "store".into()),
            api_calls: told.as_ref().map_or(0, |told| told.activity.api_calls),
            token_usage_month: host.map(|_| TokenUsage::default()),
            versions: VersionsBody { reported_client_version, ..hosts.versions(host)?.into() },
            host: told
                .map(|told| HostBody::new(&told.host.fqdn, &told.host.rules, told.activity, told.host.updated_at)),
            quota_hard_fail: true,
            runner_applied: stored.then_some(false),
            auth: delivery.map(|delivery| delivery.text.into()),
        })
    }
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
}
