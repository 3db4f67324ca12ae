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
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    let list: CertificateList = client.get("/admin/certificates").await?;
    match command {
        Command::List => {
            let head = ["NAME", "STATE", "EXPIRES", "FINGERPRINT"].map(String::from).into();
            let rows: Vec<Vec<String>> = std::iter::once(head)
                .chain(list.certificates.iter().map(|certificate| {
                    vec![
                        certificate.name.clone(),
                        certificate.state.clone(),
                        print::instant(certificate.expires_at),
                        certificate.fingerprint.clone(),
                    ]
                }))
                .collect();
            print::done(json, &list, &print::table(&rows));
        }
        Command::Revoke { fingerprint } => {
            let wanted = fingerprint.trim().to_ascii_lowercase();
            let mut found = list.certificates.iter().filter(|certificate| certificate.fingerprint.starts_with(&wanted));
            let (Some(certificate), None) = (found.next(), found.next()) else {
                let message = format!("no single certificate has a fingerprint that begins with {fingerprint}");
                return Err(CliError::Refused(format!("{message}; `codex-authd certificates list` shows them")));
            };
            let path = format!("/admin/certificates/{}/revoke", certificate.fingerprint);
            let revoked: CertificateAnswer = client.post(&path, &json!({})).await?;
            let sentence = format!("The certificate of {} is revoked.", revoked.certificate.name);
            print::done(json, &revoked, &sentence);
        }
    }
    Ok(())
}
