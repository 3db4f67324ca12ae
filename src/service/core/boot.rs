//! Boot: unlocks the secrets that the daemon runs on. The first boot makes them.
//!
//! The first boot makes everything in memory and writes it to the records in one transaction. Before that, only the
//! master key exists, as a file. A crash in between leaves that file, and the next boot goes on with it. A crash after
//! the transaction leaves a finished first boot. Files derived from the records (the CA certificates in `pki/`) are
//! written on every boot.

use std::path::Path;

use arc_swap::ArcSwap;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::hot::Hot;
use crate::model::authority::AuthorityRole;
use crate::pki::authority;
use crate::pki::server_key;
use crate::platform::Platform;
use crate::records::{AdminCertificate, Authority, AuthoritySlot, BootMaterial, Epoch, Records, SealingKey, Seed};
use crate::seal::{KeyId, KeyRing, MasterKey, Place};
use crate::service::core::authorities::{Authorities, authority_place};
use crate::service::{Initiator, Result, ServiceError};

/// What is unlocked at boot and kept in memory.
pub struct Secrets {
    pub master: MasterKey,
    pub ring: KeyRing,
    /// Changes while the daemon runs.
    pub authorities: ArcSwap<Authorities>,
    /// Admins' certificates as of the boot.
    pub certificates: Vec<AdminCertificate>,
    /// The incarnation of the store at the boot.
    pub incarnation: Option<Uuid>,
    /// Whether these come from hot state, because the records could not be reached.
    pub are_from_hot: bool,
    /// PKCS#8 DER. It stays the same when the certificate is renewed: installer commands pin it.
    pub server_key: Zeroizing<Vec<u8>>,
}

/// Unlocks the records; initialises them first if that was not done yet. `master_key` is the key's file, `credentials`
/// the directory in which systemd may have put it instead.
pub async fn unlock(
    records: &dyn Records,
    master_key: &Path,
    credentials: Option<&Path>,
    platform: &dyn Platform,
) -> Result<Secrets> {
    let (foundation, master) = read(records, master_key, credentials, platform).await?;
    open(foundation, master, false)
}

/// Like [`unlock`]; if the records cannot be reached, unlocks what `hot` knows of them.
pub async fn unlock_with_hot(
    records: &dyn Records,
    hot: &Hot,
    master_key: &Path,
    credentials: Option<&Path>,
    platform: &dyn Platform,
) -> Result<Secrets> {
    let (foundation, master) = match read(records, master_key, credentials, platform).await {
        Err(ServiceError::RecordsAway { cause }) if records.may_be_away() => {
            // A cache that is new, or was never filled completely, knows no hosts: serving from it would refuse every
            // host.
            let known = hot.foundation()?.filter(|_| hot.epoch() > Epoch::default());
            let known = known.ok_or_else(|| ServiceError::RecordsAway { cause: cause.clone() })?;
            let master = MasterKey::load(master_key, credentials)?.ok_or_else(|| lost(master_key))?;
            let reached = hot.reached_at()?.map(|at| at.to_string()).unwrap_or_default();
            log::warn!(event = "started_without_records", cause = cause.as_str(), reached = reached.as_str(); "the records are not available: starting with what hot state knows of them");
            return open(known, master, true);
        }
        read => read?,
    };
    if let Some(identity) = foundation.authorities.iter().map(|authority| authority.id).min() {
        // This id was made once, on the first boot, and identifies these records. Records filled from a copy are other
        // records.
        let identity = match foundation.incarnation {
            Some(incarnation) => format!("{identity}/{incarnation}"),
            None => identity.to_string(),
        };
        hot.belongs_to(&identity)?;
    }
    if records.may_be_away() {
        hot.keep_foundation(&foundation)?;
    }
    open(foundation, master, false)
}

async fn read(
    records: &dyn Records,
    master_key: &Path,
    credentials: Option<&Path>,
    platform: &dyn Platform,
) -> Result<(BootMaterial, MasterKey)> {
    // A master key is made only if nothing was sealed yet. A lost one must be put back, not replaced.
    let master = if records.is_initialised().await? {
        MasterKey::load(master_key, credentials)?.ok_or_else(|| lost(master_key))?
    } else {
        let (master, made) = MasterKey::load_or_create(master_key, credentials, platform)?;
        let note = Initiator::daemon().note(platform.now(), "state.initialise");
        if records.initialise(&seed(&master, platform)?, &note).await? {
            log::info!(event = "initialised"; "first boot: keys, authorities and the store were made");
        } else if made {
            // The new key opens nothing: another daemon on the same database was first, with its own key.
            std::fs::rename(master_key, master_key.with_extension("key.unused")).map_err(ServiceError::internal)?;
            return Err(lost(master_key));
        }
        master
    };
    let incarnation = records.state().await?.incarnation;
    let server_key = records.server_key_fetch().await?;
    let foundation = BootMaterial {
        sealing_keys: records.sealing_key_list().await?,
        authorities: records.authority_list().await?,
        certificates: records.certificate_list().await?,
        server_key: server_key.ok_or_else(no_server_key)?,
        incarnation,
    };
    if records.state().await?.incarnation != incarnation {
        let cause = "the records were restored just now; start the daemon again".into();
        return Err(ServiceError::RecordsAway { cause });
    }
    Ok((foundation, master))
}

fn open(foundation: BootMaterial, master: MasterKey, are_from_hot: bool) -> Result<Secrets> {
    let BootMaterial { sealing_keys, authorities, certificates, server_key, incarnation } = foundation;
    let keys: Vec<_> = sealing_keys.into_iter().map(|key| (key.id, key.sealed)).collect();
    let ring = KeyRing::unlock(&master, &keys)?;
    Ok(Secrets {
        authorities: ArcSwap::from_pointee(Authorities::open(&authorities, &ring)?),
        certificates,
        incarnation,
        are_from_hot,
        server_key: ring.open(&server_key_place(), &server_key)?,
        master,
        ring,
    })
}

fn lost(path: &Path) -> ServiceError {
    ServiceError::internal(format!(
        "the records are sealed, and the master key {} that opens them is missing. If systemd brings it (codex-authd \
         doctor says so), only the daemon gets it: systemctl start codex-authd. Otherwise put it back from a backup or \
         from another daemon on the same database, or begin anew with other records",
        path.display()
    ))
}

pub(in crate::service) fn no_server_key() -> ServiceError {
    ServiceError::internal("the records hold no server key")
}

pub(in crate::service) fn server_key_place() -> Place {
    Place::new("settings", "server_key", 0)
}

fn seed(master: &MasterKey, platform: &dyn Platform) -> Result<Seed> {
    let now = platform.now();
    let first = KeyId(1);
    let sealing_key = SealingKey { id: first, sealed: KeyRing::new_key(master, first, platform)?, created_at: now };
    let ring = KeyRing::unlock(master, &[(first, sealing_key.sealed.clone())])?;
    let authorities = [AuthorityRole::Server, AuthorityRole::Client]
        .into_iter()
        .map(|role| {
            let made = authority::create(role, now, platform)?;
            Ok(Authority {
                id: made.id,
                role,
                slot: AuthoritySlot::Active,
                private_key: ring.seal(&authority_place(made.id), &made.private_key, platform)?,
                certificate_pem: made.certificate_pem,
                cross_certificate_pem: None,
                created_at: Some(now),
            })
        })
        .collect::<Result<_>>()?;
    let server_key = ring.seal(&server_key_place(), &server_key::create()?.pkcs8(), platform)?;
    Ok(Seed { sealing_key, authorities, server_key })
}
