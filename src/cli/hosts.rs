//! `codex-authd hosts add | list | remove`

use clap::Subcommand;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print::{self, or_dash};
use crate::api::{AdminHostList, Registration};

#[derive(Subcommand)]
pub enum Command {
    /// Make a host and print its installer command; a known host gets a new key
    Add {
        fqdn: String,
        /// A shared machine: served only while an admin holds its window open
        #[arg(long)]
        insecure: bool,
    },
    /// All hosts, by name
    List,
    /// Remove a host: its key is refused from here on
    Remove { fqdn: String },
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Command::Add { fqdn, insecure } => {
            let mut body = json!({ "fqdn": fqdn });
            if *insecure {
                body["secure"] = json!(false);
            }
            let made: Registration = client.post("/admin/hosts/register", &body).await?;
            let sentence = format!(
                "Host {} is registered. Run this on it, once, before {}:\n\n{}\n",
                made.host.host.fqdn,
                print::instant(made.installer.expires_at),
                made.installer.command
            );
            print::done(json, &made, &sentence);
        }
        Command::List => {
            let list: AdminHostList = client.get("/admin/hosts").await?;
            let head = ["NAME", "ID", "ADDRESS", "CODEX", "WRAPPER", "CALLS", "LAST SEEN"].map(String::from).into();
            let row = |host: &crate::api::AdminHost| {
                vec![
                    host.host.fqdn.clone(),
                    host.id.to_string(),
                    or_dash(host.ip.as_ref()),
                    or_dash(host.host.client_version.as_ref()),
                    or_dash(host.host.wrapper_version.as_ref()),
                    host.host.api_calls.to_string(),
                    or_dash(host.last_seen.map(print::instant)),
                ]
            };
            let rows: Vec<Vec<String>> = std::iter::once(head).chain(list.hosts.iter().map(row)).collect();
            print::done(json, &list, &print::table(&rows));
        }
        Command::Remove { fqdn } => {
            let wanted = fqdn.trim().to_ascii_lowercase();
            let list: AdminHostList = client.get("/admin/hosts").await?;
            let host = list.hosts.iter().find(|host| host.host.fqdn == wanted).ok_or_else(|| {
                CliError::Refused(format!("there is no host {fqdn}; `codex-authd hosts list` names them"))
            })?;
            let removed: serde_json::Value = client.delete(&format!("/admin/hosts/{}", host.id)).await?;
            print::done(json, &removed, &format!("Host {wanted} is removed; its key is refused from now on."));
        }
    }
    Ok(())
}
