//! A store in one redb file, `rows.redb`, that survives a power cut.
//!
//! The rows are in one table, named after the store, so that another store's file in its place is detected. Each row
//! carries a checksum of its key and value. redb verifies pages when it opens the file, but not when it reads one
//! later. The row's checksum detects damage that happens while the daemon runs.
//!
//! *Every* open verifies the whole file, not only one after a crash. A flipped bit on the disk is refused at once, and
//! not on the day the row is needed. Because commits have two phases, redb never takes a damaged last commit for an
//! interrupted one. So it never goes back to the commit before it (`Database::do_repair` of redb). One byte of the
//! header has no checksum; [`super::held`] handles it. After a crash a commit that was not acknowledged may be there,
//! but only as a whole.
//!
//! A refused file stays unchanged, byte by byte: redb's writes during an open are held back until the file is verified
//! ([`super::held`]).
//!
//! A crash while the file is created leaves `rows.redb.new`, which the next open replaces.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, StorageError, TableDefinition,
    TableError, TableHandle,
};

use super::held::{Header, Held};
use super::lock::{LOCK_RETRY_INTERVAL, LOCK_TIMEOUT, sync_names};
use super::rows::Layer;
use super::{Disk, DiskError, DiskRow, DiskRows, DurableError, Result, View, panics};

pub(super) const FILE: &str = "rows.redb";
/// redb's cache of pages. The kernel caches the rest of the file.
pub(super) const CACHE_BYTES: usize = 8 * 1024 * 1024;

pub(super) type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;
type Outcome<T> = std::result::Result<T, DiskError>;

pub(super) struct Redb {
    database: Database,
    name: &'static str,
}

pub(super) fn definition(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

/// Whether a store was ever created in `dir`.
pub fn holds_store(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

impl Redb {
    /// Opens the store `name` in `dir`, which the caller has locked. Creates it if it is missing.
    pub(super) fn open(dir: &Path, name: &'static str) -> Result<Self> {
        let path = dir.join(FILE);
        let failed = |cause: String| DurableError::Open { path: dir.into(), cause };
        match std::fs::metadata(&path) {
            Ok(about) if about.len() == 0 => {
                return Err(DurableError::Damaged { path: dir.into(), cause: format!("{FILE} is empty") });
            }
            Ok(_) => {}
            // A new store here would hide the rows that the old file still holds.
            Err(error) if error.kind() == ErrorKind::NotFound && dir.join("db").exists() => {
                let cause = format!("it holds the file of an older store (db) and no {FILE}");
                return Err(DurableError::Damaged { path: dir.into(), cause });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => make(dir, name).map_err(|e| failed(told(&e)))?,
            Err(error) => return Err(failed(error.to_string())),
        }
        // The file may have been changed by another program, and reading it may panic. A panic is treated as damage.
        let opened = panics::caught(|| verified(|| open_file(&path), name))
            .unwrap_or_else(|panic| Err(DiskError::Damaged(format!("reading it panicked: {panic}"))));
        let database = opened.map_err(|error| match error {
            DiskError::Damaged(cause) => DurableError::Damaged { path: dir.into(), cause },
            DiskError::Other(cause) => failed(cause),
        })?;
        sync_names(dir).map_err(|error| failed(error.to_string()))?;
        Ok(Self { database, name })
    }

    /// Opens a store on a disk of a test.
    #[cfg(test)]
    pub(super) fn on(disk: impl redb::StorageBackend + Clone, name: &'static str) -> Outcome<Self> {
        if disk.len().map_err(|error| DiskError::Other(error.to_string()))? == 0 {
            let database = builder().create_with_backend(disk).map_err(of_database)?;
            commit(&database, name, &Layer::new())?;
            return Ok(Self { database, name });
        }
        let open = || Ok(disk.clone());
        Ok(Self { database: verified(open, name)?, name })
    }

    fn view(&self) -> Outcome<Arc<dyn View>> {
        let reading = self.database.begin_read().map_err(|e| of(e.into()))?;
        Ok(Arc::new(Committed(reading.open_table(definition(self.name)).map_err(of_table)?)))
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn told(error: &DiskError) -> String {
    match error {
        DiskError::Damaged(cause) | DiskError::Other(cause) => cause.clone(),
    }
}

fn make(dir: &Path, name: &'static str) -> Outcome<()> {
    let other = |error: std::io::Error| DiskError::Other(error.to_string());
    let (part, path) = (dir.join(format!("{FILE}.new")), dir.join(FILE));
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(other(error)),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map_err(other)?;
    let database = builder().create_with_backend(open_file(&part)?).map_err(of_database)?;
    commit(&database, name, &Layer::new())?;
    drop(database);
    // Closing the database writes without a commit and without a sync.
    File::open(&part).and_then(|file| file.sync_all()).map_err(other)?;
    std::fs::rename(&part, &path).map_err(other)
}

fn open_file(path: &Path) -> Outcome<FileBackend> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    FileBackend::new(file.map_err(|error| DiskError::Other(error.to_string()))?).map_err(of_database)
}

/// Opens the non-empty file that `open` gives, and verifies the whole current root. Writes nothing to a file that it
/// refuses.
fn verified<B: redb::StorageBackend>(open: impl Fn() -> Outcome<B>, name: &str) -> Outcome<Database> {
    let begun = Instant::now();
    let other = |error: std::io::Error| DiskError::Other(error.to_string());
    let (database, release) = loop {
        let file = open()?;
        let flags = Header::read(|bytes| file.read(0, bytes)).map_err(other)?.map(|header| header.flags());
        let (held, release) = Held::new(file, flags);
        // redb has only this call to open a backend. It would create a new store in an empty file.
        match builder().create_with_backend(held) {
            // The kernel releases the lock of a killed process only after it has finished with that process.
            Err(DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < LOCK_TIMEOUT => {
                std::thread::park_timeout(LOCK_RETRY_INTERVAL)
            }
            opened => break (opened.map_err(of_database)?, release),
        }
    };
    let reading = database.begin_read().map_err(|e| of(e.into()))?;
    match reading.open_table(definition(name)) {
        Ok(_) => {}
        Err(TableError::TableDoesNotExist(_)) => {
            let names: Vec<_> =
                reading.list_tables().map_err(|e| of(e.into()))?.map(|table| table.name().to_owned()).collect();
            return Err(DiskError::Damaged(format!(
                "{FILE} holds {:?} and not {name:?}: it is another store's",
                names.join(" ")
            )));
        }
        Err(error) => return Err(of_table(error)),
    }
    drop(reading);
    release.release().map_err(other)?;
    Ok(database)
}

fn commit(database: &Database, name: &str, rows: &Layer) -> Outcome<()> {
    let mut writing = database.begin_write().map_err(|e| of(e.into()))?;
    writing.set_durability(Durability::Immediate).map_err(|e| of(e.into()))?;
    writing.set_two_phase_commit(true);
    {
        let mut table = writing.open_table(definition(name)).map_err(of_table)?;
        for (key, value) in rows {
            match value {
                Some(value) => table.insert(&key[..], &checked(key, value)[..]).map(drop),
                None => table.remove(&key[..]).map(drop),
            }
            .map_err(|e| of(e.into()))?;
        }
    }
    writing.commit().map_err(|e| of(e.into()))
}

impl Disk for Redb {
    fn commit(&mut self, rows: &Layer) -> Outcome<Arc<dyn View>> {
        if !rows.is_empty() {
            commit(&self.database, self.name, rows)?;
        }
        self.view()
    }
}

struct Committed(Table);

impl View for Committed {
    fn get(&self, key: &[u8]) -> Outcome<Option<Bytes>> {
        let stored = self.0.get(key).map_err(|e| of(e.into()))?;
        stored.map(|stored| unchecked(key, stored.value())).transpose()
    }

    fn range(&self, from: &[u8], to: Option<&[u8]>) -> Outcome<DiskRows> {
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.0.range_owned::<&[u8]>((Bound::Included(from), to)).map_err(|e| of(e.into()))?;
        Ok(Box::new(rows.map(|row| -> DiskRow {
            let (key, stored) = row.map_err(|e| of(e.into()))?;
            Ok((Bytes::copy_from_slice(key.value()), unchecked(key.value(), stored.value())?))
        })))
    }
}

const CHECKSUM_BYTES: usize = 4;

fn checksum(key: &[u8], value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize().to_be_bytes()
}

/// A row as stored: its checksum, then its value.
fn checked(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&checksum(key, value)[..], value].concat()
}

pub(super) fn unchecked(key: &[u8], stored: &[u8]) -> Outcome<Bytes> {
    match stored.split_at_checked(CHECKSUM_BYTES) {
        Some((sum, value)) if sum == checksum(key, value) => Ok(Bytes::copy_from_slice(value)),
        _ => Err(DiskError::Damaged(format!(
            "the row {} does not have the checksum that it was written with",
            name_of(key)
        ))),
    }
}

/// The key for messages: the kind of the row as text, its id in hex.
fn name_of(key: &[u8]) -> String {
    let kind = key.iter().position(|byte| *byte == b'/').map_or(key.len(), |at| at + 1);
    let (kind, id) = key.split_at(kind);
    format!("{}{}", String::from_utf8_lossy(kind), hex::encode(id))
}

fn of(error: redb::Error) -> DiskError {
    match error {
        redb::Error::Corrupted(cause) => DiskError::Damaged(cause),
        redb::Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
            DiskError::Damaged(format!("{FILE} is no store of codex-authd ({error})"))
        }
        // The file is shorter than its header says.
        redb::Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => {
            DiskError::Damaged(format!("{FILE} is shorter than it was ({error})"))
        }
        error => DiskError::Other(error.to_string()),
    }
}

fn of_table(error: TableError) -> DiskError {
    match error {
        TableError::TableTypeMismatch { .. } | TableError::TableDoesNotExist(_) => {
            DiskError::Damaged(format!("{FILE} holds something else: {error}"))
        }
        error => of(error.into()),
    }
}

fn of_database(error: DatabaseError) -> DiskError {
    match error {
        DatabaseError::UpgradeRequired(version) => {
            DiskError::Damaged(format!("{FILE} has the file format {version} of another version"))
        }
        DatabaseError::Storage(StorageError::Corrupted(cause)) => DiskError::Damaged(cause),
        error => of(error.into()),
    }
}
