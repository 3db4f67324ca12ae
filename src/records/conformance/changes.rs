use std::collections::{HashMap, HashSet};

use super::*;

pub async fn settings_are_kept(store: Store) {
    assert_eq!(store.settings_fetch().await.unwrap(), Settings::default());
    store.settings_change(&kill_switch(true), &noted()).await.unwrap();
    assert_eq!(store.settings_fetch().await.unwrap(), Settings { api_disabled: true, ..Settings::default() });
}

pub async fn settings_change_only_where_told(store: Store) {
    let release = ClientRelease { version: "0.170.0".into(), checked_at: at(1) };
    let restored = RestoredLogin { version: 3, backup_of: at(2) };
    let off = SettingsChange::KillSwitch { disabled: true, reason: Some("why".into()) };
    let mut expected = Settings::default();
    for (change, apply) in [
        (off, (|it| (it.api_disabled, it.api_disabled_reason) = (true, Some("why".into()))) as fn(&mut Settings)),
        (SettingsChange::ClientRelease(release.clone()), |it| {
            it.client_release = Some(ClientRelease { version: "0.170.0".into(), checked_at: at(1) });
        }),
        (SettingsChange::MarkRestored(restored), |it| {
            it.restored_login = Some(RestoredLogin { version: 3, backup_of: at(2) });
        }),
        (SettingsChange::KillSwitch { disabled: false, reason: Some("ignored".into()) }, |it| {
            (it.api_disabled, it.api_disabled_reason) = (false, None);
        }),
        (SettingsChange::ClearRestored { version: 3 }, |it| it.restored_login = None),
        (SettingsChange::BackupVerified(VerifiedBackup { made_at: at(5), has_keys: true }), |it| {
            it.verified_backup = Some(VerifiedBackup { made_at: at(5), has_keys: true });
        }),
        (SettingsChange::BackupVerified(VerifiedBackup { made_at: at(6), has_keys: false }), |it| {
            it.verified_backup = Some(VerifiedBackup { made_at: at(6), has_keys: false });
        }),
        (SettingsChange::PublicUrl("https://a.test".into()), |it| it.public_urls = vec!["https://a.test".into()]),
        (SettingsChange::PublicUrl("https://b.test".into()), |it| {
            it.public_urls = vec!["https://b.test".into(), "https://a.test".into()];
        }),
        (SettingsChange::PublicUrl("https://a.test".into()), |it| it.public_urls.reverse()),
        (SettingsChange::BeginHostTrust(HostTrust { old_wrappers_trust_system: true, ..HostTrust::NONE }), |it| {
            it.host_trust = Some(HostTrust { old_wrappers_trust_system: true, ..HostTrust::NONE });
        }),
        (SettingsChange::TrustSystem { since: at(3) }, |it| {
            it.host_trust.as_mut().unwrap().system_since = Some(at(3));
        }),
        (SettingsChange::Switch(Some(at(4))), |it| it.host_trust.as_mut().unwrap().switched_at = Some(at(4))),
    ] {
        apply(&mut expected);
        let before = store.epoch().await.unwrap();
        assert_eq!(store.settings_change(&change, &noted()).await.unwrap(), Some(expected.clone()), "{change:?}");
        assert_eq!(store.settings_fetch().await.unwrap(), expected);
        assert_eq!(store.changes_since(before).await.unwrap().settings, Some(expected.clone()));
    }
    people::changes_nothing(&store, async {
        let clear = SettingsChange::ClearRestored { version: 3 };
        assert_eq!(store.settings_change(&clear, &noted()).await.unwrap(), None, "there is no mark");
        for seconds in [5, 6] {
            let older = SettingsChange::BackupVerified(VerifiedBackup { made_at: at(seconds), has_keys: true });
            assert_eq!(store.settings_change(&older, &noted()).await.unwrap(), None, "a newer one is recorded");
        }
        let same = SettingsChange::PublicUrl("https://a.test".into());
        assert_eq!(store.settings_change(&same, &noted()).await.unwrap(), None, "it is the newest address already");
    })
    .await;
    let mark = SettingsChange::MarkRestored(RestoredLogin { version: 4, backup_of: at(2) });
    store.settings_change(&mark, &noted()).await.unwrap();
    people::changes_nothing(&store, async {
        let clear = SettingsChange::ClearRestored { version: 3 };
        assert_eq!(store.settings_change(&clear, &noted()).await.unwrap(), None, "the mark is of another version");
    })
    .await;
}

/// Each step of it happens once, in the first call.
pub async fn host_trust_is_recorded_once(store: Store) {
    let begin = |old_wrappers_trust_system| {
        SettingsChange::BeginHostTrust(HostTrust { old_wrappers_trust_system, ..HostTrust::NONE })
    };
    let recorded = || async { store.settings_fetch().await.unwrap().host_trust };
    people::changes_nothing(&store, async {
        for change in [SettingsChange::TrustSystem { since: at(1) }, SettingsChange::Switch(Some(at(1)))] {
            assert_eq!(store.settings_change(&change, &noted()).await.unwrap(), None, "nothing is recorded yet");
        }
    })
    .await;
    let begun = race(6, |number| {
        let (node, change) = (Arc::clone(&store), begin(number % 2 == 1));
        async move { (number, node.settings_change(&change, &noted()).await.unwrap()) }
    })
    .await;
    let first: Vec<_> = begun.iter().filter(|(_, settings)| settings.is_some()).collect();
    assert_eq!(first.len(), 1);
    assert_eq!(recorded().await.unwrap().old_wrappers_trust_system, first[0].0 % 2 == 1);

    let since = |number: usize| at(10 + number as i64);
    let made = race(6, |number| {
        let (node, change) = (Arc::clone(&store), SettingsChange::TrustSystem { since: since(number) });
        async move { (number, node.settings_change(&change, &noted()).await.unwrap()) }
    })
    .await;
    let first: Vec<_> = made.iter().filter(|(_, settings)| settings.is_some()).collect();
    assert_eq!(first.len(), 1);
    assert_eq!(recorded().await.unwrap().system_since, Some(since(first[0].0)));

    for (change, fits) in [(None, false), (Some(at(20)), true), (Some(at(21)), false), (None, true), (None, false)] {
        let changed = store.settings_change(&SettingsChange::Switch(change), &noted()).await.unwrap();
        assert_eq!(changed.is_some(), fits, "{change:?}");
    }
    let left = recorded().await.unwrap();
    assert!(left.switched_at.is_none() && left.system_since.is_some(), "{left:?}");
}

pub async fn racing_changes_of_the_settings_undo_nothing(store: Store) {
    settings_race(&[Arc::clone(&store)]).await;
}

/// The kill switch is turned on while releases are recorded and a mark is cleared, on any of the nodes.
pub async fn settings_race(nodes: &[Store]) {
    for round in 0..20_u64 {
        let mark = SettingsChange::MarkRestored(RestoredLogin { version: round, backup_of: at(0) });
        nodes[0].settings_change(&mark, &noted()).await.unwrap();
        nodes[0].settings_change(&kill_switch(false), &noted()).await.unwrap();
        race(6, |number| {
            let node = Arc::clone(&nodes[number % nodes.len()]);
            let change = match number {
                0 => SettingsChange::KillSwitch { disabled: true, reason: Some("stop".into()) },
                1 => SettingsChange::ClearRestored { version: round },
                _ => SettingsChange::ClientRelease(ClientRelease {
                    version: format!("0.{round}.0"),
                    checked_at: at(number as i64),
                }),
            };
            async move { node.settings_change(&change, &noted()).await.unwrap().unwrap() }
        })
        .await;
        let settings = nodes[0].settings_fetch().await.unwrap();
        assert!(settings.api_disabled, "round {round}: the kill switch was undone");
        assert_eq!(settings.api_disabled_reason.as_deref(), Some("stop"));
        assert_eq!(settings.restored_login, None, "round {round}: the mark came back");
        assert_eq!(settings.client_release.unwrap().version, format!("0.{round}.0"));
    }
}

pub async fn each_change_that_nodes_cache_bumps_the_epoch(store: Store) {
    let mut last = store.epoch().await.unwrap();
    for step in 0..8 {
        match step {
            0 => drop(store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap()),
            1 => drop(store.host_register(&registration(1, "h1.test", "b"), &noted()).await.unwrap()),
            2 => drop(store.host_change(HostId(1), &HostChange::default(), at(1), &noted()).await.unwrap()),
            3 => drop(store.host_bind_ip(HostId(1), &key("b"), ip("192.0.2.1"), 64, at(1), &noted()).await.unwrap()),
            4 => drop(store.installer_redeem(&token("b"), &key("b"), at(1), ip("192.0.2.1"), &noted()).await.unwrap()),
            5 => drop(
                store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap(),
            ),
            6 => drop(store.settings_change(&kill_switch(true), &noted()).await.unwrap()),
            _ => drop(store.host_remove(HostId(1), at(2), &noted()).await.unwrap()),
        }
        let now = store.epoch().await.unwrap();
        assert!(now > last, "step {step}");
        last = now;
    }
}

pub async fn what_nodes_do_not_cache_leaves_the_epoch_alone(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.1"), 64, at(1), &noted()).await.unwrap();
    store.installer_redeem(&token("a"), &key("a"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    replaced(store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap());
    let epoch = store.epoch().await.unwrap();
    store.telemetry_append(Uuid::new_v4(), 1, &[seen(1, 1, 1, None)]).await.unwrap();
    store.host_bind_ip(HostId(1), &key("a"), ip("192.0.2.2"), 64, at(2), &noted()).await.unwrap();
    store.installer_redeem(&token("a"), &key("a"), at(2), ip("192.0.2.1"), &noted()).await.unwrap();
    store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("2"), &noted()).await.unwrap();
    store.host_remove(HostId(9), at(2), &noted()).await.unwrap();
    let probe = probes::claim(1, ProbeTrigger::Daily);
    store.probe_claim(&probe, Some(&noted())).await.unwrap();
    store.probe_finish(probe.id, &probes::outcome(ProbeState::Fail, 2), Some(&noted())).await.unwrap();
    assert_eq!(store.epoch().await.unwrap(), epoch);
}

pub async fn only_what_changed_is_told(store: Store) {
    for number in 1..=3 {
        store
            .host_register(&registration(number, &format!("h{number}.test"), &number.to_string()), &noted())
            .await
            .unwrap();
    }
    replaced(store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap());
    store.settings_change(&kill_switch(true), &noted()).await.unwrap();

    let all = store.changes_since(Epoch(0)).await.unwrap();
    assert_eq!((all.hosts.len(), all.install_tokens.len()), (3, 3));
    assert_eq!(all.canonical, store.canonical_fetch().await.unwrap());
    assert_eq!(all.settings, Some(Settings { api_disabled: true, ..Settings::default() }));
    assert_eq!(all.epoch, store.epoch().await.unwrap());

    let none = store.changes_since(all.epoch).await.unwrap();
    assert!(is_empty(&none), "{none:?}");
    assert_eq!(none.epoch, all.epoch);

    store.host_change(HostId(2), &HostChange::default(), at(1), &noted()).await.unwrap();
    store.host_change(HostId(2), &HostChange::default(), at(2), &noted()).await.unwrap();
    let one = store.changes_since(all.epoch).await.unwrap();
    assert_eq!(one.hosts, [store.host_fetch(HostId(2)).await.unwrap().unwrap()], "each row once, in its present state");
    assert!(one.install_tokens.is_empty() && one.canonical.is_none() && one.settings.is_none());

    store.installer_redeem(&token("3"), &key("3"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    let spent = store.changes_since(one.epoch).await.unwrap();
    assert!(spent.hosts.is_empty());
    assert_eq!(spent.install_tokens.len(), 1);
    assert!(spent.install_tokens[0].redeemed_at.is_some());

    store.host_remove(HostId(1), at(3), &noted()).await.unwrap();
    let gone = store.changes_since(spent.epoch).await.unwrap();
    assert_eq!(
        gone.hosts.iter().map(|host| (host.id, host.removed_at)).collect::<Vec<_>>(),
        [(HostId(1), Some(at(3)))]
    );
    assert_eq!(gone.install_tokens.iter().map(|told| told.revoked_at).collect::<Vec<_>>(), [Some(at(3))]);

    let present = store.canonical_fetch().await.unwrap().unwrap();
    let place = Place::new("auth_payloads", "body", present.id);
    store.sealed_value_replace(&place, &present.body, &sealed(2, "new")).await.unwrap();
    let resealed = store.changes_since(gone.epoch).await.unwrap();
    assert_eq!(resealed.canonical.unwrap().body, sealed(2, "new"));
    assert!(resealed.hosts.is_empty());

    let ahead = store.changes_since(Epoch(u64::MAX)).await.unwrap();
    assert!(is_empty(&ahead));
    assert_eq!(ahead.epoch, store.epoch().await.unwrap(), "a node must see that it is ahead");
}

pub async fn a_follower_misses_nothing_among_racing_writers(store: Store) {
    let follower = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let mut epoch = Epoch(0);
            let mut hosts = HashMap::new();
            let mut tokens = HashMap::new();
            let mut canonical = None;
            let mut told = 0;
            loop {
                let changes = store.changes_since(epoch).await.unwrap();
                assert!(changes.epoch >= epoch);
                assert!(changes.epoch > epoch || is_empty(&changes), "changes come with a new epoch");
                told += changes.hosts.len();
                let ids: HashSet<_> = changes.hosts.iter().map(|host| host.id).collect();
                assert_eq!(ids.len(), changes.hosts.len(), "each row once");
                hosts.extend(changes.hosts.into_iter().map(|host| (host.id, host)));
                tokens.extend(changes.install_tokens.into_iter().map(|token| (token.digest, token)));
                canonical = changes.canonical.or(canonical);
                assert!(
                    hosts.values().all(|host: &Host| tokens.contains_key(&keys_token(host))),
                    "a host comes together with the token of its key's registration"
                );
                epoch = changes.epoch;
                if changes.settings.is_some() {
                    return (hosts, tokens, canonical, told);
                }
                tokio::task::yield_now().await;
            }
        }
    });
    race(8, |number| {
        let store = Arc::clone(&store);
        async move {
            for round in 0..20 {
                let id = number as u64 + 1;
                let tag = format!("{number}.{round}");
                store.host_register(&registration(id, &format!("h{id}.test"), &tag), &noted()).await.unwrap();
                store.installer_redeem(&token(&tag), &key(&tag), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
                store
                    .canonical_replace(
                        &ReplaceCondition::Version((round > 0).then_some(round)),
                        &new_canonical(&tag),
                        &noted(),
                    )
                    .await
                    .unwrap();
            }
        }
    })
    .await;
    // The follower stops at this change, so it has seen all changes before it.
    store.settings_change(&kill_switch(true), &noted()).await.unwrap();
    let (hosts, tokens, canonical, told) = follower.await.unwrap();
    let all = store.changes_since(Epoch(0)).await.unwrap();
    assert_eq!(hosts, all.hosts.into_iter().map(|host| (host.id, host)).collect());
    assert_eq!(tokens.len(), 160);
    assert_eq!(tokens, all.install_tokens.into_iter().map(|token| (token.digest, token)).collect());
    assert_eq!(canonical, all.canonical);
    assert!(told <= 160, "a host is reported at most once per change");
}

/// The token of the registration that gave the host its present key.
fn keys_token(host: &Host) -> Digest {
    let mut tags = (0..20).map(|round| format!("{}.{round}", host.id.0 - 1));
    token(&tags.find(|tag| registration(1, "h.test", tag).key_digest == host.key_digest).unwrap())
}

fn is_empty(changes: &Changes) -> bool {
    changes.hosts.is_empty()
        && changes.install_tokens.is_empty()
        && changes.canonical.is_none()
        && changes.settings.is_none()
}
