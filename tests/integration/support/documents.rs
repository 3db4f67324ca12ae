//! Logins and their digests.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use codex_authd::model::digest::Digest;
use serde_json::{Value, json};

/// A token with these claims; nothing checks its signature.
pub fn jwt(claims: &Value, signature: &str) -> String {
    format!("eyJhbGciOiJSUzI1NiJ9.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

pub fn account_claims(account: &str, user: &str, id: &str) -> Value {
    json!({
        "jti": id,
        "https://api.openai.com/auth": { "chatgpt_account_id": account, "chatgpt_user_id": user, "chatgpt_plan_type": "pro" },
    })
}

/// A ChatGPT login whose access token was issued at `issued_at`, in seconds since 1970.
pub fn issued_login(account: &str, issued_at: i64, last_refresh: &str) -> Value {
    let mut claims = account_claims(account, "user-1", &format!("{account}-{issued_at}"));
    claims["iat"] = issued_at.into();
    let token = jwt(&claims, "c2lnbmF0dXJlLW9mLW5vYm9keQ");
    json!({
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": null,
        "tokens": {
            "id_token": token, "access_token": token, "refresh_token": format!("rt_{account}_{issued_at}"), "account_id": account,
        },
        "last_refresh": last_refresh,
    })
}

/// The digest of a login without targets: the daemon makes one from its access token and appends it.
pub fn canonical_digest(login: &Value) -> String {
    let auths = json!({ "api.openai.com": { "token": login["tokens"]["access_token"], "token_type": "bearer" } });
    let text = login.to_string();
    Digest::of(format!("{},\"auths\":{auths}}}", text.strip_suffix('}').unwrap()).as_bytes()).to_string()
}
