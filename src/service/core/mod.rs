//! What every use case needs: records, hot state, clock, key ring, policy, metrics, security events, health, and what this
//! node knows of the records in memory.
//!
//! [`Core::commit`] changes the records; [`Core::catch_up`] brings this node up to them. An area reads what it needs here, and
//! keeps only what is its own.

pub mod authorities;
pub mod boot;
pub mod canonical;
mod catch_up;
pub(in crate::service) mod commit;
pub mod directory;
pub mod health;
pub mod initiator;
mod key_ring;
pub mod members;
pub mod policy;
pub mod replays;
mod security_events;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Mutex, watch};

use crate::hot::Hot;
use crate::hot::throttle::{Failing, Throttle};
use crate::metrics::Metrics;
use crate::model::digest::Digest;
use crate::platform::Platform;
use crate::records::{AdminCertificate, Records, Settings};
use crate::seal::KeyRing;
use crate::service::{Result, ServiceError};

pub use self::policy::Policy;

pub struct Core {
    pub(in crate::service) records: Arc<dyn Records>,
    pub(in crate::service) hot: Arc<Hot>,
    pub(in crate::service) throttle: Throttle,
    pub(in crate::service) metrics: Arc<Metrics>,
    pub(in crate::service) platform: Arc<dyn Platform>,
    pub(in crate::service) policy: ArcSwap<Policy>,
    /// Turned after every change of the policy.
    pub(in crate::service) policy_revision: AtomicU64,
    pub(in crate::service) secrets: Arc<boot::Secrets>,
    /// In force now; `secrets.ring` is what the boot found.
    pub(in crate::service) ring: ArcSwap<KeyRing>,
    pub(in crate::service) security_events: security_events::SecurityEvents,
    /// Since when and why not everything works.
    pub health: health::Health,
    pub(in crate::service) canonical: ArcSwapOption<canonical::Canonical>,
    pub(in crate::service) settings: ArcSwap<Settings>,
    /// Admins' certificates by fingerprint, revoked ones included: who is let in.
    pub(in crate::service) certificates: ArcSwap<HashMap<Digest, AdminCertificate>>,
    pub(in crate::service) members: members::Members,
    pub(in crate::service) directory: Arc<directory::Directory>,
    replays: replays::Replays,
    /// Counts up with every change of the certificates, the authorities, or of what hosts trust.
    trust_changed: watch::Sender<u64>,
    /// One catching up at a time: what is applied never goes backwards.
    catching_up: Mutex<catch_up::CaughtUp>,
    catch_ups_asked: AtomicU64,
}

/// What [`Core::start`] is built from; `boot` makes it.
pub struct Parts {
    pub records: Arc<dyn Records>,
    pub hot: Arc<Hot>,
    pub throttle: Throttle,
    pub metrics: Arc<Metrics>,
    pub platform: Arc<dyn Platform>,
    pub policy: Policy,
    pub secrets: Arc<boot::Secrets>,
}

impl Core {
    /// Catches up with the records. `false`: they are away, and hot state has what a daemon of the last run knew.
    pub(in crate::service) async fn start(parts: Parts) -> Result<(Arc<Self>, bool)> {
        let Parts { records, hot, throttle, metrics, platform, policy, secrets } = parts;
        let core = Self {
            health: health::Health::new(records.clone(), hot.clone(), platform.clone(), secrets.incarnation),
            directory: Arc::new(directory::Directory::new(hot.clone())),
            replays: replays::Replays::default(),
            records,
            hot,
            throttle,
            metrics,
            platform,
            policy: ArcSwap::from_pointee(policy),
            policy_revision: AtomicU64::new(0),
            ring: ArcSwap::from_pointee(secrets.ring.clone()),
            secrets,
            security_events: security_events::SecurityEvents::default(),
            canonical: ArcSwapOption::empty(),
            settings: ArcSwap::from_pointee(Settings::default()),
            certificates: ArcSwap::default(),
            members: members::Members::default(),
            trust_changed: watch::channel(0).0,
            catching_up: Mutex::default(),
            catch_ups_asked: AtomicU64::new(0),
        };
        core.adopt_trust(Some(core.secrets.certificates.clone()), None)?;
        core.hot.restore_blocks(&core.throttle, core.platform.now())?;
        core.adopt_hot().await?;
        let has_caught_up = match core.catch_up().await {
            Err(ServiceError::RecordsAway { .. }) if core.secrets.are_from_hot => false,
            caught_up => caught_up.map(|()| true)?,
        };
        Ok((Arc::new(core), has_caught_up))
    }

    /// Puts another policy in force: the server's key or names changed with a reload.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
        self.policy_revision.fetch_add(1, Ordering::SeqCst);
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

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The wall clock, for what is shown.
    pub fn now(&self) -> time::OffsetDateTime {
        self.platform.now()
    }

    /// Names this node among those that share the records.
    pub fn node(&self) -> uuid::Uuid {
        self.hot.node()
    }

    /// Counts a failure. `true`: the subject is blocked from now on, after a crash too.
    pub(in crate::service) async fn failed(&self, who: &Failing<'_>, now: time::OffsetDateTime) -> bool {
        if !self.throttle.failed(who, now) {
            return false;
        }
        // The block holds in memory already. `recovery` reports a failed store.
        let kept = match self.hot.keep_block(&self.throttle, who, now) {
            Ok(()) => self.hot.settled().await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            log::warn!(event = "block_not_kept", cause:% = error; "a block will not survive a restart");
        }
        true
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }
}
