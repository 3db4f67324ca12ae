//! The state of the service: overview, metrics, and what `doctor` asks a daemon.

mod examine;
mod measure;
pub mod overview;

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::service::{Core, Hosts, People, Probes, Trust};

/// Overview, metrics and `doctor`.
pub struct Status {
    pub(in crate::service) core: Arc<Core>,
    hosts: Arc<Hosts>,
    people: Arc<People>,
    trust: Arc<Trust>,
    probes: Arc<Probes>,
    /// One verification of all rows at a time.
    verifying: Mutex<()>,
}

impl Status {
    pub(in crate::service) fn new(
        core: Arc<Core>,
        hosts: Arc<Hosts>,
        people: Arc<People>,
        trust: Arc<Trust>,
        probes: Arc<Probes>,
    ) -> Self {
        Self { core, hosts, people, trust, probes, verifying: Mutex::new(()) }
    }
}
