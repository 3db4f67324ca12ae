//! The daemon's own certificate: short-lived, renewed with the same key.
//!
//! Renewals keep the key, because installer commands that were already printed pin it.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::authority::AuthorityKey;
use super::key::EcKey;
use super::leaf::{Validity, new_serial, params, parse, read_pem};
use super::names::ServerName;
use super::{PkiError, Result};
use crate::model::digest::Digest;
use crate::platform::SecureRandom;

const SERVER_CERTIFICATE_LIFETIME: Duration = Duration::days(90);

/// The key of the daemon's server certificates.
pub struct ServerKey(EcKey);

pub fn create() -> Result<ServerKey> {
    EcKey::generate().map(ServerKey)
}

impl ServerKey {
    pub fn from_pkcs8(der: &[u8]) -> Result<Self> {
        EcKey::from_pkcs8("server key", der).map(Self)
    }

    /// The key as PKCS#8 DER, to be sealed.
    pub fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        self.0.pkcs8()
    }
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey(***)")
    }
}

#[derive(Clone, Debug)]
pub struct ServerCertificate {
    pub certificate_pem: String,
    pub certificate: CertificateDer<'static>,
    pub names: Vec<ServerName>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl ServerCertificate {
    /// When to issue the next one: after two thirds of the lifetime. That leaves a month to fix what prevents it.
    pub fn renew_at(&self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) * 2 / 3
    }
}

/// Issues a certificate for the daemon itself, valid for 90 days, for TLS servers only.
pub fn issue_server_certificate(
    ca: &AuthorityKey,
    key: &ServerKey,
    names: &[ServerName],
    now: OffsetDateTime,
    rng: &dyn SecureRandom,
) -> Result<ServerCertificate> {
    let first = names.first().ok_or(PkiError::NoNames)?;
    let validity = Validity::new(now, SERVER_CERTIFICATE_LIFETIME).within(ca.not_after(), now)?;
    // The common name is for people (clients read the alternative names) and holds 64 characters at most.
    let common_name: String = first.to_string().chars().take(64).collect();
    let mut params = params(&common_name, validity, new_serial(rng));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in names {
        params.subject_alt_names.push(match name {
            ServerName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            ServerName::Ip(ip) => SanType::IpAddress(*ip),
        });
    }
    let certificate = params.signed_by(key.0.pair(), &ca.issuer()?)?;
    Ok(ServerCertificate {
        certificate_pem: certificate.pem(),
        certificate: certificate.into(),
        names: names.to_vec(),
        not_before: validity.not_before,
        not_after: validity.not_after,
    })
}

/// The pin of a key, for `curl --pinnedpubkey sha256//…`: base64 of the SHA-256 of its SubjectPublicKeyInfo.
pub fn spki_pin(key: &ServerKey) -> String {
    pin_of(&key.0.public_key_info())
}

/// The pin of the key in a certificate (the first one, if the PEM is a chain).
pub fn spki_pin_of_certificate(pem: &str) -> Result<String> {
    let certificate = read_pem("certificate", pem)?;
    spki_pin_of_der(&certificate)
}

pub(super) fn spki_pin_of_der(der: &[u8]) -> Result<String> {
    Ok(pin_of(parse("certificate", der)?.public_key().raw))
}

fn pin_of(public_key_info: &[u8]) -> String {
    BASE64_STANDARD.encode(Digest::of(public_key_info).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::process::{Command, Stdio};

    use time::macros::datetime;
    use x509_parser::extensions::GeneralName;

    use super::*;
    use crate::model::authority::AuthorityRole;
    use crate::pki::authority;
    use crate::platform::System;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00:00 UTC);

    fn names() -> Vec<ServerName> {
        vec![ServerName::Dns("auth.example.com".into()), ServerName::Ip(Ipv4Addr::LOCALHOST.into())]
    }

    fn server_authority() -> AuthorityKey {
        let made = authority::create(AuthorityRole::Server, NOW, &System).unwrap();
        AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap()
    }

    #[test]
    fn a_server_certificate_serves_its_names_and_only_serves() {
        let (ca, key) = (server_authority(), create().unwrap());
        let issued = issue_server_certificate(&ca, &key, &names(), NOW, &System).unwrap();
        let certificate = parse("it", &issued.certificate).unwrap();
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth && !usage.any);
        assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
        let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names[..], [GeneralName::DNSName("auth.example.com"), GeneralName::IPAddress(&[127, 0, 0, 1])]);
        let ca_der = read_pem("ca", ca.certificate_pem()).unwrap();
        certificate.verify_signature(Some(parse("ca", &ca_der).unwrap().public_key())).unwrap();
    }

    #[test]
    fn it_lasts_90_days_and_is_renewed_after_60() {
        let issued = issue_server_certificate(&server_authority(), &create().unwrap(), &names(), NOW, &System).unwrap();
        assert_eq!(issued.not_after, NOW + Duration::days(90));
        assert_eq!(issued.renew_at().date(), (NOW + Duration::days(60)).date());
        let parsed = parse("it", &issued.certificate).unwrap().validity().clone();
        assert_eq!(parsed.not_after.to_datetime(), issued.not_after);
    }

    #[test]
    fn a_renewal_keeps_the_pin_and_changes_the_serial() {
        let (ca, key) = (server_authority(), create().unwrap());
        let first = issue_server_certificate(&ca, &key, &names(), NOW, &System).unwrap();
        let restored = ServerKey::from_pkcs8(&key.pkcs8()).unwrap();
        let second = issue_server_certificate(&ca, &restored, &names(), first.renew_at(), &System).unwrap();
        assert_eq!(spki_pin_of_certificate(&first.certificate_pem).unwrap(), spki_pin(&key));
        assert_eq!(spki_pin_of_certificate(&second.certificate_pem).unwrap(), spki_pin(&key));
        let serial = |der: &[u8]| parse("it", der).unwrap().raw_serial().to_vec();
        assert_ne!(serial(&first.certificate), serial(&second.certificate));
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let (ca, key) = (server_authority(), create().unwrap());
        let late = ca.not_after() - Duration::days(5);
        assert_eq!(issue_server_certificate(&ca, &key, &names(), late, &System).unwrap().not_after, ca.not_after());
        let after = ca.not_after() + Duration::seconds(1);
        let refused = issue_server_certificate(&ca, &key, &names(), after, &System);
        assert!(matches!(refused, Err(PkiError::AuthorityExpired(_))), "{refused:?}");
    }

    #[test]
    fn the_pin_is_the_one_that_openssl_computes() {
        let key = create().unwrap();
        let issued = issue_server_certificate(&server_authority(), &key, &names(), NOW, &System).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("server.crt");
        std::fs::write(&file, &issued.certificate_pem).unwrap();
        let script = "openssl x509 -in \"$0\" -noout -pubkey | openssl pkey -pubin -outform der \
                      | openssl dgst -sha256 -binary | openssl enc -base64";
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            crate::skip::skipped("there is no openssl on PATH to compare with");
            return;
        }
        let output = Command::new("sh").args(["-c", script]).arg(&file).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), spki_pin(&key));
    }
}
