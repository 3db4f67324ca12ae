use super::*;

async fn redeem(store: &Store, tag: &str, when: i64) -> Redemption {
    store.installer_redeem(&token(tag), &key(tag), at(when), ip("192.0.2.1"), &noted()).await.unwrap()
}

pub async fn two_hundred_racing_redemptions_redeem_once(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let answers = race(200, |_| {
        let store = Arc::clone(&store);
        async move { redeem(&store, "a", 1).await }
    })
    .await;
    let redeemed = answers.iter().filter(|answer| matches!(answer, Redemption::Redeemed { .. })).count();
    let used = answers.iter().filter(|answer| **answer == Redemption::AlreadyUsed).count();
    assert_eq!((redeemed, used), (1, 199));
}

pub async fn a_spent_installer_token_is_gone(store: Store) {
    let host = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let Redemption::Redeemed { host: of, token } = redeem(&store, "a", 7).await else { panic!("not redeemed") };
    assert_eq!(of, host);
    assert_eq!((token.host, token.created_at, token.expires_at), (HostId(1), at(0), at(1800)));
    assert_eq!(token.base_url, "https://auth.example.test:8443");
    assert_eq!((token.redeemed_at, token.redeemed_from, token.revoked_at), (Some(at(7)), Some(ip("192.0.2.1")), None));
    assert_eq!(redeem(&store, "a", 8).await, Redemption::AlreadyUsed);
    assert_eq!(redeem(&store, "a", 99_999).await, Redemption::AlreadyUsed);
}

pub async fn a_token_is_redeemed_only_for_the_key_that_its_host_has(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    people::changes_nothing(&store, async {
        let other = store.installer_redeem(&token("a"), &key("b"), at(1), ip("192.0.2.1"), &noted()).await;
        assert_eq!(other.unwrap(), Redemption::KeyChanged);
    })
    .await;
    let good = store.installer_redeem(&token("a"), &key("a"), at(1), ip("192.0.2.1"), &noted()).await;
    assert!(matches!(good.unwrap(), Redemption::Redeemed { .. }), "a call with another key does not spend the token");
}

pub async fn an_expired_installer_token_is_refused(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert_eq!(redeem(&store, "a", 1800).await, Redemption::Expired);
    assert_eq!(redeem(&store, "a", 1801).await, Redemption::Expired);
    assert!(
        matches!(redeem(&store, "a", 1799).await, Redemption::Redeemed { .. }),
        "a refused call does not spend the token"
    );
}

pub async fn an_unknown_installer_token_is_unknown(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert_eq!(redeem(&store, "b", 1).await, Redemption::Unknown);
}

pub async fn registering_again_revokes_what_is_pending_and_nothing_else(store: Store) {
    store.host_register(&registration(1, "h1.test", "spent"), &noted()).await.unwrap();
    store.host_register(&registration(2, "h2.test", "other"), &noted()).await.unwrap();
    redeem(&store, "spent", 1).await;
    store.host_register(&registration(1, "h1.test", "pending"), &noted()).await.unwrap();
    let epoch = store.epoch().await.unwrap();
    store.host_register(&Registration { at: at(3), ..registration(1, "h1.test", "new") }, &noted()).await.unwrap();

    assert_eq!(redeem(&store, "pending", 4).await, Redemption::Unknown);
    assert_eq!(redeem(&store, "spent", 4).await, Redemption::AlreadyUsed);
    let told = store.changes_since(epoch).await.unwrap().install_tokens;
    let revoked: Vec<_> = told.iter().filter(|told| told.revoked_at == Some(at(3))).map(|told| told.digest).collect();
    assert_eq!(revoked, [token("pending")]);
    assert!(matches!(redeem(&store, "new", 4).await, Redemption::Redeemed { .. }));
    assert!(matches!(redeem(&store, "other", 4).await, Redemption::Redeemed { .. }));
}

pub async fn removing_a_host_kills_its_installer_tokens(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_register(&registration(2, "h2.test", "b"), &noted()).await.unwrap();
    let epoch = store.epoch().await.unwrap();
    store.host_remove(HostId(1), at(3), &noted()).await.unwrap();
    assert_eq!(redeem(&store, "a", 4).await, Redemption::Unknown);
    let told = store.changes_since(epoch).await.unwrap().install_tokens;
    assert_eq!(told.iter().map(|told| (told.digest, told.revoked_at)).collect::<Vec<_>>(), [(token("a"), Some(at(3)))]);
    assert!(matches!(redeem(&store, "b", 4).await, Redemption::Redeemed { .. }));
}

pub async fn a_revoked_installer_token_is_gone(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let revoked = store.installer_revoke(&token("a"), at(5), &noted()).await.unwrap().unwrap();
    assert_eq!(revoked.revoked_at, Some(at(5)));
    assert_eq!(store.installer_revoke(&token("a"), at(6), &noted()).await.unwrap(), None);
    assert_eq!(store.installer_revoke(&token("x"), at(6), &noted()).await.unwrap(), None);
    let redemption = store.installer_redeem(&token("a"), &key("a"), at(7), ip("192.0.2.1"), &noted()).await.unwrap();
    assert_eq!(redemption, Redemption::Unknown);

    store.host_register(&registration(1, "h1.test", "b"), &noted()).await.unwrap();
    store.installer_redeem(&token("b"), &key("b"), at(7), ip("192.0.2.1"), &noted()).await.unwrap();
    assert_eq!(store.installer_revoke(&token("b"), at(8), &noted()).await.unwrap(), None, "the token is spent");
}

pub async fn tokens_are_listed_the_newest_first(store: Store) {
    for (second, tag) in [(0, "a"), (2, "c"), (1, "b")] {
        let registration = Registration { at: at(second), ..registration(1, "h1.test", tag) };
        store.host_register(&registration, &noted()).await.unwrap();
    }
    store.installer_redeem(&token("b"), &key("b"), at(3), ip("::ffff:192.0.2.1"), &noted()).await.unwrap();
    let tokens = store.installer_list().await.unwrap();
    assert_eq!(tokens.iter().map(|it| it.digest).collect::<Vec<_>>(), [token("c"), token("b"), token("a")]);
    assert_eq!(tokens[1].redeemed_from, Some(ip("192.0.2.1")));
    assert!(tokens[0].revoked_at.is_some() && tokens[2].revoked_at.is_some());
}

pub async fn a_removal_and_a_redemption_race_to_one_outcome(store: Store) {
    for round in 0..50u64 {
        let tag = round.to_string();
        store.host_register(&registration(round + 1, &format!("h{round}.test"), &tag), &noted()).await.unwrap();
        let removing = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.host_remove(HostId(round + 1), at(1), &noted()).await.unwrap() }
        });
        let redeeming = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.installer_redeem(&token(&tag), &key(&tag), at(1), ip("192.0.2.1"), &noted()).await.unwrap() }
        });
        assert!(removing.await.unwrap().is_some());
        let token = store.installer_list().await.unwrap().into_iter().find(|it| it.host == HostId(round + 1)).unwrap();
        match redeeming.await.unwrap() {
            Redemption::Redeemed { host, .. } => {
                assert_eq!(host.removed_at, None, "the token was redeemed before the removal");
                assert!(token.redeemed_at.is_some() && token.revoked_at.is_none());
            }
            Redemption::Unknown => assert!(token.redeemed_at.is_none() && token.revoked_at.is_some()),
            other => panic!("{other:?}"),
        }
    }
}
