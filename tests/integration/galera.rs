//! Three daemons on three nodes of a Galera cluster. Nodes and daemons are killed and cut off while clients work.
//!
//! **Acceptable loss when a daemon is killed**: the calls that it counted since it last gathered them (a second, and
//! the time of the flush). They were not acknowledged as counted. So the counts of its hosts are compared with the
//! answers up to some seconds before the kill, and from its return on. The counts of all other hosts must be equal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use codex_authd::model::audit::AuditHead;
use codex_authd::model::host::HostId;
use codex_authd::records::prelude::*;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::database::{holds, knows, records, start};
use crate::support::daemon::Daemon;
use crate::support::galera::Galera;
use crate::support::load::{Load, Seat, until};

/// Everything that was counted this long before a kill was gathered.
const GATHERED: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn galera_loses_nothing_and_does_nothing_twice_though_a_node_and_a_daemon_are_killed() {
    let begun = Instant::now();
    let mut cluster = Galera::start().await;
    let first_url = cluster.nodes[0].create("authd").await;
    let urls = [first_url, cluster.nodes[1].url("authd"), cluster.nodes[2].url("authd")];
    let one = start(&urls[0], None);
    let two = start(&urls[1], Some(&one));
    let mut three = start(&urls[2], Some(&one));
    println!("{:.1?}: three nodes and three daemons are there", begun.elapsed());

    let mut load = Load::on(&[&one, &two, &three], 40).await;
    let races = Arc::new(Races { stop: AtomicBool::default(), seats: load.seats.clone() });
    let racing = tokio::spawn(races.clone().keep_racing([&one, &two, &three].map(Daemon::client), one.admin()));
    load.until_all_go_well("at first").await;
    println!("{:.1?}: at first: {}", begun.elapsed(), load.told());

    // A database node dies: its daemon is degraded, the others continue.
    cluster.nodes[1].end();
    until("the daemon of the dead node is degraded", async || {
        readiness(&load.asking, &two).await["code"] == "degraded"
    })
    .await;
    let (retrieved, refused) = (load.seats[1].retrieved(), load.seats[1].refused());
    load.seats[0].until_all_goes_well("with a node dead").await;
    load.seats[2].until_all_goes_well("with a node dead").await;
    until("logins are served on", async || load.seats[1].retrieved() > retrieved + 50).await;
    assert!(load.seats[1].refused() > refused);
    println!("{:.1?}: a node was dead: {}", begun.elapsed(), load.told());
    cluster.nodes[1].spawn(&[]);
    cluster.until_synced(1).await;
    load.until_all_go_well("with the node back").await;
    println!("{:.1?}: it is back: {}", begun.elapsed(), load.told());

    // A daemon dies.
    load.seats[2].falls();
    let conflicts_before = conflicts(&three).await;
    let killed = Instant::now();
    three.kill();
    load.seats[0].until_all_goes_well("with a daemon dead").await;
    load.seats[1].until_all_goes_well("with a daemon dead").await;
    three.launch();
    let back = Instant::now();
    load.seats[2].is_taken_by(&three).await;
    load.until_all_go_well("with the daemon back").await;
    println!("{:.1?}: a daemon was dead: {}", begun.elapsed(), load.told());

    // A node is cut off from the majority, and refuses everything.
    cluster.isolate(0, true).await;
    until("the daemon of the lone node says why it is degraded", async || {
        let told = readiness(&load.asking, &one).await;
        told["code"] == "degraded" && told["message"].as_str().unwrap().contains("not in the majority of its cluster")
    })
    .await;
    let retrieved = load.seats[0].retrieved();
    load.seats[1].until_all_goes_well("without the lone node").await;
    load.seats[2].until_all_goes_well("without the lone node").await;
    until("logins are served on", async || load.seats[0].retrieved() > retrieved + 50).await;
    cluster.isolate(0, false).await;
    cluster.until_synced(0).await;
    until("its daemon is ready", async || readiness(&load.asking, &one).await["code"].is_null()).await;
    load.until_all_go_well("with the lone node back").await;
    println!("{:.1?}: a node was cut off: {}", begun.elapsed(), load.told());

    races.stop.store(true, Ordering::SeqCst);
    let redeemed = racing.await.unwrap();
    let ledger = Arc::new(load.end().await);
    let mut lost_races = conflicts_before;
    for daemon in [&one, &two, &three] {
        until("the outbox is written", async || metric(daemon, "codex_authd_outbox_depth").await == 0.0).await;
        lost_races += conflicts(daemon).await;
    }
    println!("{:.1?}: {lost_races} changes lost against another node's and were tried again", begun.elapsed());
    assert!(lost_races > 0.0, "no changes conflicted: this tests nothing");
    let verified = two.cli_json(&["audit", "verify"]);
    assert_eq!(verified["intact"], true, "{verified}");
    for mut daemon in [one, two, three] {
        assert!(daemon.stop().success());
    }

    // Every node has the same content.
    let mut tables = Vec::new();
    for (node, url) in urls.iter().enumerate() {
        let records = records(url).await;
        holds(&records, [&*ledger]).await;
        chain_is_whole(&records).await;
        for (token, answered) in &redeemed {
            let digest = codex_authd::model::digest::Digest::of(token.as_bytes());
            let tokens = records.installer_list().await.unwrap();
            let kept = tokens.iter().find(|kept| kept.digest == digest).unwrap();
            assert!(!answered || kept.redeemed_at.is_some(), "a redemption is lost");
        }
        calls_are_counted(&records, &load, killed, back).await;
        tables.push(checksums(&cluster, node).await);
    }
    assert!(!tables[0].is_empty());
    assert_eq!(tables[0], tables[1]);
    assert_eq!(tables[0], tables[2]);
    let once = redeemed.iter().filter(|(_, answered)| *answered).count();
    println!(
        "{:.1?}: {} tables are equal on three nodes; {once} of {} installers were redeemed by somebody, none twice",
        begun.elapsed(),
        tables[0].len(),
        redeemed.len()
    );
    assert!(once > 5, "too few redemptions");
}

async fn readiness(client: &Client, daemon: &Daemon) -> Value {
    client.get(daemon.hosts_url("/readyz")).send().await.unwrap().json().await.unwrap()
}

async fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.admin().get(daemon.admin_url("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn conflicts(daemon: &Daemon) -> f64 {
    metric(daemon, "codex_authd_records_conflicts_total").await
}

/// Installers that are requested from all daemons at once.
struct Races {
    stop: AtomicBool,
    seats: Vec<Arc<Seat>>,
}

impl Races {
    /// Each installer, and whether a client got the script.
    async fn keep_racing(self: Arc<Self>, clients: [Client; 3], admin: Client) -> Vec<(String, bool)> {
        let mut redeemed = Vec::new();
        for number in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let registrar = &self.seats[number % 3];
            let body = json!({ "fqdn": format!("raced-{number}.test") });
            let request = admin.post(registrar.admin("/admin/hosts/register").await).json(&body);
            let Ok(answer) = request.send().await else { continue };
            if answer.status() != 200 {
                continue;
            }
            let told: Value = answer.json().await.unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let (key, token) = (text(&told["data"]["host"]["api_key"]), text(&told["data"]["installer"]["token"]));
            // The daemons that run know the installer by now.
            let heard = Instant::now();
            for (seat, client) in self.seats.iter().zip(&clients) {
                while heard.elapsed() < Duration::from_secs(2) && !knows(client, &seat.hosts("/auth").await, &key).await
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            let mut asked = JoinSet::new();
            for round in 0..9 {
                let url = self.seats[round % 3].hosts(&format!("/install/{token}")).await;
                let request = clients[round % 3].get(url);
                asked.spawn(async move { request.send().await.ok().map(|answer| answer.status()) });
            }
            let answers = asked.join_all().await;
            let answered = |wanted: StatusCode| answers.iter().flatten().filter(|status| **status == wanted).count();
            let handed_out = answered(StatusCode::OK);
            assert!(handed_out <= 1, "an installer was redeemed twice: {answers:?}");
            let unsure = answered(StatusCode::SERVICE_UNAVAILABLE) > 0 || answers.iter().any(Option::is_none);
            assert!(handed_out == 1 || unsure, "no client got the script: {answers:?}");
            redeemed.push((token, handed_out == 1));
        }
        redeemed
    }
}

async fn chain_is_whole(records: &impl codex_authd::records::Records) {
    let mut head = AuditHead::default();
    loop {
        let entries = records.audit_list_from(head.number + 1, 1000).await.unwrap();
        if entries.is_empty() {
            break;
        }
        for entry in &entries {
            head.follow(entry).unwrap();
        }
    }
    assert_eq!(head, records.audit_head().await.unwrap());
}

/// Hosts of daemons that were not killed: equal. Other hosts: no gathered count is missing, and no count is higher than
/// the number of calls.
async fn calls_are_counted(records: &impl codex_authd::records::Records, load: &Load, killed: Instant, back: Instant) {
    let (mut counted, mut answered, mut lost) = (0, 0, 0);
    for tally in &load.tallies {
        let found = records.host_activity(HostId(tally.host)).await.unwrap().api_calls;
        let times = tally.answered.lock().await;
        let (all, unknown) = (times.len() as u64, tally.unknown.load(Ordering::SeqCst));
        if tally.seat == 2 {
            let kept = times.iter().filter(|at| **at + GATHERED < killed || **at >= back).count() as u64;
            assert!((kept..=all + unknown).contains(&found), "{kept} <= {found} <= {all} + {unknown}");
            lost += all.saturating_sub(found);
        } else {
            assert!((all..=all + unknown).contains(&found), "{found} calls of {all} and {unknown} cut");
            counted += found;
            answered += all;
        }
    }
    println!("{counted} calls counted, {answered} answered; of the killed daemon's {lost} were lost");
}

async fn checksums(cluster: &Galera, node: usize) -> BTreeMap<String, i64> {
    let node = &cluster.nodes[node];
    node.query("SET GLOBAL wsrep_sync_wait = 1").await;
    let names = node.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'authd'").await;
    let mut sums = BTreeMap::new();
    for name in names.into_iter().map(mysql_async::from_row::<String>) {
        node.query("SELECT 1").await;
        for row in node.query(&format!("CHECKSUM TABLE authd.{name}")).await {
            let (table, sum) = mysql_async::from_row::<(String, i64)>(row);
            sums.insert(table, sum);
        }
    }
    sums
}
