//! Hosts: registration, installation, the scripts that are baked for them, and their activity.

pub mod bake;
pub mod enrol;
pub mod host_trust;
pub mod install;
mod telemetry;
pub mod versions;
pub mod wrapper;

use std::sync::Arc;

use tokio::sync::watch;

use crate::service::core::directory::{HostPage, ListQuery};
use crate::service::{Core, Result};

/// Hosts, their installers and their wrappers.
pub struct Hosts {
    pub(in crate::service) core: Arc<Core>,
    /// Counts the wrappers that hosts were given.
    wrappers_fetched: watch::Sender<u64>,
}

impl Hosts {
    pub(in crate::service) fn new(core: Arc<Core>) -> Self {
        Self { core, wrappers_fetched: watch::channel(0).0 }
    }

    /// One page of the hosts that match `query`.
    pub async fn list_hosts(&self, query: ListQuery) -> Result<HostPage> {
        self.core.directory.look(move |table| table.page(&query)).await
    }

    /// Builds the directory, so that the first page is as quick as the others.
    pub async fn prepare_directory(&self) -> Result<()> {
        self.core.directory.prepare().await
    }
}
