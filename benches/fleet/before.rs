//! This build beside an earlier one (`BENCH_BEFORE`): what a change of the code costs or gains, in one run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::calls::{EveryHost, Fleet, Gets, Registrations, Retrieves, Stores};
use crate::load::Script;
use crate::process::{Daemon, Identity};
use crate::report::Row;
use crate::{Bench, CLIENTS, MANY_HOSTS, Result, SOME_HOSTS, number, run_one};

const BESIDE: &str = "the build before";

pub async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let Some(program) = std::env::var_os("BENCH_BEFORE").map(PathBuf::from) else {
        eprintln!("bench: BENCH_BEFORE is not set: this build is not compared with an earlier one");
        return Ok(Vec::new());
    };
    let mut rows = Vec::new();
    rows.extend(retrieves(bench, &program, None).await?);
    rows.extend(retrieves(bench, &program, Some(&bench.identity)).await?);
    rows.extend(durable(bench, &program).await?);
    for hosts in [SOME_HOSTS, number("BENCH_HOSTS", MANY_HOSTS)?] {
        rows.extend(fleets(bench, &program, hosts).await?);
    }
    Ok(rows)
}

async fn pair(bench: &Bench, program: &Path, name: &str, identity: Option<&Identity>) -> Result<[(Daemon, Fleet); 2]> {
    let daemon = |side: &str| Daemon::new(bench.directory.path().join(format!("{name}-{side}")), identity);
    let ours = bench.fleet_of(CLIENTS, daemon("now")?).await?;
    Ok([ours, bench.fleet_of(CLIENTS, daemon("before")?.of(program)).await?])
}

async fn retrieves(bench: &Bench, program: &Path, identity: Option<&Identity>) -> Result<Vec<Row>> {
    let over = if identity.is_some() { "TLS 1.3" } else { "HTTP" };
    let pair = pair(bench, program, &format!("retrieve-{}", identity.is_some()), identity).await?;
    let scripts = [0, 1].map(|side: usize| Arc::new(Retrieves::new(&pair[side].1, false)));
    let daemons = pair.each_ref().map(|(daemon, _)| daemon);
    let mut rows = Vec::new();
    for clients in [8, CLIENTS] {
        let what = format!("/auth retrieve, {over}, {clients} connections");
        rows.push(beside(bench, what, clients, daemons, false, &scripts).await?);
    }
    Ok(rows)
}

async fn durable(bench: &Bench, program: &Path) -> Result<Vec<Row>> {
    let pair = pair(bench, program, "durable", None).await?;
    let daemons = pair.each_ref().map(|(daemon, _)| daemon);
    let registrations = [0, 1].map(|_side| Arc::new(Registrations::new()));
    let stores = [0, 1].map(|side: usize| Arc::new(Stores::new(&pair[side].1)));
    let mut rows = Vec::new();
    for clients in [1, CLIENTS] {
        let what = format!("registrations, clients: {clients}");
        rows.push(beside(bench, what, clients, daemons, true, &registrations).await?);
        let what = format!("stores made canonical, clients: {clients}");
        rows.push(beside(bench, what, clients, daemons, false, &stores).await?);
    }
    Ok(rows)
}

/// Each host of a fleet asks, and an admin reads a page of it.
async fn fleets(bench: &Bench, program: &Path, hosts: usize) -> Result<Vec<Row>> {
    let (mut now, keys_now) = bench.seeded(&format!("fleet-{hosts}"), hosts, None).await?;
    let (mut before, keys_before) = bench.seeded(&format!("fleet-{hosts}-before"), hosts, Some(program)).await?;
    now.start().await?;
    before.start().await?;
    let everybody = [&keys_now, &keys_before].map(|keys| Arc::new(EveryHost::new(keys)));
    let query = "limit=100&sort=last_seen&order=desc";
    let page = Gets::new(&format!("/admin/hosts?{query}"), r#"{"status":"ok","data":{"hosts":"#);
    let page = Arc::new(page);
    let what = format!("/auth retrieve, each of {hosts} hosts, {CLIENTS} connections");
    let mut rows = vec![beside(bench, what, CLIENTS, [&now, &before], false, &everybody).await?];
    let what = format!("list of {hosts} hosts, first page by last_seen");
    rows.push(beside(bench, what, 1, [&now, &before], true, &[page.clone(), page]).await?);
    Ok(rows)
}

async fn beside(
    bench: &Bench,
    what: String,
    clients: usize,
    daemons: [&Daemon; 2],
    as_admin: bool,
    scripts: &[Arc<impl Script>; 2],
) -> Result<Row> {
    let mut row = Row::new(what, BESIDE);
    for _ in 0..bench.rounds {
        for (side, (daemon, script)) in daemons.into_iter().zip(scripts).enumerate() {
            let target = if as_admin { &daemon.admin } else { &daemon.hosts };
            let load = bench.load(target, clients, vec![daemon.pid()]);
            let cell = run_one(&row.what, ["now", "before"][side], &load, script).await?;
            if side == 0 { row.ours.push(cell) } else { row.baseline.push(cell) }
        }
    }
    Ok(row)
}
