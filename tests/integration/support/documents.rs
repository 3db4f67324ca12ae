//! Logins, and what becomes of them.

use codex_authd::model::digest::Digest;
use serde_json::{Value, json};

/// The digest that a login gets which names no targets: one is made of its access token and appended.
pub fn canonical_digest(login: &Value) -> String {
    let auths = json!({ "api.openai.com": { "token": login["tokens"]["access_token"], "token_type": "bearer" } });
    let text = login.to_string();
    Digest::of(format!("{},\"auths\":{auths}}}", text.strip_suffix('}').unwrap()).as_bytes()).to_string()
}
