//! Admins' client certificates: issued by our client authority, listed by what was recorded of them.

use super::{Result, Service, ServiceError};
use crate::model::secret::Secret;
use crate::pki::{issue_client_certificate, to_pkcs12};
use crate::records::AdminCertificate;

/// How long an admin's certificate holds.
pub const DEFAULT_DAYS: u32 = 365;
const MAX_DAYS: u32 = 825;

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
    ) -> Result<IssuedCertificate> {
        let days = days.unwrap_or(DEFAULT_DAYS);
        if !(1..=MAX_DAYS).contains(&days) {
            return Err(ServiceError::invalid("days", format!("must be from 1 to {MAX_DAYS}")));
        }
        let now = self.outside.now();
        let issued = issue_client_certificate(&self.secrets.client_authority, name, days, now, &*self.outside)
            .map_err(|error| ServiceError::invalid("name", error.to_string()))?;
        let password = match password {
            Some(password) if !password.is_empty() => Secret::new(password),
            _ => Secret::new_install_token(&*self.outside),
        };
        let authority_pem = self.secrets.client_authority.certificate_pem().to_owned();
        let pkcs12 = to_pkcs12(&issued, &authority_pem, password.expose())?;
        let record = AdminCertificate {
            fingerprint: issued.fingerprint,
            name: issued.name.clone(),
            serial: issued.serial.clone(),
            issued_at: now,
            expires_at: issued.not_after,
        };
        self.records.record_certificate(&record).await?;
        log::info!(event = "certificate_issued", name = record.name.as_str(), fingerprint:% = record.fingerprint; "an admin's certificate was issued");
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
}
