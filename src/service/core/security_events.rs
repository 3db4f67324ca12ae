//! Refusals and other security events, on their way to the audit log. The first of a kind is written at once; those
//! that follow within a minute become one entry with a count. The rule is the same for hosts, strangers and users.
//!
//! Events of hosts' calls go through the outbox (`telemetry`). A crash loses at most those of the last second, which
//! were not acknowledged. The first refusal of a kind to a user or an admin is written by the caller (`audit`); counts
//! go through the outbox.
//!
//! The number of kinds that are remembered at once is bounded; beyond the bound only their total is counted. Strangers
//! share one bound, and each known actor has its own: nobody can hide the refusals of somebody else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::{Duration, OffsetDateTime};

use crate::model::audit::{Actor, AuditNote};
use crate::records::Telemetry;
use crate::service::core::initiator::{Initiator, log_note};

const EVENT_WINDOW: Duration = Duration::minutes(1);
/// Calls read the clock before they come here, so they may be slightly out of order. That is not a clock that was set
/// back.
const MAX_CLOCK_BACK: Duration = Duration::seconds(2);
/// The bound for strangers: each kind writes an entry at once, and strangers choose how many kinds there are.
const MAX_KINDS_OF_STRANGERS: usize = 256;
/// The bound for one user, certificate or host.
const MAX_KINDS_PER_ACTOR: usize = 64;
/// How many known actors may have refusals in the same minute.
const MAX_ACTORS: usize = 256;

/// The kind of an event: a note without its time.
#[derive(Clone, PartialEq, Eq, Hash)]
struct EventKind(AuditNote);

impl EventKind {
    fn of(note: &AuditNote) -> Self {
        Self(note.at(OffsetDateTime::UNIX_EPOCH))
    }
}

struct EventWindow {
    begun: OffsetDateTime,
    /// How many events followed the entry that began the window.
    more: u64,
}

#[derive(Default)]
pub struct SecurityEvents(Mutex<EventState>);

#[derive(Default)]
struct EventState {
    windows: HashMap<Actor, HashMap<EventKind, EventWindow>>,
    /// The number of events of kinds for which there was no room, and since when they are counted.
    unnamed: Option<(u64, OffsetDateTime)>,
    notes: Vec<AuditNote>,
}

impl SecurityEvents {
    /// Notes that `action` was refused to a caller at `from`; `target` is a host's name, or empty. The outbox writes
    /// it.
    pub fn event(&self, action: &'static str, target: &str, from: IpAddr, alarm: bool, now: OffsetDateTime) {
        let note = Initiator::anybody(from).note(now, action).refused("refused");
        let note = if target.is_empty() { note } else { note.on(target) };
        self.refused(if alarm { note.alarm() } else { note });
    }

    /// Like [`Self::event`], for a note with details of its own.
    pub fn refused(&self, note: AuditNote) {
        let mut state = self.lock();
        if state.is_first(&note) {
            log_note(&note);
            state.notes.push(note);
        }
    }

    /// Whether this refusal is the first of its kind within a minute: then the caller writes it. Later ones are counted
    /// here.
    pub fn is_first(&self, refusal: &AuditNote) -> bool {
        self.lock().is_first(refusal)
    }

    /// The entries that are to be written now.
    pub fn gather(&self, now: OffsetDateTime) -> Vec<Telemetry> {
        let mut state = self.lock();
        let EventState { windows, notes, .. } = &mut *state;
        windows.retain(|_, kinds| {
            for (kind, window) in kinds.extract_if(|_, window| is_over(window.begun, now)) {
                notes.extend(closing(&kind, &window, now));
            }
            !kinds.is_empty()
        });
        if let Some((count, _)) = state.unnamed.take_if(|(_, since)| is_over(*since, now)) {
            state.notes.push(Initiator::daemon().note(now, "events.unnamed").with("count", count).alarm());
        }
        std::mem::take(&mut state.notes).into_iter().map(|note| Telemetry::Noted { note }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, EventState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventState {
    /// Counts the event if it is not the first.
    fn is_first(&mut self, note: &AuditNote) -> bool {
        let (kind, now) = (EventKind::of(note), note.at);
        let actors = self.windows.len();
        let kinds = self.windows.get_mut(&note.actor);
        let mut known = 0;
        if let Some(kinds) = kinds {
            if let Some(window) = kinds.get_mut(&kind).filter(|window| !is_over(window.begun, now)) {
                window.more += 1;
                return false;
            }
            if let Some(over) = kinds.remove(&kind) {
                self.notes.extend(closing(&kind, &over, now));
            }
            known = kinds.len();
        }
        let room = match note.actor {
            // A flood of wrong keys must not hide an alarm.
            Actor::Anybody if note.alarm => 2 * MAX_KINDS_OF_STRANGERS,
            Actor::Anybody => MAX_KINDS_OF_STRANGERS,
            _ if known == 0 && actors >= MAX_ACTORS => 0,
            _ => MAX_KINDS_PER_ACTOR,
        };
        if known >= room {
            self.unnamed.get_or_insert((0, now)).0 += 1;
            return false;
        }
        self.windows.entry(note.actor.clone()).or_default().insert(kind, EventWindow { begun: now, more: 0 });
        true
    }
}

/// The entry with the count, if there is anything to count.
fn closing(kind: &EventKind, window: &EventWindow, now: OffsetDateTime) -> Option<AuditNote> {
    (window.more > 0).then(|| kind.0.at(now).with("count", window.more))
}

/// Whether the minute is over. A clock that was set back ends it too.
fn is_over(begun: OffsetDateTime, now: OffsetDateTime) -> bool {
    now - begun >= EVENT_WINDOW || begun - now >= MAX_CLOCK_BACK
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::model::people::UserId;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    fn notes(watch: &SecurityEvents, now: OffsetDateTime) -> Vec<(String, Option<String>)> {
        let notes = watch.gather(now).into_iter().map(|telemetry| match telemetry {
            Telemetry::Noted { note } => (note.action, note.details.get("count").cloned()),
            other => panic!("{other:?}"),
        });
        notes.collect()
    }

    #[test]
    fn the_first_is_noted_at_once_and_the_rest_of_the_minute_as_one() {
        let watch = SecurityEvents::default();
        let from = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..500 {
            watch.event("key.refused", "", from, false, NOW);
        }
        assert_eq!(notes(&watch, NOW), [("key.refused".into(), None)]);
        assert_eq!(notes(&watch, NOW + Duration::seconds(59)), []);
        assert_eq!(notes(&watch, NOW + EVENT_WINDOW), [("key.refused".into(), Some("499".into()))]);
        assert_eq!(notes(&watch, NOW + EVENT_WINDOW * 2), []);
        watch.event("key.refused", "", from, false, NOW + EVENT_WINDOW * 2);
        assert_eq!(notes(&watch, NOW + EVENT_WINDOW * 2), [("key.refused".into(), None)]);
    }

    #[test]
    fn addresses_and_hosts_are_told_apart() {
        let watch = SecurityEvents::default();
        for last in 1..=3 {
            watch.event("address.refused", "h1.test", IpAddr::from([192, 0, 2, last]), false, NOW);
        }
        watch.event("address.refused", "h2.test", IpAddr::from([192, 0, 2, 1]), false, NOW);
        assert_eq!(notes(&watch, NOW).len(), 4);
    }

    #[test]
    fn a_million_addresses_take_bounded_memory_and_are_counted() {
        let watch = SecurityEvents::default();
        for number in 0..1_000_000u32 {
            watch.event("key.refused", "", IpAddr::from(number.to_be_bytes()), false, NOW);
        }
        assert_eq!(watch.lock().windows[&Actor::Anybody].len(), MAX_KINDS_OF_STRANGERS);
        assert_eq!(notes(&watch, NOW).len(), MAX_KINDS_OF_STRANGERS);
        watch.event("installer.used_again", "h1.test", IpAddr::from([192, 0, 2, 1]), true, NOW);
        assert_eq!(notes(&watch, NOW), [("installer.used_again".into(), None)], "a flood hides no alarm");
        let last = notes(&watch, NOW + EVENT_WINDOW);
        assert_eq!(last, [("events.unnamed".into(), Some((1_000_000 - MAX_KINDS_OF_STRANGERS).to_string()))]);
    }

    fn user(number: u64) -> Actor {
        Actor::User { id: UserId(number), email: format!("u{number}@example.test").parse().unwrap() }
    }

    fn refusal(actor: &Actor, action: &str, now: OffsetDateTime) -> AuditNote {
        AuditNote::new(now, actor.clone(), Some(IpAddr::from([192, 0, 2, 1])), action).refused(403)
    }

    #[test]
    fn refusals_of_a_user_are_counted_after_the_first() {
        let watch = SecurityEvents::default();
        let ada = user(1);
        let first = (0..700).filter(|_| watch.is_first(&refusal(&ada, "removeHost", NOW))).count();
        assert_eq!(first, 1, "one entry is written at once");
        // This call read the clock a moment before the first one.
        assert!(!watch.is_first(&refusal(&ada, "removeHost", NOW - Duration::milliseconds(3))));
        // Another operation, status or user is another kind.
        assert!(watch.is_first(&refusal(&ada, "addUser", NOW)));
        assert!(watch.is_first(&refusal(&ada, "removeHost", NOW).refused(422)));
        assert!(watch.is_first(&refusal(&user(2), "removeHost", NOW)));
        assert_eq!(notes(&watch, NOW), [], "the caller wrote the first ones");
        let Some(Telemetry::Noted { note }) = watch.gather(NOW + EVENT_WINDOW).pop() else { panic!("one entry") };
        assert_eq!((note.actor, note.action.as_str(), note.outcome.as_str()), (ada.clone(), "removeHost", "403"));
        assert_eq!(note.details["count"], "700");
        assert!(watch.lock().windows.is_empty(), "nothing is remembered after the minute");
        assert!(watch.is_first(&refusal(&ada, "removeHost", NOW + EVENT_WINDOW)));
    }

    #[test]
    fn neither_strangers_nor_another_user_hide_a_users_refusal() {
        let watch = SecurityEvents::default();
        for number in 0..100_000u32 {
            watch.event("key.refused", "", IpAddr::from(number.to_be_bytes()), false, NOW);
        }
        let mallory = user(1);
        let written = (0..1000).filter(|n| watch.is_first(&refusal(&mallory, &format!("operation{n}"), NOW))).count();
        assert_eq!(written, MAX_KINDS_PER_ACTOR);
        assert!(watch.is_first(&refusal(&user(2), "removeHost", NOW)));
        for number in 3..10_000 {
            watch.is_first(&refusal(&user(number), "removeHost", NOW));
        }
        assert_eq!(watch.lock().windows.len(), MAX_ACTORS, "memory is bounded");
    }
}
