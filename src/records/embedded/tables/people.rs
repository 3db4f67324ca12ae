//! Rows of users, sessions and linked identities.

use uuid::Uuid;

use crate::durable::{Snapshot, Staged};
use crate::model::people::UserId;
use crate::records::embedded::rows::{self, Marked, RowSource};
use crate::records::embedded::transaction::{self, ChangeKind};
use crate::records::{Epoch, ExternalIdentity, Result, Session, User};

/// Writes a session and moves its mark from `old` to `epoch`.
pub fn put_session(staged: &mut Staged<'_>, session: &Session, old: Option<Epoch>, epoch: Epoch) -> Result<()> {
    transaction::mark(staged, ChangeKind::Session, session.id.as_bytes(), old, epoch);
    rows::put(staged, rows::session(session.id), &Marked { epoch, row: session })
}

pub fn session(staged: &Staged<'_>, id: Uuid) -> Result<Option<Marked<Session>>> {
    rows::get(staged, rows::session(id))
}

/// Writes a new user.
pub fn insert_user(staged: &mut Staged<'_>, user: &User) -> Result<()> {
    rows::put(staged, rows::user_email(&user.email), &user.id)?;
    rows::put(staged, rows::user(user.id), user)
}

/// By e-mail address.
pub fn users(data: &Snapshot) -> Result<Vec<User>> {
    let mut users: Vec<User> = rows::all(data, rows::USER)?;
    users.sort_by(|a, b| a.email.cmp(&b.email));
    Ok(users)
}

pub fn user(source: &impl RowSource, id: UserId) -> Result<Option<User>> {
    rows::get(source, rows::user(id))
}

/// Writes a known user with the same address; returns the epoch.
pub fn put_user(staged: &mut Staged<'_>, user: &User) -> Result<Epoch> {
    rows::put(staged, rows::user(user.id), user)?;
    mark_users(staged)
}

pub fn mark_users(staged: &mut Staged<'_>) -> Result<Epoch> {
    let epoch = transaction::bump(staged)?;
    transaction::mark_set(staged, ChangeKind::Users, epoch)?;
    Ok(epoch)
}

pub fn identity(source: &impl RowSource, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>> {
    rows::get(source, rows::identity(issuer, subject))
}

pub fn put_identity(staged: &mut Staged<'_>, identity: &ExternalIdentity) -> Result<()> {
    rows::put(staged, rows::identity(&identity.issuer, &identity.subject), identity)
}
