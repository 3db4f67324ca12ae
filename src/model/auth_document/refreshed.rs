//! Restores the members that Codex dropped when it rewrote a document.
//!
//! Codex keeps the members it knows and drops the others, including `auths`. It accepts refreshed tokens of any
//! account, so the caller has to check the account ([`LoginFacts::renews`](super::LoginFacts::renews)).

use zeroize::Zeroizing;

use super::json::{self, Member, Members, Node};
use super::{DocumentError, top_level_members};

/// Members that Codex itself writes. If one is missing, Codex has removed it on purpose.
const OF_CODEX: [&str; 8] = [
    "auth_mode",
    "OPENAI_API_KEY",
    "tokens",
    "last_refresh",
    "agent_identity",
    "personal_access_token",
    "bedrock_api_key",
    "bedrock_access_keys",
];

/// Returns `new` with the other members of `old`. A target of `old` that has the old access token gets the new one.
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
}
