//! `codex-authd migrate --to WHERE | --abort`

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use poem::Body;
use poem::http::Method;
use serde_json::json;
use zeroize::Zeroizing;

use super::CliError;
use super::client::Client;
use super::print;
use super::progress::follow;
use crate::api::{Aborted, Migration};
use crate::daemon::owner::as_caller;
use crate::service::transfer::Moved;

/// The variable that `--to env` reads.
pub const VARIABLE: &str = "CODEX_AUTHD_DATABASE__URL";

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    destination: MigrationTarget,
    /// PEM file with the authorities that sign the database's certificate [default: as configured]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "abort")]
    database_ca: Option<PathBuf>,
    /// Do not encrypt the connection to the database
    #[arg(long, conflicts_with = "abort")]
    no_database_tls: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct MigrationTarget {
    /// mysql://user:password@host:port/name, `embedded`, or `env` for the URL in CODEX_AUTHD_DATABASE__URL
    ///
    /// Every user of this machine can see the command line in the list of processes. So pass a password with --to env
    /// or --to-file.
    #[arg(long, value_name = "WHERE")]
    to: Option<String>,
    /// File with the URL; `-` for standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    to_file: Option<PathBuf>,
    /// Let this store accept changes again, after a migration that was interrupted or is not wanted
    #[arg(long)]
    abort: bool,
}

impl Arguments {
    pub fn takes_environment(&self) -> bool {
        self.destination.to.as_deref() == Some("env")
    }

    fn target(&self) -> Result<Zeroizing<String>, CliError> {
        let read = match (&self.destination.to, &self.destination.to_file) {
            (Some(_), _) if self.takes_environment() => std::env::var(VARIABLE)
                .map_err(|_| CliError::Refused(format!("{VARIABLE} does not contain the URL of the new store")))?,
            (Some(to), _) => to.clone(),
            (None, Some(path)) => {
                let mut text = String::new();
                let read = if path.as_os_str() == "-" {
                    std::io::stdin().read_to_string(&mut text).map(|_| text)
                } else {
                    as_caller(|| std::fs::read_to_string(path))
                };
                read.map_err(|cause| CliError::Read { path: path.clone(), cause })?
            }
            (None, None) => String::new(),
        };
        Ok(Zeroizing::new(read.trim().to_owned()))
    }
}

pub async fn run(arguments: &Arguments, client: &Client, json: bool) -> Result<(), CliError> {
    if arguments.destination.abort {
        let aborted: Aborted = client.post("/admin/migrate/abort", &json!({})).await?;
        let sentence = match aborted.stood_still {
            true => "This store accepts changes again. Do not start a daemon on the other store.",
            false => "This store was not at a standstill: there was nothing to do.",
        };
        print::done(json, &aborted, sentence)?;
        return Ok(());
    }
    let ca = arguments.database_ca.as_ref().map(|path| {
        // Absolute, because the daemon has another working directory.
        as_caller(|| path.canonicalize()).map_err(|cause| CliError::Read { path: path.clone(), cause })
    });
    let migration = Migration {
        to: arguments.target()?.to_string(),
        tls: arguments.no_database_tls.then_some(false),
        ca: ca.transpose()?.map(|path| path.display().to_string()),
    };
    let body = serde_json::to_vec(&migration).map_err(|error| CliError::Refused(error.to_string()))?;
    let moved: Moved = follow(client.lines(Method::POST, "/admin/migrate", Body::from(body)).await?).await?;
    print::done(json, &moved, &sentence(&moved))?;
    Ok(())
}

fn sentence(moved: &Moved) -> String {
    let head = ["TABLE", "ROWS HERE", "ROWS THERE", "SHA-256 HERE", "SHA-256 THERE", ""].map(String::from).into();
    let short = |digest: &crate::model::digest::Digest| digest.to_string()[..16].to_owned();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(moved.tables.iter().map(|table| {
            vec![
                table.table.name().to_owned(),
                table.from.rows.to_string(),
                table.to.rows.to_string(),
                short(&table.from.sha256),
                short(&table.to.sha256),
                if table.from == table.to { "equal" } else { "NOT EQUAL" }.to_owned(),
            ]
        }))
        .collect();
    format!(
        "{}\n\nEverything is in {} now. This store accepts no changes any more: hosts get the login, and their telemetry is \
         kept.\nNext: {}.\nTo undo this: codex-authd migrate --abort",
        print::table(&rows),
        moved.to,
        moved.next
    )
}
