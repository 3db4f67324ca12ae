//! The runner: a real daemon runs the real Codex on the canonical login, in its sandbox, against the stand-in upstream.
//! Each outcome is tested with its state, its log and the dashboard's text.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::support::authority::authority;
use crate::support::daemon::{BINARY, Daemon};
use crate::support::host::{codex_itself, real_codex};
use crate::support::mariadb::MariaDb;
use crate::support::processes::{descendants, is_alive};
use crate::support::program::build;
use crate::support::skip::skipped;
use crate::support::upstream::Upstream;
use crate::support::{eventually, now};

/// A daemon whose probes can reach only `upstream`; `more` settings override others.
fn daemon_for(upstream: &Upstream, more: &[(&str, &str)]) -> Daemon {
    let mut daemon = prepared_with(upstream, real_codex(), more);
    daemon.launch();
    daemon
}

fn upload(daemon: &Daemon, login: &Value) {
    let file = daemon.state.path().join("auth.json");
    std::fs::write(&file, login.to_string()).unwrap();
    assert_eq!(daemon.cli_json(&["auth", "upload", file.to_str().unwrap()])["status"], "updated");
}

/// Runs `codex-authd runner run`; returns the finding.
fn run(daemon: &Daemon) -> Found {
    let output = daemon.cli(&["runner", "run", "--json"]);
    let body = serde_json::Deserializer::from_slice(&output.stdout).into_iter().next();
    let body: Value = body.unwrap_or_else(|| panic!("no answer: {}", said(&output))).unwrap();
    Found {
        done: output.status.success(),
        state: body["state"].as_str().unwrap_or_default().into(),
        reason: body["reason"].as_str().unwrap_or_default().into(),
        adopted: body["latest_validation"]["adopted"].as_u64(),
        body,
    }
}

#[derive(Debug)]
struct Found {
    done: bool,
    state: String,
    reason: String,
    adopted: Option<u64>,
    body: Value,
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The text of the pages about the login, without tags.
fn pages(daemon: &Daemon) -> [String; 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ["/", "/runner"].map(|path| {
        runtime.block_on(async {
            let answer = daemon.admin().get(daemon.admin_url(path)).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let page = answer.text().await.unwrap();
            let mut words = String::new();
            for part in page.split('<') {
                words.push_str(part.split_once('>').map_or("", |(_, text)| text));
            }
            words.replace("&#39;", "'").replace("&#34;", "\"")
        })
    })
}

/// Asserts that the log and both pages say so.
fn assert_told(daemon: &Daemon, event: &str, words: &str, reason: &str) {
    let log = daemon.log();
    let line =
        log.lines().find(|line| line.contains(&format!("event={event} "))).unwrap_or_else(|| panic!("no {event}"));
    assert!(reason.is_empty() || log.contains(reason), "{line}");
    let [hosts, runner] = pages(daemon);
    assert!(hosts.contains(words), "{words}: {hosts}");
    assert!(runner.contains(words) && runner.contains(reason), "{words}, {reason}: {runner}");
}

/// Asserts that no issued token is in the log or on a page.
fn assert_secret(daemon: &Daemon, login: &Value) {
    let [hosts, runner] = pages(daemon);
    let log = daemon.log();
    for name in ["id_token", "access_token", "refresh_token"] {
        let token = login["tokens"][name].as_str().unwrap();
        // The unique part of the token, without the common head.
        let part = token.split('.').nth(1).unwrap_or(token);
        for (place, text) in [("log", &log), ("page", &hosts), ("page", &runner)] {
            assert!(!text.contains(part), "the {name} is in the {place}");
        }
    }
}

fn canonical(daemon: &Daemon) -> Value {
    daemon.cli_json(&["auth", "show"])
}

#[test]
fn a_login_that_works_is_found_to_work() {
    let upstream = Upstream::start();
    let daemon = daemon_for(&upstream, &[]);
    assert_eq!(daemon.cli_json(&["runner", "show"])["state"], "never");
    let login = upstream.login("acc-1", 864_000);
    upload(&daemon, &login);
    assert_eq!(daemon.cli_json(&["runner", "show"])["state"], "never", "an upload was probed without a request");
    let found = run(&daemon);
    assert!(found.done && found.state == "ok" && found.reason.is_empty(), "{found:#?}");
    assert_told(&daemon, "probe_ok", "Works", "");
    assert_secret(&daemon, &login);
    assert!(upstream.calls_to("POST", "/v1/responses").iter().any(|call| call.status == 200));
    let log = daemon.log();
    let passed = log.lines().find(|line| line.contains("event=egress ")).expect("no destination is logged");
    assert!(
        passed.contains(&format!("destination={}", upstream.authority())) && passed.contains("received="),
        "{passed}"
    );
    assert!(log.contains("event=egress_refused") && log.contains("ab.chatgpt.com:443 is not in runner.egress"));
    assert_eq!(canonical(&daemon)["version"], 1, "the login was refreshed");
}

#[test]
fn the_way_out_is_a_tunnel_for_tls_with_the_systems_certificates() {
    let (ca, certificate, key) = authority("localhost");
    let upstream = Upstream::start_tls(&certificate, &key);
    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), ca).unwrap();
    std::fs::set_permissions(bundle.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut daemon = prepared_for(&upstream, real_codex());
    daemon.environment.push(("SSL_CERT_FILE".into(), bundle.path().display().to_string()));
    daemon.launch();
    upload(&daemon, &upstream.login("acc-1", -60));
    let found = run(&daemon);
    assert!(found.done && found.state == "ok" && found.adopted == Some(2), "{found:#?}");
}

#[test]
fn what_a_host_brings_and_what_is_asked_for_with_the_upload_is_proved_by_itself() {
    let upstream = Upstream::start();
    let daemon = daemon_for(&upstream, &[]);
    let file = daemon.state.path().join("auth.json");
    std::fs::write(&file, upstream.login("acc-1", 864_000).to_string()).unwrap();
    daemon.cli_json(&["auth", "upload", "--probe", file.to_str().unwrap()]);
    let proved = |trigger: &str| {
        eventually(trigger, || {
            let shown = daemon.cli_json(&["runner", "show"]);
            (shown["state"] == "ok" && shown["probes"][0]["trigger"] == trigger).then_some(shown)
        })
    };
    proved("upload");
    let key = daemon.cli_json(&["hosts", "add", "h1.test"])["host"]["api_key"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let brought = json!({ "command": "store", "auth": upstream.login("acc-1", 864_000) });
    let took = std::time::Instant::now();
    let answer = runtime.block_on(async {
        let call = daemon.client().post(daemon.hosts_url("/auth")).header("X-API-Key", &key).json(&brought);
        call.send().await.unwrap().json::<Value>().await.unwrap()
    });
    assert_eq!((&answer["data"]["status"], &answer["data"]["runner_applied"]), (&json!("updated"), &json!(false)));
    let shown = proved("store");
    assert_eq!(shown["probes"][0]["version"], 2);
    assert!(took.elapsed().as_secs() < 60);
}

#[test]
fn a_wrong_answer_is_no_proof() {
    let upstream = Upstream::start();
    upstream.set_answer("I had rather not.");
    let daemon = daemon_for(&upstream, &[]);
    upload(&daemon, &upstream.login("acc-1", 864_000));
    let found = run(&daemon);
    assert!(!found.done && found.state == "fail", "{found:#?}");
    let reason = "Codex answered, but not with the word it was asked for";
    assert!(found.reason.starts_with(reason) && found.reason.contains("I had rather not."), "{found:#?}");
    assert_told(&daemon, "probe_failed", "Does not work", reason);
    let counted = daemon.cli(&["metrics"]);
    assert!(said(&counted).contains("codex_authd_probes_total{state=\"fail\"} 1"), "{}", said(&counted));
    // A failure never stops a host.
    assert_eq!(canonical(&daemon)["version"], 1);
}

#[test]
fn a_login_that_codex_refreshes_in_the_probe_becomes_canonical_and_its_old_token_is_never_used_again() {
    let upstream = Upstream::start();
    let daemon = daemon_for(&upstream, &[]);
    let login = upstream.login("acc-1", -60);
    upload(&daemon, &login);
    let found = run(&daemon);
    assert!(found.done && found.state == "ok" && found.adopted == Some(2), "{found:#?}");
    let history = daemon.cli_json(&["auth", "history"]);
    assert_eq!((&history["versions"][0]["source"], &history["versions"][0]["version"]), (&json!("runner"), &json!(2)));
    assert_told(&daemon, "login_adopted", "Works", "");
    let again = run(&daemon);
    assert!(again.done && again.adopted.is_none(), "{again:#?}");
    let refreshes = upstream.calls_to("POST", "/oauth/token");
    assert_eq!(refreshes.iter().map(|call| call.status).collect::<Vec<_>>(), [200], "one successful refresh");
    assert_eq!(refreshes[0].json()["refresh_token"], login["tokens"]["refresh_token"]);
    assert_secret(&daemon, &login);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let revealed: Value = runtime.block_on(async {
        let shown = daemon.admin().get(daemon.admin_url("/admin/auth?include_body=1")).send().await.unwrap();
        shown.json().await.unwrap()
    });
    let refreshed = &revealed["data"]["auth"];
    assert_ne!(refreshed["tokens"]["refresh_token"], login["tokens"]["refresh_token"]);
    assert_eq!(refreshed["auths"]["api.openai.com"]["token"], refreshed["tokens"]["access_token"]);
    assert_secret(&daemon, refreshed);
}

#[test]
fn a_refreshed_login_is_kept_though_the_probe_then_fails() {
    let upstream = Upstream::start();
    upstream.set_answer("no");
    let daemon = daemon_for(&upstream, &[]);
    upload(&daemon, &upstream.login("acc-1", -60));
    let found = run(&daemon);
    assert!(!found.done && found.state == "fail" && found.adopted == Some(2), "{found:#?}");
    assert_eq!(canonical(&daemon)["source"], "runner");
    assert_told(&daemon, "login_adopted", "Does not work", "not with the word");
    upstream.set_answer("banana!");
    assert_eq!(run(&daemon).state, "ok", "with the adopted login");
    assert_eq!(upstream.calls_to("POST", "/oauth/token").len(), 1);
}

#[test]
fn tokens_of_another_account_do_not_become_canonical() {
    let upstream = Upstream::start();
    let daemon = daemon_for(&upstream, &[]);
    upload(&daemon, &upstream.login("acc-1", -60));
    upstream.give_to("acc-2");
    let found = run(&daemon);
    assert!(!found.done && found.state == "fail" && found.adopted.is_none(), "{found:#?}");
    assert!(found.reason.contains("another account"), "{found:#?}");
    assert_eq!(canonical(&daemon)["version"], 1);
}

#[test]
fn a_revoked_login_is_found_not_to_work() {
    let upstream = Upstream::start();
    let daemon = daemon_for(&upstream, &[]);
    let login = upstream.login("acc-1", 864_000);
    upload(&daemon, &login);
    upstream.revoke();
    let found = run(&daemon);
    assert!(!found.done && found.state == "fail", "{found:#?}");
    assert!(found.reason.starts_with("Codex ended with exit code 1"), "{found:#?}");
    assert!(found.reason.contains("it said:") && found.reason.to_lowercase().contains("token"), "{found:#?}");
    assert_told(&daemon, "probe_failed", "Does not work", "Codex ended with exit code 1");
    assert_secret(&daemon, &login);
    // The failure is an alarm, and does not stop hosts.
    let alarms = daemon.cli_json(&["audit", "list", "--alarms"]);
    assert_eq!(alarms["entries"][0]["action"], "runner.probe", "{alarms:#}");
}

#[test]
fn an_upstream_that_hangs_is_given_up() {
    let upstream = Upstream::start();
    upstream.hang();
    let daemon = daemon_for(&upstream, &[("RUNNER__TIMEOUT_SECONDS", "5")]);
    upload(&daemon, &upstream.login("acc-1", 864_000));
    let found = run(&daemon);
    assert!(!found.done && found.state == "fail", "{found:#?}");
    assert!(found.reason.starts_with("Codex had not ended after 5 s"), "{found:#?}");
    assert_told(&daemon, "probe_failed", "Does not work", "Codex had not ended after 5 s");
}

#[test]
fn a_codex_that_crashes_is_told_of() {
    let found_by = |body: &str| {
        let upstream = Upstream::start();
        let home = tempfile::tempdir().unwrap();
        let program = program(home.path(), body);
        let daemon = daemon_for(&upstream, &[("RUNNER__CODEX", program.to_str().unwrap())]);
        upload(&daemon, &upstream.login("acc-1", 864_000));
        (run(&daemon), daemon)
    };
    let (found, daemon) = found_by("abort();");
    assert!(!found.done && found.state == "fail", "{found:#?}");
    assert_eq!(found.reason, "Codex was ended by signal 6", "{found:#?}");
    assert_told(&daemon, "probe_failed", "Does not work", "Codex was ended by signal 6");

    let flood = "static char line[4096]; memset(line, 'x', sizeof line); for (;;) if (write(2, line, sizeof line) < 0) return 9;";
    let (found, daemon) = found_by(flood);
    assert!(!found.done && found.reason.starts_with("Codex wrote more than 16 MiB, and was ended"), "{found:#?}");
    assert!(found.reason.len() < 4096 && !found.reason.contains("xxx"), "{found:#?}");
    assert_told(&daemon, "probe_failed", "Does not work", "Codex wrote more than 16 MiB");
}

#[test]
fn without_codex_it_says_what_is_missing() {
    let upstream = Upstream::start();
    let daemon = daemon_for(&upstream, &[("RUNNER__CODEX", "/nowhere/codex")]);
    upload(&daemon, &upstream.login("acc-1", 864_000));
    let found = run(&daemon);
    assert!(!found.done && found.state == "unavailable", "{found:#?}");
    let reason = "there is no Codex at /nowhere/codex; install it (npm install -g @openai/codex)";
    assert!(found.reason.starts_with(reason), "{found:#?}");
    assert_told(&daemon, "probe_unavailable", "Could not be tried", reason);
    assert_eq!(found.body["last_failure"], Value::Null, "a failure of the login is reported");
    let doctor = daemon.cli(&["runner", "doctor"]);
    let told = said(&doctor);
    assert!(!doctor.status.success() && told.contains("missing   codex: there is no Codex"), "{told}");
    assert!(told.contains("npm install -g @openai/codex"), "{told}");
    assert!(
        told.contains("good      sandbox: user, mount, pid, ipc, uts, cgroup and net namespaces"),
        "another part is missing: {told}"
    );
}

#[test]
fn of_two_daemons_on_one_database_one_probes_and_both_know() {
    let server = MariaDb::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = runtime.block_on(server.create("authd"));
    let upstream = Upstream::start();
    let node = |first: Option<&Daemon>| {
        let mut daemon = prepared_with(&upstream, real_codex(), &[("DATABASE__URL", &url)]);
        if let Some(first) = first {
            std::fs::create_dir_all(daemon.state_dir()).unwrap();
            std::fs::copy(first.state_dir().join("master.key"), daemon.state_dir().join("master.key")).unwrap();
        }
        daemon.launch();
        daemon
    };
    let one = node(None);
    let two = node(Some(&one));
    upload(&one, &upstream.login("acc-1", -60));
    upstream.hang();
    eventually("the other daemon has the login", || two.cli(&["auth", "show"]).status.success().then_some(()));
    let asked = |daemon: &Daemon| {
        let mut command = daemon.command(&["runner", "run", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let first = asked(&one);
    eventually("the first daemon has begun", || (!upstream.calls().is_empty()).then_some(()));
    let second = asked(&two);
    eventually("the other waits for it", || two.log().contains("event=probe_elsewhere shared=true").then_some(()));
    upstream.go_on();
    for waiting in [first, second] {
        let output = waiting.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    for daemon in [&one, &two] {
        let shown = daemon.cli_json(&["runner", "show"]);
        let probes = shown["probes"].as_array().unwrap();
        assert_eq!((probes.len(), &shown["state"], &probes[0]["adopted"]), (1, &json!("ok"), &json!(2)), "{shown:#}");
    }
    eventually("both serve what Codex refreshed", || {
        [&one, &two].iter().all(|daemon| canonical(daemon)["source"] == "runner").then_some(())
    });
    let refreshes = upstream.calls_to("POST", "/oauth/token");
    assert_eq!(refreshes.iter().map(|call| call.status).collect::<Vec<_>>(), [200], "one successful refresh");
}

/// A prepared daemon that does not run yet.
fn prepared_for(upstream: &Upstream, codex: &Path) -> Daemon {
    prepared_with(upstream, codex, &[])
}

fn prepared_with(upstream: &Upstream, codex: &Path, more: &[(&str, &str)]) -> Daemon {
    let (egress, lines, tokens) = (upstream.authority(), upstream.config_toml(), upstream.token_url());
    let mut settings = vec![
        ("RUNNER__ENABLED", "true"),
        ("RUNNER__CODEX", codex.to_str().unwrap()),
        ("RUNNER__EGRESS", egress.as_str()),
        ("RUNNER__CONFIG_TOML", lines.as_str()),
        ("UPSTREAM__TOKEN_URL", tokens.as_str()),
    ];
    settings.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    settings.extend(more);
    Daemon::prepare(&settings)
}

#[test]
fn where_user_namespaces_are_switched_off_it_says_so_and_what_mends_it() {
    let upstream = Upstream::start();
    let mut daemon = prepared_for(&upstream, real_codex());
    // In its own user namespace, where root may disable nested ones.
    let switched_off = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"";
    daemon.within = ["unshare", "--user", "--map-root-user", "sh", "-c", switched_off, "sh"].map(String::from).into();
    daemon.launch();
    upload(&daemon, &upstream.login("acc-1", 864_000));
    let found = run(&daemon);
    assert!(!found.done && found.state == "unavailable", "{found:#?}");
    let reason = "this machine gives a sandbox no namespaces";
    assert!(found.reason.starts_with(reason), "{found:#?}");
    assert!(found.reason.contains("sysctl -w user.max_user_namespaces="), "{found:#?}");
    assert_told(&daemon, "probe_unavailable", "Could not be tried", reason);
    let told = said(&daemon.cli(&["runner", "doctor"]));
    assert!(told.contains("missing   sandbox: no namespaces") && told.contains("user.max_user_namespaces="), "{told}");
}

#[test]
fn a_daemon_without_any_rights_proves_the_login_as_well() {
    if !nix::unistd::geteuid().is_root() {
        skipped("the tests do not run as root, so every other test covers this");
        return;
    }
    const USER: u32 = 4711;
    let upstream = Upstream::start();
    // A copy that every user can read: the real one is in a user's home.
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (program, codex) = (shared.path().join("codex-authd"), shared.path().join("codex"));
    std::fs::copy(BINARY, &program).unwrap();
    std::fs::copy(codex_itself(), &codex).unwrap();
    let mut daemon = prepared_for(&upstream, &codex);
    let owner = Some(USER);
    std::os::unix::fs::chown(daemon.state.path(), owner, owner).unwrap();
    let becomes = format!(
        "shift; exec setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all {} \"$@\"",
        program.display()
    );
    daemon.within = ["sh", "-c", &becomes, "sh"].map(String::from).into();
    daemon.launch();
    upload(&daemon, &upstream.login("acc-1", -60));
    let found = run(&daemon);
    assert!(found.done && found.state == "ok" && found.adopted == Some(2), "{found:#?}");
}

/// A daemon during a probe that gets no answer, and the processes of the probe.
fn in_a_probe(upstream: &Upstream) -> (Daemon, Vec<u32>) {
    upstream.hang();
    let daemon = daemon_for(upstream, &[]);
    upload(&daemon, &upstream.login("acc-1", 864_000));
    let admin = daemon.admin();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = runtime.block_on(async { admin.post(daemon.admin_url("/admin/runner/run")).send().await.unwrap() });
    assert_eq!(asked.status(), 200, "the probe runs in the background");
    let codex = eventually("Codex runs", || {
        let shown = daemon.cli_json(&["runner", "show"]);
        let runs = shown["running"]["version"] == 1 && !upstream.calls().is_empty();
        runs.then(|| descendants(daemon.pid()))
    });
    assert!(codex.len() >= 3, "the launcher, the first process and Codex: {codex:?}");
    (daemon, codex)
}

#[test]
fn a_daemon_that_is_killed_in_a_probe_leaves_nothing_and_says_so_afterwards() {
    let upstream = Upstream::start();
    let (mut daemon, codex) = in_a_probe(&upstream);
    daemon.kill();
    eventually("no process of it is left", || codex.iter().all(|pid| !is_alive(*pid)).then_some(()));
    daemon.launch();
    let shown = eventually("the probe is finished by the next start", || {
        let shown = daemon.cli_json(&["runner", "show"]);
        (shown["state"] == "unavailable").then_some(shown)
    });
    assert!(shown["reason"].as_str().unwrap().starts_with("the daemon ended before the probe did"), "{shown:#}");
}

#[test]
fn a_daemon_that_is_stopped_in_a_probe_ends_it_in_good_order() {
    let upstream = Upstream::start();
    let (mut daemon, processes) = in_a_probe(&upstream);
    assert!(daemon.stop().success());
    assert!(processes.iter().all(|pid| !is_alive(*pid)), "{processes:?}");
    daemon.launch();
    let shown = daemon.cli_json(&["runner", "show"]);
    assert_eq!(shown["state"], "unavailable", "{shown:#}");
    assert!(shown["reason"].as_str().unwrap().starts_with("the daemon was stopped"), "{shown:#}");
}

#[test]
fn a_probe_that_reaches_nobody_says_nothing_of_the_login() {
    let upstream = Upstream::start();
    let port_one = |text: String| text.replace(&upstream.authority(), "127.0.0.1:1");
    let (egress, lines, tokens) =
        (port_one(upstream.authority()), port_one(upstream.config_toml()), port_one(upstream.token_url()));
    assert!(lines.contains("127.0.0.1:1/"), "{lines}");
    let settings =
        [("RUNNER__EGRESS", egress.as_str()), ("RUNNER__CONFIG_TOML", &lines), ("UPSTREAM__TOKEN_URL", &tokens)];
    let daemon = daemon_for(&upstream, &settings);
    upload(&daemon, &upstream.login("acc-1", 864_000));
    let found = run(&daemon);
    assert!(!found.done && found.state == "unavailable", "{found:#?}");
    let reason = "Codex could not reach OpenAI; check the network of this machine and runner.egress";
    assert!(found.reason.starts_with(reason) && found.reason.contains("127.0.0.1:1 cannot be reached"), "{found:#?}");
    assert_told(&daemon, "probe_unavailable", "Could not be tried", reason);
}

#[test]
fn switched_off_nothing_is_tried() {
    let daemon = Daemon::start();
    let upstream = Upstream::start();
    upload(&daemon, &upstream.login("acc-1", 864_000));
    let refused = daemon.cli(&["runner", "run"]);
    assert!(!refused.status.success() && said(&refused).contains("Runner not configured"), "{}", said(&refused));
    assert_eq!(daemon.cli_json(&["runner", "show"])["enabled"], false);
    let [_, runner] = pages(&daemon);
    assert!(runner.contains("Probes are switched off"), "{runner}");
}

#[test]
fn a_command_proves_the_login_while_no_daemon_runs() {
    let upstream = Upstream::start();
    let mut daemon = daemon_for(&upstream, &[]);
    upload(&daemon, &upstream.login("acc-1", -60));
    daemon.stop();
    let found = run(&daemon);
    assert!(found.done && found.state == "ok" && found.adopted == Some(2), "{found:#?}");
    // A probe that was requested with an upload also runs to its end.
    let file = daemon.state.path().join("auth.json");
    std::fs::write(&file, upstream.login("acc-1", -60).to_string()).unwrap();
    daemon.cli_json(&["auth", "upload", "--probe", file.to_str().unwrap()]);
    let shown = daemon.cli_json(&["runner", "show"]);
    let probe = &shown["probes"][0];
    assert_eq!((&probe["trigger"], &probe["state"], &probe["adopted"]), (&json!("upload"), &json!("ok"), &json!(4)));
    daemon.launch();
    assert_eq!(canonical(&daemon)["source"], "runner");
    let proved = time::OffsetDateTime::parse(
        daemon.cli_json(&["runner", "show"])["last_ok"].as_str().unwrap(),
        &time::format_description::well_known::Rfc3339,
    );
    assert!(proved.unwrap() <= now());
}

/// A program without dependencies, with this body.
fn program(directory: &Path, body: &str) -> PathBuf {
    let (source, program) = (directory.join("codex.c"), directory.join("codex"));
    let text = format!(
        "#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\nint main(void) {{ {body} return 0; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    build(source, &program);
    program
}
