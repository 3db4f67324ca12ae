//! Backup, restore and migration of all the records.
//!
//! All three work alike. Rows come in chunks from a store or a backup, and are counted and digested on the way. They go
//! into a store that is being filled, and are read back and compared before that store is marked as complete
//! ([`fill_from`]). The module of each says what a crash leaves; a half-filled store is marked as such (`records`).
//!
//! This module does not know how a store is opened or replaced: the wiring does ([`Stores`]).

mod backup;
pub mod check;
pub mod keys;
mod migrate;
pub mod restore;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::model::audit::AuditNote;
use crate::records::copy::{Count, Row, Table, Tally};
use crate::records::{Filling, Records, RecordsError};
use crate::seal::MasterKey;
use crate::service::{Core, People, Result, ServiceError};

pub use backup::{FORMAT, Manifest, OLDEST_FORMAT, Piece};
pub use check::Rows;
pub use migrate::Moved;
pub use restore::{Backup, Restored};

/// The target of a migration. The URL holds a secret.
#[derive(Clone)]
pub enum Target {
    Embedded,
    Database { url: String, tls: Option<bool>, ca: Option<PathBuf> },
}

/// A store beside the present one, and its name for messages, without secrets.
pub struct Opened {
    pub records: Arc<dyn Records>,
    pub name: String,
    /// What the operator must do so that daemons run on it.
    pub next: String,
}

/// What the wiring does for these use cases.
#[async_trait]
pub trait Stores: Send + Sync {
    /// The name of the store that daemons with this configuration run on.
    fn present(&self) -> String;
    async fn open(&self, target: &Target) -> Result<Opened>;
    /// An empty store for a restore, which replaces the present store at the next start; `None`: the present store
    /// itself is filled.
    async fn open_beside(&self) -> Result<Option<Arc<dyn Records>>>;
    /// Makes the next start replace the present store with the one from [`Stores::open_beside`], and the master key
    /// with this one, if there is one. Nobody may hold the new store open any more.
    async fn promote(&self, master_key: Option<&MasterKey>) -> Result<()>;
    /// A path for an incoming backup. Nobody else uses the file, and it is removed afterwards.
    fn spool(&self) -> PathBuf;
    /// The text of the configuration file that this daemon runs with; `None`: it runs without one.
    fn configuration(&self) -> Result<Option<Zeroizing<String>>>;
    /// Whether the master key is a systemd credential, not a file that could be replaced.
    fn master_key_is_a_credential(&self) -> bool;
}

/// Backups, restores and migrations.
pub struct Transfer {
    pub(in crate::service) core: Arc<Core>,
    people: Arc<People>,
    stores: Option<Arc<dyn Stores>>,
    /// One migration or restore at a time.
    moving: Mutex<()>,
}

impl Transfer {
    pub(in crate::service) fn new(core: Arc<Core>, people: Arc<People>, stores: Option<Arc<dyn Stores>>) -> Self {
        Self { core, people, stores, moving: Mutex::new(()) }
    }
}

/// The current step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferStep {
    Checking,
    Copying,
    Comparing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub step: TransferStep,
    pub rows: u64,
    /// About how many rows there are in all.
    pub of: u64,
}

/// Reports progress to the client. Once the client has disconnected, the operation ends where it still can.
#[derive(Clone)]
pub struct ProgressReporter(mpsc::Sender<Progress>);

impl ProgressReporter {
    pub fn new() -> (Self, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(4);
        (Self(sender), receiver)
    }

    async fn tell(&self, step: TransferStep, rows: u64, of: u64) -> Result<()> {
        let gone = |_| ServiceError::Refused("the client disconnected, so the operation was not finished".into());
        self.0.send(Progress { step, rows, of: of.max(rows) }).await.map_err(gone)
    }
}

type TableCounts = BTreeMap<Table, Count>;

/// The counts of a table on both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    pub table: Table,
    pub from: Count,
    pub to: Count,
}

fn compare(from: &TableCounts, to: &TableCounts) -> Result<Vec<Compared>> {
    let compared: Vec<_> = from
        .iter()
        .filter_map(|(table, count)| Some(Compared { table: *table, from: *count, to: *to.get(table)? }))
        .collect();
    let unequal: Vec<_> = compared.iter().filter(|table| table.from != table.to).map(|it| it.table.name()).collect();
    if !unequal.is_empty() || compared.len() != from.len() {
        let tables = unequal.join(", ");
        return Err(ServiceError::Refused(format!("the rows read back differ from the copied rows: {tables}")));
    }
    Ok(compared)
}

/// A running export.
struct RunningExport {
    chunks: mpsc::Receiver<Vec<Row>>,
    running: JoinHandle<std::result::Result<(), RecordsError>>,
}

impl RunningExport {
    fn begin(records: &Arc<dyn Records>) -> Self {
        let (sender, chunks) = mpsc::channel(2);
        let from = Arc::clone(records);
        Self { chunks, running: tokio::spawn(async move { from.copy_export(sender).await }) }
    }

    /// Ends an export that sends no more chunks. Fails if it did not send everything.
    async fn end(self) -> std::result::Result<(), RecordsError> {
        drop(self.chunks);
        let ended = |error| RecordsError::Unavailable(format!("the copying ended early: {error}"));
        self.running.await.map_err(ended)?
    }
}

/// Fills `target` with the rows of `chunks`, reads them back and compares. Until [`finish`] the store counts as half
/// filled.
async fn fill_from(
    target: &Arc<dyn Records>,
    name: &str,
    filling: &Filling,
    chunks: &mut mpsc::Receiver<Vec<Row>>,
    about: u64,
    reporter: &ProgressReporter,
) -> Result<Vec<Compared>> {
    let mut from = Tally::default();
    while let Some(chunk) = chunks.recv().await {
        from.add_rows(&chunk)?;
        target.fill_append(filling, &chunk).await.map_err(|error| of(name, error))?;
        reporter.tell(TransferStep::Copying, from.rows(), about).await?;
    }
    let all = from.rows();
    let mut to = Tally::default();
    let mut read_back = RunningExport::begin(target);
    while let Some(chunk) = read_back.chunks.recv().await {
        to.add_rows(&chunk)?;
        reporter.tell(TransferStep::Comparing, to.rows(), all).await?;
    }
    read_back.end().await.map_err(|error| of(name, error))?;
    compare(&from.counts(), &to.counts())
}

/// Names the store that failed: there are two.
fn of(name: &str, error: RecordsError) -> ServiceError {
    ServiceError::Refused(format!("{name}: {error}"))
}

async fn finish(target: &Arc<dyn Records>, filling: &Filling, note: &AuditNote) -> Result<()> {
    target.fill_finish(filling, note).await.map_err(|error| match error {
        RecordsError::Unavailable(cause) => ServiceError::Refused(format!(
            "it is not known whether the last step was done ({cause}): see whether a daemon starts on it, or repeat it"
        )),
        error => error.into(),
    })
}
