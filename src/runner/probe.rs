//! One probe: runs the real Codex on a login, in a sandbox with the proxy as the only way out, and judges the result.
//!
//! A login that Codex refreshes is reported as soon as it is written, while the probe goes on. The old refresh token is
//! spent then, and only this process has the new one. If this process dies before it reports the login, the login is
//! lost. A crash loses nothing else: the sandbox ends with the process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::IgnoredAny;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use zeroize::Zeroizing;

use super::output::{self, OutputSecrets, Total};
use super::prober::{Finding, Prober, Probing, Told};
use super::proxy::Proxy;
use super::sandbox::{Ending, Event, Sandbox, SandboxError};
use super::setup::Runner;
use super::{Check, doctor};

const WORD: &str = "banana";
/// A program that writes more is killed.
const MAX_OUTPUT_BYTES: u64 = 16 * 1024 * 1024;
const OUTPUT_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How much of the program's output a failure shows.
const MAX_REASON_LINES: usize = 8;
const MAX_REASON_BYTES: usize = 2000;
/// How long to wait for the rest of the output. A process that still holds a pipe open is not waited for.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

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
        let mut secrets = OutputSecrets::default();
        secrets.add(login);
        let deadline = Instant::now() + self.settings.timeout + END_TIMEOUT;
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

/// The sandbox enforces the time limit itself. This extra time is for a sandbox that does not.
const END_TIMEOUT: Duration = Duration::from_secs(10);

fn not_built(error: SandboxError) -> Finding {
    Finding::Unavailable(error.to_string())
}

struct Probe {
    /// `None`: the sandbox has ended.
    sandbox: Option<Sandbox>,
    proxy: Arc<Proxy>,
    tasks: Tasks,
    total: Total,
    secrets: OutputSecrets,
    /// The last login that Codex is known to have.
    login: Zeroizing<String>,
    timeout: Duration,
    /// The reason, if the daemon ended the probe.
    ended: Option<String>,
    /// The probe is given up at this time.
    deadline: Instant,
}

/// Aborted together with the probe.
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
        let mut look = interval(OUTPUT_POLL_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = next_event(&mut self.sandbox) => event,
                _ = look.tick() => {
                    if self.total.bytes() > MAX_OUTPUT_BYTES {
                        let most = MAX_OUTPUT_BYTES / 1024 / 1024;
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
            self.deadline = Instant::now() + END_TIMEOUT;
            self.sandbox.iter_mut().for_each(Sandbox::ask_to_end);
        }
    }
}

impl Probe {
    /// Returns the login that Codex wrote, if it differs from the one that Codex had.
    fn refreshed(&mut self, bytes: &[u8]) -> Option<Zeroizing<String>> {
        // A partial or invalid file is not a login. A later one may be.
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
            log::debug!(event = "sandbox_ended_badly", cause:% = error; "a sandbox did not end cleanly: {error}");
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
        let said = [&stderr, &stdout].map(|output| self.secrets.last_lines(output, MAX_REASON_LINES, MAX_REASON_BYTES));
        let said = said.into_iter().filter(|said| !said.is_empty()).collect::<Vec<_>>().join("\n");
        let mut reason = happened;
        for (what, text) in [("not reached", refused), ("it said", said)] {
            if !text.is_empty() {
                reason = format!("{reason}\n{what}: {text}");
            }
        }
        // If Codex reached no server, this proves nothing about the login.
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
    tokio::time::timeout(LAST_OUTPUT_TIMEOUT, output).await.ok().and_then(Result::ok).unwrap_or_default()
}
