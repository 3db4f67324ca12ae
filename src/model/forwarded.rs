//! Finds the caller's address behind proxies: the rules for trusting `X-Forwarded-For` and `Forwarded` (RFC 7239).
//!
//! A trusted proxy appends at the right end. The caller may have invented everything to the left of it. So hops are
//! read from the right, as long as they are trusted proxies. The first hop that is not trusted is the caller. An
//! unreadable hop up to there is an error. A guess would let a caller choose its own address, or count the proxy as one
//! host. Hops further left are ignored. The work is bounded for every header.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The most hops that are read, from the right.
const MAX_HOPS: usize = 32;
/// The most bytes that are read of all lines of the header.
const MAX_BYTES: usize = 8 * 1024;

/// The key for all limits per address: an IPv4 address or an IPv6 /64. A caller with one address of a /64 has all of
/// them. The key has the bits of an IPv6 address. IPv4 addresses are v4-mapped, which differs from every /64.
pub fn share_of(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V6(ip) => ip.to_bits() & (u128::MAX << 64),
        IpAddr::V4(ip) => Ipv6Addr::to_bits(ip.to_ipv6_mapped()),
    }
}

/// The configured forwarding header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    XForwardedFor,
    Forwarded,
}

impl Header {
    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

/// The trusted proxies and their forwarding header.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    proxies: Vec<IpNet>,
    header: Option<Header>,
    proxy_protocol: bool,
}

/// Why a forwarding header cannot be used. The messages quote nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is longer than 8 KiB")]
    TooLong,
    #[error("it names more than 32 proxies")]
    TooManyHops,
    #[error("the hop of the caller is not an IP address")]
    Hop,
    #[error("it has an unterminated quotation")]
    Quotation,
}

impl TrustedProxies {
    /// If `header` is `None`, no header is trusted.
    pub fn new(proxies: Vec<IpNet>, header: Option<Header>) -> Self {
        Self { proxies, header, proxy_protocol: false }
    }

    /// Each connection names its caller in a PROXY header.
    pub fn with_proxy_protocol(self, proxy_protocol: bool) -> Self {
        Self { proxy_protocol, ..self }
    }

    pub fn has_proxy_protocol(&self) -> bool {
        self.proxy_protocol
    }

    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().any(|network| network.contains(&address))
    }

    /// The header to read for a connection from `peer`. `None`: `peer` is the caller.
    pub fn header_from(&self, peer: IpAddr) -> Option<Header> {
        self.header.filter(|_| self.trusts(peer))
    }

    /// The caller's address for a request from `peer`. `lines`: the values of the header [`Self::header_from`], in
    /// their order.
    pub fn caller<'a>(
        &self,
        peer: IpAddr,
        lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    ) -> Result<IpAddr, Unreadable> {
        let peer = peer.to_canonical();
        let Some(header) = self.header_from(peer) else { return Ok(peer) };
        let mut chain = Chain { trust: self, caller: peer, hops: 0 };
        let mut bytes = 0;
        for line in lines.rev() {
            bytes += line.len();
            if bytes > MAX_BYTES {
                return Err(Unreadable::TooLong);
            }
            let decided = match header {
                Header::XForwardedFor => chain.follow(line.rsplit(|byte| *byte == b',').map(|hop| address(trim(hop)))),
                Header::Forwarded => chain.follow(split(line, b',')?.into_iter().rev().map(forwarded_for)),
            }?;
            if decided {
                break;
            }
        }
        Ok(chain.caller)
    }
}

/// The hops that have been read so far, from the right.
struct Chain<'t> {
    trust: &'t TrustedProxies,
    caller: IpAddr,
    hops: usize,
}

impl Chain<'_> {
    /// Reads hops from right to left. Returns `true` once a hop is not a trusted proxy, which makes it the caller.
    fn follow(&mut self, hops: impl Iterator<Item = Option<IpAddr>>) -> Result<bool, Unreadable> {
        for hop in hops {
            self.hops += 1;
            if self.hops > MAX_HOPS {
                return Err(Unreadable::TooManyHops);
            }
            self.caller = hop.ok_or(Unreadable::Hop)?;
            if !self.trust.trusts(self.caller) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Splits a list and trims its parts. A separator in a quoted string does not separate. An unterminated quoted string
/// from the caller would swallow the proxy's part, so it is an error for the whole line.
fn split(line: &[u8], separator: u8) -> Result<Vec<&[u8]>, Unreadable> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, &byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(trim(&line[begin..at]));
                begin = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(Unreadable::Quotation);
    }
    parts.push(trim(&line[begin..]));
    Ok(parts)
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The address of `for=` in an element of `Forwarded`. `None` unless there is exactly one `for=` with an address.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split(element, b';').ok()? {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (&pair[..equals], &pair[equals + 1..]);
        if name.eq_ignore_ascii_case(b"for") && found.replace(address(&unquoted(value)?)?).is_some() {
            return None;
        }
    }
    found
}

/// The content of a value that may be a quoted string.
fn unquoted(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let [b'"', inner @ .., b'"'] = value else {
        return (!value.contains(&b'"')).then_some(Cow::Borrowed(value));
    };
    let (mut text, mut escaped) = (Vec::with_capacity(inner.len()), false);
    for &byte in inner {
        match byte {
            _ if escaped => {
                escaped = false;
                text.push(byte);
            }
            b'\\' => escaped = true,
            b'"' => return None,
            _ => text.push(byte),
        }
    }
    (!escaped).then_some(Cow::Owned(text))
}

/// An address, with or without a port: `1.2.3.4`, `1.2.3.4:5`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:5`. A
/// port may be obfuscated (`_x`); it is ignored. `unknown` and obfuscated names are not addresses.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let address = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        if !rest.is_empty() {
            port(rest.strip_prefix(':')?)?;
        }
        IpAddr::V6(address.parse::<Ipv6Addr>().ok()?)
    } else if let Ok(address) = text.parse::<IpAddr>() {
        address
    } else {
        let (address, rest) = text.split_once(':')?;
        port(rest)?;
        IpAddr::V4(address.parse::<Ipv4Addr>().ok()?)
    };
    Some(address.to_canonical())
}

fn port(text: &str) -> Option<()> {
    let named = |name: &str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    let valid = match text.strip_prefix('_') {
        Some(name) => named(name),
        None => text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok(),
    };
    valid.then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    fn trust(header: Option<Header>) -> TrustedProxies {
        let networks = ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"];
        TrustedProxies::new(networks.map(|text| text.parse().unwrap()).into(), header)
    }

    fn caller(header: Header, lines: &[&[u8]]) -> Result<IpAddr, Unreadable> {
        trust(Some(header)).caller(PROXY, lines.iter().copied())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_right_most_hop_that_is_not_trusted_is_the_caller() {
        for (lines, wanted) in [
            (vec!["203.0.113.9"], "203.0.113.9"),
            (vec!["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            (vec!["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            (vec!["1.1.1.1,203.0.113.9,10.0.0.2 ,\t192.0.2.7"], "203.0.113.9"),
            (vec!["garbage, unknown, 203.0.113.9"], "203.0.113.9"),
            (vec![", , 203.0.113.9"], "203.0.113.9"),
            (vec!["\"1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            (vec!["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
            (vec!["203.0.113.9", "10.0.0.2"], "203.0.113.9"),
            (vec!["\"", "203.0.113.9"], "203.0.113.9"),
            (vec!["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (vec![], "10.0.0.1"),
            (vec!["203.0.113.9:4711"], "203.0.113.9"),
            (vec!["2001:db8::1"], "2001:db8::1"),
            (vec!["[2001:db8::1]"], "2001:db8::1"),
            (vec!["[2001:db8::1]:4711"], "2001:db8::1"),
            (vec!["::ffff:203.0.113.9"], "203.0.113.9"),
            (vec!["203.0.113.9, ::ffff:10.0.0.2, fd00::1"], "203.0.113.9"),
            (vec!["[::ffff:203.0.113.9]:1"], "203.0.113.9"),
        ] {
            let bytes: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(caller(Header::XForwardedFor, &bytes), Ok(ip(wanted)), "{lines:?}");
        }
    }

    #[test]
    fn the_same_holds_for_forwarded() {
        for (lines, wanted) in [
            (vec!["for=203.0.113.9"], "203.0.113.9"),
            (vec!["For=203.0.113.9;proto=https;by=10.0.0.1"], "203.0.113.9"),
            (vec!["for=1.1.1.1, proto=http ; FOR=\"203.0.113.9:80\", for=10.0.0.2"], "203.0.113.9"),
            (vec!["for=\"[2001:db8::1]\""], "2001:db8::1"),
            (vec!["for=\"[2001:db8::1]:4711\";by=_proxy"], "2001:db8::1"),
            (vec!["for=\"[2001:db8::1]:_hidden\""], "2001:db8::1"),
            (vec!["for=\"203.0.113.\\9\""], "203.0.113.9"),
            (vec!["for=unknown, for=_hidden, for=203.0.113.9"], "203.0.113.9"),
            (vec!["for=\"1.1.1.1, for=2.2.2.2\", for=203.0.113.9"], "203.0.113.9"),
            (vec!["for=\"", "for=203.0.113.9"], "203.0.113.9"),
            (vec!["for=1.1.1.1", "for=203.0.113.9"], "203.0.113.9"),
            (vec!["for=10.0.0.3", "for=10.0.0.2"], "10.0.0.3"),
        ] {
            let bytes: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(caller(Header::Forwarded, &bytes), Ok(ip(wanted)), "{lines:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_where_it_counts_is_an_error_and_never_the_proxy() {
        for text in [
            "",
            " ",
            ",",
            "203.0.113.9,",
            "unknown",
            "_hidden",
            "unix:",
            "localhost",
            "203.0.113",
            "0203.0.113.9",
            "203.0.113.9:",
            "203.0.113.9:x",
            "203.0.113.9:70000",
            "203.0.113.9:+1",
            "[203.0.113.9]",
            "[2001:db8::1",
            "[2001:db8::1]4711",
            "[2001:db8::1]:",
            "2001:db8::1%eth0",
            "\"203.0.113.9\"",
            "203.0.113.9 10.0.0.2",
            "203.0.113.9\u{0}",
            "203.0.113.9, unknown",
            "203.0.113.9, , 10.0.0.2",
            "for=203.0.113.9",
        ] {
            assert_eq!(caller(Header::XForwardedFor, &[text.as_bytes()]), Err(Unreadable::Hop), "{text:?}");
        }
        assert_eq!(caller(Header::XForwardedFor, &[b"\xff\xfe"]), Err(Unreadable::Hop));
        for text in [
            "",
            "203.0.113.9",
            "by=203.0.113.9",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "for=\"_gazonk\"",
            "for=203.0.113.9;for=203.0.113.9",
            "for=203.0.113.9;",
            "for=203.0.113.9,",
            "for=\"203.0.113.9",
            "for=203.0.113.9\"",
            "for=\"203.0.113.9\"x",
            "for=\"203.0.113.9\\\"",
            "for=\"203.\"0.113.9\"",
            "for =203.0.113.9",
            "for=203.0.113.9;proto",
            // An unterminated quoted string from the caller does not swallow the proxy's part.
            "for=\"1.1.1.1, for=203.0.113.9",
            "for=\"1.1.1.1, for=\"[2001:db8::1]:1\"",
            "for=\"1.1.1.1\\, for=\"x\"",
        ] {
            assert!(caller(Header::Forwarded, &[text.as_bytes()]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_work_is_bounded() {
        let long = format!("{}, 203.0.113.9", "1.1.1.1, ".repeat(1000));
        assert_eq!(caller(Header::XForwardedFor, &[long.as_bytes()]), Err(Unreadable::TooLong));
        let lines = vec![b"10.0.0.2".as_slice(); MAX_HOPS];
        assert_eq!(caller(Header::XForwardedFor, &lines), Ok(ip("10.0.0.2")));
        let lines = vec![b"10.0.0.2".as_slice(); MAX_HOPS + 1];
        assert_eq!(caller(Header::XForwardedFor, &lines), Err(Unreadable::TooManyHops));
    }

    #[test]
    fn nobody_else_is_believed() {
        let line: &[u8] = b"203.0.113.9";
        for (peer, header, wanted) in [
            ("198.51.100.1", Some(Header::XForwardedFor), "198.51.100.1"),
            ("::ffff:198.51.100.1", Some(Header::XForwardedFor), "198.51.100.1"),
            ("10.0.0.1", None, "10.0.0.1"),
            ("::ffff:10.0.0.1", Some(Header::XForwardedFor), "203.0.113.9"),
        ] {
            assert_eq!(trust(header).caller(ip(peer), [line].into_iter()), Ok(ip(wanted)), "{peer}");
        }
        assert_eq!(TrustedProxies::default().caller(PROXY, [line].into_iter()), Ok(PROXY));
    }

    /// Pieces of valid and invalid headers.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("for=".into()),
            Just(",".into()),
            Just(";".into()),
            Just("\"".into()),
            Just("\\".into()),
            Just("[".into()),
            Just("]".into()),
            Just(":1".into()),
            Just("unknown".into()),
            Just("10.0.0.9".into()),
            Just("by=x".into()),
            Just(" ".into()),
            any::<Ipv4Addr>().prop_map(|ip| ip.to_string()),
            any::<Ipv6Addr>().prop_map(|ip| ip.to_string()),
            "\\PC{0,3}",
        ]
    }

    proptest! {
        /// Whatever a caller sends, the result is the hop that the proxy added, or an error.
        #[test]
        fn a_caller_never_chooses_its_address(
            sent in proptest::collection::vec(proptest::collection::vec(piece(), 0..8), 0..4),
            real in any::<Ipv4Addr>(),
            own_line in any::<bool>(),
            quoted in any::<bool>(),
        ) {
            let real = IpAddr::V4(real);
            prop_assume!(!trust(None).trusts(real));
            for header in [Header::XForwardedFor, Header::Forwarded] {
                let added = match (header, quoted) {
                    (Header::XForwardedFor, _) => real.to_string(),
                    (Header::Forwarded, false) => format!("for={real}"),
                    (Header::Forwarded, true) => format!("for=\"{real}:1\";by=\"[fd00::1]\""),
                };
                let mut lines: Vec<String> = sent.iter().map(|line| line.concat()).collect();
                match lines.last_mut() {
                    Some(last) if !own_line => *last = format!("{last}, {added}"),
                    _ => lines.push(added),
                }
                let answer = trust(Some(header)).caller(PROXY, lines.iter().map(String::as_bytes));
                prop_assert!(answer == Ok(real) || answer.is_err(), "{answer:?} of {lines:?}");
                if own_line || sent.is_empty() {
                    prop_assert_eq!(answer, Ok(real));
                }
            }
        }

        #[test]
        fn no_bytes_at_all_do_harm(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            for header in [Header::XForwardedFor, Header::Forwarded] {
                let _ = caller(header, &[&line]);
            }
        }
    }
}
