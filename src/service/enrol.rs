//! Hosts coming and going: register (again = rotate the key), list, show, remove, and the rules an admin may change.

use std::net::IpAddr;

use time::OffsetDateTime;

use super::{Result, Service, ServiceError};
use crate::hot::HotHost;
use crate::model::host::{Fqdn, HostActivity, HostId};
use crate::model::secret::Secret;
use crate::records::{Host, HostChange, NewInstallToken, Registration};
use crate::seal::Place;

/// How often a registration whose host appeared or vanished meanwhile is tried again.
const ATTEMPTS: usize = 8;

/// Where a host's API key stands sealed.
pub fn api_key_place(id: HostId) -> Place {
    Place::new("hosts", "api_key", id)
}

pub struct Registered {
    pub host: HostView,
    pub api_key: Secret,
    pub installer: Installer,
}

/// The command that an admin copies. Printed once: the token is kept as a digest only.
pub struct Installer {
    pub token: Secret,
    pub url: Secret,
    pub command: Secret,
    pub expires_at: OffsetDateTime,
}

pub struct HostView {
    pub host: Host,
    pub activity: HostActivity,
}

impl Service {
    /// Makes a host, or gives a known one a new key; all of its pending installers are dead from here on.
    pub async fn register(&self, fqdn: &str, secure: Option<bool>) -> Result<Registered> {
        let fqdn: Fqdn =
            fqdn.parse().map_err(|error: crate::model::host::BadFqdn| ServiceError::Refused(error.to_string()))?;
        let now = self.outside.now();
        let policy = self.policy();
        let api_key = Secret::new_api_key(&*self.outside);
        let token = Secret::new_install_token(&*self.outside);
        let expires_at = now + policy.install_token_ttl;
        let insecure_enabled_until = (secure == Some(false)).then(|| now + policy.insecure_window);
        let mut id = match self.records.host_by_name(&fqdn).await? {
            Some(host) => host.id,
            None => HostId::new(&*self.outside),
        };
        for _ in 0..ATTEMPTS {
            let registration = Registration {
                id,
                fqdn: fqdn.clone(),
                key_digest: api_key.digest(),
                api_key: self.ring.load().seal(&api_key_place(id), api_key.expose().as_bytes(), &*self.outside)?,
                secure,
                insecure_enabled_until,
                token: NewInstallToken { digest: token.digest(), base_url: policy.base_url.clone(), expires_at },
                at: now,
            };
            let host = self.records.register_host(&registration).await?;
            if host.key_digest != api_key.digest() {
                // The name belongs to a host with another id: the key must be sealed for that one.
                id = host.id;
                continue;
            }
            self.catch_up().await?;
            log::info!(event = "host_registered", host = host.fqdn.as_str(), id:% = host.id; "a host was registered");
            let activity = self.activity_of(&host)?;
            let installer = installer(&policy, token, expires_at);
            return Ok(Registered { host: HostView { host, activity }, api_key, installer });
        }
        Err(ServiceError::Unavailable { cause: format!("the host {fqdn} changed under every attempt to register it") })
    }

    pub async fn hosts(&self) -> Result<Vec<HostView>> {
        let hosts = self.records.hosts().await?;
        hosts.into_iter().map(|host| Ok(HostView { activity: self.activity_of(&host)?, host })).collect()
    }

    pub async fn host(&self, id: HostId) -> Result<HostView> {
        let host = self.records.host(id).await?.ok_or(ServiceError::NotFound("Host"))?;
        Ok(HostView { activity: self.activity_of(&host)?, host })
    }

    /// Removes a host: its key and its pending installers are refused from here on.
    pub async fn remove(&self, id: HostId) -> Result<Host> {
        let removed = self.records.remove_host(id, self.outside.now()).await?.ok_or(ServiceError::NotFound("Host"))?;
        self.catch_up().await?;
        log::info!(event = "host_removed", host = removed.fqdn.as_str(), id:% = removed.id; "a host was removed");
        Ok(removed)
    }

    /// A host takes itself out.
    pub async fn leave(&self, host: &HotHost) -> Result<Host> {
        self.remove(host.id).await
    }

    pub async fn allow_roaming(&self, id: HostId, allow: bool) -> Result<Host> {
        self.change(id, HostChange { allow_roaming_ips: Some(allow), ..HostChange::default() }).await
    }

    /// Opens the window of an insecure host.
    pub async fn open_window(&self, id: HostId) -> Result<Host> {
        let until = self.outside.now() + self.policy().insecure_window;
        self.change_insecure(
            id,
            HostChange {
                insecure_enabled_until: Some(Some(until)),
                insecure_grace_until: Some(None),
                ..HostChange::default()
            },
        )
        .await
    }

    pub async fn close_window(&self, id: HostId) -> Result<Host> {
        let closed = HostChange {
            insecure_enabled_until: Some(None),
            insecure_grace_until: Some(None),
            ..HostChange::default()
        };
        self.change_insecure(id, closed).await
    }

    async fn change_insecure(&self, id: HostId, change: HostChange) -> Result<Host> {
        if self.host(id).await?.host.rules.secure {
            return Err(ServiceError::Refused("the host is secure: it has no window to open or close".into()));
        }
        self.change(id, change).await
    }

    async fn change(&self, id: HostId, change: HostChange) -> Result<Host> {
        let host =
            self.records.change_host(id, &change, self.outside.now()).await?.ok_or(ServiceError::NotFound("Host"))?;
        self.catch_up().await?;
        Ok(host)
    }

    fn activity_of(&self, host: &Host) -> Result<HostActivity> {
        Ok(self.hot.host_by_id(host.id)?.map(|hot| hot.activity()).unwrap_or_default())
    }
}

/// The address without the v4-in-v6 mapping: a host that calls over a dual-stack socket is the same host.
pub fn canonical_address(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn installer(policy: &super::Policy, token: Secret, expires_at: OffsetDateTime) -> Installer {
    let url = format!("{}/install/{}", policy.base_url, token.expose());
    // The host knows no CA of ours yet: the key that the server must have is pinned instead, and the script that comes
    // back carries the CA. `-k` leaves the chain unchecked; the pin is checked all the same.
    let trust = match &policy.server_pin {
        Some(pin) => format!("-k --pinnedpubkey \"sha256//{pin}\" "),
        None => String::new(),
    };
    let command = format!("curl -fsSL {trust}\"{url}\" | bash");
    Installer { token, url: Secret::new(url), command: Secret::new(command), expires_at }
}
