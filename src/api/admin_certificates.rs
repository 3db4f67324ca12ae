//! `/admin/certificates`: admins' client certificates.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use poem::web::Data;
use poem_openapi::param::Path;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::guards::{Admin, Viewer};
use super::json::{Answer, JsonBody, ok};
use crate::records::AdminCertificate;
use crate::service::{Service, ServiceError};

pub struct AdminCertificatesApi;

#[OpenApi(tag = "Tag::AdminCertificates", prefix_path = "/admin/certificates")]
impl AdminCertificatesApi {
    /// Issue an admin's client certificate
    ///
    /// The key is made by the daemon, handed out in this answer and kept nowhere.
    #[oai(path = "/", method = "post", operation_id = "issueCertificate")]
    async fn issue(
        &self,
        service: Data<&Arc<Service>>,
        admin: Admin,
        body: JsonBody<CertificateRequest>,
    ) -> Answer<IssuedCertificate> {
        let CertificateRequest { name, days, password } = body.0;
        let issued = service.issue_certificate(&name, days, password.as_deref(), &admin.0).await?;
        ok(IssuedCertificate {
            certificate: CertificateBody::of(&service, issued.record),
            certificate_pem: issued.certificate_pem,
            private_key_pem: issued.private_key_pem.expose().into(),
            ca_pem: issued.authority_pem,
            pkcs12: BASE64_STANDARD.encode(issued.pkcs12),
            pkcs12_password: issued.pkcs12_password.expose().into(),
        })
    }

    /// The certificates that were issued, in the order in which they were
    #[oai(path = "/", method = "get", operation_id = "listCertificates")]
    async fn list(&self, service: Data<&Arc<Service>>, _viewer: Viewer) -> Answer<CertificateList> {
        let certificates = service.certificates().await?;
        let certificates = certificates.into_iter().map(|certificate| CertificateBody::of(&service, certificate));
        ok(CertificateList { certificates: certificates.collect() })
    }

    /// Let a certificate in no more
    ///
    /// In force at once: connections that were opened with it are closed. It cannot be undone.
    #[oai(path = "/:fingerprint/revoke", method = "post", operation_id = "revokeCertificate")]
    async fn revoke(
        &self,
        service: Data<&Arc<Service>>,
        admin: Admin,
        /// SHA-256 of the certificate, 64 hex digits.
        fingerprint: Path<String>,
    ) -> Answer<CertificateAnswer> {
        let fingerprint = fingerprint.0.parse().map_err(|_| ServiceError::NotFound("Certificate"))?;
        let revoked = service.revoke_certificate(&fingerprint, &admin.0).await?;
        ok(CertificateAnswer { certificate: CertificateBody::of(&service, revoked) })
    }

    /// Say whose a certificate is
    ///
    /// Whoever shows it has that user's role from then on, and with `mtls+login` it goes with that user's sessions only.
    /// null: nobody's in particular, an admin's.
    #[oai(path = "/:fingerprint/user", method = "post", operation_id = "tieCertificate")]
    async fn tie(
        &self,
        service: Data<&Arc<Service>>,
        admin: Admin,
        /// SHA-256 of the certificate, 64 hex digits.
        fingerprint: Path<String>,
        body: JsonBody<TieRequest>,
    ) -> Answer<CertificateAnswer> {
        let fingerprint = fingerprint.0.parse().map_err(|_| ServiceError::NotFound("Certificate"))?;
        let tied = service.tie_certificate(&fingerprint, body.0.user.as_deref(), &admin.0).await?;
        ok(CertificateAnswer { certificate: CertificateBody::of(&service, tied) })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct TieRequest {
    /// The user's e-mail address.
    pub user: Option<String>,
}

#[derive(Object, Serialize, Deserialize)]
#[oai(example)]
pub struct CertificateRequest {
    /// Whose it is: 1 to 64 printable characters.
    pub name: String,
    /// How long it holds, 1 to 825; 365 when left out.
    pub days: Option<u32>,
    /// Protects the PKCS#12; made when left out.
    pub password: Option<String>,
}

impl poem_openapi::types::Example for CertificateRequest {
    fn example() -> Self {
        Self { name: "alice".into(), days: None, password: None }
    }
}

/// A fresh certificate with its key.
#[derive(Object, Serialize, Deserialize)]
pub struct IssuedCertificate {
    #[serde(flatten)]
    #[oai(flatten)]
    pub certificate: CertificateBody,
    pub certificate_pem: String,
    /// PKCS#8; shown here only.
    pub private_key_pem: String,
    /// The authority that signed it.
    pub ca_pem: String,
    /// Base64; certificate, key and authority.
    pub pkcs12: String,
    pub pkcs12_password: String,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct CertificateAnswer {
    pub certificate: CertificateBody,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct CertificateList {
    pub certificates: Vec<CertificateBody>,
}

/// A certificate as it was recorded.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct CertificateBody {
    pub name: String,
    /// SHA-256 of the certificate, 64 lower-case hex digits.
    pub fingerprint: String,
    /// Lower-case hex.
    pub serial: String,
    #[serde(with = "time::serde::rfc3339")]
    pub issued_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// The e-mail address of the user it is tied to; null: an admin's, whoever that is.
    pub user: Option<String>,
    /// `valid`, `expiring` (within 30 days: issue another), `expired` or `revoked`.
    pub state: String,
}

impl CertificateBody {
    fn of(service: &Service, certificate: AdminCertificate) -> Self {
        Self {
            user: certificate
                .user
                .map(|user| service.known_user(user).map_or(user.to_string(), |user| user.email.to_string())),
            state: service.state_of(&certificate).as_str().into(),
            revoked_at: certificate.revoked_at,
            name: certificate.name,
            fingerprint: certificate.fingerprint.to_string(),
            serial: certificate.serial,
            issued_at: certificate.issued_at,
            expires_at: certificate.expires_at,
        }
    }
}
