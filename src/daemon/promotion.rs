//! Replaces the present store by a restored one, at a start, before anything is opened.
//!
//! The restore has filled `records.restored`, and written `master.key.restored` if the backup has another master key.
//! It writes `restored` last: then both are complete ([`announce`]). A start that finds `restored` does the following
//! ([`apply`]):
//!
//! 1. Move `records` into `before-restore.part`, with a copy of the master key's file.
//! 2. Rename `records.restored` to `records`.
//! 3. Rename `master.key.restored` to `master.key`.
//! 4. Rename `before-restore.part` to `before-restore`, replacing an older one.
//! 5. Remove `restored`.
//!
//! Each step is skipped if it was done already, so after a crash at any of them the next start goes on there. Hot state
//! stays: it detects that it belongs to other records, and its outbox goes into the new ones. Files of an interrupted
//! restore without `restored` are removed by the next restore. This module knows nothing about the content of the
//! records.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::files;
use crate::seal::MasterKey;

const RECORDS: &str = "records";
pub const BESIDE: &str = "records.restored";
const KEY: &str = "master.key";
const KEY_BESIDE: &str = "master.key.restored";
const BEFORE: &str = "before-restore";
const BEFORE_PART: &str = "before-restore.part";
const MARKER: &str = "restored";

/// Removes files of an earlier attempt. Must not be called between [`announce`] and [`apply`].
pub fn clear(directory: &Path) -> io::Result<()> {
    if directory.join(MARKER).exists() {
        return Err(io::Error::other(
            "an earlier restore waits for the next start of the daemon: start the daemon first",
        ));
    }
    files::remove(&directory.join(BESIDE))?;
    match std::fs::remove_file(directory.join(KEY_BESIDE)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// After this, the next start promotes the restored store.
pub fn announce(directory: &Path, master_key: Option<&MasterKey>) -> io::Result<()> {
    if let Some(key) = master_key {
        key.write(&directory.join(KEY_BESIDE)).map_err(io::Error::other)?;
    }
    let marker = directory.join(MARKER);
    let temporary = directory.join("restored.tmp");
    File::create(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, &marker)?;
    files::sync_names(directory)
}

/// Returns whether a restored store was promoted. The directory must be locked.
pub fn apply(directory: &Path) -> io::Result<bool> {
    if !directory.join(MARKER).exists() {
        return Ok(false);
    }
    let [records, beside, key, key_beside] = [RECORDS, BESIDE, KEY, KEY_BESIDE].map(|name| directory.join(name));
    let [before, part] = [BEFORE, BEFORE_PART].map(|name| directory.join(name));
    if beside.exists() && records.exists() {
        if !part.exists() {
            DirBuilder::new().mode(0o700).create(&part)?;
        }
        if key.exists() {
            // The copy keeps the mode.
            std::fs::copy(&key, part.join(KEY))?;
            File::open(part.join(KEY))?.sync_all()?;
        }
        std::fs::rename(&records, part.join(RECORDS))?;
        files::sync_names(&part)?;
        files::sync_names(directory)?;
    }
    if beside.exists() {
        std::fs::rename(&beside, &records)?;
        files::sync_names(directory)?;
    }
    if key_beside.exists() {
        std::fs::rename(&key_beside, &key)?;
        files::sync_names(directory)?;
    }
    if part.exists() {
        files::remove(&before)?;
        std::fs::rename(&part, &before)?;
        files::sync_names(directory)?;
    }
    std::fs::remove_file(directory.join(MARKER))?;
    files::sync_names(directory)?;
    log::warn!(event = "restored", before:% = before.display(); "the restored store is now in use; the previous one is in {}: remove it when you will not go back", before.display());
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The files that a crash leaves after each step of [`apply`].
    fn crashed(line: usize) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write(&at("restored"), "");
        write(&at("before-restore/records/db"), "older");
        match line {
            0 | 1 => {
                write(&at("records/db"), "old");
                write(&at("master.key"), "old key");
            }
            _ => write(&at("before-restore.part/records/db"), "old"),
        }
        if line >= 1 {
            write(&at("before-restore.part/master.key"), if line == 1 { "torn" } else { "old key" });
        }
        if line >= 2 {
            write(&at("master.key"), if line < 4 { "old key" } else { "new key" });
        }
        write(&at(if line < 3 { "records.restored/db" } else { "records/db" }), "new");
        if line < 4 {
            write(&at("master.key.restored"), "new key");
        }
        if line >= 5 {
            std::fs::remove_dir_all(at("before-restore")).unwrap();
            if line >= 6 {
                std::fs::rename(at("before-restore.part"), at("before-restore")).unwrap();
            }
        }
        directory
    }

    #[test]
    fn a_crash_at_any_line_ends_in_a_start_that_goes_on() {
        for line in 0..=6 {
            let directory = crashed(line);
            assert!(apply(directory.path()).unwrap(), "{line}");
            let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap_or_default();
            let found =
                ["records/db", "master.key", "before-restore/records/db", "before-restore/master.key"].map(read);
            assert_eq!(found, ["new", "new key", "old", "old key"], "{line}");
            let mut left: Vec<_> =
                std::fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
            left.sort();
            assert_eq!(left, ["before-restore", "master.key", "records"], "{line}");
            assert!(!apply(directory.path()).unwrap(), "once");
        }
    }

    #[test]
    fn what_is_not_announced_is_not_taken_and_what_is_stays() {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("records.restored/db"), "half");
        assert!(!apply(directory.path()).unwrap());
        clear(directory.path()).unwrap();
        assert!(!directory.path().join("records.restored").exists());
        write(&directory.path().join("records.restored/db"), "whole");
        announce(directory.path(), None).unwrap();
        assert!(clear(directory.path()).is_err());
        assert!(apply(directory.path()).unwrap());
        assert_eq!(std::fs::read_to_string(directory.path().join("records/db")).unwrap(), "whole");
    }
}
