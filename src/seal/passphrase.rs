//! A text sealed under a passphrase: the form in which a backup keeps its keys.
//!
//! ```text
//! codex-authd sealed under a passphrase, 1
//! argon2id memory_kib=65536 passes=3 lanes=1 salt=<base64>
//! xchacha20poly1305 nonce=<base64>
//! <base64 of the ciphertext and its tag>
//! ```
//!
//! The first three lines, to the letter, and a digest of what the text belongs to are the associated data. So no byte
//! of the text can change, and it opens beside nothing else. The work for the passphrase is read from the text, and
//! checked against bounds before any of it is done.

use std::str::FromStr;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::{Result, SealError};
use crate::model::digest::Digest;
use crate::platform::{SecureRandom, random};

const FORMAT: &str = "codex-authd sealed under a passphrase, ";
const VERSION: &str = "1";
const SALT: usize = 16;
const NONCE: usize = 24;
const TAG: usize = 16;
/// The largest text that is accepted: a configuration is some kilobytes.
pub const MAX_SEALED_BYTES: usize = 4 * 1024 * 1024;

/// The work that one guess costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Three times the minimum of OWASP's Password Storage Cheat Sheet: it is done once a day, not at each sign-in.
const TODAY: Work = Work { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
/// The minimum of that sheet. We never wrote a text with less.
const LEAST: Work = Work { memory_kib: 19 * 1024, passes: 2, lanes: 1 };
/// A text with more would be an attempt to block this machine.
const MAX_WORK: Work = Work { memory_kib: 512 * 1024, passes: 16, lanes: 8 };

impl Work {
    fn is_bearable(self) -> bool {
        let within = |least: u32, value: u32, most: u32| (least..=most).contains(&value);
        within(LEAST.memory_kib, self.memory_kib, MAX_WORK.memory_kib)
            && within(LEAST.passes, self.passes, MAX_WORK.passes)
            && within(LEAST.lanes, self.lanes, MAX_WORK.lanes)
    }

    fn key(self, passphrase: &str, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>> {
        let unusable = |_| SealError::Malformed("its parameters cannot be used");
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(unusable)?;
        let mut key = Zeroizing::new([0; 32]);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(passphrase.as_bytes(), salt, key.as_mut_slice()).map_err(unusable)?;
        Ok(key)
    }
}

/// Takes some tenths of a second and 64 MiB. `beside`: the digest of what the text belongs to.
pub fn seal_under(passphrase: &str, beside: &Digest, plain: &[u8], rng: &dyn SecureRandom) -> Result<String> {
    let (salt, nonce): ([u8; SALT], [u8; NONCE]) = (random(rng), random(rng));
    let Work { memory_kib, passes, lanes } = TODAY;
    let head = format!(
        "{FORMAT}{VERSION}\nargon2id memory_kib={memory_kib} passes={passes} lanes={lanes} salt={}\n\
         xchacha20poly1305 nonce={}\n",
        BASE64_STANDARD.encode(salt),
        BASE64_STANDARD.encode(nonce)
    );
    let key = TODAY.key(passphrase, &salt)?;
    let sealed = XChaCha20Poly1305::new(key.as_slice().into())
        .encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: &associated_data(&head, beside) })
        .map_err(|_| SealError::TooLarge)?;
    Ok(format!("{head}{}\n", BASE64_STANDARD.encode(sealed)))
}

/// Takes as long as sealing. It cannot tell apart a wrong passphrase, a changed text, and a text that belongs to
/// something else.
pub fn open_under(passphrase: &str, beside: &Digest, text: &str) -> Result<Zeroizing<Vec<u8>>> {
    let SealedParts { head, work, salt, nonce, sealed } = SealedParts::of(text)?;
    let key = work.key(passphrase, &salt)?;
    XChaCha20Poly1305::new(key.as_slice().into())
        .decrypt(XNonce::from_slice(&nonce), Payload { msg: &sealed, aad: &associated_data(head, beside) })
        .map(Zeroizing::new)
        .map_err(|_| SealError::WrongPassphrase)
}

fn associated_data(head: &str, beside: &Digest) -> Vec<u8> {
    [head.as_bytes(), beside.as_bytes()].concat()
}

struct SealedParts<'a> {
    head: &'a str,
    work: Work,
    salt: Vec<u8>,
    nonce: Vec<u8>,
    sealed: Vec<u8>,
}

impl<'a> SealedParts<'a> {
    fn of(text: &'a str) -> Result<Self> {
        const NOT_OURS: SealError = SealError::Malformed("it is not a text that was sealed under a passphrase");
        if text.len() > MAX_SEALED_BYTES {
            return Err(SealError::Malformed("it is too long"));
        }
        let version = text.strip_prefix(FORMAT).and_then(|rest| rest.split('\n').next()).ok_or(NOT_OURS)?;
        if version != VERSION {
            return Err(SealError::Malformed("it has a format that this version does not know"));
        }
        let body = text.strip_suffix('\n').ok_or(SealError::Malformed("it is cut off"))?;
        let end = body.rfind('\n').map(|end| end + 1).ok_or(NOT_OURS)?;
        let (head, last) = body.split_at(end);
        let lines: Vec<&str> = head.lines().collect();
        let [_, work, cipher] = lines[..] else { return Err(NOT_OURS) };

        let words: Vec<&str> = work.split(' ').collect();
        let ["argon2id", memory_kib, passes, lanes, salt] = words[..] else {
            return Err(SealError::Malformed("its second line does not say how the passphrase is used"));
        };
        let work = Work {
            memory_kib: number("memory_kib=", memory_kib)?,
            passes: number("passes=", passes)?,
            lanes: number("lanes=", lanes)?,
        };
        if !work.is_bearable() {
            return Err(SealError::Malformed("its work parameters are outside the accepted range"));
        }
        let words: Vec<&str> = cipher.split(' ').collect();
        let ["xchacha20poly1305", nonce] = words[..] else {
            return Err(SealError::Malformed("its third line does not say how it is sealed"));
        };
        let (salt, nonce, sealed) = (bytes("salt=", salt)?, bytes("nonce=", nonce)?, bytes("", last)?);
        if salt.len() != SALT || nonce.len() != NONCE || sealed.len() < TAG {
            return Err(SealError::Malformed("a part of it is too short or too long"));
        }
        Ok(Self { head, work, salt, nonce, sealed })
    }
}

fn number(name: &str, word: &str) -> Result<u32> {
    let value = word.strip_prefix(name).and_then(|value| u32::from_str(value).ok());
    value.ok_or(SealError::Malformed("a number is missing in its second line"))
}

fn bytes(name: &str, word: &str) -> Result<Vec<u8>> {
    let value = word.strip_prefix(name).and_then(|value| BASE64_STANDARD.decode(value).ok());
    value.ok_or(SealError::Malformed("a part of it is not base64"))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::platform::System;

    const PASSPHRASE: &str = "correct horse battery staple";

    fn beside() -> Digest {
        Digest::of(b"the manifest")
    }

    /// Sealed once: it takes a while.
    static SEALED: LazyLock<String> =
        LazyLock::new(|| seal_under(PASSPHRASE, &beside(), b"what is secret", &System).unwrap());

    fn refusal(passphrase: &str, beside: &Digest, text: &str) -> String {
        open_under(passphrase, beside, text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_sealed_opens_with_its_passphrase_beside_its_own_and_with_nothing_else() {
        let opened = open_under(PASSPHRASE, &beside(), &SEALED).unwrap();
        assert_eq!(opened.as_slice(), b"what is secret");
        assert!(!SEALED.contains("secret"));
        let wrong = refusal("correct horse battery stable", &beside(), &SEALED);
        let of_another = refusal(PASSPHRASE, &Digest::of(b"another manifest"), &SEALED);
        assert_eq!(wrong, of_another);
        assert!(wrong.contains("passphrase is wrong, or"), "{wrong}");
        let again = seal_under(PASSPHRASE, &beside(), b"what is secret", &System).unwrap();
        assert_ne!(again, *SEALED, "salt and nonce are new");
    }

    #[test]
    fn a_byte_of_any_part_that_is_another_is_found() {
        let ends: Vec<usize> = SEALED.match_indices(['\n', ' ', '=']).map(|(place, _)| place).collect();
        // The bytes around each boundary between two parts.
        let places = ends.iter().flat_map(|end| [end.saturating_sub(2), end.saturating_sub(1), *end, end + 1]);
        for place in places.filter(|place| *place < SEALED.len()) {
            let mut bytes = SEALED.clone().into_bytes();
            bytes[place] ^= 1;
            let text = String::from_utf8(bytes).unwrap();
            assert!(open_under(PASSPHRASE, &beside(), &text).is_err(), "byte {place}: {text}");
        }
        for (from, to) in [("\n", "\r\n"), ("lanes=1", "lanes=01"), ("passes=3", "passes=+3"), ("1\n", "1 \n")] {
            let text = SEALED.replacen(from, to, 1);
            assert!(open_under(PASSPHRASE, &beside(), &text).is_err(), "{text}");
        }
        assert!(open_under(PASSPHRASE, &beside(), &format!("{}\n", *SEALED)).is_err());
        assert!(refusal(PASSPHRASE, &beside(), SEALED.trim_end()).contains("cut off"));
        assert!(refusal(PASSPHRASE, &beside(), "").contains("not a text that was sealed"));
        assert!(refusal(PASSPHRASE, &beside(), &SEALED.replacen(", 1", ", 2", 1)).contains("does not know"));
    }

    #[test]
    fn more_work_than_is_ever_asked_for_is_not_begun() {
        for (from, to) in [
            ("memory_kib=65536", "memory_kib=4194303"),
            ("memory_kib=65536", "memory_kib=524289"),
            ("memory_kib=65536", "memory_kib=8"),
            ("passes=3", "passes=4000000000"),
            ("passes=3", "passes=1"),
            ("lanes=1", "lanes=9"),
            ("lanes=1", "lanes=0"),
        ] {
            let text = SEALED.replacen(from, to, 1);
            assert!(SealedParts::of(&text).is_err_and(|error| error.to_string().contains("work")), "{to}");
        }
        let largest = SEALED.replacen("memory_kib=65536 passes=3 lanes=1", "memory_kib=524288 passes=16 lanes=8", 1);
        assert_eq!(SealedParts::of(&largest).unwrap().work, MAX_WORK);
    }
}
