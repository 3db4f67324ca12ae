//! A small fleet on the real daemon, with the real Codex and an upstream with single-use refresh tokens. Whichever host
//! renews, and whatever its clock says, no renewed login is lost and no spent one is served.

use serde_json::Value;

use super::{BANANA, assert_has};
use crate::support::daemon::Daemon;
use crate::support::host::{Host, Program, Ran};
use crate::support::upstream::Upstream;

crate::for_both_programs!(
    four_hosts_renew_in_turn_and_none_is_served_a_spent_login,
    a_host_whose_clock_is_a_day_behind_loses_no_login,
    a_host_whose_clock_is_a_day_ahead_loses_no_login,
);

struct Fleet {
    upstream: Upstream,
    daemon: Daemon,
    hosts: Vec<Host>,
}

impl Fleet {
    /// Hosts as the installer makes them, for an ordinary user.
    fn new(program: Program, hosts: usize) -> Self {
        let (upstream, daemon) = (Upstream::start(), Daemon::start_for(program));
        let seed = daemon.state.path().join("auth.json");
        std::fs::write(&seed, upstream.login("acc-1", 864_000).to_string()).unwrap();
        assert_eq!(daemon.cli_json(&["auth", "upload", seed.to_str().unwrap()])["status"], "updated");
        let hosts = (0..hosts)
            .map(|number| {
                let mut host = Host::bare_for(program).with_real_codex(&upstream);
                host.path = format!("{}:{}", host.file("bin").display(), host.path);
                host.write_program("bin/id", "#!/bin/sh\necho 1000\n", 0o755);
                let made = daemon.cli_json(&["hosts", "add", &format!("h{number}.test")]);
                let command = made["installer"]["command"].as_str().unwrap();
                let ran = Ran::from(host.command("bash").args(["-c", command]).output().unwrap());
                assert_eq!(ran.code, Some(0), "{ran:?}");
                assert_has(&host, program);
                host
            })
            .collect();
        Self { upstream, daemon, hosts }
    }

    fn canonical_digest(&self) -> String {
        self.daemon.cli_json(&["auth", "show"])["digest"].as_str().unwrap().to_owned()
    }

    /// Ends the valid access token, so that the next Codex must renew the login.
    fn renew_on(&self, host: usize) {
        self.upstream.withdraw_access();
        let before = self.refreshes();
        self.works_on(host);
        assert_eq!(self.refreshes(), before + 1, "one renewal on host {host}");
        let held = codex_authd::model::digest::Digest::of(self.hosts[host].auth().unwrap().as_bytes());
        assert_eq!(held.to_string(), self.canonical_digest(), "host {host} does not have the canonical login");
    }

    fn works_on(&self, host: usize) {
        let ran = self.hosts[host].run(&BANANA);
        assert_eq!((ran.code, ran.out.trim()), (Some(0), "Banana"), "host {host}: {ran:#?}\n{}", self.daemon.log());
        let statuses: Vec<u16> =
            self.upstream.calls_to("POST", "/oauth/token").iter().map(|call| call.status).collect();
        assert!(statuses.iter().all(|status| *status == 200), "host {host} was served a spent login: {statuses:?}");
    }

    fn refreshes(&self) -> usize {
        self.upstream.calls_to("POST", "/oauth/token").len()
    }
}

/// Moves the clock of the script and its tools by this many days, and the date that Codex writes. (Codex is a static
/// program: its clock cannot be changed from outside. The native `cdx` keeps the right clock for itself, because its TLS
/// would call the test's certificate, which is a minute old, not valid yet.)
fn bend_clock(host: &mut Host, days: i64) {
    let library = ["x86_64", "aarch64"]
        .map(|architecture| format!("/usr/lib/{architecture}-linux-gnu/faketime/libfaketime.so.1"))
        .into_iter()
        .find(|file| std::path::Path::new(file).exists())
        .expect("faketime is installed (Debian: apt install faketime)");
    // It works in a copy, so that auth.json changes once, as when Codex itself has that clock.
    let codex = format!(
        "#!/usr/bin/env bash\nwork=$HOME/copy\nrm -rf \"$work\"\ncp -a \"$HOME/.codex\" \"$work\"\n\
         date=$(LD_PRELOAD={library} FAKETIME={days:+}d date -u +%Y-%m-%dT%H:%M:%S.123456789Z)\n\
         (unset LD_PRELOAD FAKETIME; CODEX_HOME=$work exec {} \"$@\")\ncode=$?\n\
         if ! cmp -s \"$work/auth.json\" \"$HOME/.codex/auth.json\"; then\n\
         sed -i -E 's/(\"last_refresh\": *)\"[^\"]*\"/\\1\"'\"$date\"'\"/' \"$work/auth.json\"\n\
         mv \"$work/auth.json\" \"$HOME/.codex/auth.json\"\nfi\nexit $code\n",
        crate::support::host::real_codex().display()
    );
    host.write_program("bin/codex", &codex, 0o755);
    if host.program.is_native() {
        return;
    }
    // The certificate of a fleet that is a day old was valid a day ago as well; the test's is a minute old.
    host.write_program("bin/curl", "#!/bin/sh\nunset LD_PRELOAD FAKETIME\nexec /usr/bin/curl \"$@\"\n", 0o755);
    host.env("LD_PRELOAD", &library);
    host.env("FAKETIME", &format!("{days:+}d"));
    // Otherwise faketime would change the monotonic clock too, which curl's time limits use.
    host.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

fn four_hosts_renew_in_turn_and_none_is_served_a_spent_login(program: Program) {
    let fleet = Fleet::new(program, 4);
    for round in 0..2 {
        for host in 0..4 {
            fleet.renew_on(host);
            // Another host fetches the login before its own turn.
            fleet.works_on((host + 2) % 4);
        }
        assert_eq!(fleet.refreshes(), 4 * (round + 1));
    }
}

fn a_host_whose_clock_is_a_day_behind_loses_no_login(program: Program) {
    on_a_wrong_clock(program, -1);
}

fn a_host_whose_clock_is_a_day_ahead_loses_no_login(program: Program) {
    on_a_wrong_clock(program, 1);
}

fn on_a_wrong_clock(program: Program, days: i64) {
    let mut fleet = Fleet::new(program, 2);
    bend_clock(&mut fleet.hosts[0], days);
    for _ in 0..2 {
        fleet.renew_on(0);
        fleet.works_on(1);
        fleet.renew_on(1);
        fleet.works_on(0);
    }
    let text = fleet.hosts[1].auth().unwrap();
    let login: Value = serde_json::from_str(&text).unwrap();
    let dated = time::OffsetDateTime::parse(
        login["last_refresh"].as_str().unwrap(),
        &time::format_description::well_known::Rfc3339,
    );
    let ahead = dated.unwrap() - crate::support::now();
    assert!(ahead <= time::Duration::minutes(5), "a date in the future is served: {text}");
    for host in &fleet.hosts {
        assert!(!host.codex_home.join("auth.json.cdx-replaced").exists(), "a login was replaced");
    }
}
