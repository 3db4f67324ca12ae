//! Attacks on one daemon from one address, or with one credential, while a fleet uses it. Prints one table at the end.
//!
//! `make attack` runs it. `AUTHD_ATTACK_SECONDS` (10) is the time of each attack. `AUTHD_ATTACK_DAEMON` is another
//! program to attack, for a comparison: then the table is printed and nothing is asserted. Attackers call from
//! 127.0.0.2, the hosts of the fleet from 127.0.1.1, 127.0.1.2, … Each daemon has the default limits.
//!
//! Failures of others and growth of memory are asserted. Times are only printed.

mod attackers;
mod connections;
mod fleet;

use std::path::PathBuf;
use std::time::Duration;

use crate::support::daemon::Daemon;

use attackers::Attack;
use fleet::Fleet;

/// The largest growth of memory by an attack, in bytes.
const MAX_GROWTH: u64 = 64 << 20;
/// The default of a service manager.
const DESCRIPTORS: &str = "1024";

/// The result of one attack.
struct Row {
    attack: &'static str,
    idle: Duration,
    attacked: Duration,
    calls: usize,
    /// Failures of the fleet, of a sign-in, and of the control socket.
    failures: Vec<String>,
    growth: u64,
    note: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two minutes of load on both cores: make attack"]
async fn attacks_from_one_address_leave_the_fleet_unmoved() {
    let seconds = std::env::var("AUTHD_ATTACK_SECONDS").ok().map_or(10, |text| text.parse().unwrap());
    let only = std::env::var("AUTHD_ATTACK_ONLY").ok();
    let compared = std::env::var_os("AUTHD_ATTACK_DAEMON").map(PathBuf::from);
    raise_descriptors();
    let mut rows = Vec::new();
    for attack in Attack::ALL.into_iter().filter(|attack| only.as_ref().is_none_or(|only| attack.name() == only)) {
        println!("attack: {}", attack.name());
        rows.push(run(attack, compared.as_ref(), Duration::from_secs(seconds)).await);
    }
    print(&rows);
    if compared.is_some() {
        return;
    }
    for row in rows {
        assert!(row.failures.is_empty(), "{}: others failed: {:?}", row.attack, row.failures);
        assert!(row.growth <= MAX_GROWTH, "{}: {} MiB more", row.attack, row.growth >> 20);
    }
}

async fn run(attack: Attack, program: Option<&PathBuf>, time: Duration) -> Row {
    let mut daemon = Daemon::prepare(attack.settings());
    daemon.log_level = Some("error");
    if attack == Attack::Descriptors {
        daemon.within = ["prlimit", &format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}")].map(String::from).into();
    }
    if let Some(program) = program {
        daemon.binary = program.clone();
    }
    // The product's defaults, which other tests turn off.
    daemon.unset("LIMITS__");
    daemon.unset("AUTH__STORES_PER_HOST_PER_HOUR");
    daemon.launch();
    let mut fleet = Fleet::enrol(&daemon).await;
    let prepared = attackers::Prepared::new(attack, &daemon).await;
    let idle = fleet.work(time / 2).await;
    let before = memory(&daemon);
    // The attackers have their own thread: their computing must not delay the clients of the fleet.
    let (attacked, (growth, note)) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let attackers = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (note, growth) = tokio::join!(prepared.attack(&daemon, time), watch(&daemon, before, time));
                    (growth, note)
                })
            });
            let attacked = tokio::runtime::Handle::current().block_on(fleet.work(time));
            (attacked, attackers.join().unwrap())
        })
    });
    Row {
        attack: attack.name(),
        idle: idle.percentile(99),
        attacked: attacked.percentile(99),
        calls: attacked.times.len() + attacked.failures.len(),
        failures: [idle.failures, attacked.failures].concat(),
        growth,
        note,
    }
}

/// The largest memory of the daemon above `before`.
async fn watch(daemon: &Daemon, before: u64, time: Duration) -> u64 {
    let end = std::time::Instant::now() + time;
    let mut growth = 0;
    while std::time::Instant::now() < end {
        growth = growth.max(memory(daemon).saturating_sub(before));
        fleet::rest(Duration::from_millis(50)).await;
    }
    growth
}

/// The daemon's memory that is not backed by files, in bytes.
fn memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

fn print(rows: &[Row]) {
    println!();
    println!(
        "{:<16} {:>9} {:>9} {:>6} {:>6} {:>9} {:>10}  note",
        "attack", "p99 idle", "p99 then", "ratio", "calls", "failures", "memory"
    );
    for row in rows {
        let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let ratio = row.attacked.as_secs_f64() / row.idle.as_secs_f64().max(1e-6);
        println!(
            "{:<16} {:>9} {:>9} {ratio:>6.1} {:>6} {:>9} {:>6} MiB  {}",
            row.attack,
            milliseconds(row.idle),
            milliseconds(row.attacked),
            row.calls,
            row.failures.len(),
            row.growth >> 20,
            row.note,
        );
        for failure in row.failures.iter().take(3) {
            println!("{:<16} {failure}", "");
        }
    }
}

/// Raises the limit of descriptors for the attackers.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}
