//! Decides which probe is made next, and when. Pure, on a monotonic clock.
//!
//! A request that comes while a probe of the same login runs shares its result. A request that comes while another one
//! waits is answered together with it. After a failure nothing starts by itself for a minute, and the probe is retried
//! after 15 minutes. A request of an admin never waits. Nothing here outlives the process: the next start repeats the
//! requests that the records call for (`super`).

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::records::{ProbeState, ProbeTrigger};
use crate::service::Initiator;

/// How long nothing starts by itself after a failure.
pub const QUIET_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// How long after a failure the probe is retried.
pub const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(15 * 60);

#[derive(Default)]
pub struct Board {
    /// Counts the requests.
    asked: u64,
    /// Requests up to this number are answered.
    answered: u64,
    wanted: Option<WantedProbe>,
    running: Option<RunningProbe>,
    quiet_until: Option<Instant>,
    retry_at: Option<Instant>,
}

/// A requested probe.
#[derive(Clone, Debug)]
pub struct WantedProbe {
    pub trigger: ProbeTrigger,
    /// The admin who asked.
    pub by: Option<Initiator>,
    pub not_before: Instant,
    /// The number of the last request for it.
    pub ticket: u64,
    /// Another node's probe, whose result is awaited.
    pub sharing: Option<Uuid>,
    /// An admin has confirmed that the login is good although it came back from a backup.
    pub of_restored: bool,
}

/// The probe under way.
#[derive(Clone, Debug)]
pub struct RunningProbe {
    pub trigger: ProbeTrigger,
    pub since: OffsetDateTime,
    /// The probed version, and those that this probe adopted.
    pub versions: Vec<u64>,
    ticket: u64,
}

impl Board {
    /// `version`: the canonical one. Returns the ticket.
    pub fn ask(
        &mut self,
        trigger: ProbeTrigger,
        by: Option<Initiator>,
        of_restored: bool,
        version: Option<u64>,
        now: Instant,
    ) -> u64 {
        self.asked += 1;
        let ticket = self.asked;
        if let Some(running) = &mut self.running
            && version.is_some_and(|version| running.versions.contains(&version))
        {
            running.ticket = ticket;
            return ticket;
        }
        let not_before = if is_patient(trigger) { self.quiet_until.unwrap_or(now).max(now) } else { now };
        let asked = WantedProbe { trigger, by, not_before, ticket, sharing: None, of_restored };
        self.wanted = Some(match self.wanted.take() {
            Some(known) if weight(known.trigger) >= weight(trigger) => {
                WantedProbe { ticket, of_restored: known.of_restored || of_restored, ..known }
            }
            Some(known) => WantedProbe { not_before: not_before.min(known.not_before), ..asked },
            None => asked,
        });
        ticket
    }

    /// When the next probe is due.
    pub fn due(&self) -> Option<Instant> {
        self.wanted.iter().map(|wanted| wanted.not_before).chain(self.retry_at).min()
    }

    /// The probe that is due at `now`.
    pub fn take(&mut self, now: Instant) -> Option<WantedProbe> {
        if let Some(wanted) = self.wanted.take_if(|wanted| wanted.not_before <= now) {
            self.retry_at = None;
            return Some(wanted);
        }
        self.retry_at.take_if(|at| *at <= now)?;
        let ticket = self.wanted.as_ref().map_or(self.asked, |_| self.answered);
        Some(WantedProbe {
            trigger: ProbeTrigger::Retry,
            by: None,
            not_before: now,
            ticket,
            sharing: None,
            of_restored: false,
        })
    }

    /// A due probe could not begin: it waits until `not_before`.
    pub fn put_back(&mut self, wanted: WantedProbe, not_before: Instant) {
        let wanted = WantedProbe { not_before, ..wanted };
        self.wanted = Some(match self.wanted.take() {
            Some(newer) if weight(newer.trigger) > weight(wanted.trigger) => newer,
            Some(newer) => WantedProbe {
                ticket: newer.ticket,
                not_before: not_before.min(newer.not_before),
                of_restored: newer.of_restored || wanted.of_restored,
                ..wanted
            },
            None => wanted,
        });
    }

    pub fn began(&mut self, wanted: &WantedProbe, version: u64, since: OffsetDateTime) {
        let (trigger, ticket) = (wanted.trigger, wanted.ticket);
        self.running = Some(RunningProbe { trigger, since, versions: vec![version], ticket });
    }

    /// The running probe adopted a login as this version.
    pub fn made(&mut self, version: u64) {
        self.running.iter_mut().for_each(|running| running.versions.push(version));
    }

    /// The running probe has ended.
    pub fn ended(&mut self, state: ProbeState, now: Instant) {
        if let Some(running) = self.running.take() {
            self.answer(running.ticket);
        }
        if state == ProbeState::Ok {
            (self.quiet_until, self.retry_at) = (None, None);
            return;
        }
        let quiet_until = now + QUIET_AFTER_FAILURE;
        (self.quiet_until, self.retry_at) = (Some(quiet_until), Some(now + RETRY_AFTER_FAILURE));
        if let Some(wanted) = self.wanted.as_mut().filter(|wanted| is_patient(wanted.trigger)) {
            wanted.not_before = wanted.not_before.max(quiet_until);
        }
    }

    /// Answers the requests up to `ticket`.
    pub fn answer(&mut self, ticket: u64) {
        self.answered = self.answered.max(ticket);
    }

    /// Schedules a retry of a failure from before this process.
    pub fn retry_in(&mut self, wait: Duration, now: Instant) {
        self.retry_at = Some(now + wait);
    }

    pub fn running(&self) -> Option<&RunningProbe> {
        self.running.as_ref()
    }

    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    pub fn asked(&self) -> u64 {
        self.asked
    }

    pub fn answered(&self) -> u64 {
        self.answered
    }
}

/// Whether a probe of this trigger waits after a failure.
fn is_patient(trigger: ProbeTrigger) -> bool {
    weight(trigger) < weight(ProbeTrigger::Upload)
}

/// If several requests share a probe, the trigger with the highest weight names it.
fn weight(trigger: ProbeTrigger) -> u8 {
    match trigger {
        ProbeTrigger::Daily => 0,
        ProbeTrigger::Retry => 1,
        ProbeTrigger::Store => 2,
        ProbeTrigger::Upload => 3,
        ProbeTrigger::Admin => 4,
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const AT: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);

    fn run(board: &mut Board, version: u64, now: Instant, state: ProbeState) -> WantedProbe {
        let wanted = board.take(now).expect("something is due");
        board.began(&wanted, version, AT);
        board.ended(state, now);
        wanted
    }

    #[test]
    fn who_asks_while_the_same_login_is_probed_shares_the_result() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.ask(ProbeTrigger::Store, None, false, Some(7), now);
        let wanted = board.take(now).unwrap();
        board.began(&wanted, 7, AT);
        let shared = board.ask(ProbeTrigger::Admin, None, false, Some(7), now);
        assert!(!board.is_wanted() && board.answered() == 0);
        board.made(8);
        let adopted = board.ask(ProbeTrigger::Admin, None, false, Some(8), now);
        assert!(!board.is_wanted(), "the running probe also proves the version that it adopted");
        let other = board.ask(ProbeTrigger::Store, None, false, Some(9), now);
        board.ended(ProbeState::Ok, now);
        assert!(board.answered() >= shared && board.answered() == adopted && board.answered() < other);
        assert_eq!(board.take(now).unwrap().ticket, other);
    }

    #[test]
    fn many_who_ask_get_one_probe_and_an_admins_name_is_on_it() {
        let (mut board, now) = (Board::default(), Instant::now());
        for trigger in [ProbeTrigger::Daily, ProbeTrigger::Admin, ProbeTrigger::Store] {
            board.ask(trigger, None, false, Some(1), now);
        }
        let wanted = run(&mut board, 1, now, ProbeState::Ok);
        assert_eq!((wanted.trigger, wanted.ticket, board.answered()), (ProbeTrigger::Admin, 3, 3));
        assert_eq!(board.due(), None);
    }

    #[test]
    fn after_a_failure_it_is_quiet_for_a_minute_and_tried_again_after_a_quarter_of_an_hour() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.ask(ProbeTrigger::Daily, None, false, Some(1), now);
        run(&mut board, 1, now, ProbeState::Fail);
        assert_eq!(board.due(), Some(now + RETRY_AFTER_FAILURE));
        board.ask(ProbeTrigger::Store, None, false, Some(2), now + Duration::from_secs(5));
        assert_eq!(board.due(), Some(now + QUIET_AFTER_FAILURE));
        assert!(board.take(now + QUIET_AFTER_FAILURE - Duration::from_millis(1)).is_none());
        board.ask(ProbeTrigger::Admin, None, false, Some(2), now + Duration::from_secs(6));
        let wanted = run(&mut board, 2, now + Duration::from_secs(6), ProbeState::Unavailable);
        assert_eq!(wanted.trigger, ProbeTrigger::Admin, "an admin does not wait");
        assert!(board.take(now + RETRY_AFTER_FAILURE).is_none(), "the retry counts from the last failure");
        let retried = run(&mut board, 2, now + Duration::from_secs(6) + RETRY_AFTER_FAILURE, ProbeState::Ok);
        assert_eq!(retried.trigger, ProbeTrigger::Retry);
        assert_eq!(board.due(), None);
        board.ask(ProbeTrigger::Store, None, false, Some(3), now);
        assert_eq!(board.due(), Some(now), "nothing waits after a success");
    }

    #[test]
    fn what_cannot_begin_is_begun_later_with_those_who_asked_meanwhile() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.ask(ProbeTrigger::Store, None, false, Some(1), now);
        let wanted = board.take(now).unwrap();
        let later = board.ask(ProbeTrigger::Daily, None, false, Some(1), now);
        board.put_back(wanted, now + QUIET_AFTER_FAILURE);
        let wanted = board.take(now + QUIET_AFTER_FAILURE).unwrap();
        assert_eq!((wanted.trigger, wanted.ticket), (ProbeTrigger::Store, later));
    }
}
