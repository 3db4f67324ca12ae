//! `codex-authd check-config`: checks whether the daemon can start with this configuration, as its unit sees it, and
//! whether it would cut off hosts.

use super::client::{Client, ClientError};
use super::{CliError, print};
use crate::api::HostTrustBody;
use crate::config::Config;
use crate::daemon::tls::host_certificate;
use crate::doctor::{self, Presence, View};
use crate::model::check::{Check, Verdict};
use crate::service::core::policy::HostCertificate;
use crate::service::hosts::host_trust::HostsByTrust;

#[derive(clap::Args)]
pub struct Arguments {
    /// Exit with 0 even if hosts would be cut off
    #[arg(long)]
    force: bool,
}

/// Refuses files that the unit's user cannot read, and variables that do not reach the daemon. Call it while the
/// process has one thread.
pub fn look(config: &Config, view: &View) -> Result<(), CliError> {
    let checks = view.checks().into_iter().chain(doctor::readable(config, view));
    let missing: Vec<String> =
        checks.filter(|check| check.verdict == Verdict::Missing).map(|check| said(&check)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CliError::Refused(format!("{}\nThis is {}", missing.join("\n"), view.sentence())))
}

fn said(check: &Check) -> String {
    let remedy = check.remedy.iter().map(|remedy| format!("; {remedy}")).collect::<String>();
    format!("{}: {}{remedy}", check.name, check.found)
}

pub async fn run(
    arguments: &Arguments,
    config: &Config,
    view: &View,
    presence: &Presence,
    json: bool,
) -> Result<(), CliError> {
    let wanted = host_certificate(config);
    let mut note = None;
    match hosts(config, presence).await {
        Ok(Some(hosts)) => {
            if let Some(cut_off) = hosts.newly_cut_off(wanted) {
                let said = format!(
                    "{cut_off} would be cut off: their cdx does not trust the new certificate. {}",
                    way(wanted)
                );
                if !arguments.force {
                    return Err(CliError::Refused(format!(
                        "the configuration is valid, but {said}; to accept this, use --force"
                    )));
                }
                note = Some(said);
            } else if let Some(apart) = hosts.held_back(wanted) {
                note = Some(format!(
                    "{apart} do not trust tls.certificate yet: hosts get the daemon's own certificate until each of them has run \
                     `cdx --update && cdx --sync`"
                ));
            }
        }
        Ok(None) => {}
        Err(cause) => note = Some(format!("Could not check whether it would cut off hosts: {cause}")),
    }
    let answer = serde_json::json!({ "status": "ok", "view": view.sentence(), "note": note });
    let note = note.map(|note| format!(" {note}.")).unwrap_or_default();
    print::done(json, &answer, &format!("The configuration is valid, {}.{note}", view.sentence()))
}

/// `None` if no daemon has run here.
async fn hosts(config: &Config, presence: &Presence) -> Result<Option<HostsByTrust>, String> {
    if !presence.is_running {
        if presence.is_starting {
            return Err("the daemon is starting; run this again in a moment".into());
        }
        if !config.state_dir.exists() {
            return Ok(None);
        }
        let control = config.listen.control.display();
        if !presence.awaiting_start.is_empty() {
            return Err(format!(
                "no daemon answers on {control}, and systemd provides {} only to the daemon; start the daemon, then run \
                 this again",
                presence.awaiting_start.join(", ")
            ));
        }
        if !presence.state.is_ours_to_open() {
            return Err(format!(
                "no daemon answers on {control}, and {} cannot be opened: run this as root, or while a daemon runs",
                config.state_dir.display()
            ));
        }
    }
    let asked = async {
        let client = Client::connect(config).await?;
        let hosts = client.get::<HostTrustBody>("/admin/authorities/hosts").await;
        client.close().await;
        hosts
    };
    let hosts = asked.await.map_err(|error: ClientError| error.to_string())?;
    Ok(Some(hosts.into()))
}

/// How to do it without cutting off any host.
fn way(wanted: HostCertificate) -> &'static str {
    match wanted {
        HostCertificate::Ours { .. } => {
            "Leave [tls] and listen.hosts_tls unchanged until each of them has run `cdx --update && cdx --sync`, then change them"
        }
        HostCertificate::Operators { .. } => {
            "Set tls.switch = \"when-safe\": the daemon shows the certificate once each of them has run `cdx --update && cdx --sync`"
        }
        HostCertificate::OfProxy => {
            "Set tls.switch = \"prepare\" with listen.hosts_tls = true, restart the daemon, have each of them run \
             `cdx --update && cdx --sync`, and then switch to the proxy"
        }
    }
}
