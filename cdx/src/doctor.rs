//! `cdx --doctor`: checks everything that `cdx` needs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::unistd::geteuid;
use serde::Serialize;

use crate::daemon::{Outcome, Trouble};
use crate::home::{Home, shown};
use crate::login::Login;
use crate::messages::Result;
use crate::{Prepared, codex, files, platform, status, store};

/// How far the clocks may differ, in seconds.
const MAX_SKEW: i64 = 300;

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    failures: usize,
}

#[derive(Serialize)]
struct Check {
    ok: bool,
    message: String,
}

impl Report {
    fn check(&mut self, ok: bool, good: impl Into<String>, bad: impl Into<String>) {
        self.failures += usize::from(!ok);
        self.checks.push(Check { ok, message: if ok { good.into() } else { bad.into() } });
    }
}

pub async fn examine(home: &Home, prepared: &Prepared, json: bool) -> Result<u8> {
    let mut report = Report { checks: Vec::new(), failures: 0 };
    let codex = prepared.find_codex(home);
    let found = codex
        .as_ref()
        .map(|codex| format!("codex {} is at {}", codex.version.as_deref().unwrap_or_default(), shown(&codex.program)));
    report.check(codex.is_some(), found.unwrap_or_default(), "codex is not installed, or not on PATH: 'cdx --update'");
    examine_home(home, &mut report);
    let mut login = prepared.login(home, codex.as_ref())?;
    let why = store::cannot_save(home, &login.local);
    report.check(why.is_none(), "a renewed login can be saved", why.unwrap_or_default());
    examine_daemon(&mut login, &mut report).await;
    if json {
        status::print_json(&report);
    } else {
        for check in &report.checks {
            status::print(&format!("{}{}", if check.ok { "ok    " } else { "fail  " }, check.message));
        }
    }
    Ok(u8::from(report.failures > 0))
}

fn examine_home(home: &Home, report: &mut Report) {
    let user = geteuid().as_raw();
    let directory = shown(&home.codex);
    let is_own = fs::metadata(&home.codex)
        .map_or(true, |found| found.is_dir() && found.uid() == user && files::is_writable(&home.codex));
    report.check(
        is_own,
        format!("{directory} is yours"),
        format!("{directory} must be a directory that belongs to you: chown it, or set CODEX_HOME"),
    );
    if let Ok(found) = fs::metadata(&home.auth_file) {
        let is_private = found.is_file() && found.permissions().mode() & 0o077 == 0;
        let open = format!("others can read {}: chmod 600 it", shown(&home.auth_file));
        report.check(is_private, "auth.json is private", open);
    }
    let set = codex::cleared_overrides();
    report.check(
        set.is_empty(),
        "no variable overrides auth.json",
        format!(
            "cdx unsets these, but codex without cdx would use them instead of the fleet's login: {}",
            set.join(" ")
        ),
    );
    let keyring = store::keyring(home);
    report.check(keyring.is_none(), "codex keeps its login in auth.json", keyring.unwrap_or_default());
}

async fn examine_daemon(login: &mut Login<'_>, report: &mut Report) {
    let address = login.daemon_address();
    let answered = login.ask().await;
    let no_trouble = Trouble::away("");
    let trouble = answered.as_ref().err().unwrap_or(&no_trouble);
    let (reason, remedy) = (&trouble.reason, &trouble.remedy);
    let has_answered = answered.is_ok() || trouble.status.is_some();
    let is_untrusted = trouble.outcome == Outcome::Untrusted;
    let is_reachable = has_answered || is_untrusted;
    report.check(
        is_reachable,
        format!("{address} is reachable"),
        format!("{reason}: check network, proxy and the daemon"),
    );
    if is_reachable {
        report.check(!is_untrusted, "its certificate is trusted", format!("{reason}: {remedy}"));
    }
    if !has_answered {
        return;
    }
    let is_accepted = trouble.outcome != Outcome::Refused;
    report.check(is_accepted, "the key is accepted", format!("{reason}: {remedy}"));
    if is_accepted {
        let status = answered.as_ref().map(|answer| answer.status.to_string()).unwrap_or_default();
        report.check(answered.is_ok(), format!("the daemon serves ({status})"), reason.clone());
    }
    if let Some(date) = login.daemon.date.as_deref().and_then(|date| httpdate::parse_http_date(date).ok()) {
        let daemons = date.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let skew = platform::now() - i64::try_from(daemons).unwrap_or_default();
        report.check(
            (-MAX_SKEW..=MAX_SKEW).contains(&skew),
            "the clocks agree",
            format!("this clock differs from the daemon's by {skew} s: set it (NTP)"),
        );
    }
}
