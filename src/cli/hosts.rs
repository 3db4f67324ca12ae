//! `codex-authd hosts add | list | remove | …`: all actions of an admin on a host.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Subcommand;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print::{self, or_dash};
use crate::api::{AdminHost, AdminHostAnswer, AdminHostList, Registration, RemovedHostList, UserList};
use crate::model::percent;

/// Help text of each argument that names a host.
const FQDN: &str = "The host's name";

#[derive(Subcommand)]
pub enum Command {
    /// Register a host and print its installer command; a known host gets a new key
    Add {
        #[arg(help = FQDN)]
        fqdn: String,
        /// A shared machine: served only while an admin keeps its window open
        #[arg(long)]
        insecure: bool,
        /// A temporary host: served until this time (RFC 3339)
        #[arg(long, value_name = "WHEN")]
        expires_at: Option<String>,
        /// Accept the name of a known host: its present key is refused from then on
        #[arg(long)]
        rotate: bool,
        /// Without public_base_url: tell hosts to use this machine's short name, or localhost
        #[arg(long)]
        allow_short_name: bool,
    },
    /// List all hosts by name, or the page that the options select
    List(ListArguments),
    /// Remove a host: its key is refused from then on
    Remove {
        #[arg(help = FQDN)]
        fqdn: String,
    },
    /// List the hosts that were removed within the last day
    Removed,
    /// Undo a removal of the last day
    Restore {
        #[arg(help = FQDN)]
        fqdn: String,
    },
    /// Refuse a host's key until it is enabled again
    Disable {
        #[arg(help = FQDN)]
        fqdn: String,
    },
    /// Serve a disabled host again
    Enable {
        #[arg(help = FQDN)]
        fqdn: String,
    },
    /// Clear the address of a host: it is bound to the next address that it calls from
    Clear {
        #[arg(help = FQDN)]
        fqdn: String,
    },
    /// Permit a host to call from other addresses; with --off, forbid it
    Roaming {
        #[arg(help = FQDN)]
        fqdn: String,
        /// Only permit its bound address
        #[arg(long)]
        off: bool,
    },
    /// Open the window of an insecure host; with --close, close it
    Window {
        #[arg(help = FQDN)]
        fqdn: String,
        /// Close it now
        #[arg(long)]
        close: bool,
    },
    /// Make a host temporary: served until WHEN (RFC 3339); `never` removes the end
    Expiry {
        #[arg(help = FQDN)]
        fqdn: String,
        /// A time (RFC 3339), or `never`
        when: String,
    },
    /// Serve a host from these networks only (CIDR); without networks, from its bound address
    Networks {
        #[arg(help = FQDN)]
        fqdn: String,
        /// For example 192.0.2.0/24 or 2001:db8::/32
        networks: Vec<String>,
    },
}

/// Passed to the daemon as they are; the daemon validates them.
#[derive(clap::Args)]
pub struct ListArguments {
    /// Number of hosts, up to 1000 [default: all]
    #[arg(long)]
    limit: Option<u32>,
    /// The next page, as the page before names it
    #[arg(long, requires = "limit")]
    cursor: Option<String>,
    /// Sort by fqdn, last_seen, created_at, updated_at, api_calls or client_version
    #[arg(long)]
    sort: Option<String>,
    /// Sort order: asc or desc
    #[arg(long)]
    order: Option<String>,
    /// A part of the name, the address or the client version
    #[arg(long)]
    search: Option<String>,
    /// Only hosts in this state: active, unbound or insecure
    #[arg(long)]
    state: Option<String>,
}

impl ListArguments {
    fn path(&self) -> String {
        let limit = self.limit.map(|n| n.to_string());
        let given = [
            ("limit", limit.as_ref()),
            ("cursor", self.cursor.as_ref()),
            ("sort", self.sort.as_ref()),
            ("order", self.order.as_ref()),
            ("search", self.search.as_ref()),
            ("state", self.state.as_ref()),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let query: Vec<String> = given.map(|(name, value)| format!("{name}={}", percent::encoded(value))).collect();
        if query.is_empty() { "/admin/hosts".into() } else { format!("/admin/hosts?{}", query.join("&")) }
    }
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Command::Add { fqdn, insecure, expires_at, rotate, allow_short_name } => {
            if !rotate {
                confirm_rotation(client, fqdn).await?;
            }
            let mut body = json!({ "fqdn": fqdn });
            if *allow_short_name {
                body["allow_short_name"] = json!(true);
            }
            if *insecure {
                body["secure"] = json!(false);
            }
            if let Some(when) = expires_at {
                body["expires_at"] = json!(when);
            }
            let made: Registration = client.post("/admin/hosts/register", &body).await?;
            let sentence = format!(
                "Host {} is registered. Run this on it, once, before {}:\n\n{}\n",
                made.host.host.fqdn,
                print::instant(made.installer.expires_at),
                made.installer.command
            );
            print::done(json, &made, &sentence)?;
        }
        Command::List(arguments) => {
            let list: AdminHostList = match arguments.limit {
                Some(_) => client.get(&arguments.path()).await?,
                None => client.all(&arguments.path()).await?,
            };
            let head = ["NAME", "STATUS", "ID", "ADDRESS", "CODEX", "WRAPPER", "CALLS", "LAST SEEN", "OWNER"]
                .map(String::from)
                .into();
            // Few hosts have an owner. If none of these has, the users are not requested.
            let users = match list.hosts.iter().any(|host| host.owner_id.is_some()) {
                true => client.all::<UserList>("/auth/users").await?.users,
                false => Vec::new(),
            };
            let owner = |host: &AdminHost| {
                let id = host.owner_id?;
                let user = users.iter().find(|user| user.id == id);
                Some(user.map_or_else(|| id.to_string(), |user| user.email.clone()))
            };
            let row = |host: &AdminHost| {
                vec![
                    host.host.fqdn.clone(),
                    host.host.status.to_string(),
                    host.id.to_string(),
                    or_dash(addresses(host)),
                    or_dash(host.host.client_version.as_ref()),
                    or_dash(host.host.wrapper_version.as_ref()),
                    host.host.api_calls.to_string(),
                    or_dash(host.last_seen.map(print::instant)),
                    or_dash(owner(host)),
                ]
            };
            let rows: Vec<Vec<String>> = std::iter::once(head).chain(list.hosts.iter().map(row)).collect();
            let mut table = print::table(&rows);
            if let Some(next) = &list.next {
                table += &format!("\n\n{} of {} hosts; --cursor {next} shows more.", list.hosts.len(), list.matching);
            }
            print::done(json, &list, &table)?;
        }
        Command::Remove { fqdn } => {
            let host = find(client, fqdn).await?;
            let removed: serde_json::Value = client.delete(&format!("/admin/hosts/{}", host.id)).await?;
            print::done(
                json,
                &removed,
                &format!(
                    "Host {} is removed; its key is refused from now on. `hosts restore` can undo this within a day.",
                    host.host.fqdn
                ),
            )?;
        }
        Command::Removed => {
            let list: RemovedHostList = client.all("/admin/hosts/removed").await?;
            let head = ["NAME", "ID", "REMOVED", "RESTORABLE UNTIL"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(list.hosts.iter().map(|host| {
                    let until = print::instant(host.restorable_until);
                    vec![host.fqdn.clone(), host.id.to_string(), print::instant(host.removed_at), until]
                }))
                .collect();
            print::done(json, &list, &print::table(&rows))?;
        }
        Command::Restore { fqdn } => {
            let wanted = fqdn.trim().to_ascii_lowercase();
            let list: RemovedHostList = client.all("/admin/hosts/removed").await?;
            let host = list.hosts.iter().find(|host| host.fqdn == wanted).ok_or_else(|| {
                CliError::Refused(format!(
                    "no host {fqdn} was removed within a day; `codex-authd hosts removed` lists them"
                ))
            })?;
            let restored: AdminHostAnswer =
                client.post(&format!("/admin/hosts/{}/restore", host.id), &json!({})).await?;
            print::done(json, &restored, &format!("Host {wanted} is restored, with its old key."))?;
        }
        Command::Disable { fqdn } => {
            change(client, json, fqdn, "disable", &json!({}), "is disabled; its key is refused").await?;
        }
        Command::Enable { fqdn } => change(client, json, fqdn, "enable", &json!({}), "is served again").await?,
        Command::Clear { fqdn } => {
            change(client, json, fqdn, "clear", &json!({}), "is bound to the next address that it calls from").await?;
        }
        Command::Roaming { fqdn, off } => {
            let said = if *off { "stays at its address" } else { "may call from other addresses" };
            change(client, json, fqdn, "roaming", &json!({ "allow": !off }), said).await?;
        }
        Command::Window { fqdn, close: true } => {
            change(client, json, fqdn, "insecure/disable", &json!({}), "is no longer served: its window is closed")
                .await?;
        }
        Command::Window { fqdn, close: false } => {
            change(client, json, fqdn, "insecure/enable", &json!({}), "is served: its window is open").await?;
        }
        Command::Expiry { fqdn, when } => {
            let when = (when != "never").then_some(when);
            let said = when.map_or("is no longer temporary".into(), |when| format!("is served until {when}"));
            change(client, json, fqdn, "expiry", &json!({ "expires_at": when }), &said).await?;
        }
        Command::Networks { fqdn, networks } => {
            let said = match &networks[..] {
                [] => "is served from the address it is bound to".into(),
                networks => format!("is served from {} only", networks.join(", ")),
            };
            change(client, json, fqdn, "networks", &json!({ "networks": networks }), &said).await?;
        }
    }
    Ok(())
}

/// A new registration of a known host would end its key, so the operator must confirm it, or pass --rotate.
async fn confirm_rotation(client: &Client, fqdn: &str) -> Result<(), CliError> {
    let Some(host) = known(client, fqdn).await? else { return Ok(()) };
    let name = host.host.fqdn;
    let consequence = format!(
        "{name} is a host already. A new installer means a new key: the present key is refused at once, before \
         the installer runs, and cdx there fails until it is installed again"
    );
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Refused(format!(
            "{consequence}. Nothing was changed. If you want this: codex-authd hosts add --rotate {name}"
        )));
    }
    eprint!("{consequence}.\nGive {name} a new key? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    match std::io::stdin().lock().read_line(&mut answer) {
        Ok(_) if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") => Ok(()),
        _ => Err(CliError::Refused("nothing was changed".into())),
    }
}

/// The addresses of the host: one, or one of each family.
fn addresses(host: &AdminHost) -> Option<String> {
    let first = host.ip.as_ref()?;
    Some(host.other_ip.iter().fold(first.clone(), |text, other| format!("{text} {other}")))
}

async fn find(client: &Client, fqdn: &str) -> Result<AdminHost, CliError> {
    let host = known(client, fqdn).await?;
    host.ok_or_else(|| CliError::Refused(format!("there is no host {fqdn}; `codex-authd hosts list` lists them")))
}

async fn known(client: &Client, fqdn: &str) -> Result<Option<AdminHost>, CliError> {
    let wanted = fqdn.trim().to_ascii_lowercase();
    let list: AdminHostList = client.all(&format!("/admin/hosts?search={}", percent::encoded(&wanted))).await?;
    Ok(list.hosts.into_iter().find(|host| host.host.fqdn == wanted))
}

/// Posts to `/admin/hosts/ID/ACTION` and prints the result.
async fn change(
    client: &Client,
    json: bool,
    fqdn: &str,
    action: &str,
    body: &serde_json::Value,
    said: &str,
) -> Result<(), CliError> {
    let host = find(client, fqdn).await?;
    let answer: serde_json::Value = client.post(&format!("/admin/hosts/{}/{action}", host.id), body).await?;
    print::done(json, &answer, &format!("Host {} {said}.", host.host.fqdn))?;
    Ok(())
}
