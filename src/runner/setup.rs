//! Sets up a run of Codex: the operator's settings, the program, and the plan of its sandbox.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::codex;
use super::prober::Finding;
use super::proxy::{Resolver, SystemResolver};
use super::sandbox::{CA_BUNDLE, Event, HOME, HomeFile, Limits, PROXY, Plan, Sandbox, SandboxError};
use crate::model::egress::Egress;

/// Settings of the operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A path, or a name that is looked up in PATH.
    pub codex: String,
    pub timeout: Duration,
    pub egress: Egress,
    /// Additional lines for Codex's configuration.
    pub config_toml: String,
    /// The URL at which Codex refreshes tokens, if not the default.
    pub token_url: Option<String>,
}

pub struct Runner {
    pub(super) settings: Settings,
    /// This executable.
    pub(super) launcher: PathBuf,
    /// The cgroup in which sandboxes get theirs, or the reason why there is none.
    cgroup: Result<PathBuf, String>,
    pub(super) resolver: Arc<dyn Resolver>,
}

const PROMPT: [&str; 5] = ["exec", "Reply Banana if this works.", "-s", "read-only", "--skip-git-repo-check"];
const LOGIN: &str = ".codex/auth.json";
const CONFIG: &str = ".codex/config.toml";

impl Runner {
    pub fn new(settings: Settings, launcher: PathBuf, cgroup: Result<PathBuf, String>) -> Self {
        Self { settings, launcher, cgroup, resolver: Arc::new(SystemResolver) }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn cgroup(&self) -> Result<&Path, &str> {
        self.cgroup.as_deref().map_err(String::as_str)
    }

    /// The Codex program that probes run.
    pub fn program(&self) -> Result<PathBuf, codex::CodexError> {
        codex::find(&self.settings.codex, std::env::var_os("PATH").as_deref())
    }

    /// The plan of a sandbox for `login`.
    pub fn plan(&self, login: &str) -> Result<Plan, Finding> {
        let unavailable = |cause: &dyn std::fmt::Display| Finding::Unavailable(cause.to_string());
        let program = self.program().map_err(|error| unavailable(&error))?;
        let config = configuration(&self.settings.config_toml).map_err(|error| unavailable(&error))?;
        let ca_bundle = ca_bundle();
        Ok(Plan {
            program,
            arguments: PROMPT.map(String::from).into(),
            environment: environment(self.settings.token_url.as_deref(), ca_bundle.is_some()),
            ca_bundle,
            home: vec![
                HomeFile { path: LOGIN.into(), content: Zeroizing::new(login.into()) },
                HomeFile { path: CONFIG.into(), content: Zeroizing::new(config) },
            ],
            watched: LOGIN.into(),
            limits: Limits { time: self.settings.timeout, ..Limits::default() },
            cgroup: self.cgroup.clone().ok(),
            only_build: false,
        })
    }

    /// Builds a sandbox and runs nothing in it.
    pub async fn try_sandbox(&self) -> Result<(), SandboxError> {
        let program = self.launcher.canonicalize().unwrap_or_else(|_| self.launcher.clone());
        let plan = Plan {
            program,
            arguments: Vec::new(),
            environment: Vec::new(),
            ca_bundle: ca_bundle(),
            home: Vec::new(),
            watched: LOGIN.into(),
            limits: Limits::default(),
            cgroup: self.cgroup.clone().ok(),
            only_build: true,
        };
        let mut sandbox = Sandbox::start(&self.launcher, &plan).await?;
        sandbox.go()?;
        while !matches!(sandbox.next().await?, Event::Ended(_)) {}
        Ok(())
    }
}

/// The complete environment of Codex.
fn environment(token_url: Option<&str>, has_certificates: bool) -> Vec<(String, String)> {
    let proxy = format!("http://{PROXY}");
    let mut environment = vec![("HOME", HOME), ("PATH", "/bin"), ("TMPDIR", "/tmp"), ("LANG", "C.UTF-8")];
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"] {
        environment.push((name, &proxy));
    }
    if has_certificates {
        environment.extend([("SSL_CERT_FILE", CA_BUNDLE), ("CODEX_CA_CERTIFICATE", CA_BUNDLE)]);
    }
    environment.extend(token_url.map(|url| ("CODEX_REFRESH_TOKEN_URL_OVERRIDE", url)));
    environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// The CA bundle of this system, or the file in `SSL_CERT_FILE`.
pub(super) fn ca_bundle() -> Option<PathBuf> {
    const PLACES: [&str; 4] = [
        // Debian, Arch; Fedora, RHEL; SUSE; Alpine.
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let told = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    // Another user reads it in the sandbox, so it must be readable for all.
    let is_good = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.mode() & 0o004 != 0);
    told.into_iter().chain(PLACES.map(PathBuf::from)).find(is_good)
}

/// Codex's configuration: the operator's lines, and a default that keeps the login in its file.
pub(super) fn configuration(lines: &str) -> Result<String, toml::de::Error> {
    let mut table: toml::Table = lines.parse()?;
    table.entry("cli_auth_credentials_store").or_insert_with(|| "file".into());
    Ok(table.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_lines_are_kept_and_the_login_stays_in_its_file() {
        let made = configuration("model = \"x\"\n[analytics]\nenabled = false\n").unwrap();
        let table: toml::Table = made.parse().unwrap();
        assert_eq!(table["cli_auth_credentials_store"].as_str(), Some("file"));
        assert_eq!(table["analytics"]["enabled"].as_bool(), Some(false));
        assert!(configuration("model =").is_err());
    }

    #[test]
    fn the_environment_is_built_from_nothing() {
        let environment = environment(Some("https://auth.test/oauth/token"), true);
        let names: Vec<&str> = environment.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "HOME",
                "PATH",
                "TMPDIR",
                "LANG",
                "HTTPS_PROXY",
                "HTTP_PROXY",
                "ALL_PROXY",
                "https_proxy",
                "http_proxy",
                "all_proxy",
                "SSL_CERT_FILE",
                "CODEX_CA_CERTIFICATE",
                "CODEX_REFRESH_TOKEN_URL_OVERRIDE"
            ]
        );
        assert!(
            environment
                .iter()
                .all(|(name, value)| !name.to_lowercase().ends_with("_proxy") || value == "http://127.0.0.1:3128")
        );
    }
}
