//! Concurrent changes, ordered by a key and committed together.
//!
//! While one round is being made durable, new changes wait for the next. Within a round the lowest key goes first. For
//! stores of logins this is the latest one: it becomes canonical, and the others lose at once. The changes are
//! concurrent, so any order is correct.
//!
//! By [`Staged::get`] a change sees what earlier changes of its round have staged; by scans it does not. A round is one
//! batch. A crash leaves all of it or nothing; no caller has been answered by then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::durable::{Staged, Store};
use crate::records::{RecordsError, Result};

/// How often a round yields to callers that are about to join it.
const MAX_GATHER_YIELDS: usize = 64;

type Change<T> = Box<dyn Fn(&mut Staged<'_>) -> Result<T> + Send>;

pub(super) struct CommitQueue<K, T> {
    pending: Arc<Mutex<Pending<K, T>>>,
}

struct Pending<K, T> {
    changes: Vec<QueuedChange<K, T>>,
    /// A worker runs, and will check the queue again before it ends.
    is_served: bool,
}

struct QueuedChange<K, T> {
    key: K,
    change: Change<T>,
    answer: oneshot::Sender<Result<T>>,
}

impl<K: Ord + Send + 'static, T: Send + 'static> CommitQueue<K, T> {
    pub(super) fn new() -> Self {
        Self { pending: Arc::new(Mutex::new(Pending { changes: Vec::new(), is_served: false })) }
    }

    /// Applies `change` in its turn. On return its result survives a power cut. It is applied even if the caller goes
    /// away.
    pub(super) async fn commit(
        &self,
        data: &Arc<Store>,
        key: K,
        change: impl Fn(&mut Staged<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let begin = {
            let mut pending = lock(&self.pending);
            pending.changes.push(QueuedChange { key, change: Box::new(change), answer });
            !std::mem::replace(&mut pending.is_served, true)
        };
        if begin {
            tokio::spawn(serve(Arc::clone(data), Worker { pending: Arc::clone(&self.pending), ended: false }));
        }
        answered.await.unwrap_or_else(|_| Err(RecordsError::Unavailable("the writing task ended early".into())))
    }
}

/// Serves the queue. However it ends, the next change starts a new worker.
struct Worker<K, T> {
    pending: Arc<Mutex<Pending<K, T>>>,
    ended: bool,
}

impl<K, T> Drop for Worker<K, T> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut pending = lock(&self.pending);
        pending.is_served = false;
        // A panic, or the end of the runtime: the callers get an error.
        pending.changes.clear();
    }
}

impl<K: Ord, T> Worker<K, T> {
    fn count(&self) -> usize {
        lock(&self.pending).changes.len()
    }

    /// Takes all queued changes, lowest key first. If there are none, the worker ends, and the next change starts
    /// another.
    fn round(&mut self) -> Vec<QueuedChange<K, T>> {
        let mut pending = lock(&self.pending);
        let mut round = std::mem::take(&mut pending.changes);
        self.ended = round.is_empty();
        pending.is_served = !self.ended;
        round.sort_by(|a, b| a.key.cmp(&b.key));
        round
    }
}

async fn serve<K: Ord + Send, T: Send>(data: Arc<Store>, mut worker: Worker<K, T>) {
    loop {
        // Callers that only wait for a processor join this round. If none does, the task ends, because it holds the
        // database open.
        let mut there = 0;
        for _ in 0..MAX_GATHER_YIELDS {
            let now = worker.count();
            if now == there {
                break;
            }
            there = now;
            tokio::task::yield_now().await;
        }
        let round = worker.round();
        if round.is_empty() {
            return;
        }
        let outcomes = apply(&data, &round);
        let safe = data.settled().await;
        for (outcome, QueuedChange { answer, .. }) in outcomes.into_iter().zip(round) {
            // A caller that has gone away needs no answer.
            let _ = answer.send(safe.clone().map_err(RecordsError::from).and(outcome));
        }
    }
}

/// One batch for all changes, so shared rows are written once. If one change fails, each is applied by itself.
fn apply<K, T>(data: &Store, round: &[QueuedChange<K, T>]) -> Vec<Result<T>> {
    let all = |staged: &mut Staged<'_>| round.iter().map(|waiter| (waiter.change)(staged)).collect::<Result<Vec<_>>>();
    match data.write(all) {
        Ok(values) => values.into_iter().map(Ok).collect(),
        Err(_) => round.iter().map(|waiter| data.write(&waiter.change)).collect(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rounds = CommitQueue<u8, Option<Vec<u8>>>;

    /// Appends a letter to a row and returns the previous content. Fails for a character that is not a letter.
    fn append(letter: u8) -> impl Fn(&mut Staged<'_>) -> Result<Option<Vec<u8>>> + Send + 'static {
        move |staged| {
            let before = staged.get("row")?.map(|row| row.to_vec());
            staged.insert("row", [before.clone().unwrap_or_default(), vec![letter]].concat());
            if letter == b'-' { Err(RecordsError::Corrupt("no letter".into())) } else { Ok(before) }
        }
    }

    async fn round(letters: &[u8]) -> (Vec<u8>, Vec<Result<Option<Vec<u8>>>>) {
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(Store::durable(dir.path(), "records").unwrap());
        let queue = Arc::new(Rounds::new());
        // There is one thread, so all changes are queued before the first round begins.
        let tasks: Vec<_> = letters
            .iter()
            .map(|&letter| {
                let (queue, data) = (queue.clone(), data.clone());
                tokio::spawn(async move { queue.commit(&data, letter, append(letter)).await })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        (data.get("row").unwrap().unwrap().to_vec(), answers)
    }

    #[tokio::test]
    async fn concurrent_changes_are_ordered_and_see_the_earlier_ones() {
        let (row, answers) = round(b"dbca").await;
        assert_eq!(row, b"abcd");
        let before: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap_or_default()).collect();
        assert_eq!(before, [&b"abc"[..], b"a", b"ab", b""]);
    }

    #[tokio::test]
    async fn a_change_that_fails_leaves_nothing_and_fails_no_other() {
        let (row, answers) = round(b"b-a").await;
        assert_eq!(row, b"ab");
        assert!(matches!(answers[1], Err(RecordsError::Corrupt(_))), "{answers:?}");
        assert_eq!((answers[0].as_ref().unwrap(), answers[2].as_ref().unwrap()), (&Some(b"a".to_vec()), &None));
    }

    #[tokio::test]
    async fn an_empty_queue_releases_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Rounds::new();
        for letter in b"ab" {
            let data = Arc::new(Store::durable(dir.path(), "records").unwrap());
            queue.commit(&data, *letter, append(*letter)).await.unwrap();
            assert_eq!(Arc::strong_count(&data), 1);
        }
    }

    #[tokio::test]
    async fn a_change_that_panics_is_an_error_and_the_next_one_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(Store::durable(dir.path(), "records").unwrap());
        let queue = Rounds::new();
        assert!(queue.commit(&data, 1, |_| panic!("for the test")).await.is_err());
        assert_eq!(queue.commit(&data, 1, append(b'a')).await.unwrap(), None);
    }
}
