//! Names of the backups that `codex-authd backup --into DIR` makes, and removal of old ones.
//!
//! Only directories with such a name that hold a finished backup and nothing else are removed, and only after the new
//! backup was read back. A directory is renamed before its removal, so that a partial backup is never counted. The next
//! run removes what a crash leaves of it. An interrupted backup has no manifest: it is neither counted nor removed.

use std::io;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

use super::CliError;
use super::archive::{FILES, MANIFEST, remove};

const PREFIX: &str = "authd-";
const REMOVING: &str = ".removing";

/// `authd-20261126T205200Z`
pub fn name(at: OffsetDateTime) -> String {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    format!("{PREFIX}{}", at.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default())
}

/// Removes all but the newest `count`. `new` is always kept, even if the clock was set back. Returns the removed ones.
pub fn keep(directory: &Path, count: usize, new: &Path) -> Result<Vec<PathBuf>, CliError> {
    let failed = |cause| CliError::Write { path: directory.to_path_buf(), cause };
    let mut finished = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, file_name) = (entry.path(), entry.file_name());
        let Some(file_name) = file_name.to_str() else { continue };
        if let Some(left) = file_name.strip_suffix(REMOVING) {
            if is_ours(left) && holds_nothing_else(&path).map_err(failed)? {
                remove(&path).map_err(failed)?;
            }
        } else if is_ours(file_name) && path != new && is_finished(&path).map_err(failed)? {
            finished.push(path);
        }
    }
    finished.sort();
    let too_many = (finished.len() + 1).saturating_sub(count.max(1));
    finished.truncate(too_many);
    for path in &finished {
        let mut going = path.clone().into_os_string();
        going.push(REMOVING);
        std::fs::rename(path, &going).and_then(|()| remove(Path::new(&going))).map_err(failed)?;
    }
    Ok(finished)
}

fn is_ours(name: &str) -> bool {
    let Some(at) = name.strip_prefix(PREFIX) else { return false };
    let shape = |(place, byte): (usize, u8)| match place {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    at.len() == 16 && at.bytes().enumerate().all(shape)
}

fn is_finished(path: &Path) -> io::Result<bool> {
    Ok(holds_nothing_else(path)? && path.join(MANIFEST).symlink_metadata().is_ok_and(|manifest| manifest.is_file()))
}

/// Whether `path` is a directory (not a link to one) with only files of a backup.
fn holds_nothing_else(path: &Path) -> io::Result<bool> {
    if !path.symlink_metadata()?.is_dir() {
        return Ok(false);
    }
    for entry in std::fs::read_dir(path)? {
        if !entry?.file_name().to_str().is_some_and(|name| FILES.contains(&name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn backup(directory: &Path, name: &str, files: &[&str]) -> PathBuf {
        let path = directory.join(name);
        std::fs::create_dir(&path).unwrap();
        for file in files {
            std::fs::write(path.join(file), "").unwrap();
        }
        path
    }

    fn left(directory: &Path) -> Vec<String> {
        let names = std::fs::read_dir(directory).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_stay_and_nothing_goes_that_is_not_a_finished_backup_of_this_naming() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let whole = ["records.jsonl", "keys.sealed", "manifest.json"];
        for day in 1..=5 {
            backup(at, &format!("authd-2026110{day}T030000Z"), &whole);
        }
        let foreign = [
            ("authd-2026-10-01", &whole[..]),
            ("authd-20261001T030000Z.old", &whole),
            ("authd-2026100١T03000Z", &whole),
            ("precious", &whole),
            // An interrupted backup, and one with a file of the operator in it.
            ("authd-20261001T030000Z", &["records.jsonl"]),
            ("authd-20261002T030000Z", &["records.jsonl", "manifest.json", "notes.txt"]),
        ];
        for (name, files) in foreign {
            backup(at, name, files);
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let aim = backup(elsewhere.path(), "aim", &whole);
        std::os::unix::fs::symlink(&aim, at.join("authd-20261003T030000Z")).unwrap();
        std::fs::write(at.join("authd-20261004T030000Z"), "a file").unwrap();
        // A crash left this during a removal.
        backup(at, "authd-20260901T030000Z.removing", &["manifest.json"]);
        let before = left(at);

        // Made after the clock was set back.
        let new = backup(at, "authd-20261005T030000Z", &whole);
        let gone = keep(at, 3, &new).unwrap();
        let gone: Vec<_> = gone.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(gone, ["authd-20261101T030000Z", "authd-20261102T030000Z", "authd-20261103T030000Z"]);
        let mut expected = before;
        expected.retain(|name| !gone.contains(&name.as_str()) && !name.ends_with(".removing"));
        expected.push("authd-20261005T030000Z".into());
        expected.sort();
        assert_eq!(left(at), expected);
        assert_eq!(left(&aim).len(), 3);
        assert!(keep(at, 3, &new).unwrap().is_empty());
        assert_eq!(keep(at, 1, &new).unwrap().len(), 2);
        assert!(new.join("manifest.json").exists());
    }

    #[test]
    fn a_backup_is_called_by_its_time_in_utc() {
        let name = name(datetime!(2026-11-26 22:52:07 +02:00));
        assert_eq!(name, "authd-20261126T205207Z");
        assert!(is_ours(&name));
    }
}
