//! Restores a backup.
//!
//! The whole backup is checked first ([`crate::service::transfer::check`]). Nothing is changed until then. Then
//!
//! - an embedded store is filled beside the present one, and replaces it at the next start, which follows at once. A
//!   crash before that leaves the present store in use, and the next attempt removes the other one;
//! - a database is emptied and filled. Until that is done, also after a crash, it is marked as half filled, daemons
//!   serve what they know, and restoring again begins anew. Once it is complete, all daemons restart.
//!
//! The login in the backup may have been refreshed since. So the store is marked before it is complete, and no daemon
//! redeems a token that was spent ([`crate::records::RestoredLogin`]).
//!
//! A restore does not need the service, so that it works where no daemon can start.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::platform::{Clock, Platform, random};
use crate::records::copy::Row;
use crate::records::{Filling, Records, RestoredLogin, Settings, Standstill};
use crate::seal::MasterKey;
use crate::service::core::initiator::log_note;
use crate::service::transfer::check::{Rows, check, damaged};
use crate::service::transfer::{Compared, Manifest, ProgressReporter, Stores, fill_from, finish};
use crate::service::{Initiator, Result, ServiceError, Transfer};

/// The backup to restore, and the key that opens it.
pub struct Backup {
    pub manifest: Manifest,
    pub rows: Rows,
    /// The key that came with the backup; `None`: the present one must open it.
    pub master_key: Option<MasterKey>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Restored {
    pub tables: Vec<Compared>,
    /// The incarnation of the restored store: daemons with this one run on the restored records.
    pub incarnation: Uuid,
    /// Whether the restored store replaces the present one at the next start.
    pub is_to_be_promoted: bool,
    /// The canonical version. No probe of it starts by itself until it is known to be good.
    #[serde(default)]
    pub restored_version: Option<u64>,
}

impl Transfer {
    /// The path of an incoming backup until it is restored.
    pub fn restore_spool(&self) -> Result<PathBuf> {
        Ok(self.stores()?.spool())
    }

    /// Restores a backup. This process, and all others on the same store, are replaced.
    pub async fn restore_backup(
        &self,
        by: &Initiator,
        backup: Backup,
        reporter: &ProgressReporter,
    ) -> Result<Restored> {
        let _one_at_a_time = self.begin_moving()?;
        let stores = self.stores()?;
        let present = Some(&self.core.secrets.master);
        let restored =
            restore(&self.core.records, &**stores, present, backup, by, &*self.core.platform, reporter).await?;
        if restored.is_to_be_promoted {
            self.core.health.ask_to_be_replaced();
        }
        Ok(restored)
    }
}

/// `present_key`: the present master key, if there is one.
pub async fn restore(
    records: &Arc<dyn Records>,
    stores: &dyn Stores,
    present_key: Option<&MasterKey>,
    backup: Backup,
    by: &Initiator,
    platform: &dyn Platform,
    reporter: &ProgressReporter,
) -> Result<Restored> {
    let Backup { manifest, rows, master_key } = backup;
    let key = master_key.as_ref().or(present_key).ok_or_else(|| {
        let refusal = "there is no master key here: give the passphrase of the backup with --passphrase-file FILE, or its \
                       master key with --master-key FILE";
        ServiceError::Refused(refusal.into())
    })?;
    let checked = check(&manifest, &rows, Some(key), reporter).await?;
    let beside = stores.open_beside().await?;
    let new_key = master_key.filter(|new| present_key.is_none_or(|present| !present.is(new)));
    if new_key.is_some() && stores.master_key_is_a_credential() {
        let refusal = "the daemon's master key is a systemd credential: put the one of the backup there (`codex-authd restore \
                       DIR --extract OUT` takes it out of the backup), and restore then";
        return Err(ServiceError::Refused(refusal.into()));
    }
    if new_key.is_some() && present_key.is_some() && beside.is_none() {
        let refusal = "the daemons on this database have another master key: stop them all, put the one of the backup in its place \
                       on each, and restore then";
        return Err(ServiceError::Refused(refusal.into()));
    }
    // The present store may itself be half filled. Then only the filling can read its epoch.
    let known = records.epoch().await.unwrap_or_default();
    let id = uuid::Builder::from_random_bytes(random(platform)).into_uuid();
    let filling = Filling { id, above: manifest.epoch.max(known) };
    let now = platform.now();
    let target = beside.as_ref().unwrap_or(records);
    target.fill_begin(&filling, true).await?;
    let (sender, mut chunks) = mpsc::channel(2);
    let of = manifest.rows;
    let reading = tokio::task::spawn_blocking(move || read(&rows, &sender));
    let filled = fill_from(target, &stores.present(), &filling, &mut chunks, of, reporter).await;
    drop(chunks);
    let read = reading.await.map_err(ServiceError::internal)?;
    // If the filling failed, the reading failed because of it.
    let tables = filled?;
    read?;
    if tables.iter().any(|table| manifest.count(table.table) != Some(table.from)) {
        return Err(ServiceError::Refused("the backup was changed while it was read".into()));
    }
    // Replaces the settings only now: what was compared must be what is in the backup.
    let restored_login = checked.canonical.map(|version| RestoredLogin { version, backup_of: manifest.created_at });
    let marked = Row::Settings(Settings { restored_login, ..checked.settings });
    target.fill_append(&filling, &[marked]).await?;
    let note = by.note(now, "state.restore").with("backup_of", manifest.created_at).with("made_by", &manifest.version);
    finish(target, &filling, &note.alarm()).await?;
    let is_to_be_promoted = beside.is_some();
    if is_to_be_promoted {
        drop(beside);
        promote(records, stores, new_key.as_ref(), by, platform).await?;
    } else if let Some(key) = &new_key {
        stores.promote(Some(key)).await?;
    }
    log_note(&by.note(now, "state.restore"));
    let restored_version = checked.canonical;
    Ok(Restored { tables, incarnation: id, is_to_be_promoted, restored_version })
}

/// The present store stands still until the next start: any change that it acknowledged would be lost.
async fn promote(
    records: &Arc<dyn Records>,
    stores: &dyn Stores,
    key: Option<&MasterKey>,
    by: &Initiator,
    clock: &dyn Clock,
) -> Result<()> {
    // A store that cannot be read, or was never initialised, acknowledges nothing.
    if !records.is_initialised().await.unwrap_or_default() {
        return stores.promote(key).await;
    }
    let reason = "a backup takes its place with the next start of the daemon; if there is none, restore again, or `codex-authd \
                  migrate --abort` lets this store go on";
    let standstill = Standstill { reason: reason.into(), since: clock.now() };
    records.standstill_set(Some(&standstill), &by.note(clock.now(), "state.restore")).await?;
    let promoted = stores.promote(key).await;
    if promoted.is_err() {
        records.standstill_set(None, &by.note(clock.now(), "state.restore_failed")).await?;
    }
    promoted
}

const ROWS_PER_CHUNK: usize = 500;
const BYTES_PER_CHUNK: usize = 1024 * 1024;

/// Reads the rows for [`fill_from`].
fn read(rows: &Rows, chunks: &mpsc::Sender<Vec<Row>>) -> Result<()> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    let gone = |_| ServiceError::Refused("the store that was filled takes no more rows".into());
    let read = rows.each_line(|line| {
        chunk.push(serde_json::from_str(line).map_err(damaged)?);
        bytes += line.len();
        if chunk.len() >= ROWS_PER_CHUNK || bytes >= BYTES_PER_CHUNK {
            bytes = 0;
            chunks.blocking_send(std::mem::take(&mut chunk)).map_err(gone)?;
        }
        Ok(())
    });
    read.and_then(|()| chunks.blocking_send(chunk).map_err(gone))
}
