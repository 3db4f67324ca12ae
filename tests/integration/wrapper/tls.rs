//! Which certificates of a daemon are trusted.

use std::fs;

use super::login;
use crate::support::authority::authority;
use crate::support::host::{Host, HostConfig, Program};
use crate::support::skip::skipped;
use crate::support::standin::StandIn;

crate::for_both_programs!(
    only_a_daemon_of_the_baked_ca_is_spoken_to,
    a_certificate_that_either_vouches_for_is_trusted_and_the_choice_is_remembered,
    an_authority_of_the_machine_does_not_count_where_ours_alone_is_trusted,
);

fn only_a_daemon_of_the_baked_ca_is_spoken_to(program: Program) {
    let (ca, certificate, key) = authority("127.0.0.1");
    let daemon = StandIn::start_tls(&certificate, &key);
    let canonical = daemon.set_canonical(&login(10));
    let host = Host::with_ca(program, &daemon.server.url(), &ca);
    let ran = host.run(&["x"]);
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{ran:?}");
    daemon.server.forget_calls();

    // The system's store, and another CA: neither trusts it. The recent login does not help.
    for foreign in [String::new(), authority("127.0.0.1").0] {
        host.install(&HostConfig { base_url: &daemon.server.url(), ca_pem: &foreign, ..HostConfig::default() });
        fs::remove_file(host.file("codex.arguments")).unwrap_or_default();
        let ran = host.run(&["x"]);
        assert_eq!((ran.code, host.codex_was_started()), (Some(76), false), "{ran:?}");
        assert!(ran.err.contains("cannot be trusted"), "{ran:?}");
    }
    assert!(daemon.server.calls().is_empty(), "a call was sent to it");
}

/// A cdx that trusts its machine's store as well.
pub fn trusting_both<'a>(base_url: &'a str, ca_pem: &'a str) -> HostConfig<'a> {
    HostConfig { base_url, ca_pem, trusts_system: true, ..HostConfig::default() }
}

fn a_certificate_that_either_vouches_for_is_trusted_and_the_choice_is_remembered(program: Program) {
    for shell in program.shells() {
        let (ca, certificate, key) = authority("127.0.0.1");
        let daemon = StandIn::start_tls(&certificate, &key);
        daemon.set_canonical(&login(10));
        let foreign = authority("127.0.0.1").0;
        for (baked_ca, machine_ca, remembered) in [(&ca, &foreign, None), (&foreign, &ca, Some("system\n"))] {
            let mut host = Host::new(program, "http://nowhere.test");
            host.shell = shell.clone();
            host.install(&trusting_both(&daemon.server.url(), baked_ca));
            fs::write(host.file("machine.pem"), machine_ca).unwrap();
            host.env("CURL_CA_BUNDLE", host.file("machine.pem").to_str().unwrap());
            daemon.server.forget_calls();
            for _ in 0..2 {
                let ran = host.run(&["x"]);
                assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
            }
            assert_eq!(daemon.commands(), ["retrieve", "retrieve"], "each call is sent once");
            let trust = host.state_file().with_file_name("trust");
            assert_eq!(fs::read_to_string(&trust).ok().as_deref(), remembered);
            // And back again, when the remembered trust is wrong.
            host.install(&trusting_both(&daemon.server.url(), &ca));
            fs::write(host.file("machine.pem"), &foreign).unwrap();
            assert_eq!(host.run(&["x"]).code, Some(0));
            assert_eq!(fs::read_to_string(&trust).ok(), remembered.map(|_| "ours\n".into()));
            // If neither trusts it, nothing is sent, and nothing is remembered.
            host.install(&trusting_both(&daemon.server.url(), &foreign));
            daemon.server.forget_calls();
            let ran = host.run(&["x"]);
            assert!(ran.code == Some(76) && ran.err.contains("cannot be trusted"), "{ran:?}");
            assert!(daemon.server.calls().is_empty());
            assert_eq!(fs::read_to_string(&trust).ok(), remembered.map(|_| "ours\n".into()));
            let gone = host.run(&["--uninstall", "--force"]);
            assert!(gone.code == Some(0) && !trust.parent().unwrap().exists(), "{gone:?}");
        }
    }
}

/// Debian's curl trusts /etc/ssl/certs in addition to the given file.
fn an_authority_of_the_machine_does_not_count_where_ours_alone_is_trusted(program: Program) {
    if !nix::unistd::geteuid().is_root() {
        skipped("nothing is mounted without root");
        return;
    }
    let (machine_ca, certificate, key) = authority("127.0.0.1");
    let daemon = StandIn::start_tls(&certificate, &key);
    daemon.set_canonical(&login(10));
    for shell in program.shells() {
        let mut host = Host::with_ca(program, &daemon.server.url(), &authority("127.0.0.1").0);
        host.shell = shell;
        fs::write(host.file("machine.pem"), &machine_ca).unwrap();
        let place = format!(
            "mount -t tmpfs none /etc/ssl/certs && cp {} /etc/ssl/certs/ca-certificates.crt && openssl rehash /etc/ssl/certs",
            host.file("machine.pem").display()
        );
        daemon.server.forget_calls();
        let ran = host.cdx_within(&place, &["--sync"]);
        assert!(ran.code == Some(76) && ran.err.contains("cannot be trusted"), "{ran:?}");
        assert!(daemon.server.calls().is_empty(), "the key was sent to a stranger");
        // The same authority is trusted if the machine's store counts.
        host.install(&trusting_both(&daemon.server.url(), &authority("127.0.0.1").0));
        let ran = host.cdx_within(&place, &["--sync"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}
