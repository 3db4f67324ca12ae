//! The measured calls, and the fleet that makes them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use codex_authd::platform::{Clock as _, System};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::Result;
use crate::http::{Connection, Target, request};
use crate::load::{Script, Verdict};
use crate::seed;

const VALID: &str = r#"{"status":"ok","data":{"status":"valid""#;
const UPDATED: &str = r#"{"status":"ok","data":{"status":"updated""#;
const REGISTERED: &str = r#"{"status":"ok","data":{"host""#;

/// The registered hosts, and the login that they get.
pub struct Fleet {
    keys: Vec<String>,
    digest: String,
    last_refresh: String,
}

impl Fleet {
    /// Registers `hosts` hosts and uploads a login, over the admin listener.
    pub async fn make(admin: &Target, hosts: usize) -> Result<Self> {
        let last_refresh = (System.now() - Duration::hours(2)).format(&Rfc3339)?;
        let mut connection = Connection::open(admin).await?;
        let upload = json!({ "auth": document(&last_refresh) }).to_string();
        let answer = call(&mut connection, "/admin/auth/upload", &upload).await?;
        let digest = text(&answer, "/data/canonical_digest")?;
        let mut keys = Vec::with_capacity(hosts);
        for host in 0..hosts {
            let body = json!({ "fqdn": seed::name(host), "allow_short_name": true }).to_string();
            let answer = call(&mut connection, "/admin/hosts/register", &body).await?;
            keys.push(text(&answer, "/data/host/api_key")?);
        }
        Ok(Self { keys, digest, last_refresh })
    }

    /// Returns the answer for a host that has the canonical login.
    pub async fn valid_answer(&self, target: &Target) -> Result<Vec<u8>> {
        let mut connection = Connection::open(target).await?;
        let answer = connection.exchange(&self.retrieve(0, false)).await?;
        if !answer.body.starts_with(VALID.as_bytes()) {
            return Err(format!("not `valid`: {}", String::from_utf8_lossy(answer.body)).into());
        }
        Ok(answer.body.to_vec())
    }

    /// The hosts that `seed` made, with a login for them.
    pub async fn seeded(admin: &Target, hosts: usize) -> Result<Self> {
        let fleet = Self::make(admin, 0).await?;
        // Hosts with a closed window are not served.
        let keys = (0..hosts).filter(|host| seed::is_secure(*host)).map(seed::api_key).collect();
        Ok(Self { keys, ..fleet })
    }

    pub fn key(&self, host: usize) -> &str {
        &self.keys[host]
    }

    fn retrieve(&self, host: usize, close: bool) -> Vec<u8> {
        let body = json!({
            "command": "retrieve",
            "last_refresh": self.last_refresh,
            "digest": self.digest,
            "client_version": "0.169.0",
            "wrapper_version": "0.1.0",
        });
        request("POST", "/auth", Some(&self.keys[host]), close, &body.to_string())
    }
}

/// The cursor of the page behind `behind` hosts of a list.
pub async fn cursor(admin: &Target, query: &str, behind: usize) -> Result<String> {
    let mut connection = Connection::open(admin).await?;
    let (mut passed, mut cursor) = (0, String::new());
    while passed < behind {
        let limit = (behind - passed).min(1000);
        let from = if cursor.is_empty() { String::new() } else { format!("&cursor={cursor}") };
        let path = format!("/admin/hosts?{query}&limit={limit}{from}");
        let answer = connection.exchange(&request("GET", &path, None, false, "")).await?;
        cursor = text(&serde_json::from_slice(answer.body)?, "/data/next")?;
        passed += limit;
    }
    Ok(cursor)
}

/// Retrieves by many hosts, each with its own key, that have nothing to fetch.
pub struct Retrieves {
    requests: Vec<Vec<u8>>,
    expected: &'static str,
}

impl Retrieves {
    /// `close`: the client announces that this is its last request on the connection.
    pub fn new(fleet: &Fleet, close: bool) -> Self {
        let requests = (0..fleet.keys.len()).map(|host| fleet.retrieve(host, close)).collect();
        Self { requests, expected: VALID }
    }

    /// For a server with another answer.
    pub fn expecting(self, expected: &'static str) -> Self {
        Self { expected, ..self }
    }
}

/// Retrieves by the whole fleet, one host after the other, over any number of connections.
pub struct EveryHost {
    retrieves: Retrieves,
    next: AtomicUsize,
}

impl EveryHost {
    pub fn new(fleet: &Fleet) -> Self {
        Self { retrieves: Retrieves::new(fleet, false), next: AtomicUsize::new(0) }
    }

    /// Whether every host has called.
    pub fn is_done(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.retrieves.requests.len()
    }
}

impl Script for EveryHost {
    fn request(&self, _client: usize, request: &mut Vec<u8>) {
        // A stride, so that neighbours in the store are not requested in sequence.
        let host = self.next.fetch_add(1, Ordering::Relaxed) * 7919;
        self.retrieves.request(host, request);
    }

    fn judge(&self, status: u16, body: &[u8]) -> Verdict {
        self.retrieves.judge(status, body)
    }
}

/// Repeated GET requests of admins for one path.
pub struct Gets {
    request: Vec<u8>,
    expected: &'static str,
}

impl Gets {
    pub fn new(path: &str, expected: &'static str) -> Self {
        Self { request: request("GET", path, None, false, ""), expected }
    }
}

impl Script for Gets {
    fn request(&self, _client: usize, request: &mut Vec<u8>) {
        request.extend_from_slice(&self.request);
    }

    fn judge(&self, status: u16, body: &[u8]) -> Verdict {
        if status == 200 && body.starts_with(self.expected.as_bytes()) { Verdict::Counts } else { Verdict::Wrong }
    }
}

impl Script for Retrieves {
    fn request(&self, client: usize, request: &mut Vec<u8>) {
        request.extend_from_slice(&self.requests[client % self.requests.len()]);
    }

    fn judge(&self, status: u16, body: &[u8]) -> Verdict {
        if status == 200 && body.starts_with(self.expected.as_bytes()) { Verdict::Counts } else { Verdict::Wrong }
    }
}

/// Registrations by admins, always of new hosts.
pub struct Registrations(AtomicU64);

impl Registrations {
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Script for Registrations {
    fn request(&self, _client: usize, out: &mut Vec<u8>) {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        let body = format!(r#"{{"fqdn":"new-{n}.bench.example.com","allow_short_name":true}}"#);
        out.extend(request("POST", "/admin/hosts/register", None, false, &body));
    }

    fn judge(&self, status: u16, body: &[u8]) -> Verdict {
        if status == 200 && body.starts_with(REGISTERED.as_bytes()) { Verdict::Counts } else { Verdict::Wrong }
    }
}

/// Stores by hosts, each document newer than all previous ones.
pub struct Stores {
    keys: Vec<String>,
    since: OffsetDateTime,
    sent: AtomicU64,
}

impl Stores {
    pub fn new(fleet: &Fleet) -> Self {
        Self { keys: fleet.keys.clone(), since: System.now() - Duration::hours(1), sent: AtomicU64::new(0) }
    }
}

impl Script for Stores {
    fn request(&self, client: usize, out: &mut Vec<u8>) {
        let n = self.sent.fetch_add(1, Ordering::Relaxed);
        let instant = self.since + Duration::microseconds(i64::try_from(n).unwrap_or(i64::MAX));
        // A four-digit year can always be written.
        let last_refresh = instant.format(&Rfc3339).unwrap_or_default();
        let body = json!({ "command": "store", "auth": document(&last_refresh) }).to_string();
        out.extend(request("POST", "/auth", Some(&self.keys[client % self.keys.len()]), false, &body));
    }

    /// A store that a newer one overtakes is answered `outdated`, or, after too many times, 503.
    fn judge(&self, status: u16, body: &[u8]) -> Verdict {
        match status {
            200 if body.starts_with(UPDATED.as_bytes()) => Verdict::Counts,
            200 | 503 => Verdict::Besides,
            _ => Verdict::Wrong,
        }
    }
}

/// An auth.json of the size that `codex login` writes; its tokens have no claims.
fn document(last_refresh: &str) -> Value {
    let jwt = |name: &str| format!("eyJhbGciOiJSUzI1NiJ9.e30.{name}{}", "Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6".repeat(40));
    json!({
        "OPENAI_API_KEY": null,
        "tokens": {
            "id_token": jwt("id"),
            "access_token": jwt("access"),
            "refresh_token": "rt_Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6",
            "account_id": "acc-1234",
        },
        "last_refresh": last_refresh,
    })
}

pub async fn call(connection: &mut Connection, path: &str, body: &str) -> Result<Value> {
    let answer = connection.exchange(&request("POST", path, None, false, body)).await?;
    if answer.status != 200 {
        return Err(format!("{path} answered {}: {}", answer.status, String::from_utf8_lossy(answer.body)).into());
    }
    Ok(serde_json::from_slice(answer.body)?)
}

pub fn text(answer: &Value, pointer: &str) -> Result<String> {
    let text = answer.pointer(pointer).and_then(Value::as_str);
    Ok(text.ok_or_else(|| format!("the answer has no {pointer}"))?.to_owned())
}
