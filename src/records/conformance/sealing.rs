use super::*;

fn key(id: u32) -> SealingKey {
    SealingKey { id: KeyId(id), sealed: sealed(0, &format!("data key {id}")), created_at: at(id.into()) }
}

fn seed(tag: &str) -> Seed {
    let authority = |role| Authority {
        id: Uuid::new_v4(),
        role,
        slot: AuthoritySlot::Active,
        certificate_pem: format!("certificate {tag}"),
        cross_certificate_pem: None,
        created_at: None,
        private_key: sealed(1, &format!("authority {role:?} {tag}")),
    };
    Seed {
        sealing_key: key(1),
        authorities: vec![authority(AuthorityRole::Server), authority(AuthorityRole::Client)],
        server_key: sealed(1, &format!("server key {tag}")),
    }
}

fn by_id(mut authorities: Vec<Authority>) -> Vec<Authority> {
    authorities.sort_by_key(|authority| authority.id);
    authorities
}

pub async fn what_the_first_boot_makes_is_written_once(store: Store) {
    assert!(!store.is_initialised().await.unwrap());
    assert_eq!(store.server_key_fetch().await.unwrap(), None);
    let first = seed("first");
    assert!(store.initialise(&first, &noted()).await.unwrap());
    assert!(store.is_initialised().await.unwrap());
    assert!(!store.initialise(&seed("second"), &noted()).await.unwrap());
    assert_eq!(store.sealing_key_list().await.unwrap(), [first.sealing_key]);
    assert_eq!(by_id(store.authority_list().await.unwrap()), by_id(first.authorities));
    assert_eq!(store.server_key_fetch().await.unwrap(), Some(first.server_key));
}

pub async fn racing_first_boots_have_one_winner(store: Store) {
    let seeds: Vec<_> = (0..20).map(|number| seed(&number.to_string())).collect();
    let won = race(seeds.len(), |number| {
        let (store, seed) = (Arc::clone(&store), seeds[number].clone());
        async move { store.initialise(&seed, &noted()).await.unwrap() }
    })
    .await;
    let winners: Vec<_> = won.iter().enumerate().filter(|(_, won)| **won).map(|(number, _)| number).collect();
    assert_eq!(winners.len(), 1);
    let winner = &seeds[winners[0]];
    assert_eq!(
        by_id(store.authority_list().await.unwrap()),
        by_id(winner.authorities.clone()),
        "only the winner's authorities"
    );
    assert_eq!(store.server_key_fetch().await.unwrap().as_ref(), Some(&winner.server_key));
}

pub async fn data_keys_are_added_once_and_listed(store: Store) {
    store.initialise(&seed("s"), &noted()).await.unwrap();
    assert!(store.sealing_key_add(&key(2), &noted()).await.unwrap());
    let other = SealingKey { sealed: sealed(0, "another"), ..key(2) };
    assert!(!store.sealing_key_add(&other, &noted()).await.unwrap());
    assert_eq!(store.sealing_key_list().await.unwrap(), [key(1), key(2)]);
}

pub async fn a_data_key_in_use_or_the_highest_stays(store: Store) {
    let seed = seed("s");
    store.initialise(&seed, &noted()).await.unwrap();
    assert!(!store.sealing_key_remove(KeyId(1)).await.unwrap(), "it is the only data key");
    store.sealing_key_add(&key(2), &noted()).await.unwrap();
    store.sealing_key_add(&key(300), &noted()).await.unwrap();
    assert!(!store.sealing_key_remove(KeyId(1)).await.unwrap(), "three values are sealed with it");
    assert!(!store.sealing_key_remove(KeyId(300)).await.unwrap(), "the highest");
    assert!(!store.sealing_key_remove(KeyId(7)).await.unwrap(), "there is no such data key");
    assert!(store.sealing_key_remove(KeyId(2)).await.unwrap());
    for (place, value) in store.sealed_value_list_before(KeyId(300), 100).await.unwrap() {
        assert!(!store.sealing_key_remove(KeyId(1)).await.unwrap());
        assert!(store.sealed_value_replace(&place, &value, &sealed(300, "new")).await.unwrap());
    }
    assert!(store.sealing_key_remove(KeyId(1)).await.unwrap());
    assert_eq!(store.sealing_key_list().await.unwrap(), [key(300)]);
}

pub async fn every_kind_of_sealed_value_is_found_and_resealed(store: Store) {
    let seed = seed("s");
    store.initialise(&seed, &noted()).await.unwrap();
    store.host_register(&registration(5, "h5.test", "a"), &noted()).await.unwrap();
    let first = replaced(
        store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap(),
    );
    let second = replaced(
        store.canonical_replace(&ReplaceCondition::Version(Some(1)), &new_canonical("2"), &noted()).await.unwrap(),
    );

    let identity = sealed(1, "identity");
    assert!(store.host_set_agent_identity(HostId(5), &super::key("a"), &identity, &noted()).await.unwrap());

    let mut expected = vec![
        (Place::new("hosts", "api_key", 5), sealed(1, "key a")),
        (Place::new("hosts", "agent_identity", 5), identity),
        (Place::new("settings", "server_key", 0), seed.server_key.clone()),
    ];
    for authority in &seed.authorities {
        expected.push((Place::new("authorities", "private_key", authority.id), authority.private_key.clone()));
    }
    for version in [&first, &second] {
        expected.push((Place::new("auth_payloads", "body", version.id), version.body.clone()));
        let place = Place::new("auth_entries", "token", format!("{}/api.openai.com/v1", version.id));
        expected.push((place, version.entries[0].token.clone()));
    }
    assert_eq!(store.sealed_value_list_before(KeyId(1), 100).await.unwrap(), []);
    let mut found = store.sealed_value_list_before(KeyId(2), 100).await.unwrap();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, expected);
    assert_eq!(store.sealed_value_list_before(KeyId(2), 3).await.unwrap().len(), 3);

    assert!(store.sealing_key_add(&key(2), &noted()).await.unwrap());
    for (number, (place, value)) in found.iter().enumerate() {
        let epoch = store.epoch().await.unwrap();
        let tag = format!("new {place:?}");
        assert!(store.sealed_value_replace(place, value, &sealed(2, &tag)).await.unwrap(), "{place:?}");
        assert!(store.epoch().await.unwrap() > epoch, "{place:?}");
        assert_eq!(store.sealed_value_list_before(KeyId(2), 100).await.unwrap().len(), found.len() - number - 1);
    }
    let new = |place: Place| sealed(2, &format!("new {place:?}"));
    let host = store.host_fetch(HostId(5)).await.unwrap().unwrap();
    assert_eq!(host.api_key, new(Place::new("hosts", "api_key", 5)));
    assert_eq!(host.agent_identity, Some(new(Place::new("hosts", "agent_identity", 5))));
    assert_eq!(store.server_key_fetch().await.unwrap(), Some(new(Place::new("settings", "server_key", 0))));
    for authority in store.authority_list().await.unwrap() {
        assert_eq!(authority.private_key, new(Place::new("authorities", "private_key", authority.id)));
    }
    for version in [first, second] {
        let kept = store.canonical_fetch_version(version.summary.version).await.unwrap().unwrap();
        assert_eq!(kept.body, new(Place::new("auth_payloads", "body", version.id)));
        let place = Place::new("auth_entries", "token", format!("{}/api.openai.com/v1", version.id));
        assert_eq!(kept.entries[0].token, new(place));
        assert_eq!(kept.summary, version.summary);
    }
}

pub async fn resealing_a_value_that_changed_does_nothing(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_register(&registration(1, "h1.test", "b"), &noted()).await.unwrap();
    let epoch = store.epoch().await.unwrap();
    let place = Place::new("hosts", "api_key", 1);
    assert!(!store.sealed_value_replace(&place, &sealed(1, "key a"), &sealed(2, "key a")).await.unwrap());
    for gone in [
        Place::new("hosts", "api_key", 2),
        Place::new("hosts", "fqdn", 1),
        Place::new("hosts", "api_key", "x"),
        Place::new("auth_payloads", "body", Uuid::new_v4()),
        Place::new("auth_entries", "token", "x"),
        Place::new("settings", "server_key", 0),
    ] {
        assert!(
            !store.sealed_value_replace(&gone, &sealed(1, "key b"), &sealed(2, "key b")).await.unwrap(),
            "{gone:?}"
        );
    }
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap().api_key, sealed(1, "key b"));
    assert_eq!(store.epoch().await.unwrap(), epoch);
    assert!(store.sealed_value_replace(&place, &sealed(1, "key b"), &sealed(2, "key b")).await.unwrap());
    assert!(!store.sealed_value_replace(&place, &sealed(1, "key b"), &sealed(3, "key b")).await.unwrap());
}

pub async fn a_removed_hosts_key_is_no_longer_held(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_remove(HostId(1), at(1), &noted()).await.unwrap();
    assert_eq!(store.sealed_value_list_before(KeyId(9), 10).await.unwrap().len(), 1, "the host may be restored");
    assert!(!store.sealing_key_remove(KeyId(1)).await.unwrap());
    store.host_purge_removed(at(2)).await.unwrap();
    assert_eq!(store.sealed_value_list_before(KeyId(9), 10).await.unwrap(), []);
    let told = store.changes_since(Epoch(0)).await.unwrap().hosts;
    assert!(told[0].api_key.as_bytes().is_empty());
}

pub async fn certificates_are_recorded_once_in_order(store: Store) {
    let certificate = |name: &str, issued: i64| AdminCertificate {
        user: None,
        fingerprint: Digest::of(name.as_bytes()),
        name: name.into(),
        serial: "0a".into(),
        issued_at: at(issued),
        expires_at: at(issued + 1000),
        revoked_at: None,
        authority: None,
    };
    for (name, issued) in [("z", 1), ("a", 3), ("m", 2), ("z", 1)] {
        store.certificate_record(&certificate(name, issued), &noted()).await.unwrap();
    }
    let expected = [certificate("z", 1), certificate("m", 2), certificate("a", 3)];
    assert_eq!(store.certificate_list().await.unwrap(), expected);
}
