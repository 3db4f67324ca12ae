//! The initiator of an action, as the audit log names it; and the journal's copy of an audit entry.

use std::net::IpAddr;

use time::OffsetDateTime;

use crate::model::audit::{Actor, AuditNote};

/// The actor of a request, and the address that it comes from.
#[derive(Clone, Debug)]
pub struct Initiator {
    pub actor: Actor,
    pub from: Option<IpAddr>,
}

impl Initiator {
    pub fn daemon() -> Self {
        Self { actor: Actor::Daemon, from: None }
    }

    pub fn anybody(from: IpAddr) -> Self {
        Self { actor: Actor::Anybody, from: Some(from) }
    }

    pub(in crate::service) fn note(&self, at: OffsetDateTime, action: &str) -> AuditNote {
        AuditNote::new(at, self.actor.clone(), self.from, action)
    }
}

/// Writes an audit entry to the journal.
pub(in crate::service) fn log_note(note: &AuditNote) {
    let AuditNote { actor, from, action, target, outcome, alarm, details, .. } = note;
    let from = from.map(|from| from.to_string()).unwrap_or_default();
    let target = target.as_deref().unwrap_or_default();
    let details = details.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
    let level = if *alarm { log::Level::Warn } else { log::Level::Info };
    log::log!(level, event = "audit", action = action.as_str(), actor:%, subject = target, from = from.as_str(), outcome = outcome.as_str(), alarm = *alarm, details = details.as_str(); "{action} by {actor}: {outcome}");
}
