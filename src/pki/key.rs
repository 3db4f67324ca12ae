//! ECDSA P-256 keys in memory: wiped when dropped, never printed.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::{Zeroize as _, Zeroizing};

use super::{PkiError, Result};
use crate::model::secret::Secret;

pub(super) struct EcKey(KeyPair);

impl EcKey {
    pub fn generate() -> Result<Self> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads PKCS#8 DER. `what` names the key in the error, which reveals none of its bytes.
    pub fn from_pkcs8(what: &'static str, der: &[u8]) -> Result<Self> {
        KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|error| PkiError::BadKey { what, reason: error.to_string() })
    }

    pub fn pair(&self) -> &KeyPair {
        &self.0
    }

    pub fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialized_der().to_vec())
    }

    pub fn pkcs8_pem(&self) -> Secret {
        let body = Zeroizing::new(BASE64_STANDARD.encode(self.0.serialized_der()));
        // One allocation: a growing string would leave copies of the key in memory.
        let mut pem = String::with_capacity(body.len() * 2 + 64);
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        Secret::new(pem)
    }

    pub fn public_key_info(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl Drop for EcKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
