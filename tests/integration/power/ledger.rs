//! The calls of all clients with their answers, and the state that a daemon must show after a cut.
//!
//! Each call belongs to a *subject* (a host, a certificate, a user, the kill switch). One client works on a subject, one
//! call at a time. So after a cut at most one call of each subject has an unknown outcome.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use codex_authd::model::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::log::Log;

#[derive(Default, Serialize, Deserialize)]
pub struct Ledger {
    /// The log has the marks `asked N` and `answered N` for call N.
    pub calls: Vec<Call>,
    /// The server CA at the end of the first boot, in PEM.
    pub server_ca: String,
}

#[derive(Serialize, Deserialize)]
pub struct Call {
    pub subject: String,
    pub action: Action,
    pub answer: Option<Answer>,
}

#[derive(Serialize, Deserialize)]
pub struct Answer {
    pub status: u16,
    pub data: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Registers a host. A known host gets a new key.
    Register,
    Remove,
    Disable,
    Enable,
    Redeem,
    RevokeInstaller,
    Retrieve,
    Issue,
    RevokeCertificate,
    AddUser,
    SignIn,
    SignOut,
    /// Turns the kill switch on or off.
    Switch(bool),
    /// Stores the login with this digest.
    Store(String),
    VerifyAudit,
}

impl Call {
    /// Whether the answer acknowledges a change.
    fn is_done(&self) -> bool {
        let Some(answer) = &self.answer else { return false };
        answer.status == 200 && (!matches!(self.action, Action::Store(_)) || answer.data["status"] == "updated")
    }
}

/// Positions of the ledger's marks in the log.
pub struct Positions {
    asked: HashMap<usize, usize>,
    answered: HashMap<usize, usize>,
    listening: usize,
}

impl Positions {
    pub fn of(log: &Log) -> Self {
        Self {
            asked: log.numbered("asked"),
            answered: log.numbered("answered"),
            listening: log.position_of("listening").unwrap(),
        }
    }
}

/// Expected values.
pub type Facts = BTreeMap<Fact, String>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// Host name: its status, `removed` or `none`.
    Host(String),
    /// Installer id: its state or `none`.
    Installer(String),
    /// API key: HTTP status of a retrieve with it.
    Key(String),
    /// Installer token: `gone`, or the HTTP status of a redemption.
    Token(String),
    /// Certificate name: `valid`, `revoked` or `none`.
    Certificate(String),
    User(String),
    /// E-mail address: number of sessions in force.
    Sessions(String),
    /// Session token: HTTP status of a call with it.
    Session(String),
    Switch,
    /// Action and target: number of audit entries.
    Audit(&'static str, String),
}

impl Fact {
    /// Whether checking this fact needs a call of its own, which may change the state.
    pub fn is_tried(&self) -> bool {
        matches!(self, Self::Key(_) | Self::Token(_) | Self::Session(_))
    }
}

/// The possible states of a subject after a cut.
pub struct Expected<'a> {
    pub subject: &'a str,
    /// State after all acknowledged calls.
    pub acknowledged: Facts,
    /// The unanswered call, and the state after that call too.
    pub with_open: Option<(&'a Call, Facts)>,
    /// Position of the last acknowledgement.
    pub since: usize,
}

/// The possible states of everything after a cut.
pub struct Expectations<'a> {
    pub expected: Vec<Expected<'a>>,
    pub stored: BTreeSet<&'a str>,
    /// Digests of unanswered stores.
    pub storing: BTreeSet<&'a str>,
    /// The last answer to an audit verification: number of entries, hash of the newest one.
    pub audit_shown: Option<(u64, &'a str)>,
    /// Upper bound of the calls of each host.
    pub retrieves: HashMap<&'a str, u64>,
    pub server_ca: Option<&'a str>,
}

impl<'a> Expectations<'a> {
    /// Adds the calls between a first and a second cut. Their subjects are other ones.
    pub fn and_then(mut self, later: Expectations<'a>) -> Self {
        self.expected.extend(later.expected);
        self.stored.extend(later.stored);
        self.storing.extend(later.storing);
        self.retrieves.extend(later.retrieves);
        self
    }
}

impl Ledger {
    pub fn at_cut(&self, marks: &Positions, cut: usize) -> Expectations<'_> {
        let Positions { asked, answered, listening } = marks;
        let is_before = |marks: &HashMap<usize, usize>, number: &usize| marks.get(number).is_some_and(|at| *at < cut);
        let mut subjects: BTreeMap<&str, Vec<(usize, &Call)>> = BTreeMap::new();
        let (mut stored, mut storing, mut audit_shown) = (BTreeSet::new(), BTreeSet::new(), None);
        let mut retrieves: HashMap<&str, u64> = HashMap::new();
        let asked_before = self.calls.iter().enumerate().filter(|(number, _)| is_before(asked, number));
        for (number, call) in asked_before {
            let is_answered = is_before(answered, &number);
            match &call.action {
                Action::Store(digest) if is_answered && call.is_done() => drop(stored.insert(digest.as_str())),
                Action::Store(digest) if !is_answered => drop(storing.insert(digest.as_str())),
                Action::VerifyAudit if is_answered => {
                    let data = &call.answer.as_ref().unwrap().data;
                    audit_shown = Some((data["entries"].as_u64().unwrap(), data["hash"].as_str().unwrap()));
                }
                Action::Store(_) | Action::VerifyAudit => {}
                _ => subjects.entry(&call.subject).or_default().push((number, call)),
            }
            if matches!(call.action, Action::Store(_) | Action::Retrieve) {
                *retrieves.entry(&call.subject).or_default() += 1;
            }
        }
        let expected = subjects.into_iter().map(|(subject, calls)| {
            let mut state = State::default();
            let (mut since, mut open) = (0, None);
            for (number, call) in calls {
                match answered.get(&number).filter(|at| **at < cut) {
                    Some(at) if call.is_done() => {
                        state.apply(call);
                        since = *at;
                    }
                    Some(_) => {}
                    None => open = Some(call),
                }
            }
            let acknowledged = state.facts(subject);
            let with_open = open.map(|call| {
                state.forget_secrets_of(call);
                state.apply(call);
                (call, state.facts(subject))
            });
            Expected { subject, acknowledged, with_open, since }
        });
        Expectations {
            expected: expected.collect(),
            stored,
            storing,
            audit_shown,
            retrieves,
            server_ca: (*listening < cut).then_some(self.server_ca.as_str()),
        }
    }
}

/// The state of one subject. Each kind of subject uses some members.
#[derive(Default)]
struct State {
    host: Option<&'static str>,
    key: Option<String>,
    dead_keys: Vec<String>,
    token: Option<(String, &'static str)>,
    dead_tokens: Vec<String>,
    certificate: Option<&'static str>,
    user: bool,
    sessions: Vec<(String, bool)>,
    live_sessions: usize,
    switch: Option<bool>,
    entries: BTreeMap<&'static str, u64>,
}

impl State {
    /// Before an unanswered registration is applied: the old key and token are dead then.
    fn forget_secrets_of(&mut self, call: &Call) {
        if call.action == Action::Register {
            self.dead_keys.extend(self.key.take());
            self.dead_tokens.extend(self.token.take().map(|(token, _)| token));
        }
    }

    fn apply(&mut self, call: &Call) {
        let data = call.answer.as_ref().map_or(&Value::Null, |answer| &answer.data);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let note = match call.action {
            Action::Register => {
                self.host = Some("active");
                self.dead_keys.extend(self.key.take());
                self.dead_tokens.extend(self.token.take().map(|(token, _)| token));
                self.key = text(&data["host"]["api_key"]);
                self.token = text(&data["installer"]["token"]).map(|token| (token, "outstanding"));
                "host.register"
            }
            Action::Remove => {
                self.host = Some("removed");
                self.dead_keys.extend(self.key.take());
                self.dead_tokens.extend(self.token.take().map(|(token, _)| token));
                "host.remove"
            }
            Action::Disable => {
                self.host = Some("disabled");
                "host.disable"
            }
            Action::Enable => {
                self.host = Some("active");
                "host.enable"
            }
            Action::Redeem => {
                self.token.as_mut().unwrap().1 = "redeemed";
                "installer.redeem"
            }
            Action::RevokeInstaller => {
                self.token.as_mut().unwrap().1 = "revoked";
                "installer.revoke"
            }
            Action::Issue => {
                self.certificate = Some("valid");
                "certificate.issue"
            }
            Action::RevokeCertificate => {
                self.certificate = Some("revoked");
                "certificate.revoke"
            }
            Action::AddUser => {
                self.user = true;
                "user.add"
            }
            Action::SignIn => {
                self.sessions.extend(text(&data["access_token"]).map(|token| (token, true)));
                self.live_sessions += 1;
                "session.begin"
            }
            Action::SignOut => {
                if let Some((_, live)) = self.sessions.last_mut() {
                    *live = false;
                }
                self.live_sessions -= 1;
                "session.end"
            }
            Action::Switch(on) => {
                self.switch = Some(on);
                if on { "api.disable" } else { "api.enable" }
            }
            Action::Retrieve | Action::Store(_) | Action::VerifyAudit => return,
        };
        *self.entries.entry(note).or_default() += 1;
    }

    fn facts(&self, subject: &str) -> Facts {
        let mut facts = Facts::new();
        let mut fact = |fact: Fact, value: &str| drop(facts.insert(fact, value.to_owned()));
        let actions = match subject.split_once(' ').map_or(subject, |(kind, _)| kind) {
            "host" => {
                &["host.register", "host.remove", "host.disable", "host.enable", "installer.redeem", "installer.revoke"]
                    [..]
            }
            "certificate" => &["certificate.issue", "certificate.revoke"],
            "user" => &["user.add", "session.begin", "session.end"],
            "switch" => &["api.disable", "api.enable"],
            other => panic!("{other}"),
        };
        let name = subject.split_once(' ').map_or("", |(_, name)| name);
        for action in actions {
            let count = self.entries.get(action).copied().unwrap_or_default();
            fact(Fact::Audit(action, name.to_owned()), &count.to_string());
        }
        match subject.split_once(' ').map_or(subject, |(kind, _)| kind) {
            "host" => {
                fact(Fact::Host(name.to_owned()), self.host.unwrap_or("none"));
                if let Some(key) = &self.key {
                    fact(Fact::Key(key.clone()), if self.host == Some("active") { "200" } else { "403" });
                }
                for key in &self.dead_keys {
                    fact(Fact::Key(key.clone()), "401");
                }
                if let Some((token, state)) = &self.token {
                    fact(Fact::Installer(Digest::of(token.as_bytes()).to_string()), state);
                    if *state != "outstanding" {
                        fact(Fact::Token(token.clone()), "gone");
                    }
                }
                for token in &self.dead_tokens {
                    fact(Fact::Token(token.clone()), "gone");
                }
            }
            "certificate" => fact(Fact::Certificate(name.to_owned()), self.certificate.unwrap_or("none")),
            "user" => {
                fact(Fact::User(name.to_owned()), if self.user { "there" } else { "none" });
                fact(Fact::Sessions(name.to_owned()), &self.live_sessions.to_string());
                for (token, live) in &self.sessions {
                    fact(Fact::Session(token.clone()), if *live { "200" } else { "401" });
                }
            }
            _ => fact(Fact::Switch, if self.switch == Some(true) { "on" } else { "off" }),
        }
        facts
    }
}
