use std::net::Ipv6Addr;
use std::sync::Arc;

use super::*;
use crate::hot::Hot;
use crate::platform::System;

const LIMITS: Limits = Limits {
    global_per_minute: 3,
    host_per_minute: 2,
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
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(41)), None);
}

/// Whoever floods one listener keeps nobody of the same address from the other.
#[test]
fn the_listeners_are_counted_apart_and_users_apart_from_hosts() {
    let throttle = Throttle::new(LIMITS);
    for _ in 0..3 {
        assert_eq!(throttle.global(ip("192.0.2.1"), at(0)), Ok(()));
    }
    assert!(throttle.global(ip("192.0.2.1"), at(1)).is_err());
    for last in [1, 2, 3] {
        assert_eq!(throttle.admins(ip(&format!("2001:db8::{last}")), at(1)), Ok(()));
        assert_eq!(throttle.admins(ip("192.0.2.1"), at(1)), Ok(()));
    }
    assert!(throttle.admins(ip("192.0.2.1"), at(1)).is_err());
    assert!(throttle.admins(ip("2001:db8::9"), at(1)).is_err(), "one network");
    for _ in 0..2 {
        assert_eq!(throttle.host(HostId(7), at(1)), Ok(()));
        assert_eq!(throttle.user(UserId(7), at(1)), Ok(()));
    }
    assert!(throttle.host(HostId(7), at(1)).is_err());
    assert_eq!(throttle.user(UserId(7), at(1)), Err(Limited { limit: 2, reset_at: at(61) }));
}

#[test]
fn the_twenty_first_wrong_key_in_the_window_is_turned_away() {
    let throttle = Throttle::new(LIMITS);
    for failure in 0..20 {
        assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(failure)), None);
        throttle.failed(&Failing::Key(ip("192.0.2.1")), at(failure));
    }
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(20)), Some(at(19 + 1800)));
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.2")), at(20)), None);
    for failure in 100..120 {
        throttle.failed(&Failing::Key(ip("192.0.2.1")), at(failure));
    }
    assert_eq!(
        throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(1818)),
        Some(at(1819)),
        "trying on does not prolong it"
    );
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(1819)), None);
    for failure in 1820..1839 {
        throttle.failed(&Failing::Key(ip("192.0.2.1")), at(failure));
    }
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(1839)), None, "and then it counts anew");
}

#[test]
fn failures_in_different_windows_do_not_add_up() {
    let throttle = Throttle::new(LIMITS);
    for window in [0, 600, 1200] {
        for failure in 0..19 {
            throttle.failed(&Failing::Key(ip("192.0.2.1")), at(window + failure));
        }
        assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(window + 19)), None);
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
        let throttle = Throttle::new(Limits { global_per_minute: 0, host_per_minute: 0, ..limits });
        for _ in 0..1000 {
            assert_eq!(throttle.global(ip("192.0.2.1"), at(0)), Ok(()));
            assert_eq!(throttle.host(HostId(1), at(0)), Ok(()));
            throttle.failed(&Failing::Key(ip("192.0.2.1")), at(0));
            assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(0)), None, "{limits:?}");
        }
    }
}

#[test]
fn a_host_has_so_many_calls_a_minute_wherever_they_come_from() {
    let throttle = Throttle::new(LIMITS);
    for second in [0, 1] {
        assert_eq!(throttle.host(HostId(1), at(second)), Ok(()));
    }
    assert_eq!(throttle.host(HostId(1), at(2)), Err(Limited { limit: 2, reset_at: at(60) }));
    assert_eq!(throttle.host(HostId(2), at(2)), Ok(()));
    assert_eq!(throttle.host(HostId(1), at(60)), Ok(()));
}

#[test]
fn a_block_that_is_shorter_than_the_window_is_counted_anew_as_well() {
    let throttle = Throttle::new(Limits { auth_fail_count: 2, auth_fail_block_seconds: 60, ..LIMITS });
    for begin in [0, 60] {
        assert!(!throttle.failed(&Failing::Key(ip("192.0.2.1")), at(begin)));
        assert!(throttle.failed(&Failing::Key(ip("192.0.2.1")), at(begin)), "the second one at {begin} blocks");
        assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(begin + 59)), Some(at(begin + 60)));
    }
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(120)), None);
}

/// Blocked for 1800 s at 100,000; then the clock is set.
#[test]
fn a_clock_that_is_set_locks_nobody_out_for_longer_than_meant() {
    for set_to in [0, 99_000, 99_999, 100_000, 101_000] {
        let throttle = Throttle::new(LIMITS);
        for _ in 0..20 {
            throttle.failed(&Failing::Key(ip("192.0.2.1")), at(100_000));
        }
        for _ in 0..3 {
            throttle.global(ip("192.0.2.1"), at(100_000)).unwrap();
        }
        let end = if set_to > 100_000 { 101_800 } else { set_to + 1800 };
        let blocked = throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(set_to));
        // A second is not told from calls that overtake each other.
        assert!(blocked.is_some_and(|until| (at(end)..=at(end + 1)).contains(&until)), "{set_to}: {blocked:?}");
        assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(end + 1)), None, "{set_to}");
        assert_eq!(throttle.global(ip("192.0.2.1"), at(end + 1)), Ok(()), "{set_to}");
    }
}

#[test]
fn a_clock_that_is_set_back_again_and_again_blocks_no_longer_either() {
    let throttle = Throttle::new(LIMITS);
    for _ in 0..20 {
        throttle.failed(&Failing::Key(ip("192.0.2.1")), at(0));
    }
    // Each hundred seconds it loses an hour.
    for round in 0..18 {
        let now = round * 100 - round * 3600;
        assert!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(now)).is_some(), "{round}");
        let _ = throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(now + 100));
    }
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(1801 - 17 * 3600)), None);
}

const MILLION: u32 = 1_000_000;

/// A million callers: v4 addresses, and v6 networks.
fn caller(number: u32) -> IpAddr {
    match number % 2 {
        0 => IpAddr::V4(number.into()),
        _ => IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | (u128::from(number) << 64) | 1)),
    }
}

#[test]
fn a_million_addresses_fill_neither_memory_nor_disk_and_free_nobody_who_is_blocked() {
    let dir = tempfile::tempdir().unwrap();
    let hot = open(&dir);
    let throttle = Throttle::new(Limits { auth_fail_count: 2, ..LIMITS });
    let blocked = victims();
    for ip in &blocked {
        block(&hot, &throttle, *ip, 2, 0);
    }
    for number in 0..MILLION {
        throttle.failed(&Failing::Key(caller(number)), at(1));
    }
    let (known, refused) = throttle.failures.sizes();
    assert!(known <= MAX_REMEMBERED && refused <= MAX_REMEMBERED, "{known} {refused}");
    for ip in &blocked {
        assert_eq!(throttle.blocked(&Failing::Key(*ip), at(2)), Some(at(1800)), "{ip}");
    }
    assert_eq!(hot.kept_blocks(), blocked.len(), "failures that led to no block are not written");
}

#[test]
fn rows_of_blocks_are_bounded_and_go_when_the_blocks_end() {
    let dir = tempfile::tempdir().unwrap();
    let hot = open(&dir);
    let throttle = Throttle::new(Limits { auth_fail_count: 1, ..LIMITS });
    for number in 0..1000 {
        block(&hot, &throttle, caller(number), 1, 0);
    }
    assert_eq!(hot.kept_blocks(), 1000);
    throttle.fill_kept_blocks();
    block(&hot, &throttle, ip("192.0.2.1"), 1, 1);
    assert_eq!(hot.kept_blocks(), 1000, "there is no room for another row");
    assert!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(2)).is_some(), "it is blocked in memory");
    // Each write removes a batch of rows whose block has ended, and has room again.
    for (write, rows) in [(0, 501), (1, 2), (2, 3)] {
        block(&hot, &throttle, ip(&format!("198.51.100.{write}")), 1, 1801);
        assert_eq!(hot.kept_blocks(), rows, "{write}");
    }
}

/// Blocked anew as soon as the first block has ended, it has one row, and keeps it.
#[test]
fn a_second_block_replaces_the_row_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (hot, throttle) = (open(&dir), Throttle::new(LIMITS));
        block(&hot, &throttle, ip("192.0.2.1"), 20, 0);
        block(&hot, &throttle, ip("192.0.2.1"), 20, 1800);
        assert_eq!(hot.kept_blocks(), 1);
    }
    let (_hot, throttle) = restored(&dir, LIMITS, at(1801));
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(1801)), Some(at(3600)));
}

/// A flood evicts counts; it must not evict those of an address that has used up its minute.
#[test]
fn a_flood_of_addresses_does_not_reopen_the_minute_of_whoever_used_it_up() {
    let throttle = Throttle::new(LIMITS);
    let refused = victims();
    for ip in &refused {
        while throttle.global(*ip, at(0)).is_ok() {}
    }
    for number in 0..3 * MAX_REMEMBERED as u32 {
        throttle.global(caller(number), at(1)).unwrap();
    }
    assert!(throttle.calls.sizes().0 <= MAX_REMEMBERED);
    for ip in &refused {
        assert!(throttle.global(*ip, at(2)).is_err(), "{ip}");
    }
}

/// TEST-NET-1; no caller has such an address.
fn victims() -> Vec<IpAddr> {
    (0..100).map(|number| IpAddr::V4((0xc000_0200 + number).into())).collect()
}

#[test]
fn a_restart_ends_no_block() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (ip("192.0.2.1"), ip("2001:db8:1:2::1"));
    {
        let (hot, throttle) = (open(&dir), Throttle::new(LIMITS));
        block(&hot, &throttle, one, 20, 0);
        block(&hot, &throttle, two, 20, 100);
    }
    for second in [101, 102] {
        let (_hot, throttle) = restored(&dir, LIMITS, at(second));
        assert_eq!(throttle.blocked(&Failing::Key(one), at(second)), Some(at(1800)));
        assert_eq!(throttle.blocked(&Failing::Key(two), at(second)), Some(at(1900)));
        assert_eq!(throttle.blocked(&Failing::SignIn(one), at(second)), None);
    }

    // A block is no longer than is configured by then, and the row of one that has ended goes.
    let shorter = Limits { auth_fail_block_seconds: 1000, ..LIMITS };
    let (hot, throttle) = restored(&dir, shorter, at(1050));
    assert_eq!(throttle.blocked(&Failing::Key(one), at(1050)), None);
    assert_eq!(throttle.blocked(&Failing::Key(two), at(1050)), Some(at(1100)));
    assert_eq!(hot.kept_blocks(), 1);
    drop((hot, throttle));
    let (hot, throttle) = restored(&dir, Limits { auth_fail_count: 0, ..LIMITS }, at(1060));
    assert_eq!((throttle.blocked(&Failing::Key(two), at(1060)), hot.kept_blocks()), (None, 0), "off is off");
}

#[test]
fn a_clock_that_is_set_back_while_nothing_runs_blocks_for_no_longer_than_configured() {
    for (set_to, blocked) in
        [(0, false), (9_000, false), (9_999, true), (10_000, true), (11_799, true), (11_800, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        {
            let (hot, throttle) = (open(&dir), Throttle::new(LIMITS));
            block(&hot, &throttle, ip("192.0.2.1"), 20, 10_000);
        }
        let (_hot, throttle) = restored(&dir, LIMITS, at(set_to));
        assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(set_to)).is_some(), blocked, "{set_to}");
    }
}

#[test]
fn a_clock_that_was_set_back_before_the_block_keeps_its_end() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (hot, throttle) = (open(&dir), Throttle::new(LIMITS));
        let _ = throttle.global(ip("192.0.2.1"), at(11_000));
        block(&hot, &throttle, ip("192.0.2.1"), 20, 10_000);
        assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(10_001)), Some(at(11_800)));
    }
    let (_hot, throttle) = restored(&dir, LIMITS, at(10_101));
    assert_eq!(throttle.blocked(&Failing::Key(ip("192.0.2.1")), at(10_101)), Some(at(11_800)));
}

/// Rows of an earlier version among them: windows of three times and a count, and the time that they were written.
#[test]
fn rows_that_are_no_blocks_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let hot = open(&dir);
    let bad: [(&[u8], &[u8]); 7] = [
        (b"throttle/", b""),
        (b"throttle/f", b"x"),
        (b"throttle/f0123456789abcdef", b"short"),
        (b"throttle/f0123456789abcdeg", &[0; 28]),
        (b"throttle/g0123456789abcdef", &[0; 16]),
        (b"throttle/f0123456789abcdeh", &[0xff; 16]),
        (b"throttle-clock", &[0; 16]),
    ];
    let written = hot.cache.write(|change| bad.iter().try_for_each(|(key, value)| change.insert(*key, *value)));
    written.unwrap();
    hot.restore_blocks(&Throttle::new(LIMITS), at(0)).unwrap();
    assert_eq!(hot.kept_blocks(), 0);
}

#[test]
fn calls_from_everywhere_at_once_are_counted_exactly() {
    let throttle = Arc::new(Throttle::new(Limits { global_per_minute: 1000, ..LIMITS }));
    let let_in: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let throttle = throttle.clone();
                scope.spawn(move || {
                    (0..1000).filter(|call| throttle.global(ip("192.0.2.1"), at((thread + call) % 2)).is_ok()).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(let_in, 1000);
}

fn open(dir: &tempfile::TempDir) -> Hot {
    Hot::open(dir.path(), &System).unwrap()
}

fn restored(dir: &tempfile::TempDir, limits: Limits, now: OffsetDateTime) -> (Hot, Throttle) {
    let (hot, throttle) = (open(dir), Throttle::new(limits));
    hot.restore_blocks(&throttle, now).unwrap();
    (hot, throttle)
}

/// The last of `failures` wrong keys blocks the address; the block is kept.
fn block(hot: &Hot, throttle: &Throttle, ip: IpAddr, failures: u32, second: i64) {
    let who = Failing::Key(ip);
    for failure in 1..=failures {
        assert_eq!(throttle.failed(&who, at(second)), failure == failures, "{ip}: {failure}");
    }
    hot.keep_block(throttle, &who, at(second)).unwrap();
}
