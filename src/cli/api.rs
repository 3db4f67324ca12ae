//! `codex-authd api show | disable | enable`

use clap::Subcommand;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print;
use crate::api::ApiState;

#[derive(Subcommand)]
pub enum Command {
    /// Show whether hosts are served
    Show,
    /// Stop serving hosts: they get 503
    Disable {
        /// The reason that hosts are told
        #[arg(long)]
        reason: Option<String>,
    },
    /// Serve hosts again
    Enable,
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    const PATH: &str = "/admin/api/state";
    let state: ApiState = match command {
        Command::Show => client.get(PATH).await?,
        Command::Disable { reason } => client.post(PATH, &json!({ "disabled": true, "reason": reason })).await?,
        Command::Enable => client.post(PATH, &json!({ "disabled": false })).await?,
    };
    let sentence = match (state.disabled, &state.reason) {
        (false, _) => "Hosts are served.".into(),
        (true, None) => "Hosts get 503 until the API is enabled again.".into(),
        (true, Some(reason)) => {
            format!("Hosts get 503 until the API is enabled again. They are told this reason: {reason}")
        }
    };
    print::done(json, &state, &sentence)?;
    Ok(())
}
