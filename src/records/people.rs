//! Users, their sessions, and the identities of providers that are linked to them.
//!
//! A session is valid while its user is enabled and has the session's `generation`. A change that ends all sessions of
//! a user (a new password, disabling, an unlinked identity) increments the generation and touches no session row. A
//! crash leaves both or neither.

use std::net::IpAddr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Host, Records, RecordsError, Result};
use crate::model::audit::{Actor, AuditNote};
use crate::model::digest::Digest;
use crate::model::people::{Email, Role, UserId};
use crate::platform::{Clock as _, System};

#[async_trait]
pub trait PeopleRecords: Send + Sync {
    /// Adds a user. `false`: another user has the e-mail address. The same id and address again: `true`, and the user
    /// stays as it is. The same id with another address is an error. Bumps the epoch. So do every change of a user, and
    /// the begin and end of a session. Users are never removed.
    async fn user_add(&self, user: &User, audit: &AuditNote) -> Result<bool>;
    /// By e-mail address.
    async fn user_list(&self) -> Result<Vec<User>>;
    async fn user_fetch_by_email(&self, email: &Email) -> Result<Option<User>>;
    /// Changes a user; returns the user and the hosts that changed with it. `None`: no such user, or a rehashed
    /// password has been replaced meanwhile. If nothing changes, nothing is written.
    async fn user_change(
        &self,
        id: UserId,
        change: &UserChange,
        at: OffsetDateTime,
        audit: Option<&AuditNote>,
    ) -> Result<Option<ChangedUser>>;
    /// Begins a session if the user is still as it was when the sign-in was decided. A session through a provider also
    /// needs its identity linked to this user. The same id and token again: `Begun`, even if the session has ended. The
    /// id of a purged session is unknown.
    async fn session_begin(&self, session: &Session, audit: &AuditNote) -> Result<SessionOutcome>;
    /// `None`: no such session, or it has ended.
    async fn session_end(&self, id: Uuid, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Session>>;
    /// Records when sessions were last used, if later than recorded. Writes no audit entry and leaves the epoch.
    async fn session_touch(&self, used: &[(Uuid, OffsetDateTime)]) -> Result<()>;
    /// All stored sessions, ended and expired ones included, newest first.
    async fn session_list(&self) -> Result<Vec<Session>>;
    /// Forgets sessions that ended or expired before `when`; returns how many. Leaves the epoch.
    async fn session_purge(&self, when: OffsetDateTime) -> Result<usize>;
    /// Links an identity to a user. Issuer and subject are compared byte by byte. Each of them, and the e-mail address,
    /// has at most [`MAX_IDENTITY_PART_BYTES`] bytes; the caller checks that. A linked identity stays as it is. Leaves
    /// the epoch.
    async fn identity_link(&self, identity: &ExternalIdentity, audit: &AuditNote) -> Result<LinkOutcome>;
    /// Unlinks an identity and ends the user's sessions; returns both. `None`: it was not linked.
    async fn identity_unlink(
        &self,
        issuer: &str,
        subject: &str,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<(ExternalIdentity, User)>>;
    /// By issuer and subject. Read from the store each time: an operator may insert rows in the database.
    async fn identity_fetch(&self, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>>;
    /// By user, then issuer and subject.
    async fn identity_list(&self) -> Result<Vec<ExternalIdentity>>;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub id: UserId,
    /// Unique.
    pub email: Email,
    pub role: Role,
    /// `None`: sign-in through a provider only.
    pub password: Option<PasswordHash>,
    pub disabled: bool,
    /// Incremented by each change that ends all of the user's sessions.
    pub generation: u64,
    /// How many hosts a member may own; `None`: the configured limit.
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

/// Not the password, but it can be attacked offline.
impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserChange {
    Role(Role),
    /// Increments the generation. Also disables the user's enabled hosts, restorable ones included, unless
    /// `keep_hosts`.
    Disable {
        keep_hosts: bool,
    },
    /// Increments the generation. Also enables the hosts that were disabled with the user.
    Enable,
    /// Increments the generation.
    Password(PasswordHash),
    /// The same password with the present parameters, if the hash is still `old`. Ends no session.
    Rehashed {
        old: PasswordHash,
        new: PasswordHash,
    },
    MaxHosts(Option<u32>),
}

/// The rows that a change of a user wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedUser {
    pub user: User,
    /// Hosts that changed with the user; removed ones included.
    pub hosts: Vec<Host>,
}

impl ChangedUser {
    /// The number of changed hosts that are not removed.
    pub fn host_count(&self) -> usize {
        self.hosts.iter().filter(|host| host.removed_at.is_none()).count()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Made by the caller; a sign-in through a provider uses its own id, so it begins one session only.
    pub id: Uuid,
    /// SHA-256 of the access token.
    pub token: Digest,
    pub user: UserId,
    /// The user's generation when it began.
    pub generation: u64,
    pub method: SignInMethod,
    /// `true`: a browser holds the token as a cookie. `false`: the client that got the token holds it.
    pub browser: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// Use does not extend it.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Accurate to about a minute.
    #[serde(with = "time::serde::rfc3339")]
    pub last_used_at: OffsetDateTime,
    pub from: Option<IpAddr>,
    /// The client's user agent, truncated.
    pub agent: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
}

impl Session {
    /// Whether its user is enabled and has the session's generation.
    pub fn is_of_now(&self, user: &User) -> bool {
        !user.disabled && user.generation == self.generation
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum SignInMethod {
    Password,
    Oidc { issuer: String, subject: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOutcome {
    Begun,
    /// Another session has the id.
    Known,
    /// The user is disabled or has another generation, or the identity is not linked.
    Refused,
}

/// An identity at a provider that is linked to a user. Issuer and subject identify it; the e-mail address is
/// informative.
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
pub enum LinkOutcome {
    /// Linked now, or to this user before (then nothing is written).
    Linked,
    /// Linked to this other user.
    Taken(UserId),
    NoUser,
}

/// An identity for [`seed_external_identities`] to link.
#[derive(Clone, Debug)]
pub struct ExternalIdentitySeed {
    pub issuer: String,
    pub subject: String,
    pub user_id: UserId,
    pub email: Option<String>,
}

/// Links identities to existing users. May be repeated. Fails if an identity is linked to another user, or the user is
/// unknown; the identities before it stay linked. Uses the system's clock: its callers have no other.
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
            LinkOutcome::Linked => {}
            LinkOutcome::Taken(other) => return Err(refused(format!("it is linked to user {other}"))),
            LinkOutcome::NoUser => return Err(refused(format!("there is no user {user_id}"))),
        }
    }
    Ok(())
}
