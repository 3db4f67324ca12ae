//! The authorities in their slots, and the certificates that admins were issued.

use time::OffsetDateTime;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::AuditNote;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::records::{AdminCertificate, Authority, AuthorityStep, Result, rules};
use crate::seal::Place;

use super::changes::{self, Kind};
use super::{audit, rows, sealed, users};

pub(super) fn roll(
    staged: &mut Staged<'_>,
    role: AuthorityRole,
    step: &AuthorityStep,
    note: &AuditNote,
) -> Result<Option<Vec<Authority>>> {
    let mut present: Vec<Authority> = Vec::new();
    for row in staged.scan(rows::AUTHORITY) {
        let (key, value) = row?;
        present.push(rows::decode(&key, &value)?);
    }
    let Some((written, gone)) = rules::roll(&present, role, step) else { return Ok(None) };
    for authority in &written {
        put(staged, authority)?;
    }
    if let Some(gone) = &gone {
        staged.remove(rows::authority(gone.id));
        sealed::index(staged, &place(gone), Some(&gone.private_key), None);
    }
    let epoch = changes::bump(staged)?;
    changes::mark_set(staged, Kind::Authorities, epoch)?;
    audit::append(staged, note)?;
    Ok(Some(rules::rolled(present, written, gone)))
}

/// Writes an authority and the index of its sealed key.
pub(super) fn put(staged: &mut Staged<'_>, authority: &Authority) -> Result<()> {
    let key = rows::authority(authority.id);
    let old: Option<Authority> = rows::get(staged, &key)?;
    sealed::index(staged, &place(authority), old.as_ref().map(|old| &old.private_key), Some(&authority.private_key));
    rows::put(staged, key, authority)
}

pub(super) fn record(staged: &mut Staged<'_>, certificate: &AdminCertificate, note: &AuditNote) -> Result<()> {
    let known: Option<AdminCertificate> = rows::get(staged, rows::certificate(&certificate.fingerprint))?;
    if known.is_some() {
        return Ok(());
    }
    put_certificate(staged, certificate)?;
    audit::append(staged, note)
}

pub(super) fn renew(
    staged: &mut Staged<'_>,
    old: &Digest,
    certificate: &AdminCertificate,
    revoke_at: Option<OffsetDateTime>,
    note: &AuditNote,
) -> Result<Option<AdminCertificate>> {
    let known: Option<AdminCertificate> = rows::get(staged, rows::certificate(&certificate.fingerprint))?;
    if known.is_some() {
        return Ok(known);
    }
    let found: Option<AdminCertificate> = rows::get(staged, rows::certificate(old))?;
    let Some(old) = found.filter(|old| old.revoked_at.is_none()) else { return Ok(None) };
    let renewed = AdminCertificate { user: old.user, ..certificate.clone() };
    put_certificate(staged, &renewed)?;
    if revoke_at.is_some() {
        put_certificate(staged, &AdminCertificate { revoked_at: revoke_at, ..old })?;
    }
    audit::append(staged, note)?;
    Ok(Some(renewed))
}

pub(super) fn revoke(
    staged: &mut Staged<'_>,
    fingerprint: &Digest,
    at: OffsetDateTime,
    note: &AuditNote,
) -> Result<Option<AdminCertificate>> {
    let found: Option<AdminCertificate> = rows::get(staged, rows::certificate(fingerprint))?;
    let Some(certificate) = found.filter(|certificate| certificate.revoked_at.is_none()) else { return Ok(None) };
    let revoked = AdminCertificate { revoked_at: Some(at), ..certificate };
    put_certificate(staged, &revoked)?;
    audit::append(staged, note)?;
    Ok(Some(revoked))
}

pub(super) fn tie(
    staged: &mut Staged<'_>,
    fingerprint: &Digest,
    user: Option<UserId>,
    note: &AuditNote,
) -> Result<Option<AdminCertificate>> {
    let found: Option<AdminCertificate> = rows::get(staged, rows::certificate(fingerprint))?;
    let Some(certificate) = found else { return Ok(None) };
    if let Some(user) = user
        && users::by_id(staged, user)?.is_none()
    {
        return Ok(None);
    }
    if certificate.user == user {
        return Ok(Some(certificate));
    }
    let tied = AdminCertificate { user, ..certificate };
    put_certificate(staged, &tied)?;
    audit::append(staged, note)?;
    Ok(Some(tied))
}

/// In the order in which they were issued.
pub(super) fn certificates(data: &Snapshot) -> Result<Vec<AdminCertificate>> {
    let mut certificates: Vec<AdminCertificate> = rows::all(data, rows::CERTIFICATE)?;
    certificates.sort_by(|a, b| (a.issued_at, &a.name, &a.serial).cmp(&(b.issued_at, &b.name, &b.serial)));
    Ok(certificates)
}

fn put_certificate(staged: &mut Staged<'_>, certificate: &AdminCertificate) -> Result<()> {
    let epoch = changes::bump(staged)?;
    changes::mark_set(staged, Kind::Certificates, epoch)?;
    rows::put(staged, rows::certificate(&certificate.fingerprint), certificate)
}

fn place(authority: &Authority) -> Place {
    Place::new("authorities", "private_key", authority.id)
}
