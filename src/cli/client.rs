//! The client of the admin API: through the control socket of a running daemon, or in this process if none runs.
//!
//! Requests and answers use the API's own types. Without a daemon, the same endpoint is called in this process, on the
//! same state and under the same lock. Root makes files under the identity of the state's owner (`cli::run` takes it).
//! Files that are named on the command line are accessed with `as_caller`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use poem::http::{Method, StatusCode};
use poem::{Body, Endpoint, Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::api::{self, ErrorBody, Listed};
use crate::config::Config;
use crate::daemon::listen_file::{self, Bound};
use crate::daemon::state::{State, is_in_use};
use crate::daemon::{DaemonError, prober, tls};
use crate::model::percent;
use crate::platform::System;
use crate::service::Areas;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Offline(#[from] Box<DaemonError>),
    #[error("the daemon does not answer on {}: {cause}", socket.display())]
    Socket { socket: PathBuf, cause: reqwest::Error },
    #[error("no daemon runs on {}: start it, or name its configuration with --config", .0.display())]
    NoDaemon(PathBuf),
    /// The message of the daemon.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error("the daemon's answer cannot be read: {0}; does the daemon have another version than this command?")]
    Answer(String),
}

/// An answer that is streamed while the work goes on.
pub type Lines = Box<dyn AsyncBufRead + Unpin + Send>;

const BUFFER_BYTES: usize = 256 * 1024;
/// How long a daemon that holds the state may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub enum Client {
    Daemon { http: reqwest::Client, socket: PathBuf },
    Here { endpoint: Box<dyn poem::endpoint::DynEndpoint<Output = Response>>, areas: Arc<Areas> },
}

impl Client {
    /// Connects to the daemon of `config`. If none runs, opens its state.
    pub async fn connect(config: &Config) -> Result<Self, ClientError> {
        if Self::is_there(config).await {
            return Self::of_daemon(config).await;
        }
        let (endpoint, areas) = offline(config).await.map_err(Box::new)?;
        Ok(Self::Here { endpoint: Box::new(poem::endpoint::ToDynEndpoint(endpoint)), areas })
    }

    /// Connects to the daemon of `config`; never opens the state.
    pub async fn of_daemon(config: &Config) -> Result<Self, ClientError> {
        let socket = config.listen.control.clone();
        if tokio::net::UnixStream::connect(&socket).await.is_err() {
            return Err(ClientError::NoDaemon(socket));
        }
        match reqwest::Client::builder().unix_socket(socket.as_path()).build() {
            Ok(http) => Ok(Self::Daemon { http, socket }),
            Err(cause) => Err(ClientError::Socket { socket, cause }),
        }
    }

    /// Must be called before the process ends. A probe that runs in this process must not be cut off: Codex may just
    /// have refreshed the login, and no other copy of it exists.
    pub async fn close(self) {
        if let Self::Here { areas, .. } = self {
            areas.probes.all_answered().await;
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None).await
    }

    /// Reads all pages of a list. `path` may have parameters.
    pub async fn all<T: DeserializeOwned + Listed>(&self, path: &str) -> Result<T, ClientError> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}limit=1000");
        let mut list: T = self.get(&path).await?;
        while let Some(next) = list.next() {
            let more = self.get(&format!("{path}&cursor={}", percent::encoded(next))).await?;
            list.extend(more);
        }
        Ok(list)
    }

    /// Returns a text answer of a running daemon. There is no offline answer.
    pub async fn text_of_daemon(config: &Config, path: &str) -> Result<String, ClientError> {
        let (status, answer) = Self::of_daemon(config).await?.answer(Method::GET, path, None).await?;
        if !status.is_success() {
            return read::<serde_json::Value>(status, &answer).map(|_| String::new());
        }
        String::from_utf8(answer).map_err(|error| ClientError::Answer(error.to_string()))
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, None).await
    }

    /// Returns an answer that is streamed line by line while the work goes on.
    pub async fn lines(&self, method: Method, path: &str, body: Body) -> Result<Lines, ClientError> {
        let (status, mut lines): (_, Lines) = match self {
            Self::Daemon { http, socket } => {
                let failed = |cause| ClientError::Socket { socket: socket.clone(), cause };
                let body: http_body_util::combinators::BoxBody<bytes::Bytes, std::io::Error> = body.into();
                let request = http.request(method, format!("http://control{path}"));
                let request = request.header("content-type", "application/json").body(reqwest::Body::wrap(body));
                let mut answer = request.send().await.map_err(failed)?;
                let status = answer.status();
                let (mut writer, reader) = tokio::io::duplex(BUFFER_BYTES);
                tokio::spawn(async move {
                    // A connection that breaks early yields no last line.
                    while let Ok(Some(chunk)) = answer.chunk().await {
                        if writer.write_all(&chunk).await.is_err() {
                            return;
                        }
                    }
                });
                (status, Box::new(BufReader::new(reader)))
            }
            Self::Here { endpoint, .. } => {
                let uri = path.parse().map_err(|_| ClientError::Answer(format!("{path} is not a path")))?;
                let request = Request::builder().method(method).uri(uri).content_type("application/json").body(body);
                let answer = endpoint.get_response(request).await;
                (answer.status(), Box::new(BufReader::new(answer.into_body().into_async_read())))
            }
        };
        if status.is_success() {
            return Ok(lines);
        }
        let mut answer = Vec::new();
        lines.read_to_end(&mut answer).await.map_err(|error| ClientError::Answer(error.to_string()))?;
        read::<serde_json::Value>(status, &answer).map(|_| lines)
    }

    /// Whether a daemon runs. A daemon that is starting or stopping holds the state and does not answer: wait for it.
    pub async fn is_there(config: &Config) -> bool {
        let begun = Instant::now();
        loop {
            if tokio::net::UnixStream::connect(&config.listen.control).await.is_ok() {
                return true;
            }
            if begun.elapsed() > START_TIMEOUT || !is_in_use(&config.state_dir) {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        let (status, answer) = self.answer(method, path, body).await?;
        read(status, &answer)
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        Ok(match self {
            Self::Daemon { http, socket } => {
                let failed = |cause| ClientError::Socket { socket: socket.clone(), cause };
                let mut request = http.request(method, format!("http://control{path}"));
                if let Some(body) = body {
                    request = request.header("content-type", "application/json").body(body);
                }
                let answer = request.send().await.map_err(failed)?;
                (answer.status(), answer.bytes().await.map_err(failed)?.to_vec())
            }
            Self::Here { endpoint, .. } => {
                let answer = endpoint.get_response(request_of_ours(method, path, body)?).await;
                let status = answer.status();
                let body = answer.into_body().into_vec().await;
                (status, body.map_err(|error| ClientError::Answer(error.to_string()))?)
            }
        })
    }
}

fn read<T: DeserializeOwned>(status: StatusCode, answer: &[u8]) -> Result<T, ClientError> {
    #[derive(serde::Deserialize)]
    struct Data<T> {
        data: T,
    }
    if status.is_success() {
        let Data { data } = serde_json::from_slice(answer).map_err(|error| ClientError::Answer(error.to_string()))?;
        return Ok(data);
    }
    let error: ErrorBody = serde_json::from_slice(answer)
        .map_err(|_| ClientError::Answer(format!("status {status} without a message")))?;
    let reasons = error.errors.iter().flatten().map(|(field, reasons)| format!("{field}: {}", reasons.join("; ")));
    let message = std::iter::once(error.message.clone()).chain(reasons).collect::<Vec<_>>().join(": ");
    Err(ClientError::Refused { status, message })
}

/// The endpoint that a daemon with this state would serve on its control socket.
async fn offline(config: &Config) -> Result<(impl Endpoint<Output = Response> + use<>, Arc<Areas>), DaemonError> {
    let platform = Arc::new(System);
    let state = State::open(config, platform.clone()).await?;
    let mut bound =
        Bound { hosts: config.listen.hosts, admin: config.listen.admin, control: config.listen.control.clone() };
    // If the system chose the port, the last daemon's port is the best guess.
    if bound.hosts.port() == 0
        && let Some(last) = listen_file::read(&config.state_dir)
    {
        bound = last;
    }
    let policy = tls::offline_policy(config, &bound, &state.secrets, state.is_switched().await, &*platform)?;
    let prober = prober::prober(config, Err("a command has no delegated cgroup".into()));
    let areas = Arc::new(state.start_areas(policy, prober, None, Arc::default()).await?);
    areas.trust.resume_rotation().await?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let proving = areas.clone();
    tokio::spawn(async move {
        let _until_the_process_ends = stop;
        proving.probes.make_asked_probes(stopping).await;
    });
    Ok((api::admin_in_process(areas.clone(), nix::unistd::getuid().as_raw()), areas))
}

fn request_of_ours(method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Request, ClientError> {
    let uri = path.parse().map_err(|_| ClientError::Answer(format!("{path} is not a path")))?;
    Ok(Request::builder().method(method).uri(uri).content_type("application/json").body(body.unwrap_or_default()))
}
