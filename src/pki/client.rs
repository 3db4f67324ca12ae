//! Admins' client certificates. The private key is returned to the caller and not kept.

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::authority::AuthorityKey;
use super::key::EcKey;
use super::leaf::{Validity, new_serial, params};
use super::{PkiError, Result};
use crate::model::digest::Digest;
use crate::model::secret::Secret;
use crate::platform::SecureRandom;

const MAX_DAYS: u32 = 3650;

#[derive(Clone, Debug)]
pub struct ClientCertificate {
    pub name: String,
    pub certificate_pem: String,
    pub certificate: CertificateDer<'static>,
    /// PKCS#8.
    pub private_key_pem: Secret,
    /// SHA-256 of the DER, as the listener reports it of a connection.
    pub fingerprint: Digest,
    /// Lower-case hex.
    pub serial: String,
    pub issued_at: OffsetDateTime,
    /// Not after the authority's own expiry, so perhaps sooner than requested.
    pub not_after: OffsetDateTime,
}

/// Issues a certificate for TLS clients only, with `name` as its common name.
pub fn issue_client_certificate(
    ca: &AuthorityKey,
    name: &str,
    days: u32,
    now: OffsetDateTime,
    rng: &dyn SecureRandom,
) -> Result<ClientCertificate> {
    if !is_printable_name(name) {
        return Err(PkiError::BadName);
    }
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(PkiError::BadLifetime { days, max: MAX_DAYS });
    }
    let validity = Validity::new(now, Duration::days(days.into())).within(ca.not_after(), now)?;
    let serial = new_serial(rng);
    let key = EcKey::generate()?;
    let mut params = params(name, validity, serial);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(key.pair(), &ca.issuer()?)?;
    Ok(ClientCertificate {
        name: name.into(),
        certificate_pem: certificate.pem(),
        fingerprint: Digest::of(certificate.der()),
        certificate: certificate.into(),
        private_key_pem: key.pkcs8_pem(),
        serial: hex::encode(serial),
        issued_at: now,
        not_after: validity.not_after,
    })
}

/// The name is shown in logs and on pages: no character may move the cursor, reverse the text or be invisible.
fn is_printable_name(name: &str) -> bool {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}' | '\u{200b}'..='\u{200f}')
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}')
            || matches!(c, '\u{e0000}'..='\u{e007f}')
    };
    (1..=64).contains(&name.chars().count()) && name.trim() == name && !name.chars().any(hidden)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::super::leaf::parse;
    use super::*;
    use crate::model::authority::AuthorityRole;
    use crate::pki::authority;
    use crate::platform::System;

    const NOW: OffsetDateTime = datetime!(2026-11-21 12:00:00 UTC);

    fn client_authority() -> AuthorityKey {
        let made = authority::create(AuthorityRole::Client, NOW, &System).unwrap();
        AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap()
    }

    #[test]
    fn a_client_certificate_is_good_for_clients_only_and_says_whose_it_is() {
        let issued = issue_client_certificate(&client_authority(), "Zoë / laptop", 365, NOW, &System).unwrap();
        let certificate = parse("it", &issued.certificate).unwrap();
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str(), Ok("Zoë / laptop"));
        assert_eq!(hex::encode(certificate.raw_serial()), issued.serial);
        assert_eq!(issued.fingerprint, Digest::of(&issued.certificate));
        assert_eq!(certificate.validity().not_after.to_datetime(), NOW + Duration::days(365));
        assert_eq!(issued.not_after, NOW + Duration::days(365));
    }

    #[test]
    fn names_that_cannot_be_shown_are_refused() {
        let ca = client_authority();
        for name in ["", " ", " a", "a\n", "a\tb", "a\0b", "a\u{202e}b", "a\u{200b}b", &"ä".repeat(65)] {
            let refused = issue_client_certificate(&ca, name, 365, NOW, &System);
            assert!(matches!(refused, Err(PkiError::BadName)), "{name:?}");
        }
        for name in ["a", "管理者", "O'Brien, $(id); \"x\"", &"ä".repeat(64)] {
            assert!(issue_client_certificate(&ca, name, 365, NOW, &System).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_lifetime_is_one_day_to_ten_years() {
        let ca = client_authority();
        for days in [0, MAX_DAYS + 1, u32::MAX] {
            let refused = issue_client_certificate(&ca, "a", days, NOW, &System);
            assert!(matches!(refused, Err(PkiError::BadLifetime { .. })), "{days}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let issued = issue_client_certificate(&client_authority(), "a", 365, NOW, &System).unwrap();
        let key_line = issued.private_key_pem.expose().lines().nth(1).unwrap();
        let shown = format!("{issued:?}");
        assert!(shown.contains("***") && !shown.contains(key_line));
    }
}
