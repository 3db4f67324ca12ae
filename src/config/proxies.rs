//! Reads the networks of `listen.trusted_proxies`, or says why one is refused. `load.rs` calls it; `model/forwarded.rs`
//! applies the networks.

use std::net::IpAddr;

use ipnet::IpNet;

/// Why a text is not a network of proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotANetwork {
    #[error("is not a network such as 10.0.0.0/8 or 2001:db8::/32, or a single address")]
    Syntax,
    #[error("has bits set beyond its prefix; write the network's first address, or /32 or /128 for one proxy")]
    HostBits,
    #[error("would trust everybody; name the proxies")]
    Everybody,
    #[error("is an IPv4 network in IPv6 form, which no address ever matches; write it as IPv4")]
    Mapped,
}

/// Reads `10.0.0.0/8`, or one address.
pub fn network(text: &str) -> Result<IpNet, NotANetwork> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| NotANetwork::Syntax)?,
    };
    match network {
        network if network.prefix_len() == 0 => Err(NotANetwork::Everybody),
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(NotANetwork::Mapped),
        network if network.addr() != network.network() => Err(NotANetwork::HostBits),
        network => Ok(network),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_refused_with_the_reason() {
        for (text, wanted) in [
            ("10.0.0.0/33", NotANetwork::Syntax),
            ("proxy.example.com", NotANetwork::Syntax),
            ("", NotANetwork::Syntax),
            ("10.0.0.1/8", NotANetwork::HostBits),
            ("2001:db8::1/32", NotANetwork::HostBits),
            ("0.0.0.0/0", NotANetwork::Everybody),
            ("::/0", NotANetwork::Everybody),
            ("::ffff:10.0.0.0/104", NotANetwork::Mapped),
        ] {
            assert_eq!(network(text), Err(wanted), "{text}");
        }
        assert_eq!(network("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(network("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
    }
}
