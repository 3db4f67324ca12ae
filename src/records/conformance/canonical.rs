use super::*;
use crate::model::audit::AuditFilter;

pub async fn the_first_version_needs_that_there_is_none(store: Store) {
    assert_eq!(store.canonical_fetch().await.unwrap(), None);
    assert_eq!(
        store.canonical_replace(&ReplaceCondition::Version(Some(1)), &new_canonical("1"), &noted()).await.unwrap(),
        Replacement::Conflict(None)
    );
    let first = replaced(
        store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap(),
    );
    assert_eq!(first.summary.version, 1);
    assert_eq!(store.canonical_fetch().await.unwrap(), Some(first.clone()));
    let conflict =
        store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("2"), &noted()).await.unwrap();
    assert_eq!(conflict, Replacement::Conflict(Some(first)));
}

pub async fn racing_replacements_make_one_version(store: Store) {
    replaced(store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap());
    let answers = race(50, |number| {
        let store = Arc::clone(&store);
        async move {
            store
                .canonical_replace(&ReplaceCondition::Version(Some(1)), &new_canonical(&number.to_string()), &noted())
                .await
                .unwrap()
        }
    })
    .await;
    let present = store.canonical_fetch().await.unwrap().unwrap();
    assert_eq!(present.summary.version, 2);
    let won = answers
        .iter()
        .filter(|answer| matches!(answer, Replacement::Replaced { version, .. } if *version == present))
        .count();
    let lost = answers.iter().filter(|answer| **answer == Replacement::Conflict(Some(present.clone()))).count();
    assert_eq!((won, lost), (1, 49));
}

pub async fn version_numbers_have_no_gap_under_racing_writers(store: Store) {
    race(10, |number| {
        let store = Arc::clone(&store);
        async move {
            let new = new_canonical(&number.to_string());
            let mut expected = None;
            while let Replacement::Conflict(present) =
                store.canonical_replace(&ReplaceCondition::Version(expected), &new, &noted()).await.unwrap()
            {
                expected = present.map(|present| present.summary.version);
            }
        }
    })
    .await;
    let versions: Vec<_> =
        store.canonical_list(None, 100).await.unwrap().iter().map(|summary| summary.version).collect();
    assert_eq!(versions, (1..=10).rev().collect::<Vec<_>>());
}

/// How a store operation decides: against one version, and again if another one has become canonical.
pub async fn racing_writers_that_decide_again_make_one_line(store: Store) {
    const RACERS: usize = 64;
    let answers = race(RACERS, |number| {
        let store = Arc::clone(&store);
        async move {
            // Eight calls for each nanosecond, in no order.
            let own = format!("2026-11-21T12:00:00.{:09}Z", 1 + number * 29 % RACERS / 8);
            let new = NewCanonical { last_refresh: own.clone(), ..new_canonical("1") };
            let mut expected = None;
            loop {
                match store.canonical_replace(&ReplaceCondition::Version(expected), &new, &noted()).await.unwrap() {
                    Replacement::Replaced { version, epoch } => {
                        assert_eq!((version.id, epoch > Epoch(0)), (new.id, true));
                        return Some(version);
                    }
                    Replacement::Conflict(present) => {
                        let present = present.expect("a conflict has a canonical version").summary;
                        assert_ne!(Some(present.version), expected, "it conflicts with another version");
                        if present.last_refresh >= own {
                            return None;
                        }
                        expected = Some(present.version);
                    }
                }
            }
        }
    })
    .await;
    let mut line = store.canonical_list(None, 100).await.unwrap();
    line.reverse();
    let numbers: Vec<_> = line.iter().map(|summary| summary.version).collect();
    assert_eq!(numbers, (1..=line.len() as u64).collect::<Vec<_>>(), "no gap");
    assert!(line.is_sorted_by(|earlier, later| earlier.last_refresh < later.last_refresh), "{line:?}");
    assert_eq!(line.last().unwrap().last_refresh, format!("2026-11-21T12:00:00.{:09}Z", RACERS / 8));
    let mut replaced: Vec<_> = answers.into_iter().flatten().collect();
    replaced.sort_by_key(|version| version.summary.version);
    let made: Vec<_> = replaced.iter().map(|version| version.summary.version).collect();
    assert_eq!(made, numbers, "exactly the acknowledged versions are stored");
    for version in replaced {
        assert_eq!(store.canonical_fetch_version(version.summary.version).await.unwrap(), Some(version));
    }
}

pub async fn a_replacement_tells_the_epoch_it_stands_at(store: Store) {
    store.settings_change(&kill_switch(false), &noted()).await.unwrap();
    let new = new_canonical("1");
    for _ in 0..2 {
        let answer = store.canonical_replace(&ReplaceCondition::Version(None), &new, &noted()).await.unwrap();
        let Replacement::Replaced { epoch, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(epoch, store.epoch().await.unwrap());
    }
}

pub async fn a_retried_replacement_answers_as_it_did_then(store: Store) {
    let new = new_canonical("1");
    let first = store.canonical_replace(&ReplaceCondition::Version(None), &new, &noted()).await.unwrap();
    replaced(
        store.canonical_replace(&ReplaceCondition::Version(Some(1)), &new_canonical("2"), &noted()).await.unwrap(),
    );
    let again = store.canonical_replace(&ReplaceCondition::Version(None), &new, &noted()).await.unwrap();
    assert_eq!(replaced(again.clone()), replaced(first));
    assert!(matches!(again, Replacement::Replaced { epoch: Epoch(0), .. }), "the version is no longer canonical");
    assert_eq!(store.canonical_fetch().await.unwrap().unwrap().summary.version, 2, "a repeated call changes nothing");
}

pub async fn versions_come_back_as_stored_and_the_newest_comes_first(store: Store) {
    let mut made = Vec::new();
    for number in 0..5u64 {
        let mut new = new_canonical(&number.to_string());
        new.source = match number {
            0 => CanonicalSource::Admin { by: "ops".into() },
            1 => CanonicalSource::Runner { of: 1 },
            2 => CanonicalSource::Rollback { by: "ops".into(), of: 1 },
            3 => CanonicalSource::Override { by: "ops".into() },
            _ => CanonicalSource::Host { id: HostId(7), fqdn: fqdn("h7.test") },
        };
        made.push(replaced(
            store
                .canonical_replace(&ReplaceCondition::Version((number > 0).then_some(number)), &new, &noted())
                .await
                .unwrap(),
        ));
    }
    for version in &made {
        assert_eq!(store.canonical_fetch_version(version.summary.version).await.unwrap().as_ref(), Some(version));
    }
    assert_eq!(store.canonical_fetch_version(0).await.unwrap(), None);
    assert_eq!(store.canonical_fetch_version(6).await.unwrap(), None);
    let newest_first: Vec<_> = made.iter().rev().map(|version| version.summary.clone()).collect();
    assert_eq!(store.canonical_list(None, 100).await.unwrap(), newest_first);
    assert_eq!(store.canonical_list(None, 2).await.unwrap(), newest_first[..2]);
}

pub async fn a_large_body_comes_back_whole(store: Store) {
    let mut expected = None;
    for len in [64 * 1024, 1024 * 1024] {
        let mut new = new_canonical("1");
        new.body = Sealed::from_bytes((0..len).map(|byte: u32| byte as u8).collect());
        let made =
            replaced(store.canonical_replace(&ReplaceCondition::Version(expected), &new, &noted()).await.unwrap());
        assert!(made.body == new.body);
        assert!(store.canonical_fetch().await.unwrap().unwrap() == made);
        expected = Some(made.summary.version);
    }
}

/// Makes versions that were stored at these seconds; the last one becomes canonical.
async fn make_versions(store: &Store, stored_at: &[i64]) -> Vec<CanonicalVersion> {
    let mut made = Vec::new();
    for (number, seconds) in (0..).zip(stored_at) {
        let new = NewCanonical { at: at(*seconds), ..new_canonical(&(number + 1).to_string()) };
        let condition = ReplaceCondition::Version((number > 0).then_some(number));
        made.push(replaced(store.canonical_replace(&condition, &new, &noted()).await.unwrap()));
    }
    made
}

async fn numbers(store: &Store) -> Vec<u64> {
    store.canonical_list(None, 1000).await.unwrap().iter().map(|summary| summary.version).collect()
}

fn retention(newest: u64, since: i64) -> Retention {
    Retention { newest, since: at(since) }
}

pub async fn versions_are_listed_page_by_page(store: Store) {
    make_versions(&store, &[0; 7]).await;
    let (mut before, mut pages) = (None, Vec::new());
    loop {
        let page = store.canonical_list(before, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.version);
        pages.push(page.iter().map(|summary| summary.version).collect::<Vec<_>>());
    }
    assert_eq!(pages, [vec![7, 6, 5], vec![4, 3, 2], vec![1]]);
    assert_eq!(store.canonical_list(Some(0), 3).await.unwrap(), []);
    assert_eq!(store.canonical_list(Some(u64::MAX), 1).await.unwrap()[0].version, 7);
    assert_eq!(store.canonical_list(None, 0).await.unwrap(), []);
}

pub async fn versions_that_nothing_keeps_are_pruned(store: Store) {
    let made = make_versions(&store, &[0, 10, 20, 30, 40, 50]).await;
    let (epoch, note) = (store.epoch().await.unwrap(), note("auth.prune"));
    // Retentions that keep all six versions.
    for kept in [retention(6, 99), retention(60, 99), retention(1, 0)] {
        assert_eq!(store.canonical_prune(&kept, 10, &note).await.unwrap(), [] as [u64; 0]);
    }
    let filter = AuditFilter { action: Some("auth.prune".into()), ..<_>::default() };
    assert_eq!(store.audit_list(&filter, 9).await.unwrap(), [], "nothing was removed, so there is no entry");

    assert_eq!(store.canonical_prune(&retention(2, 99), 3, &note).await.unwrap(), [1, 2, 3], "as many as the limit");
    assert_eq!(store.canonical_prune(&retention(2, 99), 3, &note).await.unwrap(), [4]);
    assert_eq!(store.canonical_prune(&retention(2, 99), 3, &note).await.unwrap(), [] as [u64; 0]);
    assert_eq!(numbers(&store).await, [6, 5]);
    assert_eq!(store.canonical_fetch_version(4).await.unwrap(), None);
    assert_eq!(store.canonical_fetch_version(5).await.unwrap().as_ref(), Some(&made[4]));
    assert_eq!(store.canonical_fetch().await.unwrap().as_ref(), Some(&made[5]));
    assert_eq!(store.epoch().await.unwrap(), epoch, "nodes cache only the canonical version");
    let noted = store.audit_list(&filter, 9).await.unwrap();
    let targets: Vec<_> = noted.iter().map(|entry| entry.note.target.as_deref()).collect();
    assert_eq!(targets, [Some("4-4"), Some("1-3")]);
    // The numbers continue after the pruned versions.
    let new = NewCanonical { at: at(60), ..new_canonical("7") };
    let next =
        replaced(store.canonical_replace(&ReplaceCondition::Version(Some(6)), &new, &self::noted()).await.unwrap());
    assert_eq!(next.summary.version, 7);
}

pub async fn the_canonical_version_is_never_pruned(store: Store) {
    let made = make_versions(&store, &[0, 10, 20]).await;
    for newest in [0, 1] {
        store.canonical_prune(&retention(newest, 99), 10, &noted()).await.unwrap();
        assert_eq!(numbers(&store).await, [3]);
        assert_eq!(store.canonical_fetch().await.unwrap().as_ref(), Some(&made[2]));
    }
    // In a copy the canonical version may be older than the newest one.
    let mut rows = copying::export(&store).await;
    let newer = CanonicalVersion {
        id: Uuid::new_v4(),
        summary: CanonicalSummary { version: 4, ..made[2].summary.clone() },
        body: sealed(1, "newer"),
        entries: Vec::new(),
    };
    let place = rows.iter().rposition(|row| matches!(row, copy::Row::Versions(_))).unwrap();
    rows.insert(place + 1, copy::Row::Versions(Box::new(newer)));
    let filling = Filling { id: Uuid::new_v4(), above: store.epoch().await.unwrap() };
    assert!(store.fill_begin(&filling, true).await.unwrap());
    copying::fill(&store, &filling, &rows).await;
    store.fill_finish(&filling, &noted()).await.unwrap();
    assert_eq!(store.canonical_prune(&retention(1, 99), 10, &noted()).await.unwrap(), [] as [u64; 0]);
    assert_eq!(numbers(&store).await, [4, 3]);
    assert_eq!(store.canonical_fetch().await.unwrap().as_ref(), Some(&made[2]));
}

/// After the clock was set, numbers and times differ in their order.
pub async fn a_version_stored_lately_is_kept_whatever_its_number(store: Store) {
    make_versions(&store, &[50, 10, 60, 20, 30]).await;
    assert_eq!(store.canonical_prune(&retention(1, 50), 10, &noted()).await.unwrap(), [2, 4]);
    assert_eq!(numbers(&store).await, [5, 3, 1]);
    assert_eq!(store.canonical_prune(&retention(1, 51), 10, &noted()).await.unwrap(), [1]);
    assert_eq!(numbers(&store).await, [5, 3]);
}

pub async fn what_is_sealed_of_a_pruned_version_holds_no_data_key(store: Store) {
    let key = |id: u32| SealingKey { id: KeyId(id), sealed: sealed(0, "key"), created_at: at(0) };
    for id in [1, 2] {
        assert!(store.sealing_key_add(&key(id), &noted()).await.unwrap());
    }
    let old = &make_versions(&store, &[0]).await[0];
    let new = NewCanonical { body: sealed(2, "body"), entries: Vec::new(), at: at(9), ..new_canonical("2") };
    replaced(store.canonical_replace(&ReplaceCondition::Version(Some(1)), &new, &noted()).await.unwrap());
    assert!(!store.sealing_key_remove(KeyId(1)).await.unwrap(), "the first version is sealed with it");
    assert_eq!(store.canonical_prune(&retention(1, 5), 10, &noted()).await.unwrap(), [1]);
    assert_eq!(store.sealed_value_list_before(KeyId(2), 10).await.unwrap(), []);
    let place = Place::new("auth_payloads", "body", old.id);
    assert!(
        !store.sealed_value_replace(&place, &old.body, &sealed(2, "body")).await.unwrap(),
        "a rotation that had read the value continues"
    );
    let place = Place::new("auth_entries", "token", format!("{}/api.openai.com/v1", old.id));
    assert!(!store.sealed_value_replace(&place, &old.entries[0].token, &sealed(2, "entry")).await.unwrap());
    assert!(store.sealing_key_remove(KeyId(1)).await.unwrap());
    let copied = copying::export(&store).await;
    assert_eq!(copied.iter().filter(|row| matches!(row, copy::Row::Versions(_))).count(), 1);
}
