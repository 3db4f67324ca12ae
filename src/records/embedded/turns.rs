//! Changes that arrive together are applied in an order of their own, and made safe together.
//!
//! While one round is being made safe, whoever comes waits for the next. Within a round the lower key goes first. Stores
//! put the latest login first: it becomes canonical, and the others of the round find themselves overtaken at once. All
//! of them were under way at the same time, so any order is a true one.
//!
//! A change sees what those before it in its round have staged, by [`Staged::get`], not by its scans. A round is one batch:
//! a crash leaves all of it or nothing, and nobody has been told of any.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::durable::{Staged, Store};
use crate::records::{RecordsError, Result};

/// How often at most a round waits for others to come.
const PATIENCE: usize = 64;

type Change<T> = Box<dyn Fn(&mut Staged<'_>) -> Result<T> + Send>;

pub(super) struct Turns<K, T> {
    waiting: Arc<Mutex<Waiting<K, T>>>,
}

struct Waiting<K, T> {
    changes: Vec<Waiter<K, T>>,
    /// Somebody is at work, and will look here again before he ends.
    served: bool,
}

struct Waiter<K, T> {
    key: K,
    change: Change<T>,
    answer: oneshot::Sender<Result<T>>,
}

impl<K: Ord + Send + 'static, T: Send + 'static> Turns<K, T> {
    pub(super) fn new() -> Self {
        Self { waiting: Arc::new(Mutex::new(Waiting { changes: Vec::new(), served: false })) }
    }

    /// Applies `change` when its turn comes; what it gives back is power-safe when this returns. It is done even if the
    /// caller goes away.
    pub(super) async fn take(
        &self,
        data: &Arc<Store>,
        key: K,
        change: impl Fn(&mut Staged<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let begin = {
            let mut waiting = lock(&self.waiting);
            waiting.changes.push(Waiter { key, change: Box::new(change), answer });
            !std::mem::replace(&mut waiting.served, true)
        };
        if begin {
            tokio::spawn(serve(Arc::clone(data), Served { waiting: Arc::clone(&self.waiting), ended: false }));
        }
        answered.await.unwrap_or_else(|_| Err(RecordsError::Unavailable("the writing task ended early".into())))
    }
}

/// Whoever is at work. However he ends, the next one who comes finds the place free.
struct Served<K, T> {
    waiting: Arc<Mutex<Waiting<K, T>>>,
    ended: bool,
}

impl<K, T> Drop for Served<K, T> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut waiting = lock(&self.waiting);
        waiting.served = false;
        // A panic, or the end of the runtime: whoever waits is told.
        waiting.changes.clear();
    }
}

impl<K: Ord, T> Served<K, T> {
    fn count(&self) -> usize {
        lock(&self.waiting).changes.len()
    }

    /// Everybody who waits, the lowest key first. With nobody there the place is free from this very moment on.
    fn round(&mut self) -> Vec<Waiter<K, T>> {
        let mut waiting = lock(&self.waiting);
        let mut round = std::mem::take(&mut waiting.changes);
        self.ended = round.is_empty();
        waiting.served = !self.ended;
        round.sort_by(|a, b| a.key.cmp(&b.key));
        round
    }
}

async fn serve<K: Ord + Send, T: Send>(data: Arc<Store>, mut served: Served<K, T>) {
    loop {
        // Whoever has come so far and only waits for a processor joins this round. With nobody there this task ends at
        // once: it holds the database open.
        let mut there = 0;
        for _ in 0..PATIENCE {
            let now = served.count();
            if now == there {
                break;
            }
            there = now;
            tokio::task::yield_now().await;
        }
        let round = served.round();
        if round.is_empty() {
            return;
        }
        let outcomes = apply(&data, &round);
        let safe = data.settled().await;
        for (outcome, Waiter { answer, .. }) in outcomes.into_iter().zip(round) {
            // Somebody who has gone away needs no answer.
            let _ = answer.send(safe.clone().map_err(RecordsError::from).and(outcome));
        }
    }
}

/// One batch for all of them: what they have in common is written once. Where one cannot be applied, each goes by itself.
fn apply<K, T>(data: &Store, round: &[Waiter<K, T>]) -> Vec<Result<T>> {
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

    type Rounds = Turns<u8, Option<Vec<u8>>>;

    /// Adds a letter to a row, and says what stood there before; a letter that is none fails.
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
        let turns = Arc::new(Rounds::new());
        // One thread: all of them wait before the first round begins.
        let tasks: Vec<_> = letters
            .iter()
            .map(|&letter| {
                let (turns, data) = (turns.clone(), data.clone());
                tokio::spawn(async move { turns.take(&data, letter, append(letter)).await })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        (data.get("row").unwrap().unwrap().to_vec(), answers)
    }

    #[tokio::test]
    async fn who_comes_together_goes_in_order_and_sees_who_went_before() {
        let (row, answers) = round(b"dbca").await;
        assert_eq!(row, b"abcd");
        let before: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap_or_default()).collect();
        assert_eq!(before, [&b"abc"[..], b"a", b"ab", b""]);
    }

    #[tokio::test]
    async fn one_that_fails_leaves_nothing_and_takes_nobody_with_it() {
        let (row, answers) = round(b"b-a").await;
        assert_eq!(row, b"ab");
        assert!(matches!(answers[1], Err(RecordsError::Corrupt(_))), "{answers:?}");
        assert_eq!((answers[0].as_ref().unwrap(), answers[2].as_ref().unwrap()), (&Some(b"a".to_vec()), &None));
    }

    #[tokio::test]
    async fn the_database_is_let_go_of_once_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let turns = Rounds::new();
        for letter in b"ab" {
            let data = Arc::new(Store::durable(dir.path(), "records").unwrap());
            turns.take(&data, *letter, append(*letter)).await.unwrap();
            assert_eq!(Arc::strong_count(&data), 1);
        }
    }

    #[tokio::test]
    async fn a_change_that_panics_is_an_error_and_the_next_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(Store::durable(dir.path(), "records").unwrap());
        let turns = Rounds::new();
        assert!(turns.take(&data, 1, |_| panic!("for the test")).await.is_err());
        assert_eq!(turns.take(&data, 1, append(b'a')).await.unwrap(), None);
    }
}
