//! Target `addresses`: each input is used as a forwarding header, a PROXY header, a host name and a network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::config::proxies;
use crate::listener::proxy;
use crate::model::forwarded::{Header, TrustedProxies, Unreadable};
use crate::model::host::{AddressRule, Fqdn, HostRules};
use crate::service::hosts::enrol;

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

pub fn addresses(data: &[u8]) {
    forwarding(data);
    proxy_header(data);
    if let Ok(text) = std::str::from_utf8(data) {
        host_name(text);
        networks(text);
    }
}

fn trust(header: Header) -> TrustedProxies {
    let networks = ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"];
    TrustedProxies::new(networks.iter().filter_map(|text| text.parse().ok()).collect(), Some(header))
}

/// Each line of the input is one line of the header.
fn forwarding(data: &[u8]) {
    let sent: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let real = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    for header in [Header::XForwardedFor, Header::Forwarded] {
        let trust = trust(header);
        let alone = trust.caller(PROXY, sent.iter().copied());
        if header == Header::XForwardedFor && data.len() < 8 * 1024 {
            assert_eq!(alone, right_most(&trust, &sent));
        }
        // The header of an untrusted peer is ignored.
        assert_eq!(trust.caller(real, sent.iter().copied()), Ok(real));

        // Whatever the caller sends, the hop that a trusted proxy appends decides.
        let added = match header {
            Header::XForwardedFor => real.to_string().into_bytes(),
            Header::Forwarded => format!("for=\"{real}:1\";by=\"[fd00::1]\"").into_bytes(),
        };
        let behind = sent.iter().copied().chain([added.as_slice()]);
        assert_eq!(trust.caller(PROXY, behind), Ok(real), "in a separate line");
        let mut lines: Vec<Vec<u8>> = sent.iter().map(|line| line.to_vec()).collect();
        if let Some(last) = lines.last_mut() {
            last.extend(b", ");
            last.extend(&added);
        }
        let answer = trust.caller(PROXY, lines.iter().map(Vec::as_slice));
        assert!(answer == Ok(real) || answer.is_err(), "{answer:?}");
        if header == Header::XForwardedFor {
            assert!(answer == Ok(real) || answer == Err(Unreadable::TooLong), "{answer:?}");
        }
    }
}

/// A second implementation of `X-Forwarded-For`: all lines as one list; the first hop from the right that is not a
/// proxy.
fn right_most(trust: &TrustedProxies, lines: &[&[u8]]) -> Result<IpAddr, Unreadable> {
    let list = lines.join(&b',');
    let hops: Vec<&[u8]> = list.split(|byte| *byte == b',').collect();
    let mut caller = PROXY;
    for (count, hop) in hops.iter().rev().enumerate() {
        if count == 32 {
            return Err(Unreadable::TooManyHops);
        }
        let text = std::str::from_utf8(hop).map_err(|_| Unreadable::Hop)?;
        caller = hop_address(text.trim_matches([' ', '\t'])).ok_or(Unreadable::Hop)?.to_canonical();
        if !trust.trusts(caller) {
            break;
        }
    }
    Ok(caller)
}

fn hop_address(hop: &str) -> Option<IpAddr> {
    if let Ok(address) = hop.parse::<IpAddr>() {
        return Some(address);
    }
    let (address, port) = match hop.rsplit_once("]") {
        Some((address, port)) => (IpAddr::V6(address.strip_prefix('[')?.parse().ok()?), port),
        None => {
            let (address, port) = hop.split_at(hop.find(':')?);
            (IpAddr::V4(address.parse().ok()?), port)
        }
    };
    if port.is_empty() {
        return Some(address);
    }
    let port = port.strip_prefix(':')?;
    let good = match port.strip_prefix('_') {
        Some(name) => {
            let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !name.is_empty() && name.len() <= 64 && name.chars().all(good)
        }
        None => !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    };
    good.then_some(address)
}

/// Compares the parser, on a header as the listener reads it from the stream, with the protocol's specification.
fn proxy_header(data: &[u8]) {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    // Input that is not a whole header must not panic.
    let _ = proxy::parse(data);
    if data.starts_with(SIGNATURE) && data.len() >= 16 {
        let length = usize::from(u16::from_be_bytes([data[14], data[15]]));
        if let Some(header) = data.get(..16 + length) {
            let answer = proxy::parse(header).ok();
            match (header[12], version_2(header)) {
                (0x21, expected) => assert_eq!(answer, expected),
                // For its own connection, a proxy may send any address; it is ignored.
                (0x20, _) => assert!(answer.is_none_or(|answer| answer.is_none())),
                _ => assert_eq!(answer, None, "another version or command"),
            }
        }
    } else if data.starts_with(b"PROXY ") {
        let Some(end) = data.iter().position(|byte| *byte == b'\n').filter(|end| *end < 107) else { return };
        let (header, answer) = (&data[..=end], proxy::parse(&data[..=end]).ok());
        if header.starts_with(b"PROXY UNKNOWN ") {
            // Everything after UNKNOWN is ignored.
            assert!(answer.is_none_or(|answer| answer.is_none()));
        } else {
            assert_eq!(answer, version_1(header));
        }
    }
}

fn version_2(header: &[u8]) -> Option<Option<SocketAddr>> {
    let body = &header[16..];
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    match header[13] {
        0x00 => Some(None),
        0x11 if body.len() >= 12 => {
            let octets: [u8; 4] = body.get(..4)?.try_into().ok()?;
            Some(Some(SocketAddr::from((octets, port(8)?))))
        }
        0x21 if body.len() >= 36 => {
            let octets: [u8; 16] = body.get(..16)?.try_into().ok()?;
            Some(Some(SocketAddr::from((octets, port(32)?))))
        }
        _ => None,
    }
}

fn version_1(header: &[u8]) -> Option<Option<SocketAddr>> {
    let line = std::str::from_utf8(header.strip_suffix(b"\r\n")?).ok()?;
    let words: Vec<&str> = line.split(' ').collect();
    let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    match words[..] {
        ["PROXY", "UNKNOWN"] => Some(None),
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            let (from, _) = (from.parse::<Ipv4Addr>().ok()?, to.parse::<Ipv4Addr>().ok()?);
            let (from_port, _) = (port(from_port)?, port(to_port)?);
            Some(Some(SocketAddr::from((from, from_port))))
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            let (from, _) = (from.parse::<Ipv6Addr>().ok()?, to.parse::<Ipv6Addr>().ok()?);
            let (from_port, _) = (port(from_port)?, port(to_port)?);
            Some(Some(SocketAddr::from((from, from_port))))
        }
        _ => None,
    }
}

fn host_name(text: &str) {
    let label = |label: &str| {
        let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        label.len() < 64 && outer(label.chars().next()) && outer(label.chars().last()) && label.chars().all(inner)
    };
    let wanted = text.trim();
    let good = wanted.len() < 254 && wanted.split('.').all(label);
    match text.parse::<Fqdn>() {
        Ok(name) => {
            assert!(good, "{text:?} was accepted");
            assert!(name.as_str().eq_ignore_ascii_case(wanted) && !name.as_str().contains(|c: char| c.is_uppercase()));
            assert_eq!(name.to_string().parse(), Ok(name.clone()));
            let quoted = serde_json::to_string(&name).expect("a name is a string");
            assert_eq!(serde_json::from_str::<Fqdn>(&quoted).ok(), Some(name));
        }
        Err(_) => assert!(!good, "{text:?} was refused"),
    }
}

fn networks(text: &str) {
    if let Ok(network) = proxies::network(text) {
        assert!(network.prefix_len() > 0);
        assert_eq!(network.addr(), network.network());
        assert_eq!(proxies::network(&network.to_string()), Ok(network));
        let trust = TrustedProxies::new(vec![network], None);
        assert!(trust.trusts(network.network()), "{network} trusts no address");
    }
    if let Ok(network) = enrol::network(text) {
        assert_eq!(network.addr(), network.network());
        assert_eq!(enrol::network(&network.to_string()).ok(), Some(network));
        let stored = serde_json::to_string(&network).expect("a network can be stored");
        assert_eq!(serde_json::from_str::<IpNet>(&stored).ok(), Some(network));
        let rules = HostRules {
            secure: true,
            allow_roaming_ips: false,
            bound_ip: None,
            bound_ip_other: None,
            insecure_enabled_until: None,
            insecure_grace_until: None,
            disabled: false,
            disabled_with_user: false,
            expires_at: None,
            allowed_networks: vec![network],
        };
        // The caller's address is canonical. A network that admits no address would silently lock out the host.
        assert_eq!(rules.address(network.network().to_canonical(), 64), AddressRule::Admitted, "{network}");
    }
}
