//! `codex-authd metrics`

use super::client::{Client, ClientError};
use super::{CliError, print};
use crate::config::Config;
use crate::metrics::samples;

pub async fn run(config: &Config, json: bool) -> Result<(), CliError> {
    let text = Client::text_of_daemon(config, "/metrics").await?;
    let samples = samples::parse(&text).map_err(|error| ClientError::Answer(error.to_string()))?;
    print::done(json, &serde_json::json!({ "samples": samples }), text.trim_end())?;
    Ok(())
}
