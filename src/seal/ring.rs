//! The key ring: the data keys in plain, in memory. It seals and opens values.
//!
//! A sealed value is `format (1 byte) ‖ key id (4, big-endian) ‖ nonce (24) ‖ ciphertext ‖ tag (16)`,
//! XChaCha20-Poly1305. Format, key id and place are the associated data, so none of them can be exchanged. Nonces are
//! random: with 192 bits, no two will be equal.

use std::collections::BTreeMap;
use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::{KeyId, MasterKey, Place, Result, SealError, Sealed, secretbox};
use crate::platform::{SecureRandom, random};

/// A value sealed with a data key.
const VALUE: u8 = 1;
/// A data key sealed with the master key; the key id is its own.
const DATA_KEY: u8 = 2;
const HEADER: usize = 5;
const NONCE: usize = 24;
const TAG: usize = 16;

type Key = Zeroizing<[u8; 32]>;

/// Immutable: a rotation makes a new ring, and a holder of the old one can still open older values.
#[derive(Clone)]
pub struct KeyRing {
    keys: BTreeMap<KeyId, Key>,
    active: KeyId,
    secretbox_key: Option<Key>,
}

impl KeyRing {
    /// Opens the data keys with the master key.
    pub fn unlock(master: &MasterKey, keys: &[(KeyId, Sealed)]) -> Result<Self> {
        let mut ring = BTreeMap::new();
        for (id, sealed) in keys {
            if *id == KeyId::SECRETBOX {
                return Err(SealError::ReservedKeyId);
            }
            let (format, stated) = header(sealed)?;
            if format != DATA_KEY || stated != *id {
                return Err(SealError::Malformed("it is not a data key with its own number"));
            }
            let plain =
                open_with(master.bytes(), &data_key_place(*id), sealed).map_err(|_| SealError::WrongMasterKey(*id))?;
            let key: &[u8; 32] =
                plain.as_slice().try_into().map_err(|_| SealError::Malformed("a data key has 32 bytes"))?;
            ring.insert(*id, Zeroizing::new(*key));
        }
        let active = *ring.last_key_value().ok_or(SealError::NoKeys)?.0;
        Ok(Self { keys: ring, active, secretbox_key: None })
    }

    /// A new data key, sealed for its record at `sealing_keys/key/<id>`.
    pub fn new_key(master: &MasterKey, id: KeyId, rng: &dyn SecureRandom) -> Result<Sealed> {
        if id == KeyId::SECRETBOX {
            return Err(SealError::ReservedKeyId);
        }
        let key = Zeroizing::new(random::<32>(rng));
        seal_with(master.bytes(), DATA_KEY, id, &data_key_place(id), key.as_slice(), rng)
    }

    /// Adds the key for values in the secretbox form. That form is not bound to a place: while a ring has this key, an
    /// attacker with write access to the records can exchange such values.
    pub fn with_secretbox_key(self, key: Zeroizing<[u8; 32]>) -> Self {
        Self { secretbox_key: Some(key), ..self }
    }

    /// The key that seals: the one with the highest number.
    pub fn active(&self) -> KeyId {
        self.active
    }

    pub fn seal(&self, place: &Place, plain: &[u8], rng: &dyn SecureRandom) -> Result<Sealed> {
        let key = self.keys.get(&self.active).ok_or(SealError::NoKeys)?;
        seal_with(key, VALUE, self.active, place, plain, rng)
    }

    /// Seals in the secretbox form, for a database that the former service reads as well.
    pub fn seal_as_secretbox(&self, place: &Place, plain: &[u8], rng: &dyn SecureRandom) -> Result<Sealed> {
        let key = self.secretbox_key.as_ref().ok_or_else(|| SealError::NoSecretboxKey { place: place.clone() })?;
        Ok(Sealed::from_bytes(secretbox::seal(key, plain, rng)?.into_bytes()))
    }

    pub fn open(&self, place: &Place, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>> {
        let id = key_of(sealed)?;
        if id == KeyId::SECRETBOX {
            let key = self.secretbox_key.as_ref().ok_or_else(|| SealError::NoSecretboxKey { place: place.clone() })?;
            let text = str::from_utf8(sealed.as_bytes()).map_err(|_| SealError::Malformed("it is not a text"))?;
            return secretbox::open(key, text).map_err(|_| SealError::DoesNotOpen { place: place.clone() });
        }
        let key = self.keys.get(&id).ok_or_else(|| SealError::UnknownKey { place: place.clone(), key: id })?;
        open_with(key, place, sealed)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("keys", &self.keys.keys()).field("active", &self.active).finish_non_exhaustive()
    }
}

/// The key that a value is sealed with; [`KeyId::SECRETBOX`] for the secretbox form. Needs no ring, and proves nothing:
/// only opening does.
pub fn key_of(sealed: &Sealed) -> Result<KeyId> {
    if sealed.as_bytes().starts_with(secretbox::PREFIX.as_bytes()) {
        return Ok(KeyId::SECRETBOX);
    }
    match header(sealed)? {
        (VALUE, KeyId::SECRETBOX) => Err(SealError::Malformed("its key has the number 0, which is reserved")),
        (VALUE, id) => Ok(id),
        (DATA_KEY, _) => Err(SealError::Malformed("it is a data key where a value should be")),
        _ => Err(SealError::Malformed("it has a format that this version does not know")),
    }
}

fn header(sealed: &Sealed) -> Result<(u8, KeyId)> {
    match sealed.as_bytes() {
        [format, a, b, c, d, rest @ ..] if rest.len() >= NONCE + TAG => {
            Ok((*format, KeyId(u32::from_be_bytes([*a, *b, *c, *d]))))
        }
        _ => Err(SealError::Malformed("it is too short")),
    }
}

fn seal_with(
    key: &[u8; 32],
    format: u8,
    id: KeyId,
    place: &Place,
    plain: &[u8],
    rng: &dyn SecureRandom,
) -> Result<Sealed> {
    let nonce: [u8; NONCE] = random(rng);
    let aad = associated_data(format, id, place);
    let ciphertext = XChaCha20Poly1305::new(key.into())
        .encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: &aad })
        .map_err(|_| SealError::TooLarge)?;
    let mut bytes = Vec::with_capacity(HEADER + NONCE + ciphertext.len());
    bytes.push(format);
    bytes.extend_from_slice(&id.0.to_be_bytes());
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(&ciphertext);
    Ok(Sealed::from_bytes(bytes))
}

fn open_with(key: &[u8; 32], place: &Place, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>> {
    let (format, id) = header(sealed)?;
    let (nonce, ciphertext) = sealed.as_bytes()[HEADER..].split_at(NONCE);
    let aad = associated_data(format, id, place);
    XChaCha20Poly1305::new(key.into())
        .decrypt(XNonce::from_slice(nonce), Payload { msg: ciphertext, aad: &aad })
        .map(Zeroizing::new)
        .map_err(|_| SealError::DoesNotOpen { place: place.clone() })
}

/// Each part of the place is preceded by its length, so that no two places give the same bytes.
fn associated_data(format: u8, id: KeyId, place: &Place) -> Vec<u8> {
    let mut data = vec![format];
    data.extend_from_slice(&id.0.to_be_bytes());
    for part in [&place.table, &place.column, &place.id] {
        data.extend_from_slice(&(part.len() as u64).to_be_bytes());
        data.extend_from_slice(part.as_bytes());
    }
    data
}

fn data_key_place(id: KeyId) -> Place {
    Place::new("sealing_keys", "key", id)
}
