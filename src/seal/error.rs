//! Errors of keys and sealed values. No variant holds a secret.

use std::io;
use std::path::PathBuf;

use super::{KeyId, Place};

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("{} could not be {doing}: {source}", path.display())]
    KeyFile { path: PathBuf, doing: &'static str, source: io::Error },
    #[error(
        "{} is a symbolic link; a master key is read from a file of its own only: put the file itself there",
        path.display()
    )]
    KeyFileIsALink { path: PathBuf },
    #[error("{} is not a regular file; put the master key's file there", path.display())]
    KeyFileIsNone { path: PathBuf },
    #[error(
        "{} can be read by others (mode {mode:04o}); run `chmod 600` on it; if somebody may have read it, renew what it \
         protects",
        path.display()
    )]
    KeyFileIsOpen { path: PathBuf, mode: u32 },
    #[error(
        "{} holds no master key (64 hex digits, or 32 bytes); put it back from a backup: what it sealed cannot be read \
         without it",
        path.display()
    )]
    KeyFileIsMalformed { path: PathBuf },

    #[error(
        "data key {0} does not open with this master key: these records were made with another master key; \
         put that key back"
    )]
    WrongMasterKey(KeyId),
    #[error("there is no data key; the records were not initialised, or have lost their keys")]
    NoKeys,
    #[error("0 is not a valid number of a data key; they begin at 1")]
    ReservedKeyId,

    #[error("the value at {place} is sealed with key {key}, which is not in the key ring")]
    UnknownKey { place: Place, key: KeyId },
    #[error("the value at {place} is in the secretbox form, and no secretbox key is configured")]
    NoSecretboxKey { place: Place },
    #[error("the value at {place} does not open: it was altered, or sealed for another place or with another key")]
    DoesNotOpen { place: Place },
    #[error("a sealed value is damaged: {0}")]
    Malformed(&'static str),
    #[error("a value is too large to be sealed")]
    TooLarge,
    #[error(
        "the passphrase is wrong, or the sealed text was changed or belongs to another backup; which one is unknown"
    )]
    WrongPassphrase,
}
