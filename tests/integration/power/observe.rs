//! Reads the state of a daemon through the control socket and the hosts' listener.

use std::collections::{BTreeMap, HashMap};

use reqwest::Client as Http;
use serde_json::{Value, json};

use super::clients::retrieval;
use super::ledger::Fact;

/// The content of all lists.
pub struct Observed {
    hosts: HashMap<String, String>,
    installers: HashMap<String, String>,
    certificates: HashMap<String, String>,
    users: HashMap<String, usize>,
    switch: bool,
    /// Audit entries with outcome `done`, by action and target.
    entries: HashMap<(String, String), u64>,
    pub api_calls: HashMap<String, u64>,
    /// Digests of the history, newest first.
    pub versions: Vec<String>,
    pub canonical: Option<String>,
    /// Inconsistencies that are errors whatever the ledger says.
    pub broken: Vec<String>,
    pub audit_entries: u64,
}

/// Clients of a running daemon.
pub struct Observer {
    pub admin: Http,
    pub hosts: Http,
    pub hosts_url: String,
}

impl Observer {
    /// Reads all lists. Fails if the daemon refuses one.
    pub async fn observe(&self, audit_shown: Option<&str>) -> Result<Observed, String> {
        let mut broken = Vec::new();
        let hosts = self.pages("/admin/hosts", "hosts").await?;
        let removed = self.pages("/admin/hosts/removed", "hosts").await?;
        let switch = self.get("/admin/api/state").await?["disabled"] == true;
        let mut states = HashMap::new();
        let mut api_calls = HashMap::new();
        for host in &hosts {
            if states.insert(text(&host["fqdn"]), text(&host["status"])).is_some() {
                broken.push(format!("{} is listed twice", host["fqdn"]));
            }
            api_calls.insert(text(&host["fqdn"]), host["api_calls"].as_u64().unwrap());
        }
        for host in &removed {
            if states.insert(text(&host["fqdn"]), "removed".into()).is_some() {
                broken.push(format!("{} is listed and removed", host["fqdn"]));
            }
        }
        let certificates = self.pages("/admin/certificates", "certificates").await?;
        let users = self.pages("/auth/users", "users").await?;
        let mut sessions: HashMap<String, usize> = users.iter().map(|user| (text(&user["email"]), 0)).collect();
        for session in self.pages("/auth/sessions", "sessions").await? {
            if session["in_force"] == true {
                *sessions.entry(text(&session["user"])).or_default() += 1;
            }
        }
        let installers = self.pages("/admin/installers", "installers").await?;
        let entries = self.pages("/admin/audit", "entries").await?;
        let verified = self
            .get(&format!("/admin/audit/verify{}", audit_shown.map_or(String::new(), |hash| format!("?hash={hash}"))))
            .await?;
        audit_is_whole(&entries, &verified, &mut broken);
        if audit_shown.is_some() && verified["noted_found"] != true {
            broken.push("the entry of the audit log that an admin had noted is gone".into());
        }
        let versions = self.pages("/admin/auth/history", "versions").await?;
        let numbers: Vec<u64> = versions.iter().map(|version| version["version"].as_u64().unwrap()).collect();
        if !numbers.iter().rev().copied().eq(1..=numbers.len() as u64) {
            broken.push(format!("a gap in the versions: {numbers:?}"));
        }
        let mut counts: HashMap<(String, String), u64> = HashMap::new();
        for entry in entries.iter().filter(|entry| entry["outcome"] == "done") {
            *counts.entry((text(&entry["action"]), text(&entry["target"]))).or_default() += 1;
        }
        let stores: u64 = counts.iter().filter(|((action, _), _)| action == "auth.store").map(|(_, count)| count).sum();
        if stores != versions.len() as u64 {
            broken.push(format!("{} versions, and {stores} entries of stores", versions.len()));
        }
        let by = |list: &[Value], name: &str| {
            list.iter().map(|item| (text(&item[name]), text(&item["state"]))).collect::<HashMap<_, _>>()
        };
        let canonical = match versions.is_empty() {
            true => None,
            // With the body, so that the daemon has to unseal it.
            false => Some(text(&self.get("/admin/auth?include_body=true").await?["digest"])),
        };
        Ok(Observed {
            hosts: states,
            installers: by(&installers, "id"),
            certificates: by(&certificates, "name"),
            users: sessions,
            switch,
            entries: counts,
            api_calls,
            versions: versions.iter().map(|version| text(&version["digest"])).collect(),
            canonical,
            broken,
            audit_entries: entries.len() as u64,
        })
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.admin.get(format!("http://control{path}")).send().await;
        let answer = answer.map_err(|error| format!("GET {path}: {error}"))?;
        let status = answer.status();
        let mut body: Value = answer.json().await.map_err(|error| format!("GET {path}: {error}"))?;
        if status == 200 { Ok(body["data"].take()) } else { Err(format!("GET {path}: {status}, {body}")) }
    }

    async fn pages(&self, path: &str, list: &str) -> Result<Vec<Value>, String> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let mut page = self.get(&format!("{path}?limit=1000{next}")).await?;
            let Value::Array(items) = page[list].take() else { return Err(format!("GET {path}: no {list}")) };
            all.extend(items);
            match &page["next"] {
                Value::String(cursor) => next = format!("&cursor={cursor}"),
                _ => return Ok(all),
            }
        }
    }

    /// Checks a fact with a call. The kill switch must be off.
    pub async fn try_fact(&self, fact: &Fact) -> Result<String, String> {
        let request = match fact {
            Fact::Key(key) => retrieval(&self.hosts, &self.hosts_url, key),
            Fact::Token(token) => self.hosts.get(format!("{}/install/{token}", self.hosts_url)),
            Fact::Session(token) => self.hosts.get(format!("{}/auth/me", self.hosts_url)).bearer_auth(token),
            listed => panic!("{listed:?} is listed"),
        };
        let status = request.send().await.map_err(|error| format!("{fact:?}: {error}"))?.status();
        let is_gone = matches!(fact, Fact::Token(_)) && (status == 404 || status == 410);
        Ok(if is_gone { "gone".into() } else { status.as_u16().to_string() })
    }

    pub async fn switch_off(&self) -> Result<(), String> {
        self.post("/admin/api/state", &json!({ "disabled": false })).await.map(drop)
    }

    /// Registers a new host and retrieves with its key.
    pub async fn enrol(&self, name: &str) -> Result<(), String> {
        let data = self.post("/admin/hosts/register", &json!({ "fqdn": name })).await?;
        let status = self.try_fact(&Fact::Key(text(&data["host"]["api_key"]))).await?;
        if status == "200" { Ok(()) } else { Err(format!("the key of the new host {name}: {status}")) }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let answer = self.admin.post(format!("http://control{path}")).json(body).send().await;
        let answer = answer.map_err(|error| format!("POST {path}: {error}"))?;
        let status = answer.status();
        let mut body: Value = answer.json().await.map_err(|error| format!("POST {path}: {error}"))?;
        if status == 200 { Ok(body["data"].take()) } else { Err(format!("POST {path}: {status}, {body}")) }
    }
}

impl Observed {
    /// The value of a fact that a list contains.
    pub fn fact(&self, fact: &Fact) -> String {
        let of = |map: &HashMap<String, String>, name: &str| map.get(name).cloned().unwrap_or_else(|| "none".into());
        match fact {
            Fact::Host(name) => of(&self.hosts, name),
            Fact::Installer(id) => of(&self.installers, id),
            Fact::Certificate(name) => of(&self.certificates, name),
            Fact::User(email) => if self.users.contains_key(email) { "there" } else { "none" }.into(),
            Fact::Sessions(email) => self.users.get(email).copied().unwrap_or_default().to_string(),
            Fact::Switch => if self.switch { "on" } else { "off" }.into(),
            Fact::Audit(action, target) => {
                let key = ((*action).to_owned(), target.clone());
                self.entries.get(&key).copied().unwrap_or_default().to_string()
            }
            tried => panic!("{tried:?} is in no list"),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.hosts.keys()
    }
}

fn audit_is_whole(entries: &[Value], verified: &Value, broken: &mut Vec<String>) {
    let numbers: Vec<u64> = entries.iter().map(|entry| entry["number"].as_u64().unwrap()).collect();
    if !numbers.iter().rev().copied().eq(1..=numbers.len() as u64) {
        broken.push(format!("a gap in the audit log: {numbers:?}"));
    }
    if verified["intact"] != true || verified["entries"] != entries.len() {
        broken.push(format!("the audit log has {} entries and is not whole: {verified}", entries.len()));
    }
    let mut actions = BTreeMap::new();
    entries.iter().for_each(|entry| *actions.entry(text(&entry["action"])).or_insert(0) += 1);
    if actions.get("state.initialise") != Some(&1) {
        broken.push(format!("the state was not made once: {actions:?}"));
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
