use super::*;

pub async fn a_batch_is_applied_once(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_register(&registration(2, "h2.test", "b"), &noted()).await.unwrap();
    let node = Uuid::new_v4();
    let batch = [seen(1, 2, 10, Some("0.1")), seen(2, 5, 11, None), seen(1, 1, 12, None)];
    for _ in 0..3 {
        store.telemetry_append(node, 4, &batch).await.unwrap();
    }
    store.telemetry_append(node, 3, &batch).await.unwrap();
    let activity = store.host_activity(HostId(1)).await.unwrap();
    assert_eq!((activity.api_calls, activity.last_seen), (3, Some(at(12))));
    assert_eq!(activity.client_version.as_deref(), Some("0.1"), "a value that is not reported stays");
    assert_eq!(activity.digests.as_slice(), [key("0.1")]);
    assert_eq!(store.host_activity(HostId(2)).await.unwrap().api_calls, 5);
    store.telemetry_append(node, 5, &batch).await.unwrap();
    assert_eq!(store.host_activity(HostId(1)).await.unwrap().api_calls, 6);

    let answers = race(20, |_| {
        let store = Arc::clone(&store);
        async move { store.telemetry_append(node, 6, &[seen(2, 1, 20, None)]).await }
    })
    .await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(store.host_activity(HostId(2)).await.unwrap().api_calls, 11);
}

pub async fn nodes_count_apart(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    for node in [Uuid::new_v4(), Uuid::new_v4()] {
        store.telemetry_append(node, 0, &[seen(1, 1, 1, None)]).await.unwrap();
    }
    assert_eq!(store.host_activity(HostId(1)).await.unwrap().api_calls, 2);
}

pub async fn later_sightings_win_whatever_the_order(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.telemetry_append(Uuid::new_v4(), 1, &[seen(1, 1, 20, Some("new"))]).await.unwrap();
    store.telemetry_append(Uuid::new_v4(), 1, &[seen(1, 1, 10, Some("old"))]).await.unwrap();
    let activity = store.host_activity(HostId(1)).await.unwrap();
    assert_eq!((activity.api_calls, activity.last_seen), (2, Some(at(20))));
    assert_eq!(activity.client_version.as_deref(), Some("new"));
}

pub async fn telemetry_of_no_host_is_dropped(store: Store) {
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.telemetry_append(Uuid::new_v4(), 1, &[seen(1, 3, 1, None)]).await.unwrap();
    store.host_remove(HostId(1), at(1), &noted()).await.unwrap();
    store.telemetry_append(Uuid::new_v4(), 1, &[seen(1, 1, 1, None), seen(2, 1, 1, None)]).await.unwrap();
    assert_eq!(store.host_activity(HostId(1)).await.unwrap().api_calls, 3, "the count from before the removal");
    assert_eq!(store.host_activity(HostId(2)).await.unwrap(), HostActivity::default());
}
