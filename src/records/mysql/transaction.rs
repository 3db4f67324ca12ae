//! One change, from the lock to the commit: the row of `heads`, the epoch, the audit entries.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row};
use uuid::Uuid;

use super::connections::{Outcome, Problem};
use super::rows::{self, Columns};
use super::tables::audit_log;
use crate::model::audit::{AuditEntry, AuditHead, AuditNote};
use crate::records::rules::being_filled;
use crate::records::{Epoch, Filling, RecordsError, Result, Standstill, StoreState};

/// Reads both rows in one statement, so that they are consistent.
const HEADS: &str = "SELECT heads.epoch, canonical_version, canonical_epoch, settings_epoch, certificates_epoch, \
                     authorities_epoch, users_epoch, sessions_epoch, audit_number, audit_hash, incarnation, \
                     standstill_reason, standstill_since, filling, filling_above FROM heads \
                     JOIN store_state ON store_state.id = heads.id WHERE heads.id = 0";

/// The sets that nodes read as a whole. Also the sessions: nodes read them only if one changed.
#[derive(Clone, Copy)]
pub(super) enum Set {
    Canonical,
    Settings,
    Certificates,
    Authorities,
    Users,
    Sessions,
}

/// The row of `heads`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadsRow {
    pub epoch: Epoch,
    pub canonical_version: Option<u64>,
    pub canonical_epoch: Epoch,
    pub settings_epoch: Epoch,
    pub certificates_epoch: Epoch,
    pub authorities_epoch: Epoch,
    pub users_epoch: Epoch,
    pub sessions_epoch: Epoch,
    pub audit: AuditHead,
}

/// The row of `store_state`.
pub(super) enum StoreCondition {
    Writable,
    StandsStill(Standstill),
    BeingFilled(Filling),
}

impl StoreCondition {
    fn check(&self) -> Result<()> {
        match self {
            Self::Writable => Ok(()),
            Self::StandsStill(standstill) => Err(RecordsError::StandsStill(standstill.clone())),
            Self::BeingFilled(_) => Err(being_filled()),
        }
    }
}

async fn read_heads(connection: &mut Conn, query: String) -> Outcome<(HeadsRow, Option<Uuid>, StoreCondition)> {
    let row: Option<Row> = connection.exec_first(query, ()).await?;
    let mut columns = Columns::of("heads", row.ok_or_else(|| rows::corrupt("heads", "its row is missing"))?);
    let heads = HeadsRow {
        epoch: Epoch(columns.number()?),
        canonical_version: columns.optional_number()?,
        canonical_epoch: Epoch(columns.number()?),
        settings_epoch: Epoch(columns.number()?),
        certificates_epoch: Epoch(columns.number()?),
        authorities_epoch: Epoch(columns.number()?),
        users_epoch: Epoch(columns.number()?),
        sessions_epoch: Epoch(columns.number()?),
        audit: AuditHead { number: columns.number()?, hash: columns.digest()? },
    };
    let incarnation = columns.optional_id()?;
    let standstill = columns.optional_text()?.zip(columns.optional_time()?);
    let filling = columns.optional_id()?.zip(columns.optional_number()?);
    let condition = match (filling, standstill) {
        (Some((id, above)), _) => StoreCondition::BeingFilled(Filling { id, above: Epoch(above) }),
        (None, Some((reason, since))) => StoreCondition::StandsStill(Standstill { reason, since }),
        (None, None) => StoreCondition::Writable,
    };
    Ok((heads, incarnation, condition))
}

/// A transaction that holds the lock of `heads`.
pub(super) struct Change<'a> {
    pub connection: &'a mut Conn,
    pub heads: HeadsRow,
    pub condition: StoreCondition,
    before: HeadsRow,
    notes: Vec<AuditEntry>,
}

impl<'a> Change<'a> {
    /// Fails if the store takes no changes.
    pub async fn begin(connection: &'a mut Conn) -> Outcome<Self> {
        let change = Self::begin_anyway(connection).await?;
        match change.condition.check() {
            Ok(()) => Ok(change),
            Err(refused) => change.end(Err(refused.into())).await,
        }
    }

    /// Begins a change even at a standstill and during a fill.
    pub async fn begin_anyway(connection: &'a mut Conn) -> Outcome<Self> {
        connection.query_drop("START TRANSACTION").await?;
        let (heads, condition) = match read_heads(connection, format!("{HEADS} FOR UPDATE")).await {
            Ok((heads, _, condition)) => (heads, condition),
            Err(problem) => {
                connection.query_drop("ROLLBACK").await?;
                return Err(problem);
            }
        };
        Ok(Self { connection, heads, condition, before: heads, notes: Vec::new() })
    }

    /// The epoch of this change. Every call returns the same one.
    pub fn epoch(&mut self) -> Epoch {
        self.heads.epoch = Epoch(self.before.epoch.0 + 1);
        self.heads.epoch
    }

    /// Marks a set as changed; returns the epoch.
    pub fn mark(&mut self, set: Set) -> Epoch {
        let epoch = self.epoch();
        match set {
            Set::Canonical => self.heads.canonical_epoch = epoch,
            Set::Settings => self.heads.settings_epoch = epoch,
            Set::Certificates => self.heads.certificates_epoch = epoch,
            Set::Authorities => self.heads.authorities_epoch = epoch,
            Set::Users => self.heads.users_epoch = epoch,
            Set::Sessions => self.heads.sessions_epoch = epoch,
        }
        epoch
    }

    /// Chains an audit entry to those before. It is written when the change ends.
    pub fn note(&mut self, note: &AuditNote) {
        let entry = self.heads.audit.chain(note.clone());
        self.heads.audit = AuditHead { number: entry.number, hash: entry.hash };
        self.notes.push(entry);
    }

    pub async fn run(&mut self, statement: &str, values: Vec<mysql_async::Value>) -> Outcome<()> {
        Ok(self.connection.exec_drop(statement, Params::Positional(values)).await?)
    }

    /// Commits if `outcome` is `Ok`, else rolls back.
    pub async fn end<T>(mut self, outcome: Outcome<T>) -> Outcome<T> {
        let outcome = match outcome {
            Ok(value) => self.write_heads().await.map(|()| value),
            Err(problem) => Err(problem),
        };
        end(self.connection, outcome).await
    }

    async fn write_heads(&mut self) -> Outcome<()> {
        let notes = std::mem::take(&mut self.notes);
        audit_log::write(self.connection, &notes).await?;
        if self.heads == self.before {
            return Ok(());
        }
        let HeadsRow { epoch, canonical_version, canonical_epoch, settings_epoch, .. } = self.heads;
        let HeadsRow { certificates_epoch, authorities_epoch, users_epoch, sessions_epoch, audit, .. } = self.heads;
        let values = vec![
            epoch.0.into(),
            canonical_version.into(),
            canonical_epoch.0.into(),
            settings_epoch.0.into(),
            certificates_epoch.0.into(),
            authorities_epoch.0.into(),
            users_epoch.0.into(),
            sessions_epoch.0.into(),
            audit.number.into(),
            rows::digest(&audit.hash),
        ];
        self.run(
            "UPDATE heads SET epoch = ?, canonical_version = ?, canonical_epoch = ?, settings_epoch = ?, \
             certificates_epoch = ?, authorities_epoch = ?, users_epoch = ?, sessions_epoch = ?, \
             audit_number = ?, audit_hash = ? WHERE id = 0",
            values,
        )
        .await
    }
}

/// Commits if `outcome` is `Ok`, else rolls back.
pub(super) async fn end<T>(connection: &mut Conn, outcome: Outcome<T>) -> Outcome<T> {
    let outcome = match outcome {
        Ok(value) => connection.query_drop("COMMIT").await.map(|()| value).map_err(Problem::from),
        Err(problem) => Err(problem),
    };
    if let Err(Problem::Conflict(_) | Problem::Records(_) | Problem::NoRoom(_)) = outcome {
        connection.query_drop("ROLLBACK").await?;
    }
    outcome
}

pub(super) async fn heads(connection: &mut Conn) -> Outcome<HeadsRow> {
    Ok(read_heads(connection, HEADS.into()).await?.0)
}

/// Not a prepared statement: a Galera node without a majority answers a text statement with 1047, but a prepared one
/// with a lock error.
pub(super) async fn epoch(connection: &mut Conn) -> Outcome<Epoch> {
    let epoch: Option<u64> = connection.query_first("SELECT epoch FROM heads WHERE id = 0").await?;
    Ok(Epoch(epoch.ok_or_else(|| rows::corrupt("heads", "its row is missing"))?))
}

pub(super) async fn state(connection: &mut Conn) -> Outcome<StoreState> {
    // Called for its error on a Galera node without a majority.
    epoch(connection).await?;
    let (heads, incarnation, condition) = read_heads(connection, HEADS.into()).await?;
    let standstill = match condition {
        StoreCondition::Writable => None,
        StoreCondition::StandsStill(standstill) => Some(standstill),
        StoreCondition::BeingFilled(_) => return Err(being_filled().into()),
    };
    Ok(StoreState { epoch: heads.epoch, incarnation, standstill })
}

/// Fails if the store takes no changes. For transactions that do not hold the lock.
pub(super) async fn check_writable(connection: &mut Conn) -> Outcome<()> {
    Ok(read_heads(connection, HEADS.into()).await?.2.check()?)
}

/// Fails during a fill.
pub(super) async fn check_whole(connection: &mut Conn) -> Outcome<()> {
    state(connection).await.map(|_| ())
}

/// Later reads see one moment. The level is set for the session and then set back: Vitess has no other way.
pub(super) async fn begin_snapshot(connection: &mut Conn) -> Outcome<()> {
    connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    Ok(connection.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?)
}

pub(super) async fn end_snapshot(connection: &mut Conn) -> Outcome<()> {
    connection.query_drop("ROLLBACK").await?;
    Ok(connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?)
}
