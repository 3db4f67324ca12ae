//! Rows of authorities and admin certificates.

use super::sealed_index;
use crate::durable::{Snapshot, Staged};
use crate::records::embedded::rows;
use crate::records::embedded::transaction::{self, ChangeKind};
use crate::records::{AdminCertificate, Authority, Result};
use crate::seal::Place;

/// Writes an authority and the index of its sealed key.
pub fn put(staged: &mut Staged<'_>, authority: &Authority) -> Result<()> {
    let key = rows::authority(authority.id);
    let old: Option<Authority> = rows::get(staged, &key)?;
    sealed_index::update(
        staged,
        &place(authority),
        old.as_ref().map(|old| &old.private_key),
        Some(&authority.private_key),
    );
    rows::put(staged, key, authority)
}

/// In the order of issue.
pub fn certificates(data: &Snapshot) -> Result<Vec<AdminCertificate>> {
    let mut certificates: Vec<AdminCertificate> = rows::all(data, rows::CERTIFICATE)?;
    certificates.sort_by(|a, b| (a.issued_at, &a.name, &a.serial).cmp(&(b.issued_at, &b.name, &b.serial)));
    Ok(certificates)
}

pub fn put_certificate(staged: &mut Staged<'_>, certificate: &AdminCertificate) -> Result<()> {
    let epoch = transaction::bump(staged)?;
    transaction::mark_set(staged, ChangeKind::Certificates, epoch)?;
    rows::put(staged, rows::certificate(&certificate.fingerprint), certificate)
}

pub fn place(authority: &Authority) -> Place {
    Place::new("authorities", "private_key", authority.id)
}
