//! `GET /metrics`, parsed strictly by the Prometheus text format, and compared with the calls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use reqwest::Client;
use serde_json::{Value, json};

use crate::support::daemon::{BOUND, Daemon, auth_json};

/// Values by sample: name and labels as written, sorted.
type Scrape = BTreeMap<String, f64>;

/// Parses the format by its specification, and also refuses deviations that scrapers tolerate. Every family has its
/// HELP and TYPE before its samples, in one block. No sample occurs twice, counters end in `_total`, and buckets add
/// up.
fn strictly(text: &str) -> Scrape {
    let mut scrape = Scrape::new();
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut helped: Option<String> = None;
    let mut family = String::new();
    assert!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect(line);
            assert!(help.len() > 10 && help.ends_with('.'), "{line}");
            helped = Some(name.into());
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert_eq!(helped.as_deref(), Some(name), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(name.starts_with("codex_authd_") || name.starts_with("process_"), "{line}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{line}");
            assert!(families.insert(name.into(), kind.into()).is_none(), "{name} stands twice");
            family = name.into();
        } else {
            let sample = codex_authd::metrics::samples::parse(line).unwrap().pop().expect(line);
            let kind = families.get(&family).map(String::as_str);
            let of_histogram = ["_bucket", "_sum", "_count"].map(|end| format!("{family}{end}"));
            let belongs = match kind {
                Some("histogram") => of_histogram.contains(&sample.name),
                _ => sample.name == family,
            };
            assert!(belongs, "{line} stands under {family}");
            assert!(sample.value.is_finite(), "{line}");
            assert!(kind == Some("gauge") || sample.value >= 0.0, "{line}");
            assert_eq!(sample.name.ends_with("_bucket"), sample.labels.contains_key("le"), "{line}");
            let labels: Vec<String> = sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let key = format!("{}{{{}}}", sample.name, labels.join(","));
            assert!(scrape.insert(key, sample.value).is_none(), "{line} stands twice");
        }
    }
    buckets_add_up(text);
    scrape
}

fn buckets_add_up(text: &str) {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for mut sample in codex_authd::metrics::samples::parse(text).unwrap() {
        if let Some(le) = sample.labels.remove("le") {
            let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
            let name = sample.name.strip_suffix("_bucket").unwrap();
            series.entry(format!("{name} {:?}", sample.labels)).or_default().push((bound, sample.value));
        } else if let Some(name) = sample.name.strip_suffix("_count") {
            counts.insert(format!("{name} {:?}", sample.labels), sample.value);
        }
    }
    assert!(!series.is_empty());
    for (name, buckets) in series {
        assert!(buckets.is_sorted_by(|left, right| left.0 < right.0 && left.1 <= right.1), "{name}: {buckets:?}");
        assert_eq!(buckets.last().unwrap(), &(f64::INFINITY, counts[&name]), "{name}");
    }
}

async fn scrape(admin: &Client, daemon: &Daemon) -> Scrape {
    let answer = admin.get(daemon.admin_url("/metrics")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    strictly(&answer.text().await.unwrap())
}

fn requests(listener: &str, operation: &str, status: u16) -> String {
    format!("codex_authd_requests_total{{listener={listener},operation={operation},status={status}}}")
}

fn retrieve() -> Value {
    json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_calls_raise_their_series_by_as_many_and_no_other() {
    let daemon = Daemon::start();
    let (admin, client) = (daemon.admin(), daemon.client());
    let host = daemon.register(&admin, "h.test").await;
    admin.get(daemon.admin_url("/healthz")).send().await.unwrap();
    let before = scrape(&admin, &daemon).await;

    let (auth, versions) = (daemon.hosts_url("/auth"), daemon.hosts_url("/versions/"));
    for _ in 0..7 {
        let call = client.post(&auth).header("X-API-Key", &host.api_key).json(&retrieve());
        assert_eq!(call.send().await.unwrap().status(), 200);
    }
    for _ in 0..2 {
        let call = client.post(&auth).bearer_auth(&host.api_key).json(&json!({ "digest": "x" }));
        assert_eq!(call.send().await.unwrap().status(), 422);
    }
    for _ in 0..3 {
        assert_eq!(client.post(&auth).bearer_auth("wrong").json(&retrieve()).send().await.unwrap().status(), 401);
    }
    assert_eq!(client.post(&auth).json(&retrieve()).send().await.unwrap().status(), 401, "without a key");
    for _ in 0..4 {
        assert_eq!(client.get(&versions).send().await.unwrap().status(), 200);
    }
    for path in ["/no/such/route", "/metrics", "/h.test", "/install/"] {
        assert_eq!(client.get(daemon.hosts_url(path)).send().await.unwrap().status(), 404);
    }
    assert_eq!(client.get(daemon.hosts_url("/install/nonsense")).send().await.unwrap().status(), 404);
    assert_eq!(client.get(daemon.hosts_url("/openapi.json")).send().await.unwrap().status(), 200);
    for _ in 0..5 {
        assert_eq!(admin.get(daemon.admin_url("/admin/hosts")).send().await.unwrap().status(), 200);
    }
    assert_eq!(admin.get(daemon.admin_url("/admin/hosts/1")).send().await.unwrap().status(), 404);
    assert_eq!(admin.post(daemon.admin_url("/metrics")).send().await.unwrap().status(), 405);
    daemon.cli_json(&["hosts", "list"]);
    daemon.cli_json(&["hosts", "list"]);

    let after = scrape(&admin, &daemon).await;
    let raised: BTreeMap<&str, f64> = after
        .iter()
        .filter(|(name, _)| name.starts_with("codex_authd_requests_total"))
        .map(|(name, value)| (name.as_str(), value - before.get(name).unwrap_or(&0.0)))
        .filter(|(_, raised)| *raised != 0.0)
        .collect();
    let expected = [
        (requests("hosts", "syncAuth", 200), 7.0),
        (requests("hosts", "syncAuth", 422), 2.0),
        (requests("hosts", "syncAuth", 401), 4.0),
        (requests("hosts", "getVersions", 200), 4.0),
        (requests("hosts", "unknown", 404), 4.0),
        (requests("hosts", "install", 404), 1.0),
        (requests("hosts", "getDocument", 200), 1.0),
        (requests("admin", "listHosts", 200), 5.0),
        (requests("admin", "getHost", 404), 1.0),
        (requests("admin", "unknown", 405), 1.0),
        (requests("control", "listHosts", 200), 2.0),
        // The previous scrape; a scrape is counted when it is answered.
        (requests("admin", "getMetrics", 200), 1.0),
    ];
    let expected: BTreeMap<&str, f64> = expected.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(raised, expected);

    let count = |operation| format!("codex_authd_request_duration_seconds_count{{operation={operation}}}");
    let rise = |name: &str| after[name] - before.get(name).unwrap_or(&0.0);
    assert_eq!(rise(&count("syncAuth")), 13.0);
    assert_eq!(rise(&count("listHosts")), 7.0);
    assert_eq!(rise("codex_authd_failed_keys_total{}"), 3.0);
    assert_eq!(after["codex_authd_requests_in_flight{}"], 1.0, "this one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_of_the_daemon_is_told_as_it_is() {
    let mut daemon = Daemon::start_with(&[("LIMITS__HOST_PER_MINUTE", "2"), ("LIMITS__AUTH_FAIL_COUNT", "2")]);
    let (admin, client) = (daemon.admin(), daemon.client());
    let empty = scrape(&admin, &daemon).await;
    assert!(!empty.keys().any(|name| name.contains("canonical")), "{empty:?}");
    let bound = daemon.register(&admin, "secret-name.test").await;
    daemon.register(&admin, "unbound.test").await;
    daemon.cli_json(&["hosts", "add", "shared.test", "--insecure"]);
    let gone = daemon.register(&admin, "gone.test").await;
    admin.delete(daemon.admin_url(&format!("/admin/hosts/{}", gone.id))).send().await.unwrap();
    let login = json!({ "auth": auth_json("2025-11-20T09:27:43.5Z", 1) });
    admin.post(daemon.admin_url("/admin/auth/upload")).json(&login).send().await.unwrap();
    for wanted in [200, 200, 429, 429] {
        let call = client.post(daemon.hosts_url("/auth")).bearer_auth(&bound.api_key).json(&retrieve());
        assert_eq!(call.send().await.unwrap().status(), wanted);
    }
    for wanted in [401, 401, 429] {
        let call = client.post(daemon.hosts_url("/auth")).bearer_auth("wrong").json(&retrieve());
        assert_eq!(call.send().await.unwrap().status(), wanted);
    }
    // A handshake that never completes.
    drop(std::net::TcpStream::connect(daemon.listen.hosts).unwrap());
    let refused = "codex_authd_handshakes_total{listener=hosts,outcome=refused}";
    let begun = Instant::now();
    let now = loop {
        let now = scrape(&admin, &daemon).await;
        if now[refused] == 1.0 {
            break now;
        }
        assert!(begun.elapsed() < BOUND, "a handshake that failed is not counted: {now:#?}");
    };
    for (name, wanted) in [
        ("codex_authd_hosts{state=active}", 1.0),
        ("codex_authd_hosts{state=unbound}", 1.0),
        ("codex_authd_hosts{state=insecure}", 1.0),
        ("codex_authd_canonical_version{}", 1.0),
        ("codex_authd_canonical_last_refresh_timestamp_seconds{}", 1_763_630_863.5),
        ("codex_authd_throttled_total{bucket=host}", 2.0),
        ("codex_authd_throttled_total{bucket=auth_failures}", 1.0),
        ("codex_authd_throttled_total{bucket=global}", 0.0),
        ("codex_authd_failed_keys_total{}", 2.0),
        ("codex_authd_degraded{}", 0.0),
        ("codex_authd_kill_switch{}", 0.0),
        ("codex_authd_build_info{version=0.1.0}", 1.0),
        ("codex_authd_accept_errors_total{listener=hosts}", 0.0),
    ] {
        assert_eq!(now.get(name), Some(&wanted), "{name}: {now:#?}");
    }
    let age = now["codex_authd_canonical_last_refresh_age_seconds{}"];
    let clock = now["codex_authd_canonical_last_refresh_timestamp_seconds{}"] + age;
    assert!((clock - now["process_start_time_seconds{}"]).abs() < 3600.0);
    assert!(now["codex_authd_handshakes_total{listener=admin,outcome=ok}"] >= 1.0);
    assert!(now["codex_authd_open_connections{listener=admin}"] >= 1.0);
    assert!(now["codex_authd_flush_duration_seconds_count{store=records}"] >= 5.0);
    assert!(now["codex_authd_flush_duration_seconds_count{store=hot}"] >= 1.0);
    assert!(now["process_resident_memory_bytes{}"] > 1e6 && now["process_open_fds{}"] > 5.0);
    let ends = |kind: &str| {
        let name = format!(",kind={kind},");
        let found =
            now.iter().find(|(sample, _)| sample.contains(&name) || sample.contains(&name.replacen(',', "{", 1)));
        *found.unwrap_or_else(|| panic!("{kind}: {now:#?}")).1
    };
    for (kind, days) in [("server", 90.0), ("admin", 365.0), ("server_authority", 3650.0), ("client_authority", 3650.0)]
    {
        let left = (ends(kind) - clock) / 86400.0;
        assert!((days - 1.0..days + 5.0).contains(&left), "{kind}: {left} days");
    }
    assert!(now.keys().any(|name| name.contains("name=tester")), "an admin's certificate has its name as a label");
    let told = format!("{now:?}");
    for secret in
        [bound.api_key.as_str(), bound.token.as_str(), "secret-name", "unbound.test", "127.0.0.1", "rt_abc", "acc-1234"]
    {
        assert!(!told.contains(secret), "{secret} is told");
    }

    let switch = admin.post(daemon.admin_url("/admin/api/state")).json(&json!({ "disabled": true }));
    assert_eq!(switch.send().await.unwrap().status(), 200);
    assert_eq!(scrape(&admin, &daemon).await["codex_authd_kill_switch{}"], 1.0);
    // A restart keeps the counts of hosts, and open connections are counted down.
    daemon.kill();
    daemon.launch();
    let again = scrape(&daemon.admin(), &daemon).await;
    for state in ["active", "unbound", "insecure"] {
        assert_eq!(again[&format!("codex_authd_hosts{{state={state}}}")], 1.0, "{state}");
    }
    let (admin, client) = (daemon.admin(), daemon.client());
    client.get(daemon.hosts_url("/versions")).send().await.unwrap();
    let open = scrape(&admin, &daemon).await["codex_authd_open_connections{listener=hosts}"];
    assert_eq!(open, 1.0, "the client keeps it");
    drop(client);
    let begun = Instant::now();
    while scrape(&admin, &daemon).await["codex_authd_open_connections{listener=hosts}"] != 0.0 {
        assert!(begun.elapsed() < BOUND, "the hosts' connections are not counted down");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_prints_them_and_answers_in_json() {
    let mut daemon = Daemon::start();
    let output = daemon.cli(&["metrics"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = strictly(&String::from_utf8(output.stdout).unwrap());
    let samples = daemon.cli_json(&["metrics"])["samples"].take();
    let samples = samples.as_array().unwrap();
    assert!(samples.len() >= printed.len(), "{} of {}", samples.len(), printed.len());
    let build = samples.iter().find(|sample| sample["name"] == "codex_authd_build_info").unwrap();
    assert_eq!((&build["labels"]["version"], &build["value"]), (&json!("0.1.0"), &json!(1.0)));
    daemon.stop();
    let output = daemon.cli(&["metrics"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no daemon runs"), "{said}");
}

/// The expressions of each panel of the packaged dashboard.
fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(include_str!("../../packaging/grafana/codex-authd.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels
        .flat_map(|panel| panel["targets"].as_array().expect("a panel has an expression"))
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alert_rules_and_the_dashboard_of_grafana_use_names_that_there_are() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let login = json!({ "auth": auth_json("2025-11-20T09:27:43.5Z", 1) });
    admin.post(daemon.admin_url("/admin/auth/upload")).json(&login).send().await.unwrap();
    let there: BTreeSet<String> =
        scrape(&admin, &daemon).await.into_keys().map(|name| name.split('{').next().unwrap().to_owned()).collect();
    let rules = include_str!("../../packaging/prometheus/alerts.yml");
    let rules: Vec<String> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(String::from).collect();
    for (expressions, at_least) in [(rules, 8), (dashboard_expressions(), 18)] {
        let mut used = BTreeSet::new();
        for expression in &expressions {
            let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            used.extend(words.filter(|word| word.starts_with("codex_authd_") || word.starts_with("process_")));
        }
        assert!(used.len() >= at_least, "{used:?}");
        let missing: Vec<_> = used.iter().filter(|name| !there.contains(**name)).collect();
        assert!(missing.is_empty(), "{missing:?} are in no output: {there:#?}");
    }
}
