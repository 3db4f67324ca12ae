//! The canonical version and the versions before it.

use std::cmp::Reverse;

use async_trait::async_trait;
use bytes::Bytes;

use super::Embedded;
use super::rows::{self, Marked};
use super::tables::versions;
use super::transaction::{self, ChangeKind};
use crate::durable::{self, Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::model::instant::Instant;
use crate::records::rules::pruned_note;
use crate::records::{
    CanonicalSummary, CanonicalVersion, Epoch, LoginRecords, NewCanonical, ReplaceCondition, Replacement, Result,
    Retention,
};

#[async_trait]
impl LoginRecords for Embedded {
    async fn canonical_replace(
        &self,
        condition: &ReplaceCondition,
        new: &NewCanonical,
        audit: &AuditNote,
    ) -> Result<Replacement> {
        let turn = Reverse(Instant::parse(&new.last_refresh).ok());
        let (condition, new, audit) = (condition.clone(), new.clone(), audit.clone());
        self.login_commits
            .commit(&self.data, turn, move |staged| {
                transaction::check_writable(staged)?;
                replace(staged, &condition, &new, &audit)
            })
            .await
    }

    async fn canonical_fetch(&self) -> Result<Option<CanonicalVersion>> {
        self.read(versions::canonical).await
    }

    async fn canonical_fetch_version(&self, version: u64) -> Result<Option<CanonicalVersion>> {
        self.read(|data| versions::fetch(data, version)).await
    }

    async fn canonical_list(&self, before: Option<u64>, limit: usize) -> Result<Vec<CanonicalSummary>> {
        self.read_much(move |data| {
            let (from, to) = rows::version_summaries_below(before);
            let newest_first = data.range(from, to).rev().take(limit);
            newest_first
                .map(|row| row.map_err(Into::into).and_then(|(key, value)| rows::decode(&key, &value)))
                .collect()
        })
        .await
    }

    async fn canonical_prune(&self, retention: &Retention, limit: usize, audit: &AuditNote) -> Result<Vec<u64>> {
        let kept = *retention;
        // This search reads every summary, before the change. The change then decides again.
        let found = self.read_much(move |data| prunable(data, &kept, limit)).await?;
        if found.is_empty() {
            return Ok(found);
        }
        self.change(|staged| prune(staged, &found, retention, audit)).await
    }
}

fn replace(
    staged: &mut Staged<'_>,
    condition: &ReplaceCondition,
    new: &NewCanonical,
    note: &AuditNote,
) -> Result<Replacement> {
    let pointer = versions::pointer(staged)?;
    if let Some(number) = versions::number_of(staged, new.id)? {
        let version = versions::fetch(staged, number)?.ok_or_else(|| rows::missing("version"))?;
        let epoch = pointer.filter(|pointer| pointer.row == number).map(|pointer| pointer.epoch);
        return Ok(Replacement::Replaced { version, epoch: epoch.unwrap_or(Epoch(0)) });
    }
    let ReplaceCondition::Version(expected) = condition;
    if pointer.as_ref().map(|pointer| pointer.row) != *expected {
        return Ok(Replacement::Conflict(versions::canonical(staged)?));
    }
    let made = CanonicalVersion {
        id: new.id,
        summary: CanonicalSummary {
            version: highest(staged, pointer.as_ref())? + 1,
            digest: new.digest,
            last_refresh: new.last_refresh.clone(),
            source: new.source.clone(),
            stored_at: new.at,
        },
        body: new.body.clone(),
        entries: new.entries.clone(),
    };
    let number = made.summary.version;
    versions::add(staged, &made)?;
    transaction::note(staged, &note.clone().on(number))?;
    let epoch = transaction::bump(staged)?;
    transaction::mark(staged, ChangeKind::Canonical, b"", pointer.map(|pointer| pointer.epoch), epoch);
    rows::put(staged, rows::CANONICAL, &Marked { epoch, row: number })?;
    Ok(Replacement::Replaced { version: made, epoch })
}

/// Up to `limit` versions that `retention` does not keep, in order.
fn prunable(data: &Snapshot, retention: &Retention, limit: usize) -> Result<Vec<u64>> {
    let Some(kept_from) = kept_from(data.scan(rows::VERSION_SUMMARY), retention)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for row in data.scan(rows::VERSION_SUMMARY) {
        let (key, value) = row?;
        let summary: CanonicalSummary = rows::decode(&key, &value)?;
        if summary.version >= kept_from || found.len() >= limit {
            break;
        }
        if summary.stored_at < retention.since {
            found.push(summary.version);
        }
    }
    Ok(found)
}

/// Removes those of `found` that still exist and that neither rule keeps.
fn prune(staged: &mut Staged<'_>, found: &[u64], retention: &Retention, note: &AuditNote) -> Result<Vec<u64>> {
    let canonical = versions::pointer(staged)?.map(|pointer| pointer.row);
    let Some(kept_from) = kept_from(staged.scan(rows::VERSION_SUMMARY), retention)? else { return Ok(Vec::new()) };
    let mut pruned = Vec::new();
    for number in found.iter().copied().filter(|number| *number < kept_from && Some(*number) != canonical) {
        let Some(version) = versions::fetch(staged, number)? else { continue };
        if version.summary.stored_at >= retention.since {
            continue;
        }
        versions::remove(staged, &version)?;
        pruned.push(number);
    }
    if let Some(note) = pruned_note(note, &pruned) {
        transaction::note(staged, &note)?;
    }
    Ok(pruned)
}

/// The lowest number of the newest versions, which are kept at any age. `None`: there are fewer versions.
fn kept_from(
    summaries: impl DoubleEndedIterator<Item = durable::Result<(Bytes, Bytes)>>,
    retention: &Retention,
) -> Result<Option<u64>> {
    let newest = usize::try_from(retention.newest.max(1)).unwrap_or(usize::MAX);
    let lowest = summaries.rev().nth(newest - 1).transpose()?;
    lowest.map(|(key, _)| rows::read_version_summary(&key)).transpose()
}

fn highest(staged: &Staged<'_>, pointer: Option<&Marked<u64>>) -> Result<u64> {
    // A version staged earlier in this batch is canonical, but scans do not see it.
    let pointer = pointer.map(|pointer| pointer.row).unwrap_or_default();
    let stored = match staged.scan(rows::VERSION_SUMMARY).next_back().transpose()? {
        Some((key, value)) => rows::decode::<CanonicalSummary>(&key, &value)?.version,
        None => 0,
    };
    Ok(stored.max(pointer))
}
