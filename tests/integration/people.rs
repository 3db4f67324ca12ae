//! Users and their sessions: on several daemons, through a crash, without the database, and by command.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::database::{on_database, start};
use crate::support::daemon::Daemon;
use crate::support::load::until;
use crate::support::mariadb::MariaDb;
use crate::support::people::{PASSWORD, add_user, control, me, sign_in, tell};

/// The time until a change is in force on every daemon (docs/SECURITY.md).
const IN_FORCE: Duration = Duration::from_secs(1);

async fn is_good(daemon: &Daemon, client: &Client, token: &str) -> bool {
    let answer = client.get(daemon.hosts_url("/auth/me")).bearer_auth(token).send().await.unwrap();
    match answer.status() {
        StatusCode::OK => true,
        StatusCode::UNAUTHORIZED => {
            let body: Value = answer.json().await.unwrap();
            assert_eq!(body["code"], "session_invalid", "{body}");
            false
        }
        status => panic!("{status}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_disabled_on_one_daemon_is_refused_by_the_others_within_a_second() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let one = start(&url, None);
    let two = start(&url, Some(&one));
    let (on_one, on_two) = (one.client(), two.client());
    let id = add_user(&one, "ada@example.test", "member").await;
    let change = async |what: &str, body: Value| tell(&one, &format!("/auth/users/{id}/{what}"), &body).await;
    for round in 0..3 {
        let token = sign_in(&one, "ada@example.test").await;
        until("the other daemon knows the session", async || is_good(&two, &on_two, &token).await).await;
        match round {
            0 => drop(change("disable", json!({})).await),
            1 => drop(change("password", json!({ "password": PASSWORD })).await),
            _ => {
                let ended = on_one.delete(one.hosts_url("/auth/session")).bearer_auth(&token).send().await.unwrap();
                assert_eq!(ended.status(), 200);
            }
        }
        let begun = Instant::now();
        assert!(!is_good(&one, &on_one, &token).await, "the session is still valid on this daemon");
        until("the other daemon refuses it", async || !is_good(&two, &on_two, &token).await).await;
        let took = begun.elapsed();
        println!("round {round}: refused by the other daemon after {took:?}");
        assert!(took < IN_FORCE, "{took:?}");
        change("enable", json!({})).await;
        assert!(!is_good(&one, &on_one, &token).await);
    }
    // A sign-in on the other daemon reads the disabling in its transaction, even before it catches up.
    change("disable", json!({})).await;
    let body = json!({ "email": "ada@example.test", "password": PASSWORD });
    let refused = on_two.post(two.hosts_url("/auth/session")).json(&body).send().await.unwrap();
    assert_eq!(refused.status(), 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_a_user_who_is_disabled_are_refused_by_every_daemon_within_a_second() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let one = start(&url, None);
    let two = start(&url, Some(&one));
    let (on_one, on_two) = (one.client(), two.client());
    let id = add_user(&one, "ada@example.test", "member").await;
    let token = sign_in(&one, "ada@example.test").await;
    let own = on_one.post(one.hosts_url("/auth/me/hosts")).bearer_auth(&token).json(&json!({ "fqdn": "own.test" }));
    let own: Value = own.send().await.unwrap().json().await.unwrap();
    let key = own["data"]["host"]["api_key"].as_str().unwrap().to_owned();
    let code = async |daemon: &Daemon, client: &Client| {
        let call = client.get(daemon.hosts_url("/wrapper")).header("X-API-Key", &key);
        let body: Value = call.send().await.unwrap().json().await.unwrap();
        body["code"].as_str().unwrap_or_default().to_owned()
    };
    until("the other daemon serves the host", async || code(&two, &on_two).await.is_empty()).await;
    for (query, refused, changed) in [("?keep_hosts=true", "", 0), ("", "host_disabled", 1)] {
        let told = tell(&one, &format!("/auth/users/{id}/disable{query}"), &json!({})).await;
        assert_eq!(told["hosts_changed"], changed);
        let begun = Instant::now();
        assert_eq!(code(&one, &on_one).await, refused, "the user is still accepted on this daemon");
        until("the other daemon does the same", async || code(&two, &on_two).await == refused).await;
        assert!(begun.elapsed() < IN_FORCE, "{:?}", begun.elapsed());
    }
    let list = one.cli_json(&["hosts", "list"]);
    assert_eq!(
        (&list["hosts"][0]["status"], &list["hosts"][0]["disabled_with_user"]),
        (&json!("disabled"), &json!(true))
    );
    one.cli_json(&["users", "enable", "ada@example.test"]);
    assert_eq!(code(&one, &on_one).await, "");
    until("the other daemon serves it again", async || code(&two, &on_two).await.is_empty()).await;
    one.cli_json(&["users", "disable", "ada@example.test", "--keep-hosts"]);
    assert_eq!(code(&one, &on_one).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_session_keeps_it_while_the_database_is_away_and_nobody_gets_one() {
    let mut server = MariaDb::start();
    let mut daemon = on_database(&server.create("authd").await, &[]);
    daemon.launch();
    let client = daemon.client();
    add_user(&daemon, "ada@example.test", "member").await;
    let token = sign_in(&daemon, "ada@example.test").await;
    server.end();
    assert!(is_good(&daemon, &client, &token).await);
    let body = json!({ "email": "ada@example.test", "password": PASSWORD });
    let sign_in_again = || client.post(daemon.hosts_url("/auth/session")).json(&body).send();
    let refused = sign_in_again().await.unwrap();
    assert_eq!(refused.status(), 503, "{}", refused.text().await.unwrap());
    let out = client.delete(daemon.hosts_url("/auth/session")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(out.status(), 503, "a sign-out that cannot be written was acknowledged");
    assert!(is_good(&daemon, &client, &token).await);
    server.run();
    until("it signs people in again", async || sign_in_again().await.unwrap().status() == 200).await;
    assert!(is_good(&daemon, &client, &token).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_outlive_a_crash_and_ended_ones_stay_ended() {
    let mut daemon = Daemon::start();
    add_user(&daemon, "ada@example.test", "viewer").await;
    let (kept, ended) = (sign_in(&daemon, "ada@example.test").await, sign_in(&daemon, "ada@example.test").await);
    let client = daemon.client();
    let out = client.delete(daemon.hosts_url("/auth/session")).bearer_auth(&ended).send().await.unwrap();
    assert_eq!(out.status(), 200);
    daemon.kill();
    daemon.launch();
    let client = daemon.client();
    assert!(is_good(&daemon, &client, &kept).await);
    assert!(!is_good(&daemon, &client, &ended).await);
    assert_eq!(me(&daemon, &kept).await["user"]["role"], "viewer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_listed_and_ended_one_by_one() {
    let daemon = Daemon::start();
    add_user(&daemon, "ada@example.test", "member").await;
    add_user(&daemon, "bob@example.test", "member").await;
    let (ada, other, bob) = (
        sign_in(&daemon, "ada@example.test").await,
        sign_in(&daemon, "ada@example.test").await,
        sign_in(&daemon, "bob@example.test").await,
    );
    let client = daemon.client();
    let get = |token: &str| client.get(daemon.hosts_url("/auth/me/sessions")).bearer_auth(token).send();
    let list: Value = get(&ada).await.unwrap().json().await.unwrap();
    let sessions = list["data"]["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2, "{list}");
    assert!(sessions.iter().all(|session| session["user"] == "ada@example.test" && session["in_force"] == true));
    let text = list.to_string();
    assert!(!text.contains("cxa_") && !text.contains(&ada) && !text.contains("argon2"), "{text}");
    let id = me(&daemon, &other).await["session"]["id"].as_str().unwrap().to_owned();
    let end = |token: &str, id: &str| {
        client.delete(daemon.hosts_url(&format!("/auth/me/sessions/{id}"))).bearer_auth(token).send()
    };
    assert_eq!(end(&bob, &id).await.unwrap().status(), 404, "another user's session was ended");
    assert!(is_good(&daemon, &client, &other).await);
    assert_eq!(end(&ada, &id).await.unwrap().status(), 200);
    assert!(!is_good(&daemon, &client, &other).await);
    assert!(is_good(&daemon, &client, &ada).await);
    assert_eq!(end(&ada, "no-id").await.unwrap().status(), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_tied_to_a_user_may_what_that_user_may() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let id = add_user(&daemon, "vic@example.test", "viewer").await;
    let directory = daemon.admin_certificate("vic");
    let identity = crate::support::daemon::identity(&directory, "vic");
    let vic = daemon.client_builder().identity(identity).build().unwrap();
    let list = daemon.cli_json(&["certificates", "list"]);
    let found = list["certificates"].as_array().unwrap().iter().find(|it| it["name"] == "vic").unwrap();
    let fingerprint = found["fingerprint"].as_str().unwrap();
    let register = |client: &Client, name: &str| {
        client.post(daemon.admin_url("/admin/hosts/register")).json(&json!({ "fqdn": name })).send()
    };
    let look = |client: &Client| client.get(daemon.admin_url("/admin/hosts")).send();
    assert_eq!(register(&vic, "a.test").await.unwrap().status(), 200);

    daemon.cli_json(&["certificates", "tie", fingerprint, "vic@example.test"]);
    let refused = register(&vic, "b.test").await.unwrap();
    assert_eq!(refused.status(), 403);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["code"], "role_insufficient");
    assert_eq!(look(&vic).await.unwrap().status(), 200);
    assert_eq!(register(&admin, "b.test").await.unwrap().status(), 200, "another user lost the role");
    let page = vic.get(daemon.admin_url("/hosts/new")).send().await.unwrap().text().await.unwrap();
    let token = page.split("name=\"token\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let form = format!("token={token}&name=c.test");
    let sent = vic.post(daemon.admin_url("/hosts/new")).header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(sent.body(form).send().await.unwrap().status(), 403, "the dashboard accepted it");

    tell(&daemon, &format!("/auth/users/{id}/role"), &json!({ "role": "admin" })).await;
    assert_eq!(register(&vic, "c.test").await.unwrap().status(), 200);
    tell(&daemon, &format!("/auth/users/{id}/disable"), &json!({})).await;
    assert_eq!(look(&vic).await.unwrap().status(), 403);
    daemon.cli_json(&["certificates", "tie", fingerprint]);
    assert_eq!(look(&vic).await.unwrap().status(), 200);
}

fn with_stdin(daemon: &Daemon, arguments: &[&str], text: &str) -> std::process::Output {
    let mut command = daemon.command(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_made_and_changed_by_command_with_and_without_a_daemon() {
    let mut daemon = Daemon::prepare(&[]);
    let said = |output: &std::process::Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    // Before a daemon exists.
    let made = with_stdin(&daemon, &["create-admin", "ada@example.test", "--password-stdin"], &format!("{PASSWORD}\n"));
    assert!(made.status.success(), "{}", said(&made));
    assert!(said(&made).contains("ada@example.test is a user now: admin."), "{}", said(&made));
    let made = with_stdin(&daemon, &["create-admin", "bob@example.test"], PASSWORD);
    assert!(made.status.success(), "without a terminal it is read from standard input: {}", said(&made));
    let made = daemon.cli(&["create-admin", "carl@example.test", PASSWORD]);
    assert!(made.status.success(), "{}", said(&made));
    daemon.launch();
    for email in ["ada@example.test", "bob@example.test", "carl@example.test"] {
        assert_eq!(me(&daemon, &sign_in(&daemon, email).await).await["user"]["role"], "admin");
    }

    for (arguments, text, wanted) in [
        (
            &["create-admin", "ada@example.test", "--password-stdin"][..],
            PASSWORD,
            "there is a user ada@example.test already",
        ),
        (&["create-admin", "eve@example.test", "--password-stdin"], "password1", "too easily guessed"),
        (&["create-admin", "eve@example.test", "--password-stdin"], "", "there is no password"),
        (&["create-admin", "eve", "--password-stdin"], PASSWORD, "not an e-mail address"),
        (&["users", "role", "nobody@example.test", "admin"], "", "there is no user nobody@example.test"),
    ] {
        let refused = with_stdin(&daemon, arguments, text);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}: {}", said(&refused));
        assert!(said(&refused).contains(wanted), "{arguments:?}: {}", said(&refused));
    }
    let king = daemon.cli(&["users", "role", "ada@example.test", "king"]);
    assert_eq!(king.status.code(), Some(2), "{}", said(&king));
    let both = daemon.cli(&["create-admin", "eve@example.test", PASSWORD, "--password-stdin"]);
    assert_eq!(both.status.code(), Some(2), "{}", said(&both));

    let token = sign_in(&daemon, "bob@example.test").await;
    daemon.cli_json(&["users", "add", "dora@example.test", "--role", "viewer"]);
    daemon.cli_json(&["users", "role", "bob@example.test", "viewer"]);
    assert_eq!(me(&daemon, &token).await["user"]["role"], "viewer");
    daemon.cli_json(&["users", "max-hosts", "bob@example.test", "3"]);
    let issuer = "https://id.example.test";
    daemon.cli_json(&["link-identity", "--issuer", issuer, "--subject", "7", "--user", "dora@example.test"]);
    let identities = daemon.cli_json(&["identities", "list"]);
    assert_eq!(identities["identities"][0]["user"], "dora@example.test", "{identities}");
    daemon.cli_json(&["identities", "unlink", "--issuer", issuer, "--subject", "7"]);
    let sessions = daemon.cli_json(&["sessions", "list", "--user", "bob@example.test"]);
    let in_force = sessions["sessions"].as_array().unwrap().iter().filter(|session| session["in_force"] == true);
    for session in in_force {
        daemon.cli_json(&["sessions", "end", session["id"].as_str().unwrap()]);
    }
    assert!(!is_good(&daemon, &daemon.client(), &token).await);
    let changed = with_stdin(
        &daemon,
        &["users", "password", "bob@example.test", "--password-stdin"],
        "brisk-otter-77-canal-fig\n",
    );
    assert!(changed.status.success(), "{}", said(&changed));
    daemon.cli_json(&["users", "disable", "carl@example.test"]);

    assert!(daemon.stop().success());
    let users = daemon.cli_json(&["users", "list"]);
    let told: Vec<String> = users["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| {
            format!(
                "{} {} {} {} {}",
                user["email"], user["role"], user["disabled"], user["has_password"], user["max_hosts"]
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "\"ada@example.test\" \"admin\" false true null",
            "\"bob@example.test\" \"viewer\" false true 3",
            "\"carl@example.test\" \"admin\" true true null",
            "\"dora@example.test\" \"viewer\" false false null",
        ]
    );
    let table = said(&daemon.cli(&["users", "list"]));
    assert!(table.lines().nth(1).is_some_and(|line| line.starts_with("ada@example.test")), "{table}");
    assert!(!users.to_string().contains("argon2") && !daemon.log().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_not_guessed_through_many_at_once() {
    let daemon = Daemon::start_with(&[("LIMITS__AUTH_FAIL_COUNT", "20")]);
    add_user(&daemon, "ada@example.test", "admin").await;
    let client = daemon.client();
    let guess = |n: u32| {
        let body = json!({ "email": "ada@example.test", "password": format!("wrong-{n}") });
        client.post(daemon.hosts_url("/auth/session")).json(&body).send()
    };
    let mut by_status = std::collections::BTreeMap::<u16, u32>::new();
    // Of many simultaneous attempts, a few have a place in the queue; the others are `busy`.
    for _ in 0..10 {
        for answer in futures_util::future::join_all((0..200).map(guess)).await {
            *by_status.entry(answer.unwrap().status().as_u16()).or_default() += 1;
        }
        if by_status.contains_key(&429) {
            break;
        }
    }
    println!("guesses, 200 at once: {by_status:?}");
    assert!(by_status.keys().all(|status| [401, 429, 503].contains(status)), "{by_status:?}");
    // `auth_fail_count`, and one that was checked at the same time as the last of them.
    assert!((20..=21).contains(&by_status[&401]), "{by_status:?}");
    let body = json!({ "email": "ada@example.test", "password": PASSWORD });
    let blocked = client.post(daemon.hosts_url("/auth/session")).json(&body).send().await.unwrap();
    assert_eq!(blocked.status(), 429);
    assert!(blocked.headers().contains_key("retry-after"));
    let elsewhere = daemon.client_from([127, 0, 0, 2].into());
    let let_in = elsewhere.post(daemon.hosts_url("/auth/session")).json(&body).send().await.unwrap();
    assert_eq!(let_in.status(), 200, "guesses block another user");
    assert!(control(&daemon).get("http://control/healthz").send().await.unwrap().status().is_success());
}

/// Each check takes 19 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sign_ins_took_of_memory_is_given_back() {
    let daemon = Daemon::start();
    add_user(&daemon, "ada@example.test", "member").await;
    let resident = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    sign_in(&daemon, "ada@example.test").await;
    let before = resident();
    for _ in 0..8 {
        futures_util::future::join_all((0..4).map(|_| sign_in(&daemon, "ada@example.test"))).await;
    }
    let more = resident().saturating_sub(before) / 1024;
    println!("{more} MiB more after 32 sign-ins");
    assert!(more < 60, "{more} MiB more than the {} MiB before", before / 1024);
}
