use super::*;

pub async fn the_first_version_needs_that_there_is_none(store: Store) {
    assert_eq!(store.canonical().await.unwrap(), None);
    assert_eq!(store.replace_canonical(Some(1), &new_canonical("1")).await.unwrap(), Replacement::Conflict(None));
    let first = replaced(store.replace_canonical(None, &new_canonical("1")).await.unwrap());
    assert_eq!(first.summary.version, 1);
    assert_eq!(store.canonical().await.unwrap(), Some(first.clone()));
    let conflict = store.replace_canonical(None, &new_canonical("2")).await.unwrap();
    assert_eq!(conflict, Replacement::Conflict(Some(first)));
}

pub async fn racing_replacements_make_one_version(store: Store) {
    replaced(store.replace_canonical(None, &new_canonical("1")).await.unwrap());
    let answers = race(50, |number| {
        let store = Arc::clone(&store);
        async move { store.replace_canonical(Some(1), &new_canonical(&number.to_string())).await.unwrap() }
    })
    .await;
    let present = store.canonical().await.unwrap().unwrap();
    assert_eq!(present.summary.version, 2);
    let won = answers.iter().filter(|answer| **answer == Replacement::Replaced(present.clone())).count();
    let lost = answers.iter().filter(|answer| **answer == Replacement::Conflict(Some(present.clone()))).count();
    assert_eq!((won, lost), (1, 49));
}

pub async fn version_numbers_have_no_gap_under_racing_writers(store: Store) {
    race(10, |number| {
        let store = Arc::clone(&store);
        async move {
            let new = new_canonical(&number.to_string());
            let mut expected = None;
            while let Replacement::Conflict(present) = store.replace_canonical(expected, &new).await.unwrap() {
                expected = present.map(|present| present.summary.version);
            }
        }
    })
    .await;
    let versions: Vec<_> = store.canonical_history(100).await.unwrap().iter().map(|summary| summary.version).collect();
    assert_eq!(versions, (1..=10).rev().collect::<Vec<_>>());
}

pub async fn a_retried_replacement_answers_as_it_did_then(store: Store) {
    let new = new_canonical("1");
    let first = store.replace_canonical(None, &new).await.unwrap();
    replaced(store.replace_canonical(Some(1), &new_canonical("2")).await.unwrap());
    assert_eq!(store.replace_canonical(None, &new).await.unwrap(), first);
    assert_eq!(store.canonical().await.unwrap().unwrap().summary.version, 2, "and changes nothing");
}

pub async fn every_version_is_kept_and_the_newest_comes_first(store: Store) {
    let mut made = Vec::new();
    for number in 0..5u64 {
        let mut new = new_canonical(&number.to_string());
        new.source = match number {
            0 => Source::Admin { by: "ops".into() },
            _ => Source::Host { id: HostId(7), fqdn: fqdn("h7.test") },
        };
        made.push(replaced(store.replace_canonical((number > 0).then_some(number), &new).await.unwrap()));
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
        let made = replaced(store.replace_canonical(expected, &new).await.unwrap());
        assert!(made.body == new.body);
        assert!(store.canonical().await.unwrap().unwrap() == made);
        expected = Some(made.summary.version);
    }
}
