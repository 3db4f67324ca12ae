//! Moving a whole store: export, fill, standstill.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::copy::Row;
use super::{Epoch, Result};
use crate::model::audit::AuditNote;

#[async_trait]
pub trait TransferRecords: Send + Sync {
    /// Refuses every change from now on, on every node, with [`RecordsError::StandsStill`]; `None` ends that. A second
    /// call replaces the reason.
    async fn standstill_set(&self, standstill: Option<&Standstill>, audit: &AuditNote) -> Result<()>;
    /// Sends every row as of one moment, in the order of [`Table`](super::copy::Table) and of the primary keys. Waits
    /// for the receiver. After an error the receiver has only a part.
    async fn copy_export(&self, chunks: mpsc::Sender<Vec<Row>>) -> Result<()>;
    /// Empties the store to fill it with rows of a copy. Until [`TransferRecords::fill_finish`] every other call is
    /// `Unavailable`, across crashes. A second begin takes over from a fill that was cut short. `false`: the store is
    /// not empty, and `replaces` is not set.
    async fn fill_begin(&self, filling: &Filling, replaces: bool) -> Result<bool>;
    /// Adds rows, each once, in the order of the export.
    async fn fill_append(&self, filling: &Filling, rows: &[Row]) -> Result<()>;
    /// Completes the fill. The store is then initialised and writable. Its epoch is above all that a node may know, and
    /// its incarnation is the id of the fill. `Unavailable`: another fill took over.
    async fn fill_finish(&self, filling: &Filling, audit: &AuditNote) -> Result<()>;
}

/// Why the store takes no changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standstill {
    /// A sentence for the refused caller: why, and what to do.
    pub reason: String,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

impl std::fmt::Display for Standstill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// One fill of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filling {
    /// New for each fill; becomes the store's incarnation.
    pub id: Uuid,
    /// The filled store gets an epoch above this one and above its own.
    pub above: Epoch,
}
