//! Secrets at rest: the key ring, sealing and opening, and the libsodium secretbox form.
//!
//! Three layers: the *master key* ([`MasterKey`], outside the records) seals *data keys*, which are in the records; a
//! data key seals values. Each value begins with the number of its data key, so that a new data key can take over while
//! the old values are still being resealed. This room stores only the master key's file, and must not know what it
//! seals.

mod error;
mod master_key;
pub mod passphrase;
mod ring;
pub mod secretbox;

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

pub use error::SealError;
pub use master_key::MasterKey;
pub use ring::{KeyRing, key_of};

pub type Result<T> = std::result::Result<T, SealError>;

/// Sealed bytes as they are stored; only this room can read them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sealed(Vec<u8>);

impl Sealed {
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<String> for Sealed {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> std::result::Result<Self, base64::DecodeError> {
        BASE64_STANDARD.decode(text).map(Self)
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        BASE64_STANDARD.encode(sealed.0)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// The place of a sealed value in the records. It is the associated data of the seal, so a value moved elsewhere does
/// not open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    pub table: String,
    pub column: String,
    pub id: String,
}

impl Place {
    pub fn new(table: &str, column: &str, id: impl fmt::Display) -> Self {
        Self { table: table.into(), column: column.into(), id: id.to_string() }
    }
}

/// The number of a data key of the ring. Every value sealed with that key begins with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub u32);

impl KeyId {
    /// The secretbox key: older than any data key, whose numbers begin at 1.
    pub const SECRETBOX: Self = Self(0);
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// For messages. The sealed form differs: it tells `a/b` + `c` from `a` + `b/c`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.table, self.column, self.id.escape_debug())
    }
}

#[cfg(test)]
mod tests;
