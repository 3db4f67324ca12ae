//! Test fixtures: logins that Codex can load.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::jwt::AUTH_CLAIM;

/// A token with these claims and a dummy signature.
pub(crate) fn jwt(claims: &Value) -> String {
    format!("eyJhbGciOiJSUzI1NiJ9.{}.c2lnbmF0dXJl", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// A ChatGPT login as Codex writes it. `tag` makes the set of tokens distinct. `issued_at`: seconds since 1970.
pub(crate) fn chatgpt(account: &str, user: &str, tag: &str, issued_at: Option<i64>, last_refresh: &str) -> Value {
    let token = |kind: &str| {
        let mut claims = json!({ "jti": format!("{kind}-{tag}") });
        if !account.is_empty() {
            claims[AUTH_CLAIM] = json!({ "chatgpt_account_id": account, "chatgpt_user_id": user });
        }
        if let Some(issued_at) = issued_at {
            claims["iat"] = issued_at.into();
        }
        jwt(&claims)
    };
    json!({
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": null,
        "tokens": {
            "id_token": token("id"),
            "access_token": token("access"),
            "refresh_token": format!("rt_{tag}_Zk3vQ9xT1mB7rLp0"),
            "account_id": account,
        },
        "last_refresh": last_refresh,
    })
}

/// An agent identity with this private key, as Codex registers it for a host.
pub(crate) fn agent(private_key: &str) -> Value {
    json!({
        "agent_runtime_id": "runtime", "agent_private_key": private_key, "account_id": "account", "plan_type": "pro",
        "chatgpt_user_id": "user", "chatgpt_account_is_fedramp": false,
    })
}
