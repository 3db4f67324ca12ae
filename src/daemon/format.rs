//! The format of the state directory: `state_dir/format`, a number. Whoever opens the state asks here first.
//!
//! A directory without it is new, or, if it has records, format 1 (version 0.1.0, which wrote no number). A newer format
//! than this version knows is refused. An older one is upgraded in place ([`prepare`]):
//!
//! 1. `records/`, `hot/` and the master key's file are copied to `before-format-N.part`, every file flushed;
//! 2. that is renamed to `before-format-N`, in the place of an older one;
//! 3. `upgrading` is written: from here on the copy is whole;
//! 4. the new stores are built beside the old ones and compared ([`upgrade::build`]);
//! 5. `format` is written: an older version would take what the next step leaves for an empty state, and refuses now;
//! 6. the new stores are switched to ([`upgrade::switch`]), and what the old ones were is removed ([`upgrade::clean`]);
//! 7. `upgrading` is removed.
//!
//! A crash at any line ends in a start that does it again: before 3 with a new copy, after it with the one that is
//! there; after 5 whatever was not switched yet. Until 5 nothing but new names was written, and an older version goes on
//! as if nothing had happened. Each step may be repeated. Both small files are replaced as a whole and flushed.
//!
//! It knows nothing of what the records hold.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::files;
use super::upgrade::{self, MoveError};

/// What this version writes.
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
    #[error("{} does not hold the number of a format; put it back from a backup together with the rest", .0.display())]
    Unreadable(PathBuf),
    #[error(
        "cannot copy {} aside before the state is upgraded to format {CURRENT}: {cause}; nothing was changed: make room \
         for a second copy of the records and hot state, and start again",
        path.display()
    )]
    Copy { path: PathBuf, cause: io::Error },
    #[error("cannot upgrade the state to format {CURRENT}: {}: {cause}; start again once that is mended", path.display())]
    Io { path: PathBuf, cause: io::Error },
    /// Damaged, or of nobody: `restore` puts a backup in its place.
    #[error(
        "cannot upgrade the state to format {CURRENT}: the records of the older format cannot be read ({0}). Nothing was \
         switched; put a backup back: codex-authd restore DIR"
    )]
    OldRecords(MoveError),
    #[error(
        "cannot upgrade the state to format {CURRENT}: hot state of the older format cannot be read ({cause}). Nothing was \
         switched. What is lost without it is telemetry that is not in the records yet: move {} away to go on without it",
        path.display()
    )]
    OldHot { path: PathBuf, cause: MoveError },
    #[error("cannot upgrade the state to format {CURRENT}: {0}; start again once that is mended")]
    Move(MoveError),
}

type Result<T> = std::result::Result<T, FormatError>;

/// Looks at the format of `directory`, which must be locked and not be opened yet. What is older is copied aside and
/// upgraded, which takes a while: not for an async task.
pub fn prepare(directory: &Path) -> Result<()> {
    let is_copied = read(&directory.join(UPGRADING))? == Some(CURRENT);
    let from = match read(&directory.join(MARKER))? {
        Some(found) if found > CURRENT => return Err(FormatError::Newer { path: directory.into(), found }),
        // From step 5 on.
        Some(CURRENT) if is_copied => read(&directory.join(copy_name()).join(MARKER))?.unwrap_or(1),
        Some(CURRENT) => return remove_file(&directory.join(UPGRADING)),
        Some(older) => older,
        // Before there are any records, so that these are never taken for older ones.
        None if !directory.join("records").exists() => return write(directory, MARKER),
        None => 1,
    };
    super::manager::status(&format!("starting: the state is upgraded from format {from} to {CURRENT}"));
    let copy = directory.join(copy_name());
    log::info!(
        event = "upgrading", from, to = CURRENT, copy:% = copy.display();
        "the state is upgraded from format {from} to {CURRENT}; as it is now it is kept in {}", copy.display()
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
        "the state has format {CURRENT} now; as it was before it stands in {}: remove that once you will not go back",
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

/// The number that stands in `directory`, for who only looks; `None`: there is none. A state whose upgrade was cut short
/// has the older one.
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
        // What is left of it is removed by the next start otherwise.
        let _ = files::remove(&part);
        return Err(FormatError::Copy { path, cause });
    }
    let failed = |cause| FormatError::Io { path: whole.clone(), cause };
    // An older one: of an upgrade that was taken back.
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
    // Put back together with the rest, it says what that is.
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

/// Writes the current number to the file of this name, so that it is there as a whole or not at all.
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
            is_refused(text, "does not hold the number of a format");
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

    /// The older state, as a crash during the steps leaves it.
    #[test]
    fn the_copy_is_made_once_however_often_the_steps_begin_anew() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        older(directory, "good");
        let copied = |name: &str| std::fs::read(directory.join(copy_name()).join(name));
        // What sled cannot be opened with.
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

        // Taken back by hand, used, and upgraded again: that is another state.
        std::fs::remove_dir_all(directory.join("records")).unwrap();
        older(directory, "later");
        let before = std::fs::read(directory.join("records/db")).unwrap();
        assert_eq!(upgraded(directory), b"later");
        assert_eq!(copied("records/db").unwrap(), before);
        assert!(!is_copied());
    }

    /// The number is written before the first file is switched: an older version refuses from there on.
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
