use super::*;
use crate::model::audit::AuditFilter;

pub async fn a_new_host_has_the_rules_it_was_registered_with(store: Store) {
    let host = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert_eq!(host.id, HostId(1));
    assert!(host.rules.secure);
    assert!(!host.rules.allow_roaming_ips);
    assert_eq!((host.rules.bound_ip, host.imported_key_digest, host.removed_at), (None, None, None));
    assert_eq!((host.created_at, host.updated_at), (at(0), at(0)));
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap(), host);
    assert_eq!(store.host_fetch_by_name(&fqdn("h1.test")).await.unwrap().unwrap(), host);
    assert_eq!(store.host_fetch(HostId(2)).await.unwrap(), None);
    assert_eq!(store.host_fetch_by_name(&fqdn("h2.test")).await.unwrap(), None);

    let insecure =
        Registration { secure: Some(false), insecure_enabled_until: Some(at(600)), ..registration(2, "h2.test", "b") };
    let host = store.host_register(&insecure, &noted()).await.unwrap();
    assert!(!host.rules.secure);
    assert_eq!(host.rules.insecure_enabled_until, Some(at(600)));
}

pub async fn a_name_registered_again_keeps_its_id_and_gets_a_new_key(store: Store) {
    let insecure =
        Registration { secure: Some(false), insecure_enabled_until: Some(at(9)), ..registration(1, "h1.test", "a") };
    store.host_register(&insecure, &noted()).await.unwrap();
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(1), &noted()).await.unwrap();
    let again =
        store.host_register(&Registration { at: at(5), ..registration(1, "h1.test", "b") }, &noted()).await.unwrap();
    assert_eq!(again.id, HostId(1));
    assert_eq!(again.key_digest, registration(1, "h1.test", "b").key_digest);
    assert_eq!(again.api_key, registration(1, "h1.test", "b").api_key);
    assert_eq!(again.imported_key_digest, None);
    assert_eq!((again.created_at, again.updated_at), (at(0), at(5)));
    assert!(!again.rules.secure, "`secure: None` leaves the rule as it is");
    assert_eq!(again.rules.insecure_enabled_until, Some(at(9)));
    assert_eq!(again.rules.bound_ip, None, "the new key is bound to its own first address");
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap(), again);
    assert_eq!(store.host_list().await.unwrap(), [again]);

    let secure = Registration { secure: Some(true), ..registration(1, "h1.test", "c") };
    let again = store.host_register(&secure, &noted()).await.unwrap();
    assert!(again.rules.secure);
    assert_eq!(again.rules.insecure_enabled_until, None);
}

pub async fn registering_for_another_id_changes_nothing(store: Store) {
    let first = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let epoch = store.epoch().await.unwrap();
    let answer = store.host_register(&registration(2, "h1.test", "b"), &noted()).await.unwrap();
    assert_eq!(answer, first, "the unchanged host, so that the caller can seal for its id");
    assert_eq!(store.epoch().await.unwrap(), epoch);
    assert_eq!(store.host_fetch(HostId(2)).await.unwrap(), None);
    let redemption = store.installer_redeem(&token("b"), &key("b"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    assert_eq!(redemption, Redemption::Unknown);
    let redemption = store.installer_redeem(&token("a"), &key("a"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    assert!(matches!(redemption, Redemption::Redeemed { .. }));
}

pub async fn a_registration_done_twice_is_done_once(store: Store) {
    let first = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.installer_redeem(&token("a"), &key("a"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    let again = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert_eq!(again, first);
    let redemption = store.installer_redeem(&token("a"), &key("a"), at(2), ip("192.0.2.1"), &noted()).await.unwrap();
    assert_eq!(redemption, Redemption::AlreadyUsed, "a repeated call must not revive a spent token");

    // A repeated call that arrives late does not undo a later registration.
    let later = store.host_register(&registration(1, "h1.test", "b"), &noted()).await.unwrap();
    assert_eq!(store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap(), later);
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap(), later);
}

pub async fn a_taken_id_is_never_given_to_another_name(store: Store) {
    let first = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert!(store.host_register(&registration(1, "h2.test", "b"), &noted()).await.is_err());
    assert_eq!(store.host_list().await.unwrap(), [first]);
    store.host_remove(HostId(1), at(1), &noted()).await.unwrap();
    assert!(
        store.host_register(&registration(1, "h1.test", "c"), &noted()).await.is_err(),
        "a removed host stays removed"
    );
    assert_eq!(store.host_list().await.unwrap(), []);
}

pub async fn racing_registrations_of_one_name_make_one_host(store: Store) {
    let answers =
        race(20, |number| {
            let store = Arc::clone(&store);
            async move {
                store.host_register(&registration(number as u64 + 1, "h1.test", &number.to_string()), &noted()).await
            }
        })
        .await;
    let hosts = store.host_list().await.unwrap();
    assert_eq!(hosts.len(), 1);
    for answer in answers {
        assert_eq!(answer.unwrap(), hosts[0]);
    }
}

pub async fn hosts_are_listed_by_name_without_the_removed(store: Store) {
    for (id, name) in [(7, "c.test"), (3, "a.test"), (9, "b.test"), (1, "d.test")] {
        store.host_register(&registration(id, name, name), &noted()).await.unwrap();
    }
    store.host_remove(HostId(9), at(1), &noted()).await.unwrap();
    let names: Vec<_> = store.host_list().await.unwrap().into_iter().map(|host| host.fqdn.to_string()).collect();
    assert_eq!(names, ["a.test", "c.test", "d.test"]);
}

pub async fn a_removed_host_is_gone_and_its_name_free(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let removed = store.host_remove(HostId(1), at(9), &noted()).await.unwrap().unwrap();
    assert_eq!(removed.removed_at, Some(at(9)));
    assert_eq!(store.host_remove(HostId(1), at(10), &noted()).await.unwrap(), None);
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap(), None);
    assert_eq!(store.host_fetch_by_name(&fqdn("h1.test")).await.unwrap(), None);
    assert_eq!(store.host_change(HostId(1), &HostChange::default(), at(10), &noted()).await.unwrap(), None);
    assert_eq!(store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(10), &noted()).await.unwrap(), None);
    let successor = store.host_register(&registration(2, "h1.test", "b"), &noted()).await.unwrap();
    assert_eq!(successor.id, HostId(2));
    assert_eq!(store.host_list().await.unwrap(), [successor]);
}

pub async fn rules_change_only_where_told(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let roam = HostChange { allow_roaming_ips: Some(true), bound_ip: Some(Some(ip("192.0.2.9"))), ..<_>::default() };
    let host = store.host_change(HostId(1), &roam, at(3), &noted()).await.unwrap().unwrap();
    assert!(host.rules.allow_roaming_ips);
    assert_eq!((host.rules.bound_ip, host.updated_at), (Some(ip("192.0.2.9")), at(3)));
    let window = HostChange {
        insecure_enabled_until: Some(Some(at(100))),
        insecure_grace_until: Some(Some(at(200))),
        ..<_>::default()
    };
    let host = store.host_change(HostId(1), &window, at(4), &noted()).await.unwrap().unwrap();
    assert!(host.rules.allow_roaming_ips);
    assert_eq!(host.rules.insecure_enabled_until, Some(at(100)));
    assert_eq!(host.rules.insecure_grace_until, Some(at(200)));
    let unbind = HostChange { bound_ip: Some(None), insecure_enabled_until: Some(None), ..<_>::default() };
    let host = store.host_change(HostId(1), &unbind, at(5), &noted()).await.unwrap().unwrap();
    assert_eq!((host.rules.bound_ip, host.rules.insecure_enabled_until), (None, None));
    assert_eq!(host.rules.insecure_grace_until, Some(at(200)));
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap(), host);
    assert_eq!(store.host_change(HostId(2), &unbind, at(5), &noted()).await.unwrap(), None);
}

pub async fn racing_first_contacts_bind_one_address(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let answers = race(100, |number| {
        let store = Arc::clone(&store);
        async move { bind(&store, "a", &format!("192.0.2.{number}")).await }
    })
    .await;
    let bound = store.host_fetch(HostId(1)).await.unwrap().unwrap().rules.bound_ip;
    assert!(bound.is_some());
    for answer in answers {
        assert_eq!(answer.unwrap().rules.bound_ip, bound);
    }
}

pub async fn a_mapped_address_is_bound_as_its_v4(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert_eq!(bound(&store, "a", "::ffff:192.0.2.1").await, ["192.0.2.1"]);
    let change = HostChange { bound_ip: Some(Some(ip("::ffff:192.0.2.2"))), ..<_>::default() };
    let host = store.host_change(HostId(1), &change, at(2), &noted()).await.unwrap().unwrap();
    assert_eq!(host.rules.bound_ip, Some(ip("192.0.2.2")));
}

pub async fn a_roaming_host_is_bound_anew_and_another_is_not(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert_eq!(bound(&store, "a", "192.0.2.1").await, ["192.0.2.1"]);
    assert_eq!(bound(&store, "a", "192.0.2.2").await, ["192.0.2.1"]);
    assert_eq!(bound(&store, "a", "2001:db8:1::1").await, ["192.0.2.1", "2001:db8:1::1"]);
    assert_eq!(bound(&store, "a", "2001:db8:2::2").await, ["192.0.2.1", "2001:db8:1::1"]);
    let roam = HostChange { allow_roaming_ips: Some(true), ..<_>::default() };
    store.host_change(HostId(1), &roam, at(2), &noted()).await.unwrap();
    assert_eq!(bound(&store, "a", "2001:db8:2::2").await, ["192.0.2.1", "2001:db8:2::2"]);
    assert_eq!(bound(&store, "a", "192.0.2.2").await, ["192.0.2.2", "2001:db8:2::2"]);
    let stay = HostChange { allow_roaming_ips: Some(false), ..<_>::default() };
    store.host_change(HostId(1), &stay, at(3), &noted()).await.unwrap();
    assert_eq!(bound(&store, "a", "192.0.2.3").await, ["192.0.2.2", "2001:db8:2::2"]);
}

/// Binds the key of `tag` to `address`; returns the host after it.
async fn bind(store: &Store, tag: &str, address: &str) -> Option<Host> {
    store.host_bind_ip(HostId(1), &key(tag), ip(address), 64, at(1), &note("bind")).await.unwrap()
}

/// Binds the key of `tag` to `address`; returns the addresses that the host is bound to.
async fn bound(store: &Store, tag: &str, address: &str) -> Vec<String> {
    let host = bind(store, tag, address).await.unwrap();
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().as_ref(), Some(&host));
    host.rules.bound().map(|ip| ip.to_string()).collect()
}

pub async fn a_host_is_bound_to_one_address_of_each_family(store: Store) {
    for (tag, first, second) in [("a", "192.0.2.1", "2001:db8::1"), ("b", "2001:db8::1", "192.0.2.1")] {
        // A new key is bound to no address.
        let made = store.host_register(&registration(1, "h1.test", tag), &noted()).await.unwrap();
        assert_eq!(made.rules.bound().next(), None);
        assert_eq!(bound(&store, tag, first).await, [first]);
        assert_eq!(bound(&store, tag, second).await, [first, second]);
        people::changes_nothing(&store, async {
            for address in ["192.0.2.1", "192.0.2.9", "2001:db8::1", "2001:db8:9::1"] {
                assert_eq!(bound(&store, tag, address).await, [first, second]);
            }
        })
        .await;
    }
    let clear = HostChange { bound_ip: Some(None), ..<_>::default() };
    let cleared = store.host_change(HostId(1), &clear, at(5), &noted()).await.unwrap().unwrap();
    assert_eq!((cleared.rules.bound_ip, cleared.rules.bound_ip_other), (None, None));
    assert_eq!(bound(&store, "b", "192.0.2.9").await, ["192.0.2.9"]);
}

pub async fn an_ipv6_address_in_the_bound_network_changes_nothing(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let roam = HostChange { allow_roaming_ips: Some(true), ..<_>::default() };
    store.host_change(HostId(1), &roam, at(2), &noted()).await.unwrap();
    assert_eq!(bound(&store, "a", "2001:db8:0:1::1").await, ["2001:db8:0:1::1"]);
    people::changes_nothing(&store, async {
        assert_eq!(bound(&store, "a", "2001:db8:0:1:ffff::9").await, ["2001:db8:0:1::1"]);
    })
    .await;
    assert_eq!(bound(&store, "a", "2001:db8:0:2::1").await, ["2001:db8:0:2::1"]);
    let one = ip("2001:db8:0:2::2");
    let host = store.host_bind_ip(HostId(1), &key("a"), one, 128, at(1), &noted()).await.unwrap().unwrap();
    assert_eq!(host.rules.bound_ip, Some(one), "with a prefix of 128 bits each address is its own network");
}

pub async fn racing_first_contacts_of_both_families_bind_one_each(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    race(40, |number| {
        let store = Arc::clone(&store);
        let address = match number % 2 {
            0 => format!("192.0.2.{number}"),
            _ => format!("2001:db8:{number}::1"),
        };
        async move { bind(&store, "a", &address).await.unwrap() }
    })
    .await;
    let rules = store.host_fetch(HostId(1)).await.unwrap().unwrap().rules;
    assert_eq!(rules.bound().count(), 2, "{rules:?}");
    assert_eq!(people::actions(&store).await.iter().filter(|action| **action == "bind").count(), 2);
}

pub async fn a_key_that_was_replaced_binds_nothing(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_register(&registration(1, "h1.test", "b"), &noted()).await.unwrap();
    assert_eq!(store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(1), &noted()).await.unwrap(), None);
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap().rules.bound_ip, None);
    assert_eq!(bound(&store, "b", "192.0.2.2").await, ["192.0.2.2"]);
}

pub async fn a_removed_host_comes_back_as_it_was(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(1), &noted()).await.unwrap();
    store.telemetry_append(Uuid::new_v4(), 1, &[seen(1, 7, 5, Some("0.169.0"))]).await.unwrap();
    let before = store.host_fetch(HostId(1)).await.unwrap().unwrap();
    assert_eq!(store.host_restore(HostId(1), at(0), at(9), &noted()).await.unwrap(), Restoration::Unknown);
    store.host_remove(HostId(1), at(10), &noted()).await.unwrap();
    assert_eq!(store.host_list_removed().await.unwrap().len(), 1);
    assert_eq!(
        store.host_restore(HostId(1), at(10), at(20), &noted()).await.unwrap(),
        Restoration::Unknown,
        "too late"
    );
    let restored = match store.host_restore(HostId(1), at(9), at(20), &noted()).await.unwrap() {
        Restoration::Restored(host) => host,
        other => panic!("{other:?}"),
    };
    assert_eq!(restored, Host { updated_at: at(20), ..before });
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap(), restored);
    assert_eq!(store.host_fetch_by_name(&fqdn("h1.test")).await.unwrap().unwrap(), restored);
    assert_eq!(store.host_activity(HostId(1)).await.unwrap().api_calls, 7);
    assert_eq!(store.host_list_removed().await.unwrap(), []);
    let redemption = store.installer_redeem(&token("a"), &key("a"), at(21), ip("192.0.2.1"), &noted()).await.unwrap();
    assert_eq!(redemption, Redemption::Unknown, "its installer tokens stay revoked");
}

pub async fn a_removed_host_whose_name_is_taken_stays_removed(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_remove(HostId(1), at(10), &noted()).await.unwrap();
    let successor = store.host_register(&registration(2, "h1.test", "b"), &noted()).await.unwrap();
    assert_eq!(store.host_restore(HostId(1), at(0), at(20), &noted()).await.unwrap(), Restoration::NameTaken);
    assert_eq!(store.host_list().await.unwrap(), [successor]);
}

pub async fn the_keys_of_hosts_removed_long_ago_are_forgotten(store: Store) {
    for (id, removed) in [(1, 10), (2, 20), (3, 30)] {
        store.host_register(&registration(id, &format!("h{id}.test"), &id.to_string()), &noted()).await.unwrap();
        store.telemetry_append(Uuid::new_v4(), 1, &[seen(id, 1, 5, None)]).await.unwrap();
        store.host_remove(HostId(id), at(removed), &noted()).await.unwrap();
    }
    let left = |hosts: Vec<Host>| hosts.into_iter().map(|host| host.id.0).collect::<Vec<_>>();
    assert_eq!(left(store.host_list_removed().await.unwrap()), [3, 2, 1]);
    assert_eq!(store.host_purge_removed(at(25)).await.unwrap(), 2);
    assert_eq!(store.host_purge_removed(at(25)).await.unwrap(), 0);
    assert_eq!(left(store.host_list_removed().await.unwrap()), [3]);
    assert_eq!(store.host_restore(HostId(1), at(0), at(40), &noted()).await.unwrap(), Restoration::Unknown);
    assert_eq!(store.host_activity(HostId(1)).await.unwrap(), HostActivity::default());
    assert_eq!(store.host_activity(HostId(3)).await.unwrap().api_calls, 1);
}

pub async fn an_agent_identity_is_kept_for_the_hosts_own_key(store: Store) {
    let host = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert_eq!(host.agent_identity, None);
    store.host_register(&registration(2, "h2.test", "b"), &noted()).await.unwrap();
    let known = store.epoch().await.unwrap();
    // As long as the longest sealed identity that a host may bring.
    let long = Sealed::from_bytes([sealed(1, "").as_bytes(), &[7; 16 * 1024]].concat());
    for identity in [sealed(1, "one"), long.clone()] {
        let before = store.epoch().await.unwrap();
        assert!(store.host_set_agent_identity(HostId(1), &key("a"), &identity, &note("identity")).await.unwrap());
        assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap().agent_identity.as_ref(), Some(&identity));
        assert!(store.epoch().await.unwrap() > before);
    }
    let told = store.changes_since(known).await.unwrap();
    assert_eq!(told.hosts, [Host { agent_identity: Some(long.clone()), ..host }], "nodes learn of this host only");
    // The same value again, an unknown key, another host's key, an unknown host.
    let (epoch, entries) = (store.epoch().await.unwrap(), store.audit_head().await.unwrap());
    assert!(store.host_set_agent_identity(HostId(1), &key("a"), &long, &noted()).await.unwrap());
    for (id, of) in [(1, "x"), (1, "b"), (3, "a")] {
        let other = sealed(1, "other");
        assert!(!store.host_set_agent_identity(HostId(id), &key(of), &other, &noted()).await.unwrap());
    }
    assert_eq!((store.epoch().await.unwrap(), store.audit_head().await.unwrap()), (epoch, entries));
    assert_eq!(store.host_fetch(HostId(2)).await.unwrap().unwrap().agent_identity, None);
    let noted = store.audit_list(&AuditFilter { action: Some("identity".into()), ..<_>::default() }, 9).await.unwrap();
    assert_eq!(noted.len(), 2);
    // A change of rules keeps the identity.
    let changed = store.host_change(HostId(1), &HostChange::default(), at(2), &self::noted()).await.unwrap().unwrap();
    assert_eq!(changed.agent_identity.as_ref(), Some(&long));
}

pub async fn an_agent_identity_goes_with_the_key_and_with_the_host(store: Store) {
    for (id, tag) in [(1, "a"), (2, "b")] {
        store.host_register(&registration(id, &format!("h{id}.test"), tag), &noted()).await.unwrap();
        assert!(store.host_set_agent_identity(HostId(id), &key(tag), &sealed(1, tag), &noted()).await.unwrap());
    }
    let again = store.host_register(&registration(1, "h1.test", "c"), &noted()).await.unwrap();
    assert_eq!(again.agent_identity, None, "the new key may go to another machine");
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap().agent_identity, None);

    store.host_remove(HostId(2), at(10), &noted()).await.unwrap();
    assert!(!store.host_set_agent_identity(HostId(2), &key("b"), &sealed(1, "late"), &noted()).await.unwrap());
    let Restoration::Restored(host) = store.host_restore(HostId(2), at(0), at(11), &noted()).await.unwrap() else {
        panic!("the host was not restored");
    };
    assert_eq!(host.agent_identity, Some(sealed(1, "b")), "the identity is restored with its host");

    store.host_remove(HostId(2), at(12), &noted()).await.unwrap();
    let place = Place::new("hosts", "agent_identity", 2);
    let left = store.sealed_value_list_before(KeyId(9), 10).await.unwrap();
    assert!(left.contains(&(place.clone(), sealed(1, "b"))), "the host may be restored");
    store.host_purge_removed(at(13)).await.unwrap();
    let left = store.sealed_value_list_before(KeyId(9), 10).await.unwrap();
    assert_eq!(left, [(Place::new("hosts", "api_key", 1), sealed(1, "key c"))]);
    assert!(!store.sealed_value_replace(&place, &sealed(1, "b"), &sealed(2, "b")).await.unwrap());
    let told = store.changes_since(Epoch(0)).await.unwrap().hosts;
    assert!(told.iter().all(|host| host.agent_identity.is_none()), "{told:?}");
}
