//! `codex-authd keys rotate`

use clap::Subcommand;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print;
use crate::api::Rotation;

#[derive(Subcommand)]
pub enum Command {
    /// Make a new data key and seal every secret with it
    Rotate,
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    let Command::Rotate = command;
    let rotation: Rotation = client.post("/admin/keys/rotate", &json!({})).await?;
    let sentence = format!(
        "Key {} is in force. Secrets sealed again: {}. Older keys removed: {}.",
        rotation.active_key, rotation.resealed, rotation.removed_keys
    );
    print::done(json, &rotation, &sentence)?;
    Ok(())
}
