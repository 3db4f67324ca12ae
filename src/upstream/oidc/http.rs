//! HTTP requests to the provider: no redirects, limits of time and size, and only JSON.
//!
//! Failures are described in our own words. They contain nothing from the answer.

use std::time::Duration;

use openidconnect::http::header::CONTENT_TYPE;
use openidconnect::http::{Request, Response, StatusCode};
use openidconnect::{HttpRequest, HttpResponse};
use serde::de::IgnoredAny;

#[derive(Clone, Copy, Debug)]
pub(super) struct HttpLimits {
    pub connect: Duration,
    /// The time for a request and its answer.
    pub whole: Duration,
    /// The most bytes of one answer.
    pub most_answer: usize,
    /// The shortest time between two reads of the keys because of an unknown key.
    pub between_rereads: Duration,
}

impl HttpLimits {
    pub const REAL: Self = Self {
        connect: Duration::from_secs(5),
        whole: Duration::from_secs(10),
        most_answer: 256 * 1024,
        between_rereads: Duration::from_secs(10),
    };
}

/// The failure, for the operator's log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct HttpFailure(pub String);

impl HttpFailure {
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

#[derive(Clone)]
pub(super) struct Http {
    client: reqwest::Client,
    most_answer: usize,
}

impl Http {
    /// A provider on this machine is reached without a proxy.
    pub fn new(limits: &HttpLimits, is_loopback: bool) -> Result<Self, reqwest::Error> {
        let builder = reqwest::Client::builder()
            .connect_timeout(limits.connect)
            .timeout(limits.whole)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("codex-authd/", env!("CARGO_PKG_VERSION")));
        let client = if is_loopback { builder.no_proxy() } else { builder }.build()?;
        Ok(Self { client, most_answer: limits.most_answer })
    }

    pub async fn get(&self, url: &str) -> Result<Vec<u8>, HttpFailure> {
        let request = Request::get(url).header("accept", "application/json").body(Vec::new());
        let answer = self.call(request.map_err(|_| HttpFailure::new("its address is not a URL"))?).await?;
        if answer.status() == StatusCode::OK { Ok(answer.into_body()) } else { Err(unexpected(answer.status())) }
    }

    /// Returns a successful answer, or an error answer of the provider (RFC 6749, 5.2). Its body is JSON.
    pub async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpFailure> {
        let request = request.try_into().map_err(|_| HttpFailure::new("its address is not a URL"))?;
        let mut answer = self.client.execute(request).await.map_err(in_words)?;
        let status = answer.status();
        if !matches!(
            status,
            StatusCode::OK | StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        ) {
            return Err(unexpected(status));
        }
        let kind = answer.headers().get(CONTENT_TYPE).cloned();
        let is_json = kind.as_ref().and_then(|kind| kind.to_str().ok()).is_some_and(is_json);
        if !is_json {
            return Err(HttpFailure::new(format!("its answer ({status}) is not JSON")));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(in_words)? {
            if body.len() + chunk.len() > self.most_answer {
                return Err(HttpFailure::new(format!("its answer is longer than {} bytes", self.most_answer)));
            }
            body.extend_from_slice(&chunk);
        }
        if serde_json::from_slice::<IgnoredAny>(&body).is_err() {
            return Err(HttpFailure::new(format!("its answer ({status}) is invalid JSON")));
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        Ok(response)
    }
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    ["application/json", "application/jwk-set+json"].iter().any(|json| essence.eq_ignore_ascii_case(json))
}

fn unexpected(status: StatusCode) -> HttpFailure {
    if status.is_redirection() {
        return HttpFailure::new(format!("it answers {}, and redirects are not followed", status.as_u16()));
    }
    HttpFailure::new(format!("it answers {}", status.as_u16()))
}

fn in_words(error: reqwest::Error) -> HttpFailure {
    if error.is_timeout() {
        return HttpFailure::new("it takes too long");
    }
    if !error.is_connect() {
        return HttpFailure::new("the connection broke, or the answer was not HTTP");
    }
    // The system or TLS gives the cause of a failed connection; the server's answer is not in it.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let words: String = cause.to_string().chars().filter(|letter| !letter.is_control()).take(200).collect();
    HttpFailure::new(format!("no connection: {words}"))
}
