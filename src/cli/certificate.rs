//! `codex-authd admin-cert NAME`

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use clap::{Args, ValueHint};

use super::CliError;
use super::client::{Client, ClientError};
use super::print;
use crate::api::{CertificateRequest, IssuedCertificate};
use crate::daemon::owner::as_caller;

#[derive(Args)]
#[command(group(clap::ArgGroup::new("where").required(true).multiple(true).args(["out", "pem"])))]
pub struct Arguments {
    /// Whose certificate it is
    name: String,
    /// Write a PKCS#12 for browsers; its password is printed
    #[arg(long, value_name = "FILE.p12", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Write NAME.crt, NAME.key and ca.crt into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pem: Option<PathBuf>,
    /// How long it holds
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
    /// Read the password of the PKCS#12 from standard input instead of making one
    #[arg(long)]
    password_stdin: bool,
}

pub async fn run(arguments: &Arguments, client: &Client, json: bool) -> Result<(), CliError> {
    let stem: String = arguments
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@') { c } else { '_' })
        .collect();
    if stem.starts_with('.') {
        return Err(CliError::Refused("NAME must not begin with a dot: it names the files".into()));
    }
    let request = CertificateRequest {
        name: arguments.name.clone(),
        days: arguments.days,
        password: arguments.password_stdin.then(password).transpose()?,
    };
    let issued: IssuedCertificate = client.post("/admin/certificates", &request).await?;
    let mut written = Vec::new();
    let mut said = Vec::new();
    if let Some(path) = &arguments.out {
        let bytes = BASE64_STANDARD.decode(&issued.pkcs12).map_err(|error| ClientError::Answer(error.to_string()))?;
        as_caller(|| write_private(path, &bytes))?;
        written.push(path.clone());
        said.push(format!("{} (password: {})", path.display(), issued.pkcs12_password));
    }
    if let Some(directory) = &arguments.pem {
        as_caller(|| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory))
            .map_err(|cause| CliError::Write { path: directory.clone(), cause })?;
        for (name, content) in [
            (format!("{stem}.crt"), &issued.certificate_pem),
            (format!("{stem}.key"), &issued.private_key_pem),
            ("ca.crt".into(), &issued.ca_pem),
        ] {
            let path = directory.join(name);
            as_caller(|| write_private(&path, content.as_bytes()))?;
            said.push(path.display().to_string());
            written.push(path);
        }
    }
    let summary = serde_json::json!({
        "name": issued.certificate.name,
        "fingerprint": issued.certificate.fingerprint,
        "expires_at": issued.certificate.expires_at,
        "files": written,
        "pkcs12_password": arguments.out.as_ref().map(|_| &issued.pkcs12_password),
    });
    let sentence = format!(
        "A certificate for {}, valid until {}:\n  {}",
        issued.certificate.name,
        print::instant(issued.certificate.expires_at),
        said.join("\n  ")
    );
    print::done(json, &summary, &sentence);
    Ok(())
}

fn password() -> Result<String, CliError> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|cause| CliError::Read { path: "standard input".into(), cause })?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(CliError::Refused("the password on standard input is empty".into()));
    }
    Ok(password.to_owned())
}

/// 0600 from its first byte, replaced as a whole.
fn write_private(path: &Path, content: &[u8]) -> Result<(), CliError> {
    let fail = |cause| CliError::Write { path: path.to_path_buf(), cause };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let _ = std::fs::remove_file(&temporary);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(fail)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}
