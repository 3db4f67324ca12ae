//! Admins' client certificates: issue, renew, revoke and list them.

use time::{Duration, OffsetDateTime};

use crate::model::audit::Actor;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::secret::Secret;
use crate::pki::{ClientCertificate, PkiError, issue_client_certificate, to_pkcs12};
use crate::records::AdminCertificate;
use crate::service::core::commit::Written;
use crate::service::people::passwords::judge_file_password;
use crate::service::{Initiator, Result, ServiceError, Trust};

/// How long an admin's certificate is valid by default.
pub const DEFAULT_DAYS: u32 = 365;
const MAX_DAYS: u32 = 825;

/// A certificate that expires within this time causes a warning.
const EXPIRY_WARNING: Duration = Duration::days(30);

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

/// A new certificate with its key. The key is returned only here, and stored nowhere.
pub struct IssuedCertificate {
    pub record: AdminCertificate,
    pub certificate_pem: String,
    pub private_key_pem: Secret,
    pub authority_pem: String,
    /// `None`: it was not asked for.
    pub pkcs12: Option<Pkcs12>,
}

/// A file with certificate, key and authority, and the password that opens it.
pub struct Pkcs12 {
    pub file: Vec<u8>,
    pub password: Secret,
}

/// How a certificate is to be made.
#[derive(Clone, Copy, Default)]
pub struct CertificateOptions<'a> {
    pub days: Option<u32>,
    /// Makes no PKCS#12, which takes about a second of processor time.
    pub without_pkcs12: bool,
    /// The password of the PKCS#12; `None`: one is generated.
    pub password: Option<&'a str>,
}

impl Trust {
    /// Issues a certificate that opens the admin listener.
    pub async fn issue_certificate(
        &self,
        name: &str,
        options: CertificateOptions<'_>,
        by: &Initiator,
    ) -> Result<IssuedCertificate> {
        let made = self.make_certificate(name, options, by).await?;
        let record = &made.record;
        let note = by.note(record.issued_at, "certificate.issue").on(&record.name);
        let note = note.with("fingerprint", record.fingerprint);
        self.core.commit(&note, self.core.records.certificate_record(record, &note), |()| Some(record.into())).await?;
        Ok(made)
    }

    /// Issues a successor of a certificate, with its name and user. The old one is valid until its end, or is revoked
    /// in the same transaction.
    ///
    /// The certificate of the caller cannot be revoked by this: that would close the connection before the answer has
    /// arrived.
    pub async fn renew_certificate(
        &self,
        old: &Digest,
        options: CertificateOptions<'_>,
        revoke: bool,
        by: &Initiator,
    ) -> Result<IssuedCertificate> {
        let name = self.certificate_name(old).await?;
        if revoke && matches!(&by.actor, Actor::Certificate { fingerprint, .. } if fingerprint == old) {
            return Err(ServiceError::Refused(
                "this certificate is the one you use now: renew it without revoking it, import the new one, and revoke the \
                 old one with that"
                    .into(),
            ));
        }
        let made = self.make_certificate(&name, options, by).await?;
        let record = &made.record;
        let note = by.note(record.issued_at, "certificate.renew").on(&name).with("fingerprint", record.fingerprint);
        let note = note.with("renews", old).with("revoked", revoke);
        let revoke_at = revoke.then_some(record.issued_at);
        let renewing = self.core.records.certificate_renew(old, record, revoke_at, &note);
        let renewed = self
            .core
            .commit(&note, renewing, |renewed| {
                let revoked = revoke_at.and_then(|at| self.revoked_at(old, at));
                let certificates = renewed.iter().cloned().chain(revoked).collect();
                renewed.is_some().then(|| Written { certificates, ..Written::default() })
            })
            .await?;
        let renewed = renewed.ok_or_else(|| {
            ServiceError::Conflict("the certificate is revoked: issue another with `codex-authd admin-cert`".into())
        })?;
        Ok(IssuedCertificate { record: renewed, ..made })
    }

    /// The certificate as this node knows it, revoked at `at` or earlier.
    fn revoked_at(&self, fingerprint: &Digest, at: OffsetDateTime) -> Option<AdminCertificate> {
        let known = self.core.certificates.load().get(fingerprint).cloned()?;
        Some(AdminCertificate { revoked_at: Some(known.revoked_at.unwrap_or(at)), ..known })
    }

    async fn make_certificate(
        &self,
        name: &str,
        options: CertificateOptions<'_>,
        by: &Initiator,
    ) -> Result<IssuedCertificate> {
        let days = options.days.unwrap_or(DEFAULT_DAYS);
        if !(1..=MAX_DAYS).contains(&days) {
            return Err(ServiceError::invalid("days", format!("must be from 1 to {MAX_DAYS}")));
        }
        let now = self.core.platform.now();
        let authorities = self.core.authorities();
        let authority = authorities.active(AuthorityRole::Client)?;
        let issued = issue_client_certificate(&authority.key, name, days, now, &*self.core.platform)
            .map_err(|error| ServiceError::invalid("name", error.to_string()))?;
        let authority_pem = authority.key.certificate_pem().to_owned();
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
        let (certificate_pem, private_key_pem) = (issued.certificate_pem.clone(), issued.private_key_pem.clone());
        let pkcs12 = if options.without_pkcs12 {
            None
        } else {
            let given = options.password.filter(|password| !password.is_empty()).map(Secret::new);
            let is_given = given.is_some();
            let password = given.unwrap_or_else(|| Secret::new_install_token(&*self.core.platform));
            let ca_pem = authority_pem.clone();
            // Slow: the key of the file is derived from the password with many rounds.
            let packing = move || pack(&issued, &ca_pem, password, is_given);
            Some(self.people.passwords.turn(by.from).await?.spend(packing).await?)
        };
        Ok(IssuedCertificate { record, certificate_pem, private_key_pem, authority_pem, pkcs12 })
    }

    async fn certificate_name(&self, fingerprint: &Digest) -> Result<String> {
        let name = || self.core.certificates.load().get(fingerprint).map(|known| known.name.clone());
        if name().is_none() {
            // Another node may have issued it a moment ago.
            self.core.catch_up().await?;
        }
        name().ok_or(ServiceError::NotFound("Certificate"))
    }

    pub async fn certificates(&self) -> Result<Vec<AdminCertificate>> {
        Ok(self.core.records.certificate_list().await?)
    }

    /// Revokes a certificate. It is no longer admitted, on open connections either.
    pub async fn revoke_certificate(&self, fingerprint: &Digest, by: &Initiator) -> Result<AdminCertificate> {
        let now = self.core.platform.now();
        let name = self.certificate_name(fingerprint).await?;
        let note = by.note(now, "certificate.revoke").on(name).with("fingerprint", fingerprint);
        let revoking = self.core.records.certificate_revoke(fingerprint, now, &note);
        let revoked = self.core.commit(&note, revoking, |revoked| revoked.as_ref().map(Into::into)).await?;
        revoked.ok_or_else(|| ServiceError::Conflict("the certificate is revoked already".into()))
    }

    /// The certificate with this fingerprint, if it is to be admitted: we issued it, it is neither revoked nor expired,
    /// and its authority is still trusted.
    pub fn admitted_certificate(&self, fingerprint: &Digest) -> Option<AdminCertificate> {
        let certificates = self.core.certificates.load();
        certificates.get(fingerprint).filter(|certificate| self.is_in_force(certificate)).cloned()
    }

    pub(in crate::service) fn is_in_force(&self, certificate: &AdminCertificate) -> bool {
        self.state_of(certificate).is_in_force() && self.core.authorities().stands_for(certificate)
    }

    pub fn state_of(&self, certificate: &AdminCertificate) -> CertificateState {
        let now = self.core.platform.now();
        if certificate.revoked_at.is_some() {
            CertificateState::Revoked
        } else if certificate.expires_at <= now {
            CertificateState::Expired
        } else if certificate.expires_at - now <= EXPIRY_WARNING {
            CertificateState::Expiring
        } else {
            CertificateState::Valid
        }
    }

    /// Logs the certificates that expire soon.
    pub fn warn_of_expiring_certificates(&self) {
        for certificate in self.core.certificates.load().values() {
            if self.state_of(certificate) == CertificateState::Expiring {
                log::warn!(event = "certificate_expiring", name = certificate.name.as_str(), fingerprint:% = certificate.fingerprint, expires_at:% = certificate.expires_at; "an admin's certificate ends soon: renew it in the dashboard or with `codex-authd certificates renew`");
            }
        }
    }
}

/// `is_given`: a person chose the password, so it may be weak.
fn pack(issued: &ClientCertificate, ca_pem: &str, password: Secret, is_given: bool) -> Result<Pkcs12> {
    let refused = |reason: String| ServiceError::invalid("password", reason);
    if is_given {
        judge_file_password(password.expose(), &issued.name).map_err(refused)?;
    }
    let file = to_pkcs12(issued, ca_pem, password.expose()).map_err(|error| match error {
        error @ PkiError::Pkcs12(_) if is_given => refused(error.to_string()),
        error => error.into(),
    })?;
    Ok(Pkcs12 { file, password })
}
