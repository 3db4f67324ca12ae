//! The first boot, and every one after it: the secrets that the daemon runs on.
//!
//! The first boot makes everything there is to make in memory and writes it to the records in one transaction. Before
//! it only the master key exists, as a file; a crash in between leaves that file, and the next boot goes on with it. A
//! crash after the transaction leaves a finished first boot. Files derived from the records (the CA certificates in
//! `pki/`) are written on every boot.

use std::path::Path;

use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use super::authorities::{Authorities, authority_place};
use super::{By, Result, ServiceError};
use crate::model::authority::AuthorityRole;
use crate::outside::Outside;
use crate::pki::authority;
use crate::pki::server_key;
use crate::records::{Authority, AuthoritySlot, Records, SealingKey, Seed};
use crate::seal::{KeyId, KeyRing, MasterKey, Place};

/// What is unlocked at boot and kept in memory.
pub struct Secrets {
    pub master: MasterKey,
    pub ring: KeyRing,
    /// Changes while the daemon runs.
    pub authorities: ArcSwap<Authorities>,
    /// PKCS#8 DER. It stays the same when the certificate is renewed: installer commands pin it.
    pub server_key: Zeroizing<Vec<u8>>,
}

/// Unlocks the records, after having initialised them if nobody has. `master_key` is its file, `credentials` the
/// directory in which systemd may have put it instead.
pub async fn unlock(
    records: &dyn Records,
    master_key: &Path,
    credentials: Option<&Path>,
    outside: &dyn Outside,
) -> Result<Secrets> {
    // A master key is made only where nothing was sealed yet: a lost one must be put back, not replaced.
    let master = if records.is_initialised().await? {
        MasterKey::load(master_key, credentials)?.ok_or_else(|| lost(master_key))?
    } else {
        let (master, _made) = MasterKey::load_or_create(master_key, credentials, outside)?;
        let note = By::daemon().note(outside.now(), "state.initialise");
        if records.initialise(&seed(&master, outside)?, &note).await? {
            log::info!(event = "initialised"; "first boot: keys, authorities and the store were made");
        }
        master
    };
    let keys: Vec<_> = records.sealing_keys().await?.into_iter().map(|key| (key.id, key.sealed)).collect();
    let ring = KeyRing::unlock(&master, &keys)?;
    let authorities = records.authorities().await?;
    let sealed = records.server_key().await?.ok_or_else(|| ServiceError::internal("the records hold no server key"))?;
    Ok(Secrets {
        authorities: ArcSwap::from_pointee(Authorities::open(&authorities, &ring)?),
        server_key: ring.open(&server_key_place(), &sealed)?,
        master,
        ring,
    })
}

fn lost(path: &Path) -> ServiceError {
    ServiceError::internal(format!(
        "the records are sealed, and the master key {} that opens them is not there; put it back (from a backup, or as \
         the systemd credential master.key), or move the records directory away to begin anew",
        path.display()
    ))
}

fn server_key_place() -> Place {
    Place::new("settings", "server_key", 0)
}

fn seed(master: &MasterKey, outside: &dyn Outside) -> Result<Seed> {
    let now = outside.now();
    let first = KeyId(1);
    let sealing_key = SealingKey { id: first, sealed: KeyRing::new_key(master, first, outside)?, created_at: now };
    let ring = KeyRing::unlock(master, &[(first, sealing_key.sealed.clone())])?;
    let authorities = [AuthorityRole::Server, AuthorityRole::Client]
        .into_iter()
        .map(|role| {
            let made = authority::create(role, now, outside)?;
            Ok(Authority {
                id: made.id,
                role,
                slot: AuthoritySlot::Active,
                private_key: ring.seal(&authority_place(made.id), &made.private_key, outside)?,
                certificate_pem: made.certificate_pem,
                cross_certificate_pem: None,
                created_at: Some(now),
            })
        })
        .collect::<Result<_>>()?;
    let server_key = ring.seal(&server_key_place(), &server_key::create()?.pkcs8(), outside)?;
    Ok(Seed { sealing_key, authorities, server_key })
}
