//! Formats instants for pages: a short form, the distance from now, and the exact RFC 3339 form.

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, UtcOffset};

const MINUTES: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");

/// An instant, for `<time>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When {
    /// RFC 3339.
    pub exact: String,
    /// `2026-11-21 10:00 UTC`
    pub shown: String,
    /// `3 minutes ago`, `in 30 minutes`
    pub distance: String,
}

impl When {
    pub fn new(at: OffsetDateTime, now: OffsetDateTime) -> Self {
        let utc = at.checked_to_offset(UtcOffset::UTC).unwrap_or(at);
        Self {
            exact: utc.format(&Rfc3339).unwrap_or_default(),
            shown: utc.format(MINUTES).unwrap_or_default(),
            distance: distance(at - now),
        }
    }
}

fn distance(distance: Duration) -> String {
    let seconds = distance.whole_seconds().unsigned_abs();
    let (count, unit) = match seconds {
        0..=44 => return if distance.is_positive() { "in a moment".into() } else { "just now".into() },
        45..=5_399 => ((seconds + 30) / 60, "minute"),
        5_400..=172_799 => ((seconds + 1_800) / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    if distance.is_positive() { format!("in {count} {unit}{plural}") } else { format!("{count} {unit}{plural} ago") }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_time_is_told_in_utc_and_by_its_distance() {
        let now = datetime!(2026-11-21 10:00 UTC);
        let when = When::new(datetime!(2026-11-21 12:30:00 +02:00), now);
        assert_eq!(when.shown, "2026-11-21 10:30 UTC");
        assert_eq!(when.exact, "2026-11-21T10:30:00Z");
        assert_eq!(when.distance, "in 30 minutes");
        for (seconds, told) in [
            (0, "just now"),
            (-44, "just now"),
            (20, "in a moment"),
            (-60, "1 minute ago"),
            (-3_600, "60 minutes ago"),
            (-7_200, "2 hours ago"),
            (-172_800, "2 days ago"),
            (86_400 * 400, "in 400 days"),
        ] {
            assert_eq!(When::new(now + Duration::seconds(seconds), now).distance, told);
        }
    }

    #[test]
    fn the_ends_of_the_calendar_are_told_without_a_panic() {
        let now = datetime!(2026-11-21 10:00 UTC);
        When::new(datetime!(9999-12-31 23:59:59 -23:59), now);
        When::new(datetime!(0000-01-01 00:00:00 +23:59), now);
    }
}
