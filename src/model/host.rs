//! Hosts: who they are, and what holds for them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::model::digest::Digest;
use crate::outside::{Outside, random};

/// A host's number: random, 53 bits, never 0, so that it is exact in every JSON reader. Made by the application, so that
/// a retried insert is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(pub u64);

impl HostId {
    pub fn new(outside: &dyn Outside) -> Self {
        Self((u64::from_be_bytes(random(outside)) >> 11).max(1))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host's name: 1 to 253 bytes, labels of 1 to 63 ASCII letters, digits, `-` or `_`, neither beginning nor ending with
/// `-`; kept in lower case. A single label (`laptop`) is a name too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fqdn(String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadFqdn {
    #[error("fqdn is required")]
    Empty,
    #[error(
        "fqdn must be a host name: letters, digits, '-' and '_' in labels of at most 63, separated by dots, 253 in all"
    )]
    Malformed,
}

impl Fqdn {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Fqdn {
    type Err = BadFqdn;

    fn from_str(text: &str) -> Result<Self, BadFqdn> {
        let name = text.trim().to_ascii_lowercase();
        if name.is_empty() {
            return Err(BadFqdn::Empty);
        }
        let label_is_good = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label_is_good) {
            return Err(BadFqdn::Malformed);
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for Fqdn {
    type Error = BadFqdn;

    fn try_from(text: String) -> Result<Self, BadFqdn> {
        text.parse()
    }
}

impl From<Fqdn> for String {
    fn from(fqdn: Fqdn) -> Self {
        fqdn.0
    }
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What decides whether a host is served. Changed by admins and by the first contact only, never by telemetry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRules {
    /// `false`: a shared or untrusted machine, served only while its window is open.
    pub secure: bool,
    /// A call from another address binds the host to that address instead of being refused.
    pub allow_roaming_ips: bool,
    /// The first address the key was used from; `None` until then. A v4-mapped address is its v4.
    pub bound_ip: Option<IpAddr>,
    /// The first address of the other family (IPv4, IPv6) that the key was used from. `None` as long as `bound_ip` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_ip_other: Option<IpAddr>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_enabled_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_grace_until: Option<OffsetDateTime>,
    /// Switched off by an admin: its key is good and refused.
    #[serde(default)]
    pub disabled: bool,
    /// It is disabled because its owner is, and is enabled with them. `false` as long as `disabled` is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled_with_user: bool,
    /// A temporary host is served until then.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// Where there are any, they stand in place of the bound address: the host is served from all of them, from nowhere
    /// else, and is bound to none.
    #[serde(default)]
    pub allowed_networks: Vec<IpNet>,
}

/// Why a host is not served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    Disabled,
    Expired,
    WindowClosed,
}

/// Whether a host may call from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressRule {
    Admitted,
    /// It may, once its key is bound to the address.
    ToBeBound,
    Refused,
}

impl HostRules {
    /// `longest`: no window is opened for longer. One that would stay open beyond that was opened by a clock that has been
    /// set back since: an admin who opens it again opens it for as long as he means.
    pub fn served(&self, now: OffsetDateTime, longest: Duration) -> Result<(), NotServed> {
        let open = |until: Option<OffsetDateTime>| until.is_some_and(|until| now < until && until - now <= longest);
        if self.disabled {
            Err(NotServed::Disabled)
        } else if self.expires_at.is_some_and(|end| end <= now) {
            Err(NotServed::Expired)
        } else if !self.secure && !open(self.insecure_enabled_until) && !open(self.insecure_grace_until) {
            Err(NotServed::WindowClosed)
        } else {
            Ok(())
        }
    }

    /// `from` is canonical: a v4-mapped address is its v4. `ipv6_prefix`: see [`same_address`].
    pub fn address(&self, from: IpAddr, ipv6_prefix: u8) -> AddressRule {
        if !self.allowed_networks.is_empty() {
            let inside = self.allowed_networks.iter().any(|network| network.contains(&from));
            return if inside { AddressRule::Admitted } else { AddressRule::Refused };
        }
        match self.bound_like(from) {
            Some(bound) if same_address(bound, from, ipv6_prefix) => AddressRule::Admitted,
            Some(_) if !self.allow_roaming_ips => AddressRule::Refused,
            _ => AddressRule::ToBeBound,
        }
    }

    /// The addresses that the key is bound to: none, one, or one of each family; the first one first.
    pub fn bound(&self) -> impl Iterator<Item = IpAddr> {
        [self.bound_ip, self.bound_ip_other].into_iter().flatten()
    }

    /// The address of the family of `ip` that the key is bound to.
    pub fn bound_like(&self, ip: IpAddr) -> Option<IpAddr> {
        self.bound().find(|bound| bound.is_ipv4() == ip.is_ipv4())
    }

    /// Binds the key to `ip`, in place of the address of that family, if there is one.
    pub fn bind(&mut self, ip: IpAddr) {
        match self.bound_ip {
            Some(bound) if bound.is_ipv4() != ip.is_ipv4() => self.bound_ip_other = Some(ip),
            _ => self.bound_ip = Some(ip),
        }
    }
}

/// Whether two canonical addresses are one to the binding of a host. IPv4: if they are equal. IPv6: if they are in one
/// network with a prefix of `ipv6_prefix` bits, because a host changes the rest of its address by itself (RFC 8981).
/// Addresses of blocks where the prefix does not belong to one network are compared whole: loopback, link-local, Teredo
/// (RFC 4380) and translated IPv4 (RFC 6052, RFC 8215).
pub fn same_address(one: IpAddr, other: IpAddr, ipv6_prefix: u8) -> bool {
    match (one, other) {
        (IpAddr::V6(a), IpAddr::V6(b)) if !is_shared_block(a) && !is_shared_block(b) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(ipv6_prefix.min(128))).unwrap_or_default();
            (a.to_bits() ^ b.to_bits()) & mask == 0
        }
        _ => one == other,
    }
}

fn is_shared_block(ip: Ipv6Addr) -> bool {
    let [first, second, ..] = ip.segments();
    ip.is_loopback() || ip.is_unicast_link_local() || matches!((first, second), (0x2001, 0) | (0x64, 0xff9b))
}

/// What a host was last seen with: telemetry, gathered in hot state and written to the records in batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostActivity {
    pub api_calls: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen: Option<OffsetDateTime>,
    /// `last_refresh` of the canonical document this host last had in hand.
    pub last_refresh: Option<String>,
    /// Of the canonical documents that it had in hand.
    #[serde(default)]
    pub digests: RecentDigests,
    pub client_version: Option<String>,
    pub wrapper_version: Option<String>,
    /// When it was last given its wrapper, and with it the authorities that it trusts.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub wrapper_fetched_at: Option<OffsetDateTime>,
}

/// The digests of the versions that a host last had in hand: the latest first, each once, at most [`Self::MOST`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecentDigests(Vec<Digest>);

impl RecentDigests {
    pub const MOST: usize = 3;

    pub fn latest(&self) -> Option<&Digest> {
        self.0.first()
    }

    pub fn as_slice(&self) -> &[Digest] {
        &self.0
    }

    pub fn put(&mut self, digest: Digest) {
        self.0.retain(|known| *known != digest);
        self.0.insert(0, digest);
        self.0.truncate(Self::MOST);
    }

    /// As if each of `later` had been put, in the order in which the host had them.
    pub fn follow(&mut self, later: &Self) {
        for digest in later.0.iter().rev() {
            self.put(*digest);
        }
    }
}

impl FromIterator<Digest> for RecentDigests {
    /// The latest first.
    fn from_iter<I: IntoIterator<Item = Digest>>(digests: I) -> Self {
        let mut recent = Self::default();
        recent.follow(&Self(digests.into_iter().collect()));
        recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_three_digests_are_kept_each_once() {
        let of = |names: &str| names.bytes().map(|name| Digest::of(&[name])).collect::<RecentDigests>();
        let after = |puts: &str| {
            let mut recent = RecentDigests::default();
            puts.bytes().for_each(|name| recent.put(Digest::of(&[name])));
            recent
        };
        assert_eq!(after("abb"), of("ba"));
        assert_eq!(after("abca"), of("acb"));
        assert_eq!(after("abcd"), of("dcb"));
        for (earlier, later) in [("", "ab"), ("abc", "d"), ("abc", "a"), ("abc", "defg"), ("ab", "")] {
            let mut joined = after(earlier);
            joined.follow(&after(later));
            assert_eq!(joined, after(&format!("{earlier}{later}")), "{earlier} {later}");
        }
    }

    #[test]
    fn an_ipv6_address_is_compared_by_its_network() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (one, other, prefix, same) in [
            ("192.0.2.1", "192.0.2.1", 64, true),
            ("192.0.2.1", "192.0.2.2", 64, false),
            ("192.0.2.1", "2001:db8::1", 64, false),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", 64, true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", 64, false),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", 48, true),
            ("2001:db8:0:1::1", "2001:db8:1:1::1", 48, false),
            ("2001:db8:0:1::1", "2001:db8:0:1::2", 128, false),
            ("2001:db8:0:1::1", "2001:db8:0:1::1", 128, true),
            // One prefix, many machines that have nothing to do with each other.
            ("fe80::1", "fe80::2", 64, false),
            ("64:ff9b::c000:201", "64:ff9b::c000:202", 64, false),
            ("64:ff9b:1::c000:201", "64:ff9b:1::c000:202", 64, false),
            ("2001:0:4136:e378::1", "2001:0:4136:e378::2", 64, false),
            ("::1", "::2", 64, false),
        ] {
            assert_eq!(same_address(ip(one), ip(other), prefix), same, "{one} {other} /{prefix}");
            assert_eq!(same_address(ip(other), ip(one), prefix), same, "{other} {one} /{prefix}");
        }
    }

    #[test]
    fn a_name_is_kept_in_lower_case() {
        assert_eq!("H1.Example.test ".parse::<Fqdn>().map(String::from), Ok("h1.example.test".into()));
        assert_eq!("laptop".parse::<Fqdn>().map(String::from), Ok("laptop".into()));
    }

    #[test]
    fn names_that_are_none_are_refused() {
        assert_eq!("  ".parse::<Fqdn>(), Err(BadFqdn::Empty));
        for text in [
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a b",
            "a'b",
            "$(id)",
            "a\nb",
            "ä.test",
            "a;b",
            &"a".repeat(64),
            &"a.".repeat(127),
        ] {
            assert_eq!(text.parse::<Fqdn>(), Err(BadFqdn::Malformed), "{text:?}");
        }
    }
}
