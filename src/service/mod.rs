//! The use cases: retrieve, store, enrol, redeem, rotate.
//!
//! A method of an area takes and returns plain values; it knows neither HTTP nor SQL. The records are the durable
//! truth, and decide what must happen only once. Hot state answers calls that must not wait for the records.
//!
//! Every change goes through [`Core::commit`]: this node applies it before the method answers, so the next call on this
//! node finds it. After the commit a method cannot fail any more. After a crash between the change and its application,
//! the next start catches up with the records before it listens.
//!
//! [`Core`] holds what every use case needs. Each area is one struct on top of it, in this order. An area calls only
//! the areas below it, because [`Areas::on`] gives it no others:
//!
//! 1. [`Status`]: overview, metrics, `doctor`
//! 2. [`Transfer`]: backup, restore, migration
//! 3. [`Probes`]: proving the canonical login
//! 4. [`Admission`]: the owner of a credential, and whether a call is served
//! 5. [`Login`]: retrieve, store, versions of the canonical login
//! 6. `ProbeQueue`: which probe is due
//! 7. [`Trust`]: authorities, admin certificates, data keys
//! 8. [`People`]: users, sessions, sign-in
//! 9. [`Hosts`]: hosts, installers, wrappers
//! 10. [`Audit`]: the audit log

pub mod admission;
pub mod audit;
#[cfg(test)]
mod clock_tests;
pub mod core;
pub mod error;
pub mod hosts;
pub mod login;
pub mod people;
mod probe_queue;
pub mod probes;
pub mod status;
pub mod transfer;
pub mod trust;

use std::sync::Arc;

use crate::runner::Prober;
use crate::upstream::oidc::Provider;

pub use self::admission::Admission;
pub use self::audit::Audit;
pub use self::core::initiator::Initiator;
pub use self::core::{Core, Parts, Policy};
pub use self::error::ServiceError;
pub use self::hosts::Hosts;
pub use self::login::Login;
pub use self::people::People;
pub use self::probes::Probes;
pub use self::status::Status;
pub use self::transfer::Transfer;
pub use self::trust::Trust;

pub type Result<T> = std::result::Result<T, ServiceError>;

/// What the wiring gives the areas; `None`: not configured.
#[derive(Default)]
pub struct Adapters {
    /// Opens stores, for [`Transfer`].
    pub stores: Option<Arc<dyn transfer::Stores>>,
    /// Makes probes; `None`: no probes are made.
    pub prober: Option<Arc<dyn Prober>>,
    /// The identity provider with which users may sign in.
    pub provider: Option<Arc<Provider>>,
    /// The native programs for hosts.
    pub programs: Arc<hosts::programs::NativePrograms>,
}

/// Every area, wired up.
pub struct Areas {
    pub core: Arc<Core>,
    pub audit: Arc<Audit>,
    pub hosts: Arc<Hosts>,
    pub people: Arc<People>,
    pub trust: Arc<Trust>,
    pub login: Arc<Login>,
    pub admission: Arc<Admission>,
    pub probes: Arc<Probes>,
    pub transfer: Arc<Transfer>,
    pub status: Arc<Status>,
}

macro_rules! area {
    ($($field:ident: $area:ty),*) => {
        $(impl AsRef<Arc<$area>> for Areas {
            fn as_ref(&self) -> &Arc<$area> {
                &self.$field
            }
        })*
    };
}

area!(
    core: Core, audit: Audit, hosts: Hosts, people: People, trust: Trust, login: Login, admission: Admission,
    probes: Probes, transfer: Transfer, status: Status
);

impl Areas {
    /// Starts the core and wires the areas up. Nothing is missing for the first call.
    pub async fn start(parts: Parts, adapters: Adapters) -> Result<Self> {
        let (core, has_caught_up) = Core::start(parts).await?;
        let areas = Self::on(core, adapters);
        if has_caught_up {
            areas.hosts.adopt_activity().await?;
        }
        Ok(areas)
    }

    /// Wires the areas up, from the lowest to the highest.
    pub fn on(core: Arc<Core>, adapters: Adapters) -> Self {
        let Adapters { stores, prober, provider, programs } = adapters;
        let audit = Arc::new(Audit { core: core.clone() });
        let hosts = Arc::new(Hosts::new(core.clone(), programs));
        let people = Arc::new(People::new(core.clone(), audit.clone(), hosts.clone(), provider));
        let trust = Arc::new(Trust::new(core.clone(), hosts.clone(), people.clone()));
        let queue = Arc::new(probe_queue::ProbeQueue::new(core.clone(), prober.is_some()));
        let login = Arc::new(Login::new(core.clone(), audit.clone(), hosts.clone(), queue.clone()));
        let admission = Arc::new(Admission { core: core.clone(), people: people.clone() });
        let probes = Arc::new(Probes::new(core.clone(), audit.clone(), login.clone(), queue, prober));
        let transfer = Arc::new(Transfer::new(core.clone(), people.clone(), stores));
        let status = Arc::new(Status::new(core.clone(), hosts.clone(), people.clone(), trust.clone(), probes.clone()));
        Self { core, audit, hosts, people, trust, login, admission, probes, transfer, status }
    }
}

#[cfg(test)]
mod login_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod version_tests;
