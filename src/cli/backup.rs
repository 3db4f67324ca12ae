//! `codex-authd backup DIR`, `backup --into DIR [--keep N]`: copies everything, and reads the copy back to check it.
//!
//! With a passphrase, the keys are sealed and stored with the rows. Then a new machine needs only the backup.

use std::io::{BufWriter, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use poem::Body;
use poem::http::Method;
use serde_json::json;

use super::archive::{Archive, New, manifest_text, remove};
use super::client::Client;
use super::passphrase::{Passphrase, for_sealing};
use super::progress::{Bar, next_line, read_line};
use super::verify::verify;
use super::{CliError, keep, print};
use crate::api::{BackupRead, KeysRequest, Line, SealedKeys};
use crate::config::Config;
use crate::daemon::owner::as_caller;
use crate::model::digest::Digest;
use crate::platform::{Clock as _, System};
use crate::records::copy::{Row, Table, Tally};
use crate::service::transfer::Manifest;

#[derive(Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["directory", "into", "verify"])))]
pub struct Arguments {
    /// Directory for the backup; it must be empty or not exist
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Make the backup in a new subdirectory named by the time, such as authd-20261126T205200Z
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Afterwards remove all but the newest N of these backups
    #[arg(long, value_name = "N", requires = "into", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Check an existing backup, with nothing but its files, and change nothing
    #[arg(long, value_name = "DIR")]
    pub verify: Option<PathBuf>,
    /// Read the passphrase that seals the keys from the first line of FILE, or of standard input (-)
    ///
    /// Default: the systemd credential backup.passphrase, or a prompt. Without a passphrase, the backup does not
    /// contain the keys.
    #[arg(long, value_name = "FILE", conflicts_with = "master_key")]
    pub passphrase_file: Option<PathBuf>,
    /// With --verify: the master key, for a backup without a passphrase
    #[arg(long, value_name = "FILE", requires = "verify")]
    pub master_key: Option<PathBuf>,
}

pub async fn run(arguments: &Arguments, client: &Client, config: &Config, json: bool) -> Result<(), CliError> {
    let directory = match (&arguments.into, &arguments.directory) {
        (Some(into), _) => {
            as_caller(|| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(into))
                .map_err(|cause| CliError::Write { path: into.clone(), cause })?;
            into.join(keep::name(System.now()))
        }
        (None, directory) => directory.clone().unwrap_or_default(),
    };
    let new = New::begin(&directory)?;
    let passphrase = for_sealing(arguments.passphrase_file.as_deref())?;
    let manifest = copy(new, client, passphrase.as_ref()).await?;
    if let Err(error) = read_back(&directory, passphrase.as_ref()).await {
        let _ = as_caller(|| remove(&directory));
        return Err(CliError::Refused(format!("the new backup cannot be read back, and was removed: {error}")));
    }
    let read = BackupRead { made_at: manifest.created_at, has_keys: manifest.has_keys };
    if let Err(error) = client.post::<BackupRead>("/admin/backup/verified", &read).await {
        eprintln!("codex-authd: the backup is good, but reporting that to the daemon failed: {error}");
    }
    let removed = match (&arguments.into, arguments.keep) {
        (Some(into), Some(count)) => as_caller(|| keep::keep(into, count as usize, &directory))?,
        _ => Vec::new(),
    };
    let key = master_key(config);
    let hosts = manifest.tables.get(&Table::Hosts).map(|count| count.rows).unwrap_or_default();
    let keys = match passphrase {
        Some(_) => {
            "The backup contains the keys, sealed under the passphrase. The passphrase is enough to restore a new machine;\n\
                    without it, nothing can be restored."
                .to_owned()
        }
        None => format!(
            "Secrets in the backup are sealed under the master key, which is not in the backup: keep a copy of {key}\n\
             in another place. Without the master key, the secrets in the backup cannot be opened.\n\
             (To store the key in the backup, sealed under a passphrase: --passphrase-file FILE.)"
        ),
    };
    let gone = match removed.len() {
        0 => String::new(),
        count => format!("\n{count} older backups were removed."),
    };
    let sentence = format!(
        "{} rows ({hosts} hosts, removed ones included) are in {}, and were read back to check them.\n{keys}{gone}",
        manifest.rows,
        directory.display()
    );
    let summary = json!({
        "status": "ok",
        "directory": directory,
        "manifest": manifest,
        "master_key": key,
        "has_keys": manifest.has_keys,
        "removed": removed,
    });
    print::done(json, &summary, &sentence)?;
    Ok(())
}

/// The location of the master key, for people.
fn master_key(config: &Config) -> String {
    let file = config.state_dir.join("master.key");
    if file.exists() { file.display().to_string() } else { "the systemd credential master.key".into() }
}

async fn copy(new: New, client: &Client, passphrase: Option<&Passphrase>) -> Result<Manifest, CliError> {
    let failed = |cause| CliError::Write { path: new.directory.clone(), cause };
    let mut file = BufWriter::new(new.rows().map_err(failed)?);
    let mut lines = client.lines(Method::GET, "/admin/backup", Body::empty()).await?;
    let (mut bar, mut about, mut tally) = (Bar::new(), 0, Tally::default());
    let mut manifest = loop {
        let Some(line) = next_line(&mut lines).await? else {
            return Err(CliError::Refused("the daemon ended before the backup was complete: back up again".into()));
        };
        if line.starts_with("{\"table\":") {
            let row: Row = serde_json::from_str(&line)
                .map_err(|error| CliError::Refused(format!("a row cannot be read: {error}")))?;
            tally.add(row.table(), &line);
            writeln!(file, "{line}").map_err(failed)?;
            bar.show("copying", tally.rows(), about);
            continue;
        }
        match read_line::<()>(&line)? {
            Line::About(rows) => about = rows,
            Line::Error(error) => return Err(CliError::Refused(error.message)),
            Line::Manifest(manifest) => break manifest,
            Line::Progress(_) | Line::Done(()) => {}
        }
    };
    if tally.counts().into_iter().any(|(table, count)| manifest.count(table) != Some(count)) {
        return Err(CliError::Refused("rows were lost or changed on the way from the daemon: back up again".into()));
    }
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    manifest.has_keys = passphrase.is_some();
    let text = manifest_text(&manifest).map_err(failed)?;
    if let Some(passphrase) = passphrase {
        let request =
            KeysRequest { passphrase: passphrase.to_string(), manifest_sha256: Digest::of(&text).to_string() };
        let SealedKeys { sealed } = client.post("/admin/backup/keys", &request).await?;
        new.keys(&sealed).map_err(failed)?;
    }
    let directory = new.directory.clone();
    new.finish(&text).map_err(|cause| CliError::Write { path: directory, cause })?;
    Ok(manifest)
}

async fn read_back(directory: &Path, passphrase: Option<&Passphrase>) -> Result<(), CliError> {
    verify(&Archive::open(directory)?, passphrase, None).await.map(|_| ())
}
