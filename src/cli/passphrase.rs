//! Reads the passphrase of a backup: from a file, from standard input, from a systemd credential, or from a prompt.
//! Never from the command line, which every user of the machine can read.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::CliError;
use crate::config::credentials;
use crate::daemon::owner::as_caller;
use crate::service::people::passwords::judge_passphrase;

/// The name in systemd's credentials directory.
const CREDENTIAL: &str = "backup.passphrase";
const MAX_PASSPHRASE_BYTES: u64 = 4096;

pub type Passphrase = Zeroizing<String>;

/// Reads the passphrase from the option's file, or from the credential.
pub fn given(option: Option<&Path>) -> Result<Option<Passphrase>, CliError> {
    let path = match option {
        Some(path) if path.as_os_str() == "-" => return read(std::io::stdin(), "standard input".into()).map(Some),
        Some(path) => path.to_path_buf(),
        None => {
            let directory = credentials::directory();
            match directory.and_then(|directory| as_caller(|| credentials::file(&directory, CREDENTIAL))) {
                Some(path) => path,
                None => return Ok(None),
            }
        }
    };
    let file = as_caller(|| File::open(&path)).map_err(|cause| CliError::Read { path: path.clone(), cause })?;
    read(file, path).map(Some)
}

/// The passphrase for a new backup. `None` if none is wanted, or if there is no terminal for a prompt.
pub fn for_sealing(option: Option<&Path>) -> Result<Option<Passphrase>, CliError> {
    let found = match given(option)? {
        Some(given) => Some(given),
        None if std::io::stdin().is_terminal() => {
            let passphrase = ask("Passphrase to seal the keys under (empty: leave the keys out): ")?;
            if !passphrase.is_empty() && *ask("Again: ")? != *passphrase {
                return Err(CliError::Refused("the two passphrases differ; nothing was copied".into()));
            }
            Some(passphrase).filter(|passphrase| !passphrase.is_empty())
        }
        None => None,
    };
    // Checked before the copy begins; sealing checks it again.
    if let Some(Err(reason)) = found.as_ref().map(|passphrase| judge_passphrase(passphrase)) {
        return Err(CliError::Refused(format!("the passphrase {reason}")));
    }
    Ok(found)
}

/// The passphrase of a backup with keys. `None` if the prompt was left empty, or if there is no terminal for a prompt.
pub fn for_opening(option: Option<&Path>, otherwise: &str) -> Result<Option<Passphrase>, CliError> {
    match given(option)? {
        Some(given) => Ok(Some(given)),
        None if std::io::stdin().is_terminal() => {
            let passphrase = ask(&format!("Passphrase of the backup (empty: {otherwise}): "))?;
            Ok(Some(passphrase).filter(|passphrase| !passphrase.is_empty()))
        }
        None => Ok(None),
    }
}

fn ask(prompt: &str) -> Result<Passphrase, CliError> {
    let failed = |cause| CliError::Refused(format!("cannot ask for a passphrase here: {cause}"));
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(failed)
}

/// Reads the first line.
fn read(from: impl Read, path: PathBuf) -> Result<Passphrase, CliError> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_PASSPHRASE_BYTES as usize));
    from.take(MAX_PASSPHRASE_BYTES)
        .read_to_string(&mut text)
        .map_err(|cause| CliError::Read { path: path.clone(), cause })?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
        _ => Err(CliError::Refused(format!("there is no passphrase in the first line of {}", path.display()))),
    }
}
