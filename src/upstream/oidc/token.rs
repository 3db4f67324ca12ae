//! Verifies an ID token, and returns the identity in it (OpenID Connect Core 1.0, 3.1.3.7).
//!
//! The library checks issuer, audience, signature, expiry and nonce. This module checks the rest: the algorithm (before
//! a key is chosen), the authorized party, and the times.

use std::str::FromStr as _;
use std::time::SystemTime;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use openidconnect::core::{
    CoreGenderClaim, CoreIdTokenVerifier, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm,
};
use openidconnect::{
    AdditionalClaims, ClaimsVerificationError, ClientId, IdToken, IssuerUrl, JsonWebKeySet, Nonce,
    SignatureVerificationError,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::refusal::{SignInRefusal, tell_issuers};
use super::{Identity, ProviderSettings};
use crate::model::people::Email;
use crate::model::people::MAX_IDENTITY_PART_BYTES;

/// How far the provider's clock may run ahead of ours, in seconds.
const MAX_CLOCK_AHEAD_SECONDS: i64 = 60;
/// How long ago a token may have been issued, in seconds: a code is exchanged at once.
const MAX_TOKEN_AGE_SECONDS: i64 = 600;
const ALGORITHMS: [(&str, CoreJwsSigningAlgorithm); 3] = [
    ("RS256", CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256),
    ("RS384", CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384),
    ("RS512", CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512),
];

/// Claims that the library does not know.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Extra {
    nbf: Option<serde_json::Number>,
}

impl AdditionalClaims for Extra {}

pub(super) type Token = IdToken<Extra, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;

/// The header of a token. It is checked before anything else of the token, and before a key is chosen.
#[derive(Clone, Debug)]
pub(super) struct TokenHeader {
    pub alg: CoreJwsSigningAlgorithm,
    pub kid: Option<String>,
}

impl TokenHeader {
    /// Reads the header of the ID token in an answer of the token endpoint; `None` if there is no ID token.
    pub fn in_answer(body: &[u8]) -> Result<Option<Self>, SignInRefusal> {
        token_in(body)?.map(|token| Self::of(&token)).transpose()
    }

    fn of(token: &str) -> Result<Self, SignInRefusal> {
        #[derive(Deserialize)]
        struct Spelled {
            alg: String,
            kid: Option<String>,
        }
        let spelled: Spelled = part(token, 0).ok_or(SignInRefusal::TokenUnreadable)?;
        let alg = ALGORITHMS.into_iter().find(|(name, _)| *name == spelled.alg);
        let (_, alg) = alg.ok_or(SignInRefusal::Algorithm)?;
        Ok(Self { alg, kid: spelled.kid })
    }
}

/// An answer without an ID token gives `None`; the library reports other errors.
fn token_in(body: &[u8]) -> Result<Option<String>, SignInRefusal> {
    let answer: Value = serde_json::from_slice(body).map_err(|_| SignInRefusal::TokenUnreadable)?;
    match answer.get("id_token") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(_) => Err(SignInRefusal::TokenUnreadable),
    }
}

fn part<T: serde::de::DeserializeOwned>(token: &str, position: usize) -> Option<T> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(position)?).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Explains why the library could not read this answer. The answer is refused in any case.
pub(super) fn why_unreadable(body: &[u8]) -> SignInRefusal {
    let claims: Option<Value> = token_in(body).ok().flatten().and_then(|token| part(&token, 1));
    let has = |name| claims.as_ref().is_some_and(|claims| claims.get(name).is_some_and(Value::is_string));
    match claims {
        Some(Value::Object(_)) if !has("sub") => SignInRefusal::SubjectMissing,
        Some(Value::Object(_)) if !has("iss") => SignInRefusal::IssuerOfToken,
        _ => SignInRefusal::TokenUnreadable,
    }
}

pub(super) struct ExpectedClaims<'a> {
    pub settings: &'a ProviderSettings,
    pub issuer: IssuerUrl,
    pub nonce: &'a str,
    pub now: OffsetDateTime,
}

impl ExpectedClaims<'_> {
    /// Returns the identity in a token that `key` must have signed.
    pub fn check(self, token: &Token, key: CoreJsonWebKey) -> Result<Identity, SignInRefusal> {
        let now = SystemTime::from(self.now);
        let settings = self.settings;
        let client = ClientId::new(settings.client_id.clone());
        let verifier = CoreIdTokenVerifier::new_public_client(client, self.issuer, JsonWebKeySet::new(vec![key]))
            .set_allowed_algs(ALGORITHMS.map(|(_, alg)| alg))
            .set_other_audience_verifier_fn(|other| settings.trusted_audiences.iter().any(|known| *known == **other))
            .set_time_fn(move || now.into());
        let nonce = Nonce::new(self.nonce.to_owned());
        let claims = token.claims(&verifier, &nonce).map_err(|error| {
            if matches!(error, ClaimsVerificationError::InvalidIssuer(_)) {
                tell_issuers("the ID token", &settings.issuer, &issuer_of(token));
            }
            refusal(&error)
        })?;
        match claims.authorized_party() {
            Some(party) if party.as_str() != self.settings.client_id => return Err(SignInRefusal::AuthorizedParty),
            None if claims.audiences().len() > 1 => return Err(SignInRefusal::AuthorizedParty),
            _ => {}
        }
        let age = self.now.unix_timestamp().saturating_sub(claims.issue_time().timestamp());
        if age < -MAX_CLOCK_AHEAD_SECONDS {
            return Err(SignInRefusal::IssuedInFuture);
        }
        if age > MAX_TOKEN_AGE_SECONDS {
            return Err(SignInRefusal::IssuedTooLongAgo);
        }
        if let Some(from) = &claims.additional_claims().nbf {
            let from = from.as_f64().ok_or(SignInRefusal::TokenUnreadable)?;
            if from > (self.now.unix_timestamp() + MAX_CLOCK_AHEAD_SECONDS) as f64 {
                return Err(SignInRefusal::NotYetValid);
            }
        }
        let subject = claims.subject().as_str();
        if subject.is_empty() {
            return Err(SignInRefusal::SubjectMissing);
        }
        if subject.len() > MAX_IDENTITY_PART_BYTES || subject.chars().any(char::is_control) {
            return Err(SignInRefusal::SubjectUnfit);
        }
        // An address that the provider has not verified would mislead people.
        let email = claims.email().filter(|_| claims.email_verified() != Some(false));
        let email = email.and_then(|email| Email::from_str(email.as_str()).ok()).map(String::from);
        Ok(Identity { issuer: self.settings.issuer.clone(), subject: subject.to_owned(), email })
    }
}

/// The issuer in the token, which is not verified yet.
fn issuer_of(token: &Token) -> String {
    let claims: Option<Value> = part(&token.to_string(), 1);
    claims.and_then(|claims| claims.get("iss")?.as_str().map(String::from)).unwrap_or_default()
}

fn refusal(error: &ClaimsVerificationError) -> SignInRefusal {
    use SignatureVerificationError as Signature;
    match error {
        ClaimsVerificationError::InvalidIssuer(_) => SignInRefusal::IssuerOfToken,
        ClaimsVerificationError::InvalidAudience(_) => SignInRefusal::Audience,
        ClaimsVerificationError::Expired(_) => SignInRefusal::Expired,
        ClaimsVerificationError::InvalidNonce(_) => SignInRefusal::Nonce,
        ClaimsVerificationError::SignatureVerification(error) => match error {
            Signature::DisallowedAlg(_) | Signature::UnsupportedAlg(_) | Signature::NoSignature => {
                SignInRefusal::Algorithm
            }
            Signature::NoMatchingKey | Signature::AmbiguousKeyId(_) | Signature::InvalidKey(_) => {
                SignInRefusal::UnknownKey
            }
            _ => SignInRefusal::Signature,
        },
        _ => SignInRefusal::TokenUnreadable,
    }
}
