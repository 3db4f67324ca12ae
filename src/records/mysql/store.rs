//! The store itself: first boot, health, state, change feed.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;

use super::tables::{authorities, sealing, settings};
use super::transaction::{self, Change};
use super::{MySql, change_feed, schema};
use crate::model::audit::AuditNote;
use crate::records::{Changes, Epoch, RecordStore, RecordsError, Result, Seed, ServerHealth, StoreFailure, StoreState};

#[async_trait]
impl RecordStore for MySql {
    async fn initialise(&self, seed: &Seed, note: &AuditNote) -> Result<bool> {
        change!(self, |change| {
            if settings::initialised(change.connection).await? {
                return Ok(false);
            }
            sealing::insert(change, &seed.sealing_key).await?;
            for authority in &seed.authorities {
                authorities::insert(change, authority).await?;
            }
            settings::put_server_key(change, &seed.server_key).await?;
            change.run("UPDATE settings SET initialised = 1 WHERE id = 0", vec![]).await?;
            change.note(note);
            Ok(true)
        })
    }

    async fn is_initialised(&self) -> Result<bool> {
        read!(self, |connection| {
            transaction::check_whole(connection).await?;
            settings::initialised(connection).await
        })
    }

    async fn check(&self) -> Result<()> {
        if let Some(cause) = self.no_room() {
            return Err(RecordsError::Unavailable(cause));
        }
        transaction!(self, self.connections.deadline(), |connection| {
            // Tries a write and rolls it back.
            let change = Change::begin(connection).await?;
            let tried = change.connection.query_drop("UPDATE heads SET epoch = epoch + 1 WHERE id = 0").await;
            change.connection.query_drop("ROLLBACK").await?;
            Ok(tried?)
        })
    }

    fn failure(&self) -> Option<StoreFailure> {
        // A database that cannot be reached comes back; nothing has to be opened again.
        None
    }

    fn may_be_away(&self) -> bool {
        true
    }

    fn refused_lately(&self) -> bool {
        self.no_room().is_some()
    }

    async fn server_health(&self) -> Result<Option<ServerHealth>> {
        read!(self, |connection| schema::examine(connection).await).map(Some)
    }

    fn conflicts(&self) -> u64 {
        self.conflicts.load(Ordering::Relaxed)
    }

    async fn epoch(&self) -> Result<Epoch> {
        read!(self, |connection| transaction::epoch(connection).await)
    }

    async fn state(&self) -> Result<StoreState> {
        read!(self, |connection| transaction::state(connection).await)
    }

    async fn changes_since(&self, epoch: Epoch) -> Result<Changes> {
        read!(self, |connection| change_feed::since(connection, epoch).await)
    }
}
