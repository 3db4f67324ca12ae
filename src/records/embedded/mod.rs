//! The records in a file of the state directory. This is the default and needs no installation.
//!
//! All rows are in **one** table under prefixed keys ([`rows`]), so each change is one transaction. A crash or power
//! cut at any line leaves its rows, their indexes and the epoch, or none of them. Changes run one at a time
//! ([`Store::write`]), so "exactly one" and "without a gap" hold without a retry. Each read sees the rows of one moment
//! ([`Snapshot`]).
//!
//! Every answer depends on durable rows only: changes and reads await [`Store::settled`]. So a power cut cannot take
//! back a canonical version, or an "already used", that a caller has seen. The cost: a read may wait for a running
//! flush. After a failed flush every call is refused until another process opens the records.

mod audit;
mod change_feed;
mod commit_queue;
mod hosts;
mod login;
mod people;
mod probes;
pub mod rescue;
mod rows;
mod settings;
mod store;
mod tables;
mod transaction;
mod transfer;
mod trust;
pub mod upgrade;

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use super::{RecordsError, Replacement, Result};
use crate::durable::{DurableError, Snapshot, Staged, Store};
use crate::model::instant::Instant;

/// The records of one daemon, in a directory of their own.
pub struct Embedded {
    data: Arc<Store>,
    /// Stores of logins, the latest date first.
    login_commits: commit_queue::CommitQueue<Reverse<Option<Instant>>, Replacement>,
    /// Set by a test: changes succeed, and `changes_since` fails.
    #[cfg(test)]
    pub(crate) following_fails: std::sync::atomic::AtomicBool,
}

impl Embedded {
    /// Opens the records in `dir`; creates them if they are missing. Reading them takes time: do not call it in an
    /// async task.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self::on(Store::durable(dir, "records")?))
    }

    pub(crate) fn on(data: Store) -> Self {
        Self {
            data: Arc::new(data),
            login_commits: commit_queue::CommitQueue::new(),
            #[cfg(test)]
            following_fails: std::sync::atomic::AtomicBool::default(),
        }
    }

    /// `false` once a change could not be made safe. From then on every call is refused.
    pub fn healthy(&self) -> bool {
        self.data.healthy()
    }

    /// Calls `observe` with the duration of each flush.
    pub fn on_flush(&self, observe: impl Fn(std::time::Duration) + Send + Sync + 'static) {
        self.data.on_flush(observe);
    }

    async fn change<T>(&self, change: impl FnOnce(&mut Staged<'_>) -> Result<T>) -> Result<T> {
        self.change_anyway(|staged| {
            transaction::check_writable(staged)?;
            change(staged)
        })
        .await
    }

    /// Runs a change even at a standstill and during a fill.
    async fn change_anyway<T>(&self, change: impl FnOnce(&mut Staged<'_>) -> Result<T>) -> Result<T> {
        let outcome = self.data.write(change);
        // An outcome without a write may depend on a write that is not durable yet.
        self.data.settled().await?;
        outcome
    }

    async fn read<T>(&self, read: impl FnOnce(&Snapshot) -> Result<T>) -> Result<T> {
        let answer = read(&self.data.snapshot());
        self.data.settled().await?;
        answer
    }

    /// For reads of many rows: runs outside the async threads.
    async fn read_much<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let data = Arc::clone(&self.data);
        let answer = tokio::task::spawn_blocking(move || read(&data.snapshot()))
            .await
            .map_err(|e| RecordsError::Unavailable(format!("the reading task ended early: {e}")))?;
        self.data.settled().await?;
        answer
    }
}

impl From<DurableError> for RecordsError {
    fn from(error: DurableError) -> Self {
        match error {
            DurableError::Failed { .. } => Self::Failed(error.to_string()),
            DurableError::Damaged { .. } => {
                log::error!(event = "records_damaged", cause:% = error; "the records are damaged: {error}");
                Self::Damaged(error.to_string())
            }
            error => Self::Unavailable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
