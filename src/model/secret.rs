//! Secret text: wiped when dropped, printed as `***`.

use std::fmt;

use zeroize::Zeroizing;

use crate::model::digest::Digest;
use crate::platform::{SecureRandom, random};

/// A secret in plain text. `Debug` shows `***`; there is no `Display` and no `Serialize`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The plain text, for the one place that must write it out.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// A fresh API key: 256 random bits as 64 hex digits.
    pub fn new_api_key(rng: &dyn SecureRandom) -> Self {
        Self::new(hex::encode(Zeroizing::new(random::<32>(rng))))
    }

    /// A fresh installer token, in the form of a version 4 UUID (122 random bits).
    pub fn new_install_token(rng: &dyn SecureRandom) -> Self {
        Self::new(uuid::Builder::from_random_bytes(random(rng)).into_uuid().to_string())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
