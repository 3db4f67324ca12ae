//! The readings that are taken for a request, and the rendering of all metrics as text.

use std::sync::PoisonError;

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use time::OffsetDateTime;

use super::{Metrics, Result, process};

/// The state of the daemon at one moment. An unknown value is `None` or absent.
#[derive(Debug)]
pub struct Readings {
    pub now: OffsetDateTime,
    pub canonical: Option<CanonicalReading>,
    /// The number of hosts by state; every host is in exactly one.
    pub hosts: Vec<(&'static str, u64)>,
    pub outbox_depth: u64,
    /// How many changes of the records were retried so far.
    pub conflicts: u64,
    pub certificates: Vec<CertificateReading>,
    pub api_disabled: bool,
    /// When the newest backup that was read back was made, in unix seconds; 0: none is known.
    pub verified_backup: i64,
    pub degraded: bool,
    /// Whether this process found hot state damaged at its start.
    pub hot_state_set_aside: bool,
}

#[derive(Debug)]
pub struct CanonicalReading {
    pub version: u64,
    /// Unix seconds.
    pub last_refresh: f64,
}

#[derive(Debug)]
pub struct CertificateReading {
    pub kind: &'static str,
    pub name: String,
    /// The first digits, enough to tell two certificates of one name apart.
    pub fingerprint: String,
    /// Unix seconds.
    pub expires: i64,
}

/// The connections of one listener: `open` now, the others since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    pub admitted: u64,
    pub refused: u64,
    pub accept_errors: u64,
    pub open: u64,
    /// Connections that were refused, or closed before their clients were done, by the name of the reason.
    pub refused_by_reason: [(&'static str, u64); 9],
}

impl Metrics {
    /// All metrics, in the Prometheus text format.
    pub fn render(&self, readings: &Readings) -> Result<String> {
        let now = Now(Registry::new());
        now.state(readings)?;
        now.certificates(self, readings)?;
        now.connections(self)?;
        now.process(self)?;
        let mut families = self.registry.gather();
        families.extend(now.0.gather());
        families.sort_by(|left, right| left.name().cmp(right.name()));
        Ok(TextEncoder::new().encode_to_string(&families)?)
    }
}

/// The readings of one request, in a registry of their own, so that two requests at once do not mix.
struct Now(Registry);

impl Now {
    fn state(&self, readings: &Readings) -> Result<()> {
        if let Some(canonical) = &readings.canonical {
            let version = "Number of the canonical version; absent while there is none.";
            self.gauge("codex_authd_canonical_version", version, canonical.version as f64)?;
            let instant = "last_refresh of the canonical version, in unix seconds; absent while there is none.";
            self.gauge("codex_authd_canonical_last_refresh_timestamp_seconds", instant, canonical.last_refresh)?;
            let age = "Age of the canonical version's last_refresh, in seconds; absent while there is none.";
            let now = readings.now.unix_timestamp_nanos() as f64 / 1e9;
            self.gauge("codex_authd_canonical_last_refresh_age_seconds", age, now - canonical.last_refresh)?;
        }
        let hosts = "Hosts by state, the first that applies: disabled, insecure, unbound (never called), active.";
        let hosts = self.gauges("codex_authd_hosts", hosts, &["state"])?;
        for (state, count) in &readings.hosts {
            hosts.with_label_values(&[state]).set(*count as f64);
        }
        let outbox = "Batches of telemetry that are not in the records yet.";
        self.gauge("codex_authd_outbox_depth", outbox, readings.outbox_depth as f64)?;
        let conflicts = "Changes of the records that lost against another daemon's change and were retried.";
        let conflicts = self.counters("codex_authd_records_conflicts_total", conflicts, &[])?;
        conflicts.with_label_values::<&str>(&[]).inc_by(readings.conflicts);
        let aside = "1 if this process found hot state damaged at its start, set it aside and built it anew.";
        self.gauge("codex_authd_hot_state_set_aside", aside, f64::from(u8::from(readings.hot_state_set_aside)))?;
        let backup = "When the newest backup that was read back was made, in unix seconds; 0 while there is none.";
        let made = readings.verified_backup as f64;
        self.gauge("codex_authd_last_verified_backup_timestamp_seconds", backup, made)?;
        let switch = "1 while an admin has switched the hosts' API off.";
        self.gauge("codex_authd_kill_switch", switch, f64::from(u8::from(readings.api_disabled)))?;
        let degraded = "1 while the store cannot be read or written.";
        self.gauge("codex_authd_degraded", degraded, f64::from(u8::from(readings.degraded)))
    }

    fn certificates(&self, metrics: &Metrics, readings: &Readings) -> Result<()> {
        let expires = "Expiry of each certificate, in unix seconds: the server's, the two authorities', and admins'.";
        let expires = IntGaugeVec::new(
            Opts::new("codex_authd_certificate_expiry_timestamp_seconds", expires),
            &["kind", "name", "fingerprint"],
        )?;
        self.0.register(Box::new(expires.clone()))?;
        for certificate in &readings.certificates {
            let labels = [certificate.kind, certificate.name.as_str(), certificate.fingerprint.as_str()];
            expires.with_label_values(&labels).set(certificate.expires);
        }
        if let Some(server) = metrics.server_certificate.get() {
            expires.with_label_values(&["server", "", ""]).set(server());
        }
        Ok(())
    }

    fn connections(&self, metrics: &Metrics) -> Result<()> {
        let handshakes = "Connections by listener and outcome of their handshake: ok, or refused (failed, too slow, not \
                          allowed).";
        let handshakes = self.counters("codex_authd_handshakes_total", handshakes, &["listener", "outcome"])?;
        let refused =
            "Connections that were refused, or closed before their clients were done, by listener and reason.";
        let refused = self.counters("codex_authd_connections_refused_total", refused, &["listener", "reason"])?;
        let errors = "Times the system would not accept a connection, by listener.";
        let errors = self.counters("codex_authd_accept_errors_total", errors, &["listener"])?;
        let open =
            self.gauges("codex_authd_open_connections", "Connections that are open, by listener.", &["listener"])?;
        for (listener, watcher) in metrics.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (name, connections) = (listener.name(), watcher());
            handshakes.with_label_values(&[name, "ok"]).inc_by(connections.admitted);
            handshakes.with_label_values(&[name, "refused"]).inc_by(connections.refused);
            for (reason, count) in connections.refused_by_reason {
                refused.with_label_values(&[name, reason]).inc_by(count);
            }
            errors.with_label_values(&[name]).inc_by(connections.accept_errors);
            open.with_label_values(&[name]).set(connections.open as f64);
        }
        Ok(())
    }

    fn process(&self, metrics: &Metrics) -> Result<()> {
        let build =
            self.gauges("codex_authd_build_info", "Always 1; the label says which version runs.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let started = metrics.started.unix_timestamp_nanos() as f64 / 1e9;
        self.gauge("process_start_time_seconds", "When the process began, in unix seconds.", started)?;
        if let Some(bytes) = process::resident_bytes() {
            self.gauge("process_resident_memory_bytes", "Resident memory, in bytes.", bytes as f64)?;
        }
        if let Some(open) = process::open_descriptors() {
            self.gauge("process_open_fds", "Open file descriptors.", open as f64)?;
        }
        Ok(())
    }

    fn gauge(&self, name: &str, help: &str, value: f64) -> Result<()> {
        self.gauges(name, help, &[])?.with_label_values::<&str>(&[]).set(value);
        Ok(())
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }
}
