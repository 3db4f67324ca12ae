//! libsodium's secretbox as text, the form in an existing database:
//! `sbox:v1:` + base64(nonce (24) ‖ tag (16) ‖ ciphertext), XSalsa20-Poly1305.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use xsalsa20poly1305::aead::Aead;
use xsalsa20poly1305::{KeyInit, Nonce, XSalsa20Poly1305};
use zeroize::Zeroizing;

use super::{Result, SealError};
use crate::platform::{SecureRandom, random};

pub const PREFIX: &str = "sbox:v1:";
const NONCE: usize = 24;

pub fn open(key: &[u8; 32], text: &str) -> Result<Zeroizing<Vec<u8>>> {
    let encoded = text.strip_prefix(PREFIX).ok_or(SealError::Malformed("it does not begin with sbox:v1:"))?;
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| SealError::Malformed("it is not base64"))?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE).ok_or(SealError::Malformed("it is too short"))?;
    XSalsa20Poly1305::new(key.into())
        .decrypt(Nonce::from_slice(nonce), sealed)
        .map(Zeroizing::new)
        .map_err(|_| SealError::Malformed("it was altered, or sealed with another key"))
}

pub fn seal(key: &[u8; 32], plain: &[u8], rng: &dyn SecureRandom) -> Result<String> {
    let nonce: [u8; NONCE] = random(rng);
    let sealed =
        XSalsa20Poly1305::new(key.into()).encrypt(Nonce::from_slice(&nonce), plain).map_err(|_| SealError::TooLarge)?;
    let mut bytes = nonce.to_vec();
    bytes.extend_from_slice(&sealed);
    Ok(format!("{PREFIX}{}", BASE64_STANDARD.encode(bytes)))
}
