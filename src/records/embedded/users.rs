//! Users, by their id and by their e-mail address.

use time::OffsetDateTime;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::model::people::{Email, UserId};
use crate::records::rules::taken;
use crate::records::{ChangedUser, Epoch, Result, User, UserChange};

use super::changes::{self, Kind};
use super::rows::{self, Source};
use super::{audit, hosts};

pub(super) fn add(staged: &mut Staged<'_>, user: &User, note: &AuditNote) -> Result<bool> {
    match by_id(staged, user.id)? {
        Some(known) if known.email == user.email => return Ok(true),
        Some(_) => return Err(taken("user id")),
        None => {}
    }
    if staged.get(rows::user_email(&user.email))?.is_some() {
        return Ok(false);
    }
    insert(staged, user)?;
    mark(staged)?;
    audit::append(staged, note)?;
    Ok(true)
}

/// Writes one that was not there.
pub(super) fn insert(staged: &mut Staged<'_>, user: &User) -> Result<()> {
    rows::put(staged, rows::user_email(&user.email), &user.id)?;
    rows::put(staged, rows::user(user.id), user)
}

/// By e-mail address.
pub(super) fn all(data: &Snapshot) -> Result<Vec<User>> {
    let mut users: Vec<User> = rows::all(data, rows::USER)?;
    users.sort_by(|a, b| a.email.cmp(&b.email));
    Ok(users)
}

pub(super) fn by_id(source: &impl Source, id: UserId) -> Result<Option<User>> {
    rows::get(source, rows::user(id))
}

pub(super) fn by_email(source: &impl Source, email: &Email) -> Result<Option<User>> {
    match rows::get(source, rows::user_email(email))? {
        Some(id) => by_id(source, id)?.map(Some).ok_or_else(|| rows::missing("user")),
        None => Ok(None),
    }
}

pub(super) fn change(
    staged: &mut Staged<'_>,
    id: UserId,
    change: &UserChange,
    at: OffsetDateTime,
    note: Option<&AuditNote>,
) -> Result<Option<ChangedUser>> {
    let Some(before) = by_id(staged, id)? else { return Ok(None) };
    let Some(user) = change.applied(&before, at) else { return Ok(None) };
    let owned = if change.concerns_hosts() { hosts::of_user(staged, id)? } else { Vec::new() };
    let changed = ChangedUser { hosts: change.applied_to_hosts(owned, at), user };
    if changed.user != before || !changed.hosts.is_empty() {
        let epoch = put(staged, &changed.user)?;
        changed.hosts.iter().try_for_each(|host| hosts::put(staged, host, epoch))?;
        note.map_or(Ok(()), |note| audit::append(staged, note))?;
    }
    Ok(Some(changed))
}

/// Writes one that is there, whose address is the same; gives the epoch.
pub(super) fn put(staged: &mut Staged<'_>, user: &User) -> Result<Epoch> {
    rows::put(staged, rows::user(user.id), user)?;
    mark(staged)
}

fn mark(staged: &mut Staged<'_>) -> Result<Epoch> {
    let epoch = changes::bump(staged)?;
    changes::mark_set(staged, Kind::Users, epoch)?;
    Ok(epoch)
}
