use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

mod power;
mod view;

const NAME: &str = "test";

/// Wraps a disk; runs a function before each commit.
struct After<D, F>(D, F);

impl<D: Disk, F: FnMut() -> std::result::Result<(), DiskError> + Send + 'static> Disk for After<D, F> {
    fn commit(&mut self, rows: &Layer) -> std::result::Result<Arc<dyn View>, DiskError> {
        // The store's first commit has no rows: it only gets a view.
        if !rows.is_empty() {
            (self.1)()?;
        }
        self.0.commit(rows)
    }
}

pub(super) fn durable_after(
    dir: &Path,
    name: &'static str,
    before: impl FnMut() -> std::result::Result<(), DiskError> + Send + 'static,
) -> Result<Store> {
    let lock = lock::take(dir)?;
    let disk = redb::Redb::open(dir, name)?;
    Store::on(dir, lock, After(disk, before))
}

pub(super) fn fail_if(failing: &AtomicBool) -> std::result::Result<(), DiskError> {
    let error = std::io::Error::from_raw_os_error(5);
    if failing.load(Ordering::SeqCst) { Err(DiskError::Other(error.to_string())) } else { Ok(()) }
}

fn put(durable: &Store, key: &str, value: &[u8]) {
    try_put(durable, key, value).unwrap();
}

fn try_put(durable: &Store, key: &str, value: &[u8]) -> Result<()> {
    durable.write(|staged| {
        staged.insert(key, value);
        Ok(())
    })
}

#[tokio::test]
async fn what_was_committed_is_there_when_opened_again_in_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u8 {
        let durable = Store::durable(&dir.path().join("store"), NAME).unwrap();
        if round > 0 {
            assert_eq!(durable.get("key").unwrap().unwrap(), [round - 1][..]);
        }
        put(&durable, "key", &[round]);
        durable.commit().await.unwrap();
    }
}

#[test]
fn dropping_makes_everything_safe() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Store::durable(dir.path(), NAME).unwrap();
    put(&durable, "key", b"value");
    drop(durable);
    assert_eq!(Store::durable(dir.path(), NAME).unwrap().get("key").unwrap().unwrap(), &b"value"[..]);
}

#[test]
fn the_directory_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o755)).unwrap();
    let _durable = Store::durable(&store, NAME).unwrap();
    assert_eq!(std::fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_lock_that_is_let_go_in_time_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::durable(dir.path(), NAME).unwrap();
    let path = dir.path().to_path_buf();
    let second = std::thread::spawn(move || Store::durable(&path, NAME).map(drop));
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(!second.is_finished());
    drop(first);
    second.join().unwrap().unwrap();
}

#[test]
fn a_change_that_fails_writes_nothing_and_one_that_succeeds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Store::durable(dir.path(), NAME).unwrap();
    let refused: Result<()> = durable.write(|staged| {
        staged.insert("a", "1");
        assert_eq!(staged.get("a")?.unwrap(), &b"1"[..]);
        Err(DurableError::Busy { path: "x".into() })
    });
    assert!(refused.is_err());
    assert_eq!(durable.get("a").unwrap(), None);
}

#[test]
fn rows_read_together_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Store::durable(dir.path(), NAME).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0u64.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let both = |staged: &mut Staged<'_>| -> Result<()> {
                    staged.insert("a", &round.to_be_bytes()[..]);
                    staged.insert("b", &round.to_be_bytes()[..]);
                    Ok(())
                };
                durable.write(both).unwrap();
            }
        });
        let torn = (0..5000)
            .filter(|_| {
                let rows = durable.snapshot();
                let (a, b) = (rows.get("a").unwrap(), rows.get("b").unwrap());
                a != b
            })
            .count();
        stop.store(true, Ordering::SeqCst);
        assert_eq!(torn, 0);
    });
}

#[tokio::test]
async fn values_of_any_size_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    for len in [0, 1, 4096, 4097, 1_000_000, 10] {
        let value: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
        let durable = Store::durable(dir.path(), NAME).unwrap();
        put(&durable, "large", &value);
        durable.commit().await.unwrap();
        assert_eq!(durable.get("large").unwrap().unwrap(), value, "{len}");
        drop(durable);
        let again = Store::durable(dir.path(), NAME).unwrap();
        assert_eq!(again.get("large").unwrap().unwrap(), value, "{len}");
        assert_eq!(again.scan("large").count(), 1);
    }
}

#[test]
fn a_half_written_snapshot_or_parameter_file_of_sled_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    // A kill during the first open leaves this: parameters without their checksum, and no log.
    std::fs::create_dir(dir.path().join("blobs")).unwrap();
    std::fs::write(dir.path().join("conf"), "segment_size: 524288\nuse_compression: false\nvers").unwrap();
    let store = Store::rebuildable(dir.path()).unwrap();
    put(&store, "key", b"value");
    drop(store);
    std::fs::write(dir.path().join("snap.FFFFFFFFFFFFFFFF.generating"), b"half").unwrap();
    assert_eq!(Store::rebuildable(dir.path()).unwrap().get("key").unwrap().unwrap(), &b"value"[..]);
}

#[tokio::test]
async fn a_failed_fdatasync_is_never_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let failing = Arc::new(AtomicBool::new(false));
    let durable = Store::durable_on_failing_disk(dir.path(), NAME, Arc::clone(&failing)).unwrap();
    put(&durable, "before", b"1");
    durable.commit().await.unwrap();
    assert!(durable.healthy());

    failing.store(true, Ordering::SeqCst);
    put(&durable, "during", b"1");
    let error = durable.commit().await.unwrap_err();
    assert!(error.to_string().contains("until it is opened again"), "{error}");

    // The disk works again, but it has dropped the earlier write. Reporting success now would be wrong.
    failing.store(false, Ordering::SeqCst);
    assert!(!durable.healthy());
    assert!(matches!(durable.commit().await, Err(DurableError::Failed { .. })));
    assert!(matches!(durable.settled().await, Err(DurableError::Failed { .. })));
    assert!(matches!(try_put(&durable, "after", b"1"), Err(DurableError::Failed { .. })));
    let on_a_thread = std::thread::spawn(move || durable.commit_blocking());
    assert!(on_a_thread.join().unwrap().is_err());
}

#[tokio::test]
async fn a_flush_that_panics_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let durable = durable_after(dir.path(), NAME, || panic!("for the test")).unwrap();
    put(&durable, "key", b"1");
    assert!(durable.commit().await.is_err());
    assert!(!durable.healthy());
}

fn wait_for(open: &AtomicBool) -> std::result::Result<(), DiskError> {
    while !open.load(Ordering::SeqCst) {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}

#[tokio::test]
async fn what_was_read_is_settled_only_once_it_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    let open = Arc::new(AtomicBool::new(true));
    let gate = Arc::clone(&open);
    let durable = durable_after(dir.path(), NAME, move || wait_for(&gate)).unwrap();
    put(&durable, "key", b"1");
    durable.settled().await.unwrap();
    let flushes = durable.counters().flushes;
    durable.settled().await.unwrap();
    assert_eq!(durable.counters().flushes, flushes, "with no change in progress, settled() must not flush");

    open.store(false, Ordering::SeqCst);
    put(&durable, "key", b"2");
    let settled = tokio::spawn(durable.settled());
    let begun = Instant::now();
    while durable.counters().commits < 2 {
        assert!(begun.elapsed() < Duration::from_secs(10), "settled() did not ask for a flush");
        tokio::task::yield_now().await;
    }
    assert!(!settled.is_finished());
    open.store(true, Ordering::SeqCst);
    settled.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_flush_serves_all_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let durable = durable_after(dir.path(), NAME, move || wait_for(&gate)).unwrap();
    let before = durable.counters().flushes;
    // While the first flush is blocked, all other commits queue up.
    let commits: Vec<_> = (0..64)
        .map(|number| {
            put(&durable, &format!("key {number}"), b"1");
            durable.commit()
        })
        .collect();
    open.store(true, Ordering::SeqCst);
    for commit in commits {
        commit.await.unwrap();
    }
    let flushes = durable.counters().flushes - before;
    assert!((1..=2).contains(&flushes), "64 commits took {flushes} flushes");
}

/// Only the flusher may call sled's `flush`: sled hangs after some hundred calls when several tasks flush at once.
#[test]
fn sixty_four_writers_of_either_store_and_none_is_stuck() {
    let pause = Duration::from_millis(20);
    for (what, open, seconds) in [
        ("rebuildable", Box::new(Store::rebuildable) as Box<dyn Fn(&Path) -> Result<Store>>, 12),
        ("durable", Box::new(|dir: &Path| Store::durable(dir, NAME)), 4),
    ] {
        let dir = tempfile::tempdir().unwrap();
        // A pause after each write leaves CPU time for other tests.
        let counters = hammer(open(dir.path()).unwrap(), Duration::from_secs(seconds), pause);
        println!("{what}: {} commits in {seconds} s, served by {} flushes", counters.commits, counters.flushes);
    }
}

/// Starts 64 tasks; each writes, commits and reads back. Fails if a task gets no answer within ten seconds.
fn hammer(durable: Store, duration: Duration, pause: Duration) -> Counters {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let durable = Arc::new(durable);
    runtime.block_on(async {
        let end = Instant::now() + duration;
        let writers: Vec<_> = (0..64u8)
            .map(|writer| {
                let durable = Arc::clone(&durable);
                tokio::spawn(async move {
                    let mut written = 0u64;
                    while Instant::now() < end {
                        written += 1;
                        durable
                            .write::<_, DurableError>(|staged| {
                                staged.insert([writer], &written.to_be_bytes()[..]);
                                Ok(())
                            })
                            .unwrap();
                        let committed = tokio::time::timeout(Duration::from_secs(10), durable.commit()).await;
                        committed.expect("a writer is stuck").unwrap();
                        assert_eq!(durable.get([writer]).unwrap().unwrap(), written.to_be_bytes()[..]);
                        tokio::time::sleep(pause).await;
                    }
                    written
                })
            })
            .collect();
        for writer in writers {
            assert!(writer.await.unwrap() > 0, "a writer completed no commit");
        }
    });
    durable.counters()
}

/// This test runs in its own process, with very few file descriptors.
const ALONE: &str = "AUTHD_TEST_FEW_FILES";

#[test]
fn a_process_without_file_descriptors_goes_on_writing() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if std::env::var_os(ALONE).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durable::tests::a_process_without_file_descriptors_goes_on_writing"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let durable = Store::durable(dir.path(), NAME).unwrap();
    put(&durable, "before", b"1");
    durable.commit_blocking().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    for number in 0..5u8 {
        put(&durable, "during", &[number]);
        durable.commit_blocking().unwrap();
    }
    assert!(durable.healthy());
    drop(files);
    put(&durable, "after", b"1");
    durable.commit_blocking().unwrap();
    drop(durable);
    assert_eq!(Store::durable(dir.path(), NAME).unwrap().get("during").unwrap().unwrap(), [4][..]);
}
