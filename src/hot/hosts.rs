//! Hosts in the form that calls need: found by the digest of a key, with their activity counted in memory.
//!
//! The map in memory fills as hosts call, so it is never larger than the fleet. A host must not enter it in the state
//! before a change that was applied while the host was loaded. So each change increments a generation, and a load under
//! an older generation is repeated.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use time::OffsetDateTime;

use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId, HostRules, RecentDigests};
use crate::records::{Host, Telemetry};
use crate::seal::Sealed;

use super::memo::Memo;
use super::{CacheStore, Change, HOST, HotError, Result, states};

/// Digest of a key → id of its host.
pub(super) const KEY: &[u8] = b"key/";
pub(super) const ACTIVITY: &[u8] = b"activity/";
/// Hosts without an activity row: the records were not asked for it yet.
pub(super) const UNKNOWN: &[u8] = b"unknown-activity/";

/// A host in its last state from the records, and its activity.
pub struct HotHost {
    pub id: HostId,
    pub fqdn: Fqdn,
    pub rules: HostRules,
    pub api_key: Sealed,
    /// Few hosts have one.
    pub agent_identity: Option<Box<AgentIdentity>>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    /// The digest of its own key; identifies data that was derived with it.
    pub key_digest: Digest,
    /// The digest of its wrapper, by the revision of the other values baked into it.
    pub wrapper_digest: Memo<u64, Digest>,
    keys: [Option<Digest>; 2],
    /// Shared by all states of this host, so that no count is lost when its rules change.
    live: Arc<Live>,
    stirred: Arc<Stirred>,
}

/// The agent identity of a host.
pub struct AgentIdentity {
    /// The identity as in the records.
    pub sealed: Sealed,
    /// SHA-256 of the login with this identity, by the digest of the login.
    pub delivered: Memo<Digest, Digest>,
}

/// Hosts with reports that were not gathered yet.
type Stirred = Mutex<VecDeque<Arc<Live>>>;

struct Live(Mutex<LiveState>);

struct LiveState {
    activity: HostActivity,
    /// Reports that were not gathered yet.
    pending: Option<Telemetry>,
    /// The values that are both known and pending. A call that reports only these reports nothing new.
    known: Option<UnchangedReport>,
}

/// Values that are known and wait to be gathered unchanged. They are stored inline, without pointers. In a large fleet
/// every host's memory is cold, and each further memory access costs as much as a thousand instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
struct UnchangedReport {
    digest: Option<Digest>,
    /// The versions of the client and the wrapper.
    versions: [Option<Short>; 2],
}

/// A short text, stored inline.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Short {
    length: u8,
    bytes: [u8; 22],
}

/// The version of the login that a host has after its call is answered.
#[derive(Clone, Copy)]
pub struct InHand<'a> {
    pub last_refresh: &'a str,
    pub digest: &'a Digest,
}

/// The result of counting a call.
#[derive(Debug)]
pub struct CountedCall {
    /// The activity of the host, this call included.
    pub activity: HostActivity,
    /// The previous `last_refresh`, if this call changed it.
    pub replaced_last_refresh: Option<Option<String>>,
}

impl HotHost {
    /// Counts a call. `None` leaves the known value.
    pub fn seen(
        &self,
        now: OffsetDateTime,
        login: Option<InHand<'_>>,
        client_version: Option<&str>,
        wrapper_version: Option<&str>,
    ) -> CountedCall {
        let mut state = self.live.lock();
        // The call counts as newer than what is known, even if the clock was set back meanwhile.
        let now = state.activity.last_seen.map_or(now, |known| known.max(now));
        if state.count_again(now, login, [client_version, wrapper_version]) {
            return CountedCall { activity: state.activity.clone(), replaced_last_refresh: None };
        }
        let sighting = Telemetry::Seen {
            host: self.id,
            calls: 1,
            last_seen: now,
            last_refresh: login.map(|login| login.last_refresh.into()),
            digests: login.map(|login| *login.digest).into_iter().collect(),
            client_version: client_version.map(Into::into),
            wrapper_version: wrapper_version.map(Into::into),
            wrapper_fetched_at: None,
        };
        self.count(state, sighting)
    }

    /// Records that the host was given its wrapper; the call itself is counted separately.
    pub fn fetched_wrapper(&self, now: OffsetDateTime) {
        let fetched = Telemetry::Seen {
            host: self.id,
            calls: 0,
            last_seen: now,
            last_refresh: None,
            digests: RecentDigests::default(),
            client_version: None,
            wrapper_version: None,
            wrapper_fetched_at: Some(now),
        };
        self.count(self.live.lock(), fetched);
    }

    fn count(&self, mut state: MutexGuard<'_, LiveState>, sighting: Telemetry) -> CountedCall {
        let before = state.activity.last_refresh.clone();
        sighting.apply_to(&mut state.activity);
        let first = state.pending.is_none();
        state.pending = Some(match state.pending.take() {
            Some(pending) => joined(pending, sighting),
            None => sighting,
        });
        state.note_known();
        let seen = CountedCall {
            activity: state.activity.clone(),
            replaced_last_refresh: (before != state.activity.last_refresh).then_some(before),
        };
        drop(state);
        if first {
            lock(&self.stirred).push_back(Arc::clone(&self.live));
        }
        seen
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
    /// Hosts whose state in memory replaces the stored one. If such a host is in neither map, it is removed.
    overruled: HashSet<HostId>,
    by_key: HashMap<Digest, Arc<HotHost>>,
    by_id: HashMap<HostId, Arc<HotHost>>,
}

impl Cache {
    pub(super) fn by_key(&self, cache: &CacheStore, key: &Digest) -> Result<Option<Arc<HotHost>>> {
        self.find(
            |maps| maps.by_key.get(key).cloned(),
            || {
                let Some(id) = cache.get(key_key(key))? else { return Ok(None) };
                Ok(stored(cache, id)?.filter(|host| keys_of(host).contains(&Some(*key))))
            },
            cache,
        )
    }

    pub(super) fn by_id(&self, cache: &CacheStore, id: HostId) -> Result<Option<Arc<HotHost>>> {
        self.find(|maps| maps.by_id.get(&id).cloned(), || stored(cache, id), cache)
    }

    fn find(
        &self,
        cached: impl Fn(&Maps) -> Option<Arc<HotHost>>,
        load: impl Fn() -> Result<Option<Host>>,
        cache: &CacheStore,
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
            let activity = cache.get(activity_key(host.id))?.unwrap_or_default();
            let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(host) = cached(&maps) {
                return Ok(Some(host));
            }
            if maps.overruled.contains(&host.id) {
                return Ok(None);
            }
            if maps.generation == generation {
                let live = Arc::new(Live(Mutex::new(LiveState::new(activity))));
                return Ok(Some(maps.insert(host, live, &self.stirred)));
            }
        }
    }

    /// Call it after `hosts` are stored.
    pub(super) fn replace(&self, hosts: &[Host]) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.generation += 1;
        for host in hosts {
            maps.overruled.remove(&host.id);
            // A host that is not in memory is loaded when it calls.
            let Some(old) = maps.take(host.id) else { continue };
            if host.removed_at.is_none() {
                maps.insert(host.clone(), Arc::clone(&old.live), &self.stirred);
            }
        }
    }

    /// Replaces the stored `hosts` in memory, until the next change of them.
    pub(super) fn overrule(&self, cache: &CacheStore, hosts: &[Host]) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.generation += 1;
        for host in hosts {
            let live = maps.take(host.id).map(|old| Arc::clone(&old.live)).unwrap_or_else(|| {
                let activity = cache.get(activity_key(host.id)).ok().flatten().unwrap_or_default();
                Arc::new(Live(Mutex::new(LiveState::new(activity))))
            });
            maps.overruled.insert(host.id);
            if host.removed_at.is_none() {
                maps.insert(host.clone(), live, &self.stirred);
            }
        }
    }

    pub(super) fn clear(&self) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.generation += 1;
        maps.overruled.clear();
        maps.by_key.clear();
        maps.by_id.clear();
    }

    /// Takes the reports of at most `limit` hosts, those that have waited longest first.
    pub(super) fn gather_seen(&self, limit: usize) -> Vec<Telemetry> {
        let mut waiting = lock(&self.stirred);
        let limit = limit.min(waiting.len());
        let stirred: Vec<_> = waiting.drain(..limit).collect();
        drop(waiting);
        let taken = stirred.into_iter().filter_map(|live| {
            let mut state = live.lock();
            state.known = None;
            state.pending.take()
        });
        taken.collect()
    }

    pub(super) fn set_activity(&self, id: HostId, activity: &HostActivity) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may be loading this host with its old activity.
        maps.generation += 1;
        if let Some(host) = maps.by_id.get(&id) {
            let mut state = host.live.lock();
            state.activity = activity.clone();
            let LiveState { activity, pending, .. } = &mut *state;
            if let Some(pending) = pending {
                pending.apply_to(activity);
            }
            state.note_known();
        }
    }
}

impl Maps {
    fn take(&mut self, id: HostId) -> Option<Arc<HotHost>> {
        let old = self.by_id.remove(&id)?;
        for key in old.keys.iter().flatten() {
            self.by_key.remove(key);
        }
        Some(old)
    }

    fn insert(&mut self, host: Host, live: Arc<Live>, stirred: &Arc<Stirred>) -> Arc<HotHost> {
        let keys = keys_of(&host);
        let Host { id, fqdn, key_digest, rules, api_key, created_at, updated_at, agent_identity, .. } = host;
        let stirred = Arc::clone(stirred);
        let host = Arc::new(HotHost {
            id,
            fqdn,
            rules,
            api_key,
            agent_identity: agent_identity.map(|sealed| Box::new(AgentIdentity { sealed, delivered: Memo::default() })),
            created_at,
            updated_at,
            key_digest,
            wrapper_digest: Memo::default(),
            keys,
            live,
            stirred,
        });
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

impl LiveState {
    fn new(activity: HostActivity) -> Self {
        Self { activity, pending: None, known: None }
    }

    /// Counts a call if it reports only values that are known and already wait to be gathered. `false`: it may report
    /// others, and was not counted.
    fn count_again(&mut self, now: OffsetDateTime, login: Option<InHand<'_>>, told: [Option<&str>; 2]) -> bool {
        let (Some(known), Some(Telemetry::Seen { calls, last_seen, .. })) = (&self.known, &mut self.pending) else {
            return false;
        };
        // A digest has exactly one `last_refresh`.
        let nothing_new = login.is_none_or(|login| known.digest.as_ref() == Some(login.digest))
            && told.iter().zip(&known.versions).all(|(told, known)| {
                told.is_none_or(|told| known.as_ref().is_some_and(|known| known.as_bytes() == told.as_bytes()))
            });
        if !nothing_new || self.activity.last_seen.is_none_or(|known| known > now) || *last_seen > now {
            return false;
        }
        *calls = calls.saturating_add(1);
        *last_seen = now;
        self.activity.api_calls = self.activity.api_calls.saturating_add(1);
        self.activity.last_seen = Some(now);
        true
    }

    /// Call this after every change of the known or the pending values.
    fn note_known(&mut self) {
        let Some(Telemetry::Seen { digests, client_version, wrapper_version, .. }) = &self.pending else {
            self.known = None;
            return;
        };
        let both = |waiting: &Option<String>, known: &Option<String>| {
            waiting.as_deref().filter(|_| waiting == known).and_then(Short::of)
        };
        self.known = Some(UnchangedReport {
            digest: digests.latest().filter(|digest| self.activity.digests.latest() == Some(digest)).copied(),
            versions: [
                both(client_version, &self.activity.client_version),
                both(wrapper_version, &self.activity.wrapper_version),
            ],
        });
    }
}

impl Short {
    fn of(text: &str) -> Option<Self> {
        let mut bytes = [0; 22];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { length: u8::try_from(text.len()).ok()?, bytes })
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// Stages a host and its keys; removes its previous keys.
pub(super) fn write(change: &mut Change<'_, '_>, host: &Host) -> Result<()> {
    let old = change.get::<Host>(host_key(host.id))?;
    for key in old.iter().flat_map(keys_of).flatten() {
        change.remove(key_key(&key))?;
    }
    states::change(change, old.as_ref(), host.removed_at.is_none().then_some(host))?;
    if host.removed_at.is_some() {
        change.remove(host_key(host.id))?;
        change.remove(activity_key(host.id))?;
        return change.remove(unknown_key(host.id));
    }
    if change.get_bytes(activity_key(host.id))?.is_none() {
        change.insert(unknown_key(host.id), "")?;
    }
    for key in keys_of(host).iter().flatten() {
        change.put(key_key(key), &host.id)?;
    }
    change.put(host_key(host.id), host)
}

/// Calls `tell` for every stored host, in its stored state.
pub(super) fn each(cache: &CacheStore, mut tell: impl FnMut(Host, HostActivity)) -> Result<()> {
    for row in cache.rows(HOST) {
        let host: Host = cache.decode("host", &row?.1)?;
        let activity = cache.get(activity_key(host.id))?.unwrap_or_default();
        tell(host, activity);
    }
    Ok(())
}

/// These hosts have a key range of their own, so the cost of a start does not grow with the fleet.
pub(super) fn without_activity(cache: &CacheStore) -> Result<Vec<HostId>> {
    let id_of = |key: &[u8]| Some(HostId(u64::from_be_bytes(key.get(UNKNOWN.len()..)?.try_into().ok()?)));
    let wrong = || HotError::Corrupt("unknown-activity: its key is wrong".into());
    cache.rows(UNKNOWN).map(|row| id_of(&row?.0).ok_or_else(wrong)).collect()
}

/// Removes the activity of every host. It may be repeated.
pub(super) fn forget_activities(cache: &CacheStore) -> Result<()> {
    let id_of = |key: &[u8]| key.get(HOST.len()..).map(<[u8]>::to_vec).unwrap_or_default();
    let ids: Vec<_> = cache.rows(HOST).map(|row| Ok(id_of(&row?.0))).collect::<Result<_>>()?;
    for ids in ids.chunks(super::BATCH_ROWS) {
        cache.write(|change| {
            ids.iter().try_for_each(|id| {
                change.remove([ACTIVITY, id].concat())?;
                change.insert([UNKNOWN, id].concat(), "")
            })
        })?;
    }
    Ok(())
}

pub(super) fn write_activity(change: &mut Change<'_, '_>, id: HostId, activity: &HostActivity) -> Result<()> {
    change.remove(unknown_key(id))?;
    change.put(activity_key(id), activity)
}

fn unknown_key(id: HostId) -> Vec<u8> {
    [UNKNOWN, &id.0.to_be_bytes()].concat()
}

pub(super) fn activity_key(id: HostId) -> Vec<u8> {
    [ACTIVITY, &id.0.to_be_bytes()].concat()
}

fn stored(cache: &CacheStore, id: HostId) -> Result<Option<Host>> {
    cache.get(host_key(id))
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

/// Merges two reports of a host.
fn joined(earlier: Telemetry, later: Telemetry) -> Telemetry {
    let (Telemetry::Seen { host, .. }, Telemetry::Seen { last_seen, .. }) = (&earlier, &later) else { return later };
    let (host, last_seen) = (*host, *last_seen);
    let mut both = HostActivity::default();
    earlier.apply_to(&mut both);
    later.apply_to(&mut both);
    Telemetry::Seen {
        host,
        calls: both.api_calls,
        last_seen: both.last_seen.unwrap_or(last_seen),
        last_refresh: both.last_refresh,
        digests: both.digests,
        client_version: both.client_version,
        wrapper_version: both.wrapper_version,
        wrapper_fetched_at: both.wrapper_fetched_at,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::records::conformance::{self, at, sealed};

    fn host(tag: &str) -> Host {
        Host { api_key: sealed(1, tag), ..conformance::host(1, "h1.test", tag) }
    }

    /// Tries every sequence of a few calls, also with a clock that steps back. However a call is counted, the known
    /// values are those that the records would have.
    #[test]
    fn a_call_that_tells_nothing_new_is_counted_like_any_other() {
        const TOLD: [(i64, Option<&str>); 6] =
            [(1, None), (1, Some("a")), (1, Some("b")), (2, None), (2, Some("a")), (2, Some("b"))];
        for sequence in 0..6_usize.pow(4) {
            let cache = Cache::default();
            let live = Live(Mutex::new(LiveState::new(HostActivity::default())));
            let host = cache.maps.write().unwrap().insert(host("a"), Arc::new(live), &cache.stirred);
            let (mut expected, mut sent) = (HostActivity::default(), HostActivity::default());
            for call in 0..4 {
                let (seconds, version) = TOLD[sequence / 6_usize.pow(call) % 6];
                let digest = version.map(|version| Digest::of(version.as_bytes()));
                let login = version.zip(digest.as_ref()).map(|(last_refresh, digest)| InHand { last_refresh, digest });
                let before = expected.last_refresh.clone();
                Telemetry::Seen {
                    host: host.id,
                    calls: 1,
                    // With a clock that was set back, no call is older than the one before.
                    last_seen: expected.last_seen.map_or(at(seconds), |known| known.max(at(seconds))),
                    last_refresh: version.map(Into::into),
                    digests: digest.into_iter().collect(),
                    client_version: version.map(Into::into),
                    wrapper_version: None,
                    wrapper_fetched_at: None,
                }
                .apply_to(&mut expected);
                let seen = host.seen(at(seconds), login, version, None);
                assert_eq!((&seen.activity, &host.activity()), (&expected, &expected), "{sequence}");
                let replaced = (expected.last_refresh != before).then_some(before);
                assert_eq!(seen.replaced_last_refresh, replaced);
                if call == 2 {
                    cache.gather_seen(usize::MAX).iter().for_each(|gathered| gathered.apply_to(&mut sent));
                }
            }
            cache.gather_seen(usize::MAX).iter().for_each(|gathered| gathered.apply_to(&mut sent));
            assert_eq!(sent, expected, "{sequence}");
        }
    }

    /// The moment between reading a row and putting it into the map.
    #[test]
    fn a_host_that_changes_while_it_is_loaded_is_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache_store = CacheStore::new(crate::durable::Store::rebuildable(dir.path()).unwrap());
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
        let found = cache.find(|maps| maps.by_id.get(&HostId(1)).cloned(), load, &cache_store).unwrap().unwrap();
        assert_eq!((loads.get(), &found.api_key), (2, &sealed(1, "new")));
        assert!(cache.by_key(&cache_store, &host("old").key_digest).unwrap().is_none());
    }
}
