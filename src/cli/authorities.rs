//! `codex-authd authorities list | prepare | activate | retire`

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print;
use crate::api::AuthorityList;

#[derive(Subcommand)]
pub enum Command {
    /// List the authorities and their slots
    List,
    /// Make the next authority: trusted from now on, but it signs nothing yet
    Prepare {
        /// The authority's role
        role: Role,
    },
    /// Let the next authority sign; the previous one stays trusted
    Activate {
        /// The authority's role
        role: Role,
        /// Do it even if hosts are cut off
        #[arg(long)]
        force: bool,
    },
    /// Stop trusting the old authority
    Retire {
        /// The authority's role
        role: Role,
        /// Do it even if hosts or admins are cut off
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Role {
    /// Signs the daemon's own certificate
    Server,
    /// Signs admins' certificates
    Client,
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    let (list, sentence): (AuthorityList, _) = match command {
        Command::List => (client.get("/admin/authorities").await?, ""),
        Command::Prepare { role } => (
            step(client, *role, "prepare", false).await?,
            match role {
                Role::Server => "Prepared. Hosts that run `cdx --update` trust it from now on; next: activate.\n\n",
                Role::Client => "Prepared. It is trusted for certificates of admins; next: activate.\n\n",
            },
        ),
        Command::Activate { role, force } => (
            step(client, *role, "activate", *force).await?,
            match role {
                Role::Server => {
                    "Activated: it signs from now on. The previous authority stays trusted until it is retired. Give pki/server-ca.crt of \
                     the state directory to browsers and to Prometheus again.\n\n"
                }
                Role::Client => {
                    "Activated: it signs from now on. The previous authority stays trusted until it is retired. Renew each admin's \
                     certificate: codex-authd certificates renew NAME --out NAME.p12 --revoke\n\n"
                }
            },
        ),
        Command::Retire { role, force } => {
            (step(client, *role, "retire", *force).await?, "Retired: the old one is trusted no more.\n\n")
        }
    };
    let head = ["ROLE", "SLOT", "EXPIRES", "ID"].map(String::from).into();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(list.authorities.iter().map(|authority| {
            let (role, slot) = (authority.role.to_string(), authority.slot.to_string());
            vec![role, slot, print::instant(authority.expires_at), authority.id.clone()]
        }))
        .collect();
    print::done(json, &list, &format!("{sentence}{}", print::table(&rows)))?;
    Ok(())
}

async fn step(client: &Client, role: Role, step: &str, force: bool) -> Result<AuthorityList, CliError> {
    let role = match role {
        Role::Server => "server",
        Role::Client => "client",
    };
    let force = if force { "?force=true" } else { "" };
    Ok(client.post(&format!("/admin/authorities/{role}/{step}{force}"), &json!({})).await?)
}
