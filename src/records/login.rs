//! The canonical login: its versions, and what each delivery target gets of it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Epoch, Result};
use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostId};
use crate::seal::Sealed;

#[async_trait]
pub trait LoginRecords: Send + Sync {
    /// Makes `new` the canonical version if the present one meets `condition`, decided in the transaction. Its number
    /// is one more than the highest ever; the audit entry has it as its target. A pruned version is unknown. Concurrent
    /// calls may be taken in any order; the embedded store takes the latest `last_refresh` first, so that most others
    /// lose at once.
    async fn canonical_replace(
        &self,
        condition: &ReplaceCondition,
        new: &NewCanonical,
        audit: &AuditNote,
    ) -> Result<Replacement>;
    async fn canonical_fetch(&self) -> Result<Option<CanonicalVersion>>;
    async fn canonical_fetch_version(&self, version: u64) -> Result<Option<CanonicalVersion>>;
    /// Up to `limit` kept versions below `before`, newest first, without their secrets.
    async fn canonical_list(&self, before: Option<u64>, limit: usize) -> Result<Vec<CanonicalSummary>>;
    /// Removes up to `limit` versions that `retention` does not keep, with their sealed values; returns their numbers
    /// in order. The canonical and the newest version stay, decided in the transaction. The audit entry has the first
    /// and last number as its target. The epoch stays: nodes cache the canonical version only.
    async fn canonical_prune(&self, retention: &Retention, limit: usize, audit: &AuditNote) -> Result<Vec<u64>>;
}

/// Where a canonical version came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum CanonicalSource {
    Admin {
        by: String,
    },
    /// An admin's upload that replaced a newer canonical version on request.
    Override {
        by: String,
    },
    /// An admin restored an earlier version.
    Rollback {
        by: String,
        of: u64,
    },
    /// Codex refreshed the tokens of a version during its probe.
    Runner {
        of: u64,
    },
    Host {
        id: HostId,
        fqdn: Fqdn,
    },
}

#[derive(Clone, Debug)]
pub struct NewCanonical {
    /// The id of the attempt: a repeated call that has already succeeded gets the same answer.
    pub id: Uuid,
    pub digest: Digest,
    pub last_refresh: String,
    /// The canonical text, at place `auth_payloads/body/<id>`.
    pub body: Sealed,
    pub entries: Vec<AuthEntry>,
    pub source: CanonicalSource,
    pub at: OffsetDateTime,
}

/// The versions to keep: those that either member keeps.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The number of newest versions to keep; at least one.
    pub newest: u64,
    /// Versions stored at this time or later.
    pub since: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthEntry {
    pub target: String,
    /// At place `auth_entries/token/<payload id>/<target>`.
    pub token: Sealed,
    pub token_type: String,
    pub organization: Option<String>,
    pub project: Option<String>,
    pub api_base: Option<String>,
}

/// What must hold of the present canonical version before it is replaced.
#[derive(Clone, Debug)]
pub enum ReplaceCondition {
    /// It has this number; `None`: there is none.
    Version(Option<u64>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// `epoch`: of the last write of the canonical version. `Epoch(0)` if a call is repeated and its version is no
    /// longer canonical.
    Replaced { version: CanonicalVersion, epoch: Epoch },
    /// Another version is canonical: this one.
    Conflict(Option<CanonicalVersion>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanonicalVersion {
    pub id: Uuid,
    #[serde(flatten)]
    pub summary: CanonicalSummary,
    pub body: Sealed,
    pub entries: Vec<AuthEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanonicalSummary {
    /// 1, 2, 3, …
    pub version: u64,
    pub digest: Digest,
    pub last_refresh: String,
    pub source: CanonicalSource,
    #[serde(with = "time::serde::rfc3339")]
    pub stored_at: OffsetDateTime,
}
