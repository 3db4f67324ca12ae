//! The use cases: retrieve, store, enrol, redeem, rotate. One file each.
//!
//! A service method takes plain values and answers with plain values; it knows neither HTTP nor SQL. What it may rely
//! on: the records are the truth and decide what must happen once; hot state answers what a call may be answered from
//! without waiting for them.
//!
//! Every change goes through [`Service::commit`]: this node follows it before the method answers, so that what an answer
//! says holds for the next call on this node. After the commit a method may fail no more. A crash between the change and
//! the catching up is mended by the boot, which catches up before it listens.

pub mod admission;
pub mod audit;
pub mod authorities;
pub mod bake;
pub mod boot;
pub mod canonical;
pub mod catch_up;
pub mod certificates;
#[cfg(test)]
mod clock_tests;
mod commit;
pub mod degraded;
pub mod delivery;
pub mod directory;
pub mod enrol;
pub mod error;
mod examine;
pub mod history;
pub mod host_trust;
pub mod install;
pub mod keys;
pub mod measure;
pub mod moving;
pub mod overview;
pub mod people;
pub mod probing;
pub mod retention;
pub mod store_budget;
pub mod sync;
pub mod telemetry;
pub mod versions;
pub mod watch;
pub mod wrapper;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Mutex, watch as watch_channel};

use crate::hot::Hot;
use crate::hot::throttle::Throttle;
use crate::metrics::Metrics;
use crate::model::auth_document::DocumentRules;
use crate::model::digest::Digest;
use crate::outside::Outside;
use crate::records::{AdminCertificate, Records, Settings, Standstill};
use crate::seal::KeyRing;

pub use audit::By;
pub use error::ServiceError;

pub type Result<T> = std::result::Result<T, ServiceError>;

/// What the operator decided, as far as the use cases care.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Baked into installers and wrappers; no `/` at the end.
    pub base_url: String,
    /// Why hosts may not reach `base_url`, where it was guessed; `None`: the operator configured it.
    pub base_url_doubt: Option<&'static str>,
    /// What an operator edits, for messages.
    pub config_file: String,
    /// PEM of our authority, which wrappers trust.
    pub trusted_ca_pem: String,
    pub host_certificate: host_trust::HostCertificate,
    /// Base64 of the SHA-256 of the server's public key, for `curl --pinnedpubkey sha256//…`; `None` without TLS.
    pub server_pin: Option<String>,
    pub install_token_ttl: time::Duration,
    pub insecure_window: time::Duration,
    /// How many bits of an IPv6 address name the network that a host is bound to.
    pub ipv6_prefix: u8,
    pub codex_release_url: String,
    /// `TARGET=SHA-256` of that archive, separated by spaces; empty: it is not compared.
    pub codex_release_sha256: String,
    pub document_rules: DocumentRules,
    pub versions: retention::VersionPolicy,
    pub people: people::PeoplePolicy,
}

pub struct Service {
    records: Arc<dyn Records>,
    hot: Arc<Hot>,
    throttle: Throttle,
    metrics: Arc<Metrics>,
    outside: Arc<dyn Outside>,
    policy: ArcSwap<Policy>,
    secrets: Arc<boot::Secrets>,
    /// In force now; `secrets.ring` is what the boot found.
    ring: ArcSwap<KeyRing>,
    canonical: ArcSwapOption<canonical::Canonical>,
    settings: ArcSwap<Settings>,
    /// Admins' certificates by fingerprint, revoked ones included: who is let in.
    certificates: ArcSwap<HashMap<Digest, AdminCertificate>>,
    /// Counts up with every change of the certificates, the authorities, or of what hosts trust.
    trust_changed: watch_channel::Sender<u64>,
    /// Counts the wrappers that hosts were given.
    wrappers_fetched: watch_channel::Sender<u64>,
    watch: watch::Watch,
    /// Turned after every change of the policy.
    policy_revision: AtomicU64,
    directory: Arc<directory::Directory>,
    /// One catching up at a time: what is applied never goes backwards.
    catching_up: Mutex<catch_up::CaughtUp>,
    catch_ups_asked: AtomicU64,
    /// One rotation of the data keys at a time.
    rotating: Mutex<()>,
    store_failed: ArcSwapOption<degraded::Failed>,
    away: ArcSwapOption<degraded::Away>,
    standstill: ArcSwapOption<Standstill>,
    /// The store is another one than this process was started with, or is about to be: it is to be replaced.
    superseded: AtomicBool,
    stores: Option<Arc<dyn moving::Stores>>,
    /// One migration or restore at a time.
    moving: Mutex<()>,
    /// One reads every row at a time.
    verifying: Mutex<()>,
    probes: probing::Probes,
    people: people::People,
    store_budget: store_budget::StoreBudget,
    /// Turned with every new version.
    version_stored: tokio::sync::Notify,
}

/// What [`Service::new`] is built from; `boot` makes it.
pub struct Parts {
    pub records: Arc<dyn Records>,
    pub hot: Arc<Hot>,
    pub throttle: Throttle,
    pub metrics: Arc<Metrics>,
    pub outside: Arc<dyn Outside>,
    pub policy: Policy,
    pub secrets: Arc<boot::Secrets>,
}

impl Service {
    /// Wires the parts up and catches up with the records, so that the first call finds everything.
    pub async fn new(parts: Parts) -> Result<Self> {
        let service = Self {
            people: people::People::default(),
            records: parts.records,
            hot: parts.hot,
            throttle: parts.throttle,
            metrics: parts.metrics,
            outside: parts.outside,
            policy: ArcSwap::from_pointee(parts.policy),
            ring: ArcSwap::from_pointee(parts.secrets.ring.clone()),
            secrets: parts.secrets,
            canonical: ArcSwapOption::empty(),
            settings: ArcSwap::from_pointee(Settings::default()),
            certificates: ArcSwap::default(),
            trust_changed: watch_channel::channel(0).0,
            wrappers_fetched: watch_channel::channel(0).0,
            watch: watch::Watch::default(),
            policy_revision: AtomicU64::new(0),
            directory: Arc::default(),
            catching_up: Mutex::default(),
            catch_ups_asked: AtomicU64::new(0),
            rotating: Mutex::new(()),
            store_failed: ArcSwapOption::empty(),
            away: ArcSwapOption::empty(),
            standstill: ArcSwapOption::empty(),
            superseded: AtomicBool::new(false),
            stores: None,
            moving: Mutex::new(()),
            verifying: Mutex::new(()),
            probes: probing::Probes::new(),
            store_budget: store_budget::StoreBudget::default(),
            version_stored: tokio::sync::Notify::new(),
        };
        service.adopt_trust(Some(service.secrets.certificates.clone()), None)?;
        service.hot.restore_throttle(&service.throttle, service.outside.now())?;
        service.adopt_hot().await?;
        match service.catch_up().await {
            // Hot state has what a daemon of the last run knew.
            Err(ServiceError::RecordsAway { .. }) if service.secrets.are_from_hot => {}
            caught_up => {
                caught_up?;
                service.adopt_activity().await?;
            }
        }
        Ok(service)
    }

    /// Tells how stores are opened.
    #[must_use]
    pub fn with_stores(self, stores: Arc<dyn moving::Stores>) -> Self {
        Self { stores: Some(stores), ..self }
    }

    /// Puts another policy in force: the server's key or names changed with a reload.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
        self.policy_revision.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether calls can be served: the records can be read and what is written becomes durable.
    pub async fn ready(&self) -> Result<()> {
        self.check_degraded()?;
        let checked = self.try_writing().await;
        // What this very check may have found out.
        self.check_degraded()?;
        checked
    }

    /// What every call looks at before anything else: whoever waits for it learns that calls are answered.
    pub fn pulse(&self) {
        // A store that fails answers, too.
        let _ = self.hot.host_by_key(&Digest::of(b""));
        let _ = self.canonical.load();
    }

    /// As hot state counts them.
    pub fn host_count(&self) -> u64 {
        self.hot.host_states().map(|states| states.total()).unwrap_or_default()
    }

    /// The wall clock, for what is shown.
    pub fn now(&self) -> time::OffsetDateTime {
        self.outside.now()
    }

    /// Names this node among those that share the records.
    pub fn node(&self) -> uuid::Uuid {
        self.hot.node()
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }
}

#[cfg(test)]
mod login_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod version_tests;
