//! Users, their sessions, and the identities of other providers that are linked to them.
//!
//! A session is in force while its user is not disabled and still of the session's `generation`: whatever is to end all
//! sessions of a user (another password, disabling, an identity taken away) turns the user's generation, and no row of a
//! session has to be found. A crash leaves both or neither.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Host, Records, RecordsError, Result};
use crate::model::audit::{Actor, AuditNote};
use crate::model::digest::Digest;
use crate::model::people::{Email, Role, UserId};
use crate::outside::{Outside as _, System};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub id: UserId,
    /// No two users have the same.
    pub email: Email,
    pub role: Role,
    /// Without one they sign in through a provider only.
    pub password: Option<PasswordHash>,
    pub disabled: bool,
    /// Turned by whatever ends all of the user's sessions.
    pub generation: u64,
    /// How many hosts of their own a member may have; `None`: as many as the configuration says.
    pub max_hosts: Option<u32>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// An Argon2id hash as a PHC string.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PasswordHash(pub String);

/// It is not the password, and whoever has it can guess at leisure.
impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserChange {
    Role(Role),
    /// Turns the generation. Their hosts that are not disabled are disabled with them, those included whose removal can be
    /// undone, unless `keep_hosts`.
    Disable {
        keep_hosts: bool,
    },
    /// Turns the generation. Hosts that were disabled with them are enabled.
    Enable,
    /// Turns the generation.
    Password(PasswordHash),
    /// The same password under today's parameters, if the hash is still `old`. Ends nothing.
    Rehashed {
        old: PasswordHash,
        new: PasswordHash,
    },
    MaxHosts(Option<u32>),
}

/// What a change of a user wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedUser {
    pub user: User,
    /// Hosts that changed with the user; removed ones included.
    pub hosts: Vec<Host>,
}

impl ChangedUser {
    /// How many hosts changed that are not removed.
    pub fn host_count(&self) -> usize {
        self.hosts.iter().filter(|host| host.removed_at.is_none()).count()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Made by the caller; that of a sign-in through a provider is the id of that sign-in, so that it begins one only.
    pub id: Uuid,
    /// SHA-256 of the access token.
    pub token: Digest,
    pub user: UserId,
    /// The user's when it began.
    pub generation: u64,
    pub method: SignedInBy,
    /// Held by a browser, as a cookie; else by whoever was given the token.
    pub browser: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// It ends then, however much it is used.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// To the minute or so.
    #[serde(with = "time::serde::rfc3339")]
    pub last_used_at: OffsetDateTime,
    pub from: Option<IpAddr>,
    /// What the client calls itself, cut.
    pub agent: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
}

impl Session {
    /// Whether nothing has ended all sessions of its user since it began.
    pub fn is_of_now(&self, user: &User) -> bool {
        !user.disabled && user.generation == self.generation
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum SignedInBy {
    Password,
    Oidc { issuer: String, subject: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    Begun,
    /// The id is another session's.
    Known,
    /// The user is gone, disabled, or of another generation by now.
    Refused,
}

/// The longest issuer, and the longest subject (OpenID Connect Core 1.0, 2), in bytes.
pub const LONGEST_IDENTITY_PART: usize = 255;

/// Somebody of another provider who is a user of ours. Issuer and subject together name one person; the e-mail address is
/// for people to read and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalIdentity {
    pub issuer: String,
    pub subject: String,
    pub user: UserId,
    pub email: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub linked_at: OffsetDateTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    /// Now, or it was linked to this user already (then nothing is written).
    Linked,
    /// To another user.
    Taken(UserId),
    NoUser,
}

/// Whose a registered host becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: UserId,
    /// Of hosts that are not removed, this one included.
    pub at_most: u32,
}

/// What [`seed_external_identities`] links.
#[derive(Clone, Debug)]
pub struct ExternalIdentitySeed {
    pub issuer: String,
    pub subject: String,
    pub user_id: UserId,
    pub email: Option<String>,
}

/// Links identities to users that are there. May be repeated; an identity that is linked to another user, or a user that
/// is not there, is an error, and what came before it is linked. The time is the system's: whoever calls this has no clock
/// to hand in.
pub async fn seed_external_identities(records: &dyn Records, seeds: &[ExternalIdentitySeed]) -> Result<()> {
    for ExternalIdentitySeed { issuer, subject, user_id, email } in seeds {
        let at = System.now();
        let identity = ExternalIdentity {
            issuer: issuer.clone(),
            subject: subject.clone(),
            user: *user_id,
            email: email.clone(),
            linked_at: at,
        };
        let note = AuditNote::new(at, Actor::Daemon, None, "identity.link")
            .on(user_id)
            .with("issuer", issuer)
            .with("subject", subject);
        let refused =
            |why: String| RecordsError::Corrupt(format!("the identity {subject} of {issuer} cannot be linked: {why}"));
        match records.identity_link(&identity, &note).await? {
            Linked::Linked => {}
            Linked::Taken(other) => return Err(refused(format!("it is linked to user {other}"))),
            Linked::NoUser => return Err(refused(format!("there is no user {user_id}"))),
        }
    }
    Ok(())
}
