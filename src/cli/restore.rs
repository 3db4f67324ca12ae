//! `codex-authd restore DIR`
//!
//! A running daemon receives the backup, checks it and replaces itself. Without a daemon, the same happens in this
//! process on the state directory, which may be empty: a new machine needs no first start. The keys are opened here,
//! with the passphrase. Once the state is being changed, only the rows of the backup are read, and their file is open
//! by then.

use std::io::{BufRead as _, IsTerminal as _, Seek as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use poem::Body;
use poem::http::Method;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::archive::{self, Archive};
use super::client::Client;
use super::passphrase::for_opening;
use super::progress::{follow, show};
use super::{CliError, configuration, print};
use crate::api::{OverviewBody, RestoreHead};
use crate::config::Config;
use crate::daemon::owner::as_caller;
use crate::daemon::state;
use crate::service::transfer::keys::Keys;
use crate::service::transfer::{Backup, Manifest, ProgressReporter, Restored};

#[derive(Args)]
pub struct Arguments {
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Read the passphrase that seals the keys of the backup from the first line of FILE, or of standard input (-)
    ///
    /// Default: the systemd credential backup.passphrase, or a prompt.
    #[arg(long, value_name = "FILE", conflicts_with = "master_key")]
    passphrase_file: Option<PathBuf>,
    /// The master key of the backup, if it is neither the present one nor in the backup
    #[arg(long, value_name = "FILE")]
    master_key: Option<PathBuf>,
    /// Also restore the configuration file
    #[arg(long, conflicts_with = "master_key")]
    with_config: bool,
    /// Only write the backup's master key and configuration, unencrypted, into the new directory OUT
    #[arg(long, value_name = "OUT", conflicts_with_all = ["master_key", "with_config", "yes"])]
    extract: Option<PathBuf>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// How long a daemon may take to replace itself.
const REPLACEMENT_TIMEOUT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub async fn run(arguments: &Arguments, config: &Config, json: bool) -> Result<(), CliError> {
    let archive = Archive::open(&arguments.directory)?;
    let keys = keys(arguments, &archive)?;
    let needs_keys = arguments.with_config || arguments.extract.is_some();
    let configuration = match &keys {
        Some(keys) => keys.configuration.clone(),
        None if needs_keys => {
            let refusal = "this needs the keys of the backup: give its passphrase with --passphrase-file FILE";
            return Err(CliError::Refused(refusal.into()));
        }
        None => None,
    };
    if let (Some(out), Some(keys)) = (&arguments.extract, &keys) {
        let written = as_caller(|| archive::extract(keys, out))?;
        let sentence = format!(
            "Wrote to {}, unencrypted: {}. Remove them after you have installed them.",
            out.display(),
            written.iter().filter_map(|path| path.file_name()?.to_str()).collect::<Vec<_>>().join(", ")
        );
        print::done(json, &json!({ "status": "ok", "files": written }), &sentence)?;
        return Ok(());
    }
    if arguments.with_config {
        let text = configuration.as_ref().ok_or_else(|| {
            CliError::Refused("the backup contains no configuration file: restore again without --with-config".into())
        })?;
        configuration::check(config, text)?;
    }
    let master_key = match keys {
        Some(keys) => Some(keys.master_key),
        None => arguments.master_key.as_deref().map(archive::read_master_key).transpose()?,
    };
    let Archive { manifest, rows, .. } = archive;
    let backup = Backup { manifest, rows, master_key };
    if !arguments.yes {
        confirm(&backup.manifest)?;
    }
    let made = backup.manifest.created_at;
    let is_running = Client::is_there(config).await;
    let restored = if is_running {
        let restored = by_daemon(backup, config).await?;
        wait_for(&restored, config).await?;
        restored
    } else {
        here(backup, config).await?
    };
    let mut said =
        vec![format!("The records of {} are restored. The audit log has an entry about it.", print::instant(made))];
    said.extend(restored.restored_version.map(spent));
    let place = configuration::place(config);
    let is_other = configuration.as_ref().is_some_and(|text| as_caller(|| configuration::differs(config, text)));
    if arguments.with_config
        && let Some(text) = &configuration
        && is_other
    {
        as_caller(|| configuration::put_back(config, text))?;
        let then = if is_running { ": restart the daemon for it (systemctl restart codex-authd)" } else { "" };
        said.push(format!("{} was restored{then}.", place.display()));
    } else if is_other {
        said.push(format!(
            "The configuration of the backup differs from {}: restore again --with-config to install it, or extract \
             it with --extract OUT.",
            place.display()
        ));
    }
    let summary = json!({
        "status": "ok",
        "backup_of": made.to_string(),
        "restored": restored,
        "configuration_differs": configuration.is_some().then_some(is_other),
        "configuration_restored": arguments.with_config,
    });
    print::done(json, &summary, &said.join("\n"))?;
    Ok(())
}

/// The hint about a login that may be spent, which the daemon does not prove by itself.
fn spent(version: u64) -> String {
    format!(
        "The canonical login, version {version}, may have been refreshed since the backup. Then it is spent. Hosts get \
         it,\nbut it is not proved by running Codex. Sign in on a machine with Codex and upload the login: codex-authd auth upload \
         ~/.codex/auth.json.\nA newer login from a host also replaces it. If nothing was refreshed since the backup: codex-authd \
         runner run --restored"
    )
}

/// Opens the keys in the backup, if there is a passphrase for them.
fn keys(arguments: &Arguments, archive: &Archive) -> Result<Option<Keys>, CliError> {
    let option = arguments.passphrase_file.as_deref();
    if arguments.master_key.is_some() || (option.is_none() && !archive.has_keys()) {
        return Ok(None);
    }
    let passphrase = for_opening(option, "use the present master key")?;
    passphrase.map(|passphrase| archive.keys(&passphrase)).transpose()
}

fn confirm(manifest: &Manifest) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Refused("this replaces all present records: confirm it with --yes".into()));
    }
    print::note(&format!(
        "This replaces all records with those of {} ({} rows). All later changes are lost.\nType yes to go on: ",
        print::instant(manifest.created_at),
        manifest.rows
    ));
    let mut answer = String::new();
    match std::io::stdin().lock().read_line(&mut answer) {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        _ => Err(CliError::Refused("nothing was changed".into())),
    }
}

async fn by_daemon(backup: Backup, config: &Config) -> Result<Restored, CliError> {
    let client = Client::of_daemon(config).await?;
    let Backup { manifest, rows, master_key } = backup;
    let mut file = rows.into_file();
    file.rewind().map_err(|cause| CliError::Read { path: "the rows of the backup".into(), cause })?;
    let file = tokio::fs::File::from_std(file);
    let head = RestoreHead { manifest, master_key: master_key.map(|key| key.to_text()) };
    let mut head = Zeroizing::new(serde_json::to_vec(&head).map_err(|error| CliError::Refused(error.to_string()))?);
    head.push(b'\n');
    let body = Body::from_async_read(std::io::Cursor::new(head).chain(file));
    follow(client.lines(Method::POST, "/admin/restore", body).await?).await
}

/// Waits until the daemon has replaced itself. All daemons on the same records do so.
async fn wait_for(restored: &Restored, config: &Config) -> Result<(), CliError> {
    let begun = Instant::now();
    let incarnation = restored.incarnation.to_string();
    loop {
        // A new client each time: connections of an earlier one lead to the old process. It must never open the state
        // itself, which the new process is about to open.
        if let Ok(client) = Client::of_daemon(config).await {
            let overview: Result<OverviewBody, _> = client.get("/admin/overview").await;
            if overview.is_ok_and(|overview| overview.store.incarnation.as_ref() == Some(&incarnation)) {
                return Ok(());
            }
        }
        if begun.elapsed() > REPLACEMENT_TIMEOUT {
            let late = "the backup is restored, but the daemon has not restarted on it yet: check its log";
            return Err(CliError::Refused(late.into()));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn here(backup: Backup, config: &Config) -> Result<Restored, CliError> {
    let (reporter, progress) = ProgressReporter::new();
    let restoring = state::restore(config, backup, nix::unistd::getuid().as_raw(), reporter);
    let (restored, ()) = tokio::join!(restoring, show(progress));
    Ok(restored.map_err(crate::daemon::DaemonError::from)?)
}
