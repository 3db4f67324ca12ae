//! A backup: every row as a line, and a manifest with the count and digest of each table.
//!
//! The lines come from one moment of the store, while it goes on working. The manifest comes last, so a backup with a
//! manifest is complete. Neither contains the master key, so both together open nothing. The manifest says whether the
//! keys are sealed beside them ([`crate::service::transfer::keys`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::model::checkup::shown;
use crate::records::copy::{Count, Table, Tally};
use crate::records::{Epoch, SettingsChange, VerifiedBackup};
use crate::service::core::initiator::log_note;
use crate::service::transfer::{RunningExport, TableCounts};
use crate::service::{Initiator, Result, ServiceError, Transfer};

/// The format of the rows and of the manifest. It grows with each member that a row gains: an older version would leave
/// the member out, and compute another digest. Format 2 has `public_urls` in the settings.
pub const FORMAT: u32 = 2;
pub const OLDEST_FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The version of codex-authd.
    pub version: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The epoch of the records was not above this.
    pub epoch: Epoch,
    pub tables: BTreeMap<Table, Count>,
    pub rows: u64,
    /// The backup holds the keys, sealed under a passphrase ([`crate::service::transfer::keys`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_keys: bool,
}

impl Manifest {
    /// The count and digest that a table must have.
    pub fn count(&self, table: Table) -> Option<Count> {
        let later = || Table::LATER.contains(&table).then(Count::of_nothing);
        self.tables.get(&table).copied().or_else(later)
    }
}

/// A piece of a backup, in the order in which they are sent.
pub enum Piece {
    /// About how many rows will follow.
    About(u64),
    /// A row, without the end of the line.
    Line(String),
    /// The last piece.
    Manifest(Manifest),
}

impl Transfer {
    /// Sends every row, and then the manifest. The audit entry is written before the first row leaves.
    pub async fn backup(&self, by: &Initiator, pieces: mpsc::Sender<Piece>) -> Result<()> {
        let now = self.core.platform.now();
        // A store at a standstill can be copied, but takes no audit entry.
        if self.core.health.standstill().is_none() {
            let note = by.note(now, "state.backup");
            self.core.records.audit_append(std::slice::from_ref(&note)).await?;
            log_note(&note);
        }
        let gone = |_| ServiceError::Refused("the client disconnected before the backup was complete".into());
        pieces.send(Piece::About(self.about_rows().await?)).await.map_err(gone)?;
        let mut tally = Tally::default();
        let mut export = RunningExport::begin(&self.core.records);
        while let Some(chunk) = export.chunks.recv().await {
            for row in &chunk {
                let line = row.line()?;
                tally.add(row.table(), &line);
                pieces.send(Piece::Line(line)).await.map_err(gone)?;
            }
        }
        export.end().await?;
        let rows = tally.rows();
        let tables: TableCounts = tally.counts();
        let version = env!("CARGO_PKG_VERSION").into();
        let epoch = self.core.records.epoch().await?;
        let manifest = Manifest { format: FORMAT, version, created_at: now, epoch, tables, rows, has_keys: false };
        pieces.send(Piece::Manifest(manifest)).await.map_err(gone)
    }

    /// Records that a backup was read back. Returns the newest backup that is recorded.
    pub async fn backup_verified(&self, backup: VerifiedBackup, by: &Initiator) -> Result<VerifiedBackup> {
        let note = by.note(self.core.platform.now(), "state.backup_verified").with("backup_of", shown(backup.made_at));
        let changed = self.core.change_settings(&note, SettingsChange::BackupVerified(backup.clone())).await?;
        let settings = changed.map_or_else(|| self.core.settings(), Arc::new);
        Ok(settings.verified_backup.clone().unwrap_or(backup))
    }

    /// About how many rows the records have: for a progress bar.
    pub(in crate::service) async fn about_rows(&self) -> Result<u64> {
        let entries = self.core.records.audit_head().await?.number;
        // Most hosts also have an installer and activity.
        let hosts = self.core.hot.host_states()?.total() * 3;
        Ok(entries + hosts + 10)
    }

    pub(in crate::service) fn stores(&self) -> Result<&Arc<dyn crate::service::transfer::Stores>> {
        self.stores.as_ref().ok_or_else(|| ServiceError::internal("no way to open stores is configured"))
    }
}
