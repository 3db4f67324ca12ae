//! Hosts that retrieve the login without a pause, on new and on kept connections, and the result of every call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, ClientBuilder};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::support::daemon::{BOUND, pause};

pub struct Callers {
    runtime: Runtime,
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: [AtomicU64; 2],
    longest: AtomicU64,
    failed: Mutex<Vec<String>>,
}

/// The results.
#[derive(Debug)]
pub struct Met {
    pub on_new_connections: u64,
    pub on_kept_connections: u64,
    pub longest: Duration,
    /// The reason of each call that was not answered 200.
    pub failed: Vec<String>,
}

impl Met {
    pub fn told(&self) -> String {
        format!(
            "{} calls on new and {} on kept connections, the longest {:?}, {} failed",
            self.on_new_connections,
            self.on_kept_connections,
            self.longest,
            self.failed.len()
        )
    }
}

impl Callers {
    /// Starts as many clients of each kind as there are `keys`. All of them work when this returns.
    pub fn begin(url: &str, keys: &[String], client: impl Fn() -> ClientBuilder) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shared = Arc::new(Shared::default());
        let mut clients = JoinSet::new();
        for key in keys {
            for kind in 0..2 {
                // The second kind keeps its connections.
                let client = client().pool_max_idle_per_host(kind).build().unwrap();
                clients.spawn_on(
                    keep_calling(client, url.to_owned(), key.clone(), kind, shared.clone()),
                    runtime.handle(),
                );
            }
        }
        let callers = Self { runtime, clients, shared };
        callers.go_on();
        callers
    }

    /// Waits for some more answers of both kinds.
    pub fn go_on(&self) {
        let counts = || [0, 1].map(|kind: usize| self.shared.answered[kind].load(Ordering::SeqCst));
        let (begun, before) = (Instant::now(), counts());
        while counts().iter().zip(before).any(|(now, before)| *now < before + 20) {
            assert!(begun.elapsed() < BOUND, "no call is answered: {:?}", self.shared.failed.blocking_lock());
            pause();
        }
    }

    pub fn end(mut self) -> Met {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.runtime.block_on(async {
            while let Some(ended) = self.clients.join_next().await {
                ended.unwrap();
            }
        });
        let failed = std::mem::take(&mut *self.shared.failed.blocking_lock());
        let [on_new_connections, on_kept_connections] =
            [0, 1].map(|kind: usize| self.shared.answered[kind].load(Ordering::SeqCst));
        let longest = Duration::from_millis(self.shared.longest.load(Ordering::SeqCst));
        Met { on_new_connections, on_kept_connections, longest, failed }
    }
}

async fn keep_calling(client: Client, url: String, key: String, kind: usize, shared: Arc<Shared>) {
    let question = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
    while !shared.stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        let answer = match client.post(&url).header("X-API-Key", &key).json(&question).send().await {
            Ok(answer) => {
                let status = answer.status();
                answer.bytes().await.map(|body| (status, body))
            }
            Err(error) => Err(error),
        };
        shared.longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
        match answer {
            Ok((status, _)) if status == 200 => drop(shared.answered[kind].fetch_add(1, Ordering::SeqCst)),
            Ok((status, body)) => {
                shared.failed.lock().await.push(format!("{status}: {}", String::from_utf8_lossy(&body)));
            }
            Err(error) => shared.failed.lock().await.push(format!("{}: {error:?}", ["new", "kept"][kind])),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
