//! The load generator: N clients in a closed loop, each sending its next request when it has the answer to its last.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::Result;
use crate::http::{Connection, Target};
use crate::process::cpu_time;

/// No answer takes longer; one that does ends the benchmark.
const BOUND: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(1);

/// What the clients say, and which answers count.
pub trait Script: Send + Sync + 'static {
    /// Writes the next request of `client` into `request`, which is empty.
    fn request(&self, client: usize, request: &mut Vec<u8>);
    /// What an answer is worth.
    fn judge(&self, status: u16, body: &[u8]) -> Verdict;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Counts,
    /// A proper answer that is not what is counted (a store that another one overtook).
    Besides,
    Wrong,
}

#[derive(Clone)]
pub struct Load {
    pub target: Target,
    pub clients: usize,
    /// A new connection for every request.
    pub fresh: bool,
    pub duration: Duration,
    /// The server's processes, whose CPU time is counted.
    pub processes: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    pub per_second: f64,
    /// Microseconds, of every answer that was right.
    pub p50: f64,
    pub p99: f64,
    /// The server's CPU time, in microseconds for each answer that was right.
    pub cpu: f64,
    /// Answers beside the counted ones, per second.
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
        return Err("not one answer came".into());
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

/// Of a sorted, non-empty slice, in its own unit.
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
