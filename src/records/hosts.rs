//! Hosts, their installer tokens, and what their calls leave behind.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Result;
use crate::model::audit::AuditNote;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId, HostRules, RecentDigests};
use crate::model::people::UserId;
use crate::seal::Sealed;

#[async_trait]
pub trait HostRecords: Send + Sync {
    /// Registers a host, and issues an installer token. If the name is taken, that host gets the new key. Its old key
    /// and an imported key are dead, its address binding is cleared, and its pending tokens are revoked. A call with a
    /// known token writes nothing and returns the host as it is now. An id that another host has or had is an error:
    /// retry with a new id.
    ///
    /// The registration takes the host from its user; the audit entry names that user. If the host was disabled with
    /// the user, it is enabled.
    async fn host_register(&self, registration: &Registration, audit: &AuditNote) -> Result<Host>;
    /// As [`HostRecords::host_register`], for a host of this user. The transaction decides whether the user may
    /// register it. A host without a user is not the user's. The limit also applies to a host that is registered again.
    /// The user's existence is not checked.
    async fn host_register_owned(
        &self,
        registration: &Registration,
        owner: &Owner,
        audit: &AuditNote,
    ) -> Result<RegistrationOutcome>;
    /// Removes a host: its key and pending tokens are refused, and its name is free. `None`: no such host.
    async fn host_remove(&self, id: HostId, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Host>>;
    /// As [`HostRecords::host_remove`], for a host of this user. `None`: no such host, or it is not the user's.
    async fn host_remove_owned(
        &self,
        id: HostId,
        owner: UserId,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>>;
    /// Restores a host that was removed after `removed_after`, with its key, rules and activity. Its installer tokens
    /// stay revoked.
    async fn host_restore(
        &self,
        id: HostId,
        removed_after: OffsetDateTime,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Restoration>;
    /// Removed hosts that can still be restored, latest removal first.
    async fn host_list_removed(&self) -> Result<Vec<Host>>;
    /// Forgets the keys (`api_key` becomes empty), agent identities and activity of hosts removed before `when`;
    /// returns how many.
    async fn host_purge_removed(&self, when: OffsetDateTime) -> Result<usize>;
    /// Hosts that are not removed, by name.
    async fn host_list(&self) -> Result<Vec<Host>>;
    /// `None`: no such host, or it is removed.
    async fn host_fetch(&self, id: HostId) -> Result<Option<Host>>;
    async fn host_fetch_by_name(&self, fqdn: &Fqdn) -> Result<Option<Host>>;
    /// Applies an admin's change of rules. `None`: no such host.
    async fn host_change(
        &self,
        id: HostId,
        change: &HostChange,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>>;
    /// Binds the key with this digest to the address. A bound address of the same family (IPv4, IPv6) is replaced only
    /// if the host may roam. Of racing first calls of one family exactly one binds. An IPv6 address in the bound
    /// network of `ipv6_prefix` bits changes nothing. Returns the host after the change. `None`: this is not the host's
    /// key, or there is no such host.
    async fn host_bind_ip(
        &self,
        id: HostId,
        key: &Digest,
        ip: IpAddr,
        ipv6_prefix: u8,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>>;
    /// Stores the agent identity of a host. `false`: no such host, or `key` is not its key. The same value again writes
    /// nothing. Bumps the epoch.
    async fn host_set_agent_identity(
        &self,
        id: HostId,
        key: &Digest,
        identity: &Sealed,
        audit: &AuditNote,
    ) -> Result<bool>;
    async fn host_activity(&self, id: HostId) -> Result<HostActivity>;
    /// Redeems an installer token: exactly one call ever gets [`Redemption::Redeemed`]. `key` is the host's key as the
    /// caller knows it; if the host has another key, nothing is redeemed.
    async fn installer_redeem(
        &self,
        token: &Digest,
        key: &Digest,
        at: OffsetDateTime,
        from: IpAddr,
        audit: &AuditNote,
    ) -> Result<Redemption>;
    /// Every installer token ever issued, newest first.
    async fn installer_list(&self) -> Result<Vec<InstallToken>>;
    /// `None`: no such token, or it is redeemed or revoked.
    async fn installer_revoke(
        &self,
        token: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<InstallToken>>;
    /// Applies a batch once: a batch whose `seq` is not above the highest applied one of `node` changes nothing.
    /// Telemetry of an unknown or removed host is dropped.
    async fn telemetry_append(&self, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()>;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub id: HostId,
    pub fqdn: Fqdn,
    pub key_digest: Digest,
    /// An imported host may also present this key: the digest of the hash that the former service stored.
    pub imported_key_digest: Option<Digest>,
    /// The key itself, to bake into wrappers; at place `hosts/api_key/<id>`.
    pub api_key: Sealed,
    pub rules: HostRules,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub removed_at: Option<OffsetDateTime>,
    /// The user who installed it; `None`: it has no user.
    // Left out if unset: a backup has digests of its rows, and older rows do not have this member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserId>,
    /// The private key that Codex registered for this host: the JSON text of `agent_identity` in its auth.json, at
    /// place `hosts/agent_identity/<id>`. A new API key, and the purge of a removed host, remove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_identity: Option<Sealed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationOutcome {
    Host(Box<Host>),
    /// The name belongs to a host that is not the user's.
    NotTheirs,
    /// The user has reached the limit.
    TooMany,
    /// The user is disabled.
    OwnerDisabled,
}

/// The user who will own a registered host, and the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: UserId,
    /// Counts hosts that are not removed, this one included.
    pub at_most: u32,
}

#[derive(Clone, Debug)]
pub struct Registration {
    /// The host's id if the name is new; a known host keeps its own.
    pub id: HostId,
    pub fqdn: Fqdn,
    pub key_digest: Digest,
    /// Sealed for one host id. If the name belongs to a host with another id, nothing is written, and that host is
    /// returned unchanged, which its `key_digest` shows. The caller then seals the key for its id and calls again.
    pub api_key: Sealed,
    /// `None` keeps the rule of a known host, and is `true` for a new one.
    pub secure: Option<bool>,
    /// The end of a temporary host; `None` keeps the end of a known one.
    pub expires_at: Option<OffsetDateTime>,
    /// Set together with `secure: false`: the first window of an insecure host.
    pub insecure_enabled_until: Option<OffsetDateTime>,
    pub token: NewInstallToken,
    pub at: OffsetDateTime,
}

#[derive(Clone, Debug)]
pub struct NewInstallToken {
    pub digest: Digest,
    pub base_url: String,
    pub expires_at: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallToken {
    pub digest: Digest,
    pub host: HostId,
    pub base_url: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub redeemed_at: Option<OffsetDateTime>,
    pub redeemed_from: Option<IpAddr>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

// One per installation of a host, so a box is not worth it.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redemption {
    Redeemed {
        host: Host,
        token: InstallToken,
    },
    AlreadyUsed,
    Expired,
    /// The host has another key than the caller expects. The token is still good.
    KeyChanged,
    /// Never issued, revoked, or its host removed.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restoration {
    Restored(Host),
    /// Another host has the name now.
    NameTaken,
    /// No such host, not removed, removed too long ago, or purged.
    Unknown,
}

/// `None` leaves a member unchanged.
#[derive(Clone, Debug, Default)]
pub struct HostChange {
    pub secure: Option<bool>,
    /// An admin's decision: disabling or enabling the owner does not change it later.
    pub disabled: Option<bool>,
    pub expires_at: Option<Option<OffsetDateTime>>,
    pub allowed_networks: Option<Vec<IpNet>>,
    pub allow_roaming_ips: Option<bool>,
    /// Replaces the addresses of both families.
    pub bound_ip: Option<Option<IpAddr>>,
    pub insecure_enabled_until: Option<Option<OffsetDateTime>>,
    pub insecure_grace_until: Option<Option<OffsetDateTime>>,
}

/// Reports of what hosts did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Telemetry {
    /// Adds `calls`. The other members, if set, replace the known values, unless those are from a later call: batches
    /// of several nodes arrive in any order.
    Seen {
        host: HostId,
        calls: u64,
        #[serde(with = "time::serde::rfc3339")]
        last_seen: OffsetDateTime,
        last_refresh: Option<String>,
        /// Digests that the host had since the last report.
        #[serde(default)]
        digests: RecentDigests,
        client_version: Option<String>,
        wrapper_version: Option<String>,
        /// When the host last fetched its wrapper, and with it the authorities it trusts.
        #[serde(default, with = "time::serde::rfc3339::option")]
        wrapper_fetched_at: Option<OffsetDateTime>,
    },
    /// An audit entry.
    Noted { note: AuditNote },
}

impl Telemetry {
    /// Adds this to the known activity of its host.
    pub fn apply_to(&self, activity: &mut HostActivity) {
        let Self::Seen {
            host: _,
            calls,
            last_seen,
            last_refresh,
            digests,
            client_version,
            wrapper_version,
            wrapper_fetched_at,
        } = self
        else {
            return;
        };
        activity.api_calls = activity.api_calls.saturating_add(*calls);
        activity.wrapper_fetched_at = activity.wrapper_fetched_at.max(*wrapper_fetched_at);
        if activity.last_seen.is_some_and(|known| known > *last_seen) {
            return;
        }
        activity.last_seen = Some(*last_seen);
        activity.digests.follow(digests);
        for (known, reported) in [
            (&mut activity.last_refresh, last_refresh),
            (&mut activity.client_version, client_version),
            (&mut activity.wrapper_version, wrapper_version),
        ] {
            if reported.is_some() {
                known.clone_from(reported);
            }
        }
    }
}
