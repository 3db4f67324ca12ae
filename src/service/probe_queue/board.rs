//! What is to be probed next, and when: pure, on a clock that does not run back.
//!
//! Whoever asks while a probe of the same login is under way shares its result; whoever asks while another is waited for
//! is answered with it. After a failure nothing starts by itself for a minute, and one is made again after a quarter of an
//! hour. An admin is never kept waiting. Nothing here outlives the process: what was asked for and not done is asked for
//! again by what the records say (`super`).

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::records::{ProbeState, ProbeTrigger};
use crate::service::Initiator;

/// After a failure nothing starts by itself for so long.
pub const QUIET_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// And then it is tried again.
pub const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(15 * 60);

#[derive(Default)]
pub struct Board {
    /// Counts up with each that asks.
    asked: u64,
    /// Up to whom they have been answered.
    answered: u64,
    wanted: Option<WantedProbe>,
    running: Option<Running>,
    quiet_until: Option<Instant>,
    retry_at: Option<Instant>,
}

/// A probe that somebody asked for.
#[derive(Clone, Debug)]
pub struct WantedProbe {
    pub trigger: ProbeTrigger,
    /// The admin who asked.
    pub by: Option<Initiator>,
    pub not_before: Instant,
    /// Of the last who asked for it.
    pub ticket: u64,
    /// Another node's, whose result is waited for.
    pub sharing: Option<Uuid>,
    /// An admin has said that the login is good though it came back from a backup.
    pub of_restored: bool,
}

/// The probe under way.
#[derive(Clone, Debug)]
pub struct Running {
    pub trigger: ProbeTrigger,
    pub since: OffsetDateTime,
    /// The version that it is of, and those that it made.
    pub versions: Vec<u64>,
    ticket: u64,
}

impl Board {
    /// `version`: the canonical one. Gives the ticket.
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

    /// When something is to be done next.
    pub fn due(&self) -> Option<Instant> {
        self.wanted.iter().map(|wanted| wanted.not_before).chain(self.retry_at).min()
    }

    /// What is to be done at `now`.
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

    /// It could not be begun just now.
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
        self.running = Some(Running { trigger, since, versions: vec![version], ticket });
    }

    /// The probe under way made a version.
    pub fn made(&mut self, version: u64) {
        self.running.iter_mut().for_each(|running| running.versions.push(version));
    }

    /// The probe under way is over.
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

    /// Nothing had to be done.
    pub fn answer(&mut self, ticket: u64) {
        self.answered = self.answered.max(ticket);
    }

    /// What failed before this process began is tried again in so long.
    pub fn retry_in(&mut self, wait: Duration, now: Instant) {
        self.retry_at = Some(now + wait);
    }

    pub fn running(&self) -> Option<&Running> {
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

/// Whether it keeps quiet after a failure.
fn is_patient(trigger: ProbeTrigger) -> bool {
    weight(trigger) < weight(ProbeTrigger::Upload)
}

/// Whose probe it is called where several ask for one.
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
        assert!(!board.is_wanted(), "what the probe made is being proved as well");
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
        assert!(board.take(now + RETRY_AFTER_FAILURE).is_none(), "the retry counts from the last one");
        let retried = run(&mut board, 2, now + Duration::from_secs(6) + RETRY_AFTER_FAILURE, ProbeState::Ok);
        assert_eq!(retried.trigger, ProbeTrigger::Retry);
        assert_eq!(board.due(), None);
        board.ask(ProbeTrigger::Store, None, false, Some(3), now);
        assert_eq!(board.due(), Some(now), "what works is not waited for");
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
