//! Sessions: an access token that somebody who signed in was given, and what it is good for now.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::super::{By, Result, Service, ServiceError};
use crate::model::audit::{Actor, AuditNote};
use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::model::secret::Secret;
use crate::outside::{Outside, random};
use crate::records::{Session, SessionOutcome, SignInMethod, User};

/// What every access token begins with, so that one that was leaked is recognised.
pub const PREFIX: &str = "cxa_";
/// What is kept of what a client calls itself.
const LONGEST_AGENT: usize = 200;
/// Sessions that are over are listed for so long.
const REMEMBERED: time::Duration = time::Duration::days(30);

/// A session as this node has it.
pub struct Held {
    pub session: Session,
    /// Unix seconds.
    used_at: AtomicI64,
    /// Used since the records were told.
    is_news: AtomicBool,
}

impl Held {
    pub(super) fn new(session: Session) -> Self {
        let used_at = AtomicI64::new(session.last_used_at.unix_timestamp());
        Self { session, used_at, is_news: AtomicBool::new(false) }
    }

    pub(super) fn used(&self, at: OffsetDateTime) {
        self.used_at.fetch_max(at.unix_timestamp(), Ordering::Relaxed);
    }

    pub fn last_used_at(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.used_at.load(Ordering::Relaxed)).unwrap_or(self.session.last_used_at)
    }
}

/// Who presents a token that is good.
#[derive(Clone)]
pub struct SignedIn {
    pub user: Arc<User>,
    pub session: Arc<Held>,
}

impl SignedIn {
    pub fn by(&self, from: Option<IpAddr>) -> By {
        By { actor: actor(&self.user), from }
    }
}

pub fn actor(user: &User) -> Actor {
    Actor::User { id: user.id, email: user.email.clone() }
}

/// What a session is begun with.
pub struct Beginning<'a> {
    pub id: Uuid,
    pub method: SignInMethod,
    pub browser: bool,
    pub from: Option<IpAddr>,
    pub agent: Option<&'a str>,
}

/// A session that began, and its token, which is kept nowhere.
pub struct NewSession {
    pub token: Secret,
    pub session: Session,
    pub user: Arc<User>,
}

pub(super) fn new_token(outside: &dyn Outside) -> Secret {
    let random = Zeroizing::new(random::<32>(outside));
    Secret::new(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(*random)))
}

impl Service {
    /// Who has this token, if it is good now. It is used by this.
    pub async fn signed_in(&self, token: &str) -> Result<SignedIn> {
        let digest = Digest::of(token.as_bytes());
        match self.held(&digest, self.outside.now()) {
            Some(Ok(signed_in)) => Ok(signed_in),
            // Another node may have seen it used.
            Some(Err(Idle)) if self.records.may_be_away() => {
                self.people.put_sessions(self.records.session_list().await?);
                match self.held(&digest, self.outside.now()) {
                    Some(Ok(signed_in)) => Ok(signed_in),
                    _ => {
                        self.people.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(&digest);
                        Err(ServiceError::SessionInvalid)
                    }
                }
            }
            _ => Err(ServiceError::SessionInvalid),
        }
    }

    /// Whose session this is, if it is in force as far as this node knows.
    pub(in crate::service) fn user_of_session(&self, token: &Digest, now: OffsetDateTime) -> Option<UserId> {
        match self.held(token, now) {
            Some(Ok(signed_in)) => Some(signed_in.user.id),
            _ => None,
        }
    }

    fn held(&self, token: &Digest, now: OffsetDateTime) -> Option<std::result::Result<SignedIn, Idle>> {
        let held = self.people.sessions.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()?;
        let user = self.people.users.load().get(&held.session.user).cloned()?;
        if !held.session.is_of_now(&user) || now >= held.session.expires_at {
            return None;
        }
        if now - held.last_used_at() >= self.policy.load().people.idle {
            return Some(Err(Idle));
        }
        held.used(now);
        held.is_news.store(true, Ordering::Relaxed);
        Some(Ok(SignedIn { user, session: held }))
    }

    /// Begins a session of this user, as they were when it was decided that they may.
    pub(super) async fn begin_session(&self, user: &Arc<User>, beginning: Beginning<'_>) -> Result<Option<NewSession>> {
        let now = self.outside.now();
        let token = new_token(&*self.outside);
        let Beginning { id, method, browser, from, agent } = beginning;
        let agent = agent.map(|agent| agent[..agent.floor_char_boundary(LONGEST_AGENT)].to_owned());
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
            expires_at: now + self.policy.load().people.lifetime,
            last_used_at: now,
            from,
            agent,
            ended_at: None,
        };
        let beginning = self.records.session_begin(&session, &note);
        match self
            .commit(&note, beginning, |begun| (*begun == SessionOutcome::Begun).then(|| (&session).into()))
            .await?
        {
            SessionOutcome::Begun => Ok(Some(NewSession { token, session, user: user.clone() })),
            SessionOutcome::Known => Ok(None),
            SessionOutcome::Refused => Err(ServiceError::SignInRefused),
        }
    }

    /// Ends a session; `of`: only one of this user's.
    pub async fn end_session(&self, id: Uuid, of: Option<UserId>, by: &By) -> Result<Session> {
        let found = self.records.session_list().await?.into_iter().find(|session| session.id == id);
        let session = found.filter(|session| of.is_none_or(|user| session.user == user));
        let session = session.ok_or(ServiceError::NotFound("Session"))?;
        let now = self.outside.now();
        let email = self.people.users.load().get(&session.user).map(|user| user.email.to_string());
        let note =
            by.note(now, "session.end").on(email.unwrap_or_else(|| session.user.to_string())).with("session", id);
        let ending = self.records.session_end(id, now, &note);
        let ended = self.commit(&note, ending, |ended| ended.as_ref().map(Into::into)).await?;
        ended.ok_or(ServiceError::NotFound("Session"))
    }

    /// Sessions that are kept, the newest first, with whether each is in force; `of`: of this user only.
    pub async fn sessions(&self, of: Option<UserId>) -> Result<Vec<(Session, bool)>> {
        let now = self.outside.now();
        let sessions = self.records.session_list().await?;
        let of_them = sessions.into_iter().filter(|session| of.is_none_or(|user| session.user == user));
        let (users, idle) = (self.people.users.load(), self.policy.load().people.idle);
        let here = self.people.sessions.read().unwrap_or_else(PoisonError::into_inner);
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

    /// Tells the records which sessions were used, and forgets those that are over.
    pub async fn keep_sessions(&self) -> Result<()> {
        let now = self.outside.now();
        let held: Vec<_> = {
            let mut sessions = self.people.sessions.write().unwrap_or_else(PoisonError::into_inner);
            sessions.retain(|_, held| now < held.session.expires_at);
            sessions.values().filter(|held| held.is_news.swap(false, Ordering::Relaxed)).cloned().collect()
        };
        let used: Vec<_> = held.iter().map(|held| (held.session.id, held.last_used_at())).collect();
        if used.is_empty() {
            return Ok(());
        }
        let kept = self.records.session_touch(&used).await;
        if kept.is_err() {
            held.iter().for_each(|held| held.is_news.store(true, Ordering::Relaxed));
        }
        Ok(kept?)
    }

    pub async fn purge_sessions(&self) -> Result<()> {
        self.records.session_purge(self.outside.now() - REMEMBERED).await?;
        Ok(())
    }
}

/// It was not used for too long, as far as this node knows.
struct Idle;
