//! The certificate authorities: making one, cross-certifying one, and loading the key of one.

use std::fmt;

use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::key::EcKey;
use super::leaf::{Validity, new_serial, params, parse, read_pem};
use super::{PkiError, Result};
use crate::model::authority::AuthorityRole;
use crate::platform::{SecureRandom, random};

const AUTHORITY_LIFETIME: Duration = Duration::days(3653);

/// A new authority. The caller seals the key, under `id`, before anything is issued with it.
pub struct NewAuthority {
    pub id: Uuid,
    pub role: AuthorityRole,
    pub certificate_pem: String,
    /// PKCS#8 DER.
    pub private_key: Zeroizing<Vec<u8>>,
}

pub fn create(role: AuthorityRole, now: OffsetDateTime, rng: &dyn SecureRandom) -> Result<NewAuthority> {
    let id = uuid::Builder::from_random_bytes(random(rng)).into_uuid();
    let key = EcKey::generate()?;
    let kind = match role {
        AuthorityRole::Server => "server",
        AuthorityRole::Client => "client",
    };
    // The id's first group tells an old authority from a new one in a browser's or a keychain's list.
    let short = &id.simple().to_string()[..8];
    let name = format!("codex-authd {kind} CA {short}");
    let mut params = params(&name, Validity::new(now, AUTHORITY_LIFETIME), new_serial(rng));
    // A server authority may certify its successor.
    let below = match role {
        AuthorityRole::Server => 1,
        AuthorityRole::Client => 0,
    };
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(key.pair())?;
    Ok(NewAuthority { id, role, certificate_pem: certificate.pem(), private_key: key.pkcs8() })
}

/// A certificate by `active` over the key and the name of `made`. With it, a client that trusts only `active` also
/// trusts what `made` signs, while both certificates are valid. `None`: `active` may certify leaves only (authorities
/// of the first format).
pub fn cross_certify(
    active: &AuthorityKey,
    made: &NewAuthority,
    now: OffsetDateTime,
    rng: &dyn SecureRandom,
) -> Result<Option<String>> {
    const WHAT: &str = "authority's certificate";
    let may_certify = parse(WHAT, &active.certificate)?
        .basic_constraints()
        .ok()
        .flatten()
        .is_some_and(|basic| basic.value.path_len_constraint.is_none_or(|below| below > 0));
    if !may_certify {
        return Ok(None);
    }
    let der = read_pem(WHAT, &made.certificate_pem)?;
    let name =
        parse(WHAT, &der)?.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(String::from);
    let name = name.ok_or_else(|| PkiError::BadCertificate { what: WHAT, reason: "it has no name".into() })?;
    let validity = Validity::new(now, AUTHORITY_LIFETIME).within(active.not_after, now)?;
    let mut params = params(&name, validity, new_serial(rng));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = EcKey::from_pkcs8("authority's key", &made.private_key)?;
    Ok(Some(params.signed_by(key.pair(), &active.issuer()?)?.pem()))
}

impl fmt::Debug for NewAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAuthority")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("private_key", &"***")
            .finish_non_exhaustive()
    }
}

/// An authority that can sign: its certificate and the key to it.
pub struct AuthorityKey {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    not_after: OffsetDateTime,
    key: EcKey,
}

impl AuthorityKey {
    /// `private_key` is PKCS#8 DER; it must be the key of the certificate.
    pub fn new(certificate_pem: &str, private_key: &[u8]) -> Result<Self> {
        const WHAT: &str = "authority's certificate";
        let certificate = read_pem(WHAT, certificate_pem)?;
        let key = EcKey::from_pkcs8("authority's key", private_key)?;
        let parsed = parse(WHAT, &certificate)?;
        if parsed.public_key().raw != key.public_key_info() {
            return Err(PkiError::AuthorityMismatch);
        }
        let not_after = parsed.validity().not_after.to_datetime();
        Ok(Self { certificate_pem: certificate_pem.into(), certificate, not_after, key })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    pub(super) fn issuer(&self) -> Result<Issuer<'_, &KeyPair>> {
        Ok(Issuer::from_ca_cert_der(&self.certificate, self.key.pair())?)
    }
}

impl fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityKey").field("not_after", &self.not_after).field("key", &"***").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use x509_parser::extensions::ParsedExtension;

    use super::*;
    use crate::platform::System;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00:00.5 UTC);

    #[test]
    fn an_authority_may_sign_leaves_and_nothing_else() {
        let made = create(AuthorityRole::Client, NOW, &System).unwrap();
        let der = read_pem("it", &made.certificate_pem).unwrap();
        let certificate = parse("it", &der).unwrap();
        let basic = certificate.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(0));
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
        let short = &made.id.simple().to_string()[..8];
        assert_eq!(certificate.subject().to_string(), format!("CN=codex-authd client CA {short}"));
        certificate.verify_signature(None).unwrap();
    }

    #[test]
    fn its_key_identifiers_name_itself() {
        let made = create(AuthorityRole::Server, NOW, &System).unwrap();
        let der = read_pem("it", &made.certificate_pem).unwrap();
        let certificate = parse("it", &der).unwrap();
        let (mut subject, mut authority) = (None, None);
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => subject = Some(id.0),
                ParsedExtension::AuthorityKeyIdentifier(id) => authority = id.key_identifier.as_ref().map(|id| id.0),
                _ => {}
            }
        }
        assert!(subject.is_some_and(|id| id.len() == 20));
        assert_eq!(subject, authority);
    }

    #[test]
    fn it_holds_from_an_hour_ago_for_ten_years() {
        let made = create(AuthorityRole::Server, NOW, &System).unwrap();
        let der = read_pem("it", &made.certificate_pem).unwrap();
        let validity = parse("it", &der).unwrap().validity().clone();
        assert_eq!(validity.not_before.to_datetime(), datetime!(2026-11-21 11:00:00 UTC));
        assert_eq!(validity.not_after.to_datetime(), datetime!(2036-11-21 12:00:00 UTC));
    }

    #[test]
    fn serials_are_positive_128_bit_numbers_and_differ() {
        let serials: Vec<_> = (0..8)
            .map(|_| {
                let made = create(AuthorityRole::Server, NOW, &System).unwrap();
                let der = read_pem("it", &made.certificate_pem).unwrap();
                parse("it", &der).unwrap().raw_serial().to_vec()
            })
            .collect();
        assert!(serials.iter().all(|serial| serial.len() == 16 && serial[0] & 0x80 == 0), "{serials:x?}");
        assert!(serials.iter().collect::<std::collections::HashSet<_>>().len() == 8);
    }

    #[test]
    fn the_key_of_another_authority_is_refused() {
        let one = create(AuthorityRole::Server, NOW, &System).unwrap();
        let other = create(AuthorityRole::Server, NOW, &System).unwrap();
        assert!(AuthorityKey::new(&one.certificate_pem, &one.private_key).is_ok());
        let mixed = AuthorityKey::new(&one.certificate_pem, &other.private_key);
        assert!(matches!(mixed, Err(PkiError::AuthorityMismatch)), "{mixed:?}");
    }

    #[test]
    fn debug_shows_no_key() {
        let made = create(AuthorityRole::Server, NOW, &System).unwrap();
        let taken_up = AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap();
        let bytes = format!("{:?}", &made.private_key[40..44]);
        for text in [format!("{made:?}"), format!("{taken_up:?}")] {
            assert!(text.contains("***") && !text.contains(bytes.trim_matches(['[', ']'])), "{text}");
        }
    }
}
