//! The one thread of a database that makes changes power-safe. Whoever waits while a flush is running is served together
//! by the next one.
//!
//! sled can wait for ever inside `flush` when a write of its own fails in the background, so nobody here waits without a
//! bound: who has waited [`STALLED_AFTER`] declares the database failed.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Counters, DurableError, Result};

const STALLED_AFTER: Duration = Duration::from_secs(60);

pub(super) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    wake: Condvar,
    /// Changes that began to be applied, that are applied, and that are safe. They are applied one at a time, so each
    /// number names the same changes.
    begun: AtomicU64,
    ended: AtomicU64,
    safe: AtomicU64,
    commits: AtomicU64,
    flushes: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiter>,
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
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            path: path.into(),
            state: Mutex::default(),
            wake: Condvar::new(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            safe: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
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
        answered.recv_timeout(STALLED_AFTER).unwrap_or_else(|_| Err(self.shared.stalled()))
    }

    pub(super) fn settled(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        let wanted = shared.begun.load(Ordering::SeqCst);
        async move {
            // More than once only when a flush began while the last change was still being applied.
            while shared.safe.load(Ordering::SeqCst) < wanted {
                Arc::clone(&shared).commit().await?;
            }
            Ok(())
        }
    }

    /// To be called, one change at a time, just before and just after a change is applied.
    pub(super) fn change_begins(&self) {
        self.shared.begun.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn change_ends(&self) {
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn fail(&self, cause: &str) -> DurableError {
        self.shared.fail(cause)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.shared.lock().failed.as_ref().map_or(Ok(()), |cause| Err(self.shared.error(cause)))
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
        let wait = self.shared.wake.wait_timeout_while(state, STALLED_AFTER, |state| !state.stopped);
        let stopped = wait.unwrap_or_else(PoisonError::into_inner).0.stopped;
        if let Some(thread) = self.thread.take().filter(|_| stopped)
            && thread.join().is_err()
        {
            log::error!("the flusher of the store in {} panicked", self.shared.path.display());
        }
        if !stopped {
            // Left behind with the database open: the process is about to end, and waiting longer mends nothing.
            log::error!("the store in {} did not close: its disk does not answer", self.shared.path.display());
        }
    }
}

impl Shared {
    fn run(&self, mut make_safe: impl FnMut() -> std::result::Result<(), String>) {
        loop {
            let (waiting, last) = {
                let state = self.lock();
                let mut state = self
                    .wake
                    .wait_while(state, |state| state.waiting.is_empty() && !state.stopping)
                    .unwrap_or_else(PoisonError::into_inner);
                (std::mem::take(&mut state.waiting), state.stopping)
            };
            let outcome = self.flush(&mut make_safe);
            for waiter in waiting {
                waiter.answer(outcome.clone());
            }
            if last {
                break;
            }
        }
        // The database is closed before the drop that waits for this goes on.
        drop(make_safe);
        let mut state = self.lock();
        state.stopped = true;
        for waiter in std::mem::take(&mut state.waiting) {
            waiter.answer(Err(self.error("it is being closed")));
        }
        drop(state);
        self.wake.notify_all();
    }

    fn flush(&self, make_safe: &mut impl FnMut() -> std::result::Result<(), String>) -> Result<()> {
        if let Some(cause) = &self.lock().failed {
            return Err(self.error(cause));
        }
        let applied = self.ended.load(Ordering::SeqCst);
        // sled panics where it has no better answer; that must not leave everybody waiting.
        let outcome = catch_unwind(AssertUnwindSafe(make_safe)).unwrap_or_else(|_| Err("the flush panicked".into()));
        self.flushes.fetch_add(1, Ordering::Relaxed);
        outcome.map_err(|cause| self.fail(&cause))?;
        // A waiter that gave up in the meantime has declared the database failed; then it stays so.
        if let Some(cause) = &self.lock().failed {
            return Err(self.error(cause));
        }
        self.safe.fetch_max(applied, Ordering::SeqCst);
        Ok(())
    }

    fn commit(self: Arc<Self>) -> impl Future<Output = Result<()>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        self.enqueue(Waiter::Task(answer));
        async move {
            match tokio::time::timeout(STALLED_AFTER, answered).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(self.error("it is closed")),
                Err(_) => Err(self.stalled()),
            }
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

    /// The first failure is the one that is told ever after.
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Somebody who has gone away needs no answer.
    fn answer(self, outcome: Result<()>) {
        match self {
            Self::Task(task) => drop(task.send(outcome)),
            Self::Thread(thread) => drop(thread.send(outcome)),
        }
    }
}
