//! The canonical version and all that were.

use bytes::Bytes;
use uuid::Uuid;

use crate::durable::{Result as DurableResult, Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::records::rules::pruned_note;
use crate::records::{
    CanonicalSummary, CanonicalVersion, Condition, Epoch, NewCanonical, Replacement, Result, Retention,
};
use crate::seal::Place;

use super::audit;
use super::changes::{self, Kind};
use super::rows::{self, Marked, Source};
use super::sealed;

pub(super) fn replace(
    staged: &mut Staged<'_>,
    condition: &Condition,
    new: &NewCanonical,
    note: &AuditNote,
) -> Result<Replacement> {
    let pointer = pointer(staged)?;
    if let Some(number) = number_of(staged, new.id)? {
        let version = version(staged, number)?.ok_or_else(|| rows::missing("version"))?;
        let epoch = pointer.filter(|pointer| pointer.row == number).map(|pointer| pointer.epoch);
        return Ok(Replacement::Replaced { version, epoch: epoch.unwrap_or(Epoch(0)) });
    }
    let Condition::Version(expected) = condition;
    if pointer.as_ref().map(|pointer| pointer.row) != *expected {
        return Ok(Replacement::Conflict(present(staged)?));
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
    add(staged, &made)?;
    audit::append(staged, &note.clone().on(number))?;
    let epoch = changes::bump(staged)?;
    changes::mark(staged, Kind::Canonical, b"", pointer.map(|pointer| pointer.epoch), epoch);
    rows::put(staged, rows::CANONICAL, &Marked { epoch, row: number })?;
    Ok(Replacement::Replaced { version: made, epoch })
}

pub(super) fn present<S: Source>(source: &S) -> Result<Option<CanonicalVersion>> {
    match pointer(source)? {
        Some(pointer) => version(source, pointer.row)?.map(Some).ok_or_else(|| rows::missing("version")),
        None => Ok(None),
    }
}

pub(super) fn pointer(source: &impl Source) -> Result<Option<Marked<u64>>> {
    rows::get(source, rows::CANONICAL)
}

pub(super) fn version(source: &impl Source, number: u64) -> Result<Option<CanonicalVersion>> {
    rows::get(source, rows::version(number))
}

/// The number of the version that the attempt `id` made.
pub(super) fn number_of(source: &impl Source, id: Uuid) -> Result<Option<u64>> {
    rows::get(source, rows::version_id(id))
}

pub(super) fn history(data: &Snapshot, before: Option<u64>, limit: usize) -> Result<Vec<CanonicalSummary>> {
    let (from, to) = rows::version_summaries_below(before);
    let newest_first = data.range(from, to).rev().take(limit);
    newest_first.map(|row| row.map_err(Into::into).and_then(|(key, value)| rows::decode(&key, &value))).collect()
}

/// Up to `limit` versions that `retention` does not keep, the lowest first.
pub(super) fn prunable(data: &Snapshot, retention: &Retention, limit: usize) -> Result<Vec<u64>> {
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

/// Removes those of `found` that are there and that nothing keeps now.
pub(super) fn prune(
    staged: &mut Staged<'_>,
    found: &[u64],
    retention: &Retention,
    note: &AuditNote,
) -> Result<Vec<u64>> {
    let canonical = pointer(staged)?.map(|pointer| pointer.row);
    let Some(kept_from) = kept_from(staged.scan(rows::VERSION_SUMMARY), retention)? else { return Ok(Vec::new()) };
    let mut pruned = Vec::new();
    for number in found.iter().copied().filter(|number| *number < kept_from && Some(*number) != canonical) {
        let Some(version) = version(staged, number)? else { continue };
        if version.summary.stored_at >= retention.since {
            continue;
        }
        remove(staged, &version)?;
        pruned.push(number);
    }
    if let Some(note) = pruned_note(note, &pruned) {
        audit::append(staged, &note)?;
    }
    Ok(pruned)
}

/// The lowest of the newest versions that are kept whatever their age; `None`: there are fewer.
fn kept_from(
    summaries: impl DoubleEndedIterator<Item = DurableResult<(Bytes, Bytes)>>,
    retention: &Retention,
) -> Result<Option<u64>> {
    let newest = usize::try_from(retention.newest.max(1)).unwrap_or(usize::MAX);
    let lowest = summaries.rev().nth(newest - 1).transpose()?;
    lowest.map(|(key, _)| rows::read_version_summary(&key)).transpose()
}

/// Removes a version, what is sealed of it, and what points to it.
fn remove(staged: &mut Staged<'_>, version: &CanonicalVersion) -> Result<()> {
    let number = version.summary.version;
    staged.remove(rows::version(number));
    staged.remove(rows::version_summary(number));
    staged.remove(rows::version_id(version.id));
    sealed::index(staged, &body_place(version.id), Some(&version.body), None);
    for entry in &version.entries {
        sealed::index(staged, &token_place(version.id, &entry.target), Some(&entry.token), None);
    }
    Ok(())
}

/// Writes a version that was not there, and what points to it, but for what makes it canonical.
pub(super) fn add(staged: &mut Staged<'_>, version: &CanonicalVersion) -> Result<()> {
    let number = version.summary.version;
    put(staged, version)?;
    rows::put(staged, rows::version_summary(number), &version.summary)?;
    rows::put(staged, rows::version_id(version.id), &number)?;
    sealed::index(staged, &body_place(version.id), None, Some(&version.body));
    for entry in &version.entries {
        sealed::index(staged, &token_place(version.id, &entry.target), None, Some(&entry.token));
    }
    Ok(())
}

/// Writes a version where it stands; what points to it stays.
pub(super) fn put(staged: &mut Staged<'_>, version: &CanonicalVersion) -> Result<()> {
    rows::put(staged, rows::version(version.summary.version), version)
}

pub(super) fn body_place(id: Uuid) -> Place {
    Place::new("auth_payloads", "body", id)
}

pub(super) fn token_place(id: Uuid, target: &str) -> Place {
    Place::new("auth_entries", "token", format_args!("{id}/{target}"))
}

fn highest(staged: &Staged<'_>, pointer: Option<&Marked<u64>>) -> Result<u64> {
    // What was staged a moment ago, in the same batch, is canonical, and no scan sees it.
    let pointer = pointer.map(|pointer| pointer.row).unwrap_or_default();
    let stored = match staged.scan(rows::VERSION_SUMMARY).next_back().transpose()? {
        Some((key, value)) => rows::decode::<CanonicalSummary>(&key, &value)?.version,
        None => 0,
    };
    Ok(stored.max(pointer))
}
