//! Hosts as a call needs them: found by the digest of a key, with their activity counted in memory.
//!
//! The map in memory is filled as hosts call, so it is never larger than the fleet. A host that is being loaded while
//! changes are applied must not enter it as it was before them: each change turns a generation, and who loaded under an
//! older one loads again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use time::OffsetDateTime;

use crate::durable::{Durable, Staged};
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId, HostRules};
use crate::records::{Host, Telemetry};
use crate::seal::Sealed;

use super::{Result, decode, get, get_staged, put};

pub(super) const HOST: &[u8] = b"host/";
/// Digest of a key → id of its host.
pub(super) const KEY: &[u8] = b"key/";
pub(super) const ACTIVITY: &[u8] = b"activity/";

/// A host, as the records last told of it, and what it did.
pub struct HotHost {
    pub id: HostId,
    pub fqdn: Fqdn,
    pub rules: HostRules,
    pub api_key: Sealed,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    /// Of its own key; names what was baked with it.
    pub key_digest: Digest,
    keys: [Option<Digest>; 2],
    /// Shared by all states of this host, so that nothing is lost when its rules change.
    live: Arc<Live>,
    stirred: Arc<Stirred>,
}

/// Who did something since it was last gathered.
type Stirred = Mutex<Vec<Arc<Live>>>;

struct Live(Mutex<LiveState>);

#[derive(Default)]
struct LiveState {
    activity: HostActivity,
    /// What was not gathered yet.
    pending: Option<Telemetry>,
}

impl HotHost {
    /// Counts a call; says how many there were, this one included. What is `None` stays as it is known.
    pub fn seen(
        &self,
        now: OffsetDateTime,
        last_refresh: Option<&str>,
        client_version: Option<&str>,
        wrapper_version: Option<&str>,
    ) -> u64 {
        let sighting = Telemetry::Seen {
            host: self.id,
            calls: 1,
            last_seen: now,
            last_refresh: last_refresh.map(Into::into),
            client_version: client_version.map(Into::into),
            wrapper_version: wrapper_version.map(Into::into),
        };
        let mut state = self.live.lock();
        sighting.apply_to(&mut state.activity);
        let first = state.pending.is_none();
        state.pending = Some(match state.pending.take() {
            Some(pending) => joined(pending, sighting),
            None => sighting,
        });
        let calls = state.activity.api_calls;
        drop(state);
        if first {
            lock(&self.stirred).push(Arc::clone(&self.live));
        }
        calls
    }

    pub fn activity(&self) -> HostActivity {
        self.live.lock().activity.clone()
    }
}

impl std::fmt::Debug for HotHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotHost").field("id", &self.id).field("fqdn", &self.fqdn).finish_non_exhaustive()
    }
}

#[derive(Default)]
pub(super) struct Cache {
    maps: RwLock<Maps>,
    stirred: Arc<Stirred>,
}

#[derive(Default)]
struct Maps {
    generation: u64,
    by_key: HashMap<Digest, Arc<HotHost>>,
    by_id: HashMap<HostId, Arc<HotHost>>,
}

impl Cache {
    pub(super) fn by_key(&self, data: &Durable, key: &Digest) -> Result<Option<Arc<HotHost>>> {
        self.find(
            |maps| maps.by_key.get(key).cloned(),
            || {
                let Some(id) = get(data, key_key(key))? else { return Ok(None) };
                Ok(stored(data, id)?.filter(|host| keys_of(host).contains(&Some(*key))))
            },
            data,
        )
    }

    pub(super) fn by_id(&self, data: &Durable, id: HostId) -> Result<Option<Arc<HotHost>>> {
        self.find(|maps| maps.by_id.get(&id).cloned(), || stored(data, id), data)
    }

    fn find(
        &self,
        cached: impl Fn(&Maps) -> Option<Arc<HotHost>>,
        load: impl Fn() -> Result<Option<Host>>,
        data: &Durable,
    ) -> Result<Option<Arc<HotHost>>> {
        loop {
            let generation = {
                let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(host) = cached(&maps) {
                    return Ok(Some(host));
                }
                maps.generation
            };
            let Some(host) = load()? else { return Ok(None) };
            let activity = get(data, activity_key(host.id))?.unwrap_or_default();
            let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(host) = cached(&maps) {
                return Ok(Some(host));
            }
            if maps.generation == generation {
                let state = LiveState { activity, pending: None };
                let live = Arc::new(Live(Mutex::new(state)));
                return Ok(Some(maps.insert(host, live, &self.stirred)));
            }
        }
    }

    /// To be called once `hosts` are stored.
    pub(super) fn replace(&self, hosts: &[Host]) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.generation += 1;
        for host in hosts {
            // Who has not called yet is loaded when it does.
            let Some(old) = maps.by_id.remove(&host.id) else { continue };
            for key in old.keys.iter().flatten() {
                maps.by_key.remove(key);
            }
            if host.removed_at.is_none() {
                maps.insert(host.clone(), Arc::clone(&old.live), &self.stirred);
            }
        }
    }

    pub(super) fn clear(&self) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.generation += 1;
        maps.by_key.clear();
        maps.by_id.clear();
    }

    pub(super) fn gather_seen(&self) -> Vec<Telemetry> {
        let stirred = std::mem::take(&mut *lock(&self.stirred));
        stirred.into_iter().filter_map(|live| live.lock().pending.take()).collect()
    }

    pub(super) fn set_activity(&self, id: HostId, activity: &HostActivity) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody may be loading this host with what was known before.
        maps.generation += 1;
        if let Some(host) = maps.by_id.get(&id) {
            let mut state = host.live.lock();
            state.activity = activity.clone();
            let LiveState { activity, pending } = &mut *state;
            if let Some(pending) = pending {
                pending.apply_to(activity);
            }
        }
    }
}

impl Maps {
    fn insert(&mut self, host: Host, live: Arc<Live>, stirred: &Arc<Stirred>) -> Arc<HotHost> {
        let keys = keys_of(&host);
        let Host { id, fqdn, key_digest, rules, api_key, created_at, updated_at, .. } = host;
        let stirred = Arc::clone(stirred);
        let host =
            Arc::new(HotHost { id, fqdn, rules, api_key, created_at, updated_at, key_digest, keys, live, stirred });
        for key in keys.into_iter().flatten() {
            self.by_key.insert(key, Arc::clone(&host));
        }
        self.by_id.insert(id, Arc::clone(&host));
        host
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, LiveState> {
        lock(&self.0)
    }
}

/// Stages a host and its keys, taking away those it had.
pub(super) fn write(staged: &mut Staged<'_>, host: &Host) -> Result<()> {
    if let Some(old) = get_staged::<Host>(staged, host_key(host.id))? {
        for key in keys_of(&old).iter().flatten() {
            staged.remove(key_key(key));
        }
    }
    if host.removed_at.is_some() {
        staged.remove(host_key(host.id));
        staged.remove(activity_key(host.id));
        return Ok(());
    }
    for key in keys_of(host).iter().flatten() {
        put(staged, key_key(key), &host.id)?;
    }
    put(staged, host_key(host.id), host)
}

pub(super) fn without_activity(data: &Durable) -> Result<Vec<HostId>> {
    let mut hosts = Vec::new();
    for row in data.scan(HOST) {
        let (key, value) = row?;
        let id = [ACTIVITY, &key[HOST.len()..]].concat();
        if data.get(id)?.is_none() {
            hosts.push(decode::<Host>("host", &value)?.id);
        }
    }
    Ok(hosts)
}

pub(super) fn activity_key(id: HostId) -> Vec<u8> {
    [ACTIVITY, &id.0.to_be_bytes()].concat()
}

fn stored(data: &Durable, id: HostId) -> Result<Option<Host>> {
    get(data, host_key(id))
}

pub(super) fn host_key(id: HostId) -> Vec<u8> {
    [HOST, &id.0.to_be_bytes()].concat()
}

fn key_key(key: &Digest) -> Vec<u8> {
    [KEY, key.as_bytes()].concat()
}

fn keys_of(host: &Host) -> [Option<Digest>; 2] {
    [Some(host.key_digest), host.imported_key_digest]
}

/// Two sightings as one.
fn joined(earlier: Telemetry, later: Telemetry) -> Telemetry {
    let Telemetry::Seen { host, .. } = earlier;
    let mut both = HostActivity::default();
    earlier.apply_to(&mut both);
    later.apply_to(&mut both);
    let Telemetry::Seen { last_seen, .. } = later;
    Telemetry::Seen {
        host,
        calls: both.api_calls,
        last_seen: both.last_seen.unwrap_or(last_seen),
        last_refresh: both.last_refresh,
        client_version: both.client_version,
        wrapper_version: both.wrapper_version,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::records::conformance::{at, registration, sealed};

    fn host(tag: &str) -> Host {
        let registration = registration(1, "h1.test", tag);
        Host {
            id: registration.id,
            fqdn: registration.fqdn,
            key_digest: registration.key_digest,
            imported_key_digest: None,
            api_key: sealed(1, tag),
            rules: HostRules {
                secure: true,
                allow_roaming_ips: false,
                bound_ip: None,
                insecure_enabled_until: None,
                insecure_grace_until: None,
            },
            created_at: at(0),
            updated_at: at(0),
            removed_at: None,
        }
    }

    /// The very moment between reading a row and putting it into the map.
    #[test]
    fn a_host_that_changes_while_it_is_loaded_is_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = Durable::open(dir.path()).unwrap();
        let cache = Cache::default();
        let loads = Cell::new(0);
        let load = || {
            loads.set(loads.get() + 1);
            if loads.get() > 1 {
                return Ok(Some(host("new")));
            }
            let read = host("old");
            cache.replace(&[host("new")]);
            Ok(Some(read))
        };
        let found = cache.find(|maps| maps.by_id.get(&HostId(1)).cloned(), load, &data).unwrap().unwrap();
        assert_eq!((loads.get(), &found.api_key), (2, &sealed(1, "new")));
        assert!(cache.by_key(&data, &host("old").key_digest).unwrap().is_none());
    }
}
