//! The store as a whole: copied out, filled from a copy, standing still.
//!
//! A copy is read from a snapshot of the rows, so changes go on meanwhile. While the store is filled, its row says so,
//! and that is the first thing written and the last one removed: a crash in between leaves a store that nobody takes for
//! whole, and that the next filling empties first.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable::{Snapshot, Staged};
use crate::model::audit::{AuditHead, AuditNote};
use crate::model::host::{HostActivity, HostId};
use crate::records::copy::{Activity, Chunks, Heads, NumberedProbe, OutboxPosition, Row, Table};
use crate::records::rules::{being_filled, taken_over};
use crate::records::{
    AdminCertificate, Authority, CanonicalSummary, Epoch, ExternalIdentity, Filling, Host, InstallToken, RecordsError,
    Result, SealingKey, Session, Settings, Standstill, StoreState, User,
};
use crate::seal::{Place, Sealed};

use super::changes::{self, Kind};
use super::rows::{self, Marked, Source};
use super::{audit, authorities, canonical, hosts, identities, probes, sealed, sessions, users};

/// The row [`rows::STORE`]. There is none in a store that was never filled and never stood still.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Stored {
    incarnation: Option<Uuid>,
    standstill: Option<Standstill>,
    filling: Option<Filling>,
}

fn stored(source: &impl Source) -> Result<Stored> {
    Ok(rows::get(source, rows::STORE)?.unwrap_or_default())
}

/// Whether the store takes changes.
pub(super) fn check(source: &impl Source) -> Result<()> {
    match stored(source)? {
        Stored { filling: Some(_), .. } => Err(being_filled()),
        Stored { standstill: Some(standstill), .. } => Err(RecordsError::StandsStill(standstill)),
        _ => Ok(()),
    }
}

/// Whether it is not just being filled.
pub(super) fn check_whole(source: &impl Source) -> Result<()> {
    if stored(source)?.filling.is_some() { Err(being_filled()) } else { Ok(()) }
}

pub(super) fn state(data: &Snapshot) -> Result<StoreState> {
    let Stored { incarnation, standstill, filling } = stored(data)?;
    if filling.is_some() {
        return Err(being_filled());
    }
    Ok(StoreState { epoch: changes::epoch(data)?, incarnation, standstill })
}

pub(super) fn set_standstill(staged: &mut Staged<'_>, standstill: Option<&Standstill>, note: &AuditNote) -> Result<()> {
    check_whole(staged)?;
    let stored = Stored { standstill: standstill.cloned(), ..stored(staged)? };
    rows::put(staged, rows::STORE, &stored)?;
    audit::append(staged, note)
}

pub(super) fn export(from: &Snapshot, chunks: Chunks) -> Result<()> {
    let heads = Heads {
        canonical_version: canonical::pointer(from)?.map(|pointer| pointer.row),
        audit: rows::get(from, rows::AUDIT_HEAD)?.unwrap_or_default(),
    };
    export_with(from, heads, chunks, &mut |_, error| Err(error))
}

/// Is told of a row that cannot be read: an error of its own ends the export.
pub(super) type Broken<'a> = &'a mut dyn FnMut(Table, RecordsError) -> Result<()>;

pub(super) fn export_with(from: &Snapshot, heads: Heads, mut chunks: Chunks, broken: Broken<'_>) -> Result<()> {
    chunks.push_blocking(Row::Heads(heads))?;
    let settings = changes::settings(from).map(|marked| marked.map(|marked| marked.row).unwrap_or_default());
    chunks.push_blocking(Row::Settings(settings.or_else(|error| {
        broken(Table::Settings, error)?;
        Ok::<_, RecordsError>(Settings::default())
    })?))?;
    match rows::get(from, rows::SERVER_KEY) {
        Ok(Some(key)) => chunks.push_blocking(Row::ServerKey(key))?,
        Ok(None) => {}
        Err(error) => broken(Table::ServerKey, error)?,
    }
    each(from, (rows::SEALING_KEY, Table::SealingKeys), &mut chunks, broken, |_, key: SealingKey| {
        Ok(Some(Row::SealingKeys(key)))
    })?;
    each(from, (rows::AUTHORITY, Table::Authorities), &mut chunks, broken, |_, authority: Authority| {
        Ok(Some(Row::Authorities(authority)))
    })?;
    each(from, (rows::USER, Table::Users), &mut chunks, broken, |_, user: User| Ok(Some(Row::Users(user))))?;
    each(from, (rows::SESSION, Table::Sessions), &mut chunks, broken, |_, it: Marked<Session>| {
        Ok(Some(Row::Sessions(it.row)))
    })?;
    each(from, (rows::IDENTITY, Table::ExternalIdentities), &mut chunks, broken, |_, it: ExternalIdentity| {
        Ok(Some(Row::ExternalIdentities(it)))
    })?;
    each(from, (rows::CERTIFICATE, Table::Certificates), &mut chunks, broken, |_, it: AdminCertificate| {
        Ok(Some(Row::Certificates(it)))
    })?;
    each(from, (rows::HOST, Table::Hosts), &mut chunks, broken, |_, host: Marked<Host>| {
        Ok(Some(Row::Hosts(host.row)))
    })?;
    each(from, (rows::ACTIVITY, Table::Activity), &mut chunks, broken, |key, activity: HostActivity| {
        let host = HostId(u64::from_be_bytes(rows::id_behind(rows::ACTIVITY, key)?));
        let row = || Row::Activity(Activity { host, activity: activity.clone() });
        Ok((activity != HostActivity::default()).then(row))
    })?;
    each(from, (rows::TOKEN, Table::InstallTokens), &mut chunks, broken, |_, token: Marked<InstallToken>| {
        Ok(Some(Row::InstallTokens(token.row)))
    })?;
    each(from, (rows::VERSION_SUMMARY, Table::Versions), &mut chunks, broken, |_, summary: CanonicalSummary| {
        let version = canonical::version(from, summary.version)?.ok_or_else(|| rows::missing("version"))?;
        Ok(Some(Row::Versions(Box::new(version))))
    })?;
    each(from, (rows::PROBE, Table::Probes), &mut chunks, broken, |key, probe| {
        Ok(Some(Row::Probes(NumberedProbe { number: rows::read_probe(key)?, probe })))
    })?;
    each(from, (rows::NODE, Table::OutboxPositions), &mut chunks, broken, |key, seq: u64| {
        let node = Uuid::from_bytes(rows::id_behind(rows::NODE, key)?);
        Ok(Some(Row::OutboxPositions(OutboxPosition { node, seq })))
    })?;
    each(from, (rows::AUDIT, Table::AuditLog), &mut chunks, broken, |_, entry| Ok(Some(Row::AuditLog(entry))))?;
    chunks.end_blocking()
}

fn each<T: serde::de::DeserializeOwned>(
    from: &Snapshot,
    (prefix, table): (&str, Table),
    chunks: &mut Chunks,
    broken: Broken<'_>,
    read: impl Fn(&[u8], T) -> Result<Option<Row>>,
) -> Result<()> {
    for row in from.scan(prefix) {
        let (key, value) = row?;
        match rows::decode(&key, &value).and_then(|value| read(&key, value)) {
            Ok(Some(row)) => chunks.push_blocking(row)?,
            Ok(None) => {}
            Err(error) => broken(table, error)?,
        }
    }
    Ok(())
}

pub(super) fn begin(staged: &mut Staged<'_>, filling: &Filling, replaces: bool) -> Result<bool> {
    let stored = stored(staged)?;
    let epoch = changes::epoch(staged)?;
    let holds_something =
        staged.get(rows::INITIALISED)?.is_some() || epoch > Epoch(0) || staged.get(rows::AUDIT_HEAD)?.is_some();
    if holds_something && stored.filling.is_none() && !replaces {
        return Ok(false);
    }
    // What an earlier filling was to be above of may have been known to somebody.
    let earlier = stored.filling.map(|filling| filling.above).unwrap_or_default();
    let filling = Filling { id: filling.id, above: filling.above.max(epoch).max(earlier) };
    rows::put(staged, rows::STORE, &Stored { filling: Some(filling), ..Stored::default() })?;
    Ok(true)
}

/// How many rows are removed with one change.
const WIPED: usize = 1000;

/// Says whether there may be more.
pub(super) fn wipe_some(staged: &mut Staged<'_>, filling: &Filling) -> Result<bool> {
    ours(staged, filling)?;
    let keys =
        staged.scan("").map(|row| row.map(|(key, _)| key)).filter(|key| !matches!(key, Ok(key) if *key == rows::STORE));
    let keys: Vec<_> = keys.take(WIPED).collect::<std::result::Result<_, _>>()?;
    keys.iter().for_each(|key| staged.remove(key.to_vec()));
    Ok(!keys.is_empty())
}

/// The epoch that everything in the filled store is of.
fn ours(source: &impl Source, filling: &Filling) -> Result<Epoch> {
    match stored(source)?.filling {
        Some(present) if present.id == filling.id => Ok(Epoch(present.above.0 + 1)),
        _ => Err(taken_over()),
    }
}

pub(super) fn fill(staged: &mut Staged<'_>, filling: &Filling, rows: &[Row]) -> Result<()> {
    let epoch = ours(staged, filling)?;
    rows.iter().try_for_each(|row| put(staged, row, epoch))
}

fn put(staged: &mut Staged<'_>, row: &Row, epoch: Epoch) -> Result<()> {
    match row {
        Row::Heads(Heads { canonical_version, audit }) => {
            if let Some(number) = canonical_version {
                changes::mark(staged, Kind::Canonical, b"", None, epoch);
                rows::put(staged, rows::CANONICAL, &Marked { epoch, row: number })?;
            }
            if *audit == AuditHead::default() { Ok(()) } else { rows::put(staged, rows::AUDIT_HEAD, audit) }
        }
        Row::Settings(settings) => {
            if *settings == Settings::default() {
                return Ok(());
            }
            changes::mark(staged, Kind::Settings, b"", None, epoch);
            rows::put(staged, rows::SETTINGS, &Marked { epoch, row: settings })
        }
        Row::ServerKey(key) => {
            sealed::index(staged, &Place::new("settings", "server_key", 0), None::<&Sealed>, Some(key));
            rows::put(staged, rows::SERVER_KEY, key)
        }
        Row::SealingKeys(key) => rows::put(staged, rows::sealing_key(key.id), key),
        Row::Authorities(authority) => authorities::put(staged, authority),
        Row::Users(user) => users::insert(staged, user),
        Row::Sessions(session) => sessions::put(staged, session, None, epoch),
        Row::ExternalIdentities(identity) => identities::put(staged, identity),
        Row::Certificates(certificate) => rows::put(staged, rows::certificate(&certificate.fingerprint), certificate),
        Row::Hosts(host) => {
            if host.removed_at.is_none() {
                rows::put(staged, rows::host_name(&host.fqdn), &host.id)?;
            } else if !host.api_key.as_bytes().is_empty() {
                staged.insert(rows::removed_host(host.id), "");
            }
            hosts::put(staged, host, epoch)
        }
        Row::Activity(Activity { host, activity }) => rows::put(staged, rows::activity(*host), activity),
        Row::InstallTokens(token) => hosts::put_token(staged, token.clone(), epoch),
        Row::Versions(version) => canonical::add(staged, version),
        Row::Probes(probe) => probes::put(staged, probe),
        Row::OutboxPositions(OutboxPosition { node, seq }) => rows::put(staged, rows::node(*node), seq),
        Row::AuditLog(entry) => rows::put(staged, rows::audit(entry.number), entry),
    }
}

pub(super) fn finish(staged: &mut Staged<'_>, filling: &Filling, note: &AuditNote) -> Result<()> {
    let epoch = ours(staged, filling)?;
    changes::mark_set(staged, Kind::Certificates, epoch)?;
    changes::mark_set(staged, Kind::Authorities, epoch)?;
    changes::mark_set(staged, Kind::Users, epoch)?;
    rows::put(staged, rows::EPOCH, &epoch)?;
    staged.insert(rows::INITIALISED, "");
    audit::append(staged, note)?;
    rows::put(staged, rows::STORE, &Stored { incarnation: Some(filling.id), ..Stored::default() })
}
