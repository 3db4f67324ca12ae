//! Exports, fills and standstills of the whole store.
//!
//! An export reads a snapshot, so changes continue meanwhile. A fill writes its marker to [`StoreRow`] first and
//! removes it last. A crash in between leaves a store that refuses every call; the next fill empties it first.

use async_trait::async_trait;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::rows::{self, Marked, RowSource};
use super::tables::{authorities, hosts, people, sealed_index, versions};
use super::transaction::{self, ChangeKind, StoreRow};
use super::{Embedded, probes, settings};
use crate::durable::{Snapshot, Staged};
use crate::model::audit::{AuditHead, AuditNote};
use crate::model::host::{HostActivity, HostId};
use crate::records::copy::{Activity, Chunks, Heads, NumberedProbe, OutboxPosition, Row, Table};
use crate::records::rules::taken_over;
use crate::records::{
    AdminCertificate, Authority, CanonicalSummary, Epoch, ExternalIdentity, Filling, Host, InstallToken, RecordsError,
    Result, SealingKey, Session, Settings, Standstill, TransferRecords, User,
};
use crate::seal::{Place, Sealed};

/// Called with the error of an unreadable row. If it returns an error, the export ends with it.
pub(super) type OnUnreadable<'a> = &'a mut dyn FnMut(Table, RecordsError) -> Result<()>;

/// Number of rows removed by one change.
const WIPE_BATCH_ROWS: usize = 1000;

#[async_trait]
impl TransferRecords for Embedded {
    async fn standstill_set(&self, standstill: Option<&Standstill>, note: &AuditNote) -> Result<()> {
        self.change_anyway(|staged| {
            transaction::check_whole(staged)?;
            let stored = StoreRow { standstill: standstill.cloned(), ..transaction::store_row(staged)? };
            rows::put(staged, rows::STORE, &stored)?;
            transaction::note(staged, note)
        })
        .await
    }

    async fn copy_export(&self, chunks: mpsc::Sender<Vec<Row>>) -> Result<()> {
        self.read_much(move |data| export(data, Chunks::new(chunks))).await
    }

    async fn fill_begin(&self, filling: &Filling, replaces: bool) -> Result<bool> {
        if !self.change_anyway(|staged| begin(staged, filling, replaces)).await? {
            return Ok(false);
        }
        while self.change_anyway(|staged| wipe_some(staged, filling)).await? {}
        Ok(true)
    }

    async fn fill_append(&self, filling: &Filling, rows: &[Row]) -> Result<()> {
        self.change_anyway(|staged| fill(staged, filling, rows)).await
    }

    async fn fill_finish(&self, filling: &Filling, note: &AuditNote) -> Result<()> {
        self.change_anyway(|staged| {
            let epoch = fill_epoch(staged, filling)?;
            transaction::mark_set(staged, ChangeKind::Certificates, epoch)?;
            transaction::mark_set(staged, ChangeKind::Authorities, epoch)?;
            transaction::mark_set(staged, ChangeKind::Users, epoch)?;
            rows::put(staged, rows::EPOCH, &epoch)?;
            staged.insert(rows::INITIALISED, "");
            transaction::note(staged, note)?;
            rows::put(staged, rows::STORE, &StoreRow { incarnation: Some(filling.id), ..StoreRow::default() })
        })
        .await
    }
}

fn export(from: &Snapshot, chunks: Chunks) -> Result<()> {
    let heads = Heads {
        canonical_version: versions::pointer(from)?.map(|pointer| pointer.row),
        audit: rows::get(from, rows::AUDIT_HEAD)?.unwrap_or_default(),
    };
    export_with(from, heads, chunks, &mut |_, error| Err(error))
}

pub(super) fn export_with(
    from: &Snapshot,
    heads: Heads,
    mut chunks: Chunks,
    on_unreadable: OnUnreadable<'_>,
) -> Result<()> {
    chunks.push_blocking(Row::Heads(heads))?;
    let settings = settings::present(from).map(|marked| marked.map(|marked| marked.row).unwrap_or_default());
    chunks.push_blocking(Row::Settings(settings.or_else(|error| {
        on_unreadable(Table::Settings, error)?;
        Ok::<_, RecordsError>(Settings::default())
    })?))?;
    match rows::get(from, rows::SERVER_KEY) {
        Ok(Some(key)) => chunks.push_blocking(Row::ServerKey(key))?,
        Ok(None) => {}
        Err(error) => on_unreadable(Table::ServerKey, error)?,
    }
    each(from, (rows::SEALING_KEY, Table::SealingKeys), &mut chunks, on_unreadable, |_, key: SealingKey| {
        Ok(Some(Row::SealingKeys(key)))
    })?;
    each(from, (rows::AUTHORITY, Table::Authorities), &mut chunks, on_unreadable, |_, authority: Authority| {
        Ok(Some(Row::Authorities(authority)))
    })?;
    each(from, (rows::USER, Table::Users), &mut chunks, on_unreadable, |_, user: User| Ok(Some(Row::Users(user))))?;
    each(from, (rows::SESSION, Table::Sessions), &mut chunks, on_unreadable, |_, it: Marked<Session>| {
        Ok(Some(Row::Sessions(it.row)))
    })?;
    each(from, (rows::IDENTITY, Table::ExternalIdentities), &mut chunks, on_unreadable, |_, it: ExternalIdentity| {
        Ok(Some(Row::ExternalIdentities(it)))
    })?;
    each(from, (rows::CERTIFICATE, Table::Certificates), &mut chunks, on_unreadable, |_, it: AdminCertificate| {
        Ok(Some(Row::Certificates(it)))
    })?;
    each(from, (rows::HOST, Table::Hosts), &mut chunks, on_unreadable, |_, host: Marked<Host>| {
        Ok(Some(Row::Hosts(host.row)))
    })?;
    each(from, (rows::ACTIVITY, Table::Activity), &mut chunks, on_unreadable, |key, activity: HostActivity| {
        let host = HostId(u64::from_be_bytes(rows::id_behind(rows::ACTIVITY, key)?));
        let row = || Row::Activity(Activity { host, activity: activity.clone() });
        Ok((activity != HostActivity::default()).then(row))
    })?;
    each(from, (rows::TOKEN, Table::InstallTokens), &mut chunks, on_unreadable, |_, token: Marked<InstallToken>| {
        Ok(Some(Row::InstallTokens(token.row)))
    })?;
    each(
        from,
        (rows::VERSION_SUMMARY, Table::Versions),
        &mut chunks,
        on_unreadable,
        |_, summary: CanonicalSummary| {
            let version = versions::fetch(from, summary.version)?.ok_or_else(|| rows::missing("version"))?;
            Ok(Some(Row::Versions(Box::new(version))))
        },
    )?;
    each(from, (rows::PROBE, Table::Probes), &mut chunks, on_unreadable, |key, probe| {
        Ok(Some(Row::Probes(NumberedProbe { number: rows::read_probe(key)?, probe })))
    })?;
    each(from, (rows::NODE, Table::OutboxPositions), &mut chunks, on_unreadable, |key, seq: u64| {
        let node = Uuid::from_bytes(rows::id_behind(rows::NODE, key)?);
        Ok(Some(Row::OutboxPositions(OutboxPosition { node, seq })))
    })?;
    each(from, (rows::AUDIT, Table::AuditLog), &mut chunks, on_unreadable, |_, entry| Ok(Some(Row::AuditLog(entry))))?;
    chunks.end_blocking()
}

fn each<T: serde::de::DeserializeOwned>(
    from: &Snapshot,
    (prefix, table): (&str, Table),
    chunks: &mut Chunks,
    on_unreadable: OnUnreadable<'_>,
    read: impl Fn(&[u8], T) -> Result<Option<Row>>,
) -> Result<()> {
    for row in from.scan(prefix) {
        let (key, value) = row?;
        match rows::decode(&key, &value).and_then(|value| read(&key, value)) {
            Ok(Some(row)) => chunks.push_blocking(row)?,
            Ok(None) => {}
            Err(error) => on_unreadable(table, error)?,
        }
    }
    Ok(())
}

fn begin(staged: &mut Staged<'_>, filling: &Filling, replaces: bool) -> Result<bool> {
    let stored = transaction::store_row(staged)?;
    let epoch = transaction::epoch(staged)?;
    let holds_something =
        staged.get(rows::INITIALISED)?.is_some() || epoch > Epoch(0) || staged.get(rows::AUDIT_HEAD)?.is_some();
    if holds_something && stored.filling.is_none() && !replaces {
        return Ok(false);
    }
    // A node may know epochs that an earlier fill was meant to exceed.
    let earlier = stored.filling.map(|filling| filling.above).unwrap_or_default();
    let filling = Filling { id: filling.id, above: filling.above.max(epoch).max(earlier) };
    rows::put(staged, rows::STORE, &StoreRow { filling: Some(filling), ..StoreRow::default() })?;
    Ok(true)
}

/// Removes some rows; returns whether there may be more.
fn wipe_some(staged: &mut Staged<'_>, filling: &Filling) -> Result<bool> {
    fill_epoch(staged, filling)?;
    let keys =
        staged.scan("").map(|row| row.map(|(key, _)| key)).filter(|key| !matches!(key, Ok(key) if *key == rows::STORE));
    let keys: Vec<_> = keys.take(WIPE_BATCH_ROWS).collect::<std::result::Result<_, _>>()?;
    keys.iter().for_each(|key| staged.remove(key.to_vec()));
    Ok(!keys.is_empty())
}

/// The epoch of all rows in the filled store.
fn fill_epoch(source: &impl RowSource, filling: &Filling) -> Result<Epoch> {
    match transaction::store_row(source)?.filling {
        Some(present) if present.id == filling.id => Ok(Epoch(present.above.0 + 1)),
        _ => Err(taken_over()),
    }
}

fn fill(staged: &mut Staged<'_>, filling: &Filling, rows: &[Row]) -> Result<()> {
    let epoch = fill_epoch(staged, filling)?;
    rows.iter().try_for_each(|row| put(staged, row, epoch))
}

fn put(staged: &mut Staged<'_>, row: &Row, epoch: Epoch) -> Result<()> {
    match row {
        Row::Heads(Heads { canonical_version, audit }) => {
            if let Some(number) = canonical_version {
                transaction::mark(staged, ChangeKind::Canonical, b"", None, epoch);
                rows::put(staged, rows::CANONICAL, &Marked { epoch, row: number })?;
            }
            if *audit == AuditHead::default() { Ok(()) } else { rows::put(staged, rows::AUDIT_HEAD, audit) }
        }
        Row::Settings(settings) => {
            if *settings == Settings::default() {
                return Ok(());
            }
            transaction::mark(staged, ChangeKind::Settings, b"", None, epoch);
            rows::put(staged, rows::SETTINGS, &Marked { epoch, row: settings })
        }
        Row::ServerKey(key) => {
            sealed_index::update(staged, &Place::new("settings", "server_key", 0), None::<&Sealed>, Some(key));
            rows::put(staged, rows::SERVER_KEY, key)
        }
        Row::SealingKeys(key) => rows::put(staged, rows::sealing_key(key.id), key),
        Row::Authorities(authority) => authorities::put(staged, authority),
        Row::Users(user) => people::insert_user(staged, user),
        Row::Sessions(session) => people::put_session(staged, session, None, epoch),
        Row::ExternalIdentities(identity) => people::put_identity(staged, identity),
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
        Row::Versions(version) => versions::add(staged, version),
        Row::Probes(probe) => probes::put(staged, probe),
        Row::OutboxPositions(OutboxPosition { node, seq }) => rows::put(staged, rows::node(*node), seq),
        Row::AuditLog(entry) => rows::put(staged, rows::audit(entry.number), entry),
    }
}
