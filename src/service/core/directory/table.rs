//! All hosts in memory, by name. Pages of the admins' list are cut from it. Pure: it does not know where hosts come
//! from or what time it is.
//!
//! A page costs one walk over the hosts, one selection among those that match, and a sort of its own rows. Hosts with
//! equal keys are ordered by name, so no host is on two pages of one list, and none is left out.

use std::collections::{BTreeMap, HashMap};

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
    /// Only hosts behind this one.
    pub after: Option<Mark>,
    pub sort: Sort,
    pub descending: bool,
    /// Part of the name, an address or the client version; case does not matter.
    pub search: Option<String>,
    pub state: Option<HostState>,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { limit: 100, offset: 0, after: None, sort: Sort::Fqdn, descending: false, search: None, state: None }
    }
}

/// The place of a host in a sorted list, also while the host changes or is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub key: MarkKey,
    pub name: Fqdn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkKey {
    Number(i128),
    Version(Option<String>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPage {
    pub hosts: Vec<ListedHost>,
    /// The place of the last host of the page. `None`: no more hosts match.
    pub next: Option<Mark>,
    /// The number of all hosts.
    pub total: usize,
    /// The number of hosts that match the query.
    pub matching: usize,
}

#[derive(Default)]
pub struct HostTable {
    by_name: BTreeMap<Fqdn, Row>,
    names: HashMap<HostId, Fqdn>,
}

struct Row {
    host: ListedHost,
    /// Name, addresses and client version in lower case: the text that is searched.
    searched: String,
}

impl HostTable {
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

    /// `None`: the mark is that of a list with another order.
    pub fn page(&self, query: &ListQuery) -> Option<HostPage> {
        // Integers, because an instant is slow to compare. Hosts that were not seen yet come first.
        let instant = |at: OffsetDateTime| i64::try_from(at.unix_timestamp_nanos()).unwrap_or(i64::MAX);
        match query.sort {
            Sort::Fqdn => self.page_by_number(query, |_| 0),
            Sort::LastSeen => self.page_by_number(query, |host| host.activity.last_seen.map_or(i64::MIN, instant)),
            Sort::CreatedAt => self.page_by_number(query, |host| instant(host.created_at)),
            Sort::UpdatedAt => self.page_by_number(query, |host| instant(host.updated_at)),
            Sort::ApiCalls => self.page_by_number(query, |host| host.activity.api_calls),
            Sort::ClientVersion => self.page_by_version(query),
        }
    }

    fn page_by_number<K>(&self, query: &ListQuery, key: impl Fn(&ListedHost) -> K) -> Option<HostPage>
    where
        K: Ord + Copy + Into<i128> + TryFrom<i128>,
    {
        let after = match &query.after {
            None => None,
            Some(Mark { key: MarkKey::Number(number), name }) => Some((K::try_from(*number).ok()?, name)),
            Some(Mark { key: MarkKey::Version(_), .. }) => return None,
        };
        let mark = |host: &ListedHost| MarkKey::Number(key(host).into());
        Some(self.cut(self.matching(query, &key), query, after, mark))
    }

    /// There are few different versions: each is parsed once, and hosts are sorted by its rank.
    fn page_by_version(&self, query: &ListQuery) -> Option<HostPage> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut number_of = |version| {
            let next = numbers.len();
            *numbers.entry(version).or_insert(next)
        };
        let after = match &query.after {
            None => None,
            Some(Mark { key: MarkKey::Version(version), name }) => Some((version.as_deref().map(&mut number_of), name)),
            Some(Mark { key: MarkKey::Number(_), .. }) => return None,
        };
        let mut matching = self.matching(query, |host| host.activity.client_version.as_deref().map(&mut number_of));
        let mut versions: Vec<(&str, usize)> = numbers.into_iter().collect();
        versions.sort_by_cached_key(|(text, _)| (Version::reported(text), *text));
        let mut ranks = vec![0; versions.len()];
        for (rank, (_, number)) in versions.into_iter().enumerate() {
            ranks[number] = rank;
        }
        matching.iter_mut().for_each(|(key, ..)| *key = key.map(|number| ranks[number]));
        let after = after.map(|(number, name)| (number.map(|number| ranks[number]), name));
        let mark = |host: &ListedHost| MarkKey::Version(host.activity.client_version.as_deref().map(Into::into));
        Some(self.cut(matching, query, after, mark))
    }

    /// Takes the page from the hosts that match. Only the page itself is sorted.
    fn cut<K: Ord>(
        &self,
        mut matching: Vec<Match<'_, K>>,
        query: &ListQuery,
        after: Option<(K, &Fqdn)>,
        mark: impl Fn(&ListedHost) -> MarkKey,
    ) -> HostPage {
        let (total, count) = (self.by_name.len(), matching.len());
        // Hosts with equal keys stay in the order of their names, except in a descending list of names.
        let by_name = query.sort == Sort::Fqdn;
        if let Some((key, name)) = after {
            matching.retain(|(other, _, host)| match query.descending {
                true if by_name => host.fqdn < *name,
                true => *other < key || (*other == key && host.fqdn > *name),
                false => *other > key || (*other == key && host.fqdn > *name),
            });
        }
        let order = |a: &Match<'_, K>, b: &Match<'_, K>| match query.descending {
            true if by_name => b.1.cmp(&a.1),
            true => b.0.cmp(&a.0).then(a.1.cmp(&b.1)),
            false => a.0.cmp(&b.0).then(a.1.cmp(&b.1)),
        };
        let end = query.offset.saturating_add(query.limit);
        let is_last = end >= matching.len();
        if !is_last {
            matching.select_nth_unstable_by(end, order);
            matching.truncate(end);
        }
        if query.offset >= matching.len() {
            return HostPage { total, matching: count, ..HostPage::default() };
        }
        matching.select_nth_unstable_by(query.offset, order);
        let page = &mut matching[query.offset..];
        page.sort_unstable_by(order);
        let hosts: Vec<ListedHost> = page.iter().map(|(.., host)| (*host).clone()).collect();
        let next = hosts.last().filter(|_| !is_last).map(|host| Mark { key: mark(host), name: host.fqdn.clone() });
        HostPage { hosts, next, total, matching: count }
    }

    /// The matching hosts, by name.
    fn matching<'a, K>(&'a self, query: &ListQuery, mut key: impl FnMut(&'a ListedHost) -> K) -> Vec<Match<'a, K>> {
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
        rows.zip(0..).map(|(row, index)| (key(&row.host), index, &row.host)).collect()
    }
}

/// A host that matches a query: its sort key, and its place among all matches by name.
type Match<'a, K> = (K, u32, &'a ListedHost);

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
