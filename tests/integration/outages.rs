//! Every way in which the database can fail while clients work. Logins are served, no acknowledged change is lost,
//! every answer comes in time, and the daemon recovers by itself.

use std::sync::atomic::Ordering;

use codex_authd::model::host::HostId;
use codex_authd::records::mysql::MySql;
use codex_authd::records::prelude::*;
use serde_json::Value;

use crate::database::{TIMEOUT_SECONDS, holds, on_database, records};
use crate::support::disk::{Disk, Kind};
use crate::support::load::{Load, until};
use crate::support::mariadb::MariaDb;
use crate::support::network::{self, Cable};

/// In addition to the configured time, in milliseconds: a handshake, and a busy machine.
const MARGIN: u64 = 1500;
const PASSWORD: &str = "canary-of-the-database";

enum Outage {
    Stopped,
    Frozen,
    ReadOnly,
    Cut(Cable),
    Full(Disk),
}

impl Outage {
    fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Frozen => "frozen",
            Self::ReadOnly => "read-only",
            Self::Cut(_) => "cut off",
            Self::Full(_) => "full",
        }
    }

    async fn begin(&self, server: &mut MariaDb) {
        match self {
            Self::Stopped => server.end(),
            Self::Frozen => server.freeze(),
            Self::ReadOnly => drop(server.query("SET GLOBAL read_only = 1").await),
            Self::Cut(cable) => cable.pull(),
            Self::Full(disk) => drop(disk.fill()),
        }
    }

    async fn end(&self, server: &mut MariaDb) {
        match self {
            Self::Stopped => server.run(),
            Self::Frozen => server.thaw(),
            Self::ReadOnly => drop(server.query("SET GLOBAL read_only = 0").await),
            Self::Cut(cable) => cable.plug_in(),
            Self::Full(_) => {
                std::fs::remove_file(server.data().join("balloon")).unwrap();
                // The server may have ended by itself.
                if !server.runs() {
                    println!("the server had ended:\n{}", server.log());
                    server.run();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_served_while_the_database_is_stopped() {
    let server = MariaDb::start();
    let url = server.url("authd");
    outage(server, &url, Outage::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_served_while_the_database_is_frozen() {
    let server = MariaDb::start();
    let url = server.url("authd");
    outage(server, &url, Outage::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_served_while_the_database_is_read_only() {
    let server = MariaDb::start();
    let url = server.url("authd");
    outage(server, &url, Outage::ReadOnly).await;
}

#[tokio::test]
async fn logins_are_served_while_the_database_is_cut_off() {
    if !network::leave() {
        return;
    }
    let mut server = MariaDb::prepare(&["--bind-address=0.0.0.0", "--port=3306"], &crate::support::mariadb::user());
    server.by_way_of = network::apart();
    server.install();
    server.run();
    let cable = Cable::to(server.pid());
    outage(server, &format!("mysql://root@{}:3306/authd", network::THERE), Outage::Cut(cable)).await;
}

#[tokio::test]
async fn logins_are_served_while_the_disk_of_the_database_is_full() {
    let mut server = MariaDb::prepare(&["--innodb-log-file-size=8M"], &crate::support::mariadb::user());
    let Some(disk) = Disk::mount(Kind::Ext4, &server.data(), 256) else { return };
    server.install();
    server.run();
    let url = server.url("authd");
    outage(server, &url, Outage::Full(disk)).await;
}

async fn outage(mut server: MariaDb, url: &str, outage: Outage) {
    let name = outage.name();
    server.create("authd").await;
    server.query(&format!("CREATE USER authd@'%' IDENTIFIED BY '{PASSWORD}'")).await;
    server.query("GRANT ALL ON authd.* TO authd@'%'").await;
    let own = url.replace("root@", &format!("authd:{PASSWORD}@"));
    let mut daemon = on_database(&own, &[("DATABASE__TLS", "false")]);
    daemon.launch();
    let mut load = Load::begin(&daemon).await;
    load.until_all_go_well("at first").await;
    println!("{name}: at first: {}", load.told());
    for longest in [&load.longest, &load.longest_change] {
        longest.store(0, Ordering::SeqCst);
    }

    outage.begin(&mut server).await;
    let refused = load.refused();
    until("stores and registrations are refused", async || load.refused() > refused + 4).await;
    let readiness = async || load.asking.get(daemon.hosts_url("/readyz")).send().await.unwrap();
    until("it says that it is degraded", async || readiness().await.status() == 503).await;
    let answer = readiness().await;
    assert!(answer.headers().contains_key("retry-after"));
    let told: Value = answer.json().await.unwrap();
    assert_eq!(told["code"], "degraded", "{told}");
    assert!(told["message"].as_str().unwrap().contains("since 20"), "{told}");
    assert!(daemon.log().contains("event=degraded"), "{}", daemon.log());
    let (retrieved, files) = (load.retrieved(), open_files(daemon.pid()));
    until("logins are served on", async || load.retrieved() > retrieved + 300).await;
    println!("{name}: {}; {} files open, {files} before", load.told(), open_files(daemon.pid()));
    let longest = load.longest_change.load(Ordering::SeqCst);
    // A change has two operations, and each may take the full timeout: the change itself, then the catch-up
    // (`Core::commit`).
    assert!(longest < 2 * 1000 * TIMEOUT_SECONDS + MARGIN, "a change was answered after {longest} ms");
    // Connections without an answer do not pile up.
    assert!(open_files(daemon.pid()) < files + 20);

    outage.end(&mut server).await;
    until("it is ready again", async || readiness().await.status() == 200).await;
    load.until_all_go_well("after it").await;
    let ledger = load.end().await;
    let (answered, unknown) = load.counted().await;
    // A registration has two operations. Even in a successful one, each may take the full timeout.
    let longest = load.longest_change.load(Ordering::SeqCst);
    assert!(longest < 2 * 1000 * TIMEOUT_SECONDS + MARGIN, "a change was answered after {longest} ms");

    let records = records(&server.url("authd")).await;
    holds(&records, [&ledger]).await;
    let counted = counted(&records, &load, answered).await;
    println!("{name}: over: {}; {counted} calls counted, {answered} answered, {unknown} cut", load.told());
    assert!((answered..=answered + unknown).contains(&counted), "{counted} calls of {answered}");
    assert!(!daemon.log().contains(PASSWORD), "the password is in the log");
}

fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// The calls in the records, once there are at least `enough`.
async fn counted(records: &MySql, load: &Load, enough: u64) -> u64 {
    let sum = async || {
        let mut calls = 0;
        for tally in &load.tallies {
            calls += records.host_activity(HostId(tally.host)).await.unwrap().api_calls;
        }
        calls
    };
    until("every call has reached the records", async || sum().await >= enough).await;
    sum().await
}
