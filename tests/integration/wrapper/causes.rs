//! If a call fails because of this machine, `cdx` names the cause and does not blame the daemon: a proxy of the
//! environment, a CA file that cannot be used.

use std::fs;

use super::{in_step, login};
use crate::support::authority::authority;
use crate::support::host::{Host, Program, Ran};
use crate::support::http::{HttpServer, Reply};
use crate::support::standin::StandIn;

crate::for_both_programs!(
    a_proxy_of_the_environment_is_named_and_its_password_is_not,
    a_proxy_that_answers_in_the_daemons_place_is_named,
    a_ca_file_that_cannot_be_used_is_named_with_what_to_do,
);

/// No server listens there.
const PROXY: &str = "http://ada:canary@127.0.0.1:1";

fn doctors_failure(ran: &Ran) -> &str {
    ran.out.lines().find(|line| line.starts_with("fail ")).unwrap_or_default()
}

fn a_proxy_of_the_environment_is_named_and_its_password_is_not(program: Program) {
    let (ca, certificate, key) = authority("127.0.0.1");
    for (tls, variables) in
        [(false, &["http_proxy", "ALL_PROXY"][..]), (true, &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])]
    {
        for variable in variables {
            let daemon = if tls { StandIn::start_tls(&certificate, &key) } else { StandIn::start() };
            daemon.set_canonical(&login(10));
            let mut host = Host::with_ca(program, &daemon.server.url(), if tls { &ca } else { "" });
            assert_eq!(host.run(&["--sync"]).code, Some(0));
            host.env(variable, PROXY);
            let ran = host.run(&["x"]);
            assert_eq!(ran.code, Some(0), "the recent login is used: {variable}: {ran:?}");
            let wanted =
                format!("by way of the proxy that {variable} names, 127.0.0.1:1: if no proxy leads to the daemon");
            assert!(ran.err.contains(&wanted) && ran.err.contains("into no_proxy"), "{variable}: {ran:?}");
            let doctor = host.run(&["--doctor"]);
            assert!(doctors_failure(&doctor).contains(&wanted), "{variable}: {doctor:?}");
            for ran in [&ran, &doctor] {
                assert!(!format!("{ran:?}").contains("canary"), "{variable}: {ran:?}");
            }
            host.env("no_proxy", "other.test,127.0.0.1");
            let ran = host.run(&["x"]);
            assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{variable}: it has no effect");
            // The daemon fails by itself: cdx does not mention a proxy that is not used.
            daemon.answer_always(503, "");
            let ran = host.run(&["x"]);
            assert!(ran.err.contains("HTTP 503") && !ran.err.contains("proxy"), "{variable}: {ran:?}");
        }
    }
}

fn a_proxy_that_answers_in_the_daemons_place_is_named(program: Program) {
    let (_daemon, mut host, _) = in_step(program);
    let proxy = HttpServer::plain(|_| Reply::new(403, "text/html", "<h1>Blocked by policy</h1>"));
    host.env("http_proxy", &proxy.url());
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.codex_was_started()), (Some(77), false), "{ran:?}");
    assert!(
        ran.err.contains("HTTP 403 (by way of the proxy that http_proxy names") && ran.err.contains("unset http_proxy"),
        "{ran:?}"
    );
}

fn a_ca_file_that_cannot_be_used_is_named_with_what_to_do(program: Program) {
    let (ca, certificate, key) = authority("127.0.0.1");
    let daemon = StandIn::start_tls(&certificate, &key);
    let canonical = daemon.set_canonical(&login(10));
    for (variable, content, said) in [
        ("CURL_CA_BUNDLE", None, "is not there"),
        ("CURL_CA_BUNDLE", Some("garbage\n"), "contains no certificate (PEM)"),
        ("CURL_CA_BUNDLE", Some(&*authority("127.0.0.1").0), "does not vouch for it"),
        ("SSL_CERT_FILE", Some("garbage\n"), "contains no certificate (PEM)"),
        ("SSL_CERT_FILE", Some(&*authority("127.0.0.1").0), "does not vouch for it"),
        ("SSL_CERT_DIR", Some("garbage\n"), "is no directory"),
    ] {
        // A cdx without its own CA uses the system's store, or the file that these variables name.
        let mut host = Host::new(program, &daemon.server.url());
        let file = host.file("named by the environment.pem");
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        host.env(variable, file.to_str().unwrap());
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.codex_was_started()), (Some(76), false), "{variable}: {ran:?}");
        let wanted = format!(
            "the daemon's certificate cannot be trusted: {variable} names {}, which {said}; unset {variable}, or add the CA",
            file.display()
        );
        assert!(ran.err.contains(&wanted) && !ran.err.contains("install anew"), "{variable} {said}: {ran:?}");
        let doctor = host.run(&["--doctor"]);
        let failure = doctors_failure(&doctor);
        assert!(failure.contains(file.to_str().unwrap()) && failure.contains("unset"), "{variable} {said}: {doctor:?}");
    }
    // The right file.
    let mut host = Host::new(program, &daemon.server.url());
    fs::write(host.file("right.pem"), &ca).unwrap();
    host.env("CURL_CA_BUNDLE", host.file("right.pem").to_str().unwrap());
    assert_eq!((host.run(&["x"]).code, host.auth()), (Some(0), Some(canonical)));
}
