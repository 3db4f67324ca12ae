//! Hosts that users install for themselves. Their owner can see them, install them again and remove them.

use crate::model::host::HostId;
use crate::records::{Host, Owner};
use crate::service::hosts::enrol::{HostOptions, HostView, Registered};
use crate::service::people::sessions::SignedIn;
use crate::service::{Initiator, People, Result};

impl People {
    pub async fn own_hosts(&self, signed_in: &SignedIn) -> Result<Vec<HostView>> {
        let hosts = self.hosts.hosts().await?;
        Ok(hosts.into_iter().filter(|view| view.host.owner == Some(signed_in.user.id)).collect())
    }

    /// How many hosts the user may have.
    pub fn max_hosts(&self, signed_in: &SignedIn) -> u32 {
        signed_in.user.max_hosts.unwrap_or_else(|| self.core.policy.load().people.max_hosts)
    }

    /// An installer for a host of the user: a new one, or one that they have.
    pub async fn register_own(&self, fqdn: &str, signed_in: &SignedIn, by: &Initiator) -> Result<Registered> {
        let owner = Owner { user: signed_in.user.id, at_most: self.max_hosts(signed_in) };
        self.hosts.register_for(fqdn, HostOptions::default(), Some(&owner), by).await
    }

    pub async fn remove_own(&self, id: HostId, signed_in: &SignedIn, by: &Initiator) -> Result<Host> {
        self.hosts.remove_for(id, Some(signed_in.user.id), by).await
    }
}
