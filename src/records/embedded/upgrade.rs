//! Rows of older formats. `daemon/format.rs` describes the format number and what a crash leaves.
//!
//! - 1 to 2: the number itself is new; the rows are the same.
//! - 2 to 3: adds rows of probes, and versions made by a probe.
//! - 3 to 4: adds rows of users, sessions and identities.
//! - 4 to 5: another file (`durable`). A version was written in pieces and is one row now ([`piece_of`]); every other
//!   row is the same.
//!
//! A row that only gained members needs no step: new members have defaults.

use super::rows;

/// Up to format 4: the row that `key` is a piece of, and the number of the piece. `None`: `key` is a whole row.
pub fn piece_of(key: &[u8]) -> Option<(&[u8], u32)> {
    let number = key.strip_prefix(rows::VERSION.as_bytes())?;
    let (id, piece) = number.split_at_checked(size_of::<u64>())?;
    let piece = piece.strip_prefix(b"#")?.try_into().ok()?;
    Some((key.get(..rows::VERSION.len() + id.len())?, u32::from_be_bytes(piece)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_were_written_in_pieces() {
        let version = rows::version(35);
        let piece = [&version[..], b"#", &7u32.to_be_bytes()].concat();
        assert_eq!(piece_of(&piece), Some((&version[..], 7)));
        for whole in [&version[..], &piece[..piece.len() - 1], b"host/12345678#\0\0\0\0", b"version-id/#\0\0\0\0"] {
            assert_eq!(piece_of(whole), None, "{whole:?}");
        }
    }
}
