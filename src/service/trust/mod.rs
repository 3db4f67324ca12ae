//! Authorities, admins' certificates and data keys.

pub mod authorities;
pub mod certificates;
pub mod keys;

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::service::{Core, Hosts, People};

pub struct Trust {
    pub(in crate::service) core: Arc<Core>,
    hosts: Arc<Hosts>,
    people: Arc<People>,
    /// One rotation of the data keys at a time.
    rotating: Mutex<()>,
}

impl Trust {
    pub(in crate::service) fn new(core: Arc<Core>, hosts: Arc<Hosts>, people: Arc<People>) -> Self {
        Self { core, hosts, people, rotating: Mutex::new(()) }
    }
}
