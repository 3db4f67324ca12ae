//! `codex-authd installers list | revoke`

use clap::Subcommand;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print::{self, or_dash};
use crate::api::{InstallerList, RevokedInstaller};

#[derive(Subcommand)]
pub enum Command {
    /// List installers, newest first, with the address that redeemed each one
    List {
        /// Only installers that can still be redeemed
        #[arg(long)]
        outstanding: bool,
    },
    /// Revoke an outstanding installer
    Revoke {
        /// The id from the list, or its beginning if that is unique
        id: String,
    },
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Command::List { outstanding } => {
            let filter = if *outstanding { "?state=outstanding" } else { "" };
            let list: InstallerList = client.all(&format!("/admin/installers{filter}")).await?;
            let head = ["HOST", "STATE", "CREATED", "EXPIRES", "REDEEMED FROM", "ID"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(list.installers.iter().map(|installer| {
                    vec![
                        or_dash(installer.fqdn.as_ref()),
                        format!("{:?}", installer.state).to_lowercase(),
                        print::instant(installer.created_at),
                        print::instant(installer.expires_at),
                        or_dash(installer.redeemed_from.as_ref()),
                        installer.id.clone(),
                    ]
                }))
                .collect();
            print::done(json, &list, &print::table(&rows))?;
        }
        Command::Revoke { id } => {
            let list = client.all::<InstallerList>("/admin/installers?state=outstanding").await?;
            let wanted = id.trim().to_ascii_lowercase();
            let mut found = list.installers.iter().filter(|installer| installer.id.starts_with(&wanted));
            let (Some(installer), None) = (found.next(), found.next()) else {
                let message = format!("no single outstanding installer has an id that begins with {id}");
                return Err(CliError::Refused(format!("{message}; `codex-authd installers list` shows them")));
            };
            let revoked: RevokedInstaller =
                client.post(&format!("/admin/installers/{}/revoke", installer.id), &json!({})).await?;
            let sentence = format!("The installer of {} is revoked.", or_dash(installer.fqdn.as_ref()));
            print::done(json, &revoked, &sentence)?;
        }
    }
    Ok(())
}
