//! A state directory of an older or a newer version.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use mysql_async::prelude::Queryable as _;
use rustls::AlertDescription;
use serde_json::{Value, json};

use crate::database::{on_database, with_key_of};
use crate::support::crash_points::{CrashPoints, steps};
use crate::support::daemon::{BOUND, Daemon, identity, pause};
use crate::support::disk::{Disk, Kind};
use crate::support::mariadb::MariaDb;
use crate::support::raw_tls::{Outcome, RawClient};

const DIGEST: &str = "63d08a33ca44eb4b8faa2f9968013c5f940cdf34d6b610f4b6e2a27f37ff04b0";
/// The digest of the newest of three versions.
const DIGEST_OF_4: &str = "276cb570f48d5e92abe22cf7e26275987422ab2dce045e5e1ed7d56f9633b3e0";
/// The number of crashes to try; `AUTHD_LONG_TESTS=1`: every one.
const MOST: usize = 60;

#[tokio::test]
async fn a_state_of_format_1_is_served_by_this_version_and_kept_aside_as_it_was() {
    is_served_and_kept_aside(1).await;
}

#[tokio::test]
async fn a_state_of_format_2_is_served_by_this_version_and_kept_aside_as_it_was() {
    is_served_and_kept_aside(2).await;
}

#[tokio::test]
async fn a_state_of_format_3_is_served_by_this_version_and_kept_aside_as_it_was() {
    is_served_and_kept_aside(3).await;
}

#[tokio::test]
async fn a_state_of_format_4_is_served_by_this_version_and_kept_aside_as_it_was() {
    is_served_and_kept_aside(4).await;
}

/// A state of the commit before the service was divided into areas: it needs no upgrade, and all its data is known.
#[tokio::test]
async fn a_state_of_the_undivided_service_is_served_as_it_is() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/state-before-areas");
    let mut daemon = Daemon::prepare(&[]);
    daemon.log_level = Some("info");
    unpack_file(&daemon, &directory.join("state.tar.gz"));
    daemon.launch();
    assert!(!daemon.state_dir().join("before-format-5").exists(), "the state was upgraded");
    assert_state_before_areas(&daemon).await;
    assert!(daemon.stop().success());
}

/// The same records in a database, dumped there: `migrate` of the same commit wrote them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_the_undivided_service_is_served_as_it_is() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/state-before-areas");
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let dump = std::fs::read_to_string(directory.join("database.sql")).unwrap();
    let mut connection = server.connection().await.unwrap();
    connection.query_drop(format!("USE authd; SET FOREIGN_KEY_CHECKS = 0; {dump}")).await.unwrap();
    drop(connection);

    let state = Daemon::prepare(&[]);
    unpack_file(&state, &directory.join("state.tar.gz"));
    let mut daemon = on_database(&url, &[]);
    with_key_of(&state, &daemon);
    daemon.launch();
    assert_state_before_areas(&daemon).await;
    assert!(daemon.stop().success());
}

async fn assert_state_before_areas(daemon: &Daemon) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/state-before-areas");
    let body = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
    let retrieve = async |host: &str| {
        let made: Value =
            serde_json::from_slice(&std::fs::read(directory.join(format!("{host}.json"))).unwrap()).unwrap();
        let key = made["host"]["api_key"].as_str().unwrap().to_owned();
        let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", key).json(&body);
        let answer = call.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, answer) = retrieve("h1.example.test").await;
    assert_eq!((status, &answer["data"]["status"]), (200, &json!("outdated")), "{answer}");
    assert_eq!(answer["data"]["auth"]["tokens"]["refresh_token"], "rt_one");
    assert_eq!(retrieve("gone.example.test").await.0, 401);
    assert_hosts(daemon);
    assert_eq!(daemon.cli_json(&["users", "list"])["users"][0]["email"], "ada@example.test");
    assert_eq!(daemon.cli_json(&["audit", "verify"])["intact"], true);
}

async fn is_served_and_kept_aside(format: u32) {
    let (digest, versions) = if format < 4 { (DIGEST, 1) } else { (DIGEST_OF_4, 3) };
    let mut daemon = prepare_format(format);
    let before = files(&daemon.state_dir());
    assert_eq!(before.get(Path::new("format")).cloned(), (format > 1).then(|| format!("{format}\n").into_bytes()));
    daemon.launch();
    assert_is_upgraded(&daemon.state_dir(), &before);

    let retrieve = async |key: &str, from: [u8; 4]| {
        let body = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
        let client = daemon.client_from(from.into());
        let answer = client.post(daemon.hosts_url("/auth")).header("x-api-key", key).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, answer) = retrieve(&key_of(format, "h1.example.test"), [127, 0, 0, 1]).await;
    assert_eq!((status, answer["data"]["status"].as_str()), (200, Some("outdated")), "{answer}");
    assert_eq!(answer["data"]["canonical_digest"], digest);
    assert_eq!(answer["data"]["auth"]["tokens"]["account_id"], "acc-1234");
    assert_eq!(
        retrieve(&key_of(format, "h1.example.test"), [127, 0, 0, 2]).await.0,
        403,
        "the binding to its address is lost"
    );
    assert_eq!(retrieve(&key_of(format, "gone.example.test"), [127, 0, 0, 1]).await.0, 401);

    let alice = data(format, "alice/alice.crt");
    let valid =
        Command::new("openssl").args(["x509", "-checkend", "60", "-noout", "-in"]).arg(&alice).output().unwrap();
    if valid.status.success() {
        let alice = identity(alice.parent().unwrap(), "alice");
        let alice = daemon.client_builder().identity(alice).build().unwrap();
        let history: Value =
            alice.get(daemon.admin_url("/admin/auth/history")).send().await.unwrap().json().await.unwrap();
        assert_eq!(history["data"]["versions"][0]["digest"], digest);
        assert_eq!(history["data"]["versions"].as_array().unwrap().len(), versions);
    } else {
        // The certificate has expired since it was recorded: it is refused for that reason.
        let alice = RawClient::with_certificate(&daemon, alice.parent().unwrap(), "alice");
        let refused = alice.call(daemon.client().get(daemon.admin_url("/admin/auth/history"))).await;
        assert_eq!(refused, Outcome::Alert(AlertDescription::CertificateExpired));
    }
    assert_hosts(&daemon);

    assert!(daemon.stop().success());
    let inode = |daemon: &Daemon| std::fs::metadata(daemon.state_dir().join("before-format-5")).unwrap().ino();
    let first = inode(&daemon);
    daemon.launch();
    assert_eq!(inode(&daemon), first, "a second start copies nothing");
    assert_is_upgraded(&daemon.state_dir(), &before);
    assert_eq!(daemon.log().lines().filter(|line| line.contains("event=upgraded")).count(), 1);
}

#[test]
fn a_command_without_a_daemon_upgrades_as_a_start_does() {
    let daemon = prepare();
    let before = files(&daemon.state_dir());
    assert_hosts(&daemon);
    assert_is_upgraded(&daemon.state_dir(), &before);
    daemon.cli_json(&["hosts", "add", "new.example.test"]);
    assert_is_upgraded(&daemon.state_dir(), &before);
}

/// The older daemon was killed between the outbox and the records.
#[tokio::test]
async fn telemetry_in_the_outbox_of_format_4_arrives_once() {
    let mut daemon = prepare_format(4);
    for _ in 0..2 {
        daemon.launch();
        let admin = daemon.admin();
        let began = std::time::Instant::now();
        loop {
            let listed: Value = admin.get(daemon.admin_url("/admin/hosts")).send().await.unwrap().json().await.unwrap();
            let hosts = listed["data"]["hosts"].as_array().unwrap();
            let h2 = hosts.iter().find(|host| host["fqdn"] == "h2.example.test").unwrap();
            if h2["api_calls"] == 1 && daemon.log().contains("event=upgraded") {
                break;
            }
            assert!(began.elapsed() < BOUND, "{h2}");
            pause();
        }
        assert!(daemon.stop().success());
    }
    let listed = daemon.cli_json(&["hosts", "list"]);
    let h2 = listed["hosts"].as_array().unwrap().iter().find(|host| host["fqdn"] == "h2.example.test").unwrap();
    assert_eq!(h2["api_calls"], 1);
}

#[test]
fn a_newer_format_is_refused_with_the_way_out_and_nothing_is_touched() {
    let daemon = prepare();
    std::fs::write(daemon.state_dir().join("format"), "6\n").unwrap();
    let before = files(&daemon.state_dir());
    for arguments in [&["serve"][..], &["hosts", "list"], &["keys", "rotate"]] {
        let output = daemon.cli(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("has format 6") && said.contains("install the version that wrote it"), "{said}");
        assert!(before == files(&daemon.state_dir()), "{arguments:?}");
    }
}

#[test]
fn a_crash_anywhere_in_an_upgrade_is_finished_by_the_next_start_and_the_copy_is_good() {
    let original = prepare_format(4);
    let before = files(&original.state_dir());
    let points = CrashPoints::build();
    let crash_at = |at: usize| {
        let daemon = prepare_format(4);
        let log = daemon.state.path().join("steps");
        let mut command = daemon.command(&["hosts", "list"]);
        points.arm(&mut command, at, &log);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let killed = output.status.signal() == Some(9);
        assert!(killed || output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stderr));
        let state = daemon.state_dir();
        let number = std::fs::read_to_string(state.join("format")).unwrap();
        // Otherwise an older version would take it for an empty state.
        assert!(number == "5\n" || state.join("records/db").exists(), "{at}: an older version does not refuse");
        if number == "5\n" || state.join("upgrading").exists() || state.join("before-format-5").exists() {
            assert_copied(&state, &before);
        } else {
            assert!(below(&state, &["records", "hot"]) == below_map(&before), "{at}: changed before it was copied");
        }
        assert_hosts(&daemon);
        assert_is_upgraded(&state, &before);
        assert!(daemon.cli_json(&["audit", "verify"])["intact"] == true, "{at}");
        let versions = daemon.cli_json(&["auth", "history"]);
        assert_eq!(versions["versions"].as_array().unwrap().len(), 3, "{at}");
        (killed, steps(&log))
    };
    let (killed, all) = crash_at(0);
    assert!(!killed);
    let every =
        if std::env::var("AUTHD_LONG_TESTS").is_ok_and(|value| value == "1") { 1 } else { all.len().div_ceil(MOST) };
    let chosen: Vec<usize> = (1..=all.len()).step_by(every).collect();
    let (next, crashes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(at) = chosen.get(next.fetch_add(1, Ordering::SeqCst)) {
                    crashes.fetch_add(usize::from(crash_at(*at).0), Ordering::SeqCst);
                }
            });
        }
    });
    let crashes = crashes.into_inner();
    println!("upgrade: {crashes} crashes, {} steps", all.len());
    assert!(crashes * 10 > chosen.len() * 9, "only {crashes} of {} runs were killed", chosen.len());
}

#[test]
fn without_room_for_the_copy_nothing_is_changed() {
    let daemon = Daemon::prepare(&[]);
    let Some(disk) = Disk::mount(Kind::Tmpfs, &daemon.state_dir(), 16) else { return };
    unpack(&daemon, 1);
    // As large as the records of a fleet.
    std::fs::write(daemon.state_dir().join("hot/more"), vec![7; 6 << 20]).unwrap();
    let before = files(&daemon.state_dir());
    let balloon = daemon.state_dir().join("balloon");
    std::fs::write(&balloon, vec![7; 7 << 20]).unwrap();
    let output = daemon.cli(&["hosts", "list"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left") && said.contains("nothing was changed"), "{said}");
    std::fs::remove_file(balloon).unwrap();
    assert!(before == files(&daemon.state_dir()));
    assert_hosts(&daemon);
    assert_is_upgraded(&daemon.state_dir(), &before);
    drop(disk);
}

/// The oldest format.
fn prepare() -> Daemon {
    prepare_format(1)
}

fn prepare_format(format: u32) -> Daemon {
    let mut daemon = Daemon::prepare(&[]);
    daemon.log_level = Some("info");
    unpack(&daemon, format);
    daemon
}

fn unpack(daemon: &Daemon, format: u32) {
    unpack_file(daemon, &data(format, "state.tar.gz"));
}

fn unpack_file(daemon: &Daemon, archive: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(daemon.state.path()).arg("-xzf").arg(archive);
    assert!(tar.status().unwrap().success());
    // Another test has its old port by now.
    std::fs::remove_file(daemon.state_dir().join("listen.json")).unwrap();
}

fn data(format: u32, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/state-format-{format}")).join(name)
}

fn key_of(format: u32, host: &str) -> String {
    let made: Value = serde_json::from_slice(&std::fs::read(data(format, &format!("{host}.json"))).unwrap()).unwrap();
    made["host"]["api_key"].as_str().unwrap().to_owned()
}

/// Uses the command line, which asks the daemon if one runs.
fn assert_hosts(daemon: &Daemon) {
    let listed = daemon.cli_json(&["hosts", "list"]);
    let names: Vec<&str> =
        listed["hosts"].as_array().unwrap().iter().map(|host| host["fqdn"].as_str().unwrap()).collect();
    assert_eq!(names, ["h1.example.test", "h2.example.test"]);
}

fn assert_is_upgraded(state: &Path, before: &BTreeMap<PathBuf, Vec<u8>>) {
    assert_eq!(std::fs::read_to_string(state.join("format")).unwrap(), "5\n");
    for left in ["upgrading", "before-format-5.part", "records.upgrade", "outbox.upgrade", "records/db", "records/conf"]
    {
        assert!(!state.join(left).exists(), "{left}");
    }
    assert!(state.join("records/rows.redb").exists() && state.join("outbox/rows.redb").exists());
    assert_copied(state, before);
}

/// Asserts that the copy equals the old state, and can be put back unchanged.
fn assert_copied(state: &Path, before: &BTreeMap<PathBuf, Vec<u8>>) {
    let mut copied = files(&state.join("before-format-5"));
    let format = before.get(Path::new("format")).map_or(&b"1\n"[..], Vec::as_slice);
    assert_eq!(copied.remove(Path::new("format")).unwrap(), format);
    let kept = |path: &Path| ["records", "hot", "master.key"].iter().any(|name| path.starts_with(name));
    let wanted: BTreeMap<_, _> =
        before.iter().filter(|(path, _)| kept(path)).map(|(k, v)| (k.clone(), v.clone())).collect();
    assert!(copied == wanted, "{:?} instead of {:?}", copied.keys(), wanted.keys());
}

fn below(state: &Path, names: &[&str]) -> BTreeMap<PathBuf, Vec<u8>> {
    files(state).into_iter().filter(|(path, _)| names.iter().any(|name| path.starts_with(name))).collect()
}

fn below_map(all: &BTreeMap<PathBuf, Vec<u8>>) -> BTreeMap<PathBuf, Vec<u8>> {
    all.iter()
        .filter(|(path, _)| path.starts_with("records") || path.starts_with("hot"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Every file below `directory`, without the lock.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if !path.ends_with("daemon.lock") {
                files.insert(path.strip_prefix(directory).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}
