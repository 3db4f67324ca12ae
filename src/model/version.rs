//! Versions as clients and wrappers report them (`rust-v0.63.0`, `0.64.0-alpha.3`, `2025.11.28-04`), and their order.
//!
//! A version that a client reports is telemetry: an unreadable one is ignored ([`Version::reported`]), so it costs no
//! host its login. A version from an operator or a release feed is refused with a reason (`parse`).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const MAX_VERSION_BYTES: usize = 64;

/// 1 to 64 printable ASCII characters, without the leading `rust-v` or `v` and without space around them.
///
/// The order is that of semantic versions, with one addition. A suffix of only digits is a *revision*: it comes after
/// the version without it (`2025.11.28` < `2025.11.28-04` < `2025.11.28-10`). Any other suffix is a pre-release: it
/// comes before the version without it (`0.64.0-alpha.3` < `0.64.0`). Versions that are otherwise equal (`1.2` and
/// `1.2.0`) are ordered as text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version is 1 to 64 printable ASCII characters")]
pub struct BadVersion;

impl Version {
    /// A version as a client reported it. `None` if it is empty or unreadable.
    pub fn reported(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    /// Like [`Version::reported`], but borrows the version's part of `text` instead of copying it.
    pub fn within(text: &str) -> Option<&str> {
        // In a loop, so that parsing a stored version again gives the same version.
        let mut text = text.trim();
        while let Some(rest) = text.strip_prefix("rust-v").or_else(|| text.strip_prefix('v')) {
            text = rest.trim();
        }
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        (!text.is_empty() && text.len() <= MAX_VERSION_BYTES && printable).then_some(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> VersionParts<'_> {
        let (version, _build) = self.0.split_once('+').unwrap_or((&self.0, ""));
        let (release, suffix) = match version.split_once('-') {
            None => (version, Suffix::None),
            Some((release, suffix)) if is_number(suffix) => (release, Suffix::Revision(suffix)),
            Some((release, suffix)) => (release, Suffix::PreRelease(suffix)),
        };
        VersionParts { release, suffix }
    }
}

struct VersionParts<'a> {
    release: &'a str,
    suffix: Suffix<'a>,
}

enum Suffix<'a> {
    PreRelease(&'a str),
    None,
    Revision(&'a str),
}

impl Suffix<'_> {
    fn rank(&self) -> u8 {
        match self {
            Self::PreRelease(_) => 0,
            Self::None => 1,
            Self::Revision(_) => 2,
        }
    }
}

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        Self::within(text).map(|text| Self(text.to_owned())).ok_or(BadVersion)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let (ours, theirs) = (self.parts(), other.parts());
        compare_release(ours.release, theirs.release)
            .then_with(|| match (&ours.suffix, &theirs.suffix) {
                (Suffix::PreRelease(a), Suffix::PreRelease(b)) => compare_pre_release(a, b),
                (Suffix::Revision(a), Suffix::Revision(b)) => compare_identifiers(a, b),
                (a, b) => a.rank().cmp(&b.rank()),
            })
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Compares part by part; a missing part is 0.
fn compare_release(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let (left, right) = (a.next(), b.next());
        if left.is_none() && right.is_none() {
            return Ordering::Equal;
        }
        match compare_identifiers(left.unwrap_or("0"), right.unwrap_or("0")) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
}

/// Compares part by part. If one version is a prefix of the other, the longer one is higher.
fn compare_pre_release(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(left), Some(right)) => match compare_identifiers(left, right) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
        }
    }
}

/// Compares numbers by value, of any length. A number comes before a word.
fn compare_identifiers(a: &str, b: &str) -> Ordering {
    match (is_number(a), is_number(b)) {
        (true, true) => {
            let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        }
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_leading_rust_v_or_v_is_cut() {
        for text in ["0.63.0", "v0.63.0", "rust-v0.63.0", "  rust-v0.63.0\n"] {
            assert_eq!(version(text).as_str(), "0.63.0");
        }
    }

    #[test]
    fn a_version_read_again_is_the_same() {
        for text in ["vv1", "v rust-v v1", "rust-vrust-v1"] {
            assert_eq!(version(text).as_str(), "1");
        }
        assert_eq!(Version::reported("v rust-v v"), None);
    }

    #[test]
    fn an_empty_or_unreadable_version_is_none() {
        for text in ["", "  ", "v", "rust-v", "rust-v  ", "0.63\n.0", "0.63é", "\u{7f}", &"1".repeat(65)] {
            assert_eq!(Version::reported(text), None, "{text:?}");
        }
        assert_eq!(Version::reported(&"1".repeat(64)).map(|version| version.as_str().len()), Some(64));
    }

    #[test]
    fn versions_are_in_order() {
        let ascending = [
            "0.9.0",
            "0.63.0",
            "0.64.0-2x",
            "0.64.0-alpha",
            "0.64.0-alpha.2",
            "0.64.0-alpha.10",
            "0.64.0-alpha.beta",
            "0.64.0-rc.1",
            "0.64.0",
            "0.64.1",
            "1.0",
            "1.0.0",
            "1.0.99999999999999999999999999",
            "2025.11.28",
            "2025.11.28-04",
            "2025.11.28-5",
            "2025.11.28-10",
            "2025.12.01-01",
            "2025.12.1-02",
        ];
        for (index, lower) in ascending.iter().enumerate() {
            for higher in &ascending[index + 1..] {
                assert!(version(lower) < version(higher), "{lower} < {higher}");
            }
        }
    }

    #[test]
    fn the_build_after_a_plus_does_not_decide() {
        assert!(version("1.0.0+b") < version("1.0.1+a"));
        assert!(version("1.0.0-rc.1+z") < version("1.0.0+a"));
    }

    proptest! {
        #[test]
        fn the_order_is_total(
            a in "[0-2v]{1,2}(\\.[0-2a]{0,2}){0,2}(-[0-1a.]{0,3})?(\\+a)?",
            b in "[0-2v]{1,2}(\\.[0-2a]{0,2}){0,2}(-[0-1a.]{0,3})?(\\+a)?",
            c in "[0-2v]{1,2}(\\.[0-2a]{0,2}){0,2}(-[0-1a.]{0,3})?(\\+a)?",
        ) {
            let mut versions: Vec<_> = [&a, &b, &c].into_iter().filter_map(|text| Version::reported(text)).collect();
            versions.sort();
            prop_assert!(versions.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(versions.first() <= versions.last());
            for (x, y) in versions.iter().zip(versions.iter().skip(1)) {
                prop_assert_eq!(x == y, x.cmp(y) == Ordering::Equal);
                prop_assert_eq!(x.cmp(y), y.cmp(x).reverse());
            }
        }
    }
}
