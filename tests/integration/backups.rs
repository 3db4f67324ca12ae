//! Backups that are all a new machine needs: the keys sealed under a passphrase, the findings of a verification, the
//! backups that are kept, the owner of the files, and a restored login whose refresh token is not used.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::moving::{names, retrieve, write_much};
use crate::support::daemon::{BOUND, Daemon, Registered, auth_json, pause};
use crate::support::eventually;
use crate::support::host::real_codex;
use crate::support::mariadb::MariaDb;
use crate::support::skip::skipped;
use crate::support::upstream::Upstream;

const PASSPHRASE: &str = "canary walrus umbrella nineteen teapot";
const CONFIG_SECRET: &str = "canary-of-the-configuration";

/// A daemon with a configuration file, and a passphrase in another file.
struct Machine {
    daemon: Daemon,
    directory: tempfile::TempDir,
}

impl Machine {
    fn prepare() -> Self {
        Self::with("")
    }

    /// `url`: of a database, in the configuration file.
    fn with(url: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        let mut daemon = Daemon::prepare(&[("CONFIG", config.to_str().unwrap())]);
        daemon.log_level = Some("info");
        std::fs::write(&config, format!("# {CONFIG_SECRET}\n[database]\nurl = \"{url}\"\n")).unwrap();
        std::fs::write(directory.path().join("passphrase"), format!("{PASSPHRASE}\nsecond line\n")).unwrap();
        Self { daemon, directory }
    }

    fn start() -> Self {
        let mut machine = Self::prepare();
        machine.daemon.launch();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn passphrase(&self) -> String {
        self.path("passphrase").display().to_string()
    }

    fn backup(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let made = self.daemon.cli_json(&["backup", text(&path), "--passphrase-file", &self.passphrase()]);
        assert_eq!(made["has_keys"], true, "{made}");
        path
    }

    fn restore(&self, backup: &Path, more: &[&str]) -> Value {
        let passphrase = self.passphrase();
        let mut arguments = vec!["restore", text(backup), "--yes", "--passphrase-file", &passphrase];
        arguments.extend(more);
        self.daemon.cli_json(&arguments)
    }

    fn verify(&self, backup: &Path) -> Output {
        self.daemon.cli(&["backup", "--verify", text(backup), "--passphrase-file", &self.passphrase()])
    }

    fn is_not_whole(&self, backup: &Path) -> String {
        refusal(&self.verify(backup))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stdout));
    said
}

fn copied(backup: &Path, to: PathBuf) -> PathBuf {
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(backup).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}

/// Hosts that have called, and a login.
async fn furnish(daemon: &Daemon) -> Vec<Registered> {
    let admin = daemon.admin();
    let mut hosts = Vec::new();
    for name in ["a.test", "b.test"] {
        let host = daemon.register(&admin, name).await;
        assert_eq!(retrieve(daemon, &host.api_key).await, 200);
        hosts.push(host);
    }
    let body = json!({ "auth": auth_json("2026-11-20T12:00:00Z", 1) });
    let uploaded = admin.post(daemon.admin_url("/admin/auth/upload")).json(&body).send().await.unwrap();
    assert_eq!(uploaded.status(), 200);
    hosts
}

async fn is_the_same(daemon: &Daemon, hosts: &[Registered]) {
    assert_eq!(names(daemon), ["a.test", "b.test"]);
    for host in hosts {
        assert_eq!(retrieve(daemon, &host.api_key).await, 200);
    }
    assert_eq!(daemon.cli_json(&["audit", "verify"])["intact"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_machine_needs_the_backup_and_the_passphrase_and_nothing_else() {
    let house = Machine::start();
    let hosts = furnish(&house.daemon).await;
    let backup = house.backup("backup");
    let key = read(&house.daemon.state_dir().join("master.key"));

    // No secret is in the clear in any file.
    let login = auth_json("", 1);
    let token = |name: &str| login["tokens"][name].as_str().unwrap().to_owned();
    let secrets = [
        key.trim().to_owned(),
        PASSPHRASE.into(),
        CONFIG_SECRET.into(),
        token("access_token"),
        token("refresh_token"),
        hosts[0].api_key.clone(),
        hosts[0].token.clone(),
    ];
    let mut files = 0;
    for entry in std::fs::read_dir(&backup).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{}", path.display());
        let content = read(&path);
        for secret in &secrets {
            assert!(!content.contains(secret.as_str()), "{secret} stands in {}", path.display());
        }
        files += 1;
    }
    assert_eq!(files, 3);
    assert!(secrets.iter().all(|secret| !house.daemon.log().contains(secret.as_str())));

    // No daemon was ever started here.
    let mut empty = Machine::prepare();
    let restored = empty.restore(&backup, &[]);
    assert_eq!(
        (&restored["configuration_differs"], &restored["restored"]["restored_version"]),
        (&false.into(), &1.into())
    );
    empty.daemon.launch();
    is_the_same(&empty.daemon, &hosts).await;
    assert_eq!(read(&empty.daemon.state_dir().join("master.key")), key);

    // The package has started the daemon: it has its own key, and runs.
    let mut started = Machine::start();
    let own = read(&started.daemon.state_dir().join("master.key"));
    assert_ne!(own, key);
    started.restore(&backup, &[]);
    is_the_same(&started.daemon, &hosts).await;
    assert_eq!(read(&started.daemon.state_dir().join("master.key")), key);
    assert_eq!(read(&started.daemon.state_dir().join("before-restore/master.key")), own);
    assert!(started.daemon.stop().success());
    started.daemon.launch();
    is_the_same(&started.daemon, &hosts).await;

    // The daemon was started and stopped. The restore brings the configuration back too.
    let mut stopped = Machine::start();
    assert!(stopped.daemon.stop().success());
    let config = stopped.path("config.toml");
    std::fs::write(&config, "[runner]\nenabled = false\n").unwrap();
    let restored = stopped.restore(&backup, &[]);
    assert_eq!(restored["configuration_differs"], true);
    assert_eq!(read(&config), "[runner]\nenabled = false\n");
    let restored = stopped.restore(&backup, &["--with-config"]);
    assert_eq!(restored["configuration_restored"], true);
    assert_eq!(read(&config), read(&house.path("config.toml")));
    assert_eq!(std::fs::metadata(&config).unwrap().mode() & 0o777, 0o640);
    stopped.daemon.launch();
    is_the_same(&stopped.daemon, &hosts).await;

    // A key that is a credential must be put in place by the admin.
    let out = stopped.path("out");
    let arguments = ["restore", text(&backup), "--passphrase-file", &stopped.passphrase(), "--extract", text(&out)];
    stopped.daemon.cli_json(&arguments);
    assert_eq!((read(&out.join("master.key")), read(&out.join("config.toml"))), (key, read(&config)));
    for file in [out.join("master.key"), out.join("config.toml")] {
        assert_eq!(std::fs::metadata(file).unwrap().mode() & 0o777, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_database_goes_into_another_with_the_passphrase() {
    let server = MariaDb::start();
    let (from, to) = (server.create("one").await, server.create("two").await);
    let mut house = Machine::with(&from);
    house.daemon.launch();
    let hosts = furnish(&house.daemon).await;
    let backup = house.backup("backup");
    assert!(!read(&backup.join("keys.sealed")).contains(&from));

    let mut other = Machine::with(&to);
    let arguments = ["restore", text(&backup), "--yes", "--passphrase-file", &other.passphrase(), "--with-config"];
    let refused = refusal(&other.daemon.cli(&arguments));
    assert!(refused.contains("another database.url") && !refused.contains(&from), "{refused}");
    let restored = other.restore(&backup, &[]);
    assert_eq!(restored["configuration_differs"], true);
    other.daemon.launch();
    is_the_same(&other.daemon, &hosts).await;
    let shown = other.daemon.cli_json(&["auth", "show"]);
    assert_eq!(shown["restored_login"]["version"], 1, "{shown}");
    // The mark of the restored login goes into the next backup, and from there into an embedded store.
    let again = other.backup("again");
    let mut embedded = Machine::prepare();
    embedded.restore(&again, &[]);
    embedded.daemon.launch();
    is_the_same(&embedded.daemon, &hosts).await;
    assert_eq!(embedded.daemon.cli_json(&["auth", "show"])["restored_login"]["version"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_belong_together_does_not_open_and_changes_nothing() {
    let house = Machine::start();
    furnish(&house.daemon).await;
    let (one, two) = (house.backup("one"), house.backup("two"));
    let wrong = house.path("wrong");
    std::fs::write(&wrong, "canary walrus umbrella nineteen teapots\n").unwrap();
    let refused = refusal(&house.daemon.cli(&["restore", text(&one), "--yes", "--passphrase-file", text(&wrong)]));
    assert!(refused.contains("the passphrase is wrong, or the sealed text"), "{refused}");
    println!("{refused}");
    assert!(!refused.contains("walrus"));

    let mixed = copied(&one, house.path("mixed"));
    std::fs::copy(two.join("keys.sealed"), mixed.join("keys.sealed")).unwrap();
    let refused =
        refusal(&house.daemon.cli(&["restore", text(&mixed), "--yes", "--passphrase-file", &house.passphrase()]));
    assert!(refused.contains("belongs to another backup"), "{refused}");
    assert!(house.is_not_whole(&mixed).contains("belongs to another backup"));

    let hostile = copied(&one, house.path("hostile"));
    let sealed = read(&one.join("keys.sealed")).replacen("memory_kib=65536", "memory_kib=4194303", 1);
    std::fs::write(hostile.join("keys.sealed"), sealed).unwrap();
    let begun = Instant::now();
    assert!(house.is_not_whole(&hostile).contains("outside the accepted range"));
    println!("refused in {:?}", begun.elapsed());

    let without = house.path("without");
    house.daemon.cli_json(&["backup", text(&without)]);
    let refused =
        refusal(&house.daemon.cli(&["restore", text(&without), "--yes", "--passphrase-file", &house.passphrase()]));
    assert!(refused.contains("has no keys in it"), "{refused}");
    assert_eq!(names(&house.daemon), ["a.test", "b.test"]);
    for left in ["records.restored", "before-restore", "restored", "restore.spool"] {
        assert!(!house.daemon.state_dir().join(left).exists(), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passphrase_comes_from_a_file_from_standard_input_or_as_a_credential_and_is_a_good_one() {
    let house = Machine::start();
    furnish(&house.daemon).await;
    let weak = house.path("weak");
    for (passphrase, why) in
        [("password1234", "too easily guessed"), ("short", "8 characters"), ("\n", "no passphrase")]
    {
        std::fs::write(&weak, passphrase).unwrap();
        let refused = refusal(&house.daemon.cli(&["backup", text(&house.path("b")), "--passphrase-file", text(&weak)]));
        assert!(refused.contains(why), "{refused}");
        assert!(!house.path("b").exists(), "an unfinished backup is removed");
    }

    let mut command = house.daemon.command(&["backup", text(&house.path("of-stdin")), "--passphrase-file", "-"]);
    command.stdin(std::fs::File::open(house.path("passphrase")).unwrap());
    assert!(command.output().unwrap().status.success());
    assert!(house.verify(&house.path("of-stdin")).status.success());

    let credentials = house.path("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::copy(house.path("passphrase"), credentials.join("backup.passphrase")).unwrap();
    let with_credential = |arguments: &[&str]| {
        let mut command = house.daemon.command(arguments);
        command.env("CREDENTIALS_DIRECTORY", &credentials).stdin(Stdio::null()).output().unwrap()
    };
    assert!(with_credential(&["backup", text(&house.path("of-credential"))]).status.success());
    assert!(house.verify(&house.path("of-credential")).status.success());
    assert!(with_credential(&["backup", "--verify", text(&house.path("of-credential"))]).status.success());

    // A client that asks the daemon directly gets the same refusal.
    let audit = house.daemon.cli_json(&["audit", "list", "--action", "state.backup_keys"]);
    assert_eq!(audit["entries"].as_array().unwrap().len(), 2, "{audit}");
    let runtime =
        reqwest::Client::builder().unix_socket(house.daemon.state.path().join("control.sock")).build().unwrap();
    let body = json!({ "passphrase": "password1234", "manifest_sha256": "0".repeat(64) });
    let answer = runtime.post("http://control/admin/backup/keys").json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 422);
    let body = answer.text().await.unwrap();
    assert!(body.contains("too easily guessed") && !body.contains("password1234"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_finds_every_damage_and_needs_nothing_but_the_backup() {
    let mut house = Machine::start();
    furnish(&house.daemon).await;
    let backup = house.backup("backup");
    assert!(house.daemon.stop().success());
    // No daemon, no state directory, and a configuration that no daemon could start with.
    std::fs::write(house.path("config.toml"), "nonsense = [").unwrap();
    let state = house.daemon.state_dir();
    std::fs::rename(&state, house.path("state-away")).unwrap();

    let verified =
        house.daemon.cli_json(&["backup", "--verify", text(&backup), "--passphrase-file", &house.passphrase()]);
    assert_eq!((&verified["is_opened"], &verified["unchecked"]), (&true.into(), &Value::Null), "{verified}");
    assert!(verified["sealed_values"].as_u64().unwrap() >= 6, "{verified}");
    println!("{verified}");
    let without = house.daemon.cli_json(&["backup", "--verify", text(&backup)]);
    assert_eq!(without["is_opened"], false);
    assert!(without["unchecked"].as_str().unwrap().contains("--passphrase-file"), "{without}");
    let key = house.path("state-away/master.key");
    let by_key = house.daemon.cli_json(&["backup", "--verify", text(&backup), "--master-key", text(&key)]);
    assert_eq!(by_key["is_opened"], true);
    assert!(!state.exists(), "the verification made files");

    let rows = read(&backup.join("records.jsonl"));
    let lines: Vec<&str> = rows.lines().collect();
    let line_of =
        |table: &str| lines.iter().position(|line| line.contains(&format!("{{\"table\":\"{table}\""))).unwrap();
    let without_line = |table: &str| {
        let place = line_of(table);
        [&lines[..place], &lines[place + 1..]].concat().join("\n") + "\n"
    };
    let mut damages = vec![
        ("one byte".to_owned(), rows.replacen("a.test", "x.test", 1), "digest"),
        ("cut off".into(), rows[..rows.len() - 20].into(), "cut off"),
        ("nothing".into(), String::new(), "rows"),
        ("a line twice".into(), format!("{rows}{}\n", lines.last().unwrap()), ""),
        ("swapped".into(), [&lines[1..2], &lines[..1], &lines[2..]].concat().join("\n") + "\n", "wrong place"),
    ];
    for table in ["heads", "settings", "server_key", "sealing_keys", "authorities", "hosts", "versions", "audit_log"] {
        damages.push((format!("without a row of {table}"), without_line(table), ""));
    }
    for (number, (name, rows, expected)) in damages.iter().enumerate() {
        let directory = copied(&backup, house.path(&format!("damaged-{number}")));
        std::fs::write(directory.join("records.jsonl"), rows).unwrap();
        let said = house.is_not_whole(&directory);
        println!("{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
        // The damage is found without a key as well.
        refusal(&house.daemon.cli(&["backup", "--verify", text(&directory)]));
    }

    // Rows with a forged manifest that fits: only the key shows the forgery.
    let forged = copied(&backup, house.path("forged"));
    let place = line_of("versions");
    let mut version: Value = serde_json::from_str(lines[place]).unwrap();
    let body = version["row"]["body"].as_str().unwrap().to_owned();
    let other = if body.as_bytes()[40] == b'A' { "B" } else { "A" };
    version["row"]["body"] = format!("{}{other}{}", &body[..40], &body[41..]).into();
    let mut with_other = lines.clone();
    let line = version.to_string();
    with_other[place] = &line;
    let rows = with_other.join("\n") + "\n";
    std::fs::write(forged.join("records.jsonl"), &rows).unwrap();
    let mut manifest: Value = serde_json::from_str(&read(&backup.join("manifest.json"))).unwrap();
    let digest = codex_authd::model::digest::Digest::of(format!("{line}\n").as_bytes());
    manifest["tables"]["versions"]["sha256"] = digest.to_string().into();
    std::fs::write(forged.join("manifest.json"), serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    let said = refusal(&house.daemon.cli(&["backup", "--verify", text(&forged), "--master-key", text(&key)]));
    assert!(said.contains("does not open"), "{said}");
    assert!(
        house.daemon.cli(&["backup", "--verify", text(&forged)]).status.success(),
        "without a key the forgery cannot be found"
    );
    assert!(house.is_not_whole(&forged).contains("belongs to another backup"), "the keys are bound to the manifest");

    // Damages each part of the keys, and the keys as a whole.
    let sealed = read(&backup.join("keys.sealed"));
    let parts: Vec<usize> = sealed.match_indices(['\n', ' ', '=']).map(|(place, _)| place - 1).collect();
    let some = parts.iter().copied().chain([0, sealed.len() / 2, sealed.len() - 1]);
    for (number, place) in some.enumerate() {
        let directory = copied(&backup, house.path(&format!("keys-{number}")));
        let mut bytes = sealed.clone().into_bytes();
        bytes[place] ^= 1;
        std::fs::write(directory.join("keys.sealed"), bytes).unwrap();
        house.is_not_whole(&directory);
    }
    let keyless = copied(&backup, house.path("keyless"));
    std::fs::remove_file(keyless.join("keys.sealed")).unwrap();
    assert!(house.is_not_whole(&keyless).contains("has no file"));
    let unfinished = copied(&backup, house.path("unfinished"));
    std::fs::remove_file(unfinished.join("manifest.json")).unwrap();
    house.is_not_whole(&unfinished);
}

/// The time of the newest backup in the metrics, and the finding of the doctor.
fn told(daemon: &Daemon) -> (i64, String) {
    let metrics = String::from_utf8(daemon.cli(&["metrics"]).stdout).unwrap();
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("codex_authd_last_verified_backup_timestamp_seconds "));
    let doctor: Value = serde_json::from_slice(&daemon.cli(&["doctor", "--json"]).stdout).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "backup").unwrap_or_else(|| panic!("{doctor:#}"));
    (line.unwrap().parse::<f64>().unwrap() as i64, check["verdict"].as_str().unwrap().into())
}

#[test]
fn the_age_of_the_newest_backup_that_was_read_back_is_told_and_outlives_a_restart() {
    let mut house = Machine::start();
    assert_eq!(told(&house.daemon), (0, "weak".into()));
    let manifest = |backup: &Path| -> Value { serde_json::from_str(&read(&backup.join("manifest.json"))).unwrap() };
    let at = |manifest: Value| {
        let made = manifest["created_at"].as_str().unwrap().to_owned();
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(&made, format).unwrap().unix_timestamp()
    };
    let made = at(manifest(&house.backup("first")));
    assert_eq!(told(&house.daemon), (made, "good".into()));
    house.daemon.stop();
    // A backup without a daemon is recorded as well.
    let made = at(manifest(&house.backup("second")));
    house.daemon.launch();
    assert_eq!(told(&house.daemon), (made, "good".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_a_timer_are_kept_by_number() {
    let house = Machine::start();
    furnish(&house.daemon).await;
    let into = house.path("backups");
    let make = |keep: &str| {
        let arguments = ["backup", "--into", text(&into), "--keep", keep, "--passphrase-file", &house.passphrase()]
            .map(String::from);
        // Two backups of one second would have the same name.
        eventually("an unused name", || {
            let output = house
                .daemon
                .cli(&arguments.each_ref().map(String::as_str).into_iter().chain(["--json"]).collect::<Vec<_>>());
            output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
        })
    };
    let first = PathBuf::from(make("2")["directory"].as_str().unwrap());
    assert_eq!(std::fs::metadata(&into).unwrap().permissions().mode() & 0o777, 0o700);
    for name in ["authd-20250101T000000Z", "authd-20250102T000000Z"] {
        copied(&first, into.join(name));
    }
    let theirs = copied(&first, into.join("by-hand"));
    let unfinished = copied(&first, into.join("authd-20250103T000000Z"));
    std::fs::remove_file(unfinished.join("manifest.json")).unwrap();
    let second = make("2");
    assert_eq!(second["removed"].as_array().unwrap().len(), 2, "{second}");
    let newest = PathBuf::from(second["directory"].as_str().unwrap());
    assert!([&first, &newest, &theirs, &unfinished].iter().all(|path| path.exists()));
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), 4);
    assert!(house.verify(&newest).status.success());
    let third = make("1");
    assert_eq!(third["removed"].as_array().unwrap().len(), 2);
    assert!(!first.exists() && !newest.exists() && theirs.exists());
    assert_eq!(house.daemon.cli(&["backup", "--into", text(&into), "--keep", "0"]).status.code(), Some(2));
}

/// The user that runs the daemon.
const USER: u32 = 47_110;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_root_does_without_the_daemon_leaves_files_that_the_daemon_can_open() {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can be another user");
        return;
    }
    let mut house = Machine::prepare();
    house.daemon.within =
        ["setpriv", &format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"].map(String::from).into();
    for path in [house.daemon.state.path(), house.directory.path()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o711)).unwrap();
    }
    // The same owner and mode as in the package; the directory of the socket is the daemon's, too.
    let state = house.daemon.state_dir();
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(USER), Some(USER)).unwrap();
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(house.daemon.state.path(), Some(USER), Some(USER)).unwrap();
    std::fs::set_permissions(house.path("config.toml"), PermissionsExt::from_mode(0o644)).unwrap();

    // Only root can read the login, the backup and the certificate.
    let private = house.path("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::set_permissions(&private, PermissionsExt::from_mode(0o700)).unwrap();
    let login = private.join("auth.json");
    std::fs::write(&login, auth_json("2026-11-20T12:00:00Z", 1).to_string()).unwrap();
    std::fs::set_permissions(&login, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(house.daemon.cli_json(&["auth", "upload", text(&login)])["status"], "updated");
    house.daemon.cli_json(&["hosts", "add", "a.test"]);
    house.daemon.cli_json(&["admin-cert", "offline", "--pem", text(&private.join("pem"))]);
    let backup = private.join("backup");
    house.daemon.cli_json(&["backup", text(&backup), "--passphrase-file", &house.passphrase()]);
    house.daemon.cli_json(&["keys", "rotate"]);
    house.restore(&backup, &[]);
    house.daemon.cli_json(&["auth", "show"]);

    let mut files = 0;
    let mut below = vec![state.clone()];
    while let Some(path) = below.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (USER, USER), "{}", path.display());
        files += 1;
        if metadata.is_dir() {
            below.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    println!("{files} files of the state are the daemon's");
    assert!(files > 8);
    for path in [backup.join("manifest.json"), private.join("pem/offline.key")] {
        assert_eq!(std::fs::metadata(path).unwrap().uid(), 0);
    }
    // The daemon can open its state.
    house.daemon.launch();
    assert_eq!(names(&house.daemon), ["a.test"]);
    assert_eq!(house.daemon.cli_json(&["auth", "show"])["version"], 1);
    let backup = private.join("by-daemon");
    house.daemon.cli_json(&["backup", text(&backup), "--passphrase-file", &house.passphrase()]);
    house.restore(&backup, &[]);
    assert_eq!(names(&house.daemon), ["a.test"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_in_the_middle_leaves_what_was_there_and_is_done_again() {
    let mut house = Machine::start();
    let hosts = furnish(&house.daemon).await;
    assert!(house.daemon.stop().success());
    write_much(&house.daemon).await;
    house.daemon.launch();
    let backup = house.backup("backup");

    // A new machine: first the daemon dies during the restore, then the command without a daemon.
    let mut fresh = Machine::start();
    fresh.daemon.cli_json(&["hosts", "add", "own.test"]);
    let own = read(&fresh.daemon.state_dir().join("master.key"));
    let beside = fresh.daemon.state_dir().join("records.restored");
    for runs in [true, false] {
        if !runs {
            assert!(fresh.daemon.stop().success());
        }
        let arguments = ["restore", text(&backup), "--yes", "--passphrase-file", &fresh.passphrase()];
        let mut restoring = fresh.daemon.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        // Waits until some of the data is written.
        while std::fs::metadata(beside.join("rows.redb")).map_or(0, |rows| rows.len()) < 2 * 1024 * 1024 {
            assert!(begun.elapsed() < BOUND, "the restore does not begin");
            pause();
        }
        if runs {
            fresh.daemon.kill();
            assert!(!restoring.wait().unwrap().success());
        } else {
            restoring.kill().unwrap();
            restoring.wait().unwrap();
        }
        assert!(!fresh.daemon.state_dir().join("restored").exists(), "it was in the middle");
        fresh.daemon.launch();
        assert_eq!(names(&fresh.daemon), ["own.test"]);
        assert_eq!(read(&fresh.daemon.state_dir().join("master.key")), own);
    }
    fresh.restore(&backup, &[]);
    is_the_same(&fresh.daemon, &hosts).await;
    assert!(!beside.exists());
}

/// A daemon with the real Codex, which calls the stand-in.
fn prober(upstream: &Upstream) -> Daemon {
    let (egress, lines, tokens) = (upstream.authority(), upstream.config_toml(), upstream.token_url());
    let mut daemon = Daemon::prepare(&[
        ("RUNNER__ENABLED", "true"),
        ("RUNNER__CODEX", text(real_codex())),
        ("RUNNER__EGRESS", &egress),
        ("RUNNER__CONFIG_TOML", &lines),
        ("UPSTREAM__TOKEN_URL", &tokens),
        // Codex retries a refused token for longer than this.
        ("RUNNER__TIMEOUT_SECONDS", "30"),
    ]);
    daemon.log_level = Some("debug");
    daemon
}

#[test]
fn a_login_that_came_back_is_served_and_not_redeemed_before_it_is_known_to_be_good() {
    let upstream = Upstream::start();
    // The stand-in has its own runtime, which must not end within another one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let page = |daemon: &Daemon, path: &str| {
        let asked = async { daemon.admin().get(daemon.admin_url(path)).send().await?.text().await };
        runtime.block_on(asked).unwrap()
    };
    let redeemed = || upstream.calls_to("POST", "/oauth/token").len();
    let old = Daemon::start();
    let host = runtime.block_on(old.register(&old.admin(), "a.test"));
    assert_eq!(runtime.block_on(retrieve(&old, &host.api_key)), 200);
    // Codex refreshes this login as soon as it runs.
    let file = old.state.path().join("auth.json");
    std::fs::write(&file, upstream.login("acc-1", -60).to_string()).unwrap();
    old.cli_json(&["auth", "upload", text(&file)]);
    let passphrase = old.state.path().join("passphrase");
    std::fs::write(&passphrase, PASSPHRASE).unwrap();
    let backup = old.state.path().join("backup");
    old.cli_json(&["backup", text(&backup), "--passphrase-file", text(&passphrase)]);

    let mut new = prober(&upstream);
    let arguments = ["restore", text(&backup), "--yes", "--passphrase-file", text(&passphrase)];
    let said = String::from_utf8(new.cli(&arguments).stdout).unwrap();
    assert!(said.contains("codex-authd auth upload") && said.contains("runner run --restored"), "{said}");
    for _ in 0..2 {
        new.launch();
        // The first call of a day, an upload that changes nothing, an admin: none of them starts a probe.
        assert_eq!(runtime.block_on(retrieve(&new, &host.api_key)), 200);
        new.cli_json(&["auth", "upload", "--probe", text(&file)]);
        let refused = refusal(&new.cli(&["runner", "run"]));
        assert!(refused.contains("came back from a backup") && refused.contains("--restored"), "{refused}");
        let shown = eventually("all requested probes are answered", || {
            let shown = new.cli_json(&["runner", "show"]);
            (shown["asked"] == shown["answered"] && shown["asked"].as_u64() >= Some(2)).then_some(shown)
        });
        assert_eq!(shown["state"], "unavailable", "{shown}");
        assert!(shown["reason"].as_str().unwrap().contains("came back from a backup"), "{shown}");
        assert_eq!(shown["probes"], json!([]), "a probe was begun");
        let overview: Value = serde_json::from_str(&page(&new, "/admin/overview")).unwrap();
        assert_eq!(overview["data"]["restored_login"]["version"], 1, "{overview}");
        assert_eq!(new.cli_json(&["auth", "show"])["restored_login"]["version"], 1);
        for path in ["/", "/runner"] {
            assert!(page(&new, path).contains("The login is that of a backup"));
        }
        let form = page(&new, "/runner");
        assert!(form.contains("Nothing was refreshed since the backup"), "{form}");
        let token = form.split("name=\"token\" value=\"").nth(1).unwrap().split('"').next().unwrap();
        let unconfirmed = new.admin().post(new.admin_url("/runner")).form(&[("token", token)]);
        assert_eq!(runtime.block_on(async { unconfirmed.send().await }).unwrap().status(), 409);
        let log = new.log();
        assert!(log.contains("login_restored") && log.contains("came back from a backup"), "{log}");
        assert_eq!(new.stop().code(), Some(0));
    }
    refusal(&new.cli(&["runner", "run"]));
    assert_eq!(redeemed(), 0, "a refresh token was used");

    // An admin says that it is unused. Codex refreshes it, and the new version is no longer a restored one.
    new.launch();
    assert_eq!(new.cli(&["runner", "run", "--restored"]).status.code(), Some(0), "{}", new.log());
    assert_eq!(redeemed(), 1);
    let shown = new.cli_json(&["auth", "show"]);
    assert_eq!((&shown["version"], &shown["restored_login"]), (&2.into(), &Value::Null), "{shown}");
    assert!(!page(&new, "/runner").contains("The login is that of a backup"));
    assert_eq!(new.cli(&["runner", "run"]).status.code(), Some(0));

    // The login of the backup is spent now. Restored into a running daemon, it is not probed; a newer login is.
    assert!(new.cli(&arguments).status.success());
    assert_eq!(new.cli_json(&["auth", "show"])["restored_login"]["version"], 1);
    refusal(&new.cli(&["runner", "run"]));
    assert_eq!(redeemed(), 1);
    // `--restored` runs the probe, which fails; the login keeps its mark.
    assert_eq!(new.cli(&["runner", "run", "--restored"]).status.code(), Some(1));
    assert_eq!(new.cli_json(&["runner", "show"])["state"], "fail");
    let spent = redeemed();
    refusal(&new.cli(&["runner", "run"]));
    std::fs::write(&file, upstream.login("acc-1", 864_000).to_string()).unwrap();
    new.cli_json(&["auth", "upload", text(&file)]);
    assert_eq!(new.cli_json(&["auth", "show"])["restored_login"], Value::Null);
    assert_eq!(new.cli(&["runner", "run"]).status.code(), Some(0), "{}", new.log());
    assert_eq!(redeemed(), spent);
}
