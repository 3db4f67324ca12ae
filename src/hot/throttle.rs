//! Who calls too often, and who guesses keys. In memory only, bounded, each node for itself: a restart forgives.
//!
//! The caller decides what a limit means; in particular a good key is never refused for others' failures from its
//! address, so [`Throttle::auth_blocked`] is asked only when a key was wrong.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use moka::sync::Cache;
use time::{Duration, OffsetDateTime};

/// 0 anywhere turns that limit off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub global_per_minute: u32,
    pub auth_fail_count: u32,
    pub auth_fail_window_seconds: u32,
    pub auth_fail_block_seconds: u32,
}

/// Refused until `reset_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    pub limit: u32,
    pub reset_at: OffsetDateTime,
}

pub struct Throttle {
    limits: Limits,
    calls: Counts,
    failures: Counts,
}

/// How many addresses are remembered; beyond it the least used are forgotten.
const ADDRESSES: u64 = 100_000;
const MINUTE: Duration = Duration::minutes(1);

impl Throttle {
    pub fn new(limits: Limits) -> Self {
        Self { limits, calls: Counts::new(), failures: Counts::new() }
    }

    /// Counts a call from this address, in windows of a minute that begin with the first call of each.
    pub fn global(&self, ip: IpAddr, now: OffsetDateTime) -> Result<(), Limited> {
        let limit = self.limits.global_per_minute;
        if limit == 0 {
            return Ok(());
        }
        self.calls.with(ip, |window| {
            window.turn(now, MINUTE);
            if window.count >= limit {
                return Err(Limited { limit, reset_at: window.begun + MINUTE });
            }
            window.count += 1;
            Ok(())
        })
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts a wrong key from this address.
    pub fn auth_failed(&self, ip: IpAddr, now: OffsetDateTime) {
        if self.failures_off() {
            return;
        }
        self.failures.with(ip, |window| {
            if window.blocked(now).is_some() {
                return;
            }
            window.turn(now, seconds(self.limits.auth_fail_window_seconds));
            window.count += 1;
            if window.count >= self.limits.auth_fail_count {
                // What comes after the block is counted anew.
                let block = seconds(self.limits.auth_fail_block_seconds);
                *window = Window { begun: now, count: 0, block: Some((now, now + block)) };
            }
        });
    }

    /// Until when wrong keys from this address are turned away unseen.
    pub fn auth_blocked(&self, ip: IpAddr, now: OffsetDateTime) -> Option<OffsetDateTime> {
        if self.failures_off() {
            return None;
        }
        self.failures.peek(ip, |window| window.blocked(now)).flatten()
    }

    fn failures_off(&self) -> bool {
        let Limits { auth_fail_count, auth_fail_window_seconds, auth_fail_block_seconds, .. } = self.limits;
        auth_fail_count == 0 || auth_fail_window_seconds == 0 || auth_fail_block_seconds == 0
    }
}

struct Window {
    begun: OffsetDateTime,
    count: u32,
    /// From and until.
    block: Option<(OffsetDateTime, OffsetDateTime)>,
}

impl Window {
    /// Begins anew when the window is over, or lies in the future of a clock that was set back.
    fn turn(&mut self, now: OffsetDateTime, length: Duration) {
        if now < self.begun || now - self.begun >= length {
            *self = Self { begun: now, count: 0, block: None };
        }
    }

    fn blocked(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        // A clock that was set back must not block for longer than it was meant.
        self.block.filter(|(from, until)| (*from..*until).contains(&now)).map(|(_, until)| until)
    }
}

struct Counts(Cache<Network, Arc<Mutex<Window>>>);

impl Counts {
    fn new() -> Self {
        Self(Cache::new(ADDRESSES))
    }

    fn with<T>(&self, ip: IpAddr, count: impl FnOnce(&mut Window) -> T) -> T {
        let window = self.0.get_with(Network::of(ip), || {
            Arc::new(Mutex::new(Window { begun: OffsetDateTime::UNIX_EPOCH, count: 0, block: None }))
        });
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut window)
    }

    /// Remembers nothing new.
    fn peek<T>(&self, ip: IpAddr, look: impl FnOnce(&Window) -> T) -> Option<T> {
        let window = self.0.get(&Network::of(ip))?;
        let window = window.lock().unwrap_or_else(PoisonError::into_inner);
        Some(look(&window))
    }
}

/// Who is counted as one: an IPv4 address, or an IPv6 /64, which anybody who has one address of it has whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Network(IpAddr);

impl Network {
    fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
            v4 => v4,
        })
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::seconds(seconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        global_per_minute: 3,
        auth_fail_count: 20,
        auth_fail_window_seconds: 600,
        auth_fail_block_seconds: 1800,
    };

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000 + seconds).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_calls_a_minute() {
        let throttle = Throttle::new(LIMITS);
        for second in [0, 20, 40] {
            assert_eq!(throttle.global(ip("192.0.2.1"), at(second)), Ok(()));
        }
        let limited = Err(Limited { limit: 3, reset_at: at(60) });
        assert_eq!(throttle.global(ip("192.0.2.1"), at(41)), limited);
        assert_eq!(throttle.global(ip("192.0.2.1"), at(59)), limited, "being refused does not put it off");
        assert_eq!(throttle.global(ip("192.0.2.2"), at(41)), Ok(()));
        assert_eq!(throttle.global(ip("192.0.2.1"), at(60)), Ok(()));
        assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(41)), None);
    }

    #[test]
    fn the_twenty_first_wrong_key_in_the_window_is_turned_away() {
        let throttle = Throttle::new(LIMITS);
        for failure in 0..20 {
            assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(failure)), None);
            throttle.auth_failed(ip("192.0.2.1"), at(failure));
        }
        assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(20)), Some(at(19 + 1800)));
        assert_eq!(throttle.auth_blocked(ip("192.0.2.2"), at(20)), None);
        for failure in 100..120 {
            throttle.auth_failed(ip("192.0.2.1"), at(failure));
        }
        assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(1818)), Some(at(1819)), "trying on does not prolong it");
        assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(1819)), None);
        for failure in 1820..1839 {
            throttle.auth_failed(ip("192.0.2.1"), at(failure));
        }
        assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(1839)), None, "and then it counts anew");
    }

    #[test]
    fn failures_in_different_windows_do_not_add_up() {
        let throttle = Throttle::new(LIMITS);
        for window in [0, 600, 1200] {
            for failure in 0..19 {
                throttle.auth_failed(ip("192.0.2.1"), at(window + failure));
            }
            assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(window + 19)), None);
        }
    }

    #[test]
    fn a_whole_v6_network_counts_as_one_and_a_mapped_address_as_its_v4() {
        let throttle = Throttle::new(LIMITS);
        for host in ["2001:db8:1:2::1", "2001:db8:1:2:ffff::2", "2001:db8:1:2:3:4:5:6"] {
            assert_eq!(throttle.global(ip(host), at(0)), Ok(()));
        }
        assert!(throttle.global(ip("2001:db8:1:2::7"), at(0)).is_err());
        assert_eq!(throttle.global(ip("2001:db8:1:3::7"), at(0)), Ok(()));
        for _ in 0..3 {
            throttle.global(ip("192.0.2.1"), at(0)).unwrap();
        }
        assert!(throttle.global(ip("::ffff:192.0.2.1"), at(0)).is_err());
        assert!(throttle.global(ip("::ffff:192.0.2.2"), at(0)).is_ok());
    }

    #[test]
    fn zero_is_off() {
        let limits = [
            Limits { auth_fail_count: 0, ..LIMITS },
            Limits { auth_fail_window_seconds: 0, ..LIMITS },
            Limits { auth_fail_block_seconds: 0, ..LIMITS },
        ];
        for limits in limits {
            let throttle = Throttle::new(Limits { global_per_minute: 0, ..limits });
            for _ in 0..1000 {
                assert_eq!(throttle.global(ip("192.0.2.1"), at(0)), Ok(()));
                throttle.auth_failed(ip("192.0.2.1"), at(0));
                assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(0)), None, "{limits:?}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let throttle = Throttle::new(LIMITS);
        for _ in 0..20 {
            throttle.auth_failed(ip("192.0.2.1"), at(100_000));
        }
        for _ in 0..3 {
            throttle.global(ip("192.0.2.1"), at(100_000)).unwrap();
        }
        assert_eq!(throttle.global(ip("192.0.2.1"), at(0)), Ok(()));
        assert_eq!(throttle.auth_blocked(ip("192.0.2.1"), at(0)), None);
    }

    #[test]
    fn addresses_without_end_do_not_fill_the_memory() {
        let throttle = Throttle::new(LIMITS);
        for number in 0..(2 * ADDRESSES as u32) {
            throttle.auth_failed(IpAddr::V4(number.into()), at(0));
        }
        throttle.failures.0.run_pending_tasks();
        assert!(throttle.failures.0.entry_count() <= ADDRESSES);
    }
}
