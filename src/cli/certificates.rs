//! `codex-authd certificates list | renew | revoke | tie`

use clap::Subcommand;
use serde_json::json;

use super::certificate::{self, Output};
use super::client::Client;
use super::{CliError, print};
use crate::api::{CertificateAnswer, CertificateBody, CertificateList, IssuedCertificate, RenewRequest};

#[derive(Subcommand)]
pub enum Command {
    /// List all issued certificates in the order of issue
    List,
    /// Issue a new certificate for the same name and user, before the old one expires
    Renew {
        /// The name (if several certificates are valid, the one that expires last), or the fingerprint from the list or
        /// its beginning
        #[arg(value_name = "NAME|FINGERPRINT")]
        which: String,
        #[command(flatten)]
        output: Output,
        /// Revoke the old certificate at once; otherwise it stays valid until it expires
        #[arg(long)]
        revoke: bool,
    },
    /// Revoke a certificate, and close connections that use it
    Revoke {
        /// The fingerprint from the list, or its beginning if that is unique
        fingerprint: String,
    },
    /// Tie a certificate to a user: its holder gets that user's role
    Tie {
        /// The fingerprint from the list, or its beginning if that is unique
        fingerprint: String,
        /// The user's e-mail address; without it, the certificate is tied to no user and has the role admin
        user: Option<String>,
    },
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    let list: CertificateList = client.all("/admin/certificates").await?;
    match command {
        Command::List => {
            let head = ["NAME", "STATE", "EXPIRES", "USER", "FINGERPRINT"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(list.certificates.iter().map(|certificate| {
                    vec![
                        certificate.name.clone(),
                        certificate.state.to_string(),
                        print::instant(certificate.expires_at),
                        print::or_dash(certificate.user.as_ref()),
                        certificate.fingerprint.clone(),
                    ]
                }))
                .collect();
            print::done(json, &list, &print::table(&rows))?;
        }
        Command::Renew { which, output, revoke } => {
            let old = to_renew(&list, which)?;
            let stem = certificate::stem(&old.name)?;
            let request = RenewRequest {
                days: output.days,
                password: output.password()?,
                pkcs12: Some(output.wants_pkcs12()),
                revoke: Some(*revoke),
            };
            output.check()?;
            let path = format!("/admin/certificates/{}/renew", old.fingerprint);
            let issued: IssuedCertificate = client.post(&path, &request).await?;
            output.write(&stem, &issued, json)?;
        }
        Command::Revoke { fingerprint } => {
            let path = format!("/admin/certificates/{}/revoke", find(&list, fingerprint)?);
            let revoked: CertificateAnswer = client.post(&path, &json!({})).await?;
            let sentence = format!("The certificate of {} is revoked.", revoked.certificate.name);
            print::done(json, &revoked, &sentence)?;
        }
        Command::Tie { fingerprint, user } => {
            let path = format!("/admin/certificates/{}/user", find(&list, fingerprint)?);
            let tied: CertificateAnswer = client.post(&path, &json!({ "user": user })).await?;
            let whose = tied.certificate.user.as_deref().unwrap_or("nobody's in particular: an admin's");
            print::done(json, &tied, &format!("The certificate of {} is {whose}.", tied.certificate.name))?;
        }
    }
    Ok(())
}

/// Finds by name the valid certificate that expires last, if all with this name have the same user. Otherwise finds by
/// the beginning of the fingerprint.
fn to_renew<'a>(list: &'a CertificateList, which: &str) -> Result<&'a CertificateBody, CliError> {
    let in_force = |it: &&CertificateBody| it.name == which && matches!(it.state.as_str(), "valid" | "expiring");
    let named: Vec<&CertificateBody> = list.certificates.iter().filter(in_force).collect();
    if let Some(last) = named.iter().copied().max_by_key(|it| it.expires_at) {
        if named.iter().any(|it| it.user != last.user) {
            return Err(CliError::Refused(format!(
                "certificates named {which} are tied to different users; name one by its fingerprint: `codex-authd \
                 certificates list` shows them"
            )));
        }
        return Ok(last);
    }
    let fingerprint = find(list, which)?;
    let found = list.certificates.iter().find(|it| it.fingerprint == fingerprint);
    found.ok_or_else(|| CliError::Refused(format!("there is no certificate {which}")))
}

/// Returns the complete fingerprint of the only certificate that begins like this.
fn find<'a>(list: &'a CertificateList, beginning: &str) -> Result<&'a str, CliError> {
    let wanted = beginning.trim().to_ascii_lowercase();
    let mut found = list.certificates.iter().filter(|certificate| certificate.fingerprint.starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(certificate), None) => Ok(&certificate.fingerprint),
        _ => Err(CliError::Refused(format!(
            "no single certificate has a fingerprint that begins with {beginning}; `codex-authd certificates list` \
             shows them"
        ))),
    }
}
