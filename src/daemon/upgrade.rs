//! The upgrade from state format 4 to 5: rows that must survive a power cut move from sled to the crash-safe store of
//! `durable`.
//!
//! | rows | were in | are in |
//! | --- | --- | --- |
//! | the records | `records/`, sled | `records/rows.redb` |
//! | the outbox, the node's name and number, a login that a probe refreshed | `hot/`, sled | `outbox/rows.redb` |
//!
//! 1. [`build`]: reads the rows from sled and writes them to a new store in `records.upgrade/` or `outbox.upgrade/`. It
//!    closes the store, opens it again (this verifies every page), and reads it back: the number of rows and the digest
//!    must be equal. A store of an earlier attempt is removed first. Nothing else is changed yet.
//! 2. [`switch`]: one rename puts the new file in its place. From here on sled's rows are not read any more.
//! 3. [`clean`]: removes sled's files in `records/`, and the directories of step 1. `hot/` keeps its rows: they are a
//!    cache, and its owner drops unknown rows.
//!
//! Each step may be repeated. A store whose new file is in its place is skipped. `format.rs` decides when each step
//! runs.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{files, manager};
use crate::durable::{self, DurableError, Store};
use crate::model::digest::{Digest, Hasher};
use crate::records::embedded::upgrade as records;

/// The key of the whole row, and the number of the piece.
type UpgradePiece<'a> = (&'a [u8], u32);

/// A set of rows to move.
struct Move {
    /// The name of the new store, and of its directory.
    name: &'static str,
    /// The directory of the sled store.
    from: &'static str,
    /// Selects the rows to move.
    takes: fn(&[u8]) -> bool,
    /// Returns the key of the row that this key is a piece of, and the number of the piece.
    piece_of: fn(&[u8]) -> Option<UpgradePiece<'_>>,
}

const MOVES: [Move; 2] = [
    Move { name: "records", from: "records", takes: |_| true, piece_of: records::piece_of },
    Move { name: "outbox", from: "hot", takes: is_of_outbox, piece_of: piece_of_hot },
];

const NEW_FILE: &str = "rows.redb";
/// Files of sled, besides `snap.*`.
const SLED: [&str; 3] = ["db", "conf", "blobs"];

fn is_of_outbox(key: &[u8]) -> bool {
    key == b"node" || key == b"last-batch" || key.starts_with(b"outbox/") || key.starts_with(b"refreshed#")
}

fn piece_of_hot(key: &[u8]) -> Option<(&[u8], u32)> {
    let piece = key.strip_prefix(b"refreshed#")?.try_into().ok()?;
    Some((&key[..b"refreshed".len()], u32::from_be_bytes(piece)))
}

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
    /// Reading the old store failed.
    #[error("{cause}")]
    Source { name: &'static str, path: PathBuf, cause: DurableError },
    #[error("the new {name} cannot be written: {cause}")]
    Target { name: &'static str, cause: DurableError },
    #[error("the new {0} differ from the copied ones; nothing was switched. The disk or the memory is faulty")]
    Differs(&'static str),
}

type Result<T> = std::result::Result<T, MoveError>;

fn io_error(path: &Path) -> impl Fn(io::Error) -> MoveError {
    let path = path.to_path_buf();
    move |cause| MoveError::Io { path: path.clone(), cause }
}

impl Move {
    fn source(&self, directory: &Path) -> PathBuf {
        directory.join(self.from)
    }

    fn target(&self, directory: &Path) -> PathBuf {
        directory.join(self.name)
    }

    fn part(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.upgrade", self.name))
    }

    /// If `records/` has no files of sled, it was never of an older format, for example after a restore.
    fn is_done(&self, directory: &Path) -> bool {
        self.target(directory).join(NEW_FILE).exists() || !holds_sled(&self.source(directory))
    }
}

/// Whether `directory` holds sled's log.
pub fn holds_sled(directory: &Path) -> bool {
    directory.join("db").exists() || directory.join("conf").exists()
}

/// Renames new files that are next to a store of the older format: leftovers of an upgrade that was reverted by hand.
/// Call this only while the state has the older format.
pub fn set_stale_aside(directory: &Path) -> Result<()> {
    for (place, stale) in [("records/rows.redb", "records/rows.redb.stale"), ("outbox", "outbox.stale")] {
        let (path, stale) = (directory.join(place), directory.join(stale));
        let Some(parent) = path.parent().filter(|_| path.exists()) else { continue };
        // Without sled's rows, the new file is the only copy.
        if !holds_sled(&directory.join(if place == "outbox" { "hot" } else { "records" })) {
            continue;
        }
        files::remove(&stale).map_err(io_error(&stale))?;
        std::fs::rename(&path, &stale).map_err(io_error(&path))?;
        files::sync_names(parent).map_err(io_error(parent))?;
        log::warn!(
            event = "stale_store", path:% = stale.display();
            "found a store of a newer format next to the older one, which is used: it was renamed to {}; remove it", stale.display()
        );
    }
    Ok(())
}

/// Step 1, for each store that is not switched yet.
pub fn build(directory: &Path) -> Result<()> {
    for it in &MOVES {
        let part = it.part(directory);
        files::remove(&part).map_err(io_error(&part))?;
        if it.is_done(directory) {
            continue;
        }
        let copied = fill(it, &it.source(directory), &part)?;
        manager::status(&format!("starting: upgrading the state: comparing the {}", it.name));
        let found = read_back(it, &part)?;
        if copied != found {
            return Err(MoveError::Differs(it.name));
        }
        log::info!(
            event = "rows_copied", store = it.name, rows = copied.rows, sha256:% = copied.digest;
            "copied and compared {} rows of the {}", copied.rows, it.name
        );
        // Closing the store wrote to it after the last commit.
        let file = part.join(NEW_FILE);
        File::open(&file).and_then(|file| file.sync_all()).map_err(io_error(&file))?;
    }
    Ok(())
}

/// Step 2.
pub fn switch(directory: &Path) -> Result<()> {
    for it in &MOVES {
        if it.is_done(directory) {
            continue;
        }
        let (file, target) = (it.part(directory).join(NEW_FILE), it.target(directory));
        if !target.exists() {
            DirBuilder::new().mode(0o700).create(&target).map_err(io_error(&target))?;
            files::sync_names(directory).map_err(io_error(directory))?;
        }
        std::fs::rename(&file, target.join(NEW_FILE)).map_err(io_error(&file))?;
        files::sync_names(&target).map_err(io_error(&target))?;
    }
    Ok(())
}

/// Step 3.
pub fn clean(directory: &Path) -> Result<()> {
    let records = directory.join("records");
    // Sled's files may be removed only if the new file exists.
    if records.join(NEW_FILE).exists() {
        let entries = std::fs::read_dir(&records).map_err(io_error(&records))?;
        for entry in entries {
            let entry = entry.map_err(io_error(&records))?;
            let name = entry.file_name();
            if SLED.iter().any(|sled| name == *sled) || name.to_string_lossy().starts_with("snap.") {
                files::remove(&entry.path()).map_err(io_error(&entry.path()))?;
            }
        }
        files::sync_names(&records).map_err(io_error(&records))?;
    }
    for it in &MOVES {
        let part = it.part(directory);
        files::remove(&part).map_err(io_error(&part))?;
    }
    files::sync_names(directory).map_err(io_error(directory))
}

/// The number of rows, and the digest over them in the order of their keys.
#[derive(Debug, PartialEq, Eq)]
struct Copied {
    rows: u64,
    digest: Digest,
}

#[derive(Default)]
struct RowTally {
    rows: u64,
    hasher: Hasher,
}

impl RowTally {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        for part in [key, value] {
            self.hasher.update(&(part.len() as u64).to_be_bytes());
            self.hasher.update(part);
        }
    }

    fn finish(self) -> Copied {
        Copied { rows: self.rows, digest: self.hasher.finish() }
    }
}

/// The most rows, and bytes, that are written at once.
const BATCH_ROWS: usize = 1000;
const BATCH_BYTES: usize = 1024 * 1024;
const PROGRESS_EVERY_ROWS: u64 = 20_000;

fn fill(it: &Move, source: &Path, part: &Path) -> Result<Copied> {
    let of_source = |cause| MoveError::Source { name: it.name, path: source.into(), cause };
    let of_target = |cause| MoveError::Target { name: it.name, cause };
    let old = Store::rebuildable(source).map_err(of_source)?;
    let new = Store::durable(part, it.name).map_err(of_target)?;
    let mut tally = RowTally::default();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut write = |key: Vec<u8>, value: Vec<u8>, last: bool| -> Result<()> {
        if !last {
            tally.add(&key, &value);
            bytes += key.len() + value.len();
            if tally.rows.is_multiple_of(PROGRESS_EVERY_ROWS) {
                let told = format!("upgrading the state: copied {} rows of the {}", tally.rows, it.name);
                manager::status(&format!("starting: {told}"));
                log::info!(event = "rows_being_copied", store = it.name, rows = tally.rows; "{told}");
            }
            batch.push((key, value));
        }
        if last || batch.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
            let rows = std::mem::take(&mut batch);
            bytes = 0;
            let written: durable::Result<()> = new.write(|staged| {
                rows.into_iter().for_each(|(key, value)| staged.insert(key, value));
                Ok(())
            });
            written.map_err(of_target)?;
        }
        Ok(())
    };
    let broken = |key: &[u8]| {
        let row = String::from_utf8_lossy(key.split(|byte| *byte == b'/').next().unwrap_or_default()).into_owned();
        of_source(DurableError::Damaged { path: source.into(), cause: format!("a piece of a row of {row} is missing") })
    };
    // The row whose pieces are being read, and the number of pieces so far.
    let mut whole: Option<(Vec<u8>, Vec<u8>, u32)> = None;
    for row in old.scan("") {
        let (key, value): (Bytes, Bytes) = row.map_err(of_source)?;
        if !(it.takes)(&key) {
            continue;
        }
        let piece = (it.piece_of)(&key);
        if let Some((of, number)) = piece
            && let Some((key, whole, pieces)) = &mut whole
            && *key == of
        {
            if number != *pieces {
                return Err(broken(&key[..]));
            }
            whole.extend_from_slice(&value);
            *pieces += 1;
            continue;
        }
        if let Some((key, value, _)) = whole.take() {
            write(key, value, false)?;
        }
        match piece {
            Some((of, 0)) => whole = Some((of.to_vec(), value.to_vec(), 1)),
            Some((of, _)) => return Err(broken(of)),
            None => write(key.to_vec(), value.to_vec(), false)?,
        }
    }
    if let Some((key, value, _)) = whole.take() {
        write(key, value, false)?;
    }
    write(Vec::new(), Vec::new(), true)?;
    new.commit_blocking().map_err(of_target)?;
    Ok(tally.finish())
}

fn read_back(it: &Move, part: &Path) -> Result<Copied> {
    let of_target = |cause| MoveError::Target { name: it.name, cause };
    let new = Store::durable(part, it.name).map_err(of_target)?;
    let mut tally = RowTally::default();
    for row in new.scan("") {
        let (key, value) = row.map_err(of_target)?;
        tally.add(&key, &value);
    }
    Ok(tally.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &Store, key: &[u8], value: &[u8]) {
        let written: durable::Result<()> = store.write(|staged| {
            staged.insert(key, value);
            Ok(())
        });
        written.unwrap();
    }

    fn piece(key: &[u8], number: u32) -> Vec<u8> {
        [key, b"#", &number.to_be_bytes()].concat()
    }

    fn version(number: u64) -> Vec<u8> {
        [b"version/", &number.to_be_bytes()[..]].concat()
    }

    /// The state as format 4 stored it, in `records/` and `hot/`.
    fn prepared() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let records = Store::rebuildable(&directory.path().join("records")).unwrap();
        put(&records, b"host/00000001", b"a host");
        // The number of a piece follows the byte 35.
        for number in [1, 35] {
            for (at, text) in ["{\"body\":", "\"abc\"", "}"].iter().enumerate() {
                put(&records, &piece(&version(number), at as u32), text.as_bytes());
            }
        }
        let hot = Store::rebuildable(&directory.path().join("hot")).unwrap();
        for (key, value) in [("node", "n"), ("last-batch", "2"), ("outbox/00000002", "[]"), ("host/1", "cached")] {
            put(&hot, key.as_bytes(), value.as_bytes());
        }
        put(&hot, &piece(b"refreshed", 0), b"{");
        put(&hot, &piece(b"refreshed", 1), b"}");
        directory
    }

    fn rows(directory: &Path, name: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let store = Store::durable(&directory.join(name), name).unwrap();
        store.scan("").map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
    }

    fn row(key: &[u8], value: &str) -> (Vec<u8>, Vec<u8>) {
        (key.to_vec(), value.as_bytes().to_vec())
    }

    #[test]
    fn rows_arrive_whole_and_each_step_may_be_repeated() {
        let prepared = prepared();
        let directory = prepared.path();
        for _ in 0..2 {
            build(directory).unwrap();
        }
        assert!(holds_sled(&directory.join("records")) && !directory.join("outbox").exists());
        for _ in 0..2 {
            switch(directory).unwrap();
            build(directory).unwrap();
        }
        for _ in 0..2 {
            clean(directory).unwrap();
        }
        let whole = "{\"body\":\"abc\"}";
        assert_eq!(
            rows(directory, "records"),
            [row(b"host/00000001", "a host"), row(&version(1), whole), row(&version(35), whole)]
        );
        assert_eq!(
            rows(directory, "outbox"),
            [row(b"last-batch", "2"), row(b"node", "n"), row(b"outbox/00000002", "[]"), row(b"refreshed", "{}")]
        );
        assert!(!holds_sled(&directory.join("records")) && holds_sled(&directory.join("hot")));
        let left = ["records.upgrade", "outbox.upgrade"].map(|name| directory.join(name).exists());
        assert_eq!(left, [false, false]);
    }

    #[test]
    fn a_row_that_was_changed_or_lost_on_the_way_is_noticed() {
        for lost in [false, true] {
            let prepared = prepared();
            let (source, part) = (prepared.path().join("records"), prepared.path().join("records.upgrade"));
            let copied = fill(&MOVES[0], &source, &part).unwrap();
            assert_eq!(read_back(&MOVES[0], &part).unwrap(), copied);
            let store = Store::durable(&part, "records").unwrap();
            let damaged: durable::Result<()> = store.write(|staged| {
                if lost {
                    staged.remove(version(35));
                } else {
                    staged.insert(version(35), "{\"body\":\"abd\"}");
                }
                Ok(())
            });
            damaged.unwrap();
            drop(store);
            assert_ne!(read_back(&MOVES[0], &part).unwrap(), copied);
        }
    }

    #[test]
    fn a_damaged_new_file_is_noticed_and_the_old_rows_stay() {
        let prepared = prepared();
        let (source, part) = (prepared.path().join("records"), prepared.path().join("records.upgrade"));
        fill(&MOVES[0], &source, &part).unwrap();
        let file = part.join(NEW_FILE);
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.windows(6).position(|window| window == b"a host").unwrap();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(read_back(&MOVES[0], &part), Err(MoveError::Target { .. })));
        assert!(holds_sled(&source));
        build(prepared.path()).unwrap();
    }

    #[test]
    fn a_missing_piece_is_told_and_nothing_is_switched() {
        for missing in [0, 1] {
            let prepared = prepared();
            let records = Store::rebuildable(&prepared.path().join("records")).unwrap();
            let removed: durable::Result<()> = records.write(|staged| {
                staged.remove(piece(&version(35), missing));
                Ok(())
            });
            removed.unwrap();
            drop(records);
            let error = build(prepared.path()).unwrap_err();
            assert!(matches!(error, MoveError::Source { name: "records", .. }), "{error}");
            assert!(error.to_string().contains("version"), "{error}");
        }
    }

    /// An upgrade that was reverted by hand, and is repeated after the older version ran.
    #[test]
    fn a_new_file_beside_older_rows_is_set_aside() {
        let prepared = prepared();
        let directory = prepared.path();
        let stale = Store::durable(&directory.join("outbox"), "outbox").unwrap();
        put(&stale, b"last-batch", b"1");
        drop(stale);
        let elsewhere = tempfile::tempdir().unwrap();
        drop(Store::durable(elsewhere.path(), "records").unwrap());
        std::fs::copy(elsewhere.path().join(NEW_FILE), directory.join("records").join(NEW_FILE)).unwrap();
        set_stale_aside(directory).unwrap();
        build(directory).unwrap();
        switch(directory).unwrap();
        assert_eq!(rows(directory, "outbox")[0], row(b"last-batch", "2"));
        assert_eq!(rows(directory, "records").len(), 3);
        assert!(
            directory.join("outbox.stale/rows.redb").exists() && directory.join("records/rows.redb.stale").exists()
        );
    }
}
