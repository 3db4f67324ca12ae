//! Power cuts: an acknowledged change survives, and no change is half applied.
//!
//! 1. `workload`: a daemon serves many clients under a recorder (support/record_disk.c). The log contains every write and
//!    sync of the state directory and every question and answer of the clients, in one order.
//! 2. `cuts`, `disk`, `landing`: for a position in that log, one of the disk states that a power cut may leave is built.
//! 3. `check`: the real daemon boots on that state, and its content is compared with the `ledger` of the clients.
//! 4. One in four states is cut twice: the daemon recovers and works under the recorder, and is cut again in that log.
//!
//! The daemon does not promise that a host's call count survives (docs/ARCHITECTURE.md, Retrieve). So the check of
//! telemetry is an upper bound: no call is counted twice.
//!
//! `make power`: AUTHD_POWER_STATES (3000) states over AUTHD_POWER_SEEDS (5) workloads. AUTHD_POWER_SEED sets the first
//! seed; AUTHD_POWER_DAEMON=/path tests another program. A seed repeats the choices of clients and cuts, but not the
//! scheduling. Therefore a failure keeps the log, and its message contains the command that tests that one state again.

mod builder_tests;
mod check;
mod clients;
mod cuts;
mod disk;
mod landing;
mod ledger;
mod log;
mod observe;
mod recorder_tests;
mod states;
mod tree;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::support::daemon::BINARY;
use crate::support::random::Random;
use crate::support::record_disk::Recorder;
use crate::support::skip::skipped;

use states::{States, Tally, cannot_reboot};
use workload::Workload;

/// Size of the test in `make test`.
const STATES: usize = 60;
const CALLS: u64 = 1000;
/// Calls of each workload in `make power`.
const MANY_CALLS: u64 = 1500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

fn program() -> PathBuf {
    std::env::var_os("AUTHD_POWER_DAEMON").map_or_else(|| BINARY.into(), PathBuf::from)
}

/// Records the workload of a seed and tests `count` states of it.
fn examine(program: &Path, recorder: &Recorder, seed: u64, calls: u64, count: usize) -> Tally {
    let begun = Instant::now();
    let mut workload = Workload::record(program, recorder, seed, calls);
    let recorded = begun.elapsed();
    let states = States::new(&workload, program, recorder);
    states.examine(seed, count);
    let tally = states.tally;
    println!(
        "power: AUTHD_POWER_SEED={seed}: {} calls, {} events, {} KiB in {recorded:.0?}; {tally}; {:.0?} in all",
        workload.ledger.calls.len(),
        workload.log.events.len(),
        workload.log.bytes.len() / 1024,
        begun.elapsed(),
    );
    if tally.failures() > 0 {
        workload.keep();
    }
    tally
}

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    if let Some(reason) = cannot_reboot() {
        return skipped(reason);
    }
    let seed = number("AUTHD_POWER_SEED").unwrap_or_else(Random::fresh_seed);
    let tally = examine(&program(), &Recorder::build(), seed, CALLS, STATES);
    assert_eq!(tally.failures(), 0, "{tally}");
}

#[test]
#[ignore = "half an hour: make power"]
fn many_states() {
    if let Some(reason) = cannot_reboot() {
        return skipped(reason);
    }
    let (program, recorder) = (program(), Recorder::build());
    let total = Tally::default();
    if let Some(run) = std::env::var_os("AUTHD_POWER_RUN") {
        let workload = Workload::kept(Path::new(&run));
        let states = States::new(&workload, &program, &recorder);
        states.examine_one(number("AUTHD_POWER_STATE").expect("AUTHD_POWER_STATE"));
        assert_eq!(states.tally.failures(), 0, "{}", states.tally);
        return;
    }
    let seeds = number("AUTHD_POWER_SEEDS").unwrap_or(5).max(1);
    let states = number("AUTHD_POWER_STATES").unwrap_or(3000);
    let mut random = Random(number("AUTHD_POWER_SEED").unwrap_or_else(Random::fresh_seed));
    for n in 0..seeds {
        let count = states * (n + 1) / seeds - states * n / seeds;
        // AUTHD_POWER_SEED with AUTHD_POWER_SEEDS=1 repeats one seed of a longer run.
        let seed = if n == 0 { random.0 } else { random.next() };
        total.add_all(&examine(&program, &recorder, seed, MANY_CALLS, count as usize));
    }
    println!("power: over {seeds} seeds, {total}");
    assert_eq!(total.failures(), 0, "{total}");
}
