//! Who is let in: the host behind a key, and whether it may call from where it calls now.
//!
//! Everything is answered from hot state. The records are asked in two cases only, both of which must happen once across
//! nodes: binding a key to its first address, and binding a roaming host to a new one.

use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;

use super::error::Throttled;
use super::{Result, Service, ServiceError};
use crate::hot::HotHost;
use crate::model::digest::Digest;
use crate::model::host::HostRules;
use crate::records::HostChange;

impl Service {
    /// Counts a request of the hosts' listener against its address.
    pub fn count_request(&self, from: IpAddr) -> Result<()> {
        let now = self.outside.now();
        self.throttle
            .global(from, now)
            .map_err(|limited| ServiceError::RateLimited(Throttled::new(limited.limit, limited.reset_at, now)))
    }

    /// The host that `key` belongs to, if it is served now and from this address. `anywhere` leaves the address rule
    /// out (a host that takes itself out from a new address).
    pub async fn admit(&self, key: Option<&str>, from: IpAddr, anywhere: bool) -> Result<Arc<HotHost>> {
        if self.settings.load().api_disabled {
            return Err(ServiceError::ApiDisabled);
        }
        let now = self.outside.now();
        let host = self.host_of(key, from, now)?;
        if !host.rules.secure && !window_is_open(&host.rules, now) {
            return Err(ServiceError::InsecureClosed);
        }
        if anywhere || host.rules.bound_ip == Some(from) {
            return Ok(host);
        }
        self.bind(host, from, now).await
    }

    /// A good key is never throttled: only failures count, and only failures are answered 429.
    fn host_of(&self, key: Option<&str>, from: IpAddr, now: OffsetDateTime) -> Result<Arc<HotHost>> {
        let key = key.map(str::trim).filter(|key| !key.is_empty()).ok_or(ServiceError::KeyMissing)?;
        if let Some(host) = self.hot.host_by_key(&Digest::of(key.as_bytes()))? {
            return Ok(host);
        }
        if let Some(until) = self.throttle.auth_blocked(from, now) {
            return Err(ServiceError::AuthBlocked(Throttled::new(self.throttle.limits().auth_fail_count, until, now)));
        }
        self.throttle.auth_failed(from, now);
        log::info!(event = "key_refused", address:% = from; "an unknown API key was refused");
        Err(ServiceError::KeyInvalid)
    }

    /// The host's address is not the one it is bound to: its first call, a roaming host, or somebody else.
    async fn bind(&self, host: Arc<HotHost>, from: IpAddr, now: OffsetDateTime) -> Result<Arc<HotHost>> {
        let rules = &host.rules;
        let bound = match rules.bound_ip {
            None => self.records.bind_ip_if_unbound(host.id, from, now).await?,
            Some(_) if rules.allow_roaming_ips => {
                let change = HostChange { bound_ip: Some(Some(from)), ..HostChange::default() };
                self.records.change_host(host.id, &change, now).await?.and_then(|host| host.rules.bound_ip)
            }
            bound @ Some(_) => bound,
        };
        if bound != rules.bound_ip {
            self.catch_up().await?;
            log::info!(event = "host_bound", host = host.fqdn.as_str(), address:% = from; "a host was bound to an address");
        }
        if bound != Some(from) {
            log::warn!(event = "address_refused", host = host.fqdn.as_str(), address:% = from; "a key was used from an address that it is not bound to");
            return Err(ServiceError::AddressRefused);
        }
        self.hot.host_by_id(host.id)?.ok_or(ServiceError::KeyInvalid)
    }
}

fn window_is_open(rules: &HostRules, now: OffsetDateTime) -> bool {
    [rules.insecure_enabled_until, rules.insecure_grace_until].into_iter().flatten().any(|until| now < until)
}
