//! The login of this host: `auth.json` in `CODEX_HOME`.
//!
//! It is changed under Codex's locks, and only if it is still what was compared. A crash at any line leaves it whole, old
//! or new. Exception: an `auth.json` that is a mount of its own is written in place; a crash there leaves a torn file,
//! which the next `cdx` replaces.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use codex_authd_client::{Secret, sha256_hex};

use crate::document::{self, Fault};
use crate::files::{self, Temporary};
use crate::home::{Home, shown};
use crate::locks::Locks;
use crate::messages::{Result, failure, say};
use crate::state::State;

/// The digest of a login that is not there.
pub const ZERO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// How much of a file is read. A longer one is no login.
const READ_LIMIT: u64 = 64 << 20;

/// `auth.json` as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Local {
    pub text: Option<Secret>,
    pub exists: bool,
    pub digest: String,
    pub last_refresh: String,
    /// Why it cannot be a login.
    pub fault: Option<Fault>,
    /// Whether Codex would renew it.
    pub is_renewable: bool,
}

/// What became of a replacement.
#[derive(Debug, PartialEq, Eq)]
pub enum Replaced {
    Done,
    /// `auth.json` has changed since it was compared.
    Changed,
    /// The document in the answer is not usable.
    Unusable(&'static str),
}

/// Reads `auth.json` once: the digest is that of the text that would be sent.
pub fn read(file: &Path) -> Result<Local> {
    let content = match files::read_limited(file, READ_LIMIT) {
        Ok(content) => Some(content),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        // As `[ -e ]`: a link in a loop does not exist.
        Err(_) if !file.exists() && fs::symlink_metadata(file).is_ok() => None,
        Err(_) => {
            return Err(failure(
                74,
                format!("{} is no file that can be read: move it away, then 'cdx --sync'", shown(file)),
            ));
        }
    };
    Ok(examine(content.as_deref()))
}

fn examine(content: Option<&[u8]>) -> Local {
    let bytes = content.unwrap_or_default();
    let examined = document::examine(bytes);
    Local {
        digest: if bytes.is_empty() { digest_of_nothing(content) } else { sha256_hex(bytes) },
        exists: content.is_some(),
        text: str::from_utf8(bytes).ok().filter(|text| !text.is_empty()).map(Secret::from),
        last_refresh: examined.last_refresh.unwrap_or_else(|| document::ZERO_DATE.to_owned()),
        fault: examined.fault,
        is_renewable: bytes.is_empty() || document::mentions(bytes, "refresh_token"),
    }
}

fn digest_of_nothing(content: Option<&[u8]>) -> String {
    content.map_or_else(|| ZERO_DIGEST.to_owned(), sha256_hex)
}

/// What replaces a login.
pub struct Replacement<'a> {
    pub text: &'a Secret,
    pub digest: &'a str,
    /// Whether the daemon has accepted the present login.
    pub is_accepted: bool,
}

/// Replaces `auth.json` by the document of an answer, if its digest matches, and if `auth.json` is still `local`.
pub async fn replace(home: &Home, state: &State, local: &Local, new: &Replacement<'_>) -> Result<Replaced> {
    let text = new.text.expose().as_bytes();
    if document::examine(text).fault.is_some() {
        return Ok(Replaced::Unusable("the daemon sent no complete login"));
    }
    if sha256_hex(text) != new.digest {
        return Ok(Replaced::Unusable("the received login does not match its digest"));
    }
    make_home(home)?;
    let target = files::resolve_links(&home.auth_file)
        .map_err(|error| failure(74, format!("{} cannot be followed: {error}", shown(&home.auth_file))))?;
    let directory = target.parent().unwrap_or(Path::new("/"));
    let no_room = || {
        failure(
            74,
            format!(
                "cannot write in {}/: it must belong to you and have space left",
                shown(directory).trim_end_matches('/')
            ),
        )
    };
    let temporary = match Temporary::write(&target, text) {
        Ok(temporary) => Some(temporary),
        // A file that is a mount of its own can be writable although its directory is not. (A full disk is another
        // matter.)
        Err(_) if files::is_writable(directory) || !target.is_file() => return Err(no_room()),
        Err(_) => None,
    };
    let _locks = Locks::take(&home.codex)
        .await
        .map_err(|name| failure(74, format!("another program holds {} for too long", shown(&home.codex.join(name)))))?;
    // Another codex may have renewed the login since it was read. Its refresh token must not be lost.
    if read(&target)?.digest != local.digest {
        return Ok(Replaced::Changed);
    }
    keep_replaced(home, state, local, new)?;
    if let Some(temporary) = temporary
        && !target.is_dir()
        && temporary.persist(&target).is_ok()
    {
        return Ok(Replaced::Done);
    }
    // A file that is a mount of its own cannot be replaced by a rename (EBUSY).
    if target.is_file() && write_in_place(&target, text).is_ok() && read(&target)?.digest == new.digest {
        return Ok(Replaced::Done);
    }
    Err(failure(74, format!("cannot replace {}", shown(&target))))
}

fn write_in_place(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut opened = OpenOptions::new().write(true).truncate(true).open(file)?;
    opened.write_all(content)?;
    opened.sync_all()
}

/// Saves a login that is replaced, if `cdx` neither fetched nor sent it.
fn keep_replaced(home: &Home, state: &State, local: &Local, new: &Replacement<'_>) -> Result<()> {
    if new.is_accepted || local.digest == new.digest || !local.exists {
        return Ok(());
    }
    if state.recall().is_some_and(|last| last.digest == local.digest) {
        return Ok(());
    }
    let kept = kept_file(home);
    let content = files::read_limited(&home.auth_file, READ_LIMIT).unwrap_or_default();
    if content.is_empty() {
        return Ok(());
    }
    let is_saved = !kept.is_dir() && sha256_hex(&content) == local.digest && files::replace(&kept, &content).is_ok();
    if !is_saved {
        return Err(failure(74, format!("cannot save the old login as {}", shown(&kept))));
    }
    say(format_args!("the old login was saved as {}", shown(&kept)));
    Ok(())
}

/// Where a login is kept that `cdx` replaced.
pub fn kept_file(home: &Home) -> std::path::PathBuf {
    home.codex.join("auth.json.cdx-replaced")
}

pub fn make_home(home: &Home) -> Result<()> {
    if home.codex.is_dir() || files::make_private_directory(&home.codex).is_ok() {
        return Ok(());
    }
    Err(failure(74, format!("cannot make {}", shown(&home.codex))))
}

/// Why codex could not save a login that it renews. It opens `auth.json` for writing, makes a new file beside it and
/// renames that. If one of these fails, the single-use refresh token is spent and the new login is lost.
pub fn cannot_save(home: &Home, local: &Local) -> Option<String> {
    if !local.is_renewable || !home.codex.is_dir() {
        return None;
    }
    let Ok(target) = files::resolve_links(&home.auth_file) else {
        return Some(format!("{} is a broken link", shown(&home.auth_file)));
    };
    if target.exists() && OpenOptions::new().append(true).open(&target).is_err() {
        return Some(format!(
            "{} cannot be written; it must be yours, with mode 0600, on a disk that is not read-only",
            shown(&target)
        ));
    }
    if files::is_mount_point(&target) {
        return Some(format!(
            "{} is mounted by itself and cannot be replaced; mount its directory instead",
            shown(&target)
        ));
    }
    for name in ["auth.lock", "auth.json.lock"] {
        let lock = home.codex.join(name);
        if lock.exists() && !files::is_writable(&lock) {
            return Some(format!("{} cannot be written; it must be yours", shown(&lock)));
        }
    }
    // More than a login, and less than the blocks that a full disk may still have.
    if Temporary::write_quickly(&target, &[b' '; 65_536]).is_err() {
        let directory = target.parent().unwrap_or(Path::new("/"));
        return Some(format!(
            "{}/ takes no new file; it must be yours, not read-only, and have space left",
            shown(directory).trim_end_matches('/')
        ));
    }
    None
}

/// Which file makes Codex keep its login somewhere else than in `auth.json`; the message.
pub fn keyring(home: &Home) -> Option<String> {
    const MAX_CONFIG_BYTES: u64 = 4 << 20;
    #[derive(serde::Deserialize)]
    struct CodexConfig {
        cli_auth_credentials_store: Option<String>,
    }
    let files =
        ["/etc/codex/managed_config.toml".into(), home.codex.join("config.toml"), "/etc/codex/config.toml".into()];
    for file in files {
        let Ok(content) = files::read_limited(&file, MAX_CONFIG_BYTES) else { continue };
        let Some(config) = str::from_utf8(&content).ok().and_then(|text| toml::from_str::<CodexConfig>(text).ok())
        else {
            continue; // Codex refuses it, and says so.
        };
        match config.cli_auth_credentials_store.as_deref() {
            None => {}
            Some("file") => return None,
            Some(other) => {
                return Some(format!(
                    "{} sets cli_auth_credentials_store = \"{}\": codex neither reads the fleet's login reliably nor saves a renewed one in auth.json; set it to \"file\"",
                    shown(&file),
                    crate::messages::clean(other, 40)
                ));
            }
        }
    }
    None
}
