//! A backup put back.
//!
//! All of it is checked first: the manifest, every table's count and digest, the chain of the audit log, and that the
//! master key opens what is in it. Nothing was changed until then. Then
//!
//! - an embedded store is filled beside the present one, and takes its place with the next start, which follows at once;
//!   a crash before that leaves the present store in use, and what was filled is removed by the next try;
//! - a database is emptied and filled; meanwhile, and after a crash in between, it says so, daemons serve what they know,
//!   and restoring again begins anew. All of them replace themselves once it is whole.
//!
//! The service is not needed for it, so that it can be done where no daemon could start.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Compared, FORMAT, Manifest, Step, Stores, Teller, fill_from, finish};
use crate::model::audit::AuditHead;
use crate::model::digest::Digest;
use crate::outside::{Outside, random};
use crate::records::copy::{Row, Table, Tally};
use crate::records::{AuthoritySlot, Filling, Records, Standstill};
use crate::seal::{KeyRing, MasterKey, Place};
use crate::service::audit::tell;
use crate::service::authorities::authority_place;
use crate::service::canonical::body_place;
use crate::service::{By, Result, Service, ServiceError};

/// What is to be put back, and the key that it is opened with.
pub struct Backup {
    pub manifest: Manifest,
    /// The file with the rows.
    pub rows: PathBuf,
    /// The key that came with it; else the present one is to open it.
    pub master_key: Option<MasterKey>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Restored {
    pub tables: Vec<Compared>,
    /// Of the store as it is from here on: daemons that have this one run on what was restored.
    pub incarnation: Uuid,
    /// It takes its place with the next start.
    pub is_to_be_promoted: bool,
}

impl Service {
    /// Where a backup that comes in is kept until it is put back.
    pub fn restore_spool(&self) -> Result<PathBuf> {
        Ok(self.stores()?.spool())
    }

    /// Puts a backup back and has this process, and all others on the same store, replaced.
    pub async fn restore_backup(&self, by: &By, backup: Backup, teller: &Teller) -> Result<Restored> {
        let _one_at_a_time = self.begin_moving()?;
        let stores = self.stores()?;
        let present = Some(&self.secrets.master);
        let restored = restore(&self.records, &**stores, present, backup, by, &*self.outside, teller).await?;
        if restored.is_to_be_promoted {
            self.ask_to_be_replaced();
        }
        Ok(restored)
    }
}

/// `present_key`: the master key that is there, if there is one.
pub async fn restore(
    records: &Arc<dyn Records>,
    stores: &dyn Stores,
    present_key: Option<&MasterKey>,
    backup: Backup,
    by: &By,
    outside: &dyn Outside,
    teller: &Teller,
) -> Result<Restored> {
    let Backup { manifest, rows, master_key } = backup;
    let key = master_key.as_ref().or(present_key).ok_or_else(|| {
        ServiceError::Refused("there is no master key here: give the one of the backup with --master-key FILE".into())
    })?;
    check(&manifest, &rows, key, teller).await?;
    let beside = stores.open_beside().await?;
    let new_key = master_key.filter(|new| present_key.is_none_or(|present| !present.is(new)));
    if new_key.is_some() && stores.master_key_is_a_credential() {
        let refusal = "the daemon's master key is a systemd credential: put the one of the backup there, and restore without --master-key";
        return Err(ServiceError::Refused(refusal.into()));
    }
    if new_key.is_some() && present_key.is_some() && beside.is_none() {
        let refusal = "the daemons on this database have another master key: stop them all, put the one of the backup in its place \
                       on each, and restore then";
        return Err(ServiceError::Refused(refusal.into()));
    }
    // What is there may itself be half filled, and then says nothing of its epoch but to the filling itself.
    let known = records.epoch().await.unwrap_or_default();
    let id = uuid::Builder::from_random_bytes(random(outside)).into_uuid();
    let filling = Filling { id, above: manifest.epoch.max(known) };
    let now = outside.now();
    let target = beside.as_ref().unwrap_or(records);
    target.begin_filling(&filling, true).await?;
    let (sender, mut chunks) = mpsc::channel(2);
    let (path, of) = (rows.clone(), manifest.rows);
    let reading = tokio::task::spawn_blocking(move || read(&path, &sender));
    let filled = fill_from(target, &stores.present(), &filling, &mut chunks, of, teller).await;
    drop(chunks);
    let read = reading.await.map_err(ServiceError::internal)?;
    // Where the filling failed, the reading did because of it.
    let tables = filled?;
    read?;
    if tables.iter().any(|table| manifest.count(table.table) != Some(table.from)) {
        return Err(ServiceError::Refused("the backup was changed while it was read".into()));
    }
    let note = by.note(now, "state.restore").with("backup_of", manifest.created_at).with("made_by", &manifest.version);
    finish(target, &filling, &note.alarm()).await?;
    let is_to_be_promoted = beside.is_some();
    if is_to_be_promoted {
        drop(beside);
        promote(records, stores, new_key.as_ref(), by, outside).await?;
    } else if let Some(key) = &new_key {
        stores.promote(Some(key)).await?;
    }
    tell(&by.note(now, "state.restore"));
    Ok(Restored { tables, incarnation: id, is_to_be_promoted })
}

/// What the present store would acknowledge from here on would be gone: it stands still until the next start.
async fn promote(
    records: &Arc<dyn Records>,
    stores: &dyn Stores,
    key: Option<&MasterKey>,
    by: &By,
    outside: &dyn Outside,
) -> Result<()> {
    // One that cannot be read, or was never begun, acknowledges nothing.
    if !records.is_initialised().await.unwrap_or_default() {
        return stores.promote(key).await;
    }
    let reason = "a backup takes its place with the next start of the daemon; if there is none, restore again, or `codex-authd \
                  migrate --abort` lets this store go on";
    let standstill = Standstill { reason: reason.into(), since: outside.now() };
    records.set_standstill(Some(&standstill), &by.note(outside.now(), "state.restore")).await?;
    let promoted = stores.promote(key).await;
    if promoted.is_err() {
        records.set_standstill(None, &by.note(outside.now(), "state.restore_failed")).await?;
    }
    promoted
}

fn damaged(what: impl std::fmt::Display) -> ServiceError {
    ServiceError::Refused(format!("the backup is not as it was made: {what}; nothing was changed"))
}

/// Everything that can be known before anything is changed.
async fn check(manifest: &Manifest, rows: &Path, key: &MasterKey, teller: &Teller) -> Result<()> {
    if manifest.format != FORMAT {
        let Manifest { format, version, .. } = manifest;
        let refusal = format!(
            "the backup has format {format} (written by codex-authd {version}), and this version knows {FORMAT}: restore \
             with that version, and upgrade then"
        );
        return Err(ServiceError::Refused(refusal));
    }
    teller.tell(Step::Checking, 0, manifest.rows).await?;
    let (manifest, path, key) = (manifest.clone(), rows.to_path_buf(), key.clone());
    let checked = tokio::task::spawn_blocking(move || Check::default().all(&manifest, &path, &key)).await;
    checked.map_err(ServiceError::internal)?
}

#[derive(Default)]
struct Check {
    tally: Tally,
    last: Option<Table>,
    heads: Option<(Option<u64>, AuditHead)>,
    keys: Vec<(crate::seal::KeyId, crate::seal::Sealed)>,
    ring: Option<KeyRing>,
    versions: BTreeSet<u64>,
    actives: usize,
    chain: AuditHead,
}

impl Check {
    fn all(mut self, manifest: &Manifest, path: &Path, key: &MasterKey) -> Result<()> {
        each_line(path, |line| {
            let row: Row =
                serde_json::from_str(line).map_err(|error| damaged(format!("a row cannot be read ({error})")))?;
            if self.last.is_some_and(|last| last > row.table()) {
                return Err(damaged(format!("rows of {} stand in the wrong place", row.table().name())));
            }
            self.last = Some(row.table());
            self.tally.add(row.table(), line);
            self.row(row, key)
        })?;
        if self.tally.rows() != manifest.rows {
            return Err(damaged(format!(
                "it has {} rows where the manifest says {}",
                self.tally.rows(),
                manifest.rows
            )));
        }
        for (table, count) in self.tally.counts() {
            if manifest.count(table) != Some(count) {
                return Err(damaged(format!("the rows of {} do not have the digest in the manifest", table.name())));
            }
        }
        let (canonical, audit) = self.heads.ok_or_else(|| damaged("it does not say where it stood"))?;
        if audit != self.chain {
            return Err(damaged(format!("the audit log ends at entry {}", self.chain.number)));
        }
        if canonical.is_some_and(|number| !self.versions.contains(&number)) {
            return Err(damaged("the canonical version is missing"));
        }
        if self.ring.is_none() || self.actives < 2 {
            return Err(damaged("keys or authorities are missing"));
        }
        Ok(())
    }

    fn ring(&mut self, key: &MasterKey) -> Result<&KeyRing> {
        if self.ring.is_none() {
            let ring = KeyRing::unlock(key, &self.keys).map_err(|error| {
                ServiceError::Refused(format!("the master key does not open this backup: {error}; give the one that belongs to it with --master-key FILE; nothing was changed"))
            })?;
            self.ring = Some(ring);
        }
        self.ring.as_ref().ok_or_else(|| damaged("its keys are missing"))
    }

    fn row(&mut self, row: Row, key: &MasterKey) -> Result<()> {
        match row {
            Row::Heads(heads) => self.heads = Some((heads.canonical_version, heads.audit)),
            Row::SealingKeys(sealing) => self.keys.push((sealing.id, sealing.sealed)),
            Row::Authorities(authority) => {
                self.actives += usize::from(authority.slot == AuthoritySlot::Active);
                self.opens(key, &authority_place(authority.id), &authority.private_key)?;
            }
            Row::Versions(version) => {
                let plain = self.opens(key, &body_place(version.id), &version.body)?;
                if Digest::of(&plain) != version.summary.digest {
                    return Err(damaged(format!("version {} is another login", version.summary.version)));
                }
                self.versions.insert(version.summary.version);
            }
            Row::Hosts(host) if !host.api_key.as_bytes().is_empty() => {
                self.opens(key, &Place::new("hosts", "api_key", host.id), &host.api_key)?;
            }
            Row::AuditLog(entry) => {
                self.chain.follow(&entry).map_err(|broken| damaged(format!("the audit log: {broken}")))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn opens(
        &mut self,
        key: &MasterKey,
        place: &Place,
        sealed: &crate::seal::Sealed,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        self.ring(key)?.open(place, sealed).map_err(damaged)
    }
}

/// The longest line that is read: a version has a megabyte at most.
const LONGEST: u64 = 16 * 1024 * 1024;

fn each_line(path: &Path, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    use std::io::Read as _;

    let failed = |error: std::io::Error| ServiceError::Refused(format!("cannot read {}: {error}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut line = String::new();
    loop {
        line.clear();
        let read = (&mut file).take(LONGEST).read_line(&mut line);
        match read.map_err(|error| {
            if error.kind() == std::io::ErrorKind::InvalidData { damaged(error) } else { failed(error) }
        })? {
            0 => return Ok(()),
            _ => match line.strip_suffix('\n') {
                Some(line) => take(line)?,
                None => return Err(damaged("its last line is cut off")),
            },
        }
    }
}

const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 1024 * 1024;

/// Reads the rows for [`fill_from`].
fn read(path: &Path, chunks: &mpsc::Sender<Vec<Row>>) -> Result<()> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    let gone = |_| ServiceError::Refused("the store that was filled takes no more rows".into());
    let read = each_line(path, |line| {
        chunk.push(serde_json::from_str(line).map_err(damaged)?);
        bytes += line.len();
        if chunk.len() >= CHUNK || bytes >= CHUNK_BYTES {
            bytes = 0;
            chunks.blocking_send(std::mem::take(&mut chunk)).map_err(gone)?;
        }
        Ok(())
    });
    read.and_then(|()| chunks.blocking_send(chunk).map_err(gone))
}
