//! Which server certificates hosts accept, and when hosts can be shown another one.
//!
//! A wrapper always trusts our authority. The configuration may ask for a certificate that only the machine's trust
//! store vouches for (the operator's, or a proxy's). From then on, wrappers are baked to trust that store as well, and
//! report so with their version. The operator's certificate is shown when no host is cut off by it. Wrappers of earlier
//! releases trust one of the two and do not report which: it is recorded when the first daemon of this release starts.
//!
//! The record ([`HostTrust`]) is shared by all nodes. Each step is one transaction with a condition. After a crash the
//! next start repeats the step and finds it done.

use crate::model::host::{Fqdn, HostActivity};
use crate::records::{Host, HostTrust, SettingsChange};
use crate::service::core::policy::HostCertificate;
use crate::service::hosts::enrol::HostStatus;
use crate::service::{Hosts, Initiator, Result, hosts::bake};

/// A number of hosts with something in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostGroup {
    pub count: usize,
    /// At most `MAX_NAMES` of them.
    pub names: Vec<String>,
}

impl HostGroup {
    const MAX_NAMES: usize = 5;

    fn add(&mut self, name: &Fqdn) {
        self.count += 1;
        if self.names.len() < Self::MAX_NAMES {
            self.names.push(name.to_string());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// `3 host(s) (a.test, b.test, …)`
impl std::fmt::Display for HostGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} host(s)", self.count)?;
        if !self.names.is_empty() {
            let more = if self.count > self.names.len() { ", …" } else { "" };
            write!(f, " ({}{more})", self.names.join(", "))?;
        }
        Ok(())
    }
}

/// Hosts by what their wrappers trust.
#[derive(Clone, Debug, Default)]
pub struct HostsByTrust {
    pub trust_ours_alone: HostGroup,
    pub trust_system_alone: HostGroup,
    /// Whether hosts are shown a certificate that only the machine's store vouches for.
    pub is_switched: bool,
}

impl HostsByTrust {
    /// The hosts that do not accept the certificate that they are shown.
    pub fn cut_off(&self) -> &HostGroup {
        if self.is_switched { &self.trust_ours_alone } else { &self.trust_system_alone }
    }

    /// The hosts that a daemon with this configuration would cut off and that are not cut off yet.
    pub fn newly_cut_off(&self, wanted: HostCertificate) -> Option<&HostGroup> {
        let switches = match wanted {
            HostCertificate::Ours { .. } => false,
            HostCertificate::Operators { at_once: false } => self.is_switched || self.held_back(wanted).is_none(),
            HostCertificate::Operators { at_once: true } | HostCertificate::OfProxy => true,
        };
        let group = if switches { &self.trust_ours_alone } else { &self.trust_system_alone };
        Some(group).filter(|group| switches != self.is_switched && !group.is_empty())
    }

    /// The hosts because of which a daemon with this configuration keeps showing our certificate.
    pub fn held_back(&self, wanted: HostCertificate) -> Option<&HostGroup> {
        let waits = wanted == HostCertificate::Operators { at_once: false } && !self.is_switched;
        Some(&self.trust_ours_alone).filter(|group| waits && !group.is_empty())
    }
}

/// The result of [`Hosts::settle_host_certificate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    Ours,
    /// The operator's certificate is configured, but would cut these hosts off.
    HeldBack(HostGroup),
    /// Hosts are shown the operator's certificate, or a proxy's.
    Switched,
}

/// What a `cdx` trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trusted {
    ours: bool,
    system: bool,
}

impl Trusted {
    fn of(recorded: &HostTrust, wrapper_version: Option<&str>) -> Self {
        match wrapper_version.and_then(bake::reported_trust) {
            Some((ours, system)) => Self { ours, system },
            None => Self { ours: !recorded.old_wrappers_trust_system, system: recorded.old_wrappers_trust_system },
        }
    }

    fn is_of_both(self) -> bool {
        self.ours && self.system
    }
}

impl Hosts {
    /// The recorded trust; before anything is recorded, what the configuration implies.
    pub fn host_trust(&self) -> HostTrust {
        let recorded = self.core.settings.load().host_trust;
        recorded.unwrap_or_else(|| self.core.policy().host_certificate.of_before(self.core.platform.now()))
    }

    /// Whether wrappers are baked to trust the machine's store as well. Before anything is recorded, the configuration
    /// decides.
    pub(in crate::service) fn wrappers_trust_system(&self) -> bool {
        match self.core.settings.load().host_trust {
            Some(recorded) => recorded.system_since.is_some(),
            None => self.core.policy().host_certificate.needs_system_trust(),
        }
    }

    /// Records what the configuration asks for. Unless it says `at_once`, the operator's certificate waits while it
    /// would cut hosts off. `starts`: this daemon shows no certificate yet. `is_shown`: it shows the operator's
    /// certificate, and does not go back by itself, whatever hosts appear.
    pub async fn settle_host_certificate(&self, starts: bool, is_shown: bool) -> Result<Settled> {
        let wanted = self.core.policy().host_certificate;
        let now = self.core.platform.now();
        if self.core.settings.load().host_trust.is_none() {
            let change = SettingsChange::BeginHostTrust(wanted.of_before(now));
            self.change_host_trust("host_trust.begin", change).await?;
        }
        if wanted.needs_system_trust() && self.host_trust().system_since.is_none() {
            self.change_host_trust("host_trust.system", SettingsChange::TrustSystem { since: now }).await?;
        }
        let is_switched = self.host_trust().switched_at.is_some();
        match wanted {
            HostCertificate::Ours { .. } => {
                // Another node may be configured otherwise: its later record is not undone.
                if starts && is_switched {
                    self.change_host_trust("host_trust.switch_back", SettingsChange::Switch(None)).await?;
                }
                Ok(Settled::Ours)
            }
            HostCertificate::Operators { at_once: false } if !is_switched && !is_shown => {
                if let Some(apart) = self.hosts_by_trust().await?.held_back(wanted) {
                    return Ok(Settled::HeldBack(apart.clone()));
                }
                self.change_host_trust("host_trust.switch", SettingsChange::Switch(Some(now))).await?;
                Ok(Settled::Switched)
            }
            HostCertificate::Operators { .. } | HostCertificate::OfProxy => {
                if !is_switched {
                    self.change_host_trust("host_trust.switch", SettingsChange::Switch(Some(now))).await?;
                }
                Ok(Settled::Switched)
            }
        }
    }

    /// If another node was first, this node reads what that node recorded.
    async fn change_host_trust(&self, action: &str, change: SettingsChange) -> Result<()> {
        let note = Initiator::daemon().note(self.core.platform.now(), action);
        if self.core.change_settings(&note, change).await?.is_none() {
            self.core.catch_up().await?;
        }
        Ok(())
    }

    /// Counts the hosts that trust only one kind of certificate. Disabled and expired hosts are not counted: they are
    /// refused anyway, and could not fetch another wrapper. Hosts that were never installed are not counted: they have
    /// no wrapper yet.
    pub async fn hosts_by_trust(&self) -> Result<HostsByTrust> {
        let recorded = self.host_trust();
        let mut found = HostsByTrust { is_switched: recorded.switched_at.is_some(), ..HostsByTrust::default() };
        for host in self.hosts().await? {
            if host.status != HostStatus::Active {
                continue;
            }
            let mut activity = host.activity;
            let of = |activity: &HostActivity| Trusted::of(&recorded, activity.wrapper_version.as_deref());
            // This node does not know about calls to other nodes.
            if !of(&activity).is_of_both() && self.core.records.may_be_away() {
                let stored = self.core.records.host_activity(host.host.id).await?;
                if stored.last_seen > activity.last_seen {
                    activity = stored;
                }
            }
            if !has_wrapper(&host.host, &activity) {
                continue;
            }
            match of(&activity) {
                Trusted { ours: true, system: false } => found.trust_ours_alone.add(&host.host.fqdn),
                Trusted { ours: false, .. } => found.trust_system_alone.add(&host.host.fqdn),
                Trusted { ours: true, system: true } => {}
            }
        }
        Ok(found)
    }

    /// Notes that a host was given a wrapper: a switch may be waiting for this last one. It counts once the host
    /// reports it; until then the host may run its previous wrapper.
    pub(in crate::service) fn note_wrapper_fetched(&self) {
        self.wrappers_fetched.send_modify(|fetched| *fetched += 1);
    }

    /// Counts the wrappers that this node has given to hosts.
    pub fn wrappers_fetched(&self) -> tokio::sync::watch::Receiver<u64> {
        self.wrappers_fetched.subscribe()
    }
}

/// A host that was registered here and never called has no wrapper. A host that moved over from the former service has
/// one, whether or not it has called yet.
pub(in crate::service) fn has_wrapper(host: &Host, activity: &HostActivity) -> bool {
    host.imported_key_digest.is_some() || activity.last_seen.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: HostCertificate = HostCertificate::Ours { prepares: false };
    const PREPARES: HostCertificate = HostCertificate::Ours { prepares: true };
    const WHEN_SAFE: HostCertificate = HostCertificate::Operators { at_once: false };
    const NOW: HostCertificate = HostCertificate::Operators { at_once: true };

    #[test]
    fn a_wrapper_that_does_not_say_what_it_trusts_is_of_the_recorded_kind() {
        let of = |wanted: HostCertificate, version: Option<&str>| {
            let trusted = Trusted::of(&wanted.of_before(time::OffsetDateTime::UNIX_EPOCH), version);
            (trusted.ours, trusted.system)
        };
        for version in [None, Some("2026.11.29-02"), Some("2025.11.28-04")] {
            assert_eq!(of(OURS, version), (true, false));
            assert_eq!(of(PREPARES, version), (true, false));
            for wanted in [WHEN_SAFE, NOW, HostCertificate::OfProxy] {
                assert_eq!(of(wanted, version), (false, true));
            }
        }
        for wanted in [OURS, WHEN_SAFE] {
            assert_eq!(of(wanted, Some(bake::wrapper_version(false))), (true, false));
            assert_eq!(of(wanted, Some(bake::wrapper_version(true))), (true, true));
        }
    }

    #[test]
    fn who_is_cut_off_by_a_configuration_depends_on_what_is_shown_already() {
        let group = |count| HostGroup { count, names: vec!["a.test".into()] };
        let hosts = |is_switched, ours, system| HostsByTrust {
            is_switched,
            trust_ours_alone: group(ours),
            trust_system_alone: group(system),
        };
        for (found, wanted, cut_off, held_back) in [
            (hosts(false, 2, 0), OURS, None, None),
            (hosts(false, 2, 0), PREPARES, None, None),
            (hosts(false, 2, 0), WHEN_SAFE, None, Some(2)),
            (hosts(false, 2, 0), NOW, Some(2), None),
            (hosts(false, 2, 0), HostCertificate::OfProxy, Some(2), None),
            (hosts(false, 0, 0), NOW, None, None),
            // Cut off already.
            (hosts(true, 2, 0), NOW, None, None),
            (hosts(true, 2, 0), WHEN_SAFE, None, None),
            (hosts(false, 0, 3), OURS, None, None),
            (hosts(true, 0, 3), OURS, Some(3), None),
            (hosts(true, 0, 3), PREPARES, Some(3), None),
            (hosts(true, 0, 3), HostCertificate::OfProxy, None, None),
        ] {
            let count = |group: Option<&HostGroup>| group.map(|group| group.count);
            assert_eq!(count(found.newly_cut_off(wanted)), cut_off, "{found:?} {wanted:?}");
            assert_eq!(count(found.held_back(wanted)), held_back, "{found:?} {wanted:?}");
        }
    }

    #[test]
    fn a_group_names_a_few_of_its_hosts() {
        let mut group = HostGroup::default();
        for number in 0..7 {
            group.add(&format!("h{number}.test").parse().unwrap());
        }
        assert_eq!(group.to_string(), "7 host(s) (h0.test, h1.test, h2.test, h3.test, h4.test, …)");
    }
}
