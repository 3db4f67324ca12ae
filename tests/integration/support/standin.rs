//! A stand-in for the daemon, for tests of `cdx` alone: its endpoints in their simplest form, and all kinds of wrong
//! answers.

use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use codex_authd::model::digest::Digest;
use serde_json::{Value, json};

use super::answers::{Answer, Offer, refusal, sync};
use super::http::{Call, HttpServer, Reply};

pub const KEY: &str = "5c7d0e0f8a64411f9b1f2a3948576b0c5c7d0e0f8a64411f9b1f2a3948576b0c";

pub struct StandIn {
    pub server: HttpServer,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    canonical: Option<String>,
    override_answer: Option<(u16, Answer)>,
    override_store: Option<(u16, Answer)>,
    wrapper: Option<Download>,
    program: Option<Download>,
    on_call: Option<Box<dyn FnMut() + Send>>,
}

/// A program or script, and the digest that is announced for it.
#[derive(Clone)]
struct Download {
    bytes: Vec<u8>,
    announced: String,
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
    pub fn answer_always(&self, status: u16, answer: impl Into<Answer>) {
        self.state.lock().unwrap().override_answer = Some((status, answer.into()));
    }

    /// Answers every store with this from now on.
    pub fn answer_stores(&self, status: u16, answer: impl Into<Answer>) {
        self.state.lock().unwrap().override_store = Some((status, answer.into()));
    }

    pub fn answer_well(&self) {
        let mut state = self.state.lock().unwrap();
        (state.override_answer, state.override_store) = (None, None);
    }

    /// Sets the content of `/wrapper/download`, and the digest it announces.
    pub fn set_wrapper(&self, script: &[u8], announced: &str) {
        self.state.lock().unwrap().wrapper = Some(Download { bytes: script.to_vec(), announced: announced.to_owned() });
    }

    /// Sets the native program for this machine, and the digest it announces.
    pub fn set_program(&self, program: &[u8], announced: &str) {
        self.state.lock().unwrap().program =
            Some(Download { bytes: program.to_vec(), announced: announced.to_owned() });
    }

    /// Runs `hook` while a call is being handled and its caller waits.
    pub fn on_call(&self, hook: impl FnMut() + Send + 'static) {
        self.state.lock().unwrap().on_call = Some(Box::new(hook));
    }

    /// The commands of the calls, or their methods.
    pub fn commands(&self) -> Vec<String> {
        let calls = self.server.calls();
        calls.iter().map(|call| call.json()["command"].as_str().unwrap_or(&call.method).to_owned()).collect()
    }
}

/// The name of this machine's native program.
pub fn machine_target() -> String {
    format!("{}-{}", std::env::consts::ARCH, if cfg!(target_os = "macos") { "darwin" } else { "linux" })
}

impl State {
    fn answer(&mut self, call: &Call) -> Reply {
        if let Some(hook) = &mut self.on_call {
            hook();
        }
        if let Some((status, answer)) = &self.override_answer {
            return answer.reply(*status, call, &Offer::default());
        }
        let offer = self.offer(call);
        if call.header("x-api-key") != Some(KEY) {
            return refusal("Invalid API key").reply(401, call, &offer);
        }
        match (call.method.as_str(), call.path.as_str(), call.query.as_str()) {
            ("POST", "/auth" | "/auth/lines", "") => match (&self.override_store, &call.json()) {
                (Some((status, answer)), asked) if asked["command"] == "store" => answer.reply(*status, call, &offer),
                (_, asked) => {
                    let (status, answer) = self.auth(asked);
                    answer.reply(status, call, &offer)
                }
            },
            ("DELETE", "/auth", "" | "force=true") => {
                Reply::json(200, &json!({"status": "ok", "data": {"deleted": "h1.example.test"}}))
            }
            ("GET", "/wrapper/download", "") => download(self.wrapper.as_ref(), "text/x-shellscript", call),
            ("GET", "/wrapper/download", query) if query == format!("target={}", machine_target()) => {
                download(self.program.as_ref(), "application/octet-stream", call)
            }
            _ => refusal("Not found").reply(404, call, &offer),
        }
    }

    /// What the answer to this call says about the versions.
    fn offer(&self, call: &Call) -> Offer {
        let asked = call.json();
        match &self.program {
            Some(program) if asked["wrapper_target"] == machine_target() => {
                Offer { sha256: program.announced.clone(), target: Some(machine_target()) }
            }
            _ => {
                Offer { sha256: self.wrapper.as_ref().map(|it| it.announced.clone()).unwrap_or_default(), target: None }
            }
        }
    }

    /// Decides like the daemon: by account, then by the issuer's clock if both tokens have one, otherwise by date.
    fn auth(&mut self, asked: &Value) -> (u16, Answer) {
        let claims = |login: &Value| jwt_claims(login["tokens"]["access_token"].as_str().unwrap_or_default());
        let date = |login: &Value| login["last_refresh"].as_str().unwrap_or("2000-01-01T00:00:00Z").to_owned();
        let present: Option<Value> = self.canonical.as_deref().map(|text| serde_json::from_str(text).unwrap());
        let store = asked["command"] == "store";
        let body = match (store, present) {
            (false, None) => sync("missing", None),
            (true, present) => {
                let mut sent = match asked["auth_text"].as_str() {
                    Some(text) => serde_json::from_str(text).unwrap_or_default(),
                    None => asked["auth"].clone(),
                };
                if let Some(present) = present {
                    let (ours, theirs) = (claims(&present), claims(&sent));
                    if ours["account"].is_string() && ours["account"] != theirs["account"] {
                        return (409, refusal("other_account: it belongs to another account"));
                    }
                    if present["tokens"] == sent["tokens"] && ours["iat"].is_i64() {
                        return (200, sync("unchanged", self.canonical.as_deref()));
                    }
                    let newer = match (ours["iat"].as_i64(), theirs["iat"].as_i64()) {
                        (Some(ours), Some(theirs)) if ours != theirs => theirs > ours,
                        _ => date(&sent) >= date(&present),
                    };
                    if !newer {
                        return (200, sync("outdated", self.canonical.as_deref()));
                    }
                }
                if date(&sent) > in_five_minutes() {
                    sent["last_refresh"] = rfc3339(super::now()).into();
                }
                let text = sent.to_string();
                self.canonical = Some(text.clone());
                sync("updated", Some(&text))
            }
            (false, Some(present)) => {
                let canonical = self.canonical.as_deref();
                if asked["digest"] == Digest::of(canonical.unwrap().as_bytes()).to_string() {
                    sync("valid", None)
                } else if asked["last_refresh"].as_str() > Some(date(&present).as_str()) {
                    sync("upload_required", None)
                } else {
                    sync("outdated", canonical)
                }
            }
        };
        (200, body)
    }
}

fn download(content: Option<&Download>, content_type: &str, call: &Call) -> Reply {
    let Some(content) = content else {
        return refusal("no_program: there is none for this machine").reply(404, call, &Offer::default());
    };
    let mut reply = Reply::new(200, content_type, content.bytes.clone());
    reply.headers.push(("X-SHA256", content.announced.clone()));
    reply
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
