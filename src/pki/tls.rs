//! The TLS configurations of the listeners, and the holder by which a running listener gets a new one.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use super::identity::ServerIdentity;
use super::{PkiError, Result, ServerName};

/// How many sessions are kept for resumption, of all hosts together; the oldest are dropped.
const RESUMABLE_SESSIONS: usize = 4096;

/// The certificates of one listener: the operator's for the names that it covers, ours for all others. So a host that
/// knows the daemon by an earlier name, or by an address, still accepts it.
#[derive(Debug)]
pub struct ServerIdentities {
    pub ours: ServerIdentity,
    pub operators: Option<ServerIdentity>,
    /// Whether a handshake without a name gets the operator's certificate. Clients that have only an address send no
    /// name.
    pub operators_for_addresses: bool,
}

impl ServerIdentities {
    /// `public`: the name by which hosts know the daemon. Clients do not send an address in a handshake. So if `public`
    /// is one, and the operator's certificate covers it, handshakes without a name get that certificate.
    pub fn new(ours: ServerIdentity, operators: Option<ServerIdentity>, public: Option<&ServerName>) -> Self {
        let public = public.filter(|name| matches!(name, ServerName::Ip(_)));
        let operators_for_addresses =
            public.zip(operators.as_ref()).is_some_and(|(name, operators)| operators.covers(name));
        Self { ours, operators, operators_for_addresses }
    }

    /// The certificate for a handshake with this name.
    pub fn for_name(&self, name: Option<&ServerName>) -> &ServerIdentity {
        let Some(operators) = &self.operators else { return &self.ours };
        let gets_it = match name {
            Some(name @ ServerName::Dns(_)) => operators.covers(name),
            Some(ServerName::Ip(_)) | None => self.operators_for_addresses,
        };
        if gets_it { operators } else { &self.ours }
    }
}

impl ResolvesServerCert for ServerIdentities {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(ServerName::parse);
        Some(self.for_name(name.as_ref()).certified_key())
    }
}

/// For admins who sign in: no client certificate, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
pub fn server_config(identity: &ServerIdentity) -> Result<ServerConfig> {
    without_client_certificates(Arc::new(SingleCertAndKey::from(identity.certified_key())))
}

/// The same for hosts, with a certificate for each name.
pub fn hosts_config(identities: Arc<ServerIdentities>) -> Result<ServerConfig> {
    without_client_certificates(identities)
}

fn without_client_certificates(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn();
    config.session_storage = ServerSessionMemoryCache::new(RESUMABLE_SESSIONS);
    // Nearly every connection is one run of curl, which resumes nothing: one ticket is enough.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// For admins: the handshake requires a certificate of one of our client authorities (every slot that is still
/// accepted). No other authority counts.
///
/// Nothing is resumed. A resumed session is admitted on the checks of its first handshake, so it would outlive the
/// expiry of its certificate and the removal of an authority.
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

/// The configuration in force. Every handshake takes the present one; open connections keep theirs.
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

/// For libraries that use the process's default (reqwest's client). Our own code never does. Calling it again does
/// nothing.
pub fn install_default_provider() {
    // `Err` only means that one is installed already.
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
    use crate::pki::authority::{self, AuthorityKey};
    use crate::pki::names::ServerName;
    use crate::pki::server::{self, issue_server_certificate};
    use crate::platform::{Clock as _, System};

    fn identity() -> ServerIdentity {
        identity_for(&["localhost"])
    }

    fn identity_for(names: &[&str]) -> ServerIdentity {
        let made = authority::create(AuthorityRole::Server, System.now(), &System).unwrap();
        let ca = AuthorityKey::new(&made.certificate_pem, &made.private_key).unwrap();
        let key = server::create().unwrap();
        let names: Vec<_> =
            names.iter().map(|name| ServerName::parse(name).unwrap_or(ServerName::Dns((*name).into()))).collect();
        let issued = issue_server_certificate(&ca, &key, &names, System.now(), &System).unwrap();
        ServerIdentity::issued(&issued, &key).unwrap()
    }

    #[test]
    fn names_that_the_operators_certificate_does_not_cover_get_ours() {
        let shown = |operators: &[&str], public: &str| {
            let ours = identity();
            let own = (!operators.is_empty()).then(|| identity_for(operators));
            let public = ServerName::parse(public);
            let identities = ServerIdentities::new(ours, own, public.as_ref());
            move |name: &str| {
                let name = ServerName::parse(name);
                identities.for_name(name.as_ref()).spki_pin() != identities.ours.spki_pin()
            }
        };
        let by_name = shown(&["auth.test", "*.fleet.test"], "auth.test");
        for (name, is_operators) in
            [("auth.test", true), ("Auth.Test.", true), ("a.fleet.test", true), ("old.test", false), ("", false)]
        {
            assert_eq!(by_name(name), is_operators, "{name}");
        }
        assert!(!by_name("192.0.2.1"), "an address is not sent in a handshake");
        let by_address = shown(&["auth.test", "192.0.2.1"], "192.0.2.1");
        assert!(by_address("192.0.2.1") && by_address("") && by_address("auth.test") && !by_address("old.test"));
        let elsewhere = shown(&["auth.test", "192.0.2.1"], "192.0.2.2");
        assert!(!elsewhere("192.0.2.2") && !elsewhere(""), "a name that is not covered gets ours");
        let ours = shown(&[], "auth.test");
        assert!(!ours("auth.test") && !ours(""));
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
