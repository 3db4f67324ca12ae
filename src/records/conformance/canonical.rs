use super::*;
use crate::model::instant::Instant;

pub async fn the_first_version_needs_that_there_is_none(store: Store) {
    assert_eq!(store.canonical().await.unwrap(), None);
    assert_eq!(
        store.replace_canonical(&Condition::Version(Some(1)), &new_canonical("1"), &noted()).await.unwrap(),
        Replacement::Conflict(None)
    );
    let first =
        replaced(store.replace_canonical(&Condition::Version(None), &new_canonical("1"), &noted()).await.unwrap());
    assert_eq!(first.summary.version, 1);
    assert_eq!(store.canonical().await.unwrap(), Some(first.clone()));
    let conflict = store.replace_canonical(&Condition::Version(None), &new_canonical("2"), &noted()).await.unwrap();
    assert_eq!(conflict, Replacement::Conflict(Some(first)));
}

pub async fn racing_replacements_make_one_version(store: Store) {
    replaced(store.replace_canonical(&Condition::Version(None), &new_canonical("1"), &noted()).await.unwrap());
    let answers = race(50, |number| {
        let store = Arc::clone(&store);
        async move {
            store
                .replace_canonical(&Condition::Version(Some(1)), &new_canonical(&number.to_string()), &noted())
                .await
                .unwrap()
        }
    })
    .await;
    let present = store.canonical().await.unwrap().unwrap();
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
                store.replace_canonical(&Condition::Version(expected), &new, &noted()).await.unwrap()
            {
                expected = present.map(|present| present.summary.version);
            }
        }
    })
    .await;
    let versions: Vec<_> = store.canonical_history(100).await.unwrap().iter().map(|summary| summary.version).collect();
    assert_eq!(versions, (1..=10).rev().collect::<Vec<_>>());
}

/// A login of this instant, to be stored if it is newer.
fn newer(last_refresh: &str) -> (Condition, NewCanonical) {
    let condition = Condition::OlderThan(Instant::parse(last_refresh).unwrap());
    (condition, NewCanonical { last_refresh: last_refresh.into(), ..new_canonical("1") })
}

pub async fn only_a_newer_login_replaces_an_older_one(store: Store) {
    // The spelling does not count, the nanosecond does.
    for (last_refresh, replaces) in [
        ("2026-11-21T12:00:00.000000001Z", true),
        ("2026-11-21T12:00:00Z", false),
        ("2026-11-21T14:00:00.000000001+02:00", false),
        ("2026-11-21T12:00:00.0000000019Z", false),
        ("2026-11-21T13:00:00.000000002+01:00", true),
        ("2026-11-21T12:00:00.000000001Z", false),
        ("2026-11-20T23:59:59Z", false),
    ] {
        let before = store.canonical().await.unwrap();
        let (condition, new) = newer(last_refresh);
        let answer = store.replace_canonical(&condition, &new, &noted()).await.unwrap();
        if replaces {
            assert_eq!(Some(replaced(answer)), store.canonical().await.unwrap(), "{last_refresh}");
        } else {
            assert_eq!(answer, Replacement::Conflict(before.clone()), "{last_refresh}");
            assert_eq!(store.canonical().await.unwrap(), before, "{last_refresh}");
        }
    }
    assert_eq!(store.canonical_history(10).await.unwrap().len(), 2);
}

pub async fn racing_newer_logins_make_one_line(store: Store) {
    const RACERS: usize = 64;
    let answers = race(RACERS, |number| {
        let store = Arc::clone(&store);
        async move {
            // Eight to a nanosecond, in no order.
            let (condition, new) = newer(&format!("2026-11-21T12:00:00.{:09}Z", 1 + number * 29 % RACERS / 8));
            (new.id, store.replace_canonical(&condition, &new, &noted()).await.unwrap())
        }
    })
    .await;
    let mut line = store.canonical_history(100).await.unwrap();
    line.reverse();
    let numbers: Vec<_> = line.iter().map(|summary| summary.version).collect();
    assert_eq!(numbers, (1..=line.len() as u64).collect::<Vec<_>>(), "no gap");
    let instants: Vec<_> = line.iter().map(|summary| Instant::parse(&summary.last_refresh).unwrap()).collect();
    assert!(instants.is_sorted_by(|earlier, later| earlier < later), "each is newer than the one before: {instants:?}");
    let newest = Instant::parse(&format!("2026-11-21T12:00:00.{:09}Z", RACERS / 8)).unwrap();
    assert_eq!(instants.last(), Some(&newest), "the newest of all was stored");
    let mut told = Vec::new();
    for (id, answer) in answers {
        match answer {
            Replacement::Replaced { version, epoch } => {
                assert_eq!((version.id, epoch > Epoch(0)), (id, true));
                assert_eq!(store.canonical_version(version.summary.version).await.unwrap(), Some(version.clone()));
                told.push(version.summary.version);
            }
            Replacement::Conflict(present) => assert!(present.is_some()),
        }
    }
    told.sort_unstable();
    assert_eq!(told, numbers, "whoever was told so is in the line, and nobody else");
}

pub async fn a_replacement_tells_the_epoch_it_stands_at(store: Store) {
    store.change_settings(&kill_switch(false), &noted()).await.unwrap();
    let new = new_canonical("1");
    for _ in 0..2 {
        let answer = store.replace_canonical(&Condition::Version(None), &new, &noted()).await.unwrap();
        let Replacement::Replaced { epoch, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(epoch, store.epoch().await.unwrap());
    }
}

pub async fn a_retried_replacement_answers_as_it_did_then(store: Store) {
    let new = new_canonical("1");
    let first = store.replace_canonical(&Condition::Version(None), &new, &noted()).await.unwrap();
    replaced(store.replace_canonical(&Condition::Version(Some(1)), &new_canonical("2"), &noted()).await.unwrap());
    let again = store.replace_canonical(&Condition::Version(None), &new, &noted()).await.unwrap();
    assert_eq!(replaced(again.clone()), replaced(first));
    assert!(matches!(again, Replacement::Replaced { epoch: Epoch(0), .. }), "it is not canonical any more");
    assert_eq!(store.canonical().await.unwrap().unwrap().summary.version, 2, "and changes nothing");
}

pub async fn every_version_is_kept_and_the_newest_comes_first(store: Store) {
    let mut made = Vec::new();
    for number in 0..5u64 {
        let mut new = new_canonical(&number.to_string());
        new.source = match number {
            0 => Source::Admin { by: "ops".into() },
            1 => Source::Runner { of: 1 },
            2 => Source::Rollback { by: "ops".into(), of: 1 },
            _ => Source::Host { id: HostId(7), fqdn: fqdn("h7.test") },
        };
        made.push(replaced(
            store.replace_canonical(&Condition::Version((number > 0).then_some(number)), &new, &noted()).await.unwrap(),
        ));
    }
    for version in &made {
        assert_eq!(store.canonical_version(version.summary.version).await.unwrap().as_ref(), Some(version));
    }
    assert_eq!(store.canonical_version(0).await.unwrap(), None);
    assert_eq!(store.canonical_version(6).await.unwrap(), None);
    let newest_first: Vec<_> = made.iter().rev().map(|version| version.summary.clone()).collect();
    assert_eq!(store.canonical_history(100).await.unwrap(), newest_first);
    assert_eq!(store.canonical_history(2).await.unwrap(), newest_first[..2]);
}

pub async fn a_large_body_comes_back_whole(store: Store) {
    let mut expected = None;
    for len in [64 * 1024, 1024 * 1024] {
        let mut new = new_canonical("1");
        new.body = Sealed::from_bytes((0..len).map(|byte: u32| byte as u8).collect());
        let made = replaced(store.replace_canonical(&Condition::Version(expected), &new, &noted()).await.unwrap());
        assert!(made.body == new.body);
        assert!(store.canonical().await.unwrap().unwrap() == made);
        expected = Some(made.summary.version);
    }
}
