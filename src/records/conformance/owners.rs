use super::people::{actions, add, changes_nothing, position};
use super::*;
use crate::model::people::UserId;

fn owner(user: u64, at_most: u32) -> Owner {
    Owner { user: UserId(user), at_most }
}

async fn register(store: &Store, registration: &Registration, owner: Owner) -> RegistrationOutcome {
    store.host_register_owned(registration, &owner, &note("register")).await.unwrap()
}

fn host_of(registered: RegistrationOutcome) -> Host {
    match registered {
        RegistrationOutcome::Host(host) => *host,
        refused => panic!("{refused:?}"),
    }
}

pub async fn a_host_is_its_owners_from_then_on(store: Store) {
    add(&store, 1, "ada@example.test").await;
    let before = store.epoch().await.unwrap();
    let made = host_of(register(&store, &registration(1, "h1.test", "a"), owner(1, 2)).await);
    let expected = Host { owner: Some(UserId(1)), ..host(1, "h1.test", "a") };
    assert_eq!(made, expected);
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap(), Some(expected.clone()));
    let told = store.changes_since(before).await.unwrap();
    assert_eq!((told.hosts, told.install_tokens.len()), (vec![expected.clone()], 1));

    changes_nothing(&store, async {
        // Repeated after an unknown outcome.
        let again = register(&store, &registration(1, "h1.test", "a"), owner(1, 2)).await;
        assert_eq!(host_of(again), expected);
        let foreign = register(&store, &registration(1, "h1.test", "a"), owner(2, 2)).await;
        assert_eq!(foreign, RegistrationOutcome::NotTheirs);
        // Sealed for an id that is not the host's.
        let other = register(&store, &registration(7, "h1.test", "b"), owner(1, 2)).await;
        assert_eq!(host_of(other), expected);
        assert_eq!(
            register(&store, &registration(1, "h1.test", "b"), owner(2, 2)).await,
            RegistrationOutcome::NotTheirs
        );
        assert_eq!(
            register(&store, &registration(7, "h1.test", "b"), owner(2, 2)).await,
            RegistrationOutcome::NotTheirs
        );
        let taken = store.host_register_owned(&registration(1, "h2.test", "b"), &owner(1, 2), &noted()).await;
        assert!(taken.is_err(), "another host has the id");
    })
    .await;
    let again = host_of(register(&store, &registration(1, "h1.test", "b"), owner(1, 2)).await);
    assert_eq!((again.owner, again.key_digest), (Some(UserId(1)), key("b")));
    host_of(register(&store, &registration(1, "h1.test", "c"), owner(1, 2)).await);
    store.host_change(HostId(1), &HostChange::default(), at(1), &noted()).await.unwrap();
    store.host_bind_ip(HostId(1), &key("c"), ip("192.0.2.1"), 64, at(1), &noted()).await.unwrap();
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap().owner, Some(UserId(1)));

    store.host_register(&registration(2, "admins.test", "d"), &noted()).await.unwrap();
    changes_nothing(&store, async {
        let refused = register(&store, &registration(2, "admins.test", "e"), owner(1, 9)).await;
        assert_eq!(refused, RegistrationOutcome::NotTheirs, "the host has no owner");
    })
    .await;
    assert_eq!(store.host_fetch(HostId(2)).await.unwrap().unwrap().owner, None);
    let redeemed = store.installer_redeem(&token("c"), &key("c"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    assert!(matches!(redeemed, Redemption::Redeemed { host, .. } if host.owner == Some(UserId(1))));
}

pub async fn an_admin_who_registers_a_users_host_takes_it(store: Store) {
    add(&store, 1, "ada@example.test").await;
    host_of(register(&store, &registration(1, "h1.test", "a"), owner(1, 1)).await);
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(1), &noted()).await.unwrap();
    // The host was disabled with the user, and not by an admin. An admin who registers it wants it served.
    disable(&store, 1, false).await;
    let taken = store.host_register(&registration(1, "h1.test", "b"), &note("take")).await.unwrap();
    assert_eq!((taken.owner, taken.key_digest), (None, key("b")));
    assert!(!taken.rules.disabled && !taken.rules.disabled_with_user && taken.rules.bound_ip.is_none());
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap(), Some(taken));
    let entries = store.audit_list_from(1, 100).await.unwrap();
    let entry = &entries.last().unwrap().note;
    let details: Vec<_> = entry.details.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!((&*entry.action, details), ("take", vec![("taken_from", "1")]));
    enable(&store, 1).await;
    changes_nothing(&store, async {
        let refused = register(&store, &registration(1, "h1.test", "c"), owner(1, 1)).await;
        assert_eq!(refused, RegistrationOutcome::NotTheirs);
        let removed = store.host_remove_owned(HostId(1), UserId(1), at(3), &noted()).await.unwrap();
        assert_eq!(removed, None, "the host is no longer the user's");
    })
    .await;
    // The host no longer counts for the user.
    host_of(register(&store, &registration(2, "h2.test", "d"), owner(1, 1)).await);
    // A host without an owner is registered again: the entry names no user.
    store.host_register(&registration(1, "h1.test", "e"), &note("again")).await.unwrap();
    assert!(store.audit_list_from(1, 100).await.unwrap().last().unwrap().note.details.is_empty());
}

pub async fn an_owner_removes_only_their_own_host(store: Store) {
    for user in [1, 2] {
        add(&store, user, &format!("u{user}@example.test")).await;
        host_of(
            register(&store, &registration(user, &format!("h{user}.test"), &user.to_string()), owner(user, 1)).await,
        );
    }
    changes_nothing(&store, async {
        for (host, user) in [(1, 2), (2, 1), (3, 1)] {
            let removed = store.host_remove_owned(HostId(host), UserId(user), at(3), &noted()).await.unwrap();
            assert_eq!(removed, None);
        }
    })
    .await;
    let removed = store.host_remove_owned(HostId(1), UserId(1), at(3), &note("remove")).await.unwrap();
    assert_eq!(removed.unwrap().removed_at, Some(at(3)));
    assert_eq!(store.host_list().await.unwrap().len(), 1);
}

async fn disable(store: &Store, user: u64, keep_hosts: bool) -> ChangedUser {
    let change = UserChange::Disable { keep_hosts };
    store.user_change(UserId(user), &change, at(8), Some(&note("disable"))).await.unwrap().unwrap()
}

async fn enable(store: &Store, user: u64) -> ChangedUser {
    store.user_change(UserId(user), &UserChange::Enable, at(9), Some(&note("enable"))).await.unwrap().unwrap()
}

pub async fn hosts_are_disabled_and_enabled_with_their_user(store: Store) {
    add(&store, 1, "ada@example.test").await;
    add(&store, 2, "bob@example.test").await;
    // Host 1 is served, 2 was disabled by an admin, 3 is removed and restorable, 4 is another user's, 5 has no owner.
    for (id, user) in [(1, 1), (2, 1), (3, 1), (4, 2)] {
        host_of(register(&store, &registration(id, &format!("h{id}.test"), &id.to_string()), owner(user, 9)).await);
    }
    store.host_register(&registration(5, "h5.test", "5"), &noted()).await.unwrap();
    let switch = |disabled| HostChange { disabled: Some(disabled), ..<_>::default() };
    store.host_change(HostId(2), &switch(true), at(1), &noted()).await.unwrap();
    store.host_remove(HostId(3), at(5), &noted()).await.unwrap();
    let states = async || {
        let mut hosts = store.host_list().await.unwrap();
        hosts.extend(store.host_list_removed().await.unwrap());
        hosts.sort_by_key(|host| host.id);
        hosts.iter().map(|host| (host.rules.disabled, host.rules.disabled_with_user)).collect::<Vec<_>>()
    };
    const SERVED: (bool, bool) = (false, false);
    const BY_ADMIN: (bool, bool) = (true, false);
    const WITH_USER: (bool, bool) = (true, true);
    let before = [SERVED, BY_ADMIN, SERVED, SERVED, SERVED];
    assert_eq!(states().await, before);

    let kept = disable(&store, 1, true).await;
    assert_eq!((kept.hosts, states().await), (vec![], before.into()));
    // The user is disabled again, now with the hosts.
    let epoch = store.epoch().await.unwrap();
    let disabled = disable(&store, 1, false).await;
    assert_eq!(disabled.host_count(), 1);
    assert_eq!(states().await, [WITH_USER, BY_ADMIN, WITH_USER, SERVED, SERVED]);
    let told = store.changes_since(epoch).await.unwrap();
    let mut ids: Vec<_> = told.hosts.iter().map(|host| (host.id.0, host.rules.disabled, host.updated_at)).collect();
    ids.sort_unstable();
    assert_eq!(ids, [(1, true, at(8)), (3, true, at(8))], "other nodes learn of the hosts together with the user");
    let mut changed = disabled.hosts;
    changed.sort_by_key(|host| host.id);
    let mut known = told.hosts;
    known.sort_by_key(|host| host.id);
    assert_eq!(changed, known);
    changes_nothing(&store, async {
        disable(&store, 1, false).await;
        let refused = register(&store, &registration(6, "h6.test", "6"), owner(1, 9)).await;
        assert_eq!(refused, RegistrationOutcome::OwnerDisabled);
        let refused = register(&store, &registration(1, "h1.test", "7"), owner(1, 9)).await;
        assert_eq!(refused, RegistrationOutcome::OwnerDisabled);
    })
    .await;
    let restored = store.host_restore(HostId(3), at(1), at(6), &noted()).await.unwrap();
    assert!(matches!(&restored, Restoration::Restored(host) if host.rules.disabled), "{restored:?}");

    let enabled = enable(&store, 1).await;
    assert_eq!(enabled.host_count(), 2);
    assert_eq!(states().await, before, "a host that an admin disabled stays disabled");

    // A decision by an admin while the user is disabled is kept.
    disable(&store, 1, false).await;
    store.host_change(HostId(1), &switch(true), at(10), &noted()).await.unwrap();
    store.host_change(HostId(3), &switch(false), at(10), &noted()).await.unwrap();
    assert_eq!(states().await, [BY_ADMIN, BY_ADMIN, SERVED, SERVED, SERVED]);
    enable(&store, 1).await;
    assert_eq!(states().await, [BY_ADMIN, BY_ADMIN, SERVED, SERVED, SERVED]);
}

pub async fn a_user_who_is_being_disabled_leaves_no_host_served(store: Store) {
    for round in 1..=8_u64 {
        add(&store, round, &format!("u{round}@example.test")).await;
        race(9, |number| {
            let (store, id) = (Arc::clone(&store), round * 100 + number as u64);
            async move {
                if number == 4 {
                    disable(&store, round, false).await;
                } else {
                    let registration = registration(id, &format!("h{id}.test"), &id.to_string());
                    register(&store, &registration, owner(round, 99)).await;
                }
            }
        })
        .await;
        let hosts = store.host_list().await.unwrap();
        let served: Vec<_> = hosts
            .iter()
            .filter(|host| host.owner == Some(UserId(round)) && !host.rules.disabled)
            .map(|host| host.id)
            .collect();
        assert_eq!(served, [], "round {round}");
    }
}

pub async fn an_owner_has_as_many_hosts_as_they_may(store: Store) {
    let registered = race(24, |number| {
        let store = Arc::clone(&store);
        async move {
            let (user, id) = (number as u64 % 2 + 1, number as u64 + 1);
            let registration = registration(id, &format!("h{id}.test"), &id.to_string());
            (user, register(&store, &registration, owner(user, 2 + user as u32)).await)
        }
    })
    .await;
    let count =
        |user| registered.iter().filter(|(of, it)| *of == user && matches!(it, RegistrationOutcome::Host(_))).count();
    assert_eq!((count(1), count(2)), (3, 4));
    let refused = registered.iter().filter(|(_, registered)| *registered == RegistrationOutcome::TooMany).count();
    assert_eq!(refused, 24 - 7);
    assert_eq!(actions(&store).await, ["register"; 7]);
    let hosts = store.host_list().await.unwrap();
    let of = |user| hosts.iter().filter(|host| host.owner == Some(UserId(user))).collect::<Vec<_>>();
    assert_eq!((of(1).len(), of(2).len(), hosts.len()), (3, 4, 7));

    let (first, second) = (of(1)[0], of(1)[1]);
    let again = |host: &Host, tag: &str| registration(host.id.0, host.fqdn.as_str(), tag);
    let new = |tag: &str| registration(100, "new.test", tag);
    host_of(register(&store, &again(first, "again"), owner(1, 3)).await);
    changes_nothing(&store, async {
        assert_eq!(register(&store, &new("new"), owner(1, 3)).await, RegistrationOutcome::TooMany);
        assert_eq!(register(&store, &again(second, "more"), owner(1, 2)).await, RegistrationOutcome::TooMany, "by now");
        assert_eq!(register(&store, &new("new"), owner(3, 0)).await, RegistrationOutcome::TooMany);
    })
    .await;
    // A removed host makes room. A restored host is the user's again.
    store.host_remove(first.id, at(2), &noted()).await.unwrap();
    host_of(register(&store, &new("new"), owner(1, 3)).await);
    changes_nothing(&store, async {
        let more = registration(101, "more.test", "more");
        assert_eq!(register(&store, &more, owner(1, 3)).await, RegistrationOutcome::TooMany);
    })
    .await;
    let restored = store.host_restore(first.id, at(1), at(3), &noted()).await.unwrap();
    assert!(matches!(&restored, Restoration::Restored(host) if host.owner == Some(UserId(1))), "{restored:?}");
    changes_nothing(&store, async {
        assert_eq!(
            register(&store, &again(second, "more"), owner(1, 3)).await,
            RegistrationOutcome::TooMany,
            "the user has four hosts"
        );
    })
    .await;
    host_of(register(&store, &again(second, "more"), owner(1, 4)).await);
}

pub async fn racing_owners_of_one_name_make_one_host(store: Store) {
    for round in 0..5_u64 {
        let registered = race(10, |number| {
            let (store, user) = (Arc::clone(&store), number as u64 + 1);
            async move {
                let registration =
                    registration(round * 10 + user, &format!("h{round}.test"), &format!("{round}.{user}"));
                (user, register(&store, &registration, owner(user, 9)).await)
            }
        })
        .await;
        let (won, lost): (Vec<_>, Vec<_>) =
            registered.into_iter().partition(|(_, registered)| matches!(registered, RegistrationOutcome::Host(_)));
        assert!(lost.iter().all(|(_, registered)| *registered == RegistrationOutcome::NotTheirs), "{lost:?}");
        let present = store.host_fetch_by_name(&fqdn(&format!("h{round}.test"))).await.unwrap().unwrap();
        assert_eq!(won.iter().map(|(user, _)| Some(UserId(*user))).collect::<Vec<_>>(), [present.owner]);
    }
}

pub async fn a_certificate_is_tied_to_a_user_and_untied(store: Store) {
    add(&store, 1, "ada@example.test").await;
    let certificate = |name: &str, user| AdminCertificate {
        fingerprint: token(name),
        name: name.into(),
        serial: "01".into(),
        issued_at: at(0),
        expires_at: at(1000),
        revoked_at: None,
        authority: None,
        user,
    };
    let (a, b) = (certificate("a", None), certificate("b", Some(UserId(1))));
    for certificate in [&a, &b] {
        store.certificate_record(certificate, &noted()).await.unwrap();
    }
    assert_eq!(store.certificate_list().await.unwrap(), [a.clone(), b.clone()]);
    let tie = async |certificate: &AdminCertificate, user: Option<u64>| {
        store.certificate_set_user(&certificate.fingerprint, user.map(UserId), &note("tie")).await.unwrap()
    };
    let tied = AdminCertificate { user: Some(UserId(1)), ..a.clone() };
    let before = position(&store).await;
    assert_eq!(tie(&a, Some(1)).await, Some(tied.clone()));
    let told = store.changes_since(before.0).await.unwrap();
    assert_eq!(told.certificates, Some(vec![tied.clone(), b.clone()]));
    assert_eq!(position(&store).await.1, before.1 + 1);
    changes_nothing(&store, async {
        assert_eq!(tie(&a, Some(1)).await, Some(tied.clone()));
        assert_eq!(tie(&a, Some(2)).await, None, "no such user");
        assert_eq!(tie(&certificate("c", None), Some(1)).await, None, "no such certificate");
        assert_eq!(tie(&certificate("c", None), None).await, None);
    })
    .await;
    assert_eq!(tie(&b, None).await, Some(AdminCertificate { user: None, ..b.clone() }));
    let revoked = store.certificate_revoke(&a.fingerprint, at(2), &noted()).await.unwrap();
    assert_eq!(revoked, Some(AdminCertificate { revoked_at: Some(at(2)), ..tied }), "the certificate keeps its user");
    assert_eq!(store.certificate_list().await.unwrap()[0], revoked.unwrap());
}

pub async fn a_renewed_certificate_takes_the_user_of_the_one_before(store: Store) {
    add(&store, 1, "ada@example.test").await;
    let certificate = |name: &str, issued| AdminCertificate {
        fingerprint: token(name),
        name: name.into(),
        serial: "01".into(),
        issued_at: at(issued),
        expires_at: at(1000),
        revoked_at: None,
        authority: None,
        user: None,
    };
    let old = AdminCertificate { user: Some(UserId(1)), ..certificate("old", 0) };
    store.certificate_record(&old, &noted()).await.unwrap();
    let renew = async |old: &str, new: &str, issued, revoke_at| {
        let new = certificate(new, issued);
        store.certificate_renew(&token(old), &new, revoke_at, &note("renew")).await.unwrap()
    };
    let before = position(&store).await;
    let second = AdminCertificate { user: Some(UserId(1)), ..certificate("second", 1) };
    assert_eq!(renew("old", "second", 1, None).await, Some(second.clone()));
    let told = store.changes_since(before.0).await.unwrap();
    assert_eq!(told.certificates, Some(vec![old.clone(), second.clone()]), "the old certificate stays as it is");
    assert_eq!(position(&store).await.1, before.1 + 1);
    changes_nothing(&store, async {
        assert_eq!(renew("old", "second", 1, Some(at(9))).await, Some(second.clone()), "once");
        assert_eq!(renew("nobody's", "third", 2, None).await, None, "no such certificate");
    })
    .await;
    let third = renew("second", "third", 2, Some(at(3))).await.unwrap();
    assert_eq!(third.user, Some(UserId(1)));
    let revoked = AdminCertificate { revoked_at: Some(at(3)), ..second };
    assert_eq!(store.certificate_list().await.unwrap(), [old, revoked, third]);
    changes_nothing(&store, async {
        assert_eq!(renew("second", "fourth", 4, None).await, None, "the certificate is revoked");
    })
    .await;
}
