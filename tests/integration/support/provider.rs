//! A sign-in provider that works correctly until a test sets one fault.
//!
//! Correct means: codes are used once, PKCE (S256) and the client's secret are checked, the token contains the nonce,
//! and the answer names the issuer (RFC 9207). Every visitor of `/authorize` counts as signed in and consenting.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use reqwest::Url;
use serde_json::{Map, Value, json};

// The same path works for the integration tests and for a unit test that includes this file.
#[path = "provider/signing.rs"]
pub mod signing;

use signing::{RsaKey, Signing};

pub const CLIENT: &str = "canary";
/// Contains characters that must be escaped in transit.
pub const SECRET: &str = "provider:client-secret+%&=";
pub const DISCOVERY: &str = "/.well-known/openid-configuration";
pub const AUTHORIZE: &str = "/authorize";
pub const TOKEN: &str = "/token";
pub const KEYS: &str = "/keys";

/// A faulty answer of a path.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A redirect to a good answer.
    Redirect,
    /// No answer until the fault is cleared.
    Silent,
    /// The head and a byte, then nothing until the fault is cleared.
    Halting,
    /// The good answer and this many blanks, with a Content-Length.
    Padded(usize),
    /// The good answer and endless blanks, without a Content-Length.
    Endless,
    Text(&'static str),
    /// The good answer without its last byte.
    Cut,
    ContentType(&'static str),
    Status(u16),
    /// The connection is closed.
    Gone,
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub authorization: Option<String>,
    pub form: HashMap<String, String>,
}

type Change<T> = Option<Box<dyn Fn(&mut T) + Send>>;

pub struct Behaviour {
    pub secret: Option<String>,
    pub signing: Signing,
    /// A code can be used again.
    pub takes_codes_again: bool,
    /// Changes the discovery document.
    pub document: Change<Value>,
    pub claims: Change<Map<String, Value>>,
    pub header: Change<Map<String, Value>>,
    /// Changes the whole answer of the token endpoint.
    pub answer: Change<Value>,
    /// Changes the parameters that the browser takes back.
    pub response: Change<Vec<(String, String)>>,
    pub keys: Change<Vec<Value>>,
    faults: HashMap<String, Fault>,
    key: Arc<RsaKey>,
    grants: HashMap<String, Grant>,
    serial: u64,
    seen: Vec<Seen>,
    codes: Vec<String>,
    tokens: Vec<String>,
}

#[derive(Clone)]
struct Grant {
    nonce: String,
    challenge: Option<String>,
    redirect_uri: String,
}

/// Serves until it is dropped.
pub struct Provider {
    port: u16,
    behaviour: Arc<Mutex<Behaviour>>,
    is_over: Arc<AtomicBool>,
}

impl Provider {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let behaviour = Behaviour {
            secret: Some(SECRET.into()),
            signing: Signing::Rs256,
            takes_codes_again: false,
            document: None,
            claims: None,
            header: None,
            answer: None,
            response: None,
            keys: None,
            faults: HashMap::new(),
            key: first(),
            grants: HashMap::new(),
            serial: 0,
            seen: Vec::new(),
            codes: Vec::new(),
            tokens: Vec::new(),
        };
        let (behaviour, is_over) = (Arc::new(Mutex::new(behaviour)), Arc::new(AtomicBool::new(false)));
        let (shared, over) = (Arc::clone(&behaviour), Arc::clone(&is_over));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let connection = Connection { port, behaviour: Arc::clone(&shared), is_over: Arc::clone(&over) };
                if let Ok(stream) = stream {
                    std::thread::spawn(move || connection.serve(stream));
                }
            }
        });
        Self { port, behaviour, is_over }
    }

    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Changes its behaviour from now on.
    pub fn set(&self) -> MutexGuard<'_, Behaviour> {
        lock(&self.behaviour)
    }

    pub fn fault(&self, path: &str, fault: Fault) {
        self.set().faults.insert(path.into(), fault);
    }

    pub fn mend(&self, path: &str) {
        self.set().faults.remove(path);
    }

    /// Replaces the key by another one with this name.
    pub fn rotate(&self, kid: &str) {
        let key = Arc::new(RsaKey::new(kid));
        self.set().key = key;
    }

    pub fn key(&self) -> Arc<RsaKey> {
        Arc::clone(&self.set().key)
    }

    pub fn count(&self, path: &str) -> usize {
        self.set().seen.iter().filter(|seen| seen.path == path).count()
    }

    /// The last request at this path.
    pub fn last(&self, path: &str) -> Option<Seen> {
        self.set().seen.iter().rev().find(|seen| seen.path == path).cloned()
    }

    /// All secrets that it issued or received: codes, tokens, verifiers, nonces, states.
    pub fn secrets(&self) -> Vec<String> {
        let behaviour = self.set();
        let told = behaviour
            .seen
            .iter()
            .flat_map(|seen| ["code_verifier", "nonce"].into_iter().filter_map(|name| seen.form.get(name).cloned()));
        let mut secrets: Vec<String> = told.chain(behaviour.codes.clone()).chain(behaviour.tokens.clone()).collect();
        secrets.extend(behaviour.secret.clone());
        secrets
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// The shared first key: making a key takes a while.
fn first() -> Arc<RsaKey> {
    static FIRST: OnceLock<Arc<RsaKey>> = OnceLock::new();
    FIRST.get_or_init(|| Arc::new(RsaKey::new("first"))).clone()
}

fn lock(behaviour: &Mutex<Behaviour>) -> MutexGuard<'_, Behaviour> {
    behaviour.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Connection {
    port: u16,
    behaviour: Arc<Mutex<Behaviour>>,
    is_over: Arc<AtomicBool>,
}

struct Reply {
    status: u16,
    location: Option<String>,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Reply {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, location: None, content_type: "application/json", body: body.to_string().into_bytes() }
    }

    fn error(status: u16, error: &str) -> Self {
        Self::json(status, &json!({ "error": error, "error_description": "secret-of-the-provider's-error" }))
    }
}

impl Connection {
    fn serve(&self, mut stream: TcpStream) {
        // An error means that the client has hung up.
        let _ = self.answer(&mut stream);
    }

    fn answer(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let Some((target, seen)) = read_request(stream)? else { return Ok(()) };
        let path = seen.path.clone();
        let (fault, mut reply) = {
            let mut behaviour = lock(&self.behaviour);
            behaviour.seen.push(seen.clone());
            // A redirect leads back here, to a good answer.
            let fault = behaviour.faults.get(&path).filter(|_| !target.ends_with("?good")).cloned();
            (fault, behaviour.reply(&seen, &format!("http://127.0.0.1:{}", self.port)))
        };
        match fault {
            Some(Fault::Gone) => return Ok(()),
            Some(Fault::Silent) => self.wait(&path),
            Some(Fault::Redirect) => {
                // 307: the same method and body.
                reply = Reply { status: 307, location: Some(format!("{path}?good")), ..reply };
            }
            Some(Fault::Padded(blanks)) => reply.body.extend(std::iter::repeat_n(b' ', blanks)),
            Some(Fault::Cut) => drop(reply.body.pop()),
            Some(Fault::Text(text)) => reply.body = text.into(),
            Some(Fault::ContentType(content_type)) => reply.content_type = content_type,
            Some(Fault::Status(status)) => reply.status = status,
            Some(Fault::Halting | Fault::Endless) | None => {}
        }
        let length = match fault {
            Some(Fault::Endless) => String::new(),
            _ => format!("content-length: {}\r\n", reply.body.len()),
        };
        let location = reply.location.map(|location| format!("location: {location}\r\n")).unwrap_or_default();
        write!(
            stream,
            "HTTP/1.1 {} .\r\ncontent-type: {}\r\n{location}{length}connection: close\r\n\r\n",
            reply.status, reply.content_type
        )?;
        if matches!(fault, Some(Fault::Halting)) {
            stream.write_all(&reply.body[..1])?;
            self.wait(&path);
        }
        stream.write_all(&reply.body)?;
        if matches!(fault, Some(Fault::Endless)) {
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
        Ok(())
    }

    /// Waits until the fault is cleared.
    fn wait(&self, path: &str) {
        while !self.is_over.load(Ordering::SeqCst) && lock(&self.behaviour).faults.contains_key(path) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<(String, Seen)>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let header = |name: &str| {
                head.lines().skip(1).find_map(|line| {
                    let (known, value) = line.split_once(':')?;
                    known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let target = head.split(' ').nth(1).unwrap_or("/").to_owned();
                let url = Url::parse("http://provider").and_then(|base| base.join(&target)).unwrap();
                let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
                let mut form = pairs(url.query().unwrap_or_default());
                form.extend(pairs(&body));
                let seen = Seen { path: url.path().to_owned(), authorization: header("authorization"), form };
                return Ok(Some((target, seen)));
            }
        }
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk[..read]);
    }
}

fn pairs(text: &str) -> HashMap<String, String> {
    let url = Url::parse(&format!("http://provider/?{text}")).unwrap();
    url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

impl Behaviour {
    /// Makes this its only key, and signs with it.
    pub fn sign_with(&mut self, key: &Arc<RsaKey>) {
        self.key = Arc::clone(key);
    }

    /// Clears the misbehaviour; faults and keys stay.
    pub fn behave(&mut self) {
        self.signing = Signing::Rs256;
        (self.document, self.claims, self.header) = (None, None, None);
        (self.answer, self.response) = (None, None);
    }

    fn reply(&mut self, seen: &Seen, issuer: &str) -> Reply {
        match seen.path.as_str() {
            DISCOVERY => {
                let mut document = json!({
                    "issuer": issuer,
                    "authorization_endpoint": format!("{issuer}{AUTHORIZE}"),
                    "token_endpoint": format!("{issuer}{TOKEN}"),
                    "jwks_uri": format!("{issuer}{KEYS}"),
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                    "code_challenge_methods_supported": ["S256"],
                    "authorization_response_iss_parameter_supported": true,
                });
                change(&self.document, &mut document);
                Reply::json(200, &document)
            }
            KEYS => {
                let mut keys = vec![self.key.public()];
                change(&self.keys, &mut keys);
                Reply::json(200, &json!({ "keys": keys }))
            }
            AUTHORIZE => self.authorize(&seen.form, issuer),
            TOKEN => self.exchange(seen, issuer),
            _ => Reply::error(404, "not_found"),
        }
    }

    fn authorize(&mut self, form: &HashMap<String, String>, issuer: &str) -> Reply {
        let get = |name: &str| form.get(name).cloned();
        let is_good = get("response_type").as_deref() == Some("code")
            && get("client_id").as_deref() == Some(CLIENT)
            && get("scope").is_some_and(|scope| scope.split(' ').any(|scope| scope == "openid"))
            && get("code_challenge").is_none_or(|_| get("code_challenge_method").as_deref() == Some("S256"));
        let (true, Some(redirect_uri), Some(nonce)) = (is_good, get("redirect_uri"), get("nonce")) else {
            return Reply::error(400, "invalid_request");
        };
        self.serial += 1;
        let code = format!("code-of-the-provider-{}", self.serial);
        self.codes.push(code.clone());
        let grant = Grant { nonce, challenge: get("code_challenge"), redirect_uri: redirect_uri.clone() };
        self.grants.insert(code.clone(), grant);
        let mut response = vec![("code".to_owned(), code), ("iss".to_owned(), issuer.to_owned())];
        response.extend(get("state").map(|state| ("state".to_owned(), state)));
        change(&self.response, &mut response);
        let location = Url::parse_with_params(&redirect_uri, response).unwrap().to_string();
        Reply { status: 302, location: Some(location), content_type: "text/plain", body: Vec::new() }
    }

    fn exchange(&mut self, seen: &Seen, issuer: &str) -> Reply {
        let get = |name: &str| seen.form.get(name).map(String::as_str);
        if !self.is_client(seen) {
            return Reply::error(401, "invalid_client");
        }
        let grant = get("code").and_then(|code| self.grants.get(code).cloned());
        if !self.takes_codes_again {
            get("code").and_then(|code| self.grants.remove(code));
        }
        let proved =
            get("code_verifier").map(|verifier| BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes())));
        // A verifier without a challenge means that an attacker removed the challenge (RFC 9700, 4.8.2).
        let Some(grant) = grant.filter(|grant| {
            get("grant_type") == Some("authorization_code")
                && get("redirect_uri") == Some(&grant.redirect_uri)
                && grant.challenge == proved
        }) else {
            return Reply::error(400, "invalid_grant");
        };
        let now = now();
        let claims = json!({
            "iss": issuer,
            "sub": "ada-of-the-provider",
            "aud": CLIENT,
            "exp": now + 300,
            "iat": now,
            "nonce": grant.nonce,
            "email": "Ada@example.test",
            "email_verified": true,
        });
        let Value::Object(mut claims) = claims else { unreachable!() };
        change(&self.claims, &mut claims);
        let id_token = self.signing.token(&self.key, &claims, |header| change(&self.header, header));
        let access_token = format!("access-token-of-the-provider-{}", self.serial);
        self.tokens.extend([id_token.clone(), access_token.clone()]);
        let mut answer = json!({
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": 300,
            "id_token": id_token,
        });
        change(&self.answer, &mut answer);
        Reply::json(200, &answer)
    }

    /// The secret is in the header or in the body, not in both. Without a secret, only the name is in the body.
    fn is_client(&self, seen: &Seen) -> bool {
        let in_body = seen.form.get("client_secret");
        match (&self.secret, &seen.authorization) {
            (Some(secret), Some(header)) if in_body.is_none() => {
                let decoded = header.strip_prefix("Basic ").and_then(|text| BASE64_STANDARD.decode(text).ok());
                let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
                // Each is escaped as in a form (RFC 6749, 2.3.1).
                text.split_once(':').is_some_and(|(name, given)| {
                    let given = pairs(&format!("{name}={given}"));
                    given.get(CLIENT) == Some(secret)
                })
            }
            (Some(secret), None) => {
                in_body == Some(secret) && seen.form.get("client_id").is_some_and(|id| id == CLIENT)
            }
            (None, None) => in_body.is_none() && seen.form.get("client_id").is_some_and(|id| id == CLIENT),
            _ => false,
        }
    }
}

fn change<T>(change: &Change<T>, value: &mut T) {
    if let Some(change) = change {
        change(value);
    }
}

/// Seconds since 1970.
#[allow(clippy::disallowed_methods)]
pub fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}
