//! The auth document: a Codex `auth.json`, checked and brought into the canonical text that is hashed and served.
//!
//! The canonical text is the document as it was sent, written compactly: member order and the spelling of numbers stay,
//! only the member `auths` is rewritten ([`targets`]), and members of one host or one sign-in are taken out
//! ([`host_members`]). Its digest is the SHA-256 of exactly that text, so that a host can
//! check what it was given with `sha256sum`.
//!
//! This room knows nothing of hosts, storage or HTTP: what it refuses it refuses with a path and a sentence.

mod host_members;
mod json;
mod refreshed;
mod request;
mod targets;
mod token;

use std::fmt;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::model::digest::Digest;
use crate::model::instant::Instant;
use json::Node;

pub use host_members::with_agent_identity;
pub use refreshed::{accounts, refreshed};
pub use request::{RequestMembers, split_request, uploaded_text};
pub use targets::Target;
pub use token::DocumentRules;

/// A document that may become, or is, the canonical one. `Debug` shows none of its secrets.
#[derive(Clone)]
pub struct AuthDocument {
    text: Zeroizing<String>,
    digest: Digest,
    last_refresh: Instant,
    targets: Vec<Target>,
    agent_identity: Option<Zeroizing<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or JSON that two readers could understand differently (duplicate members, unpaired surrogates) or that
    /// is nested too deeply. The text says what is wrong and where, and quotes nothing of the document.
    #[error("Invalid JSON payload")]
    Json(String),
    /// A member breaks a rule. `path` is where, as the wire names it (`auth.last_refresh`).
    #[error("{path}: {message}")]
    Field { path: String, message: String },
}

impl DocumentError {
    fn field(path: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::Field { path: path.into(), message: message.to_string() }
    }
}

impl AuthDocument {
    /// Checks a document as it was sent and brings it into its canonical form. Of several faults the first is named, in
    /// the order: JSON, `last_refresh`, `auths`, then target by target as they were sent.
    pub fn parse(text: &str, now: OffsetDateTime, rules: &DocumentRules) -> Result<Self, DocumentError> {
        let mut members = top_level_members(text)?;
        let agent_identity = host_members::take(&mut members);
        let last_refresh = last_refresh(&members)?;
        last_refresh.check(now).map_err(|error| DocumentError::field(LAST_REFRESH, error))?;
        let targets = targets::canonicalise(&mut members, rules)?;
        let text = json::write(&Node::Object(members), text.len());
        Ok(Self { digest: Digest::of(text.as_bytes()), text, last_refresh, targets, agent_identity })
    }

    /// A document that was stored. Its text is taken as the canonical one, byte for byte, and the rules for what may be
    /// sent (dates, tokens) are not applied again: they may have changed since.
    pub fn from_canonical(text: impl Into<String>) -> Result<Self, DocumentError> {
        let text = Zeroizing::new(text.into());
        let members = top_level_members(&text)?;
        let last_refresh = last_refresh(&members)?;
        let targets = targets::read(&members)?;
        drop(members);
        Ok(Self { digest: Digest::of(text.as_bytes()), text, last_refresh, targets, agent_identity: None })
    }

    /// The canonical text: what is hashed, sealed and served.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn last_refresh(&self) -> &Instant {
        &self.last_refresh
    }

    /// The targets of `auths`, by name; never empty.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The sender's `agent_identity`, which is not in [`Self::text`]: its JSON text as spelled. `None` if absent or null,
    /// and where it is the login itself (`auth_mode` `agentIdentity`). A private key.
    pub fn agent_identity(&self) -> Option<&str> {
        self.agent_identity.as_deref().map(String::as_str)
    }
}

impl fmt::Debug for AuthDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthDocument")
            .field("digest", &self.digest)
            .field("last_refresh", &self.last_refresh)
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

/// The text of a stored document without the members of one host or one sign-in; `None` if it has none. Versions that
/// were stored before these were taken out still hold them.
pub fn without_host_members(text: &str) -> Result<Option<Zeroizing<String>>, DocumentError> {
    let mut members = top_level_members(text)?;
    if !host_members::has_any(&members) {
        return Ok(None);
    }
    host_members::take(&mut members);
    Ok(Some(json::write(&Node::Object(members), text.len())))
}

/// A document with another `last_refresh`, everything else as it was spelled.
pub fn redated(text: &str, last_refresh: &str) -> Result<Zeroizing<String>, DocumentError> {
    let mut members = top_level_members(text)?;
    match members.0.iter_mut().find(|member| member.name == "last_refresh") {
        Some(member) => member.value = Node::String(json::Text::Made(Zeroizing::new(last_refresh.into()))),
        None => return Err(DocumentError::field(LAST_REFRESH, "last_refresh is required")),
    }
    Ok(json::write(&Node::Object(members), text.len()))
}

const LAST_REFRESH: &str = "auth.last_refresh";

fn top_level_members(text: &str) -> Result<json::Members<'_>, DocumentError> {
    match json::read(text)? {
        Node::Object(members) => Ok(members),
        _ => Err(DocumentError::field("auth", "Auth payload is required")),
    }
}

fn last_refresh(members: &json::Members<'_>) -> Result<Instant, DocumentError> {
    match members.get("last_refresh") {
        None | Some(Node::Null) => Err(DocumentError::field(LAST_REFRESH, "last_refresh is required")),
        Some(Node::String(text)) if token::trim(text).is_empty() => {
            Err(DocumentError::field(LAST_REFRESH, "last_refresh is required"))
        }
        Some(Node::String(text)) => Instant::parse(text).map_err(|error| DocumentError::field(LAST_REFRESH, error)),
        Some(_) => Err(DocumentError::field(LAST_REFRESH, crate::model::instant::BadInstant::NotRfc3339)),
    }
}

#[cfg(test)]
mod tests;
