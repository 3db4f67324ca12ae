//! Requests for probes: made by hosts' calls and by admins, taken by the worker.
//!
//! The queue is below both areas that use it: `login` makes requests, `probes` takes them. A crash loses them; the next
//! start repeats those that the records call for.

pub(in crate::service) mod board;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::records::ProbeTrigger;
use crate::service::{Core, Initiator};
use board::Board;

pub struct ProbeQueue {
    core: Arc<Core>,
    /// Without a prober, requests are ignored.
    is_enabled: bool,
    board: Mutex<Board>,
    pub(in crate::service) changed: Notify,
    /// The UTC day on which a call of a host was last seen.
    day: AtomicI64,
}

const SECONDS_PER_DAY: i64 = 86_400;

impl ProbeQueue {
    pub(in crate::service) fn new(core: Arc<Core>, is_enabled: bool) -> Self {
        let day = AtomicI64::new(i64::MIN);
        Self { core, is_enabled, board: Mutex::default(), changed: Notify::new(), day }
    }

    pub(in crate::service) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::service) fn want_probe(&self, trigger: ProbeTrigger) {
        self.ask(trigger, None, false);
    }

    pub(in crate::service) fn ask(&self, trigger: ProbeTrigger, by: Option<Initiator>, of_restored: bool) -> u64 {
        if !self.is_enabled {
            return 0;
        }
        let version = self.core.canonical().map(|canonical| canonical.summary.version);
        let ticket = self.board().ask(trigger, by, of_restored, version, Instant::now());
        self.changed.notify_one();
        ticket
    }

    /// Notes a call of a host. The first one of a UTC day requests a probe.
    pub(in crate::service) fn note_call(&self, now: OffsetDateTime) {
        let day = now.unix_timestamp().div_euclid(SECONDS_PER_DAY);
        if self.day.load(Ordering::Relaxed) != day && self.day.swap(day, Ordering::Relaxed) != day {
            self.want_probe(ProbeTrigger::Daily);
        }
    }
}
