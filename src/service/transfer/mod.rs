//! The records as a whole, moved: a copy for a backup, a backup put back, another store in the place of this one.
//!
//! All three are the same walk: rows come from a store or a backup chunk by chunk, are counted and digested as they pass,
//! go into a store that is being filled, and are read back and compared before that store is made whole ([`fill_from`]).
//! What a crash leaves is told by each of them; a store that is half filled says so itself (`records`).
//!
//! How a store is opened, and how one takes the place of another, is the wiring's affair: [`Stores`].

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

/// Where a migration goes. The URL holds a secret.
#[derive(Clone)]
pub enum Target {
    Embedded,
    Database { url: String, tls: Option<bool>, ca: Option<PathBuf> },
}

/// A store beside the present one, and how it is called in sentences: without secrets.
pub struct Opened {
    pub records: Arc<dyn Records>,
    pub name: String,
    /// What the operator is to do for daemons to run on it.
    pub next: String,
}

/// What the wiring does for these use cases.
#[async_trait]
pub trait Stores: Send + Sync {
    /// The store that daemons of this configuration run on.
    fn present(&self) -> String;
    async fn open(&self, target: &Target) -> Result<Opened>;
    /// Where a restore is filled into, empty, if it is to take the place of the present store with the next start; `None`:
    /// the present store itself is filled.
    async fn open_beside(&self) -> Result<Option<Arc<dyn Records>>>;
    /// From here on the next start puts what [`Stores::open_beside`] gave, which nobody holds any more, in the place of the
    /// present store, and the key, where there is one, in the place of the master key.
    async fn promote(&self, master_key: Option<&MasterKey>) -> Result<()>;
    /// A file for a backup on its way in; it is there for nobody else, and removed afterwards.
    fn spool(&self) -> PathBuf;
    /// The text of the configuration file that this daemon runs with; `None`: it runs without one.
    fn configuration(&self) -> Result<Option<Zeroizing<String>>>;
    /// The master key is not a file that could be replaced.
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

/// What it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Checking,
    Copying,
    Comparing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub step: Step,
    pub rows: u64,
    /// About so many there will be.
    pub of: u64,
}

/// Who asked, and sees how far it is. Once they have gone away it ends, as far as it can.
#[derive(Clone)]
pub struct Teller(mpsc::Sender<Progress>);

impl Teller {
    pub fn new() -> (Self, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(4);
        (Self(sender), receiver)
    }

    async fn tell(&self, step: Step, rows: u64, of: u64) -> Result<()> {
        let gone = |_| ServiceError::Refused("whoever asked for it has gone away: it was not finished".into());
        self.0.send(Progress { step, rows, of: of.max(rows) }).await.map_err(gone)
    }
}

type Counts = BTreeMap<Table, Count>;

/// A table on both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    pub table: Table,
    pub from: Count,
    pub to: Count,
}

fn compare(from: &Counts, to: &Counts) -> Result<Vec<Compared>> {
    let compared: Vec<_> = from
        .iter()
        .filter_map(|(table, count)| Some(Compared { table: *table, from: *count, to: *to.get(table)? }))
        .collect();
    let unequal: Vec<_> = compared.iter().filter(|table| table.from != table.to).map(|it| it.table.name()).collect();
    if !unequal.is_empty() || compared.len() != from.len() {
        let tables = unequal.join(", ");
        return Err(ServiceError::Refused(format!("what was read back is not equal to what was copied: {tables}")));
    }
    Ok(compared)
}

/// An export that runs.
struct Export {
    chunks: mpsc::Receiver<Vec<Row>>,
    running: JoinHandle<std::result::Result<(), RecordsError>>,
}

impl Export {
    fn begin(records: &Arc<dyn Records>) -> Self {
        let (sender, chunks) = mpsc::channel(2);
        let from = Arc::clone(records);
        Self { chunks, running: tokio::spawn(async move { from.copy_export(sender).await }) }
    }

    /// Once there are no more chunks: whether that was all.
    async fn end(self) -> std::result::Result<(), RecordsError> {
        drop(self.chunks);
        let ended = |error| RecordsError::Unavailable(format!("the copying ended early: {error}"));
        self.running.await.map_err(ended)?
    }
}

/// Fills `target` with what `chunks` brings, reads it back and compares, and makes it whole. Whatever goes wrong before the
/// last step leaves a store that says it is half filled.
async fn fill_from(
    target: &Arc<dyn Records>,
    name: &str,
    filling: &Filling,
    chunks: &mut mpsc::Receiver<Vec<Row>>,
    about: u64,
    teller: &Teller,
) -> Result<Vec<Compared>> {
    let mut from = Tally::default();
    while let Some(chunk) = chunks.recv().await {
        from.add_rows(&chunk)?;
        target.fill_append(filling, &chunk).await.map_err(|error| of(name, error))?;
        teller.tell(Step::Copying, from.rows(), about).await?;
    }
    let all = from.rows();
    let mut to = Tally::default();
    let mut read_back = Export::begin(target);
    while let Some(chunk) = read_back.chunks.recv().await {
        to.add_rows(&chunk)?;
        teller.tell(Step::Comparing, to.rows(), all).await?;
    }
    read_back.end().await.map_err(|error| of(name, error))?;
    compare(&from.counts(), &to.counts())
}

/// Of two stores, the one that failed is named.
fn of(name: &str, error: RecordsError) -> ServiceError {
    ServiceError::Refused(format!("{name}: {error}"))
}

async fn finish(target: &Arc<dyn Records>, filling: &Filling, note: &AuditNote) -> Result<()> {
    target.fill_finish(filling, note).await.map_err(|error| match error {
        RecordsError::Unavailable(cause) => ServiceError::Refused(format!(
            "whether the last step was done is not known ({cause}): look whether a daemon starts on it, or do it again"
        )),
        error => error.into(),
    })
}
