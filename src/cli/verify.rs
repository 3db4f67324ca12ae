//! `codex-authd backup --verify DIR`: makes all checks that a restore makes before it changes anything. It needs only
//! the backup: no daemon, no state directory, no configuration. It changes nothing.

use std::path::Path;

use serde_json::{Value, json};

use super::CliError;
use super::archive::{Archive, read_master_key};
use super::passphrase::{Passphrase, for_opening};
use super::print;
use super::progress::show;
use crate::seal::MasterKey;
use crate::service::transfer::ProgressReporter;
use crate::service::transfer::check::{Checked, check};

pub async fn run(
    directory: &Path,
    passphrase_file: Option<&Path>,
    master_key: Option<&Path>,
    json: bool,
) -> Result<(), CliError> {
    let archive = Archive::open(directory)?;
    let passphrase = match master_key {
        None if archive.has_keys() || passphrase_file.is_some() => {
            for_opening(passphrase_file, "do not open sealed values")?
        }
        _ => None,
    };
    let key = master_key.map(read_master_key).transpose()?;
    let verified = verify(&archive, passphrase.as_ref(), key).await?;
    print::done(json, &verified.json(directory), &verified.sentence(directory))?;
    Ok(())
}

pub struct Verified {
    checked: Checked,
    rows: u64,
    made: time::OffsetDateTime,
    has_keys: bool,
    is_opened: bool,
}

/// Checks everything again, from the files.
pub async fn verify(
    archive: &Archive,
    passphrase: Option<&Passphrase>,
    master_key: Option<MasterKey>,
) -> Result<Verified, CliError> {
    let key = match passphrase {
        Some(passphrase) => Some(archive.keys(passphrase)?.master_key),
        None => master_key,
    };
    let (reporter, progress) = ProgressReporter::new();
    let checking = async {
        let checked = check(&archive.manifest, &archive.rows, key.as_ref(), &reporter).await;
        drop(reporter);
        checked
    };
    let (checked, ()) = tokio::join!(checking, show(progress));
    Ok(Verified {
        checked: checked.map_err(|error| CliError::Refused(error.to_string()))?,
        rows: archive.manifest.rows,
        made: archive.manifest.created_at,
        has_keys: archive.has_keys(),
        is_opened: key.is_some(),
    })
}

impl Verified {
    fn json(&self, directory: &Path) -> Value {
        json!({
            "status": "ok",
            "directory": directory,
            "backup_of": self.made.to_string(),
            "rows": self.rows,
            "canonical_version": self.checked.canonical,
            "sealed_values": self.checked.sealed,
            "has_keys": self.has_keys,
            "is_opened": self.is_opened,
            "unchecked": self.unchecked(),
        })
    }

    fn unchecked(&self) -> Option<String> {
        let sealed = self.checked.sealed;
        let keys = if self.has_keys { "the keys in it, and " } else { "" };
        let with = if self.has_keys { "--passphrase-file FILE" } else { "--master-key FILE" };
        (!self.is_opened).then(|| {
            format!("Not checked without a key: {keys}whether the {sealed} sealed values can be opened ({with})")
        })
    }

    fn sentence(&self, directory: &Path) -> String {
        let opened = match self.is_opened {
            true => format!(", and all {} sealed values open", self.checked.sealed),
            false => String::new(),
        };
        let canonical = match self.checked.canonical {
            Some(version) => format!("The canonical login is version {version}."),
            None => "It has no canonical login.".into(),
        };
        let whole = format!(
            "{} is unchanged since it was made on {}: {} rows, every table has its digest, the audit log is complete{opened}. {canonical}",
            directory.display(),
            print::instant(self.made),
            self.rows
        );
        [Some(whole), self.unchecked().map(|what| format!("{what}."))]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n")
    }
}
