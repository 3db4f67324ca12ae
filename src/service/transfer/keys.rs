//! The keys of a backup, sealed under a passphrase, so that an empty machine can be restored.
//!
//! The sealed text holds the master key and the text of the configuration file, which may hold a password. It is bound
//! to its manifest, and the manifest to the rows: keys and rows of two backups do not fit together. Making it needs the
//! master key, so the daemon makes it: it hands out the sealed text and never the key.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::model::digest::Digest;
use crate::seal::{MasterKey, SealError, passphrase};
use crate::service::core::initiator::log_note;
use crate::service::people::passwords::judge_passphrase;
use crate::service::{Initiator, Result, ServiceError, Transfer};

/// The master key, and the configuration file if there was one.
pub struct Keys {
    pub master_key: MasterKey,
    pub configuration: Option<Zeroizing<String>>,
}

/// The plaintext of the sealed keys.
#[derive(Serialize, Deserialize)]
struct Plain {
    master_key: Zeroizing<String>,
    configuration: Option<Zeroizing<String>>,
}

/// `manifest`: the digest of the manifest's file. Takes some tenths of a second.
pub fn open(passphrase: &str, manifest: &Digest, sealed: &str) -> Result<Keys> {
    let refused = |error: SealError| ServiceError::Refused(format!("the keys of the backup do not open: {error}"));
    let plain = passphrase::open_under(passphrase, manifest, sealed).map_err(refused)?;
    // The error of the parser is left out: it may quote a secret.
    let unreadable = || refused(SealError::Malformed("their content is of another version"));
    let Plain { master_key, configuration } = serde_json::from_slice(&plain).map_err(|_| unreadable())?;
    Ok(Keys { master_key: MasterKey::from_text(&master_key).ok_or_else(unreadable)?, configuration })
}

impl Transfer {
    /// Seals the keys of this daemon for the backup whose manifest has this digest. The audit entry is written before
    /// they leave.
    pub async fn seal_backup_keys(
        &self,
        by: &Initiator,
        passphrase: Zeroizing<String>,
        manifest: Digest,
    ) -> Result<String> {
        let plain =
            Plain { master_key: self.core.secrets.master.to_text(), configuration: self.stores()?.configuration()? };
        let plain = Zeroizing::new(serde_json::to_vec(&plain).map_err(ServiceError::internal)?);
        let platform = std::sync::Arc::clone(&self.core.platform);
        let sealing = move || {
            judge_passphrase(&passphrase).map_err(|reason| ServiceError::invalid("passphrase", reason))?;
            Ok(passphrase::seal_under(&passphrase, &manifest, &plain, &*platform)?)
        };
        let sealed = self.people.passwords.turn(by.from).await?.spend(sealing).await?;
        if self.core.health.standstill().is_none() {
            let note = by.note(self.core.platform.now(), "state.backup_keys").on(manifest);
            self.core.records.audit_append(std::slice::from_ref(&note)).await?;
            log_note(&note);
        }
        Ok(sealed)
    }
}
