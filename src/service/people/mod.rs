//! People: users, how they sign in, and their sessions.
//!
//! Users and sessions live in the records. Each node keeps all users and the live sessions in memory. It reads them
//! whole when it first reaches the records, and then follows changes by [`Core::catch_up`]. So a disabled user or an
//! ended session is refused within one poll on every node. After a crash they are read again. A node that starts while
//! the records are away accepts no session until they are back.
//!
//! The last use of a session is kept in memory and written once a minute; a crash loses that minute.

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
    /// The queue for work that keeps a processor busy for long.
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

    /// The users with the role admin that are not disabled.
    pub(in crate::service) fn admins(&self) -> Vec<UserId> {
        let users = self.core.members.users.load();
        users.values().filter(|user| user.role == Role::Admin && !user.disabled).map(|user| user.id).collect()
    }

    /// Logs a warning if the dashboard requires a sign-in and no user may sign in as an admin.
    pub fn warn_of_no_admin(&self) {
        let signs_in = self.core.policy.load().people.access != AdminAccess::Mtls;
        let is_one = |user: &Arc<User>| user.role == Role::Admin && !user.disabled;
        if signs_in
            && self.core.members.loaded.load(Ordering::SeqCst)
            && !self.core.members.users.load().values().any(is_one)
        {
            log::warn!(event = "no_admin"; "admin.access requires a sign-in, and there is no admin: make one with `codex-authd create-admin`");
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
