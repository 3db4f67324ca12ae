//! Users who sign in: ids, e-mail addresses, roles.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::platform::{SecureRandom, random};

/// A user's id: random, never 0, 53 bits so that every JSON reader keeps it exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub u64);

impl UserId {
    pub fn new(rng: &dyn SecureRandom) -> Self {
        Self((u64::from_be_bytes(random(rng)) >> 11).max(1))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The longest issuer, and the longest subject (OpenID Connect Core 1.0, section 2).
pub const MAX_IDENTITY_PART_BYTES: usize = 255;

/// The longest address that mail can be sent to (RFC 5321, 4.5.3.1).
const MAX_EMAIL_BYTES: usize = 254;

/// The e-mail address with which a user signs in. In lower case, so addresses that differ only in case are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an e-mail address: it has a name, an @ and a domain, and at most {MAX_EMAIL_BYTES} characters, none of them a space"
)]
pub struct NotAnEmail;

impl Email {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Email {
    type Err = NotAnEmail;

    /// Does not check that mail arrives. Checks that the address is unambiguous, and safe to show in pages and logs.
    fn from_str(text: &str) -> Result<Self, NotAnEmail> {
        let text = text.trim();
        let (name, domain) = text.rsplit_once('@').ok_or(NotAnEmail)?;
        let is_plain =
            |letter: char| !letter.is_whitespace() && !letter.is_control() && !"<>\"\\,;:()[]".contains(letter);
        if name.is_empty() || domain.is_empty() || name.contains('@') || text.len() > MAX_EMAIL_BYTES {
            return Err(NotAnEmail);
        }
        if text.chars().all(is_plain) { Ok(Self(text.to_lowercase())) } else { Err(NotAnEmail) }
    }
}

impl TryFrom<String> for Email {
    type Error = NotAnEmail;

    fn try_from(text: String) -> Result<Self, NotAnEmail> {
        text.parse()
    }
}

impl From<Email> for String {
    fn from(email: Email) -> Self {
        email.0
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a user may do. Each role includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees and installs their own hosts.
    Member,
    /// Reads everything but secrets.
    Viewer,
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Member, Self::Viewer, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Viewer => "viewer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a role: one of admin, viewer, member")]
pub struct NotARole;

impl FromStr for Role {
    type Err = NotARole;

    fn from_str(text: &str) -> Result<Self, NotARole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(NotARole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_in_small_letters_and_nothing_else_is_one() {
        assert_eq!(" Ada@Example.TEST ".parse::<Email>().unwrap().as_str(), "ada@example.test");
        for text in ["", "ada", "@example.test", "ada@", "a@b@c", "a b@c", "a@b c", "<a@b>", "a\n@b", "a@b\u{0}"] {
            assert_eq!(text.parse::<Email>(), Err(NotAnEmail), "{text:?}");
        }
        assert!(format!("{}@b", "a".repeat(252)).parse::<Email>().is_ok());
        assert!(format!("{}@b", "a".repeat(253)).parse::<Email>().is_err());
    }

    #[test]
    fn roles_are_ordered_by_what_they_may() {
        assert!(Role::Member < Role::Viewer && Role::Viewer < Role::Admin);
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("Admin".parse::<Role>().is_err());
    }
}
