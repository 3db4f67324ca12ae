//! The use cases: retrieve, store, enrol, redeem, rotate. One file each.
//!
//! A service method takes plain values and answers with plain values; it knows neither HTTP nor SQL. What it may rely
//! on: the records are the truth and decide what must happen once; hot state answers what a call may be answered from
//! without waiting for them.
//!
//! After every change of its own a service method *catches up* ([`Service::catch_up`]) before it answers, so that what
//! an answer says holds for the next call on this node. A crash between the change and the catching up is mended by the
//! boot, which catches up before it listens.

pub mod admission;
pub mod bake;
pub mod boot;
pub mod canonical;
pub mod catch_up;
pub mod certificates;
pub mod delivery;
pub mod enrol;
pub mod error;
pub mod install;
pub mod keys;
pub mod sync;
pub mod telemetry;
pub mod versions;
pub mod wrapper;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Mutex;

use crate::hot::Hot;
use crate::hot::throttle::Throttle;
use crate::model::auth_document::DocumentRules;
use crate::outside::Outside;
use crate::records::{Records, Settings};
use crate::seal::KeyRing;

pub use error::ServiceError;

pub type Result<T> = std::result::Result<T, ServiceError>;

/// What the operator decided, as far as the use cases care.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Baked into installers and wrappers; no `/` at the end.
    pub base_url: String,
    /// PEM of the authority that hosts must trust; empty where the operator's own certificate is served, whose issuer
    /// hosts are expected to know already.
    pub trusted_ca_pem: String,
    /// Base64 of the SHA-256 of the server's public key, for `curl --pinnedpubkey sha256//…`; `None` without TLS.
    pub server_pin: Option<String>,
    pub install_token_ttl: time::Duration,
    pub insecure_window: time::Duration,
    pub codex_release_url: String,
    pub document_rules: DocumentRules,
}

pub struct Service {
    records: Arc<dyn Records>,
    hot: Arc<Hot>,
    throttle: Throttle,
    outside: Arc<dyn Outside>,
    policy: ArcSwap<Policy>,
    secrets: Arc<boot::Secrets>,
    /// In force now; `secrets.ring` is what the boot found.
    ring: ArcSwap<KeyRing>,
    canonical: ArcSwapOption<canonical::Canonical>,
    settings: ArcSwap<Settings>,
    wrappers: wrapper::Digests,
    /// One catching up at a time: what is applied never goes backwards. It holds the number of the last one asked for
    /// that was served.
    catching_up: Mutex<u64>,
    catch_ups_asked: AtomicU64,
    /// One rotation of the data keys at a time.
    rotating: Mutex<()>,
    /// Settings are read, changed and written as a whole.
    changing_settings: Mutex<()>,
}

/// What [`Service::new`] is built from; `boot` makes it.
pub struct Parts {
    pub records: Arc<dyn Records>,
    pub hot: Arc<Hot>,
    pub throttle: Throttle,
    pub outside: Arc<dyn Outside>,
    pub policy: Policy,
    pub secrets: Arc<boot::Secrets>,
}

impl Service {
    /// Wires the parts up and catches up with the records, so that the first call finds everything.
    pub async fn new(parts: Parts) -> Result<Self> {
        let service = Self {
            records: parts.records,
            hot: parts.hot,
            throttle: parts.throttle,
            outside: parts.outside,
            policy: ArcSwap::from_pointee(parts.policy),
            ring: ArcSwap::from_pointee(parts.secrets.ring.clone()),
            secrets: parts.secrets,
            canonical: ArcSwapOption::empty(),
            settings: ArcSwap::from_pointee(Settings::default()),
            wrappers: wrapper::Digests::new(),
            catching_up: Mutex::new(0),
            catch_ups_asked: AtomicU64::new(0),
            rotating: Mutex::new(()),
            changing_settings: Mutex::new(()),
        };
        service.adopt_hot().await?;
        service.catch_up().await?;
        service.adopt_activity().await?;
        Ok(service)
    }

    /// Puts another policy in force: the server's key or names changed with a reload.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
        self.forget_wrapper_digests();
    }

    /// Whether calls can be served: the records can be read and what is written becomes durable.
    pub async fn ready(&self) -> Result<()> {
        self.records.check().await?;
        if self.hot.healthy() {
            Ok(())
        } else {
            Err(ServiceError::Unavailable { cause: "hot state is not durable any more: restart the daemon".into() })
        }
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }
}
