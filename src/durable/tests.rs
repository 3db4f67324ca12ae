use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;

fn put(durable: &Durable, key: &str, value: &[u8]) {
    try_put(durable, key, value).unwrap();
}

fn try_put(durable: &Durable, key: &str, value: &[u8]) -> Result<()> {
    durable.write(|staged| {
        staged.insert(key, value);
        Ok(())
    })
}

#[tokio::test]
async fn what_was_committed_is_there_when_opened_again_in_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u8 {
        let durable = Durable::open(&dir.path().join("store")).unwrap();
        if round > 0 {
            assert_eq!(durable.get("key").unwrap().unwrap(), [round - 1]);
        }
        put(&durable, "key", &[round]);
        durable.commit().await.unwrap();
    }
}

#[test]
fn dropping_makes_everything_safe() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Durable::open(dir.path()).unwrap();
    put(&durable, "key", b"value");
    drop(durable);
    assert_eq!(Durable::open(dir.path()).unwrap().get("key").unwrap().unwrap(), b"value");
}

#[test]
fn the_directory_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o755)).unwrap();
    let _durable = Durable::open(&store).unwrap();
    assert_eq!(std::fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_lock_that_is_let_go_in_time_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let first = Durable::open(dir.path()).unwrap();
    let path = dir.path().to_path_buf();
    let second = std::thread::spawn(move || Durable::open(&path).map(drop));
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(!second.is_finished());
    drop(first);
    second.join().unwrap().unwrap();
}

#[test]
fn a_change_that_fails_writes_nothing_and_one_that_succeeds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Durable::open(dir.path()).unwrap();
    let refused: Result<()> = durable.write(|staged| {
        staged.insert("a", "1");
        assert_eq!(staged.get("a")?.unwrap(), b"1");
        Err(DurableError::Busy { path: "x".into() })
    });
    assert!(refused.is_err());
    assert_eq!(durable.get("a").unwrap(), None);
}

#[test]
fn rows_read_together_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Durable::open(dir.path()).unwrap();
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
                let (a, b) = durable.together(|| (durable.get("a").unwrap(), durable.get("b").unwrap()));
                a != b
            })
            .count();
        stop.store(true, Ordering::SeqCst);
        assert_eq!(torn, 0);
    });
}

#[tokio::test]
async fn large_values_come_back_whole_and_leave_no_pieces_behind() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Durable::open(dir.path()).unwrap();
    for len in [0, 1, PIECE, PIECE + 1, 1_000_000, 10] {
        let value: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
        durable.write::<_, DurableError>(|staged| staged.insert_large(b"large", &value)).unwrap();
        durable.commit().await.unwrap();
        assert_eq!(durable.get_large(b"large").unwrap(), Some(value), "{len}");
    }
    assert_eq!(durable.scan("large").count(), 1);
    assert_eq!(durable.get_large(b"lar").unwrap(), None);
    durable.write(|staged| staged.remove_large(b"large")).unwrap();
    assert_eq!(durable.get_large(b"large").unwrap(), None);
    assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0, "pieces keep pages in the log");
}

#[tokio::test]
async fn pages_in_files_of_their_own_are_made_safe_too() {
    let dir = tempfile::tempdir().unwrap();
    let synced = Arc::new(AtomicUsize::new(0));
    let durable = Durable::open_with(dir.path(), |files| CountingBlobs(files, Arc::clone(&synced))).unwrap();
    put(&durable, "blob", &vec![7; 300_000]);
    durable.commit().await.unwrap();
    let blobs = std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
    assert!(blobs > 0, "300 KB are beyond what the log takes");
    assert_eq!(synced.load(Ordering::SeqCst), blobs);
    drop(durable);
    assert_eq!(Durable::open(dir.path()).unwrap().get("blob").unwrap().unwrap(), vec![7; 300_000]);
}

struct CountingBlobs(DiskFiles, Arc<AtomicUsize>);

impl files::Files for CountingBlobs {
    fn sync(&mut self) -> std::io::Result<()> {
        self.0.sync()?;
        self.1.store(self.0.safe_blob_count(), Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_half_written_snapshot_or_parameter_file_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    // As a kill within the first open leaves it: parameters without their checksum, and no log yet.
    std::fs::create_dir(dir.path().join("blobs")).unwrap();
    std::fs::write(dir.path().join("conf"), "segment_size: 524288\nuse_compression: false\nvers").unwrap();
    let durable = Durable::open(dir.path()).unwrap();
    put(&durable, "key", b"value");
    drop(durable);
    std::fs::write(dir.path().join("snap.FFFFFFFFFFFFFFFF.generating"), b"half").unwrap();
    assert_eq!(Durable::open(dir.path()).unwrap().get("key").unwrap().unwrap(), b"value");
}

pub(super) struct Failing {
    pub(super) files: DiskFiles,
    pub(super) failing: Arc<AtomicBool>,
}

impl files::Files for Failing {
    fn sync(&mut self) -> std::io::Result<()> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        self.files.sync()
    }
}

#[tokio::test]
async fn a_failed_fdatasync_is_never_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let failing = Arc::new(AtomicBool::new(false));
    let durable = Durable::open_on_failing_disk(dir.path(), Arc::clone(&failing)).unwrap();
    put(&durable, "before", b"1");
    durable.commit().await.unwrap();
    assert!(durable.healthy());

    failing.store(true, Ordering::SeqCst);
    put(&durable, "during", b"1");
    let error = durable.commit().await.unwrap_err();
    assert!(error.to_string().contains("until it is opened anew"), "{error}");

    // The disk answers again, but what it dropped in between is gone: success now would be a lie.
    failing.store(false, Ordering::SeqCst);
    assert!(!durable.healthy());
    assert!(matches!(durable.commit().await, Err(DurableError::Failed { .. })));
    assert!(matches!(durable.settled().await, Err(DurableError::Failed { .. })));
    assert!(matches!(try_put(&durable, "after", b"1"), Err(DurableError::Failed { .. })));
    let on_a_thread = std::thread::spawn(move || durable.commit_blocking());
    assert!(on_a_thread.join().unwrap().is_err());
}

struct Panicking;

impl files::Files for Panicking {
    fn sync(&mut self) -> std::io::Result<()> {
        panic!("as sled does when it is at a loss")
    }
}

#[tokio::test]
async fn a_flush_that_panics_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Durable::open_with(dir.path(), |_| Panicking).unwrap();
    put(&durable, "key", b"1");
    assert!(durable.commit().await.is_err());
    assert!(!durable.healthy());
}

struct Gate {
    files: DiskFiles,
    open: Arc<AtomicBool>,
}

impl files::Files for Gate {
    fn sync(&mut self) -> std::io::Result<()> {
        while !self.open.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        self.files.sync()
    }
}

#[tokio::test]
async fn what_was_read_is_settled_only_once_it_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    let open = Arc::new(AtomicBool::new(true));
    let durable = Durable::open_with(dir.path(), |files| Gate { files, open: Arc::clone(&open) }).unwrap();
    put(&durable, "key", b"1");
    durable.settled().await.unwrap();
    let flushes = durable.counters().flushes;
    durable.settled().await.unwrap();
    assert_eq!(durable.counters().flushes, flushes, "nothing is under way, so nothing is to be waited for");

    open.store(false, Ordering::SeqCst);
    put(&durable, "key", b"2");
    let settled = tokio::spawn(durable.settled());
    let begun = Instant::now();
    while durable.counters().commits < 2 {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody asked for what was written to be made safe");
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
    let durable = Durable::open_with(dir.path(), |files| Gate { files, open: Arc::clone(&open) }).unwrap();
    let before = durable.counters().flushes;
    // While the first flush stands at the gate, everybody else queues up.
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

#[test]
fn sixty_four_durable_writers_for_a_minute_and_none_is_stuck() {
    let dir = tempfile::tempdir().unwrap();
    // A pause after each write, so that the cores are left to others.
    let counters = hammer(Durable::open(dir.path()).unwrap(), Duration::from_secs(60), Duration::from_millis(20));
    eprintln!("{} commits in a minute, served by {} flushes", counters.commits, counters.flushes);
}

/// 64 tasks, each writing, committing and reading back; whoever gets no answer within ten seconds fails the test.
fn hammer(durable: Durable, duration: Duration, pause: Duration) -> Counters {
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
                        assert_eq!(durable.get([writer]).unwrap().unwrap(), written.to_be_bytes());
                        tokio::time::sleep(pause).await;
                    }
                    written
                })
            })
            .collect();
        for writer in writers {
            assert!(writer.await.unwrap() > 0, "a writer never came to its turn");
        }
    });
    durable.counters()
}

#[test]
fn a_large_value_that_was_staged_is_seen_by_the_same_change() {
    let dir = tempfile::tempdir().unwrap();
    let store = Durable::open(dir.path()).unwrap();
    let (long, short) = (vec![1; 5 * PIECE + 1], vec![2; PIECE + 1]);
    let stage = |staged: &mut Staged<'_>| -> Result<()> {
        assert_eq!(staged.get_large(b"new")?, None);
        staged.insert_large(b"new", &long)?;
        assert_eq!(staged.get_large(b"new")?.as_ref(), Some(&long));
        staged.insert_large(b"new", &short)?;
        assert_eq!(staged.get_large(b"new")?.as_ref(), Some(&short));
        assert_eq!(staged.get_large(b"old")?, None);
        Ok(())
    };
    store.write(stage).unwrap();
    assert_eq!(store.get_large(b"new").unwrap().as_ref(), Some(&short));
    let replace = |staged: &mut Staged<'_>| -> Result<()> {
        staged.insert_large(b"new", b"")?;
        assert_eq!(staged.get_large(b"new")?, Some(Vec::new()));
        staged.remove_large(b"new")?;
        assert_eq!(staged.get_large(b"new")?, None);
        Ok(())
    };
    store.write(replace).unwrap();
    assert_eq!(store.get_large(b"new").unwrap(), None);
}

/// Runs in a process of its own, which has to live with very few file descriptors.
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
    let durable = Durable::open(dir.path()).unwrap();
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
    assert_eq!(Durable::open(dir.path()).unwrap().get("during").unwrap().unwrap(), [4]);
}
