//! All hosts in memory, in the order of their names: what a page of the list is cut from. Pure: it knows neither where
//! the hosts come from nor what time it is.
//!
//! A page costs one walk over the hosts, never a sort of them all. Equal hosts stand in the order of their names, so the
//! pages of one list fit together: no host stands on two of them, none between.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId, HostRules};
use crate::model::people::UserId;
use crate::model::version::Version;
use crate::records::Host;

/// Stands between the parts of a text that is searched; in none of them.
const BETWEEN: char = '\n';

/// A host as it stands in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedHost {
    pub id: HostId,
    pub fqdn: Fqdn,
    pub rules: HostRules,
    pub owner: Option<UserId>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    pub activity: HostActivity,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    #[default]
    Fqdn,
    LastSeen,
    CreatedAt,
    UpdatedAt,
    ApiCalls,
    /// By the order of versions.
    ClientVersion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Served, as far as its own rules go.
    Active,
    /// No address yet: its key was not used.
    Unbound,
    /// A shared machine.
    Insecure,
    /// Switched off by an admin.
    Disabled,
}

#[derive(Clone, Debug)]
pub struct ListQuery {
    pub limit: usize,
    pub offset: usize,
    pub sort: Sort,
    pub descending: bool,
    /// Part of the name, the address or the client version, in capitals or not.
    pub search: Option<String>,
    pub state: Option<HostState>,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { limit: 100, offset: 0, sort: Sort::Fqdn, descending: false, search: None, state: None }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub hosts: Vec<ListedHost>,
    /// How many hosts there are.
    pub total: usize,
    /// How many of them are what was asked for.
    pub matching: usize,
}

#[derive(Default)]
pub struct Table {
    slots: Vec<Option<Row>>,
    free: Vec<u32>,
    by_id: HashMap<HostId, u32>,
    /// Slots in the order of their hosts' names.
    order: Vec<u32>,
    shared: Shared,
}

/// As small as it can be had: there is one for every host of the fleet.
struct Row {
    id: HostId,
    /// What is searched, in lower case; it begins with the name.
    text: Box<str>,
    name_length: usize,
    rules: HostRules,
    owner: Option<UserId>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    api_calls: u64,
    last_seen: Option<OffsetDateTime>,
    last_refresh: Option<Arc<str>>,
    digests: Option<Arc<[Digest]>>,
    client_version: Option<Arc<str>>,
    wrapper_version: Option<Arc<str>>,
}

/// What most hosts have in common.
#[derive(Default)]
struct Shared {
    texts: Pool<str>,
    digests: Pool<[Digest]>,
}

/// Values that are each kept once.
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// New ones since those were dropped that nobody has any more.
    new: usize,
}

/// A table that is being built, of hosts in any order. Each is made as small as it will be when it comes: what a large
/// fleet takes for a moment stays with the process.
pub struct Builder {
    rows: Vec<Row>,
    shared: Shared,
}

impl Builder {
    pub fn with_capacity(hosts: usize) -> Self {
        Self { rows: Vec::with_capacity(hosts), shared: Shared::default() }
    }

    pub fn push(&mut self, host: ListedHost) {
        self.rows.push(Row::new(host, &mut self.shared));
    }

    /// Rows that are walked together stand together.
    pub fn finish(self) -> Table {
        let Self { mut rows, shared } = self;
        // Of two of one name, the one was removed while they were read.
        rows.sort_unstable_by(|a, b| (a.name(), b.created_at).cmp(&(b.name(), a.created_at)));
        rows.dedup_by(|later, earlier| later.name() == earlier.name());
        // Their texts too: a search is as fast as memory tells them.
        let texts: Vec<Box<str>> = rows.iter().map(|row| row.text.clone()).collect();
        rows.iter_mut().zip(texts).for_each(|(row, text)| row.text = text);
        Table {
            by_id: rows.iter().zip(0..).map(|(row, slot)| (row.id, slot)).collect(),
            order: (0..).take(rows.len()).collect(),
            slots: rows.into_iter().map(Some).collect(),
            free: Vec::new(),
            shared,
        }
    }
}

impl Table {
    /// Takes over a host as the records have it now; one that is removed there goes.
    pub fn put(&mut self, host: &Host) {
        if host.removed_at.is_some() {
            return self.remove(host.id);
        }
        if let Some(row) = self.row_mut(host.id)
            && row.name() == host.fqdn.as_str()
        {
            row.rules = host.rules.clone();
            row.owner = host.owner;
            row.created_at = host.created_at;
            row.updated_at = host.updated_at;
            return row.write_text();
        }
        let activity = self.row_mut(host.id).map(|row| row.activity()).unwrap_or_default();
        self.remove(host.id);
        // A name is one host's; the one that had it is gone, even if nobody has said so yet.
        if let Ok(place) = self.place_of(host.fqdn.as_str())
            && let Some(other) = self.at(place).map(|row| row.id)
        {
            self.remove(other);
        }
        let row = Row::new(ListedHost::new(host, activity), &mut self.shared);
        self.insert(row);
    }

    pub fn set_activity(&mut self, id: HostId, activity: HostActivity) {
        let Some(row) = self.by_id.get(&id).and_then(|slot| self.slots.get_mut(*slot as usize)?.as_mut()) else {
            return;
        };
        let is_searched = row.client_version.as_deref() != activity.client_version.as_deref();
        row.set_activity(activity, &mut self.shared);
        if is_searched {
            row.write_text();
        }
    }

    /// Which `last_refresh` hosts have in hand, and how many have it.
    pub fn last_refreshes(&self) -> HashMap<&str, usize> {
        let mut counts = HashMap::new();
        for row in self.slots.iter().flatten() {
            if let Some(last_refresh) = row.last_refresh.as_deref() {
                *counts.entry(last_refresh).or_default() += 1;
            }
        }
        counts
    }

    pub fn host_count(&self) -> usize {
        self.order.len()
    }

    pub fn page(&self, query: &ListQuery) -> Page {
        let total = self.order.len();
        let (places, matching) = match query.sort {
            Sort::Fqdn => self.by_name(query),
            Sort::LastSeen => self.by_key(query, |row| row.last_seen.map(nanos)),
            Sort::CreatedAt => self.by_key(query, |row| nanos(row.created_at)),
            Sort::UpdatedAt => self.by_key(query, |row| nanos(row.updated_at)),
            Sort::ApiCalls => self.by_key(query, |row| row.api_calls),
            Sort::ClientVersion => self.by_version(query),
        };
        let rows = places.into_iter().filter_map(|place| self.at(place as usize));
        Page { hosts: rows.filter_map(Row::listed).collect(), total, matching }
    }

    /// The hosts that are asked for, by name, each with its place. One look at each row: with a great many of them it is
    /// the memory that takes its time.
    fn asked_for<'a>(&'a self, query: &ListQuery) -> impl Iterator<Item = (&'a Row, u32)> + use<'a> {
        let needle = query.search.as_deref().map(str::to_lowercase).unwrap_or_default();
        // No text has such a part, whatever stands beside each other in it.
        let none = needle.contains(BETWEEN);
        let finder = (!needle.is_empty()).then(|| memchr::memmem::Finder::new(needle.as_bytes()).into_owned());
        let state = query.state;
        let is_asked_for = move |row: &Row| {
            let in_state = match state {
                None => true,
                Some(HostState::Active) => !row.rules.disabled,
                Some(HostState::Unbound) => row.rules.bound_ip.is_none(),
                Some(HostState::Insecure) => !row.rules.secure,
                Some(HostState::Disabled) => row.rules.disabled,
            };
            in_state && finder.as_ref().is_none_or(|finder| finder.find(row.text.as_bytes()).is_some())
        };
        let places = if none { &[][..] } else { &self.order[..] };
        let rows = places.iter().zip(0..).filter_map(|(slot, place)| Some((self.row(*slot)?, place)));
        rows.filter(move |(row, _)| is_asked_for(row))
    }

    fn by_name(&self, query: &ListQuery) -> (Vec<u32>, usize) {
        let everything =
            query.search.as_deref().is_none_or(str::is_empty) && matches!(query.state, None | Some(HostState::Active));
        let mut places: Vec<u32> = if everything {
            (0..).take(self.order.len()).collect()
        } else {
            self.asked_for(query).map(|(_, place)| place).collect()
        };
        if query.descending {
            places.reverse();
        }
        let matching = places.len();
        (places.into_iter().skip(query.offset).take(query.limit).collect(), matching)
    }

    fn by_key<K: Ord>(&self, query: &ListQuery, key: impl Fn(&Row) -> K) -> (Vec<u32>, usize) {
        window(self.asked_for(query).map(|(row, place)| (key(row), place)).collect(), query)
    }

    /// There are few versions, however many hosts: they are put in order, and the hosts by their place in it.
    fn by_version(&self, query: &ListQuery) -> (Vec<u32>, usize) {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let numbered: Vec<_> = self
            .asked_for(query)
            .map(|(row, place)| {
                let next = numbers.len();
                (row.client_version.as_deref().map(|version| *numbers.entry(version).or_insert(next)), place)
            })
            .collect();
        let mut versions: Vec<_> =
            numbers.into_iter().map(|(text, number)| (Version::reported(text), text, number)).collect();
        versions.sort();
        let mut ranks = vec![0; versions.len()];
        for (rank, (_, _, number)) in versions.into_iter().enumerate() {
            ranks[number] = rank;
        }
        window(numbered.into_iter().map(|(number, place)| (number.map(|number| ranks[number]), place)).collect(), query)
    }

    fn insert(&mut self, row: Row) {
        let place = self.place_of(row.name()).unwrap_or_else(|place| place);
        let id = row.id;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                // More hosts than this would not fit into any memory.
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(free) = self.slots.get_mut(slot as usize) {
            *free = Some(row);
            self.by_id.insert(id, slot);
            self.order.insert(place, slot);
        }
    }

    fn remove(&mut self, id: HostId) {
        let Some(slot) = self.by_id.remove(&id) else { return };
        let Some(row) = self.slots.get(slot as usize).and_then(Option::as_ref) else { return };
        if let Ok(place) = self.place_of(row.name()) {
            self.order.remove(place);
        }
        self.slots[slot as usize] = None;
        self.free.push(slot);
    }

    /// Where a name stands in the order; `Err`: where it would.
    fn place_of(&self, name: &str) -> Result<usize, usize> {
        self.order.binary_search_by(|slot| {
            let row = self.slots.get(*slot as usize).and_then(Option::as_ref);
            row.map_or(Ordering::Less, |row| row.name().cmp(name))
        })
    }

    fn at(&self, place: usize) -> Option<&Row> {
        self.row(*self.order.get(place)?)
    }

    fn row(&self, slot: u32) -> Option<&Row> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn row_mut(&mut self, id: HostId) -> Option<&mut Row> {
        self.slots.get_mut(*self.by_id.get(&id)? as usize)?.as_mut()
    }
}

impl ListedHost {
    pub fn new(host: &Host, activity: HostActivity) -> Self {
        Self {
            id: host.id,
            fqdn: host.fqdn.clone(),
            rules: host.rules.clone(),
            owner: host.owner,
            created_at: host.created_at,
            updated_at: host.updated_at,
            activity,
        }
    }
}

impl Row {
    fn new(host: ListedHost, shared: &mut Shared) -> Self {
        let ListedHost { id, fqdn, rules, owner, created_at, updated_at, activity } = host;
        let mut row = Self {
            id,
            name_length: fqdn.as_str().len(),
            text: fqdn.as_str().into(),
            rules,
            owner,
            created_at,
            updated_at,
            api_calls: 0,
            last_seen: None,
            last_refresh: None,
            digests: None,
            client_version: None,
            wrapper_version: None,
        };
        row.set_activity(activity, shared);
        row.write_text();
        row
    }

    fn name(&self) -> &str {
        self.text.get(..self.name_length).unwrap_or_default()
    }

    fn set_activity(&mut self, activity: HostActivity, shared: &mut Shared) {
        let HostActivity { api_calls, last_seen, last_refresh, digests, client_version, wrapper_version, .. } =
            activity;
        self.api_calls = api_calls;
        self.last_seen = last_seen;
        for (known, told) in [
            (&mut self.last_refresh, last_refresh),
            (&mut self.client_version, client_version),
            (&mut self.wrapper_version, wrapper_version),
        ] {
            if known.as_deref() != told.as_deref() {
                *known = told.map(|text| shared.texts.one(&text));
            }
        }
        if self.digests() != digests.as_slice() {
            self.digests = Some(shared.digests.one(digests.as_slice()));
        }
    }

    fn digests(&self) -> &[Digest] {
        self.digests.as_deref().unwrap_or_default()
    }

    fn activity(&self) -> HostActivity {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(String::from);
        HostActivity {
            api_calls: self.api_calls,
            last_seen: self.last_seen,
            last_refresh: text(&self.last_refresh),
            digests: self.digests().iter().copied().collect(),
            client_version: text(&self.client_version),
            wrapper_version: text(&self.wrapper_version),
            // Not listed.
            wrapper_fetched_at: None,
        }
    }

    /// A name that was read once can be read again: never `None`.
    fn listed(&self) -> Option<ListedHost> {
        Some(ListedHost {
            id: self.id,
            fqdn: self.name().parse().ok()?,
            rules: self.rules.clone(),
            owner: self.owner,
            created_at: self.created_at,
            updated_at: self.updated_at,
            activity: self.activity(),
        })
    }

    fn write_text(&mut self) {
        let addresses = self.rules.bound().fold(String::new(), |text, ip| format!("{text}{BETWEEN}{ip}"));
        let version = self.client_version.as_deref().unwrap_or_default();
        let text = format!("{}{addresses}{BETWEEN}{version}", self.name()).to_lowercase();
        if *self.text != text {
            self.text = text.into();
        }
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), new: 0 }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    /// More than these at a time are not what most hosts have in common.
    const MANY: usize = 4096;

    fn one<'a>(&mut self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        if let Some(known) = self.known.get(value) {
            return Arc::clone(known);
        }
        self.new += 1;
        if self.new >= Self::MANY {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.new = 0;
        }
        let new: Arc<T> = value.into();
        if self.known.len() < Self::MANY {
            self.known.insert(Arc::clone(&new));
        }
        new
    }
}

/// The places that the page has, in the order of their keys, and how many there are in all; of equal keys the lower
/// place comes first, whichever way the keys go. Only the page is sorted.
fn window<K: Ord>(mut keyed: Vec<(K, u32)>, query: &ListQuery) -> (Vec<u32>, usize) {
    let order = |a: &(K, u32), b: &(K, u32)| {
        let by_key = if query.descending { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) };
        by_key.then(a.1.cmp(&b.1))
    };
    let matching = keyed.len();
    let from = query.offset.min(matching);
    let to = from.saturating_add(query.limit).min(matching);
    if from == to {
        return (Vec::new(), matching);
    }
    if to < matching {
        keyed.select_nth_unstable_by(to, order);
        keyed.truncate(to);
    }
    if from > 0 {
        keyed.select_nth_unstable_by(from, order);
    }
    let wanted = &mut keyed[from..];
    wanted.sort_unstable_by(order);
    (wanted.iter().map(|(_, place)| *place).collect(), matching)
}

/// Until the year 2262; what is later counts as that.
fn nanos(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}
