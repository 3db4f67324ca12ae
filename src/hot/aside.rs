//! Sets aside unusable hot state: renames it to `hot.broken-DATE`, so that the cause can be examined. Only the newest
//! one is kept.
//!
//! A crash leaves the directory at its old or its new name. An older one may be left beside it, which the next call
//! removes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

/// The name up to the date.
const PREFIX: &str = "hot.broken-";

/// The directories in `state_dir` that were set aside, newest last.
pub fn set_aside(state_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state_dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)));
    let mut found: Vec<_> = ours.map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Sets `directory` aside; returns its new path. `None`: it could only be emptied, because it is a file system of its
/// own, or it was already gone.
pub(super) fn put_aside(directory: &Path, now: OffsetDateTime) -> io::Result<Option<PathBuf>> {
    let state_dir = directory.parent().unwrap_or(Path::new("."));
    let older = set_aside(state_dir);
    let date = now.format(format_description!("[year][month][day]T[hour][minute][second]Z"));
    let target = state_dir.join(format!("{PREFIX}{}", date.map_err(io::Error::other)?));
    if older.contains(&target) {
        remove(&target)?;
    }
    match std::fs::rename(directory, &target) {
        Ok(()) => {}
        // Another process has removed it already, so there is nothing to keep.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::CrossesDevices) => {
            empty(directory)?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    File::open(state_dir)?.sync_all()?;
    for older in older.iter().filter(|older| **older != target) {
        remove(older)?;
    }
    Ok(Some(target))
}

/// Removes the content of `directory` and, if possible, `directory` itself.
pub(super) fn discard(directory: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(directory) {
        Ok(about) if about.is_dir() => empty(directory),
        Ok(_) => std::fs::remove_file(directory),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        remove(&entry?.path())?;
    }
    File::open(directory)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::conformance::at;

    #[test]
    fn the_newest_is_kept_whatever_it_is() {
        let state = tempfile::tempdir().unwrap();
        let hot = state.path().join("hot");
        let names = || -> Vec<String> {
            let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            set_aside(state.path()).iter().map(name).collect()
        };
        for (seconds, content) in [(0, "first"), (0, "second"), (1, "third")] {
            std::fs::create_dir_all(hot.join("blobs")).unwrap();
            std::fs::write(hot.join("db"), content).unwrap();
            let target = put_aside(&hot, at(seconds)).unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(target.join("db")).unwrap(), content);
            assert!(!hot.exists());
            assert_eq!(names().len(), 1, "{:?}", names());
        }
        // A file in place of the directory.
        std::fs::write(&hot, "foreign").unwrap();
        let target = put_aside(&hot, at(2)).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(target).unwrap(), "foreign");
        assert_eq!(names().len(), 1);
        assert_eq!(put_aside(&hot, at(3)).unwrap(), None, "there is no directory to set aside");
        assert!(names()[0].starts_with("hot.broken-20") && names()[0].ends_with('Z'), "{:?}", names());
    }
}
