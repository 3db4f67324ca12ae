//! The one thread of a store that makes changes safe. All commits that queue up during a flush are served together by
//! the next one. Other changes are written within [`MAX_FLUSH_DELAY`].
//!
//! A slow flush is *nudged* (`Disk::nudge` of the parent explains why). No wait is unbounded: a commit that has waited
//! [`STALLED_AFTER`] declares the store failed.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Counters, DurableError, Result};

const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How long a change may stay in memory if no caller waits for it.
const MAX_FLUSH_DELAY: Duration = Duration::from_secs(1);
/// Delay before the first nudge of a flush. It doubles for each further nudge, since a nudge may hang as well.
const NUDGED_AFTER: Duration = Duration::from_secs(1);
const MAX_NUDGES: u32 = 5;

/// Unblocks a slow flush whose wake-up was lost.
pub(super) type Nudge = Box<dyn Fn() + Send + Sync>;

pub(super) struct Flusher {
    shared: Arc<SharedFlusher>,
    thread: Option<JoinHandle<()>>,
}

struct SharedFlusher {
    path: PathBuf,
    state: Mutex<FlusherState>,
    wake: Condvar,
    /// Counts of changes: those that began to be applied, those applied, and those safe. Changes are applied one at a
    /// time, so each number names the same changes.
    begun: AtomicU64,
    ended: AtomicU64,
    safe: AtomicU64,
    commits: AtomicU64,
    flushes: AtomicU64,
    observe: OnceLock<Box<dyn Fn(Duration) + Send + Sync>>,
    /// `None` once the database is being closed.
    nudge: Mutex<Option<Arc<Nudge>>>,
}

#[derive(Default)]
struct FlusherState {
    waiting: Vec<Waiter>,
    /// Start of the running flush, and how often it was nudged.
    flushing: Option<(Instant, u32)>,
    stopping: bool,
    stopped: bool,
    failed: Option<String>,
}

enum Waiter {
    Task(oneshot::Sender<Result<()>>),
    Thread(mpsc::SyncSender<Result<()>>),
}

impl Flusher {
    pub(super) fn start(
        path: &Path,
        make_safe: impl FnMut() -> std::result::Result<(), String> + Send + 'static,
        nudge: Nudge,
    ) -> Result<Self> {
        let shared = Arc::new(SharedFlusher {
            path: path.into(),
            state: Mutex::default(),
            wake: Condvar::new(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            safe: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            observe: OnceLock::new(),
            nudge: Mutex::new(Some(Arc::new(nudge))),
        });
        let thread = std::thread::Builder::new()
            .name("flusher".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(make_safe)
            })
            .map_err(|e| DurableError::Open { path: path.into(), cause: e.to_string() })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn commit(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        self.shared.clone().commit()
    }

    pub(super) fn commit_blocking(&self) -> Result<()> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.shared.enqueue(Waiter::Thread(answer));
        let begun = Instant::now();
        while begun.elapsed() < STALLED_AFTER {
            match answered.recv_timeout(NUDGED_AFTER) {
                Ok(outcome) => return outcome,
                Err(mpsc::RecvTimeoutError::Timeout) => self.shared.nudge_if_slow(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        Err(self.shared.stalled())
    }

    pub(super) fn settled(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        let wanted = shared.begun.load(Ordering::SeqCst);
        async move {
            // A second round is needed only if a flush began while the last change was still being applied.
            while shared.safe.load(Ordering::SeqCst) < wanted {
                Arc::clone(&shared).commit().await?;
            }
            Ok(())
        }
    }

    /// Call these just before and just after a change is applied, for one change at a time.
    pub(super) fn change_begins(&self) {
        self.shared.begun.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn change_ends(&self) {
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn check(&self) -> Result<()> {
        self.shared.lock().failed.as_ref().map_or(Ok(()), |cause| Err(self.shared.error(cause)))
    }

    pub(super) fn on_flush(&self, observe: Box<dyn Fn(Duration) + Send + Sync>) {
        let _ = self.shared.observe.set(observe);
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.shared.lock().failed.clone()
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            commits: self.shared.commits.load(Ordering::Relaxed),
            flushes: self.shared.flushes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        self.shared.wake.notify_all();
        drop(state);
        let stopped = self.shared.wait_until_stopped();
        if let Some(thread) = self.thread.take().filter(|_| stopped)
            && thread.join().is_err()
        {
            log::error!("the flusher of the store in {} panicked", self.shared.path.display());
        }
        if !stopped {
            // The thread is left behind with the database open. The process is about to end, and waiting longer repairs
            // nothing.
            log::error!("the store in {} did not close: its disk does not answer", self.shared.path.display());
        }
    }
}

impl SharedFlusher {
    fn run(&self, mut make_safe: impl FnMut() -> std::result::Result<(), String>) {
        loop {
            let (waiting, last) = {
                let state = self.lock();
                let wait = self
                    .wake
                    .wait_timeout_while(state, MAX_FLUSH_DELAY, |state| state.waiting.is_empty() && !state.stopping);
                let mut state = wait.unwrap_or_else(PoisonError::into_inner).0;
                (std::mem::take(&mut state.waiting), state.stopping)
            };
            if waiting.is_empty() && !last && self.is_safe() {
                continue;
            }
            let outcome = self.flush(&mut make_safe);
            for waiter in waiting {
                waiter.answer(outcome.clone());
            }
            if last {
                break;
            }
        }
        // Close the database first: `drop` of the flusher waits for `stopped`.
        drop(make_safe);
        drop(self.nudge.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut state = self.lock();
        state.stopped = true;
        for waiter in std::mem::take(&mut state.waiting) {
            waiter.answer(Err(self.error("it is being closed")));
        }
        drop(state);
        self.wake.notify_all();
    }

    fn is_safe(&self) -> bool {
        self.safe.load(Ordering::SeqCst) >= self.begun.load(Ordering::SeqCst) || self.lock().failed.is_some()
    }

    fn flush(&self, make_safe: &mut impl FnMut() -> std::result::Result<(), String>) -> Result<()> {
        {
            let mut state = self.lock();
            if let Some(cause) = &state.failed {
                return Err(self.error(cause));
            }
            state.flushing = Some((Instant::now(), 0));
        }
        let applied = self.ended.load(Ordering::SeqCst);
        let begun = Instant::now();
        // A panic must not leave callers waiting.
        let outcome = catch_unwind(AssertUnwindSafe(make_safe)).unwrap_or_else(|_| Err("the flush panicked".into()));
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.lock().flushing = None;
        if let Some(observe) = self.observe.get() {
            observe(begun.elapsed());
        }
        outcome.map_err(|cause| self.fail(&cause))?;
        // A waiter that gave up meanwhile has declared the store failed; it stays failed.
        if let Some(cause) = &self.lock().failed {
            return Err(self.error(cause));
        }
        self.safe.fetch_max(applied, Ordering::SeqCst);
        Ok(())
    }

    fn commit(self: Arc<Self>) -> impl Future<Output = Result<()>> + Send + 'static {
        let (answer, mut answered) = oneshot::channel();
        self.enqueue(Waiter::Task(answer));
        async move {
            let begun = Instant::now();
            while begun.elapsed() < STALLED_AFTER {
                match tokio::time::timeout(NUDGED_AFTER, &mut answered).await {
                    Ok(Ok(outcome)) => return outcome,
                    Ok(Err(_)) => return Err(self.error("it is closed")),
                    Err(_) => self.nudge_if_slow(),
                }
            }
            Err(self.stalled())
        }
    }

    fn wait_until_stopped(&self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < STALLED_AFTER {
            let wait = self.wake.wait_timeout_while(self.lock(), NUDGED_AFTER, |state| !state.stopped);
            if wait.unwrap_or_else(PoisonError::into_inner).0.stopped {
                return true;
            }
            self.nudge_if_slow();
        }
        false
    }

    fn nudge_if_slow(&self) {
        {
            let mut state = self.lock();
            match &mut state.flushing {
                Some((begun, nudges))
                    if *nudges < MAX_NUDGES && begun.elapsed() >= NUDGED_AFTER * 2u32.pow(*nudges) =>
                {
                    *nudges += 1;
                }
                _ => return,
            }
        }
        let Some(nudge) = self.nudge.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        // A thread of its own: on a disk that is only slow, the nudge blocks as long as the flush.
        let nudged = std::thread::Builder::new().name("nudge".into()).spawn(move || {
            let _ = catch_unwind(AssertUnwindSafe(|| nudge()));
        });
        if let Err(error) = nudged {
            log::warn!("a slow flush of the store in {} could not be nudged: {error}", self.path.display());
        }
    }

    fn enqueue(&self, waiter: Waiter) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        if state.stopped {
            return waiter.answer(Err(self.error("it is closed")));
        }
        state.waiting.push(waiter);
        drop(state);
        self.wake.notify_all();
    }

    fn stalled(&self) -> DurableError {
        self.fail(&format!("the disk has not answered for {} s", STALLED_AFTER.as_secs()))
    }

    /// Only the first failure is kept and reported.
    fn fail(&self, cause: &str) -> DurableError {
        let mut state = self.lock();
        if state.failed.is_none() {
            log::error!("the store in {} could not be written safely: {cause}", self.path.display());
        }
        let cause = state.failed.get_or_insert_with(|| cause.into());
        self.error(cause)
    }

    fn error(&self, cause: &str) -> DurableError {
        DurableError::Failed { path: self.path.clone(), cause: cause.into() }
    }

    fn lock(&self) -> MutexGuard<'_, FlusherState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// A waiter that has gone away is ignored.
    fn answer(self, outcome: Result<()>) {
        match self {
            Self::Task(task) => drop(task.send(outcome)),
            Self::Thread(thread) => drop(thread.send(outcome)),
        }
    }
}
