//! What the first boot makes.

use crate::durable::Staged;
use crate::model::audit::AuditNote;
use crate::records::{Result, Seed};
use crate::seal::Place;

use super::{audit, authorities, rows, sealed};

pub(super) fn initialise(staged: &mut Staged<'_>, seed: &Seed, note: &AuditNote) -> Result<bool> {
    if staged.get(rows::INITIALISED)?.is_some() {
        return Ok(false);
    }
    rows::put(staged, rows::sealing_key(seed.sealing_key.id), &seed.sealing_key)?;
    for authority in &seed.authorities {
        authorities::put(staged, authority)?;
    }
    rows::put(staged, rows::SERVER_KEY, &seed.server_key)?;
    sealed::index(staged, &Place::new("settings", "server_key", 0), None, Some(&seed.server_key));
    staged.insert(rows::INITIALISED, "");
    audit::append(staged, note)?;
    Ok(true)
}
