//! One change, from the lock to the commit; the epoch, and what changed after which.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row};
use uuid::Uuid;

use super::connections::{Outcome, Problem};
use super::rows::{self, Columns};
use super::{audit, authorities, canonical, hosts, install_tokens, sessions, settings, users};
use crate::model::audit::{AuditEntry, AuditHead, AuditNote};
use crate::records::rules::being_filled;
use crate::records::{Changes, Epoch, Filling, RecordsError, Result, Standstill, StoreState};

/// What nodes read as a whole; and the sessions, which they ask for only where one changed.
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
pub(super) struct Heads {
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

/// What is going on with the store as a whole: the row of `store_state`.
pub(super) enum Going {
    On,
    StandsStill(Standstill),
    Filled(Filling),
}

impl Going {
    fn check(&self) -> Result<()> {
        match self {
            Self::On => Ok(()),
            Self::StandsStill(standstill) => Err(RecordsError::StandsStill(standstill.clone())),
            Self::Filled(_) => Err(being_filled()),
        }
    }
}

/// Both rows, so that either says what was so when the other did.
const HEADS: &str = "SELECT heads.epoch, canonical_version, canonical_epoch, settings_epoch, certificates_epoch, \
                     authorities_epoch, users_epoch, sessions_epoch, audit_number, audit_hash, incarnation, \
                     standstill_reason, standstill_since, filling, filling_above FROM heads JOIN store_state ON store_state.id = heads.id WHERE heads.id = 0";

async fn read_heads(connection: &mut Conn, query: String) -> Outcome<(Heads, Option<Uuid>, Going)> {
    let row: Option<Row> = connection.exec_first(query, ()).await?;
    let mut columns = Columns::of("heads", row.ok_or_else(|| rows::corrupt("heads", "its row is missing"))?);
    let heads = Heads {
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
    let going = match (filling, standstill) {
        (Some((id, above)), _) => Going::Filled(Filling { id, above: Epoch(above) }),
        (None, Some((reason, since))) => Going::StandsStill(Standstill { reason, since }),
        (None, None) => Going::On,
    };
    Ok((heads, incarnation, going))
}

/// A transaction that has the lock.
pub(super) struct Change<'a> {
    pub connection: &'a mut Conn,
    pub heads: Heads,
    pub going: Going,
    before: Heads,
    notes: Vec<AuditEntry>,
}

impl<'a> Change<'a> {
    /// Refused where the store takes no changes now.
    pub async fn begin(connection: &'a mut Conn) -> Outcome<Self> {
        let change = Self::begin_anyway(connection).await?;
        match change.going.check() {
            Ok(()) => Ok(change),
            Err(refused) => change.end(Err(refused.into())).await,
        }
    }

    /// Whatever is going on with the store as a whole.
    pub async fn begin_anyway(connection: &'a mut Conn) -> Outcome<Self> {
        connection.query_drop("START TRANSACTION").await?;
        let (heads, going) = match read_heads(connection, format!("{HEADS} FOR UPDATE")).await {
            Ok((heads, _, going)) => (heads, going),
            Err(problem) => {
                connection.query_drop("ROLLBACK").await?;
                return Err(problem);
            }
        };
        Ok(Self { connection, heads, going, before: heads, notes: Vec::new() })
    }

    /// The epoch of this change: the same one however often it is asked for.
    pub fn epoch(&mut self) -> Epoch {
        self.heads.epoch = Epoch(self.before.epoch.0 + 1);
        self.heads.epoch
    }

    /// Marks a set as changed; gives the epoch.
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

    /// Chains an entry to those before.
    pub fn note(&mut self, note: &AuditNote) {
        let entry = self.heads.audit.chain(note.clone());
        self.heads.audit = AuditHead { number: entry.number, hash: entry.hash };
        self.notes.push(entry);
    }

    pub async fn run(&mut self, statement: &str, values: Vec<mysql_async::Value>) -> Outcome<()> {
        Ok(self.connection.exec_drop(statement, Params::Positional(values)).await?)
    }

    /// Commits what `outcome` says is done, and rolls everything back if it is a problem.
    pub async fn end<T>(mut self, outcome: Outcome<T>) -> Outcome<T> {
        let outcome = match outcome {
            Ok(value) => self.write_heads().await.map(|()| value),
            Err(problem) => Err(problem),
        };
        end(self.connection, outcome).await
    }

    async fn write_heads(&mut self) -> Outcome<()> {
        let notes = std::mem::take(&mut self.notes);
        audit::write(self.connection, &notes).await?;
        if self.heads == self.before {
            return Ok(());
        }
        let Heads { epoch, canonical_version, canonical_epoch, settings_epoch, .. } = self.heads;
        let Heads { certificates_epoch, authorities_epoch, users_epoch, sessions_epoch, audit, .. } = self.heads;
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
             certificates_epoch = ?, authorities_epoch = ?, users_epoch = ?, sessions_epoch = ?, audit_number = ?, audit_hash = ? WHERE id = 0",
            values,
        )
        .await
    }
}

/// Ends a transaction: commits what `outcome` says is done, and rolls everything back if it is a problem.
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

pub(super) async fn heads(connection: &mut Conn) -> Outcome<Heads> {
    Ok(read_heads(connection, HEADS.into()).await?.0)
}

/// Not prepared: a Galera node that is cut off from the majority says so to a statement that comes as text (1047); one that was
/// prepared is told of a lock.
pub(super) async fn epoch(connection: &mut Conn) -> Outcome<Epoch> {
    let epoch: Option<u64> = connection.query_first("SELECT epoch FROM heads WHERE id = 0").await?;
    Ok(Epoch(epoch.ok_or_else(|| rows::corrupt("heads", "its row is missing"))?))
}

pub(super) async fn state(connection: &mut Conn) -> Outcome<StoreState> {
    // For what it says of a node that is cut off.
    epoch(connection).await?;
    let (heads, incarnation, going) = read_heads(connection, HEADS.into()).await?;
    let standstill = match going {
        Going::On => None,
        Going::StandsStill(standstill) => Some(standstill),
        Going::Filled(_) => return Err(being_filled().into()),
    };
    Ok(StoreState { epoch: heads.epoch, incarnation, standstill })
}

/// Whether the store takes changes, for who does without the lock.
pub(super) async fn check_going_on(connection: &mut Conn) -> Outcome<()> {
    Ok(read_heads(connection, HEADS.into()).await?.2.check()?)
}

/// Whether the store is not just being filled.
pub(super) async fn check_whole(connection: &mut Conn) -> Outcome<()> {
    state(connection).await.map(|_| ())
}

/// Whether the database takes writes; nothing is changed.
pub(super) async fn check(connection: &mut Conn) -> Outcome<()> {
    let change = Change::begin(connection).await?;
    let tried = change.connection.query_drop("UPDATE heads SET epoch = epoch + 1 WHERE id = 0").await;
    change.connection.query_drop("ROLLBACK").await?;
    Ok(tried?)
}

pub(super) async fn since(connection: &mut Conn, since: Epoch) -> Outcome<Changes> {
    // Nearly every poll finds nothing.
    let now = epoch(connection).await?;
    if now <= since {
        return Ok(Changes { epoch: now, ..Changes::default() });
    }
    begin_snapshot(connection).await?;
    let read = read_since(connection, since).await;
    end_snapshot(connection).await?;
    read
}

/// What is read from here on is of one moment. For the session, and back: Vitess knows no other way.
pub(super) async fn begin_snapshot(connection: &mut Conn) -> Outcome<()> {
    connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    Ok(connection.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?)
}

pub(super) async fn end_snapshot(connection: &mut Conn) -> Outcome<()> {
    connection.query_drop("ROLLBACK").await?;
    Ok(connection.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?)
}

async fn read_since(connection: &mut Conn, since: Epoch) -> Outcome<Changes> {
    let heads = heads(connection).await?;
    let mut changes = Changes {
        epoch: heads.epoch,
        hosts: hosts::changed(connection, since).await?,
        install_tokens: install_tokens::changed(connection, since).await?,
        ..Changes::default()
    };
    if let Some(version) = heads.canonical_version.filter(|_| heads.canonical_epoch > since) {
        changes.canonical = canonical::version(connection, version).await?;
    }
    if heads.settings_epoch > since {
        changes.settings = Some(settings::present(connection).await?);
    }
    if heads.certificates_epoch > since {
        changes.certificates = Some(authorities::certificates(connection).await?);
    }
    if heads.authorities_epoch > since {
        changes.authorities = Some(authorities::all(connection).await?);
    }
    if heads.users_epoch > since {
        changes.users = Some(users::all(connection).await?);
    }
    if heads.sessions_epoch > since {
        changes.sessions = sessions::changed(connection, since).await?;
    }
    Ok(changes)
}
