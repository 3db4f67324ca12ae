//! Reads every row of the database as of one moment, page by page.
//!
//! The export is one transaction with a consistent snapshot. Each statement has the configured timeout; the whole
//! export has none.

use std::collections::BTreeMap;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row as Found};
use tokio::sync::mpsc;

use super::connections::{Connections, Outcome};
use super::rows::{self, Columns};
use super::tables::{
    audit_log, authorities, certificates, hosts, identities, installers, sealing, sessions, settings, users, versions,
};
use super::{probes, telemetry, transaction};
use crate::model::host::{HostActivity, HostId};
use crate::records::Result;
use crate::records::copy::{Activity, Chunks, Heads, OutboxPosition, Row};

/// Rows read by one statement.
pub(super) const PAGE_ROWS: usize = 500;

/// Versions read by one statement; they are large.
pub(super) const PAGE_VERSIONS: usize = 20;

/// How long a chunk may wait for the receiver.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) async fn export(
    connections: &Connections,
    connection: &mut Conn,
    chunks: mpsc::Sender<Vec<Row>>,
) -> Outcome<()> {
    // The receiver may take long for each chunk. The server must not close the connection meanwhile.
    connections.in_time(connections.set_wait_timeout(connection, CHUNK_TIMEOUT)).await?;
    connections.in_time(transaction::begin_snapshot(connection)).await?;
    let read = Export { connections, connection, chunks: Chunks::new(chunks) }.run().await;
    connections.in_time(transaction::end_snapshot(connection)).await?;
    connections.in_time(connections.set_wait_timeout(connection, connections.timeout())).await?;
    read
}

/// Sends the rows of a table page by page; `$key` is the key of the last row of a page.
macro_rules! pages {
    ($self:ident, $table:ident, $row:path, |$last:ident| $key:expr) => {
        let mut after = None;
        loop {
            let page = $self.connections.in_time($table::page($self.connection, after, PAGE_ROWS)).await?;
            let Some($last) = page.last() else { break };
            after = Some($key);
            $self.push(page.into_iter().map($row)).await?;
        }
    };
}

struct Export<'a> {
    connections: &'a Connections,
    connection: &'a mut Conn,
    chunks: Chunks,
}

impl Export<'_> {
    async fn run(mut self) -> Outcome<()> {
        let heads = self.connections.in_time(transaction::heads(self.connection)).await?;
        let heads = Heads { canonical_version: heads.canonical_version, audit: heads.audit };
        let present = self.connections.in_time(settings::present(self.connection)).await?;
        self.push([Row::Heads(heads), Row::Settings(present)]).await?;
        let server_key = self.connections.in_time(settings::server_key(self.connection)).await?;
        self.push(server_key.map(Row::ServerKey)).await?;
        let keys = self.connections.in_time(sealing::all(self.connection)).await?;
        self.push(keys.into_iter().map(Row::SealingKeys)).await?;
        let authorities = self.connections.in_time(authorities::all(self.connection)).await?;
        self.push(authorities.into_iter().map(Row::Authorities)).await?;
        pages!(self, users, Row::Users, |user| user.id);
        pages!(self, sessions, Row::Sessions, |session| session.id);
        pages!(self, identities, Row::ExternalIdentities, |identity| identity.clone());
        let mut certificates = self.connections.in_time(certificates::all(self.connection)).await?;
        certificates.sort_by_key(|certificate| *certificate.fingerprint.as_bytes());
        self.push(certificates.into_iter().map(Row::Certificates)).await?;
        pages!(self, hosts, Row::Hosts, |host| host.id);
        self.activities().await?;
        pages!(self, installers, Row::InstallTokens, |token| token.digest);
        self.versions().await?;
        self.probes().await?;
        let positions = self.connections.in_time(outbox_positions(self.connection)).await?;
        self.push(positions.into_iter().map(Row::OutboxPositions)).await?;
        self.audit_log().await?;
        Ok(self.chunks.end().await?)
    }

    async fn push(&mut self, rows: impl IntoIterator<Item = Row>) -> Outcome<()> {
        for row in rows {
            self.chunks.push(row).await?;
        }
        Ok(())
    }

    async fn activities(&mut self) -> Outcome<()> {
        let mut after = None;
        loop {
            let page = self.connections.in_time(activities(self.connection, after)).await?;
            let Some(last) = page.last_key_value().map(|(id, _)| *id) else { return Ok(()) };
            after = Some(last);
            let any = page.into_iter().filter(|(_, activity)| *activity != HostActivity::default());
            self.push(any.map(|(host, activity)| Row::Activity(Activity { host, activity }))).await?;
        }
    }

    async fn versions(&mut self) -> Outcome<()> {
        let mut after = 0;
        loop {
            let numbers = self.connections.in_time(version_numbers(self.connection, after)).await?;
            let Some(last) = numbers.last() else { return Ok(()) };
            after = *last;
            for number in numbers {
                let version = self.connections.in_time(versions::fetch(self.connection, number)).await?;
                self.push(version.map(|version| Row::Versions(Box::new(version)))).await?;
            }
        }
    }

    async fn probes(&mut self) -> Outcome<()> {
        let mut after = 0;
        loop {
            let page = self.connections.in_time(probes::page(self.connection, after, PAGE_ROWS)).await?;
            let Some(last) = page.last().map(|probe| probe.number) else { return Ok(()) };
            after = last;
            self.push(page.into_iter().map(Row::Probes)).await?;
        }
    }

    async fn audit_log(&mut self) -> Outcome<()> {
        let mut next = 1;
        loop {
            let page = self.connections.in_time(audit_log::page(self.connection, next, PAGE_ROWS)).await?;
            let Some(last) = page.last().map(|entry| entry.number) else { return Ok(()) };
            next = last + 1;
            self.push(page.into_iter().map(Row::AuditLog)).await?;
        }
    }
}

async fn version_numbers(connection: &mut Conn, after: u64) -> Outcome<Vec<u64>> {
    let statement = "SELECT version FROM auth_payloads WHERE version > ? ORDER BY version LIMIT ?";
    Ok(connection.exec(statement, (after, PAGE_VERSIONS as u64)).await?)
}

async fn activities(connection: &mut Conn, after: Option<HostId>) -> Outcome<BTreeMap<HostId, HostActivity>> {
    let (page, values) = rows::page_after("host_id", after.map(|after| after.0.into()), PAGE_ROWS);
    telemetry::activities(connection, &page, values).await
}

async fn outbox_positions(connection: &mut Conn) -> Outcome<Vec<OutboxPosition>> {
    let found: Vec<Found> = connection.exec("SELECT node, seq FROM outbox_positions ORDER BY node", ()).await?;
    let read = |row| {
        let mut columns = Columns::of("outbox_positions", row);
        Ok(OutboxPosition { node: columns.id()?, seq: columns.number()? })
    };
    Ok(found.into_iter().map(read).collect::<Result<_>>()?)
}
