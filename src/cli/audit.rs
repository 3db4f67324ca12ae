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
            let more = page.next.as_ref().map(|next| format!("--before {next} shows them, --all shows all"));
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
    let query = query(list);
    if list.all {
        return Ok(client.all(&format!("/admin/audit?{query}")).await?);
    }
    let cursor = list.before.map(|before| format!("&cursor={before}")).unwrap_or_default();
    Ok(client.get(&format!("/admin/audit?limit={}{cursor}&{query}", list.limit)).await?)
}

/// The filters.
fn query(list: &List) -> String {
    let members = [
        ("action", list.action.as_ref()),
        ("actor", list.actor.as_ref()),
        ("target", list.target.as_ref()),
        ("from", list.from.as_ref()),
    ];
    let given = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let mut query: Vec<String> = given.map(|(name, value)| format!("{name}={}", percent::encoded(value))).collect();
    if list.alarms {
        query.push("alarms=true".into());
    }
    query.join("&")
}
