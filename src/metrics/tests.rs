use std::collections::BTreeMap;

use super::*;
use samples::Sample;

fn readings() -> Readings {
    let certificate =
        CertificateReading { kind: "admin", name: "a\"b\\c\nd".into(), fingerprint: "0123".into(), expires: 7 };
    Readings {
        now: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
        canonical: Some(CanonicalReading { version: 3, last_refresh: 1_789_999_990.5 }),
        hosts: vec![("active", 2), ("unbound", 1), ("insecure", 0)],
        outbox_depth: 4,
        conflicts: 6,
        certificates: vec![certificate],
        api_disabled: true,
        verified_backup: 1_789_900_000,
        degraded: false,
        hot_state_set_aside: true,
    }
}

fn metrics() -> Metrics {
    Metrics::new(&["syncAuth", "getHealth"], OffsetDateTime::UNIX_EPOCH).unwrap()
}

fn read(metrics: &Metrics) -> Vec<Sample> {
    samples::parse(&metrics.render(&readings()).unwrap()).unwrap()
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    samples.iter().find(|sample| sample.name == name && sample.labels == labels).map(|sample| sample.value)
}

#[test]
fn an_answer_raises_its_own_series_and_no_other() {
    let metrics = metrics();
    let before = read(&metrics);
    let sync = Some("syncAuth");
    for _ in 0..3 {
        metrics.observe(Listener::Hosts, sync, 200, Duration::from_millis(3));
    }
    metrics.observe(Listener::Admin, Some("getHealth"), 503, Duration::from_secs(60));
    metrics.observe(Listener::Control, Some("no such"), 299, Duration::ZERO);
    let after = read(&metrics);
    let requests = |listener, operation, status| {
        let labels = [("listener", listener), ("operation", operation), ("status", status)];
        value(&after, "codex_authd_requests_total", &labels)
    };
    assert_eq!(requests("hosts", "syncAuth", "200"), Some(3.0));
    assert_eq!(requests("admin", "getHealth", "503"), Some(1.0));
    assert_eq!(requests("control", "unknown", "other"), Some(1.0));
    let bucket =
        |le| value(&after, "codex_authd_request_duration_seconds_bucket", &[("operation", "syncAuth"), ("le", le)]);
    assert_eq!([bucket("0.0025"), bucket("0.005"), bucket("+Inf")], [Some(0.0), Some(3.0), Some(3.0)]);
    let grown: f64 = [&after, &before]
        .map(|samples| {
            samples
                .iter()
                .filter(|sample| sample.name == "codex_authd_requests_total")
                .map(|sample| sample.value)
                .sum::<f64>()
        })
        .into_iter()
        .reduce(|after, before| after - before)
        .unwrap();
    assert_eq!(grown, 5.0);
}

type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

#[test]
fn what_is_asked_for_is_told_as_it_is() {
    let metrics = metrics();
    let mut refused_by_reason = [("handshake", 2); 9];
    refused_by_reason[1..].iter_mut().for_each(|reason| *reason = ("idle_evicted", 1));
    metrics.watch_listener(Listener::Hosts, move || ConnectionCounts {
        admitted: 5,
        refused: 2,
        accept_errors: 1,
        open: 3,
        refused_by_reason,
    });
    metrics.watch_server_certificate(|| 42);
    metrics.refused(Refusal::Host);
    metrics.key_failed();
    metrics.flush_observer(Store::Hot)(Duration::from_millis(1));
    let in_flight = metrics.begin();
    let samples = read(&metrics);
    drop(in_flight);
    let admin = [("kind", "admin"), ("name", "a\"b\\c\nd"), ("fingerprint", "0123")];
    let expected: [Expected; 18] = [
        ("codex_authd_canonical_version", &[], 3.0),
        ("codex_authd_canonical_last_refresh_age_seconds", &[], 9.5),
        ("codex_authd_hosts", &[("state", "active")], 2.0),
        ("codex_authd_outbox_depth", &[], 4.0),
        ("codex_authd_records_conflicts_total", &[], 6.0),
        ("codex_authd_kill_switch", &[], 1.0),
        ("codex_authd_degraded", &[], 0.0),
        ("codex_authd_hot_state_set_aside", &[], 1.0),
        ("codex_authd_last_verified_backup_timestamp_seconds", &[], 1_789_900_000.0),
        ("codex_authd_handshakes_total", &[("listener", "hosts"), ("outcome", "refused")], 2.0),
        ("codex_authd_connections_refused_total", &[("listener", "hosts"), ("reason", "handshake")], 2.0),
        ("codex_authd_accept_errors_total", &[("listener", "hosts")], 1.0),
        ("codex_authd_open_connections", &[("listener", "hosts")], 3.0),
        ("codex_authd_certificate_expiry_timestamp_seconds", &admin, 7.0),
        ("codex_authd_throttled_total", &[("bucket", "host")], 1.0),
        ("codex_authd_failed_keys_total", &[], 1.0),
        ("codex_authd_flush_duration_seconds_count", &[("store", "hot")], 1.0),
        ("codex_authd_requests_in_flight", &[], 1.0),
    ];
    for (name, labels, wanted) in expected {
        assert_eq!(value(&samples, name, labels), Some(wanted), "{name} {labels:?}");
    }
    assert!(value(&samples, "process_resident_memory_bytes", &[]).unwrap() > 1e6);
    assert!(value(&samples, "process_open_fds", &[]).unwrap() >= 3.0);
    assert_eq!(value(&read(&metrics), "codex_authd_requests_in_flight", &[]), Some(0.0));
}

#[test]
fn statuses_are_sorted_as_they_are_searched() {
    assert!(STATUSES.is_sorted());
}
