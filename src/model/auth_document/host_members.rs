//! Members of a document that belong to one host or to one sign-in, and are taken out of what the fleet shares.
//!
//! - `agent_identity`: Codex registers a private key for its host by itself and writes it into the host's `auth.json`. It
//!   is handed out by [`AuthDocument::agent_identity`](super::AuthDocument::agent_identity). Where `auth_mode` is
//!   `agentIdentity` it is the login itself and stays.
//! - `tokens.login_owner_id`: random, made at a sign-in. A running Codex ends when it changes; its absence is always
//!   accepted.

use zeroize::Zeroizing;

use super::json::{Members, Node};
use super::{DocumentError, top_level_members};

const AGENT_IDENTITY: &str = "agent_identity";
const LOGIN_OWNER: &str = "login_owner_id";
const AGENT_IDENTITY_MODE: &str = "agentIdentity";

/// Takes them out of `document`. Returns the agent identity as it was spelled; `None` if absent or null, or if it is the
/// login.
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

/// `text`, which is canonical, with `identity` (JSON text) as its last member: Codex reads members in any order. `None` if
/// the login itself is an agent identity, which nothing may take the place of.
pub fn with_agent_identity(text: &str, identity: &str) -> Result<Option<Zeroizing<String>>, DocumentError> {
    if top_level_members(text)?.get(AGENT_IDENTITY).is_some() {
        return Ok(None);
    }
    let Some(before) = text.trim_end().strip_suffix('}') else { return Ok(None) };
    // All at once: a text that grows leaves copies behind.
    let mut with = Zeroizing::new(String::with_capacity(text.len() + identity.len() + AGENT_IDENTITY.len() + 4));
    for piece in [before, ",\"", AGENT_IDENTITY, "\":", identity, "}"] {
        with.push_str(piece);
    }
    Ok(Some(with))
}

/// Whether a document has one of them.
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
