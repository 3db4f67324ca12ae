//! The answer to `POST /auth?format=lines`, for shells without a JSON parser.
//!
//! One `name value` per line; values have no line breaks. If there is a document, the last line is `auth LENGTH`,
//! followed by exactly that many bytes. The wrapper (wrapper/cdx) reads it and treats every byte as hostile.

use poem::http::StatusCode;
use poem::{IntoResponse, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::MetaSchemaRef;
use poem_openapi::types::Type;

use super::errors::Failure;
use super::types::auth::AuthAnswer;

pub struct Lines(String);

impl Lines {
    pub fn of_answer(answer: &AuthAnswer) -> (StatusCode, Self) {
        let versions = &answer.versions;
        let mut lines = Self(String::with_capacity(8 * 1024));
        lines.line("status", &answer.status);
        lines.optional("action", answer.action.as_deref());
        lines.optional("digest", answer.canonical_digest.as_deref());
        lines.optional("last_refresh", answer.canonical_last_refresh.as_deref());
        lines.optional("client_version", versions.client_version.as_deref());
        lines.line("wrapper_version", &versions.wrapper_version);
        lines.line("wrapper_sha256", &versions.wrapper_sha256);
        if let Some(auth) = &answer.auth {
            lines.line("auth", &auth.text().len().to_string());
            lines.0.push_str(auth.text());
        }
        (StatusCode::OK, lines)
    }

    pub fn of_failure(failure: &Failure) -> (StatusCode, Self) {
        let (status, body) = failure.body();
        let mut lines = Self(String::new());
        lines.line("status", "error");
        lines.line("code", status.as_str());
        lines.line("message", &body.message);
        for (field, reasons) in body.errors.iter().flatten() {
            lines.line("error", &format!("{field}: {}", reasons.join("; ")));
        }
        if let Some(address) = &body.address {
            lines.line("called_from", &address.called_from);
            lines.optional("bound_to", address.bound_to.as_deref());
        }
        if let Some(seconds) = failure.retry_after() {
            lines.line("retry_after", &seconds.to_string());
        }
        (status, lines)
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

impl Payload for Lines {
    const CONTENT_TYPE: &'static str = "text/plain";

    fn schema_ref() -> MetaSchemaRef {
        String::schema_ref()
    }
}

impl IntoResponse for Lines {
    fn into_response(self) -> Response {
        Response::builder().content_type("text/plain; charset=utf-8").body(self.0)
    }
}
