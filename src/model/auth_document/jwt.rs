//! Reads the claims of a token without verifying them: only the issuer's servers can verify a token.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

pub(super) const AUTH_CLAIM: &str = "https://api.openai.com/auth";

/// The claims. `None` if the text is not a JWT that contains a JSON object.
pub(super) fn claims(token: &str) -> Option<Value> {
    let claims: Value = serde_json::from_slice(&payload(token)?).ok()?;
    claims.is_object().then_some(claims)
}

/// Whether Codex accepts it as an `id_token`: three non-empty parts, and claims of the types that Codex expects.
pub(super) fn is_id_token(token: &str) -> bool {
    payload(token).is_some_and(|payload| serde_json::from_slice::<IdClaims>(&payload).is_ok())
}

fn payload(token: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut parts = token.split('.');
    let [header, payload, signature] =
        [parts.next(), parts.next(), parts.next()].map(|part| part.filter(|part| !part.is_empty()));
    header.and(signature)?;
    BASE64_URL_SAFE_NO_PAD.decode(payload?).ok().map(Zeroizing::new)
}

/// The claims as Codex declares them. A claim of another type makes the whole file unreadable for Codex.
#[derive(Deserialize)]
#[allow(dead_code)] // Only the types matter.
struct IdClaims {
    #[serde(default)]
    email: Option<String>,
    #[serde(rename = "https://api.openai.com/profile", default)]
    profile: Option<ProfileClaims>,
    #[serde(rename = "https://api.openai.com/auth", default)]
    auth: Option<AuthClaims>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct ProfileClaims {
    #[serde(default)]
    email: Option<String>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct AuthClaims {
    #[serde(default)]
    chatgpt_plan_type: Option<String>,
    #[serde(default)]
    chatgpt_user_id: Option<String>,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    chatgpt_account_id: Option<String>,
    #[serde(default)]
    chatgpt_account_is_fedramp: bool,
}
