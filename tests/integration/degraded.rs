//! The dashboard's pages and the overview while the records are away, or a store has failed.

use reqwest::Client;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, auth_json};
use crate::support::disk::{Disk, Kind};
use crate::support::load::until;
use crate::support::mariadb::MariaDb;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_says_that_the_records_are_away_until_they_are_back() {
    let mut server = MariaDb::start();
    let url = server.create("authd").await;
    let daemon = Daemon::start_with(&[("DATABASE__URL", &url), ("DATABASE__TIMEOUT_SECONDS", "2")]);
    let admin = daemon.admin();
    let host = daemon.register(&admin, "kept.test").await;
    let login = json!({ "auth": auth_json("2025-11-20T09:27:43Z", 1) });
    let upload = admin.post(daemon.admin_url("/admin/auth/upload")).json(&login);
    assert_eq!(upload.send().await.unwrap().status(), 200);
    let pages = [
        "/".to_owned(),
        "/login".into(),
        "/hosts/new".into(),
        "/switch".into(),
        format!("/hosts/{}", host.id),
        format!("/hosts/{}/remove", host.id),
        // An error page shows it as well.
        "/hosts/1".into(),
    ];
    assert_eq!(overview(&daemon, &admin).await["degraded"], Value::Null);
    for path in &pages {
        let page = page(&daemon, &admin, path).await;
        assert!(!page.contains("Degraded"), "{path}: {page}");
    }

    server.end();
    until("the overview says it", async || !overview(&daemon, &admin).await["degraded"].is_null()).await;
    let told = overview(&daemon, &admin).await;
    let degraded = &told["degraded"];
    for member in ["since", "known_at"] {
        assert!(degraded[member].as_str().unwrap().starts_with("20"), "{degraded}");
    }
    assert!(degraded["cause"].as_str().unwrap().contains("not available"), "{degraded}");
    assert!(degraded["goes_on"].as_str().unwrap().contains("get the login"), "{degraded}");
    assert!(degraded["refused"].as_str().unwrap().contains("nothing can be revoked"), "{degraded}");
    assert_eq!((&told["totals"]["hosts"], &told["latest_log_at"]), (&json!(1), &Value::Null), "{told}");
    assert_eq!(told["last_refresh"], "2025-11-20T09:27:43Z", "{told}");
    for path in &pages {
        let page = page(&daemon, &admin, path).await;
        for words in ["<strong>Degraded</strong> since <time datetime=\"20", "get the login", "nothing can be revoked"]
        {
            assert!(page.contains(words), "{path} does not say {words:?}: {page}");
        }
    }
    assert!(page(&daemon, &admin, "/").await.contains("kept.test"), "the hosts are not listed");
    let change = admin.post(daemon.admin_url("/admin/api/state")).json(&json!({ "disabled": true }));
    assert_eq!(change.send().await.unwrap().status(), 503);

    server.run();
    until("the overview says that it is over", async || overview(&daemon, &admin).await["degraded"].is_null()).await;
    assert!(!overview(&daemon, &admin).await["latest_log_at"].is_null());
    for path in &pages {
        let page = page(&daemon, &admin, path).await;
        assert!(!page.contains("Degraded"), "{path}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_only_read_is_told_of_until_it_takes_changes() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    server.query("CREATE USER authd@localhost").await;
    server.query("GRANT ALL ON authd.* TO authd@localhost").await;
    let own = url.replace("root@", "authd@");
    let daemon = Daemon::start_with(&[("DATABASE__URL", &own), ("DATABASE__TIMEOUT_SECONDS", "2")]);
    let admin = daemon.admin();
    let ready = async || daemon.client().get(daemon.hosts_url("/readyz")).send().await.unwrap();
    assert_eq!(ready().await.status(), 200);
    server.query("SET GLOBAL read_only = 1").await;
    let answer = ready().await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "degraded");
    // No call is made any more, and every poll finds that the database can be read.
    for _ in 0..5 {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        let told = overview(&daemon, &admin).await;
        assert!(told["degraded"]["cause"].as_str().unwrap().contains("take no changes"), "{told}");
    }
    server.query("SET GLOBAL read_only = 0").await;
    until("it is over", async || overview(&daemon, &admin).await["degraded"].is_null()).await;
    let page = page(&daemon, &admin, "/").await;
    assert!(!page.contains("Degraded"), "{page}");
}

#[tokio::test]
async fn a_page_says_that_the_disk_is_full_until_there_is_room() {
    let mut daemon = Daemon::prepare(&[]);
    daemon.log_level = Some("info");
    let Some(disk) = Disk::mount(Kind::Tmpfs, &daemon.state_dir(), 48) else { return };
    daemon.launch();
    let admin = daemon.admin();
    daemon.register(&admin, "kept.test").await;
    let balloon = disk.fill();
    until("a change is refused, and the overview says why", async || {
        let change = admin.post(daemon.admin_url("/admin/hosts/register")).json(&json!({ "fqdn": "more.test" }));
        change.send().await.unwrap().status() == 503 && !overview(&daemon, &admin).await["degraded"].is_null()
    })
    .await;
    let shown = page(&daemon, &admin, "/").await;
    assert!(shown.contains("<strong>Degraded</strong>") && shown.contains("No space left"), "{shown}");
    assert!(shown.contains("kept.test"), "{shown}");
    // A full disk is not a damaged store: the doctor does not advise to restore a backup.
    let doctor = daemon.cli(&["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.contains("degraded since") && doctor.contains("No space left"), "{doctor}");
    assert!(!doctor.contains("restore"), "{doctor}");
    std::fs::remove_file(balloon).unwrap();
    // The process is replaced, which may cut a call.
    until("it is over", async || {
        let asked = admin.get(daemon.admin_url("/")).send().await;
        let Ok(answer) = asked else { return false };
        answer.text().await.is_ok_and(|page| page.contains("kept.test") && !page.contains("Degraded"))
    })
    .await;
    drop(daemon);
    drop(disk);
}

async fn overview(daemon: &Daemon, admin: &Client) -> Value {
    let answer = admin.get(daemon.admin_url("/admin/overview")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json::<Value>().await.unwrap()["data"].take()
}

async fn page(daemon: &Daemon, admin: &Client, path: &str) -> String {
    admin.get(daemon.admin_url(path)).send().await.unwrap().text().await.unwrap()
}
