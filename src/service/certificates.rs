//! Admins' client certificates: issued by our client authority, listed by what was recorded of them.

use time::Duration;

use super::{By, Result, Service, ServiceError};
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::secret::Secret;
use crate::pki::{issue_client_certificate, to_pkcs12};
use crate::records::AdminCertificate;

/// How long an admin's certificate holds.
pub const DEFAULT_DAYS: u32 = 365;
const MAX_DAYS: u32 = 825;

/// A certificate that ends within this time is warned about.
const WARNED: Duration = Duration::days(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateState {
    Valid,
    /// Valid, and ends within 30 days.
    Expiring,
    Expired,
    Revoked,
}

impl CertificateState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }

    pub fn is_in_force(self) -> bool {
        matches!(self, Self::Valid | Self::Expiring)
    }
}

/// A fresh certificate with its key, which is handed out here and kept nowhere.
pub struct IssuedCertificate {
    pub record: AdminCertificate,
    pub certificate_pem: String,
    pub private_key_pem: Secret,
    pub authority_pem: String,
    /// PKCS#12 with certificate, key and authority, under `pkcs12_password`.
    pub pkcs12: Vec<u8>,
    pub pkcs12_password: Secret,
}

impl Service {
    /// Issues a certificate that opens the admin listener. `password` protects the PKCS#12; without one it is made.
    pub async fn issue_certificate(
        &self,
        name: &str,
        days: Option<u32>,
        password: Option<&str>,
        by: &By,
    ) -> Result<IssuedCertificate> {
        let days = days.unwrap_or(DEFAULT_DAYS);
        if !(1..=MAX_DAYS).contains(&days) {
            return Err(ServiceError::invalid("days", format!("must be from 1 to {MAX_DAYS}")));
        }
        let now = self.outside.now();
        let authorities = self.authorities();
        let authority = authorities.active(AuthorityRole::Client)?;
        let issued = issue_client_certificate(&authority.key, name, days, now, &*self.outside)
            .map_err(|error| ServiceError::invalid("name", error.to_string()))?;
        let password = match password {
            Some(password) if !password.is_empty() => Secret::new(password),
            _ => Secret::new_install_token(&*self.outside),
        };
        let authority_pem = authority.key.certificate_pem().to_owned();
        // The key of the file is derived from the password with a great many rounds.
        let (to_pack, ca_pem, passphrase) = (issued.clone(), authority_pem.clone(), password.clone());
        let packing = move || Ok(to_pkcs12(&to_pack, &ca_pem, passphrase.expose())?);
        let pkcs12 = self.people.passwords.turn(by.from).await?.spend(packing).await?;
        let record = AdminCertificate {
            user: None,
            fingerprint: issued.fingerprint,
            name: issued.name.clone(),
            serial: issued.serial.clone(),
            issued_at: now,
            expires_at: issued.not_after,
            revoked_at: None,
            authority: Some(authority.id),
        };
        let note = by.note(now, "certificate.issue").on(&record.name).with("fingerprint", record.fingerprint);
        self.commit(&note, self.records.record_certificate(&record, &note), |()| Some((&record).into())).await?;
        Ok(IssuedCertificate {
            record,
            certificate_pem: issued.certificate_pem,
            private_key_pem: issued.private_key_pem,
            authority_pem,
            pkcs12,
            pkcs12_password: password,
        })
    }

    pub async fn certificates(&self) -> Result<Vec<AdminCertificate>> {
        Ok(self.records.certificates().await?)
    }

    /// The certificate is let in no more, on open connections either.
    pub async fn revoke_certificate(&self, fingerprint: &Digest, by: &By) -> Result<AdminCertificate> {
        let now = self.outside.now();
        let name = || self.certificates.load().get(fingerprint).map(|known| known.name.clone());
        if name().is_none() {
            // Another node may have issued it a moment ago.
            self.catch_up().await?;
        }
        let name = name().ok_or(ServiceError::NotFound("Certificate"))?;
        let note = by.note(now, "certificate.revoke").on(name).with("fingerprint", fingerprint);
        let revoking = self.records.revoke_certificate(fingerprint, now, &note);
        let revoked = self.commit(&note, revoking, |revoked| revoked.as_ref().map(Into::into)).await?;
        revoked.ok_or_else(|| ServiceError::Conflict("the certificate is revoked already".into()))
    }

    /// The certificate with this fingerprint, if whoever shows it is to be let in: we issued it, it is neither revoked nor
    /// over, and its authority is still trusted.
    pub fn admitted_certificate(&self, fingerprint: &Digest) -> Option<AdminCertificate> {
        let certificates = self.certificates.load();
        certificates.get(fingerprint).filter(|certificate| self.is_in_force(certificate)).cloned()
    }

    pub(super) fn is_in_force(&self, certificate: &AdminCertificate) -> bool {
        self.state_of(certificate).is_in_force() && self.authorities().stands_for(certificate)
    }

    pub fn state_of(&self, certificate: &AdminCertificate) -> CertificateState {
        let now = self.outside.now();
        if certificate.revoked_at.is_some() {
            CertificateState::Revoked
        } else if certificate.expires_at <= now {
            CertificateState::Expired
        } else if certificate.expires_at - now <= WARNED {
            CertificateState::Expiring
        } else {
            CertificateState::Valid
        }
    }

    /// Tells the log which certificates are about to end.
    pub fn warn_of_expiring_certificates(&self) {
        for certificate in self.certificates.load().values() {
            if self.state_of(certificate) == CertificateState::Expiring {
                log::warn!(event = "certificate_expiring", name = certificate.name.as_str(), fingerprint:% = certificate.fingerprint, expires_at:% = certificate.expires_at; "an admin's certificate ends soon: issue another with `codex-authd admin-cert`");
            }
        }
    }
}
