//! Who is let in: the host behind a key, and whether it may call from where it calls now.
//!
//! Everything is answered from hot state. The records are asked in two cases only, both of which must happen once across
//! nodes: binding a key to its first address, and binding a roaming host to a new one.

use std::net::IpAddr;
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use crate::hot::HotHost;
use crate::hot::throttle::{Failing, Limited};
use crate::metrics::Refusal;
use crate::model::audit::Actor;
use crate::model::digest::Digest;
use crate::model::host::{AddressRule, Fqdn, HostRules};
use crate::model::people::UserId;
use crate::records::{Host, SettingsChange};
use crate::service::core::initiator::log_note;
use crate::service::error::{RefusedAddress, Throttled};
use crate::service::{Core, Initiator, People, Result, ServiceError};

/// What a call carries in the place of an API key, as this node knows it. The digest is the SHA-256 of its text.
#[derive(Clone)]
pub enum Credential {
    /// Nothing but space.
    Blank,
    Host(Digest, Arc<HotHost>),
    /// The access token of a user.
    User(Digest, UserId),
    /// Nobody's, or hot state could not be read.
    Unknown(Digest),
}

/// What a host comes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be served.
    Service,
    /// To take itself out. `anywhere` leaves the address rule out (a host that leaves from a new address).
    Leave { anywhere: bool },
}

/// What the audit log calls it.
const ADDRESS_REFUSED: &str = "address.refused";
/// How many of the newest audit entries are read for the last refusal of a host.
const MAX_SEARCHED_ENTRIES: usize = 2000;

/// The longest reason of a kill switch, in characters.
const MAX_REASON_CHARACTERS: usize = 200;
/// Windows may have been opened for longer than the present configuration would, but not for longer than this.
const MAX_WINDOW: Duration = Duration::hours(1);

pub struct Admission {
    pub(super) core: Arc<Core>,
    pub(super) people: Arc<People>,
}

impl Admission {
    /// Finds the owner of a credential, from memory and hot state alone.
    pub fn credential(&self, text: &str) -> Credential {
        let text = text.trim();
        if text.is_empty() {
            return Credential::Blank;
        }
        let digest = Digest::of(text.as_bytes());
        // Admission reports hot state that cannot be read.
        if let Ok(Some(host)) = self.core.hot.host_by_key(&digest) {
            return Credential::Host(digest, host);
        }
        match self.people.user_of_session(&digest, self.core.platform.now()) {
            Some(user) => Credential::User(digest, user),
            None => Credential::Unknown(digest),
        }
    }

    /// Counts a request of the hosts' listener: against the host or the user of its credential, if that is good, else
    /// against its address. So neighbours behind one address do not use up each other's calls, and a stranger uses up
    /// nobody's. `leaves`: the host takes itself out, which is refused only where the address has called too often as well.
    pub fn count_request(&self, credential: Option<&Credential>, leaves: bool, from: IpAddr) -> Result<()> {
        let now = self.core.platform.now();
        let counted = match credential {
            Some(Credential::Host(_, host)) => self.core.throttle.host(host.id, now),
            Some(Credential::User(_, user)) => self.core.throttle.user(*user, now),
            Some(Credential::Blank | Credential::Unknown(_)) | None => {
                return self.count_stranger(self.core.throttle.global(from, now), now);
            }
        };
        match counted {
            Err(_) if leaves => self.count_stranger(self.core.throttle.global(from, now), now),
            counted => counted.map_err(|limited| {
                self.core.metrics.refused(Refusal::Host);
                ServiceError::HostRateLimited(Throttled::new(limited.limit, limited.reset_at, now))
            }),
        }
    }

    /// Counts a request of the admin listener by somebody who is not known, against its address and apart from the hosts'
    /// listener: whoever floods that one keeps no admin of the same address from signing in.
    pub fn count_stranger_of_admins(&self, from: IpAddr, now: OffsetDateTime) -> Result<()> {
        self.count_stranger(self.core.throttle.admins(from, now), now)
    }

    fn count_stranger(&self, counted: std::result::Result<(), Limited>, now: OffsetDateTime) -> Result<()> {
        counted.map_err(|limited| {
            self.core.metrics.refused(Refusal::Global);
            ServiceError::RateLimited(Throttled::new(limited.limit, limited.reset_at, now))
        })
    }

    /// The host of `credential`, if it is served now and from this address.
    pub async fn admit(&self, credential: &Credential, from: IpAddr, purpose: Purpose) -> Result<Arc<HotHost>> {
        let now = self.core.platform.now();
        if let Some(refusal) = self.core.api_disabled() {
            return Err(refusal);
        }
        let (key, host) = match credential {
            Credential::Blank => return Err(ServiceError::KeyMissing),
            Credential::Host(key, host) => (key, Arc::clone(host)),
            Credential::User(key, _) | Credential::Unknown(key) => match self.core.hot.host_by_key(key)? {
                Some(host) => (key, host),
                None => return Err(Box::pin(self.key_failed(from, now)).await),
            },
        };
        let policy = self.core.policy.load();
        host.rules.served(now, policy.insecure_window.max(MAX_WINDOW))?;
        let rule = host.rules.address(from, policy.ipv6_prefix);
        drop(policy);
        match rule {
            _ if purpose == Purpose::Leave { anywhere: true } => Ok(host),
            AddressRule::Admitted => Ok(host),
            AddressRule::ToBeBound => Box::pin(self.bind(host, key, from, now)).await,
            AddressRule::Refused => Err(self.address_refused(&host.fqdn, &host.rules, from, now)),
        }
    }

    /// Counts a wrong key. If it is the one too many, its sender is not answered before the block would survive a crash.
    /// A good key is never refused for failures from its address: only failures are answered so.
    async fn key_failed(&self, from: IpAddr, now: OffsetDateTime) -> ServiceError {
        if let Some(until) = self.core.throttle.blocked(&Failing::Key(from), now) {
            self.core.metrics.refused(Refusal::AuthFailures);
            return ServiceError::AuthBlocked(Throttled::new(self.core.throttle.limits().auth_fail_count, until, now));
        }
        self.core.metrics.key_failed();
        self.core.security_events.event("key.refused", "", from, false, now);
        if self.core.failed(&Failing::Key(from), now).await {
            self.core.security_events.event("address.blocked", "", from, false, now);
        }
        ServiceError::KeyInvalid
    }

    /// The host's first call, or a roaming host's first one from a new address. The records decide, for the key that was
    /// presented: one that was replaced meanwhile binds nothing.
    async fn bind(&self, host: Arc<HotHost>, key: &Digest, from: IpAddr, now: OffsetDateTime) -> Result<Arc<HotHost>> {
        let by = Initiator { actor: Actor::Host { id: host.id, fqdn: host.fqdn.clone() }, from: Some(from) };
        let known = host.rules.bound_like(from);
        let note = match known {
            None => by.note(now, "host.bind"),
            Some(previous) => by.note(now, "host.rebind").with("previous", previous),
        };
        let note = note.on(&host.fqdn).with("address", from);
        let ipv6_prefix = self.core.policy.load().ipv6_prefix;
        let binding = self.core.records.host_bind_ip(host.id, key, from, ipv6_prefix, now, &note);
        let is_news = |bound: &&Host| bound.rules.bound_like(from) != known;
        let bound = self.core.commit_untold(binding, |bound| bound.as_ref().filter(is_news).map(Into::into)).await?;
        let bound = bound.ok_or(ServiceError::KeyInvalid)?;
        if bound.rules.address(from, ipv6_prefix) != AddressRule::Admitted {
            return Err(self.address_refused(&bound.fqdn, &bound.rules, from, now));
        }
        log_note(&note);
        match self.core.hot.host_by_id(host.id) {
            Ok(host) => host.ok_or(ServiceError::KeyInvalid),
            Err(error) => {
                log::warn!(event = "host_unread", cause:% = error; "a host is bound to its address; it is answered from what was known before");
                Ok(host)
            }
        }
    }

    fn address_refused(&self, fqdn: &Fqdn, rules: &HostRules, from: IpAddr, now: OffsetDateTime) -> ServiceError {
        let networks = &rules.allowed_networks;
        let bound_to = rules.bound_like(from).filter(|_| networks.is_empty());
        let note = Initiator::anybody(from).note(now, ADDRESS_REFUSED).refused("refused").on(fqdn);
        self.core.security_events.refused(match bound_to {
            Some(bound) => {
                let remedy = format!("codex-authd hosts clear {fqdn} | codex-authd hosts roaming {fqdn}");
                note.with("bound_to", bound).with("remedy", remedy)
            }
            None => {
                let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
                let remedy = format!("codex-authd hosts networks {fqdn} NETWORK...");
                note.with("networks", networks.join(" ")).with("remedy", remedy)
            }
        });
        ServiceError::AddressRefused(Box::new(RefusedAddress { fqdn: fqdn.clone(), called_from: from, bound_to }))
    }

    /// The last refused call of a host, if it would be refused again, with the time. It is looked for among the newest
    /// entries of the audit log only, which bounds the cost of a page that shows it.
    pub async fn last_address_refused(&self, host: &Host) -> Result<Option<(RefusedAddress, OffsetDateTime)>> {
        let newest = self.core.records.audit_head().await?.number;
        let entries = self
            .core
            .records
            .audit_list_from(newest.saturating_sub(MAX_SEARCHED_ENTRIES as u64) + 1, MAX_SEARCHED_ENTRIES);
        let notes = entries.await?.into_iter().rev().map(|entry| entry.note);
        let last = notes
            .filter(|note| note.action == ADDRESS_REFUSED && note.target.as_deref() == Some(host.fqdn.as_str()))
            .find_map(|note| Some((note.from?, note.at)));
        let Some((called_from, at)) = last else { return Ok(None) };
        if host.rules.address(called_from, self.core.policy.load().ipv6_prefix) != AddressRule::Refused {
            return Ok(None);
        }
        let bound_to = host.rules.bound_like(called_from).filter(|_| host.rules.allowed_networks.is_empty());
        Ok(Some((RefusedAddress { fqdn: host.fqdn.clone(), called_from, bound_to }, at)))
    }

    /// The kill switch.
    pub async fn disable_api(&self, disabled: bool, reason: Option<&str>, by: &Initiator) -> Result<()> {
        let reason = reason.map(str::trim).filter(|reason| disabled && !reason.is_empty());
        if reason.is_some_and(|reason| {
            reason.chars().count() > MAX_REASON_CHARACTERS || reason.chars().any(char::is_control)
        }) {
            return Err(ServiceError::invalid(
                "reason",
                format!("must be one line of at most {MAX_REASON_CHARACTERS} characters"),
            ));
        }
        let note = by.note(self.core.platform.now(), if disabled { "api.disable" } else { "api.enable" });
        let note = reason.iter().fold(note, |note, reason| note.with("reason", reason));
        self.core
            .change_settings(&note, SettingsChange::KillSwitch { disabled, reason: reason.map(String::from) })
            .await?;
        Ok(())
    }
}
