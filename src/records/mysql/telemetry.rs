//! Telemetry of hosts. Each batch is applied once.
//!
//! Audit entries form one chain, so a batch with any of them is a change like any other and takes the lock of `heads`.
//! A batch of sightings alone, the usual case, takes no such lock and delays no change. This is safe:
//!
//! - *Once*: the node's row of `outbox_positions` is locked first and advanced in the same transaction.
//! - *No count is lost between nodes*: rows of `host_auth_states` are locked before they are read, in the order of their
//!   ids. Another order, or a purge, may deadlock; the database ends one transaction, and it is retried. On a cluster both
//!   write these rows, and the second commit is refused.
//! - *A removed host keeps no activity*: its removal is read after its row is locked, and a purge writes that row. A removal
//!   that commits in between counts as later.
//! - *A store at standstill, or being filled, gets no telemetry*: that is read after the node's row is locked. A standstill
//!   is written first and then locks the rows of all nodes, so it waits for batches that read the earlier state.
//!
//! Only the holder of a host's lock in `host_auth_states` changes the host's digests.

use std::collections::{BTreeMap, BTreeSet};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use uuid::Uuid;

use super::connections::{DUPLICATE_KEY, Outcome, Problem};
use super::rows::{self, Columns};
use super::transaction::{self, Change};
use crate::model::digest::Digest;
use crate::model::host::{HostActivity, HostId};
use crate::records::{Result, Telemetry};

const TABLE: &str = "host_auth_states";

/// Hosts read and written by one statement.
const HOSTS_PER_STATEMENT: usize = 500;

const STATE: &str = "host_id, api_calls, last_seen, last_refresh, client_version, wrapper_version, wrapper_fetched_at";

/// Whether a batch has audit entries.
pub(super) fn is_noted(batch: &[Telemetry]) -> bool {
    batch.iter().any(|telemetry| matches!(telemetry, Telemetry::Noted { .. }))
}

/// Applies a batch that [`is_noted`].
pub(super) async fn append(change: &mut Change<'_>, node: Uuid, seq: u64, batch: &[Telemetry]) -> Outcome<()> {
    if !move_on(change.connection, node, seq).await? {
        return Ok(());
    }
    for telemetry in batch {
        if let Telemetry::Noted { note } = telemetry {
            change.note(note);
        }
    }
    apply(change.connection, batch).await
}

/// Applies a batch of sightings, as a transaction of its own.
pub(super) async fn append_apart(connection: &mut Conn, node: Uuid, seq: u64, batch: &[Telemetry]) -> Outcome<()> {
    connection.query_drop("START TRANSACTION").await?;
    let applied = apply_apart(connection, node, seq, batch).await;
    transaction::end(connection, applied).await
}

async fn apply_apart(connection: &mut Conn, node: Uuid, seq: u64, batch: &[Telemetry]) -> Outcome<()> {
    if !move_on(connection, node, seq).await? {
        return Ok(());
    }
    // The check must come after the lock of the node's row: see `wait_for_others`.
    transaction::check_writable(connection).await?;
    apply(connection, batch).await
}

/// Call it after a standstill was committed. Waits for the batches that began before.
pub(super) async fn wait_for_others(connection: &mut Conn) -> Outcome<()> {
    let _: Vec<Row> = connection.exec("SELECT seq FROM outbox_positions ORDER BY node FOR UPDATE", ()).await?;
    Ok(())
}

/// `false`: this batch, or a later one, was applied before.
async fn move_on(connection: &mut Conn, node: Uuid, seq: u64) -> Outcome<bool> {
    let node = rows::id(node);
    let statement = "UPDATE outbox_positions SET seq = ? WHERE node = ? AND seq < ?";
    connection.exec_drop(statement, (seq, node.clone(), seq)).await?;
    if connection.affected_rows() > 0 {
        return Ok(true);
    }
    let known: Option<u64> =
        connection.exec_first("SELECT seq FROM outbox_positions WHERE node = ?", (node.clone(),)).await?;
    if known.is_some() {
        return Ok(false);
    }
    // The node's first batch.
    match connection.exec_drop("INSERT INTO outbox_positions (seq, node) VALUES (?, ?)", (seq, node)).await {
        Ok(()) => Ok(true),
        Err(mysql_async::Error::Server(error)) if error.code == DUPLICATE_KEY => {
            Err(Problem::Conflict(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

async fn apply(connection: &mut Conn, batch: &[Telemetry]) -> Outcome<()> {
    let mut seen: BTreeMap<HostId, Vec<&Telemetry>> = BTreeMap::new();
    for telemetry in batch {
        if let Telemetry::Seen { host, .. } = telemetry {
            seen.entry(*host).or_default().push(telemetry);
        }
    }
    let seen: Vec<_> = seen.into_iter().collect();
    for seen in seen.chunks(HOSTS_PER_STATEMENT) {
        apply_some(connection, seen).await?;
    }
    Ok(())
}

async fn apply_some(connection: &mut Conn, seen: &[(HostId, Vec<&Telemetry>)]) -> Outcome<()> {
    let places = rows::places(1, seen.len());
    let ids = || Params::Positional(seen.iter().map(|(id, _)| id.0.into()).collect());
    let statement =
        format!("SELECT {STATE} FROM host_auth_states WHERE host_id IN {places} ORDER BY host_id FOR UPDATE");
    let states: Vec<Row> = connection.exec(statement, ids()).await?;
    let mut known =
        states.into_iter().map(|row| read_state(&mut Columns::of(TABLE, row))).collect::<Result<BTreeMap<_, _>>>()?;
    let statement = format!(
        "SELECT id, digest FROM hosts LEFT JOIN host_auth_digests ON host_id = id \
         WHERE id IN {places} AND removed_at IS NULL ORDER BY id, place"
    );
    let rows: Vec<Row> = connection.exec(statement, ids()).await?;
    let mut there: BTreeMap<HostId, Vec<Digest>> = BTreeMap::new();
    for row in rows {
        let mut columns = Columns::of("host_auth_digests", row);
        there.entry(HostId(columns.number()?)).or_default().extend(columns.optional_digest()?);
    }
    // A removed host keeps no activity.
    known.retain(|id, _| there.contains_key(id));
    let mut with_digests = BTreeSet::new();
    for (id, telemetry) in seen {
        let Some(activity) = known.get_mut(id) else { continue };
        activity.digests = there.remove(id).unwrap_or_default().into_iter().collect();
        let before = activity.digests.clone();
        telemetry.iter().for_each(|telemetry| telemetry.apply_to(activity));
        if activity.digests != before {
            with_digests.insert(*id);
        }
    }
    put_states(connection, &known).await?;
    known.retain(|id, _| with_digests.contains(id));
    put_digests(connection, &known).await
}

/// Replaces the activity of these hosts.
pub(super) async fn put(connection: &mut Conn, activities: &BTreeMap<HostId, HostActivity>) -> Outcome<()> {
    put_states(connection, activities).await?;
    put_digests(connection, activities).await
}

async fn put_states(connection: &mut Conn, activities: &BTreeMap<HostId, HostActivity>) -> Outcome<()> {
    if activities.is_empty() {
        return Ok(());
    }
    let statement = format!(
        "INSERT INTO host_auth_states (host_id, api_calls, last_seen, last_refresh, client_version, wrapper_version, \
         wrapper_fetched_at) VALUES {} ON DUPLICATE KEY UPDATE api_calls = VALUES(api_calls), \
         last_seen = VALUES(last_seen), last_refresh = VALUES(last_refresh), client_version = VALUES(client_version), \
         wrapper_version = VALUES(wrapper_version), wrapper_fetched_at = VALUES(wrapper_fetched_at)",
        rows::places(activities.len(), 7)
    );
    let values = activities.iter().flat_map(|(id, activity)| -> [Value; 7] {
        [
            id.0.into(),
            activity.api_calls.into(),
            rows::optional_time(activity.last_seen),
            activity.last_refresh.as_deref().into(),
            activity.client_version.as_deref().into(),
            activity.wrapper_version.as_deref().into(),
            rows::optional_time(activity.wrapper_fetched_at),
        ]
    });
    Ok(connection.exec_drop(statement, Params::Positional(values.collect())).await?)
}

/// A host never has fewer digests than before, so each place is overwritten.
async fn put_digests(connection: &mut Conn, activities: &BTreeMap<HostId, HostActivity>) -> Outcome<()> {
    let mut values: Vec<Value> = Vec::new();
    for (id, activity) in activities {
        for (place, digest) in (0_u64..).zip(activity.digests.as_slice()) {
            values.extend([id.0.into(), place.into(), rows::digest(digest)]);
        }
    }
    if values.is_empty() {
        return Ok(());
    }
    let statement = format!(
        "INSERT INTO host_auth_digests (host_id, place, digest) VALUES {} \
         ON DUPLICATE KEY UPDATE digest = VALUES(digest)",
        rows::places(values.len() / 3, 3)
    );
    Ok(connection.exec_drop(statement, Params::Positional(values)).await?)
}

pub(super) async fn activity(connection: &mut Conn, id: HostId) -> Outcome<HostActivity> {
    let mut known = activities(connection, "WHERE host_id = ?", vec![id.0.into()]).await?;
    Ok(known.remove(&id).unwrap_or_default())
}

pub(super) async fn activities(
    connection: &mut Conn,
    which: &str,
    values: Vec<Value>,
) -> Outcome<BTreeMap<HostId, HostActivity>> {
    // The digests are read as one column, so that one statement reads everything as of one moment.
    let statement = format!(
        "SELECT {STATE}, (SELECT GROUP_CONCAT(HEX(digest) ORDER BY place SEPARATOR ',') FROM host_auth_digests \
         WHERE host_auth_digests.host_id = host_auth_states.host_id) FROM host_auth_states {which}"
    );
    Ok(rows::read_all(connection, statement, values, read).await?.into_iter().collect())
}

fn read(row: Row) -> Result<(HostId, HostActivity)> {
    let mut columns = Columns::of(TABLE, row);
    let (id, activity) = read_state(&mut columns)?;
    let digests = columns.optional_text()?.unwrap_or_default();
    let digests = digests.split(',').filter(|digest| !digest.is_empty()).map(str::parse);
    let digests = digests.collect::<std::result::Result<_, _>>().map_err(|e| rows::corrupt("host_auth_digests", e))?;
    Ok((id, HostActivity { digests, ..activity }))
}

/// Reads everything except the digests.
fn read_state(columns: &mut Columns) -> Result<(HostId, HostActivity)> {
    let id = HostId(columns.number()?);
    let activity = HostActivity {
        api_calls: columns.number()?,
        last_seen: columns.optional_time()?,
        last_refresh: columns.optional_text()?,
        client_version: columns.optional_text()?,
        wrapper_version: columns.optional_text()?,
        wrapper_fetched_at: columns.optional_time()?,
        digests: Default::default(),
    };
    Ok((id, activity))
}
