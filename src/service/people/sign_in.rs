//! Sign-in with a password.
//!
//! Failures count against the address and against the account. An account is blocked only after failures from several
//! addresses, so that one stranger cannot lock a user out. A refusal says the same whatever is wrong.

use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::hot::throttle::Failing;
use crate::model::people::Email;
use crate::records::{PasswordHash, SignInMethod, User, UserChange};
use crate::service::error::Throttled;
use crate::service::people::passwords::CheckedPassword;
use crate::service::people::sessions::{Beginning, NewSession, SignedIn};
use crate::service::{Initiator, People, Result, ServiceError};

impl People {
    pub async fn sign_in(
        &self,
        email: &str,
        password: &str,
        browser: bool,
        from: IpAddr,
        agent: Option<&str>,
    ) -> Result<NewSession> {
        // A text that is not an e-mail address has no user, and takes as long.
        let email: Option<Email> = email.parse().ok();
        let failing: Vec<Failing<'_>> =
            [Some(Failing::SignIn(from)), email.as_ref().map(Failing::Account)].into_iter().flatten().collect();
        // Before the records are asked: a blocked caller costs nothing.
        self.check_blocked(&failing, self.core.platform.now())?;
        let user = match &email {
            Some(email) => self.core.records.user_fetch_by_email(email).await?,
            None => None,
        };
        let known = user.as_ref().and_then(|user| user.password.as_ref());
        let checked = self.check_password(password, known, &failing, from).await?;
        let reason = match &user {
            Some(user) if checked.is_right && user.disabled => "disabled",
            Some(_) if checked.is_right => "",
            Some(_) => "password",
            None => "unknown_user",
        };
        let (Some(user), "") = (user, reason) else {
            self.count_failure(&failing, from).await;
            self.refuse_sign_in(email.as_ref().map(Email::as_str), 401, reason, from).await;
            return Err(ServiceError::SignInRefused);
        };
        if let (Some(old), Some(new)) = (&user.password, checked.rehashed) {
            let change = UserChange::Rehashed { old: old.clone(), new };
            self.core.records.user_change(user.id, &change, self.core.platform.now(), None).await?;
        }
        let beginning =
            Beginning { id: Uuid::new_v4(), method: SignInMethod::Password, browser, from: Some(from), agent };
        let begun = self.begin_session(&Arc::new(user), beginning).await?;
        begun.ok_or_else(|| ServiceError::internal("a session with a new id exists already"))
    }

    /// Changes the user's own password. All their sessions end, including this one.
    pub async fn set_own_password(
        &self,
        signed_in: &SignedIn,
        current: &str,
        new: &str,
        from: IpAddr,
        by: &Initiator,
    ) -> Result<User> {
        let user = self.user(signed_in.user.id).await?;
        let failing = [Failing::SignIn(from), Failing::Account(&user.email)];
        if !self.check_password(current, user.password.as_ref(), &failing, from).await?.is_right {
            self.count_failure(&failing, from).await;
            self.audit
                .note_refused(by.note(self.core.platform.now(), "user.password").on(&user.email).refused(422))
                .await;
            return Err(ServiceError::invalid("current", "is not your password; if you have none, ask an admin"));
        }
        self.set_password(user.id, new, by).await
    }

    /// Checks a password. None of `failing` may be blocked; a failure counts against all of them. Blocked callers are
    /// refused before the costly check.
    async fn check_password(
        &self,
        password: &str,
        known: Option<&PasswordHash>,
        failing: &[Failing<'_>],
        from: IpAddr,
    ) -> Result<CheckedPassword> {
        self.check_blocked(failing, self.core.platform.now())?;
        let turn = self.passwords.turn(Some(from)).await?;
        // Checked again after the wait, so that many calls at once get no more checks than calls one after another.
        self.check_blocked(failing, self.core.platform.now())?;
        turn.check(password, known, &*self.core.platform).await
    }

    pub(in crate::service) async fn count_failure(&self, failing: &[Failing<'_>], from: IpAddr) {
        let now = self.core.platform.now();
        for who in failing {
            if !self.core.failed(who, now).await {
                continue;
            }
            match who {
                Failing::Account(email) => {
                    self.core.security_events.event("sign_in.blocked", email.as_str(), from, true, now)
                }
                Failing::Key(_) | Failing::SignIn(_) => {
                    self.core.security_events.event("sign_in.blocked", "", from, false, now)
                }
            }
        }
    }

    pub(in crate::service) fn check_blocked(&self, failing: &[Failing<'_>], now: OffsetDateTime) -> Result<()> {
        match failing.iter().find_map(|who| self.core.throttle.blocked(who, now)) {
            Some(until) => {
                let limit = self.core.throttle.limits().auth_fail_count;
                Err(ServiceError::AuthBlocked(Throttled::new(limit, until, now)))
            }
            None => Ok(()),
        }
    }

    /// Notes a refused sign-in in the audit log. The account is named only if the text could be one: a password in the
    /// wrong field must not be written there.
    pub(in crate::service) async fn refuse_sign_in(
        &self,
        account: Option<&str>,
        status: u16,
        reason: &str,
        from: IpAddr,
    ) {
        let note = Initiator::anybody(from)
            .note(self.core.platform.now(), "session.begin")
            .refused(status)
            .with("reason", reason);
        let note = account.iter().fold(note, |note, account| note.on(account));
        self.audit.note_refused(note).await;
    }
}
