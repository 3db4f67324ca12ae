//! `make bench`: measures the daemon on this machine, each figure with its baseline from the same run, in one table.
//!
//! Every server is a process of its own on loopback; this process is the load generator. The daemon and the baseline
//! take turns for several rounds, and the table has the median of the rounds. So noise of the machine affects both.
//!
//! Arguments choose parts: `retrieve`, `connections`, `durable`, `growth`, `idle`, `database`, `sandbox`,
//! `wrapper`; for the
//! fleets `starts`, `rates`, `list`; `before`; none means all. `seed STATE_DIR HOSTS` only adds hosts to the state of a stopped
//! daemon.
//!
//! Environment variables:
//!
//! - `BENCH_SECONDS` (5) and `BENCH_ROUNDS` (3): the duration;
//! - `BENCH_HOSTS` (100000): the size of the large fleet;
//! - `BENCH_DIR`: the place for the state directories;
//! - `BENCH_FLEETS`: where fleets are kept for the next run;
//! - `BENCH_NGINX`: the path of nginx;
//! - `BENCH_CDX`: the path of the native cdx, for `wrapper`;
//! - `BENCH_BEFORE`: the path of an earlier build of codex-authd, for `before`.

mod bare;
mod before;
mod calls;
mod database;
mod disk;
mod growth;
mod http;
mod load;
mod mariadb;
mod process;
mod report;
mod sandbox;
mod seed;
mod telemetry;
mod wrapper;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use calls::{EveryHost, Fleet, Gets, Registrations, Retrieves, Stores};
use load::{Load, Script};
use process::{Bare, Daemon, Identity, Nginx, resident_memory};
use report::{Cell, Row};

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// One host for each client of the busiest load, so that each client has its own key.
const CLIENTS: usize = 64;
const SOME_HOSTS: usize = 1000;
const MANY_HOSTS: usize = 100_000;
/// How long a server rests after its start before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // cargo adds arguments of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    // The same runtime as the daemon's: see `cli`.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.split_first() {
        Some((first, rest)) if first == "bare" => runtime.block_on(bare::serve(rest)),
        Some((first, [state, hosts])) if first == "seed" => {
            runtime.block_on(seed::seed(Path::new(state), hosts.parse()?))
        }
        _ => runtime.block_on(measure(&arguments)),
    }
}

async fn measure(parts: &[String]) -> Result<()> {
    let bench = Bench::new()?;
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    let mut rows = Vec::new();
    if wanted("retrieve") {
        rows.extend(bench.retrieve(None).await?);
        rows.extend(bench.retrieve(Some(&bench.identity)).await?);
    }
    if wanted("connections") {
        rows.extend(bench.connections().await?);
    }
    if wanted("durable") {
        rows.extend(bench.durable().await?);
    }
    if wanted("growth") {
        rows.extend(growth::rows(bench.directory.path()).await?);
    }
    if wanted("idle") {
        rows.extend(bench.idle().await?);
    }
    if wanted("database") {
        rows.extend(database::rows(&bench).await?);
    }
    if wanted("sandbox") {
        rows.extend(sandbox::rows(&bench).await?);
    }
    if wanted("wrapper") {
        rows.extend(wrapper::rows(&bench).await?);
    }
    if wanted("before") {
        rows.extend(before::rows(&bench).await?);
    }
    let (starts, rates, list) = (wanted("starts"), wanted("rates"), wanted("list"));
    if starts || rates || list {
        rows.extend(bench.fleets(starts, rates, list).await?);
    }
    print!("{}", report::table(&rows));
    println!(
        "\nMedian of {} rounds of {} s each, ours and the baseline in turns, on loopback of one machine with {} cores.\n\
         The load generator runs on the same cores and costs both sides the same: it moves a ratio of rates towards 1.\n\
         CPU is the server's own time for each answer, without the generator's.\n\
         The bare handler has the daemon's acceptors and TLS configuration; nginx has 2 workers and its own defaults.\n\
         MariaDB has its own defaults, each commit flushed, and is reached by a socket; its CPU is counted with the daemon's.\n\
         If {CLIENTS} clients store at once, an overtaken store is answered `outdated`, which is not counted.",
        bench.rounds,
        bench.duration.as_secs_f64(),
        std::thread::available_parallelism()?,
    );
    Ok(())
}

struct Bench {
    directory: tempfile::TempDir,
    identity: Identity,
    duration: Duration,
    rounds: usize,
}

impl Bench {
    fn new() -> Result<Self> {
        let parent = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("target/bench"), PathBuf::from);
        std::fs::create_dir_all(&parent)?;
        let parent = std::fs::canonicalize(parent)?;
        let directory = tempfile::Builder::new().prefix("run-").tempdir_in(parent)?;
        let identity = make_identity(directory.path())?;
        let seconds: f64 = number("BENCH_SECONDS", 5.0)?;
        Ok(Self {
            identity,
            directory,
            duration: Duration::try_from_secs_f64(seconds)?,
            rounds: number("BENCH_ROUNDS", 3)?,
        })
    }

    /// `POST /auth` with the answer `valid`, on connections that stay open, compared with the bare handler.
    async fn retrieve(&self, identity: Option<&Identity>) -> Result<Vec<Row>> {
        let over = if identity.is_some() { "TLS 1.3" } else { "HTTP" };
        let (daemon, fleet) = self.fleet(&format!("retrieve-{}", identity.is_some()), identity).await?;
        let body = self.directory.path().join("answer.json");
        std::fs::write(&body, fleet.valid_answer(&daemon.hosts).await?)?;
        let bare = Bare::start(&body, identity).await?;
        let script = Arc::new(Retrieves::new(&fleet, false));
        let mut rows = Vec::new();
        for clients in [8, CLIENTS] {
            let mut row = Row::new(format!("/auth retrieve, {over}, {clients} connections"), "bare poem");
            for _ in 0..self.rounds {
                let ours = self.load(&daemon.hosts, clients, vec![daemon.pid()]);
                row.ours.push(run_one(&row.what, "ours", &ours, &script).await?);
                let theirs = self.load(&bare.target, clients, vec![bare.pid()]);
                row.baseline.push(run_one(&row.what, "bare", &theirs, &script).await?);
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// A new TLS 1.3 connection for each request, compared with nginx using the same certificate.
    async fn connections(&self) -> Result<Vec<Row>> {
        let Some(program) = std::env::var_os("BENCH_NGINX") else {
            eprintln!("bench: BENCH_NGINX is not set: skipping new connections, compared with nginx");
            return Ok(Vec::new());
        };
        let (daemon, fleet) = self.fleet("connections", Some(&self.identity)).await?;
        let length = fleet.valid_answer(&daemon.hosts).await?.len();
        let directory = self.directory.path().join("nginx");
        let nginx = Nginx::start(Path::new(&program), &directory, &self.identity, length).await?;
        let script = Arc::new(Retrieves::new(&fleet, true));
        let filler = Arc::new(Retrieves::new(&fleet, true).expecting("x"));
        let mut row = Row::new("new TLS 1.3 connections, one request each, 8 at once".into(), "nginx");
        for _ in 0..self.rounds {
            let ours = Load { fresh: true, ..self.load(&daemon.hosts, 8, vec![daemon.pid()]) };
            row.ours.push(run_one(&row.what, "ours", &ours, &script).await?);
            let theirs = Load { fresh: true, ..self.load(&nginx.target, 8, nginx.pids()?) };
            row.baseline.push(run_one(&row.what, "nginx", &theirs, &filler).await?);
        }
        Ok(vec![row])
    }

    /// Calls that are answered after a flush, compared with the speed of the disk for one writer.
    async fn durable(&self) -> Result<Vec<Row>> {
        let (daemon, fleet) = self.fleet("durable", None).await?;
        let baseline = "fdatasync, 1 writer";
        let mut rows: Vec<Row> = [
            "registrations, 1 client",
            "registrations, 64 clients",
            "stores made canonical, 1 client",
            "stores made canonical, 64 clients",
        ]
        .map(|what| Row::new(what.into(), baseline))
        .into();
        let (registrations, stores) = (Arc::new(Registrations::new()), Arc::new(Stores::new(&fleet)));
        for _ in 0..self.rounds {
            let disk = disk::syncs(self.directory.path(), self.duration)?;
            for (row, clients) in rows.iter_mut().zip([1, CLIENTS, 1, CLIENTS]) {
                let ours = if row.what.starts_with("registrations") {
                    let load = self.load(&daemon.admin, clients, vec![daemon.pid()]);
                    run_one(&row.what, "ours", &load, &registrations).await?
                } else {
                    let load = self.load(&daemon.hosts, clients, vec![daemon.pid()]);
                    run_one(&row.what, "ours", &load, &stores).await?
                };
                row.ours.push(ours);
                row.baseline.push(disk);
            }
        }
        Ok(rows)
    }

    /// Memory and start-up time without hosts.
    async fn idle(&self) -> Result<Vec<Row>> {
        let mut start = ["first start", "start-up, 0 hosts"].map(|what| Row::new(what.into(), "bare poem"));
        let mut memory = Row::new("resident memory, 0 hosts".into(), "bare poem");
        let mut empty = Daemon::new(self.directory.path().join("empty"), Some(&self.identity))?;
        empty.start().await?;
        for round in 0..self.rounds.max(3) {
            eprintln!("bench: idle, round {round}");
            let mut new = Daemon::new(self.directory.path().join(format!("new-{round}")), Some(&self.identity))?;
            start[0].ours.push(Cell::milliseconds(new.start().await?));
            drop(new);
            start[1].ours.push(Cell::milliseconds(empty.start().await?));
            let bare = self.bare().await?;
            start.iter_mut().for_each(|row| row.baseline.push(Cell::milliseconds(bare.start)));
            tokio::time::sleep(SETTLE).await;
            memory.ours.push(Cell::mebibytes(resident_memory(empty.pid())?));
            memory.baseline.push(Cell::mebibytes(resident_memory(bare.pid())?));
        }
        Ok(start.into_iter().chain([memory]).collect())
    }

    /// The same for a small and a large fleet: values that must not grow with the fleet, and how much others grow.
    async fn fleets(&self, starts: bool, rates: bool, list: bool) -> Result<Vec<Row>> {
        let sizes = [SOME_HOSTS, number("BENCH_HOSTS", MANY_HOSTS)?];
        let mut daemons = Vec::new();
        for hosts in sizes {
            let (daemon, fleet) = self.seeded(&format!("fleet-{hosts}"), hosts, None).await?;
            daemons.push((hosts, daemon, fleet));
        }
        let mut rows = Vec::new();
        if starts {
            for (hosts, daemon, _) in &mut daemons {
                rows.extend(self.starts(*hosts, daemon).await?);
            }
        }
        if rates {
            rows.extend(self.rates(&mut daemons).await?);
        }
        if list {
            for (hosts, daemon, _) in &mut daemons {
                rows.extend(self.lists(*hosts, daemon).await?);
            }
        }
        Ok(rows)
    }

    /// A stopped daemon of this build, or of `program`, that has many hosts.
    async fn seeded(&self, name: &str, hosts: usize, program: Option<&Path>) -> Result<(Daemon, Fleet)> {
        eprintln!("bench: making a fleet of {hosts}");
        let kept = std::env::var_os("BENCH_FLEETS").map(PathBuf::from);
        let parent = kept.as_deref().unwrap_or(self.directory.path());
        let mut daemon = Daemon::new(std::path::absolute(parent.join(name))?, None)?;
        if let Some(program) = program {
            daemon = daemon.of(program);
        }
        let whole = daemon.state().join("fleet-is-whole");
        if !whole.exists() {
            daemon.start().await?;
            daemon.stop();
            seed::seed(&daemon.state(), hosts).await?;
            std::fs::write(&whole, "")?;
        }
        // The first start builds hot state, so that it exists for the measured starts.
        daemon.start().await?;
        let fleet = Fleet::seeded(&daemon.admin, hosts).await?;
        daemon.stop();
        Ok((daemon, fleet))
    }

    async fn starts(&self, hosts: usize, daemon: &mut Daemon) -> Result<Vec<Row>> {
        let mut start = Row::new(format!("start-up, {hosts} hosts"), "bare poem");
        let mut anew = Row::new(format!("start-up with hot state lost, {hosts} hosts"), "bare poem");
        let mut memory = Row::new(format!("resident memory, {hosts} hosts"), "bare poem");
        for round in 0..self.rounds.max(3) {
            eprintln!("bench: {hosts} hosts, round {round}");
            start.ours.push(Cell::milliseconds(daemon.start().await?));
            let bare = self.bare().await?;
            tokio::time::sleep(SETTLE).await;
            memory.ours.push(Cell::mebibytes(resident_memory(daemon.pid())?));
            memory.baseline.push(Cell::mebibytes(resident_memory(bare.pid())?));
            start.baseline.push(Cell::milliseconds(bare.start));
            daemon.stop();
            std::fs::remove_dir_all(daemon.state().join("hot"))?;
            anew.ours.push(Cell::milliseconds(daemon.start().await?));
            anew.baseline.push(Cell::milliseconds(bare.start));
            daemon.stop();
        }
        Ok(vec![start, anew, memory])
    }

    /// Retrieves by every host: the large fleet compared with the small one.
    async fn rates(&self, fleets: &mut [(usize, Daemon, Fleet)]) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let [(few, small, few_hosts), (many, large, many_hosts)] = fleets else { return Ok(rows) };
        small.start().await?;
        large.start().await?;
        let (few_hosts, many_hosts) = (Arc::new(EveryHost::new(few_hosts)), Arc::new(EveryHost::new(many_hosts)));
        // The first call of a host after the start loads the host from hot state.
        let mut first = Row::new(format!("/auth retrieve, first calls of {many} hosts, 64 connections"), "1,000 hosts");
        let load = |daemon: &Daemon, clients| self.load(&daemon.hosts, clients, vec![daemon.pid()]);
        while !many_hosts.is_done() {
            first.ours.push(run_one(&first.what, "ours", &load(large, CLIENTS), &many_hosts).await?);
        }
        first.baseline.push(run_one(&first.what, &format!("{few} hosts"), &load(small, CLIENTS), &few_hosts).await?);
        rows.push(first);
        for clients in [8, CLIENTS] {
            let mut row =
                Row::new(format!("/auth retrieve, each of {many} hosts, {clients} connections"), "1,000 hosts");
            for _ in 0..self.rounds {
                let ours = load(large, clients);
                row.ours.push(run_one(&row.what, &format!("{many} hosts"), &ours, &many_hosts).await?);
                let theirs = load(small, clients);
                row.baseline.push(run_one(&row.what, &format!("{few} hosts"), &theirs, &few_hosts).await?);
            }
            rows.push(row);
        }
        let mut memory = Row::new(format!("resident memory after that, {many} hosts"), "1,000 hosts");
        memory.ours.push(Cell::mebibytes(resident_memory(large.pid())?));
        memory.baseline.push(Cell::mebibytes(resident_memory(small.pid())?));
        rows.push(memory);
        small.stop();
        large.stop();
        Ok(rows)
    }

    /// Pages of the admins' list of hosts in sequence, compared with a call that does nothing.
    async fn lists(&self, hosts: usize, daemon: &mut Daemon) -> Result<Vec<Row>> {
        daemon.start().await?;
        let nothing = Arc::new(Gets::new("/healthz", "{"));
        // Page by page to the middle of the list.
        let middle = calls::cursor(&daemon.admin, "sort=client_version", hosts / 2).await?;
        let lists = [
            ("first page", "limit=100".to_owned()),
            ("first page by last_seen", "limit=100&sort=last_seen&order=desc".to_owned()),
            ("middle by client_version", format!("limit=100&sort=client_version&cursor={middle}")),
            ("1,000 by api_calls", "limit=1000&sort=api_calls&order=desc".to_owned()),
            ("search that finds little", "limit=100&search=host-9999".to_owned()),
            ("search that finds all", "limit=100&search=BENCH&sort=last_seen".to_owned()),
            ("search that finds none", "limit=100&search=nowhere&sort=updated_at".to_owned()),
        ];
        let mut rows = Vec::new();
        for (what, query) in lists {
            let mut row = Row::new(format!("list of {hosts} hosts: {what}"), "/healthz");
            let script = Arc::new(Gets::new(&format!("/admin/hosts?{query}"), r#"{"status":"ok","data":{"hosts":"#));
            for _ in 0..self.rounds {
                let load = self.load(&daemon.admin, 1, vec![daemon.pid()]);
                row.ours.push(run_one(&row.what, "ours", &load, &script).await?);
                row.baseline.push(run_one(&row.what, "healthz", &load, &nothing).await?);
            }
            rows.push(row);
        }
        daemon.stop();
        Ok(rows)
    }

    async fn bare(&self) -> Result<Bare> {
        let body = self.directory.path().join("empty.json");
        std::fs::write(&body, "{}")?;
        Bare::start(&body, Some(&self.identity)).await
    }

    async fn fleet(&self, name: &str, identity: Option<&Identity>) -> Result<(Daemon, Fleet)> {
        self.fleet_of(CLIENTS, Daemon::new(self.directory.path().join(name), identity)?).await
    }

    /// Starts a daemon, and gives it a canonical login and `hosts` hosts.
    async fn fleet_of(&self, hosts: usize, mut daemon: Daemon) -> Result<(Daemon, Fleet)> {
        eprintln!("bench: preparing {}", daemon.name());
        daemon.start().await?;
        let fleet = Fleet::make(&daemon.admin, hosts).await?;
        Ok((daemon, fleet))
    }

    fn load(&self, target: &http::Target, clients: usize, processes: Vec<u32>) -> Load {
        Load { target: target.clone(), clients, fresh: false, duration: self.duration, processes }
    }
}

async fn run_one(what: &str, side: &str, load: &Load, script: &Arc<impl Script>) -> Result<Cell> {
    let measured = load::run(load, script.clone()).await.map_err(|error| format!("{what}, {side}: {error}"))?;
    eprintln!("bench: {what}, {side}: {:.0}/s", measured.per_second);
    Ok(Cell::rate(&measured))
}

/// A certificate and key of the same kind as the daemon's own, for every server with TLS.
fn make_identity(directory: &Path) -> Result<Identity> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let identity = Identity { certificate: directory.join("server.crt"), key: directory.join("server.key") };
    std::fs::write(&identity.certificate, made.cert.pem())?;
    std::fs::write(&identity.key, made.signing_key.serialize_pem())?;
    Ok(identity)
}

fn number<T: std::str::FromStr>(name: &str, otherwise: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is not a number: {text}").into()),
        Err(_) => Ok(otherwise),
    }
}
