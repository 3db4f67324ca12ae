//! Whatever damages the files of the cache, it opens and catches up with the records, and the outbox loses nothing.

use std::path::{Path, PathBuf};

use super::super::trust::{CacheMark, Trust};
use super::*;
use crate::durable::PANICS;

const HOSTS: u64 = 60;
/// The number of waiting batches, with one call each.
const WAITING: u64 = 5;

/// A prepared state and what it must contain.
struct Prepared {
    dir: tempfile::TempDir,
    records: Embedded,
    node: Uuid,
}

/// Host 1 is removed, host 2 has a new key, the kill switch is on, and the batches in the outbox are of host 3.
async fn prepared() -> Prepared {
    let dir = tempfile::tempdir().unwrap();
    let records = records(&dir);
    for id in 1..=HOSTS {
        records.host_register(&registration(id, &format!("h{id}.test"), &id.to_string()), &noted()).await.unwrap();
    }
    let mut login = new_canonical("1");
    // At least as large as any accepted login.
    login.body = sealed(1, &"x".repeat(100_000));
    replaced(records.canonical_replace(&ReplaceCondition::Version(None), &login, &noted()).await.unwrap());
    let hot = open(&dir);
    follow(&hot, &records).await;
    records.host_remove(HostId(1), at(1), &noted()).await.unwrap();
    records.host_register(&registration(2, "h2.test", "2 anew"), &noted()).await.unwrap();
    records.settings_change(&kill_switch(true), &noted()).await.unwrap();
    follow(&hot, &records).await;
    hot.set_activities(&[(HostId(3), HostActivity::default())]).unwrap();
    for seconds in 1..=WAITING {
        hot.outbox_append(vec![seen(3, 1, seconds as i64, None)]).await.unwrap();
    }
    let node = hot.node();
    Prepared { dir, records, node }
}

impl Prepared {
    /// Copies of the two stores.
    fn copied(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for store in [CACHE, OUTBOX] {
            copy_directory(&self.dir.path().join(store), &copy.path().join(store));
        }
        copy
    }

    /// Opens the copy and checks its content after it has caught up. Returns why the cache was set aside, if it was.
    async fn holds(&self, dir: &Path) -> Option<String> {
        let hot = Hot::open(dir, &System).unwrap();
        assert!(hot.epoch() <= self.records.epoch().await.unwrap());
        follow(&hot, &self.records).await;
        assert!(hot.host_by_key(&key("1")).unwrap().is_none(), "a removed host is accepted");
        assert!(hot.host_by_key(&key("2")).unwrap().is_none(), "a replaced key is accepted");
        assert_eq!(hot.host_by_key(&key("2 anew")).unwrap().map(|host| host.id), Some(HostId(2)));
        for id in 3..=HOSTS {
            let found = hot.host_by_key(&key(&id.to_string())).unwrap();
            assert_eq!(found.map(|host| host.id), Some(HostId(id)), "a host is refused");
        }
        assert_eq!(hot.host_states().unwrap().total(), HOSTS - 1);
        assert_eq!(hot.canonical().as_deref(), self.records.canonical_fetch().await.unwrap().as_ref());
        assert!(hot.settings().api_disabled, "the kill switch is off");
        assert_eq!(hot.node(), self.node);
        let waiting: Vec<_> = hot.outbox_next(100).await.unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(waiting, (1..=WAITING).collect::<Vec<_>>(), "each waiting batch must be there once");
        let calls = hot.host_by_id(HostId(3)).unwrap().unwrap().activity().api_calls;
        let asked = hot.hosts_without_activity().unwrap().contains(&HostId(3));
        assert!(calls == WAITING || asked, "{calls} calls of host 3, and the records are not asked");
        assert_eq!(hot.broken(), None);
        hot.set_aside().map(|aside| aside.cause.clone())
    }
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_directory(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// A generator that gives the same numbers for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn seed() -> u64 {
    std::env::var("AUTHD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_130)
}

async fn flips(prepared: &Prepared, cases: u64) -> Vec<Option<String>> {
    let mut numbers = Numbers(seed());
    println!("AUTHD_SEED={}", seed());
    let mut causes = Vec::new();
    for case in 0..cases {
        let dir = prepared.copied();
        let cache = dir.path().join(CACHE);
        let mut all = files(&cache);
        all.retain(|path| std::fs::metadata(path).unwrap().len() > 0);
        // Most of the flips go into the log, which holds nearly everything.
        let path =
            if case % 4 == 0 { all.swap_remove(numbers.below(all.len() as u64) as usize) } else { cache.join("db") };
        let mut bytes = std::fs::read(&path).unwrap();
        // sled makes its files longer than their content.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last as u64 + 1);
        for _ in 0..=numbers.below(3) {
            let at = numbers.below(used) as usize;
            bytes[at] ^= 1 << numbers.below(8);
        }
        std::fs::write(&path, bytes).unwrap();
        causes.push(prepared.holds(dir.path()).await);
    }
    let panicked = causes.iter().flatten().filter(|cause| cause.contains("panicked")).count();
    let found = causes.iter().flatten().count();
    println!("{cases} cases: {found} set aside, {panicked} of them because sled panicked");
    causes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bits_that_flip_in_hot_state_that_was_closed_lose_nothing() {
    let causes = flips(&prepared().await, 120).await;
    assert!(causes.iter().flatten().count() > 50, "{causes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bits_that_flip_in_hot_state_after_a_kill_lose_nothing() {
    let prepared = prepared().await;
    let hot = open(&prepared.dir);
    hot.settled().await.unwrap();
    // The state that a kill leaves.
    let copy = prepared.copied();
    drop(hot);
    for store in [CACHE, OUTBOX] {
        std::fs::remove_dir_all(prepared.dir.path().join(store)).unwrap();
        copy_directory(&copy.path().join(store), &prepared.dir.path().join(store));
    }
    let causes = flips(&prepared, 120).await;
    assert!(causes.iter().flatten().count() > 50, "{causes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_truncated_or_gone_lose_nothing() {
    let prepared = prepared().await;
    let cache = prepared.dir.path().join(CACHE);
    for file in files(&cache) {
        let length = std::fs::metadata(&file).unwrap().len();
        let name = file.strip_prefix(&cache).unwrap();
        for to in [None, Some(0), Some(length / 2), Some(length.saturating_sub(1))] {
            let dir = prepared.copied();
            let path = dir.path().join(CACHE).join(name);
            match to {
                None => std::fs::remove_file(&path).unwrap(),
                Some(to) => std::fs::File::options().write(true).open(&path).unwrap().set_len(to).unwrap(),
            }
            let cause = prepared.holds(dir.path()).await;
            println!("{}: {to:?} of {length}: {cause:?}", name.display());
            if name == Path::new("db") && to != Some(length.saturating_sub(1)) {
                assert!(cause.is_some());
            }
        }
    }
    let dir = prepared.copied();
    std::fs::remove_dir_all(dir.path().join(CACHE)).unwrap();
    assert_eq!(prepared.holds(dir.path()).await, None, "a removed cache must not be reported as damaged");
    // A file or directory of the wrong type in its place, or in the place of one of its files.
    for name in ["", "db", "lock", "conf", "blobs"] {
        let dir = prepared.copied();
        let path = dir.path().join(CACHE).join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
            std::fs::write(path.to_str().unwrap().trim_end_matches('/'), "foreign").unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir_all(path.join("foreign")).unwrap();
        }
        println!("wrong type of file in place of {name:?}");
        assert!(prepared.holds(dir.path()).await.is_some(), "{name}");
    }
}

/// An older copy of the directory: it is consistent in itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_cache_is_not_taken_for_the_one_that_was_closed() {
    let prepared = prepared().await;
    let older = prepared.copied();
    {
        let hot = open(&prepared.dir);
        hot.note_reached(at(1)).unwrap();
    }
    let dir = prepared.copied();
    std::fs::remove_dir_all(dir.path().join(CACHE)).unwrap();
    copy_directory(&older.path().join(CACHE), &dir.path().join(CACHE));
    let cause = prepared.holds(dir.path()).await;
    assert!(cause.as_ref().is_some_and(|cause| cause.contains("older")), "{cause:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_the_cache_was_left_decides_whether_it_is_used() {
    let prepared = prepared().await;
    let ours = super::super::trust::boot();
    assert!(ours.is_some());
    let other = Some("00000000-0000-0000-0000-000000000000");
    let cases = [
        ("opening", ours.as_deref(), LeftState::Opening, true, false),
        ("broken", ours.as_deref(), LeftState::Broken("worn".into()), true, false),
        ("killed", ours.as_deref(), LeftState::Open, false, true),
        ("another boot", other, LeftState::Open, false, false),
    ];
    for (name, boot, state, is_set_aside, is_used) in cases {
        let dir = prepared.copied();
        {
            let outbox = Store::durable(&dir.path().join(OUTBOX), OUTBOX).unwrap();
            super::super::trust::leave(&outbox, boot, state).unwrap();
            outbox.commit_blocking().unwrap();
        }
        {
            let hot = Hot::open(dir.path(), &System).unwrap();
            assert_eq!(hot.epoch() > Epoch(0), is_used, "{name}");
            let left = super::super::trust::left(&hot.outbox).unwrap();
            assert_eq!(left, Some(CacheMark { boot: ours.clone(), state: LeftState::Open }), "{name}");
        }
        assert_eq!(set_aside(dir.path()).len(), usize::from(is_set_aside), "{name}");
        // That open also closed it.
        let outbox = Store::durable(&dir.path().join(OUTBOX), OUTBOX).unwrap();
        let left = super::super::trust::left(&outbox).unwrap();
        let trusted = super::super::trust::trust(left, other);
        assert!(matches!(trusted, Trust::Use(Some(_))), "{name}: {trusted:?}");
        drop(outbox);
        prepared.holds(dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_it_runs_is_an_error_and_the_next_process_sets_it_aside() {
    let prepared = prepared().await;
    {
        let hot = open(&prepared.dir);
        assert!(hot.host_by_key(&key("3")).unwrap().is_some());
        PANICS.set(true);
        let unknown = hot.host_by_key(&key("4")).map(|found| found.is_some());
        let known = hot.host_by_key(&key("3")).map(|found| found.is_some());
        PANICS.set(false);
        assert!(unknown.is_err(), "{unknown:?}");
        assert!(known.is_ok_and(|known| known), "a host in memory is served");
        let cause = hot.broken().unwrap();
        assert!(cause.contains("a test asked for it"), "{cause}");
        assert!(!hot.healthy() && hot.failure().unwrap().cause.contains("a test asked for it"));
        hot.note_broken(&cause).await.unwrap();
    }
    let cause = prepared.holds(prepared.dir.path()).await;
    assert!(cause.as_ref().is_some_and(|cause| cause.contains("a test asked for it")), "{cause:?}");
    assert_eq!(prepared.holds(prepared.dir.path()).await, None, "it is set aside only once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_decoded_is_no_unknown_host() {
    let prepared = prepared().await;
    let hot = open(&prepared.dir);
    let host = hot.host_by_id(HostId(4)).unwrap().unwrap();
    hot.cache.write(|change| change.insert(hosts::host_key(HostId(5)), "{")).unwrap();
    assert!(hot.host_by_key(&key("5")).is_err());
    assert!(hot.broken().is_some());
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_that_the_cache_missed_are_counted_once() {
    let prepared = prepared().await;
    let older = prepared.copied();
    {
        let hot = open(&prepared.dir);
        for seconds in 10..13 {
            hot.outbox_append(vec![seen(3, 1, seconds, None)]).await.unwrap();
        }
        hot.settled().await.unwrap();
        copy_directory(&prepared.dir.path().join(OUTBOX), &older.path().join("new"));
        hot.outbox_forget(WAITING + 2).await.unwrap();
    }
    let with = |outbox: &Path| {
        let dir = tempfile::tempdir().unwrap();
        copy_directory(&older.path().join(CACHE), &dir.path().join(CACHE));
        copy_directory(outbox, &dir.path().join(OUTBOX));
        dir
    };
    let calls = |dir: &tempfile::TempDir| {
        let hot = open(dir);
        let calls = hot.host_by_id(HostId(3)).unwrap().unwrap().activity().api_calls;
        (calls, hot.hosts_without_activity().unwrap().contains(&HostId(3)))
    };
    let behind = with(&older.path().join("new"));
    for _ in 0..2 {
        assert_eq!(calls(&behind), (WAITING + 3, false), "the state that a kill leaves");
    }
    let outbox = prepared.dir.path().join(OUTBOX);
    {
        // Otherwise the older cache would not be used.
        let store = Store::durable(&outbox, OUTBOX).unwrap();
        super::super::trust::leave(&store, super::super::trust::boot().as_deref(), LeftState::Open).unwrap();
        store.commit_blocking().unwrap();
    }
    assert_eq!(calls(&with(&outbox)), (0, true), "the batches are removed: the records are asked");
}
