//! The destinations that a probe may connect to: the hosts and ports that the operator listed, and no private
//! addresses.
//!
//! A destination is compared as it was requested, before name resolution. A name that is not listed never reaches the
//! resolver. The addresses of a listed name are checked too, because the owner of the name chooses them. An address
//! that is not public is refused, unless the address itself is listed. A listed `localhost` may resolve to a loopback
//! address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress(Vec<Destination>);

/// A host and a port, as requested or as listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub host: EgressHost,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EgressHost {
    /// In lower case, without a trailing dot.
    Name(String),
    Address(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{0} is not in runner.egress")]
    NotListed(Destination),
    #[error(
        "{name} resolves to {address}, which is not a public internet address; if this is intended, put {listed} \
         into runner.egress as well", listed = listed(*address, *port)
    )]
    Inside { name: String, address: IpAddr, port: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be HOST:PORT, where HOST is a name, an IPv4 address, or an IPv6 address in brackets")]
pub struct NotADestination;

impl Egress {
    /// On error, returns the number of the bad entry, counted from 1.
    pub fn parse(entries: &[String]) -> Result<Self, (usize, NotADestination)> {
        let parsed = entries.iter().enumerate().map(|(at, text)| text.trim().parse().map_err(|error| (at + 1, error)));
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// Whether `asked` is listed.
    pub fn check(&self, asked: &Destination) -> Result<(), Refused> {
        self.0.contains(asked).then_some(()).ok_or_else(|| Refused::NotListed(asked.clone()))
    }

    /// Whether the listed destination `asked` may be reached at `address`.
    pub fn check_address(&self, asked: &Destination, address: IpAddr) -> Result<(), Refused> {
        let name = match &asked.host {
            EgressHost::Address(listed) if *listed == address.to_canonical() => return Ok(()),
            EgressHost::Address(other) => other.to_string(),
            EgressHost::Name(name) => name.clone(),
        };
        let is_this_machine = name == "localhost" && address.to_canonical().is_loopback();
        let is_listed =
            || self.0.contains(&Destination { host: EgressHost::Address(address.to_canonical()), port: asked.port });
        if is_public(address) || is_this_machine || is_listed() {
            return Ok(());
        }
        Err(Refused::Inside { name, address, port: asked.port })
    }

    pub fn destinations(&self) -> &[Destination] {
        &self.0
    }
}

impl std::str::FromStr for Destination {
    type Err = NotADestination;

    fn from_str(text: &str) -> Result<Self, NotADestination> {
        let (host, port) = text.rsplit_once(':').ok_or(NotADestination)?;
        // `parse` alone would accept a sign.
        let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten();
        let port = port.filter(|port| *port != 0).ok_or(NotADestination)?;
        Ok(Self { host: host.parse()?, port })
    }
}

impl std::str::FromStr for EgressHost {
    type Err = NotADestination;

    fn from_str(text: &str) -> Result<Self, NotADestination> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return inner.parse::<Ipv6Addr>().map(|it| Self::Address(it.to_canonical())).map_err(|_| NotADestination);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(NotADestination);
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            EgressHost::Name(name) => write!(f, "{name}:{}", self.port),
            EgressHost::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            EgressHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

fn listed(address: IpAddr, port: u16) -> Destination {
    Destination { host: EgressHost::Address(address.to_canonical()), port }
}

/// Whether an address is public. Excluded: IANA's special-purpose registries, and IPv6 addresses that embed an IPv4
/// address, which would need a check of their own.
fn is_public(address: IpAddr) -> bool {
    static INSIDE: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
        const NETWORKS: [&str; 23] = [
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            // Multicast, reserved, broadcast.
            "224.0.0.0/3",
            // Teredo, ORCHID, benchmarking and other protocol assignments.
            "2001::/23",
            "2001:db8::/32",
            "2002::/16",
            "2620:4f:8000::/48",
            "3fff::/20",
            "5f00::/16",
        ];
        NETWORKS.iter().filter_map(|network| network.parse().ok()).collect()
    });
    // The only block of IPv6 that is assigned to global unicast.
    static HANDED_OUT: LazyLock<Option<IpNet>> = LazyLock::new(|| "2000::/3".parse().ok());
    let address = address.to_canonical();
    let handed_out = address.is_ipv4() || HANDED_OUT.is_some_and(|network| network.contains(&address));
    handed_out && !INSIDE.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(entries: &[&str]) -> Egress {
        Egress::parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn destination(text: &str) -> Destination {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_is_listed_may_be_asked_for() {
        let egress = egress(&["chatgpt.com:443", "127.0.0.1:8080", "[2001:db8::1]:443"]);
        // An address with a trailing dot is still an address.
        for good in ["chatgpt.com:443", "ChatGPT.com.:443", "127.0.0.1:8080", "127.0.0.1.:8080", "[2001:DB8:0::1]:443"]
        {
            assert_eq!(egress.check(&destination(good)), Ok(()), "{good}");
        }
        for bad in [
            "chatgpt.com:80",
            "www.chatgpt.com:443",
            "chatgpt.com.evil.test:443",
            "127.0.0.1:443",
            "127.1:8080",
            "2130706433:8080",
            "0x7f000001:8080",
            "169.254.169.254:80",
            "[::1]:8080",
        ] {
            assert!(matches!(egress.check(&destination(bad)), Err(Refused::NotListed(_))), "{bad}");
        }
    }

    #[test]
    fn a_listed_name_may_not_lead_inside() {
        let egress = egress(&["chatgpt.com:443", "gateway.test:443", "10.1.2.3:443", "localhost:8080"]);
        let asked = destination("chatgpt.com:443");
        for public in ["104.18.32.47", "2606:4700::6812:202f", "::ffff:104.18.32.47"] {
            assert_eq!(egress.check_address(&asked, public.parse().unwrap()), Ok(()), "{public}");
        }
        for inside in [
            "127.0.0.1",
            "127.8.8.8",
            "10.0.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2001:0:a00:1::1",
            "ff02::1",
        ] {
            let refused = egress.check_address(&asked, inside.parse().unwrap());
            assert!(matches!(refused, Err(Refused::Inside { .. })), "{inside}");
        }
        let gateway = destination("gateway.test:443");
        assert_eq!(egress.check_address(&gateway, "10.1.2.3".parse().unwrap()), Ok(()), "the address is listed");
        let refused = egress.check_address(&gateway, "10.1.2.4".parse().unwrap()).unwrap_err();
        assert!(refused.to_string().ends_with("put 10.1.2.4:443 into runner.egress as well"), "{refused}");
        let here = destination("localhost:8080");
        assert_eq!(egress.check_address(&here, "127.0.0.1".parse().unwrap()), Ok(()));
        assert!(egress.check_address(&here, "10.0.0.1".parse().unwrap()).is_err());
    }

    #[test]
    fn what_is_no_destination_is_refused_with_its_place() {
        for bad in [
            "",
            "chatgpt.com",
            "chatgpt.com:",
            "chatgpt.com:0",
            "chatgpt.com:+1",
            "chatgpt.com:70000",
            ":443",
            "::1:443",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
        for bad in
            ["a b:1", "a\n:1", "user@chatgpt.com:443", "[chatgpt.com]:443", "[127.0.0.1]:443", "a..b:1", "ä.test:1"]
        {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
        let entries = ["a.test:1".to_owned(), "b.test".to_owned()];
        assert_eq!(Egress::parse(&entries), Err((2, NotADestination)));
    }
}
