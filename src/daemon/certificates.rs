//! Who is let in, and by whose signature, and which certificate hosts are shown: what the use cases changed of that is put in
//! force here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::listen_file::Bound;
use super::tls::Tls;
use super::{DaemonError, background};
use crate::config::Config;
use crate::listener::Connections;
use crate::service::core::policy::HostCertificate;
use crate::service::hosts::host_trust::Settled;
use crate::service::{Areas, ServiceError};

/// How often it is looked whether hosts can be shown the operator's certificate, where nothing tells of a change.
const REVIEW_INTERVAL: Duration = Duration::from_secs(60);

/// And once hosts were given as many wrappers as a switch waits for: a host that has put its own in place reports it.
const REPORT_DELAY: Duration = Duration::from_secs(1);

/// What depends on who is let in, and by whose signature.
pub struct Certificates {
    pub config: Config,
    pub bound: Bound,
    pub tls: Arc<Tls>,
}

impl Certificates {
    /// Before anybody is listened to: hosts are shown what they were shown last, or what the configuration wants by now.
    pub async fn begin(&self, areas: &Areas) -> Result<(), DaemonError> {
        // Records that are away are not waited for once more.
        let names = match areas.core.health.away() {
            Some(away) => Err(ServiceError::RecordsAway { cause: away.why.clone() }),
            None => areas.hosts.public_urls().await,
        };
        match names {
            Ok(urls) => self.tls.add_names(&urls)?,
            Err(error) => {
                log::warn!(event = "names_unknown", cause:% = error; "hosts that were installed under an earlier public_base_url may not trust this daemon until it starts again")
            }
        }
        let is_operators = |areas: &Areas| {
            matches!(areas.core.policy().host_certificate, HostCertificate::Operators { .. })
                && areas.hosts.host_trust().switched_at.is_some()
        };
        match areas.hosts.settle_host_certificate(true, false).await {
            Ok(settled) => self.put_in_force(areas, &settled)?,
            // Without the records, what is known of them goes on.
            Err(ServiceError::RecordsAway { cause } | ServiceError::StoreFailed { cause }) => {
                log::warn!(event = "host_certificate_unsettled", cause = cause.as_str(); "the records are not available: hosts are shown what they were shown before");
                self.show_operators(areas, is_operators(areas))?;
            }
            Err(ServiceError::StandsStill { .. }) => self.show_operators(areas, is_operators(areas))?,
            Err(error) => return Err(error.into()),
        }
        let trust = areas.hosts.host_trust();
        let all_trust_it = trust.switched_at.is_none() && !trust.old_wrappers_trust_system;
        if all_trust_it || areas.core.health.away().is_some() {
            return Ok(());
        }
        let cut_off = match areas.hosts.hosts_by_trust().await {
            Ok(hosts) => hosts.cut_off().clone(),
            Err(error) => {
                log::warn!(event = "hosts_uncounted", cause:% = error; "whether all hosts trust the certificate that they are shown is not known");
                return Ok(());
            }
        };
        if !cut_off.is_empty() {
            log::error!(event = "hosts_cut_off", hosts = cut_off.count; "{cut_off} do not trust the certificate that hosts are shown: cdx ends with 76 there; codex-authd doctor says what mends it");
        }
        Ok(())
    }

    /// Puts in force what the use cases changed: an authority that was rolled over, a certificate that was revoked, the last
    /// host that has a new wrapper. A crash in between is mended by the next start, which reads it all.
    pub async fn follow(self, areas: Arc<Areas>, admins: Connections, mut stopping: watch::Receiver<bool>) {
        let mut changes = areas.core.trust_changes();
        let fetched = areas.hosts.wrappers_fetched();
        let mut authorities = areas.core.authorities();
        let mut minutes = interval(REVIEW_INTERVAL);
        minutes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seconds = interval(REPORT_DELAY);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut settled = Settled::Ours;
        loop {
            tokio::select! {
                () = background::stopped(&mut stopping) => return,
                _ = minutes.tick() => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = areas.core.authorities();
                    if !Arc::ptr_eq(&now, &authorities) {
                        authorities = now;
                        match self.reload() {
                            Ok(()) => areas.core.set_policy(self.tls.policy(&self.config, &self.bound)),
                            Err(error) => {
                                log::error!(event = "authorities_not_in_force", cause:% = error; "the authorities changed and could not be put in force; restart the daemon")
                            }
                        }
                    }
                    admins.cut_unless(|fingerprint| areas.trust.admitted_certificate(fingerprint).is_some());
                }
                _ = seconds.tick() => {
                    // With fewer new wrappers than so many hosts somebody is still left.
                    let Settled::HeldBack(hosts) = &settled else { continue };
                    if *fetched.borrow() < hosts.count as u64 {
                        continue;
                    }
                }
            }
            settled = self.review(&areas, settled).await;
        }
    }

    async fn review(&self, areas: &Areas, before: Settled) -> Settled {
        // A switch back, and a proxy, are settled at the start.
        if !matches!(areas.core.policy().host_certificate, HostCertificate::Operators { .. }) {
            return before;
        }
        let settled = match areas.hosts.settle_host_certificate(false, self.tls.shows_operators()).await {
            Ok(settled) => settled,
            Err(error) => {
                log::debug!(event = "host_certificate_unsettled", cause:? = error; "the records are not available: hosts are shown what they were shown before");
                return before;
            }
        };
        if let Settled::HeldBack(hosts) = &settled
            && settled != before
        {
            log::warn!(event = "certificate_held_back", hosts = hosts.count; "{hosts} do not trust tls.certificate yet: hosts are shown our own until each of them has run `cdx --update && cdx --sync`");
        }
        if let Err(error) = self.put_in_force(areas, &settled) {
            log::error!(event = "certificate_not_in_force", cause:% = error; "hosts go on being shown the certificate of before");
        }
        settled
    }

    fn put_in_force(&self, areas: &Areas, settled: &Settled) -> Result<(), DaemonError> {
        match settled {
            Settled::Ours | Settled::HeldBack(_) => self.show_operators(areas, false),
            Settled::Switched => self.show_operators(areas, true),
        }
    }

    fn show_operators(&self, areas: &Areas, shows: bool) -> Result<(), DaemonError> {
        if self.tls.show_operators(shows)? {
            // What is printed from here on has the other pin.
            areas.core.set_policy(self.tls.policy(&self.config, &self.bound));
            let whose = if shows { "the operator's" } else { "our own" };
            log::info!(event = "certificate_switched"; "hosts are shown {whose} certificate from here on");
        }
        Ok(())
    }

    fn reload(&self) -> Result<(), DaemonError> {
        self.tls.reload()?;
        self.tls.write_files(&self.config.state_dir)
    }
}
