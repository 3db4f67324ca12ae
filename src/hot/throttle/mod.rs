//! Rate limits: counts requests, wrong keys and refused sign-ins per address, host, user and account, on each node by itself.
//!
//! The caller decides what a limit means. A good key is never refused for failures from its address, so [`Throttle::blocked`] is
//! asked about a key only after the key proved wrong. It is asked about a password before, because verifying one is expensive.
//!
//! Counting happens in memory, bounded ([`counts`]), in a time that does not run backwards ([`clock`]). Blocks are kept in hot
//! state ([`blocks`]), so a restart ends none. Counts that led to no block yet are lost with the process.

mod blocks;
mod clock;
mod counts;

use std::net::IpAddr;

use time::OffsetDateTime;

use crate::model::digest::Digest;
use crate::model::forwarded::share_of;
use crate::model::host::HostId;
use crate::model::people::{Email, UserId};

use blocks::KeptBlocks;
use clock::ThrottleClock;
use counts::{Window, WindowCounts};

pub(in crate::hot) use blocks::ROWS;

/// 0 anywhere turns that limit off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests without a good credential, per address.
    pub global_per_minute: u32,
    /// Requests of one host or one signed-in user.
    pub host_per_minute: u32,
    pub auth_fail_count: u32,
    pub auth_fail_window_seconds: u32,
    pub auth_fail_block_seconds: u32,
}

/// The subject of failures that are counted together.
#[derive(Clone, Copy, Debug)]
pub enum Failing<'a> {
    /// Wrong keys from an address.
    Key(IpAddr),
    /// Refused sign-ins from an address.
    SignIn(IpAddr),
    /// Refused sign-ins as one user, from any address. It takes [`MIN_FAILING_ADDRESSES`] times as many failures as an address.
    Account(&'a Email),
}

/// An account is blocked only after failures from at least this many addresses: an attacker with one address cannot lock a user out.
const MIN_FAILING_ADDRESSES: u32 = 5;

impl Failing<'_> {
    fn subject(&self) -> u128 {
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

/// A key in the same space as the addresses; the chance that it equals one is below 2^-64.
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
    clock: ThrottleClock,
    calls: WindowCounts,
    hosts: WindowCounts,
    failures: WindowCounts,
    kept_blocks: KeptBlocks,
}

/// How many subjects of each kind are remembered, and how many blocks are kept in hot state. The least active is evicted first.
const MAX_REMEMBERED: u64 = 100_000;
const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;

impl Throttle {
    pub fn new(limits: Limits) -> Self {
        let window = seconds(limits.auth_fail_window_seconds);
        let block = seconds(limits.auth_fail_block_seconds);
        Self {
            limits,
            clock: ThrottleClock::default(),
            calls: WindowCounts::new(MAX_REMEMBERED, MINUTE, MINUTE),
            hosts: WindowCounts::new(MAX_REMEMBERED, MINUTE, MINUTE),
            failures: WindowCounts::new(MAX_REMEMBERED, window, block),
            kept_blocks: KeptBlocks::default(),
        }
    }

    /// Counts a call without a good credential to the hosts' listener. A window of a minute begins with an address's first call.
    pub fn global(&self, ip: IpAddr, now: OffsetDateTime) -> Result<(), Limited> {
        self.per_minute(&self.calls, share_of(ip), self.limits.global_per_minute, now)
    }

    /// The same for the admin listener, in counts of its own.
    pub fn admins(&self, ip: IpAddr, now: OffsetDateTime) -> Result<(), Limited> {
        let who = digest("admins", &share_of(ip).to_be_bytes());
        self.per_minute(&self.calls, who, self.limits.global_per_minute, now)
    }

    /// Counts a call with the key of this host, in the same way.
    pub fn host(&self, host: HostId, now: OffsetDateTime) -> Result<(), Limited> {
        self.per_minute(&self.hosts, host.0.into(), self.limits.host_per_minute, now)
    }

    /// Counts a call of this signed-in user, in the same way.
    pub fn user(&self, user: UserId, now: OffsetDateTime) -> Result<(), Limited> {
        let who = digest("user", &user.0.to_be_bytes());
        self.per_minute(&self.hosts, who, self.limits.host_per_minute, now)
    }

    fn per_minute(&self, counts: &WindowCounts, who: u128, limit: u32, now: OffsetDateTime) -> Result<(), Limited> {
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

    /// Counts a failure. `true`: the subject is blocked from now on; the caller writes that with [`crate::hot::Hot::keep_block`].
    pub fn failed(&self, who: &Failing<'_>, now: OffsetDateTime) -> bool {
        if self.failures_off() {
            return false;
        }
        let now = self.clock.at(now);
        self.failures.with(who.subject(), |window| {
            if window.blocked_until(now).is_some() {
                return false;
            }
            if window.block.is_some() {
                // The block has ended: a new window begins.
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

    /// The end of the present block.
    pub fn blocked(&self, who: &Failing<'_>, now: OffsetDateTime) -> Option<OffsetDateTime> {
        if self.failures_off() {
            return None;
        }
        let now = self.clock.at(now);
        let until = self.failures.peek(who.subject(), |window| window.blocked_until(now)).flatten();
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
