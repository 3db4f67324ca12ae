use super::*;

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

/// The way of a store: decided against one version, and decided again where another one is canonical by now.
pub async fn racing_writers_that_decide_again_make_one_line(store: Store) {
    const RACERS: usize = 64;
    let answers = race(RACERS, |number| {
        let store = Arc::clone(&store);
        async move {
            // Eight to a nanosecond, in no order.
            let own = format!("2026-11-21T12:00:00.{:09}Z", 1 + number * 29 % RACERS / 8);
            let new = NewCanonical { last_refresh: own.clone(), ..new_canonical("1") };
            let mut expected = None;
            loop {
                match store.replace_canonical(&Condition::Version(expected), &new, &noted()).await.unwrap() {
                    Replacement::Replaced { version, epoch } => {
                        assert_eq!((version.id, epoch > Epoch(0)), (new.id, true));
                        return Some(version);
                    }
                    Replacement::Conflict(present) => {
                        let present = present.expect("one is canonical by now").summary;
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
    let mut line = store.canonical_history(100).await.unwrap();
    line.reverse();
    let numbers: Vec<_> = line.iter().map(|summary| summary.version).collect();
    assert_eq!(numbers, (1..=line.len() as u64).collect::<Vec<_>>(), "no gap");
    assert!(line.is_sorted_by(|earlier, later| earlier.last_refresh < later.last_refresh), "{line:?}");
    assert_eq!(line.last().unwrap().last_refresh, format!("2026-11-21T12:00:00.{:09}Z", RACERS / 8));
    let mut replaced: Vec<_> = answers.into_iter().flatten().collect();
    replaced.sort_by_key(|version| version.summary.version);
    let made: Vec<_> = replaced.iter().map(|version| version.summary.version).collect();
    assert_eq!(made, numbers, "exactly those that were answered so are in the line");
    for version in replaced {
        assert_eq!(store.canonical_version(version.summary.version).await.unwrap(), Some(version));
    }
}

pub async fn a_replacement_tells_the_epoch_it_stands_at(store: Store) {
    store.change_settings(&Settings::default(), &noted()).await.unwrap();
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
            3 => Source::Override { by: "ops".into() },
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
