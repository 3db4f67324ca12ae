//! All operations at once, with many kills: every acknowledged change is there, once, and nothing that was revoked
//! comes back.
//!
//! `AUTHD_TORTURE_SECONDS` (20; `make torture`: 600) sets the duration. There is one kill in six seconds, and at least
//! eight. `AUTHD_TORTURE_SEED` repeats the clients' choices, but not the scheduling.

mod clients;
mod ledger;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::daemon::{BOUND, Daemon};
use crate::support::random::Random;
use crate::support::within::look_within;

use clients::{Client, Run};
use ledger::Ledger;

/// The number of clients of each kind; 32 in total.
const ENROLLING: u64 = 12;
const STORING: u64 = 8;
const RETRIEVING: u64 = 11;
/// The smallest number of acknowledged changes between two kills.
const SOME: u64 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torture_loses_nothing_and_does_nothing_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = number("AUTHD_TORTURE_SECONDS").unwrap_or(20);
    let seed = number("AUTHD_TORTURE_SEED").unwrap_or_else(Random::fresh_seed);
    let kills = (seconds / 6).max(8);
    println!("torture: {seconds} s, {kills} kills, AUTHD_TORTURE_SEED={seed}");
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);

    let mut daemon = Daemon::prepare(&[("AUTH__MIN_TOKEN_LENGTH", "8")]);
    daemon.log_level = Some("error");
    daemon.launch();
    daemon.admin();
    let run = Arc::new(Run::default());
    let mut random = Random(seed);
    let mut clients: Vec<Client> = Vec::new();
    for (kind, count) in [
        (clients::Kind::Enrol, ENROLLING),
        (clients::Kind::Store, STORING),
        (clients::Kind::Retrieve, RETRIEVING),
        (clients::Kind::Switch, 1),
    ] {
        for n in 0..count {
            clients.push(Client::new(kind, n, random.next()));
        }
    }
    for client in &mut clients {
        client.enrol_first(&daemon, &run).await;
    }

    for kill in 0..kills {
        let left = end.saturating_duration_since(Instant::now()) / u32::try_from(kills - kill).unwrap();
        // Some kills soon after the start, some late.
        let alive = left.mul_f64(0.2 + 1.2 * random.share()).max(Duration::from_millis(30));
        run.running.store(true, Ordering::SeqCst);
        let mut tasks = JoinSet::new();
        for mut client in clients.drain(..) {
            client.connect(&daemon);
            let run = run.clone();
            tasks.spawn(async move {
                client.work(&run).await;
                client
            });
        }
        let before = run.changes();
        tokio::time::sleep(alive).await;
        // Waits for acknowledged changes: a slow machine has only finished its handshakes by now.
        let begun = Instant::now();
        while run.changes() < before + SOME {
            assert!(begun.elapsed() < BOUND, "nothing is acknowledged");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        daemon.kill();
        run.running.store(false, Ordering::SeqCst);
        while let Some(client) = tasks.join_next().await {
            clients.push(client.unwrap());
        }
        clients.sort_by_key(Client::name);
        daemon.launch();
        run.settle_the_switch(&daemon).await;
        for client in &mut clients {
            client.connect(&daemon);
            client.settle(&run).await;
        }
        run.check_versions(&daemon).await;
    }
    let mut ledgers: Vec<Ledger> = Vec::new();
    for client in &mut clients {
        client.check_every_key(&run).await;
        ledgers.push(std::mem::take(&mut client.ledger));
    }
    daemon.kill();

    let state = daemon.state_dir();
    let within = tokio::task::spawn_blocking(move || look_within(&state)).await.unwrap();
    let (mut alive, mut removed, mut dead) = (0, 0, 0);
    for ledger in &ledgers {
        for host in ledger.hosts.values() {
            match &host.key {
                Some(key) => {
                    assert_eq!(within.hosts.get(&host.name), Some(key), "{} is lost or has another key", host.name)
                }
                None => assert!(!within.hosts.contains_key(&host.name), "{} is back", host.name),
            }
            alive += usize::from(host.key.is_some());
            removed += usize::from(host.key.is_none());
            dead += host.dead.len();
        }
    }
    assert_eq!(within.hosts.len(), alive, "hosts that were not registered");
    let updated = run.updated.lock().await;
    for digest in updated.iter() {
        assert!(within.versions.contains(digest), "the version {digest} is lost");
    }
    assert!(
        within.versions.len() <= updated.len() + usize::try_from(kills * STORING).unwrap(),
        "versions that were not stored"
    );
    let counts = run.counts();
    println!(
        "torture: {kills} kills in {:.0?}: {counts}; {alive} hosts there, {removed} removed, {dead} keys dead, {} of {} \
         versions acknowledged; seed {seed}",
        begun.elapsed(),
        updated.len(),
        within.versions.len(),
    );
    assert!(counts.enough(), "too few changes: {counts}");
}
