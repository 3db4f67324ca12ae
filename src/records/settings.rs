//! The settings, which all nodes share.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Result;
use crate::model::audit::AuditNote;

#[async_trait]
pub trait SettingsRecords: Send + Sync {
    async fn settings_fetch(&self) -> Result<Settings>;
    /// Applies one change to the present settings; returns all settings after it. `None`: the change does not fit, and
    /// nothing is written.
    async fn settings_change(&self, change: &SettingsChange, audit: &AuditNote) -> Result<Option<Settings>>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The kill switch: hosts are answered 503.
    pub api_disabled: bool,
    /// Shown to hosts while the kill switch is on.
    pub api_disabled_reason: Option<String>,
    /// The newest known release of Codex.
    pub client_release: Option<ClientRelease>,
    // Left out if unset: a backup has digests of its rows, and older rows do not have this member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_login: Option<RestoredLogin>,
    /// The newest backup that was verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_backup: Option<VerifiedBackup>,
    /// `None`: not recorded yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_trust: Option<HostTrust>,
    /// Addresses of the daemon that hosts were given, newest first; at most [`Settings::MAX_PUBLIC_URLS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public_urls: Vec<String>,
}

/// Which server certificates hosts accept, and which one they are shown. All nodes bake their wrappers by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTrust {
    /// `true`: old wrappers, which do not report what they trust, trust only the machine's store. `false`: only our
    /// authority.
    pub old_wrappers_trust_system: bool,
    /// Since when wrappers also trust the machine's store. `None`: they trust our authority only.
    #[serde(with = "time::serde::rfc3339::option")]
    pub system_since: Option<OffsetDateTime>,
    /// Since when hosts are shown a certificate that the machine's store trusts (the operator's or a proxy's). `None`:
    /// they are shown one of our authority.
    #[serde(with = "time::serde::rfc3339::option")]
    pub switched_at: Option<OffsetDateTime>,
}

impl Settings {
    pub const MAX_PUBLIC_URLS: usize = 16;
}

impl HostTrust {
    /// Every host trusts our authority only, and is shown its certificate.
    pub const NONE: Self = Self { old_wrappers_trust_system: false, system_since: None, switched_at: None };
}

/// One change of the settings. Each changes its own members only, so concurrent changes of several nodes do not undo
/// each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsChange {
    /// Turns the kill switch on or off. Off has no reason.
    KillSwitch {
        disabled: bool,
        reason: Option<String>,
    },
    ClientRelease(ClientRelease),
    /// Marks a version as restored from a backup.
    MarkRestored(RestoredLogin),
    /// Removes the mark, if it is of this version.
    ClearRestored {
        version: u64,
    },
    /// Records a backup, if it is newer than the recorded one.
    BackupVerified(VerifiedBackup),
    /// Records the address that hosts are given from now on. Does not fit if it is the newest already.
    PublicUrl(String),
    /// Records for the first time what hosts trust. Fits only once.
    BeginHostTrust(HostTrust),
    /// Wrappers also trust the machine's store from then on. Cannot be undone.
    TrustSystem {
        since: OffsetDateTime,
    },
    /// Shows hosts a certificate that the machine's store trusts, or again one of our authority (`None`). Does not fit
    /// if this is so already.
    Switch(Option<OffsetDateTime>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedBackup {
    /// When the backup was made.
    #[serde(with = "time::serde::rfc3339")]
    pub made_at: OffsetDateTime,
    /// It contains the keys, sealed with a passphrase.
    pub has_keys: bool,
}

/// A version restored from a backup. Its refresh token may be spent, and a spent token must not be redeemed again.
/// Upstream may treat that as theft and revoke the tokens that were issued for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredLogin {
    pub version: u64,
    /// When the backup was made.
    #[serde(with = "time::serde::rfc3339")]
    pub backup_of: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRelease {
    pub version: String,
    #[serde(with = "time::serde::rfc3339")]
    pub checked_at: OffsetDateTime,
}
