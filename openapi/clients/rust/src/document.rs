//! `GET /auth/document`: the canonical login as exact bytes.

use aws_lc_rs::digest;
use reqwest::StatusCode;

use crate::generated::{Client, Error, types};
use crate::{MAX_ANSWER_BYTES, Secret, answer};

/// The canonical auth.json of the fleet.
#[derive(Clone, Debug)]
pub struct Document {
    /// The exact text.
    pub text: Secret,
    /// Its SHA-256 in lower-case hexadecimal digits, as the daemon announced it. It was compared with the text.
    pub sha256: String,
}

impl Client {
    /// The canonical login, or `None` if it is the one with this SHA-256. It is an error if the text is not what the
    /// daemon announced.
    pub async fn auth_document(&self, known_sha256: Option<&str>) -> Result<Option<Document>, Error<types::ErrorBody>> {
        let mut request = self.get_auth_document();
        if let Some(known) = known_sha256 {
            request = request.if_none_match(format!("\"{known}\""));
        }
        let answered = match request.send().await {
            Err(Error::UnexpectedResponse(response)) if response.status() == StatusCode::NOT_MODIFIED => {
                return Ok(None);
            }
            other => other?,
        };
        let announced = answered.headers().get("etag").and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        let announced = announced.trim_matches('"').to_owned();
        let bytes = answer::collect(answered, MAX_ANSWER_BYTES, |_| ()).await?;
        let text = String::from_utf8(bytes).ok().filter(|text| sha256_hex(text.as_bytes()) == announced);
        let text = text.ok_or_else(|| Error::Custom("the document does not match its ETag".to_owned()))?;
        Ok(Some(Document { text: Secret::new(text), sha256: announced }))
    }
}

/// The SHA-256 of these bytes in lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    digest::digest(&digest::SHA256, bytes).as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
