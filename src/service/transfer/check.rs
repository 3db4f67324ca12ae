//! Checks a backup before anything is changed: the manifest, every table's count and digest, the chain of the audit
//! log, and the presence of the canonical version. With the key, it also checks that every sealed value opens.
//!
//! It reads only the files of the backup: no store, no state directory, no daemon.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::model::audit::AuditHead;
use crate::model::digest::Digest;
use crate::records::copy::{Row, Table, Tally};
use crate::records::{AuthoritySlot, CanonicalVersion, Settings};
use crate::seal::{KeyId, KeyRing, MasterKey, Place, Sealed};
use crate::service::core::authorities::authority_place;
use crate::service::core::boot::server_key_place;
use crate::service::core::canonical::{body_place, token_place};
use crate::service::login::delivery::agent_identity_place;
use crate::service::transfer::{FORMAT, Manifest, OLDEST_FORMAT, ProgressReporter, TransferStep};
use crate::service::{Result, ServiceError};

/// The rows of a backup, as an open file: the process that opened it may have more rights than the one that reads it.
pub struct Rows {
    file: File,
    path: PathBuf,
}

/// The longest line that is accepted: a version has a megabyte at most.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

impl Rows {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: File::open(path)?, path: path.to_path_buf() })
    }

    pub fn into_file(self) -> File {
        self.file
    }

    /// Calls `take` with each line, from the first one on.
    pub(in crate::service) fn each_line(&self, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let failed = |error| ServiceError::Refused(format!("cannot read {}: {error}", self.path.display()));
        (&self.file).rewind().map_err(failed)?;
        let mut file = BufReader::new(&self.file);
        let mut line = String::new();
        loop {
            line.clear();
            let read = (&mut file).take(MAX_LINE_BYTES).read_line(&mut line);
            match read.map_err(
                |error| {
                    if error.kind() == ErrorKind::InvalidData { damaged(error) } else { failed(error) }
                },
            )? {
                0 => return Ok(()),
                _ => match line.strip_suffix('\n') {
                    Some(line) => take(line)?,
                    None => return Err(damaged("its last line is cut off")),
                },
            }
        }
    }

    fn duplicate(&self) -> Result<Self> {
        Ok(Self { file: self.file.try_clone().map_err(ServiceError::internal)?, path: self.path.clone() })
    }
}

/// The contents of a backup that passed the check.
pub struct Checked {
    pub settings: Settings,
    pub canonical: Option<u64>,
    /// How many sealed values it has.
    pub sealed: u64,
}

/// Checks a backup. Without a key, sealed values are counted but not opened.
pub async fn check(
    manifest: &Manifest,
    rows: &Rows,
    key: Option<&MasterKey>,
    reporter: &ProgressReporter,
) -> Result<Checked> {
    if !(OLDEST_FORMAT..=FORMAT).contains(&manifest.format) {
        let Manifest { format, version, .. } = manifest;
        let refusal = format!(
            "the backup has format {format} (written by codex-authd {version}), and this version knows {FORMAT}: restore \
             with that version, and upgrade then"
        );
        return Err(ServiceError::Refused(refusal));
    }
    reporter.tell(TransferStep::Checking, 0, manifest.rows).await?;
    let (manifest, rows, key) = (manifest.clone(), rows.duplicate()?, key.cloned());
    let checked =
        tokio::task::spawn_blocking(move || RowCheck { key, ..RowCheck::default() }.all(&manifest, &rows)).await;
    checked.map_err(ServiceError::internal)?
}

pub(in crate::service) fn damaged(what: impl std::fmt::Display) -> ServiceError {
    ServiceError::Refused(format!("the backup is not as it was made: {what}; nothing was changed"))
}

#[derive(Default)]
struct RowCheck {
    key: Option<MasterKey>,
    tally: Tally,
    last: Option<Table>,
    heads: Option<(Option<u64>, AuditHead)>,
    settings: Settings,
    /// Kept until the end, because it comes before the keys that open it.
    server_key: Option<Sealed>,
    keys: Vec<(KeyId, Sealed)>,
    ring: Option<KeyRing>,
    versions: BTreeSet<u64>,
    actives: usize,
    chain: AuditHead,
    sealed: u64,
}

impl RowCheck {
    fn all(mut self, manifest: &Manifest, rows: &Rows) -> Result<Checked> {
        rows.each_line(|line| {
            let row: Row =
                serde_json::from_str(line).map_err(|error| damaged(format!("a row cannot be read ({error})")))?;
            if self.last.is_some_and(|last| last > row.table()) {
                return Err(damaged(format!("rows of {} are in the wrong place", row.table().name())));
            }
            self.last = Some(row.table());
            self.tally.add(row.table(), line);
            self.row(row)
        })?;
        if self.tally.rows() != manifest.rows {
            return Err(damaged(format!(
                "it has {} rows where the manifest says {}",
                self.tally.rows(),
                manifest.rows
            )));
        }
        for (table, count) in std::mem::take(&mut self.tally).counts() {
            if manifest.count(table) != Some(count) {
                return Err(damaged(format!("the rows of {} do not have the digest in the manifest", table.name())));
            }
        }
        let (canonical, audit) = self.heads.ok_or_else(|| damaged("its heads are missing"))?;
        if audit != self.chain {
            return Err(damaged(format!("the audit log ends at entry {}", self.chain.number)));
        }
        if canonical.is_some_and(|number| !self.versions.contains(&number)) {
            return Err(damaged("the canonical version is missing"));
        }
        let server_key = self.server_key.take().ok_or_else(|| damaged("the server's key is missing"))?;
        if self.keys.is_empty() || self.actives < 2 {
            return Err(damaged("keys or authorities are missing"));
        }
        self.opens(&server_key_place(), &server_key)?;
        Ok(Checked { settings: self.settings, canonical, sealed: self.sealed })
    }

    fn row(&mut self, row: Row) -> Result<()> {
        match row {
            Row::Heads(heads) => self.heads = Some((heads.canonical_version, heads.audit)),
            Row::Settings(settings) => self.settings = settings,
            Row::ServerKey(key) => self.server_key = Some(key),
            Row::SealingKeys(sealing) => self.keys.push((sealing.id, sealing.sealed)),
            Row::Authorities(authority) => {
                self.actives += usize::from(authority.slot == AuthoritySlot::Active);
                self.opens(&authority_place(authority.id), &authority.private_key)?;
            }
            Row::Versions(version) => self.version(&version)?,
            Row::Hosts(host) if !host.api_key.as_bytes().is_empty() => {
                self.opens(&Place::new("hosts", "api_key", host.id), &host.api_key)?;
                if let Some(identity) = &host.agent_identity {
                    self.opens(&agent_identity_place(host.id), identity)?;
                }
            }
            Row::AuditLog(entry) => {
                self.chain.follow(&entry).map_err(|broken| damaged(format!("the audit log: {broken}")))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn version(&mut self, version: &CanonicalVersion) -> Result<()> {
        let number = version.summary.version;
        if let Some(plain) = self.opens(&body_place(version.id), &version.body)?
            && Digest::of(&plain) != version.summary.digest
        {
            return Err(damaged(format!("the login of version {number} does not have its digest")));
        }
        for entry in &version.entries {
            self.opens(&token_place(version.id, &entry.target), &entry.token)?;
        }
        self.versions.insert(number);
        Ok(())
    }

    /// `None`: there is no key to open it with.
    fn opens(&mut self, place: &Place, sealed: &Sealed) -> Result<Option<Zeroizing<Vec<u8>>>> {
        self.sealed += 1;
        let Some(key) = &self.key else { return Ok(None) };
        if self.ring.is_none() {
            let ring = KeyRing::unlock(key, &self.keys).map_err(|error| {
                let refusal = format!(
                    "the master key does not open this backup: {error}; give the passphrase of the backup with \
                     --passphrase-file FILE, or the key that belongs to it with --master-key FILE; nothing was changed"
                );
                ServiceError::Refused(refusal)
            })?;
            self.ring = Some(ring);
        }
        let ring = self.ring.as_ref().ok_or_else(|| damaged("its keys are missing"))?;
        ring.open(place, sealed).map(Some).map_err(damaged)
    }
}
