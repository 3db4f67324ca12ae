//! The rules that every store shares: how a change turns the present state into the next. Stores nothing.

use std::net::IpAddr;

use time::{OffsetDateTime, UtcOffset};

use super::{
    Authority, AuthoritySlot, AuthorityStep, Host, HostChange, InstallToken, Owner, RecordsError, Registration,
    RegistrationOutcome, Session, Settings, SettingsChange, SignInMethod, User, UserChange,
};
use crate::model::audit::AuditNote;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::host::{HostRules, same_address};
use crate::model::people::UserId;
use crate::seal::Sealed;

impl Host {
    /// First registration.
    pub(super) fn registered(registration: &Registration, owner: Option<UserId>) -> Self {
        let secure = registration.secure.unwrap_or(true);
        Self {
            owner,
            id: registration.id,
            fqdn: registration.fqdn.clone(),
            key_digest: registration.key_digest,
            imported_key_digest: None,
            api_key: registration.api_key.clone(),
            rules: HostRules {
                secure,
                allow_roaming_ips: false,
                bound_ip: None,
                bound_ip_other: None,
                insecure_enabled_until: registration.insecure_enabled_until.filter(|_| !secure),
                insecure_grace_until: None,
                disabled: false,
                disabled_with_user: false,
                expires_at: registration.expires_at,
                allowed_networks: Vec::new(),
            },
            created_at: registration.at,
            updated_at: registration.at,
            removed_at: None,
            agent_identity: None,
        }
    }

    /// The host registered again: by its owner, or by an admin (`None`), which leaves it without an owner.
    pub(super) fn given_new_key(mut self, registration: &Registration, owner: Option<UserId>) -> Self {
        if self.owner != owner {
            self.owner = owner;
            self.enable_with_user();
        }
        self.key_digest = registration.key_digest;
        self.imported_key_digest = None;
        self.api_key = registration.api_key.clone();
        // The new key may go to another machine.
        self.agent_identity = None;
        self.updated_at = registration.at;
        // A key is bound to the address of its first use; this one is unused.
        self.rules.bound_ip = None;
        self.rules.bound_ip_other = None;
        self.rules.expires_at = registration.expires_at.or(self.rules.expires_at);
        if let Some(secure) = registration.secure {
            self.rules.secure = secure;
            self.rules.insecure_enabled_until = registration.insecure_enabled_until.filter(|_| !secure);
            self.rules.insecure_grace_until = None;
        }
        self
    }

    pub(super) fn has_key(&self, key: &Digest) -> bool {
        self.key_digest == *key || self.imported_key_digest == Some(*key)
    }

    /// Binds the host to an address, if allowed; returns whether it changed.
    pub(super) fn bind(&mut self, ip: IpAddr, ipv6_prefix: u8, at: OffsetDateTime) -> bool {
        let ip = ip.to_canonical();
        let binds = match self.rules.bound_like(ip) {
            Some(bound) => self.rules.allow_roaming_ips && !same_address(bound, ip, ipv6_prefix),
            None => true,
        };
        if binds {
            self.rules.bind(ip);
            self.updated_at = at;
        }
        binds
    }

    /// The host with this identity; `None`: it already has it.
    pub(super) fn with_agent_identity(&self, identity: &Sealed) -> Option<Self> {
        let is_new = self.agent_identity.as_ref() != Some(identity);
        is_new.then(|| Self { agent_identity: Some(identity.clone()), ..self.clone() })
    }

    /// The host without its secrets, so it can no longer be restored.
    pub(super) fn purged(&self) -> Self {
        Self { api_key: Sealed::from_bytes(Vec::new()), agent_identity: None, ..self.clone() }
    }

    /// Disables the host with its owner; returns whether it changed. A host that an admin disabled stays as it is.
    pub(super) fn disable_with_user(&mut self) -> bool {
        let disables = !self.rules.disabled;
        self.rules.disabled = true;
        self.rules.disabled_with_user |= disables;
        disables
    }

    /// Reverses [`Host::disable_with_user`]; returns whether the host changed.
    pub(super) fn enable_with_user(&mut self) -> bool {
        let enables = std::mem::take(&mut self.rules.disabled_with_user);
        self.rules.disabled &= !enables;
        enables
    }

    pub(super) fn truncate_times(&mut self) {
        truncate(&mut self.created_at);
        truncate(&mut self.updated_at);
        let rules = &mut self.rules;
        let optional = [&mut rules.insecure_enabled_until, &mut rules.insecure_grace_until, &mut rules.expires_at];
        optional.into_iter().chain([&mut self.removed_at]).for_each(truncate_any);
    }

    /// Whether it was removed after `removed_after` and its key is still known.
    pub(super) fn can_be_restored(&self, removed_after: OffsetDateTime) -> bool {
        self.removed_at.is_some_and(|removed| removed > removed_after) && !self.api_key.as_bytes().is_empty()
    }
}

impl HostChange {
    pub(super) fn apply(&self, host: &mut Host, at: OffsetDateTime) {
        let rules = &mut host.rules;
        if let Some(secure) = self.secure {
            rules.secure = secure;
        }
        if let Some(disabled) = self.disabled {
            rules.disabled = disabled;
            rules.disabled_with_user = false;
        }
        if let Some(end) = self.expires_at {
            rules.expires_at = end;
        }
        if let Some(networks) = &self.allowed_networks {
            rules.allowed_networks.clone_from(networks);
        }
        if let Some(allow) = self.allow_roaming_ips {
            rules.allow_roaming_ips = allow;
        }
        if let Some(ip) = self.bound_ip {
            rules.bound_ip = ip.map(|ip| ip.to_canonical());
            rules.bound_ip_other = None;
        }
        if let Some(until) = self.insecure_enabled_until {
            rules.insecure_enabled_until = until;
        }
        if let Some(until) = self.insecure_grace_until {
            rules.insecure_grace_until = until;
        }
        host.updated_at = at;
    }
}

impl InstallToken {
    pub(super) fn issued(registration: &Registration, host: &Host) -> Self {
        Self {
            digest: registration.token.digest,
            host: host.id,
            base_url: registration.token.base_url.clone(),
            created_at: registration.at,
            expires_at: registration.token.expires_at,
            redeemed_at: None,
            redeemed_from: None,
            revoked_at: None,
        }
    }

    /// Whether it has expired. Also true if the clock was set back.
    pub fn is_over(&self, now: OffsetDateTime) -> bool {
        is_over(self.created_at, self.expires_at, now)
    }

    pub(super) fn is_pending(&self) -> bool {
        self.redeemed_at.is_none() && self.revoked_at.is_none()
    }
}

impl Registration {
    /// `note`, with the user from whom an admin takes the host with this name.
    pub(super) fn noted(&self, present: Option<&Host>, owner: Option<UserId>, note: &AuditNote) -> AuditNote {
        match present.and_then(|host| host.owner).filter(|_| owner.is_none()) {
            Some(user) => note.clone().with("taken_from", user),
            None => note.clone(),
        }
    }
}

impl Settings {
    pub(super) fn truncate_times(&mut self) {
        self.client_release.iter_mut().for_each(|release| truncate(&mut release.checked_at));
        self.restored_login.iter_mut().for_each(|login| truncate(&mut login.backup_of));
        self.verified_backup.iter_mut().for_each(|backup| truncate(&mut backup.made_at));
        if let Some(trust) = &mut self.host_trust {
            truncate_any(&mut trust.system_since);
            truncate_any(&mut trust.switched_at);
        }
    }
}

impl SettingsChange {
    /// The settings after this change. `None`: it does not fit.
    pub(super) fn applied(&self, settings: &Settings) -> Option<Settings> {
        let mut changed = settings.clone();
        match self {
            Self::KillSwitch { disabled, reason } => {
                changed.api_disabled = *disabled;
                changed.api_disabled_reason = reason.clone().filter(|_| *disabled);
            }
            Self::ClientRelease(release) => changed.client_release = Some(release.clone()),
            Self::MarkRestored(restored) => changed.restored_login = Some(restored.clone()),
            Self::ClearRestored { version } => {
                changed.restored_login.take_if(|restored| restored.version == *version)?;
            }
            Self::BackupVerified(backup) => {
                if changed.verified_backup.as_ref().is_some_and(|known| known.made_at >= backup.made_at) {
                    return None;
                }
                changed.verified_backup = Some(backup.clone());
            }
            Self::PublicUrl(url) => {
                if changed.public_urls.first() == Some(url) {
                    return None;
                }
                changed.public_urls.retain(|known| known != url);
                changed.public_urls.insert(0, url.clone());
                changed.public_urls.truncate(Settings::MAX_PUBLIC_URLS);
            }
            Self::BeginHostTrust(trust) if changed.host_trust.is_none() => changed.host_trust = Some(*trust),
            Self::BeginHostTrust(_) => return None,
            Self::TrustSystem { since } => {
                let trust = changed.host_trust.as_mut().filter(|trust| trust.system_since.is_none())?;
                trust.system_since = Some(*since);
            }
            Self::Switch(at) => {
                let trust = changed.host_trust.as_mut().filter(|trust| trust.switched_at.is_some() != at.is_some())?;
                trust.switched_at = *at;
            }
        }
        Some(changed)
    }
}

impl Owner {
    /// Why a user with `count` hosts may not register the name. `present` is the host that has the name now.
    pub(super) fn refused(&self, is_disabled: bool, present: Option<&Host>, count: u64) -> Option<RegistrationOutcome> {
        if is_disabled {
            return Some(RegistrationOutcome::OwnerDisabled);
        }
        match present {
            Some(host) if host.owner != Some(self.user) => Some(RegistrationOutcome::NotTheirs),
            Some(_) => (count > self.at_most.into()).then_some(RegistrationOutcome::TooMany),
            None => (count >= self.at_most.into()).then_some(RegistrationOutcome::TooMany),
        }
    }
}

impl UserChange {
    /// The user after this change. `None`: a rehashed password has been replaced.
    pub(super) fn applied(&self, user: &User, at: OffsetDateTime) -> Option<User> {
        let mut changed = user.clone();
        match self {
            Self::Role(role) => changed.role = *role,
            Self::Disable { .. } => changed.disabled = true,
            Self::Enable => changed.disabled = false,
            Self::Password(password) => changed.password = Some(password.clone()),
            Self::Rehashed { old, new } if [Some(old), Some(new)].contains(&user.password.as_ref()) => {
                changed.password = Some(new.clone());
            }
            Self::Rehashed { .. } => return None,
            Self::MaxHosts(most) => changed.max_hosts = *most,
        }
        if changed != *user {
            changed.updated_at = at;
            if matches!(self, Self::Disable { .. } | Self::Enable | Self::Password(_)) {
                changed.generation += 1;
            }
        }
        Some(changed)
    }

    /// The hosts of the user that this changes, removed ones included, in their state after the change.
    pub(super) fn applied_to_hosts(&self, hosts: impl IntoIterator<Item = Host>, at: OffsetDateTime) -> Vec<Host> {
        let change = match self {
            Self::Disable { keep_hosts: false } => Host::disable_with_user,
            Self::Enable => Host::enable_with_user,
            _ => return Vec::new(),
        };
        let changed = hosts.into_iter().filter_map(|mut host| change(&mut host).then_some(host));
        changed.map(|host| Host { updated_at: at, ..host }).collect()
    }

    /// Whether [`UserChange::applied_to_hosts`] may change any host.
    pub(super) fn concerns_hosts(&self) -> bool {
        matches!(self, Self::Disable { keep_hosts: false } | Self::Enable)
    }
}

impl User {
    /// The user with the next generation, which ends all present sessions.
    pub(super) fn turned(&self, at: OffsetDateTime) -> Self {
        Self { generation: self.generation + 1, updated_at: at, ..self.clone() }
    }
}

impl Session {
    /// The issuer and subject that its user signed in with.
    pub(super) fn identity(&self) -> Option<(&str, &str)> {
        match &self.method {
            SignInMethod::Password => None,
            SignInMethod::Oidc { issuer, subject } => Some((issuer, subject)),
        }
    }

    /// Whether the session may begin. `user`: its user as stored now; `linked`: the user of its identity, if it has
    /// one.
    pub(super) fn may_begin(&self, user: Option<&User>, linked: Option<UserId>) -> bool {
        user.is_some_and(|user| user.id == self.user && self.is_of_now(user))
            && (self.identity().is_none() || linked == Some(self.user))
    }

    pub(super) fn was_over(&self, when: OffsetDateTime) -> bool {
        self.expires_at < when || self.ended_at.is_some_and(|ended| ended < when)
    }
}

/// The authorities that a step writes, and the one that it removes; `None`: the step does not fit. The order matters:
/// each authority written makes room for the next.
pub(super) fn roll(
    present: &[Authority],
    role: AuthorityRole,
    step: &AuthorityStep,
) -> Option<(Vec<Authority>, Option<Authority>)> {
    let in_slot = |slot| present.iter().find(|authority| authority.role == role && authority.slot == slot).cloned();
    let (next, active, old) =
        (in_slot(AuthoritySlot::Next), in_slot(AuthoritySlot::Active), in_slot(AuthoritySlot::Old));
    match (step, next, active, old) {
        (AuthorityStep::Prepare { made, active }, None, Some(present), _)
            if made.role == role && present.id == *active =>
        {
            Some((vec![Authority { slot: AuthoritySlot::Next, ..(**made).clone() }], None))
        }
        (AuthorityStep::Activate(id), Some(next), Some(active), None) if next.id == *id => {
            let active = Authority { slot: AuthoritySlot::Old, ..active };
            Some((vec![active, Authority { slot: AuthoritySlot::Active, ..next }], None))
        }
        (AuthorityStep::Retire(id), _, _, Some(old)) if old.id == *id => Some((Vec::new(), Some(old))),
        _ => None,
    }
}

/// The authorities after a step of [`roll`].
pub(super) fn rolled(present: Vec<Authority>, written: Vec<Authority>, gone: Option<Authority>) -> Vec<Authority> {
    let replaced = |known: &Authority| written.iter().chain(&gone).any(|other| other.id == known.id);
    let mut after: Vec<_> = present.into_iter().filter(|known| !replaced(known)).collect();
    after.extend(written);
    after
}

/// Whether a period from `from` until `until` is over. Also true if more than its length remains: then the clock has
/// been set back.
pub(super) fn is_over(from: OffsetDateTime, until: OffsetDateTime, now: OffsetDateTime) -> bool {
    now >= until || from - now > until - from
}

/// Truncates a time to what every store keeps: UTC, microseconds.
pub(super) fn truncate(at: &mut OffsetDateTime) {
    let utc = at.to_offset(UtcOffset::UTC);
    // The value is below a second, so it is always in range.
    *at = utc.replace_nanosecond(utc.microsecond() * 1000).unwrap_or(utc);
}

pub(super) fn truncate_any(at: &mut Option<OffsetDateTime>) {
    at.iter_mut().for_each(truncate);
}

/// The audit entry for the pruned versions, which are in order; `None`: there are none.
pub(super) fn pruned_note(note: &AuditNote, pruned: &[u64]) -> Option<AuditNote> {
    let (first, last) = pruned.first().zip(pruned.last())?;
    Some(note.clone().on(format_args!("{first}-{last}")).with("versions", pruned.len()))
}

pub(super) fn taken(what: &str) -> RecordsError {
    RecordsError::Unavailable(format!("this {what} is taken; nothing was written, register again with new ones"))
}

/// The error of every call during a fill, except those of the fill.
pub(super) fn being_filled() -> RecordsError {
    RecordsError::Unavailable(
        "they are being filled from a copy, or a fill was cut short: wait for it, or run the restore or migration again"
            .into(),
    )
}

pub(super) fn taken_over() -> RecordsError {
    RecordsError::Unavailable("another restore or migration has begun to fill these records: this one ends here".into())
}
