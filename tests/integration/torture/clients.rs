//! The clients. Each chooses its next call, records what was acknowledged, and ends its round at the first call without
//! an answer.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::{Client as Http, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::{Mutex, RwLock};

use crate::support::daemon::{Daemon, auth_json};
use crate::support::documents::canonical_digest;
use crate::support::random::Random;

use super::ledger::{Call, Host, Ledger};

/// The names of one client; few, so that they are registered and removed again and again.
const NAMES: u64 = 40;
const HERE: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)), IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 3))];

/// State that all clients share.
#[derive(Default)]
pub struct Run {
    pub running: AtomicBool,
    /// Digests that were answered `updated`.
    pub updated: Mutex<BTreeSet<String>>,
    instants: AtomicU64,
    /// The newest login in any answer; no later answer may have an older one.
    newest: AtomicU64,
    /// A host's call holds it shared, and a change of the switch holds it exclusively. The value: whether hosts are
    /// refused, if known.
    switch: RwLock<Option<bool>>,
    registered: AtomicU64,
    redeemed: AtomicU64,
    removed: AtomicU64,
    retrieved: AtomicU64,
    rules: AtomicU64,
    switched: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
    stored: AtomicU64,
}

pub struct Counts([(&'static str, u64); 9]);

impl Counts {
    pub fn enough(&self) -> bool {
        self.0.iter().all(|(_, count)| *count > 0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(|(what, count)| format!("{count} {what}")).collect();
        f.write_str(&all.join(", "))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Enrol,
    Store,
    Retrieve,
    Switch,
}

pub struct Client {
    kind: Kind,
    number: u64,
    random: Random,
    pub ledger: Ledger,
    wires: Option<Wires>,
}

struct Wires {
    admin: Http,
    hosts: [Http; 2],
    daemon: (String, String),
}

impl Client {
    pub fn new(kind: Kind, number: u64, seed: u64) -> Self {
        Self { kind, number, random: Random(seed), ledger: Ledger::default(), wires: None }
    }

    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Enrol => "enrol",
            Kind::Store => "store",
            Kind::Retrieve => "retrieve",
            Kind::Switch => "switch",
        };
        format!("{kind}-{}", self.number)
    }

    pub fn connect(&mut self, daemon: &Daemon) {
        self.wires = Some(Wires {
            admin: daemon.admin(),
            hosts: HERE.map(|address| daemon.client_from(address)),
            daemon: (daemon.hosts_url(""), daemon.admin_url("")),
        });
    }

    fn wires(&self) -> &Wires {
        self.wires.as_ref().unwrap()
    }

    /// Registers the host of a storing or retrieving client.
    pub async fn enrol_first(&mut self, daemon: &Daemon, run: &Run) {
        self.connect(daemon);
        if matches!(self.kind, Kind::Store | Kind::Retrieve) {
            self.register(run, format!("{}.test", self.name())).await.unwrap();
        }
    }

    /// Works until the daemon is gone. An inner `None` means that a call was not answered.
    pub async fn work(&mut self, run: &Run) {
        while run.running.load(Ordering::SeqCst) {
            let done = match self.kind {
                Kind::Enrol => self.change_a_host(run).await,
                Kind::Store => self.store(run).await,
                Kind::Retrieve => self.retrieve(run).await,
                Kind::Switch => self.turn_the_switch(run).await,
            };
            if done.is_none() {
                run.unanswered.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }

    async fn change_a_host(&mut self, run: &Run) -> Option<()> {
        let name = format!("{}-{}.test", self.name(), self.random.below(NAMES));
        let known = self.ledger.hosts.get(&name).is_some_and(|host| host.key.is_some());
        match (known, self.random.below(10)) {
            (false, _) | (true, 0) => self.register(run, name).await,
            (true, 1) => self.remove(run, name).await,
            (true, 2 | 3) => self.redeem(run, name).await,
            (true, 4) => self.roam(run, name).await,
            (true, choice) => self.call_from(run, name, (choice % 2) as usize).await,
        }
    }

    async fn register(&mut self, run: &Run, name: String) -> Option<()> {
        let request = self.admin_post("/admin/hosts/register", &json!({ "fqdn": name }));
        let (status, data) = self.told(Call::Register(name.clone()), request).await?;
        assert_eq!(status, 200, "{data}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (key, token) = (text(&data["host"]["api_key"]), text(&data["installer"]["token"]));
        let host = self.ledger.hosts.entry(name.clone()).or_insert_with(|| Host { name, ..Host::default() });
        if host.key.is_none() {
            host.roaming = false;
        }
        host.registered(data["host"]["id"].as_u64().unwrap(), key, token);
        run.registered.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    async fn remove(&mut self, run: &Run, name: String) -> Option<()> {
        let id = self.ledger.hosts[&name].id;
        let request = self.wires().admin.delete(format!("{}/admin/hosts/{id}", self.wires().daemon.1));
        let (status, data) = self.told(Call::Remove(name.clone()), request).await?;
        assert_eq!(status, 200, "{data}");
        self.host(&name).removed();
        run.removed.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    async fn redeem(&mut self, run: &Run, name: String) -> Option<()> {
        let switch = run.switch.read().await;
        let token = self.ledger.hosts[&name].token.as_ref().unwrap().text.clone();
        let request = self.wires().hosts[0].get(format!("{}/install/{token}", self.wires().daemon.0));
        let (status, _) = self.told(Call::Redeem(name.clone()), request).await?;
        if *switch != Some(false) && status == 503 {
            run.refused.fetch_add(1, Ordering::SeqCst);
            return Some(());
        }
        let host = self.host(&name);
        let token = host.token.as_mut().unwrap();
        match status {
            200 => {
                token.redeemed += 1;
                assert_eq!(token.redeemed, 1, "the token of {name} was redeemed twice");
                run.redeemed.fetch_add(1, Ordering::SeqCst);
            }
            410 => assert!(token.redeemed > 0, "the token of {name} is spent, and was never redeemed"),
            other => panic!("{name}: {other}"),
        }
        host.changed = true;
        Some(())
    }

    async fn roam(&mut self, run: &Run, name: String) -> Option<()> {
        let (id, allow) = (self.ledger.hosts[&name].id, !self.ledger.hosts[&name].roaming);
        let request = self.admin_post(&format!("/admin/hosts/{id}/roaming"), &json!({ "allow": allow }));
        let (status, data) = self.told(Call::Roam(name.clone(), allow), request).await?;
        assert_eq!(status, 200, "{data}");
        let host = self.host(&name);
        host.roaming = allow;
        host.changed = true;
        run.rules.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    /// A host calls from one of two addresses: the first binds it, the other is refused, unless it may roam.
    async fn call_from(&mut self, run: &Run, name: String, place: usize) -> Option<()> {
        let switch = run.switch.read().await;
        let request = self.retrieval(&self.ledger.hosts[&name], place);
        let (status, data) = self.told(Call::Bind(name.clone(), HERE[place]), request).await?;
        if *switch != Some(false) && status == 503 {
            run.refused.fetch_add(1, Ordering::SeqCst);
            return Some(());
        }
        let host = self.host(&name);
        let may = host.roaming || host.bound.is_none_or(|bound| bound == HERE[place]);
        assert_eq!(status, if may { 200 } else { 403 }, "{name} from {}: {data}", HERE[place]);
        if may {
            host.changed |= host.bound != Some(HERE[place]);
            host.bound = Some(HERE[place]);
        }
        Some(())
    }

    async fn store(&mut self, run: &Run) -> Option<()> {
        let switch = run.switch.read().await;
        let n = run.instants.fetch_add(1, Ordering::SeqCst) + 1;
        let login = auth_json(&instant(n), n);
        let host = &self.ledger.hosts[&format!("{}.test", self.name())];
        let request = self.wires().hosts[0]
            .post(format!("{}/auth", self.wires().daemon.0))
            .header("x-api-key", host.key.as_ref().unwrap())
            .json(&json!({ "command": "store", "auth": login }));
        let (status, data) = self.answer(request).await?;
        if *switch != Some(false) && status == 503 {
            run.refused.fetch_add(1, Ordering::SeqCst);
            return Some(());
        }
        assert_eq!(status, 200, "{data}");
        match data["status"].as_str() {
            Some("updated") => {
                run.updated.lock().await.insert(canonical_digest(&login));
                run.stored.fetch_add(1, Ordering::SeqCst);
            }
            Some("outdated") => {}
            other => panic!("{other:?}"),
        }
        run.newest.fetch_max(number_of(&data), Ordering::SeqCst);
        Some(())
    }

    async fn retrieve(&mut self, run: &Run) -> Option<()> {
        let switch = run.switch.read().await;
        let newest = run.newest.load(Ordering::SeqCst);
        let request = self.retrieval(&self.ledger.hosts[&format!("{}.test", self.name())], 0);
        let (status, data) = self.answer(request).await?;
        match (status, *switch) {
            (503, None | Some(true)) => {
                run.refused.fetch_add(1, Ordering::SeqCst);
            }
            (200, None | Some(false)) => {
                if data["status"] != "missing" {
                    let told = number_of(&data);
                    assert!(told >= newest, "an older login than {newest} was served: {told}");
                    run.newest.fetch_max(told, Ordering::SeqCst);
                } else {
                    assert_eq!(newest, 0, "the login is gone");
                }
                run.retrieved.fetch_add(1, Ordering::SeqCst);
            }
            _ => panic!("{status} with the switch at {:?}: {data}", *switch),
        }
        Some(())
    }

    /// Sometimes, and only for a short time.
    async fn turn_the_switch(&mut self, run: &Run) -> Option<()> {
        let pause = std::time::Duration::from_millis(50 + self.random.below(400));
        tokio::time::sleep(pause).await;
        let disabled = {
            let mut switch = run.switch.write().await;
            let disabled = !switch.unwrap_or(true);
            *switch = None;
            let request = self.admin_post("/admin/api/state", &json!({ "disabled": disabled }));
            let (status, data) = self.answer(request).await?;
            assert_eq!(status, 200, "{data}");
            *switch = Some(disabled);
            run.switched.fetch_add(1, Ordering::SeqCst);
            disabled
        };
        if disabled {
            tokio::time::sleep(std::time::Duration::from_millis(self.random.below(40))).await;
            let mut switch = run.switch.write().await;
            *switch = None;
            let request = self.admin_post("/admin/api/state", &json!({ "disabled": false }));
            let (status, data) = self.answer(request).await?;
            assert_eq!(status, 200, "{data}");
            *switch = Some(false);
        }
        Some(())
    }

    /// After a restart: finds out whether the call without an answer was done, and then completes it. Also checks that
    /// this round's changes are as acknowledged.
    pub async fn settle(&mut self, run: &Run) {
        match self.ledger.unanswered.take() {
            None => {}
            Some(Call::Register(name)) => {
                // If the lost call made a key, it is unknown: makes another one.
                self.register(run, name).await.unwrap();
            }
            Some(Call::Redeem(name)) => {
                let token = self.ledger.hosts[&name].token.as_ref().unwrap();
                let (text, redeemed) = (token.text.clone(), token.redeemed);
                let status = self.redeem_status(&text).await;
                assert!(matches!((redeemed, status), (0, 200 | 410) | (1.., 410)), "{name}: {redeemed} {status}");
                self.host(&name).token.as_mut().unwrap().redeemed = 1;
            }
            Some(Call::Remove(name)) => {
                let id = self.ledger.hosts[&name].id;
                let request = self.wires().admin.delete(format!("{}/admin/hosts/{id}", self.wires().daemon.1));
                let (status, data) = self.answer(request).await.unwrap();
                assert!(matches!(status, 200 | 404), "{data}");
                self.host(&name).removed();
            }
            Some(Call::Roam(name, allow)) => {
                let shown = self.shown(&name).await;
                assert!(shown["allow_roaming_ips"] == allow || shown["allow_roaming_ips"] == !allow);
                self.host(&name).roaming = shown["allow_roaming_ips"].as_bool().unwrap();
            }
            Some(Call::Bind(name, from)) => {
                let host = &self.ledger.hosts[&name];
                let other = HERE[usize::from(from == HERE[0])];
                if host.bound.is_none() || host.roaming {
                    // Bound by the lost call, or by this one, to the same address.
                    let place = usize::from(from == HERE[1]);
                    let (status, data) = self.answer(self.retrieval(host, place)).await.unwrap();
                    assert_eq!(status, 200, "{name} was bound to {other}, an unused address: {data}");
                    self.host(&name).bound = Some(from);
                }
            }
        }
        self.check_hosts(run, false).await;
    }

    /// Checks every host, including unchanged ones, and every revoked key and spent token.
    pub async fn check_every_key(&mut self, run: &Run) {
        self.check_hosts(run, true).await;
    }

    async fn check_hosts(&mut self, run: &Run, all: bool) {
        let names: Vec<String> =
            self.ledger.hosts.values().filter(|host| all || host.changed).map(|host| host.name.clone()).collect();
        for name in names {
            let host = &self.ledger.hosts[&name];
            if host.key.is_some() {
                if let Some(bound) = host.bound {
                    let place = usize::from(bound == HERE[1]);
                    let (status, data) = self.answer(self.retrieval(host, place)).await.unwrap();
                    assert_eq!(status, 200, "{name} from its own address: {data}");
                    if !host.roaming {
                        let (status, _) = self.answer(self.retrieval(host, 1 - place)).await.unwrap();
                        assert_eq!(status, 403, "{name} is not bound to {bound} any more");
                    }
                }
                let shown = self.shown(&name).await;
                assert_eq!(shown["allow_roaming_ips"], host.roaming, "{name}");
                if let Some(token) = host.token.as_ref().filter(|token| token.redeemed > 0) {
                    assert_eq!(self.redeem_status(&token.text).await, 410, "{name}: its spent token");
                }
            }
            for key in host.dead.iter().rev().take(if all { usize::MAX } else { 2 }) {
                let answer = self.answer(self.retrieval_with(key, 0)).await.unwrap();
                assert_eq!(answer.0, 401, "a revoked key of {name} is valid: {}", answer.1);
            }
            for token in host.spent.iter().rev().take(if all { usize::MAX } else { 2 }) {
                let status = self.redeem_status(token).await;
                assert!(matches!(status, 404 | 410), "a revoked token of {name} was answered {status}");
            }
            self.host(&name).changed = false;
        }
        let _ = run;
    }

    async fn redeem_status(&self, token: &str) -> u16 {
        let request = self.wires().hosts[0].get(format!("{}/install/{token}", self.wires().daemon.0));
        self.answer(request).await.unwrap().0
    }

    async fn shown(&self, name: &str) -> Value {
        let id = self.ledger.hosts[name].id;
        let request = self.wires().admin.get(format!("{}/admin/hosts/{id}", self.wires().daemon.1));
        let (status, mut data) = self.answer(request).await.unwrap();
        assert_eq!(status, 200, "{name}: {data}");
        data["host"].take()
    }

    fn host(&mut self, name: &str) -> &mut Host {
        self.ledger.hosts.get_mut(name).unwrap()
    }

    fn retrieval(&self, host: &Host, place: usize) -> RequestBuilder {
        self.retrieval_with(host.key.as_ref().unwrap(), place)
    }

    fn retrieval_with(&self, key: &str, place: usize) -> RequestBuilder {
        let body = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
        self.wires().hosts[place].post(format!("{}/auth", self.wires().daemon.0)).header("x-api-key", key).json(&body)
    }

    fn admin_post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.wires().admin.post(format!("{}{path}", self.wires().daemon.1)).json(body)
    }

    /// A call that changes something: it is recorded until it is answered.
    async fn told(&mut self, call: Call, request: RequestBuilder) -> Option<(u16, Value)> {
        self.ledger.unanswered = Some(call);
        let answer = self.answer(request).await?;
        self.ledger.unanswered = None;
        Some(answer)
    }

    /// Status and data; `None` if the daemon died before the complete answer arrived.
    async fn answer(&self, request: RequestBuilder) -> Option<(u16, Value)> {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_timeout() => panic!("a call was never answered: {error}"),
            Err(_) => return None,
        };
        let status = answer.status().as_u16();
        let body = answer.bytes().await.ok()?;
        let mut body: Value = serde_json::from_slice(&body).unwrap_or_default();
        // A refusal of a shell's call is a script.
        assert!(status != 503 || body.is_null() || body["code"] == "api_disabled", "{body}");
        Some((status, if status < 400 { body["data"].take() } else { body }))
    }
}

impl Run {
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counts([
            ("registrations", count(&self.registered)),
            ("redemptions", count(&self.redeemed)),
            ("removals", count(&self.removed)),
            ("stores", count(&self.stored)),
            ("retrieves", count(&self.retrieved)),
            ("changes of rules", count(&self.rules)),
            ("turns of the kill switch", count(&self.switched)),
            ("calls refused by it", count(&self.refused)),
            ("calls cut by a kill", count(&self.unanswered)),
        ])
    }

    /// The number of acknowledged changes.
    pub fn changes(&self) -> u64 {
        let counters = [&self.registered, &self.redeemed, &self.removed, &self.rules, &self.stored];
        counters.into_iter().map(|counter| counter.load(Ordering::SeqCst)).sum()
    }

    /// Checks that the switch has its acknowledged position, and then turns it off, so that hosts can call.
    pub async fn settle_the_switch(&self, daemon: &Daemon) {
        let (admin, url) = (daemon.admin(), daemon.admin_url("/admin/api/state"));
        let shown: Value = admin.get(&url).send().await.unwrap().json().await.unwrap();
        let shown = shown["data"]["disabled"].as_bool().unwrap();
        let mut switch = self.switch.write().await;
        assert!(switch.is_none_or(|told| told == shown), "the kill switch was told to be {:?} and is {shown}", *switch);
        assert_eq!(admin.post(&url).json(&json!({ "disabled": false })).send().await.unwrap().status(), 200);
        *switch = Some(false);
    }

    /// Every acknowledged version is in the history, whose numbers have no gap.
    pub async fn check_versions(&self, daemon: &Daemon) {
        let url = daemon.admin_url("/admin/auth/history?limit=1000");
        let history: Value = daemon.admin().get(url).send().await.unwrap().json().await.unwrap();
        let versions = history["data"]["versions"].as_array().unwrap();
        let numbers: Vec<u64> = versions.iter().map(|version| version["version"].as_u64().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] == pair[1] + 1), "a gap in the history: {numbers:?}");
        let newest = versions.first().map_or(0, |version| instant_number(version["last_refresh"].as_str().unwrap()));
        assert!(newest >= self.newest.load(Ordering::SeqCst), "the newest login is lost");
    }
}

fn instant(n: u64) -> String {
    format!("2025-11-20T09:27:{:02}.{:09}Z", n / 1_000_000_000, n % 1_000_000_000)
}

fn instant_number(text: &str) -> u64 {
    text.split_once('.').unwrap().1.trim_end_matches('Z').parse().unwrap()
}

/// The number of the login in an answer.
fn number_of(data: &Value) -> u64 {
    instant_number(data["canonical_last_refresh"].as_str().unwrap())
}
