//! The hostile program in a probe of a real daemon: the destinations that it reaches through the proxy, and the effect
//! on the daemon.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Hostile;
use crate::support::daemon::{Daemon, auth_json};

fn daemon_for(hostile: &Hostile, attempt: &str, more: &[(&str, &str)]) -> Daemon {
    let program = hostile.program().display().to_string();
    let lines = format!("hostile = \"{attempt} {}\"", hostile.marker);
    let mut settings = vec![
        ("RUNNER__ENABLED", "true"),
        ("RUNNER__CODEX", program.as_str()),
        ("RUNNER__CONFIG_TOML", lines.as_str()),
        ("RUNNER__TIMEOUT_SECONDS", "10"),
    ];
    settings.extend(more);
    let mut daemon = Daemon::prepare(&settings);
    daemon.log_level = Some("info");
    daemon.environment.push(("A_SECRET_OF_THE_DAEMON".into(), "pa55word".into()));
    daemon.launch();
    let file = daemon.state.path().join("auth.json");
    fs::write(&file, auth_json("2026-11-20T12:00:00Z", 1).to_string()).unwrap();
    daemon.cli_json(&["auth", "upload", file.to_str().unwrap()]);
    daemon
}

/// The resulting state, and the reason.
fn run(daemon: &Daemon) -> (String, String) {
    let output = daemon.cli(&["runner", "run", "--json"]);
    let body: Value = serde_json::Deserializer::from_slice(&output.stdout).into_iter().next().unwrap().unwrap();
    (body["state"].as_str().unwrap().into(), body["reason"].as_str().unwrap_or_default().into())
}

#[test]
fn by_the_proxy_it_reaches_what_is_listed_and_nothing_else() {
    let hostile = Hostile::build();
    let [listed, other] = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let [port, unlisted] = [&listed, &other].map(|it| it.local_addr().unwrap().port());
    let egress = format!("127.0.0.1:{port},localhost:{port},chatgpt.test:443");
    let asked = [
        // Listed with another port; not listed; addresses that the proxy never connects to.
        (format!("127.0.0.1:{unlisted}"), 403),
        (format!("localhost:{unlisted}"), 403),
        ("chatgpt.test:22".into(), 403),
        ("evil.test:443".into(), 403),
        ("169.254.169.254:80".into(), 403),
        ("http://169.254.169.254/latest/meta-data/".into(), 403),
        ("[fd00:ec2::254]:80".into(), 403),
        ("metadata.google.internal:80".into(), 403),
        (format!("[::ffff:127.0.0.1]:{unlisted}"), 403),
        (format!("2130706433:{unlisted}"), 403),
        (format!("0x7f.1:{unlisted}"), 403),
        (format!("0.0.0.0:{unlisted}"), 403),
        // The control.
        (format!("127.0.0.1:{port}"), 200),
    ];
    // One probe for each, because a reason keeps only eight lines.
    for (destination, status) in &asked {
        let daemon = daemon_for(&hostile, &format!("by-proxy {destination}"), &[("RUNNER__EGRESS", &egress)]);
        let (state, reason) = run(&daemon);
        println!("{destination}: {status}");
        assert_eq!(state, "fail", "{reason}");
        let verdict = if *status == 200 { "ESCAPED: 200" } else { "refused: 403" };
        assert!(reason.contains(verdict), "{destination}: {reason}");
        let refused = daemon.log().contains("event=egress_refused");
        assert_eq!(refused, *status == 403, "{destination}: {}", daemon.log());
        assert!(!daemon.log().contains("event=egress_failed"), "the proxy connected to another address");
    }
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err(), "a connection arrived");
}

#[test]
fn in_a_probe_it_finds_nothing_of_the_daemons() {
    let hostile = Hostile::build();
    for (attempt, how) in [
        ("descriptors", "refused: 0, 1 and 2 are all"),
        ("capabilities", "refused: none, and no new ones"),
        ("connect 127.0.0.1 443", "refused: ECONNREFUSED"),
        ("connect-unix /run/codex-authd/control.sock", "refused: ENOENT"),
    ] {
        let daemon = daemon_for(&hostile, attempt, &[]);
        let (state, reason) = run(&daemon);
        assert!(state == "fail" && reason.contains(how), "{attempt}: {reason}");
    }
    let daemon = daemon_for(&hostile, "environment", &[]);
    let (state, reason) = run(&daemon);
    assert!(state == "fail" && reason.contains("HTTPS_PROXY") | reason.contains("all_proxy"), "{reason}");
    assert!(!reason.contains("pa55word") && !reason.contains("CODEX_AUTHD"), "{reason}");
}

/// The resident memory of a process, in kilobytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Eight hosts that retrieve continuously.
struct Hosts {
    stop: AtomicBool,
    failed: AtomicU64,
    took: std::sync::Mutex<Vec<Duration>>,
}

impl Hosts {
    /// The number of calls since the last time, and the 99th percentile.
    fn so_far(&self) -> (usize, Duration) {
        let mut took = std::mem::take(&mut *self.took.lock().unwrap());
        took.sort_unstable();
        (took.len(), took.get(took.len() * 99 / 100).copied().unwrap_or_default())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_is_unmoved_by_the_worst_program_torture() {
    let (took, reason) = worst("trickle").await;
    assert!(
        took >= Duration::from_secs(8) && reason.starts_with("Codex had not ended after 8 s"),
        "{took:?}: {reason}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_is_unmoved_by_the_worst_program_that_floods_its_output_torture() {
    let (took, reason) = worst("flood").await;
    // Its other threads may leave it no time to write that much.
    let ends = ["Codex wrote more than 16 MiB", "Codex had not ended after 8 s"];
    assert!(ends.iter().any(|end| reason.starts_with(end)), "{took:?}: {reason}");
}

/// The number of threads of the hostile program.
fn threads(hostile: &Hostile) -> u64 {
    let of = |pid: u32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |tasks| tasks.count() as u64);
    hostile.left().into_iter().map(of).sum()
}

/// Starts threads, takes memory, fills the disk and writes without end, in a probe of a daemon that serves eight hosts.
/// Returns the time, and the reason of the end.
async fn worst(output: &str) -> (Duration, String) {
    let hostile = Hostile::build();
    let attempt = format!("worst {output}");
    let daemon = Arc::new(daemon_for(&hostile, &attempt, &[("RUNNER__TIMEOUT_SECONDS", "8")]));
    let admin = daemon.admin();
    let hosts = Arc::new(Hosts { stop: false.into(), failed: 0.into(), took: Default::default() });
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..8 {
        let key = daemon.register(&admin, &format!("h{n}.test")).await.api_key;
        let (client, url, hosts) = (daemon.client(), daemon.hosts_url("/auth"), hosts.clone());
        clients.spawn(async move {
            let body =
                json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
            while !hosts.stop.load(Ordering::SeqCst) {
                let begun = Instant::now();
                match client.post(&url).header("x-api-key", &key).json(&body).send().await {
                    Ok(answer) if answer.status() == 200 => hosts.took.lock().unwrap().push(begun.elapsed()),
                    other => {
                        println!("{other:?}");
                        hosts.failed.fetch_add(1, Ordering::SeqCst);
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    let calls = |least: usize| {
        let hosts = hosts.clone();
        async move { crate::support::load::until("they retrieve", async || hosts.took.lock().unwrap().len() >= least).await }
    };
    // The first call of the day started a probe.
    crate::support::load::until("the first probe is over", async || daemon.log().contains("event=probe_failed")).await;
    hosts.so_far();
    calls(2000).await;
    let (before, p99_before) = hosts.so_far();
    let memory_before = resident(daemon.pid());

    let begun = Instant::now();
    let (probing, other) = (daemon.clone(), Arc::new(AtomicU64::new(0)));
    let probe = tokio::task::spawn_blocking(move || run(&probing));
    let mut memory_during = 0;
    while !probe.is_finished() {
        memory_during = memory_during.max(resident(daemon.pid()));
        other.fetch_max(threads(&hostile), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (state, reason) = probe.await.unwrap();
    let took = begun.elapsed();
    let (during, p99_during) = hosts.so_far();
    hosts.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    println!(
        "{before} retrieves before, p99 {p99_before:?}; {during} during, p99 {p99_during:?}; {} kB of memory before, \
         {memory_during} at most during; {} threads at most; it ended after {took:?}: {reason:.100}",
        memory_before,
        other.load(Ordering::SeqCst)
    );
    assert_eq!(hosts.failed.load(Ordering::SeqCst), 0, "a retrieve failed");
    assert!(during > 20, "too few retrieves were served");
    assert_eq!(state, "fail", "{reason}");
    // Other busy processes and the sandbox's niceness leave it little time to grow.
    assert!(other.load(Ordering::SeqCst) > 20, "it did not reach its full load");
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert!(memory_during < memory_before + 24 * 1024, "{memory_before} kB before, {memory_during} during");
    assert_eq!(hostile.left(), Vec::<u32>::new(), "a process is left");
    (took, reason)
}
