//! The daemon is away, or refuses this host; and who could see the key while it is asked.

use std::fs;
use std::sync::{Arc, Mutex};

use super::{in_step, login};
use crate::support::answers::{Answer, refusal};
use crate::support::host::Program;
use crate::support::standin::KEY;

crate::for_both_programs!(
    without_the_daemon_a_login_is_good_for_a_day,
    a_clock_that_steps_back_does_not_make_a_login_last,
    without_the_daemon_only_a_login_that_was_in_step_counts,
    a_refused_key_stops_and_says_so,
    a_key_is_in_no_argument_list_and_no_environment,
);

fn without_the_daemon_a_login_is_good_for_a_day(program: Program) {
    let (daemon, host, _) = in_step(program);
    let degraded = Answer::Refusal { message: "degraded".into(), retry_after: Some(5) };
    for (status, body) in [(500, "".into()), (502, "<html>".into()), (503, degraded), (429, "".into())] {
        daemon.answer_always(status, body);
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, ran.err.lines().count()), (Some(0), 1), "{status}: {ran:?}");
    }
    drop(daemon);
    assert_eq!(host.run(&["x"]).code, Some(0), "no server listens");

    host.shift_last_sync(-23 * 3600);
    let ran = host.run(&["x"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("23 h"), "{ran:?}");

    host.shift_last_sync(-3700);
    fs::remove_file(host.file("codex.arguments")).unwrap();
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.codex_was_started()), (Some(69), false), "{ran:?}");
    assert!(ran.err.contains("more than a day old"), "{ran:?}");
}

fn a_clock_that_steps_back_does_not_make_a_login_last(program: Program) {
    let (daemon, host, _) = in_step(program);
    drop(daemon);
    host.shift_last_sync(200);
    assert_eq!(host.run(&["x"]).code, Some(0), "a small change of the clock is ignored");
    host.shift_last_sync(3600);
    assert_eq!(host.run(&["x"]).code, Some(69));
}

fn without_the_daemon_only_a_login_that_was_in_step_counts(program: Program) {
    let (daemon, host, _) = in_step(program);
    drop(daemon);
    let text = fs::read_to_string(host.state_file()).unwrap();
    for spoiled in ["", "x", "08", "99999999999999999999 a b", &text.replace("127.0.0.1", "127.0.0.2")] {
        fs::write(host.state_file(), spoiled).unwrap();
        assert_eq!(host.run(&["x"]).code, Some(69), "{spoiled:?}");
    }
    fs::write(host.state_file(), text).unwrap();
    assert_eq!(host.run(&["x"]).code, Some(0));
    fs::remove_file(host.auth_file()).unwrap();
    assert_eq!(host.run(&["x"]).code, Some(69), "there is no login at all");
    assert_eq!(host.run(&["--sync"]).code, Some(69));
}

fn a_refused_key_stops_and_says_so(program: Program) {
    let (daemon, host, canonical) = in_step(program);
    for status in [401, 403] {
        daemon.answer_always(status, refusal("Not \u{1b}[31mthis host"));
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.codex_was_started()), (Some(77), false), "{ran:?}");
        assert!(ran.err.contains("refuses this host (Not  [31mthis host)"), "no control characters: {ran:?}");
        assert_eq!(host.auth().as_ref(), Some(&canonical));
    }
}

fn a_key_is_in_no_argument_list_and_no_environment(program: Program) {
    let (daemon, mut host, _) = in_step(program);
    // Variables of these names are exported already; cdx's values must not be exported.
    for name in ["DOCUMENT", "A_AUTH", "PIPED", "body", "answer"] {
        host.env(name, "x");
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    daemon.on_call(move || {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            for name in ["cmdline", "environ"] {
                if let Ok(text) = fs::read(process.path().join(name)) {
                    log.lock().unwrap().push(String::from_utf8_lossy(&text).into_owned());
                }
            }
        }
    });
    host.set_auth(&login(20).to_string());
    let ran = host.run_codex("env", &[]);
    assert_eq!(daemon.commands(), ["retrieve", "store"]);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let caller = if program.is_native() { "cdx" } else { "curl" };
    assert!(seen.iter().any(|line| line.contains(caller)), "the call was watched while {caller} ran");
    assert!(!seen.iter().any(|line| line.contains(KEY) || line.contains("access-20")));
    assert!(!format!("{ran:?}").contains(KEY));
    // A shell that traces or exports everything does not reveal it either.
    let traced = host.cdx(&["x"]).env("SHELLOPTS", "xtrace:verbose:allexport").output().unwrap();
    assert!(!String::from_utf8_lossy(&traced.stderr).contains(KEY));
    assert!(!fs::read_to_string(host.file("codex.environment")).unwrap().contains(KEY));
}
