//! The common parts of our certificates: serial numbers, validity, parsing.

use rcgen::{CertificateParams, DistinguishedName, DnType, SerialNumber};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime, UtcOffset};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{PkiError, Result};
use crate::platform::{SecureRandom, random};

/// A certificate is valid from this long before it is made, because the clocks of hosts and browsers may be behind
/// ours.
const BACKDATING: Duration = Duration::hours(1);

/// The validity of a certificate, in whole seconds, as X.509 writes it.
#[derive(Clone, Copy)]
pub(super) struct Validity {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl Validity {
    pub fn new(now: OffsetDateTime, lifetime: Duration) -> Self {
        let now = now.to_offset(UtcOffset::UTC);
        let now = now.saturating_sub(Duration::nanoseconds(now.nanosecond().into()));
        Self { not_before: now.saturating_sub(BACKDATING), not_after: now.saturating_add(lifetime) }
    }

    /// Ends the validity with the authority's. A leaf that outlives its authority is refused everywhere from that day
    /// on, for no visible reason.
    pub fn within(self, authority_ends: OffsetDateTime, now: OffsetDateTime) -> Result<Self> {
        if authority_ends <= now.saturating_add(Duration::hours(1)) {
            return Err(PkiError::AuthorityExpired(authority_ends));
        }
        Ok(Self { not_after: self.not_after.min(authority_ends), ..self })
    }
}

/// Parameters with a subject, a validity and a serial number of their own.
///
/// rcgen derives its own serial from the public key. Two certificates over one key, as a renewal makes them, would
/// share it, and browsers refuse that.
pub(super) fn params(common_name: &str, validity: Validity, serial: [u8; 16]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params
}

/// 128 bits, of which the first two are fixed: never negative, never shorter than 16 bytes.
pub(super) fn new_serial(rng: &dyn SecureRandom) -> [u8; 16] {
    let mut serial: [u8; 16] = random(rng);
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

pub(super) fn read_pem(what: &'static str, pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::BadCertificate { what, reason: error.to_string() })
}

pub(super) fn parse<'a>(what: &'static str, der: &'a [u8]) -> Result<X509Certificate<'a>> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| PkiError::BadCertificate { what, reason: error.to_string() })
}
