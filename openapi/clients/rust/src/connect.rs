//! How a [`Client`] reaches its daemon: what it trusts, who it is, how long it waits, through which proxy.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::Secret;
use crate::generated::Client;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the base URL must begin with https:// or http://")]
    Url,
    #[error("the CA contains no certificate (PEM)")]
    NoCertificate,
    #[error("this machine has no trust store: {0}")]
    NoStore(String),
    #[error("the client certificate cannot be used: {0}")]
    ClientCertificate(String),
    #[error("a credential contains a character that a header cannot have")]
    Credential,
    #[error("the proxy that {0} names cannot be used")]
    Proxy(&'static str),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// The settings of a client. Without any, it trusts this machine's store and has no credential.
pub struct Connect {
    base_url: String,
    ca_pem: Option<Vec<u8>>,
    system_store: bool,
    credential: Option<(&'static str, Secret)>,
    identity: Option<(Vec<u8>, Secret)>,
    connect_timeout: Duration,
    timeout: Duration,
    user_agent: String,
    follows_redirects: bool,
}

impl Client {
    /// Begins to describe a client of the daemon at this address, such as `https://auth.example.com:8443`.
    pub fn connect(base_url: &str) -> Connect {
        Connect {
            base_url: base_url.trim_end_matches('/').to_owned(),
            ca_pem: None,
            system_store: false,
            credential: None,
            identity: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            user_agent: concat!("codex-authd-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            follows_redirects: false,
        }
    }
}

impl Connect {
    /// Trusts these authorities (PEM), and this machine's store only after [`Connect::system_store`].
    pub fn ca_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.ca_pem = Some(pem.as_ref().to_vec());
        self
    }

    /// Trusts this machine's store as well.
    pub fn system_store(mut self) -> Self {
        self.system_store = true;
        self
    }

    /// The key of a host (`X-API-Key`).
    pub fn api_key(mut self, key: impl Into<Secret>) -> Self {
        self.credential = Some(("x-api-key", key.into()));
        self
    }

    /// The access token of a user who signed in (`Authorization: Bearer`).
    pub fn access_token(mut self, token: impl Into<Secret>) -> Self {
        self.credential = Some(("authorization", Secret::new(format!("Bearer {}", token.into().expose()))));
        self
    }

    /// An admin's certificate and its key (PEM), as `codex-authd admin-cert --pem` writes them.
    pub fn client_certificate(mut self, certificate_pem: impl AsRef<[u8]>, key_pem: impl Into<Secret>) -> Self {
        self.identity = Some((certificate_pem.as_ref().to_vec(), key_pem.into()));
        self
    }

    /// How long a connection and a whole call may take; 10 and 60 seconds by default.
    pub fn timeouts(mut self, connect: Duration, call: Duration) -> Self {
        (self.connect_timeout, self.timeout) = (connect, call);
        self
    }

    pub fn user_agent(mut self, name: impl Into<String>) -> Self {
        self.user_agent = name.into();
        self
    }

    /// For downloads from elsewhere with the inner [`reqwest::Client`]: from https to https only, and with no credential.
    pub fn follow_redirects(mut self) -> Self {
        (self.follows_redirects, self.credential) = (true, None);
        self
    }

    pub fn build(self) -> Result<Client, BuildError> {
        let secure = self.base_url.starts_with("https://");
        if !secure && !self.base_url.starts_with("http://") {
            return Err(BuildError::Url);
        }
        let redirects = if self.follows_redirects { Policy::default() } else { Policy::none() };
        let mut builder = reqwest::Client::builder()
            .https_only(secure)
            .redirect(redirects)
            .connect_timeout(self.connect_timeout)
            .timeout(self.timeout)
            .user_agent(&self.user_agent)
            .default_headers(self.headers()?)
            .no_proxy();
        // Without TLS, the store of this machine is not read, which takes most of the time.
        let roots = if secure { self.roots()? } else { RootCertStore::empty() };
        builder = builder.use_preconfigured_tls(self.tls(roots)?);
        if let Some(proxy) = EnvironmentProxy::of(&self.base_url) {
            let unusable = |_| BuildError::Proxy(proxy.variable);
            builder = builder.proxy(reqwest::Proxy::all(proxy.value.expose()).map_err(unusable)?);
        }
        Ok(Client::new_with_client(&self.base_url, builder.build().map_err(BuildError::Client)?))
    }

    fn headers(&self) -> Result<HeaderMap, BuildError> {
        let mut headers = HeaderMap::new();
        if let Some((name, secret)) = &self.credential {
            let mut value = HeaderValue::from_str(secret.expose()).map_err(|_| BuildError::Credential)?;
            value.set_sensitive(true);
            headers.insert(*name, value);
        }
        Ok(headers)
    }

    fn roots(&self) -> Result<RootCertStore, BuildError> {
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.ca_pem {
            let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(BuildError::NoCertificate);
            }
        }
        if self.system_store || self.ca_pem.is_none() {
            let loaded = rustls_native_certs::load_native_certs();
            let added = roots.add_parsable_certificates(loaded.certs).0;
            if added == 0 && self.ca_pem.is_none() {
                let reasons: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
                return Err(BuildError::NoStore(reasons.join("; ")));
            }
        }
        Ok(roots)
    }

    fn tls(&self, roots: RootCertStore) -> Result<ClientConfig, BuildError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let unusable = |error: &dyn fmt::Display| BuildError::ClientCertificate(error.to_string());
        let chain = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|error| unusable(&error))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connect").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// The proxy that the environment names for a URL, by the rules of curl: the variable of the scheme, in small letters
/// first (`HTTP_PROXY` never, because a CGI server sets it from a header), then `all_proxy`; not for what `no_proxy`
/// names.
pub struct EnvironmentProxy {
    pub variable: &'static str,
    /// May contain a password.
    pub value: Secret,
}

impl EnvironmentProxy {
    pub fn of(url: &str) -> Option<Self> {
        Self::among(url, |name| std::env::var(name).ok())
    }

    fn among(url: &str, variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let names: &[&'static str] = match url.split_once(':')?.0 {
            "https" => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            _ => &["http_proxy", "all_proxy", "ALL_PROXY"],
        };
        let (name, value) = names.iter().find_map(|name| Some((*name, set(name)?)))?;
        let exceptions = set("no_proxy").or_else(|| set("NO_PROXY")).unwrap_or_default();
        // What does not look like a proxy is still reported when it is used.
        let with_scheme = if value.contains("://") { value } else { format!("http://{value}") };
        let applies = Matcher::builder().all("http://proxy").no(exceptions).build().intercept(&url.parse().ok()?);
        applies.map(|_| Self { variable: name, value: Secret::new(with_scheme) })
    }

    /// Host and port, without user and password.
    pub fn address(&self) -> &str {
        let value = self.value.expose();
        let rest = value.split_once("://").map_or(value, |(_, rest)| rest);
        rest.rsplit_once('@').map_or(rest, |(_, address)| address).trim_end_matches('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(url: &str, variables: &[(&str, &str)]) -> Option<(&'static str, String)> {
        let found = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).into());
        let proxy = EnvironmentProxy::among(url, found)?;
        Some((proxy.variable, proxy.address().to_owned()))
    }

    #[test]
    fn the_variable_of_the_scheme_counts_and_no_proxy_makes_exceptions() {
        let all = ("ALL_PROXY", "http://ada:secret@p:1/");
        assert_eq!(proxy("https://a.test/", &[all]), Some(("ALL_PROXY", "p:1".into())));
        assert_eq!(proxy("https://a.test/", &[all, ("https_proxy", "q:2")]), Some(("https_proxy", "q:2".into())));
        assert_eq!(proxy("http://a.test/", &[("HTTP_PROXY", "q:2"), ("https_proxy", "q:2")]), None);
        assert_eq!(proxy("http://127.0.0.1:8/", &[all, ("no_proxy", "other.test,127.0.0.1")]), None);
        assert_eq!(proxy("http://x.a.test/", &[all, ("NO_PROXY", "a.test")]), None);
        assert_eq!(proxy("http://a.test/", &[("http_proxy", "")]), None);
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_a_secret() {
        let refused = |connect: Connect| connect.build().map(|_| ()).unwrap_err().to_string();
        assert!(refused(Client::connect("ftp://a.test")).contains("https://"));
        assert!(refused(Client::connect("https://a.test").ca_pem("no PEM")).contains("no certificate"));
        let connect = Client::connect("http://a.test").api_key("canary\n");
        assert!(!format!("{connect:?}").contains("canary"));
        assert!(!refused(connect).contains("canary"));
        let client = Client::connect("http://a.test").api_key("canary").build().unwrap();
        assert!(!format!("{client:?}").contains("canary"));
    }
}
