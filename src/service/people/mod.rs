//! People: users, how they sign in, and what a session of theirs is good for.
//!
//! Users and sessions are truth of the records. Each node keeps all users and the sessions that are in force in memory,
//! read whole when it has reached the records for the first time, and follows them by [`Service::catch_up`]: who was
//! disabled, or whose session was ended, is refused within one poll on every node. A crash costs reading them again; a
//! node that starts while the records are away lets nobody in by a session until they are back.
//!
//! When a session was last used is kept in memory and written once a minute; a crash costs that minute.

pub mod own_hosts;
pub mod passwords;
pub mod provider;
pub mod sessions;
pub mod sign_in;
pub mod users;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use time::Duration;

use super::Service;
use crate::config::urls::origin_of;
use crate::config::{AdminAccess, Config};
use crate::model::digest::Digest;
use crate::model::people::{Role, UserId};
use crate::records::{self, Changes, Session, User};

use passwords::Passwords;
use sessions::Held;

/// What the operator decided of people.
#[derive(Clone, Debug)]
pub struct PeoplePolicy {
    pub access: AdminAccess,
    /// Scheme, name and port under which browsers reach this daemon: configured, or listened on.
    pub origins: Vec<String>,
    /// A session that was not used for so long is over.
    pub idle: Duration,
    /// However much it is used.
    pub lifetime: Duration,
    /// How many hosts of their own a member may have, where nothing else is said of that member.
    pub max_hosts: u32,
}

impl From<&Config> for PeoplePolicy {
    fn from(config: &Config) -> Self {
        Self {
            access: config.admin.access,
            origins: configured_origins(config),
            idle: Duration::seconds(config.sessions.idle_seconds.into()),
            lifetime: Duration::seconds(config.sessions.lifetime_seconds.into()),
            max_hosts: config.hosts.max_per_member,
        }
    }
}

fn configured_origins(config: &Config) -> Vec<String> {
    let redirect_uri = config.oidc.is_configured().then(|| config.oidc.redirect_uri(&config.public_base_url));
    let urls = [origin_of(&config.public_base_url), redirect_uri.as_deref().and_then(origin_of)];
    config.admin.origins.iter().cloned().chain(urls.into_iter().flatten()).collect()
}

/// As where nothing is configured.
impl Default for PeoplePolicy {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

#[derive(Default)]
pub struct People {
    /// The queue for what takes a processor for long.
    pub(super) passwords: Passwords,
    users: ArcSwap<HashMap<UserId, Arc<User>>>,
    /// By the SHA-256 of the token. Ended ones are not here.
    sessions: RwLock<HashMap<Digest, Arc<Held>>>,
    /// Whether the two are what the records hold.
    loaded: AtomicBool,
    provider: Option<provider::SignIns>,
}

impl People {
    fn set_users(&self, users: Vec<User>) {
        self.users.store(Arc::new(users.into_iter().map(|user| (user.id, Arc::new(user))).collect()));
    }

    pub(super) fn put_users(&self, changed: Vec<User>) {
        self.users.rcu(|present| {
            let mut users = HashMap::clone(present);
            users.extend(changed.iter().map(|user| (user.id, Arc::new(user.clone()))));
            users
        });
    }

    pub(super) fn put_sessions(&self, changed: Vec<Session>) {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        for session in changed {
            match sessions.get(&session.token) {
                _ if session.ended_at.is_some() => drop(sessions.remove(&session.token)),
                // When it was last used here is newer.
                Some(held) if held.session == session => held.used(session.last_used_at),
                _ => drop(sessions.insert(session.token, Arc::new(Held::new(session)))),
            }
        }
    }
}

impl Service {
    /// Reads all users and sessions, once.
    pub(super) async fn load_people(&self) -> records::Result<()> {
        if self.people.loaded.load(Ordering::SeqCst) {
            return Ok(());
        }
        let (users, sessions) = (self.records.user_list().await?, self.records.session_list().await?);
        self.people.set_users(users);
        self.people.put_sessions(sessions);
        self.people.loaded.store(true, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn adopt_people(&self, changes: &mut Changes) {
        if let Some(users) = changes.users.take() {
            self.people.set_users(users);
        }
        self.people.put_sessions(std::mem::take(&mut changes.sessions));
    }

    /// The users who may do everything.
    pub(super) fn admins(&self) -> Vec<UserId> {
        let users = self.people.users.load();
        users.values().filter(|user| user.role == Role::Admin && !user.disabled).map(|user| user.id).collect()
    }

    /// Tells the log if it takes a sign-in to enter the dashboard, and nobody may.
    pub fn warn_of_no_admin(&self) {
        let signs_in = self.policy.load().people.access != AdminAccess::Mtls;
        let is_one = |user: &Arc<User>| user.role == Role::Admin && !user.disabled;
        if signs_in && self.people.loaded.load(Ordering::SeqCst) && !self.people.users.load().values().any(is_one) {
            log::warn!(event = "no_admin"; "admin.access lets in who signed in, and there is no admin: make one with `codex-authd create-admin`");
        }
    }

    /// Tells which provider people may sign in with.
    #[must_use]
    pub fn with_provider(mut self, provider: Arc<crate::upstream::oidc::Provider>) -> Self {
        self.people.provider = Some(provider::SignIns::new(provider));
        self
    }

    pub fn people_policy(&self) -> PeoplePolicy {
        self.policy.load().people.clone()
    }
}

#[cfg(test)]
mod provider_tests;
#[cfg(test)]
mod tests;
