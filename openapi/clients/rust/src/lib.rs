//! Client of codex-authd. The operations and their types are generated from the daemon's OpenAPI document; this crate
//! adds the transport (trust, credentials, limits), [`Secret`], and what an error means ([`ErrorExt`]).
//!
//! ```no_run
//! # async fn f(ca: &str, key: codex_authd_client::Secret) -> Result<(), Box<dyn std::error::Error>> {
//! let client = codex_authd_client::Client::connect("https://auth.example.com:8443").ca_pem(ca).api_key(key).build()?;
//! let document = client.auth_document(None).await?;
//! # Ok(()) }
//! ```
//!
//! An answer is never longer than [`MAX_ANSWER_BYTES`] unless it is a stream. Redirects are not followed. Dates are text
//! (RFC 3339). No `Debug` of this crate prints a secret, and no error contains the body of an answer.

#![forbid(unsafe_code)]

mod answer;
mod connect;
mod document;
mod error;
mod secret;

// progenitor's code, and progenitor's taste.
#[rustfmt::skip]
#[allow(clippy::all, rustdoc::all, unused_imports)]
mod generated;

pub use answer::{MAX_ANSWER_BYTES, collect};
pub use connect::{BuildError, Connect, EnvironmentProxy};
pub use document::{Document, sha256_hex};
pub use error::{ErrorExt, ErrorKind};
use progenitor_client::{ClientHooks, OperationInfo};

pub use generated::{ByteStream, Client, ClientInfo, Error, ResponseValue, builder, types};
pub use secret::{Secret, SecretJson};

/// An error must not show the address: that of an installer is a secret.
impl ClientHooks for Client {
    async fn exec(&self, request: reqwest::Request, _: &OperationInfo) -> reqwest::Result<reqwest::Response> {
        self.client().execute(request).await.map_err(reqwest::Error::without_url)
    }
}
