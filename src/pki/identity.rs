//! The daemon's identity in a handshake: a certificate chain and its key, its own or the operator's.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use zeroize::{Zeroize as _, Zeroizing};

use super::leaf::read_pem;
use super::server::{ServerCertificate, ServerKey, spki_pin_of_der};
use super::shown::Shown;
use super::{PkiError, Result, ServerName};

/// A chain and the key of its first certificate. That they match is checked when it is made.
#[derive(Clone)]
pub struct ServerIdentity {
    key: Arc<CertifiedKey>,
    spki_pin: String,
    /// The contents of its first certificate.
    leaf: Arc<Shown>,
}

impl ServerIdentity {
    /// From a certificate of our own authority.
    pub fn issued(certificate: &ServerCertificate, key: &ServerKey) -> Result<Self> {
        Self::issued_across(certificate, None, key)
    }

    /// From a certificate of our own authority, with the cross certificate (PEM) that the previous authority gave it.
    pub fn issued_across(certificate: &ServerCertificate, cross_pem: Option<&str>, key: &ServerKey) -> Result<Self> {
        let pkcs8 = key.pkcs8();
        // Borrowed, so that the only copy of the key is the one that is wiped.
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
        let cross = cross_pem.map(|pem| read_pem("cross certificate", pem)).transpose()?;
        Self::new([certificate.certificate.clone()].into_iter().chain(cross).collect(), &der)
    }

    /// From the operator's own files (`[tls] certificate` and `private_key`), as PEM: the leaf first, then its chain.
    /// The key is PKCS#8, PKCS#1 or SEC1, without a passphrase.
    pub fn load(certificate: &Path, private_key: &Path) -> Result<Self> {
        let bad_certificate =
            |reason: String| PkiError::File { setting: "certificate", path: certificate.into(), reason };
        let bad_key = |reason: String| PkiError::File { setting: "private_key", path: private_key.into(), reason };

        let text = std::fs::read(certificate).map_err(|error| bad_certificate(format!("cannot be read: {error}")))?;
        let chain = CertificateDer::pem_slice_iter(&text)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| bad_certificate(format!("is not PEM: {error}")))?;
        if chain.is_empty() {
            return Err(bad_certificate("holds no certificate (a PEM block \"BEGIN CERTIFICATE\")".into()));
        }

        let text = std::fs::read(private_key).map_err(|error| bad_key(format!("cannot be read: {error}")))?;
        let text = Zeroizing::new(text);
        if contains(&text, b"ENCRYPTED") {
            return Err(bad_key(
                "is encrypted with a passphrase, which nobody can give to a daemon; \
                 write it unencrypted with `openssl pkey -in … -out …`, mode 0600"
                    .into(),
            ));
        }
        let mut key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => bad_key("holds no private key in PEM".into()),
            error => bad_key(format!("is not PEM: {error}")),
        })?;
        let position = belongs_to(&key, &chain);
        let made = match position {
            Ok(Some(0)) => Self::new(chain, &key).map_err(|error| bad_certificate(error.to_string())),
            Ok(Some(n)) => Err(bad_certificate(format!(
                "begins with a certificate of another key; that of {} is number {}: put it first, its issuers after it",
                private_key.display(),
                n + 1
            ))),
            Ok(None) => Err(bad_key(format!("is not the key of the certificate in {}", certificate.display()))),
            Err(error) => Err(bad_key(format!("cannot be used: {error}"))),
        };
        key.zeroize();
        made
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<Self> {
        let leaf = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let spki_pin = spki_pin_of_der(leaf)?;
        let leaf = Arc::new(Shown::read(leaf)?);
        let key = CertifiedKey::new(chain, any_supported_type(key)?);
        key.keys_match()?;
        Ok(Self { key: Arc::new(key), spki_pin, leaf })
    }

    /// For `curl --pinnedpubkey sha256//…`.
    pub fn spki_pin(&self) -> &str {
        &self.spki_pin
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.leaf.not_after
    }

    /// Whether the certificate is valid for this name.
    pub fn covers(&self, name: &ServerName) -> bool {
        self.leaf.covers(name)
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity")
            .field("spki_pin", &self.spki_pin)
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

/// The position of the key's certificate in the chain.
fn belongs_to(
    key: &PrivateKeyDer<'_>,
    chain: &[CertificateDer<'static>],
) -> std::result::Result<Option<usize>, rustls::Error> {
    let key = any_supported_type(key)?;
    let matches =
        |der: &CertificateDer<'static>| CertifiedKey::new(vec![der.clone()], key.clone()).keys_match().is_ok();
    Ok(chain.iter().position(matches))
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::model::authority::AuthorityRole;
    use crate::pki::authority::{self, AuthorityKey};
    use crate::pki::key::EcKey;
    use crate::pki::names::ServerName;
    use crate::pki::server::{self, issue_server_certificate, spki_pin};
    use crate::platform::{Clock as _, System};

    struct Files {
        directory: tempfile::TempDir,
        ca_pem: String,
        certificate_pem: String,
        key: ServerKey,
    }

    impl Files {
        fn new() -> Self {
            let made = authority::create(AuthorityRole::Server, System.now(), &System).unwrap();
            let ca = AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap();
            let key = server::create().unwrap();
            let names = [ServerName::Dns("localhost".into())];
            let issued = issue_server_certificate(&ca, &key, &names, System.now(), &System).unwrap();
            let directory = tempfile::tempdir().unwrap();
            Self { directory, ca_pem: made.certificate_pem, certificate_pem: issued.certificate_pem, key }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        fn key_pem(&self) -> String {
            EcKey::from_pkcs8("it", &self.key.pkcs8()).unwrap().pkcs8_pem().expose().into()
        }
    }

    /// Runs openssl; `false`, with the reason printed, if there is none.
    fn openssl(arguments: &[&str]) -> bool {
        match Command::new("openssl").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) => {
                assert!(status.success(), "openssl {arguments:?}");
                true
            }
            Err(error) => {
                crate::skip::skipped(format!("no openssl on PATH ({error})"));
                false
            }
        }
    }

    #[test]
    fn a_certificate_with_its_key_and_chain_is_taken() {
        let files = Files::new();
        let certificate = files.write("crt", &format!("{}{}", files.certificate_pem, files.ca_pem));
        let identity = ServerIdentity::load(&certificate, &files.write("key", &files.key_pem())).unwrap();
        assert_eq!(identity.chain().len(), 2);
        assert_eq!(identity.spki_pin(), spki_pin(&files.key));
    }

    #[test]
    fn every_usual_form_of_a_key_is_read() {
        let files = Files::new();
        let path = |name: &str| files.directory.path().join(name);
        let text = |name: &str| path(name).to_str().unwrap().to_owned();
        let certificate = files.write("crt", &files.certificate_pem);
        files.write("pkcs8", &files.key_pem());
        if !openssl(&["ec", "-in", &text("pkcs8"), "-out", &text("sec1")]) {
            return;
        }
        assert!(std::fs::read_to_string(path("sec1")).unwrap().contains("BEGIN EC PRIVATE KEY"));
        ServerIdentity::load(&certificate, &path("sec1")).unwrap();

        let subject = ["-subj", "/CN=localhost", "-days", "2", "-x509", "-nodes", "-newkey", "rsa:2048"];
        openssl(&[&["req", "-keyout", &text("rsa8"), "-out", &text("rsa.crt")][..], &subject[..]].concat());
        openssl(&["rsa", "-traditional", "-in", &text("rsa8"), "-out", &text("rsa1")]);
        assert!(std::fs::read_to_string(path("rsa1")).unwrap().contains("BEGIN RSA PRIVATE KEY"));
        ServerIdentity::load(&path("rsa.crt"), &path("rsa8")).unwrap();
        ServerIdentity::load(&path("rsa.crt"), &path("rsa1")).unwrap();

        openssl(&["pkcs8", "-topk8", "-passout", "pass:x", "-in", &text("pkcs8"), "-out", &text("locked")]);
        let refused = ServerIdentity::load(&certificate, &path("locked")).unwrap_err().to_string();
        assert!(refused.contains("passphrase") && refused.contains("private_key"), "{refused}");
    }

    #[test]
    fn a_key_of_something_else_is_refused_and_both_files_are_named() {
        let files = Files::new();
        let certificate = files.write("server.crt", &files.certificate_pem);
        let key = files.write("other.key", &Files::new().key_pem());
        let refused = ServerIdentity::load(&certificate, &key).unwrap_err().to_string();
        assert!(refused.contains("is not the key of the certificate"), "{refused}");
        assert!(refused.contains("server.crt") && refused.contains("other.key"), "{refused}");
    }

    #[test]
    fn a_chain_in_the_wrong_order_is_refused_with_what_to_do() {
        let files = Files::new();
        let certificate = files.write("crt", &format!("{}{}", files.ca_pem, files.certificate_pem));
        let refused =
            ServerIdentity::load(&certificate, &files.write("key", &files.key_pem())).unwrap_err().to_string();
        assert!(refused.contains("number 2") && refused.contains("put it first"), "{refused}");
    }

    #[test]
    fn files_that_hold_nothing_are_refused_by_name() {
        let files = Files::new();
        let certificate = files.write("crt", &files.certificate_pem);
        let key = files.write("key", &files.key_pem());
        let empty = files.write("empty", "");
        let missing = files.directory.path().join("missing");
        for (certificate, key, says) in [
            (&missing, &key, "certificate"),
            (&certificate, &missing, "private_key"),
            (&empty, &key, "holds no certificate"),
            (&key, &key, "holds no certificate"),
            (&certificate, &empty, "holds no private key"),
            (&certificate, &certificate, "holds no private key"),
        ] {
            let refused = ServerIdentity::load(certificate, key).unwrap_err().to_string();
            assert!(refused.contains(says), "{says}: {refused}");
        }
    }
}
