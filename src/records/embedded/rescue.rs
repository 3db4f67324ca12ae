//! The readable rows of damaged records, as the rows of a backup.
//!
//! [`salvage`] copies the readable rows into a scratch store, which is then exported. Rows that a restore cannot take
//! are passed separately. These are rows that refer to an unreadable host or user, and audit entries after a gap, since
//! each entry is chained to the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio::sync::mpsc;

use super::tables::versions;
use super::{rows, settings, transaction, transfer};
use crate::durable::{self, Salvaged, Snapshot, Store, salvage};
use crate::model::audit::{AuditEntry, AuditHead};
use crate::model::host::HostId;
use crate::model::people::UserId;
use crate::records::copy::{Chunks, Heads, Row, Table};
use crate::records::{AuthoritySlot, CanonicalSummary, Epoch, Result};

/// The readable rows of damaged records, in a scratch store.
pub struct Rescue {
    snapshot: Snapshot,
    pub salvaged: Salvaged,
    _scratch: Store,
}

/// The exported rows of damaged records, and the rows known to be missing.
#[derive(Debug, Default)]
pub struct RescueReport {
    pub exported: BTreeMap<Table, u64>,
    pub missing: BTreeMap<Table, u64>,
    /// Readable rows that a restore cannot take.
    pub left_out: u64,
    /// The newest readable version, if the canonical one is unreadable.
    pub other_canonical: Option<u64>,
    pub is_restorable: bool,
}

const BATCH_ROWS: usize = 1000;

impl Rescue {
    /// Reads the records in `dir`, which no process has open. `scratch`: a directory that does not exist yet.
    pub fn read(dir: &Path, scratch: &Path) -> Result<Self> {
        let store = Store::durable(scratch, "records")?;
        let mut batch = Vec::new();
        let write = |rows: &mut Vec<(Vec<u8>, Vec<u8>)>| -> durable::Result<()> {
            store.write(|staged| {
                rows.drain(..).for_each(|(key, value)| staged.insert(key, value));
                Ok(())
            })
        };
        let salvaged = salvage(dir, "records", rows::ALL, &mut |key, value| {
            batch.push((key.to_vec(), value.to_vec()));
            if batch.len() >= BATCH_ROWS { write(&mut batch) } else { Ok(()) }
        })?;
        write(&mut batch)?;
        Ok(Self { snapshot: store.snapshot(), salvaged, _scratch: store })
    }

    pub fn epoch(&self) -> Epoch {
        transaction::epoch(&self.snapshot).unwrap_or_default()
    }

    /// `false` also if the settings were never changed.
    pub fn has_settings(&self) -> bool {
        settings::present(&self.snapshot).is_ok_and(|settings| settings.is_some())
    }

    /// Passes each row that a restore can take to `take`, and every other row to `leave`.
    pub fn rows(
        &self,
        mut take: impl FnMut(&Row) -> std::io::Result<()>,
        mut leave: impl FnMut(&Row) -> std::io::Result<()>,
    ) -> Result<std::io::Result<RescueReport>> {
        let (heads, mut report) = self.heads()?;
        let (sender, mut chunks) = mpsc::channel(2);
        let snapshot = self.snapshot.clone();
        let last_entry = heads.audit.number;
        let mut broken: BTreeMap<Table, u64> = BTreeMap::new();
        let written = std::thread::scope(|scope| {
            let export = scope.spawn(|| {
                transfer::export_with(&snapshot, heads, Chunks::new(sender), &mut |table, _| {
                    *broken.entry(table).or_default() += 1;
                    Ok(())
                })
            });
            let mut filter = RestoreFilter { last_entry, ..RestoreFilter::default() };
            let written = (|| {
                while let Some(chunk) = chunks.blocking_recv() {
                    for row in &chunk {
                        if filter.takes(row) {
                            *report.exported.entry(row.table()).or_default() += 1;
                            take(row)?;
                        } else {
                            report.left_out += 1;
                            leave(row)?;
                        }
                    }
                }
                Ok(())
            })();
            drop(chunks);
            let ended = export.join().unwrap_or(Ok(()));
            report.is_restorable = filter.is_restorable();
            for host in self.named_hosts() {
                if !filter.hosts.contains(&host) {
                    *report.missing.entry(Table::Hosts).or_default() += 1;
                }
            }
            Ok::<_, crate::records::RecordsError>(
                written.and_then(|()| ended.map_err(|error| std::io::Error::other(error.to_string()))),
            )
        })?;
        for (table, count) in broken {
            *report.missing.entry(table).or_default() += count;
        }
        for (table, least) in [(Table::ServerKey, 1), (Table::SealingKeys, 1), (Table::Authorities, 2)] {
            let there = report.exported.get(&table).copied().unwrap_or_default();
            if there < least {
                report.missing.insert(table, least - there);
            }
        }
        Ok(written.map(|()| report))
    }

    /// Computes the heads from the rows themselves: the row of the heads may be lost.
    fn heads(&self) -> Result<(Heads, RescueReport)> {
        let mut report = RescueReport::default();
        let mut chain = AuditHead::default();
        let mut highest = 0;
        let mut is_chained = true;
        for row in self.snapshot.scan(rows::AUDIT) {
            let Ok((key, value)) = row else { continue };
            let Ok(entry) = rows::decode::<AuditEntry>(&key, &value) else { continue };
            highest = highest.max(entry.number);
            is_chained = is_chained && chain.follow(&entry).is_ok();
        }
        let known: AuditHead = rows::get(&self.snapshot, rows::AUDIT_HEAD).ok().flatten().unwrap_or_default();
        let missing = highest.max(known.number) - chain.number;
        if missing > 0 {
            report.missing.insert(Table::AuditLog, missing);
        }
        let pointer = versions::pointer(&self.snapshot).ok().flatten().map(|pointer| pointer.row);
        let readable = |number: u64| versions::fetch(&self.snapshot, number).is_ok_and(|version| version.is_some());
        let canonical_version = match pointer.filter(|number| readable(*number)) {
            Some(number) => Some(number),
            None => {
                let summaries = self.snapshot.scan(rows::VERSION_SUMMARY).rev().filter_map(std::result::Result::ok);
                let numbers = summaries.filter_map(|(key, value)| {
                    rows::decode::<CanonicalSummary>(&key, &value).ok().map(|summary| summary.version)
                });
                let newest = numbers.into_iter().find(|number| readable(*number));
                report.other_canonical = newest;
                newest
            }
        };
        Ok((Heads { canonical_version, audit: chain }, report))
    }

    fn named_hosts(&self) -> Vec<HostId> {
        let rows = self.snapshot.scan(rows::HOST_NAME).filter_map(std::result::Result::ok);
        rows.filter_map(|(key, value)| rows::decode(&key, &value).ok()).collect()
    }
}

/// Decides which rows a restore can take, given the rows before.
#[derive(Default)]
struct RestoreFilter {
    last_entry: u64,
    users: BTreeSet<UserId>,
    hosts: BTreeSet<HostId>,
    has_server_key: bool,
    has_sealing_key: bool,
    active_authorities: u64,
}

impl RestoreFilter {
    fn takes(&mut self, row: &Row) -> bool {
        match row {
            Row::ServerKey(_) => self.has_server_key = true,
            Row::SealingKeys(_) => self.has_sealing_key = true,
            Row::Authorities(it) => self.active_authorities += u64::from(it.slot == AuthoritySlot::Active),
            Row::Users(user) => drop(self.users.insert(user.id)),
            Row::Hosts(host) => drop(self.hosts.insert(host.id)),
            Row::Sessions(session) => return self.users.contains(&session.user),
            Row::ExternalIdentities(identity) => return self.users.contains(&identity.user),
            Row::Activity(activity) => return self.hosts.contains(&activity.host),
            Row::InstallTokens(token) => return self.hosts.contains(&token.host),
            Row::AuditLog(entry) => return entry.number <= self.last_entry,
            Row::Heads(_)
            | Row::Settings(_)
            | Row::Certificates(_)
            | Row::Versions(_)
            | Row::Probes(_)
            | Row::OutboxPositions(_) => {}
        }
        true
    }

    fn is_restorable(&self) -> bool {
        self.has_server_key && self.has_sealing_key && self.active_authorities >= 2
    }
}
