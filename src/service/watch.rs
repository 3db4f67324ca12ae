//! Security events of hosts' calls, on their way to the audit log: the first of a kind at once, what follows it within a
//! minute as one entry with a count.
//!
//! They go by the outbox (`telemetry`): a crash loses at most those of the last second, which nobody was promised. How
//! many kinds are remembered at once is bounded; beyond that only the count of all is kept.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::{Duration, OffsetDateTime};

use super::audit::{By, tell};
use crate::model::audit::AuditNote;
use crate::records::Telemetry;

const MINUTE: Duration = Duration::minutes(1);
/// Each leaves an entry at once, and strangers choose how many there are.
const MOST_KINDS: usize = 256;

/// What counts as the same event.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    action: &'static str,
    target: String,
    from: IpAddr,
}

struct Window {
    begun: OffsetDateTime,
    /// Since the entry that began the window.
    more: u64,
    alarm: bool,
}

#[derive(Default)]
pub(super) struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    windows: HashMap<Kind, Window>,
    /// Of kinds for which there was no room, since when.
    unnamed: Option<(u64, OffsetDateTime)>,
    notes: Vec<AuditNote>,
}

impl Watch {
    /// `action` was refused to whoever called from `from`; `target` is a host's name, or empty.
    pub fn event(&self, action: &'static str, target: &str, from: IpAddr, alarm: bool, now: OffsetDateTime) {
        let mut state = self.lock();
        let kind = Kind { action, target: target.into(), from };
        if let Some(window) = state.windows.get_mut(&kind).filter(|window| !window.is_over(now)) {
            window.more += 1;
            return;
        }
        if let Some(over) = state.windows.remove(&kind) {
            state.close(&kind, &over, now);
        }
        // Whoever floods the log with wrong keys hides no alarm in it.
        let room = if alarm { 2 * MOST_KINDS } else { MOST_KINDS };
        if state.windows.len() >= room {
            state.unnamed.get_or_insert((0, now)).0 += 1;
            return;
        }
        let note = note(&kind, alarm, now);
        tell(&note);
        state.notes.push(note);
        state.windows.insert(kind, Window { begun: now, more: 0, alarm });
    }

    /// What is to be written now.
    pub fn gather(&self, now: OffsetDateTime) -> Vec<Telemetry> {
        let mut state = self.lock();
        let over: Vec<Kind> =
            state.windows.iter().filter(|(_, window)| window.is_over(now)).map(|(kind, _)| kind.clone()).collect();
        for kind in over {
            if let Some(window) = state.windows.remove(&kind) {
                state.close(&kind, &window, now);
            }
        }
        if let Some((count, _)) = state.unnamed.take_if(|(_, since)| is_over(*since, now)) {
            state.notes.push(By::daemon().note(now, "events.unnamed").with("count", count).alarm());
        }
        std::mem::take(&mut state.notes).into_iter().map(|note| Telemetry::Noted { note }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn close(&mut self, kind: &Kind, window: &Window, now: OffsetDateTime) {
        if window.more > 0 {
            self.notes.push(note(kind, window.alarm, now).with("count", window.more));
        }
    }
}

impl Window {
    fn is_over(&self, now: OffsetDateTime) -> bool {
        is_over(self.begun, now)
    }
}

/// Whether a minute has gone by. A clock that was set back ends it too.
fn is_over(begun: OffsetDateTime, now: OffsetDateTime) -> bool {
    now < begun || now - begun >= MINUTE
}

fn note(kind: &Kind, alarm: bool, now: OffsetDateTime) -> AuditNote {
    let note = By::anybody(kind.from).note(now, kind.action).refused("refused");
    let note = if kind.target.is_empty() { note } else { note.on(&kind.target) };
    if alarm { note.alarm() } else { note }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

    fn notes(watch: &Watch, now: OffsetDateTime) -> Vec<(String, Option<String>)> {
        let notes = watch.gather(now).into_iter().map(|telemetry| match telemetry {
            Telemetry::Noted { note } => (note.action, note.details.get("count").cloned()),
            other => panic!("{other:?}"),
        });
        notes.collect()
    }

    #[test]
    fn the_first_is_noted_at_once_and_the_rest_of_the_minute_as_one() {
        let watch = Watch::default();
        let from = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..500 {
            watch.event("key.refused", "", from, false, NOW);
        }
        assert_eq!(notes(&watch, NOW), [("key.refused".into(), None)]);
        assert_eq!(notes(&watch, NOW + Duration::seconds(59)), []);
        assert_eq!(notes(&watch, NOW + MINUTE), [("key.refused".into(), Some("499".into()))]);
        assert_eq!(notes(&watch, NOW + MINUTE * 2), []);
        watch.event("key.refused", "", from, false, NOW + MINUTE * 2);
        assert_eq!(notes(&watch, NOW + MINUTE * 2), [("key.refused".into(), None)]);
    }

    #[test]
    fn addresses_and_hosts_are_told_apart() {
        let watch = Watch::default();
        for last in 1..=3 {
            watch.event("address.refused", "h1.test", IpAddr::from([192, 0, 2, last]), false, NOW);
        }
        watch.event("address.refused", "h2.test", IpAddr::from([192, 0, 2, 1]), false, NOW);
        assert_eq!(notes(&watch, NOW).len(), 4);
    }

    #[test]
    fn a_million_addresses_take_bounded_memory_and_are_counted() {
        let watch = Watch::default();
        for number in 0..1_000_000u32 {
            watch.event("key.refused", "", IpAddr::from(number.to_be_bytes()), false, NOW);
        }
        assert_eq!(watch.lock().windows.len(), MOST_KINDS);
        assert_eq!(notes(&watch, NOW).len(), MOST_KINDS);
        watch.event("installer.used_again", "h1.test", IpAddr::from([192, 0, 2, 1]), true, NOW);
        assert_eq!(notes(&watch, NOW), [("installer.used_again".into(), None)], "a flood hides no alarm");
        let last = notes(&watch, NOW + MINUTE);
        assert_eq!(last, [("events.unnamed".into(), Some((1_000_000 - MOST_KINDS).to_string()))]);
    }
}
