//! The audit log: numbered entries, each chained to the one before by its hash.

use async_trait::async_trait;

use super::Result;
use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote};

#[async_trait]
pub trait AuditRecords: Send + Sync {
    /// Appends entries that belong to no other change, such as a refusal or a shown secret.
    async fn audit_append(&self, notes: &[AuditNote]) -> Result<()>;
    /// Up to `limit` entries that `filter` admits, newest first.
    async fn audit_list(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>>;
    /// Up to `limit` entries from number `from` on, in order. Used to verify the chain.
    async fn audit_list_from(&self, from: u64, limit: usize) -> Result<Vec<AuditEntry>>;
    async fn audit_head(&self) -> Result<AuditHead>;
}
