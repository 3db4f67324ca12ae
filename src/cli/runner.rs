//! `codex-authd runner run | show | doctor`

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::client::Client;
use super::print::{self, or_dash};
use super::{CliError, doctor};
use crate::api::{Checks, LoginState, ProbeAsked, RunnerBody};

#[derive(Subcommand)]
pub enum Command {
    /// Run the real Codex on the canonical login now, and report whether it works
    Run {
        /// Even if the login was restored from a backup: use this only if you know that nothing was refreshed since
        #[arg(long)]
        restored: bool,
    },
    /// Show the latest findings about the canonical login
    Show {
        /// Number of past probes to list, up to 1000; no more are stored
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show what probes need, and what is missing
    Doctor,
}

const PATH: &str = "/admin/runner";
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Added to the time of one probe: another probe may be running.
const DEFAULT_TIMEOUT_SECONDS: u64 = 120;

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Command::Run { restored } => {
            let found = prove(client, *restored, json).await?;
            print::done(json, &found, &sentence(&found))?;
            match found.state {
                Some(LoginState::Ok) => Ok(()),
                _ => Err(CliError::Found("the probe did not prove the canonical login")),
            }
        }
        Command::Show { limit } => {
            let found: RunnerBody = client.get(&format!("{PATH}?limit={limit}")).await?;
            print::done(json, &found, &format!("{}\n\n{}", sentence(&found), table(&found)))?;
            Ok(())
        }
        Command::Doctor => {
            let found: Checks = client.get(&format!("{PATH}/doctor")).await?;
            print::done(json, &found, &doctor::lines(&found))?;
            if found.works { Ok(()) } else { Err(CliError::Found("no probe can be made here")) }
        }
    }
}

/// Requests a probe and waits for its end.
async fn prove(client: &Client, restored: bool, json: bool) -> Result<RunnerBody, CliError> {
    let ProbeAsked { asked } = client.post(&format!("{PATH}/run?restored={restored}"), &json!({})).await?;
    if !json {
        print::note("Codex is run on the canonical login …\n");
    }
    let begun = tokio::time::Instant::now();
    loop {
        let found: RunnerBody = client.get(&format!("{PATH}?limit=0")).await?;
        if found.answered >= asked {
            return Ok(found);
        }
        if begun.elapsed() > Duration::from_secs(found.timeout_seconds + DEFAULT_TIMEOUT_SECONDS) {
            return Err(CliError::Refused(
                "the probe has not ended yet; check later with `codex-authd runner show`".into(),
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn sentence(found: &RunnerBody) -> String {
    let reason = found.reason.as_deref().unwrap_or_default();
    let probe = found.latest_validation.as_ref();
    let adopted = probe
        .and_then(|probe| probe.adopted)
        .map(|version| format!(" Codex refreshed it in the probe: version {version} is now the canonical login."));
    let adopted = adopted.unwrap_or_default();
    match found.state {
        Some(LoginState::Ok) => {
            let at = probe.and_then(|probe| probe.finished_at).map(print::instant);
            format!("The canonical login works (proved {}).{adopted}", or_dash(at))
        }
        Some(LoginState::Fail) => format!("The canonical login does not work.{adopted}\n{reason}"),
        Some(LoginState::Unavailable) => format!("The canonical login could not be proved.\n{reason}"),
        Some(LoginState::Never) => "The canonical login has not been proved yet: codex-authd runner run".into(),
        None if found.enabled => "The findings of probes cannot be shown: the store is not available now.".into(),
        None => "Probes are switched off (runner.enabled).".into(),
    }
}

fn table(found: &RunnerBody) -> String {
    let head = ["STARTED", "VERSION", "TRIGGER", "STATE", "ADOPTED", "REASON"].map(String::from).into();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(found.probes.iter().map(|probe| {
            vec![
                print::instant(probe.started_at),
                probe.version.to_string(),
                probe.trigger.to_string(),
                or_dash(probe.state.as_ref()),
                or_dash(probe.adopted),
                or_dash(probe.reason.as_ref().and_then(|reason| reason.lines().next())),
            ]
        }))
        .collect();
    print::page(&rows, found.has_more_probes.then(|| "--limit 1000 shows all that are kept".into()))
}
