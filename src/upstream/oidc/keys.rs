//! The provider's keys: which ones may be used, and which one signed a token.
//!
//! Accepted are RSA signature keys of 2048 to 4096 bits. A key that `alg`, `use` or `key_ops` reserve for another
//! purpose is ignored. So is a key that contains its private half, because then anyone can sign with it.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use openidconnect::JsonWebKey as _;
use openidconnect::JsonWebKeyAlgorithm;
use openidconnect::core::{CoreJsonWebKey, CoreJwsSigningAlgorithm};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::http::HttpFailure;
use super::token::TokenHeader;

const MIN_RSA_BITS: usize = 2048;
/// Longer keys cost time, and the library does not accept them.
const MAX_RSA_BITS: usize = 4096;
/// The longest public exponent, in bytes.
const MAX_EXPONENT_BYTES: usize = 4;

/// The usable keys of a key set.
pub(super) struct ProviderKeys(Vec<CoreJsonWebKey>);

impl ProviderKeys {
    pub fn read(body: &[u8]) -> Result<Self, HttpFailure> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(body).map_err(|_| HttpFailure::new("its key set cannot be read"))?;
        let keys: Vec<_> = set.keys.into_iter().filter_map(usable).collect();
        if keys.is_empty() {
            return Err(HttpFailure::new("it has no usable key: an RSA key of 2048 to 4096 bits is needed"));
        }
        Ok(Self(keys))
    }

    /// Returns the only key that matches this header. Without a `kid`, the set must have exactly one key.
    pub fn of(&self, header: &TokenHeader) -> Option<&CoreJsonWebKey> {
        let is_meant = |key: &&CoreJsonWebKey| {
            header.kid.as_ref().is_none_or(|kid| key.key_id().is_some_and(|id| id.as_str() == kid))
        };
        let mut meant = self.0.iter().filter(is_meant);
        let key = meant.next()?;
        (meant.next().is_none() && is_for(key, &header.alg)).then_some(key)
    }
}

fn is_for(key: &CoreJsonWebKey, alg: &CoreJwsSigningAlgorithm) -> bool {
    match key.signing_alg() {
        JsonWebKeyAlgorithm::Unspecified => true,
        JsonWebKeyAlgorithm::Algorithm(own) => own == alg,
        JsonWebKeyAlgorithm::Unsupported => false,
    }
}

fn usable(key: Value) -> Option<CoreJsonWebKey> {
    let parts = key.as_object()?;
    let is_rsa = parts.get("kty").and_then(Value::as_str) == Some("RSA");
    let is_public = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().all(|part| !parts.contains_key(*part));
    let is_to_sign = parts.get("use").is_none_or(|use_| use_ == "sig");
    let is_to_verify = parts
        .get("key_ops")
        .is_none_or(|uses| uses.as_array().is_some_and(|uses| uses.iter().any(|use_| use_ == "verify")));
    let is_of_alg = parts.get("alg").is_none_or(|alg| matches!(alg.as_str(), Some("RS256" | "RS384" | "RS512")));
    let is_strong = is_strong(parts).unwrap_or(false);
    if is_rsa && is_public && is_to_sign && is_to_verify && is_of_alg && is_strong {
        serde_json::from_value(key).ok()
    } else {
        None
    }
}

fn is_strong(parts: &Map<String, Value>) -> Option<bool> {
    let number = |name| {
        let digits = BASE64_URL_SAFE_NO_PAD.decode(parts.get(name)?.as_str()?).ok()?;
        let leading = digits.iter().take_while(|digit| **digit == 0).count();
        Some(digits.get(leading..)?.to_vec())
    };
    let (modulus, exponent): (Vec<u8>, Vec<u8>) = (number("n")?, number("e")?);
    let bits = (modulus.len() * 8).saturating_sub(modulus.first()?.leading_zeros() as usize);
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    let is_fit = (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) && is_odd(&modulus);
    Some(is_fit && exponent.len() <= MAX_EXPONENT_BYTES && is_odd(&exponent) && exponent != [1])
}
