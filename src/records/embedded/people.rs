//! Users, their sessions, and the identities of providers that are linked to them.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Embedded;
use super::rows::{self, Marked};
use super::tables::{hosts, people};
use super::transaction::{self, ChangeKind};
use crate::model::audit::AuditNote;
use crate::model::people::{Email, UserId};
use crate::records::rules::taken;
use crate::records::{
    ChangedUser, ExternalIdentity, LinkOutcome, PeopleRecords, Result, Session, SessionOutcome, User, UserChange,
};

#[async_trait]
impl PeopleRecords for Embedded {
    async fn user_add(&self, user: &User, note: &AuditNote) -> Result<bool> {
        self.change(|staged| {
            match people::user(staged, user.id)? {
                Some(known) if known.email == user.email => return Ok(true),
                Some(_) => return Err(taken("user id")),
                None => {}
            }
            if staged.get(rows::user_email(&user.email))?.is_some() {
                return Ok(false);
            }
            people::insert_user(staged, user)?;
            people::mark_users(staged)?;
            transaction::note(staged, note)?;
            Ok(true)
        })
        .await
    }

    async fn user_list(&self) -> Result<Vec<User>> {
        self.read_much(people::users).await
    }

    async fn user_fetch_by_email(&self, email: &Email) -> Result<Option<User>> {
        self.read(|source| match rows::get(source, rows::user_email(email))? {
            Some(id) => people::user(source, id)?.map(Some).ok_or_else(|| rows::missing("user")),
            None => Ok(None),
        })
        .await
    }

    async fn user_change(
        &self,
        id: UserId,
        change: &UserChange,
        at: OffsetDateTime,
        note: Option<&AuditNote>,
    ) -> Result<Option<ChangedUser>> {
        self.change(|staged| {
            let Some(before) = people::user(staged, id)? else { return Ok(None) };
            let Some(user) = change.applied(&before, at) else { return Ok(None) };
            let owned = if change.concerns_hosts() { hosts::of_user(staged, id)? } else { Vec::new() };
            let changed = ChangedUser { hosts: change.applied_to_hosts(owned, at), user };
            if changed.user != before || !changed.hosts.is_empty() {
                let epoch = people::put_user(staged, &changed.user)?;
                changed.hosts.iter().try_for_each(|host| hosts::put(staged, host, epoch))?;
                note.map_or(Ok(()), |note| transaction::note(staged, note))?;
            }
            Ok(Some(changed))
        })
        .await
    }

    async fn session_begin(&self, session: &Session, note: &AuditNote) -> Result<SessionOutcome> {
        self.change(|staged| {
            if let Some(known) = people::session(staged, session.id)? {
                return Ok(if known.row.token == session.token {
                    SessionOutcome::Begun
                } else {
                    SessionOutcome::Known
                });
            }
            let user = people::user(staged, session.user)?;
            let linked = match session.identity() {
                Some((issuer, subject)) => people::identity(staged, issuer, subject)?,
                None => None,
            };
            if !session.may_begin(user.as_ref(), linked.map(|identity| identity.user)) {
                return Ok(SessionOutcome::Refused);
            }
            let epoch = transaction::bump(staged)?;
            people::put_session(staged, session, None, epoch)?;
            transaction::note(staged, note)?;
            Ok(SessionOutcome::Begun)
        })
        .await
    }

    async fn session_end(&self, id: Uuid, at: OffsetDateTime, note: &AuditNote) -> Result<Option<Session>> {
        self.change(|staged| {
            let known = people::session(staged, id)?.filter(|known| known.row.ended_at.is_none());
            let Some(Marked { epoch: old, row: session }) = known else { return Ok(None) };
            let ended = Session { ended_at: Some(at), ..session };
            let epoch = transaction::bump(staged)?;
            people::put_session(staged, &ended, Some(old), epoch)?;
            transaction::note(staged, note)?;
            Ok(Some(ended))
        })
        .await
    }

    async fn session_touch(&self, used: &[(Uuid, OffsetDateTime)]) -> Result<()> {
        self.change(|staged| {
            for (id, at) in used {
                let Some(mut known) = people::session(staged, *id)? else { continue };
                if known.row.last_used_at < *at {
                    known.row.last_used_at = *at;
                    rows::put(staged, rows::session(*id), &known)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn session_list(&self) -> Result<Vec<Session>> {
        self.read_much(|data| {
            let rows = rows::all::<Marked<Session>>(data, rows::SESSION)?;
            let mut sessions: Vec<_> = rows.into_iter().map(|marked| marked.row).collect();
            sessions.sort_by_key(|session| std::cmp::Reverse((session.started_at, session.id)));
            Ok(sessions)
        })
        .await
    }

    async fn session_purge(&self, when: OffsetDateTime) -> Result<usize> {
        self.change(|staged| {
            let mut gone = Vec::new();
            for row in staged.scan(rows::SESSION) {
                let (key, value) = row?;
                let known: Marked<Session> = rows::decode(&key, &value)?;
                if known.row.was_over(when) {
                    gone.push((known.row.id, known.epoch));
                }
            }
            for (id, epoch) in &gone {
                transaction::forget(staged, ChangeKind::Session, id.as_bytes(), *epoch);
                staged.remove(rows::session(*id));
            }
            Ok(gone.len())
        })
        .await
    }

    async fn identity_link(&self, identity: &ExternalIdentity, note: &AuditNote) -> Result<LinkOutcome> {
        self.change(|staged| {
            if people::user(staged, identity.user)?.is_none() {
                return Ok(LinkOutcome::NoUser);
            }
            match people::identity(staged, &identity.issuer, &identity.subject)? {
                Some(known) if known.user == identity.user => Ok(LinkOutcome::Linked),
                Some(known) => Ok(LinkOutcome::Taken(known.user)),
                None => {
                    people::put_identity(staged, identity)?;
                    transaction::note(staged, note)?;
                    Ok(LinkOutcome::Linked)
                }
            }
        })
        .await
    }

    async fn identity_unlink(
        &self,
        issuer: &str,
        subject: &str,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<(ExternalIdentity, User)>> {
        self.change(|staged| {
            let Some(identity) = people::identity(staged, issuer, subject)? else { return Ok(None) };
            let user = people::user(staged, identity.user)?.ok_or_else(|| rows::missing("user"))?;
            staged.remove(rows::identity(issuer, subject));
            let user = user.turned(at);
            people::put_user(staged, &user)?;
            transaction::note(staged, note)?;
            Ok(Some((identity, user)))
        })
        .await
    }

    async fn identity_fetch(&self, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>> {
        self.read(|data| people::identity(data, issuer, subject)).await
    }

    async fn identity_list(&self) -> Result<Vec<ExternalIdentity>> {
        self.read_much(|data| {
            let mut identities: Vec<ExternalIdentity> = rows::all(data, rows::IDENTITY)?;
            // Stable: issuer and subject stay in order.
            identities.sort_by_key(|identity| identity.user);
            Ok(identities)
        })
        .await
    }
}
