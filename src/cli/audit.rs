//! `codex-authd audit list | verify`

use clap::{Args, Subcommand};

use super::CliError;
use super::client::Client;
use super::print::{self, or_dash};
use crate::api::{AuditPage, AuditVerification};
use crate::model::percent;

#[derive(Subcommand)]
pub enum Command {
    /// List entries, newest first
    List(List),
    /// Verify the chain of hashes from the first entry to the newest
    Verify {
        /// A hash that you noted elsewhere: it must be part of the chain
        #[arg(long)]
        hash: Option<String>,
    },
}

#[derive(Args)]
pub struct List {
    /// Number of entries, 1 to 1000
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Only entries with a smaller number (the next page)
    #[arg(long)]
    before: Option<u64>,
    /// All entries
    #[arg(long, conflicts_with_all = ["limit", "before"])]
    all: bool,
    /// An action such as `host.register`, or only its noun: `host`
    #[arg(long)]
    action: Option<String>,
    /// Part of the actor's name
    #[arg(long)]
    actor: Option<String>,
    /// The target, such as a host's name or a version's number
    #[arg(long)]
    target: Option<String>,
    /// The caller's address
    #[arg(long)]
    from: Option<String>,
    /// Only entries that need attention
    #[arg(long)]
    alarms: bool,
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Command::List(list) => {
            let page = read(list, client).await?;
            let head = ["NUMBER", "AT", "ACTION", "TARGET", "OUTCOME", "WHO", "FROM"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(page.entries.iter().map(|entry| {
                    vec![
                        entry.number.to_string(),
                        print::instant(entry.at),
                        if entry.alarm { format!("{} !", entry.action) } else { entry.action.clone() },
                        or_dash(entry.target.as_ref()),
                        entry.outcome.clone(),
                        entry.actor.clone(),
                        or_dash(entry.from.as_ref()),
                    ]
                }))
                .collect();
            let more = page.next.map(|next| format!("--before {next} shows them, --all shows all"));
            print::done(json, &page, &print::page(&rows, more))?;
        }
        Command::Verify { hash } => {
            let query = hash.as_ref().map(|hash| format!("?hash={}", percent::encoded(hash))).unwrap_or_default();
            let found: AuditVerification = client.get(&format!("/admin/audit/verify{query}")).await?;
            let sentence = match (&found.broken, found.noted_found) {
                (Some(broken), _) => format!("BROKEN: {broken}. The {} entries before it are correct.", found.entries),
                (None, Some(false)) => {
                    format!("BROKEN: the {} entries are correct, but none has the noted hash.", found.entries)
                }
                (None, _) => format!(
                    "Intact: {} entries. Note this hash elsewhere, to verify it later with --hash:\n{}",
                    found.entries, found.hash
                ),
            };
            print::done(json, &found, &sentence)?;
            if !found.intact {
                return Err(CliError::Found("the audit log was changed"));
            }
        }
    }
    Ok(())
}

async fn read(list: &List, client: &Client) -> Result<AuditPage, CliError> {
    let get = async |limit: u32, before: Option<u64>| -> Result<AuditPage, CliError> {
        Ok(client.get(&format!("/admin/audit?{}", query(list, limit, before))).await?)
    };
    if !list.all {
        return get(list.limit, list.before).await;
    }
    let mut page = get(1000, None).await?;
    while let Some(next) = page.next {
        let more = get(1000, Some(next)).await?;
        page.entries.extend(more.entries);
        page.next = more.next;
    }
    Ok(page)
}

fn query(list: &List, limit: u32, before: Option<u64>) -> String {
    let mut query = format!("limit={limit}");
    let before = before.map(|before| before.to_string());
    let members = [
        ("before", before.as_ref()),
        ("action", list.action.as_ref()),
        ("actor", list.actor.as_ref()),
        ("target", list.target.as_ref()),
        ("from", list.from.as_ref()),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", percent::encoded(value)));
        }
    }
    if list.alarms {
        query.push_str("&alarms=true");
    }
    query
}
