//! Who calls too often, and who guesses keys: counted per address and per host, each node for itself.
//!
//! The caller decides what a limit means; in particular a good key is never refused for others' failures from its
//! address, so [`Throttle::blocked`] is asked of a key only when it was wrong. Of a password it is asked before: to look at
//! it is what costs.
//!
//! Counting happens in memory, bounded ([`counts`]), in time that does not run backwards ([`clock`]). What changed is
//! gathered once a second and kept in hot state ([`rows`]), so that a restart does not forgive: a kill loses at most the
//! last second's counts. Where the cache is lost or set aside, everybody is forgiven.

mod clock;
mod counts;
mod rows;

use std::net::IpAddr;

use time::OffsetDateTime;

use crate::model::digest::Digest;
use crate::model::forwarded::share_of;
use crate::model::host::HostId;
use crate::model::people::{Email, UserId};

use clock::Clock;
use counts::{Counts, Window};

pub(in crate::hot) use rows::ROWS;
pub use rows::Rows;

/// 0 anywhere turns that limit off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of strangers, by address.
    pub global_per_minute: u32,
    /// Of a good key, or of a user who is signed in.
    pub host_per_minute: u32,
    pub auth_fail_count: u32,
    pub auth_fail_window_seconds: u32,
    pub auth_fail_block_seconds: u32,
}

/// Whose failures are counted together.
#[derive(Clone, Copy, Debug)]
pub enum Failing<'a> {
    /// Wrong keys from an address.
    Key(IpAddr),
    /// Refused sign-ins from an address.
    SignIn(IpAddr),
    /// Refused sign-ins as one user, wherever from. Blocked after [`MIN_FAILING_ADDRESSES`] times as many as an address.
    Account(&'a Email),
}

/// From so many addresses somebody must have failed as often as an address may, before an account is blocked: one stranger
/// cannot keep a user out.
const MIN_FAILING_ADDRESSES: u32 = 5;

impl Failing<'_> {
    fn who(&self) -> u128 {
        match self {
            Self::Key(ip) => share_of(*ip),
            Self::SignIn(ip) => digest("sign-in", &share_of(*ip).to_be_bytes()),
            Self::Account(email) => digest("account", email.as_str().as_bytes()),
        }
    }

    fn limit(&self, count: u32) -> u32 {
        match self {
            Self::Key(_) | Self::SignIn(_) => count,
            Self::Account(_) => count.saturating_mul(MIN_FAILING_ADDRESSES),
        }
    }
}

/// In the same space as addresses, which none of them meets but by a chance of one in 2^64 and less.
fn digest(kind: &str, who: &[u8]) -> u128 {
    let whole = Digest::of(&[kind.as_bytes(), &[0], who].concat());
    let mut half = [0; 16];
    half.copy_from_slice(&whole.as_bytes()[..16]);
    u128::from_be_bytes(half)
}

/// Refused until `reset_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    pub limit: u32,
    pub reset_at: OffsetDateTime,
}

pub struct Throttle {
    limits: Limits,
    clock: Clock,
    calls: Counts,
    hosts: Counts,
    failures: Counts,
}

/// How many addresses, and how many hosts, are remembered at once; who calls least is forgotten first.
const MAX_REMEMBERED: u64 = 100_000;
const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;

impl Throttle {
    pub fn new(limits: Limits) -> Self {
        let window = seconds(limits.auth_fail_window_seconds);
        let block = seconds(limits.auth_fail_block_seconds);
        Self {
            limits,
            clock: Clock::default(),
            calls: Counts::new(MAX_REMEMBERED, MINUTE, MINUTE),
            hosts: Counts::new(MAX_REMEMBERED, MINUTE, MINUTE),
            failures: Counts::new(MAX_REMEMBERED, window, block),
        }
    }

    /// Counts a call of a stranger from this address to the hosts' listener, in windows of a minute that begin with the first
    /// call of each.
    pub fn global(&self, ip: IpAddr, now: OffsetDateTime) -> Result<(), Limited> {
        self.per_minute(&self.calls, share_of(ip), self.limits.global_per_minute, now)
    }

    /// The same for the admin listener, counted apart.
    pub fn admins(&self, ip: IpAddr, now: OffsetDateTime) -> Result<(), Limited> {
        let who = digest("admins", &share_of(ip).to_be_bytes());
        self.per_minute(&self.calls, who, self.limits.global_per_minute, now)
    }

    /// Counts a call with the key of this host, in windows of a minute as well.
    pub fn host(&self, host: HostId, now: OffsetDateTime) -> Result<(), Limited> {
        self.per_minute(&self.hosts, host.0.into(), self.limits.host_per_minute, now)
    }

    /// Counts a call of this user, who is signed in, in the same way.
    pub fn user(&self, user: UserId, now: OffsetDateTime) -> Result<(), Limited> {
        let who = digest("user", &user.0.to_be_bytes());
        self.per_minute(&self.hosts, who, self.limits.host_per_minute, now)
    }

    fn per_minute(&self, counts: &Counts, who: u128, limit: u32, now: OffsetDateTime) -> Result<(), Limited> {
        if limit == 0 {
            return Ok(());
        }
        let now = self.clock.at(now);
        let refused_until = counts.with(who, |window| {
            window.turn(now, MINUTE);
            if window.count >= limit {
                return Some(window.begun + MINUTE);
            }
            window.count += 1;
            window.refusing = window.count >= limit;
            None
        });
        refused_until.map_or(Ok(()), |until| Err(Limited { limit, reset_at: self.clock.wall(until) }))
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts a failure. `true`: they are blocked from now on, which is worth keeping at once.
    pub fn failed(&self, who: &Failing<'_>, now: OffsetDateTime) -> bool {
        if self.failures_off() {
            return false;
        }
        let now = self.clock.at(now);
        self.failures.with(who.who(), |window| {
            if window.blocked_until(now).is_some() {
                return false;
            }
            if window.block.is_some() {
                // What comes after the block is counted anew.
                *window = Window { begun: now, ..Window::default() };
            }
            window.turn(now, seconds(self.limits.auth_fail_window_seconds));
            window.count += 1;
            if window.count < who.limit(self.limits.auth_fail_count) {
                return false;
            }
            let block = seconds(self.limits.auth_fail_block_seconds);
            *window = Window { begun: now, count: 0, block: Some((now, now.saturating_add(block))), refusing: true };
            true
        })
    }

    /// Until when they are turned away unseen.
    pub fn blocked(&self, who: &Failing<'_>, now: OffsetDateTime) -> Option<OffsetDateTime> {
        if self.failures_off() {
            return None;
        }
        let now = self.clock.at(now);
        let until = self.failures.peek(who.who(), |window| window.blocked_until(now)).flatten();
        until.map(|until| self.clock.wall(until))
    }

    fn failures_off(&self) -> bool {
        let Limits { auth_fail_count, auth_fail_window_seconds, auth_fail_block_seconds, .. } = self.limits;
        auth_fail_count == 0 || auth_fail_window_seconds == 0 || auth_fail_block_seconds == 0
    }
}

fn seconds(seconds: u32) -> i64 {
    i64::from(seconds) * SECOND
}

#[cfg(test)]
mod tests;
