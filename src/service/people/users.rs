//! Users, and the identities of a provider that are linked to them, as admins manage them.

use std::sync::Arc;

use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::people::{Email, MAX_IDENTITY_PART_BYTES, Role, UserId};
use crate::records::{AdminCertificate, ChangedUser, ExternalIdentity, LinkOutcome, User, UserChange};
use crate::service::core::initiator::log_note;
use crate::service::{Initiator, People, Result, ServiceError};

/// The highest limit that can be set: more than one person has machines.
const MAX_HOSTS: u32 = 10_000;
/// How often a new id is drawn if the last one is taken.
const MAX_ID_ATTEMPTS: usize = 8;

impl People {
    /// Makes a user. Without a password they can sign in through the provider only.
    pub async fn add_user(&self, email: &str, role: Role, password: Option<&str>, by: &Initiator) -> Result<User> {
        let email = read_email(email)?;
        let password = match password {
            Some(password) => Some(self.passwords.hash(password, &email, by.from, &*self.core.platform).await?),
            None => None,
        };
        let now = self.core.platform.now();
        let note = by.note(now, "user.add").on(&email).with("role", role);
        for _ in 0..MAX_ID_ATTEMPTS {
            let user = User {
                id: UserId::new(&*self.core.platform),
                email: email.clone(),
                role,
                password: password.clone(),
                disabled: false,
                generation: 1,
                max_hosts: None,
                created_at: now,
                updated_at: now,
            };
            if self.core.members.users.load().contains_key(&user.id) {
                continue;
            }
            let adding = self.core.records.user_add(&user, &note);
            if !self.core.commit(&note, adding, |added| added.then(|| (&user).into())).await? {
                return Err(ServiceError::Conflict(format!(
                    "there is a user {email} already; give them another role or password instead"
                )));
            }
            return Ok(user);
        }
        Err(ServiceError::internal("no free number for a user"))
    }

    /// All users, by e-mail address.
    pub async fn users(&self) -> Result<Vec<User>> {
        Ok(self.core.records.user_list().await?)
    }

    pub async fn user(&self, id: UserId) -> Result<User> {
        let found = self.core.records.user_list().await?.into_iter().find(|user| user.id == id);
        found.ok_or(ServiceError::NotFound("User"))
    }

    pub async fn user_named(&self, email: &str) -> Result<User> {
        let email = read_email(email)?;
        self.core.records.user_fetch_by_email(&email).await?.ok_or(ServiceError::NotFound("User"))
    }

    /// The user as this node knows them: for names beside other data.
    pub fn known_user(&self, id: UserId) -> Option<Arc<User>> {
        self.core.members.users.load().get(&id).cloned()
    }

    pub async fn set_role(&self, id: UserId, role: Role, by: &Initiator) -> Result<User> {
        let note = by.note(self.core.platform.now(), "user.role").with("role", role);
        Ok(self.change_user(id, UserChange::Role(role), note).await?.user)
    }

    /// Disables a user. All their sessions end for good, even if the user is enabled again. Their own hosts are
    /// disabled with them, unless `keep_hosts`.
    pub async fn disable_user(&self, id: UserId, keep_hosts: bool, by: &Initiator) -> Result<ChangedUser> {
        let note = by
            .note(self.core.platform.now(), "user.disable")
            .with("hosts", if keep_hosts { "kept" } else { "disabled" });
        self.change_user(id, UserChange::Disable { keep_hosts }, note).await
    }

    /// Enables a user, and the hosts that were disabled with them.
    pub async fn enable_user(&self, id: UserId, by: &Initiator) -> Result<ChangedUser> {
        self.change_user(id, UserChange::Enable, by.note(self.core.platform.now(), "user.enable")).await
    }

    /// Sets a password. All sessions of the user end.
    pub async fn set_password(&self, id: UserId, password: &str, by: &Initiator) -> Result<User> {
        let user = self.user(id).await?;
        let hash = self.passwords.hash(password, &user.email, by.from, &*self.core.platform).await?;
        let note = by.note(self.core.platform.now(), "user.password");
        Ok(self.change_user(id, UserChange::Password(hash), note).await?.user)
    }

    pub async fn set_max_hosts(&self, id: UserId, max_hosts: Option<u32>, by: &Initiator) -> Result<User> {
        if max_hosts.is_some_and(|max| max > MAX_HOSTS) {
            return Err(ServiceError::invalid("max_hosts", format!("must be {MAX_HOSTS} or less")));
        }
        let told = max_hosts.map_or("default".into(), |max| max.to_string());
        let note = by.note(self.core.platform.now(), "user.max_hosts").with("max_hosts", told);
        Ok(self.change_user(id, UserChange::MaxHosts(max_hosts), note).await?.user)
    }

    async fn change_user(&self, id: UserId, change: UserChange, note: AuditNote) -> Result<ChangedUser> {
        let note = note.on(self.user(id).await?.email);
        let changing = self.core.records.user_change(id, &change, note.at, Some(&note));
        let changed = self.core.commit(&note, changing, |changed| changed.as_ref().map(Into::into)).await?;
        changed.ok_or(ServiceError::NotFound("User"))
    }

    pub async fn identities(&self) -> Result<Vec<ExternalIdentity>> {
        Ok(self.core.records.identity_list().await?)
    }

    /// Links an identity: from then on, a sign-in at the provider with this subject signs in as the user.
    pub async fn link_identity(
        &self,
        issuer: &str,
        subject: &str,
        user: &str,
        email: Option<&str>,
        by: &Initiator,
    ) -> Result<ExternalIdentity> {
        for (field, text) in [("issuer", issuer), ("subject", subject)] {
            if text.is_empty() || text.len() > MAX_IDENTITY_PART_BYTES || text.chars().any(char::is_control) {
                let reason =
                    format!("must have 1 to {MAX_IDENTITY_PART_BYTES} bytes, none of them a control character");
                return Err(ServiceError::invalid(field, reason));
            }
        }
        let email = email.map(read_email).transpose()?.map(String::from);
        let user = self.user_named(user).await?;
        let now = self.core.platform.now();
        let identity =
            ExternalIdentity { issuer: issuer.into(), subject: subject.into(), user: user.id, email, linked_at: now };
        let note = by.note(now, "identity.link").on(&user.email).with("issuer", issuer).with("subject", subject);
        match self.core.records.identity_link(&identity, &note).await? {
            LinkOutcome::Linked => {
                log_note(&note);
                Ok(identity)
            }
            LinkOutcome::Taken(other) => {
                let other = self.known_user(other).map_or(other.to_string(), |user| user.email.to_string());
                Err(ServiceError::Conflict(format!("the identity is linked to {other}; unlink it there first")))
            }
            LinkOutcome::NoUser => Err(ServiceError::NotFound("User")),
        }
    }

    /// Unlinks an identity. All sessions of its user end.
    pub async fn unlink_identity(&self, issuer: &str, subject: &str, by: &Initiator) -> Result<ExternalIdentity> {
        let now = self.core.platform.now();
        let note = by.note(now, "identity.unlink").with("issuer", issuer).with("subject", subject);
        let known = self.core.records.identity_fetch(issuer, subject).await?;
        let known = known.ok_or(ServiceError::NotFound("Linked identity"))?;
        let note = match self.known_user(known.user) {
            Some(user) => note.on(&user.email),
            None => note.on(known.user),
        };
        let unlinking = self.core.records.identity_unlink(issuer, subject, now, &note);
        let unlinked =
            self.core.commit(&note, unlinking, |unlinked| unlinked.as_ref().map(|(_, user)| user.into())).await?;
        let (identity, _) = unlinked.ok_or(ServiceError::NotFound("Linked identity"))?;
        Ok(identity)
    }

    /// Ties a certificate to a user: it then has that user's role. `None`: it belongs to no user and has an admin's
    /// rights.
    pub async fn tie_certificate(
        &self,
        fingerprint: &Digest,
        user: Option<&str>,
        by: &Initiator,
    ) -> Result<AdminCertificate> {
        let user = match user {
            Some(email) => Some(self.user_named(email).await?),
            None => None,
        };
        let told = user.as_ref().map_or("nobody".into(), |user| user.email.to_string());
        let note =
            by.note(self.core.platform.now(), "certificate.tie").with("fingerprint", fingerprint).with("user", told);
        let known = self.core.certificates.load().get(fingerprint).map(|known| known.name.clone());
        let note = known.iter().fold(note, |note, name| note.on(name));
        let tying = self.core.records.certificate_set_user(fingerprint, user.map(|user| user.id), &note);
        let tied = self.core.commit(&note, tying, |tied| tied.as_ref().map(Into::into)).await?;
        tied.ok_or(ServiceError::NotFound("Certificate"))
    }
}

fn read_email(text: &str) -> Result<Email> {
    text.parse().map_err(|error: crate::model::people::NotAnEmail| ServiceError::invalid("email", error.to_string()))
}
