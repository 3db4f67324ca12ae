//! Identities of other providers, by issuer and subject.

use time::OffsetDateTime;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::records::{ExternalIdentity, Linked, Result, User};

use super::rows::{self, Source};
use super::{audit, users};

pub(super) fn link(staged: &mut Staged<'_>, identity: &ExternalIdentity, note: &AuditNote) -> Result<Linked> {
    if users::by_id(staged, identity.user)?.is_none() {
        return Ok(Linked::NoUser);
    }
    match find(staged, &identity.issuer, &identity.subject)? {
        Some(known) if known.user == identity.user => Ok(Linked::Linked),
        Some(known) => Ok(Linked::Taken(known.user)),
        None => {
            put(staged, identity)?;
            audit::append(staged, note)?;
            Ok(Linked::Linked)
        }
    }
}

pub(super) fn unlink(
    staged: &mut Staged<'_>,
    issuer: &str,
    subject: &str,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Option<(ExternalIdentity, User)>> {
    let Some(identity) = find(staged, issuer, subject)? else { return Ok(None) };
    let user = users::by_id(staged, identity.user)?.ok_or_else(|| rows::missing("user"))?;
    staged.remove(rows::identity(issuer, subject));
    let user = user.turned(at);
    users::put(staged, &user)?;
    audit::append(staged, note)?;
    Ok(Some((identity, user)))
}

pub(super) fn find(source: &impl Source, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>> {
    rows::get(source, rows::identity(issuer, subject))
}

/// By user, then issuer and subject.
pub(super) fn all(data: &Snapshot) -> Result<Vec<ExternalIdentity>> {
    let mut identities: Vec<ExternalIdentity> = rows::all(data, rows::IDENTITY)?;
    // The order of the others stays.
    identities.sort_by_key(|identity| identity.user);
    Ok(identities)
}

pub(super) fn put(staged: &mut Staged<'_>, identity: &ExternalIdentity) -> Result<()> {
    rows::put(staged, rows::identity(&identity.issuer, &identity.subject), identity)
}
