//! The request and answer of `POST /auth`.

use std::sync::Arc;

use poem_openapi::{Object, Union};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::super::closed_set::closed_set;
use super::super::json::{ExactText, Verbatim};
use super::super::versions::VersionsBody;
use crate::model::host::{Fqdn, HostActivity, HostRules};
use crate::service::hosts::enrol;
use crate::service::login::sync::{Outcome, Sync};
use crate::service::{Hosts, Login, ServiceError};

/// What a host sends: a retrieve or a store. The daemon also takes what hosts of the former service send: no `command`
/// (a retrieve), `auth_digest` or `auth_sha` for `digest`, the document itself as `auth`, and an auth.json as the whole
/// body (a store).
#[derive(Union)]
#[oai(one_of)]
pub enum AuthRequest {
    Retrieve(RetrieveRequest),
    Store(StoreRequest),
}

/// Asks whether the host's login is the canonical one.
#[derive(Object)]
pub struct RetrieveRequest {
    command: RetrieveCommand,
    /// SHA-256 of the host's auth.json; 64 zeros if it has none.
    digest: String,
    /// `last_refresh` of the host's auth.json; `2000-01-01T00:00:00Z` if it has none.
    last_refresh: String,
    client_version: Option<String>,
    wrapper_version: Option<String>,
    /// The host's kind of machine: it can run the native program.
    wrapper_target: Option<String>,
}

/// Offers the host's login.
#[derive(Object)]
pub struct StoreRequest {
    command: StoreCommand,
    /// The exact text of the host's auth.json.
    auth_text: String,
    client_version: Option<String>,
    wrapper_version: Option<String>,
    /// The host's kind of machine: it can run the native program.
    wrapper_target: Option<String>,
}

closed_set! {
    enum RetrieveCommand { Retrieve = "retrieve" }
}

closed_set! {
    enum StoreCommand { Store = "store" }
}

closed_set! {
    /// How a host's login compares with the canonical one.
    ///
    /// `valid`: it is the canonical one. `outdated`: `auth_text` replaces it. `upload_required`: the host's login is newer
    /// and is to be stored. `missing`: there is no canonical login yet. `updated`: the stored login is canonical now.
    /// `unchanged`: it was canonical already.
    pub enum SyncStatus {
        Valid = "valid",
        UploadRequired = "upload_required",
        Outdated = "outdated",
        Missing = "missing",
        Updated = "updated",
        Unchanged = "unchanged",
    } of Outcome
}

closed_set! {
    pub enum SyncAction { Store = "store" }
}

/// The canonical login, as far as the caller needs it.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct AuthAnswer {
    pub status: SyncStatus,
    /// RFC 3339, spelled as in the document.
    pub canonical_last_refresh: Option<String>,
    /// SHA-256 of the document as this host is given it, 64 lower-case hex digits.
    pub canonical_digest: Option<String>,
    /// `store`: the host's own login is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<SyncAction>,
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
    /// The exact text of the login that the host should have. The SHA-256 of its UTF-8 bytes is `canonical_digest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_text: Option<ExactText>,
    /// The same as JSON. A JSON library may change its bytes, so that its digest differs: use `auth_text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Verbatim>,
}

impl AuthAnswer {
    /// If there is an `auth`, it is the last member.
    pub fn of(hosts: &Hosts, login: &Login, sync: Sync) -> Result<Self, ServiceError> {
        let Sync { outcome, canonical, stored, host: told } = sync;
        let target = told.as_ref().and_then(|told| told.wrapper_target);
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
            status: outcome.into(),
            canonical_last_refresh: canonical.map(|canonical| canonical.summary.last_refresh.clone()),
            canonical_digest: canonical_digest.map(|digest| digest.to_string()),
            action: outcome.asks_for_store().then_some(SyncAction::Store),
            api_calls: told.as_ref().map_or(0, |told| told.activity.api_calls),
            token_usage_month: host.map(|_| TokenUsage::default()),
            versions: VersionsBody { reported_client_version, ..hosts.versions(host, target)?.into() },
            host: told
                .map(|told| HostBody::new(&told.host.fqdn, &told.host.rules, told.activity, told.host.updated_at)),
            quota_hard_fail: true,
            runner_applied: stored.then_some(false),
            auth_text: delivery.as_ref().map(|delivery| Arc::clone(&delivery.text).into()),
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

closed_set! {
    pub enum HostStatus {
        Active = "active",
        Disabled = "disabled",
        Expired = "expired",
        Removed = "removed",
    } of enrol::HostStatus
}

/// A host as it is told of itself.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct HostBody {
    pub fqdn: String,
    /// A host itself sees `active` only.
    pub status: HostStatus,
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
            status: HostStatus::Active,
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
