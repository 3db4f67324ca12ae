//! The TLS configurations of the listeners, and the holder through which a running listener gets a new one.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use super::identity::ServerIdentity;
use super::{PkiError, Result};

/// Sessions kept for resumption, all hosts together; the oldest make room.
const RESUMABLE_SESSIONS: usize = 4096;

/// For hosts: no client certificate, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
pub fn server_config(identity: &ServerIdentity) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified_key())));
    config.alpn_protocols = alpn();
    config.session_storage = ServerSessionMemoryCache::new(RESUMABLE_SESSIONS);
    // Nearly every connection is one run of curl, which resumes nothing: one ticket is plenty.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// For admins: a certificate of one of our client authorities (every slot that is still accepted) is required in the
/// handshake, and nobody else's authority counts.
///
/// Nothing is resumed. A resumed session is admitted on what was checked when it began, so it would outlive its
/// certificate's end and an authority that was taken off the list.
pub fn admin_config(identity: &ServerIdentity, client_ca_pems: &[&str]) -> Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    for pem in client_ca_pems {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| PkiError::ClientAuthorities(error.to_string()))?;
            roots.add(certificate).map_err(|error| PkiError::ClientAuthorities(error.to_string()))?;
        }
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| PkiError::ClientAuthorities(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified_key())));
    config.alpn_protocols = alpn();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The configuration in force. Every handshake takes the one that is in force when it begins; connections that are open
/// stay as they are.
#[derive(Clone)]
pub struct LiveConfig(Arc<ArcSwap<ServerConfig>>);

impl LiveConfig {
    pub fn new(config: ServerConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }

    pub fn swap(&self, config: ServerConfig) {
        self.0.store(Arc::new(config));
    }

    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.load_full()
    }
}

impl fmt::Debug for LiveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveConfig(..)")
    }
}

/// For libraries that ask for the process's default (reqwest's client). Ours never do. Calling it again does nothing.
pub fn install_default_provider() {
    // `Err` says only that one is installed already.
    let _ = aws_lc_rs::default_provider().install_default();
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::authority::AuthorityRole;
    use crate::outside::{Outside as _, System};
    use crate::pki::authority::{self, AuthorityKey};
    use crate::pki::names::ServerName;
    use crate::pki::server::{self, issue_server_certificate};

    fn identity() -> ServerIdentity {
        let made = authority::create(AuthorityRole::Server, System.now(), &System).unwrap();
        let ca = AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap();
        let key = server::create().unwrap();
        let names = [ServerName::Dns("localhost".into())];
        let issued = issue_server_certificate(&ca, &key, &names, System.now(), &System).unwrap();
        ServerIdentity::issued(&issued, &key).unwrap()
    }

    #[test]
    fn an_admin_listener_without_an_authority_is_not_made() {
        for pems in [&[][..], &[""][..], &["not a certificate"][..]] {
            let refused = admin_config(&identity(), pems);
            assert!(matches!(refused, Err(PkiError::ClientAuthorities(_))), "{pems:?}");
        }
    }

    #[test]
    fn a_swap_is_seen_by_every_holder() {
        let live = LiveConfig::new(server_config(&identity()).unwrap());
        let (holder, before) = (live.clone(), live.current());
        live.swap(server_config(&identity()).unwrap());
        assert!(!Arc::ptr_eq(&before, &holder.current()));
        assert!(Arc::ptr_eq(&live.current(), &holder.current()));
    }
}
