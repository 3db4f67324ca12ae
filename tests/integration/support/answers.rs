//! Answers of the daemon to `cdx`, described once and written in the format of the call: lines for the bash `cdx`, JSON
//! for the native one.

use codex_authd::model::digest::Digest;
use codex_authd::service::hosts::bake;
use serde_json::{Value, json};

use super::http::{Call, Reply};

/// The format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Lines,
    Json,
}

#[derive(Clone, Debug)]
pub enum Answer {
    /// To a retrieve or a store.
    Sync {
        status: String,
        document: Option<String>,
    },
    Refusal {
        message: String,
        retry_after: Option<u64>,
    },
    /// These bytes in either format.
    Raw(Vec<u8>),
}

/// What an answer says about the program that the host should have.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    pub sha256: String,
    pub target: Option<String>,
}

pub fn sync(status: &str, document: Option<&str>) -> Answer {
    Answer::Sync { status: status.to_owned(), document: document.map(str::to_owned) }
}

pub fn refusal(message: &str) -> Answer {
    Answer::Refusal { message: message.to_owned(), retry_after: None }
}

impl<T: Into<Vec<u8>>> From<T> for Answer {
    fn from(bytes: T) -> Self {
        Self::Raw(bytes.into())
    }
}

impl Answer {
    pub fn reply(&self, status: u16, call: &Call, offer: &Offer) -> Reply {
        let format = if call.path == "/auth/lines" { Format::Lines } else { Format::Json };
        let content_type = match format {
            Format::Lines => "text/plain; charset=utf-8",
            Format::Json => "application/json; charset=utf-8",
        };
        let mut reply = Reply::new(status, content_type, self.written(format, status, offer));
        if let Self::Refusal { retry_after: Some(seconds), .. } = self {
            reply.headers.push(("Retry-After", seconds.to_string()));
        }
        reply
    }

    /// The body of an answer with status 200 and nothing to update.
    pub fn bytes(&self, format: Format) -> Vec<u8> {
        self.written(format, 200, &Offer::default())
    }

    fn written(&self, format: Format, status: u16, offer: &Offer) -> Vec<u8> {
        match (self, format) {
            (Self::Raw(bytes), _) => bytes.clone(),
            (Self::Sync { status, document }, Format::Lines) => sync_lines(status, document.as_deref(), offer),
            (Self::Sync { status, document }, Format::Json) => {
                sync_json(status, document.as_deref(), offer).to_string().into_bytes()
            }
            (Self::Refusal { message, retry_after }, Format::Lines) => {
                let mut text = format!("status error\ncode {status}\nmessage {message}\n");
                if let Some(seconds) = retry_after {
                    text += &format!("retry_after {seconds}\n");
                }
                text.into_bytes()
            }
            (Self::Refusal { message, retry_after }, Format::Json) => {
                let code = message.split_once(": ").map_or("refused", |(code, _)| code);
                let mut body = json!({"status": "error", "code": code, "message": message});
                if let Some(seconds) = retry_after {
                    body["retry_after"] = (*seconds).into();
                }
                body.to_string().into_bytes()
            }
        }
    }
}

/// The release of Codex that the stand-in names.
pub const CLIENT_VERSION: &str = "0.169.0";

fn sync_lines(status: &str, document: Option<&str>, offer: &Offer) -> Vec<u8> {
    let mut text = format!("status {status}\nmessage all is well\nclient_version {CLIENT_VERSION}\n");
    text += &format!("wrapper_version {}\n", bake::WRAPPER_VERSION);
    if !offer.sha256.is_empty() {
        text += &format!("wrapper_sha256 {}\n", offer.sha256);
    }
    if let Some(target) = &offer.target {
        text += &format!("wrapper_target {target}\n");
    }
    if let Some(document) = document {
        text += &format!("digest {}\nauth {}\n{document}", Digest::of(document.as_bytes()), document.len());
    }
    text.into_bytes()
}

fn sync_json(status: &str, document: Option<&str>, offer: &Offer) -> Value {
    let nothing = Digest::of(b"").to_string();
    let sha256 = if offer.sha256.is_empty() { &nothing } else { &offer.sha256 };
    let mut versions = json!({
        "client_version": CLIENT_VERSION, "client_version_checked_at": "2025-11-20T09:00:00Z", "client_version_source": "cache",
        "wrapper_version": bake::WRAPPER_VERSION, "wrapper_sha256": sha256, "wrapper_url": "/wrapper/download",
        "reported_client_version": null, "quota_hard_fail": true,
    });
    if let Some(target) = &offer.target {
        versions["wrapper_target"] = target.as_str().into();
    }
    let mut data = json!({
        "status": status, "canonical_last_refresh": null, "canonical_digest": null, "api_calls": 1,
        "token_usage_month": {"total": 0, "input": 0, "output": 0, "cached": 0, "reasoning": 0, "events": 0},
        "host": {
            "fqdn": "h1.example.test", "status": "active", "last_refresh": null, "updated_at": "2025-11-20T09:00:00Z",
            "client_version": null, "wrapper_version": null, "api_calls": 1, "allow_roaming_ips": false, "secure": true,
            "insecure_enabled_until": null, "insecure_grace_until": null,
        },
        "versions": versions, "quota_hard_fail": true,
    });
    if ["missing", "upload_required"].contains(&status) {
        data["action"] = "store".into();
    }
    if let Some(document) = document {
        let parsed: Option<Value> = serde_json::from_str(document).ok();
        data["canonical_digest"] = Digest::of(document.as_bytes()).to_string().into();
        data["canonical_last_refresh"] =
            parsed.as_ref().map(|parsed| parsed["last_refresh"].clone()).unwrap_or_default();
        data["auth"] = parsed.unwrap_or_default();
        data["auth_text"] = document.into();
    }
    json!({"status": "ok", "data": data})
}
