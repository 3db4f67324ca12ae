//! The configuration: small typed slices, every key with a default, unknown keys refused (docs: packaging/config.toml).
//!
//! This room reads a file and environment variables into values and checks each of them; it opens nothing else.

pub mod credentials;
mod load;
pub(crate) mod proxies;
pub mod urls;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use load::load_text;
pub use load::{ConfigError, DEFAULT_PATH, environment, file, is_variable, key_of_variable, load};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub state_dir: PathBuf,
    pub public_base_url: String,
    pub listen: Listen,
    pub tls: Tls,
    pub database: Database,
    pub admin: Admin,
    pub oidc: Oidc,
    pub sessions: Sessions,
    pub install: Install,
    pub auth: Auth,
    pub limits: Limits,
    pub hosts: Hosts,
    pub runner: Runner,
    pub upstream: Upstream,
    /// The file that it was read from; `None`: there is no file.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    pub hosts: SocketAddr,
    pub admin: SocketAddr,
    pub hosts_tls: bool,
    pub trusted_proxies: Vec<String>,
    pub forwarded_header: ForwardedHeader,
    pub proxy_protocol: bool,
    pub control: PathBuf,
}

impl Listen {
    /// The networks of `trusted_proxies`. Invalid entries were refused at the start.
    pub fn trusted_networks(&self) -> Vec<ipnet::IpNet> {
        self.trusted_proxies.iter().filter_map(|text| proxies::network(text).ok()).collect()
    }
}

/// The header of trusted proxies that is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    XForwardedFor,
    Forwarded,
    None,
}

/// The operator's own certificate; both empty: one from our own CA.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub switch: Switch,
}

/// When hosts are shown the operator's certificate instead of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// Not yet. Wrappers are baked to trust the machine's store as well, with or without a certificate here.
    Prepare,
    /// As soon as no host is cut off by it.
    #[default]
    WhenSafe,
    /// At once.
    Now,
}

impl Tls {
    /// Whether the operator has configured their own certificate.
    pub fn is_own(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    pub url: String,
    pub tls: bool,
    pub ca: PathBuf,
    pub connections: u32,
    pub timeout_seconds: u32,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: String::new(), tls: true, ca: PathBuf::new(), connections: 16, timeout_seconds: 5 }
    }
}

/// The URL holds a password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.url.is_empty() { "Database(embedded)" } else { "Database(***)" })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminAccess {
    #[serde(rename = "mtls")]
    Mtls,
    #[serde(rename = "login")]
    Login,
    #[serde(rename = "mtls+login")]
    MtlsAndLogin,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    pub access: AdminAccess,
    /// Further origins (`https://NAME:PORT`) under which browsers reach the dashboard.
    pub origins: Vec<String>,
}

/// The identity provider for sign-ins; no issuer: there is none.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oidc {
    pub issuer: String,
    pub client_id: String,
    /// Empty: a public client, which proves itself by PKCE alone.
    pub client_secret: String,
    /// Empty: `<public_base_url>/auth/oidc/callback`, else [`Oidc::DEFAULT_REDIRECT_URI`].
    pub redirect_uri: String,
    /// Audiences that an ID token may name beside `client_id`.
    pub trusted_audiences: Vec<String>,
    /// How many seconds the provider's keys are valid.
    pub jwks_cache_ttl: u32,
    /// After how many seconds the keys are read again.
    pub jwks_cache_refresh: u32,
}

impl Oidc {
    pub const CALLBACK: &str = "/auth/oidc/callback";
    pub const DEFAULT_REDIRECT_URI: &str = "http://localhost:8000/auth/oidc/callback";

    pub fn is_configured(&self) -> bool {
        !self.issuer.is_empty()
    }

    pub fn redirect_uri(&self, public_base_url: &str) -> String {
        match (self.redirect_uri.as_str(), public_base_url) {
            ("", "") => Self::DEFAULT_REDIRECT_URI.into(),
            ("", base) => format!("{base}{}", Self::CALLBACK),
            (configured, _) => configured.into(),
        }
    }
}

impl Default for Oidc {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            client_id: String::new(),
            client_secret: String::new(),
            redirect_uri: String::new(),
            trusted_audiences: Vec::new(),
            jwks_cache_ttl: 3600,
            jwks_cache_refresh: 300,
        }
    }
}

impl std::fmt::Debug for Oidc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { issuer, client_id, .. } = self;
        f.debug_struct("Oidc").field("issuer", issuer).field("client_id", client_id).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// A session ends if it was not used for so long.
    pub idle_seconds: u32,
    /// A session ends after this time, even if it is used.
    pub lifetime_seconds: u32,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { idle_seconds: 12 * 3600, lifetime_seconds: 7 * 24 * 3600 }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Install {
    pub token_ttl_seconds: u32,
    /// The URL of Codex for a host without npm: a `.tar.gz`, in which `{version}` and `{target}` are filled in. Empty:
    /// npm only.
    pub codex_release_url: String,
    /// `TARGET=SHA-256` of the archive for each target. Empty: the digest is not checked.
    pub codex_release_sha256: Vec<String>,
    /// The directory of the native programs for hosts, files `cdx-TARGET`.
    pub programs_dir: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The shortest token that an auth document may hold; never below 8.
    pub min_token_length: usize,
    /// Whether only documents that Codex can load are accepted.
    pub strict: bool,
    /// How many versions of the login are kept, beside all of the last 30 days; never below 1.
    pub keep_versions: u32,
    /// How many new versions one host may store within an hour; 0: any number.
    pub stores_per_host_per_hour: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests of strangers, per address.
    pub global_per_minute: u32,
    /// Requests per valid key, or per user who is signed in.
    pub host_per_minute: u32,
    pub auth_fail_count: u32,
    pub auth_fail_window_seconds: u32,
    pub auth_fail_block_seconds: u32,
    /// Open connections of the hosts' listener; 0: as many as the process has descriptors for.
    pub connections: u32,
    /// Open connections of one address, on each listener.
    pub connections_per_address: u32,
    /// TLS handshakes of one address that are under way, on each listener.
    pub handshakes_per_address: u32,
    /// Request bodies and answers that are in memory at once, on each listener, in MiB.
    pub buffered_mib: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hosts {
    pub inactivity_days: u32,
    /// How long the window of an insecure host stays open.
    pub insecure_window_seconds: u32,
    /// How many hosts of their own a member may have, unless their user says otherwise.
    pub max_per_member: u32,
    /// How many bits of an IPv6 address name the network that a host is bound to.
    pub ipv6_prefix: u8,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runner {
    pub enabled: bool,
    pub codex: String,
    pub timeout_seconds: u32,
    pub egress: Vec<String>,
    pub config_toml: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    pub token_url: String,
    pub usage_url: String,
    pub releases_url: String,
    pub pricing_url: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/codex-authd".into(),
            public_base_url: String::new(),
            listen: Listen::default(),
            tls: Tls::default(),
            database: Database::default(),
            admin: Admin::default(),
            oidc: Oidc::default(),
            sessions: Sessions::default(),
            install: Install::default(),
            auth: Auth::default(),
            limits: Limits::default(),
            hosts: Hosts::default(),
            runner: Runner::default(),
            upstream: Upstream::default(),
            file: None,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            hosts: SocketAddr::from(([0, 0, 0, 0], 8443)),
            admin: SocketAddr::from(([0, 0, 0, 0], 9443)),
            hosts_tls: true,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::XForwardedFor,
            proxy_protocol: false,
            control: "/run/codex-authd/control.sock".into(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { access: AdminAccess::Mtls, origins: Vec::new() }
    }
}

impl Default for Install {
    fn default() -> Self {
        Self {
            token_ttl_seconds: 1800,
            codex_release_url: String::new(),
            codex_release_sha256: Vec::new(),
            programs_dir: "/usr/share/codex-authd/wrapper".into(),
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self { min_token_length: 24, strict: true, keep_versions: 200, stores_per_host_per_hour: 60 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            global_per_minute: 120,
            host_per_minute: 600,
            auth_fail_count: 20,
            auth_fail_window_seconds: 600,
            auth_fail_block_seconds: 1800,
            connections: 0,
            connections_per_address: 512,
            handshakes_per_address: 256,
            buffered_mib: 64,
        }
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self { inactivity_days: 30, insecure_window_seconds: 1800, max_per_member: 5, ipv6_prefix: 64 }
    }
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            enabled: true,
            codex: "codex".into(),
            timeout_seconds: 60,
            egress: ["chatgpt.com:443", "auth.openai.com:443", "api.openai.com:443", "ab.chatgpt.com:443"]
                .map(String::from)
                .into(),
            config_toml: String::new(),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            token_url: "https://auth.openai.com/oauth/token".into(),
            usage_url: "https://chatgpt.com/backend-api/wham/usage".into(),
            releases_url: "https://api.github.com/repos/openai/codex/releases/latest".into(),
            pricing_url: String::new(),
        }
    }
}
