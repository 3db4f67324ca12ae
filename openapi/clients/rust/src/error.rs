//! What an error of a call means, and what can be done about it.

use std::error::Error as StdError;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;

use crate::answer;
use crate::generated::{Error, types};

/// Why a call failed, for a decision by a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The daemon's name cannot be resolved.
    Name,
    /// There is no connection to the daemon.
    Unreachable,
    /// The daemon's certificate cannot be trusted. Nothing was sent.
    Untrusted,
    /// The TLS handshake failed for another reason. Nothing was sent.
    Handshake,
    /// The answer did not come in time.
    Timeout,
    /// The connection broke before the answer was complete.
    Broken,
    /// The answer is longer than the limit.
    TooLong,
    /// The answer does not have the documented form.
    Unreadable,
    /// The daemon answered with this status, which is no success.
    Status(u16),
    /// The request cannot be made.
    Request,
}

/// What the errors of the generated client say.
pub trait ErrorExt {
    fn kind(&self) -> ErrorKind;

    /// The daemon's description of the error, if the daemon itself answered.
    fn body(&self) -> Option<&types::ErrorBody>;

    /// How long the daemon asks to wait before the next call.
    fn retry_after(&self) -> Option<Duration>;
}

impl ErrorExt for Error<types::ErrorBody> {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::ErrorResponse(response) => ErrorKind::Status(response.status().as_u16()),
            Error::UnexpectedResponse(response) => ErrorKind::Status(response.status().as_u16()),
            Error::CommunicationError(error) | Error::ResponseBodyError(error) => transport(error),
            Error::InvalidResponsePayload(..) => ErrorKind::Unreadable,
            Error::Custom(reason) if reason == answer::TOO_LONG => ErrorKind::TooLong,
            Error::Custom(_) => ErrorKind::Unreadable,
            Error::InvalidRequest(_) | Error::InvalidUpgrade(_) => ErrorKind::Request,
        }
    }

    fn body(&self) -> Option<&types::ErrorBody> {
        match self {
            Error::ErrorResponse(response) if response.code != answer::NOT_OURS => Some(response),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        let seconds = self.body().and_then(|body| body.retry_after).and_then(|seconds| u64::try_from(seconds).ok());
        let headers = match self {
            Error::ErrorResponse(response) => Some(response.headers()),
            Error::UnexpectedResponse(response) => Some(response.headers()),
            _ => None,
        };
        let header = || headers?.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok();
        seconds.or_else(header).map(Duration::from_secs)
    }
}

fn transport(error: &reqwest::Error) -> ErrorKind {
    if error.is_timeout() {
        return ErrorKind::Timeout;
    }
    if error.is_builder() {
        return ErrorKind::Request;
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        return match tls {
            rustls::Error::InvalidCertificate(_) => ErrorKind::Untrusted,
            _ if error.is_connect() => ErrorKind::Handshake,
            _ => ErrorKind::Broken,
        };
    }
    if !error.is_connect() {
        return ErrorKind::Broken;
    }
    // hyper-util has no type for it.
    if chain(error).any(|cause| cause.to_string().starts_with("dns error")) {
        ErrorKind::Name
    } else {
        ErrorKind::Unreachable
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An I/O error skips the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped.map(|wrapped| wrapped as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    chain(error).find_map(|cause| cause.downcast_ref())
}
