//! The calls to the daemon, and what their failures mean for this host.
//!
//! Two trust stores may vouch for the daemon: the configured authority, and this machine's. The one that did last is
//! asked first (`State`, file `trust`). A refused certificate means that nothing was sent, so the other one is tried.

use std::time::Duration;

use codex_authd_client::{Client, Error, ErrorExt as _, ErrorKind, ResponseValue, Secret, collect, sha256_hex, types};

use crate::causes;
use crate::config::Config;
use crate::messages::clean;
use crate::state::{State, is_digest};

/// The version of `cdx`, of both programs.
pub const VERSION: &str = include_str!("../../wrapper/VERSION").trim_ascii();
/// The target of this program, as the daemon names it; empty: the daemon has none for this machine.
pub const TARGET: &str = match (cfg!(target_os = "linux"), cfg!(target_os = "macos")) {
    (true, _) if cfg!(target_arch = "x86_64") => "x86_64-linux",
    (true, _) if cfg!(target_arch = "aarch64") => "aarch64-linux",
    (_, true) if cfg!(target_arch = "x86_64") => "x86_64-darwin",
    (_, true) if cfg!(target_arch = "aarch64") => "aarch64-darwin",
    _ => "",
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(300);
const MAX_MESSAGE: usize = 300;

type CallError = Error<types::ErrorBody>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The daemon does not answer usefully.
    Away,
    /// The daemon refuses this host.
    Refused,
    /// The daemon refuses this request.
    Declined,
    /// The daemon's certificate cannot be trusted.
    Untrusted,
}

/// A call that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub struct Trouble {
    pub outcome: Outcome,
    pub status: Option<u16>,
    pub reason: String,
    pub remedy: String,
}

impl Trouble {
    pub fn away(reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::Away, status: None, reason: reason.into(), remedy: String::new() }
    }
}

/// An answer to a synchronisation.
#[derive(Debug)]
pub struct Answer {
    pub status: types::SyncStatus,
    pub digest: String,
    pub text: Option<Secret>,
    pub client_version: Option<String>,
    pub wrapper: Wrapper,
}

/// The `cdx` that the daemon has for this host.
#[derive(Clone, Debug, Default)]
pub struct Wrapper {
    pub version: Option<String>,
    pub sha256: Option<String>,
    /// Whether that is the native program for this machine, and not the bash script.
    pub is_native: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Ours,
    System,
}

pub struct Daemon<'a> {
    config: &'a Config,
    state: &'a State,
    trust: Trust,
    client: Option<Client>,
    /// The `Date` of the last answer.
    pub date: Option<String>,
    pub codex_version: Option<String>,
}

impl<'a> Daemon<'a> {
    pub fn new(config: &'a Config, state: &'a State) -> Self {
        let values = &config.values;
        let knows_system = values.system_ca && state.read("trust").as_deref() == Some("system");
        let trust = if values.ca_pem.is_empty() || knows_system { Trust::System } else { Trust::Ours };
        Self { config, state, trust, client: None, date: None, codex_version: None }
    }

    pub fn base_url(&self) -> &str {
        &self.config.values.base_url
    }

    /// The version of `cdx` that this host reports; the daemon reads from it what the host trusts.
    pub fn version(&self) -> String {
        if self.config.values.system_ca { format!("{VERSION}+system") } else { VERSION.to_owned() }
    }

    pub async fn retrieve(&mut self, digest: &str, last_refresh: &str) -> Result<Answer, Trouble> {
        let request = types::AuthRequest::RetrieveRequest(types::RetrieveRequest {
            command: types::RetrieveCommand::Retrieve,
            digest: digest.to_owned(),
            last_refresh: last_refresh.to_owned(),
            client_version: self.codex_version.clone(),
            wrapper_version: Some(self.version()),
            wrapper_target: target(),
        });
        self.sync(request).await
    }

    pub async fn store(&mut self, text: &Secret) -> Result<Answer, Trouble> {
        let request = types::AuthRequest::StoreRequest(types::StoreRequest {
            command: types::StoreCommand::Store,
            auth_text: text.clone(),
            client_version: self.codex_version.clone(),
            wrapper_version: Some(self.version()),
            wrapper_target: target(),
        });
        self.sync(request).await
    }

    async fn sync(&mut self, request: types::AuthRequest) -> Result<Answer, Trouble> {
        let send = async |client: &Client| client.sync_auth().body(request.clone()).send().await;
        answer(self.call(CALL_TIMEOUT, send).await?.into_inner().data)
    }

    /// Takes this host out of the fleet.
    pub async fn leave(&mut self, force: bool) -> Result<(), Trouble> {
        let send = async |client: &Client| {
            let request = client.leave();
            if force { request.force(true) } else { request }.send().await
        };
        self.call(CALL_TIMEOUT, send).await.map(|_| ())
    }

    /// The native program for this machine, or else this host's bash script, whose digest is as announced.
    pub async fn download(
        &mut self,
        native: bool,
        limit: usize,
        progress: impl FnMut(usize),
    ) -> Result<Vec<u8>, Trouble> {
        let send = async |client: &Client| {
            let request = client.download_wrapper();
            if native { request.target(TARGET) } else { request }.send().await
        };
        let answer = self.call(DOWNLOAD_TIMEOUT, send).await?;
        let announced = answer.headers().get("x-sha256").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let announced = announced.trim().to_ascii_lowercase();
        let content = collect::<types::ErrorBody>(answer, limit, progress).await.map_err(|error| self.judge(&error))?;
        if sha256_hex(&content) != announced {
            return Err(Trouble::away("the received cdx does not match its digest"));
        }
        Ok(content)
    }

    async fn call<T>(
        &mut self,
        timeout: Duration,
        send: impl AsyncFn(&Client) -> Result<ResponseValue<T>, CallError>,
    ) -> Result<ResponseValue<T>, Trouble> {
        let first = match self.attempt(timeout, &send).await {
            Err(trouble) if trouble.outcome == Outcome::Untrusted && self.has_two_stores() => trouble,
            other => return other,
        };
        // Nothing was sent yet. Perhaps the other store knows the daemon's certificate.
        let before = self.trust;
        self.trust = if before == Trust::Ours { Trust::System } else { Trust::Ours };
        self.client = None;
        let second = self.attempt(timeout, &send).await;
        if second.as_ref().is_err_and(|trouble| trouble.outcome == Outcome::Untrusted) {
            (self.trust, self.client) = (before, None);
            return Err(first);
        }
        // Without the note the next call tries both again.
        let _ = self.state.write("trust", if self.trust == Trust::Ours { "ours" } else { "system" });
        second
    }

    fn has_two_stores(&self) -> bool {
        self.config.values.system_ca && !self.config.values.ca_pem.is_empty()
    }

    async fn attempt<T>(
        &mut self,
        timeout: Duration,
        send: &impl AsyncFn(&Client) -> Result<ResponseValue<T>, CallError>,
    ) -> Result<ResponseValue<T>, Trouble> {
        self.date = None;
        let client = match self.client.take().filter(|_| timeout == CALL_TIMEOUT) {
            Some(client) => client,
            None => self.connect(timeout)?,
        };
        let answered = send(&client).await;
        if timeout == CALL_TIMEOUT {
            self.client = Some(client);
        }
        let headers = match &answered {
            Ok(answer) => Some(answer.headers()),
            Err(Error::ErrorResponse(response)) => Some(response.headers()),
            Err(Error::UnexpectedResponse(response)) => Some(response.headers()),
            Err(_) => None,
        };
        self.date = headers.and_then(|headers| headers.get("date")?.to_str().ok().map(str::to_owned));
        answered.map_err(|error| self.judge(&error))
    }

    fn connect(&self, timeout: Duration) -> Result<Client, Trouble> {
        let values = &self.config.values;
        let mut connect = Client::connect(&values.base_url)
            .api_key(values.api_key.clone())
            .user_agent(format!("cdx/{}", self.version()))
            .timeouts(CONNECT_TIMEOUT, timeout);
        if self.trust == Trust::Ours {
            connect = connect.ca_pem(&values.ca_pem);
        } else if let Some(file) = causes::bundle_of_the_environment() {
            connect = connect.ca_pem(std::fs::read(file).unwrap_or_default());
        }
        connect.build().map_err(|error| match error {
            codex_authd_client::BuildError::NoCertificate | codex_authd_client::BuildError::NoStore(_) => {
                self.untrusted()
            }
            other => Trouble::away(format!("the call to the daemon cannot be made: {other}")),
        })
    }

    fn judge(&self, error: &CallError) -> Trouble {
        let mut trouble = match error.kind() {
            ErrorKind::Status(status) => self.judge_status(status, error),
            ErrorKind::Untrusted => self.untrusted(),
            ErrorKind::Name => Trouble::away("the daemon's name cannot be resolved (DNS)"),
            ErrorKind::Unreachable => Trouble::away("the daemon cannot be reached"),
            ErrorKind::Broken => Trouble::away("the connection to the daemon broke"),
            ErrorKind::TooLong => Trouble::away("the daemon's answer is too long"),
            ErrorKind::Timeout => Trouble::away("the daemon does not answer in time"),
            ErrorKind::Handshake => Trouble::away("the TLS handshake with the daemon failed"),
            ErrorKind::Unreadable => Trouble::away(UNREADABLE),
            ErrorKind::Request => Trouble::away("the request to the daemon cannot be made"),
        };
        if error.body().is_none() {
            causes::name_proxy(&mut trouble, &self.config.values.base_url);
        }
        trouble
    }

    fn judge_status(&self, status: u16, error: &CallError) -> Trouble {
        let message = error.body().map(|body| clean(&body.message, MAX_MESSAGE)).filter(|text| !text.is_empty());
        let trouble = |outcome, reason| Trouble { outcome, status: Some(status), reason, remedy: String::new() };
        match status {
            401 | 403 => {
                let mut refused = trouble(Outcome::Refused, message.unwrap_or_else(|| format!("HTTP {status}")));
                refused.remedy = "ask its admin, or install anew with a fresh installer command".to_owned();
                if let Some(address) = error.body().and_then(|body| body.address.as_ref()) {
                    causes::name_addresses(&mut refused, self.config.host(), address);
                }
                refused
            }
            429 => {
                let seconds = error.retry_after().map(|wait| format!(" {} s", wait.as_secs())).unwrap_or_default();
                trouble(Outcome::Away, format!("the daemon asks to wait{seconds}"))
            }
            400..=499 => {
                let reason = message.unwrap_or_else(|| format!("the daemon answers HTTP {status}"));
                trouble(Outcome::Declined, format!("refused: {reason}"))
            }
            _ => {
                let reason = message.map(|message| format!(" ({message})")).unwrap_or_default();
                trouble(Outcome::Away, format!("the daemon answers HTTP {status}{reason}"))
            }
        }
    }

    fn untrusted(&self) -> Trouble {
        causes::untrusted(self.trust, self.config)
    }
}

/// Only what is safe to compare, print, and put into arguments.
pub fn answer(answer: types::AuthAnswer) -> Result<Answer, Trouble> {
    let digest = answer.canonical_digest.unwrap_or_default().to_ascii_lowercase();
    if !digest.is_empty() && !is_digest(&digest) {
        return Err(Trouble::away(UNREADABLE));
    }
    let versions = answer.versions;
    let version = |text: Option<String>| text.filter(|text| is_version(text));
    Ok(Answer {
        status: answer.status,
        digest,
        text: answer.auth_text,
        client_version: version(versions.client_version),
        wrapper: Wrapper {
            version: version(Some(versions.wrapper_version)),
            sha256: Some(versions.wrapper_sha256).filter(|text| is_digest(text)),
            is_native: !TARGET.is_empty() && versions.wrapper_target.is_some_and(|target| target == TARGET),
        },
    })
}

const UNREADABLE: &str = "the daemon's answer is not readable";

fn target() -> Option<String> {
    Some(TARGET.to_owned()).filter(|target| !target.is_empty())
}

/// Versions are printed, compared, and put into arguments of npm and into URLs.
pub fn is_version(text: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b".+_-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(is_safe) && !text.starts_with('-')
}
