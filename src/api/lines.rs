//! The answer to `POST /auth/lines`, for shells without a JSON parser.
//!
//! One `name value` per line; values have no line breaks. If there is a document, the last line is `auth LENGTH`,
//! followed by exactly that many bytes. The wrapper (wrapper/cdx) reads it and treats every byte as hostile.

use poem::http::header::{CONTENT_TYPE, HeaderValue};
use poem::{IntoResponse, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::MetaSchemaRef;
use poem_openapi::types::Type as _;

use super::errors::ErrorBody;
use super::types::auth::{AuthAnswer, SyncAction};

pub const PATH: &str = "/auth/lines";

pub struct Lines(String);

impl Lines {
    pub fn of_answer(answer: &AuthAnswer) -> Self {
        let versions = &answer.versions;
        let mut lines = Self(String::with_capacity(8 * 1024));
        lines.line("status", answer.status.as_str());
        lines.optional("action", answer.action.map(SyncAction::as_str));
        lines.optional("digest", answer.canonical_digest.as_deref());
        lines.optional("last_refresh", answer.canonical_last_refresh.as_deref());
        lines.optional("client_version", versions.client_version.as_deref());
        lines.line("wrapper_version", &versions.wrapper_version);
        lines.line("wrapper_sha256", &versions.wrapper_sha256);
        lines.optional("wrapper_target", versions.wrapper_target.as_deref());
        if let Some(auth) = &answer.auth {
            lines.line("auth", &auth.text().len().to_string());
            lines.0.push_str(auth.text());
        }
        lines
    }

    fn optional(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.line(name, value);
        }
    }

    fn line(&mut self, name: &str, value: &str) {
        self.0.push_str(name);
        self.0.push(' ');
        self.0.extend(value.chars().map(|c| if c.is_control() { ' ' } else { c }));
        self.0.push('\n');
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Converts a refusal to lines. Status and headers stay.
pub async fn lines_of(refusal: Response) -> Response {
    let (mut parts, body) = refusal.into_parts();
    let body = body.into_vec().await.unwrap_or_default();
    let mut lines = Lines(String::new());
    lines.line("status", "error");
    lines.line("code", parts.status.as_str());
    if let Ok(ErrorBody { message, errors, address, retry_after, .. }) = serde_json::from_slice(&body) {
        lines.line("message", &message);
        for (field, reasons) in errors.iter().flatten() {
            lines.line("error", &format!("{field}: {}", reasons.join("; ")));
        }
        if let Some(address) = &address {
            lines.line("called_from", &address.called_from);
            lines.optional("bound_to", address.bound_to.as_deref());
        }
        lines.optional("retry_after", retry_after.map(|seconds| seconds.to_string()).as_deref());
    }
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    Response::from_parts(parts, lines.0.into())
}

impl IntoResponse for Lines {
    fn into_response(self) -> Response {
        Response::builder().content_type(TEXT).body(self.0)
    }
}

impl Payload for Lines {
    const CONTENT_TYPE: &'static str = "text/plain";

    fn schema_ref() -> MetaSchemaRef {
        String::schema_ref()
    }
}
