//! Hosts: ids, names, the rules of admission, and activity.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::model::digest::Digest;
use crate::platform::{SecureRandom, random};

/// A host's id: random, never 0, 53 bits so that every JSON reader keeps it exact. The daemon makes it, not the
/// database, so a retried insert is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(pub u64);

impl HostId {
    pub fn new(rng: &dyn SecureRandom) -> Self {
        Self((u64::from_be_bytes(random(rng)) >> 11).max(1))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host's name: 1 to 253 bytes, in lower case. Labels have 1 to 63 ASCII letters, digits, `-` or `_`, and neither
/// begin nor end with `-`. A single label (`laptop`) is a valid name.
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

/// The rules that decide whether a host is served. Only admins and the first call change them, never telemetry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRules {
    /// `false`: a shared or untrusted machine, served only while its window is open.
    pub secure: bool,
    /// A call from another address binds the host to that address instead of being refused.
    pub allow_roaming_ips: bool,
    /// The first address that used the key; `None` until then. A v4-mapped address is stored as IPv4.
    pub bound_ip: Option<IpAddr>,
    /// The first address of the other family (IPv4, IPv6) that used the key. `None` as long as `bound_ip` is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_ip_other: Option<IpAddr>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_enabled_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub insecure_grace_until: Option<OffsetDateTime>,
    /// Disabled by an admin: the key is valid, but refused.
    #[serde(default)]
    pub disabled: bool,
    /// Disabled together with its owner, and enabled together with the owner. `false` as long as `disabled` is `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled_with_user: bool,
    /// When a temporary host expires.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// If not empty, these replace the bound address: the host is served only from these networks, and is not bound to
    /// an address.
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
    /// Admitted, after the key is bound to the address.
    ToBeBound,
    Refused,
}

impl HostRules {
    /// `longest`: the longest time for which a window can be opened. A window that ends later was opened before the
    /// clock was set back, so it counts as closed. An admin can open it again.
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

    /// `from` must be canonical: IPv4 instead of v4-mapped. `ipv6_prefix`: see [`same_address`].
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

    /// The addresses that the key is bound to: none, one, or one of each family; `bound_ip` first.
    pub fn bound(&self) -> impl Iterator<Item = IpAddr> {
        [self.bound_ip, self.bound_ip_other].into_iter().flatten()
    }

    /// The bound address of the same family as `ip`.
    pub fn bound_like(&self, ip: IpAddr) -> Option<IpAddr> {
        self.bound().find(|bound| bound.is_ipv4() == ip.is_ipv4())
    }

    /// Binds the key to `ip`, replacing the bound address of that family.
    pub fn bind(&mut self, ip: IpAddr) {
        match self.bound_ip {
            Some(bound) if bound.is_ipv4() != ip.is_ipv4() => self.bound_ip_other = Some(ip),
            _ => self.bound_ip = Some(ip),
        }
    }
}

/// Whether two canonical addresses count as the same for the binding of a host. IPv4: they must be equal. IPv6: the
/// first `ipv6_prefix` bits must be equal, because a host changes the other bits by itself (RFC 8981). In some blocks,
/// unrelated networks share a prefix, so the whole address must be equal. These are loopback, link-local, Teredo (RFC
/// 4380) and translated IPv4 (RFC 6052, RFC 8215).
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

/// Telemetry of a host. Hot state collects it and writes it to the records in batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostActivity {
    pub api_calls: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen: Option<OffsetDateTime>,
    /// `last_refresh` of the canonical login that this host last had.
    pub last_refresh: Option<String>,
    /// The digests of the canonical logins that it last had.
    #[serde(default)]
    pub digests: RecentDigests,
    pub client_version: Option<String>,
    pub wrapper_version: Option<String>,
    /// When it last fetched its wrapper, which contains the authorities that it trusts.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub wrapper_fetched_at: Option<OffsetDateTime>,
}

/// The digests of the versions that a host last had: the latest first, no duplicates, at most [`Self::MOST`].
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

    /// Puts each digest of `later`, oldest first.
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
            // Unrelated machines share these prefixes.
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
