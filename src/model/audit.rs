//! The audit log: actor, address, action, target and outcome of each event. SHA-256 chains each entry to the one
//! before.
//!
//! An entry's hash covers its number, its content and the hash of its predecessor. Changing, dropping or inserting an
//! entry breaks every later hash. An attacker who can write the store can compute a new chain. To detect that, note a
//! hash elsewhere: `codex-authd audit verify` prints the newest hash and accepts a noted one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::digest::Digest;
use super::host::{Fqdn, HostId};
use super::people::{Email, UserId};

/// The originator of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Actor {
    /// An admin, by client certificate.
    Certificate {
        name: String,
        fingerprint: Digest,
    },
    /// An admin on the control socket.
    Control {
        uid: u32,
    },
    /// A command that used the state directory while no daemon ran.
    Offline {
        uid: u32,
    },
    Host {
        id: HostId,
        fqdn: Fqdn,
    },
    /// A signed-in user.
    User {
        id: UserId,
        email: Email,
    },
    /// An unknown caller.
    Anybody,
    /// The daemon itself.
    Daemon,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { name, fingerprint } => write!(f, "certificate {name} ({fingerprint})"),
            Self::Control { uid } => write!(f, "uid {uid} on the control socket"),
            Self::Offline { uid } => write!(f, "uid {uid} on the state directory"),
            Self::Host { fqdn, .. } => write!(f, "host {fqdn}"),
            Self::User { email, .. } => write!(f, "user {email}"),
            Self::Anybody => f.write_str("anybody"),
            Self::Daemon => f.write_str("the daemon"),
        }
    }
}

/// The content of an audit entry. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AuditNote {
    /// In whole microseconds, the precision that every store keeps.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub actor: Actor,
    /// The caller's address, if there is one.
    pub from: Option<IpAddr>,
    /// `host.register`, `auth.store`, …: `noun.verb`, stable.
    pub action: String,
    /// What was changed or used: a host's name, a version's number, …
    pub target: Option<String>,
    /// `done`, or the HTTP status that refused it.
    pub outcome: String,
    /// Somebody should look at it.
    pub alarm: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

impl AuditNote {
    pub fn new(at: OffsetDateTime, actor: Actor, from: Option<IpAddr>, action: &str) -> Self {
        Self {
            at: whole_microseconds(at),
            actor,
            from: from.map(|from| from.to_canonical()),
            action: action.into(),
            target: None,
            outcome: "done".into(),
            alarm: false,
            details: BTreeMap::new(),
        }
    }

    /// The same note with another time.
    pub fn at(&self, at: OffsetDateTime) -> Self {
        Self { at: whole_microseconds(at), ..self.clone() }
    }

    pub fn on(mut self, target: impl fmt::Display) -> Self {
        self.target = Some(target.to_string());
        self
    }

    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.details.insert(name.into(), value.to_string());
        self
    }

    pub fn refused(mut self, status: impl fmt::Display) -> Self {
        self.outcome = status.to_string();
        self
    }

    pub fn alarm(mut self) -> Self {
        self.alarm = true;
        self
    }
}

fn whole_microseconds(at: OffsetDateTime) -> OffsetDateTime {
    let whole = at.nanosecond() / 1000 * 1000;
    // The value is below one second, so it is always in range.
    at.replace_nanosecond(whole).unwrap_or(at)
}

/// A note with its number and hash in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// 1, 2, 3, … without a gap.
    pub number: u64,
    #[serde(flatten)]
    pub note: AuditNote,
    pub hash: Digest,
}

/// The newest entry's number and hash. Before the first entry: 0 and all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    pub number: u64,
    pub hash: Digest,
}

impl Default for AuditHead {
    fn default() -> Self {
        Self { number: 0, hash: Digest::from_bytes([0; 32]) }
    }
}

impl AuditHead {
    /// Makes the next entry.
    pub fn chain(&self, note: AuditNote) -> AuditEntry {
        let number = self.number + 1;
        AuditEntry { number, hash: hash(&self.hash, number, &note), note }
    }

    /// Advances to `entry`, if it is the next entry of the chain.
    pub fn follow(&mut self, entry: &AuditEntry) -> Result<(), BrokenChain> {
        if entry.number != self.number + 1 {
            return Err(BrokenChain::Gap { expected: self.number + 1, found: entry.number });
        }
        if hash(&self.hash, entry.number, &entry.note) != entry.hash {
            return Err(BrokenChain::Changed { number: entry.number });
        }
        *self = Self { number: entry.number, hash: entry.hash };
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    #[error("entry {expected} is missing: found entry {found} instead")]
    Gap { expected: u64, found: u64 },
    #[error("entry {number}, or an entry before it, was changed")]
    Changed { number: u64 },
}

/// SHA-256 over the predecessor's hash, the number (big-endian) and the note as JSON.
fn hash(previous: &Digest, number: u64, note: &AuditNote) -> Digest {
    let mut bytes = previous.as_bytes().to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    // A note has only texts, numbers and times, so serializing it cannot fail.
    bytes.extend_from_slice(&serde_json::to_vec(note).unwrap_or_default());
    Digest::of(&bytes)
}

/// Selects entries. A member that is `None` selects all.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only entries with a smaller number.
    pub before: Option<u64>,
    /// The action, or the noun it begins with (`host` for `host.register`).
    pub action: Option<String>,
    /// Part of the actor's name, in any case.
    pub actor: Option<String>,
    /// Exactly the target.
    pub target: Option<String>,
    pub from: Option<IpAddr>,
    pub alarms_only: bool,
    pub since: Option<OffsetDateTime>,
    pub until: Option<OffsetDateTime>,
}

impl AuditFilter {
    pub fn admits(&self, entry: &AuditEntry) -> bool {
        let AuditNote { at, actor, from, action, target, alarm, .. } = &entry.note;
        let action_fits = |wanted: &String| {
            action.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let actor_fits = |wanted: &String| actor.to_string().to_lowercase().contains(&wanted.to_lowercase());
        self.before.is_none_or(|before| entry.number < before)
            && self.action.as_ref().is_none_or(action_fits)
            && self.actor.as_ref().is_none_or(actor_fits)
            && self.target.as_ref().is_none_or(|wanted| target.as_ref() == Some(wanted))
            && self.from.is_none_or(|wanted| *from == Some(wanted.to_canonical()))
            && (!self.alarms_only || *alarm)
            && self.since.is_none_or(|since| *at >= since)
            && self.until.is_none_or(|until| *at < until)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn note(action: &str) -> AuditNote {
        AuditNote::new(datetime!(2026-11-21 12:00:00.123456789 UTC), Actor::Control { uid: 0 }, None, action)
            .on("h1.example.test")
            .with("secure", true)
    }

    fn chain(actions: &[&str]) -> Vec<AuditEntry> {
        let mut head = AuditHead::default();
        let made = actions.iter().map(|action| {
            let entry = head.chain(note(action));
            head = AuditHead { number: entry.number, hash: entry.hash };
            entry
        });
        made.collect()
    }

    fn verify(entries: &[AuditEntry]) -> Result<AuditHead, BrokenChain> {
        let mut head = AuditHead::default();
        entries.iter().try_for_each(|entry| head.follow(entry))?;
        Ok(head)
    }

    #[test]
    fn a_chain_that_went_through_json_still_holds() {
        let entries = chain(&["host.register", "host.remove", "auth.store"]);
        let text = serde_json::to_string(&entries).unwrap();
        let read: Vec<AuditEntry> = serde_json::from_str(&text).unwrap();
        assert_eq!(verify(&read).unwrap().number, 3);
    }

    #[test]
    fn whatever_is_changed_dropped_or_exchanged_is_found() {
        let entries = chain(&["host.register", "host.remove", "auth.store"]);
        let changes: [fn(&mut AuditNote); 6] = [
            |note| note.action.push('x'),
            |note| note.target = None,
            |note| note.outcome = "403".into(),
            |note| note.alarm = true,
            |note| note.at += time::Duration::microseconds(1),
            |note| drop(note.details.insert("secure".into(), "false".into())),
        ];
        for change in changes {
            let mut changed = entries.clone();
            change(&mut changed[1].note);
            assert_eq!(verify(&changed), Err(BrokenChain::Changed { number: 2 }));
        }
        let dropped = [entries[0].clone(), entries[2].clone()];
        assert_eq!(verify(&dropped), Err(BrokenChain::Gap { expected: 2, found: 3 }));
        let mut exchanged = entries.clone();
        let (first, second) = (exchanged[0].note.clone(), exchanged[1].note.clone());
        (exchanged[0].note, exchanged[1].note) = (second, first);
        assert!(verify(&exchanged).is_err());
    }

    #[test]
    fn a_filter_admits_what_fits_every_member() {
        let [entry] = &chain(&["host.register"])[..] else { panic!() };
        let admits = |filter: AuditFilter| filter.admits(entry);
        assert!(admits(AuditFilter::default()));
        for (action, fits) in
            [("host", true), ("host.register", true), ("host.reg", false), ("ho", false), ("auth", false)]
        {
            assert_eq!(admits(AuditFilter { action: Some(action.into()), ..<_>::default() }), fits, "{action}");
        }
        assert!(admits(AuditFilter { actor: Some("CONTROL".into()), ..<_>::default() }));
        assert!(!admits(AuditFilter { before: Some(1), ..<_>::default() }));
        assert!(!admits(AuditFilter { alarms_only: true, ..<_>::default() }));
        assert!(!admits(AuditFilter { from: Some([192, 0, 2, 1].into()), ..<_>::default() }));
        assert!(!admits(AuditFilter { since: Some(datetime!(2026-11-21 12:00:01 UTC)), ..<_>::default() }));
    }
}
