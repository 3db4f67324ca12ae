//! Target `egress`: requests of a probe to its proxy. The input has three parts, separated by NUL bytes: the listed
//! destinations, one per line; an address that a name resolves to; the bytes that the client sends.

use std::net::IpAddr;

use crate::model::egress::{Destination, Egress, EgressHost};
use crate::runner::proxy_head;

pub fn egress(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let mut text = || std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
    let listed: Vec<String> = text().lines().take(16).map(String::from).collect();
    let address: Option<IpAddr> = text().parse().ok();
    let sent = parts.next().unwrap_or_default();
    let Ok(egress) = Egress::parse(&listed) else { return };
    for destination in egress.destinations() {
        let again: Destination = destination.to_string().parse().expect("a printed destination can be parsed");
        assert_eq!(again, *destination);
    }
    let Some((asked, forwarded)) = proxy_head(sent) else { return };
    assert_eq!(egress.check(&asked).is_ok(), egress.destinations().contains(&asked));
    if let Some(forwarded) = forwarded {
        let head = String::from_utf8_lossy(&forwarded).to_ascii_lowercase();
        assert!(head.ends_with("\r\nconnection: close\r\n\r\n"), "{head:?}");
        assert_eq!(head.matches("\r\n\r\n").count(), 1, "one request is forwarded: {head:?}");
        assert!(!head.contains("\r\nproxy-authorization:"), "{head:?}");
        assert_eq!(head.matches("\r\nhost:").count(), 1, "there is one host header, from the URL: {head:?}");
    }
    if let Some(address) = address {
        lets_nobody_inside(&egress, &asked, address);
    }
}

/// Uses the standard library's classes of addresses. They cover less than our own list, and none of them may get
/// through.
fn lets_nobody_inside(egress: &Egress, asked: &Destination, address: IpAddr) {
    let inside = match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    };
    let itself = Destination { host: EgressHost::Address(address.to_canonical()), port: asked.port };
    let meant = egress.destinations().contains(&itself)
        || asked.host == EgressHost::Address(address.to_canonical())
        || asked.host == EgressHost::Name("localhost".into());
    assert!(!inside || meant || egress.check_address(asked, address).is_err(), "{asked} leads to {address}");
}
