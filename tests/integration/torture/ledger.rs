//! The acknowledged state of one client's hosts. Each host belongs to one client, which makes one call at a time. So
//! after a kill, at most one call of each client has an unknown outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Default)]
pub struct Ledger {
    pub hosts: BTreeMap<String, Host>,
    /// The call that was not answered.
    pub unanswered: Option<Call>,
}

#[derive(Default)]
pub struct Host {
    pub name: String,
    pub id: u64,
    /// `None`: the host is removed.
    pub key: Option<String>,
    /// Its revoked keys.
    pub dead: BTreeSet<String>,
    pub token: Option<Token>,
    pub spent: BTreeSet<String>,
    pub bound: Option<IpAddr>,
    pub roaming: bool,
    pub changed: bool,
}

pub struct Token {
    pub text: String,
    /// The number of redemptions; at most one.
    pub redeemed: u32,
}

#[derive(Clone, Debug)]
pub enum Call {
    /// Of a new or an existing name.
    Register(String),
    Redeem(String),
    Remove(String),
    Roam(String, bool),
    Bind(String, IpAddr),
}

impl Host {
    /// Gives it a new key, as registering does.
    pub fn registered(&mut self, id: u64, key: String, token: String) {
        if let Some(old) = self.key.replace(key) {
            self.dead.insert(old);
        }
        if let Some(old) = self.token.replace(Token { text: token, redeemed: 0 }) {
            self.spent.insert(old.text);
        }
        self.id = id;
        self.bound = None;
        self.changed = true;
    }

    pub fn removed(&mut self) {
        self.dead.extend(self.key.take());
        self.spent.extend(self.token.take().map(|token| token.text));
        self.changed = true;
    }
}
