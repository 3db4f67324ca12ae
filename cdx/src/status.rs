//! `cdx --sync`, `cdx status` and `cdx --version`, for people and as JSON.

use std::io::Write as _;

use serde::Serialize;
use serde_json::json;

use crate::config::Config;
use crate::daemon::{Outcome, TARGET, VERSION};
use crate::home::{Home, shown};
use crate::login::Login;
use crate::messages::{Result, say};
use crate::{Prepared, codex, platform};

pub fn print(line: &str) {
    // A reader that has gone needs nothing more.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

pub fn print_json(value: &impl Serialize) {
    print(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Works without a configuration.
pub fn versions(home: &Home, profile: Option<&str>, json: bool) -> Result<u8> {
    let config = Config::read(home, profile).ok();
    let package = config.as_ref().map_or("@openai/codex", |config| config.values.codex_npm.as_str());
    let codex = codex::find(home, None, package);
    if json {
        let program = codex.as_ref().map(|codex| shown(&codex.program));
        let version = codex.and_then(|codex| codex.version);
        print_json(&json!({"cdx": VERSION, "target": TARGET, "codex": version, "codex_program": program}));
        return Ok(0);
    }
    print(&format!("cdx {VERSION}"));
    let version = codex.map_or_else(
        || "not installed".to_owned(),
        |codex| codex.version.unwrap_or_else(|| "of an unknown version".to_owned()),
    );
    print(&format!("codex {version}"));
    Ok(0)
}

pub async fn synchronise(home: &Home, prepared: &Prepared, json: bool) -> Result<u8> {
    let codex = prepared.find_codex(home);
    let mut login = prepared.login(home, codex.as_ref())?;
    login.synchronise().await?;
    login.notice_update();
    let code = match () {
        () if login.declined => 65,
        () if login.is_alone => 69,
        () => 0,
    };
    if json {
        print_json(&json!({
            "daemon": login.daemon_address(),
            "in_step": login.in_step,
            "declined": login.declined,
            "digest": digest(&login),
        }));
    } else if code == 0 && login.in_step {
        say(format_args!("in step with {}", login.daemon_address()));
    }
    Ok(code)
}

fn digest<'a>(login: &'a Login<'_>) -> Option<&'a str> {
    login.local.exists.then_some(login.local.digest.as_str())
}

/// Asks the daemon, and changes nothing.
pub async fn show(home: &Home, prepared: &Prepared, json: bool) -> Result<u8> {
    let codex = prepared.find_codex(home);
    let mut login = prepared.login(home, codex.as_ref())?;
    let last = prepared.state.recall();
    let asked = login.ask().await;
    let (status, trouble) = match &asked {
        Ok(answer) => (Some(answer.status.to_string()), None),
        Err(trouble) => (None, Some(trouble)),
    };
    let synced = last.as_ref().map(|last| platform::now() - last.moment);
    let is_synced = last.is_some_and(|last| last.digest == login.local.digest);
    let code = match trouble.map(|trouble| trouble.outcome) {
        None => 0,
        Some(Outcome::Away | Outcome::Declined) => 69,
        Some(Outcome::Untrusted) => 76,
        Some(Outcome::Refused) => 77,
    };
    if json {
        print_json(&json!({
            "host": prepared.config.values.fqdn,
            "daemon": login.daemon_address(),
            "configuration": shown(&prepared.config.file),
            "cdx": VERSION,
            "codex": codex.and_then(|codex| codex.version),
            "login": {
                "file": shown(&home.auth_file),
                "digest": digest(&login),
                "last_refresh": login.local.exists.then_some(&login.local.last_refresh),
                "fault": login.local.fault.filter(|_| login.local.exists).map(|fault| fault.to_string()),
                "is_synchronised": is_synced,
                "seconds_since_sync": synced,
            },
            "status": status,
            "error": trouble.map(|trouble| &trouble.reason),
            "cdx_available": login.wrapper.as_ref().and_then(|wrapper| wrapper.version.as_deref()),
        }));
        return Ok(code);
    }
    print(&format!("host     {}", prepared.config.host()));
    print(&format!(
        "daemon   {}: {}",
        login.daemon_address(),
        match trouble {
            Some(trouble) => &trouble.reason,
            None => "answers",
        }
    ));
    print(&format!("login    {}", meaning(&login, status.as_deref())));
    if let Some(seconds) = synced {
        print(&format!("synced   {} h {} min ago", seconds.max(0) / 3600, seconds.max(0) % 3600 / 60));
    }
    print(&format!("cdx      {VERSION}"));
    let version = codex
        .map_or("not installed".to_owned(), |codex| codex.version.unwrap_or_else(|| "of an unknown version".into()));
    print(&format!("codex    {version}"));
    Ok(code)
}

fn meaning(login: &Login<'_>, status: Option<&str>) -> String {
    let file = shown(&login.home.auth_file);
    if let Some(fault) = login.local.fault.filter(|_| login.local.exists) {
        return format!("{file} {fault}");
    }
    match status {
        _ if !login.local.exists => format!("there is none in {file}"),
        Some("valid") => format!("{file} is the fleet's"),
        Some("outdated") => format!("{file} is not the fleet's; the next cdx fetches or offers it"),
        Some("upload_required" | "missing") => format!("{file} is newer than the fleet's; the next cdx sends it"),
        _ => file,
    }
}
