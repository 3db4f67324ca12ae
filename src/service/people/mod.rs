//! People: users, how they sign in, and what a session of theirs is good for.
//!
//! Users and sessions are truth of the records. Each node keeps all users and the sessions that are in force in memory,
//! read whole when it has reached the records for the first time, and follows them by [`Core::catch_up`]: who was
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

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::AdminAccess;
use crate::model::people::{Role, UserId};
use crate::records::User;
use crate::service::core::policy::PeoplePolicy;
use crate::service::{Audit, Core, Hosts};
use crate::upstream::oidc::Provider;

use passwords::Passwords;

/// Users, their sessions and how they sign in.
pub struct People {
    pub(in crate::service) core: Arc<Core>,
    audit: Arc<Audit>,
    hosts: Arc<Hosts>,
    /// The queue for what takes a processor for long.
    pub(in crate::service) passwords: Passwords,
    provider: Option<provider::SignIns>,
}

impl People {
    pub(in crate::service) fn new(
        core: Arc<Core>,
        audit: Arc<Audit>,
        hosts: Arc<Hosts>,
        provider: Option<Arc<Provider>>,
    ) -> Self {
        Self { core, audit, hosts, passwords: Passwords::default(), provider: provider.map(provider::SignIns::new) }
    }

    /// The users who may do everything.
    pub(in crate::service) fn admins(&self) -> Vec<UserId> {
        let users = self.core.members.users.load();
        users.values().filter(|user| user.role == Role::Admin && !user.disabled).map(|user| user.id).collect()
    }

    /// Tells the log if it takes a sign-in to enter the dashboard, and nobody may.
    pub fn warn_of_no_admin(&self) {
        let signs_in = self.core.policy.load().people.access != AdminAccess::Mtls;
        let is_one = |user: &Arc<User>| user.role == Role::Admin && !user.disabled;
        if signs_in
            && self.core.members.loaded.load(Ordering::SeqCst)
            && !self.core.members.users.load().values().any(is_one)
        {
            log::warn!(event = "no_admin"; "admin.access lets in who signed in, and there is no admin: make one with `codex-authd create-admin`");
        }
    }

    pub fn people_policy(&self) -> PeoplePolicy {
        self.core.policy.load().people.clone()
    }
}

#[cfg(test)]
mod provider_tests;
#[cfg(test)]
mod tests;
