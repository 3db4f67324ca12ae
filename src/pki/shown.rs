//! The validity and the names of a certificate that a server shows.

use std::net::IpAddr;

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

use super::{Result, ServerName, leaf};

pub struct Shown {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Shown {
    pub fn read(der: &[u8]) -> Result<Self> {
        let certificate = leaf::parse("the certificate that was shown", der)?;
        let (mut dns, mut addresses) = (Vec::new(), Vec::new());
        for name in
            certificate.subject_alternative_name().ok().flatten().iter().flat_map(|san| &san.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => dns.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        // Hosts do the same: the common name counts if there is no other name.
        if dns.is_empty() && addresses.is_empty() {
            let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            dns.extend(common.map(str::to_ascii_lowercase));
        }
        let validity = certificate.validity();
        Ok(Self {
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            dns,
            addresses,
        })
    }

    /// Whether the certificate is valid for this name; a `*` stands for one label.
    pub fn covers(&self, name: &ServerName) -> bool {
        match name {
            ServerName::Ip(address) => self.addresses.contains(address),
            ServerName::Dns(name) => self.dns.iter().any(|known| match known.strip_prefix("*.") {
                Some(rest) => name.split_once('.').is_some_and(|(_, parent)| parent == rest),
                None => known == name,
            }),
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_covers_its_names_and_one_label_for_a_star() {
        let names = ["auth.test", "*.fleet.test", "192.0.2.1"].map(String::from);
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let shown = Shown::read(made.der()).unwrap();
        for (name, covered) in [
            ("auth.test", true),
            ("AUTH.test", true),
            ("a.fleet.test", true),
            ("fleet.test", false),
            ("a.b.fleet.test", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
        ] {
            assert_eq!(shown.covers(&ServerName::parse(name).unwrap()), covered, "{name}");
        }
        assert!(shown.not_before < shown.not_after);
    }

    #[test]
    fn the_common_name_counts_where_no_other_name_is_told() {
        let key = KeyPair::generate().unwrap();
        for (names, covered) in [(vec![], true), (vec!["other.test".to_owned()], false)] {
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, "Auth.test");
            let made = params.self_signed(&key).unwrap();
            let shown = Shown::read(made.der()).unwrap();
            assert_eq!(shown.covers(&ServerName::parse("auth.test").unwrap()), covered);
        }
    }
}
