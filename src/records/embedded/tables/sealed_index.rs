//! The index of sealed values by data key.
//!
//! Each sealed value has one entry, written in the same batch as the value. So a rotation reads only the beginning of a
//! range to find its remaining work, or whether a key is in use. The number of hosts does not matter.

use crate::durable::Staged;
use crate::records::Result;
use crate::records::embedded::rows;
use crate::seal::{KeyId, Place, Sealed};

/// Updates the index: the value at `place` was `old` and is now `new`.
pub fn update(staged: &mut Staged<'_>, place: &Place, old: Option<&Sealed>, new: Option<&Sealed>) {
    let written = write_place(place);
    for (value, there) in [(old, false), (new, true)] {
        // The key of a purged host is empty.
        let Some(value) = value.filter(|value| !value.as_bytes().is_empty()) else { continue };
        let row = rows::sealed(key_of(value), &written);
        if there { staged.insert(row, "") } else { staged.remove(row) }
    }
}

/// The data key of a value. The secretbox form and an unknown form count as older than every key, so that a rotation
/// finds them.
fn key_of(value: &Sealed) -> KeyId {
    crate::seal::key_of(value).unwrap_or(KeyId::SECRETBOX)
}

/// The parts are joined by NULs: no name of a table or column contains one. An id may contain any byte.
fn write_place(place: &Place) -> Vec<u8> {
    [place.table.as_bytes(), place.column.as_bytes(), place.id.as_bytes()].join(&0)
}

pub fn read_place(written: &[u8]) -> Result<Place> {
    let text = std::str::from_utf8(written).map_err(|e| rows::corrupt("sealed", e))?;
    let mut parts = text.splitn(3, '\0');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(table), Some(column), Some(id)) => Ok(Place::new(table, column, id)),
        _ => Err(rows::corrupt("sealed", "a place has three parts")),
    }
}
