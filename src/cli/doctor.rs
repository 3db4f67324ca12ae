//! `codex-authd doctor`: what is wrong, and the command that mends it.
//!
//! What the machine shows is looked at here; what only the daemon knows it is asked for, over the control socket, or in
//! this process where none runs. A state that cannot be opened, and a configuration that cannot be read, are findings.

use std::path::{Path, PathBuf};

use super::client::{Client, ClientError};
use super::{CliError, print};
use crate::api::Checks;
use crate::config::{Config, ConfigError};
use crate::doctor::{self, StateFound};
use crate::model::check::Check;
use crate::outside::System;

pub async fn run(loaded: Result<Config, ConfigError>, file: Option<PathBuf>, json: bool) -> Result<(), CliError> {
    let found = match loaded {
        Ok(config) => examine(&config, file.as_deref()).await,
        Err(error) => {
            vec![Check::missing("configuration", error.to_string(), "mend that, then codex-authd check-config")].into()
        }
    };
    print::done(json, &found, &lines(&found));
    if found.works { Ok(()) } else { Err(CliError::Found("something does not work: see what is missing")) }
}

async fn examine(config: &Config, file: Option<&Path>) -> Checks {
    let state = doctor::state(&config.state_dir);
    let is_running = Client::is_there(config).await;
    let here = Checks::from(doctor::examine(config, file, &state, is_running, &System).await);
    here.and(ask(config, &state, is_running).await)
}

/// What the daemon knows; with none running, what its state says.
async fn ask(config: &Config, state: &StateFound, is_running: bool) -> Checks {
    const DAEMON: &str = "daemon";
    let not_running = Check::missing(DAEMON, "it does not run", "systemctl start codex-authd");
    if !is_running && !state.is_ours_to_open() {
        // Why is among the findings.
        return vec![not_running].into();
    }
    let mut checks = Vec::new();
    if is_running {
        checks.push(Check::good(DAEMON, format!("it answers on {}", config.listen.control.display())));
    } else {
        checks.push(not_running);
    }
    let answer = match Client::connect(config).await {
        Ok(client) => {
            let answer = match client.get::<Checks>("/admin/doctor").await {
                Ok(found) => verified(&client, found).await,
                Err(error) => Err(error),
            };
            client.close().await;
            answer
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(found) => Checks::from(checks).and(found),
        Err(error) => {
            let remedy = match config.database.url.as_str() {
                _ if error.to_string().contains("codex-authd restore") => "codex-authd restore DIR, from a backup",
                "" => "journalctl -u codex-authd tells more",
                _ => "start the database, or mend [database]; journalctl -u codex-authd tells more",
            };
            checks.push(Check::missing("state", error.to_string(), remedy));
            checks.into()
        }
    }
}

/// The checksums of all rows, too.
async fn verified(client: &Client, found: Checks) -> Result<Checks, ClientError> {
    let body = serde_json::json!({});
    Ok(found.and(client.post::<Checks>("/admin/records/verify", &body).await?))
}

/// One line a check, and under it what mends it.
pub fn lines(found: &Checks) -> String {
    let lines = found.checks.iter().map(|check| {
        let remedy = check.remedy.iter().map(|remedy| format!("\n          {remedy}")).collect::<String>();
        format!("{:<8}  {}: {}{remedy}", check.verdict, check.name, check.found)
    });
    lines.collect::<Vec<_>>().join("\n")
}
