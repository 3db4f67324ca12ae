//! The number of hosts in each state, stored as a row: counting a large fleet for every request would be slow.
//!
//! The row changes in the same batch as the hosts, so a crash leaves both old or both new. If the row is missing (hot
//! state of an older version, a reset that a crash cut short), the next open counts once.

use serde::{Deserialize, Serialize};

use super::{CacheStore, Change, HOST, Hot, Result};
use crate::model::host::HostRules;
use crate::records::Host;

pub(super) const STATES: &[u8] = b"host-states";

/// Every host is in exactly one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostStates {
    pub active: u64,
    /// Has never called.
    pub unbound: u64,
    /// Shared machines, whether they have called or not.
    pub insecure: u64,
    /// Disabled by an admin; takes precedence over the other states.
    pub disabled: u64,
}

impl HostStates {
    pub fn total(&self) -> u64 {
        [self.active, self.unbound, self.insecure, self.disabled].into_iter().fold(0, u64::saturating_add)
    }

    fn state(&mut self, rules: &HostRules) -> &mut u64 {
        match rules {
            HostRules { disabled: true, .. } => &mut self.disabled,
            HostRules { secure: false, .. } => &mut self.insecure,
            HostRules { bound_ip: None, .. } => &mut self.unbound,
            _ => &mut self.active,
        }
    }

    fn enter(&mut self, rules: &HostRules) {
        *self.state(rules) += 1;
    }

    fn leave(&mut self, rules: &HostRules) {
        let count = self.state(rules);
        *count = count.saturating_sub(1);
    }
}

impl Hot {
    pub fn host_states(&self) -> Result<HostStates> {
        Ok(self.cache.get(STATES)?.unwrap_or_default())
    }
}

/// Updates the counts for a host that changed from `old` to `new`.
pub(super) fn change(staged: &mut Change<'_, '_>, old: Option<&Host>, new: Option<&Host>) -> Result<()> {
    let mut states: HostStates = staged.get(STATES)?.unwrap_or_default();
    let before = states;
    if let Some(old) = old {
        states.leave(&old.rules);
    }
    if let Some(new) = new {
        states.enter(&new.rules);
    }
    if states == before { Ok(()) } else { staged.put(STATES, &states) }
}

pub(super) fn count_if_missing(cache: &CacheStore) -> Result<()> {
    if cache.get_bytes(STATES)?.is_some() {
        return Ok(());
    }
    let mut states = HostStates::default();
    for row in cache.rows(HOST) {
        states.enter(&cache.decode::<Host>("host", &row?.1)?.rules);
    }
    cache.write(|change| change.put(STATES, &states))
}
