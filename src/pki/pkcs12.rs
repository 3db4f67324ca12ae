//! A client certificate with its key and chain as one password-protected file, for browsers and keychains.

use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, PrivateKey, PrivateKeyChain,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroize as _;

use super::client::ClientCertificate;
use super::leaf::read_pem;
use super::{PkiError, Result};

/// Rounds of the derivation of the key and of the MAC's key: OWASP's Password Storage Cheat Sheet asks for this many
/// with PBKDF2 and SHA-256. An attacker with the file can guess without a throttle. Readers accept a million at most.
const PBKDF2_ITERATIONS: u32 = 600_000;

/// Takes about a second of processor time: do not call it on an async worker.
///
/// PBES2 with AES-256 and a SHA-256 MAC, as OpenSSL 3, current browsers and macOS keychains write and read it.
///
/// The library draws the salts itself.
pub fn to_pkcs12(certificate: &ClientCertificate, ca_pem: &str, password: &str) -> Result<Vec<u8>> {
    let failed = |error: p12_keystore::error::Error| PkiError::Pkcs12(error.to_string());
    // The format stores strings in 16-bit characters. Refused here, because the library would only say "encoding
    // error".
    if !password.chars().all(is_bmp) {
        return Err(PkiError::Pkcs12("the password has characters outside Unicode's basic plane".into()));
    }
    let ca = read_pem("authority's certificate", ca_pem)?;
    let mut key = PrivatePkcs8KeyDer::from_pem_slice(certificate.private_key_pem.expose().as_bytes())
        .map_err(|error| PkiError::BadKey { what: "client's key", reason: error.to_string() })?;
    let private_key = PrivateKey::from_der(key.secret_pkcs8_der()).map_err(failed);
    key.zeroize();
    let chain =
        [Certificate::from_der(&certificate.certificate).map_err(failed)?, Certificate::from_der(&ca).map_err(failed)?];
    let local_key_id = &certificate.fingerprint.as_bytes()[..20];
    let friendly_name: String = certificate.name.chars().map(|c| if is_bmp(c) { c } else { '\u{fffd}' }).collect();
    let mut store = KeyStore::new();
    store.add_entry(
        &friendly_name,
        KeyStoreEntry::PrivateKeyChain(PrivateKeyChain::new(local_key_id, private_key?, chain)),
    );
    store
        .writer(password)
        .encryption_algorithm(EncryptionAlgorithm::PbeWithHmacSha256AndAes256)
        .encryption_iterations(PBKDF2_ITERATIONS)
        .mac_algorithm(MacAlgorithm::HmacSha256)
        .mac_iterations(PBKDF2_ITERATIONS)
        .write()
        .map_err(failed)
}

fn is_bmp(c: char) -> bool {
    u32::from(c) <= 0xffff
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output, Stdio};

    use super::*;
    use crate::model::authority::AuthorityRole;
    use crate::pki::authority::{self, AuthorityKey};
    use crate::pki::client::issue_client_certificate;
    use crate::platform::{Clock as _, System};

    fn issued(name: &str) -> (AuthorityKey, ClientCertificate) {
        let made = authority::create(AuthorityRole::Client, System.now(), &System).unwrap();
        let ca = AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap();
        let certificate = issue_client_certificate(&ca, name, 365, System.now(), &System).unwrap();
        (ca, certificate)
    }

    /// Runs `openssl pkcs12` on the file; `None`, with the reason printed, if there is no OpenSSL 3.
    fn openssl(file: &[u8], arguments: &[&str]) -> Option<Output> {
        let version = Command::new("openssl").arg("version").stderr(Stdio::null()).output();
        match version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()) {
            Ok(version) if version.starts_with("OpenSSL 3") => {}
            other => {
                crate::skip::skipped(format!("no OpenSSL 3 on PATH ({other:?})"));
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.p12");
        std::fs::write(&path, file).unwrap();
        Some(Command::new("openssl").args(["pkcs12", "-in"]).arg(&path).args(arguments).output().unwrap())
    }

    #[test]
    fn openssl_opens_it_and_finds_the_key_the_chain_and_no_old_cipher() {
        let (ca, certificate) = issued("alice");
        let file = to_pkcs12(&certificate, ca.certificate_pem(), "pa55 wörd").unwrap();
        let Some(output) = openssl(&file, &["-info", "-nodes", "-passin", "pass:pa55 wörd"]) else { return };
        let (text, info) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{info}");
        assert!(info.contains("MAC: sha256, Iteration 600000"), "{info}");
        assert_eq!(info.matches("Iteration 600000, PRF hmacWithSHA256").count(), 2, "{info}");
        assert_eq!(info.matches("PBES2").count(), 2, "{info}");
        assert_eq!(info.matches("AES-256-CBC").count(), 2, "{info}");
        assert!(text.contains("friendlyName: alice"), "{text}");
        let joined = text.replace('\n', "");
        for pem in [&certificate.certificate_pem, ca.certificate_pem(), certificate.private_key_pem.expose()] {
            assert!(joined.contains(&pem.replace('\n', "")), "missing: {}", pem.lines().next().unwrap());
        }
    }

    /// The store of certificates that Chromium uses on Linux, and Firefox everywhere.
    #[test]
    fn nss_imports_it_with_its_key() {
        let (ca, certificate) = issued("alice");
        let file = to_pkcs12(&certificate, ca.certificate_pem(), "pa55 word").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (path, database) = (directory.path().join("client.p12"), format!("sql:{}", directory.path().display()));
        std::fs::write(&path, file).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(["-d", &database]).args(arguments).output();
            output.unwrap_or_else(|error| panic!("{program}: {error}; install libnss3-tools"))
        };
        assert!(run("certutil", &["-N", "--empty-password"]).status.success());
        let path = path.to_str().unwrap();
        let wrong = run("pk12util", &["-i", path, "-W", "wrong", "-K", ""]);
        assert!(!wrong.status.success(), "{wrong:?}");
        let imported = run("pk12util", &["-i", path, "-W", "pa55 word", "-K", ""]);
        assert!(imported.status.success(), "{imported:?}");
        let keys = run("certutil", &["-K"]);
        assert!(String::from_utf8_lossy(&keys.stdout).contains("alice"), "{keys:?}");
    }

    #[test]
    fn a_wrong_password_opens_nothing() {
        let (ca, certificate) = issued("alice");
        let file = to_pkcs12(&certificate, ca.certificate_pem(), "right").unwrap();
        let Some(output) = openssl(&file, &["-nodes", "-passin", "pass:wrong"]) else { return };
        assert!(!output.status.success());
        assert!(output.stdout.is_empty());
    }

    #[test]
    fn a_name_outside_the_basic_plane_still_makes_a_file() {
        let (ca, certificate) = issued("admin 🦀");
        let file = to_pkcs12(&certificate, ca.certificate_pem(), "x").unwrap();
        if let Some(output) = openssl(&file, &["-nodes", "-passin", "pass:x"]) {
            assert!(output.status.success(), "{output:?}");
        }
    }

    #[test]
    fn a_password_outside_the_basic_plane_is_refused_with_the_reason() {
        let (ca, certificate) = issued("alice");
        let refused = to_pkcs12(&certificate, ca.certificate_pem(), "🦀").unwrap_err();
        assert!(refused.to_string().contains("basic plane"), "{refused}");
    }
}
