//! Hosts: registration, installation, the scripts that are baked for them, and their activity.

pub mod bake;
pub mod enrol;
pub mod host_trust;
pub mod install;
pub mod programs;
mod telemetry;
pub mod versions;
pub mod wrapper;

use std::sync::Arc;

use tokio::sync::watch;

use crate::service::core::directory::{HostPage, ListQuery};
use crate::service::hosts::programs::NativePrograms;
use crate::service::{Core, Result, ServiceError};

/// Hosts, their installers and their wrappers.
pub struct Hosts {
    pub(in crate::service) core: Arc<Core>,
    programs: Arc<NativePrograms>,
    /// Counts the wrappers that hosts were given.
    wrappers_fetched: watch::Sender<u64>,
}

impl Hosts {
    pub(in crate::service) fn new(core: Arc<Core>, programs: Arc<NativePrograms>) -> Self {
        Self { core, programs, wrappers_fetched: watch::channel(0).0 }
    }

    /// One page of the hosts that match `query`. They are chosen by what is some seconds old, and shown as they are now.
    pub async fn list_hosts(&self, query: ListQuery) -> Result<HostPage> {
        let page = self.core.directory.look(move |table| table.page(&query)).await?;
        let mut page = page.ok_or_else(|| ServiceError::invalid("cursor", "is that of a list with another order"))?;
        for host in &mut page.hosts {
            if let Some(present) = self.core.hot.host_by_id(host.id)? {
                host.activity = present.activity();
            }
        }
        Ok(page)
    }

    /// Builds the directory, so that the first page is as quick as the others.
    pub async fn prepare_directory(&self) -> Result<()> {
        self.core.directory.prepare().await
    }
}
