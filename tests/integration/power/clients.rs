//! The clients of the workload. Each client owns its subjects and makes one call at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use codex_authd::model::digest::Digest;
use reqwest::{Client as Http, RequestBuilder};
use serde_json::{Value, json};

use super::ledger::{Action, Answer, Call, Ledger};
use crate::support::daemon::{BOUND, auth_json};
use crate::support::documents::{account_claims, canonical_digest, jwt};
use crate::support::people::PASSWORD;
use crate::support::random::Random;
use crate::support::record_disk::Marks;

/// Bytes of padding in the longest login; the daemon accepts 64 KiB.
const LARGEST: usize = 60 * 1024;

/// Percent of the calls by kind of client. Without shares the fast calls would leave hardly any for the stores.
const SHARES: [u64; 4] = [25, 50, 10, 15];

/// State shared by all clients.
pub struct Run {
    pub marks: Marks,
    pub ledger: Mutex<Ledger>,
    pub admin: Http,
    pub hosts_url: String,
    /// Calls left to make, by kind of client.
    left: [AtomicU64; 4],
    instants: AtomicU64,
    /// Answers that a healthy daemon never gives.
    errors: Mutex<Vec<String>>,
    /// Random text; each login contains another slice of it.
    padding: String,
}

impl Run {
    pub fn new(
        marks: Marks,
        admin: Http,
        hosts_url: String,
        calls: u64,
        first_instant: u64,
        random: &mut Random,
    ) -> Self {
        Self {
            marks,
            ledger: Mutex::default(),
            admin,
            hosts_url,
            left: SHARES.map(|percent| AtomicU64::new(calls * percent / 100)),
            instants: AtomicU64::new(first_instant),
            errors: Mutex::default(),
            padding: (0..LARGEST / 8).map(|_| format!("{:016x}", random.next())).collect(),
        }
    }

    /// Makes a call and writes it to the ledger. Returns status and data. `None` after an unexpected answer: all clients
    /// then stop.
    async fn call(&self, subject: &str, action: Action, request: RequestBuilder) -> Option<(u16, Value)> {
        let number = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.calls.push(Call { subject: subject.into(), action: action.clone(), answer: None });
            ledger.calls.len() - 1
        };
        self.marks.mark(&format!("asked {number}"));
        let error_of = |what: String| {
            self.errors.lock().unwrap().push(format!("{action:?} of {subject}: {what}"));
            self.left.iter().for_each(|left| left.store(0, Ordering::SeqCst));
        };
        let answer = request.timeout(BOUND).send().await.map_err(|error| error_of(error.to_string())).ok()?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|error| error_of(error.to_string())).ok()?;
        self.marks.mark(&format!("answered {number}"));
        let mut body: Value = serde_json::from_slice(&body).unwrap_or_default();
        // Expected refusals: 403 for a disabled host, 503 for every host while the kill switch is on.
        if status != 200 && status != 403 && !(status == 503 && refuses_hosts(&body)) {
            error_of(format!("{status}, {body}"));
            return None;
        }
        let data = body["data"].take();
        self.ledger.lock().unwrap().calls[number].answer = Some(Answer { status, data: kept_data(&action, &data) });
        Some((status, data))
    }

    /// The ledger, and the unexpected answers.
    pub fn end(self) -> (Ledger, Vec<String>) {
        (self.ledger.into_inner().unwrap(), self.errors.into_inner().unwrap())
    }
}

/// Whether this is a 503 of the kill switch. Scripts for a shell have no JSON body.
fn refuses_hosts(body: &Value) -> bool {
    body.is_null() || body["code"] == "api_disabled"
}

/// The part of an answer that the checks need. Documents are dropped.
fn kept_data(action: &Action, data: &Value) -> Value {
    match action {
        Action::Register | Action::SignIn | Action::VerifyAudit => data.clone(),
        Action::Store(_) => json!({ "status": data["status"] }),
        _ => Value::Null,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Store,
    Enrol,
    Retrieve,
    Administer,
}

pub struct Client {
    kind: Kind,
    number: u64,
    name: String,
    http: Http,
    random: Random,
    hosts: Vec<Host>,
    certificates: Vec<(String, Option<String>)>,
    /// E-mail address and session token. Only the last user has a session.
    users: Vec<(String, Option<String>)>,
    made: u64,
}

struct Host {
    subject: String,
    id: u64,
    key: String,
    token: Option<String>,
    is_disabled: bool,
}

impl Client {
    pub fn new(kind: Kind, number: u64, http: Http, seed: u64) -> Self {
        let kind_name = match kind {
            Kind::Store => "store",
            Kind::Enrol => "enrol",
            Kind::Retrieve => "retrieve",
            Kind::Administer => "administer",
        };
        let name = format!("{kind_name}-{number}");
        let (hosts, certificates, users) = <_>::default();
        Self { kind, number, name, http, random: Random(seed), hosts, certificates, users, made: 0 }
    }

    /// Works until the run has no calls left.
    pub async fn work(mut self, run: &Run) {
        let _ = self.work_on(run).await;
    }

    async fn work_on(&mut self, run: &Run) -> Option<()> {
        if matches!(self.kind, Kind::Store | Kind::Retrieve) {
            self.register_new(run).await?;
        }
        while run.left[self.kind as usize]
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            match self.kind {
                Kind::Store => self.store(run).await?,
                Kind::Enrol => self.enrol(run).await?,
                Kind::Retrieve => self.retrieve(run, 0).await?,
                Kind::Administer => self.administer(run).await?,
            }
        }
        Some(())
    }

    fn fresh_name(&mut self) -> String {
        self.made += 1;
        format!("{}-{}.test", self.name, self.made)
    }

    async fn register_new(&mut self, run: &Run) -> Option<()> {
        let name = self.fresh_name();
        let subject = format!("host {name}");
        self.hosts.push(Host { subject, id: 0, key: String::new(), token: None, is_disabled: false });
        self.register(run, self.hosts.len() - 1).await
    }

    async fn register(&mut self, run: &Run, host: usize) -> Option<()> {
        let host = &mut self.hosts[host];
        let name = host.subject.strip_prefix("host ").unwrap();
        let request = run.admin.post("http://control/admin/hosts/register").json(&json!({ "fqdn": name }));
        let (_, data) = run.call(&host.subject, Action::Register, request).await?;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        host.id = data["host"]["id"].as_u64().unwrap();
        host.key = text(&data["host"]["api_key"]);
        host.token = Some(text(&data["installer"]["token"]));
        Some(())
    }

    async fn enrol(&mut self, run: &Run) -> Option<()> {
        if self.hosts.is_empty() || self.random.flips(0.4) {
            return self.register_new(run).await;
        }
        let index = self.random.index(self.hosts.len());
        let host = &self.hosts[index];
        let path = |rest: &str| format!("http://control/admin/hosts/{}{rest}", host.id);
        match self.random.below(12) {
            0 | 1 if !host.is_disabled => self.register(run, index).await?,
            2..=4 => {
                run.call(&host.subject, Action::Remove, run.admin.delete(path(""))).await?;
                self.hosts.swap_remove(index);
            }
            5 => {
                let (action, rest) =
                    if host.is_disabled { (Action::Enable, "/enable") } else { (Action::Disable, "/disable") };
                run.call(&host.subject, action, run.admin.post(path(rest)).json(&json!({}))).await?;
                self.hosts[index].is_disabled ^= true;
            }
            6..=8 if host.token.is_some() && !host.is_disabled => {
                let token = host.token.clone().unwrap();
                let request = self.http.get(format!("{}/install/{token}", run.hosts_url));
                if run.call(&host.subject, Action::Redeem, request).await?.0 == 200 {
                    self.hosts[index].token = None;
                }
            }
            9 if host.token.is_some() => {
                let id = Digest::of(host.token.as_ref().unwrap().as_bytes());
                let request = run.admin.post(format!("http://control/admin/installers/{id}/revoke"));
                run.call(&host.subject, Action::RevokeInstaller, request.json(&json!({}))).await?;
                self.hosts[index].token = None;
            }
            _ => self.retrieve(run, index).await?,
        }
        Some(())
    }

    async fn retrieve(&mut self, run: &Run, host: usize) -> Option<()> {
        let host = &self.hosts[host];
        let request = retrieval(&self.http, &run.hosts_url, &host.key);
        run.call(&host.subject, Action::Retrieve, request).await.map(drop)
    }

    async fn store(&mut self, run: &Run) -> Option<()> {
        let n = run.instants.fetch_add(1, Ordering::SeqCst);
        let mut login = auth_json(&format!("2025-11-20T09:27:43.{n:09}Z"), n);
        let length = if self.random.flips(0.7) { LARGEST } else { self.random.index(LARGEST) };
        let first = self.random.index(run.padding.len() - length);
        login["tokens"]["id_token"] = format!(
            "{}.{}",
            jwt(&account_claims("acc-1234", "user-1", "id"), "s"),
            &run.padding[first..first + length]
        )
        .into();
        let host = &self.hosts[0];
        let body = json!({ "command": "store", "auth": login });
        let request = self.http.post(format!("{}/auth", run.hosts_url)).header("x-api-key", &host.key).json(&body);
        run.call(&host.subject, Action::Store(canonical_digest(&login)), request).await.map(drop)
    }

    async fn administer(&mut self, run: &Run) -> Option<()> {
        let post = |path: &str, body: &Value| run.admin.post(format!("http://control{path}")).json(body);
        match self.random.below(10) {
            0 | 1 => {
                let name = self.fresh_name();
                let request = post("/admin/certificates", &json!({ "name": name }));
                let (_, data) = run.call(&format!("certificate {name}"), Action::Issue, request).await?;
                self.certificates.push((name, data["fingerprint"].as_str().map(str::to_owned)));
            }
            2 | 3 if !self.certificates.is_empty() => {
                let index = self.random.index(self.certificates.len());
                let (name, fingerprint) = self.certificates.swap_remove(index);
                let path = format!("/admin/certificates/{}/revoke", fingerprint.unwrap());
                run.call(&format!("certificate {name}"), Action::RevokeCertificate, post(&path, &json!({}))).await?;
            }
            // A single client uses the kill switch: one call of a subject at a time.
            4 | 5 if self.number == 0 => {
                let reason = self.fresh_name();
                for on in [true, false] {
                    let request = post("/admin/api/state", &json!({ "disabled": on, "reason": reason }));
                    run.call("switch", Action::Switch(on), request).await?;
                }
            }
            6 | 7 => self.sign_in_or_out(run).await?,
            _ => {
                drop(run.call("audit", Action::VerifyAudit, run.admin.get("http://control/admin/audit/verify")).await?)
            }
        }
        Some(())
    }

    async fn sign_in_or_out(&mut self, run: &Run) -> Option<()> {
        match self.users.last_mut() {
            Some((email, session @ Some(_))) => {
                let token = session.take().unwrap();
                let request = self.http.delete(format!("{}/auth/session", run.hosts_url)).bearer_auth(token);
                run.call(&format!("user {email}"), Action::SignOut, request).await?;
            }
            Some((email, session)) if self.random.flips(0.7) => {
                let body = json!({ "email": email, "password": PASSWORD });
                let request = self.http.post(format!("{}/auth/session", run.hosts_url)).json(&body);
                let (_, data) = run.call(&format!("user {email}"), Action::SignIn, request).await?;
                *session = data["access_token"].as_str().map(str::to_owned);
            }
            _ => {
                self.made += 1;
                let email = format!("{}-{}@example.test", self.name, self.made);
                let body = json!({ "email": email, "role": "admin", "password": PASSWORD });
                let request = run.admin.post("http://control/auth/users").json(&body);
                run.call(&format!("user {email}"), Action::AddUser, request).await?;
                self.users.push((email, None));
            }
        }
        Some(())
    }
}

/// A retrieve as `cdx` sends it.
pub fn retrieval(http: &Http, hosts_url: &str, key: &str) -> RequestBuilder {
    let body = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
    http.post(format!("{hosts_url}/auth")).header("x-api-key", key).json(&body).timeout(Duration::from_secs(20))
}
