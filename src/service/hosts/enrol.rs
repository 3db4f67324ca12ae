//! Host administration: register (again = rotate the key), list, show, remove, restore, and the rules that an admin may
//! change.

use std::net::IpAddr;

use ipnet::IpNet;
use time::{Duration, OffsetDateTime};

use crate::hot::HotHost;
use crate::model::audit::{Actor, AuditNote};
use crate::model::host::{Fqdn, HostActivity, HostId, HostRules, NotServed};
use crate::model::people::UserId;
use crate::model::secret::Secret;
use crate::records::{Host, HostChange, NewInstallToken, Owner, Registration, RegistrationOutcome, Restoration};
use crate::seal::Place;
use crate::service::core::commit::Written;
use crate::service::{Hosts, Initiator, Result, ServiceError};

/// How long a removal can be undone.
pub const RESTORE_WINDOW: Duration = Duration::days(1);
/// How many networks a host may be served from.
const MAX_NETWORKS: usize = 64;

/// How often a registration is retried if its host appears or disappears meanwhile.
const MAX_ID_ATTEMPTS: usize = 8;

/// The place under which a host's API key is sealed.
pub fn api_key_place(id: HostId) -> Place {
    Place::new("hosts", "api_key", id)
}

/// How a host is registered. By default a known host keeps its settings, and a new one gets the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOptions {
    /// `Some(false)`: a shared machine.
    pub secure: Option<bool>,
    /// Until when a temporary host is served.
    pub expires_at: Option<OffsetDateTime>,
    /// The host does reach this daemon at the guessed address (`Policy::base_url_doubt`).
    pub allow_short_name: bool,
}

pub struct Registered {
    pub host: HostView,
    pub api_key: Secret,
    pub installer: Installer,
}

/// The command that an admin copies. It is shown once, because only the digest of the token is kept.
pub struct Installer {
    pub token: Secret,
    pub url: Secret,
    pub command: Secret,
    pub expires_at: OffsetDateTime,
}

pub struct HostView {
    pub host: Host,
    pub activity: HostActivity,
    pub status: HostStatus,
}

/// The state of a host, without regard to its address and window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostStatus {
    Active,
    Disabled,
    Expired,
    Removed,
}

impl HostStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Removed => "removed",
        }
    }

    pub fn of(host: &Host, now: OffsetDateTime) -> Self {
        if host.removed_at.is_some() { Self::Removed } else { Self::of_rules(&host.rules, now) }
    }

    /// The status of a host that is not removed.
    pub fn of_rules(rules: &HostRules, now: OffsetDateTime) -> Self {
        match rules.served(now, Duration::MAX) {
            Err(NotServed::Disabled) => Self::Disabled,
            Err(NotServed::Expired) => Self::Expired,
            Ok(()) | Err(NotServed::WindowClosed) => Self::Active,
        }
    }
}

impl Hosts {
    /// Registers a host, or gives a known host a new key. All its pending installers become invalid. A host that a user
    /// had installed for themselves has no owner afterwards.
    pub async fn register(&self, fqdn: &str, options: HostOptions, by: &Initiator) -> Result<Registered> {
        self.register_for(fqdn, options, None, by).await
    }

    /// Like [`Self::register`]; with an owner, the host is theirs and counts against their limit.
    pub(in crate::service) async fn register_for(
        &self,
        fqdn: &str,
        options: HostOptions,
        owner: Option<&Owner>,
        by: &Initiator,
    ) -> Result<Registered> {
        let HostOptions { secure, expires_at: host_expires_at, allow_short_name } = options;
        let fqdn: Fqdn =
            fqdn.parse().map_err(|error: crate::model::host::BadFqdn| ServiceError::Refused(error.to_string()))?;
        let now = self.core.platform.now();
        if host_expires_at.is_some_and(|end| end <= now) {
            return Err(ServiceError::invalid("expires_at", "must be in the future"));
        }
        let note = by.note(now, "host.register").on(&fqdn);
        let note = host_expires_at.iter().fold(note, |note, end| note.with("expires_at", end));
        let policy = self.core.policy();
        if let Some(doubt) = policy.base_url_doubt.filter(|_| !allow_short_name) {
            let (base_url, file) = (policy.base_url.clone(), policy.config_file.clone());
            return Err(ServiceError::BaseUrlGuessed { base_url, doubt, file });
        }
        let api_key = Secret::new_api_key(&*self.core.platform);
        let token = Secret::new_install_token(&*self.core.platform);
        let expires_at = now + policy.install_token_ttl;
        let insecure_enabled_until = (secure == Some(false)).then(|| now + policy.insecure_window);
        let mut known = self.core.records.host_fetch_by_name(&fqdn).await?.map(|host| host.id);
        for _ in 0..MAX_ID_ATTEMPTS {
            let id = known.unwrap_or_else(|| HostId::new(&*self.core.platform));
            // A known host is overwritten only under its own id. So either this note is true, or nothing happens.
            let note = known.iter().fold(note.clone(), |note, _| note.with("rotated", true));
            let registration = Registration {
                id,
                fqdn: fqdn.clone(),
                key_digest: api_key.digest(),
                api_key: self.core.ring.load().seal(
                    &api_key_place(id),
                    api_key.expose().as_bytes(),
                    &*self.core.platform,
                )?,
                secure,
                expires_at: host_expires_at,
                insecure_enabled_until,
                token: NewInstallToken { digest: token.digest(), base_url: policy.base_url.clone(), expires_at },
                at: now,
            };
            let registering = async {
                match owner {
                    None => {
                        let host = self.core.records.host_register(&registration, &note).await?;
                        Ok(RegistrationOutcome::Host(Box::new(host)))
                    }
                    Some(owner) => self.core.records.host_register_owned(&registration, owner, &note).await,
                }
            };
            let is_new = |host: &Host| host.key_digest == api_key.digest();
            let registered = self
                .core
                .commit(&note, registering, |registered| match registered {
                    RegistrationOutcome::Host(host) if is_new(host) => Some((&**host).into()),
                    _ => None,
                })
                .await?;
            let host = match registered {
                RegistrationOutcome::Host(host) => *host,
                RegistrationOutcome::NotTheirs => {
                    return Err(ServiceError::Conflict(format!("{fqdn} is a host already, and it is not yours")));
                }
                RegistrationOutcome::TooMany => {
                    return Err(ServiceError::Conflict(format!(
                        "you have {} hosts, which is your limit; remove one, or ask an admin for more",
                        owner.map_or(0, |owner| owner.at_most)
                    )));
                }
                RegistrationOutcome::OwnerDisabled => {
                    return Err(ServiceError::Conflict("your account is disabled; ask an admin".into()));
                }
            };
            if !is_new(&host) {
                // The name belongs to a host with another id: the key must be sealed for that id.
                known = Some(host.id);
                continue;
            }
            let installer = installer(&policy, token, expires_at);
            return Ok(Registered { host: self.view(host), api_key, installer });
        }
        Err(ServiceError::Unavailable { cause: format!("the host {fqdn} changed under every attempt to register it") })
    }

    pub async fn hosts(&self) -> Result<Vec<HostView>> {
        let hosts = self.core.records.host_list().await?;
        Ok(hosts.into_iter().map(|host| self.view(host)).collect())
    }

    pub async fn host(&self, id: HostId) -> Result<HostView> {
        let host = self.core.records.host_fetch(id).await?.ok_or(ServiceError::NotFound("Host"))?;
        Ok(self.view(host))
    }

    /// The host of this name. `None` also if no host can have this name.
    pub async fn host_named(&self, name: &str) -> Result<Option<HostView>> {
        let Ok(fqdn) = name.parse::<Fqdn>() else { return Ok(None) };
        Ok(self.core.records.host_fetch_by_name(&fqdn).await?.map(|host| self.view(host)))
    }

    /// Removes a host: its key and its pending installers are refused from then on. It can be restored for
    /// [`RESTORE_WINDOW`].
    pub async fn remove(&self, id: HostId, by: &Initiator) -> Result<Host> {
        self.remove_for(id, None, by).await
    }

    /// Like [`Self::remove`]; with an owner, only a host of theirs.
    pub(in crate::service) async fn remove_for(
        &self,
        id: HostId,
        owner: Option<UserId>,
        by: &Initiator,
    ) -> Result<Host> {
        let fqdn = self.core.records.host_fetch(id).await?.ok_or(ServiceError::NotFound("Host"))?.fqdn;
        let now = self.core.platform.now();
        let note = by.note(now, "host.remove").on(fqdn).with("id", id);
        let removing = match owner {
            None => self.core.records.host_remove(id, now, &note),
            Some(owner) => self.core.records.host_remove_owned(id, owner, now, &note),
        };
        let removed = self.core.commit(&note, removing, |removed| removed.as_ref().map(Into::into)).await?;
        removed.ok_or(ServiceError::NotFound("Host"))
    }

    /// Removes the calling host.
    pub async fn leave(&self, host: &HotHost, from: IpAddr) -> Result<Host> {
        let actor = Actor::Host { id: host.id, fqdn: host.fqdn.clone() };
        self.remove(host.id, &Initiator { actor, from: Some(from) }).await
    }

    /// The hosts whose removal can still be undone, latest removal first.
    pub async fn removed_hosts(&self) -> Result<Vec<Host>> {
        let since = self.core.platform.now() - RESTORE_WINDOW;
        let removed = self.core.records.host_list_removed().await?;
        Ok(removed.into_iter().filter(|host| host.removed_at.is_some_and(|at| at > since)).collect())
    }

    /// Undoes a removal: the host is served again, with the key, the rules and the counts that it had.
    pub async fn restore(&self, id: HostId, by: &Initiator) -> Result<HostView> {
        let now = self.core.platform.now();
        let removed = self.removed_hosts().await?.into_iter().find(|host| host.id == id);
        let fqdn = removed.ok_or(ServiceError::NotFound("Removed host"))?.fqdn;
        let note = by.note(now, "host.restore").on(&fqdn).with("id", id);
        let restoring = self.core.records.host_restore(id, now - RESTORE_WINDOW, now, &note);
        let restored = self.core.commit(&note, restoring, |restored| match restored {
            Restoration::Restored(host) => Some(host.into()),
            Restoration::NameTaken | Restoration::Unknown => None,
        });
        match restored.await? {
            Restoration::Restored(host) => {
                if let Err(error) = self.take_activity(id).await {
                    log::warn!(event = "activity_unread", cause:% = error; "a host is restored, but its counts could not be read; the next start reads them");
                }
                Ok(self.view(host))
            }
            Restoration::NameTaken => Err(ServiceError::Conflict(format!(
                "another host is now called {fqdn}; remove that one first, or leave this one removed"
            ))),
            Restoration::Unknown => Err(ServiceError::NotFound("Removed host")),
        }
    }

    /// Takes the activity of a host from the records.
    async fn take_activity(&self, id: HostId) -> Result<()> {
        let activity = self.core.records.host_activity(id).await?;
        self.core.hot.set_activities(&[(id, activity.clone())])?;
        self.core.directory.set_activity([(id, activity)]);
        Ok(())
    }

    /// Forgets the keys of hosts whose removal can no longer be undone.
    pub async fn purge_removed(&self) -> Result<()> {
        let purging = self.core.records.host_purge_removed(self.core.platform.now() - RESTORE_WINDOW);
        let purged = self.core.commit_untold(purging, |purged| (*purged > 0).then(Written::default)).await?;
        if purged > 0 {
            log::info!(event = "removed_hosts_purged", hosts = purged; "forgot the keys of hosts that were removed more than a day ago");
        }
        Ok(())
    }

    /// Forgets the bound address: the host is bound to the next address that it calls from.
    pub async fn clear(&self, id: HostId, by: &Initiator) -> Result<Host> {
        let change = HostChange { bound_ip: Some(None), ..HostChange::default() };
        self.change(id, change, by.note(self.core.platform.now(), "host.clear")).await
    }

    pub async fn allow_roaming(&self, id: HostId, allow: bool, by: &Initiator) -> Result<Host> {
        let change = HostChange { allow_roaming_ips: Some(allow), ..HostChange::default() };
        self.change(id, change, by.note(self.core.platform.now(), "host.roaming").with("allow", allow)).await
    }

    /// Disables a host, or enables it again; its key stays.
    pub async fn disable(&self, id: HostId, disabled: bool, by: &Initiator) -> Result<Host> {
        let action = if disabled { "host.disable" } else { "host.enable" };
        let change = HostChange { disabled: Some(disabled), ..HostChange::default() };
        self.change(id, change, by.note(self.core.platform.now(), action)).await
    }

    /// Makes a host temporary, or permanent again (`None`).
    pub async fn set_expiry(&self, id: HostId, expires_at: Option<OffsetDateTime>, by: &Initiator) -> Result<Host> {
        let now = self.core.platform.now();
        if expires_at.is_some_and(|end| end <= now) {
            return Err(ServiceError::invalid("expires_at", "must be in the future; to end it now, disable the host"));
        }
        let told = expires_at.map_or("never".into(), |end| end.to_string());
        let change = HostChange { expires_at: Some(expires_at), ..HostChange::default() };
        self.change(id, change, by.note(now, "host.expiry").with("expires_at", told)).await
    }

    /// Serves a host only from these networks; without networks, only from its bound address.
    pub async fn set_networks(&self, id: HostId, networks: &[String], by: &Initiator) -> Result<Host> {
        if networks.len() > MAX_NETWORKS {
            return Err(ServiceError::invalid("networks", format!("at most {MAX_NETWORKS}")));
        }
        let networks = networks.iter().map(|text| network(text)).collect::<Result<Vec<_>>>()?;
        let told = networks.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" ");
        let change = HostChange { allowed_networks: Some(networks), ..HostChange::default() };
        self.change(id, change, by.note(self.core.platform.now(), "host.networks").with("networks", told)).await
    }

    /// Opens the window of an insecure host.
    pub async fn open_window(&self, id: HostId, by: &Initiator) -> Result<Host> {
        let now = self.core.platform.now();
        let until = now + self.core.policy().insecure_window;
        let change = HostChange {
            insecure_enabled_until: Some(Some(until)),
            insecure_grace_until: Some(None),
            ..HostChange::default()
        };
        self.change_insecure(id, change, by.note(now, "host.window_open").with("until", until)).await
    }

    pub async fn close_window(&self, id: HostId, by: &Initiator) -> Result<Host> {
        let closed = HostChange {
            insecure_enabled_until: Some(None),
            insecure_grace_until: Some(None),
            ..HostChange::default()
        };
        self.change_insecure(id, closed, by.note(self.core.platform.now(), "host.window_close")).await
    }

    async fn change_insecure(&self, id: HostId, change: HostChange, note: AuditNote) -> Result<Host> {
        if self.host(id).await?.host.rules.secure {
            return Err(ServiceError::Refused("the host is secure: it has no window to open or close".into()));
        }
        self.change(id, change, note).await
    }

    async fn change(&self, id: HostId, change: HostChange, note: AuditNote) -> Result<Host> {
        let fqdn = self.core.records.host_fetch(id).await?.ok_or(ServiceError::NotFound("Host"))?.fqdn;
        let note = note.on(fqdn);
        let changing = self.core.records.host_change(id, &change, note.at, &note);
        let changed = self.core.commit(&note, changing, |changed| changed.as_ref().map(Into::into)).await?;
        changed.ok_or(ServiceError::NotFound("Host"))
    }

    /// A host with its activity as this node knows it. Cannot fail, because it is also called after a change.
    pub fn view(&self, host: Host) -> HostView {
        let activity = match self.core.hot.host_by_id(host.id) {
            Ok(hot) => hot.map(|hot| hot.activity()).unwrap_or_default(),
            Err(error) => {
                log::warn!(event = "activity_unread", cause:% = error; "the counts of a host cannot be read");
                HostActivity::default()
            }
        };
        HostView { status: HostStatus::of(&host, self.core.platform.now()), activity, host }
    }
}

/// A network in CIDR form, or a single address.
pub(crate) fn network(text: &str) -> Result<IpNet> {
    let text = text.trim();
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.and_then(|network| canonical_network(network.trunc())).ok_or_else(|| {
        let shown: String = text.chars().take(50).collect();
        ServiceError::invalid(
            "networks",
            format!("{shown:?} is not a network: write 192.0.2.0/24, 2001:db8::/64 or one address"),
        )
    })
}

/// Turns a v4-mapped network into its IPv4 network. Callers' addresses are canonical, so none would ever match the
/// mapped form.
fn canonical_network(network: IpNet) -> Option<IpNet> {
    match (network, network.addr().to_canonical()) {
        (IpNet::V6(_), address @ IpAddr::V4(_)) => IpNet::new(address, network.prefix_len().checked_sub(96)?).ok(),
        _ => Some(network),
    }
}

/// The address without the v4-in-v6 mapping: a host that calls over a dual-stack socket is the same host.
pub fn canonical_address(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The URL of this token's installer. A GET there redeems the token.
pub(in crate::service) fn installer_url(base_url: &str, token: &str) -> String {
    format!("{base_url}/install/{token}")
}

fn installer(policy: &crate::service::Policy, token: Secret, expires_at: OffsetDateTime) -> Installer {
    let url = installer_url(&policy.base_url, token.expose());
    // The host does not know our CA yet, so the command pins the server's public key. The installer then carries the
    // CA. `-k` skips the check of the chain; curl still checks the pin.
    let trust = match &policy.server_pin {
        Some(pin) => format!("-k --pinnedpubkey \"sha256//{pin}\" "),
        None => String::new(),
    };
    // If the machine can be set up, the first stage (`wrapper/start.sh`) fetches the installer by the same command.
    // There is no `-f`, because a refusal is a script that prints the reason and exits 1. `-w` appends a last line that
    // tests the status, even without an answer, so that the command fails then, too.
    let command = format!("curl -sSL {trust}\"{url}/start\" -w '\\n[ %{{http_code}} = 200 ]' | bash");
    Installer { token, url: Secret::new(url), command: Secret::new(command), expires_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_in_v4_mapped_form_is_its_v4() {
        for (text, wanted) in [
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("2001:db8::1/64", "2001:db8::/64"),
            (" 192.0.2.7/24 ", "192.0.2.0/24"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), wanted, "{text}");
        }
    }
}
