//! The files of a backup directory: `records.jsonl` (one row per line), `keys.sealed` (only with a passphrase), and
//! `manifest.json`.
//!
//! The manifest is written last and atomically, after the other files are on the disk. A crash before that leaves a
//! directory without a manifest, which restore refuses. Every file belongs to the caller and has mode 0600.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::CliError;
use super::passphrase::Passphrase;
use crate::daemon::owner::as_caller;
use crate::model::digest::Digest;
use crate::seal::{MasterKey, passphrase};
use crate::service::transfer::keys::{self, Keys};
use crate::service::transfer::{Manifest, Rows};

pub const ROWS: &str = "records.jsonl";
pub const MANIFEST: &str = "manifest.json";
pub const KEYS: &str = "keys.sealed";
const MANIFEST_PART: &str = "manifest.json.part";
/// All files that a backup may have.
pub const FILES: [&str; 3] = [MANIFEST, KEYS, ROWS];
/// A manifest has a few kilobytes.
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;

/// A backup that is being written. If it is dropped before [`New::finish`], its files are removed: half a backup is not
/// a backup.
pub struct New {
    pub directory: PathBuf,
    was_made: bool,
    is_whole: bool,
}

impl New {
    /// Begins a backup in a directory that is empty or does not exist.
    pub fn begin(directory: &Path) -> Result<Self, CliError> {
        let failed = |cause| CliError::Write { path: directory.to_path_buf(), cause };
        as_caller(|| {
            let was_made = match DirBuilder::new().mode(0o700).create(directory) {
                Ok(()) => true,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
                Err(error) => return Err(failed(error)),
            };
            if !was_made && std::fs::read_dir(directory).map_err(failed)?.next().is_some() {
                return Err(CliError::Refused(format!(
                    "{} is not empty: give an empty or new directory for this backup",
                    directory.display()
                )));
            }
            Ok(Self { directory: directory.to_path_buf(), was_made, is_whole: false })
        })
    }

    pub fn rows(&self) -> std::io::Result<File> {
        as_caller(|| create(&self.directory.join(ROWS)))
    }

    pub fn keys(&self, sealed: &str) -> std::io::Result<()> {
        as_caller(|| write(&self.directory.join(KEYS), sealed.as_bytes()))
    }

    /// `manifest`: the text of the manifest file.
    pub fn finish(mut self, manifest: &[u8]) -> std::io::Result<()> {
        as_caller(|| {
            let part = self.directory.join(MANIFEST_PART);
            write(&part, manifest)?;
            // From here on the backup may be complete, so a drop must not remove it.
            self.is_whole = true;
            std::fs::rename(&part, self.directory.join(MANIFEST))?;
            File::open(&self.directory)?.sync_all()?;
            // Flush the name of the directory itself, too.
            match self.directory.canonicalize()?.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        })
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        as_caller(|| {
            for name in FILES.into_iter().chain([MANIFEST_PART]) {
                let _ = std::fs::remove_file(self.directory.join(name));
            }
            if self.was_made {
                let _ = std::fs::remove_dir(&self.directory);
            }
        });
    }
}

pub fn manifest_text(manifest: &Manifest) -> std::io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(manifest)?;
    text.push(b'\n');
    Ok(text)
}

/// Creates a new file, with mode 0600 from the start.
pub fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

pub fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// A backup that is open for reading. Its rows are open already, so the identity of later reads does not matter.
pub struct Archive {
    pub manifest: Manifest,
    pub rows: Rows,
    digest: Digest,
    sealed: Option<String>,
    directory: PathBuf,
}

impl Archive {
    pub fn open(directory: &Path) -> Result<Self, CliError> {
        as_caller(|| {
            let at = |name: &str| directory.join(name);
            let read = |name, most| text(&at(name), most).map_err(|cause| CliError::Read { path: at(name), cause });
            let text = read(MANIFEST, MAX_MANIFEST_BYTES)?;
            let unreadable =
                |error| CliError::Refused(format!("{} is not a backup manifest: {error}", at(MANIFEST).display()));
            let manifest: Manifest = serde_json::from_str(&text).map_err(unreadable)?;
            let sealed = match read(KEYS, passphrase::MAX_SEALED_BYTES as u64 + 1) {
                Err(CliError::Read { cause, .. }) if cause.kind() == ErrorKind::NotFound => None,
                read => Some(read?),
            };
            if manifest.has_keys != sealed.is_some() {
                let found = if manifest.has_keys { "has no file" } else { "has a file that does not belong to it:" };
                let refusal =
                    format!("the backup is not as it was made: it {found} {}; nothing was changed", at(KEYS).display());
                return Err(CliError::Refused(refusal));
            }
            let rows = Rows::open(&at(ROWS)).map_err(|cause| CliError::Read { path: at(ROWS), cause })?;
            let digest = Digest::of(text.as_bytes());
            Ok(Self { manifest, rows, digest, sealed, directory: directory.to_path_buf() })
        })
    }

    pub fn has_keys(&self) -> bool {
        self.sealed.is_some()
    }

    pub fn keys(&self, passphrase: &Passphrase) -> Result<Keys, CliError> {
        let sealed = self.sealed.as_ref().ok_or_else(|| {
            CliError::Refused(format!(
                "{} has no keys in it: it was made without a passphrase, and needs its master key: \
                 --master-key FILE",
                self.directory.display()
            ))
        })?;
        keys::open(passphrase, &self.digest, sealed).map_err(|error| CliError::Refused(error.to_string()))
    }
}

pub fn read_master_key(path: &Path) -> Result<MasterKey, CliError> {
    let missing = || CliError::Refused(format!("there is no master key in {}", path.display()));
    as_caller(|| MasterKey::read(path)).map_err(|error| CliError::Refused(error.to_string()))?.ok_or_else(missing)
}

fn text(path: &Path, most: u64) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// Removes the files of a backup, and the directory if it is empty then. The manifest goes last, so that a partly
/// removed backup is not taken for one that was never finished.
pub fn remove(directory: &Path) -> std::io::Result<()> {
    for name in [ROWS, KEYS, MANIFEST] {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::remove_dir(directory)
}

/// Writes the secrets that exist nowhere else in the clear into a new directory: the master key and the configuration.
pub fn extract(keys: &Keys, directory: &Path) -> Result<Vec<PathBuf>, CliError> {
    let failed = |cause| CliError::Write { path: directory.to_path_buf(), cause };
    DirBuilder::new().mode(0o700).create(directory).map_err(failed)?;
    let key = directory.join("master.key");
    keys.master_key.write(&key).map_err(|error| CliError::Refused(error.to_string()))?;
    let mut written = vec![key];
    if let Some(configuration) = &keys.configuration {
        let path = directory.join("config.toml");
        write(&path, configuration.as_bytes()).map_err(failed)?;
        written.push(path);
    }
    Ok(written)
}
