//! Counts and measurements of the daemon, in the Prometheus text format.
//!
//! This room knows names and numbers only, not what they mean. Requests are counted as they are answered
//! ([`Metrics::observe`]). Values that other parts hold anyway are read when the metrics are requested: by watchers,
//! handed in at the start, and as [`Readings`].
//!
//! Labels are bounded: listeners, operations of the OpenAPI document, statuses of HTTP. A host, an address or a path is
//! never a label. Nothing is stored: a restart begins at zero, as Prometheus expects.

mod process;
mod readings;
pub mod samples;

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use time::OffsetDateTime;

pub use readings::{CanonicalReading, CertificateReading, ConnectionCounts, Readings};

#[derive(Debug, thiserror::Error)]
#[error("cannot measure: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

type Result<T> = std::result::Result<T, MetricsError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Hosts,
    Admin,
    Control,
}

impl Listener {
    fn name(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Admin => "admin",
            Self::Control => "control",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    Global,
    Host,
    AuthFailures,
    /// New logins of one host.
    Stores,
}

#[derive(Clone, Copy, Debug)]
pub enum Store {
    Records,
    Hot,
    Outbox,
}

/// Whether a call from a trusted proxy named its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    Named,
    /// No header: the proxy itself counts as the caller.
    Missing,
    /// The header cannot be read: the call is refused.
    Unreadable,
}

pub struct Metrics {
    registry: Registry,
    /// The operations that may be a label.
    operations: HashSet<&'static str>,
    requests: IntCounterVec,
    latency: HistogramVec,
    in_flight: IntGauge,
    refusals: [IntCounter; 4],
    failed_keys: IntCounter,
    /// By [`Forwarding`].
    forwarded: [IntCounter; 3],
    last_forwarding: Mutex<Option<Forwarding>>,
    flush: HistogramVec,
    probes: IntCounterVec,
    probe_duration: Histogram,
    adoptions: IntCounter,
    listeners: Mutex<Vec<(Listener, Watcher<ConnectionCounts>)>>,
    server_certificate: OnceLock<Watcher<i64>>,
    started: OffsetDateTime,
}

type Watcher<T> = Box<dyn Fn() -> T + Send + Sync>;

/// The label of requests without an operation: no such route, or refused before the route was looked up.
const UNKNOWN: &str = "unknown";
const STATUSES: [u16; 28] = [
    200, 201, 202, 204, 206, 301, 302, 303, 304, 400, 401, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 415, 422,
    429, 431, 500, 501, 503,
];
const OTHER_STATUS: &str = "other";

const LATENCY_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const FLUSH_BUCKETS: &[f64] = &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
const PROBE_BUCKETS: &[f64] = &[0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const PROBE_STATES: [&str; 3] = ["ok", "fail", "unavailable"];

impl Metrics {
    /// `operations`: the ids of all operations. `now`: about when the process began.
    pub fn new(operations: &[&'static str], now: OffsetDateTime) -> Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new(
                "codex_authd_requests_total",
                "Requests answered, by listener, operation of the OpenAPI document, and HTTP status.",
            ),
            &["listener", "operation", "status"],
        )?;
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "codex_authd_request_duration_seconds",
                "Time from a request's headers to its answer, by operation, in seconds.",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
            &["operation"],
        )?;
        let in_flight =
            IntGauge::new("codex_authd_requests_in_flight", "Requests that are being answered at this moment.")?;
        let refusals = IntCounterVec::new(
            Opts::new("codex_authd_throttled_total", "Requests refused with 429, by the limit that was reached."),
            &["bucket"],
        )?;
        let failed_keys = IntCounter::new("codex_authd_failed_keys_total", "Calls with a key that no host has.")?;
        let forwarded = IntCounterVec::new(
            Opts::new(
                "codex_authd_forwarded_calls_total",
                "Calls from trusted proxies, except health checks, by how their header named the caller.",
            ),
            &["caller"],
        )?;
        let flush = HistogramVec::new(
            HistogramOpts::new(
                "codex_authd_flush_duration_seconds",
                "Time of a flush, which makes changes durable, by store, in seconds.",
            )
            .buckets(FLUSH_BUCKETS.to_vec()),
            &["store"],
        )?;
        let probes = IntCounterVec::new(
            Opts::new(
                "codex_authd_probes_total",
                "Probes of the canonical login that this daemon made, by their finding.",
            ),
            &["state"],
        )?;
        let probe_duration = Histogram::with_opts(
            HistogramOpts::new("codex_authd_probe_duration_seconds", "Time that a probe took, in seconds.")
                .buckets(PROBE_BUCKETS.to_vec()),
        )?;
        let adoptions = IntCounter::new(
            "codex_authd_probe_adoptions_total",
            "Logins that Codex refreshed in a probe and that became the canonical one.",
        )?;
        registry.register(Box::new(probes.clone()))?;
        registry.register(Box::new(probe_duration.clone()))?;
        registry.register(Box::new(adoptions.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(latency.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(refusals.clone()))?;
        registry.register(Box::new(failed_keys.clone()))?;
        registry.register(Box::new(forwarded.clone()))?;
        registry.register(Box::new(flush.clone()))?;
        let metrics = Self {
            registry,
            requests,
            latency,
            in_flight,
            refusals: ["global", "host", "auth_failures", "host_stores"]
                .map(|bucket| refusals.with_label_values(&[bucket])),
            failed_keys,
            forwarded: ["named", "missing", "unreadable"].map(|caller| forwarded.with_label_values(&[caller])),
            last_forwarding: Mutex::default(),
            flush,
            probes,
            probe_duration,
            adoptions,
            listeners: Mutex::default(),
            server_certificate: OnceLock::new(),
            started: now,
            operations: operations.iter().copied().collect(),
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// A rate includes the first event only if the series existed before it.
    fn begin_at_zero(&self) {
        for listener in [Listener::Hosts, Listener::Admin, Listener::Control] {
            self.requests.with_label_values(&[listener.name(), UNKNOWN, "404"]);
        }
        self.latency.with_label_values(&[UNKNOWN]);
        for store in [Store::Records, Store::Hot, Store::Outbox] {
            self.flush.with_label_values(&[store_name(store)]);
        }
        for state in PROBE_STATES {
            self.probes.with_label_values(&[state]);
        }
    }

    /// Counts an answer. `operation`: its id in the OpenAPI document; any other name counts as unknown.
    pub fn observe(&self, listener: Listener, operation: Option<&str>, status: u16, elapsed: Duration) {
        let operation = operation.filter(|name| self.operations.contains(name)).unwrap_or(UNKNOWN);
        let code = status.to_string();
        let status = if STATUSES.contains(&status) { &code } else { OTHER_STATUS };
        self.requests.with_label_values(&[listener.name(), operation, status]).inc();
        self.latency.with_label_values(&[operation]).observe(elapsed.as_secs_f64());
    }

    /// A request is being answered until this is dropped.
    pub fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    pub fn refused(&self, refusal: Refusal) {
        let [global, host, auth_failures, stores] = &self.refusals;
        match refusal {
            Refusal::Global => global.inc(),
            Refusal::Host => host.inc(),
            Refusal::AuthFailures => auth_failures.inc(),
            Refusal::Stores => stores.inc(),
        }
    }

    pub fn key_failed(&self) {
        self.failed_keys.inc();
    }

    /// Counts a call from a trusted proxy.
    pub fn forwarded(&self, forwarding: Forwarding) {
        self.forwarded[forwarding as usize].inc();
        *self.last_forwarding.lock().unwrap_or_else(PoisonError::into_inner) = Some(forwarding);
    }

    /// The last call from a trusted proxy, and how many there were of each [`Forwarding`].
    pub fn forwardings(&self) -> Option<(Forwarding, [u64; 3])> {
        let last = (*self.last_forwarding.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some((last, self.forwarded.each_ref().map(IntCounter::get)))
    }

    /// Counts a probe: `state` is one of `ok`, `fail`, `unavailable`.
    pub fn probed(&self, state: &str, elapsed: Duration) {
        self.probes.with_label_values(&[state]).inc();
        self.probe_duration.observe(elapsed.as_secs_f64());
    }

    /// Counts a login that was adopted from a probe.
    pub fn adopted(&self) {
        self.adoptions.inc();
    }

    /// The function to which a store reports the duration of each of its flushes.
    pub fn flush_observer(&self, store: Store) -> impl Fn(Duration) + Send + Sync + 'static {
        let histogram = self.flush.with_label_values(&[store_name(store)]);
        move |elapsed| histogram.observe(elapsed.as_secs_f64())
    }

    /// Calls `connections` for each request for the metrics.
    pub fn watch_listener(
        &self,
        listener: Listener,
        connections: impl Fn() -> ConnectionCounts + Send + Sync + 'static,
    ) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push((listener, Box::new(connections)));
    }

    /// Calls `expires` for each request for the metrics: the expiry of the server certificate, in unix seconds.
    pub fn watch_server_certificate(&self, expires: impl Fn() -> i64 + Send + Sync + 'static) {
        let _ = self.server_certificate.set(Box::new(expires));
    }
}

fn store_name(store: Store) -> &'static str {
    match store {
        Store::Records => "records",
        Store::Hot => "hot",
        Store::Outbox => "outbox",
    }
}

pub struct InFlight<'a>(&'a IntGauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;
