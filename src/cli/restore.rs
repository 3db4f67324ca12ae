//! `codex-authd restore DIR`
//!
//! The running daemon is sent the backup, checks it and replaces itself; without one the same is done here, on the state
//! directory, which may be empty: a new machine needs no first boot.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use poem::Body;
use poem::http::Method;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::CliError;
use super::backup::{MANIFEST, ROWS};
use super::client::Client;
use super::print;
use super::progress::{Bar, follow};
use crate::api::{OverviewBody, RestoreHead};
use crate::config::Config;
use crate::daemon::state;
use crate::seal::MasterKey;
use crate::service::moving::{Backup, Manifest, Restored, Teller};

#[derive(Args)]
pub struct Arguments {
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The master key that the backup was made with, where it is not the present one
    #[arg(long, value_name = "FILE")]
    master_key: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// How long a daemon may take to come back.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(100);

pub async fn run(arguments: &Arguments, config: &Config, json: bool) -> Result<(), CliError> {
    let directory = &arguments.directory;
    let path = directory.join(MANIFEST);
    let text = std::fs::read(&path).map_err(|cause| CliError::Read { path: path.clone(), cause })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| CliError::Refused(format!("{} is no manifest of a backup: {error}", path.display())))?;
    let master_key = arguments.master_key.as_deref().map(read_key).transpose()?;
    let backup = Backup { manifest, rows: directory.join(ROWS), master_key };
    if !arguments.yes {
        confirm(&backup.manifest)?;
    }
    let made = backup.manifest.created_at;
    let restored = if Client::is_there(config).await {
        let restored = by_daemon(backup, config).await?;
        wait_for(&restored, config).await?;
        restored
    } else {
        here(backup, config).await?
    };
    let sentence = format!("The records are those of {} again. The audit log says so.", print::instant(made));
    print::done(json, &json!({ "status": "ok", "backup_of": made.to_string(), "restored": restored }), &sentence);
    Ok(())
}

fn read_key(path: &Path) -> Result<MasterKey, CliError> {
    let missing = || CliError::Refused(format!("there is no master key in {}", path.display()));
    MasterKey::read(path).map_err(|error| CliError::Refused(error.to_string()))?.ok_or_else(missing)
}

fn confirm(manifest: &Manifest) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Refused(
            "this replaces everything that is there: say that you mean it with --yes".into(),
        ));
    }
    eprint!(
        "This replaces all records with those of {} ({} rows). What happened since is lost.\nType yes to go on: ",
        print::instant(manifest.created_at),
        manifest.rows
    );
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    match std::io::stdin().lock().read_line(&mut answer) {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        _ => Err(CliError::Refused("nothing was changed".into())),
    }
}

async fn by_daemon(backup: Backup, config: &Config) -> Result<Restored, CliError> {
    let client = Client::connect(config).await?;
    let Backup { manifest, rows, master_key } = backup;
    let file = tokio::fs::File::open(&rows).await.map_err(|cause| CliError::Read { path: rows.clone(), cause })?;
    let head = RestoreHead { manifest, master_key: master_key.map(|key| key.to_text()) };
    let mut head = Zeroizing::new(serde_json::to_vec(&head).map_err(|error| CliError::Refused(error.to_string()))?);
    head.push(b'\n');
    let body = Body::from_async_read(std::io::Cursor::new(head).chain(file));
    follow(client.lines(Method::POST, "/admin/restore", body).await?).await
}

/// The daemon, and every other one on the same records, replaces itself.
async fn wait_for(restored: &Restored, config: &Config) -> Result<(), CliError> {
    let begun = Instant::now();
    let incarnation = restored.incarnation.to_string();
    loop {
        // Not by a client of before: the connection is the old process's.
        if Client::is_there(config).await {
            let client = Client::connect(config).await?;
            let overview: Result<OverviewBody, _> = client.get("/admin/overview").await;
            if overview.is_ok_and(|overview| overview.store.incarnation.as_ref() == Some(&incarnation)) {
                return Ok(());
            }
        }
        if begun.elapsed() > PATIENCE {
            let late = "the backup is restored, and the daemon does not answer from it yet: look at its log";
            return Err(CliError::Refused(late.into()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn here(backup: Backup, config: &Config) -> Result<Restored, CliError> {
    let (teller, mut progress) = Teller::new();
    let restoring = state::restore(config, backup, nix::unistd::getuid().as_raw(), teller);
    let shown = async {
        let mut bar = Bar::new();
        while let Some(now) = progress.recv().await {
            bar.progress(now);
        }
    };
    let (restored, ()) = tokio::join!(restoring, shown);
    Ok(restored.map_err(crate::daemon::DaemonError::from)?)
}
