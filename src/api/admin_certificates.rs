//! `/admin/certificates`: admins' client certificates.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Tag;
use super::area::Area;
use super::closed_set::closed_set;
use super::errors::{Answer, ok};
use super::guards::{Admin, Viewer};
use super::json::{JsonBody, written};
use super::pages::{self, Page, default_limit};
use crate::model::authority::AuthorityRole;
use crate::records::AdminCertificate;
use crate::service::core::replays::Repeatable;
use crate::service::trust::certificates::{self, CertificateOptions, Pkcs12};
use crate::service::{Core, People, ServiceError, Trust};

pub struct AdminCertificatesApi;

#[OpenApi(tag = "Tag::AdminCertificates", prefix_path = "/admin/certificates")]
impl AdminCertificatesApi {
    /// Issue an admin's client certificate
    ///
    /// The key is made by the daemon, handed out in this answer and kept nowhere. A password of one's own is judged like a
    /// user's.
    #[oai(path = "/", method = "post", operation_id = "issueCertificate")]
    async fn issue(
        &self,
        core: Area<'_, Core>,
        people: Area<'_, People>,
        trust: Area<'_, Trust>,
        admin: Admin,
        /// A repeated request with the same key is given the first answer, for a day, and is not done again.
        #[oai(name = "Idempotency-Key")]
        key: Header<Option<String>>,
        body: JsonBody<CertificateRequest>,
    ) -> Answer<IssuedCertificate> {
        let asked = written(&body.0)?;
        let request = Repeatable { key: key.0.as_deref(), by: &admin.0, operation: "issueCertificate", body: &asked };
        let (core, people, trust, by) = (core.share(), people.share(), trust.share(), admin.0.clone());
        let context = Arc::clone(&core);
        let issue = async move {
            let CertificateRequest { name, days, password, pkcs12 } = body.0;
            let options = options(days, pkcs12, password.as_deref());
            let issued = trust.issue_certificate(&name, options, &by).await?;
            Ok(IssuedCertificate::of(&context, &people, &trust, issued))
        };
        ok(core.once(request, issue).await?)
    }

    /// Renew a certificate before it ends
    ///
    /// Answers with another certificate of the same name, tied to the same user. The old one holds until its end, unless
    /// `revoke` is true. The certificate that calls is not revoked by this.
    #[oai(path = "/:fingerprint/renew", method = "post", operation_id = "renewCertificate")]
    async fn renew(
        &self,
        core: Area<'_, Core>,
        people: Area<'_, People>,
        trust: Area<'_, Trust>,
        admin: Admin,
        /// SHA-256 of the certificate, 64 hex digits.
        fingerprint: Path<String>,
        body: JsonBody<RenewRequest>,
    ) -> Answer<IssuedCertificate> {
        let fingerprint = fingerprint.0.parse().map_err(|_| ServiceError::NotFound("Certificate"))?;
        let RenewRequest { days, password, pkcs12, revoke } = body.0;
        let options = options(days, pkcs12, password.as_deref());
        let issued = trust.renew_certificate(&fingerprint, options, revoke.unwrap_or(false), &admin.0).await?;
        ok(IssuedCertificate::of(&core, &people, &trust, issued))
    }

    /// The certificates that were issued, in the order in which they were
    ///
    /// Expired and revoked ones too. Their keys are kept nowhere.
    #[oai(path = "/", method = "get", operation_id = "listCertificates")]
    async fn list(
        &self,
        people: Area<'_, People>,
        trust: Area<'_, Trust>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<CertificateList> {
        let certificates = trust.certificates().await?;
        let Page { entries, next } =
            Page::cut(certificates, &cursor, &limit, |certificate| certificate.fingerprint.to_string())?;
        let certificates = entries.into_iter().map(|certificate| CertificateBody::of(&people, &trust, certificate));
        ok(CertificateList { certificates: certificates.collect(), next })
    }

    /// Let a certificate in no more
    ///
    /// In force at once: connections that were opened with it are closed. It cannot be undone.
    #[oai(path = "/:fingerprint/revoke", method = "post", operation_id = "revokeCertificate")]
    async fn revoke(
        &self,
        people: Area<'_, People>,
        trust: Area<'_, Trust>,
        admin: Admin,
        /// SHA-256 of the certificate, 64 hex digits.
        fingerprint: Path<String>,
    ) -> Answer<CertificateAnswer> {
        let fingerprint = fingerprint.0.parse().map_err(|_| ServiceError::NotFound("Certificate"))?;
        let revoked = trust.revoke_certificate(&fingerprint, &admin.0).await?;
        ok(CertificateAnswer { certificate: CertificateBody::of(&people, &trust, revoked) })
    }

    /// Say whose a certificate is
    ///
    /// Whoever shows it has that user's role from then on, and with `mtls+login` it goes with that user's sessions only.
    /// null: nobody's in particular, an admin's.
    #[oai(path = "/:fingerprint/user", method = "post", operation_id = "tieCertificate")]
    async fn tie(
        &self,
        people: Area<'_, People>,
        trust: Area<'_, Trust>,
        admin: Admin,
        /// SHA-256 of the certificate, 64 hex digits.
        fingerprint: Path<String>,
        body: JsonBody<TieRequest>,
    ) -> Answer<CertificateAnswer> {
        let fingerprint = fingerprint.0.parse().map_err(|_| ServiceError::NotFound("Certificate"))?;
        let tied = people.tie_certificate(&fingerprint, body.0.user.as_deref(), &admin.0).await?;
        ok(CertificateAnswer { certificate: CertificateBody::of(&people, &trust, tied) })
    }
}

fn options(days: Option<u32>, pkcs12: Option<bool>, password: Option<&str>) -> CertificateOptions<'_> {
    CertificateOptions { days, without_pkcs12: pkcs12 == Some(false), password }
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
    /// false: no PKCS#12 is made.
    pub pkcs12: Option<bool>,
}

#[derive(Object, Serialize, Deserialize)]
pub struct RenewRequest {
    /// How long the new one holds, 1 to 825; 365 when left out.
    pub days: Option<u32>,
    /// Protects the PKCS#12; made when left out.
    pub password: Option<String>,
    /// false: no PKCS#12 is made.
    pub pkcs12: Option<bool>,
    /// true: the old one is revoked at once.
    pub revoke: Option<bool>,
}

impl poem_openapi::types::Example for CertificateRequest {
    fn example() -> Self {
        Self { name: "alice".into(), days: None, password: None, pkcs12: None }
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
    /// The authorities that sign the daemon's own certificate: what a program trusts that calls the admin listener.
    pub server_ca_pem: String,
    /// Base64; certificate, key and authority. null: it was not asked for.
    pub pkcs12: Option<String>,
    pub pkcs12_password: Option<String>,
}

impl IssuedCertificate {
    fn of(core: &Core, people: &People, trust: &Trust, issued: certificates::IssuedCertificate) -> Self {
        let (file, password) = issued.pkcs12.map(|Pkcs12 { file, password }| (file, password)).unzip();
        Self {
            certificate: CertificateBody::of(people, trust, issued.record),
            certificate_pem: issued.certificate_pem,
            private_key_pem: issued.private_key_pem.expose().into(),
            ca_pem: issued.authority_pem,
            server_ca_pem: core.authorities().bundle(AuthorityRole::Server),
            pkcs12: file.map(|file| BASE64_STANDARD.encode(file)),
            pkcs12_password: password.map(|password| password.expose().into()),
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct CertificateAnswer {
    pub certificate: CertificateBody,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct CertificateList {
    pub certificates: Vec<CertificateBody>,
    pub next: Option<String>,
}

pages::listed!(CertificateList: certificates);

closed_set! {
    /// `expiring`: it ends within 30 days; renew it.
    pub enum CertificateState {
        Valid = "valid",
        Expiring = "expiring",
        Expired = "expired",
        Revoked = "revoked",
    } of certificates::CertificateState
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
    pub state: CertificateState,
}

impl CertificateBody {
    fn of(people: &People, trust: &Trust, certificate: AdminCertificate) -> Self {
        Self {
            user: certificate
                .user
                .map(|user| people.known_user(user).map_or(user.to_string(), |user| user.email.to_string())),
            state: trust.state_of(&certificate).into(),
            revoked_at: certificate.revoked_at,
            name: certificate.name,
            fingerprint: certificate.fingerprint.to_string(),
            serial: certificate.serial,
            issued_at: certificate.issued_at,
            expires_at: certificate.expires_at,
        }
    }
}
