//! The records in MySQL, MariaDB or a compatible database, shared by several daemons.
//!
//! **One order.** Every change is one transaction that first locks the single row of `heads`. So the changes of all
//! nodes run one after another, and "exactly one" and "without a gap" need nothing else. The row has the epoch and the
//! head of the audit log, which every change writes anyway. On a Galera cluster a lock holds on one node only; the
//! second commit is refused because both wrote the row. Therefore **a change that is decided by what it read must write
//! `heads`**, or the row that it read. A refused change is retried from the beginning, with a bound, as after a
//! deadlock ([`retry`]).
//!
//! Telemetry, the bulk of the writes, needs no order and takes no such lock ([`telemetry`]).
//!
//! **Reads.** Changes run at READ COMMITTED: under the lock each statement sees everything committed before it. On TiDB
//! a REPEATABLE READ would see the state before the lock. Reads of several tables use one snapshot.
//!
//! **Time.** One configured timeout covers waiting for a turn and a connection, connecting, and the transaction with
//! its retries. After it the call is `Unavailable`, and its connection, whose state is unknown, is closed. The change
//! may have been made; it is safe to repeat.
//!
//! **A crash** leaves the transaction to the database, which rolls it back. For a crash in a migration see [`schema`].
//!
//! Times are truncated to the microsecond when they are written.

#[macro_use]
mod retry;

mod audit;
mod change_feed;
mod connections;
mod export;
mod hosts;
mod login;
mod people;
mod probes;
mod rows;
mod schema;
mod settings;
mod store;
mod tables;
mod telemetry;
mod transaction;
mod transfer;
mod trust;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{RecordsError, Result};
use connections::{Connections, Deadline, Lease, Problem};

/// How to reach the database.
#[derive(Clone)]
pub struct Options {
    /// `mysql://user:password@host:port/name`; holds a secret.
    pub url: String,
    pub tls: Tls,
    /// PEM of the authorities that may sign the server's certificate; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// The maximum number of connections.
    pub connections: usize,
    /// The time for one call: waiting for a connection, connecting, and the transaction with its retries.
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    Required,
    Off,
}

/// The records of all daemons that share a database.
pub struct MySql {
    connections: Connections,
    /// Set once the tables are migrated.
    prepared: tokio::sync::OnceCell<()>,
    /// Changes of this node wait here. In the database each waiting change would hold a connection.
    turn: tokio::sync::Mutex<()>,
    conflicts: AtomicU64,
    /// When a change last did not fit on the database's disk, and the message.
    no_room: Mutex<Option<(Instant, String)>>,
}

impl MySql {
    /// Does not connect yet.
    pub fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            connections: Connections::new(options)?,
            prepared: tokio::sync::OnceCell::new(),
            turn: tokio::sync::Mutex::default(),
            conflicts: AtomicU64::new(0),
            no_room: Mutex::default(),
        })
    }

    /// Migrates the tables, without a timeout. If the database cannot be reached now, the first call that reaches it
    /// migrates.
    pub async fn prepare(&self) -> Result<()> {
        self.prepared.get_or_try_init(|| schema::migrate(&self.connections)).await.copied()
    }

    async fn lease(&self, deadline: Deadline) -> Result<Lease<'_>> {
        if !self.prepared.initialized() {
            deadline.bound(async { Ok(self.prepare().await?) }).await?;
        }
        self.connections.lease(deadline).await
    }

    async fn turn(&self, deadline: Deadline) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let turn = deadline.bound(async { Ok(self.turn.lock().await) }).await;
        turn.map_err(|_| RecordsError::Unavailable("earlier changes of this daemon took too long".into()))
    }

    /// Remembers that a change did not fit on the database's disk.
    fn fitted<T>(&self, outcome: connections::Outcome<T>) -> Result<T> {
        if let Err(Problem::NoRoom(cause)) = &outcome {
            *self.no_room.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), cause.clone()));
        }
        outcome.map_err(RecordsError::from)
    }

    /// The message, if a change did not fit in the last [`FULL_DISK_HOLD`].
    fn no_room(&self) -> Option<String> {
        let known = self.no_room.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(at, _)| at.elapsed() < FULL_DISK_HOLD).map(|(_, cause)| cause.clone())
    }

    /// Call it after a standstill was written. Waits for running telemetry, which does not take the lock of `heads`.
    async fn telemetry_is_through(&self) -> Result<()> {
        let deadline = self.connections.deadline();
        if transaction!(self, deadline, |connection| transfer::wait_for_telemetry(connection).await)? {
            // Locks hold on one node of a cluster. On other nodes telemetry ends with its timeout and the server's.
            tokio::time::sleep(self.connections.timeout() + Duration::from_secs(2)).await;
        }
        Ok(())
    }

    async fn back_off(&self, attempt: u32) {
        self.conflicts.fetch_add(1, Ordering::Relaxed);
        // Two nodes that conflicted should not retry at the same moment.
        let longest = u64::from(attempt.min(8)) * 4;
        let spread = Uuid::new_v4().as_u64_pair().0 % longest;
        tokio::time::sleep(Duration::from_millis(1 + spread)).await;
    }
}

/// How long the database counts as full after a change did not fit. Meanwhile smaller changes may still fit.
const FULL_DISK_HOLD: Duration = Duration::from_secs(10);

/// How often a conflicting change is tried.
const MAX_ATTEMPTS: u32 = 20;

#[cfg(test)]
pub(crate) mod tests;
