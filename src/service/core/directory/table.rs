//! All hosts in memory, by name. Pages of the admins' list are cut from it. Pure: it does not know where hosts come
//! from or what time it is.
//!
//! A page costs one walk over the hosts and one sort of those that match. Hosts with equal keys are ordered by name, so
//! no host is on two pages of one list, and none is left out.

use std::collections::{BTreeMap, HashMap, HashSet};

use time::OffsetDateTime;

use crate::model::host::{Fqdn, HostActivity, HostId, HostRules};
use crate::model::people::UserId;
use crate::model::version::Version;
use crate::records::Host;

/// Separates the parts of a searched text; no part contains it.
const SEPARATOR: char = '\n';

/// A host as it is listed.
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
    /// Bound to no address yet: its key was not used.
    Unbound,
    /// A shared machine.
    Insecure,
    /// Disabled by an admin.
    Disabled,
}

#[derive(Clone, Debug)]
pub struct ListQuery {
    pub limit: usize,
    pub offset: usize,
    pub sort: Sort,
    pub descending: bool,
    /// Part of the name, an address or the client version; case does not matter.
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
    /// The number of all hosts.
    pub total: usize,
    /// The number of hosts that match the query.
    pub matching: usize,
}

#[derive(Default)]
pub struct Table {
    by_name: BTreeMap<Fqdn, Row>,
    names: HashMap<HostId, Fqdn>,
}

struct Row {
    host: ListedHost,
    /// Name, addresses and client version in lower case: the text that is searched.
    searched: String,
}

impl Table {
    /// Takes over a host from the records. A host that is removed there is removed here.
    pub fn put(&mut self, host: &Host) {
        let known = self.remove(host.id);
        if host.removed_at.is_some() {
            return;
        }
        if let Some(other) = self.by_name.remove(&host.fqdn) {
            self.names.remove(&other.host.id);
        }
        self.insert(ListedHost::new(host, known.map(|known| known.activity).unwrap_or_default()));
    }

    /// Inserts a host. A name belongs to one host: an earlier host of that name is gone, even if its removal is not
    /// known here yet.
    pub fn insert(&mut self, host: ListedHost) {
        if let Some(other) = self.by_name.get(&host.fqdn) {
            if other.host.created_at > host.created_at {
                return;
            }
            self.names.remove(&other.host.id);
        }
        self.names.insert(host.id, host.fqdn.clone());
        self.by_name.insert(host.fqdn.clone(), Row::new(host));
    }

    pub fn set_activity(&mut self, id: HostId, activity: HostActivity) {
        if let Some(row) = self.names.get(&id).and_then(|name| self.by_name.get_mut(name)) {
            let is_searched = row.host.activity.client_version != activity.client_version;
            row.host.activity = activity;
            if is_searched {
                row.searched = searched(&row.host);
            }
        }
    }

    fn remove(&mut self, id: HostId) -> Option<ListedHost> {
        let name = self.names.remove(&id)?;
        self.by_name.remove(&name).map(|row| row.host)
    }

    /// How many hosts have each `last_refresh` in hand.
    pub fn last_refreshes(&self) -> HashMap<&str, usize> {
        let mut counts = HashMap::new();
        for last_refresh in self.by_name.values().filter_map(|row| row.host.activity.last_refresh.as_deref()) {
            *counts.entry(last_refresh).or_default() += 1;
        }
        counts
    }

    pub fn host_count(&self) -> usize {
        self.by_name.len()
    }

    pub fn page(&self, query: &ListQuery) -> Page {
        let matching = self.matching(query);
        let (total, count) = (self.by_name.len(), matching.len());
        let sorted = match query.sort {
            Sort::Fqdn if query.descending => matching.into_iter().rev().collect(),
            Sort::Fqdn => matching,
            Sort::LastSeen => by_key(matching, query, |host| host.activity.last_seen),
            Sort::CreatedAt => by_key(matching, query, |host| host.created_at),
            Sort::UpdatedAt => by_key(matching, query, |host| host.updated_at),
            Sort::ApiCalls => by_key(matching, query, |host| host.activity.api_calls),
            Sort::ClientVersion => by_version(matching, query),
        };
        let hosts = sorted.into_iter().skip(query.offset).take(query.limit).cloned().collect();
        Page { hosts, total, matching: count }
    }

    /// The matching hosts, by name.
    fn matching(&self, query: &ListQuery) -> Vec<&ListedHost> {
        let needle = query.search.as_deref().map(str::to_lowercase).unwrap_or_default();
        let finder = memchr::memmem::Finder::new(needle.as_bytes());
        let is_in_state = |host: &ListedHost| match query.state {
            None => true,
            Some(HostState::Active) => !host.rules.disabled,
            Some(HostState::Unbound) => host.rules.bound_ip.is_none(),
            Some(HostState::Insecure) => !host.rules.secure,
            Some(HostState::Disabled) => host.rules.disabled,
        };
        let is_found = |row: &Row| {
            needle.is_empty() || (!needle.contains(SEPARATOR) && finder.find(row.searched.as_bytes()).is_some())
        };
        let rows = self.by_name.values().filter(|row| is_in_state(&row.host) && is_found(row));
        rows.map(|row| &row.host).collect()
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
            // Not listed.
            activity: HostActivity { wrapper_fetched_at: None, ..activity },
        }
    }
}

impl Row {
    fn new(host: ListedHost) -> Self {
        Self { searched: searched(&host), host }
    }
}

fn searched(host: &ListedHost) -> String {
    let addresses = host.rules.bound().fold(String::new(), |text, ip| format!("{text}{SEPARATOR}{ip}"));
    let version = host.activity.client_version.as_deref().unwrap_or_default();
    format!("{}{addresses}{SEPARATOR}{version}", host.fqdn.as_str()).to_lowercase()
}

fn by_key<'a, K: Ord>(
    hosts: Vec<&'a ListedHost>,
    query: &ListQuery,
    key: impl Fn(&'a ListedHost) -> K,
) -> Vec<&'a ListedHost> {
    let mut keyed: Vec<(K, &ListedHost)> = hosts.into_iter().map(|host| (key(host), host)).collect();
    // Stable: equal keys stay in the order of names, ascending or descending.
    match query.descending {
        true => keyed.sort_by(|a, b| b.0.cmp(&a.0)),
        false => keyed.sort_by(|a, b| a.0.cmp(&b.0)),
    }
    keyed.into_iter().map(|(_, host)| host).collect()
}

/// There are few different versions: each is parsed once, and hosts are sorted by its rank.
fn by_version<'a>(hosts: Vec<&'a ListedHost>, query: &ListQuery) -> Vec<&'a ListedHost> {
    let version = |host: &'a ListedHost| host.activity.client_version.as_deref();
    let versions: HashSet<&str> = hosts.iter().filter_map(|host| version(host)).collect();
    let mut versions = Vec::from_iter(versions);
    versions.sort_by_cached_key(|text| (Version::reported(text), *text));
    let ranks: HashMap<&str, usize> = versions.into_iter().zip(0..).collect();
    by_key(hosts, query, |host| version(host).and_then(|version| ranks.get(version).copied()))
}
