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
pub struct Arguments {
    /// The certificate's name, such as the admin's name
    name: String,
    #[command(flatten)]
    output: Output,
}

/// Options for issuing a certificate and writing its files.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("where").required(true).multiple(true).args(["out", "pem"])))]
pub struct Output {
    /// Write a PKCS#12 file for browsers; its password is printed
    #[arg(long, value_name = "FILE.p12", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Write NAME.crt, NAME.key, ca.crt (the authority that signed it) and server-ca.crt (the authority of the daemon's
    /// certificate) into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pem: Option<PathBuf>,
    /// Validity in days
    #[arg(long, value_name = "DAYS")]
    pub days: Option<u32>,
    /// Read the password of the PKCS#12 file from standard input instead of generating one
    #[arg(long)]
    password_stdin: bool,
}

pub async fn run(arguments: &Arguments, client: &Client, json: bool) -> Result<(), CliError> {
    let output = &arguments.output;
    let stem = stem(&arguments.name)?;
    let request = CertificateRequest {
        name: arguments.name.clone(),
        days: output.days,
        password: output.password()?,
        pkcs12: Some(output.wants_pkcs12()),
    };
    output.refuse_existing(&stem)?;
    output.check()?;
    let issued: IssuedCertificate = client.post("/admin/certificates", &request).await?;
    output.write(&stem, &issued, json)
}

/// The beginning of the file names.
pub fn stem(name: &str) -> Result<String, CliError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    let stem: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    if stem.starts_with('.') {
        return Err(CliError::Refused("NAME must not begin with a dot, because file names begin with it".into()));
    }
    Ok(stem)
}

impl Output {
    pub fn wants_pkcs12(&self) -> bool {
        self.out.is_some()
    }

    pub fn password(&self) -> Result<Option<String>, CliError> {
        self.password_stdin.then(password).transpose()
    }

    /// Checks that the files can be written, before anything is issued: the private key is only in the answer.
    pub fn check(&self) -> Result<(), CliError> {
        if let Some(directory) = &self.pem {
            self.make_directory(directory)?;
        }
        let probes = self.out.iter().cloned().chain(self.pem.iter().map(|directory| directory.join("certificate")));
        for path in probes {
            as_caller(|| {
                create_new(&path)?.1.sync_all().map_err(|cause| CliError::Write { path: path.clone(), cause })
            })?;
            as_caller(|| std::fs::remove_file(temporary(&path)))
                .map_err(|cause| CliError::Write { path: path.clone(), cause })?;
        }
        Ok(())
    }

    /// Refuses to overwrite the private key of another certificate, which may be the only copy.
    fn refuse_existing(&self, stem: &str) -> Result<(), CliError> {
        let key = self.pem.iter().map(|directory| directory.join(format!("{stem}.key")));
        for path in self.out.iter().cloned().chain(key) {
            if as_caller(|| path.try_exists()).unwrap_or(false) {
                return Err(CliError::Refused(format!(
                    "{0} exists and may hold the only key of another certificate: write to another file, remove {0}, or \
                     use `codex-authd certificates renew` to replace that certificate",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    fn make_directory(&self, directory: &Path) -> Result<(), CliError> {
        as_caller(|| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory))
            .map_err(|cause| CliError::Write { path: directory.to_path_buf(), cause })
    }

    /// Writes the files, and prints where they are.
    pub fn write(&self, stem: &str, issued: &IssuedCertificate, json: bool) -> Result<(), CliError> {
        let (written, said) = self.files(stem, issued)?;
        let summary = serde_json::json!({
            "name": issued.certificate.name,
            "fingerprint": issued.certificate.fingerprint,
            "expires_at": issued.certificate.expires_at,
            "user": issued.certificate.user,
            "files": written,
            "pkcs12_password": issued.pkcs12_password,
        });
        let sentence = format!(
            "A certificate for {}, valid until {}:\n  {}",
            issued.certificate.name,
            print::instant(issued.certificate.expires_at),
            said.join("\n  ")
        );
        print::done(json, &summary, &sentence)?;
        Ok(())
    }

    fn files(&self, stem: &str, issued: &IssuedCertificate) -> Result<(Vec<PathBuf>, Vec<String>), CliError> {
        let (mut written, mut said) = (Vec::new(), Vec::new());
        if let Some(path) = &self.out {
            let (Some(pkcs12), Some(password)) = (&issued.pkcs12, &issued.pkcs12_password) else {
                return Err(ClientError::Answer("it contains no PKCS#12".into()).into());
            };
            let bytes = BASE64_STANDARD.decode(pkcs12).map_err(|error| ClientError::Answer(error.to_string()))?;
            as_caller(|| write_private(path, &bytes))?;
            written.push(path.clone());
            said.push(format!("{} (password: {password})", path.display()));
        }
        if let Some(directory) = &self.pem {
            self.make_directory(directory)?;
            for (name, content) in [
                (format!("{stem}.crt"), &issued.certificate_pem),
                (format!("{stem}.key"), &issued.private_key_pem),
                ("ca.crt".into(), &issued.ca_pem),
                ("server-ca.crt".into(), &issued.server_ca_pem),
            ] {
                let path = directory.join(name);
                as_caller(|| write_private(&path, content.as_bytes()))?;
                said.push(path.display().to_string());
                written.push(path);
            }
        }
        Ok((written, said))
    }
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

/// Replaces a file atomically, with mode 0600 from the start.
fn write_private(path: &Path, content: &[u8]) -> Result<(), CliError> {
    let fail = |cause| CliError::Write { path: path.to_path_buf(), cause };
    let (temporary, mut file) = create_new(path)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}

/// Creates the temporary file next to `path`.
fn create_new(path: &Path) -> Result<(PathBuf, std::fs::File), CliError> {
    let temporary = temporary(path);
    let _ = std::fs::remove_file(&temporary);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let file = file.map_err(|cause| CliError::Write { path: path.to_path_buf(), cause })?;
    Ok((temporary, file))
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}
