//! The audit log: entries by number, and the head that the next one is chained to.

use crate::durable::{Snapshot, Staged};
use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote};
use crate::records::Result;

use super::rows;

/// Stages an entry, after those that this change staged before.
pub(super) fn append(staged: &mut Staged<'_>, note: &AuditNote) -> Result<()> {
    let head: AuditHead = rows::get(staged, rows::AUDIT_HEAD)?.unwrap_or_default();
    let entry = head.chain(note.clone());
    rows::put(staged, rows::AUDIT_HEAD, &AuditHead { number: entry.number, hash: entry.hash })?;
    rows::put(staged, rows::audit(entry.number), &entry)
}

pub(super) fn head(data: &Snapshot) -> Result<AuditHead> {
    Ok(rows::get(data, rows::AUDIT_HEAD)?.unwrap_or_default())
}

/// The newest first.
pub(super) fn find(data: &Snapshot, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>> {
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
}

pub(super) fn from(data: &Snapshot, number: u64, limit: usize) -> Result<Vec<AuditEntry>> {
    let (from, to) = rows::audit_between(number, u64::MAX);
    let rows = data.range(from, to).take(limit);
    rows.map(|row| row.map_err(Into::into).and_then(|(key, value)| rows::decode(&key, &value))).collect()
}
