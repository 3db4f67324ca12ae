//! The format of the state directory: `state_dir/format`, a number. Every opener of the state checks it first.
//!
//! A directory without the file is new; if it has records, it is of format 1 (version 0.1.0, which wrote no number). A
//! format newer than this version knows is refused. An older one is upgraded in place ([`prepare`]):
//!
//! 1. Copy `records/`, `hot/` and the master key's file to `before-format-N.part`; flush every file.
//! 2. Rename the copy to `before-format-N`, replacing an older one.
//! 3. Write `upgrading`: from here on the copy is complete.
//! 4. Build the new stores next to the old ones, and compare them ([`upgrade::build`]).
//! 5. Write `format`. An older version would take the result of the next step for an empty state; from here on
//!    it refuses.
//! 6. Switch to the new stores ([`upgrade::switch`]), and remove the old ones ([`upgrade::clean`]).
//! 7. Remove `upgrading`.
//!
//! After a crash at any line, the next start repeats the rest: before 3 with a new copy, after 3 with the existing one,
//! after 5 with the stores that were not switched yet. Before 5, only files with new names exist, and an older version
//! still works as before. Each step may be repeated. Both small files are replaced as a whole and flushed.
//!
//! It knows nothing about the content of the records.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::files;
use super::upgrade::{self, MoveError};

/// The format that this version writes.
pub const CURRENT: u32 = 5;

const MARKER: &str = "format";
const UPGRADING: &str = "upgrading";
const COPIED: [&str; 3] = ["records", "hot", "master.key"];

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(
        "the state directory {} has format {found}, and this version of codex-authd knows formats up to {CURRENT}: \
         install the version that wrote it or a newer one; to go back for good, put the files of its before-format-{found} \
         in their places",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{} does not contain a format number; restore it from a backup together with the other files", .0.display())]
    Unreadable(PathBuf),
    #[error(
        "cannot copy {} aside before the state is upgraded to format {CURRENT}: {cause}; nothing was changed: make room \
         for a second copy of the records and hot state, and start again",
        path.display()
    )]
    Copy { path: PathBuf, cause: io::Error },
    #[error("cannot upgrade the state to format {CURRENT}: {}: {cause}; correct that, then start again", path.display())]
    Io { path: PathBuf, cause: io::Error },
    /// The old records cannot be read, for example because of damage. `restore` replaces them by a backup.
    #[error(
        "cannot upgrade the state to format {CURRENT}: the records of the older format cannot be read ({0}). Nothing was \
         switched; restore a backup: codex-authd restore DIR"
    )]
    OldRecords(MoveError),
    #[error(
        "cannot upgrade the state to format {CURRENT}: hot state of the older format cannot be read ({cause}). Nothing was \
         switched. To go on without hot state, move {} away; this loses telemetry that is not in the records yet",
        path.display()
    )]
    OldHot { path: PathBuf, cause: MoveError },
    #[error("cannot upgrade the state to format {CURRENT}: {0}; correct that, then start again")]
    Move(MoveError),
}

type Result<T> = std::result::Result<T, FormatError>;

/// Checks the format of `directory`, which must be locked and not opened yet. An older format is copied aside and
/// upgraded. This takes a while: do not call it in an async task.
pub fn prepare(directory: &Path) -> Result<()> {
    let is_copied = read(&directory.join(UPGRADING))? == Some(CURRENT);
    let from = match read(&directory.join(MARKER))? {
        Some(found) if found > CURRENT => return Err(FormatError::Newer { path: directory.into(), found }),
        // A crash happened after step 5.
        Some(CURRENT) if is_copied => read(&directory.join(copy_name()).join(MARKER))?.unwrap_or(1),
        Some(CURRENT) => return remove_file(&directory.join(UPGRADING)),
        Some(older) => older,
        // Written before any records exist, so that new records are never taken for older ones.
        None if !directory.join("records").exists() => return write(directory, MARKER),
        None => 1,
    };
    super::manager::status(&format!("starting: upgrading the state from format {from} to {CURRENT}"));
    let copy = directory.join(copy_name());
    log::info!(
        event = "upgrading", from, to = CURRENT, copy:% = copy.display();
        "upgrading the state from format {from} to {CURRENT}; a copy of the old state is in {}", copy.display()
    );
    if read(&directory.join(MARKER))? != Some(CURRENT) {
        if !is_copied {
            copy_aside(directory, from)?;
            write(directory, UPGRADING)?;
        }
        upgrade::set_stale_aside(directory).map_err(of_move)?;
    }
    upgrade::build(directory).map_err(of_move)?;
    write(directory, MARKER)?;
    upgrade::switch(directory).map_err(of_move)?;
    upgrade::clean(directory).map_err(of_move)?;
    remove_file(&directory.join(UPGRADING))?;
    log::info!(
        event = "upgraded", from, to = CURRENT, copy:% = copy.display();
        "the state now has format {CURRENT}; a copy of the old state is in {}: remove it when you will not go back",
        copy.display()
    );
    Ok(())
}

fn of_move(error: MoveError) -> FormatError {
    match error {
        MoveError::Source { name: "records", .. } => FormatError::OldRecords(error),
        MoveError::Source { ref path, .. } => FormatError::OldHot { path: path.clone(), cause: error },
        error => FormatError::Move(error),
    }
}

/// Reads the format number of `directory` without changing anything; `None` if there is none. An interrupted upgrade
/// counts as the older format.
pub fn look(directory: &Path) -> Result<Option<u32>> {
    let found = read(&directory.join(MARKER))?;
    let is_under_way = found == Some(CURRENT) && directory.join(UPGRADING).exists();
    Ok(if is_under_way { Some(CURRENT - 1) } else { found })
}

fn copy_name() -> String {
    format!("before-format-{CURRENT}")
}

fn copy_aside(directory: &Path, from: u32) -> Result<()> {
    let part = directory.join(format!("{}.part", copy_name()));
    let whole = directory.join(copy_name());
    files::remove(&part).map_err(|cause| FormatError::Io { path: part.clone(), cause })?;
    if let Err((path, cause)) = copy_into(directory, &part, from) {
        // If this fails, the next start removes the rest.
        let _ = files::remove(&part);
        return Err(FormatError::Copy { path, cause });
    }
    let failed = |cause| FormatError::Io { path: whole.clone(), cause };
    // An older copy, from an upgrade that was reverted.
    files::remove(&whole).map_err(failed)?;
    std::fs::rename(&part, &whole).and_then(|()| files::sync_names(directory)).map_err(failed)
}

fn copy_into(directory: &Path, part: &Path, from: u32) -> std::result::Result<(), (PathBuf, io::Error)> {
    let of = |path: &Path| {
        let path = path.to_path_buf();
        move |cause| (path, cause)
    };
    make_directory(part).map_err(of(part))?;
    for name in COPIED {
        let source = directory.join(name);
        match std::fs::metadata(&source) {
            Ok(about) if about.is_dir() => copy_directory(&source, &part.join(name)).map_err(of(&source))?,
            Ok(_) => copy_file(&source, &part.join(name)).map_err(of(&source))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err((source, error)),
        }
    }
    // If the copy is put back, this file tells its format.
    write_number(&part.join(MARKER), from).map_err(of(part))?;
    files::sync_names(part).map_err(of(part))
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    make_directory(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else if kind.is_file() {
            copy_file(&entry.path(), &target)?;
        }
    }
    files::sync_names(to)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mode = source.metadata()?.mode() & 0o777;
    let mut target = OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            length => target.write_all(&buffer[..length])?,
        }
    }
    target.sync_all()
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(FormatError::Io { path: path.into(), cause }),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<u32>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(FormatError::Io { path: path.into(), cause }),
    };
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().parse().ok());
    number.filter(|number| *number > 0).map(Some).ok_or_else(|| FormatError::Unreadable(path.into()))
}

/// Writes the current number to the file of this name, atomically.
fn write(directory: &Path, name: &str) -> Result<()> {
    let path = directory.join(name);
    let temporary = directory.join(format!("{name}.tmp"));
    let written = write_number(&temporary, CURRENT)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .and_then(|()| files::sync_names(directory));
    written.map_err(|cause| FormatError::Io { path, cause })
}

fn write_number(path: &Path, number: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{number}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::Store;

    fn is_refused(text: &str, reason: &str) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(MARKER), text).unwrap();
        let error = prepare(directory.path()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn a_number_that_is_newer_or_none_is_refused() {
        is_refused("6\n", "install the version that wrote it");
        is_refused("4294967295", "before-format-4294967295");
        for text in ["", "0", "-1", "two", "4294967296", "2 3", "\u{fffd}"] {
            is_refused(text, "does not contain a format number");
        }
    }

    #[test]
    fn a_new_directory_gets_the_number_before_there_are_records() {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path()).unwrap();
        assert_eq!(std::fs::read_to_string(directory.path().join(MARKER)).unwrap(), "5\n");
        std::fs::create_dir(directory.path().join("records")).unwrap();
        prepare(directory.path()).unwrap();
        assert!(!directory.path().join(copy_name()).exists());
    }

    fn older(directory: &Path, row: &str) {
        let records = Store::rebuildable(&directory.join("records")).unwrap();
        let written: crate::durable::Result<()> = records.write(|staged| {
            staged.insert("host/1", row);
            Ok(())
        });
        written.unwrap();
        drop(records);
        std::fs::write(directory.join(MARKER), "4\n").unwrap();
    }

    fn upgraded(directory: &Path) -> Vec<u8> {
        prepare(directory).unwrap();
        assert_eq!(look(directory).unwrap(), Some(CURRENT));
        assert!(!directory.join(UPGRADING).exists());
        Store::durable(&directory.join("records"), "records").unwrap().get("host/1").unwrap().unwrap().to_vec()
    }

    /// The state that a crash during the steps leaves.
    #[test]
    fn the_copy_is_made_once_however_often_the_steps_begin_anew() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        older(directory, "good");
        let copied = |name: &str| std::fs::read(directory.join(copy_name()).join(name));
        // sled cannot be opened without it.
        let conf = directory.join("records/conf");
        std::fs::remove_file(&conf).unwrap();
        std::fs::create_dir(&conf).unwrap();
        let before = std::fs::read(directory.join("records/db")).unwrap();
        assert!(matches!(prepare(directory), Err(FormatError::OldRecords(_))));
        assert_eq!(look(directory).unwrap(), Some(4), "an older version can go on");
        assert_eq!(copied("records/db").unwrap(), before);
        let is_copied = || directory.join(copy_name()).join("records/conf").is_dir();
        assert!(is_copied());
        std::fs::remove_dir(&conf).unwrap();
        assert_eq!(upgraded(directory), b"good");
        assert!(is_copied(), "the copy of before was whole");

        // Reverted by hand, used, and upgraded again: now it is a different state.
        std::fs::remove_dir_all(directory.join("records")).unwrap();
        older(directory, "later");
        let before = std::fs::read(directory.join("records/db")).unwrap();
        assert_eq!(upgraded(directory), b"later");
        assert_eq!(copied("records/db").unwrap(), before);
        assert!(!is_copied());
    }

    /// The number is written before the first store is switched: from there on an older version refuses.
    #[test]
    fn a_state_with_the_number_and_without_the_switch_is_switched() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        older(directory, "good");
        copy_aside(directory, 4).unwrap();
        write(directory, UPGRADING).unwrap();
        write(directory, MARKER).unwrap();
        assert_eq!(look(directory).unwrap(), Some(4), "it is for the daemon to go on");
        assert_eq!(upgraded(directory), b"good");
    }
}
