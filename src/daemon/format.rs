//! The format of the state directory: `state_dir/format`, a number. Whoever opens the state asks here first.
//!
//! A directory without it is new, or, if it has records, format 1 (version 0.1.0, which wrote no number). A newer format
//! than this version knows is refused. An older one is upgraded in place:
//!
//! 1. `records/`, `hot/` and the master key's file are copied to `before-format-N.part`, every file flushed;
//! 2. that is renamed to `before-format-N`, in the place of an older one;
//! 3. `upgrading` is written: from here on the copy is whole, and the records are not what they were;
//! 4. the records do the steps, one for each format in between ([`Embedded::upgrade`]);
//! 5. `format` is written, and `upgrading` removed.
//!
//! A crash at any line ends in a start that does it again: before 3 with a new copy, after it with the one that is
//! there, so that a half-upgraded state never takes the place of the good copy. A step may therefore be repeated and has
//! to bear that. Both small files are replaced as a whole and flushed.
//!
//! It knows nothing of what the records hold.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::records::RecordsError;
use crate::records::embedded::Embedded;

/// What this version writes.
pub const CURRENT: u32 = 4;

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
    #[error("cannot upgrade the records to format {CURRENT}: {0}; start again once that is mended")]
    Records(#[from] RecordsError),
}

type Result<T> = std::result::Result<T, FormatError>;

/// An upgrade that is to be done once the records are open.
pub struct Upgrade {
    directory: PathBuf,
    from: u32,
}

/// Looks at the format of `directory`, which must be locked. What is older is copied aside, and has to be upgraded.
pub fn prepare(directory: &Path) -> Result<Option<Upgrade>> {
    let from = match read(&directory.join(MARKER))? {
        Some(found) if found > CURRENT => return Err(FormatError::Newer { path: directory.into(), found }),
        Some(CURRENT) => {
            remove_file(&directory.join(UPGRADING))?;
            return Ok(None);
        }
        Some(older) => older,
        // Before there are any records, so that these are never taken for older ones.
        None if !directory.join("records").exists() => {
            write(directory, MARKER)?;
            return Ok(None);
        }
        None => 1,
    };
    super::manager::status(&format!("starting: the state is upgraded from format {from} to {CURRENT}"));
    log::info!(event = "upgrading", from, to = CURRENT; "the state is upgraded from format {from} to {CURRENT}");
    if read(&directory.join(UPGRADING))?.is_none() {
        copy_aside(directory, from)?;
        write(directory, UPGRADING)?;
    }
    Ok(Some(Upgrade { directory: directory.into(), from }))
}

impl Upgrade {
    pub async fn run(self, records: &Embedded) -> Result<()> {
        for from in self.from..CURRENT {
            records.upgrade(from).await?;
        }
        write(&self.directory, MARKER)?;
        remove_file(&self.directory.join(UPGRADING))?;
        let copy = self.directory.join(copy_name());
        log::info!(
            event = "upgraded", from = self.from, to = CURRENT, copy:% = copy.display();
            "the state has format {CURRENT} now; as it was before it stands in {}: remove that once you will not go back",
            copy.display()
        );
        Ok(())
    }
}

/// The number that stands in `directory`, for who only looks; `None`: there is none.
pub fn look(directory: &Path) -> Result<Option<u32>> {
    read(&directory.join(MARKER))
}

fn copy_name() -> String {
    format!("before-format-{CURRENT}")
}

fn copy_aside(directory: &Path, from: u32) -> Result<()> {
    let part = directory.join(format!("{}.part", copy_name()));
    let whole = directory.join(copy_name());
    remove_directory(&part).map_err(|cause| FormatError::Io { path: part.clone(), cause })?;
    if let Err((path, cause)) = copy_into(directory, &part, from) {
        // What is left of it is removed by the next start otherwise.
        let _ = remove_directory(&part);
        return Err(FormatError::Copy { path, cause });
    }
    let failed = |cause| FormatError::Io { path: whole.clone(), cause };
    // An older one: of an upgrade that was taken back.
    remove_directory(&whole).map_err(failed)?;
    std::fs::rename(&part, &whole).and_then(|()| sync_directory(directory)).map_err(failed)
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
    sync_directory(part).map_err(of(part))
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
    sync_directory(to)
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

fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(FormatError::Io { path: path.into(), cause }),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
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
        .and_then(|()| sync_directory(directory));
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

    fn is_refused(text: &str, reason: &str) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(MARKER), text).unwrap();
        let error = prepare(directory.path()).err().expect("refused").to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn a_number_that_is_newer_or_none_is_refused() {
        is_refused("5\n", "install the version that wrote it");
        is_refused("4294967295", "before-format-4294967295");
        for text in ["", "0", "-1", "two", "4294967296", "2 3", "\u{fffd}"] {
            is_refused(text, "does not hold the number of a format");
        }
    }

    #[test]
    fn a_new_directory_gets_the_number_before_there_are_records() {
        let directory = tempfile::tempdir().unwrap();
        assert!(prepare(directory.path()).unwrap().is_none());
        assert_eq!(std::fs::read_to_string(directory.path().join(MARKER)).unwrap(), "4\n");
        std::fs::create_dir(directory.path().join("records")).unwrap();
        assert!(prepare(directory.path()).unwrap().is_none());
        assert!(!directory.path().join(copy_name()).exists());
    }

    /// The older state, as a crash during the steps leaves it.
    #[test]
    fn the_copy_is_made_once_however_often_the_steps_begin_anew() {
        let directory = tempfile::tempdir().unwrap();
        let records = directory.path().join("records");
        let copied = directory.path().join(copy_name()).join("records/db");
        std::fs::create_dir(&records).unwrap();
        std::fs::write(records.join("db"), "good").unwrap();
        assert!(prepare(directory.path()).unwrap().is_some());
        std::fs::write(records.join("db"), "half upgraded").unwrap();
        assert!(prepare(directory.path()).unwrap().is_some());
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "good");

        // Taken back by hand, used, and upgraded again: that is another state.
        std::fs::remove_file(directory.path().join(UPGRADING)).unwrap();
        std::fs::write(records.join("db"), "later").unwrap();
        assert!(prepare(directory.path()).unwrap().is_some());
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "later");
    }
}
