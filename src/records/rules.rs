//! What a change makes of what is there: the same for every store, which adds only how it is kept.

use std::net::IpAddr;

use time::OffsetDateTime;

use super::{
    Authority, AuthoritySlot, AuthorityStep, Host, HostChange, InstallToken, Owner, RecordsError, Registered,
    Registration, Session, Settings, SettingsChange, SignedInBy, User, UserChange,
};
use crate::model::audit::AuditNote;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::host::{HostRules, same_address};
use crate::model::people::UserId;
use crate::seal::Sealed;

impl Host {
    /// Whom nobody knew yet.
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

    /// Registered again: by its owner, or by an admin (`None`), and then it is nobody's from here on.
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
        // A key is bound to the first address it is used from, and this one was used from none.
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

    /// Binds it to an address, if it may be; says whether that changed anything.
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

    /// The host with this identity; `None`: it has it already.
    pub(super) fn with_agent_identity(&self, identity: &Sealed) -> Option<Self> {
        let is_new = self.agent_identity.as_ref() != Some(identity);
        is_new.then(|| Self { agent_identity: Some(identity.clone()), ..self.clone() })
    }

    /// It can be brought back no more: what is secret of it is forgotten.
    pub(super) fn purged(&self) -> Self {
        Self { api_key: Sealed::from_bytes(Vec::new()), agent_identity: None, ..self.clone() }
    }

    /// Its owner is disabled; says whether that changed anything. A host that an admin disabled stays as it is.
    pub(super) fn disable_with_user(&mut self) -> bool {
        let disables = !self.rules.disabled;
        if disables {
            self.rules.disabled = true;
            self.rules.disabled_with_user = true;
        }
        disables
    }

    /// The reverse; says whether that changed anything.
    pub(super) fn enable_with_user(&mut self) -> bool {
        let enables = self.rules.disabled_with_user;
        if enables {
            self.rules.disabled = false;
            self.rules.disabled_with_user = false;
        }
        enables
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

    pub(super) fn is_pending(&self) -> bool {
        self.redeemed_at.is_none() && self.revoked_at.is_none()
    }
}

impl Registration {
    /// The audit entry: `note`, with the user whom the host that has the name now is taken from.
    pub(super) fn noted(&self, present: Option<&Host>, owner: Option<UserId>, note: &AuditNote) -> AuditNote {
        match present.and_then(|host| host.owner).filter(|_| owner.is_none()) {
            Some(user) => note.clone().with("taken_from", user),
            None => note.clone(),
        }
    }
}

impl SettingsChange {
    /// The settings with this change. `None`: it does not fit what is there.
    pub(super) fn applied(&self, settings: &Settings) -> Option<Settings> {
        let mut changed = settings.clone();
        match self {
            Self::Api { disabled, reason } => {
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
    /// Why they may not register the host that has the name now; they have `count` hosts.
    pub(super) fn refused(&self, is_disabled: bool, present: Option<&Host>, count: u64) -> Option<Registered> {
        if is_disabled {
            return Some(Registered::OwnerDisabled);
        }
        match present {
            Some(host) if host.owner != Some(self.user) => Some(Registered::NotTheirs),
            Some(_) => (count > self.at_most.into()).then_some(Registered::TooMany),
            None => (count >= self.at_most.into()).then_some(Registered::TooMany),
        }
    }
}

impl UserChange {
    /// What it makes of a user: the same where it is so already. `None`: it is of a password that is another by now.
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

    /// What it makes of the user's hosts, removed ones included: those that change, as they are then.
    pub(super) fn applied_to_hosts(&self, hosts: impl IntoIterator<Item = Host>, at: OffsetDateTime) -> Vec<Host> {
        let change = match self {
            Self::Disable { keep_hosts: false } => Host::disable_with_user,
            Self::Enable => Host::enable_with_user,
            _ => return Vec::new(),
        };
        let changed = hosts.into_iter().filter_map(|mut host| change(&mut host).then_some(host));
        changed.map(|host| Host { updated_at: at, ..host }).collect()
    }

    /// Whether [`UserChange::applied_to_hosts`] may change any.
    pub(super) fn concerns_hosts(&self) -> bool {
        matches!(self, Self::Disable { keep_hosts: false } | Self::Enable)
    }
}

impl User {
    /// From here on none of the sessions that they have is in force.
    pub(super) fn turned(&self, at: OffsetDateTime) -> Self {
        Self { generation: self.generation + 1, updated_at: at, ..self.clone() }
    }
}

impl Session {
    /// The identity that its user signed in with.
    pub(super) fn identity(&self) -> Option<(&str, &str)> {
        match &self.method {
            SignedInBy::Password => None,
            SignedInBy::Oidc { issuer, subject } => Some((issuer, subject)),
        }
    }

    /// Whether it may begin, where its user is this one now, and its identity, if it has one, is linked to `linked`.
    pub(super) fn may_begin(&self, user: Option<&User>, linked: Option<UserId>) -> bool {
        user.is_some_and(|user| user.id == self.user && self.is_of_now(user))
            && (self.identity().is_none() || linked == Some(self.user))
    }

    pub(super) fn was_over(&self, when: OffsetDateTime) -> bool {
        self.expires_at < when || self.ended_at.is_some_and(|ended| ended < when)
    }
}

/// What a step makes of the authorities that are there: those to be written and the one to go; `None`: it does not fit.
/// Where two are written, the first makes room for the second.
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

/// What is good for a while is so whichever way the clock is set: what would be good for longer than it was made for was
/// made by a clock that has been set back since.
pub(super) fn is_over(from: OffsetDateTime, until: OffsetDateTime, now: OffsetDateTime) -> bool {
    now >= until || from - now > until - from
}

/// What is noted of versions that were removed, the lowest first; `None`: none were.
pub(super) fn pruned_note(note: &AuditNote, pruned: &[u64]) -> Option<AuditNote> {
    let (first, last) = pruned.first().zip(pruned.last())?;
    Some(note.clone().on(format_args!("{first}-{last}")).with("versions", pruned.len()))
}

pub(super) fn taken(what: &str) -> RecordsError {
    RecordsError::Unavailable(format!("this {what} is taken; nothing was written, register again with new ones"))
}

/// What everybody but whoever fills the records is told of them meanwhile.
pub(super) fn being_filled() -> RecordsError {
    RecordsError::Unavailable(
        "they are being filled from a copy, or that was cut short: wait for it, or run the restore or migration again"
            .into(),
    )
}

pub(super) fn taken_over() -> RecordsError {
    RecordsError::Unavailable("another restore or migration has begun to fill these records: this one ends here".into())
}
