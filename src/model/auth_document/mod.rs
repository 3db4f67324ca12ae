//! The auth document: a Codex `auth.json`, checked and converted to the canonical text that is hashed and served.
//!
//! The canonical text is the document as it was sent, written compactly. Member order and the spelling of numbers stay.
//! The member `auths` is rewritten ([`targets`]), and members of one host or one sign-in are removed
//! ([`host_members`]). The digest is the SHA-256 of exactly this text, so a host can check its copy with `sha256sum`.
//!
//! This module knows nothing of hosts, storage or HTTP. Its errors have a path and a sentence.

#[cfg(test)]
pub(crate) mod fixture;
mod host_members;
mod json;
mod jwt;
mod kind;
mod loadable;
mod login;
mod refreshed;
mod renewal;
mod request;
mod targets;
mod text;
mod token;

use std::fmt;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::model::digest::Digest;
use crate::model::instant::{BadInstant, Instant};
use json::Node;

pub use host_members::with_agent_identity;
pub use login::LoginFacts;
pub use refreshed::refreshed;
pub use renewal::{Allowed, Present, RenewalVerdict, decide};
pub use request::{RequestMembers, split_request, uploaded_text};
pub use targets::Target;
pub use text::DocumentText;
pub use token::DocumentRules;

/// The longest document that is accepted. A login takes about 5 KiB.
pub const MAX_DOCUMENT_BYTES: usize = 64 * 1024;

/// A document that may become, or is, the canonical one. `Debug` shows none of its secrets.
#[derive(Clone)]
pub struct AuthDocument {
    text: Zeroizing<String>,
    digest: Digest,
    last_refresh: Instant,
    targets: Vec<Target>,
    login: LoginFacts,
    /// Whether it was sent without a `last_refresh`.
    is_undated: bool,
    agent_identity: Option<Zeroizing<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or JSON that is ambiguous (duplicate members, unpaired surrogates) or nested too deeply. The text
    /// names the fault and its position, and quotes nothing of the document.
    #[error("Invalid JSON payload")]
    Json(String),
    /// A member breaks a rule. `path`: its path in the request (`auth.last_refresh`).
    #[error("{path}: {message}")]
    Field { path: String, message: String },
    #[error("The login is {bytes} bytes long; at most {MAX_DOCUMENT_BYTES} (64 KiB) are taken")]
    TooLarge { bytes: usize },
}

impl DocumentError {
    fn field(path: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::Field { path: path.into(), message: message.to_string() }
    }
}

impl AuthDocument {
    /// Checks a document as it was sent and converts it to its canonical form. The error is the first fault in this
    /// order: size, JSON, `last_refresh`, members that Codex cannot load, `auths`, then each target in the order sent.
    ///
    /// A kind of login that Codex writes without a date (an API key) gets the date `now`. [`decide`] checks for dates
    /// in the future, because that depends on the canonical login.
    pub fn parse(text: &str, now: OffsetDateTime, rules: &DocumentRules) -> Result<Self, DocumentError> {
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::TooLarge { bytes: text.len() });
        }
        Self::parse_stored(text, now, rules)
    }

    /// Like [`Self::parse`], for a stored document. Without the size limit, because added members may exceed it.
    pub fn parse_stored(text: &str, now: OffsetDateTime, rules: &DocumentRules) -> Result<Self, DocumentError> {
        let mut members = top_level_members(text)?;
        let needs_date = !rules.strict || kind::LoginKind::detect(&members).kind().is_none_or(|kind| kind.has_date());
        let is_undated = !needs_date && !members.has("last_refresh");
        if is_undated {
            members.set("last_refresh", Node::string(rfc3339(now)?));
        }
        let last_refresh = last_refresh(&members)?;
        if last_refresh.check(now) == Err(BadInstant::TooOld) {
            return Err(DocumentError::field(LAST_REFRESH, BadInstant::TooOld));
        }
        if rules.strict {
            loadable::check(&members)?;
        }
        login::check_one_account(&members)?;
        let login = LoginFacts::of(&members, rules);
        let agent_identity = host_members::take(&mut members);
        let targets = targets::canonicalise(&mut members, rules)?;
        let text = json::write(&Node::Object(members), text.len());
        Ok(Self { digest: Digest::of(text.as_bytes()), text, last_refresh, targets, login, is_undated, agent_identity })
    }

    /// Reads a stored document. Its text is the canonical one, byte for byte. The rules for dates and tokens are not
    /// applied again, because they may have changed since.
    pub fn from_canonical(text: impl Into<String>, rules: &DocumentRules) -> Result<Self, DocumentError> {
        let text = Zeroizing::new(text.into());
        let members = top_level_members(&text)?;
        let last_refresh = last_refresh(&members)?;
        let targets = targets::read(&members)?;
        let login = LoginFacts::of(&members, rules);
        drop(members);
        let digest = Digest::of(text.as_bytes());
        Ok(Self { digest, text, last_refresh, targets, login, is_undated: false, agent_identity: None })
    }

    /// Returns the same login with the date `at`.
    pub fn dated(&self, at: OffsetDateTime) -> Result<Self, DocumentError> {
        let at = Instant::parse(&rfc3339(at)?).map_err(|error| DocumentError::field(LAST_REFRESH, error))?;
        self.spelled(&at)
    }

    /// Returns the same login with the date `at` in the spelling of `at`.
    fn spelled(&self, at: &Instant) -> Result<Self, DocumentError> {
        let text = redated(&self.text, at.text())?;
        let digest = Digest::of(text.as_bytes());
        Ok(Self { text, digest, last_refresh: at.clone(), is_undated: false, ..self.clone() })
    }

    /// The canonical text, which is hashed, sealed and served.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn last_refresh(&self) -> &Instant {
        &self.last_refresh
    }

    /// The kind, account and user of the login.
    pub fn login(&self) -> &LoginFacts {
        &self.login
    }

    /// Whether it was sent without a date. Then its date is the time of its arrival.
    pub fn is_undated(&self) -> bool {
        self.is_undated
    }

    /// The targets of `auths`, sorted by name. Empty for a login without a token for a target.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The sender's `agent_identity`, a private key, which is not in [`Self::text`]: its JSON text in the original
    /// spelling. `None` if it is absent, null, or the login itself (`auth_mode` `agentIdentity`).
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

/// The text of a stored document without the members of one host or one sign-in. `None` if it has none of them. Old
/// versions still have them, because they were stored before the daemon removed these members.
pub fn without_host_members(text: &str) -> Result<Option<Zeroizing<String>>, DocumentError> {
    let mut members = top_level_members(text)?;
    if !host_members::has_any(&members) {
        return Ok(None);
    }
    host_members::take(&mut members);
    Ok(Some(json::write(&Node::Object(members), text.len())))
}

/// Returns the document with another `last_refresh`. Everything else keeps its spelling.
pub fn redated(text: &str, last_refresh: &str) -> Result<Zeroizing<String>, DocumentError> {
    let mut members = top_level_members(text)?;
    match members.0.iter_mut().find(|member| member.name == "last_refresh") {
        Some(member) => member.value = Node::string(last_refresh),
        None => return Err(DocumentError::field(LAST_REFRESH, "last_refresh is required")),
    }
    Ok(json::write(&Node::Object(members), text.len()))
}

const LAST_REFRESH: &str = "auth.last_refresh";

fn rfc3339(at: OffsetDateTime) -> Result<String, DocumentError> {
    at.format(&Rfc3339).map_err(|error| DocumentError::field(LAST_REFRESH, error))
}

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
