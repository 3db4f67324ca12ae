//! The rules that rate an installation as good, weak or missing. The findings and the time are parameters. `doctor` and
//! `service/status/examine.rs` collect the findings and decide nothing. This module decides and does no I/O.

use time::macros::format_description;
use time::{Duration, OffsetDateTime, UtcOffset};

use super::check::Check;
use crate::metrics::Forwarding;

/// A larger clock difference is reported as weak.
const CLOCK_DRIFT_WARNED: Duration = Duration::seconds(30);
/// With a larger clock difference, certificates and tokens are refused.
const CLOCK_DRIFT_BROKEN: Duration = Duration::minutes(10);
/// Two nights, with some margin.
const MAX_BACKUP_AGE: Duration = Duration::hours(50);

/// Compares this clock with the newest known instant, which cannot be in the future.
pub fn clock_and_records(now: OffsetDateTime, newest: Option<OffsetDateTime>, what: &str) -> Check {
    const NAME: &str = "clock";
    let Some(newest) = newest else {
        return Check::good(NAME, format!("no instant is known yet to compare it with: {}", shown(now)));
    };
    let behind = newest - now;
    let found =
        format!("it shows {}, but {what} is from {}: it is behind by {}", shown(now), shown(newest), length(behind));
    if behind > CLOCK_DRIFT_BROKEN {
        Check::missing(NAME, found, SET_CLOCK)
    } else if behind > CLOCK_DRIFT_WARNED {
        Check::weak(NAME, found, SET_CLOCK)
    } else {
        Check::good(NAME, format!("{}, later than {what}", shown(now)))
    }
}

const SET_CLOCK: &str = "timedatectl set-ntp true";

/// Compares this clock with another clock.
pub fn clock_and_other(name: &'static str, now: OffsetDateTime, other: OffsetDateTime, whose: &str) -> Check {
    let apart = (now - other).abs();
    let side = if now > other { "ahead of" } else { "behind" };
    let found = format!("this clock is {} {side} that of {whose}", length(apart));
    if apart > CLOCK_DRIFT_BROKEN {
        Check::missing(name, found, format!("{SET_CLOCK} (here and there)"))
    } else if apart > CLOCK_DRIFT_WARNED {
        Check::weak(name, found, format!("{SET_CLOCK} (here and there)"))
    } else {
        Check::good(name, format!("it agrees with that of {whose}"))
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub free_bytes: u64,
    pub free_inodes: u64,
    /// 0 if the file system has no fixed number of inodes.
    pub inodes: u64,
    pub is_read_only: bool,
    /// Size of the records and hot state.
    pub used_bytes: u64,
}

const MIB: u64 = 1024 * 1024;

/// `place`: the directory, for the messages.
pub fn disk(room: Room, place: &str) -> Check {
    const NAME: &str = "disk";
    let Room { free_bytes, free_inodes, inodes, is_read_only, used_bytes } = room;
    let (free, used) = (free_bytes / MIB, used_bytes.div_ceil(MIB));
    let make_room = format!("free space on the disk of {place} (df -h {place})");
    if is_read_only {
        let remedy = format!(
            "look for the cause in the kernel's log (dmesg), then mount -o remount,rw the file system of {place}"
        );
        return Check::missing(NAME, "it is mounted read-only", remedy);
    }
    if free_bytes < 16 * MIB {
        return Check::missing(
            NAME,
            format!("{free} MiB are free; changes of the store are refused, or soon will be"),
            make_room,
        );
    }
    if inodes > 0 && free_inodes < 64 {
        return Check::missing(
            NAME,
            format!("{free_inodes} inodes are free"),
            format!("remove files from the disk of {place} (df -i {place})"),
        );
    }
    if free_bytes < 2 * used_bytes || free_bytes < 128 * MIB {
        let found = format!(
            "{free} MiB are free, the records take {used} MiB: a restore needs as much again, an upgrade of the state twice that"
        );
        return Check::weak(NAME, found, make_room);
    }
    if inodes > 0 && free_inodes < 1000 {
        return Check::weak(
            NAME,
            format!("{free_inodes} inodes are free"),
            format!("remove files from the disk of {place} (df -i {place})"),
        );
    }
    Check::good(NAME, format!("{free} MiB are free, the records take {used} MiB"))
}

/// Rates the expiry of a certificate or an authority. It is weak from `warned` before the end.
pub fn ends(
    name: &'static str,
    what: &str,
    end: OffsetDateTime,
    now: OffsetDateTime,
    warned: Duration,
    remedy: &str,
) -> Check {
    let until = shown(end);
    if end <= now {
        Check::missing(name, format!("{what} ended {until}"), remedy)
    } else if end - now < warned {
        Check::weak(name, format!("{what} ends {until}, in {}", length(end - now)), remedy)
    } else {
        Check::good(name, format!("{what} holds until {until}"))
    }
}

/// What the admin listener requires, and how many admins can meet it.
#[derive(Clone, Copy, Debug)]
pub struct Admins {
    /// Whether `admin.access` requires a client certificate.
    pub certificate: bool,
    pub login: bool,
    /// Valid certificates with the admin role; `ending`: those that expire within a month.
    pub certificates: usize,
    pub ending: usize,
    /// Users with the admin role.
    pub users: usize,
}

pub fn admins(admins: Admins) -> Check {
    const NAME: &str = "admins";
    let Admins { certificate, login, certificates, ending, users } = admins;
    if certificate && certificates == 0 {
        let found = "nobody has a certificate for the dashboard";
        return Check::weak(NAME, found, "codex-authd admin-cert NAME --out NAME.p12");
    }
    if login && users == 0 {
        let found = "admin.access requires a sign-in, and no user is an admin";
        return Check::weak(NAME, found, "codex-authd create-admin EMAIL");
    }
    if certificate && ending == certificates {
        let found = format!("every certificate for the dashboard ({certificates}) ends within a month");
        return Check::weak(NAME, found, "codex-authd admin-cert NAME --out NAME.p12");
    }
    let with = |asked: bool, count: usize, what: &str| asked.then(|| format!("{count} {what}"));
    let both = [with(certificate, certificates, "certificates in force"), with(login, users, "users are admins")];
    Check::good(NAME, both.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// What is known of the canonical login.
#[derive(Clone, Debug, Default)]
pub struct LoginFinding {
    pub version: Option<u64>,
    /// When its access token expires, if that can be read.
    pub access_ends: Option<OffsetDateTime>,
    /// The result of the last probe: `ok`, `fail`, …
    pub probed: Option<&'static str>,
    pub reason: Option<String>,
    /// Set if it came from a backup made at this time and has not been proved since.
    pub restored: Option<OffsetDateTime>,
}

/// Rates the forwarding headers of trusted proxies. `last`: the last call. The counts: calls that named the caller, had
/// no header, had an unreadable header.
pub fn forwarding(last: Forwarding, [named, missing, unreadable]: [u64; 3]) -> Check {
    const NAME: &str = "proxies";
    const WRITE: &str = "have the proxy write the header of listen.forwarded_header; nginx: \
                         proxy_set_header X-Forwarded-For $remote_addr;";
    let all = named + missing + unreadable;
    match last {
        Forwarding::Named => Check::good(NAME, "the last call from a trusted proxy named its caller"),
        Forwarding::Missing => Check::missing(
            NAME,
            format!(
                "{missing} of {all} calls from trusted proxies carried no forwarding header, also the last: the proxy \
                 counts as their caller, and hosts are bound to its address"
            ),
            format!("{WRITE} then codex-authd hosts clear FQDN for hosts that were bound meanwhile"),
        ),
        Forwarding::Unreadable => Check::missing(
            NAME,
            format!(
                "{unreadable} of {all} calls from trusted proxies were refused, also the last: their forwarding header \
                 does not name the caller (see event=forwarded_unreadable in the log)"
            ),
            WRITE,
        ),
    }
}

/// `known`: when the newest verified backup was made, and whether it contains the keys.
pub fn backup(known: Option<(OffsetDateTime, bool)>, now: OffsetDateTime) -> Check {
    const NAME: &str = "backup";
    const SWITCH_ON: &str = "systemctl enable --now codex-authd-backup.timer; systemctl start codex-authd-backup";
    let Some((made_at, has_keys)) = known else {
        return Check::weak(NAME, "no backup was made and read back yet", SWITCH_ON);
    };
    let of = shown(made_at);
    if now - made_at > MAX_BACKUP_AGE {
        return Check::weak(NAME, format!("the newest one that was read back is from {of}"), SWITCH_ON);
    }
    let keys = if has_keys { "the keys are in it" } else { "without the keys: keep a copy of the master key" };
    Check::good(NAME, format!("from {of}, and read back; {keys}"))
}

pub fn login(login: &LoginFinding, now: OffsetDateTime) -> Check {
    const NAME: &str = "login";
    const UPLOAD: &str = "codex-authd auth upload FILE, with the auth.json of a fresh `codex login`";
    let Some(version) = login.version else {
        return Check::weak(NAME, "there is no login yet, so hosts get none", UPLOAD);
    };
    if login.probed == Some("fail") {
        let reason = login.reason.as_deref().and_then(|reason| reason.lines().next()).unwrap_or("no reason is known");
        return Check::missing(NAME, format!("version {version} was proved not to work: {reason}"), UPLOAD);
    }
    if let Some(backup_of) = login.restored {
        let of = shown(backup_of);
        let found =
            format!("version {version} came back from a backup of {of}: its refresh token may have been spent since");
        return Check::weak(NAME, found, UPLOAD);
    }
    let probed = login.probed.map_or("never tried".to_owned(), |state| format!("the last probe says {state}"));
    match login.access_ends {
        Some(end) if end <= now => Check::weak(
            NAME,
            format!(
                "the access token of version {version} ended {}; the next Codex that runs refreshes it ({probed})",
                shown(end)
            ),
            "codex-authd runner run",
        ),
        Some(end) => {
            Check::good(NAME, format!("version {version}, its access token holds until {} ({probed})", shown(end)))
        }
        None => Check::good(NAME, format!("version {version} ({probed})")),
    }
}

/// When the access token of an auth document expires. `None`: the token does not contain it.
pub fn access_ends(document: &str) -> Option<OffsetDateTime> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let document: serde_json::Value = serde_json::from_str(document).ok()?;
    let token = document.get("tokens")?.get("access_token")?.as_str()?;
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    OffsetDateTime::from_unix_timestamp(claims.get("exp")?.as_i64()?).ok()
}

/// Formats an instant in UTC, to the minute.
pub fn shown(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    at.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// Formats a duration in the largest unit of which it has at least two.
fn length(duration: Duration) -> String {
    match duration.whole_seconds() {
        seconds if seconds >= 2 * 86_400 => format!("{} days", seconds / 86_400),
        seconds if seconds >= 2 * 3600 => format!("{} hours", seconds / 3600),
        seconds if seconds >= 120 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::model::check::Verdict::{self, Good, Missing, Weak};

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);

    fn remedied(check: &Check) -> Verdict {
        assert_eq!(check.remedy.is_some(), check.verdict != Good, "{check:?}");
        check.verdict
    }

    #[test]
    fn a_clock_behind_what_is_known_is_told_by_how_much() {
        for (ahead, verdict) in
            [(-3600, Good), (0, Good), (30, Good), (31, Weak), (600, Weak), (601, Missing), (86_400, Missing)]
        {
            let check =
                clock_and_records(NOW, Some(NOW + Duration::seconds(ahead)), "the newest entry of the audit log");
            assert_eq!(remedied(&check), verdict, "{ahead}: {check:?}");
        }
        assert_eq!(clock_and_records(NOW, None, "").verdict, Good);
        let check = clock_and_records(NOW, Some(NOW + Duration::days(3)), "the newest entry");
        assert!(check.found.contains("behind by 3 days"), "{}", check.found);
    }

    #[test]
    fn clocks_apart_are_told_in_both_directions() {
        for (apart, verdict, side) in
            [(0, Good, ""), (-29, Good, ""), (40, Weak, "ahead of"), (-40, Weak, "behind"), (-700, Missing, "behind")]
        {
            let check = clock_and_other("clock", NOW, NOW - Duration::seconds(apart), "upstream");
            assert_eq!(remedied(&check), verdict, "{apart}");
            assert!(check.found.contains(side), "{}", check.found);
        }
    }

    #[test]
    fn a_backup_that_was_read_back_is_good_for_two_nights() {
        for (known, verdict, words) in [
            (None, Weak, "no backup was made"),
            (Some((NOW - Duration::hours(51), true)), Weak, "is from 2026-11-24"),
            (Some((NOW - Duration::hours(49), true)), Good, "the keys are in it"),
            (Some((NOW - Duration::hours(1), false)), Good, "keep a copy of the master key"),
        ] {
            let check = backup(known, NOW);
            assert_eq!(remedied(&check), verdict, "{check:?}");
            assert!(check.found.contains(words), "{check:?}");
        }
    }

    #[test]
    fn a_disk_needs_room_for_a_second_copy() {
        let room = Room {
            free_bytes: 1000 * MIB,
            free_inodes: 5000,
            inodes: 10_000,
            is_read_only: false,
            used_bytes: 100 * MIB,
        };
        for (room, verdict) in [
            (room, Good),
            (Room { inodes: 0, free_inodes: 0, ..room }, Good),
            (Room { used_bytes: 501 * MIB, ..room }, Weak),
            (Room { free_bytes: 100 * MIB, used_bytes: 0, ..room }, Weak),
            (Room { free_inodes: 500, ..room }, Weak),
            (Room { free_inodes: 5, ..room }, Missing),
            (Room { free_bytes: 15 * MIB, ..room }, Missing),
            (Room { is_read_only: true, ..room }, Missing),
        ] {
            let check = disk(room, "/var/lib/codex-authd");
            assert_eq!(remedied(&check), verdict, "{check:?}");
        }
    }

    #[test]
    fn what_ends_is_weak_before_it_is_missing() {
        for (days, verdict) in [(31, Good), (29, Weak), (0, Missing), (-1, Missing)] {
            let check = ends("certificate", "it", NOW + Duration::days(days), NOW, Duration::days(30), "make another");
            assert_eq!(remedied(&check), verdict, "{days}");
        }
    }

    #[test]
    fn somebody_has_to_be_able_to_get_in() {
        let some = Admins { certificate: true, login: false, certificates: 2, ending: 1, users: 0 };
        for (found, verdict) in [
            (some, Good),
            (Admins { ending: 2, ..some }, Weak),
            (Admins { certificates: 0, ending: 0, ..some }, Weak),
            (Admins { login: true, ..some }, Weak),
            (Admins { login: true, users: 1, ..some }, Good),
            (Admins { certificate: false, login: true, certificates: 0, ending: 0, users: 1 }, Good),
        ] {
            assert_eq!(remedied(&admins(found)), verdict, "{found:?}");
        }
    }

    #[test]
    fn a_login_is_judged_by_its_last_probe_and_its_token() {
        let known = |access_ends: Option<OffsetDateTime>, probed: Option<&'static str>| LoginFinding {
            version: Some(3),
            access_ends,
            probed,
            reason: Some("refresh token was revoked\nmore".into()),
            restored: None,
        };
        for (found, verdict) in [
            (LoginFinding::default(), Weak),
            (known(None, None), Good),
            (known(Some(NOW + Duration::DAY), Some("ok")), Good),
            (known(Some(NOW - Duration::DAY), Some("ok")), Weak),
            (known(Some(NOW + Duration::DAY), Some("fail")), Missing),
            (LoginFinding { restored: Some(NOW), ..known(Some(NOW + Duration::DAY), None) }, Weak),
        ] {
            assert_eq!(remedied(&login(&found, NOW)), verdict, "{found:?}");
        }
        let failed = login(&known(None, Some("fail")), NOW);
        assert!(failed.found.ends_with("refresh token was revoked"), "{}", failed.found);
    }

    #[test]
    fn the_end_of_an_access_token_is_read_from_it() {
        // {"exp":1764158400}
        let document = r#"{"tokens":{"access_token":"e30.eyJleHAiOjE3NjQxNTg0MDB9.sig"}}"#;
        assert_eq!(access_ends(document), Some(datetime!(2025-11-26 12:00 UTC)));
        for none in ["", "{}", r#"{"tokens":{"access_token":"opaque"}}"#, r#"{"tokens":{"access_token":"a.b.c"}}"#] {
            assert_eq!(access_ends(none), None, "{none}");
        }
    }
}
