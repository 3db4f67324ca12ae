//! The rows that every change writes besides its own: the epoch, the change index, the audit log. Also the check
//! whether the store takes changes.
//!
//! A marked row carries the epoch that last changed it and has one entry in the change index, at that epoch. Changing
//! the row again moves the entry.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::rows::{self, RowSource};
use crate::durable::Staged;
use crate::model::audit::{AuditHead, AuditNote};
use crate::records::rules::being_filled;
use crate::records::{Epoch, Filling, RecordsError, Result, Standstill};

/// The kinds of rows in the change index, identified by a byte in its keys.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum ChangeKind {
    Host = b'h',
    InstallToken = b't',
    Canonical = b'c',
    Settings = b's',
    Certificates = b'C',
    Authorities = b'A',
    Users = b'U',
    Session = b'S',
}

impl ChangeKind {
    pub fn of(byte: u8) -> Option<Self> {
        use ChangeKind::{Authorities, Canonical, Certificates, Host, InstallToken, Session, Settings, Users};
        let all = [Host, InstallToken, Canonical, Settings, Certificates, Authorities, Users, Session];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

pub(super) fn epoch(source: &impl RowSource) -> Result<Epoch> {
    Ok(rows::get(source, rows::EPOCH)?.unwrap_or_default())
}

/// The epoch of the staged change. Call it once per change.
pub(super) fn bump(staged: &mut Staged<'_>) -> Result<Epoch> {
    let next = Epoch(epoch(staged)?.0 + 1);
    rows::put(staged, rows::EPOCH, &next)?;
    Ok(next)
}

/// Moves a row in the index from `old` to `now`.
pub(super) fn mark(staged: &mut Staged<'_>, kind: ChangeKind, id: &[u8], old: Option<Epoch>, now: Epoch) {
    if let Some(old) = old {
        staged.remove(rows::changed(old, kind as u8, id));
    }
    staged.insert(rows::changed(now, kind as u8, id), "");
}

/// Drops a removed row from the index; nodes do not learn of it.
pub(super) fn forget(staged: &mut Staged<'_>, kind: ChangeKind, id: &[u8], epoch: Epoch) {
    staged.remove(rows::changed(epoch, kind as u8, id));
}

/// Marks a set that nodes read as a whole.
pub(super) fn mark_set(staged: &mut Staged<'_>, kind: ChangeKind, now: Epoch) -> Result<()> {
    let key = rows::set(kind as u8);
    let old: Option<Epoch> = rows::get(staged, &key)?;
    mark(staged, kind, b"", old, now);
    rows::put(staged, key, &now)
}

/// Stages an audit entry, after the entries that this change has staged before.
pub(super) fn note(staged: &mut Staged<'_>, note: &AuditNote) -> Result<()> {
    let head: AuditHead = rows::get(staged, rows::AUDIT_HEAD)?.unwrap_or_default();
    let entry = head.chain(note.clone());
    rows::put(staged, rows::AUDIT_HEAD, &AuditHead { number: entry.number, hash: entry.hash })?;
    rows::put(staged, rows::audit(entry.number), &entry)
}

/// The row [`rows::STORE`]; missing if the store was never filled and never at a standstill.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StoreRow {
    pub incarnation: Option<Uuid>,
    pub standstill: Option<Standstill>,
    pub filling: Option<Filling>,
}

pub(super) fn store_row(source: &impl RowSource) -> Result<StoreRow> {
    Ok(rows::get(source, rows::STORE)?.unwrap_or_default())
}

/// Fails if the store takes no changes.
pub(super) fn check_writable(source: &impl RowSource) -> Result<()> {
    match store_row(source)? {
        StoreRow { filling: Some(_), .. } => Err(being_filled()),
        StoreRow { standstill: Some(standstill), .. } => Err(RecordsError::StandsStill(standstill)),
        _ => Ok(()),
    }
}

/// Fails during a fill.
pub(super) fn check_whole(source: &impl RowSource) -> Result<()> {
    if store_row(source)?.filling.is_some() { Err(being_filled()) } else { Ok(()) }
}
