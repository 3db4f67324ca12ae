//! The view of the checks: that of the unit, if systemd has it here and root runs the command; otherwise that of the
//! caller.
//!
//! With the unit's view, its user, variables and credentials replace the caller's, so that the caller's shell does not
//! hide the daemon's settings. The addresses come from the socket unit, which has priority.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, geteuid};

use super::credentials::Places;
use super::environment::{self, MAX_BYTES};
use super::systemctl::{self, SERVICE, SOCKET, property, words};
use crate::config::{self, ConfigError};
use crate::daemon::owner::{OwnerIdentity, user_name};
use crate::model::check::Check;

const NAME: &str = "view";
const ENVIRONMENT: &str = "environment";
/// Variables that the daemon and its libraries read, besides its own ones.
const OTHERS: [&str; 11] = [
    CREDENTIALS_DIRECTORY,
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

pub enum View {
    Unit(Unit),
    /// With the reason why it is not the unit's view.
    Caller(String),
}

#[derive(Debug)]
pub struct Unit {
    user: String,
    /// `None` if the user does not exist.
    pub identity: Option<OwnerIdentity>,
    pub is_active: bool,
    /// Its first start is in progress.
    pub is_starting: bool,
    /// How often systemd has restarted it since the last start by an operator, if it does not run.
    pub failed_starts: u32,
    variables: Vec<Variable>,
    /// Addresses in the socket unit: hosts, then admins. `None` if there is no such unit.
    pub sockets: Option<[SocketAddr; 2]>,
    /// Lines in files of `EnvironmentFile=` that do not reach the daemon.
    faults: Vec<Check>,
    /// Variables of the caller that are ignored.
    ignored: Vec<String>,
    hidden: Vec<(&'static str, &'static str)>,
}

#[derive(Debug)]
struct Variable {
    name: String,
    value: String,
    /// The place where it was set.
    origin: String,
}

impl View {
    /// Takes the unit's view if there is a unit: the process then has the unit's environment. Call it while the process
    /// has one thread.
    pub fn take(places: &Places) -> Self {
        let mut view = Self::look();
        if let Self::Unit(unit) = &mut view {
            unit.take_on_environment(places);
        }
        view
    }

    pub fn of_caller() -> Self {
        Self::Caller("this command checks nothing else".into())
    }

    fn look() -> Self {
        if !geteuid().is_root() {
            return Self::Caller("as root, it uses the unit's view".into());
        }
        match systemctl::show() {
            Ok(Some(answer)) => match Unit::read(&answer) {
                Some(unit) => Self::Unit(unit),
                None => Self::Caller(format!("systemd has no unit {SERVICE} here")),
            },
            Ok(None) => Self::Caller(format!("no systemd runs the unit {SERVICE} here")),
            Err(error) => Self::Caller(format!("systemctl show {SERVICE} failed: {error}")),
        }
    }

    pub fn unit(&self) -> Option<&Unit> {
        match self {
            Self::Unit(unit) => Some(unit),
            Self::Caller(_) => None,
        }
    }

    /// Describes the view in one line.
    pub fn sentence(&self) -> String {
        match self {
            Self::Unit(Unit { user, ignored, .. }) => {
                let ignored = match &ignored[..] {
                    [] => String::new(),
                    ignored => format!("; from this shell's environment, {} ignored", listed(ignored)),
                };
                format!("as the unit {SERVICE} sees it, with the rights of its user {user}{ignored}")
            }
            Self::Caller(reason) => format!("as the user {} of this shell sees it: {reason}", user_name(geteuid())),
        }
    }

    /// The view, and the lines of the unit's environment that do not reach the daemon.
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = vec![Check::good(NAME, self.sentence())];
        if let Self::Unit(unit) = self {
            if unit.identity.is_none() {
                let found = format!("the unit's user {} does not exist", unit.user);
                checks.push(Check::missing(
                    NAME,
                    found,
                    "systemd-sysusers, or correct User= with systemctl edit codex-authd",
                ));
            }
            checks.extend(unit.faults.iter().cloned());
        }
        checks
    }

    /// Adds the file and the line in which the variable was set to the error.
    pub fn located(&self, error: ConfigError) -> ConfigError {
        let Self::Unit(unit) = self else { return error };
        match error {
            ConfigError::UnknownKey { origin, key, hint } => {
                ConfigError::UnknownKey { origin: unit.origin(&key).unwrap_or(origin), key, hint }
            }
            ConfigError::BadValue { origin, key, message } => {
                ConfigError::BadValue { origin: unit.origin(&key).unwrap_or(origin), key, message }
            }
            error => error,
        }
    }
}

fn listed(names: &[String]) -> String {
    let is = if names.len() == 1 { "is" } else { "are" };
    format!("{} {is}", names.join(", "))
}

impl Unit {
    /// `None` if the unit does not exist.
    fn read(answer: &str) -> Option<Self> {
        let of_service = |name: &str| property(answer, SERVICE, name);
        let first = |name: &str| of_service(name).first().copied().unwrap_or_default();
        if first("LoadState") != "loaded" {
            return None;
        }
        let user = Some(first("User")).filter(|user| !user.is_empty()).unwrap_or("root").to_owned();
        let mut unit = Self {
            identity: identity(&user, first("Group"), first("SupplementaryGroups")),
            user,
            is_active: matches!(first("ActiveState"), "active" | "reloading"),
            is_starting: first("ActiveState") == "activating"
                && first("SubState") != "auto-restart"
                && restarts(first("NRestarts")) == 0,
            failed_starts: match first("ActiveState") {
                "active" | "reloading" => 0,
                _ => restarts(first("NRestarts")),
            },
            variables: Vec::new(),
            sockets: sockets(answer),
            faults: Vec::new(),
            ignored: Vec::new(),
            hidden: [
                ("ProtectHome", "/home"),
                ("ProtectHome", "/root"),
                ("ProtectHome", "/run/user"),
                ("PrivateTmp", "/tmp"),
                ("PrivateTmp", "/var/tmp"),
            ]
            .into_iter()
            .filter(|(name, _)| !matches!(first(name), "" | "no" | "read-only"))
            .collect(),
        };
        for text in words(first("Environment")) {
            if let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) {
                let origin = format!("Environment= of {SERVICE}");
                unit.variables.push(Variable { name: name.into(), value: value.into(), origin });
            }
        }
        // Variables of files have priority over these; the last one wins.
        for file in of_service("EnvironmentFiles") {
            let (path, is_optional) = match file.rsplit_once(" (ignore_errors=") {
                Some((path, ignore)) => (path, ignore.starts_with("yes")),
                None => (file, false),
            };
            unit.read_file(Path::new(path), is_optional);
        }
        Some(unit)
    }

    fn read_file(&mut self, path: &Path, is_optional: bool) {
        let place = path.display();
        let mut content = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut content));
        match read {
            Ok(_) => {}
            Err(error) if is_optional && error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                let found = format!("{place}: {error}; the unit names it in EnvironmentFile=");
                self.faults.push(Check::missing(ENVIRONMENT, found, format!("ls -l {place}")));
                return;
            }
        }
        let environment::Read { assignments, dropped } = environment::read(&content);
        for dropped in dropped {
            let found = format!("{place}, line {}: {}; systemd drops it", dropped.line, dropped.reason);
            let remedy = "write one NAME=value per line, see systemd.exec(5); then systemctl restart codex-authd";
            self.faults.push(Check::missing(ENVIRONMENT, found, remedy));
        }
        for environment::Assignment { line, name, value } in assignments {
            self.variables.push(Variable { name, value, origin: format!("{place}, line {line}") });
        }
    }

    /// Replaces the process's variables and credentials by the unit's. Call it while the process has one thread.
    fn take_on_environment(&mut self, places: &Places) {
        let present: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
        for name in present.iter().filter_map(|name| name.to_str()) {
            if config::is_variable(name) {
                self.ignored.push(name.to_owned());
            } else if !OTHERS.contains(&name) {
                continue;
            }
            set_variable(name, None);
        }
        for Variable { name, value, .. } in &self.variables {
            set_variable(name, Some(value));
        }
        if places.received.is_dir() {
            set_variable(CREDENTIALS_DIRECTORY, Some(&places.received.display().to_string()));
        }
        self.ignored.sort();
    }

    /// Where a variable, or the variable of a key, was set. The last one is in force.
    fn origin(&self, name: &str) -> Option<String> {
        let set = self.variables.iter().rev().find(|variable| {
            variable.name == name || config::key_of_variable(&variable.name).is_some_and(|key| key == name)
        });
        set.map(|variable| variable.origin.clone())
    }

    /// Reports a file that the unit does not see, for any file mode.
    pub fn hides(&self, name: &'static str, path: &Path) -> Option<Check> {
        let (setting, directory) = self.hidden.iter().find(|(_, directory)| path.starts_with(directory))?;
        let found = format!(
            "{} is hidden from the unit, which has {setting}=: nothing below {directory} is there",
            path.display()
        );
        Some(Check::missing(name, found, "move it to /etc/codex-authd, and change the path in the configuration"))
    }
}

/// Names come from the environment or from assignments.
#[allow(unsafe_code)]
fn set_variable(name: &str, value: Option<&str>) {
    // SAFETY: the process has one thread (`cli::run` has started no other), so nothing else reads the environment.
    unsafe {
        match value {
            Some(value) => std::env::set_var(name, value),
            None => std::env::remove_var(name),
        }
    }
}

fn identity(user: &str, group: &str, more: &str) -> Option<OwnerIdentity> {
    let user = match user.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    let user = user.ok().flatten()?;
    let named = |name: &str| match name.parse() {
        Ok(gid) => Some(Gid::from_raw(gid)),
        Err(_) => Group::from_name(name).ok().flatten().map(|group| group.gid),
    };
    let gid = named(group).unwrap_or(user.gid);
    Some(OwnerIdentity::new(user.uid, gid).with_groups(words(more).iter().filter_map(|name| named(name))))
}

fn restarts(told: &str) -> u32 {
    told.parse().unwrap_or_default()
}

fn sockets(answer: &str) -> Option<[SocketAddr; 2]> {
    let is_loaded = property(answer, SOCKET, "LoadState") == ["loaded"];
    let listen = property(answer, SOCKET, "Listen");
    let addresses = listen.iter().filter_map(|line| line.strip_suffix(" (Stream)")?.parse().ok());
    let addresses: Vec<SocketAddr> = addresses.collect();
    addresses.try_into().ok().filter(|_| is_loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(service: &str) -> String {
        format!(
            "Environment=CODEX_AUTHD_STATE_DIR=/srv/state \"CODEX_AUTHD_PUBLIC_BASE_URL=https://a.test\"\nUser=root\n\
             Group=\nProtectHome=yes\nPrivateTmp=no\n{service}Id={SERVICE}\nLoadState=loaded\nActiveState=active\n\n\
             Listen=[::]:8443 (Stream)\nListen=[::]:9443 (Stream)\nId={SOCKET}\nLoadState=loaded\nActiveState=active\n"
        )
    }

    #[test]
    fn a_unit_is_read_with_its_files_of_variables_over_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("environment");
        std::fs::write(&file, "CODEX_AUTHD_PUBLIC_BASE_URL=https://b.test\nexport CODEX_AUTHD_DATABASE__URL=canary\n")
            .unwrap();
        let lines = format!(
            "EnvironmentFiles={} (ignore_errors=yes)\nEnvironmentFiles=/nowhere (ignore_errors=yes)\n",
            file.display()
        );
        let unit = Unit::read(&answer(&lines)).unwrap();
        assert_eq!(unit.sockets.unwrap().map(|socket| socket.to_string()), ["[::]:8443", "[::]:9443"]);
        assert!(unit.is_active && unit.identity.is_some());
        assert_eq!(unit.origin("CODEX_AUTHD_STATE_DIR").unwrap(), format!("Environment= of {SERVICE}"));
        let line = format!("{}, line 1", file.display());
        for name in ["CODEX_AUTHD_PUBLIC_BASE_URL", "public_base_url"] {
            assert_eq!(unit.origin(name).as_ref(), Some(&line), "{name}");
        }
        assert!(unit.hides("tls.certificate", Path::new("/root/own.crt")).is_some());
        assert!(unit.hides("tls.certificate", Path::new("/tmp/own.crt")).is_none());
        let faults: Vec<&str> = unit.faults.iter().map(|check| check.found.as_str()).collect();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(", line 2: it begins with 'export'") && !faults[0].contains("canary"), "{faults:?}");
        let view = View::Unit(unit);
        assert!(view.sentence().contains("as the unit codex-authd.service sees it"), "{}", view.sentence());
        let error = ConfigError::BadValue {
            origin: "the configuration".into(),
            key: "public_base_url".into(),
            message: "x".into(),
        };
        assert_eq!(view.located(error).to_string(), format!("{line}: public_base_url: x"));
    }

    #[test]
    fn a_file_of_variables_that_the_unit_needs_and_that_is_not_there_is_missing() {
        let unit = Unit::read(&answer("EnvironmentFiles=/nowhere/environment (ignore_errors=no)\n")).unwrap();
        assert!(unit.faults[0].found.contains("/nowhere/environment"), "{:?}", unit.faults);
    }

    #[test]
    fn what_is_no_unit_of_ours_is_none() {
        assert!(Unit::read("").is_none());
        assert!(Unit::read(&answer("").replace("LoadState=loaded", "LoadState=not-found")).is_none());
        let unit = Unit::read(&answer("").replace("User=root", "User=nobody-of-that-name")).unwrap();
        assert_eq!(unit.identity, None);
        assert!(View::Unit(unit).checks().iter().any(|check| check.found.contains("nobody-of-that-name")));
        let without = answer("").replace("Listen=[::]:9443 (Stream)\n", "");
        assert!(Unit::read(&without).unwrap().sockets.is_none());
    }
}
