use super::people::{ISSUER, actions, add, changes_nothing, identity, link};
use super::*;
use crate::model::people::{MAX_IDENTITY_PART_BYTES, UserId};

pub async fn an_identity_is_linked_to_one_user(store: Store) {
    let users = [1, 2, 3, 4];
    for id in users {
        add(&store, id, &format!("u{id}@example.test")).await;
    }
    for round in 0..5 {
        let subject = round.to_string();
        let linked = race(12, |number| {
            let (store, identity) = (Arc::clone(&store), identity(ISSUER, &subject, users[number % 4]));
            async move { (identity.clone(), link(&store, &identity).await) }
        })
        .await;
        let kept = store.identity_fetch(ISSUER, &subject).await.unwrap().unwrap();
        for (identity, answer) in linked {
            let expected = if identity.user == kept.user { LinkOutcome::Linked } else { LinkOutcome::Taken(kept.user) };
            assert_eq!(answer, expected);
        }
    }
    assert_eq!(actions(&store).await[4..], ["link"; 5]);
    changes_nothing(&store, async {
        let kept = store.identity_fetch(ISSUER, "0").await.unwrap().unwrap();
        let other = ExternalIdentity { email: None, linked_at: at(99), ..kept.clone() };
        assert_eq!(link(&store, &other).await, LinkOutcome::Linked);
        assert_eq!(store.identity_fetch(ISSUER, "0").await.unwrap(), Some(kept), "the link stays as it is");
        assert_eq!(link(&store, &identity(ISSUER, "new", 9)).await, LinkOutcome::NoUser);
        assert_eq!(store.identity_fetch(ISSUER, "new").await.unwrap(), None);
    })
    .await;
    let epoch = store.epoch().await.unwrap();
    let bare = ExternalIdentity { email: None, ..identity(ISSUER, "new", 1) };
    assert_eq!(link(&store, &bare).await, LinkOutcome::Linked);
    assert_eq!(store.identity_fetch(ISSUER, "new").await.unwrap(), Some(bare));
    assert_eq!(store.epoch().await.unwrap(), epoch, "nodes do not cache identities");
}

pub async fn issuer_and_subject_are_compared_byte_by_byte(store: Store) {
    for id in 1..=9 {
        add(&store, id, &format!("u{id}@example.test")).await;
    }
    let longest = "x".repeat(MAX_IDENTITY_PART_BYTES - 2) + "\u{e9}";
    let other = longest.replace('\u{e9}', "\u{ea}");
    let all = [
        ("https://idp.test", "a", 7),
        ("https://idp.test", "A", 2),
        ("https://idp.test", "a ", 3),
        ("https://idp.test ", "a", 1),
        ("https://IDP.test", "a", 5),
        ("https://idp.test", "a\u{301}", 6),
        ("https://idp.test", "\u{e1}", 7),
        ("https://idp.test", "", 8),
        ("https://idp.test", "a\0", 9),
        ("https://idp.test\0", "a", 1),
        ("https://idp.testa", "", 2),
        (&*longest, &*longest, 4),
        (&*longest, &*other, 1),
    ];
    for (issuer, subject, user) in all {
        assert_eq!(store.identity_fetch(issuer, subject).await.unwrap(), None, "{issuer:?} {subject:?}");
        assert_eq!(link(&store, &identity(issuer, subject, user)).await, LinkOutcome::Linked, "{issuer:?} {subject:?}");
    }
    let mut expected = all.map(|(issuer, subject, user)| identity(issuer, subject, user));
    for identity in &expected {
        assert_eq!(store.identity_fetch(&identity.issuer, &identity.subject).await.unwrap().as_ref(), Some(identity));
    }
    expected.sort_by(|a, b| (a.user, &a.issuer, &a.subject).cmp(&(b.user, &b.issuer, &b.subject)));
    assert_eq!(store.identity_list().await.unwrap(), expected);
    let copied = copying::export(&store).await.into_iter().filter_map(|row| match row {
        copy::Row::ExternalIdentities(identity) => Some(identity),
        _ => None,
    });
    expected.sort_by(|a, b| (&a.issuer, &a.subject).cmp(&(&b.issuer, &b.subject)));
    assert_eq!(copied.collect::<Vec<_>>(), expected, "a copy is in the order of the keys");
    let before = store.identity_list().await.unwrap().len();
    assert!(store.identity_unlink("https://idp.test", "a", at(9), &noted()).await.unwrap().is_some());
    assert_eq!(store.identity_list().await.unwrap().len(), before - 1);
    assert!(store.identity_fetch("https://idp.test", "a ").await.unwrap().is_some());
}

pub async fn identities_are_seeded_and_again(store: Store) {
    add(&store, 1, "ada@example.test").await;
    let seed = |subject: &str, user| ExternalIdentitySeed {
        issuer: ISSUER.into(),
        subject: subject.into(),
        user_id: UserId(user),
        email: None,
    };
    let seeds = [seed("a", 1), seed("b", 1)];
    seed_external_identities(&*store, &seeds).await.unwrap();
    let linked = store.identity_list().await.unwrap();
    assert_eq!(linked.iter().map(|it| (&*it.subject, it.user.0)).collect::<Vec<_>>(), [("a", 1), ("b", 1)]);
    changes_nothing(&store, async { seed_external_identities(&*store, &seeds).await.unwrap() }).await;
    let entries = store.audit_list_from(2, 9).await.unwrap();
    let noted: Vec<_> = entries.iter().map(|entry| (&*entry.note.action, entry.note.target.as_deref())).collect();
    assert_eq!(noted, [("identity.link", Some("1")); 2]);

    let error = seed_external_identities(&*store, &[seed("c", 1), seed("d", 9), seed("e", 1)]).await.unwrap_err();
    assert!(error.to_string().contains("d of https://idp.test/") && error.to_string().contains("no user 9"), "{error}");
    add(&store, 2, "bob@example.test").await;
    let error = seed_external_identities(&*store, &[seed("a", 2)]).await.unwrap_err();
    assert!(error.to_string().contains("linked to user 1"), "{error}");
    let linked = store.identity_list().await.unwrap();
    assert_eq!(linked.iter().map(|it| &*it.subject).collect::<Vec<_>>(), ["a", "b", "c"]);
}
