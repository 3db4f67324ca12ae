//! Telemetry does not take part in the order of changes: no change waits for it, and each batch still counts once.

use mysql_async::prelude::Queryable as _;

use super::conformance::{at, noted, race, registration, seen};
use super::*;

async fn connection(url: &str) -> mysql_async::Conn {
    mysql_async::Conn::new(mysql_async::Opts::from_url(url).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sightings_wait_for_no_change_and_entries_do() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let records = Arc::new(open(&options(url.clone())).await.unwrap());
    records.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let mut changing = connection(&url).await;
    changing.query_drop("START TRANSACTION").await.unwrap();
    changing.query_drop("SELECT * FROM heads WHERE id = 0 FOR UPDATE").await.unwrap();
    let (node, others) = (Uuid::new_v4(), Uuid::new_v4());
    let entries = tokio::spawn({
        let records = Arc::clone(&records);
        async move { records.telemetry_append(others, 1, &[Telemetry::Noted { note: noted() }]).await }
    });
    for seq in 1..=20 {
        records.telemetry_append(node, seq, &[seen(1, 1, 1, Some("0.1"))]).await.unwrap();
    }
    assert_eq!(records.host_activity(HostId(1)).await.unwrap().api_calls, 20);
    assert!(!entries.is_finished(), "an audit entry must wait for the lock of `heads`");
    changing.query_drop("ROLLBACK").await.unwrap();
    entries.await.unwrap().unwrap();
    assert_eq!(records.audit_head().await.unwrap().number, 2);
}

/// A batch on another node has checked the store and is about to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_stands_still_once_the_telemetry_under_way_is_through() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let records = Arc::new(open(&options(url.clone())).await.unwrap());
    records.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let node = Uuid::new_v4();
    records.telemetry_append(node, 1, &[seen(1, 1, 1, None)]).await.unwrap();
    let mut under_way = connection(&url).await;
    under_way.query_drop("START TRANSACTION").await.unwrap();
    under_way.query_drop("UPDATE outbox_positions SET seq = 2").await.unwrap();

    let standstill = Standstill { reason: "it moves house".into(), since: at(7) };
    let standing = tokio::spawn({
        let (records, standstill) = (Arc::clone(&records), standstill.clone());
        async move { records.standstill_set(Some(&standstill), &noted()).await }
    });
    let waits = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'";
    let begun = std::time::Instant::now();
    while mysql_async::from_row::<u64>(server.query(waits).await.remove(0)) == 0 {
        assert!(!standing.is_finished(), "the standstill did not wait for the batch");
        assert!(begun.elapsed() < Duration::from_secs(10));
        // The server refreshes this table only if it was not read for a tenth of a second.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(records.state().await.unwrap().standstill, Some(standstill));
    under_way.query_drop("UPDATE host_auth_states SET api_calls = 5").await.unwrap();
    under_way.query_drop("COMMIT").await.unwrap();
    standing.await.unwrap().unwrap();
    // From now on the store takes no telemetry.
    let refused = records.telemetry_append(node, 3, &[seen(1, 1, 2, None)]).await;
    assert!(matches!(refused, Err(RecordsError::StandsStill(_))), "{refused:?}");
    assert_eq!(records.host_activity(HostId(1)).await.unwrap().api_calls, 5);
    records.standstill_set(None, &noted()).await.unwrap();
    records.telemetry_append(node, 3, &[seen(1, 1, 2, None)]).await.unwrap();
    assert_eq!(records.host_activity(HostId(1)).await.unwrap().api_calls, 6);
}

/// Each node sends each batch twice at once, while hosts are registered and removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_nodes_that_saw_the_same_hosts_every_batch_counts_once() {
    const NODES: usize = 4;
    const BATCHES: u64 = 25;
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let ids = 1..=40_u64;
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push((Arc::new(open(&options(url.clone())).await.unwrap()), Uuid::new_v4()));
    }
    let first = &nodes[0].0;
    for id in ids.clone() {
        first.host_register(&registration(id, &format!("h{id}.test"), &format!("a{id}")), &noted()).await.unwrap();
    }
    race(2 * NODES + 1, |number| {
        let (records, node) = nodes[number % NODES].clone();
        let ids = ids.clone();
        async move {
            if number == 2 * NODES {
                for time in 0..20 {
                    records.host_remove(HostId(40), at(time), &noted()).await.unwrap();
                    records.host_purge_removed(at(time - 10)).await.unwrap();
                    records.host_restore(HostId(40), at(-1), at(time), &noted()).await.unwrap();
                }
                return;
            }
            for seq in 0..BATCHES {
                let batch: Vec<_> = ids.clone().map(|id| seen(id, 1, seq as i64, Some(&format!("{seq}")))).collect();
                records.telemetry_append(node, seq, &batch).await.unwrap();
            }
        }
    })
    .await;
    for id in ids.clone().filter(|id| *id != 40) {
        let activity = first.host_activity(HostId(id)).await.unwrap();
        assert_eq!(activity.api_calls, NODES as u64 * BATCHES, "host {id}");
        assert_eq!(activity.digests.as_slice().len(), 3, "host {id}");
        assert_eq!(activity.last_seen, Some(at(BATCHES as i64 - 1)), "host {id}");
    }
    // The host was removed now and then: a dropped batch is not counted, and no batch is counted twice.
    assert!(first.host_activity(HostId(40)).await.unwrap().api_calls <= NODES as u64 * BATCHES);
    println!("{} batches were retried", nodes.iter().map(|(records, _)| records.conflicts()).sum::<u64>());
}
