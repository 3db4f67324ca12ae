//! Clients of each kind at work on a daemon, and what they were acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::daemon::{BOUND, Daemon, auth_json};
use super::documents::canonical_digest;

/// Several clients of each kind, until they are told to stop.
pub struct Load {
    /// Made while the disk was well: it holds what is to be trusted.
    pub asking: Client,
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
pub struct Shared {
    stop: AtomicBool,
    pub registered: AtomicU64,
    pub stored: AtomicU64,
    pub retrieved: AtomicU64,
    pub refused: AtomicU64,
    /// The longest that a retrieve took, in milliseconds.
    pub longest: AtomicU64,
    /// Connections that ended without an answer. None may be refused, but the one process may hang up on a call.
    cut: AtomicU64,
    /// The daemon is told to stop.
    pub cut_is_expected: AtomicBool,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
pub struct Ledger {
    pub hosts: Vec<(String, String)>,
    pub versions: Vec<String>,
}

impl std::ops::Deref for Load {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Load {
    pub async fn begin(daemon: &Daemon) -> Self {
        let shared = Arc::new(Shared::default());
        let admin = daemon.admin();
        let mut keys = Vec::new();
        for number in 0..6 {
            let name = format!("first-{number}.test");
            let key = daemon.register(&admin, &name).await.api_key;
            shared.ledger.lock().await.hosts.push((name, key.clone()));
            keys.push(key);
        }
        // Each is bound to its address: that takes the store.
        for key in &keys {
            let url = daemon.hosts_url("/auth");
            assert!(
                shared.answer(unpooled(daemon).post(url).header("x-api-key", key).json(&retrieval())).await.is_some()
            );
        }
        let mut clients = JoinSet::new();
        let instants = Arc::new(AtomicU64::new(1));
        for (number, key) in keys.into_iter().enumerate() {
            let (client, url, shared) = (unpooled(daemon), daemon.hosts_url("/auth"), shared.clone());
            if number < 2 {
                clients.spawn(keep_storing(client, url, key, instants.clone(), shared));
            } else {
                clients.spawn(keep_retrieving(client, url, key, shared));
            }
        }
        for number in 0..2 {
            let (client, url) = (daemon.admin(), daemon.admin_url("/admin/hosts/register"));
            clients.spawn(keep_registering(client, url, format!("r{number}"), shared.clone()));
        }
        Self { asking: unpooled(daemon), clients, shared }
    }

    pub async fn until_all_go_well(&self, when: &str) {
        let done = || [&self.registered, &self.stored, &self.retrieved].map(|count| count.load(Ordering::SeqCst));
        let before = done();
        until(&format!("every kind of call succeeds {when}"), async || {
            done().iter().zip(before).all(|(now, before)| *now > before + 5)
        })
        .await;
    }

    pub fn told(&self) -> String {
        let [registered, stored, retrieved, refused, cut] =
            [&self.registered, &self.stored, &self.retrieved, &self.refused, &self.cut]
                .map(|n| n.load(Ordering::SeqCst));
        format!("{registered} registrations, {stored} stores, {retrieved} retrieves, {refused} times 503, {cut} cut")
    }

    /// Ends the clients; what they were acknowledged.
    pub async fn end(mut self) -> Ledger {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        assert!(self.cut.load(Ordering::SeqCst) < 20, "{}", self.told());
        std::mem::take(&mut *self.ledger.lock().await)
    }
}

async fn keep_registering(client: Client, url: String, prefix: String, shared: Arc<Shared>) {
    for number in 0u64.. {
        let name = format!("{prefix}-{number}.test");
        if let Some(data) = shared.answer(client.post(&url).json(&json!({ "fqdn": name }))).await {
            let key = data["host"]["api_key"].as_str().unwrap().to_owned();
            shared.ledger.lock().await.hosts.push((name, key));
            shared.registered.fetch_add(1, Ordering::SeqCst);
        }
        if shared.paused().await {
            return;
        }
    }
}

async fn keep_storing(client: Client, url: String, key: String, instants: Arc<AtomicU64>, shared: Arc<Shared>) {
    loop {
        let n = instants.fetch_add(1, Ordering::SeqCst);
        let login = auth_json(&format!("2025-11-20T09:27:43.{n:09}Z"), n);
        let digest = canonical_digest(&login);
        let body = json!({ "command": "store", "auth": login });
        if let Some(data) = shared.answer(client.post(&url).header("x-api-key", &key).json(&body)).await {
            match data["status"].as_str() {
                Some("updated") => {
                    shared.ledger.lock().await.versions.push(digest);
                    shared.stored.fetch_add(1, Ordering::SeqCst);
                }
                Some("outdated") => {}
                other => panic!("{other:?}"),
            }
        }
        if shared.paused().await {
            return;
        }
    }
}

fn retrieval() -> Value {
    json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" })
}

/// Of a retrieve nothing but success is expected, once the host is bound.
async fn keep_retrieving(client: Client, url: String, key: String, shared: Arc<Shared>) {
    loop {
        let request = client.post(&url).header("x-api-key", &key).json(&retrieval());
        let begun = Instant::now();
        if let Some((status, data)) = shared.send(request).await {
            shared.longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
            assert_eq!(status, 200, "a login was not served: {data}");
            shared.retrieved.fetch_add(1, Ordering::SeqCst);
        }
        if shared.paused().await {
            return;
        }
    }
}

impl Shared {
    /// `None`: refused for the store's sake, or cut.
    async fn answer(&self, request: reqwest::RequestBuilder) -> Option<Value> {
        let (status, mut body) = self.send(request).await?;
        if status == 503 {
            assert_eq!(body["code"], "unavailable", "{body}");
            self.refused.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        assert_eq!(status, 200, "{body}");
        Some(body["data"].take())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Option<(StatusCode, Value)> {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let stopping = self.cut_is_expected.load(Ordering::SeqCst);
                assert!(!refused(&error) || stopping, "a connection was refused: {error:?}");
                assert!(!error.is_timeout(), "a call was never answered");
                self.cut.fetch_add(1, Ordering::SeqCst);
                return None;
            }
        };
        let status = answer.status();
        if status == 503 {
            assert!(answer.headers().contains_key("retry-after"));
        }
        let Ok(body) = answer.bytes().await else {
            self.cut.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        Some((status, serde_json::from_slice(&body).unwrap()))
    }

    /// A moment between calls; `true` when it is enough.
    async fn paused(&self) -> bool {
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.stop.load(Ordering::SeqCst)
    }
}

fn refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Each call on a connection of its own.
fn unpooled(daemon: &Daemon) -> Client {
    daemon.client_builder().pool_max_idle_per_host(0).build().unwrap()
}

pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < 2 * BOUND, "not within {:?}: {what}", 2 * BOUND);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
