//! The stand-in for OpenAI: all that the real Codex CLI needs. It refuses the same calls as the real one.
//!
//! Refresh tokens are single use and rotate. An access token is valid until its `exp`, or until it is withdrawn.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::http::{Call, HttpServer, Reply};
use super::now;

pub struct Upstream {
    server: HttpServer,
    state: Arc<Mutex<State>>,
}

struct State {
    serial: u64,
    /// When the first tokens were issued; each set is ten seconds younger than the one before.
    first_issued: i64,
    /// The lifetime of access tokens from now on, in seconds; below zero: already expired.
    lifetime: i64,
    /// Valid refresh tokens and their accounts.
    refresh: HashMap<String, String>,
    used: HashSet<String>,
    access: HashMap<String, i64>,
    /// The model's answer.
    answer: String,
    /// The model does not answer while this is set.
    hangs: bool,
}

impl Upstream {
    pub fn start() -> Self {
        Self::over(|handler| HttpServer::plain(handler))
    }

    /// With a certificate for `localhost` and its key, both PEM.
    pub fn start_tls(certificate: &str, key: &str) -> Self {
        Self::over(|handler| HttpServer::tls(certificate, key, handler))
    }

    fn over(start: impl FnOnce(Box<dyn Fn(&Call) -> Reply + Send + Sync>) -> HttpServer) -> Self {
        let state = Arc::new(Mutex::new(State {
            serial: 0,
            first_issued: now().unix_timestamp() - 86_400,
            lifetime: 864_000,
            refresh: HashMap::new(),
            used: HashSet::new(),
            access: HashMap::new(),
            answer: "Banana".into(),
            hangs: false,
        }));
        let shared = Arc::clone(&state);
        let handler = move |call: &Call| {
            while shared.lock().unwrap().hangs {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            shared.lock().unwrap().answer(call)
        };
        Self { server: start(Box::new(handler)), state }
    }

    /// Sets the model's answer from now on.
    pub fn set_answer(&self, answer: &str) {
        self.state.lock().unwrap().answer = answer.into();
    }

    /// Answers nothing from now on.
    pub fn hang(&self) {
        self.state.lock().unwrap().hangs = true;
    }

    /// Answers again, also the calls that hung.
    pub fn go_on(&self) {
        self.state.lock().unwrap().hangs = false;
    }

    /// Refuses every token that was issued so far.
    pub fn revoke(&self) {
        let mut state = self.state.lock().unwrap();
        state.access.clear();
        state.refresh.clear();
    }

    /// Tokens issued from now on belong to this account, whatever account asked.
    pub fn give_to(&self, account: &str) {
        self.state.lock().unwrap().refresh.values_mut().for_each(|known| *known = account.into());
    }

    /// A new login, as `codex login` writes it into `auth.json`; its access token lives for `lifetime` seconds.
    pub fn login(&self, account: &str, lifetime: i64) -> Value {
        let mut state = self.state.lock().unwrap();
        let mut tokens = state.tokens(account, lifetime);
        tokens["account_id"] = account.into();
        json!({
            "auth_mode": "chatgpt",
            "OPENAI_API_KEY": null,
            "tokens": tokens,
            "last_refresh": now().format(&Rfc3339).unwrap(),
        })
    }

    /// The lifetime of access tokens from a refresh from now on.
    pub fn set_lifetime(&self, seconds: i64) {
        self.state.lock().unwrap().lifetime = seconds;
    }

    /// Refuses every access token that was issued so far.
    pub fn withdraw_access(&self) {
        self.state.lock().unwrap().access.clear();
    }

    /// The host and port of its URLs: the name if it has a certificate.
    pub fn authority(&self) -> String {
        let url = self.url();
        url.split_once("//").unwrap().1.to_owned()
    }

    fn url(&self) -> String {
        // The certificate is for a name.
        let url = self.server.url();
        if url.starts_with("https") { url.replace("127.0.0.1", "localhost") } else { url }
    }

    /// The lines of `config.toml` that make Codex call this server.
    pub fn config_toml(&self) -> String {
        let url = self.url();
        format!("chatgpt_base_url = \"{url}/backend-api/\"\nopenai_base_url = \"{url}/v1\"\n")
    }

    /// The value of `CODEX_REFRESH_TOKEN_URL_OVERRIDE`.
    pub fn token_url(&self) -> String {
        format!("{}/oauth/token", self.url())
    }

    pub fn calls(&self) -> Vec<Call> {
        self.server.calls()
    }

    /// The calls of one method to one path, with their status.
    pub fn calls_to(&self, method: &str, path: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.method == method && call.path == path).collect()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.go_on();
    }
}

impl State {
    fn answer(&mut self, call: &Call) -> Reply {
        match (call.method.as_str(), call.path.as_str()) {
            ("POST", "/oauth/token") => self.refresh(&call.json()),
            ("POST", "/oauth/revoke") => {
                self.refresh.remove(call.json()["token"].as_str().unwrap_or_default());
                Reply::json(200, &json!({}))
            }
            // Codex interprets this as "no websocket here" and uses HTTP at once.
            ("GET", "/v1/responses") => Reply::json(426, &json!({"error": {"message": "Upgrade Required"}})),
            (_, path) if (path.starts_with("/v1/") || path.starts_with("/backend-api/wham/")) && !self.admits(call) => {
                Reply::json(401, &json!({"error": {"message": "Unauthorized", "code": "token_expired"}}))
            }
            ("GET", "/v1/models") => Reply::json(200, &json!({"models": []})),
            ("POST", "/v1/responses") => Reply::new(200, "text/event-stream", turn(&self.answer)),
            ("GET", "/backend-api/wham/usage") => Reply::json(
                200,
                &json!({"plan_type": "pro", "rate_limit": {
                    "allowed": true, "limit_reached": false,
                    "primary_window": {"used_percent": 12, "limit_window_seconds": 18000, "reset_after_seconds": 9000, "reset_at": 1_795_283_373},
                    "secondary_window": {"used_percent": 34, "limit_window_seconds": 604_800, "reset_after_seconds": 300_000, "reset_at": 1_795_574_373}
                }}),
            ),
            ("GET", path) if path.starts_with("/backend-api/wham/") => Reply::json(200, &json!({})),
            _ => Reply::json(404, &json!({"error": {"message": "not found"}})),
        }
    }

    fn admits(&self, call: &Call) -> bool {
        let token = call.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        self.access.get(token).is_some_and(|exp| *exp > now().unix_timestamp())
    }

    fn refresh(&mut self, asked: &Value) -> Reply {
        let refusal = |code: &str, message: &str| {
            Reply::json(401, &json!({"error": {"message": message, "type": "invalid_request_error", "code": code}}))
        };
        let token = asked["refresh_token"].as_str().unwrap_or_default();
        if asked["grant_type"] != "refresh_token" || token.is_empty() {
            return Reply::json(400, &json!({"error": {"message": "bad request", "code": "invalid_request"}}));
        }
        if self.used.contains(token) {
            return refusal("refresh_token_reused", "Your refresh token was already used.");
        }
        let Some(account) = self.refresh.remove(token) else {
            return refusal("refresh_token_invalidated", "Your refresh token is not known.");
        };
        self.used.insert(token.to_owned());
        Reply::json(200, &self.tokens(&account, self.lifetime))
    }

    /// A new set of tokens for an account.
    fn tokens(&mut self, account: &str, lifetime: i64) -> Value {
        self.serial += 1;
        let (serial, now) = (self.serial, now().unix_timestamp());
        let issued = self.first_issued + 10 * serial as i64;
        let jwt = |kind: &str| {
            let claims = json!({
                "iat": issued, "exp": now + lifetime, "jti": format!("{kind}-{serial}"), "email": "fleet@example.test",
                "https://api.openai.com/auth": {"chatgpt_account_id": account, "chatgpt_plan_type": "pro", "chatgpt_user_id": "user-1"},
            });
            let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            format!("{}.{}.c2lnbmF0dXJl", encode(&json!({"alg": "RS256", "typ": "JWT"})), encode(&claims))
        };
        let (access, refresh) = (jwt("access"), format!("rt_{account}_{serial}_Zk3vQ9xT1mB7rLp0"));
        self.access.insert(access.clone(), now + lifetime);
        self.refresh.insert(refresh.clone(), account.to_owned());
        json!({"id_token": jwt("id"), "access_token": access, "refresh_token": refresh})
    }
}

/// One turn of a model with this answer.
fn turn(answer: &str) -> String {
    let usage = json!({
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 40},
        "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 105,
    });
    let item = json!({"type": "message", "role": "assistant", "id": "msg-1", "content": [{"type": "output_text", "text": answer}]});
    [
        json!({"type": "response.created", "response": {"id": "resp-1"}}),
        json!({"type": "response.output_item.done", "item": item}),
        json!({"type": "response.completed", "response": {"id": "resp-1", "usage": usage}}),
    ]
    .iter()
    .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()))
    .collect()
}
