//! `codex-authd auth upload | show | history | diff | rollback`

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use serde::Serialize;
use zeroize::Zeroizing;

use super::CliError;
use super::client::Client;
use super::print::{self, or_dash};
use crate::api::{AuthAnswer, AuthDiff, AuthHistory, AuthShown, RolledBack, SyncStatus};
use crate::daemon::owner::as_caller;
use crate::model::auth_document::MAX_DOCUMENT_BYTES;

#[derive(Subcommand)]
pub enum Command {
    /// Make FILE the canonical login, if it is newer
    Upload {
        /// An auth.json, as Codex wrote it
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Also run Codex to prove it; while a daemon runs, this command does not wait for the result
        #[arg(long)]
        probe: bool,
        /// Accept a login of another account than the canonical login's
        #[arg(long)]
        change_account: bool,
        /// Accept it even if it is older than the canonical login
        #[arg(long)]
        even_if_older: bool,
    },
    /// Show the canonical login, without its secrets
    Show,
    /// List the stored versions, newest first
    History(History),
    /// Show the differences between two versions, without the secrets
    Diff {
        /// A version from the history
        from: u64,
        /// Another version
        to: u64,
    },
    /// Make the login of an earlier version the canonical one again, as a new version
    Rollback {
        /// A version from the history
        version: u64,
    },
}

#[derive(Args)]
pub struct History {
    /// Number of versions, 1 to 1000
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Only versions with a smaller number (the next page)
    #[arg(long)]
    before: Option<u64>,
    /// All stored versions
    #[arg(long, conflicts_with_all = ["limit", "before"])]
    all: bool,
}

impl History {
    async fn read(&self, client: &Client) -> Result<AuthHistory, CliError> {
        if self.all {
            return Ok(client.all("/admin/auth/history").await?);
        }
        let cursor = self.before.map(|before| format!("&cursor={before}")).unwrap_or_default();
        Ok(client.get(&format!("/admin/auth/history?limit={}{cursor}", self.limit)).await?)
    }
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Command::Upload { file, probe, change_account, even_if_older } => {
            #[derive(Serialize)]
            struct Upload<'a> {
                auth_text: &'a str,
                probe: bool,
                change_account: bool,
                even_if_older: bool,
            }
            let document =
                as_caller(|| read_document(file)).map_err(|cause| CliError::Read { path: file.clone(), cause })?;
            let upload = Upload {
                auth_text: &document,
                probe: *probe,
                change_account: *change_account,
                even_if_older: *even_if_older,
            };
            let answer: AuthAnswer = client.post("/admin/auth/upload", &upload).await?;
            let canonical = answer.canonical_last_refresh.clone().unwrap_or_default();
            let sentence = match answer.status {
                SyncStatus::Updated => format!("This login (last refresh {canonical}) is now the canonical login."),
                SyncStatus::Unchanged => {
                    format!("Unchanged: this is the canonical login already, or its date is the same ({canonical}).")
                }
                _ => format!("Refused: the canonical login is newer (last refresh {canonical})."),
            };
            let summary = serde_json::json!({
                "status": answer.status,
                "canonical_last_refresh": answer.canonical_last_refresh,
                "canonical_digest": answer.canonical_digest,
            });
            print::done(json, &summary, &sentence)?;
            if answer.status == SyncStatus::Outdated {
                return Err(CliError::Refused(
                    "the uploaded login is older than the canonical one (use --even-if-older to accept it)".into(),
                ));
            }
        }
        Command::Show => {
            let shown: AuthShown = client.get("/admin/auth").await?;
            let version = &shown.version;
            let sentence = format!(
                "version       {}\ndigest        {}\nlast refresh  {}\nsource        {} ({})\nstored at     {}",
                version.version,
                version.digest,
                version.last_refresh,
                version.source,
                version.source_name,
                print::instant(version.stored_at)
            );
            let restored = shown.restored_login.as_ref().map(|restored| format!("\n\n{}", restored.reason));
            print::done(json, &shown, &format!("{sentence}{}", restored.unwrap_or_default()))?;
        }
        Command::History(arguments) => {
            let history = arguments.read(client).await?;
            let head = ["VERSION", "LAST REFRESH", "SOURCE", "STORED AT", "DIGEST"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(history.versions.iter().map(|version| {
                    vec![
                        version.version.to_string(),
                        version.last_refresh.clone(),
                        format!("{} ({})", version.source, version.source_name),
                        print::instant(version.stored_at),
                        version.digest.clone(),
                    ]
                }))
                .collect();
            let more = history.next.as_ref().map(|next| format!("--before {next} shows them, --all shows all"));
            print::done(json, &history, &print::page(&rows, more))?;
        }
        Command::Diff { from, to } => {
            let diff: AuthDiff = client.get(&format!("/admin/auth/diff?from={from}&to={to}")).await?;
            let head = ["MEMBER", "BEFORE", "AFTER"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(diff.differences.iter().map(|member| {
                    vec![member.path.clone(), or_dash(member.before.as_ref()), or_dash(member.after.as_ref())]
                }))
                .collect();
            print::done(json, &diff, &print::table(&rows))?;
        }
        Command::Rollback { version } => {
            let made: RolledBack =
                client.post("/admin/auth/rollback", &serde_json::json!({ "version": version })).await?;
            let sentence = format!(
                "Version {} is the canonical login now: a copy of version {version}, dated {}. If OpenAI has revoked its \
                 tokens meanwhile, sign in with Codex again and upload the new login.",
                made.version.version, made.version.last_refresh
            );
            print::done(json, &made, &sentence)?;
        }
    }
    Ok(())
}

/// Reads an auth.json. A file longer than the daemon accepts is not read to its end.
fn read_document(file: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut document = Zeroizing::new(String::with_capacity(MAX_DOCUMENT_BYTES + 1));
    std::fs::File::open(file)?.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_string(&mut document)?;
    if document.len() > MAX_DOCUMENT_BYTES {
        let reason = format!("it is not an auth.json: longer than {MAX_DOCUMENT_BYTES} bytes (64 KiB)");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason));
    }
    Ok(document)
}
