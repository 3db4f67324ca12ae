//! The audit log: entries by number.

use async_trait::async_trait;

use super::{Embedded, rows, transaction};
use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote};
use crate::records::{AuditRecords, Result};

#[async_trait]
impl AuditRecords for Embedded {
    async fn audit_append(&self, notes: &[AuditNote]) -> Result<()> {
        self.change(|staged| notes.iter().try_for_each(|note| transaction::note(staged, note))).await
    }

    async fn audit_list(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>> {
        let filter = filter.clone();
        self.read_much(move |data| {
            let (from, to) = rows::audit_between(0, filter.before.unwrap_or(u64::MAX));
            let mut found = Vec::new();
            for row in data.range(from, to).rev() {
                if found.len() >= limit {
                    break;
                }
                let (key, value) = row?;
                let entry: AuditEntry = rows::decode(&key, &value)?;
                if filter.admits(&entry) {
                    found.push(entry);
                }
            }
            Ok(found)
        })
        .await
    }

    async fn audit_list_from(&self, number: u64, limit: usize) -> Result<Vec<AuditEntry>> {
        self.read_much(move |data| {
            let (from, to) = rows::audit_between(number, u64::MAX);
            let rows = data.range(from, to).take(limit);
            rows.map(|row| row.map_err(Into::into).and_then(|(key, value)| rows::decode(&key, &value))).collect()
        })
        .await
    }

    async fn audit_head(&self) -> Result<AuditHead> {
        self.read(|data| Ok(rows::get(data, rows::AUDIT_HEAD)?.unwrap_or_default())).await
    }
}
