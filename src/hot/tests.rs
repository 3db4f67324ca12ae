use std::sync::atomic::AtomicBool;

use super::*;
use crate::platform::System;
use crate::records::conformance::{
    self, at, fqdn, ip, kill_switch, new_canonical, noted, registration, replaced, sealed, seen, token,
};
use crate::records::embedded::Embedded;
use crate::records::{Host, HostChange, ReplaceCondition, prelude::*};

fn open(dir: &tempfile::TempDir) -> Hot {
    Hot::open(dir.path(), &System).unwrap()
}

fn records(dir: &tempfile::TempDir) -> Embedded {
    Embedded::open(&dir.path().join("records")).unwrap()
}

async fn follow(hot: &Hot, records: &Embedded) {
    hot.apply(&records.changes_since(hot.epoch()).await.unwrap()).unwrap();
    assert_eq!(hot.epoch(), records.epoch().await.unwrap());
}

fn key(tag: &str) -> Digest {
    registration(1, "h.test", tag).key_digest
}

fn host(id: u64, tag: &str) -> Host {
    conformance::host(id, &format!("h{id}.test"), tag)
}

fn changes(epoch: u64, hosts: Vec<Host>) -> Changes {
    Changes { epoch: Epoch(epoch), hosts, ..Changes::default() }
}

#[tokio::test]
async fn what_the_records_hold_is_found_here_and_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(&dir);
    records.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let version = replaced(
        records.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap(),
    );
    records.settings_change(&kill_switch(true), &noted()).await.unwrap();
    {
        let hot = open(&dir);
        assert_eq!((hot.epoch(), hot.canonical()), (Epoch(0), None));
        assert!(!hot.settings().api_disabled);
        follow(&hot, &records).await;
    }
    let hot = open(&dir);
    assert_eq!(hot.epoch(), records.epoch().await.unwrap());
    let host = hot.host_by_key(&key("a")).unwrap().unwrap();
    assert_eq!((host.id, host.fqdn.as_str(), &host.api_key), (HostId(1), "h1.test", &sealed(1, "key a")));
    assert!(Arc::ptr_eq(&host, &hot.host_by_id(HostId(1)).unwrap().unwrap()));
    assert_eq!(hot.canonical().as_deref(), Some(&version));
    assert!(hot.settings().api_disabled);
    assert_eq!(hot.install_token(&token("a")).unwrap().unwrap().host, HostId(1));
    assert!(hot.host_by_key(&key("b")).unwrap().is_none());
    assert!(hot.host_by_id(HostId(2)).unwrap().is_none());
    assert_eq!(hot.install_token(&token("b")).unwrap(), None);
}

#[tokio::test]
async fn a_replaced_or_removed_key_is_gone_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (hot, records) = (open(&dir), records(&dir));
    for called_before in [true, false] {
        let (first, second) = (format!("{called_before} 1"), format!("{called_before} 2"));
        let id = 1 + u64::from(called_before);
        let name = format!("h{id}.test");
        records.host_register(&registration(id, &name, &first), &noted()).await.unwrap();
        follow(&hot, &records).await;
        if called_before {
            assert!(hot.host_by_key(&key(&first)).unwrap().is_some());
        }
        records.host_register(&registration(id, &name, &second), &noted()).await.unwrap();
        follow(&hot, &records).await;
        assert!(hot.host_by_key(&key(&first)).unwrap().is_none());
        assert_eq!(hot.install_token(&token(&first)).unwrap().unwrap().revoked_at, Some(at(0)));
        if called_before {
            assert!(hot.host_by_key(&key(&second)).unwrap().is_some());
        }
        records.host_remove(HostId(id), at(1), &noted()).await.unwrap();
        follow(&hot, &records).await;
        assert!(hot.host_by_key(&key(&second)).unwrap().is_none());
        assert!(hot.host_by_id(HostId(id)).unwrap().is_none());
    }
}

#[test]
fn an_imported_host_is_found_by_either_key_until_it_gets_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let hot = open(&dir);
    let imported = Host { imported_key_digest: Some(key("imported")), ..host(1, "a") };
    hot.apply(&changes(1, vec![imported])).unwrap();
    let by_key = hot.host_by_key(&key("a")).unwrap().unwrap();
    let by_imported = hot.host_by_key(&key("imported")).unwrap().unwrap();
    assert!(Arc::ptr_eq(&by_key, &by_imported));
    hot.apply(&changes(2, vec![host(1, "b")])).unwrap();
    assert!(hot.host_by_key(&key("a")).unwrap().is_none());
    assert!(hot.host_by_key(&key("imported")).unwrap().is_none());
    assert_eq!(hot.host_by_key(&key("b")).unwrap().unwrap().id, HostId(1));
    assert_eq!(hot.cache.rows(hosts::KEY).count(), 1, "the old keys are removed");
}

#[test]
fn hosts_are_counted_by_state_through_changes_restarts_and_resets() {
    let dir = tempfile::tempdir().unwrap();
    let states = |active, unbound, insecure| HostStates { active, unbound, insecure, disabled: 0 };
    let bound = |id: u64| {
        let mut host = host(id, &id.to_string());
        host.rules.bound_ip = Some(ip("192.0.2.1"));
        host
    };
    let insecure = |id: u64| {
        let mut host = bound(id);
        host.rules.secure = false;
        host
    };
    {
        let hot = open(&dir);
        assert_eq!(hot.host_states().unwrap(), states(0, 0, 0));
        let all = (1..=1200).map(|id| host(id, &id.to_string())).collect();
        hot.apply(&changes(1, all)).unwrap();
        assert_eq!(hot.host_states().unwrap(), states(0, 1200, 0));
        for epoch in [2, 2] {
            hot.apply(&changes(epoch, vec![bound(1), bound(2), insecure(3)])).unwrap();
            assert_eq!(hot.host_states().unwrap(), states(2, 1197, 1), "applied twice, counted once");
        }
        let gone = |id| Host { removed_at: Some(at(1)), ..host(id, &id.to_string()) };
        hot.apply(&changes(3, vec![gone(1), gone(3), gone(4), gone(4)])).unwrap();
        assert_eq!(hot.host_states().unwrap(), states(1, 1196, 0));
        // An older version left no such row.
        hot.cache.write(|change| change.remove(super::states::STATES)).unwrap();
    }
    let hot = open(&dir);
    assert_eq!(hot.host_states().unwrap(), states(1, 1196, 0));
    hot.reset().unwrap();
    assert_eq!(hot.host_states().unwrap(), states(0, 0, 0));
    hot.apply(&changes(4, vec![bound(9)])).unwrap();
    assert_eq!(hot.host_states().unwrap(), states(1, 0, 0));
}

#[test]
fn changes_may_be_applied_twice_and_overtaken_ones_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let hot = open(&dir);
    hot.apply(&changes(5, vec![host(1, "old")])).unwrap();
    for _ in 0..2 {
        hot.apply(&changes(9, vec![host(1, "new")])).unwrap();
    }
    hot.apply(&changes(5, vec![host(1, "old")])).unwrap();
    assert_eq!(hot.epoch(), Epoch(9));
    assert!(hot.host_by_key(&key("old")).unwrap().is_none());
    assert!(hot.host_by_key(&key("new")).unwrap().is_some());
}

/// A host that is being loaded must not come back with its previous key.
#[test]
fn no_race_brings_a_replaced_key_back() {
    let dir = tempfile::tempdir().unwrap();
    let hot = open(&dir);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut round = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    for id in 1..=4 {
                        drop(hot.host_by_key(&key(&format!("{id} {}", round % 300))).unwrap());
                        drop(hot.host_by_id(HostId(id)).unwrap());
                    }
                }
            });
        }
        let last = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for epoch in 1..300u64 {
                let id = epoch % 4 + 1;
                // The host is removed and registered again, so that it leaves the map and is loaded each time.
                let gone = Host { removed_at: Some(at(1)), ..host(id, &format!("{id} {}", epoch.saturating_sub(4))) };
                hot.apply(&changes(2 * epoch, vec![gone])).unwrap();
                assert!(hot.host_by_id(HostId(id)).unwrap().is_none());
                hot.apply(&changes(2 * epoch + 1, vec![host(id, &format!("{id} {epoch}"))])).unwrap();
                let old = key(&format!("{id} {}", epoch.saturating_sub(4)));
                assert!(epoch <= 4 || hot.host_by_key(&old).unwrap().is_none(), "epoch {epoch}");
                let now = hot.host_by_id(HostId(id)).unwrap().unwrap();
                assert!(Arc::ptr_eq(&now, &hot.host_by_key(&key(&format!("{id} {epoch}"))).unwrap().unwrap()));
            }
        }));
        stop.store(true, Ordering::SeqCst);
        last.unwrap();
    });
}

#[tokio::test]
async fn calls_are_counted_through_changes_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(&dir);
    records.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    {
        let hot = open(&dir);
        follow(&hot, &records).await;
        let host = hot.host_by_key(&key("a")).unwrap().unwrap();
        let in_hand = InHand { last_refresh: "2026-11-21T12:00:00Z", digest: &key("login") };
        assert_eq!(host.seen(at(1), Some(in_hand), Some("0.63.0"), None).activity.api_calls, 1);
        assert_eq!(host.seen(at(2), None, None, Some("2026.1")).activity.api_calls, 2);
        records.host_change(HostId(1), &HostChange::default(), at(3), &noted()).await.unwrap();
        follow(&hot, &records).await;
        let changed = hot.host_by_key(&key("a")).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&host, &changed));
        assert_eq!(changed.seen(at(4), None, None, None).activity.api_calls, 3);
        assert_eq!(host.seen(at(5), None, None, None).activity.api_calls, 4, "a holder of the former state counts on");

        let expected = Telemetry::Seen {
            host: HostId(1),
            calls: 4,
            last_seen: at(5),
            last_refresh: Some("2026-11-21T12:00:00Z".into()),
            digests: [key("login")].into_iter().collect(),
            client_version: Some("0.63.0".into()),
            wrapper_version: Some("2026.1".into()),
            wrapper_fetched_at: None,
        };
        let gathered = hot.gather_seen(usize::MAX);
        assert_eq!(gathered, [expected]);
        assert_eq!(hot.gather_seen(usize::MAX), []);
        assert_eq!(changed.seen(at(6), None, None, None).activity.api_calls, 5);
        hot.outbox_append(gathered).await.unwrap();
        hot.outbox_append(hot.gather_seen(usize::MAX)).await.unwrap();
    }
    let hot = open(&dir);
    let host = hot.host_by_key(&key("a")).unwrap().unwrap();
    let activity = host.activity();
    assert_eq!((activity.api_calls, activity.last_seen), (5, Some(at(6))));
    assert_eq!(activity.client_version.as_deref(), Some("0.63.0"));
    assert_eq!(host.seen(at(7), None, None, None).activity.api_calls, 6);
}

#[tokio::test]
async fn a_rebuilt_cache_goes_on_from_what_the_records_counted() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(&dir);
    for id in [1, 2] {
        records.host_register(&registration(id, &format!("h{id}.test"), &id.to_string()), &noted()).await.unwrap();
    }
    records.telemetry_append(Uuid::new_v4(), 1, &[seen(1, 40, 1, Some("0.1"))]).await.unwrap();
    let hot = open(&dir);
    follow(&hot, &records).await;
    // One call came in before the records were asked for the counts.
    let host = hot.host_by_key(&key("1")).unwrap().unwrap();
    host.seen(at(2), None, None, None);
    let lacking = hot.hosts_without_activity().unwrap();
    assert_eq!(lacking, [HostId(1), HostId(2)]);
    for id in lacking {
        hot.set_activities(&[(id, records.host_activity(id).await.unwrap())]).unwrap();
    }
    assert_eq!(hot.hosts_without_activity().unwrap(), []);
    assert_eq!(host.seen(at(3), None, None, None).activity.api_calls, 42);
    assert_eq!(hot.host_by_key(&key("2")).unwrap().unwrap().seen(at(3), None, None, None).activity.api_calls, 1);
    hot.outbox_append(hot.gather_seen(usize::MAX)).await.unwrap();
    drop((host, hot));
    assert_eq!(open(&dir).host_by_key(&key("1")).unwrap().unwrap().activity().api_calls, 42);
}

#[tokio::test]
async fn hot_state_of_another_format_is_built_anew_and_keeps_its_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(&dir);
    records.host_register(&registration(1, "h1.test", "1"), &noted()).await.unwrap();
    let node = {
        let hot = open(&dir);
        follow(&hot, &records).await;
        hot.outbox_append(vec![seen(1, 3, 1, None)]).await.unwrap();
        hot.cache.write(|change| change.put(FORMAT, &(PRESENT_FORMAT + 1))).unwrap();
        hot.node()
    };
    let hot = open(&dir);
    assert_eq!((hot.epoch(), hot.outbox_depth(), hot.node()), (Epoch(0), 1, node));
    follow(&hot, &records).await;
    assert_eq!(hot.hosts_without_activity().unwrap(), [HostId(1)]);
    drop(hot);
    assert_eq!(open(&dir).epoch(), records.epoch().await.unwrap(), "it is rebuilt only once");
}

/// The second format had the outbox in the same store. An upgrade of the state has copied it to its new place.
#[tokio::test]
async fn nothing_is_left_of_hot_state_that_held_the_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(&dir);
    records.host_register(&registration(1, "h1.test", "1"), &noted()).await.unwrap();
    let old = Store::rebuildable(&dir.path().join(CACHE)).unwrap();
    let written = old.write::<_, HotError>(|staged| {
        for (key, value) in [("format", "2"), ("epoch", "7"), ("last-batch", "1"), ("outbox/12345678", "[]")] {
            staged.insert(key, value);
        }
        Ok(())
    });
    written.unwrap();
    drop(old);
    let hot = open(&dir);
    assert_eq!((hot.epoch(), hot.outbox_depth(), hot.set_aside().is_some()), (Epoch(0), 0, false));
    follow(&hot, &records).await;
    assert!(hot.host_by_key(&key("1")).unwrap().is_some());
    let known = [FORMAT, EPOCH, HOST, hosts::KEY, hosts::UNKNOWN, TOKEN, super::states::STATES, outbox::COUNTED];
    for row in hot.cache.rows("") {
        let key = row.unwrap().0;
        assert!(key == "sum" || known.iter().any(|known| key.starts_with(known)), "{key:?} is left");
    }
}

#[test]
fn those_that_wait_longest_are_gathered_first() {
    let dir = tempfile::tempdir().unwrap();
    let hot = open(&dir);
    hot.apply(&changes(1, (1..=3).map(|id| host(id, &id.to_string())).collect())).unwrap();
    let call = |id| hot.host_by_id(HostId(id)).unwrap().unwrap().seen(at(1), None, None, None);
    for id in [2, 1, 2, 3] {
        call(id);
    }
    let gathered = |limit| -> Vec<_> {
        let gathered = hot.gather_seen(limit).into_iter();
        gathered
            .map(|telemetry| match telemetry {
                Telemetry::Seen { host, calls, .. } => (host.0, calls),
                Telemetry::Noted { note } => panic!("{note:?}"),
            })
            .collect()
    };
    assert_eq!(gathered(2), [(2, 2), (1, 1)]);
    call(2);
    call(3);
    assert_eq!(gathered(2), [(3, 2), (2, 1)]);
    assert_eq!(gathered(2), []);
}

#[tokio::test]
async fn the_outbox_keeps_its_order_and_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let batch = |calls| vec![seen(1, calls, 1, None)];
    let node = {
        let hot = open(&dir);
        hot.outbox_append(Vec::new()).await.unwrap();
        assert_eq!(hot.outbox_depth(), 0, "an empty batch is not stored");
        for calls in 1..=300 {
            hot.outbox_append(batch(calls)).await.unwrap();
        }
        hot.node()
    };
    let hot = open(&dir);
    assert_eq!(hot.node(), node);
    assert_eq!(hot.outbox_depth(), 300);
    assert_eq!(hot.outbox_next(2).await.unwrap(), [(1, batch(1)), (2, batch(2))]);
    let all: Vec<_> = hot.outbox_next(1000).await.unwrap().into_iter().map(|(number, _)| number).collect();
    assert_eq!(all, (1..=300).collect::<Vec<_>>());
    hot.outbox_forget(299).await.unwrap();
    assert_eq!((hot.outbox_depth(), hot.outbox_next(9).await.unwrap()), (1, vec![(300, batch(300))]));
    hot.outbox_forget(300).await.unwrap();
    hot.outbox_forget(300).await.unwrap();
    assert_eq!(hot.outbox_depth(), 0);
    drop(hot);
    let hot = open(&dir);
    hot.outbox_append(batch(7)).await.unwrap();
    assert_eq!(hot.outbox_next(9).await.unwrap(), [(301, batch(7))], "a number is never used twice");
}

#[tokio::test]
async fn a_lost_outbox_makes_a_new_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(&dir).node();
    std::fs::remove_dir_all(dir.path().join(OUTBOX)).unwrap();
    assert_ne!(open(&dir).node(), node);
}

#[tokio::test]
async fn telemetry_is_in_the_records_once_however_often_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (hot, records) = (open(&dir), records(&dir));
    records.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    for _ in 0..3 {
        hot.outbox_append(vec![seen(1, 2, 1, None)]).await.unwrap();
    }
    for _ in 0..2 {
        for (number, batch) in hot.outbox_next(100).await.unwrap() {
            records.telemetry_append(hot.node(), number, &batch).await.unwrap();
        }
    }
    assert_eq!(records.host_activity(HostId(1)).await.unwrap().api_calls, 6);
}

#[tokio::test]
async fn a_cache_of_other_records_is_dropped_and_the_outbox_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (hot, records) = (open(&dir), records(&dir));
    assert!(!hot.belongs_to("ours").unwrap());
    records.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    replaced(records.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap());
    records.settings_change(&kill_switch(true), &noted()).await.unwrap();
    follow(&hot, &records).await;
    let host = hot.host_by_key(&key("a")).unwrap().unwrap();
    host.seen(at(1), None, None, None);
    hot.outbox_append(hot.gather_seen(usize::MAX)).await.unwrap();
    assert!(!hot.belongs_to("ours").unwrap());
    assert_eq!(hot.epoch(), records.epoch().await.unwrap());

    assert!(hot.belongs_to("others").unwrap());
    assert_eq!((hot.epoch(), hot.canonical()), (Epoch(0), None));
    assert!(!hot.settings().api_disabled);
    assert!(hot.host_by_key(&key("a")).unwrap().is_none());
    assert!(hot.host_by_id(HostId(1)).unwrap().is_none());
    assert_eq!(hot.install_token(&token("a")).unwrap(), None);
    assert_eq!(hot.outbox_depth(), 1);
    drop(hot);
    let hot = open(&dir);
    assert!(!hot.belongs_to("others").unwrap());
    assert_eq!((hot.epoch(), hot.canonical(), hot.outbox_depth()), (Epoch(0), None, 1));
    assert!(hot.host_by_key(&key("a")).unwrap().is_none());
    follow(&hot, &records).await;
    assert_eq!(hot.host_by_key(&key("a")).unwrap().unwrap().fqdn, fqdn("h1.test"));
}

#[tokio::test]
async fn long_expired_installer_tokens_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (hot, records) = (open(&dir), records(&dir));
    for (id, tag, expires) in [(1, "a", 100), (2, "b", 200), (3, "c", 300)] {
        let mut registration = registration(id, &format!("h{id}.test"), tag);
        registration.token.expires_at = at(expires);
        records.host_register(&registration, &noted()).await.unwrap();
    }
    records.installer_redeem(&token("a"), &key("a"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    follow(&hot, &records).await;
    assert_eq!(hot.purge_install_tokens(at(200)).unwrap(), 1);
    let left = ["a", "b", "c"].map(|tag| hot.install_token(&token(tag)).unwrap().is_some());
    assert_eq!(left, [false, true, true]);
}

#[tokio::test]
async fn nothing_is_acknowledged_that_the_disk_did_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let failing = Arc::new(AtomicBool::new(false));
    let directory = dir.path().join(CACHE);
    let cache = CacheStore::new(Store::rebuildable(&directory).unwrap());
    let outbox = Store::durable_on_failing_disk(&dir.path().join(OUTBOX), OUTBOX, Arc::clone(&failing)).unwrap();
    let hot = Hot::on(cache, outbox, directory, &System).unwrap();
    hot.outbox_append(vec![seen(1, 1, 1, None)]).await.unwrap();
    failing.store(true, Ordering::SeqCst);
    assert!(hot.outbox_append(vec![seen(1, 1, 1, None)]).await.is_err());
    failing.store(false, Ordering::SeqCst);
    assert!(!hot.healthy());
    // The batch must not be sent: after a power cut its number could be given to another batch.
    assert!(hot.outbox_next(9).await.is_err());
    let depth = hot.outbox_depth();
    assert!(hot.outbox_append(vec![seen(1, 1, 1, None)]).await.is_err());
    assert_eq!(hot.outbox_depth(), depth);
}

mod damage;
