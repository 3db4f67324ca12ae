//! The users and the live sessions, as this node knows them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use time::OffsetDateTime;

use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::records::{self, Changes, Session, User};
use crate::service::Core;

/// A session as this node has it.
pub struct LiveSession {
    pub session: Session,
    /// Unix seconds.
    used_at: AtomicI64,
    /// Whether it was used since its last use was written to the records.
    pub(in crate::service) is_news: AtomicBool,
}

impl LiveSession {
    pub(in crate::service) fn new(session: Session) -> Self {
        let used_at = AtomicI64::new(session.last_used_at.unix_timestamp());
        Self { session, used_at, is_news: AtomicBool::new(false) }
    }

    pub(in crate::service) fn used(&self, at: OffsetDateTime) {
        self.used_at.fetch_max(at.unix_timestamp(), Ordering::Relaxed);
    }

    pub fn last_used_at(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.used_at.load(Ordering::Relaxed)).unwrap_or(self.session.last_used_at)
    }
}

#[derive(Default)]
pub struct Members {
    pub users: ArcSwap<HashMap<UserId, Arc<User>>>,
    /// By the SHA-256 of the token. Ended sessions are not included.
    pub sessions: RwLock<HashMap<Digest, Arc<LiveSession>>>,
    /// Whether both were read from the records.
    pub loaded: AtomicBool,
}

impl Members {
    fn set_users(&self, users: Vec<User>) {
        self.users.store(Arc::new(users.into_iter().map(|user| (user.id, Arc::new(user))).collect()));
    }

    pub(in crate::service) fn put_users(&self, changed: Vec<User>) {
        self.users.rcu(|present| {
            let mut users = HashMap::clone(present);
            users.extend(changed.iter().map(|user| (user.id, Arc::new(user.clone()))));
            users
        });
    }

    pub(in crate::service) fn put_sessions(&self, changed: Vec<Session>) {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        for session in changed {
            match sessions.get(&session.token) {
                _ if session.ended_at.is_some() => drop(sessions.remove(&session.token)),
                // The last use on this node may be newer.
                Some(held) if held.session == session => held.used(session.last_used_at),
                _ => drop(sessions.insert(session.token, Arc::new(LiveSession::new(session)))),
            }
        }
    }
}

impl Core {
    /// Reads all users and sessions, once.
    pub(in crate::service) async fn load_people(&self) -> records::Result<()> {
        if self.members.loaded.load(Ordering::SeqCst) {
            return Ok(());
        }
        let (users, sessions) = (self.records.user_list().await?, self.records.session_list().await?);
        self.members.set_users(users);
        self.members.put_sessions(sessions);
        self.members.loaded.store(true, Ordering::SeqCst);
        Ok(())
    }

    pub(in crate::service) fn adopt_people(&self, changes: &mut Changes) {
        if let Some(users) = changes.users.take() {
            self.members.set_users(users);
        }
        self.members.put_sessions(std::mem::take(&mut changes.sessions));
    }
}
