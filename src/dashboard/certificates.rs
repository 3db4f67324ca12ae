//! `/certificates`: lists and renews the client certificates of admins.
//!
//! The new private key is only in a PKCS#12 file. The file is downloaded once, and its password is shown once. Both
//! wait in memory (`flash_store.rs`). A crash loses them; then the admin renews the certificate again.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::http::header::CONTENT_DISPOSITION;
use poem::web::{Data, Path, Redirect};
use poem::{IntoResponse, Response, handler};

use super::context::{PageContext, PageError};
use super::form::Form;
use super::format::When;
use super::layout::{Layout, show};
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
    /// The id under which the file is downloaded.
    file: String,
    /// The old one is revoked.
    revoked: bool,
}

/// A PKCS#12 file that waits for its download.
pub struct Download {
    name: String,
    bytes: Vec<u8>,
}

#[derive(Template)]
#[template(path = "certificates.html")]
struct CertificatesPage {
    layout: Layout,
    certificates: Vec<CertificateRow>,
}

struct CertificateRow {
    name: String,
    fingerprint: String,
    state: &'static str,
    class: &'static str,
    expires: When,
    user: Option<String>,
    can_renew: bool,
    /// The certificate of this connection.
    is_this: bool,
}

impl CertificateRow {
    fn of(context: &PageContext, certificate: AdminCertificate) -> Self {
        let state = context.areas().trust.state_of(&certificate);
        let email =
            |user| context.areas().people.known_user(user).map_or(user.to_string(), |user| user.email.to_string());
        Self {
            state: state.as_str(),
            class: match state {
                CertificateState::Valid => "good",
                CertificateState::Expiring => "waiting",
                CertificateState::Expired | CertificateState::Revoked => "closed",
            },
            expires: When::new(certificate.expires_at, context.now()),
            user: certificate.user.map(email),
            can_renew: state != CertificateState::Revoked,
            is_this: context.principal.certificate == Some(certificate.fingerprint),
            fingerprint: certificate.fingerprint.to_string(),
            name: certificate.name,
        }
    }
}

#[handler]
pub async fn page(context: PageContext) -> Result<Response, PageError> {
    let mut certificates = context.areas().trust.certificates().await?;
    // Sort by expiry; expired and revoked ones last.
    certificates.sort_by_key(|it| (!context.areas().trust.state_of(it).is_in_force(), it.expires_at));
    let certificates = certificates.into_iter().map(|it| CertificateRow::of(&context, it)).collect();
    show(StatusCode::OK, &CertificatesPage { layout: Layout::new(&context, TITLE), certificates })
}

#[handler]
pub async fn renew(context: PageContext, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let old: Digest = form.text("fingerprint").parse().map_err(|_| ServiceError::NotFound("Certificate"))?;
    let revoke = form.is("revoke", "yes");
    let options = CertificateOptions::default();
    let IssuedCertificate { record, pkcs12, .. } =
        context.areas().trust.renew_certificate(&old, options, revoke, context.by()).await?;
    let Pkcs12 { file, password } =
        pkcs12.ok_or_else(|| ServiceError::internal("a certificate was issued without its file"))?;
    let download = Download { name: record.name.clone(), bytes: file };
    let file = context.keep(|d| &d.downloads, download);
    let expires = When::new(record.expires_at, context.now());
    let renewed = Renewed { name: record.name, expires, password, file, revoked: revoke };
    let shown = context.keep(|d| &d.renewed, renewed);
    Ok(Redirect::see_other(format!("/certificates/renewed/{shown}")).into_response())
}

#[derive(Template)]
#[template(path = "certificate.html")]
struct RenewedPage {
    layout: Layout,
    /// `None`: it was already shown, or it has expired.
    renewed: Option<Renewed>,
}

#[handler]
pub async fn show_renewed(context: PageContext, Path(id): Path<String>) -> Result<Response, PageError> {
    let renewed = context.take(|d| &d.renewed, &id);
    let status = if renewed.is_some() { StatusCode::OK } else { StatusCode::GONE };
    show(status, &RenewedPage { layout: Layout::new(&context, TITLE), renewed })
}

#[handler]
pub async fn send_file(context: PageContext, Path(id): Path<String>) -> Result<Response, PageError> {
    match context.take(|d| &d.downloads, &id) {
        Some(Download { name, bytes }) => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
            let stem: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
            Ok(Response::builder()
                .content_type("application/x-pkcs12")
                .header(CONTENT_DISPOSITION, format!("attachment; filename=\"{stem}.p12\""))
                .body(bytes))
        }
        None => {
            let layout = Layout::new(&context, TITLE);
            show(StatusCode::GONE, &RenewedPage { layout, renewed: None })
        }
    }
}
