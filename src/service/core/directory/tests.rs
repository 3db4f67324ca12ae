use std::collections::HashSet;

use crate::records::conformance::{self, at, ip};
use crate::service::core::directory::*;

fn host(id: u64, name: &str) -> Host {
    conformance::host(id, name, &id.to_string())
}

fn activity(calls: u64, last_seen: Option<i64>, client_version: Option<&str>) -> HostActivity {
    HostActivity {
        api_calls: calls,
        last_seen: last_seen.map(at),
        client_version: client_version.map(Into::into),
        ..HostActivity::default()
    }
}

fn table(hosts: &[(Host, HostActivity)]) -> HostTable {
    let mut table = HostTable::default();
    hosts.iter().for_each(|(host, activity)| table.insert(ListedHost::new(host, activity.clone())));
    table
}

fn names(page: &HostPage) -> Vec<&str> {
    page.hosts.iter().map(|host| host.fqdn.as_str()).collect()
}

fn searched(table: &HostTable, search: &str) -> Vec<String> {
    let page = table.page(&ListQuery { search: Some(search.into()), ..ListQuery::default() }).unwrap();
    assert_eq!(page.matching, page.hosts.len(), "{search:?}");
    names(&page).into_iter().map(Into::into).collect()
}

const SORTS: [Sort; 6] =
    [Sort::Fqdn, Sort::LastSeen, Sort::CreatedAt, Sort::UpdatedAt, Sort::ApiCalls, Sort::ClientVersion];

/// 211 hosts in no order, most of them equal to some others in everything but the name.
fn many() -> Vec<(Host, HostActivity)> {
    (0..211u64)
        .map(|n| {
            let number = n * 83 % 211;
            let mut host = host(number + 1, &format!("h{number}.test"));
            host.created_at = at((number % 7) as i64);
            host.updated_at = at((number % 3) as i64);
            host.rules.secure = number % 5 != 0;
            let seen = (number % 4 != 0).then_some((number % 6) as i64);
            let version = ["0.9.0", "0.10.0", "0.169.0-alpha.1", "0.169.0"].get(number as usize % 5).copied();
            (host, activity(number % 10, seen, version))
        })
        .collect()
}

/// The same list by a simpler way.
fn sorted_in_full(hosts: &[(Host, HostActivity)], sort: Sort, descending: bool) -> Vec<String> {
    let mut all: Vec<_> = hosts.iter().collect();
    all.sort_by(|a, b| a.0.fqdn.cmp(&b.0.fqdn));
    let version =
        |activity: &HostActivity| activity.client_version.as_deref().and_then(crate::model::version::Version::reported);
    all.sort_by(|(a, seen_a), (b, seen_b)| {
        let order = match sort {
            Sort::Fqdn => a.fqdn.cmp(&b.fqdn),
            Sort::LastSeen => seen_a.last_seen.cmp(&seen_b.last_seen),
            Sort::CreatedAt => a.created_at.cmp(&b.created_at),
            Sort::UpdatedAt => a.updated_at.cmp(&b.updated_at),
            Sort::ApiCalls => seen_a.api_calls.cmp(&seen_b.api_calls),
            Sort::ClientVersion => version(seen_a).cmp(&version(seen_b)),
        };
        if descending { order.reverse() } else { order }
    });
    all.iter().map(|(host, _)| host.fqdn.to_string()).collect()
}

#[test]
fn pages_have_no_gap_and_no_host_twice_whatever_the_order() {
    let hosts = many();
    let table = table(&hosts);
    for sort in SORTS {
        for descending in [false, true] {
            let wanted = sorted_in_full(&hosts, sort, descending);
            for limit in [1, 10, 64, 210, 211, 212, 1000] {
                let mut pages = Vec::new();
                for offset in (0..300).step_by(limit) {
                    let page =
                        table.page(&ListQuery { limit, offset, sort, descending, ..ListQuery::default() }).unwrap();
                    assert_eq!((page.total, page.matching), (211, 211));
                    assert!(page.hosts.len() <= limit);
                    pages.extend(names(&page).into_iter().map(String::from));
                }
                assert_eq!(pages, wanted, "{sort:?} {descending} {limit}");
            }
        }
    }
}

#[test]
fn a_list_goes_on_behind_the_last_host_of_a_page_whatever_the_order() {
    let hosts = many();
    for sort in SORTS {
        for descending in [false, true] {
            let wanted = sorted_in_full(&hosts, sort, descending);
            for limit in [1, 10, 210, 211, 212] {
                let (mut table, mut found, mut after) = (table(&hosts), Vec::new(), None);
                loop {
                    let query = ListQuery { limit, after, sort, descending, ..ListQuery::default() };
                    let page = table.page(&query).unwrap();
                    assert_eq!(
                        page.matching + found.len().min(1) * usize::from(limit == 1),
                        211,
                        "all but the removed one"
                    );
                    found.extend(names(&page).into_iter().map(String::from));
                    after = page.next;
                    let Some(mark) = &after else { break };
                    // A host that a page has ended with may be gone by the next one.
                    if limit == 1 && found.len() == 1 {
                        let mut removed = hosts.iter().find(|(host, _)| host.fqdn == mark.name).unwrap().0.clone();
                        removed.removed_at = Some(at(9));
                        table.put(&removed);
                    }
                }
                assert_eq!(found, wanted, "{sort:?} {descending} {limit}");
            }
        }
    }
    let of_versions = Mark { key: MarkKey::Version(None), name: "h1.test".parse().unwrap() };
    let query = ListQuery { after: Some(of_versions), ..ListQuery::default() };
    assert!(table(&hosts).page(&query).is_none(), "the mark is that of another list");
}

#[test]
fn an_offset_behind_the_end_is_an_empty_page() {
    let table = table(&many());
    for sort in SORTS {
        for offset in [211, 212, usize::MAX] {
            let page = table.page(&ListQuery { offset, limit: usize::MAX, sort, ..ListQuery::default() }).unwrap();
            assert_eq!((page.hosts.len(), page.total, page.matching), (0, 211, 211));
        }
    }
    let page = HostTable::default().page(&ListQuery::default()).unwrap();
    assert_eq!(page, HostPage::default());
}

#[test]
fn states_are_told_apart_and_counted() {
    let mut hosts = many();
    hosts[0].0.rules.bound_ip = Some(ip("192.0.2.1"));
    let table = table(&hosts);
    let of = |state| {
        let page = table.page(&ListQuery { state: Some(state), limit: 1000, ..ListQuery::default() }).unwrap();
        assert_eq!((page.hosts.len(), page.total), (page.matching, 211));
        page.hosts
    };
    assert_eq!(of(HostState::Active).len(), 211);
    assert_eq!(of(HostState::Unbound).len(), 210);
    let insecure = of(HostState::Insecure);
    assert_eq!(insecure.len(), 43);
    assert!(insecure.iter().all(|host| !host.rules.secure));
}

#[test]
fn a_search_finds_part_of_the_name_the_address_or_the_version_in_any_case() {
    let mut bound = host(1, "Build-7.Example.test");
    bound.rules.bound_ip = Some(ip("2001:DB8::7f"));
    let table = table(&[
        (bound, activity(1, None, Some("RUST-v0.169.0-Alpha"))),
        (host(2, "build-8.test"), activity(1, None, Some("0.168.0"))),
    ]);
    let (first, both) = (["build-7.example.test"], ["build-7.example.test", "build-8.test"]);
    for (search, found) in [
        ("BUILD-", &both[..]),
        ("", &both),
        ("example", &first),
        ("db8::7F", &first),
        ("v0.169.0-alpha", &first),
        ("0.16", &both),
        ("168", &both[1..]),
        ("build-9", &[]),
    ] {
        assert_eq!(searched(&table, search), found, "{search:?}");
    }
}

#[test]
fn hostile_text_finds_nothing_and_breaks_nothing() {
    let mut bound = host(1, "a.test");
    bound.rules.bound_ip = Some(ip("192.0.2.1"));
    let table = table(&[(bound, activity(1, None, Some("0.169.0")))]);
    let long = "a".repeat(1 << 20);
    for search in [
        "%",
        "_%",
        "*",
        ".*",
        "a*",
        "'; DROP TABLE hosts; --",
        "\"",
        "\\",
        "\0",
        "\n",
        "a.test\n192.0.2.1",
        "\n192",
        "1\n0",
        "<script>",
        "${jndi}",
        "ＡTEST",
        "ß",
        "İ",
        "\u{202e}",
        "🦀",
        " ",
        &long,
    ] {
        assert_eq!(searched(&table, search), Vec::<String>::new(), "{search:?}");
    }
    // The Kelvin sign is a K in lower case: it finds nothing here, and does no harm.
    assert_eq!(searched(&table, "\u{212a}"), Vec::<String>::new());
}

#[test]
fn what_changes_is_found_as_it_is_now() {
    let mut table =
        table(&[(host(2, "b.test"), activity(5, Some(1), Some("0.1"))), (host(4, "d.test"), activity(1, None, None))]);
    table.put(&host(3, "c.test"));
    table.put(&host(1, "a.test"));
    assert_eq!(names(&table.page(&ListQuery::default()).unwrap()), ["a.test", "b.test", "c.test", "d.test"]);

    let mut changed = host(2, "b.test");
    changed.rules.bound_ip = Some(ip("192.0.2.77"));
    changed.rules.secure = false;
    table.put(&changed);
    assert_eq!(searched(&table, "0.2.77"), ["b.test"]);
    let page = table.page(&ListQuery { state: Some(HostState::Insecure), ..ListQuery::default() }).unwrap();
    assert_eq!(page.hosts[0].activity, activity(5, Some(1), Some("0.1")), "its activity is kept");

    table.set_activity(HostId(2), activity(6, Some(9), Some("0.2-beta")));
    table.set_activity(HostId(99), activity(6, Some(9), None));
    assert_eq!(searched(&table, "beta"), ["b.test"]);
    let by_calls = ListQuery { sort: Sort::ApiCalls, descending: true, limit: 2, ..ListQuery::default() };
    assert_eq!(names(&table.page(&by_calls).unwrap()), ["b.test", "d.test"]);

    for id in [3, 3, 77] {
        table.put(&Host { removed_at: Some(at(1)), ..host(id, "c.test") });
    }
    assert_eq!(names(&table.page(&ListQuery::default()).unwrap()), ["a.test", "b.test", "d.test"]);
    // The name belongs to another host now, and is listed again.
    table.put(&host(5, "c.test"));
    assert_eq!(names(&table.page(&ListQuery::default()).unwrap()), ["a.test", "b.test", "c.test", "d.test"]);
    table.put(&host(6, "c.test"));
    let page = table.page(&ListQuery::default()).unwrap();
    assert_eq!((names(&page), page.hosts[2].id), (vec!["a.test", "b.test", "c.test", "d.test"], HostId(6)));
    table.set_activity(HostId(5), activity(100, None, None));
    assert_eq!(table.page(&by_calls).unwrap().hosts[0].id, HostId(2), "the earlier host of that name is forgotten");
}

#[test]
fn of_two_hosts_of_one_name_the_later_one_is_listed() {
    let later = Host { created_at: at(9), ..host(1, "a.test") };
    for hosts in [[host(2, "a.test"), later.clone()], [later, host(2, "a.test")]] {
        let table = table(&hosts.map(|host| (host, HostActivity::default())));
        let page = table.page(&ListQuery::default()).unwrap();
        assert_eq!((page.total, page.hosts[0].id), (1, HostId(1)));
    }
}

#[test]
fn what_is_told_while_the_list_is_built_is_on_top_of_it() {
    let place = tempfile::tempdir().unwrap();
    let hot = Hot::open(&place.path().join("hot"), &crate::platform::System).unwrap();
    let directory = Directory::new(Arc::new(hot));
    directory.put(&[host(9, "before.test")]);
    *directory.write() = State::Building(Vec::new());
    let hosts: Vec<_> = (1..=2 * CHANGES_PER_LOCK as u64 + 1).map(|id| host(id, &format!("h{id}.test"))).collect();
    directory.put(&hosts);
    directory.set_activity([(HostId(7), activity(3, None, None))]);
    directory.put(&[Host { removed_at: Some(at(1)), ..hosts[4].clone() }]);
    directory.finish(table(&[(hosts[4].clone(), HostActivity::default())]));
    directory.put(&[Host { removed_at: Some(at(1)), ..hosts[5].clone() }]);
    let state = directory.state.read().unwrap();
    let State::Ready(table) = &*state else { panic!("it is built") };
    let page = table.page(&ListQuery { limit: usize::MAX, ..ListQuery::default() }).unwrap();
    let ids: HashSet<_> = page.hosts.iter().map(|host| host.id.0).collect();
    assert_eq!((page.total, ids.len()), (hosts.len() - 2, hosts.len() - 2));
    assert!(!ids.contains(&5) && !ids.contains(&6));
    let seven = page.hosts.iter().find(|host| host.id == HostId(7)).unwrap();
    assert_eq!(seven.activity.api_calls, 3);
}
