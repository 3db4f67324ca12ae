//! Sessions: each is an access token that was given to a user who signed in.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::model::audit::{Actor, AuditNote};
use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::model::secret::Secret;
use crate::platform::{SecureRandom, random};
use crate::records::{Session, SessionOutcome, SignInMethod, User};
use crate::service::core::members::LiveSession;
use crate::service::{Initiator, People, Result, ServiceError};

/// The prefix of every access token, so that a leaked one is recognised.
pub const PREFIX: &str = "cxa_";
/// How much is kept of the name that a client gives itself.
const MAX_AGENT_BYTES: usize = 200;
/// How long ended sessions are still listed.
const SESSION_RETENTION: time::Duration = time::Duration::days(30);

/// The user and the session of a valid token.
#[derive(Clone)]
pub struct SignedIn {
    pub user: Arc<User>,
    pub session: Arc<LiveSession>,
}

impl SignedIn {
    pub fn by(&self, from: Option<IpAddr>) -> Initiator {
        Initiator { actor: actor(&self.user), from }
    }
}

pub fn actor(user: &User) -> Actor {
    Actor::User { id: user.id, email: user.email.clone() }
}

/// The data of a new session.
pub struct Beginning<'a> {
    pub id: Uuid,
    pub method: SignInMethod,
    pub browser: bool,
    pub from: Option<IpAddr>,
    pub agent: Option<&'a str>,
}

/// A new session and its token, which is stored nowhere.
pub struct NewSession {
    pub token: Secret,
    pub session: Session,
    pub user: Arc<User>,
}

pub(in crate::service) fn new_token(rng: &dyn SecureRandom) -> Secret {
    let random = Zeroizing::new(random::<32>(rng));
    Secret::new(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(*random)))
}

impl People {
    /// The user of this token, if it is valid now. Counts as a use of the session.
    pub async fn signed_in(&self, token: &str) -> Result<SignedIn> {
        let digest = Digest::of(token.as_bytes());
        match self.held(&digest, self.core.platform.now()) {
            Some(Ok(signed_in)) => Ok(signed_in),
            // The session may have been used on another node.
            Some(Err(IdleSession)) if self.core.records.may_be_away() => {
                self.core.members.put_sessions(self.core.records.session_list().await?);
                match self.held(&digest, self.core.platform.now()) {
                    Some(Ok(signed_in)) => Ok(signed_in),
                    _ => {
                        self.core.members.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(&digest);
                        Err(ServiceError::SessionInvalid)
                    }
                }
            }
            _ => Err(ServiceError::SessionInvalid),
        }
    }

    /// The user of this session, if it is live as far as this node knows.
    pub(in crate::service) fn user_of_session(&self, token: &Digest, now: OffsetDateTime) -> Option<UserId> {
        match self.held(token, now) {
            Some(Ok(signed_in)) => Some(signed_in.user.id),
            _ => None,
        }
    }

    fn held(&self, token: &Digest, now: OffsetDateTime) -> Option<std::result::Result<SignedIn, IdleSession>> {
        let held = self.core.members.sessions.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()?;
        let user = self.core.members.users.load().get(&held.session.user).cloned()?;
        if !held.session.is_of_now(&user) || now >= held.session.expires_at {
            return None;
        }
        if now - held.last_used_at() >= self.core.policy.load().people.idle {
            return Some(Err(IdleSession));
        }
        held.used(now);
        held.is_news.store(true, Ordering::Relaxed);
        Some(Ok(SignedIn { user, session: held }))
    }

    /// Begins a session. `user`: as they were when the sign-in was allowed.
    pub(in crate::service) async fn begin_session(
        &self,
        user: &Arc<User>,
        beginning: Beginning<'_>,
    ) -> Result<Option<NewSession>> {
        let now = self.core.platform.now();
        let token = new_token(&*self.core.platform);
        let Beginning { id, method, browser, from, agent } = beginning;
        let agent = agent.map(|agent| agent[..agent.floor_char_boundary(MAX_AGENT_BYTES)].to_owned());
        let note = AuditNote::new(now, actor(user), from, "session.begin").on(&user.email).with("session", id);
        let note = match &method {
            SignInMethod::Password => note.with("by", "password"),
            SignInMethod::Oidc { issuer, subject } => {
                note.with("by", "oidc").with("issuer", issuer).with("subject", subject)
            }
        };
        let session = Session {
            id,
            token: token.digest(),
            user: user.id,
            generation: user.generation,
            method,
            browser,
            started_at: now,
            expires_at: now + self.core.policy.load().people.lifetime,
            last_used_at: now,
            from,
            agent,
            ended_at: None,
        };
        let beginning = self.core.records.session_begin(&session, &note);
        match self
            .core
            .commit(&note, beginning, |begun| (*begun == SessionOutcome::Begun).then(|| (&session).into()))
            .await?
        {
            SessionOutcome::Begun => Ok(Some(NewSession { token, session, user: user.clone() })),
            SessionOutcome::Known => Ok(None),
            SessionOutcome::Refused => Err(ServiceError::SignInRefused),
        }
    }

    /// Ends a session; `of`: only if it is this user's.
    pub async fn end_session(&self, id: Uuid, of: Option<UserId>, by: &Initiator) -> Result<Session> {
        let found = self.core.records.session_list().await?.into_iter().find(|session| session.id == id);
        let session = found.filter(|session| of.is_none_or(|user| session.user == user));
        let session = session.ok_or(ServiceError::NotFound("Session"))?;
        let now = self.core.platform.now();
        let email = self.core.members.users.load().get(&session.user).map(|user| user.email.to_string());
        let note =
            by.note(now, "session.end").on(email.unwrap_or_else(|| session.user.to_string())).with("session", id);
        let ending = self.core.records.session_end(id, now, &note);
        let ended = self.core.commit(&note, ending, |ended| ended.as_ref().map(Into::into)).await?;
        ended.ok_or(ServiceError::NotFound("Session"))
    }

    /// The sessions that are kept, newest first, with whether each is live; `of`: only of this user.
    pub async fn sessions(&self, of: Option<UserId>) -> Result<Vec<(Session, bool)>> {
        let now = self.core.platform.now();
        let sessions = self.core.records.session_list().await?;
        let of_them = sessions.into_iter().filter(|session| of.is_none_or(|user| session.user == user));
        let (users, idle) = (self.core.members.users.load(), self.core.policy.load().people.idle);
        let here = self.core.members.sessions.read().unwrap_or_else(PoisonError::into_inner);
        Ok(of_them
            .map(|mut session| {
                if let Some(held) = here.get(&session.token) {
                    session.last_used_at = session.last_used_at.max(held.last_used_at());
                }
                let of_now = users.get(&session.user).is_some_and(|user| session.is_of_now(user));
                let in_time = now < session.expires_at && now - session.last_used_at < idle;
                let in_force = of_now && in_time && session.ended_at.is_none();
                (session, in_force)
            })
            .collect())
    }

    /// Writes to the records which sessions were used, and forgets expired ones.
    pub async fn keep_sessions(&self) -> Result<()> {
        let now = self.core.platform.now();
        let held: Vec<_> = {
            let mut sessions = self.core.members.sessions.write().unwrap_or_else(PoisonError::into_inner);
            sessions.retain(|_, held| now < held.session.expires_at);
            sessions.values().filter(|held| held.is_news.swap(false, Ordering::Relaxed)).cloned().collect()
        };
        let used: Vec<_> = held.iter().map(|held| (held.session.id, held.last_used_at())).collect();
        if used.is_empty() {
            return Ok(());
        }
        let kept = self.core.records.session_touch(&used).await;
        if kept.is_err() {
            held.iter().for_each(|held| held.is_news.store(true, Ordering::Relaxed));
        }
        Ok(kept?)
    }

    pub async fn purge_sessions(&self) -> Result<()> {
        self.core.records.session_purge(self.core.platform.now() - SESSION_RETENTION).await?;
        Ok(())
    }
}

/// The session was idle for too long, as far as this node knows.
struct IdleSession;
