use super::*;
use crate::model::audit::{AuditFilter, AuditHead};
use crate::model::authority::AuthorityRole;

async fn follow(store: &Store) -> Vec<String> {
    let entries = store.audit_list_from(1, 10_000).await.unwrap();
    let mut head = AuditHead::default();
    for entry in &entries {
        head.follow(entry).unwrap();
    }
    assert_eq!(head, store.audit_head().await.unwrap());
    entries.into_iter().map(|entry| entry.note.action).collect()
}

pub async fn every_change_is_noted_once_in_an_unbroken_chain(store: Store) {
    assert_eq!(store.audit_head().await.unwrap(), AuditHead::default());
    store.host_register(&registration(1, "h1.test", "a"), &note("register")).await.unwrap();
    store.host_change(HostId(1), &HostChange::default(), at(1), &note("change")).await.unwrap();
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(1), &note("bind")).await.unwrap();
    store.installer_redeem(&token("a"), &key("a"), at(1), ip("192.0.2.1"), &note("redeem")).await.unwrap();
    store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &note("store")).await.unwrap();
    store.settings_change(&kill_switch(false), &note("settings")).await.unwrap();
    store.host_register(&registration(2, "h2.test", "b"), &note("register")).await.unwrap();
    store.installer_revoke(&token("b"), at(2), &note("revoke")).await.unwrap();
    store.host_remove(HostId(1), at(3), &note("remove")).await.unwrap();
    store.host_restore(HostId(1), at(2), at(4), &note("restore")).await.unwrap();
    store.audit_append(&[note("alone"), note("alone")]).await.unwrap();
    let expected = [
        "register", "change", "bind", "redeem", "store", "settings", "register", "revoke", "remove", "restore",
        "alone", "alone",
    ];
    assert_eq!(follow(&store).await, expected);
    let stored =
        &store.audit_list(&AuditFilter { action: Some("store".into()), ..<_>::default() }, 9).await.unwrap()[0];
    assert_eq!(stored.note.target.as_deref(), Some("1"), "the target is the number of the new version");
}

pub async fn what_changes_nothing_is_not_noted(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &note("register")).await.unwrap();
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(1), &note("bind")).await.unwrap();
    store.installer_redeem(&token("a"), &key("a"), at(1), ip("192.0.2.1"), &note("redeem")).await.unwrap();
    store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &note("store")).await.unwrap();
    let before = follow(&store).await;
    let never = note("never");
    store.host_register(&registration(1, "h1.test", "a"), &never).await.unwrap();
    store.host_register(&registration(2, "h1.test", "b"), &never).await.unwrap();
    assert!(store.host_register(&registration(1, "h2.test", "c"), &never).await.is_err());
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.2"), 64, at(2), &never).await.unwrap();
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(2), &never).await.unwrap();
    store.installer_redeem(&token("a"), &key("a"), at(2), ip("192.0.2.1"), &never).await.unwrap();
    store.installer_redeem(&token("x"), &key("x"), at(2), ip("192.0.2.1"), &never).await.unwrap();
    store.installer_revoke(&token("a"), at(2), &never).await.unwrap();
    store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("2"), &never).await.unwrap();
    store.host_change(HostId(9), &HostChange::default(), at(2), &never).await.unwrap();
    store.host_remove(HostId(9), at(2), &never).await.unwrap();
    store.host_restore(HostId(1), at(0), at(2), &never).await.unwrap();
    store.certificate_revoke(&token("x"), at(2), &never).await.unwrap();
    store
        .authority_roll(AuthorityRole::Server, &AuthorityStep::Activate(Uuid::from_bytes([1; 16])), &never)
        .await
        .unwrap();
    store.audit_append(&[]).await.unwrap();
    assert_eq!(follow(&store).await, before);
}

pub async fn racing_writers_leave_a_chain_without_a_gap(store: Store) {
    race(32, |number| {
        let store = Arc::clone(&store);
        async move {
            for round in 0..8 {
                let registration =
                    registration(number as u64 + 1, &format!("h{number}.test"), &format!("{number} {round}"));
                store.host_register(&registration, &note("register")).await.unwrap();
                store.audit_append(&[note("alone")]).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(follow(&store).await.len(), 32 * 8 * 2);
}

pub async fn entries_are_found_by_what_they_say_and_paged(store: Store) {
    for number in 0..250 {
        let action = if number % 5 == 0 { "auth.store" } else { "host.bind" };
        store.audit_append(&[note(action).on(number)]).await.unwrap();
    }
    let mut filter = AuditFilter { action: Some("auth".into()), ..<_>::default() };
    let mut found = Vec::new();
    loop {
        let page = store.audit_list(&filter, 20).await.unwrap();
        let Some(last) = page.last() else { break };
        filter.before = Some(last.number);
        found.extend(page.into_iter().map(|entry| entry.note.target.unwrap().parse::<u32>().unwrap()));
    }
    assert_eq!(found, (0..50).rev().map(|number| number * 5).collect::<Vec<_>>());
    let page = store.audit_list_from(249, 10).await.unwrap();
    assert_eq!(page.iter().map(|entry| entry.number).collect::<Vec<_>>(), [249, 250]);
}

pub async fn noted_telemetry_is_appended_once(store: Store) {
    let (node, batch) = (Uuid::new_v4(), [Telemetry::Noted { note: note("key.refused") }]);
    for _ in 0..3 {
        store.telemetry_append(node, 1, &batch).await.unwrap();
    }
    assert_eq!(follow(&store).await, ["key.refused"]);
}

pub async fn certificates_are_revoked_once(store: Store) {
    let certificate = AdminCertificate {
        user: None,
        fingerprint: token("certificate"),
        name: "alice".into(),
        serial: "01".into(),
        issued_at: at(0),
        expires_at: at(9),
        revoked_at: None,
        authority: None,
    };
    store.certificate_record(&certificate, &note("issue")).await.unwrap();
    let epoch = store.epoch().await.unwrap();
    let answers = race(8, |_| {
        let store = Arc::clone(&store);
        async move { store.certificate_revoke(&token("certificate"), at(5), &note("revoke")).await.unwrap() }
    })
    .await;
    let revoked = AdminCertificate { revoked_at: Some(at(5)), ..certificate };
    assert_eq!(answers.into_iter().flatten().collect::<Vec<_>>(), std::slice::from_ref(&revoked));
    assert_eq!(store.changes_since(epoch).await.unwrap().certificates, Some(vec![revoked]));
    assert_eq!(follow(&store).await, ["issue", "revoke"]);
}

pub async fn authorities_move_through_their_slots_and_never_skip_one(store: Store) {
    let authority = |number: u8, slot| Authority {
        id: Uuid::from_bytes([number; 16]),
        role: AuthorityRole::Server,
        slot,
        certificate_pem: String::new(),
        private_key: sealed(1, &number.to_string()),
        cross_certificate_pem: None,
        created_at: Some(at(number.into())),
    };
    let seed = Seed {
        sealing_key: SealingKey { id: KeyId(1), sealed: sealed(0, "key"), created_at: at(0) },
        authorities: vec![authority(1, AuthoritySlot::Active)],
        server_key: sealed(1, "server"),
    };
    assert!(store.initialise(&seed, &note("initialise")).await.unwrap());
    let epoch = store.epoch().await.unwrap();
    let id = |number| Uuid::from_bytes([number; 16]);
    let prepare = |number, active| AuthorityStep::Prepare {
        made: Box::new(authority(number, AuthoritySlot::Next)),
        active: id(active),
    };
    let roll = |step: AuthorityStep| {
        let store = Arc::clone(&store);
        async move { store.authority_roll(AuthorityRole::Server, &step, &note("roll")).await.unwrap() }
    };
    let slots = |authorities: Option<Vec<Authority>>| {
        let mut slots: Vec<_> = authorities?.into_iter().map(|it| (it.id.as_bytes()[0], it.slot)).collect();
        slots.sort_by_key(|(number, _)| *number);
        Some(slots)
    };
    use AuthoritySlot::{Active, Next, Old};
    let (activate, retire) = (|number| AuthorityStep::Activate(id(number)), |number| AuthorityStep::Retire(id(number)));
    assert_eq!((roll(activate(1)).await, roll(retire(1)).await), (None, None));
    assert_eq!(roll(prepare(2, 3)).await, None, "the active authority is not the one that certified it");
    assert_eq!(slots(roll(prepare(2, 1)).await), Some(vec![(1, Active), (2, Next)]));
    assert_eq!(roll(prepare(3, 1)).await, None, "the slot is taken");
    assert_eq!(roll(retire(1)).await, None);
    assert_eq!(roll(activate(3)).await, None, "another authority is prepared");
    assert_eq!(slots(roll(activate(2)).await), Some(vec![(1, Old), (2, Active)]));
    assert_eq!(roll(activate(2)).await, None);
    assert_eq!(slots(roll(prepare(3, 2)).await), Some(vec![(1, Old), (2, Active), (3, Next)]));
    assert_eq!(roll(activate(3)).await, None, "the slot of the old authority is taken");
    assert_eq!(roll(retire(2)).await, None, "another authority is old");
    assert_eq!(slots(roll(retire(1)).await), Some(vec![(2, Active), (3, Next)]));
    assert_eq!(slots(roll(activate(3)).await), Some(vec![(2, Old), (3, Active)]));
    let slots = slots(store.authority_list().await.ok()).unwrap();
    assert_eq!(slots, [(2, AuthoritySlot::Old), (3, AuthoritySlot::Active)]);
    assert_eq!(store.changes_since(epoch).await.unwrap().authorities.unwrap().len(), 2);
    assert_eq!(follow(&store).await.len(), 6, "a refused step has no entry");
    // The sealed key of the retired authority is no longer held.
    let values = store.sealed_value_list_before(KeyId(2), 100).await.unwrap();
    assert!(values.iter().all(|(place, _)| place.id != Uuid::from_bytes([1; 16]).to_string()), "{values:?}");
}
