//! The load generator: N clients in a closed loop. Each sends its next request after the answer to the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::Result;
use crate::http::{Connection, Target};
use crate::process::cpu_time;

/// The time limit for an answer; a slower one ends the benchmark.
const BOUND: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(1);

/// The requests of the clients, and which answers count.
pub trait Script: Send + Sync + 'static {
    /// Writes the next request of `client` into `request`, which is empty.
    fn request(&self, client: usize, request: &mut Vec<u8>);
    /// Judges an answer.
    fn judge(&self, status: u16, body: &[u8]) -> Verdict;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Counts,
    /// A valid answer that is not counted (for example for a store that another one overtook).
    Besides,
    Wrong,
}

#[derive(Clone)]
pub struct Load {
    pub target: Target,
    pub clients: usize,
    /// Use a new connection for every request.
    pub fresh: bool,
    pub duration: Duration,
    /// The processes of the server, for its CPU time.
    pub processes: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    pub per_second: f64,
    /// Latencies in microseconds, over all valid answers.
    pub p50: f64,
    pub p99: f64,
    /// The server's CPU time in microseconds per valid answer.
    pub cpu: f64,
    /// Valid but uncounted answers per second.
    pub besides: f64,
}

pub async fn run(load: &Load, script: Arc<impl Script>) -> Result<Measured> {
    let mut connections = Vec::new();
    for _ in 0..if load.fresh { 0 } else { load.clients } {
        connections.push(timeout(BOUND, Connection::open(&load.target)).await??);
    }
    let begin = Instant::now() + WARM_UP;
    let end = begin + load.duration;
    let mut clients = JoinSet::new();
    for client in 0..load.clients {
        clients.spawn(one(load.clone(), client, connections.pop(), script.clone(), begin, end));
    }
    sleep_until(begin).await;
    let before = cpu_time(&load.processes);
    sleep_until(end).await;
    let spent = cpu_time(&load.processes)?.saturating_sub(before?);
    let mut latencies = Vec::new();
    let mut counted = 0_usize;
    while let Some(done) = clients.join_next().await {
        let mut log = done??;
        counted += log.counted;
        latencies.append(&mut log.latencies);
    }
    let answers = latencies.len();
    if answers == 0 {
        return Err("there was no answer".into());
    }
    latencies.sort_unstable();
    let seconds = load.duration.as_secs_f64();
    Ok(Measured {
        per_second: counted as f64 / seconds,
        p50: percentile(&latencies, 50),
        p99: percentile(&latencies, 99),
        cpu: spent.as_secs_f64() * 1e6 / answers as f64,
        besides: (answers - counted) as f64 / seconds,
    })
}

/// A percentile of a sorted, non-empty slice, in the unit of the slice.
pub fn percentile(sorted: &[u32], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    f64::from(sorted[rank - 1])
}

struct Log {
    latencies: Vec<u32>,
    counted: usize,
}

async fn one(
    load: Load,
    client: usize,
    mut connection: Option<Connection>,
    script: Arc<impl Script>,
    begin: Instant,
    end: Instant,
) -> Result<Log> {
    let mut log = Log { latencies: Vec::with_capacity(1 << 16), counted: 0 };
    let mut request = Vec::new();
    loop {
        request.clear();
        script.request(client, &mut request);
        let sent = Instant::now();
        if sent >= end {
            return Ok(log);
        }
        let verdict = timeout(BOUND, async {
            let connection = match &mut connection {
                Some(connection) => connection,
                none => none.insert(Connection::open(&load.target).await?),
            };
            let answer = connection.exchange(&request).await?;
            let verdict = script.judge(answer.status, answer.body);
            if verdict == Verdict::Wrong {
                return Err(format!("answered {}: {}", answer.status, String::from_utf8_lossy(answer.body)).into());
            }
            Ok::<_, crate::Error>(verdict)
        })
        .await??;
        let answered = Instant::now();
        if load.fresh {
            connection = None;
        }
        if answered >= begin && answered <= end {
            log.latencies.push(u32::try_from((answered - sent).as_micros()).unwrap_or(u32::MAX));
            log.counted += usize::from(verdict == Verdict::Counts);
        }
    }
}
