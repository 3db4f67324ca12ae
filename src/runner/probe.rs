//! One probe: the real Codex on a login, in a sandbox, with the proxy as its only way out; and what is to be thought of it.
//!
//! A login that Codex refreshes is told the moment it is written, while the probe goes on: the refresh token that it was
//! made with is spent, and nobody but us has the new one. What is told later, or not at all because this process died, is
//! gone; that is the only thing a crash can lose here, and the sandbox ends with the process.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::IgnoredAny;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use zeroize::Zeroizing;

use super::output::{self, Secrets, Total};
use super::proxy::{Proxy, Resolver, SystemResolver};
use super::sandbox::{CA_BUNDLE, Ending, Event, HOME, HomeFile, Limits, PROXY, Plan, Sandbox, SandboxError};
use super::{Check, codex, doctor};
use crate::model::egress::Egress;

/// What makes probes.
#[async_trait]
pub trait Prober: Send + Sync {
    /// Begins a probe of a login. A probe that is dropped ends.
    async fn begin(&self, login: &str) -> Result<Box<dyn Probing>, Finding>;
    /// How long one may take.
    fn time(&self) -> Duration;
    /// What probes need, and whether it is there.
    async fn examine(&self) -> Vec<Check>;
}

/// A probe under way.
#[async_trait]
pub trait Probing: Send {
    /// The finding comes last.
    async fn next(&mut self) -> Told;
    /// It is to end now, whatever it has found; what it has to tell is still told, and `why` is its finding.
    fn end(&mut self, why: &str);
}

pub enum Told {
    /// Codex wrote another login in the place of the one it was given.
    Refreshed(Zeroizing<String>),
    Found(Finding),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Works,
    /// Why not, for people. Holds no secret.
    Fails(String),
    /// It could not be tried: what is missing, and what mends it.
    Unavailable(String),
}

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A path, or a name that is looked up in PATH.
    pub codex: String,
    pub timeout: Duration,
    pub egress: Egress,
    /// More lines of Codex's configuration.
    pub config_toml: String,
    /// Where Codex refreshes tokens, where that is not its own place.
    pub token_url: Option<String>,
}

pub struct Runner {
    settings: Settings,
    /// This program.
    launcher: PathBuf,
    /// Where sandboxes' own are made; or why there is none.
    cgroup: Result<PathBuf, String>,
    resolver: Arc<dyn Resolver>,
}

const PROMPT: [&str; 5] = ["exec", "Reply Banana if this works.", "-s", "read-only", "--skip-git-repo-check"];
const WORD: &str = "banana";
const LOGIN: &str = ".codex/auth.json";
const CONFIG: &str = ".codex/config.toml";
/// A program that writes more is ended.
const MOST_OUTPUT: u64 = 16 * 1024 * 1024;
const OUTPUT_LOOK: Duration = Duration::from_millis(100);
/// How much of its output is shown where it failed.
const LINES: usize = 8;
const BYTES: usize = 2000;
/// The output of what has ended is there; that of what holds a pipe open is not waited for.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

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

    /// The Codex that would be run.
    pub fn program(&self) -> Result<PathBuf, codex::CodexError> {
        codex::find(&self.settings.codex, std::env::var_os("PATH").as_deref())
    }

    /// A sandbox for `login`.
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

    /// Builds the sandbox and runs nothing in it.
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

#[async_trait]
impl Prober for Runner {
    async fn begin(&self, login: &str) -> Result<Box<dyn Probing>, Finding> {
        let plan = self.plan(login)?;
        let mut sandbox = Sandbox::start(&self.launcher, &plan).await.map_err(not_built)?;
        let proxy = Arc::new(Proxy::new(self.settings.egress.clone(), self.resolver.clone()));
        let listener = sandbox.listener().ok_or_else(|| Finding::Unavailable("the sandbox has no network".into()))?;
        let listener = TcpListener::from_std(listener);
        let listener =
            listener.map_err(|error| Finding::Unavailable(format!("the probe's proxy cannot listen: {error}")))?;
        let serving = tokio::spawn(proxy.clone().serve(listener));
        let total = Total::default();
        let (stdout, stderr) =
            sandbox.output().ok_or_else(|| Finding::Unavailable("the sandbox has no output".into()))?;
        let stdout = tokio::spawn(output::tail(stdout, total.clone()));
        let stderr = tokio::spawn(output::tail(stderr, total.clone()));
        sandbox.go().map_err(not_built)?;
        let mut secrets = Secrets::default();
        secrets.add(login);
        let deadline = Instant::now() + self.settings.timeout + GRACE;
        Ok(Box::new(Probe {
            sandbox: Some(sandbox),
            proxy,
            tasks: Tasks { serving, stdout, stderr },
            total,
            secrets,
            login: Zeroizing::new(login.into()),
            timeout: self.settings.timeout,
            ended: None,
            deadline,
        }))
    }

    fn time(&self) -> Duration {
        self.settings.timeout
    }

    async fn examine(&self) -> Vec<Check> {
        doctor::examine(self).await
    }
}

/// The sandbox keeps the time itself; this is for one that does not.
const GRACE: Duration = Duration::from_secs(10);

fn not_built(error: SandboxError) -> Finding {
    Finding::Unavailable(error.to_string())
}

struct Probe {
    /// `None`: nothing of it is left.
    sandbox: Option<Sandbox>,
    proxy: Arc<Proxy>,
    tasks: Tasks,
    total: Total,
    secrets: Secrets,
    /// What Codex has in hand, as far as is known.
    login: Zeroizing<String>,
    timeout: Duration,
    /// Why it was ended by us.
    ended: Option<String>,
    /// When it is given up if it has not ended by then.
    deadline: Instant,
}

/// Ended with the probe.
struct Tasks {
    serving: JoinHandle<()>,
    stdout: JoinHandle<Zeroizing<Vec<u8>>>,
    stderr: JoinHandle<Zeroizing<Vec<u8>>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.serving.abort();
        self.stdout.abort();
        self.stderr.abort();
    }
}

#[async_trait]
impl Probing for Probe {
    async fn next(&mut self) -> Told {
        let mut look = interval(OUTPUT_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = next_event(&mut self.sandbox) => event,
                _ = look.tick() => {
                    if self.total.bytes() > MOST_OUTPUT {
                        let most = MOST_OUTPUT / 1024 / 1024;
                        self.end(&format!("Codex wrote more than {most} MiB, and was ended"));
                    }
                    continue;
                }
                () = tokio::time::sleep_until(self.deadline) => Ok(Event::Ended(Ending::OutOfTime)),
            };
            match event {
                Ok(Event::Watched(bytes)) => match self.refreshed(&bytes) {
                    Some(login) => return Told::Refreshed(login),
                    None => continue,
                },
                Ok(Event::Ended(ending)) => return Told::Found(self.found(ending).await),
                Err(error) => return Told::Found(Finding::Fails(format!("the sandbox broke: {error}"))),
            }
        }
    }

    fn end(&mut self, why: &str) {
        if self.ended.is_none() {
            self.ended = Some(why.into());
            self.deadline = Instant::now() + GRACE;
            self.sandbox.iter_mut().for_each(Sandbox::ask_to_end);
        }
    }
}

impl Probe {
    /// The login that Codex wrote, if it is another one than it had.
    fn refreshed(&mut self, bytes: &[u8]) -> Option<Zeroizing<String>> {
        // What is half written, or nonsense, is no login; the next one may be.
        let text = std::str::from_utf8(bytes).ok().filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())?;
        if *text == **self.login {
            return None;
        }
        self.secrets.add(text);
        self.login = Zeroizing::new(text.to_owned());
        Some(self.login.clone())
    }

    async fn found(&mut self, ending: Ending) -> Finding {
        if let Some(sandbox) = self.sandbox.take()
            && let Err(error) = sandbox.end().await
        {
            log::debug!(event = "sandbox_ended_badly", cause:% = error; "a sandbox did not end as it should: {error}");
        }
        let (stdout, stderr) = (last(&mut self.tasks.stdout).await, last(&mut self.tasks.stderr).await);
        let answered = String::from_utf8_lossy(&stdout).to_lowercase().contains(WORD);
        if let (Ending::Exited(0), true, None) = (ending, answered, &self.ended) {
            return Finding::Works;
        }
        let happened = match (&self.ended, ending) {
            (Some(why), _) => why.clone(),
            (None, Ending::Exited(0)) => "Codex answered, but not with the word it was asked for".into(),
            (None, Ending::Exited(code)) => format!("Codex ended with exit code {code}"),
            (None, Ending::Killed(signal)) => format!("Codex was ended by signal {signal}"),
            (None, Ending::OutOfTime) => format!("Codex had not ended after {} s", self.timeout.as_secs()),
        };
        let refused = self.proxy.refused().into_values().collect::<Vec<_>>().join("; ");
        let said = [&stderr, &stdout].map(|output| self.secrets.last_lines(output, LINES, BYTES));
        let said = said.into_iter().filter(|said| !said.is_empty()).collect::<Vec<_>>().join("\n");
        let mut reason = happened;
        for (what, text) in [("not reached", refused), ("it said", said)] {
            if !text.is_empty() {
                reason = format!("{reason}\n{what}: {text}");
            }
        }
        // A login that was never shown to OpenAI is not disproved.
        if self.ended.is_none() && self.proxy.reached_nothing() {
            return Finding::Unavailable(format!(
                "Codex could not reach OpenAI; check the network of this machine and runner.egress\n{reason}"
            ));
        }
        Finding::Fails(reason)
    }
}

async fn next_event(sandbox: &mut Option<Sandbox>) -> Result<Event, SandboxError> {
    match sandbox {
        Some(sandbox) => sandbox.next().await,
        None => Err(SandboxError::Died),
    }
}

async fn last(output: &mut JoinHandle<Zeroizing<Vec<u8>>>) -> Zeroizing<Vec<u8>> {
    tokio::time::timeout(LAST_OUTPUT, output).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// Everything that Codex finds in its environment.
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

/// The file of certificates that this system trusts, or that the daemon was told to.
pub(super) fn ca_bundle() -> Option<PathBuf> {
    const PLACES: [&str; 4] = [
        // Debian, Arch; Fedora, RHEL; SUSE; Alpine.
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let told = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    // In the sandbox it is read by somebody else.
    let is_good = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.mode() & 0o004 != 0);
    told.into_iter().chain(PLACES.map(PathBuf::from)).find(is_good)
}

/// Codex's configuration: the operator's lines, and, unless they say otherwise, the login in its file.
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
