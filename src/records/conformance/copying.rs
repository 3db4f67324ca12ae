use time::macros::offset;

use super::people::{ISSUER, identity, session, through, user};
use super::probes::{claim, outcome};
use super::*;
use crate::records::copy::{Row, Table, Tally};

/// Fills the store with rows of every table, with times finer than every store keeps.
pub async fn furnish(store: &Store) {
    let fine = (at(0) + 123_456_789.nanoseconds()).to_offset(offset!(+2));
    let authority = |number: u8, role, slot| Authority {
        id: Uuid::from_bytes([number; 16]),
        role,
        slot,
        certificate_pem: format!("certificate {number}"),
        private_key: sealed(1, &format!("authority {number}")),
        cross_certificate_pem: None,
        created_at: Some(fine),
    };
    let seed = Seed {
        sealing_key: SealingKey { id: KeyId(1), sealed: sealed(0, "key"), created_at: fine },
        authorities: vec![
            authority(9, AuthorityRole::Server, AuthoritySlot::Active),
            authority(3, AuthorityRole::Client, AuthoritySlot::Active),
        ],
        server_key: sealed(1, "server"),
    };
    assert!(store.initialise(&seed, &noted()).await.unwrap());
    for (id, address) in [(7, "zoe@example.test"), (2, "ada@example.test")] {
        assert!(store.user_add(&User { created_at: fine, ..user(id, address) }, &noted()).await.unwrap());
    }
    for identity in [identity(ISSUER, "a ", 2), identity(ISSUER, "a", 7)] {
        let identity = ExternalIdentity { linked_at: fine, ..identity };
        assert_eq!(store.identity_link(&identity, &noted()).await.unwrap(), LinkOutcome::Linked);
    }
    // One valid session, one whose generation is over, and one that ended.
    for session in [through(session(1, 2), "a "), session(3, 7), session(2, 2)] {
        let session = Session { last_used_at: fine, ..session };
        assert_eq!(store.session_begin(&session, &noted()).await.unwrap(), SessionOutcome::Begun);
    }
    store.session_end(session(2, 2).id, fine, &noted()).await.unwrap();
    for (number, name) in ["z", "a"].iter().enumerate() {
        let certificate = AdminCertificate {
            user: None,
            fingerprint: token(name),
            name: (*name).into(),
            serial: "01".into(),
            issued_at: at(number as i64),
            expires_at: at(1000),
            revoked_at: None,
            authority: Some(Uuid::from_bytes([3; 16])),
        };
        store.certificate_record(&certificate, &noted()).await.unwrap();
    }
    store.certificate_revoke(&token("a"), fine, &noted()).await.unwrap();
    store.certificate_set_user(&token("z"), Some(UserId(2)), &noted()).await.unwrap().unwrap();
    for id in 1..=5 {
        let registration = registration(id, &format!("h{id}.test"), &id.to_string());
        let registration = Registration { at: fine, ..registration };
        match id {
            1 | 5 => {
                let owner = Owner { user: UserId(if id == 5 { 2 } else { 7 }), at_most: 1 };
                store.host_register_owned(&registration, &owner, &noted()).await.unwrap();
            }
            _ => drop(store.host_register(&registration, &noted()).await.unwrap()),
        }
    }
    // The user's host 1 is disabled too.
    store.user_change(UserId(7), &UserChange::Disable { keep_hosts: false }, fine, Some(&noted())).await.unwrap();
    let change = HostChange {
        expires_at: Some(Some(fine)),
        allowed_networks: Some(vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()]),
        ..HostChange::default()
    };
    store.host_change(HostId(1), &change, fine, &noted()).await.unwrap();
    store.host_bind_ip(HostId(2), &key("2"), ip("2001:db8::1"), 64, fine, &noted()).await.unwrap();
    store.host_bind_ip(HostId(2), &key("2"), ip("192.0.2.2"), 64, fine, &noted()).await.unwrap();
    store.installer_redeem(&token("2"), &key("2"), at(1), ip("192.0.2.2"), &noted()).await.unwrap();
    store
        .telemetry_append(Uuid::from_bytes([7; 16]), 41, &[seen(2, 3, 5, Some("0.1")), seen(4, 1, 5, None)])
        .await
        .unwrap();
    // The identities of a host that stays, of one whose key is purged, and of one that may be restored.
    for id in [1, 3, 4] {
        let (key, identity) = (key(&id.to_string()), sealed(1, &format!("identity {id}")));
        assert!(store.host_set_agent_identity(HostId(id), &key, &identity, &noted()).await.unwrap());
    }
    store.host_remove(HostId(3), at(2), &noted()).await.unwrap();
    store.host_purge_removed(at(3)).await.unwrap();
    store.host_remove(HostId(4), at(4), &noted()).await.unwrap();
    store.host_register(&registration(6, "h4.test", "6"), &noted()).await.unwrap();
    for tag in ["1", "2"] {
        let mut new = NewCanonical { at: fine, ..new_canonical(tag) };
        if tag == "2" {
            new.source = CanonicalSource::Runner { of: 1 };
        }
        let condition = ReplaceCondition::Version((tag == "2").then_some(1));
        replaced(store.canonical_replace(&condition, &new, &noted()).await.unwrap());
    }
    // One finished probe, one cut short, and one running.
    let found = ProbeOutcome { finished_at: fine, adopted: Some(2), ..outcome(ProbeState::Fail, 0) };
    for (number, found) in [(1, Some(found)), (2, None), (3, None)] {
        let until = if number == 3 { fine + 100.seconds() } else { fine };
        let probe = ProbeClaim { id: Uuid::from_bytes([number; 16]), at: fine, until, ..claim(0, ProbeTrigger::Daily) };
        let probe = if number == 1 { probe } else { ProbeClaim { trigger: ProbeTrigger::Retry, ..probe } };
        assert_eq!(store.probe_claim(&probe, None).await.unwrap(), ClaimOutcome::Begun);
        if let Some(found) = found {
            assert!(store.probe_finish(probe.id, &found, None).await.unwrap());
        }
    }
    for change in [
        SettingsChange::KillSwitch { disabled: true, reason: Some("why".into()) },
        SettingsChange::ClientRelease(ClientRelease { version: "0.170.0".into(), checked_at: fine }),
        SettingsChange::MarkRestored(RestoredLogin { version: 1, backup_of: fine }),
        SettingsChange::BackupVerified(VerifiedBackup { made_at: fine, has_keys: true }),
        SettingsChange::PublicUrl("https://a.test".into()),
        SettingsChange::BeginHostTrust(HostTrust::NONE),
        SettingsChange::TrustSystem { since: fine },
        SettingsChange::Switch(Some(fine)),
    ] {
        store.settings_change(&change, &noted()).await.unwrap();
    }
}

pub async fn export(store: &Store) -> Vec<Row> {
    let (sender, mut chunks) = tokio::sync::mpsc::channel(1);
    let from = Arc::clone(store);
    let exporting = tokio::spawn(async move { from.copy_export(sender).await });
    let mut rows = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        rows.extend(chunk);
    }
    exporting.await.unwrap().unwrap();
    rows
}

fn filling(above: u64) -> Filling {
    Filling { id: Uuid::new_v4(), above: Epoch(above) }
}

pub async fn fill(store: &Store, filling: &Filling, rows: &[Row]) {
    for rows in rows.chunks(7) {
        store.fill_append(filling, rows).await.unwrap();
    }
}

fn counts(rows: &[Row]) -> std::collections::BTreeMap<Table, copy::Count> {
    let mut tally = Tally::default();
    tally.add_rows(rows).unwrap();
    tally.counts()
}

/// Truncates to the microsecond, which every store keeps.
fn cut(at: Option<OffsetDateTime>) -> Option<i128> {
    at.map(|at| at.unix_timestamp_nanos() / 1000)
}

async fn is_unavailable<T: std::fmt::Debug>(call: impl Future<Output = Result<T>>) {
    let outcome = call.await;
    assert!(matches!(outcome, Err(RecordsError::Unavailable(_))), "{outcome:?}");
}

pub async fn what_was_copied_out_and_in_is_the_same(store: Store) {
    furnish(&store).await;
    let rows = export(&store).await;
    let tables: Vec<_> = rows.iter().map(Row::table).collect();
    assert!(tables.is_sorted());
    for (table, count) in counts(&rows) {
        assert!(count.rows > 0, "no rows of {}", table.name());
    }
    let before = store.state().await.unwrap();
    let activity = store.host_activity(HostId(2)).await.unwrap();
    let probes = store.probe_summary(at(0)).await.unwrap();

    let filling = filling(before.epoch.0 + 50);
    assert!(store.fill_begin(&filling, true).await.unwrap());
    fill(&store, &filling, &rows).await;
    let read_back = export(&store).await;
    assert_eq!(read_back, rows);
    assert_eq!(counts(&read_back), counts(&rows));
    store.fill_finish(&filling, &note("restore")).await.unwrap();

    let after = store.state().await.unwrap();
    assert_eq!((after.incarnation, after.standstill), (Some(filling.id), None));
    assert!(after.epoch > filling.above);
    assert!(store.is_initialised().await.unwrap());
    let told = store.changes_since(Epoch(0)).await.unwrap();
    assert_eq!((told.epoch, told.hosts.len(), told.install_tokens.len()), (after.epoch, 6, 6));
    assert_eq!(told.canonical.map(|version| version.summary.version), Some(2));
    assert_eq!((told.certificates.unwrap().len(), told.authorities.unwrap().len()), (2, 2));
    assert_eq!(told.settings.unwrap().api_disabled_reason.as_deref(), Some("why"));
    assert_eq!(
        store.changes_since(filling.above).await.unwrap().hosts.len(),
        6,
        "for a node that knew the store before"
    );

    // The filled store continues: names, tokens, numbers, the chain, and the data key of each value.
    assert_eq!(store.host_list().await.unwrap().len(), 4);
    assert_eq!(store.host_fetch_by_name(&fqdn("h4.test")).await.unwrap().unwrap().id, HostId(6));
    assert_eq!(store.host_list_removed().await.unwrap().iter().map(|host| host.id).collect::<Vec<_>>(), [HostId(4)]);
    let rules = store.host_fetch(HostId(1)).await.unwrap().unwrap().rules;
    assert_eq!((rules.allowed_networks.len(), rules.disabled, rules.disabled_with_user), (2, true, true));
    let rules = store.host_fetch(HostId(2)).await.unwrap().unwrap().rules;
    let bound = [rules.bound_ip, rules.bound_ip_other];
    assert!([ip("2001:db8::1"), ip("192.0.2.2")].iter().all(|ip| bound.contains(&Some(*ip))), "{bound:?}");
    assert_eq!(store.host_activity(HostId(2)).await.unwrap(), activity);
    let spent = store.installer_redeem(&token("2"), &key("2"), at(5), ip("192.0.2.2"), &noted()).await.unwrap();
    assert_eq!(spent, Redemption::AlreadyUsed);
    let fresh = store.installer_redeem(&token("6"), &key("6"), at(5), ip("192.0.2.2"), &noted()).await.unwrap();
    assert!(matches!(fresh, Redemption::Redeemed { .. }), "{fresh:?}");
    store.telemetry_append(Uuid::from_bytes([7; 16]), 41, &[seen(2, 3, 5, None)]).await.unwrap();
    assert_eq!(store.host_activity(HostId(2)).await.unwrap(), activity, "the batch was applied before the copy");
    let next = replaced(
        store.canonical_replace(&ReplaceCondition::Version(Some(2)), &new_canonical("3"), &noted()).await.unwrap(),
    );
    assert_eq!(next.summary.version, 3);
    let restored = store.probe_summary(at(0)).await.unwrap();
    assert_eq!((restored.validations, restored.adoptions), (1, 1));
    assert_eq!(restored.latest.as_ref().map(|probe| probe.id), Some(Uuid::from_bytes([3; 16])));
    assert_eq!(restored.latest_adoption.as_ref().map(|probe| probe.id), Some(Uuid::from_bytes([1; 16])));
    assert_eq!(
        [restored.last_failure, restored.last_daily].map(cut),
        [probes.last_failure, probes.last_daily].map(cut)
    );
    let probe = claim(2, ProbeTrigger::Store);
    let busy = store.probe_claim(&probe, None).await.unwrap();
    assert!(matches!(&busy, ClaimOutcome::Busy(probe) if probe.id == Uuid::from_bytes([3; 16])), "{busy:?}");
    let probe = claim(500, ProbeTrigger::Store);
    assert_eq!(store.probe_claim(&probe, None).await.unwrap(), ClaimOutcome::Begun);
    assert_eq!(
        store.probe_list(9).await.unwrap().iter().map(|it| it.id.as_bytes()[0]).collect::<Vec<_>>()[1..],
        [3, 2, 1]
    );
    let known = ProbeClaim { id: Uuid::from_bytes([2; 16]), ..claim(2, ProbeTrigger::Store) };
    assert_eq!(store.probe_claim(&known, None).await.unwrap(), ClaimOutcome::Begun, "the probe began before the copy");
    assert_eq!(told.users.as_ref().map(Vec::len), Some(2));
    assert_eq!(told.sessions.len(), 3);
    people_are_who_they_were(&store).await;
    let identity = |host: &Host| host.agent_identity.clone();
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().as_ref().and_then(identity), Some(sealed(1, "identity 1")));
    assert_eq!(store.host_list_removed().await.unwrap().first().and_then(identity), Some(sealed(1, "identity 4")));
    // API keys of five hosts, two agent identities, keys of two authorities, the server key, and three versions with a
    // token each.
    assert_eq!(store.sealed_value_list_before(KeyId(2), 100).await.unwrap().len(), 5 + 2 + 2 + 1 + 3 * 2);
    assert!(!store.sealing_key_remove(KeyId(1)).await.unwrap());
    let mut head = AuditHead::default();
    for entry in store.audit_list_from(1, 1000).await.unwrap() {
        head.follow(&entry).unwrap();
    }
    assert_eq!(head, store.audit_head().await.unwrap());
    assert!(
        store.audit_list(&AuditFilter { action: Some("restore".into()), ..<_>::default() }, 1).await.unwrap().len()
            == 1
    );
}

async fn people_are_who_they_were(store: &Store) {
    let users = store.user_list().await.unwrap();
    assert_eq!(
        users.iter().map(|user| (user.id.0, user.disabled, user.generation)).collect::<Vec<_>>(),
        [(2, false, 3), (7, true, 4)]
    );
    assert_eq!(users[0].password, user(2, "ada@example.test").password);
    assert_eq!(store.user_fetch_by_email(&users[1].email).await.unwrap().as_ref(), Some(&users[1]));
    assert!(!store.user_add(&user(9, "ada@example.test"), &noted()).await.unwrap());
    let sessions = store.session_list().await.unwrap();
    let known: Vec<_> = sessions.iter().map(|it| (it.id.as_bytes()[0], it.ended_at.is_some(), it.generation)).collect();
    assert_eq!(known, [(3, false, 3), (2, true, 3), (1, false, 3)], "an ended session stays ended");
    let ended = store.session_end(session(2, 2).id, at(5), &noted()).await.unwrap();
    assert_eq!(ended, None);
    assert!(store.session_end(session(1, 2).id, at(5), &noted()).await.unwrap().is_some());
    let begun = store.session_begin(&Session { token: token("other"), ..session(1, 2) }, &noted()).await.unwrap();
    assert_eq!(begun, SessionOutcome::Known, "a sign-in is not repeated");
    let linked = store.identity_fetch(ISSUER, "a ").await.unwrap().unwrap();
    assert_eq!(linked.user, UserId(2));
    let certificates = store.certificate_list().await.unwrap();
    assert_eq!(certificates.iter().map(|it| it.user).collect::<Vec<_>>(), [Some(UserId(2)), None]);
    let owner = Owner { user: UserId(2), at_most: 1 };
    let more = registration(50, "h50.test", "50");
    let refused = store.host_register_owned(&more, &owner, &noted()).await.unwrap();
    assert_eq!(refused, RegistrationOutcome::TooMany);
    assert_eq!(store.host_fetch(HostId(5)).await.unwrap().unwrap().owner, Some(UserId(2)));
}

pub async fn records_that_hold_something_are_not_filled(store: Store) {
    store.audit_append(&[note("something")]).await.unwrap();
    let before = store.state().await.unwrap();
    assert!(!store.fill_begin(&filling(0), false).await.unwrap());
    assert_eq!(store.state().await.unwrap(), before);
    assert_eq!(store.audit_head().await.unwrap().number, 1);
    store.audit_append(&[note("something")]).await.unwrap();
}

pub async fn a_filling_that_was_cut_short_is_begun_again(store: Store) {
    let first = filling(9);
    assert!(store.fill_begin(&first, false).await.unwrap());
    let version = CanonicalVersion {
        id: Uuid::new_v4(),
        summary: CanonicalSummary {
            version: 1,
            digest: key("x"),
            last_refresh: "2026-11-21T12:00:00Z".into(),
            source: CanonicalSource::Admin { by: "ops".into() },
            stored_at: at(0),
        },
        body: sealed(1, "body"),
        entries: vec![],
    };
    let rows = [Row::Hosts(host(1, "h1.test", "a")), Row::Versions(Box::new(version))];
    store.fill_append(&first, &rows).await.unwrap();

    // No call takes it for a complete store, or for an empty one.
    is_unavailable(store.is_initialised()).await;
    is_unavailable(store.state()).await;
    is_unavailable(store.check()).await;
    is_unavailable(store.audit_append(&[noted()])).await;
    is_unavailable(store.host_register(&registration(1, "h1.test", "a"), &noted())).await;
    is_unavailable(store.standstill_set(None, &noted())).await;
    let seed = Seed {
        sealing_key: SealingKey { id: KeyId(1), sealed: sealed(0, "key"), created_at: at(0) },
        authorities: vec![],
        server_key: sealed(1, "server"),
    };
    is_unavailable(store.initialise(&seed, &noted())).await;

    let second = filling(2);
    assert!(store.fill_begin(&second, false).await.unwrap());
    is_unavailable(store.fill_append(&first, &rows)).await;
    is_unavailable(store.fill_finish(&first, &noted())).await;
    assert_eq!(export(&store).await.len(), 2, "only heads and settings");
    fill(&store, &second, &rows[..1]).await;
    store.fill_finish(&second, &noted()).await.unwrap();
    is_unavailable(store.fill_finish(&second, &noted())).await;
    let state = store.state().await.unwrap();
    assert_eq!(state.incarnation, Some(second.id));
    assert!(state.epoch > first.above);
    assert_eq!((store.host_list().await.unwrap().len(), store.canonical_list(None, 9).await.unwrap().len()), (1, 0));
}

pub async fn records_that_stand_still_refuse_every_change(store: Store) {
    furnish(&store).await;
    let standstill = Standstill { reason: "it moves house".into(), since: at(7) };
    store.standstill_set(Some(&standstill), &note("stand_still")).await.unwrap();
    assert_eq!(store.state().await.unwrap().standstill.as_ref(), Some(&standstill));
    let before = export(&store).await;
    let (n, id) = (noted(), HostId(1));
    let stored = store.sealed_value_list_before(KeyId(2), 1).await.unwrap().remove(0);
    let seed = Seed {
        sealing_key: SealingKey { id: KeyId(1), sealed: sealed(0, "key"), created_at: at(0) },
        authorities: vec![],
        server_key: sealed(1, "server"),
    };
    let certificate = store.certificate_list().await.unwrap().remove(0);
    let new = registration(9, "h9.test", "9");
    let change = HostChange::default();
    let refused: Vec<(&str, Result<()>)> = vec![
        ("initialise", store.initialise(&seed, &n).await.map(drop)),
        ("check", store.check().await),
        (
            "sealing_key_add",
            store.sealing_key_add(&SealingKey { id: KeyId(2), ..seed.sealing_key.clone() }, &n).await.map(drop),
        ),
        ("sealing_key_remove", store.sealing_key_remove(KeyId(1)).await.map(drop)),
        ("sealed_value_replace", store.sealed_value_replace(&stored.0, &stored.1, &sealed(1, "new")).await.map(drop)),
        (
            "authority_roll",
            store
                .authority_roll(AuthorityRole::Server, &AuthorityStep::Retire(Uuid::from_bytes([1; 16])), &n)
                .await
                .map(drop),
        ),
        ("certificate_record", store.certificate_record(&certificate, &n).await),
        ("certificate_renew", {
            let new = AdminCertificate { fingerprint: token("new"), ..certificate.clone() };
            store.certificate_renew(&certificate.fingerprint, &new, None, &n).await.map(drop)
        }),
        ("certificate_revoke", store.certificate_revoke(&certificate.fingerprint, at(8), &n).await.map(drop)),
        ("host_register", store.host_register(&new, &n).await.map(drop)),
        ("host_remove", store.host_remove(id, at(8), &n).await.map(drop)),
        ("host_remove_owned", store.host_remove_owned(id, UserId(2), at(8), &n).await.map(drop)),
        ("host_restore", store.host_restore(HostId(4), at(0), at(8), &n).await.map(drop)),
        ("host_purge_removed", store.host_purge_removed(at(99)).await.map(drop)),
        ("host_change", store.host_change(id, &change, at(8), &n).await.map(drop)),
        ("host_bind_ip", store.host_bind_ip(id, &key("1"), ip("192.0.2.7"), 64, at(8), &n).await.map(drop)),
        ("host_set_agent_identity", {
            store.host_set_agent_identity(id, &key("1"), &sealed(1, "new"), &n).await.map(drop)
        }),
        ("canonical_prune", store.canonical_prune(&Retention { newest: 1, since: at(9) }, 9, &n).await.map(drop)),
        (
            "installer_redeem",
            store.installer_redeem(&token("6"), &key("6"), at(8), ip("192.0.2.7"), &n).await.map(drop),
        ),
        ("installer_revoke", store.installer_revoke(&token("6"), at(8), &n).await.map(drop)),
        (
            "canonical_replace",
            store.canonical_replace(&ReplaceCondition::Version(Some(2)), &new_canonical("3"), &n).await.map(drop),
        ),
        ("host_register_owned", {
            let owner = Owner { user: UserId(2), at_most: 9 };
            store.host_register_owned(&new, &owner, &n).await.map(drop)
        }),
        ("user_add", store.user_add(&user(9, "new@example.test"), &n).await.map(drop)),
        (
            "user_change",
            store.user_change(UserId(2), &UserChange::Disable { keep_hosts: false }, at(8), Some(&n)).await.map(drop),
        ),
        ("session_begin", store.session_begin(&session(9, 2), &n).await.map(drop)),
        ("session_end", store.session_end(session(1, 2).id, at(8), &n).await.map(drop)),
        ("session_touch", store.session_touch(&[(session(1, 2).id, at(99))]).await),
        ("session_purge", store.session_purge(at(9999)).await.map(drop)),
        ("identity_link", store.identity_link(&identity(ISSUER, "new", 2), &n).await.map(drop)),
        ("identity_unlink", store.identity_unlink(ISSUER, "a ", at(8), &n).await.map(drop)),
        ("certificate_set_user", store.certificate_set_user(&token("a"), Some(UserId(2)), &n).await.map(drop)),
        ("probe_claim", store.probe_claim(&claim(500, ProbeTrigger::Admin), None).await.map(drop)),
        (
            "probe_finish",
            store.probe_finish(Uuid::from_bytes([3; 16]), &outcome(ProbeState::Ok, 9), None).await.map(drop),
        ),
        ("telemetry_append", store.telemetry_append(Uuid::from_bytes([7; 16]), 42, &[seen(2, 1, 9, None)]).await),
        ("settings_change", store.settings_change(&kill_switch(false), &n).await.map(drop)),
        ("audit_append", store.audit_append(&[noted()]).await),
    ];
    for (method, outcome) in refused {
        match outcome {
            Err(RecordsError::StandsStill(told)) => assert_eq!(told, standstill, "{method}"),
            outcome => panic!("{method}: {outcome:?}"),
        }
    }
    assert_eq!(export(&store).await, before);
    assert_eq!(store.host_list().await.unwrap().len(), 4, "reads still work");

    let other = Standstill { reason: "with other words".into(), ..standstill };
    store.standstill_set(Some(&other), &note("stand_still")).await.unwrap();
    assert_eq!(store.state().await.unwrap().standstill, Some(other));
    store.standstill_set(None, &note("go_on")).await.unwrap();
    assert_eq!(store.state().await.unwrap().standstill, None);
    store.telemetry_append(Uuid::from_bytes([7; 16]), 42, &[seen(2, 1, 9, None)]).await.unwrap();
    assert_eq!(
        store.host_activity(HostId(2)).await.unwrap().api_calls,
        4,
        "the batch was not lost, and is applied once"
    );
}

/// Each registration is one host and one entry. A copy with unequal numbers of them has seen half a change.
pub async fn a_copy_is_of_one_moment(store: Store) {
    let writers: Vec<_> = (0..3_u64)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for number in 0..150 {
                    let id = writer * 1000 + number + 1;
                    let registration = registration(id * 7919 % 4001, &format!("h{id}.test"), &id.to_string());
                    store.host_register(&registration, &noted()).await.unwrap();
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let rows = export(&store).await;
        let Some(Row::Heads(heads)) = rows.first() else { panic!("{:?}", rows.first()) };
        let of = |table| rows.iter().filter(|row| row.table() == table).count() as u64;
        let found = [Table::Hosts, Table::InstallTokens, Table::AuditLog].map(of);
        assert_eq!(found, [heads.audit.number; 3]);
        seen.push(heads.audit.number);
    }
    println!("{} copies, of {seen:?} hosts", seen.len());
    for writer in writers {
        writer.await.unwrap();
    }
}
