//! The store itself: first boot, health, state, and the change feed that nodes follow.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::hosts::{Host, InstallToken};
use super::login::CanonicalVersion;
use super::people::{Session, User};
use super::settings::Settings;
use super::transfer::Standstill;
use super::trust::{AdminCertificate, Authority, SealingKey};
use super::{Epoch, Result};
use crate::model::audit::AuditNote;
use crate::seal::Sealed;

#[async_trait]
pub trait RecordStore: Send + Sync {
    /// Writes the material of the first boot in one transaction. `false`: the store was initialised before.
    async fn initialise(&self, seed: &Seed, audit: &AuditNote) -> Result<bool>;
    async fn is_initialised(&self) -> Result<bool>;
    /// Whether the store can be read, and whether a write would be durable.
    async fn check(&self) -> Result<()>;
    /// Why the store takes no changes until it is opened again; `None`: it takes them. Does not wait.
    fn failure(&self) -> Option<StoreFailure>;
    /// Whether the store can be unreachable while this machine works. Then the caches of a node must keep working
    /// without it.
    fn may_be_away(&self) -> bool;
    /// Whether a change was refused a moment ago, though others may succeed. [`RecordStore::check`] says why.
    fn refused_lately(&self) -> bool {
        false
    }
    /// The health of a store that is another process. `None`: the store is part of this process.
    async fn server_health(&self) -> Result<Option<ServerHealth>> {
        Ok(None)
    }
    /// Reads every row and its checksum; returns the number of rows. `None`: the store is another process and verifies
    /// itself.
    async fn verify(&self) -> Result<Option<u64>> {
        Ok(None)
    }
    /// How often a change of this process conflicted with another change and was retried.
    fn conflicts(&self) -> u64;
    async fn epoch(&self) -> Result<Epoch>;
    /// Epoch, incarnation and standstill. `Unavailable` during a fill.
    async fn state(&self) -> Result<StoreState>;
    /// Everything that nodes cache and that changed after `epoch`: each row once, as of the returned epoch. If `epoch`
    /// is ahead of the store, returns nothing but the store's epoch.
    async fn changes_since(&self, epoch: Epoch) -> Result<Changes>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    pub epoch: Epoch,
    /// Changes with each fill: caches of another incarnation are invalid. `None`: never filled.
    pub incarnation: Option<Uuid>,
    pub standstill: Option<Standstill>,
}

/// Why a store takes no more changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFailure {
    /// Its directory.
    pub place: PathBuf,
    /// The message of the system.
    pub cause: String,
}

/// The material that the first boot makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seed {
    pub sealing_key: SealingKey,
    pub authorities: Vec<Authority>,
    /// PKCS#8 DER of the server's key, at place `settings/server_key/0`.
    pub server_key: Sealed,
}

/// The data that a daemon needs to boot while the store is unreachable. No plaintext secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BootMaterial {
    pub sealing_keys: Vec<SealingKey>,
    pub authorities: Vec<Authority>,
    pub certificates: Vec<AdminCertificate>,
    pub server_key: Sealed,
    /// The store's incarnation.
    #[serde(default)]
    pub incarnation: Option<Uuid>,
}

/// The health of a database server.
#[derive(Clone, Debug)]
pub struct ServerHealth {
    pub version: String,
    pub is_encrypted: bool,
    /// Reached through a socket or a loopback address.
    pub is_local: bool,
    pub now: OffsetDateTime,
    /// The newest applied migration; `newest`: the newest that this version knows.
    pub migration: u32,
    pub newest: u32,
}

/// The changed part of what nodes cache.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub epoch: Epoch,
    /// Removed ones included (`removed_at`).
    pub hosts: Vec<Host>,
    /// Spent and revoked ones included.
    pub install_tokens: Vec<InstallToken>,
    pub canonical: Option<CanonicalVersion>,
    pub settings: Option<Settings>,
    /// All, if one changed.
    pub certificates: Option<Vec<AdminCertificate>>,
    /// All, if one changed.
    pub authorities: Option<Vec<Authority>>,
    /// All, if one changed.
    pub users: Option<Vec<User>>,
    /// Ended ones included.
    pub sessions: Vec<Session>,
}
