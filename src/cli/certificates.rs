//! `codex-authd certificates list | revoke`

use clap::Subcommand;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::print;
use crate::api::{CertificateAnswer, CertificateList};

#[derive(Subcommand)]
pub enum Command {
    /// Every certificate that was issued, in the order in which they were
    List,
    /// Let a certificate in no more; connections that were opened with it are closed
    Revoke {
        /// As in the list; its beginning is enough where it is unique
        fingerprint: String,
    },
    /// Say whose a certificate is: whoever shows it has that user's role
    Tie {
        /// As in the list; its beginning is enough where it is unique
        fingerprint: String,
        /// The user's e-mail address; left out: nobody's in particular, an admin's
        user: Option<String>,
    },
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    let list: CertificateList = client.get("/admin/certificates").await?;
    match command {
        Command::List => {
            let head = ["NAME", "STATE", "EXPIRES", "USER", "FINGERPRINT"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(list.certificates.iter().map(|certificate| {
                    vec![
                        certificate.name.clone(),
                        certificate.state.clone(),
                        print::instant(certificate.expires_at),
                        print::or_dash(certificate.user.as_ref()),
                        certificate.fingerprint.clone(),
                    ]
                }))
                .collect();
            print::done(json, &list, &print::table(&rows));
        }
        Command::Revoke { fingerprint } => {
            let path = format!("/admin/certificates/{}/revoke", find(&list, fingerprint)?);
            let revoked: CertificateAnswer = client.post(&path, &json!({})).await?;
            let sentence = format!("The certificate of {} is revoked.", revoked.certificate.name);
            print::done(json, &revoked, &sentence);
        }
        Command::Tie { fingerprint, user } => {
            let path = format!("/admin/certificates/{}/user", find(&list, fingerprint)?);
            let tied: CertificateAnswer = client.post(&path, &json!({ "user": user })).await?;
            let whose = tied.certificate.user.as_deref().unwrap_or("nobody's in particular: an admin's");
            print::done(json, &tied, &format!("The certificate of {} is {whose}.", tied.certificate.name));
        }
    }
    Ok(())
}

/// The whole fingerprint of the one that begins so.
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
