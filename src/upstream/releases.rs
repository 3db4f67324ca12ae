//! Reads the newest release of Codex from its publisher.

use std::time::Duration;

use serde::Deserialize;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// An answer about one release has some 100 KiB; a longer one is refused.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("{0}")]
    Request(#[from] reqwest::Error),
    #[error("the answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("the answer is not about a release: {0}")]
    NotARelease(#[from] serde_json::Error),
}

pub struct Releases {
    url: String,
    client: reqwest::Client,
}

impl Releases {
    /// `None` if no URL is configured.
    pub fn new(url: &str) -> Option<Self> {
        if url.is_empty() {
            return None;
        }
        let client = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("codex-authd/", env!("CARGO_PKG_VERSION")))
            .build()
            .ok()?;
        Some(Self { url: url.to_owned(), client })
    }

    /// The tag of the newest release, such as `rust-v0.169.0`.
    pub async fn newest(&self) -> Result<String, UpstreamError> {
        #[derive(Deserialize)]
        struct Release {
            tag_name: String,
        }
        let mut answer = self.client.get(&self.url).send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(UpstreamError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let release: Release = serde_json::from_slice(&body)?;
        Ok(release.tag_name)
    }
}
