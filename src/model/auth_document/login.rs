//! The kind, account and user of a login, and the time at which its access token was issued.
//!
//! | kind | account | user |
//! | --- | --- | --- |
//! | ChatGPT, with or without renewal | `chatgpt_account_id` of the tokens | `chatgpt_user_id`, `user_id` or `sub` |
//! | agent identity | `account_id` | `chatgpt_user_id` and `agent_runtime_id` |
//! | API key, personal access token, Bedrock | the SHA-256 of the key | |
//!
//! So only the same key renews a login that is a key. Without `auth.strict`, only `auth_mode` determines the kind. An
//! inferred kind is not compared then.

use std::fmt;

use serde_json::Value;

use super::json::{Members, Node};
use super::jwt::{self, AUTH_CLAIM};
use super::kind::{DetectedKind, LoginKind};
use super::{DocumentError, DocumentRules, top_level_members};
use crate::model::digest::Digest;

/// `Debug` and `Display` mask accounts and users.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginFacts {
    kind: Option<LoginKind>,
    account: Option<String>,
    user: Option<String>,
    issued_at: Option<i64>,
}

impl LoginFacts {
    /// Reads the facts of a stored document.
    pub fn read(text: &str, rules: &DocumentRules) -> Result<Self, DocumentError> {
        Ok(Self::of(&top_level_members(text)?, rules))
    }

    pub(super) fn of(document: &Members<'_>, rules: &DocumentRules) -> Self {
        let kind = match LoginKind::detect(document) {
            DetectedKind::Inferred(LoginKind::ChatGpt | LoginKind::ChatGptTokens) if !rules.strict => None,
            DetectedKind::Inferred(_) if !rules.strict => return Self::unknown(),
            detected => detected.kind(),
        };
        let text = |member: &str| document.get(member).and_then(Node::as_str);
        let inside = |object: &str, member: &str| match document.get(object) {
            Some(Node::Object(members)) => members.get(member).and_then(Node::as_str),
            _ => None,
        };
        let (account, user) = match kind {
            None | Some(LoginKind::ChatGpt | LoginKind::ChatGptTokens) => return Self::of_tokens(kind, document),
            Some(LoginKind::AgentIdentity) => return Self::of_agent(document),
            Some(LoginKind::ApiKey) => (text("OPENAI_API_KEY").map(digest), None),
            Some(LoginKind::PersonalAccessToken) => (text("personal_access_token").map(digest), None),
            Some(LoginKind::BedrockApiKey) => (inside("bedrock_api_key", "api_key").map(digest), None),
            Some(LoginKind::BedrockAccessKeys) => (inside("bedrock_access_keys", "access_key_id").map(digest), None),
        };
        Self { kind, account, user, issued_at: None }
    }

    fn unknown() -> Self {
        Self { kind: None, account: None, user: None, issued_at: None }
    }

    fn of_tokens(kind: Option<LoginKind>, document: &Members<'_>) -> Self {
        let [access, id] = token_claims(document);
        let account = access.as_ref().and_then(account).or_else(|| id.as_ref().and_then(account));
        let user = [USER, OLD_USER]
            .iter()
            .find_map(|name| {
                let claim = |claims: &Value| text_of(&claims[AUTH_CLAIM][name]);
                access.as_ref().and_then(claim).or_else(|| id.as_ref().and_then(claim))
            })
            .or_else(|| access.as_ref().and_then(|claims| text_of(&claims["sub"])))
            .or_else(|| id.as_ref().and_then(|claims| text_of(&claims["sub"])));
        let issued_at = access.as_ref().and_then(|claims| seconds(&claims["iat"]));
        Self { kind, account, user, issued_at }
    }

    fn of_agent(document: &Members<'_>) -> Self {
        let kind = Some(LoginKind::AgentIdentity);
        let (account, user, agent) = match document.get("agent_identity") {
            Some(Node::String(token)) => match jwt::claims(token) {
                Some(claims) => {
                    let text = |name: &str| text_of(&claims[name]);
                    (text("account_id"), text("chatgpt_user_id"), text("agent_runtime_id"))
                }
                None => (Some(digest(token)), None, None),
            },
            Some(Node::Object(agent)) => {
                let text = |name: &str| agent.get(name).and_then(Node::as_str).map(str::to_owned);
                (text("account_id"), text("chatgpt_user_id"), text("agent_runtime_id"))
            }
            _ => (None, None, None),
        };
        let user = user.zip(agent).map(|(user, agent)| format!("{user}/{agent}"));
        Self { kind, account, user, issued_at: None }
    }

    /// When the access token was issued, in seconds since 1970, by the issuer's clock.
    pub fn issued_at(&self) -> Option<i64> {
        self.issued_at
    }

    pub fn has_account(&self) -> bool {
        self.account.is_some()
    }

    /// Whether this is the same login as `present`, possibly renewed. Kind, account and user must be equal. If
    /// `present` lacks an account or a user, any is accepted. If only `self` lacks it, they differ. An unknown kind
    /// equals any.
    pub fn renews(&self, present: &Self) -> bool {
        let same_kind = self.kind.is_none() || present.kind.is_none() || self.kind == present.kind;
        same_kind
            && (present.account.is_none() || self.account == present.account)
            && (present.user.is_none() || self.user == present.user)
    }
}

impl fmt::Display for LoginFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.unwrap_or(LoginKind::ChatGpt);
        match &self.account {
            Some(account) => write!(f, "{} {}", kind.describe(), Masked(account))?,
            None => write!(f, "{} unknown", kind.describe())?,
        }
        match &self.user {
            Some(user) => write!(f, " (user {})", Masked(user)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for LoginFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}, issued at {:?}", self.issued_at)
    }
}

/// Shows the first and last four characters, or fewer so that at least half of a short text stays hidden.
struct Masked<'a>(&'a str);

impl fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let characters: Vec<char> = self.0.chars().filter(|character| !character.is_control()).collect();
        let part = if characters.len() >= 16 { 4 } else { characters.len() / 4 };
        let text = |part: &[char]| part.iter().collect::<String>();
        write!(f, "{}…{}", text(&characters[..part]), text(&characters[characters.len() - part..]))
    }
}

/// Refuses a document whose two tokens belong to different accounts or users.
pub(super) fn check_one_account(document: &Members<'_>) -> Result<(), DocumentError> {
    let [Some(access), Some(id)] = token_claims(document) else { return Ok(()) };
    let differ = |name: &str| {
        let [access, id] = [&access, &id].map(|claims| text_of(&claims[AUTH_CLAIM][name]));
        access.is_some() && id.is_some() && access != id
    };
    if differ(ACCOUNT) || differ(USER) {
        return Err(DocumentError::field("auth.tokens.id_token", "is of another account or user than access_token"));
    }
    Ok(())
}

const ACCOUNT: &str = "chatgpt_account_id";
const USER: &str = "chatgpt_user_id";
const OLD_USER: &str = "user_id";

/// The claims of the access token and of the ID token.
fn token_claims(document: &Members<'_>) -> [Option<Value>; 2] {
    let Some(Node::Object(tokens)) = document.get("tokens") else { return [None, None] };
    ["access_token", "id_token"].map(|name| tokens.get(name).and_then(Node::as_str).and_then(jwt::claims))
}

fn account(claims: &Value) -> Option<String> {
    text_of(&claims[AUTH_CLAIM][ACCOUNT])
}

fn text_of(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn seconds(value: &Value) -> Option<i64> {
    // Some issuers write fractional seconds.
    value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64))
}

fn digest(key: &str) -> String {
    Digest::of(key.trim().as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{chatgpt, jwt};
    use super::*;

    const DATE: &str = "2026-11-28T12:00:00Z";

    fn facts(document: &Value) -> LoginFacts {
        LoginFacts::read(&document.to_string(), &DocumentRules::default()).unwrap()
    }

    fn of(account: &str, user: &str) -> LoginFacts {
        facts(&chatgpt(account, user, "tag", None, DATE))
    }

    #[test]
    fn only_the_same_account_and_user_renew_a_login() {
        let present = of("account-1", "user-1");
        assert!(of("account-1", "user-1").renews(&present));
        assert!(!of("account-2", "user-1").renews(&present));
        assert!(!of("account-1", "user-2").renews(&present));
        let nobody = of("", "");
        assert!(!nobody.has_account() && !nobody.renews(&present), "an account of the present login must be matched");
        assert!(present.renews(&nobody) && nobody.renews(&nobody));
    }

    #[test]
    fn the_claims_count_and_not_what_stands_beside_the_tokens() {
        let mut document = chatgpt("account-2", "user-1", "tag", None, DATE);
        document["tokens"]["account_id"] = "account-1".into();
        assert!(!facts(&document).renews(&of("account-1", "user-1")));
        // Only the other token has the claims.
        let mut document = chatgpt("account-1", "user-1", "tag", None, DATE);
        document["tokens"]["access_token"] = "opaque".into();
        assert_eq!(facts(&document), of("account-1", "user-1"));
        let mut document = chatgpt("account-1", "user-1", "tag", None, DATE);
        document["tokens"]["id_token"] = jwt(&json!({})).into();
        assert_eq!(facts(&document), of("account-1", "user-1"));
        // The subject counts if there is no other user claim.
        let subject = |subject: &str| {
            let token = jwt(&json!({ "sub": subject, AUTH_CLAIM: { "chatgpt_account_id": "account-1" } }));
            facts(&json!({ "tokens": { "id_token": token, "access_token": token, "refresh_token": "r" } }))
        };
        assert!(subject("a").renews(&subject("a")) && !subject("b").renews(&subject("a")));
    }

    #[test]
    fn tokens_of_two_accounts_are_no_login() {
        let (one, two) =
            (chatgpt("account-1", "user-1", "a", None, DATE), chatgpt("account-2", "user-1", "a", None, DATE));
        let mut mixed = one.clone();
        mixed["tokens"]["access_token"] = two["tokens"]["access_token"].clone();
        for strict in [true, false] {
            let rules = DocumentRules { strict, ..DocumentRules::default() };
            let now = time::macros::datetime!(2026-11-29 12:00 UTC);
            let refused = super::super::AuthDocument::parse(&mixed.to_string(), now, &rules).unwrap_err();
            assert!(refused.to_string().starts_with("auth.tokens.id_token"), "{refused}");
        }
    }

    #[test]
    fn another_kind_or_another_key_is_another_account() {
        let key = |key: &str| facts(&json!({ "auth_mode": "apikey", "OPENAI_API_KEY": key }));
        let token = |token: &str| facts(&json!({ "personal_access_token": token }));
        let bedrock = |key: &str| facts(&json!({ "bedrock_api_key": { "api_key": key, "region": "r" } }));
        let chatgpt = of("account-1", "user-1");
        for (one, same, other) in [
            (key("sk-1"), key(" sk-1\n"), key("sk-2")),
            (token("at-1"), token("at-1"), token("at-2")),
            (bedrock("b-1"), bedrock("b-1"), bedrock("b-2")),
        ] {
            assert!(same.renews(&one) && !other.renews(&one));
            assert!(!one.renews(&chatgpt) && !chatgpt.renews(&one));
            // It does not even renew a login without an account.
            assert!(!one.renews(&of("", "")));
        }
        let mut access_only = super::super::fixture::chatgpt("account-1", "user-1", "a", None, DATE);
        access_only["auth_mode"] = "chatgptAuthTokens".into();
        assert!(!facts(&access_only).renews(&chatgpt), "it could no longer be renewed");
        let agent = |runtime: &str, task: &str| {
            facts(&json!({ "auth_mode": "agentIdentity", "agent_identity": {
                "account_id": "a", "chatgpt_user_id": "u", "agent_runtime_id": runtime, "task_id": task,
            } }))
        };
        assert!(agent("r-1", "t-2").renews(&agent("r-1", "t-1")) && !agent("r-2", "t-1").renews(&agent("r-1", "t-1")));
    }

    #[test]
    fn without_strictness_the_kind_is_what_auth_mode_says() {
        let lenient = DocumentRules { strict: false, ..DocumentRules::default() };
        let read = |document: Value| LoginFacts::read(&document.to_string(), &lenient).unwrap();
        let opaque = read(json!({ "tokens": { "access_token": "opaque" } }));
        let key = read(json!({ "OPENAI_API_KEY": "sk-1" }));
        assert!(key.renews(&opaque) && opaque.renews(&key));
        let account = read(chatgpt("account-1", "user-1", "a", None, DATE));
        assert!(!key.renews(&account) && !opaque.renews(&account), "an account in the claims is still compared");
    }

    #[test]
    fn the_time_of_issue_is_that_of_the_access_token() {
        let mut document = chatgpt("account-1", "user-1", "a", Some(1_700_000_000), DATE);
        assert_eq!(facts(&document).issued_at(), Some(1_700_000_000));
        document["tokens"]["access_token"] = jwt(&json!({ "iat": 1.5 })).into();
        assert_eq!(facts(&document).issued_at(), Some(1));
        for none in [jwt(&json!({ "iat": "1" })), "opaque".into()] {
            document["tokens"]["access_token"] = none.into();
            assert_eq!(facts(&document).issued_at(), None);
        }
    }

    #[test]
    fn what_names_an_account_is_shown_masked() {
        let shown = of("12345678-abcd-4321", "user-0123456789abcdef").to_string();
        assert_eq!(shown, "ChatGPT account 1234…4321 (user user…cdef)");
        let key = facts(&json!({ "auth_mode": "apikey", "OPENAI_API_KEY": "sk-secret" }));
        assert!(key.to_string().starts_with("API key ") && !format!("{key:?}").contains("secret"), "{key:?}");
        assert_eq!(of("", "").to_string(), "ChatGPT account unknown");
        assert_eq!(of("abcd", "u").to_string(), "ChatGPT account a…d (user …)");
    }
}
