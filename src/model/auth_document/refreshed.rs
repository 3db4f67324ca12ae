//! The document that Codex wrote in the place of one that it was given: what it dropped is put back, and whose it is.
//!
//! Codex keeps the members it knows and drops the others, `auths` among them. Refreshed tokens are taken by it whoever they
//! belong to; a giver has to check that (the claim is read, not verified: it came from where the tokens come from).

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use zeroize::Zeroizing;

use super::json::{self, Member, Members, Node};
use super::{DocumentError, top_level_members};

/// Members that Codex itself writes: where one is missing, Codex has taken it out.
const OF_CODEX: [&str; 7] = [
    "auth_mode",
    "OPENAI_API_KEY",
    "tokens",
    "last_refresh",
    "agent_identity",
    "personal_access_token",
    "bedrock_api_key",
];
const CLAIM: &str = "https://api.openai.com/auth";

/// `new`, with what `old` had beside it. A target of `old` that has its access token gets the new one.
pub fn refreshed(old: &str, new: &str) -> Result<Zeroizing<String>, DocumentError> {
    let (before, mut after) = (top_level_members(old)?, top_level_members(new)?);
    let tokens = access_token(&before).zip(access_token(&after)).map(|(old, new)| (old.to_owned(), new.to_owned()));
    let tokens = tokens.map(|(old, new)| (Zeroizing::new(old), Zeroizing::new(new)));
    let dropped: Vec<Member<'_>> = before
        .0
        .into_iter()
        .filter(|member| !OF_CODEX.contains(&&*member.name) && after.get(&member.name).is_none())
        .collect();
    for mut member in dropped {
        if let ("auths", Node::Object(targets), Some((old, new))) = (&*member.name, &mut member.value, &tokens) {
            targets.0.iter_mut().for_each(|target| exchange(target, old, new));
        }
        after.0.push(member);
    }
    Ok(json::write(&Node::Object(after), old.len() + new.len()))
}

fn exchange(target: &mut Member<'_>, old: &str, new: &str) {
    if let Node::Object(entry) = &mut target.value
        && entry.get("token").and_then(Node::as_str) == Some(old)
    {
        entry.set("token", Node::string(new));
    }
}

fn access_token<'n>(document: &'n Members<'_>) -> Option<&'n str> {
    match document.get("tokens") {
        Some(Node::Object(tokens)) => tokens.get("access_token").and_then(Node::as_str),
        _ => None,
    }
}

/// The accounts that a document's tokens say they belong to; empty where none can be read.
pub fn accounts(document: &str) -> Vec<String> {
    let Ok(document) = serde_json::from_str::<Value>(document) else { return Vec::new() };
    let tokens = ["id_token", "access_token"].map(|name| document["tokens"][name].as_str());
    let mut accounts: Vec<String> = tokens.into_iter().flatten().filter_map(account).collect();
    accounts.sort();
    accounts.dedup();
    accounts
}

fn account(token: &str) -> Option<String> {
    let claims = token.split('.').nth(1)?;
    let claims = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims[CLAIM]["chatgpt_account_id"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_codex_dropped_is_put_back_and_what_it_took_out_is_not() {
        let old = r#"{"OPENAI_API_KEY":"sk-old","tokens":{"access_token":"old-token"},"last_refresh":"a","note":1.50,"auths":{"api.openai.com":{"token":"old-token"},"other.test":{"token":"another"}}}"#;
        let new = r#"{"auth_mode":"chatgpt","tokens":{"access_token":"new-token"},"last_refresh":"b"}"#;
        assert_eq!(
            refreshed(old, new).unwrap().as_str(),
            r#"{"auth_mode":"chatgpt","tokens":{"access_token":"new-token"},"last_refresh":"b","note":1.50,"auths":{"api.openai.com":{"token":"new-token"},"other.test":{"token":"another"}}}"#
        );
        let kept = r#"{"tokens":{"access_token":"new-token"},"auths":{}}"#;
        assert_eq!(
            refreshed(old, kept).unwrap().as_str(),
            r#"{"tokens":{"access_token":"new-token"},"auths":{},"note":1.50}"#
        );
        assert!(refreshed(old, "[]").is_err() && refreshed(old, "{").is_err());
    }

    #[test]
    fn the_account_is_read_from_the_tokens() {
        let token = |account: &str| {
            let claims = serde_json::json!({ CLAIM: { "chatgpt_account_id": account } }).to_string();
            format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
        };
        let document = |id: &str, access: &str| {
            serde_json::json!({ "tokens": { "id_token": id, "access_token": access, "account_id": "stale" } })
                .to_string()
        };
        assert_eq!(accounts(&document(&token("a"), &token("a"))), ["a"]);
        assert_eq!(accounts(&document(&token("a"), &token("b"))), ["a", "b"]);
        assert_eq!(accounts(&document("opaque", "x.y.z")), Vec::<String>::new());
        assert_eq!(accounts("{}"), Vec::<String>::new());
    }
}
