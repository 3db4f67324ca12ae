//! The operator's configuration, as far as the use cases need it.

use time::{Duration, OffsetDateTime};

use crate::config::urls::origin_of;
use crate::config::{self, AdminAccess, Config};
use crate::model::auth_document::DocumentRules;
use crate::records::HostTrust;

/// The operator's configuration, as far as the use cases need it.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Baked into installers and wrappers; no `/` at the end.
    pub base_url: String,
    /// Why hosts may not reach `base_url`, if it was guessed; `None`: the operator configured it.
    pub base_url_doubt: Option<&'static str>,
    /// The file that an operator edits, for messages.
    pub config_file: String,
    /// PEM of our authority, which wrappers trust.
    pub trusted_ca_pem: String,
    pub host_certificate: HostCertificate,
    /// Base64 of the SHA-256 of the server's public key, for `curl --pinnedpubkey sha256//…`; `None` without TLS.
    pub server_pin: Option<String>,
    pub install_token_ttl: time::Duration,
    pub insecure_window: time::Duration,
    /// How many bits of an IPv6 address name the network that a host is bound to.
    pub ipv6_prefix: u8,
    pub codex_release_url: String,
    /// `TARGET=SHA-256` pairs for that archive, separated by spaces; empty: the digest is not checked.
    pub codex_release_sha256: String,
    pub document_rules: DocumentRules,
    pub versions: VersionPolicy,
    pub people: PeoplePolicy,
}

/// Which certificate hosts are shown, by the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCertificate {
    /// A certificate of our authority. `prepares`: wrappers trust the machine's store as well, for a later switch.
    Ours { prepares: bool },
    /// The operator's certificate: as soon as no host is cut off by it, or at once.
    Operators { at_once: bool },
    /// The certificate of the proxy that speaks TLS in the daemon's place.
    OfProxy,
}

impl Default for HostCertificate {
    fn default() -> Self {
        Self::Ours { prepares: false }
    }
}

impl HostCertificate {
    pub(in crate::service) fn needs_system_trust(self) -> bool {
        self != Self::default()
    }

    /// What hosts trust if nothing is recorded: earlier releases baked either our authority or nothing, and showed the
    /// configured certificate.
    pub(in crate::service) fn of_before(self, now: OffsetDateTime) -> HostTrust {
        let since = (!matches!(self, Self::Ours { .. })).then_some(now);
        HostTrust { old_wrappers_trust_system: since.is_some(), system_since: since, switched_at: since }
    }
}

/// The configuration of versions.
#[derive(Clone, Copy, Debug)]
pub struct VersionPolicy {
    /// How many of the newest versions are kept.
    pub keep: u64,
    /// How many new versions one host may store within an hour; 0: any number.
    pub stores_per_host_per_hour: u32,
}

impl From<&config::Auth> for VersionPolicy {
    fn from(auth: &config::Auth) -> Self {
        Self { keep: auth.keep_versions.into(), stores_per_host_per_hour: auth.stores_per_host_per_hour }
    }
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::from(&config::Auth::default())
    }
}

/// The configuration of people.
#[derive(Clone, Debug)]
pub struct PeoplePolicy {
    pub access: AdminAccess,
    /// Scheme, name and port under which browsers reach this daemon, from the configuration or the listener.
    pub origins: Vec<String>,
    /// A session that was not used for so long is over.
    pub idle: Duration,
    /// A session is over after this time, even if it is used.
    pub lifetime: Duration,
    /// How many hosts of their own a member may have, unless their user says otherwise.
    pub max_hosts: u32,
}

impl From<&Config> for PeoplePolicy {
    fn from(config: &Config) -> Self {
        Self {
            access: config.admin.access,
            origins: configured_origins(config),
            idle: Duration::seconds(config.sessions.idle_seconds.into()),
            lifetime: Duration::seconds(config.sessions.lifetime_seconds.into()),
            max_hosts: config.hosts.max_per_member,
        }
    }
}

fn configured_origins(config: &Config) -> Vec<String> {
    let redirect_uri = config.oidc.is_configured().then(|| config.oidc.redirect_uri(&config.public_base_url));
    let urls = [origin_of(&config.public_base_url), redirect_uri.as_deref().and_then(origin_of)];
    config.admin.origins.iter().cloned().chain(urls.into_iter().flatten()).collect()
}

/// The policy without any configuration.
impl Default for PeoplePolicy {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}
