//! Rows of versions and of what points to them.

use uuid::Uuid;

use super::sealed_index;
use crate::durable::Staged;
use crate::records::embedded::rows::{self, Marked, RowSource};
use crate::records::{CanonicalVersion, Result};
use crate::seal::Place;

pub fn canonical<S: RowSource>(source: &S) -> Result<Option<CanonicalVersion>> {
    match pointer(source)? {
        Some(pointer) => fetch(source, pointer.row)?.map(Some).ok_or_else(|| rows::missing("version")),
        None => Ok(None),
    }
}

pub fn pointer(source: &impl RowSource) -> Result<Option<Marked<u64>>> {
    rows::get(source, rows::CANONICAL)
}

pub fn fetch(source: &impl RowSource, number: u64) -> Result<Option<CanonicalVersion>> {
    rows::get(source, rows::version(number))
}

/// The number of the version that the attempt `id` made.
pub fn number_of(source: &impl RowSource, id: Uuid) -> Result<Option<u64>> {
    rows::get(source, rows::version_id(id))
}

/// Removes a version, its index entries and what points to it.
pub fn remove(staged: &mut Staged<'_>, version: &CanonicalVersion) -> Result<()> {
    let number = version.summary.version;
    staged.remove(rows::version(number));
    staged.remove(rows::version_summary(number));
    staged.remove(rows::version_id(version.id));
    sealed_index::update(staged, &body_place(version.id), Some(&version.body), None);
    for entry in &version.entries {
        sealed_index::update(staged, &token_place(version.id, &entry.target), Some(&entry.token), None);
    }
    Ok(())
}

/// Writes a new version and what points to it, except the pointer to the canonical one.
pub fn add(staged: &mut Staged<'_>, version: &CanonicalVersion) -> Result<()> {
    let number = version.summary.version;
    put(staged, version)?;
    rows::put(staged, rows::version_summary(number), &version.summary)?;
    rows::put(staged, rows::version_id(version.id), &number)?;
    sealed_index::update(staged, &body_place(version.id), None, Some(&version.body));
    for entry in &version.entries {
        sealed_index::update(staged, &token_place(version.id, &entry.target), None, Some(&entry.token));
    }
    Ok(())
}

/// Overwrites a version; what points to it stays.
pub fn put(staged: &mut Staged<'_>, version: &CanonicalVersion) -> Result<()> {
    rows::put(staged, rows::version(version.summary.version), version)
}

fn body_place(id: Uuid) -> Place {
    Place::new("auth_payloads", "body", id)
}

fn token_place(id: Uuid, target: &str) -> Place {
    Place::new("auth_entries", "token", format_args!("{id}/{target}"))
}
