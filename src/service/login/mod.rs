//! The canonical login: retrieve, store, what each host receives, and versions.

pub mod delivery;
pub mod history;
pub mod retention;
mod store_budget;
pub mod sync;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::service::probe_queue::ProbeQueue;
use crate::service::{Audit, Core, Hosts};

pub struct Login {
    pub(in crate::service) core: Arc<Core>,
    audit: Arc<Audit>,
    hosts: Arc<Hosts>,
    queue: Arc<ProbeQueue>,
    store_budget: store_budget::StoreBudget,
    /// Notified of every new version.
    version_stored: Notify,
}

impl Login {
    pub(in crate::service) fn new(
        core: Arc<Core>,
        audit: Arc<Audit>,
        hosts: Arc<Hosts>,
        queue: Arc<ProbeQueue>,
    ) -> Self {
        let store_budget = store_budget::StoreBudget::default();
        Self { core, audit, hosts, queue, store_budget, version_stored: Notify::new() }
    }
}
