//! A stand-in for the daemon, for tests of `cdx` alone: its endpoints in their simplest form, and all kinds of wrong
//! answers.

use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use codex_authd::model::digest::Digest;
use serde_json::{Value, json};

use super::http::{Call, HttpServer, Reply};

pub const KEY: &str = "5c7d0e0f8a64411f9b1f2a3948576b0c5c7d0e0f8a64411f9b1f2a3948576b0c";

pub struct StandIn {
    pub server: HttpServer,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    canonical: Option<String>,
    override_answer: Option<(u16, Vec<u8>)>,
    override_store: Option<(u16, Vec<u8>)>,
    wrapper: Option<(Vec<u8>, String)>,
    on_call: Option<Box<dyn FnMut() + Send>>,
}

impl StandIn {
    pub fn start() -> Self {
        Self::over(HttpServer::plain)
    }

    pub fn start_tls(certificate: &str, key: &str) -> Self {
        Self::over(|handler| HttpServer::tls(certificate, key, handler))
    }

    fn over(start: impl FnOnce(Box<dyn Fn(&Call) -> Reply + Send + Sync>) -> HttpServer) -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        Self { server: start(Box::new(move |call| shared.lock().unwrap().answer(call))), state }
    }

    pub fn set_canonical(&self, document: &Value) -> String {
        let text = document.to_string();
        self.state.lock().unwrap().canonical = Some(text.clone());
        text
    }

    pub fn canonical(&self) -> Option<String> {
        self.state.lock().unwrap().canonical.clone()
    }

    /// Answers every call with this from now on.
    pub fn answer_always(&self, status: u16, body: impl Into<Vec<u8>>) {
        self.state.lock().unwrap().override_answer = Some((status, body.into()));
    }

    /// Answers every store with this from now on.
    pub fn answer_stores(&self, status: u16, body: impl Into<Vec<u8>>) {
        self.state.lock().unwrap().override_store = Some((status, body.into()));
    }

    pub fn answer_well(&self) {
        let mut state = self.state.lock().unwrap();
        (state.override_answer, state.override_store) = (None, None);
    }

    /// Sets the content of `/wrapper/download`, and the digest it announces.
    pub fn set_wrapper(&self, script: &[u8], announced: &str) {
        self.state.lock().unwrap().wrapper = Some((script.to_vec(), announced.to_owned()));
    }

    /// Runs `hook` while a call is being handled and its caller waits.
    pub fn on_call(&self, hook: impl FnMut() + Send + 'static) {
        self.state.lock().unwrap().on_call = Some(Box::new(hook));
    }

    /// The commands that `/auth` received.
    pub fn commands(&self) -> Vec<String> {
        let calls = self.server.calls();
        calls.iter().map(|call| call.json()["command"].as_str().unwrap_or(&call.method).to_owned()).collect()
    }
}

/// The answer in lines, with the document at its end.
pub fn lines(status: &str, document: Option<&str>) -> Vec<u8> {
    let mut text = format!("status {status}\nmessage all is well\nclient_version 0.169.0\n");
    if let Some(document) = document {
        text += &format!("digest {}\nauth {}\n{document}", Digest::of(document.as_bytes()), document.len());
    }
    text.into_bytes()
}

impl State {
    fn answer(&mut self, call: &Call) -> Reply {
        if let Some(hook) = &mut self.on_call {
            hook();
        }
        let plain = |status, body: Vec<u8>| Reply::new(status, "text/plain; charset=utf-8", body);
        if let Some((status, body)) = &self.override_answer {
            return plain(*status, body.clone());
        }
        if call.header("x-api-key") != Some(KEY) {
            return plain(401, b"status error\ncode 401\nmessage Invalid API key\n".to_vec());
        }
        match (call.method.as_str(), call.path.as_str(), call.query.as_str()) {
            ("POST", "/auth", "format=lines") => match (&self.override_store, &call.json()) {
                (Some((status, body)), asked) if asked["command"] == "store" => plain(*status, body.clone()),
                (_, asked) => {
                    let (status, body) = self.auth(asked);
                    plain(status, body)
                }
            },
            ("DELETE", "/auth", "format=lines") => plain(200, b"status ok\n".to_vec()),
            ("GET", "/wrapper/download", "") => match &self.wrapper {
                Some((script, announced)) => {
                    let mut reply = Reply::new(200, "text/x-shellscript", script.clone());
                    reply.headers.push(("X-SHA256", announced.clone()));
                    reply
                }
                None => plain(404, b"status error\nmessage no wrapper\n".to_vec()),
            },
            _ => plain(404, b"status error\nmessage Not found\n".to_vec()),
        }
    }

    /// Decides like the daemon: by account, then by the issuer's clock if both tokens have one, otherwise by date.
    fn auth(&mut self, asked: &Value) -> (u16, Vec<u8>) {
        let claims = |login: &Value| jwt_claims(login["tokens"]["access_token"].as_str().unwrap_or_default());
        let date = |login: &Value| login["last_refresh"].as_str().unwrap_or("2000-01-01T00:00:00Z").to_owned();
        let present: Option<Value> = self.canonical.as_deref().map(|text| serde_json::from_str(text).unwrap());
        let store = asked["command"] == "store";
        let body = match (store, present) {
            (false, None) => lines("missing", None),
            (true, present) => {
                let mut sent = asked["auth"].clone();
                if let Some(present) = present {
                    let (ours, theirs) = (claims(&present), claims(&sent));
                    if ours["account"].is_string() && ours["account"] != theirs["account"] {
                        return (
                            409,
                            b"status error\ncode 409\nmessage other_account: it belongs to another account\n".to_vec(),
                        );
                    }
                    if present["tokens"] == sent["tokens"] && ours["iat"].is_i64() {
                        return (200, lines("unchanged", self.canonical.as_deref()));
                    }
                    let newer = match (ours["iat"].as_i64(), theirs["iat"].as_i64()) {
                        (Some(ours), Some(theirs)) if ours != theirs => theirs > ours,
                        _ => date(&sent) >= date(&present),
                    };
                    if !newer {
                        return (200, lines("outdated", self.canonical.as_deref()));
                    }
                }
                if date(&sent) > in_five_minutes() {
                    sent["last_refresh"] = rfc3339(super::now()).into();
                }
                let text = sent.to_string();
                self.canonical = Some(text.clone());
                lines("updated", Some(&text))
            }
            (false, Some(present)) => {
                let canonical = self.canonical.as_deref();
                if asked["digest"] == Digest::of(canonical.unwrap().as_bytes()).to_string() {
                    lines("valid", None)
                } else if asked["last_refresh"].as_str() > Some(date(&present).as_str()) {
                    lines("upload_required", None)
                } else {
                    lines("outdated", canonical)
                }
            }
        };
        (200, body)
    }
}

/// `iat` and `account` of a JWT; null if they are missing.
fn jwt_claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Value = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    json!({"iat": claims["iat"], "account": claims["https://api.openai.com/auth"]["chatgpt_account_id"]})
}

fn rfc3339(moment: time::OffsetDateTime) -> String {
    moment.format(&time::format_description::well_known::Rfc3339).unwrap()
}

fn in_five_minutes() -> String {
    rfc3339(super::now() + time::Duration::minutes(5))
}
