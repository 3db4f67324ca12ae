//! Whether a text can be a login of Codex.

use std::collections::HashMap;
use std::fmt;

use serde::de::IgnoredAny;

/// The date of a login that has none.
pub const ZERO_DATE: &str = "2000-01-01T00:00:00Z";
const MAX_LOGIN_BYTES: usize = 1 << 20;

/// One of these is in every login.
const MEMBERS: [&str; 7] =
    ["tokens", "OPENAI_API_KEY", "auths", "auth_mode", "personal_access_token", "agent_identity", "bedrock_api_key"];

/// Why a text cannot be a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Empty,
    Nul,
    TooLong,
    ByteOrderMark,
    NotUtf8,
    NotJson,
    NoLogin,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "is empty",
            Self::Nul => "contains a NUL byte",
            Self::TooLong => "is longer than 1 MiB",
            Self::ByteOrderMark => "begins with a byte order mark, which codex cannot read",
            Self::NotUtf8 => "is not text in UTF-8",
            Self::NotJson => "is not a complete JSON object",
            Self::NoLogin => "contains no login",
        })
    }
}

pub struct Examined {
    pub fault: Option<Fault>,
    /// In the daemon's form, if the text has one.
    pub last_refresh: Option<String>,
}

pub fn examine(bytes: &[u8]) -> Examined {
    let broken = |fault| Examined { fault: Some(fault), last_refresh: None };
    if bytes.is_empty() {
        return broken(Fault::Empty);
    }
    if bytes.contains(&0) {
        return broken(Fault::Nul);
    }
    if bytes.len() > MAX_LOGIN_BYTES {
        return broken(Fault::TooLong);
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return broken(Fault::ByteOrderMark);
    }
    let Ok(text) = str::from_utf8(bytes) else {
        return broken(Fault::NotUtf8);
    };
    let Ok(members) = serde_json::from_str::<HashMap<String, IgnoredAny>>(text) else {
        return broken(Fault::NotJson);
    };
    let fault = (!MEMBERS.iter().any(|member| members.contains_key(*member))).then_some(Fault::NoLogin);
    #[derive(serde::Deserialize)]
    struct Dated {
        last_refresh: Option<String>,
    }
    let dated = serde_json::from_str::<Dated>(text).ok().and_then(|dated| dated.last_refresh);
    Examined { fault, last_refresh: dated.and_then(|date| daemons_form(&date)) }
}

/// Whether the text has a member of this name anywhere.
pub fn mentions(bytes: &[u8], member: &str) -> bool {
    let quoted = format!("\"{member}\"");
    bytes.windows(quoted.len()).any(|window| window == quoted.as_bytes())
}

/// A date of RFC 3339 with a capital T and Z, and at most nanoseconds.
fn daemons_form(date: &str) -> Option<String> {
    const FORM: &[u8; 19] = b"0000-00-00T00:00:00";
    let (head, tail) = date.as_bytes().split_at_checked(FORM.len())?;
    let fits = head.iter().zip(FORM).all(|(byte, form)| match form {
        b'0' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't' | b' '),
        _ => byte == form,
    });
    let fraction = match tail.strip_prefix(b".") {
        Some(digits) => 1 + digits.iter().take_while(|byte| byte.is_ascii_digit()).count(),
        None => 0,
    };
    let (fraction, zone) = tail.split_at(fraction);
    let is_zone = match zone {
        b"Z" | b"z" => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    if !fits || fraction.len() == 1 || !is_zone {
        return None;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let nanoseconds = &fraction[..fraction.len().min(10)];
    Some(format!("{}T{}{}{}", text(&head[..10]), text(&head[11..]), text(nanoseconds), text(zone).replace('z', "Z")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &[u8]) -> Option<Fault> {
        examine(text).fault
    }

    #[test]
    fn what_is_no_login_is_named() {
        let login = r#" {"tokens": {"refresh_token": "r"}} "#;
        assert_eq!(fault(login.as_bytes()), None);
        assert_eq!(fault(format!("\r\n{login}\r\n").as_bytes()), None);
        assert_eq!(fault(b""), Some(Fault::Empty));
        assert_eq!(fault(format!("{login}\0").as_bytes()), Some(Fault::Nul));
        assert_eq!(fault(&vec![b' '; 2 << 20]), Some(Fault::TooLong));
        assert_eq!(fault(format!("\u{feff}{login}").as_bytes()), Some(Fault::ByteOrderMark));
        assert_eq!(fault(b"{\"tokens\": \"\xff\"}"), Some(Fault::NotUtf8));
        assert_eq!(fault(&login.as_bytes()[..login.len() - 3]), Some(Fault::NotJson));
        assert_eq!(fault(b"[]"), Some(Fault::NotJson));
        assert_eq!(fault(br#"{"last_refresh": "2031-01-01T00:00:00Z"}"#), Some(Fault::NoLogin));
    }

    #[test]
    fn a_date_has_the_daemons_form() {
        for (written, sent) in [
            ("2025-11-20T09:27:43.123456789Z", Some("2025-11-20T09:27:43.123456789Z")),
            ("2025-11-20t09:27:43z", Some("2025-11-20T09:27:43Z")),
            ("2025-11-20 09:27:43Z", Some("2025-11-20T09:27:43Z")),
            ("2025-11-20T09:27:43.123456789012345Z", Some("2025-11-20T09:27:43.123456789Z")),
            ("2025-11-20T09:27:43.5+02:00", Some("2025-11-20T09:27:43.5+02:00")),
            ("2025-11-20T09:27:43.Z", None),
            ("2025-11-20T09:27:43", None),
            ("2025-11-20T09:27:43Z x", None),
            ("ü025-11-20T09:27:43Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(daemons_form(written).as_deref(), sent, "{written}");
        }
    }

    #[test]
    fn a_member_is_found_anywhere() {
        assert!(mentions(br#"{"tokens":{"refresh_token":""}}"#, "refresh_token"));
        assert!(!mentions(br#"{"a":"refresh_token_x"}"#, "refresh_token"));
        assert!(!mentions(b"", "refresh_token"));
    }
}
