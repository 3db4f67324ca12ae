//! Users, their sessions, and the identities of providers that are linked to them.
//!
//! An operator may insert identities by hand at any time. `session_touch` and `session_purge` do not write `heads`:
//! each of them depends only on the rows that it writes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use mysql_async::Row;
use mysql_async::prelude::Queryable as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::MySql;
use super::connections::Outcome;
use super::rows::{self, Columns};
use super::tables::{hosts, identities, sessions, users};
use super::transaction::{Change, Set};
use crate::model::audit::AuditNote;
use crate::model::people::{Email, UserId};
use crate::records::rules::taken;
use crate::records::{
    ChangedUser, ExternalIdentity, LinkOutcome, PeopleRecords, Result, Session, SessionOutcome, User, UserChange,
};

/// Sessions updated by one statement.
const SESSIONS_PER_UPDATE: usize = 500;

#[async_trait]
impl PeopleRecords for MySql {
    async fn user_add(&self, user: &User, note: &AuditNote) -> Result<bool> {
        change!(self, |change| {
            let values = vec![user.id.0.into(), user.email.as_str().into()];
            let known = users::select(change.connection, "WHERE id = ? OR email = ?", values).await?;
            if let Some(known) = known.iter().find(|known| known.id == user.id) {
                return if known.email == user.email { Ok(true) } else { Err(taken("user id").into()) };
            }
            if !known.is_empty() {
                return Ok(false);
            }
            users::insert_all(change, &[user]).await?;
            change.mark(Set::Users);
            change.note(note);
            Ok(true)
        })
    }

    async fn user_list(&self) -> Result<Vec<User>> {
        read!(self, |connection| users::all(connection).await)
    }

    async fn user_fetch_by_email(&self, email: &Email) -> Result<Option<User>> {
        read!(self, |connection| Ok(users::select(connection, "WHERE email = ?", vec![email.as_str().into()])
            .await?
            .pop()))
    }

    async fn user_change(
        &self,
        id: UserId,
        wanted: &UserChange,
        at: OffsetDateTime,
        note: Option<&AuditNote>,
    ) -> Result<Option<ChangedUser>> {
        change!(self, |change| {
            let at = rows::truncated(at);
            let Some(before) = users::by_id(change.connection, id).await? else { return Ok(None) };
            let Some(user) = wanted.applied(&before, at) else { return Ok(None) };
            let owned = if wanted.concerns_hosts() { hosts::of_user(change.connection, id).await? } else { Vec::new() };
            let changed = ChangedUser { hosts: wanted.applied_to_hosts(owned, at), user };
            if changed.user != before || !changed.hosts.is_empty() {
                users::update(change, &changed.user).await?;
                for host in &changed.hosts {
                    hosts::update(change, host).await?;
                }
                note.into_iter().for_each(|note| change.note(note));
            }
            Ok(Some(changed))
        })
    }

    async fn session_begin(&self, session: &Session, audit: &AuditNote) -> Result<SessionOutcome> {
        change!(self, |change| begin_session(change, session, audit).await)
    }

    async fn session_end(&self, id: Uuid, at: OffsetDateTime, note: &AuditNote) -> Result<Option<Session>> {
        change!(self, |change| {
            let found = sessions::select(change.connection, "WHERE id = ? AND ended_at IS NULL", vec![rows::id(id)])
                .await?
                .pop();
            let Some(session) = found else { return Ok(None) };
            let epoch = change.mark(Set::Sessions);
            let values = vec![rows::time(at), epoch.0.into(), rows::id(id)];
            change.run("UPDATE sessions SET ended_at = ?, epoch = ? WHERE id = ?", values).await?;
            change.note(note);
            Ok(Some(Session { ended_at: Some(rows::truncated(at)), ..session }))
        })
    }

    async fn session_touch(&self, used: &[(Uuid, OffsetDateTime)]) -> Result<()> {
        change!(self, |change| touch_sessions(change, used).await)
    }

    async fn session_list(&self) -> Result<Vec<Session>> {
        read!(self, |connection| sessions::select(connection, "ORDER BY started_at DESC, id DESC", vec![]).await)
    }

    async fn session_purge(&self, when: OffsetDateTime) -> Result<usize> {
        change!(self, |change| {
            let values = vec![rows::time(when), rows::time(when)];
            change.run("DELETE FROM sessions WHERE expires_at < ? OR ended_at < ?", values).await?;
            Ok(change.connection.affected_rows().try_into().unwrap_or(usize::MAX))
        })
    }

    async fn identity_link(&self, identity: &ExternalIdentity, note: &AuditNote) -> Result<LinkOutcome> {
        change!(self, |change| {
            let statement = "SELECT (SELECT id FROM users WHERE id = ?), \
                     (SELECT user_id FROM external_identities WHERE issuer = ? AND subject = ?)";
            let values = (identity.user.0, identity.issuer.as_str(), identity.subject.as_str());
            let known: Option<(Option<u64>, Option<u64>)> = change.connection.exec_first(statement, values).await?;
            match known {
                None | Some((None, _)) => Ok(LinkOutcome::NoUser),
                Some((_, Some(user))) if user == identity.user.0 => Ok(LinkOutcome::Linked),
                Some((_, Some(user))) => Ok(LinkOutcome::Taken(UserId(user))),
                Some((Some(_), None)) => {
                    identities::insert_all(change, &[identity]).await?;
                    change.note(note);
                    Ok(LinkOutcome::Linked)
                }
            }
        })
    }

    async fn identity_unlink(
        &self,
        issuer: &str,
        subject: &str,
        at: OffsetDateTime,
        note: &AuditNote,
    ) -> Result<Option<(ExternalIdentity, User)>> {
        change!(self, |change| {
            let statement = format!(
                "SELECT {}, {} FROM external_identities JOIN users ON users.id = user_id WHERE issuer = ? AND subject = ?",
                identities::COLUMNS,
                users::COLUMNS
            );
            let row: Option<Row> = change.connection.exec_first(statement, (issuer, subject)).await?;
            let Some(row) = row else { return Ok(None) };
            let mut columns = Columns::of(identities::TABLE, row);
            let (identity, user) = (identities::read(&mut columns)?, users::read(&mut columns)?);
            let values = vec![issuer.into(), subject.into()];
            change.run("DELETE FROM external_identities WHERE issuer = ? AND subject = ?", values).await?;
            let user = user.turned(rows::truncated(at));
            users::update(change, &user).await?;
            change.note(note);
            Ok(Some((identity, user)))
        })
    }

    async fn identity_fetch(&self, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>> {
        read!(self, |connection| Ok(identities::select(
            connection,
            "WHERE issuer = ? AND subject = ?",
            vec![issuer.into(), subject.into()]
        )
        .await?
        .pop()))
    }

    async fn identity_list(&self) -> Result<Vec<ExternalIdentity>> {
        read!(self, |connection| identities::select(connection, "ORDER BY user_id, issuer, subject", vec![]).await)
    }
}

pub(super) async fn begin_session(
    change: &mut Change<'_>,
    session: &Session,
    note: &AuditNote,
) -> Outcome<SessionOutcome> {
    let statement = format!(
        "SELECT {}, (SELECT token FROM sessions WHERE id = ?), \
         (SELECT user_id FROM external_identities WHERE issuer = ? AND subject = ?) FROM users WHERE id = ?",
        users::COLUMNS
    );
    let (issuer, subject) = session.identity().unzip();
    let values = (rows::id(session.id), issuer, subject, session.user.0);
    let row: Option<Row> = change.connection.exec_first(statement, values).await?;
    let Some(row) = row else { return Ok(SessionOutcome::Refused) };
    let mut columns = Columns::of(sessions::TABLE, row);
    let (user, token) = (users::read(&mut columns)?, columns.optional_digest()?);
    if let Some(known) = token {
        return Ok(if known == session.token { SessionOutcome::Begun } else { SessionOutcome::Known });
    }
    if !session.may_begin(Some(&user), columns.optional_number()?.map(UserId)) {
        return Ok(SessionOutcome::Refused);
    }
    let epoch = change.mark(Set::Sessions);
    sessions::insert_all(change, &[session], epoch).await?;
    change.note(note);
    Ok(SessionOutcome::Begun)
}

pub(super) async fn touch_sessions(change: &mut Change<'_>, used: &[(Uuid, OffsetDateTime)]) -> Outcome<()> {
    let mut last: BTreeMap<Uuid, OffsetDateTime> = BTreeMap::new();
    for (id, at) in used {
        last.entry(*id).and_modify(|known| *known = (*known).max(*at)).or_insert(*at);
    }
    for some in last.into_iter().collect::<Vec<_>>().chunks(SESSIONS_PER_UPDATE) {
        // Without the cast the values would be compared as text.
        let cases = " WHEN ? THEN CAST(? AS DATETIME(6))".repeat(some.len());
        let statement = format!(
            "UPDATE sessions SET last_used_at = GREATEST(last_used_at, CASE id{cases} END) WHERE id IN {}",
            rows::places(1, some.len())
        );
        let cases = some.iter().flat_map(|(id, at)| [rows::id(*id), rows::time(*at)]);
        change.run(&statement, cases.chain(some.iter().map(|(id, _)| rows::id(*id))).collect()).await?;
    }
    Ok(())
}
