//! The names under which hosts and browsers may reach the daemon, which its certificate must contain.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustls::pki_types::DnsName;

use super::Result;

/// A container host can have hundreds of addresses. A certificate with all of them would fill the handshake.
const MAX_ADDRESSES: usize = 64;

/// A name in a server certificate: a valid DNS name in lower case, or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerName {
    Dns(String),
    Ip(IpAddr),
}

impl ServerName {
    /// Reads the host part of a URL (an IPv6 address with or without brackets). `None`: neither an address nor a DNS
    /// name.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Some(Self::Ip(ip.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        DnsName::try_from(name.as_str()).is_ok().then_some(Self::Dns(name))
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// The names for the certificate, without duplicates: the public one first, then this machine's, then loopback. Invalid
/// names are left out. The order of the interfaces does not change the result.
pub fn names_for(
    public_host: Option<&str>,
    hostname: Option<&str>,
    interfaces: &[IpAddr],
    listen: SocketAddr,
) -> Vec<ServerName> {
    let mut addresses: Vec<IpAddr> = interfaces.iter().map(IpAddr::to_canonical).filter(is_reachable).collect();
    addresses.sort();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    let listen = Some(listen.ip().to_canonical()).filter(is_reachable);
    let candidates = public_host
        .into_iter()
        .chain(hostname)
        .filter_map(ServerName::parse)
        .chain(listen.into_iter().chain(addresses).map(ServerName::Ip))
        .chain([
            ServerName::Dns("localhost".into()),
            ServerName::Ip(Ipv4Addr::LOCALHOST.into()),
            ServerName::Ip(Ipv6Addr::LOCALHOST.into()),
        ]);
    let mut names = Vec::new();
    for name in candidates {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// This machine's host name and the addresses of its interfaces that are up.
pub fn local_names() -> Result<(Option<String>, Vec<IpAddr>)> {
    let hostname = nix::unistd::gethostname()?.into_string().ok();
    let mut addresses = Vec::new();
    for interface in getifaddrs()?.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP)) {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            addresses.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            addresses.push(v6.ip().into());
        }
    }
    Ok((hostname, addresses))
}

/// Whether the address can be used in a URL: not "any", not multicast, and not an IPv6 link-local one, which is useless
/// without an interface name.
fn is_reachable(ip: &IpAddr) -> bool {
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !ip.is_unspecified() && !ip.is_multicast() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn texts(names: &[ServerName]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);

    #[test]
    fn the_public_name_comes_first_and_loopback_is_always_there() {
        let names = names_for(Some("Auth.Example.com"), Some("box1"), &[ip("10.0.0.7"), ip("127.0.0.1")], ANY);
        assert_eq!(texts(&names), ["auth.example.com", "box1", "10.0.0.7", "127.0.0.1", "localhost", "::1"]);
        assert_eq!(texts(&names_for(None, None, &[], ANY)), ["localhost", "127.0.0.1", "::1"]);
    }

    #[test]
    fn nothing_is_named_twice() {
        let interfaces = [ip("::ffff:10.0.0.7"), ip("10.0.0.7"), ip("::1"), ip("10.0.0.7")];
        let names = names_for(Some("localhost."), Some("LOCALHOST"), &interfaces, "10.0.0.7:1".parse().unwrap());
        assert_eq!(texts(&names), ["localhost", "10.0.0.7", "::1", "127.0.0.1"]);
    }

    #[test]
    fn what_is_no_name_is_left_out() {
        for text in ["", "a b", "*.example.com", "a..b", "-a", "ä.example", "a\nb", "$(id)", &"a".repeat(64)] {
            assert_eq!(ServerName::parse(text), None, "{text:?}");
            assert_eq!(names_for(Some(text), Some(text), &[], ANY).len(), 3, "{text:?}");
        }
        let useless = [ip("fe80::1"), ip("::"), ip("0.0.0.0"), ip("ff02::1"), ip("224.0.0.1")];
        assert_eq!(names_for(None, None, &useless, ANY).len(), 3);
    }

    #[test]
    fn addresses_are_addresses_however_they_are_written() {
        assert_eq!(ServerName::parse("[2001:db8::1]"), Some(ServerName::Ip(ip("2001:db8::1"))));
        assert_eq!(ServerName::parse("192.0.2.1"), Some(ServerName::Ip(ip("192.0.2.1"))));
        let names = names_for(Some("[2001:db8::1]"), None, &[], "192.0.2.1:8443".parse().unwrap());
        assert_eq!(texts(&names), ["2001:db8::1", "192.0.2.1", "localhost", "127.0.0.1", "::1"]);
    }

    #[test]
    fn hundreds_of_interfaces_do_not_fill_the_handshake() {
        let many: Vec<IpAddr> = (0..500u16).map(|n| Ipv4Addr::from(0x0a00_0000 + u32::from(n)).into()).collect();
        assert_eq!(names_for(None, None, &many, ANY).len(), MAX_ADDRESSES + 3);
    }

    #[test]
    fn this_machine_has_a_name_and_a_loopback_address() {
        let (hostname, addresses) = local_names().unwrap();
        assert!(hostname.is_some_and(|name| !name.is_empty()));
        assert!(addresses.contains(&ip("127.0.0.1")), "{addresses:?}");
    }
}
