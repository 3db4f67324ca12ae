//! Clients of each kind that call a daemon, and a record of the acknowledged results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::daemon::{BOUND, Daemon, Listen, auth_json};
use super::documents::canonical_digest;

/// Several clients of each kind for each daemon, until they are stopped.
pub struct Load {
    /// Made before the disk fails: it has loaded the trusted certificates.
    pub asking: Client,
    clients: JoinSet<()>,
    shared: Arc<Shared>,
    pub seats: Vec<Arc<Seat>>,
    pub tallies: Vec<Arc<Tally>>,
}

/// A daemon's address: the daemon may be killed, and come back at another address.
pub struct Seat {
    listen: Mutex<Listen>,
    /// The daemon is expected not to answer.
    is_down: AtomicBool,
    registered: AtomicU64,
    stored: AtomicU64,
    retrieved: AtomicU64,
    refused: AtomicU64,
}

impl Seat {
    fn of(daemon: &Daemon) -> Arc<Self> {
        Arc::new(Self {
            listen: Mutex::new(daemon.listen.clone()),
            is_down: AtomicBool::default(),
            registered: AtomicU64::default(),
            stored: AtomicU64::default(),
            retrieved: AtomicU64::default(),
            refused: AtomicU64::default(),
        })
    }

    fn done(&self) -> [u64; 3] {
        [&self.registered, &self.stored, &self.retrieved].map(|count| count.load(Ordering::SeqCst))
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    pub fn retrieved(&self) -> u64 {
        self.retrieved.load(Ordering::SeqCst)
    }

    pub async fn until_all_goes_well(&self, when: &str) {
        let before = self.done();
        until(&format!("every kind of call succeeds {when}"), async || {
            self.done().iter().zip(before).all(|(now, before)| *now > before + 5)
        })
        .await;
    }

    /// The daemon is about to be killed.
    pub fn falls(&self) {
        self.is_down.store(true, Ordering::SeqCst);
    }

    /// The daemon is back. Calls to its old address may still be under way.
    pub async fn is_taken_by(self: &Arc<Self>, daemon: &Daemon) {
        *self.listen.lock().await = daemon.listen.clone();
        let seat = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            seat.is_down.store(false, Ordering::SeqCst);
        });
    }

    pub async fn hosts(&self, path: &str) -> String {
        format!("https://{}{path}", self.listen.lock().await.hosts)
    }

    pub async fn admin(&self, path: &str) -> String {
        format!("https://{}{path}", self.listen.lock().await.admin)
    }
}

/// The calls of one host with one daemon.
pub struct Tally {
    pub host: u64,
    pub seat: usize,
    /// When calls were answered 200.
    pub answered: Mutex<Vec<Instant>>,
    /// Calls that the daemon may have counted, and whose answer did not arrive.
    pub unknown: AtomicU64,
}

impl Tally {
    fn new(host: u64, seat: usize) -> Arc<Self> {
        Arc::new(Self { host, seat, answered: Mutex::default(), unknown: AtomicU64::default() })
    }
}

#[derive(Default)]
pub struct Shared {
    stop: AtomicBool,
    /// The pause between two calls of a client, in milliseconds.
    pause: u64,
    /// The longest time of a retrieve, in milliseconds.
    pub longest: AtomicU64,
    /// The longest time of a store or registration, whatever the answer, in milliseconds.
    pub longest_change: AtomicU64,
    /// Connections that ended without an answer. None may be refused, but a process that ends may close a connection.
    cut: AtomicU64,
    /// The daemon is being stopped.
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
        Self::on(&[daemon], 5).await
    }

    /// For daemons that share their records: a login is newest among those of all clients, or it is not stored.
    pub async fn on(daemons: &[&Daemon], pause: u64) -> Self {
        let shared = Arc::new(Shared { pause, ..Shared::default() });
        let instants = Arc::new(AtomicU64::new(1));
        let (mut clients, mut seats, mut tallies) = (JoinSet::new(), Vec::new(), Vec::new());
        // The clients begin when all are prepared.
        let (mut storing, mut retrieving, mut registering) = (Vec::new(), Vec::new(), Vec::new());
        let admin = daemons[0].admin();
        for (number, daemon) in daemons.iter().enumerate() {
            let seat = Seat::of(daemon);
            seats.push(seat.clone());
            until("the daemon knows the admin", async || {
                matches!(admin.get(daemon.admin_url("/admin/hosts")).send().await, Ok(answer) if answer.status() == 200)
            })
            .await;
            for client in 0..6 {
                let name = format!("first-{number}-{client}.test");
                let host = daemon.register(&admin, &name).await;
                shared.ledger.lock().await.hosts.push((name, host.api_key.clone()));
                let tally = Tally::new(host.id, number);
                tallies.push(tally.clone());
                let it = Caller {
                    client: unpooled(daemon),
                    seat: seat.clone(),
                    key: host.api_key,
                    tally,
                    shared: shared.clone(),
                };
                // This call binds the host to its address, which needs the store.
                assert_eq!(it.call(&retrieval()).await.unwrap().0, 200);
                if client < 2 {
                    storing.push(it);
                } else {
                    retrieving.push(it);
                }
            }
            for client in 0..2 {
                let prefix = format!("r{number}-{client}");
                registering.push(keep_registering(admin.clone(), seat.clone(), prefix, shared.clone()));
            }
        }
        for it in storing {
            clients.spawn(keep_storing(it, instants.clone()));
        }
        for it in retrieving {
            clients.spawn(keep_retrieving(it));
        }
        for client in registering {
            clients.spawn(client);
        }
        Self { asking: unpooled(daemons[0]), clients, shared, seats, tallies }
    }

    pub async fn until_all_go_well(&self, when: &str) {
        for seat in &self.seats {
            seat.until_all_goes_well(when).await;
        }
    }

    pub fn retrieved(&self) -> u64 {
        self.seats.iter().map(|seat| seat.retrieved()).sum()
    }

    pub fn refused(&self) -> u64 {
        self.seats.iter().map(|seat| seat.refused()).sum()
    }

    pub fn told(&self) -> String {
        let done = self.seats.iter().map(|seat| seat.done());
        let [registered, stored, retrieved] = done.fold([0; 3], |[a, b, c], [x, y, z]| [a + x, b + y, c + z]);
        let (refused, cut) = (self.refused(), self.cut.load(Ordering::SeqCst));
        let [longest, longest_change] = [&self.longest, &self.longest_change].map(|it| it.load(Ordering::SeqCst));
        format!(
            "{registered} registrations, {stored} stores, {retrieved} retrieves, {refused} times 503, {cut} cut; the \
             longest retrieve took {longest} ms, the longest change {longest_change} ms"
        )
    }

    /// Ends the clients; returns what was acknowledged.
    pub async fn end(&mut self) -> Ledger {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        assert!(self.cut.load(Ordering::SeqCst) < 20 * self.seats.len() as u64, "{}", self.told());
        std::mem::take(&mut *self.ledger.lock().await)
    }

    /// Calls of hosts that were answered 200, and those whose answer did not arrive.
    pub async fn counted(&self) -> (u64, u64) {
        let (mut answered, mut unknown) = (0, 0);
        for tally in &self.tallies {
            answered += tally.answered.lock().await.len() as u64;
            unknown += tally.unknown.load(Ordering::SeqCst);
        }
        (answered, unknown)
    }
}

/// A host at a daemon.
struct Caller {
    client: Client,
    seat: Arc<Seat>,
    key: String,
    tally: Arc<Tally>,
    shared: Arc<Shared>,
}

impl Caller {
    async fn call(&self, body: &Value) -> Option<Answer> {
        let request = self.client.post(self.seat.hosts("/auth").await).header("x-api-key", &self.key).json(body);
        let answer = self.shared.send(&self.seat, request).await;
        match &answer {
            Ok((status, _)) if *status == 200 => self.tally.answered.lock().await.push(Instant::now()),
            Err(Unanswered::Cut) => drop(self.tally.unknown.fetch_add(1, Ordering::SeqCst)),
            Ok(_) | Err(Unanswered::Refused) => {}
        }
        answer.ok()
    }
}

async fn keep_registering(client: Client, seat: Arc<Seat>, prefix: String, shared: Arc<Shared>) {
    for number in 0u64.. {
        let name = format!("{prefix}-{number}.test");
        let request = client.post(seat.admin("/admin/hosts/register").await).json(&json!({ "fqdn": name }));
        let begun = Instant::now();
        let answer = shared.send(&seat, request).await.ok();
        if let Some(data) = shared.changed(&seat, answer, begun) {
            let key = data["host"]["api_key"].as_str().unwrap().to_owned();
            shared.ledger.lock().await.hosts.push((name, key));
            seat.registered.fetch_add(1, Ordering::SeqCst);
        }
        if shared.paused().await {
            return;
        }
    }
}

async fn keep_storing(it: Caller, instants: Arc<AtomicU64>) {
    let shared = &it.shared;
    loop {
        let n = instants.fetch_add(1, Ordering::SeqCst);
        let login = auth_json(&format!("2025-11-20T09:27:43.{n:09}Z"), n);
        let digest = canonical_digest(&login);
        let begun = Instant::now();
        let answer = it.call(&json!({ "command": "store", "auth": login })).await;
        if let Some(data) = shared.changed(&it.seat, answer, begun) {
            match data["status"].as_str() {
                Some("updated") => {
                    shared.ledger.lock().await.versions.push(digest);
                    it.seat.stored.fetch_add(1, Ordering::SeqCst);
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

/// Every retrieve must succeed once the host is bound.
async fn keep_retrieving(it: Caller) {
    let shared = &it.shared;
    loop {
        let begun = Instant::now();
        if let Some((status, data)) = it.call(&retrieval()).await {
            shared.longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
            assert_eq!(status, 200, "a login was not served: {data}");
            it.seat.retrieved.fetch_add(1, Ordering::SeqCst);
        }
        if shared.paused().await {
            return;
        }
    }
}

impl Shared {
    /// `None`: refused because of the store, or cut.
    fn changed(&self, seat: &Seat, answer: Option<Answer>, begun: Instant) -> Option<Value> {
        let (status, mut body) = answer?;
        self.longest_change.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
        if status == 503 {
            assert_eq!(body["code"], "unavailable", "{body}");
            seat.refused.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        assert_eq!(status, 200, "{body}");
        Some(body["data"].take())
    }

    async fn send(&self, seat: &Seat, request: reqwest::RequestBuilder) -> Result<Answer, Unanswered> {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let unanswered = if refused(&error) { Unanswered::Refused } else { Unanswered::Cut };
                if seat.is_down.load(Ordering::SeqCst) {
                    return Err(unanswered);
                }
                let stopping = self.cut_is_expected.load(Ordering::SeqCst);
                assert!(unanswered != Unanswered::Refused || stopping, "a connection was refused: {error:?}");
                assert!(!error.is_timeout(), "a call was never answered");
                self.cut.fetch_add(1, Ordering::SeqCst);
                return Err(unanswered);
            }
        };
        let status = answer.status();
        if status == 503 {
            assert!(answer.headers().contains_key("retry-after"));
        }
        let Ok(body) = answer.bytes().await else {
            self.cut.fetch_add(1, Ordering::SeqCst);
            return Err(Unanswered::Cut);
        };
        Ok((status, serde_json::from_slice(&body).unwrap()))
    }

    /// Pauses between calls; `true` when the client shall stop.
    async fn paused(&self) -> bool {
        tokio::time::sleep(Duration::from_millis(self.pause)).await;
        self.stop.load(Ordering::SeqCst)
    }
}

type Answer = (StatusCode, Value);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unanswered {
    /// The connection was refused.
    Refused,
    Cut,
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

/// Each call on a new connection.
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
