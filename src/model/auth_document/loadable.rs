//! Checks that Codex can load a document and finds a login in it (measured with `codex login status` and `codex exec`).
//!
//! One member of the wrong type makes the whole file unreadable for Codex. So the types of all members that Codex knows
//! are checked, then the member that holds the login of this kind. Whether a token is valid is not checked.

use super::json::{Members, Node};
use super::kind::{DetectedKind, LoginKind};
use super::{DocumentError, jwt, token};

/// The required text members of an `agent_identity` object.
const AGENT_TEXTS: [&str; 5] = ["agent_runtime_id", "agent_private_key", "account_id", "chatgpt_user_id", "plan_type"];

pub(super) fn check(document: &Members<'_>) -> Result<LoginKind, DocumentError> {
    let kind = match LoginKind::detect(document) {
        DetectedKind::Stated(kind) | DetectedKind::Inferred(kind) => kind,
        DetectedKind::Unknown => {
            return refuse(
                "auth_mode",
                "must be chatgpt, chatgptAuthTokens, apikey, personalAccessToken, agentIdentity, bedrockApiKey or \
                 bedrockAccessKeys, or be absent",
            );
        }
    };
    let top = At { path: "auth", members: document };
    top.optional_text("OPENAI_API_KEY")?;
    top.optional_text("personal_access_token")?;
    if let Some(tokens) = top.optional_object("tokens")? {
        check_tokens(&At { path: "auth.tokens", members: tokens })?;
    }
    check_agent(&top)?;
    if let Some(key) = top.optional_object("bedrock_api_key")? {
        let key = At { path: "auth.bedrock_api_key", members: key };
        key.text("api_key")?;
        key.text("region")?;
    }
    if let Some(keys) = top.optional_object("bedrock_access_keys")? {
        let keys = At { path: "auth.bedrock_access_keys", members: keys };
        keys.text("access_key_id")?;
        keys.text("secret_access_key")?;
        keys.optional_text("session_token")?;
    }
    match kind {
        LoginKind::ChatGpt | LoginKind::ChatGptTokens => match document.get("tokens") {
            Some(Node::Object(tokens)) => At { path: "auth.tokens", members: tokens }.secret("access_token")?,
            _ => return refuse("tokens", "is required for a ChatGPT login"),
        },
        LoginKind::ApiKey => top.secret("OPENAI_API_KEY")?,
        LoginKind::PersonalAccessToken => top.secret("personal_access_token")?,
        LoginKind::AgentIdentity if !document.has("agent_identity") => {
            return refuse("agent_identity", "is required for auth_mode agentIdentity");
        }
        LoginKind::BedrockApiKey if !document.has("bedrock_api_key") => {
            return refuse("bedrock_api_key", "is required for auth_mode bedrockApiKey");
        }
        LoginKind::BedrockAccessKeys if !document.has("bedrock_access_keys") => {
            return refuse("bedrock_access_keys", "is required for auth_mode bedrockAccessKeys");
        }
        LoginKind::AgentIdentity
            if document
                .get("agent_identity")
                .and_then(Node::as_str)
                .is_some_and(|text| jwt::claims(text).is_none()) =>
        {
            return refuse("agent_identity", "must be a JWT as Codex reads it, or an object");
        }
        LoginKind::AgentIdentity | LoginKind::BedrockApiKey | LoginKind::BedrockAccessKeys => {}
    }
    Ok(kind)
}

fn check_tokens(tokens: &At<'_, '_>) -> Result<(), DocumentError> {
    if !jwt::is_id_token(tokens.text("id_token")?) {
        return refuse("tokens.id_token", "must be a JWT as Codex reads it");
    }
    tokens.text("access_token")?;
    tokens.text("refresh_token")?;
    tokens.optional_text("account_id")?;
    if let Some(provenance) = tokens.optional_object("oauth_provenance")? {
        let provenance = At { path: "auth.tokens.oauth_provenance", members: provenance };
        provenance.text("issuer")?;
        provenance.text("client_id")?;
    }
    Ok(())
}

/// Checks `agent_identity`: a JWT, or an object with the host's key.
fn check_agent(top: &At<'_, '_>) -> Result<(), DocumentError> {
    match top.members.get("agent_identity") {
        None | Some(Node::Null | Node::String(_)) => Ok(()),
        Some(Node::Object(agent)) => {
            let agent = At { path: "auth.agent_identity", members: agent };
            AGENT_TEXTS.iter().try_for_each(|name| agent.text(name).map(drop))?;
            agent.optional_text("email")?;
            agent.optional_text("task_id")?;
            match agent.members.get("chatgpt_account_is_fedramp") {
                Some(Node::Bool(_)) => Ok(()),
                _ => refuse("agent_identity.chatgpt_account_is_fedramp", "must be true or false"),
            }
        }
        Some(_) => refuse("agent_identity", "must be a text or an object"),
    }
}

/// An object of the document, with its path.
struct At<'m, 'a> {
    path: &'static str,
    members: &'m Members<'a>,
}

impl<'m, 'a> At<'m, 'a> {
    fn refuse<T>(&self, name: &str, message: &str) -> Result<T, DocumentError> {
        Err(DocumentError::field(format!("{}.{name}", self.path), message))
    }

    fn text(&self, name: &str) -> Result<&'m str, DocumentError> {
        match self.members.get(name) {
            None | Some(Node::Null) => self.refuse(name, "is required"),
            Some(node) => node.as_str().map_or_else(|| self.refuse(name, "must be a text"), Ok),
        }
    }

    fn optional_text(&self, name: &str) -> Result<(), DocumentError> {
        match self.members.get(name) {
            None | Some(Node::Null | Node::String(_)) => Ok(()),
            Some(_) => self.refuse(name, "must be a text or null"),
        }
    }

    fn optional_object(&self, name: &str) -> Result<Option<&'m Members<'a>>, DocumentError> {
        match self.members.get(name) {
            None | Some(Node::Null) => Ok(None),
            Some(Node::Object(members)) => Ok(Some(members)),
            Some(_) => self.refuse(name, "must be an object or null"),
        }
    }

    /// Requires a text that is not blank.
    fn secret(&self, name: &str) -> Result<(), DocumentError> {
        if token::trim(self.text(name)?).is_empty() { self.refuse(name, "must not be blank") } else { Ok(()) }
    }
}

fn refuse<T>(member: &str, message: &str) -> Result<T, DocumentError> {
    Err(DocumentError::field(format!("auth.{member}"), message))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::OffsetDateTime;
    use time::macros::datetime;

    use super::super::fixture::{agent, chatgpt, jwt};
    use super::super::{AuthDocument, DocumentError, DocumentRules};

    const NOW: OffsetDateTime = datetime!(2026-11-29 12:00 UTC);
    const DATE: &str = "2026-11-28T12:00:00Z";
    const KEY: &str = "sk-Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6";

    fn parse(document: &Value) -> Result<AuthDocument, DocumentError> {
        AuthDocument::parse(&document.to_string(), NOW, &DocumentRules::default())
    }

    fn login() -> Value {
        chatgpt("account-1", "user-1", "one", None, DATE)
    }

    /// The login with the member at a JSON pointer set, or removed for `None`.
    fn with(pointer: &str, value: Option<Value>) -> Value {
        let mut login = login();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = login.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => drop(parent.insert(name.into(), value)),
            None => drop(parent.remove(name)),
        }
        login
    }

    #[track_caller]
    fn refused_at(document: &Value, path: &str) {
        match parse(document) {
            Err(DocumentError::Field { path: found, .. }) => assert_eq!(found, path, "{document}"),
            other => panic!("{other:?} for {document}"),
        }
    }

    /// Measured: `codex login status` 0.169.0 fails on each of these.
    #[test]
    fn what_codex_cannot_load_is_refused_and_the_member_named() {
        for mode in [json!("bogus"), json!("chatgpt_auth_tokens"), json!("headers"), json!(5), json!("ChatGPT")] {
            refused_at(&with("/auth_mode", Some(mode)), "auth.auth_mode");
        }
        for (pointer, path) in [
            ("/OPENAI_API_KEY", "auth.OPENAI_API_KEY"),
            ("/personal_access_token", "auth.personal_access_token"),
            ("/tokens", "auth.tokens"),
            ("/agent_identity", "auth.agent_identity"),
            ("/bedrock_api_key", "auth.bedrock_api_key"),
            ("/bedrock_access_keys", "auth.bedrock_access_keys"),
            ("/tokens/id_token", "auth.tokens.id_token"),
            ("/tokens/access_token", "auth.tokens.access_token"),
            ("/tokens/refresh_token", "auth.tokens.refresh_token"),
            ("/tokens/account_id", "auth.tokens.account_id"),
            ("/tokens/oauth_provenance", "auth.tokens.oauth_provenance"),
            ("/last_refresh", "auth.last_refresh"),
        ] {
            refused_at(&with(pointer, Some(json!(5))), path);
        }
        for pointer in ["/tokens/id_token", "/tokens/access_token", "/tokens/refresh_token", "/tokens", "/last_refresh"]
        {
            let path = format!("auth{}", pointer.replace('/', "."));
            refused_at(&with(pointer, None), &path);
            refused_at(&with(pointer, Some(Value::Null)), &path);
        }
        refused_at(&with("/last_refresh", Some(json!(""))), "auth.last_refresh");
        refused_at(&with("/tokens/access_token", Some(json!(" "))), "auth.tokens.access_token");
        for members in [json!({ "issuer": "https://a" }), json!({ "client_id": "b" })] {
            let DocumentError::Field { path, .. } =
                parse(&with("/tokens/oauth_provenance", Some(members))).expect_err("half of it was accepted")
            else {
                panic!()
            };
            assert!(path.starts_with("auth.tokens.oauth_provenance."), "{path}");
        }
        refused_at(&with("/bedrock_api_key", Some(json!({ "api_key": "x" }))), "auth.bedrock_api_key.region");
        let half = json!({ "access_key_id": "x" });
        refused_at(&with("/bedrock_access_keys", Some(half)), "auth.bedrock_access_keys.secret_access_key");
        for (name, value) in [("agent_runtime_id", Value::Null), ("email", json!(5)), ("task_id", json!(5))] {
            let mut agent = agent("key");
            agent[name] = value;
            refused_at(&with("/agent_identity", Some(agent)), &format!("auth.agent_identity.{name}"));
        }
    }

    #[test]
    fn an_id_token_must_have_the_claims_that_codex_reads() {
        let auth = "https://api.openai.com/auth";
        let claims = [
            json!({ "email": 5 }),
            json!({ auth: { "chatgpt_plan_type": 5 } }),
            json!({ auth: { "chatgpt_user_id": 5 } }),
            json!({ auth: { "user_id": 5 } }),
            json!({ auth: { "chatgpt_account_id": 5 } }),
            json!({ auth: { "chatgpt_account_is_fedramp": null } }),
            json!({ auth: "text" }),
            json!({ "https://api.openai.com/profile": { "email": 5 } }),
        ];
        let tokens = ["", "opaque", "a.b.c", "e30.e30", "e30..c", "e30.eyJhIjoxfQ==.c"].map(String::from);
        for token in claims.iter().map(jwt).chain(tokens) {
            refused_at(&with("/tokens/id_token", Some(token.into())), "auth.tokens.id_token");
        }
        for claims in [json!({}), json!({ auth: null }), json!({ auth: { "chatgpt_plan_type": null } })] {
            parse(&with("/tokens/id_token", Some(jwt(&claims).into()))).unwrap();
        }
    }

    #[test]
    fn each_kind_of_login_that_codex_writes_is_taken_without_a_date_or_targets_where_it_has_none() {
        let agent_token = jwt(&json!({ "agent_runtime_id": "runtime", "account_id": "account" }));
        for (document, targets) in [
            (json!({ "auth_mode": "apikey", "OPENAI_API_KEY": KEY }), 1),
            (json!({ "OPENAI_API_KEY": KEY }), 1),
            (json!({ "OPENAI_API_KEY": null, "personal_access_token": "at-Zk3vQ9xT1mB7rLp0" }), 0),
            (json!({ "auth_mode": "personalAccessToken", "personal_access_token": "at-Zk3vQ9xT1mB7rLp0" }), 0),
            (json!({ "auth_mode": "agentIdentity", "OPENAI_API_KEY": null, "agent_identity": agent_token }), 0),
            (json!({ "auth_mode": "agentIdentity", "agent_identity": agent("key") }), 0),
            (json!({ "auth_mode": "bedrockApiKey", "bedrock_api_key": { "api_key": "x", "region": "eu-1" } }), 0),
            (json!({ "bedrock_api_key": { "api_key": "x", "region": "eu-1" }, "auths": {} }), 0),
            (json!({ "bedrock_access_keys": { "access_key_id": "x", "secret_access_key": "y" } }), 0),
        ] {
            let parsed = parse(&document).unwrap_or_else(|error| panic!("{error} for {document}"));
            assert_eq!(
                (parsed.is_undated(), parsed.last_refresh().text()),
                (true, "2026-11-29T12:00:00Z"),
                "{document}"
            );
            assert_eq!((parsed.targets().len(), parsed.text().contains("auths")), (targets, targets > 0), "{document}");
            let stored = AuthDocument::from_canonical(parsed.text(), &DocumentRules::default()).unwrap();
            assert_eq!(stored.targets().len(), targets);
            assert!(parse(&serde_json::from_str(parsed.text()).unwrap()).is_ok(), "the served text is accepted again");
        }
        let tokens_only = with("/auth_mode", Some(json!("chatgptAuthTokens")));
        assert!(!parse(&tokens_only).unwrap().is_undated());
        parse(&with("/auth_mode", None)).unwrap();
        parse(&with("/agent_identity", Some(agent("key")))).unwrap();
        for pointer in ["/tokens/account_id", "/tokens/oauth_provenance", "/OPENAI_API_KEY"] {
            parse(&with(pointer, Some(Value::Null))).unwrap();
        }
    }

    #[test]
    fn a_login_without_what_its_kind_needs_is_refused() {
        for (document, path) in [
            (json!({ "auth_mode": "apikey", "OPENAI_API_KEY": null }), "auth.OPENAI_API_KEY"),
            (json!({ "auth_mode": "apikey", "OPENAI_API_KEY": "" }), "auth.OPENAI_API_KEY"),
            (json!({ "auth_mode": "apikey", "OPENAI_API_KEY": KEY, "tokens": {} }), "auth.tokens.id_token"),
            (json!({ "auth_mode": "personalAccessToken" }), "auth.personal_access_token"),
            (json!({ "auth_mode": "agentIdentity" }), "auth.agent_identity"),
            (json!({ "auth_mode": "agentIdentity", "agent_identity": "opaque" }), "auth.agent_identity"),
            (json!({ "auth_mode": "bedrockApiKey" }), "auth.bedrock_api_key"),
            (json!({ "auth_mode": "bedrockAccessKeys" }), "auth.bedrock_access_keys"),
            (json!({ "auth_mode": "chatgpt", "OPENAI_API_KEY": KEY, "last_refresh": DATE }), "auth.tokens"),
        ] {
            refused_at(&document, path);
        }
    }

    #[test]
    fn the_former_services_leniency_can_be_had() {
        let lenient = DocumentRules { strict: false, ..DocumentRules::default() };
        let parse = |document: &Value| AuthDocument::parse(&document.to_string(), NOW, &lenient);
        parse(&with("/tokens/id_token", Some(json!("opaque")))).unwrap();
        parse(&with("/tokens/refresh_token", None)).unwrap();
        parse(&with("/auth_mode", Some(json!("bogus")))).unwrap();
        assert!(parse(&json!({ "OPENAI_API_KEY": KEY })).is_err(), "a date was always needed");
    }

    #[test]
    fn a_document_of_more_than_64_kib_is_refused_whatever_it_is() {
        let size = |document: &Value| document.to_string().len();
        let filled = |bytes: usize| {
            let mut document = with("/filler", Some(json!("")));
            document["filler"] = "x".repeat(bytes - size(&document)).into();
            document
        };
        let largest = filled(64 * 1024);
        let parsed = parse(&largest).unwrap();
        assert_eq!(parse(&filled(64 * 1024 + 1)).unwrap_err(), DocumentError::TooLarge { bytes: 64 * 1024 + 1 });
        assert!(parsed.text().len() > 64 * 1024, "the added members do not count");
        assert!(AuthDocument::parse_stored(parsed.text(), NOW, &DocumentRules::default()).is_ok());
        assert!(parsed.dated(NOW).is_ok());
        let junk = "{".repeat(64 * 1024 + 1);
        let refused = AuthDocument::parse(&junk, NOW, &DocumentRules::default()).unwrap_err();
        assert_eq!(refused, DocumentError::TooLarge { bytes: 64 * 1024 + 1 });
    }
}
