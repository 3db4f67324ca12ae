//! Puts changes of certificates in force: which admin certificates and authorities are trusted, and which certificate
//! hosts are shown. The use cases decide; this module applies.

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

/// How often the daemon checks whether hosts can be shown the operator's certificate, if no event reports a change.
const REVIEW_INTERVAL: Duration = Duration::from_secs(60);

/// How often the daemon checks once as many wrappers were fetched as a switch waits for. A host reports its new
/// wrapper after installing it.
const REPORT_DELAY: Duration = Duration::from_secs(1);

/// The parts that depend on the trusted certificates and authorities.
pub struct Certificates {
    pub config: Config,
    pub bound: Bound,
    pub tls: Arc<Tls>,
}

impl Certificates {
    /// Runs before the listeners start. Hosts are shown the same certificate as before, or the one that the
    /// configuration asks for by now.
    pub async fn begin(&self, areas: &Areas) -> Result<(), DaemonError> {
        // If the records are away, do not wait for them again.
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
            // Without the records, the daemon goes on with what hot state knows.
            Err(ServiceError::RecordsAway { cause } | ServiceError::StoreFailed { cause }) => {
                log::warn!(event = "host_certificate_unsettled", cause = cause.as_str(); "the records are not available: hosts still get the previous certificate");
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
                log::warn!(event = "hosts_uncounted", cause:% = error; "cannot check whether all hosts trust the certificate that they get");
                return Ok(());
            }
        };
        if !cut_off.is_empty() {
            log::error!(event = "hosts_cut_off", hosts = cut_off.count; "{cut_off} do not trust the certificate that hosts get: cdx exits with 76 there; codex-authd doctor shows the remedy");
        }
        Ok(())
    }

    /// Applies changes that use cases made: a rolled-over authority, a revoked certificate, the last host with a new
    /// wrapper. After a crash in between, the next start reads everything again.
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
                                log::error!(event = "authorities_not_in_force", cause:% = error; "the authorities changed, but the change could not be put in force; restart the daemon")
                            }
                        }
                    }
                    admins.cut_unless(|fingerprint| areas.trust.admitted_certificate(fingerprint).is_some());
                }
                _ = seconds.tick() => {
                    // With fewer newly fetched wrappers than missing hosts, at least one host is still missing.
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
        // A switch back, and a change to or from a proxy, are handled at the start.
        if !matches!(areas.core.policy().host_certificate, HostCertificate::Operators { .. }) {
            return before;
        }
        let settled = match areas.hosts.settle_host_certificate(false, self.tls.shows_operators()).await {
            Ok(settled) => settled,
            Err(error) => {
                log::debug!(event = "host_certificate_unsettled", cause:? = error; "the records are not available: hosts still get the previous certificate");
                return before;
            }
        };
        if let Settled::HeldBack(hosts) = &settled
            && settled != before
        {
            log::warn!(event = "certificate_held_back", hosts = hosts.count; "{hosts} do not trust tls.certificate yet: hosts get the daemon's own certificate until each of them has run `cdx --update && cdx --sync`");
        }
        if let Err(error) = self.put_in_force(areas, &settled) {
            log::error!(event = "certificate_not_in_force", cause:% = error; "hosts still get the previous certificate");
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
            // New install commands and wrappers get the new pin.
            areas.core.set_policy(self.tls.policy(&self.config, &self.bound));
            let whose = if shows { "the operator's" } else { "the daemon's own" };
            log::info!(event = "certificate_switched"; "hosts get {whose} certificate from now on");
        }
        Ok(())
    }

    fn reload(&self) -> Result<(), DaemonError> {
        self.tls.reload()?;
        self.tls.write_files(&self.config.state_dir)
    }
}
