//! The decision which login stays: `cdx` offers every login to the daemon that it did not bring itself, obeys the
//! answer, and keeps a login that it replaces.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{in_step, litter, login};
use crate::support::answers::{refusal, sync};
use crate::support::host::{Host, Program, Ran};
use crate::support::standin::StandIn;
use crate::support::upstream::Upstream;

crate::for_both_programs!(
    a_login_that_was_here_before_cdx_is_offered_and_kept,
    a_login_that_cdx_brought_or_handed_over_gives_way_without_a_copy,
    a_login_renewed_under_a_wrong_clock_reaches_the_daemon,
    a_login_renewed_under_a_wrong_clock_reaches_the_daemon_when_it_is_back,
    the_same_login_under_another_date_becomes_the_canonical_text,
    a_login_of_another_account_gives_way_to_the_fleets,
    a_refused_store_is_no_promise_and_changes_nothing,
    a_refused_retrieve_goes_on_with_the_login_of_today,
    a_store_that_has_to_wait_overwrites_nothing,
    a_file_that_is_no_login_is_named_kept_and_replaced,
    a_login_with_other_line_ends_is_a_login,
    a_date_is_sent_as_the_daemon_reads_it,
    each_kind_of_login_goes_both_ways,
    nothing_is_replaced_that_cannot_be_kept,
    uninstall_names_the_login_that_was_kept,
    an_answer_to_an_offer_that_is_not_whole_changes_nothing,
);

fn kept_file(host: &Host) -> PathBuf {
    host.codex_home.join("auth.json.cdx-replaced")
}

fn kept(host: &Host) -> Option<String> {
    fs::read(kept_file(host)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes like codex when it renews a login: another document replaces the first.
fn write_with_codex(host: &Host, document: &Value) -> Ran {
    host.write_program("renewed.json", &document.to_string(), 0o600);
    host.run_codex(r#"cp "$HOME/renewed.json" "$HOME/.codex/auth.json""#, &[])
}

/// A daemon and a host that has its login, with tokens that contain account and time of issue.
fn in_step_with_tokens(program: Program) -> (Upstream, StandIn, Host, String) {
    let (upstream, daemon) = (Upstream::start(), StandIn::start());
    let canonical = daemon.set_canonical(&upstream.login("acc-1", 864_000));
    let host = Host::new(program, &daemon.server.url());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    daemon.server.forget_calls();
    (upstream, daemon, host, canonical)
}

fn dated(mut document: Value, days: i64) -> Value {
    let moment = crate::support::now() + time::Duration::days(days);
    document["last_refresh"] = moment.format(&time::format_description::well_known::Rfc3339).unwrap().into();
    document
}

fn a_login_that_was_here_before_cdx_is_offered_and_kept(program: Program) {
    for shell in program.shells() {
        let daemon = StandIn::start();
        let canonical = daemon.set_canonical(&login(10));
        let mut host = Host::new(program, &daemon.server.url());
        host.shell = shell;
        let own = login(5).to_string();
        host.set_auth(&own);
        let ran = host.run(&["--sync"]);
        assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{ran:?}");
        assert_eq!(daemon.commands(), ["retrieve", "store"], "the daemon decides");
        assert_eq!(kept(&host), Some(own), "{ran:?}");
        assert_eq!(fs::metadata(kept_file(&host)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(ran.err.contains("auth.json.cdx-replaced"), "{ran:?}");
    }
}

fn a_login_that_cdx_brought_or_handed_over_gives_way_without_a_copy(program: Program) {
    let (daemon, host, _) = in_step(program);
    let canonical = daemon.set_canonical(&login(20));
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!((host.auth(), daemon.commands()), (Some(canonical), vec!["retrieve".to_owned()]));
    host.set_auth(&login(30).to_string());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.canonical(), Some(login(30).to_string()));
    let canonical = daemon.set_canonical(&login(40));
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!((host.auth(), kept(&host)), (Some(canonical), None));
    assert_eq!(litter(&host), Vec::<PathBuf>::new());
}

fn a_login_renewed_under_a_wrong_clock_reaches_the_daemon(program: Program) {
    for days in [-1, 1, -400, 400] {
        let (upstream, daemon, host, _) = in_step_with_tokens(program);
        let renewed = dated(upstream.login("acc-1", 864_000), days);
        let ran = write_with_codex(&host, &renewed);
        assert_eq!(ran.code, Some(0), "{days}: {ran:?}");
        let canonical: Value = serde_json::from_str(&daemon.canonical().unwrap()).unwrap();
        assert_eq!(canonical["tokens"], renewed["tokens"], "{days}");
        assert_eq!(host.auth(), daemon.canonical(), "{days}: the host does not have the canonical text");
        assert_eq!(kept(&host), None, "{days}: a login was replaced: {ran:?}");
    }
}

fn a_login_renewed_under_a_wrong_clock_reaches_the_daemon_when_it_is_back(program: Program) {
    for days in [-1, 1] {
        let (upstream, daemon, host, _) = in_step_with_tokens(program);
        let renewed = dated(upstream.login("acc-1", 864_000), days);
        daemon.answer_stores(503, "");
        let ran = write_with_codex(&host, &renewed);
        assert!(ran.err.contains("the next cdx does it"), "{days}: {ran:?}");
        daemon.answer_well();
        daemon.server.forget_calls();
        assert_eq!(host.run(&["x"]).code, Some(0));
        assert_eq!(daemon.commands(), ["retrieve", "store"], "{days}");
        let canonical: Value = serde_json::from_str(&daemon.canonical().unwrap()).unwrap();
        assert_eq!((&canonical["tokens"], kept(&host)), (&renewed["tokens"], None), "{days}");
    }
}

fn the_same_login_under_another_date_becomes_the_canonical_text(program: Program) {
    for days in [-1, 1] {
        let (_upstream, daemon, host, canonical) = in_step_with_tokens(program);
        let login: Value = serde_json::from_str(&canonical).unwrap();
        host.set_auth(&dated(login, days).to_string());
        assert_eq!(host.run(&["x"]).code, Some(0));
        assert_eq!((host.auth(), kept(&host)), (Some(canonical), None), "{days}");
        daemon.server.forget_calls();
        assert_eq!(host.run(&["x"]).code, Some(0));
        assert_eq!(daemon.commands(), ["retrieve"], "{days}: cdx offers it again");
    }
}

fn a_login_of_another_account_gives_way_to_the_fleets(program: Program) {
    let (upstream, daemon, host, canonical) = in_step_with_tokens(program);
    let others = upstream.login("acc-2", 864_000);
    let ran = write_with_codex(&host, &others);
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("refused: other_account"), "{ran:?}");
    assert!(!ran.err.contains("the next cdx does it"), "{ran:?}");
    assert_eq!(host.auth(), Some(others.to_string()), "after codex it stays, and cdx reports it");

    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical.clone())), "{ran:?}");
    assert_eq!((kept(&host), daemon.canonical()), (Some(others.to_string()), Some(canonical)));
    daemon.server.forget_calls();
    assert_eq!(host.run(&["x"]).err, "");
    assert_eq!(daemon.commands(), ["retrieve"], "cdx offers it again");
}

fn a_refused_store_is_no_promise_and_changes_nothing(program: Program) {
    for status in [400, 404, 405, 408, 413, 415] {
        let (daemon, host, _) = in_step(program);
        daemon.answer_stores(status, refusal("Not like that"));
        let renewed = login(40);
        let ran = write_with_codex(&host, &renewed);
        assert_eq!((ran.code, host.auth()), (Some(0), Some(renewed.to_string())), "{status}: {ran:?}");
        assert!(ran.err.contains("refused: Not like that"), "{status}: {ran:?}");
        assert!(!ran.err.contains("the next cdx does it"), "{status}: {ran:?}");
        let ran = host.run(&["--sync"]);
        assert_eq!((ran.code, host.auth()), (Some(65), Some(renewed.to_string())), "{status}: {ran:?}");
        assert_eq!(host.run(&["x"]).code, Some(0), "codex does not run on the present login");
        assert_eq!(kept(&host), None);
    }
}

fn a_refused_retrieve_goes_on_with_the_login_of_today(program: Program) {
    let (daemon, host, canonical) = in_step(program);
    for status in [400, 404, 451] {
        daemon.answer_always(status, refusal("Not like that"));
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical.clone())), "{status}: {ran:?}");
        assert!(ran.err.contains("refused: Not like that"), "{status}: {ran:?}");
        assert_eq!(host.run(&["--update"]).code, Some(69), "{status}");
    }
}

fn a_store_that_has_to_wait_overwrites_nothing(program: Program) {
    let (daemon, host, _) = in_step(program);
    let own = login(5).to_string();
    for status in [429, 500, 503] {
        host.set_auth(&own);
        daemon.answer_stores(status, "");
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.auth()), (Some(0), Some(own.clone())), "{status}: {ran:?}");
        assert!(ran.err.contains("the next cdx does it"), "{status}: {ran:?}");
    }
}

fn a_file_that_is_no_login_is_named_kept_and_replaced(program: Program) {
    let whole = login(50).to_string();
    let faults: Vec<(Vec<u8>, &str)> = vec![
        ([b"\xef\xbb\xbf", whole.as_bytes()].concat(), "byte order mark"),
        (whole.replace("access-", "acc\0ess-").into_bytes(), "NUL byte"),
        ([whole.as_bytes(), b"\0"].concat(), "NUL byte"),
        (whole[..whole.len() - 3].into(), "not a complete JSON"),
        (b"not json".to_vec(), "not a complete JSON"),
        (b"{\"last_refresh\": \"2031-01-01T00:00:00Z\"}".to_vec(), "no login"),
        (vec![b' '; 2 << 20], "longer than 1 MiB"),
        (Vec::new(), "is empty"),
    ];
    for shell in program.shells() {
        let (daemon, mut host, canonical) = in_step(program);
        host.shell = shell;
        for (bytes, said) in &faults {
            fs::write(host.auth_file(), bytes).unwrap();
            let _ = fs::remove_file(kept_file(&host));
            daemon.server.forget_calls();
            let ran = host.run(&["x"]);
            assert_eq!((ran.code, host.auth().as_ref()), (Some(0), Some(&canonical)), "{said}: {ran:?}");
            assert!(ran.err.contains(said), "{said}: {ran:?}");
            assert_eq!(fs::read(kept_file(&host)).unwrap_or_default(), *bytes, "{said}");
            assert_eq!(daemon.commands(), ["retrieve"], "{said}: cdx stores it");
        }
    }
}

fn a_login_with_other_line_ends_is_a_login(program: Program) {
    for shell in program.shells() {
        for (before, after) in [("", "\r\n"), ("\r\n", "\r\n\r\n"), (" \t", "\n"), ("", " ")] {
            let (daemon, mut host, _) = in_step(program);
            host.shell = shell.clone();
            let pretty = serde_json::to_string_pretty(&login(50)).unwrap().replace('\n', "\r\n");
            host.set_auth(&format!("{before}{pretty}{after}"));
            let ran = host.run(&["--sync"]);
            assert_eq!(ran.code, Some(0), "{before:?} {after:?} {ran:?}");
            assert_eq!(daemon.canonical(), Some(login(50).to_string()), "{before:?} {after:?}");
            assert_eq!(host.auth(), daemon.canonical());
        }
    }
}

fn a_date_is_sent_as_the_daemon_reads_it(program: Program) {
    for shell in program.shells() {
        let (daemon, mut host, _) = in_step(program);
        host.shell = shell;
        for (written, sent) in [
            ("2025-11-20T09:27:43.123456789Z", "2025-11-20T09:27:43.123456789Z"),
            ("2025-11-20t09:27:43z", "2025-11-20T09:27:43Z"),
            ("2025-11-20 09:27:43Z", "2025-11-20T09:27:43Z"),
            ("2025-11-20T09:27:43.123456789012345Z", "2025-11-20T09:27:43.123456789Z"),
            ("2025-11-20T09:27:43.5+02:00", "2025-11-20T09:27:43.5+02:00"),
            ("yesterday", "2000-01-01T00:00:00Z"),
            ("", "2000-01-01T00:00:00Z"),
        ] {
            let mut document = login(1);
            document["last_refresh"] = written.into();
            host.set_auth(&document.to_string());
            daemon.server.forget_calls();
            assert_eq!(host.run(&["--sync"]).code, Some(0));
            assert_eq!(daemon.server.calls()[0].json()["last_refresh"], sent, "{written}");
        }
    }
}

fn each_kind_of_login_goes_both_ways(program: Program) {
    for document in [
        json!({"auth_mode": "apikey", "OPENAI_API_KEY": "key-1"}),
        json!({"auth_mode": "chatgpt", "personal_access_token": "at-1"}),
        json!({"bedrock_api_key": "b-1"}),
        json!({"agent_identity": {"agent_id": "a"}}),
        json!({"auths": {"api.openai.com": {"token": "t"}}, "last_refresh": "2025-11-20T09:27:43Z"}),
    ] {
        let daemon = StandIn::start();
        let first = Host::new(program, &daemon.server.url());
        first.set_auth(&document.to_string());
        assert_eq!(first.run(&["--sync"]).code, Some(0), "{document}");
        assert_eq!(daemon.canonical(), Some(document.to_string()));
        let second = Host::new(program, &daemon.server.url());
        assert_eq!(second.run(&["x"]).code, Some(0), "{document}");
        assert_eq!(second.auth(), Some(document.to_string()));
    }
}

fn nothing_is_replaced_that_cannot_be_kept(program: Program) {
    let (daemon, host, _) = in_step(program);
    let own = login(5).to_string();
    host.set_auth(&own);
    fs::create_dir(kept_file(&host)).unwrap();
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.auth(), host.codex_was_started()), (Some(74), Some(own), false), "{ran:?}");
    assert!(ran.err.contains("auth.json.cdx-replaced"), "{ran:?}");
    drop(daemon);
}

fn uninstall_names_the_login_that_was_kept(program: Program) {
    let (_daemon, host, _) = in_step(program);
    host.set_auth(&login(5).to_string());
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    let ran = host.run(&["--uninstall"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("left") && ran.err.contains("auth.json.cdx-replaced"), "{ran:?}");
    assert_eq!(kept(&host), Some(login(5).to_string()));
}

fn an_answer_to_an_offer_that_is_not_whole_changes_nothing(program: Program) {
    let (daemon, host, _) = in_step(program);
    let own = login(5).to_string();
    host.set_auth(&own);
    let answer = sync("outdated", Some(&login(50).to_string())).bytes(program.format());
    daemon.answer_stores(200, &answer[..answer.len() - 3]);
    let ran = host.run(&["x"]);
    assert_eq!((host.auth(), kept(&host)), (Some(own), None), "{ran:?}");
}
