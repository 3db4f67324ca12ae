//! Commits changes of the records. A committed change is a success.
//!
//! [`Core::commit`] runs a change, logs it, and brings this node up to the records before it returns. A failure after
//! the commit is logged and never returned. The rows that the change wrote take effect on this node nevertheless, and
//! the next poll reads the rest. So a revoked key is refused from the answer on, whatever fails.
//!
//! A crash after the commit leaves hot state behind the records; the boot catches up before it listens. This module
//! must not know what a change means.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::audit::AuditNote;
use crate::records::{self, AdminCertificate, Authority, ChangedUser, Changes, Epoch, Host, Session, Settings, User};
use crate::service::core::initiator::log_note;
use crate::service::{Core, Result};

/// The rows that a change wrote and that a node must put in force before it answers. Installer tokens are not among
/// them: only the records decide whether one is valid.
#[derive(Default)]
pub(in crate::service) struct Written {
    pub hosts: Vec<Host>,
    pub settings: Option<Settings>,
    pub certificates: Vec<AdminCertificate>,
    /// All of them, if one changed.
    pub authorities: Option<Vec<Authority>>,
    pub users: Vec<User>,
    pub sessions: Vec<Session>,
}

impl From<&Host> for Written {
    fn from(host: &Host) -> Self {
        Self { hosts: vec![host.clone()], ..Self::default() }
    }
}

impl From<&Settings> for Written {
    fn from(settings: &Settings) -> Self {
        Self { settings: Some(settings.clone()), ..Self::default() }
    }
}

impl From<&AdminCertificate> for Written {
    fn from(certificate: &AdminCertificate) -> Self {
        Self { certificates: vec![certificate.clone()], ..Self::default() }
    }
}

impl From<&Vec<Authority>> for Written {
    fn from(authorities: &Vec<Authority>) -> Self {
        Self { authorities: Some(authorities.clone()), ..Self::default() }
    }
}

impl From<&User> for Written {
    fn from(user: &User) -> Self {
        Self { users: vec![user.clone()], ..Self::default() }
    }
}

impl From<&ChangedUser> for Written {
    fn from(changed: &ChangedUser) -> Self {
        Self { users: vec![changed.user.clone()], hosts: changed.hosts.clone(), ..Self::default() }
    }
}

impl From<&Session> for Written {
    fn from(session: &Session) -> Self {
        Self { sessions: vec![session.clone()], ..Self::default() }
    }
}

impl Core {
    /// Runs a change of the records. `written` returns the rows that its outcome wrote; `None`: nothing changed.
    pub(in crate::service) async fn commit<T>(
        &self,
        note: &AuditNote,
        change: impl Future<Output = records::Result<T>>,
        written: impl FnOnce(&T) -> Option<Written>,
    ) -> Result<T> {
        self.commit_untold(change, |outcome| {
            let written = written(outcome);
            written.iter().for_each(|_| log_note(note));
            written
        })
        .await
    }

    /// Like [`Self::commit`], without a log line.
    pub(in crate::service) async fn commit_untold<T>(
        &self,
        change: impl Future<Output = records::Result<T>>,
        written: impl FnOnce(&T) -> Option<Written>,
    ) -> Result<T> {
        // The change has a later epoch than this one.
        let before = self.hot.epoch();
        let outcome = change.await?;
        if let Some(written) = written(&outcome)
            && let Err(error) = self.catch_up().await
        {
            log::warn!(event = "not_caught_up", cause:% = error; "a change is committed and in force on this node; the node could not read what else changed, and tries again with the next poll");
            self.put_in_force(before, written).await;
        }
        Ok(outcome)
    }

    /// Puts rows in force on this node without the records. `before`: an epoch from before the change.
    async fn put_in_force(&self, before: Epoch, written: Written) {
        let _alone = self.catching_up.lock().await;
        let Written { hosts, settings, certificates, authorities, users, sessions } = written;
        let mut changes = Changes { epoch: before, hosts, settings, authorities, ..Changes::default() };
        if !certificates.is_empty() {
            let mut known = HashMap::clone(&self.certificates.load());
            known.extend(certificates.into_iter().map(|certificate| (certificate.fingerprint, certificate)));
            changes.certificates = Some(known.into_values().collect());
        }
        if (changes.certificates.is_some() || changes.authorities.is_some())
            && let Err(error) = self.adopt_trust(changes.certificates.clone(), changes.authorities.as_deref())
        {
            log::warn!(event = "not_in_force", cause:% = error; "the trusted certificates or authorities changed, and could not be read on this node");
        }
        self.members.put_users(users);
        self.members.put_sessions(sessions);
        // Hot state may have caught up with a later epoch meanwhile. Then these rows may be older than the stored ones.
        let stored = self.hot.epoch() == before && self.store_in_hot(&changes).await;
        if !stored {
            self.hot.overrule(&changes);
        }
        self.directory.put(&changes.hosts);
        if let Some(settings) = changes.settings {
            self.adopt_settings(Arc::new(settings));
        }
    }

    async fn store_in_hot(&self, changes: &Changes) -> bool {
        let stored = match self.hot.apply(changes) {
            Ok(()) if self.records.may_be_away() => self.hot.settled().await,
            applied => applied,
        };
        if let Err(error) = &stored {
            log::warn!(event = "hot_state_unwritten", cause:% = error; "a change could not be written to hot state: it is in force in memory");
        }
        stored.is_ok()
    }
}

#[cfg(test)]
mod tests;
