//! Secrets stay secret. Each is sent through every path, and then searched for, in every encoding, in the log at its
//! highest level, in every byte of the state directory, and in the system's information about the process.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use nix::sys::signal::Signal;
use reqwest::Client;
use serde_json::{Value, json};

use crate::support::daemon::{BINARY, BOUND, Daemon, Registered, pause};

/// Every member of these logins is a secret, and none is a JWT.
const MADE_UP_TOKENS: (&str, &str) = ("AUTH__STRICT", "false");

#[tokio::test]
async fn a_secret_is_in_no_log_and_in_no_file_and_not_in_the_process() {
    let mut daemon = Daemon::prepare(&[MADE_UP_TOKENS]);
    daemon.log_level = Some("trace");
    daemon.launch();
    let mut secrets = Secrets::default();
    let mut places = Vec::new();

    // HTTP/1.1 and HTTP/2 log differently.
    daemon.admin_certificate("tester");
    for (version, first) in [("one", 1), ("two", 2)] {
        let build = |builder: reqwest::ClientBuilder| if first == 1 { builder.http1_only() } else { builder }.build();
        let identity = crate::support::daemon::identity(&daemon.state.path().join("admin-tester"), "tester");
        let admin = build(daemon.client_builder().identity(identity)).unwrap();
        let client = build(daemon.client_builder()).unwrap();
        as_an_admin(&daemon, &admin, version, &mut secrets).await;
        as_a_host(&daemon, &admin, &client, version, &mut secrets).await;
        as_a_person(&daemon, &admin, &client, version, &mut secrets).await;
        places.extend(by_command(&daemon, version, &mut secrets));
        places.extend(of_process(&daemon));
        reload(&daemon, first);
        if first == 1 {
            assert!(daemon.stop().success());
        } else {
            daemon.kill();
        }
        // Runs without a daemon, and then on the state of the last run.
        places.extend(by_command(&daemon, &format!("{version}-offline"), &mut secrets));
        daemon.launch();
    }
    assert!(daemon.stop().success());

    places.push(("the log".into(), std::fs::read(daemon.log_file()).unwrap()));
    places.extend(files_below(&daemon.state_dir()));
    println!(
        "{} secrets, {} spellings, {} places, {} bytes",
        secrets.0.len(),
        secrets.spellings().count(),
        places.len(),
        places.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    );
    let found = secrets.find(&places);
    assert!(found.is_empty(), "{found:#?}");

    // The search finds known text, and the log had its highest level.
    let public = Secrets(BTreeMap::from([("a public name".to_owned(), "one-host.test".to_owned())]));
    let found = public.find(&places);
    for place in ["the log", "/records/rows.redb", "/hot/db"] {
        assert!(found.iter().any(|found| found.contains(place)), "{place} is not searched: {found:#?}");
    }
    // Dependencies log only warnings (src/daemon/logging.rs); our own code logs everything.
    assert!(daemon.log().contains(" DEBUG "));
}

#[test]
fn a_refused_configuration_does_not_show_the_password_in_it() {
    let secrets = Secrets(BTreeMap::from([("the database password".into(), "Canary-db/Pa55+word".into())]));
    let url = "mysql://authd:Canary-db/Pa55+word@db.example:3306/authd";
    let mut places = Vec::new();
    for command in ["check-config", "serve"] {
        let daemon = Daemon::prepare(&[("DATABASE__URL", url), MADE_UP_TOKENS]);
        places.push((format!("{command}, environment"), refused(daemon.command(&[command]))));
        for (number, text) in [
            format!("[database]\nurl = \"{url}\"\n"),
            format!("[database]\nurl = \"{url}\n"),
            format!("[database]\nurl = {url}\n"),
            format!("[database]\nurl = '{url}' x\n"),
            format!("[database]\nurl = \"{url}\"\nurl = \"{url}\"\n"),
            format!("[database]\nurl = [\"{url}\"]\n"),
            format!("[database]\nurll = \"{url}\"\n"),
            format!("database = \"{url}\"\n"),
            format!("state_dir = 1\n[database]\nurl = \"{url}\"\n"),
            format!("[limits]\nglobal_per_minute = \"{url}\"\n"),
            format!("[admin]\naccess = \"{url}\"\n"),
            format!("[listen]\nhosts = \"{url}\"\n"),
        ]
        .into_iter()
        .enumerate()
        {
            let daemon = Daemon::prepare(&[MADE_UP_TOKENS]);
            let file = daemon.state.path().join("config.toml");
            std::fs::write(&file, text).unwrap();
            let mut command = daemon.command(&[command, "--json", "--config", file.to_str().unwrap()]);
            // So the file's value is in force.
            command.env_remove("CODEX_AUTHD_LISTEN__HOSTS").env_remove("CODEX_AUTHD_LIMITS__GLOBAL_PER_MINUTE");
            command.env_remove("CODEX_AUTHD_STATE_DIR");
            places.push((format!("file {number}"), refused(command)));
        }
    }
    let found = secrets.find(&places);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_the_daemon_writes_is_its_owners_alone() {
    let mut daemon = Daemon::start_with(&[MADE_UP_TOKENS]);
    daemon.cli_json(&["hosts", "add", "a.test"]);
    let control = daemon.state.path().join("control.sock");
    let about = std::fs::metadata(&control).unwrap();
    assert!(about.file_type().is_socket());
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    daemon.stop();
    daemon.launch();
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.state_dir()), 0o700);
    assert_eq!(mode(&daemon.state_dir().join("master.key")), 0o600);
    let files = files_below(&daemon.state_dir());
    assert!(files.len() > 8, "{files:?}");
    for (path, _) in files {
        let public = path.ends_with(".crt") || path.ends_with("/listen.json");
        let mode = mode(Path::new(&path));
        assert!(public || mode & 0o077 == 0, "{path} has mode {mode:o}");
        assert!(mode & 0o022 == 0, "{path} can be written by others: {mode:o}");
    }
}

/// A process that is not dumpable belongs to root in /proc, whatever user runs it. So only another user than root can
/// check it.
#[test]
fn the_process_leaves_no_core_dump_and_is_nobodys_to_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut plain = Command::new("sleep");
    plain.arg("60");
    let daemon = Daemon::prepare(&[MADE_UP_TOKENS]);
    // A directory where the user below may execute it.
    let binary = directory.path().join("codex-authd");
    std::fs::hard_link(BINARY, &binary).or_else(|_| std::fs::copy(BINARY, &binary).map(|_| ())).unwrap();
    let mut serve = Command::new(&binary);
    daemon.settings_for(&mut serve);
    serve.arg("serve");
    // A command without a daemon that stays for a while: it waits for a password on standard input.
    let mut command = Command::new(&binary);
    daemon.settings_for(&mut command);
    let out = daemon.state.path().join("x.p12");
    command.env("CODEX_AUTHD_STATE_DIR", daemon.state.path().join("other"));
    command.env("CODEX_AUTHD_LISTEN__CONTROL", daemon.state.path().join("other.sock"));
    command.args(["admin-cert", "x", "--password-stdin", "--out"]).arg(&out);
    let me = nix::unistd::geteuid();
    let mut user = me.as_raw();
    if me.is_root() {
        user = 65534;
        for path in [directory.path(), daemon.state.path()] {
            std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        }
        for command in [&mut plain, &mut serve, &mut command] {
            command.uid(user).gid(user);
        }
    }
    for (command, wanted) in [(&mut plain, user), (&mut serve, 0), (&mut command, 0)] {
        let said = std::fs::File::create(daemon.log_file()).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        let owner = || std::fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid();
        let begun = Instant::now();
        while owner() != wanted && begun.elapsed() < BOUND / 6 {
            pause();
        }
        let owner = owner();
        let ended = child.try_wait().unwrap();
        let _ = child.kill();
        child.wait().unwrap();
        assert_eq!(ended, None, "{}", daemon.log());
        assert_eq!(owner, wanted, "{command:?}");
    }
}

/// Uploads, registers, issues and rotates.
async fn as_an_admin(daemon: &Daemon, admin: &Client, version: &str, secrets: &mut Secrets) {
    let login = secrets.login(&format!("{version}-uploaded"), if version == "one" { 1 } else { 2 });
    let upload = |body: String| admin.post(daemon.admin_url("/admin/auth/upload")).body(body).send();
    assert_eq!(upload(json!({ "auth": login }).to_string()).await.unwrap().status(), 200);
    let shown = admin.get(daemon.admin_url("/admin/auth?include_body=1")).send().await.unwrap().text().await.unwrap();
    assert!(shown.contains("last_refresh"), "{shown}");
    for (number, body) in malformed(secrets, &format!("{version}-upload")).into_iter().enumerate() {
        let status = upload(body).await.unwrap().status();
        assert!(status.is_client_error(), "{number}: {status}");
    }
    for password in [None, Some(secrets.add(&format!("{version} p12 password"), "Canary-p12/Pa55+word"))] {
        let body = json!({ "name": "alice", "password": password });
        let answer = admin.post(daemon.admin_url("/admin/certificates")).json(&body).send().await.unwrap();
        let issued: Value = answer.json().await.unwrap();
        let issued = &issued["data"];
        let name = format!("{version} {}", password.is_some());
        secrets.take(&format!("p12 password, {name}"), issued["pkcs12_password"].as_str().unwrap());
        secrets.private_key(&name, issued["private_key_pem"].as_str().unwrap());
    }
    let rotated = admin.post(daemon.admin_url("/admin/keys/rotate")).send().await.unwrap();
    assert_eq!(rotated.status(), 200);
}

/// Redeems, retrieves, stores, downloads and leaves, with valid and invalid keys.
async fn as_a_host(daemon: &Daemon, admin: &Client, client: &Client, version: &str, secrets: &mut Secrets) {
    let register = async |secrets: &mut Secrets, what: &str| -> Registered {
        let registered = daemon.register(admin, &format!("{version}-host.test")).await;
        secrets.take(&format!("{version} {what} API key"), &registered.api_key);
        secrets.take(&format!("{version} {what} installer token"), &registered.token);
        registered
    };
    let old = register(secrets, "old").await;
    let new = register(secrets, "new").await;
    let unknown = secrets.add(&format!("{version} unknown token"), "Canary-unknown-token");
    for (token, wanted) in [(&old.token, 404), (&new.token, 200), (&new.token, 410), (&unknown, 404)] {
        for stage in ["/start", ""] {
            let answer = client.get(daemon.hosts_url(&format!("/install/{token}{stage}"))).send().await.unwrap();
            assert_eq!(answer.status(), wanted);
        }
    }
    let wrong = secrets.add(&format!("{version} wrong key"), "Canary-wrong-api-key");
    for (key, wanted) in [(&new.api_key, 200), (&old.api_key, 401), (&wrong, 401)] {
        for (name, value) in [("x-api-key", key.clone()), ("authorization", format!("Bearer {key}"))] {
            for path in ["/wrapper/download", "/wrapper", "/versions"] {
                let answer = client.get(daemon.hosts_url(path)).header(name, &value).send().await.unwrap();
                assert!(path == "/versions" || answer.status() == wanted, "{path}");
            }
            for suffix in ["", "/lines"] {
                let answer = client.post(daemon.hosts_url(&format!("/auth{suffix}"))).header(name, &value);
                let retrieve = json!({ "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
                assert_eq!(answer.json(&retrieve).send().await.unwrap().status(), wanted);
            }
        }
    }
    // The key in the URL, where it does not belong, and in unknown routes.
    for path in [format!("/auth?api_key={wrong}"), format!("/{wrong}"), format!("/install/{unknown}/{wrong}")] {
        client.get(daemon.hosts_url(&path)).header("x-api-key", &new.api_key).send().await.unwrap();
        admin.get(daemon.admin_url(&path)).send().await.unwrap();
    }
    let post =
        |body: String| client.post(daemon.hosts_url("/auth")).header("x-api-key", &new.api_key).body(body).send();
    let login = secrets.login(&format!("{version}-stored"), if version == "one" { 3 } else { 4 });
    for status in ["updated", "unchanged"] {
        let answer = post(json!({ "command": "store", "auth": login }).to_string()).await.unwrap();
        let answer = answer.text().await.unwrap();
        assert!(answer.contains(&format!("\"status\":\"{status}\"")), "{answer}");
    }
    for (number, body) in malformed(secrets, &format!("{version}-store")).into_iter().enumerate() {
        let status = post(body).await.unwrap().status();
        assert!(status.is_client_error(), "{number}: {status}");
    }
}

/// Signs in, with right and wrong passwords, and changes the password.
async fn as_a_person(daemon: &Daemon, admin: &Client, client: &Client, version: &str, secrets: &mut Secrets) {
    let mut password = |what: &str| {
        let name = format!("{version} {what} password");
        secrets.add(&name, &format!("Canary-{version}-{what}-lantern/orbit+plum"))
    };
    let (first, second, third) = (password("first"), password("second"), password("third"));
    let (wrong, by_command) = (password("wrong"), password("command"));
    let email = format!("{version}@example.test");
    let made = json!({ "email": email, "role": "member", "password": first });
    let made = admin.post(daemon.admin_url("/auth/users")).json(&made).send().await.unwrap();
    let made: Value = made.json().await.unwrap();
    let number = made["data"]["user"]["id"].as_u64().unwrap();
    let sign_in = |email: &str, password: &str| {
        let body = json!({ "email": email, "password": password });
        client.post(daemon.hosts_url("/auth/session")).json(&body).send()
    };
    // The password in the wrong field as well.
    for (email, password) in [(&*email, &*wrong), ("nobody@example.test", &*first), (&*wrong, &*email)] {
        assert_eq!(sign_in(email, password).await.unwrap().status(), 401);
    }
    let answer: Value = sign_in(&email, &first).await.unwrap().json().await.unwrap();
    let token = answer["access_token"].as_str().unwrap().to_owned();
    secrets.take(&format!("{version} access token"), &token);
    for path in ["/auth/me", "/auth/me/sessions", "/auth/me/hosts", "/auth/users"] {
        client.get(daemon.hosts_url(path)).bearer_auth(&token).send().await.unwrap();
        admin.get(daemon.admin_url(path)).bearer_auth(&token).send().await.unwrap();
    }
    for path in [format!("/auth/me?access_token={token}"), format!("/{token}")] {
        client.get(daemon.hosts_url(&path)).bearer_auth(&token).send().await.unwrap();
    }
    let cut = format!("{{\"email\": \"{email}\", \"password\": \"{first}\"");
    let list = format!("{{\"email\": \"{first}\", \"password\": [\"{first}\"]}}");
    for (body, wanted) in [(cut, 400), (list, 422)] {
        let answer = client.post(daemon.hosts_url("/auth/session")).body(body).send().await.unwrap();
        assert_eq!(answer.status(), wanted);
    }
    for (current, wanted) in [(&wrong, 422), (&first, 200)] {
        let body = json!({ "current": current, "new": second });
        let call = client.post(daemon.hosts_url("/auth/me/password")).bearer_auth(&token).json(&body);
        assert_eq!(call.send().await.unwrap().status(), wanted);
    }
    let reset = admin.post(daemon.admin_url(&format!("/auth/users/{number}/password")));
    assert_eq!(reset.json(&json!({ "password": third })).send().await.unwrap().status(), 200);
    assert_eq!(sign_in(&email, &third).await.unwrap().status(), 200);
    let mut create = daemon.command(&["create-admin", &format!("{version}-admin@example.test"), "--password-stdin"]);
    let mut create = create.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut create.stdin.take().unwrap(), by_command.as_bytes()).unwrap();
    assert!(create.wait().unwrap().success());
}

/// Bodies that contain a login, or most of one, and are refused.
fn malformed(secrets: &mut Secrets, name: &str) -> Vec<String> {
    let login = secrets.login(&format!("{name}-malformed"), 5);
    let text = login.to_string();
    let with = |member: &str, value: Value| {
        let mut login = login.clone();
        login[member] = value;
        json!({ "command": "store", "auth": login }).to_string()
    };
    let mut broken = secrets.login(&format!("{name}-broken token"), 6);
    let spaced = format!("{} x", broken["tokens"]["access_token"].as_str().unwrap());
    broken["auths"]["api.openai.com"]["token"] = spaced.into();
    vec![
        text[..text.len() - 3].to_owned(),
        format!("{{\"command\": \"store\", \"auth\": {}", &text[..text.len() - 1]),
        format!("{{\"command\": \"store\", \"auth\": {text}, \"auth\": {text}}}"),
        json!({ "command": "store", "auth": &text[..text.len() - 9] }).to_string(),
        json!({ "command": text, "auth": "x" }).to_string(),
        with("last_refresh", json!("2099-01-01T00:00:00Z")),
        with("last_refresh", login["tokens"]["refresh_token"].clone()),
        with("auths", login["tokens"]["access_token"].clone()),
        json!({ "command": "store", "auth": broken }).to_string(),
        format!("{}{text}", " ".repeat(1024 * 1024)),
    ]
}

/// By the command line. Its answers are searched too, if they must not show a secret.
fn by_command(daemon: &Daemon, version: &str, secrets: &mut Secrets) -> Vec<(String, Vec<u8>)> {
    let file = daemon.state.path().join("login.json");
    std::fs::write(&file, secrets.login(&format!("{version}-command"), 0).to_string()).unwrap();
    let added = daemon.cli_json(&["hosts", "add", &format!("{version}-command.test")]);
    secrets.take(&format!("{version} command API key"), added["host"]["api_key"].as_str().unwrap());
    secrets.take(&format!("{version} command token"), added["installer"]["token"].as_str().unwrap());
    let passphrase = daemon.state.path().join("passphrase");
    std::fs::write(&passphrase, format!("Canary {version} walrus umbrella teapot\n")).unwrap();
    secrets.take(&format!("{version} passphrase of a backup"), &format!("Canary {version} walrus umbrella teapot"));
    let backup = daemon.state.path().join(format!("backup-{version}"));
    let [backed_up, passphrase] = [&backup, &passphrase].map(|path| path.to_str().unwrap());
    let commands: [&[&str]; 8] = [
        &["backup", backed_up, "--passphrase-file", passphrase],
        &["backup", "--verify", backed_up, "--passphrase-file", passphrase],
        &["auth", "upload", file.to_str().unwrap()],
        &["auth", "show"],
        &["auth", "history"],
        &["hosts", "list"],
        &["keys", "rotate"],
        &["hosts", "remove", "nobody.test"],
    ];
    let answers = commands.iter().map(|arguments| {
        let mut command = daemon.command(arguments);
        command.env("RUST_LOG", "trace").stdin(Stdio::null());
        (format!("the answer to {arguments:?}"), said(command.output().unwrap()))
    });
    let mut places: Vec<_> = answers.collect();
    let files = files_below(&backup);
    assert_eq!(files.len(), 3);
    places.extend(files);
    // The backup contains the key, sealed.
    let key = std::fs::read_to_string(daemon.state_dir().join("master.key")).unwrap();
    for (place, bytes) in &places {
        assert!(!String::from_utf8_lossy(bytes).contains(key.trim()), "the master key is in {place}");
    }
    places
}

fn reload(daemon: &Daemon, times: usize) {
    daemon.signal(Signal::SIGHUP);
    let begun = Instant::now();
    while daemon.log().matches("certificates were read again").count() < times {
        assert!(begun.elapsed() < BOUND, "it does not reload");
        pause();
    }
}

fn of_process(daemon: &Daemon) -> Vec<(String, Vec<u8>)> {
    // Another user than root cannot read the environment of a process that is not dumpable. So no user can.
    ["cmdline", "environ"]
        .map(|file| (file.to_owned(), std::fs::read(format!("/proc/{}/{file}", daemon.pid())).unwrap_or_default()))
        .into()
}

fn refused(mut command: Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).env("RUST_LOG", "trace").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    said(output)
}

fn said(output: Output) -> Vec<u8> {
    [output.stdout, output.stderr].concat()
}

/// Path and content of each file below `directory`.
fn files_below(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut left: Vec<PathBuf> = vec![directory.into()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                files.push((path.display().to_string(), std::fs::read(&path).unwrap()));
            }
        }
    }
    files
}

/// The secrets, by name.
#[derive(Default)]
struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// A unique secret, with characters that every encoding changes.
    fn add(&mut self, name: &str, beginning: &str) -> String {
        let secret = format!("{beginning}-{:04}-{}", self.0.len(), "q7Wz0PkX".repeat(3));
        self.take(name, &secret);
        secret
    }

    fn take(&mut self, name: &str, secret: &str) {
        assert!(secret.len() >= 16, "{name}");
        self.0.insert(name.into(), secret.into());
    }

    /// The middle lines of the key's base64; its first ones are the same in every key.
    fn private_key(&mut self, name: &str, pem: &str) {
        let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        self.take(&format!("private key, {name}"), lines[1]);
    }

    /// An auth.json in which every token is a secret; a higher `day` is newer.
    fn login(&mut self, name: &str, day: u32) -> Value {
        let mut token = |what: &str| self.add(&format!("{name} {what}"), &format!("Canary/{what}+{name}"));
        json!({
            "OPENAI_API_KEY": token("sk"),
            "tokens": {
                "id_token": token("id"),
                "access_token": token("access"),
                "refresh_token": token("refresh"),
                "account_id": "acc-1234",
            },
            "last_refresh": format!("2025-11-{:02}T09:27:43.373506211Z", 10 + day),
            "auths": {
                "api.openai.com": { "token": token("target"), "token_type": "bearer" },
                "z.example.com": { "token": token("other-target"), "token_type": "bearer" },
            },
        })
    }

    /// Each secret in every encoding: its name, and the encoded text.
    fn spellings(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().flat_map(|(name, secret)| spellings(secret).into_iter().map(move |text| (name.as_str(), text)))
    }

    fn find(&self, places: &[(String, Vec<u8>)]) -> Vec<String> {
        let mut found = Vec::new();
        for (place, bytes) in places {
            let text = String::from_utf8_lossy(bytes);
            for (name, spelling) in self.spellings() {
                if let Some(at) = text.find(&spelling) {
                    let before: String = text[..at].chars().rev().take(60).collect();
                    let before: String = before.chars().rev().collect();
                    found.push(format!("{name} in {place}, as {spelling:?}, after {before:?}"));
                }
            }
        }
        found
    }
}

fn spellings(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let percent = |upper: bool| -> String {
        secret
            .chars()
            .map(|c| match (c.is_ascii_alphanumeric() || "-._~".contains(c), upper) {
                (true, _) => c.to_string(),
                (false, true) => format!("%{:02X}", u32::from(c)),
                (false, false) => format!("%{:02x}", u32::from(c)),
            })
            .collect()
    };
    let decimal: Vec<String> = bytes.iter().map(u8::to_string).collect();
    let mut all = vec![
        secret.to_owned(),
        secret.replace('/', "\\/"),
        percent(true),
        percent(false),
        hex::encode(bytes),
        hex::encode_upper(bytes),
        decimal.join(", "),
        decimal.join(","),
    ];
    // Base64 of the secret at each offset: the groups of three bytes that contain only the secret.
    for skip in 0..3 {
        let whole = &bytes[skip..skip + (bytes.len() - skip) / 3 * 3];
        all.push(BASE64_STANDARD_NO_PAD.encode(whole));
        all.push(BASE64_URL_SAFE_NO_PAD.encode(whole));
    }
    all.sort();
    all.dedup();
    all
}
