//! The instant of a `last_refresh`: compared by nanoseconds, written back in its original spelling.
//!
//! Digits after the ninth fractional digit are cut off, never rounded up, so a longer spelling cannot gain a
//! nanosecond. A leap second (`23:59:60`, only where UTC can have one) counts as the last nanosecond of its minute.
//! Refused: words (`yesterday`), a blank instead of the `T`, and space around the text.

use std::cmp::Ordering;
use std::fmt;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// How far a client's clock may run ahead of ours.
const MAX_CLOCK_AHEAD: Duration = Duration::seconds(300);
/// 2000-01-01T00:00:00Z.
const EARLIEST: i128 = 946_684_800 * 1_000_000_000;
/// No sensible spelling is longer. Limited because the text is stored and shown.
const MAX_TEXT_BYTES: usize = 64;

/// An RFC 3339 instant with its spelling. Equality and order ignore the spelling.
#[derive(Clone)]
pub struct Instant {
    /// Nanoseconds since 1970. Not an `OffsetDateTime`, which cannot be converted to UTC near the ends of its range.
    nanos: i128,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadInstant {
    #[error("must be an RFC3339 timestamp")]
    NotRfc3339,
    #[error("timestamp is before 2000-01-01")]
    TooOld,
    #[error("timestamp is in the future")]
    InFuture,
}

impl Instant {
    pub fn parse(text: &str) -> Result<Self, BadInstant> {
        // The parser accepts any byte between date and time; RFC 3339 allows only T or t.
        if text.len() > MAX_TEXT_BYTES || !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
            return Err(BadInstant::NotRfc3339);
        }
        let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| BadInstant::NotRfc3339)?;
        Ok(Self { nanos: parsed.unix_timestamp_nanos(), text: text.to_owned() })
    }

    /// The original spelling.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The instant one microsecond later.
    pub fn after(&self) -> OffsetDateTime {
        // The conversion fails only at the end of `OffsetDateTime`'s range.
        OffsetDateTime::from_unix_timestamp_nanos(self.nanos + 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// Seconds since 1970, rounded; for metrics only.
    pub fn unix_seconds(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Whether a client may claim this instant: not before 2000, and at most 300 s ahead of `now`.
    pub fn check(&self, now: OffsetDateTime) -> Result<(), BadInstant> {
        if self.nanos < EARLIEST {
            Err(BadInstant::TooOld)
        } else if self.nanos - now.unix_timestamp_nanos() > MAX_CLOCK_AHEAD.whole_nanoseconds() {
            Err(BadInstant::InFuture)
        } else {
            Ok(())
        }
    }
}

impl PartialEq for Instant {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Instant {}

impl PartialOrd for Instant {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Instant {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    fn at(text: &str) -> Instant {
        Instant::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn instants_compare_to_the_nanosecond() {
        assert!(at("2025-11-20T09:27:43.373506211Z") < at("2025-11-20T09:27:43.373506212Z"));
        assert!(at("2025-11-20T09:27:43Z") < at("2025-11-20T09:27:43.000000001Z"));
        assert!(at("2025-11-20T10:27:43+02:00") < at("2025-11-20T09:27:43Z"));
    }

    #[test]
    fn the_same_instant_in_another_spelling_is_equal_and_keeps_its_spelling() {
        for text in [
            "2025-11-20T09:27:43Z",
            "2025-11-20t09:27:43z",
            "2025-11-20T09:27:43.0Z",
            "2025-11-20T09:27:43.000000000Z",
            "2025-11-20T09:27:43+00:00",
            "2025-11-20T09:27:43-00:00",
            "2025-11-20T11:27:43+02:00",
            "2025-11-19T22:12:43-11:15",
        ] {
            assert_eq!(at(text), at("2025-11-20T09:27:43Z"));
            assert_eq!(at(text).text(), text);
            assert_eq!(at(text).to_string(), text);
        }
    }

    #[test]
    fn digits_after_the_ninth_are_cut_off() {
        assert_eq!(at("2025-11-20T09:27:43.3735062119999Z"), at("2025-11-20T09:27:43.373506211Z"));
    }

    #[test]
    fn a_leap_second_is_the_end_of_its_minute() {
        assert_eq!(at("2016-12-31T23:59:60Z"), at("2016-12-31T23:59:59.999999999Z"));
        assert_eq!(at("2017-01-01T01:59:60+02:00"), at("2016-12-31T23:59:60Z"));
        assert_eq!(Instant::parse("2016-12-30T23:59:60Z"), Err(BadInstant::NotRfc3339));
        assert_eq!(Instant::parse("2016-12-31T22:59:60Z"), Err(BadInstant::NotRfc3339));
    }

    #[test]
    fn words_and_near_misses_are_no_instants() {
        for text in [
            "",
            "yesterday",
            "now",
            "nope",
            "2025-11-20",
            "1763631000",
            "2025-11-20 09:27:43Z",
            "2025-11-20T09:27:43",
            "2025-11-20T09:27Z",
            "2025-11-20T09:27:43.Z",
            "2025-11-20T09:27:43Z ",
            " 2025-11-20T09:27:43Z",
            "2025-11-20T09:27:43+0200",
            "2025-02-29T09:27:43Z",
            "2025-13-01T09:27:43Z",
            "2025-11-20T24:00:00Z",
            "2025-11-20T09:60:00Z",
            "2025-11-20T09:27:61Z",
            "2025-11-20T09:27:43+24:00",
            "2025-11-20é09:27:43Z",
            "+2025-11-20T09:27:43Z",
            &format!("2025-11-20T09:27:43.{}Z", "0".repeat(60)),
        ] {
            assert_eq!(Instant::parse(text), Err(BadInstant::NotRfc3339), "{text:?}");
        }
    }

    #[test]
    fn only_the_years_since_2000_up_to_300_seconds_ahead_may_be_claimed() {
        let now = datetime!(2025-11-21 10:00 UTC);
        assert_eq!(at("2000-01-01T00:00:00Z").check(now), Ok(()));
        assert_eq!(at("2000-01-01T00:30:00+00:30").check(now), Ok(()));
        assert_eq!(at("1999-12-31T23:59:59.999999999Z").check(now), Err(BadInstant::TooOld));
        assert_eq!(at("2025-11-21T10:05:00Z").check(now), Ok(()));
        assert_eq!(at("2025-11-21T10:05:00.000000001Z").check(now), Err(BadInstant::InFuture));
        assert_eq!(at("2099-01-01T00:00:00Z").check(now), Err(BadInstant::InFuture));
    }

    #[test]
    fn the_ends_of_the_calendar_are_compared_without_a_panic() {
        let (first, last) = (at("0000-01-01T00:00:00+23:59"), at("9999-12-31T23:59:59-23:59"));
        assert!(first < at("0000-01-01T00:00:00Z") && at("9999-12-31T23:59:59Z") < last);
        assert_eq!(first.check(datetime!(2025-11-21 10:00 UTC)), Err(BadInstant::TooOld));
        assert_eq!(last.check(datetime!(0001-01-01 0:00 UTC)), Err(BadInstant::InFuture));
        let _ = Instant::parse("9999-12-31T23:59:60-23:59");
        let _ = Instant::parse("0000-01-01T00:00:60+23:59");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:(60|[0-9]{2})(\\.[0-9]{0,12})?(Z|[+-][0-9]{2}:[0-9]{2})") {
            if let Ok(instant) = Instant::parse(&text) {
                prop_assert_eq!(instant.text(), &text);
                let _ = instant.check(datetime!(2025-11-21 10:00 UTC));
            }
        }
    }
}
