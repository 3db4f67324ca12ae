//! `/certificates`: admins' client certificates, and their renewal before they end.
//!
//! The new private key is shown to nobody: it stands in a PKCS#12 that is downloaded once, under a password that is shown
//! once. Both wait in memory (`shelf.rs`); after a crash the certificate is renewed again.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::http::header::CONTENT_DISPOSITION;
use poem::web::{Data, Path, Query, Redirect};
use poem::{IntoResponse, Response, handler};

use super::Dashboard;
use super::form::Form;
use super::shell::{Shell, Told, show};
use super::words::When;
use crate::api::errors::Failure;
use crate::api::guards::Asking;
use crate::model::digest::Digest;
use crate::model::secret::Secret;
use crate::records::AdminCertificate;
use crate::service::ServiceError;
use crate::service::trust::certificates::{CertificateOptions, CertificateState, IssuedCertificate, Pkcs12};

const TITLE: &str = "Certificates";

/// What the page after a renewal shows.
pub struct Renewed {
    name: String,
    expires: When,
    password: Secret,
    /// Of the file, to be asked for.
    file: String,
    /// The old one is revoked.
    revoked: bool,
}

/// A PKCS#12 that waits to be downloaded.
pub struct Download {
    name: String,
    bytes: Vec<u8>,
}

#[derive(Template)]
#[template(path = "certificates.html")]
struct CertificatesPage {
    shell: Shell,
    certificates: Vec<Row>,
}

struct Row {
    name: String,
    fingerprint: String,
    state: &'static str,
    class: &'static str,
    expires: When,
    user: Option<String>,
    can_renew: bool,
    /// The certificate of this very connection.
    is_this: bool,
}

impl Row {
    fn of(dashboard: &Dashboard, asking: &Asking, certificate: AdminCertificate) -> Self {
        let state = dashboard.areas.trust.state_of(&certificate);
        let email =
            |user| dashboard.areas.people.known_user(user).map_or(user.to_string(), |user| user.email.to_string());
        Self {
            state: state.as_str(),
            class: match state {
                CertificateState::Valid => "good",
                CertificateState::Expiring => "waiting",
                CertificateState::Expired | CertificateState::Revoked => "closed",
            },
            expires: When::new(certificate.expires_at, dashboard.now()),
            user: certificate.user.map(email),
            can_renew: state != CertificateState::Revoked,
            is_this: asking.certificate == Some(certificate.fingerprint),
            fingerprint: certificate.fingerprint.to_string(),
            name: certificate.name,
        }
    }
}

#[handler]
pub async fn page(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Query(Told { told }): Query<Told>,
) -> Result<Response, Failure> {
    let mut certificates = dashboard.areas.trust.certificates().await?;
    // What ends next comes first; what is over comes last.
    certificates.sort_by_key(|it| (!dashboard.areas.trust.state_of(it).is_in_force(), it.expires_at));
    let certificates = certificates.into_iter().map(|it| Row::of(&dashboard, &asking, it)).collect();
    show(StatusCode::OK, &CertificatesPage { shell: Shell::new(&dashboard, &asking, TITLE, &told), certificates })
}

#[handler]
pub async fn renew(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    form: Data<&Arc<Form>>,
) -> Result<Response, Failure> {
    let old: Digest = form.text("fingerprint").parse().map_err(|_| ServiceError::NotFound("Certificate"))?;
    let revoke = form.is("revoke", "yes");
    let options = CertificateOptions::default();
    let IssuedCertificate { record, pkcs12, .. } =
        dashboard.areas.trust.renew_certificate(&old, options, revoke, &asking.by).await?;
    let Pkcs12 { file, password } = pkcs12.ok_or_else(|| ServiceError::internal("a certificate without its file"))?;
    let download = Download { name: record.name.clone(), bytes: file };
    let file = dashboard.downloads.put(&asking, download, &*dashboard.outside);
    let expires = When::new(record.expires_at, dashboard.now());
    let renewed = Renewed { name: record.name, expires, password, file, revoked: revoke };
    let shown = dashboard.renewed.put(&asking, renewed, &*dashboard.outside);
    Ok(Redirect::see_other(format!("/certificates/renewed/{shown}")).into_response())
}

#[derive(Template)]
#[template(path = "certificate.html")]
struct RenewedPage {
    shell: Shell,
    /// `None`: it was shown already.
    renewed: Option<Renewed>,
}

#[handler]
pub async fn show_renewed(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let renewed = dashboard.renewed.take(&asking, &id, dashboard.now());
    let status = if renewed.is_some() { StatusCode::OK } else { StatusCode::GONE };
    show(status, &RenewedPage { shell: Shell::new(&dashboard, &asking, TITLE, ""), renewed })
}

#[handler]
pub async fn send_file(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    match dashboard.downloads.take(&asking, &id, dashboard.now()) {
        Some(Download { name, bytes }) => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
            let stem: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
            Ok(Response::builder()
                .content_type("application/x-pkcs12")
                .header(CONTENT_DISPOSITION, format!("attachment; filename=\"{stem}.p12\""))
                .body(bytes))
        }
        None => {
            let shell = Shell::new(&dashboard, &asking, TITLE, "");
            show(StatusCode::GONE, &RenewedPage { shell, renewed: None })
        }
    }
}
