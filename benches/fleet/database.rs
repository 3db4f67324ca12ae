//! Compares records in a database with the embedded store, in the same run. Also measures what only a database has:
//! draining telemetry into it, and the delay until one daemon's change is in force on another.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_authd::model::digest::Digest;
use codex_authd::records::embedded::Embedded;
use codex_authd::records::mysql::{MySql, Options, Tls};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::time::sleep;

use crate::calls::{Fleet, Registrations, Retrieves, Stores, call, text};
use crate::http::{Connection, Target, request, tls_config};
use crate::load::Script;
use crate::mariadb::MariaDb;
use crate::process::{Daemon, pause};
use crate::report::{Cell, Row};
use crate::telemetry::{Kind, Node};
use crate::{Bench, CLIENTS, Result, run_one};

const BESIDE: &str = "embedded";
/// How many times each kind of revocation is measured.
const TRIES: usize = 20;
/// How often a daemon polls for changes of the others.
const POLL: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let Some(server) = MariaDb::start(bench.directory.path().join("mariadb")).await? else {
        eprintln!("bench: mariadbd is not installed (Debian: mariadb-server-core): no records in a database");
        return Ok(Vec::new());
    };
    let mut rows = daemons(bench, &server).await?;
    rows.extend(telemetry(bench, &server).await?);
    rows.extend(revocations(bench, &server).await?);
    Ok(rows)
}

/// The same calls to two daemons that differ in their store.
async fn daemons(bench: &Bench, server: &MariaDb) -> Result<Vec<Row>> {
    let (embedded, embedded_fleet) = bench.fleet("database-embedded", None).await?;
    let (mysql, fleet) = fleet_on(bench, "database-mysql", &server.create("fleet").await?).await?;
    let daemons = [&mysql, &embedded];
    let hosts = daemons.map(|daemon| &daemon.hosts);
    let admins = daemons.map(|daemon| &daemon.admin);
    let retrieves = [&fleet, &embedded_fleet].map(|fleet| Arc::new(Retrieves::new(fleet, false)));
    let stores = [&fleet, &embedded_fleet].map(|fleet| Arc::new(Stores::new(fleet)));
    let registrations = Arc::new(Registrations::new());
    let registrations = [registrations.clone(), registrations];
    let turns = Turns { bench, server, daemons };
    let mut rows = Vec::new();
    for clients in [8, CLIENTS] {
        let what = format!("/auth retrieve, HTTP, {clients} connections, records in MariaDB");
        rows.push(turns.take(what, clients, hosts, &retrieves).await?);
    }
    for clients in [1, CLIENTS] {
        let what = format!("stores made canonical, records in MariaDB, {clients} at once");
        rows.push(turns.take(what, clients, hosts, &stores).await?);
    }
    for clients in [1, CLIENTS] {
        let what = format!("registrations, records in MariaDB, {clients} at once");
        rows.push(turns.take(what, clients, admins, &registrations).await?);
    }
    Ok(rows)
}

/// Measures both daemons in turns, the one with the database first.
struct Turns<'a> {
    bench: &'a Bench,
    server: &'a MariaDb,
    daemons: [&'a Daemon; 2],
}

impl Turns<'_> {
    async fn take(
        &self,
        what: String,
        clients: usize,
        targets: [&Target; 2],
        scripts: &[Arc<impl Script>; 2],
    ) -> Result<Row> {
        let mut row = Row::new(what, BESIDE);
        for _ in 0..self.bench.rounds {
            for (side, name) in ["MariaDB", BESIDE].into_iter().enumerate() {
                // CPU time of the daemon and of the database. An idle database adds nothing to the embedded side.
                let processes = vec![self.daemons[side].pid(), self.server.pid()];
                let load = self.bench.load(targets[side], clients, processes);
                let cell = run_one(&row.what, name, &load, &scripts[side]).await?;
                if side == 0 { &mut row.ours } else { &mut row.baseline }.push(cell);
            }
        }
        Ok(row)
    }
}

async fn fleet_on(bench: &Bench, name: &str, url: &str) -> Result<(Daemon, Fleet)> {
    let mut daemon = Daemon::new(bench.directory.path().join(name), None)?.with("DATABASE__URL", url);
    daemon.start().await?;
    let fleet = Fleet::make(&daemon.admin, CLIENTS).await?;
    Ok((daemon, fleet))
}

async fn telemetry(bench: &Bench, server: &MariaDb) -> Result<Vec<Row>> {
    eprintln!("bench: preparing telemetry");
    let directory = |name: &str| bench.directory.path().join(name);
    let options =
        Options { url: server.create("telemetry").await?, tls: Tls::Off, ca: None, connections: 16, timeout: PATIENCE };
    let records = MySql::new(&options)?;
    records.prepare().await?;
    let mut mysql = Node::new(Arc::new(records), &directory("telemetry-mysql")).await?;
    let embedded = Embedded::open(&directory("telemetry-records"))?;
    let mut embedded = Node::new(Arc::new(embedded), &directory("telemetry-embedded")).await?;
    let mut rows = Vec::new();
    for (kind, what) in [
        (Kind::Calls, "hosts' calls, 1,000 rows a batch"),
        (Kind::Logins, "calls with another login than before, 1,000 rows a batch"),
        (Kind::Notes, "audit entries, 500 a batch"),
    ] {
        let mut kept = Row::new(format!("telemetry acknowledged: {what}"), BESIDE);
        let mut drained = Row::new(format!("telemetry drained into MariaDB: {what}"), BESIDE);
        for _ in 0..bench.rounds.max(3) {
            for (node, is_ours) in [(&mut mysql, true), (&mut embedded, false)] {
                let round = node.round(kind).await?;
                eprintln!("bench: {what}: {:.0} rows/s kept, {:.0} drained", round.kept.value, round.drained.value);
                for (row, cell) in [(&mut kept, round.kept), (&mut drained, round.drained)] {
                    if is_ours { &mut row.ours } else { &mut row.baseline }.push(cell);
                }
            }
        }
        rows.extend([kept, drained]);
    }
    sizes(server).await?;
    Ok(rows)
}

/// Prints the size of the database of [`telemetry`] on the disk, outside of the table.
async fn sizes(server: &MariaDb) -> Result<()> {
    for table in ["hosts", "host_auth_states", "host_auth_digests", "install_tokens", "audit_log"] {
        server.query::<mysql_async::Row>(&format!("ANALYZE TABLE telemetry.{table}")).await?;
    }
    let of = async |tables: [&str; 4], unit: &str| -> Result<f64> {
        let tables = tables.map(|table| format!("'{table}'")).join(", ");
        let statement = format!(
            "SELECT CAST(SUM(data_length + index_length) AS DOUBLE) / (SELECT COUNT(*) FROM telemetry.{unit}) \
             FROM information_schema.tables WHERE table_schema = 'telemetry' AND table_name IN ({tables})"
        );
        Ok(server.query::<f64>(&statement).await?.first().copied().unwrap_or(f64::NAN))
    };
    let host = of(["hosts", "host_auth_states", "host_auth_digests", "install_tokens"], "hosts").await?;
    let entry = of(["audit_log", "", "", ""], "audit_log").await?;
    eprintln!("bench: the database takes {host:.0} bytes a host and {entry:.0} bytes an entry of the audit log");
    Ok(())
}

/// Measures the time from the answer to a revocation on one daemon until the other one refuses.
async fn revocations(bench: &Bench, server: &MariaDb) -> Result<Vec<Row>> {
    let url = server.create("revocations").await?;
    let directory = |name: &str| bench.directory.path().join(name);
    // Repeated calls with a revoked key must not be blocked here.
    let on = |name: &str| {
        let daemon = Daemon::new(directory(name), None)?;
        Ok::<_, crate::Error>(daemon.with("DATABASE__URL", &url).with("LIMITS__AUTH_FAIL_COUNT", "0"))
    };
    let mut one = on("revoking")?;
    one.start().await?;
    let mut two = on("following")?;
    std::fs::create_dir_all(two.state())?;
    std::fs::copy(one.state().join("master.key"), two.state().join("master.key"))?;
    two.start().await?;
    let mut admin = Connection::open(&one.admin).await?;
    let mut keys = Vec::new();
    let mut certificates = Vec::new();
    let mut switches = Vec::new();
    for index in 0..TRIES {
        // The previous step ended with a poll of the other daemon. So each try begins at another moment between two
        // polls.
        let moment = POLL * index as u32 / TRIES as u32;
        let name = format!(r#"{{"fqdn":"host-{index}.bench.example.com","allow_short_name":true}}"#);
        let old = register(&mut admin, &name).await?;
        until_answered(&two.hosts, &old, |status| status == 200).await?;
        sleep(moment).await;
        register(&mut admin, &name).await?;
        keys.push(until_answered(&two.hosts, &old, |status| status == 401).await?);

        let files = directory(&format!("certificate-{index}"));
        let (target, fingerprint) = certificate(&one, &two, &files)?;
        let mut connection = until_open(&target).await?;
        sleep(moment).await;
        call(&mut admin, &format!("/admin/certificates/{fingerprint}/revoke"), "").await?;
        certificates.push(until_cut(&mut connection).await?);

        let key = register(&mut admin, &name).await?;
        until_answered(&two.hosts, &key, |status| status == 200).await?;
        sleep(moment).await;
        call(&mut admin, "/admin/api/state", r#"{"disabled":true}"#).await?;
        switches.push(until_answered(&two.hosts, &key, |status| status == 503).await?);
        call(&mut admin, "/admin/api/state", r#"{"disabled":false}"#).await?;
        until_answered(&two.hosts, &key, |status| status == 200).await?;
    }
    let rows = [("a replaced key", keys), ("a revoked certificate", certificates), ("the kill switch", switches)];
    Ok(rows.into_iter().flat_map(|(what, times)| in_force(what, times)).collect())
}

/// Two rows: the median and the slowest of the tries.
fn in_force(what: &str, mut times: Vec<Duration>) -> [Row; 2] {
    times.sort_unstable();
    let row = |which: &str, time: Option<&Duration>| {
        let mut row = Row::new(format!("{what} in force on another daemon, {which} of {TRIES}"), "poll interval");
        row.ours.extend(time.copied().map(Cell::milliseconds));
        row.baseline.push(Cell::milliseconds(POLL));
        row
    };
    [row("median", times.get(times.len() / 2)), row("slowest", times.last())]
}

async fn register(admin: &mut Connection, body: &str) -> Result<String> {
    text(&call(admin, "/admin/hosts/register", body).await?, "/data/host/api_key")
}

/// Calls with a host's key until the answer is the expected one; returns how long that took.
async fn until_answered(hosts: &Target, key: &str, is_so: impl Fn(u16) -> bool) -> Result<Duration> {
    let body = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
    let asked = request("POST", "/auth", Some(key), false, &body.to_string());
    let mut connection = Connection::open(hosts).await?;
    let begun = Instant::now();
    loop {
        let status = connection.exchange(&asked).await?.status;
        if is_so(status) {
            return Ok(begun.elapsed());
        }
        within_patience(begun, &format!("the other daemon still answers {status}"))?;
        pause().await;
    }
}

/// Issues a new admin certificate; returns a target on the second daemon, and its fingerprint.
fn certificate(one: &Daemon, two: &Daemon, files: &Path) -> Result<(Target, Digest)> {
    one.run(&["admin-cert", "mallory", "--pem", &files.display().to_string()])?;
    let [certificate, key]: [PathBuf; 2] = ["mallory.crt", "mallory.key"].map(|name| files.join(name));
    let fingerprint = Digest::of(&CertificateDer::from_pem_file(&certificate)?);
    let tls = Some(tls_config(Some((&certificate, &key)))?);
    Ok((Target { tls, ..two.admin.clone() }, fingerprint))
}

/// Opens a connection, waiting until the certificate is accepted.
async fn until_open(target: &Target) -> Result<Connection> {
    let begun = Instant::now();
    loop {
        if let Ok(mut connection) = Connection::open(target).await
            && asks(&mut connection).await
        {
            return Ok(connection);
        }
        within_patience(begun, "the other daemon accepts no connection")?;
        pause().await;
    }
}

async fn until_cut(connection: &mut Connection) -> Result<Duration> {
    let begun = Instant::now();
    while asks(connection).await {
        within_patience(begun, "the other daemon still accepts a revoked certificate")?;
        pause().await;
    }
    Ok(begun.elapsed())
}

async fn asks(connection: &mut Connection) -> bool {
    let asked = request("GET", "/healthz", None, false, "");
    connection.exchange(&asked).await.is_ok_and(|answer| answer.status == 200)
}

fn within_patience(begun: Instant, what: &str) -> Result<()> {
    if begun.elapsed() > PATIENCE { Err(what.into()) } else { Ok(()) }
}
