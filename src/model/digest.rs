//! SHA-256 digests of the canonical text, of API keys and of installer tokens.

use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// A SHA-256 digest. Printed as 64 lower-case hex digits, read in either case.
///
/// Comparison takes constant time. A digest may be a map key. Map lookups do not take constant time, but they can
/// reveal only the digest, which reveals nothing about the secret.
#[derive(Clone, Copy, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = [0; SHA256_OUTPUT_LEN];
        // Both are SHA256_OUTPUT_LEN bytes long.
        out.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(out)
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Writes the 64 hex digits into `buffer`.
    pub fn write_hex<'a>(&self, buffer: &'a mut [u8; 64]) -> &'a str {
        // The buffer has the length of the text, and hex digits are UTF-8.
        hex::encode_to_slice(self.0, buffer).ok().and_then(|()| std::str::from_utf8(buffer).ok()).unwrap_or_default()
    }
}

/// Computes a digest of data that arrives in pieces.
pub struct Hasher(Context);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> Digest {
        let mut out = [0; SHA256_OUTPUT_LEN];
        out.copy_from_slice(self.0.finish().as_ref());
        Digest(out)
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        // Compares eight bytes at a time, because subtle compares byte by byte.
        let (ours, _) = self.0.as_chunks::<8>();
        let (theirs, _) = other.0.as_chunks::<8>();
        let differs = ours
            .iter()
            .zip(theirs)
            .fold(0, |differs, (ours, theirs)| differs | (u64::from_ne_bytes(*ours) ^ u64::from_ne_bytes(*theirs)));
        differs.ct_eq(&0).into()
    }
}

impl Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// The value of each hex digit, in either case. Other bytes: `u8::MAX`.
const VALUES: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("digest must be a 64-character hex sha256 value")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut bytes = [0; 32];
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(NotADigest) };
        if pairs.len() != bytes.len() {
            return Err(NotADigest);
        }
        // Checks all digits at the end instead of one by one.
        let mut seen = 0;
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (high, low) = (VALUES[usize::from(*high)], VALUES[usize::from(*low)]);
            seen |= high | low;
            *byte = high << 4 | low;
        }
        if seen < 16 { Ok(Self(bytes)) } else { Err(NotADigest) }
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.write_hex(&mut [0; 64]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_in_any_case_and_printed_in_lower() {
        let digest = Digest::of(b"");
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(digest));
    }

    #[test]
    fn anything_but_64_hex_digits_is_refused() {
        for text in [
            "",
            "xyz",
            &"0".repeat(63),
            &"0".repeat(65),
            &"g".repeat(64),
            &"é".repeat(32),
            &format!(" {}", "0".repeat(63)),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(NotADigest), "{text:?}");
        }
    }
}
