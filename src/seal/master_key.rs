//! The master key: 32 bytes that are never in the records, from a systemd credential or a 0600 file.
//!
//! The file is made once and never written again. A temporary file beside it is written and flushed, then linked to the
//! final name, which fails if that exists; then the directory is flushed. A crash before the link leaves no key, and a
//! temporary file that the next boot removes. A crash after it leaves a whole key. No value is sealed with a key before
//! [`MasterKey::load_or_create`] has returned it, and it returns only a key that survives a power cut.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{Result, SealError};
use crate::config::credentials;
use crate::platform::{SecureRandom, random};

/// The name within systemd's credentials directory.
const CREDENTIAL: &str = "master.key";
/// How often to start over if another process makes the key at the same time. A process that loses once finds the
/// winner's file, so the second round succeeds.
const ROUNDS: usize = 3;

#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl MasterKey {
    /// The key from the credential if there is one, else from the file at `path`, else a new one, written there. The
    /// second part is true if the key is new.
    ///
    /// A new master key cannot open data keys that the records hold already: in that case call [`MasterKey::load`].
    pub fn load_or_create(path: &Path, credential_dir: Option<&Path>, rng: &dyn SecureRandom) -> Result<(Self, bool)> {
        for _ in 0..ROUNDS {
            if let Some(key) = Self::load(path, credential_dir)? {
                return Ok((key, false));
            }
            if let Some(key) = create(path, rng)? {
                return Ok((key, true));
            }
        }
        Err(key_file(path, "made")(io::Error::other("another process keeps making and removing it")))
    }

    /// The key from the credential if there is one, else from the file at `path`.
    pub fn load(path: &Path, credential_dir: Option<&Path>) -> Result<Option<Self>> {
        if let Some(credential) = credential_dir.and_then(|directory| credentials::file(directory, CREDENTIAL))
            // systemd gives the service's user access by an ACL, whose mask shows as the group's bits.
            && let Some(key) = read(&credential, 0o007)?
        {
            return Ok(Some(key));
        }
        let Some(key) = read(path, 0o077)? else { return Ok(None) };
        // The process that made it may have died before the name was durable.
        sync_directory_of(path)?;
        sweep(path);
        Ok(Some(key))
    }

    /// The key in a file outside the state directory, such as a copy.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        read(path, 0o077)
    }

    /// A key with these bytes, for tests of other rooms and for restoring.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Parses the content of a key file; `None`: it is not a key.
    pub fn from_text(text: &str) -> Option<Self> {
        parse(text.as_bytes())
    }

    /// The content of its file: a secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.bytes()))
    }

    pub fn is(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }

    /// Writes the key to `path`, over any file there. The key is power-safe when this returns. A crash leaves the old
    /// file or the new one.
    pub fn write(&self, path: &Path) -> Result<()> {
        let temporary = path.with_extension("key.new");
        let written = match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => write_temporary(&temporary, self).and_then(|()| fs::rename(&temporary, path)),
        };
        written.map_err(key_file(path, "written"))?;
        sync_directory_of(path)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reads a key file; `None`: there is no such file. `forbidden`: the bits that its mode may not have.
fn read(path: &Path, forbidden: u32) -> Result<Option<MasterKey>> {
    let opened = OpenOptions::new()
        .read(true)
        // Non-blocking, so that a FIFO in its place does not block the boot.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(SealError::KeyFileIsALink { path: path.to_owned() });
        }
        Err(error) => return Err(key_file(path, "opened")(error)),
    };
    let metadata = file.metadata().map_err(key_file(path, "read"))?;
    if !metadata.is_file() {
        return Err(SealError::KeyFileIsNone { path: path.to_owned() });
    }
    if metadata.mode() & forbidden != 0 {
        return Err(SealError::KeyFileIsOpen { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(256));
    file.take(128).read_to_end(&mut bytes).map_err(key_file(path, "read"))?;
    parse(&bytes).map(Some).ok_or_else(|| SealError::KeyFileIsMalformed { path: path.to_owned() })
}

fn parse(bytes: &[u8]) -> Option<MasterKey> {
    let mut key = Zeroizing::new([0; 32]);
    if bytes.len() == key.len() {
        key.copy_from_slice(bytes);
    } else {
        hex::decode_to_slice(bytes.strip_suffix(b"\n").unwrap_or(bytes), key.as_mut_slice()).ok()?;
    }
    Some(MasterKey(key))
}

/// `None`: another process was first.
fn create(path: &Path, rng: &dyn SecureRandom) -> Result<Option<MasterKey>> {
    let key = MasterKey(Zeroizing::new(random(rng)));
    let (directory, prefix) = temporary_names(path);
    let temporary = directory.join(format!("{prefix}{}{TEMPORARY}", hex::encode(random::<8>(rng))));

    let written = write_temporary(&temporary, &key);
    let linked = written.and_then(|()| fs::hard_link(&temporary, path));
    // It may be gone already; otherwise the next boot removes it.
    let _ = fs::remove_file(&temporary);
    match linked {
        Ok(()) => {
            sync_directory_of(path)?;
            sweep(path);
            Ok(Some(key))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        // The winner removed our temporary file. If the directory itself is missing, there is no winner.
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => Ok(None),
        Err(error) => Err(key_file(path, "made")(error)),
    }
}

fn write_temporary(temporary: &Path, key: &MasterKey) -> io::Result<()> {
    let mut text = Zeroizing::new([0; 65]);
    hex::encode_to_slice(key.bytes(), &mut text[..64]).map_err(io::Error::other)?;
    text[64] = b'\n';
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(text.as_slice())?;
    file.sync_all()
}

fn sync_directory_of(path: &Path) -> Result<()> {
    let (directory, _) = temporary_names(path);
    File::open(&directory).and_then(|directory| directory.sync_all()).map_err(key_file(&directory, "flushed"))
}

/// Removes temporary files that a crash left. Called only when the key exists: a process that is still making one
/// notices when it links, and takes the existing key.
fn sweep(path: &Path) {
    let (directory, prefix) = temporary_names(path);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(TEMPORARY) {
            // A left-over file is harmless; the next boot tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

const TEMPORARY: &str = ".tmp";

/// The directory of `path`, and the prefix of temporary files in it.
fn temporary_names(path: &Path) -> (PathBuf, String) {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (directory, format!(".{name}."))
}

fn key_file(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> SealError {
    let path = path.to_owned();
    move |source| SealError::KeyFile { path, doing, source }
}
