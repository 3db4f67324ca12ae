//! The signatures of the test provider: correct ones, and every kind that must be refused.

use std::io::Write as _;
use std::process::{Command, Stdio};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256,
};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::{Map, Value, json};

pub struct RsaKey {
    pub kid: String,
    pair: KeyPair,
}

impl RsaKey {
    pub fn new(kid: &str) -> Self {
        Self { kid: kid.into(), pair: KeyPair::generate(KeySize::Rsa2048).unwrap() }
    }

    /// The key as an entry of a key set.
    pub fn public(&self) -> Value {
        let (modulus, exponent) = numbers(self.pair.public_key().as_ref());
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid,
            "n": BASE64_URL_SAFE_NO_PAD.encode(modulus), "e": BASE64_URL_SAFE_NO_PAD.encode(exponent),
        })
    }

    /// Encodings of the key that a verifier could wrongly use for an HMAC.
    pub fn spellings(&self) -> Vec<Vec<u8>> {
        let pkcs1 = self.pair.public_key().as_ref().to_vec();
        let spki: PublicKeyX509Der<'_> = self.pair.public_key().as_der().unwrap();
        let spki = spki.as_ref().to_vec();
        let (modulus, _) = numbers(&pkcs1);
        let text = BASE64_URL_SAFE_NO_PAD.encode(&modulus).into_bytes();
        let pem = |bytes: &[u8], label: &str| {
            let lines: Vec<String> = BASE64_STANDARD
                .encode(bytes)
                .as_bytes()
                .chunks(64)
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .collect();
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).into_bytes()
        };
        vec![pem(&spki, "PUBLIC KEY"), pem(&pkcs1, "RSA PUBLIC KEY"), spki, pkcs1, modulus, text]
    }

    fn sign(&self, padding: &'static dyn signature::RsaEncoding, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    }
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017, A.1.1), without leading zeros.
fn numbers(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    fn value(der: &[u8]) -> (&[u8], &[u8]) {
        let (length, at) = match usize::from(der[1]) {
            short @ 0..0x80 => (short, 2),
            long => {
                let digits = long & 0x7f;
                (der[2..2 + digits].iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), 2 + digits)
            }
        };
        der[at..].split_at(length)
    }
    let (sequence, _) = value(der);
    let (modulus, rest) = value(sequence);
    let (exponent, _) = value(rest);
    let plain = |number: &[u8]| number.iter().copied().skip_while(|digit| *digit == 0).collect();
    (plain(modulus), plain(exponent))
}

#[derive(Clone)]
pub enum Signing {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    None,
    /// HS256 with this secret.
    Hs256(Vec<u8>),
    Es256,
    /// RS256 by an unknown key.
    Foreign,
    /// RS256 with one bit of the signature changed.
    Turned,
    /// RS256 over other claims than the token's.
    OtherClaims,
    /// RS256, by a key that is short; PEM.
    Short(String),
}

impl Signing {
    fn alg(&self) -> &'static str {
        match self {
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::None => "none",
            Self::Hs256(_) => "HS256",
            Self::Es256 => "ES256",
            _ => "RS256",
        }
    }

    pub fn token(&self, key: &RsaKey, claims: &Map<String, Value>, change: impl Fn(&mut Map<String, Value>)) -> String {
        let header = json!({ "alg": self.alg(), "kid": key.kid, "typ": "JWT" });
        let Value::Object(mut header) = header else { unreachable!() };
        change(&mut header);
        let encode = |part: &Map<String, Value>| BASE64_URL_SAFE_NO_PAD.encode(Value::Object(part.clone()).to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.sign(key, message.as_bytes());
        let message = match self {
            Self::OtherClaims => {
                let mut claims = claims.clone();
                claims.insert("sub".into(), "somebody-else".into());
                format!("{}.{}", encode(&header), encode(&claims))
            }
            _ => message,
        };
        format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    fn sign(&self, key: &RsaKey, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rs256 | Self::OtherClaims => key.sign(&RSA_PKCS1_SHA256, message),
            Self::Rs384 => key.sign(&RSA_PKCS1_SHA384, message),
            Self::Rs512 => key.sign(&RSA_PKCS1_SHA512, message),
            Self::Ps256 => key.sign(&RSA_PSS_SHA256, message),
            Self::None => Vec::new(),
            Self::Hs256(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
            Self::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
                pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
            }
            Self::Foreign => RsaKey::new(&key.kid).sign(&RSA_PKCS1_SHA256, message),
            Self::Turned => {
                let mut signature = key.sign(&RSA_PKCS1_SHA256, message);
                signature[100] ^= 1;
                signature
            }
            Self::Short(pem) => {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("key.pem");
                std::fs::write(&path, pem).unwrap();
                openssl(&["dgst", "-sha256", "-sign", path.to_str().unwrap()], message)
            }
        }
    }
}

/// A key of this many bits, as PEM, and as an entry of a key set.
pub fn short(bits: u32, kid: &str) -> (String, Value) {
    let pem = openssl(&["genrsa", &bits.to_string()], b"");
    let public = openssl(&["rsa", "-RSAPublicKey_out", "-outform", "DER"], &pem);
    let (modulus, exponent) = numbers(&public);
    let encode = |number: Vec<u8>| BASE64_URL_SAFE_NO_PAD.encode(number);
    let key = json!({ "kty": "RSA", "use": "sig", "kid": kid, "n": encode(modulus), "e": encode(exponent) });
    (String::from_utf8(pem).unwrap(), key)
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}
