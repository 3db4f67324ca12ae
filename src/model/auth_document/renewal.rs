//! Decides whether a document replaces the canonical login, by account, order and date.
//!
//! 1. **Account.** Only the same kind, account and user renew a login ([`LoginFacts::renews`]). An admin may change
//!    them.
//! 2. **Order.** If both access tokens contain their time of issue, it decides, because it comes from the issuer's
//!    clock. Otherwise `last_refresh` decides, which comes from a host's clock.
//! 3. **Date.** A date more than 300 s in the future is never accepted as it is. A login with a newer token gets a new
//!    date instead: now, or just after the canonical login's date if that is later. So the dates of versions only rise.
//!    The canonical login's own date is always accepted.

use time::{Duration, OffsetDateTime};

use super::{AuthDocument, DocumentError, LAST_REFRESH, LoginFacts};
use crate::model::digest::Digest;
use crate::model::instant::{BadInstant, Instant};

/// How far the issuer's clock may run ahead of ours.
const MAX_ISSUER_CLOCK_AHEAD: Duration = Duration::seconds(300);

/// The canonical login that a document is compared with.
#[derive(Clone, Copy)]
pub struct Present<'a> {
    pub digest: Digest,
    pub last_refresh: &'a Instant,
    pub login: &'a LoginFacts,
    /// When an admin made it canonical although it was older (a rollback or an override). Tokens issued before count as
    /// older, so that no host brings the replaced login back.
    pub decided_at: Option<OffsetDateTime>,
}

/// What the caller may do in addition to renewing the login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    pub change_account: bool,
    /// The document replaces the canonical login even if it is older.
    pub even_if_older: bool,
}

#[derive(Debug)]
pub enum RenewalVerdict {
    /// It replaces the canonical login. It has a new date if needed.
    Replaces(Box<AuthDocument>),
    Unchanged,
    Outdated,
    /// It belongs to another account, and the caller may not change the account.
    OtherAccount,
}

pub fn decide(
    document: &AuthDocument,
    present: Option<Present<'_>>,
    allowed: Allowed,
    now: OffsetDateTime,
) -> Result<RenewalVerdict, DocumentError> {
    let issued_at = document.login().issued_at();
    let is_issued_ahead = issued_at.is_some_and(|issued| issued > (now + MAX_ISSUER_CLOCK_AHEAD).unix_timestamp());
    if is_issued_ahead && !allowed.even_if_older && present.is_none_or(|present| present.digest != document.digest()) {
        let reason = "was issued in the future; check the clock of this server";
        return Err(DocumentError::field("auth.tokens.access_token", reason));
    }
    let is_ahead = document.last_refresh().check(now) == Err(BadInstant::InFuture);
    let Some(present) = present else {
        return match (is_ahead, issued_at) {
            (false, _) => Ok(replaces(document.clone())),
            (true, Some(_)) => document.dated(now).map(replaces),
            (true, None) => Err(in_future()),
        };
    };
    if document.digest() == present.digest {
        return Ok(RenewalVerdict::Unchanged);
    }
    let take = || {
        let later = *document.last_refresh() > *present.last_refresh;
        if later && !is_ahead {
            return Ok(replaces(document.clone()));
        }
        document.dated(present.last_refresh.after().max(now)).map(replaces)
    };
    if !document.login().renews(present.login) {
        // Logins of two accounts have no order.
        return if allowed.change_account { take() } else { Ok(RenewalVerdict::OtherAccount) };
    }
    if document.is_undated() {
        let is_same = document.spelled(present.last_refresh)?.digest() == present.digest;
        return if is_same { Ok(RenewalVerdict::Unchanged) } else { take() };
    }
    if allowed.even_if_older {
        return take();
    }
    match issued_at.zip(present.issued_at(now)) {
        Some((new, old)) if new > old => return take(),
        Some((new, old)) if new < old || (is_ahead && document.last_refresh() != present.last_refresh) => {
            return Ok(RenewalVerdict::Outdated);
        }
        _ => {}
    }
    match document.last_refresh().cmp(present.last_refresh) {
        std::cmp::Ordering::Less => Ok(RenewalVerdict::Outdated),
        std::cmp::Ordering::Equal => Ok(RenewalVerdict::Unchanged),
        std::cmp::Ordering::Greater if is_ahead => Err(in_future()),
        std::cmp::Ordering::Greater => take(),
    }
}

impl Present<'_> {
    /// Tokens issued before this time are older. `None` if the time is unknown or in the future: such a time says
    /// nothing about the order.
    fn issued_at(&self, now: OffsetDateTime) -> Option<i64> {
        let own = self.login.issued_at().filter(|issued| *issued <= (now + MAX_ISSUER_CLOCK_AHEAD).unix_timestamp())?;
        Some(self.decided_at.map_or(own, |decided| own.max(decided.unix_timestamp())))
    }
}

fn replaces(document: AuthDocument) -> RenewalVerdict {
    RenewalVerdict::Replaces(Box::new(document))
}

fn in_future() -> DocumentError {
    DocumentError::field(LAST_REFRESH, BadInstant::InFuture)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::super::fixture::chatgpt;
    use super::super::{DocumentRules, rfc3339};
    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-29 12:00 UTC);
    const RENEWAL: Allowed = Allowed { change_account: false, even_if_older: false };

    /// A login issued and dated the given number of seconds after `NOW`.
    fn login(issued: Option<i64>, dated: i64) -> AuthDocument {
        login_of("account-1", issued, dated)
    }

    fn login_of(account: &str, issued: Option<i64>, dated: i64) -> AuthDocument {
        let date = rfc3339(NOW + Duration::seconds(dated)).unwrap();
        let issued = issued.map(|issued| NOW.unix_timestamp() + issued);
        let document = chatgpt(account, "user-1", &format!("{issued:?}"), issued, &date);
        AuthDocument::parse(&document.to_string(), NOW, &DocumentRules::default()).unwrap()
    }

    fn present(document: &AuthDocument) -> Present<'_> {
        let (last_refresh, login) = (document.last_refresh(), document.login());
        Present { digest: document.digest(), last_refresh, login, decided_at: None }
    }

    /// The date of the new version in seconds after `NOW`; otherwise the verdict.
    fn decided(document: &AuthDocument, present: Option<Present<'_>>, allowed: Allowed) -> Result<f64, &'static str> {
        match decide(document, present, allowed, NOW) {
            Ok(RenewalVerdict::Replaces(taken)) => {
                assert_eq!(taken.login(), document.login());
                assert_eq!(taken.digest(), Digest::of(taken.text().as_bytes()));
                assert!(taken.text().contains(taken.last_refresh().text()));
                let seconds = taken.last_refresh().unix_seconds() - NOW.unix_timestamp() as f64;
                Ok((seconds * 1e6).round() / 1e6)
            }
            Ok(RenewalVerdict::Unchanged) => Err("unchanged"),
            Ok(RenewalVerdict::Outdated) => Err("outdated"),
            Ok(RenewalVerdict::OtherAccount) => Err("other account"),
            Err(DocumentError::Field { path, .. }) if path == LAST_REFRESH => Err("bad date"),
            Err(DocumentError::Field { path, .. }) if path == "auth.tokens.access_token" => Err("bad token"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_issuers_clock_decides_and_a_wrong_date_is_put_right() {
        const HOUR: i64 = 3600;
        const DAY: i64 = 24 * HOUR;
        let canonical = login(Some(-2 * HOUR), -2 * HOUR);
        for (issued, dated, expected) in [
            // A renewed login, for any host clock.
            (-HOUR, -HOUR, Ok(-3600.0)),
            (-HOUR, -DAY, Ok(0.0)),
            (-HOUR, HOUR, Ok(0.0)),
            (-HOUR, DAY, Ok(0.0)),
            (-HOUR, 300, Ok(300.0)),
            (-HOUR, 301, Ok(0.0)),
            (-HOUR, -2 * HOUR, Ok(0.0)),
            // A spent login.
            (-3 * HOUR, -HOUR, Err("outdated")),
            (-3 * HOUR, DAY, Err("outdated")),
            (-3 * HOUR, -DAY, Err("outdated")),
            // The same time of issue: the date decides, unless it is too far in the future.
            (-2 * HOUR, -HOUR, Ok(-3600.0)),
            (-2 * HOUR, -3 * HOUR, Err("outdated")),
            (-2 * HOUR, DAY, Err("outdated")),
        ] {
            let new = login(Some(issued), dated);
            assert_eq!(decided(&new, Some(present(&canonical)), RENEWAL), expected, "{issued} {dated}");
        }
        assert_eq!(decided(&canonical, Some(present(&canonical)), RENEWAL), Err("unchanged"));
    }

    #[test]
    fn dates_only_rise_even_where_the_canonical_one_is_ahead() {
        let canonical = login(Some(-60), 200);
        let renewed = login(Some(-30), -30);
        assert_eq!(decided(&renewed, Some(present(&canonical)), RENEWAL), Ok(200.000001));
    }

    #[test]
    fn without_times_of_issue_the_date_decides_and_may_not_be_ahead() {
        let canonical = login(None, 200);
        for (issued, dated, expected) in [
            (None, 199, Err("outdated")),
            (None, 200, Err("unchanged")),
            (None, 300, Ok(300.0)),
            (None, 301, Err("bad date")),
            (Some(-10), 199, Err("outdated")),
            (Some(-10), 300, Ok(300.0)),
            (Some(-10), 301, Err("bad date")),
        ] {
            let new = login(issued, dated);
            assert_eq!(decided(&new, Some(present(&canonical)), RENEWAL), expected, "{issued:?} {dated}");
        }
        // Repeated steps of 300 s cannot move the date further ahead.
        let ratcheted = login(None, 500);
        assert_eq!(decided(&ratcheted, Some(present(&login(None, 300))), RENEWAL), Err("bad date"));
        // After the clock was set back, the canonical login is in the future. It is still recognized as unchanged.
        let ahead = login(None, 5 * 3600);
        assert_eq!(decided(&ahead, Some(present(&ahead)), RENEWAL), Err("unchanged"));
    }

    #[test]
    fn a_first_login_with_a_wrong_date_is_dated_by_us_if_its_issuer_is_known_to_be_right() {
        assert_eq!(decided(&login(Some(-10), -86_400), None, RENEWAL), Ok(-86_400.0));
        assert_eq!(decided(&login(Some(-10), 86_400), None, RENEWAL), Ok(0.0));
        assert_eq!(decided(&login(None, 86_400), None, RENEWAL), Err("bad date"));
        assert_eq!(decided(&login(Some(301), 0), None, RENEWAL), Err("bad token"));
    }

    #[test]
    fn a_token_from_the_future_wins_nothing_and_blocks_nothing() {
        let canonical = login(Some(-60), -60);
        assert_eq!(decided(&login(Some(301), -30), Some(present(&canonical)), RENEWAL), Err("bad token"));
        assert_eq!(decided(&login(Some(300), -30), Some(present(&canonical)), RENEWAL), Ok(-30.0));
        // A canonical login can be in the future after the clock was set back. It does not block a renewal.
        let ahead = login(Some(86_400), -60);
        assert_eq!(decided(&login(Some(-10), -10), Some(present(&ahead)), RENEWAL), Ok(-10.0));
        assert_eq!(decided(&ahead, Some(present(&ahead)), RENEWAL), Err("unchanged"));
    }

    #[test]
    fn another_account_is_taken_only_where_that_is_allowed_and_then_without_an_order() {
        let canonical = login(Some(-60), -60);
        let other = login_of("account-2", Some(-86_400), -86_400);
        let override_only = Allowed { even_if_older: true, ..RENEWAL };
        for allowed in [RENEWAL, override_only] {
            assert_eq!(decided(&other, Some(present(&canonical)), allowed), Err("other account"));
        }
        let allowed = Allowed { change_account: true, ..RENEWAL };
        assert_eq!(decided(&other, Some(present(&canonical)), allowed), Ok(0.0), "dated later than the replaced one");
        let newer = login_of("account-2", Some(-30), -30);
        assert_eq!(decided(&newer, Some(present(&canonical)), allowed), Ok(-30.0));
        // The permission allows nothing else.
        assert_eq!(decided(&login(Some(-90), -90), Some(present(&canonical)), allowed), Err("outdated"));
        assert_eq!(decided(&other, None, RENEWAL), Ok(-86_400.0), "the first login may be of any account");
    }

    #[test]
    fn an_override_wins_and_what_it_replaced_does_not_come_back() {
        let replaced = login(Some(-60), -60);
        let older = login(Some(-7200), -7200);
        assert_eq!(decided(&older, Some(present(&replaced)), RENEWAL), Err("outdated"));
        let allowed = Allowed { even_if_older: true, ..RENEWAL };
        assert_eq!(decided(&older, Some(present(&replaced)), allowed), Ok(0.0));
        assert_eq!(decided(&replaced, Some(present(&replaced)), allowed), Err("unchanged"));

        let older = older.dated(NOW).unwrap();
        let winner = Present { decided_at: Some(NOW), ..present(&older) };
        for dated in [-60, 0, 200, 400] {
            let expected = Err("outdated");
            assert_eq!(decided(&login(Some(-60), dated), Some(winner), RENEWAL), expected, "{dated}");
        }
        assert_eq!(decided(&login(Some(1), 1), Some(winner), RENEWAL), Ok(1.0), "a later renewal wins");
    }

    #[test]
    fn a_login_without_a_date_is_the_canonical_one_or_newer() {
        let key = |note: &str| {
            let text = format!(r#"{{"auth_mode":"apikey","OPENAI_API_KEY":"sk-Zk3vQ9xT1mB7rLp0sWc5yHd8{note}"}}"#);
            AuthDocument::parse(&text, NOW, &DocumentRules::default()).unwrap()
        };
        let canonical = key("").dated(NOW - Duration::DAY).unwrap();
        assert_eq!(decided(&key(""), Some(present(&canonical)), RENEWAL), Err("unchanged"));
        let with_more = key(r#"","note":"x"#);
        assert_eq!(decided(&with_more, Some(present(&canonical)), RENEWAL), Ok(0.0));
        let ahead = key("").dated(NOW + Duration::seconds(200)).unwrap();
        assert_eq!(decided(&with_more, Some(present(&ahead)), RENEWAL), Ok(200.000001));
        assert_eq!(decided(&key("-another"), Some(present(&canonical)), RENEWAL), Err("other account"));
    }
}
