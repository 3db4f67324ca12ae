//! Reads the JSON answers. The generated code calls `read` in place of progenitor's reader.

use std::fmt;
use std::future::poll_fn;

use progenitor_client::{ByteStream, Error, ResponseValue};
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::json;

/// How long an answer in JSON may be.
pub const MAX_ANSWER_BYTES: usize = 16 << 20;

pub(crate) const TOO_LONG: &str = "the answer is too long";
/// The `code` of an error that did not come from the daemon, but from a proxy, say.
pub(crate) const NOT_OURS: &str = "unreadable_error";

pub(crate) async fn read<T: DeserializeOwned, E>(mut response: Response) -> Result<ResponseValue<T>, Error<E>> {
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Error::ResponseBodyError(error.without_url()))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Error::Custom(TOO_LONG.to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    let parsed = serde_json::from_slice(&body).or_else(|error| substitute(status).ok_or(error));
    match parsed {
        Ok(value) => Ok(ResponseValue::new(value, status, headers)),
        // serde's message may quote the answer, and so may the bytes.
        Err(error) => Err(Error::InvalidResponsePayload(Default::default(), blind(&error))),
    }
}

/// Reads an answer that is a stream to its end, at most `limit` bytes. `progress` is told how many have come so far.
pub async fn collect<E>(
    answer: ResponseValue<ByteStream>,
    limit: usize,
    mut progress: impl FnMut(usize),
) -> Result<Vec<u8>, Error<E>> {
    let mut stream = answer.into_inner_stream();
    let mut body = Vec::new();
    while let Some(chunk) = poll_fn(|context| stream.as_mut().poll_next(context)).await {
        let chunk = chunk.map_err(|error| Error::ResponseBodyError(error.without_url()))?;
        if body.len() + chunk.len() > limit {
            return Err(Error::Custom(TOO_LONG.to_owned()));
        }
        body.extend_from_slice(&chunk);
        progress(body.len());
    }
    Ok(body)
}

/// An error whose body is not the daemon's still has a status.
fn substitute<T: DeserializeOwned>(status: StatusCode) -> Option<T> {
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let message = format!("HTTP {}", status.as_u16());
    serde_json::from_value(json!({"status": "error", "code": NOT_OURS, "message": message})).ok()
}

fn blind(error: &serde_json::Error) -> serde_json::Error {
    let place = Place { line: error.line(), column: error.column() };
    serde::de::Error::custom(place)
}

struct Place {
    line: usize,
    column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the answer does not have the documented form (line {}, column {})", self.line, self.column)
    }
}
