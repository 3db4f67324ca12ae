//! kill -9 at any moment: every acknowledged change is still there.
//!
//! The child is this test binary; an environment variable tells it to act as the child.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const DIR: &str = "AUTHD_TEST_CRASH_DIR";
const ROUND: &str = "AUTHD_TEST_CRASH_ROUND";
const CHILD: &str = "records::embedded::tests::crash::child_that_is_killed";

#[derive(Default)]
struct Acknowledged {
    /// Name and tag.
    hosts: Vec<(String, String)>,
    /// Number and digest.
    versions: Vec<(u64, String)>,
}

#[tokio::test]
async fn whatever_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Acknowledged::default();
    for round in 0..12 {
        // Some rounds kill before anything was acknowledged, while the store is being opened.
        let after = [0, 1, 150, 40, 7, 300, 90, 2, 200, 25, 60, 400][round];
        kill_child_after(dir.path(), round, after, &mut all);
        let store = Embedded::open(dir.path()).unwrap();
        check(&store, &all).await;
    }
    assert!(all.hosts.len() > 100 && all.versions.len() > 50, "{} {}", all.hosts.len(), all.versions.len());
}

fn kill_child_after(dir: &Path, round: usize, after: usize, all: &mut Acknowledged) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut acknowledged = 0;
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the child is too slow");
        let line = line.unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["host", name, tag] => all.hosts.push((name.into(), tag.into())),
            ["version", number, digest] => all.versions.push((number.parse().unwrap(), digest.into())),
            ["opening"] => {}
            _ => continue,
        }
        acknowledged += 1;
        if acknowledged > after && !killed {
            // Everything that it wrote to the pipe before it died is still read: those changes were acknowledged too.
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself after {acknowledged} lines");
}

async fn check(store: &Embedded, all: &Acknowledged) {
    for (name, tag) in &all.hosts {
        let host = store.host_fetch_by_name(&fqdn(name)).await.unwrap().unwrap_or_else(|| panic!("{name} is lost"));
        assert_eq!(host.key_digest, registration(1, name, tag).key_digest);
        assert_eq!(store.host_fetch(host.id).await.unwrap(), Some(host));
    }
    let history = store.canonical_list(None, usize::MAX).await.unwrap();
    let numbers: Vec<_> = history.iter().map(|summary| summary.version).collect();
    assert_eq!(numbers, (1..=history.len() as u64).rev().collect::<Vec<_>>(), "versions have a gap");
    for (number, digest) in &all.versions {
        let version =
            store.canonical_fetch_version(*number).await.unwrap().unwrap_or_else(|| panic!("{number} is lost"));
        assert_eq!(version.summary.digest.to_string(), *digest);
        assert_eq!(version.body.as_bytes().len(), BODY);
    }
    // A change that was not acknowledged is there completely or not at all: rows, indexes and epoch agree.
    let present = store.canonical_fetch().await.unwrap();
    assert_eq!(present.as_ref().map(|present| &present.summary), history.first());
    let changes = store.changes_since(Epoch(0)).await.unwrap();
    assert_eq!(changes.canonical, present);
    assert_eq!(changes.hosts.len(), store.host_list().await.unwrap().len());
    assert_eq!(changes.install_tokens.len(), changes.hosts.len());
    let values = store.sealed_value_list_before(KeyId(u32::MAX), usize::MAX).await.unwrap();
    assert_eq!(values.len(), changes.hosts.len() + 2 * history.len());
}

const BODY: usize = 3000;

#[test]
#[ignore = "the child of whatever_was_acknowledged_survives_kill_9"]
fn child_that_is_killed() {
    let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) else { return };
    let round: u64 = round.parse().unwrap();
    say("\nopening");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Arc::new(Embedded::open(Path::new(&dir)).unwrap());
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for writer in 0..4u64 {
            let store = Arc::clone(&store);
            tasks.push(tokio::spawn(async move {
                for number in 0..100_000u64 {
                    if writer == 0 {
                        store_version(&store).await
                    } else {
                        register(&store, round, writer, number).await
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

async fn store_version(store: &Embedded) {
    let mut new = new_canonical("1");
    new.digest = Digest::of(new.id.as_bytes());
    new.body = Sealed::from_bytes(vec![1; BODY]);
    let present = store.canonical_fetch().await.unwrap().map(|present| present.summary.version);
    let made = replaced(store.canonical_replace(&ReplaceCondition::Version(present), &new, &noted()).await.unwrap());
    say(&format!("version {} {}", made.summary.version, made.summary.digest));
}

async fn register(store: &Embedded, round: u64, writer: u64, number: u64) {
    let id = round * 10_000_000 + writer * 1_000_000 + number + 1;
    let (name, tag) = (format!("h{id}.test"), id.to_string());
    store.host_register(&registration(id, &name, &tag), &noted()).await.unwrap();
    say(&format!("host {name} {tag}"));
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}
