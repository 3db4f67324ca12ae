//! The audit log: appends entries that stand alone, lists entries and verifies the chain.
//!
//! A change and its entry are one transaction of the records: neither exists without the other. An event that changes
//! nothing (a refusal, a revealed secret) is appended by itself before the answer leaves. Refusals of one kind are
//! written once a minute (`security_events`). Each entry goes to the journal too, once it is durable.

use std::sync::Arc;

use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote, BrokenChain};
use crate::model::digest::Digest;
use crate::service::core::initiator::log_note;
use crate::service::{Core, Initiator, Result, ServiceError};

/// The result of verifying the whole chain.
#[derive(Clone, Copy, Debug)]
pub struct Verification {
    /// The last valid entry.
    pub good: AuditHead,
    pub broken: Option<BrokenChain>,
    /// Whether the chain contains the entry with the given hash; `None`: no hash was given.
    pub noted_found: Option<bool>,
}

const PAGE_ENTRIES: usize = 1000;

pub struct Audit {
    pub(super) core: Arc<Core>,
}

impl Audit {
    /// Entries that match `filter`, newest first.
    pub async fn audit_log(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>> {
        Ok(self.core.records.audit_list(filter, limit).await?)
    }

    /// Like [`Self::audit_log`], with `before` of the next page; `None`: there is no next page.
    pub async fn audit_page(&self, filter: &AuditFilter, limit: usize) -> Result<(Vec<AuditEntry>, Option<u64>)> {
        let mut entries = self.audit_log(filter, limit.saturating_add(1)).await?;
        let is_more = entries.len() > limit;
        entries.truncate(limit);
        let next = entries.last().filter(|_| is_more).map(|last| last.number);
        Ok((entries, next))
    }

    /// Verifies the chain from its first entry to the newest. `noted`: a hash that was noted elsewhere and must be in
    /// the chain.
    pub async fn verify_audit(&self, noted: Option<Digest>) -> Result<Verification> {
        let newest = self.core.records.audit_head().await?;
        let mut good = AuditHead::default();
        let mut noted_found = noted.map(|_| false);
        while good.number < newest.number {
            let page = self.core.records.audit_list_from(good.number + 1, PAGE_ENTRIES).await?;
            let Some(first) = page.first().map(|entry| entry.number) else {
                let broken = BrokenChain::Gap { expected: good.number + 1, found: newest.number };
                return Ok(Verification { good, broken: Some(broken), noted_found });
            };
            debug_assert!(first > good.number);
            for entry in &page {
                if let Err(broken) = good.follow(entry) {
                    return Ok(Verification { good, broken: Some(broken), noted_found });
                }
                if noted == Some(entry.hash) {
                    noted_found = Some(true);
                }
                if good.number == newest.number && good.hash != newest.hash {
                    let broken = BrokenChain::Changed { number: good.number };
                    return Ok(Verification { good, broken: Some(broken), noted_found });
                }
            }
        }
        Ok(Verification { good, broken: None, noted_found })
    }

    /// Notes that an authenticated caller was refused an operation.
    pub async fn note_refusal(&self, by: &Initiator, operation: &str, status: u16) {
        self.note_refused(by.note(self.core.platform.now(), operation).refused(status)).await;
    }

    /// The first refusal of its kind is in the audit log before the answer leaves. Those that follow within a minute
    /// become one entry with a count, as for hosts (`security_events`). If the store is away, the refusal is only
    /// logged: there is nothing to undo.
    pub(in crate::service) async fn note_refused(&self, note: AuditNote) {
        if !self.core.security_events.is_first(&note) {
            return;
        }
        match self.core.records.audit_append(std::slice::from_ref(&note)).await {
            Ok(()) => log_note(&note),
            Err(error) => {
                log_note(&note);
                log::warn!(event = "audit_unwritten", cause:% = ServiceError::from(error); "a refusal could not be noted in the audit log");
            }
        }
    }

    /// Durably notes an event that changes nothing else.
    pub(in crate::service) async fn note_alone(&self, note: AuditNote) -> Result<()> {
        self.core.records.audit_append(std::slice::from_ref(&note)).await?;
        log_note(&note);
        Ok(())
    }
}
