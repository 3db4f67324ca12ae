//! `codex-authd doctor`: shows problems, and the command that solves each.
//!
//! Checks of the machine run here. Checks that need the daemon are requested over the control socket, or run in this
//! process if no daemon runs. An unusable state or configuration is a finding, too.

use std::path::PathBuf;

use super::client::{Client, ClientError};
use super::{CliError, print, runtime_of_one, take_identity};
use crate::api::Checks;
use crate::config::{Config, ConfigError};
use crate::doctor::{self, MachineFindings, Places, Presence, View};
use crate::model::check::Check;
use crate::platform::System;

pub fn run(
    view: &View,
    places: &Places,
    loaded: Result<Config, ConfigError>,
    file: Option<PathBuf>,
    json: bool,
) -> Result<(), CliError> {
    let found = match loaded {
        Ok(config) => {
            let seen = doctor::look(&config, file.as_deref(), view, places, &System);
            take_identity(&config)?;
            runtime_of_one()?.block_on(examine(&config, seen))
        }
        Err(error) => {
            let remedy = "correct that, then codex-authd check-config";
            let refused = Check::missing("configuration", error.to_string(), remedy);
            view.checks().into_iter().chain([refused]).collect::<Vec<_>>().into()
        }
    };
    print::done(json, &found, &lines(&found))?;
    if found.works { Ok(()) } else { Err(CliError::Found("something does not work: see the lines that say missing")) }
}

async fn examine(config: &Config, mut seen: MachineFindings) -> Checks {
    let mut checks = std::mem::take(&mut seen.checks);
    checks.extend(doctor::examine(config, &seen, &System).await);
    Checks::from(checks).and(ask(config, &seen.presence).await)
}

/// The checks of the daemon; if none runs, the same checks on its state.
async fn ask(config: &Config, presence: &Presence) -> Checks {
    const DAEMON: &str = "daemon";
    let is_running = presence.is_running;
    let not_running = match presence.failed_starts {
        0 => Check::missing(DAEMON, "it does not run", "systemctl start codex-authd"),
        times => Check::missing(
            DAEMON,
            format!("it does not run: it has failed to start {times} times, and systemd goes on trying"),
            "journalctl -u codex-authd -n 20 shows the reason",
        ),
    };
    if presence.is_starting {
        return vec![Check::weak(DAEMON, "it is starting", "codex-authd doctor, in a moment")].into();
    }
    if !is_running && !presence.state.is_ours_to_open() {
        // The reason is among the other findings.
        return vec![not_running].into();
    }
    if !is_running && !presence.awaiting_start.is_empty() {
        let found =
            format!("it was not opened: systemd provides {} only to the daemon", presence.awaiting_start.join(", "));
        let remedy = match presence.failed_starts {
            0 => "systemctl start codex-authd, then run this again",
            _ => "get the daemon to start first: its journal shows why it does not",
        };
        return vec![not_running, Check::weak("state", found, remedy)].into();
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
                "" => "journalctl -u codex-authd shows more",
                _ => "start the database, or correct [database]; journalctl -u codex-authd shows more",
            };
            checks.push(Check::missing("state", error.to_string(), remedy));
            checks.into()
        }
    }
}

/// Verifies the checksums of all rows, too.
async fn verified(client: &Client, found: Checks) -> Result<Checks, ClientError> {
    let body = serde_json::json!({});
    Ok(found.and(client.post::<Checks>("/admin/records/verify", &body).await?))
}

/// One line for each check, with the remedy below it.
pub fn lines(found: &Checks) -> String {
    let lines = found.checks.iter().map(|check| {
        let remedy = check.remedy.iter().map(|remedy| format!("\n          {remedy}")).collect::<String>();
        format!("{:<8}  {}: {}{remedy}", check.verdict, check.name, check.found)
    });
    lines.collect::<Vec<_>>().join("\n")
}
