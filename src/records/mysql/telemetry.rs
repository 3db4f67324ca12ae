//! What hosts' calls leave behind, each batch once.

use std::collections::BTreeMap;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use uuid::Uuid;

use super::changes::Change;
use super::connections::Outcome;
use super::rows::{self, Columns};
use crate::model::host::{HostActivity, HostId};
use crate::records::{Result, Telemetry};

const TABLE: &str = "host_auth_states";
/// How many hosts are read and written with one statement.
const TOGETHER: usize = 500;

pub(super) async fn append(change: &mut Change<'_>, node: Uuid, seq: u64, batch: &[Telemetry]) -> Outcome<()> {
    let statement = "SELECT seq FROM outbox_positions WHERE node = ?";
    let applied: Option<u64> = change.connection.exec_first(statement, (rows::id(node),)).await?;
    if applied.is_some_and(|applied| seq <= applied) {
        return Ok(());
    }
    let statement = match applied {
        Some(_) => "UPDATE outbox_positions SET seq = ? WHERE node = ?",
        None => "INSERT INTO outbox_positions (seq, node) VALUES (?, ?)",
    };
    change.run(statement, vec![seq.into(), rows::id(node)]).await?;
    let mut seen: BTreeMap<HostId, Vec<&Telemetry>> = BTreeMap::new();
    for telemetry in batch {
        match telemetry {
            Telemetry::Noted { note } => change.note(note),
            Telemetry::Seen { host, .. } => seen.entry(*host).or_default().push(telemetry),
        }
    }
    let seen: Vec<_> = seen.into_iter().collect();
    for seen in seen.chunks(TOGETHER) {
        apply(change, seen).await?;
    }
    Ok(())
}

async fn apply(change: &mut Change<'_>, seen: &[(HostId, Vec<&Telemetry>)]) -> Outcome<()> {
    let ids = || seen.iter().map(|(id, _)| Value::from(id.0)).collect();
    // A host that was removed while this was under way leaves nothing behind.
    let which = format!(
        "JOIN hosts ON hosts.id = host_id WHERE host_id IN {} AND removed_at IS NULL",
        rows::places(1, seen.len())
    );
    let mut known = activities(change.connection, &which, ids()).await?;
    let mut digests_changed = Vec::new();
    for (id, telemetry) in seen {
        let Some(activity) = known.get_mut(id) else { continue };
        let before = activity.digests.clone();
        telemetry.iter().for_each(|telemetry| telemetry.apply_to(activity));
        if activity.digests != before {
            digests_changed.push(*id);
        }
    }
    if known.is_empty() {
        return Ok(());
    }
    let statement = format!(
        "INSERT INTO host_auth_states (host_id, api_calls, last_seen, last_refresh, client_version, wrapper_version, \
         wrapper_fetched_at) VALUES {} ON DUPLICATE KEY UPDATE api_calls = VALUES(api_calls), \
         last_seen = VALUES(last_seen), last_refresh = VALUES(last_refresh), client_version = VALUES(client_version), \
         wrapper_version = VALUES(wrapper_version), wrapper_fetched_at = VALUES(wrapper_fetched_at)",
        rows::places(known.len(), 7)
    );
    let values = known.iter().flat_map(|(id, activity)| -> [Value; 7] {
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
    change.run(&statement, values.collect()).await?;
    put_digests(change, &known, &digests_changed).await
}

async fn put_digests(
    change: &mut Change<'_>,
    activities: &BTreeMap<HostId, HostActivity>,
    changed: &[HostId],
) -> Outcome<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let ids = changed.iter().map(|id| id.0.into()).collect();
    let places = rows::places(1, changed.len());
    change.run(&format!("DELETE FROM host_auth_digests WHERE host_id IN {places}"), ids).await?;
    let mut values: Vec<Value> = Vec::new();
    for id in changed {
        let digests = activities.get(id).map(|activity| activity.digests.as_slice()).unwrap_or_default();
        for (place, digest) in (0_u64..).zip(digests) {
            values.extend([id.0.into(), place.into(), rows::digest(digest)]);
        }
    }
    let places = rows::places(values.len() / 3, 3);
    change.run(&format!("INSERT INTO host_auth_digests (host_id, place, digest) VALUES {places}"), values).await
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
    // The digests in one column, so that a host's activity is read as it was at one moment.
    let statement = format!(
        "SELECT host_id, api_calls, last_seen, last_refresh, client_version, wrapper_version, wrapper_fetched_at, \
         (SELECT GROUP_CONCAT(HEX(digest) ORDER BY place SEPARATOR ',') FROM host_auth_digests \
         WHERE host_auth_digests.host_id = host_auth_states.host_id) FROM host_auth_states {which}"
    );
    let rows: Vec<Row> = connection.exec(statement, Params::Positional(values)).await?;
    Ok(rows.into_iter().map(read).collect::<Result<_>>()?)
}

fn read(row: Row) -> Result<(HostId, HostActivity)> {
    let mut columns = Columns::of(TABLE, row);
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
    let digests = columns.optional_text()?.unwrap_or_default();
    let digests = digests.split(',').filter(|digest| !digest.is_empty()).map(str::parse);
    let digests = digests.collect::<std::result::Result<_, _>>().map_err(|e| rows::corrupt("host_auth_digests", e))?;
    Ok((id, HostActivity { digests, ..activity }))
}
