//! What the first boot makes, and the certificates issued since.

use crate::durable::{Durable, Staged};
use crate::records::{AdminCertificate, Result, Seed};
use crate::seal::Place;

use super::{rows, sealed};

pub(super) fn initialise(staged: &mut Staged<'_>, seed: &Seed) -> Result<bool> {
    if staged.get(rows::INITIALISED)?.is_some() {
        return Ok(false);
    }
    rows::put(staged, rows::sealing_key(seed.sealing_key.id), &seed.sealing_key)?;
    for authority in &seed.authorities {
        rows::put(staged, rows::authority(authority.id), authority)?;
        let place = Place::new("authorities", "private_key", authority.id);
        sealed::index(staged, &place, None, Some(&authority.private_key));
    }
    rows::put(staged, rows::SERVER_KEY, &seed.server_key)?;
    sealed::index(staged, &Place::new("settings", "server_key", 0), None, Some(&seed.server_key));
    staged.insert(rows::INITIALISED, "");
    Ok(true)
}

pub(super) fn record_certificate(staged: &mut Staged<'_>, certificate: &AdminCertificate) -> Result<()> {
    rows::put(staged, rows::certificate(&certificate.fingerprint), certificate)
}

/// In the order in which they were issued.
pub(super) fn certificates(data: &Durable) -> Result<Vec<AdminCertificate>> {
    let mut certificates: Vec<AdminCertificate> = rows::all(data, rows::CERTIFICATE)?;
    certificates.sort_by(|a, b| (a.issued_at, &a.name, &a.serial).cmp(&(b.issued_at, &b.name, &b.serial)));
    Ok(certificates)
}
