//! Removes the members of a document that belong to one host or one sign-in, so that the fleet does not share them.
//!
//! - `agent_identity`: Codex registers a private key for its host and writes it into the host's `auth.json`.
//!   [`AuthDocument::agent_identity`](super::AuthDocument::agent_identity) returns it. If `auth_mode` is
//!   `agentIdentity`, it is the login itself and stays.
//! - `tokens.login_owner_id`: a random value made at sign-in. A running Codex exits when it changes. Codex always
//!   accepts its absence.

use zeroize::Zeroizing;

use super::json::{Members, Node};
use super::{DocumentError, top_level_members};

const AGENT_IDENTITY: &str = "agent_identity";
const LOGIN_OWNER: &str = "login_owner_id";
const AGENT_IDENTITY_MODE: &str = "agentIdentity";

/// Removes them from `document`. Returns the agent identity in its original spelling. `None` if it is absent, null, or
/// the login itself.
pub(super) fn take(document: &mut Members<'_>) -> Option<Zeroizing<String>> {
    if let Some(Node::Object(tokens)) = document.get_mut("tokens") {
        tokens.0.retain(|member| member.name != LOGIN_OWNER);
    }
    if is_agent_login(document) {
        return None;
    }
    let at = document.0.iter().position(|member| member.name == AGENT_IDENTITY)?;
    let member = document.0.remove(at);
    (!matches!(member.value, Node::Null)).then(|| Zeroizing::new(member.raw.to_owned()))
}

/// Appends `identity` (JSON text) as the last member of the canonical `text`. Codex reads members in any order. `None`
/// if the login itself is an agent identity, which must not be replaced.
pub fn with_agent_identity(text: &str, identity: &str) -> Result<Option<Zeroizing<String>>, DocumentError> {
    if top_level_members(text)?.get(AGENT_IDENTITY).is_some() {
        return Ok(None);
    }
    let Some(before) = text.trim_end().strip_suffix('}') else { return Ok(None) };
    // Allocate once: a growing string leaves copies of the secret in memory.
    let mut with = Zeroizing::new(String::with_capacity(text.len() + identity.len() + AGENT_IDENTITY.len() + 4));
    for piece in [before, ",\"", AGENT_IDENTITY, "\":", identity, "}"] {
        with.push_str(piece);
    }
    Ok(Some(with))
}

/// Whether a document has any of these members.
pub(super) fn has_any(document: &Members<'_>) -> bool {
    let has_owner = match document.get("tokens") {
        Some(Node::Object(tokens)) => tokens.get(LOGIN_OWNER).is_some(),
        _ => false,
    };
    has_owner || (document.get(AGENT_IDENTITY).is_some() && !is_agent_login(document))
}

fn is_agent_login(document: &Members<'_>) -> bool {
    document.get("auth_mode").and_then(Node::as_str) == Some(AGENT_IDENTITY_MODE)
}
