//! Target `values`: small texts in requests: dates, versions, content types, digests, and the fields of audit entries
//! and audit filters. Each line of the input is one text.

use std::cmp::Ordering;

use super::NOW;
use crate::api::json::is_json;
use crate::model::audit::{Actor, AuditEntry, AuditFilter, AuditHead, AuditNote};
use crate::model::digest::Digest;
use crate::model::host::HostId;
use crate::model::instant::Instant;
use crate::model::version::Version;

pub fn values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines: Vec<&str> = text.split('\n').collect();
    for line in lines.iter().take(8) {
        content_type(line);
        digest(line);
    }
    instants(&lines);
    versions(&lines);
    audit(&lines);
}

fn content_type(text: &str) {
    if is_json(text) {
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let subtype = essence.strip_prefix("application/").expect("its type is application");
        assert!(subtype == "json" || subtype.ends_with("+json"));
        // The characters that RFC 9110 allows in a subtype.
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(subtype.bytes().all(good), "{text:?} was accepted as JSON");
    }
}

fn digest(text: &str) {
    let good = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match text.parse::<Digest>() {
        Ok(digest) => assert!(good && digest.to_string() == text.to_ascii_lowercase()),
        Err(_) => assert!(!good, "{text:?} was refused"),
    }
}

fn instants(lines: &[&str]) {
    let mut read = Vec::new();
    for line in lines.iter().take(4) {
        let expected = nanoseconds(line);
        let instant = Instant::parse(line);
        assert_eq!(instant.is_ok(), expected.is_some(), "{line:?}");
        if let (Ok(instant), Some(nanoseconds)) = (instant, expected) {
            assert_eq!(instant.text(), *line);
            const SECOND: i128 = 1_000_000_000;
            let good = nanoseconds >= 946_684_800 * SECOND && nanoseconds <= NOW.unix_timestamp_nanos() + 300 * SECOND;
            assert_eq!(instant.check(NOW).is_ok(), good, "{line:?}");
            let _ = instant.after();
            read.push((nanoseconds, instant));
        }
    }
    for (ours, a) in &read {
        for (theirs, b) in &read {
            assert_eq!(a.cmp(b), ours.cmp(theirs), "{a} {b}");
            assert_eq!(a == b, ours == theirs);
        }
    }
}

/// Parses RFC 3339 by hand. Returns nanoseconds since 1970.
fn nanoseconds(text: &str) -> Option<i128> {
    let bytes = text.as_bytes();
    let number = |from: usize, length: usize| {
        let digits = bytes.get(from..from + length)?;
        digits
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| digits.iter().fold(0, |sum, digit| sum * 10 + i128::from(digit - b'0')))
    };
    let is = |at: usize, wanted: &[u8]| bytes.get(at).filter(|byte| wanted.contains(byte)).map(|_| ());
    if bytes.len() > 64 {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    [(4, b"--"), (7, b"--"), (10, b"Tt"), (13, b"::"), (16, b"::")]
        .into_iter()
        .try_for_each(|(at, wanted)| is(at, wanted))?;
    let mut at = 19;
    let mut fraction = 0;
    if is(at, b".").is_some() {
        let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        let kept = digits.min(9);
        fraction = number(at + 1, kept)? * 10_i128.pow(9 - u32::try_from(kept).ok()?);
        at += 1 + digits;
    }
    let offset = if is(at, b"Zz").is_some() {
        (bytes.len() == at + 1).then_some(0)?
    } else {
        is(at, b"+-").filter(|()| bytes.len() == at + 6)?;
        is(at + 3, b":")?;
        let (hours, minutes) = (number(at + 1, 2)?, number(at + 4, 2)?);
        (hours < 24 && minutes < 60).then_some(())?;
        (hours * 60 + minutes) * if bytes[at] == b'-' { -60 } else { 60 }
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month - 1).ok()?)?;
    if day < 1 || day > length || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970, counting years from March.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * years + years.div_euclid(4) - years.div_euclid(100)
        + years.div_euclid(400)
        + (153 * months + 2) / 5
        + day
        - 1
        - 719_468;
    let in_utc = days * 86_400 + hour * 3600 + minute * 60 + second.min(59) - offset;
    if second == 60 {
        // A leap second is the last second of a month in UTC. It counts as the last nanosecond before it.
        let (day, clock) = (in_utc.div_euclid(86_400), in_utc.rem_euclid(86_400));
        (clock == 86_399 && is_last_of_month(day)).then_some(())?;
        fraction = 999_999_999;
    }
    Some(in_utc * 1_000_000_000 + fraction)
}

/// Whether this day since 1970 is the last of its month.
fn is_last_of_month(day: i128) -> bool {
    let Ok(day) = i64::try_from(day + 1) else { return false };
    time::OffsetDateTime::from_unix_timestamp(day * 86_400).is_ok_and(|next| next.day() == 1)
}

fn versions(lines: &[&str]) {
    let versions: Vec<Version> = lines.iter().take(3).filter_map(|line| Version::reported(line)).collect();
    for version in &versions {
        let text = version.as_str();
        assert!((1..=64).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        assert_eq!(Version::reported(text).as_ref(), Some(version), "it differs when read again");
    }
    for a in &versions {
        assert_eq!(a.cmp(a), Ordering::Equal);
        for b in &versions {
            assert_eq!(a.cmp(b), b.cmp(a).reverse());
            assert_eq!(a == b, a.cmp(b) == Ordering::Equal);
            for c in &versions {
                assert!(!(a <= b && b <= c) || a <= c, "the order of {a} {b} {c} is not transitive");
            }
        }
    }
}

fn audit(lines: &[&str]) {
    let line = |at: usize| lines.get(at).copied().unwrap_or_default();
    let actor = match line(0).len() % 4 {
        0 => Actor::Certificate { name: line(0).into(), fingerprint: Digest::of(line(0).as_bytes()) },
        1 => Actor::Control { uid: u32::try_from(line(0).len()).unwrap_or_default() },
        2 => line(0).parse().map_or(Actor::Anybody, |fqdn| Actor::Host { id: HostId(7), fqdn }),
        _ => Actor::Daemon,
    };
    let mut note = AuditNote::new(NOW, actor, line(3).parse().ok(), line(1)).on(line(2)).with(line(3), line(4));
    if line(5).is_empty() {
        note = note.refused(line(4)).alarm();
    }
    let entry = AuditHead::default().chain(note);
    // An entry that is written and read again still fits its chain.
    let stored = serde_json::to_string(&entry).expect("an entry is JSON");
    let read: AuditEntry = serde_json::from_str(&stored).expect("an entry can be read again");
    assert_eq!(read, entry);
    AuditHead::default().follow(&read).expect("it follows the first");

    let admits = |filter: AuditFilter| filter.admits(&entry);
    assert!(admits(AuditFilter::default()));
    assert!(admits(AuditFilter { target: Some(line(2).into()), actor: Some(String::new()), ..AuditFilter::default() }));
    let fits = entry.note.action == line(5) || entry.note.action.starts_with(&format!("{}.", line(5)));
    assert_eq!(admits(AuditFilter { action: Some(line(5).into()), ..AuditFilter::default() }), fits);
    let name = entry.note.actor.to_string();
    assert!(admits(AuditFilter { actor: Some(name), ..AuditFilter::default() }));
}
