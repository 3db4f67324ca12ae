//! Data keys, and which values are sealed with which.
//!
//! Every sealed value has a row in an index by key id, written in the same batch as the value. So what a rotation has left
//! to do, and whether a key may go, is a look at the beginning of a range, however many hosts there are.

use uuid::Uuid;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::model::host::HostId;
use crate::records::{Authority, CanonicalVersion, Host, Result, SealingKey};
use crate::seal::{KeyId, Place, Sealed};

use super::changes::{self, Kind};
use super::rows::{self, Marked, Source};
use super::{audit, canonical, hosts};

pub(super) fn add_key(staged: &mut Staged<'_>, key: &SealingKey, note: &AuditNote) -> Result<bool> {
    let place = rows::sealing_key(key.id);
    if staged.get(&place)?.is_some() {
        return Ok(false);
    }
    rows::put(staged, place, key)?;
    audit::append(staged, note)?;
    Ok(true)
}

pub(super) fn remove_key(staged: &mut Staged<'_>, id: KeyId) -> Result<bool> {
    let key = rows::sealing_key(id);
    let highest = staged.scan(rows::SEALING_KEY).next_back().transpose()?;
    let is_highest = highest.is_none_or(|(highest, _)| highest == key);
    let in_use = staged.scan(rows::sealed_with(id)).next().transpose()?.is_some();
    if staged.get(&key)?.is_none() || is_highest || in_use {
        return Ok(false);
    }
    staged.remove(key);
    Ok(true)
}

pub(super) fn values_before(data: &Snapshot, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>> {
    let (from, to) = rows::sealed_before(active);
    data.range(from, to)
        .take(limit)
        .map(|row| {
            let place = read_place(rows::read_sealed(&row?.0)?)?;
            let value = Holder::find(data, &place)?.and_then(|holder| holder.value(&place).cloned());
            let value = value.ok_or_else(|| rows::missing("sealed value"))?;
            Ok((place, value))
        })
        .collect()
}

pub(super) fn reseal(staged: &mut Staged<'_>, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool> {
    let Some(mut holder) = Holder::find(staged, place)? else { return Ok(false) };
    match holder.value_mut(place) {
        Some(value) if value == old => *value = new.clone(),
        _ => return Ok(false),
    }
    index(staged, place, Some(old), Some(new));
    holder.put(staged)?;
    Ok(true)
}

/// Keeps the index: the value at `place` was `old` and is `new` from now on.
pub(super) fn index(staged: &mut Staged<'_>, place: &Place, old: Option<&Sealed>, new: Option<&Sealed>) {
    let written = write_place(place);
    for (value, there) in [(old, false), (new, true)] {
        // The key of a host that was removed long ago is empty: nothing is sealed there.
        let Some(value) = value.filter(|value| !value.as_bytes().is_empty()) else { continue };
        let row = rows::sealed(key_of(value), &written);
        if there { staged.insert(row, "") } else { staged.remove(row) }
    }
}

/// A row that has sealed values in it.
enum Holder {
    Host(Host),
    Authority(Authority),
    ServerKey(Sealed),
    Version(Box<CanonicalVersion>),
}

impl Holder {
    fn find(source: &impl Source, place: &Place) -> Result<Option<Self>> {
        Ok(match (place.table.as_str(), place.column.as_str()) {
            ("hosts", "api_key" | "agent_identity") => match place.id.parse() {
                Ok(id) => {
                    let marked: Option<Marked<Host>> = rows::get(source, rows::host(HostId(id)))?;
                    marked.map(|marked| Self::Host(marked.row))
                }
                Err(_) => None,
            },
            ("authorities", "private_key") => match Uuid::parse_str(&place.id) {
                Ok(id) => rows::get(source, rows::authority(id))?.map(Self::Authority),
                Err(_) => None,
            },
            ("settings", "server_key") if place.id == "0" => rows::get(source, rows::SERVER_KEY)?.map(Self::ServerKey),
            ("auth_payloads", "body") => Self::find_version(source, &place.id)?,
            ("auth_entries", "token") => match place.id.split_once('/') {
                Some((payload, _)) => Self::find_version(source, payload)?,
                None => None,
            },
            _ => None,
        })
    }

    fn find_version(source: &impl Source, id: &str) -> Result<Option<Self>> {
        let Ok(id) = Uuid::parse_str(id) else { return Ok(None) };
        let Some(number) = canonical::number_of(source, id)? else { return Ok(None) };
        let version = canonical::version(source, number)?.ok_or_else(|| rows::missing("version"))?;
        Ok(Some(Self::Version(Box::new(version))))
    }

    fn value(&self, place: &Place) -> Option<&Sealed> {
        match self {
            Self::Host(host) if place.column == "agent_identity" => host.agent_identity.as_ref(),
            Self::Host(host) => Some(&host.api_key),
            Self::Authority(authority) => Some(&authority.private_key),
            Self::ServerKey(key) => Some(key),
            Self::Version(version) if place.table == "auth_payloads" => Some(&version.body),
            Self::Version(version) => {
                let target = place.id.split_once('/')?.1;
                version.entries.iter().find(|entry| entry.target == target).map(|entry| &entry.token)
            }
        }
    }

    fn value_mut(&mut self, place: &Place) -> Option<&mut Sealed> {
        match self {
            Self::Host(host) => match place.column.as_str() {
                "agent_identity" => host.agent_identity.as_mut(),
                _ => Some(&mut host.api_key),
            },
            Self::Authority(authority) => Some(&mut authority.private_key),
            Self::ServerKey(key) => Some(key),
            Self::Version(version) => {
                let CanonicalVersion { body, entries, .. } = version.as_mut();
                if place.table == "auth_payloads" {
                    return Some(body);
                }
                let target = place.id.split_once('/')?.1;
                entries.iter_mut().find(|entry| entry.target == target).map(|entry| &mut entry.token)
            }
        }
    }

    /// Writes the row back and marks what nodes cache of it.
    fn put(self, staged: &mut Staged<'_>) -> Result<()> {
        let epoch = changes::bump(staged)?;
        match self {
            Self::Host(host) => hosts::put(staged, &host, epoch),
            Self::Authority(authority) => {
                changes::mark_set(staged, Kind::Authorities, epoch)?;
                rows::put(staged, rows::authority(authority.id), &authority)
            }
            Self::ServerKey(key) => rows::put(staged, rows::SERVER_KEY, &key),
            Self::Version(version) => {
                canonical::put(staged, &version)?;
                let number = version.summary.version;
                if let Some(pointer) = canonical::pointer(staged)?.filter(|pointer| pointer.row == number) {
                    changes::mark(staged, Kind::Canonical, b"", Some(pointer.epoch), epoch);
                    rows::put(staged, rows::CANONICAL, &Marked { epoch, row: number })?;
                }
                Ok(())
            }
        }
    }
}

/// The data key a value is sealed with: one format byte, then the key's id. The secretbox form names no key and is
/// older than any; so is whatever else this does not know.
/// What no ring could open counts as older than every key: it shows up wherever something is left to do.
fn key_of(value: &Sealed) -> KeyId {
    crate::seal::key_of(value).unwrap_or(KeyId::SECRETBOX)
}

/// Neither a table nor a column has a NUL in its name; an id may be anything.
fn write_place(place: &Place) -> Vec<u8> {
    [place.table.as_bytes(), place.column.as_bytes(), place.id.as_bytes()].join(&0)
}

fn read_place(written: &[u8]) -> Result<Place> {
    let text = std::str::from_utf8(written).map_err(|e| rows::corrupt("sealed", e))?;
    let mut parts = text.splitn(3, '\0');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(table), Some(column), Some(id)) => Ok(Place::new(table, column, id)),
        _ => Err(rows::corrupt("sealed", "a place has three parts")),
    }
}
