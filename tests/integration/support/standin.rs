//! A stand-in of the daemon, for tests that are about `cdx` alone: its endpoints in their simplest form, and all the ways
//! to answer wrongly.

use std::sync::{Arc, Mutex};

use codex_authd::model::digest::Digest;
use serde_json::Value;

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

    /// Every call is answered with this from now on.
    pub fn answer_always(&self, status: u16, body: impl Into<Vec<u8>>) {
        self.state.lock().unwrap().override_answer = Some((status, body.into()));
    }

    pub fn answer_well(&self) {
        self.state.lock().unwrap().override_answer = None;
    }

    /// What `/wrapper/download` gives, and the digest it announces.
    pub fn set_wrapper(&self, script: &[u8], announced: &str) {
        self.state.lock().unwrap().wrapper = Some((script.to_vec(), announced.to_owned()));
    }

    /// Called while a call is being handled, the caller waiting.
    pub fn on_call(&self, hook: impl FnMut() + Send + 'static) {
        self.state.lock().unwrap().on_call = Some(Box::new(hook));
    }

    /// The commands that came to `/auth`.
    pub fn commands(&self) -> Vec<String> {
        let calls = self.server.calls();
        calls.iter().map(|call| call.json()["command"].as_str().unwrap_or(&call.method).to_owned()).collect()
    }
}

/// The answer in lines, with the document as its end.
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
            ("POST", "/auth", "format=lines") => plain(200, self.auth(&call.json())),
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

    fn auth(&mut self, asked: &Value) -> Vec<u8> {
        let date = |text: &str| serde_json::from_str::<Value>(text).unwrap()["last_refresh"].as_str().map(String::from);
        match (asked["command"].as_str(), &self.canonical) {
            (Some("store"), canonical) => {
                let sent = asked["auth"].to_string();
                if canonical.as_ref().is_some_and(|present| date(present) > date(&sent)) {
                    return lines("outdated", canonical.as_deref());
                }
                self.canonical = Some(sent.clone());
                lines("updated", Some(&sent))
            }
            (_, None) => lines("missing", None),
            (_, Some(canonical)) => {
                if asked["digest"] == Digest::of(canonical.as_bytes()).to_string() {
                    lines("valid", None)
                } else if asked["last_refresh"].as_str().map(String::from) > date(canonical) {
                    lines("upload_required", None)
                } else {
                    lines("outdated", Some(canonical))
                }
            }
        }
    }
}
