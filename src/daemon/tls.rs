//! The certificates in force on both listeners: issued by our authority or supplied by the operator, renewed and
//! swapped without closing connections. `service/hosts/host_trust.rs` decides whether hosts are shown the operator's
//! certificate.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

use super::DaemonError;
use super::listen_file::{Bound, replace};
use crate::config::urls::origin_of;
use crate::config::{AdminAccess, Config, DEFAULT_PATH, Switch};
use crate::model::auth_document::DocumentRules;
use crate::model::authority::AuthorityRole;
use crate::pki::{
    self, LiveConfig, PkiError, ServerIdentities, ServerIdentity, ServerKey, ServerName, admin_config, hosts_config,
    issue_server_certificate, names_for, server_config,
};
use crate::platform::Platform;
use crate::records::AuthoritySlot;
use crate::service::Policy;
use crate::service::core::boot::Secrets;
use crate::service::core::policy::HostCertificate;
use crate::service::core::policy::PeoplePolicy;
use crate::service::core::policy::VersionPolicy;

pub struct Tls {
    listeners: Listeners,
    /// Whether hosts are shown the operator's certificate.
    shows_operators: AtomicBool,
    secrets: Arc<Secrets>,
    platform: Arc<dyn Platform>,
    hosts: LiveConfig,
    admin: LiveConfig,
    in_force: Mutex<InForce>,
}

/// Facts for the rest of the daemon about the certificate that hosts are shown under the public name.
#[derive(Clone)]
struct InForce {
    pin: String,
    not_before: OffsetDateTime,
    renew_at: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// Settings for the certificates.
struct Listeners {
    /// The operator's files: certificate and private key.
    own: Option<(PathBuf, PathBuf)>,
    access: AdminAccess,
    /// Names in our certificate.
    names: Mutex<Vec<ServerName>>,
    /// The name under which hosts know the daemon.
    public: Option<ServerName>,
}

impl Listeners {
    fn of(config: &Config, bound: &Bound) -> Result<Self, PkiError> {
        Ok(Self {
            own: config.tls.is_own().then(|| (config.tls.certificate.clone(), config.tls.private_key.clone())),
            access: config.admin.access,
            names: Mutex::new(names(config, bound)?),
            public: ServerName::parse(host_of(&base_url(config, bound).0)),
        })
    }
}

impl Tls {
    /// Hosts are shown our certificate until [`Self::show_operators`] changes that.
    pub fn new(
        config: &Config,
        bound: &Bound,
        secrets: &Arc<Secrets>,
        platform: Arc<dyn Platform>,
    ) -> Result<Self, PkiError> {
        let listeners = Listeners::of(config, bound)?;
        let made = make(&listeners, false, secrets, &*platform)?;
        Ok(Self {
            listeners,
            shows_operators: AtomicBool::new(false),
            secrets: secrets.clone(),
            platform,
            hosts: LiveConfig::new(made.hosts),
            admin: LiveConfig::new(made.admin),
            in_force: Mutex::new(made.in_force),
        })
    }

    pub fn hosts(&self) -> LiveConfig {
        self.hosts.clone()
    }

    pub fn admin(&self) -> LiveConfig {
        self.admin.clone()
    }

    /// Reads the operator's certificate again, and reissues ours. Both are in force for new handshakes.
    pub fn reload(&self) -> Result<(), PkiError> {
        // One reload at a time, so that the latest decision is in force last.
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let made = make(&self.listeners, self.shows_operators(), &self.secrets, &*self.platform)?;
        self.hosts.swap(made.hosts);
        self.admin.swap(made.admin);
        *in_force = made.in_force;
        Ok(())
    }

    /// Adds these names to our certificate, from the next handshake on: hosts were installed under them.
    pub fn add_names(&self, urls: &[String]) -> Result<(), PkiError> {
        let mut names = self.listeners.names.lock().unwrap_or_else(PoisonError::into_inner);
        let before = names.len();
        for name in urls.iter().filter_map(|url| ServerName::parse(host_of(url))) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let is_more = names.len() > before;
        drop(names);
        if is_more { self.reload() } else { Ok(()) }
    }

    /// Shows hosts the operator's certificate or ours, from the next handshake on. Returns whether that is a change.
    pub fn show_operators(&self, shows: bool) -> Result<bool, PkiError> {
        if self.listeners.own.is_none() || self.shows_operators() == shows {
            return Ok(false);
        }
        self.shows_operators.store(shows, Ordering::SeqCst);
        self.reload().inspect_err(|_| self.shows_operators.store(!shows, Ordering::SeqCst))?;
        Ok(true)
    }

    pub fn shows_operators(&self) -> bool {
        self.shows_operators.load(Ordering::SeqCst)
    }

    /// Whether the certificate must be reissued. If it is not valid yet, the clock has been set back since its issue,
    /// and no host would accept it.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        let InForce { not_before, renew_at, .. } = self.in_force();
        now < not_before || now >= renew_at
    }

    /// The end of validity of the certificate that hosts are shown.
    pub fn not_after(&self) -> OffsetDateTime {
        self.in_force().not_after
    }

    /// Writes the authority certificates, which operators copy to other machines.
    pub fn write_files(&self, state_dir: &Path) -> Result<(), DaemonError> {
        let directory = state_dir.join("pki");
        std::fs::create_dir_all(&directory).map_err(|cause| DaemonError::Write { path: directory.clone(), cause })?;
        let authorities = self.secrets.authorities.load();
        replace(&directory.join("server-ca.crt"), authorities.bundle(AuthorityRole::Server).as_bytes())?;
        replace(&directory.join("client-ca.crt"), authorities.bundle(AuthorityRole::Client).as_bytes())
    }

    /// The settings and certificate facts for the use cases.
    pub fn policy(&self, config: &Config, bound: &Bound) -> Policy {
        policy(config, bound, &self.secrets, config.listen.hosts_tls.then(|| self.in_force().pin))
    }

    fn in_force(&self) -> InForce {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The policy for an offline command: it bakes the same values as the daemon would. `is_switched`: whether hosts were
/// last shown a certificate other than ours. `None`: nothing is recorded yet, so they get what is configured.
pub fn offline_policy(
    config: &Config,
    bound: &Bound,
    secrets: &Secrets,
    is_switched: Option<bool>,
    platform: &dyn Platform,
) -> Result<Policy, PkiError> {
    let is_operators = matches!(host_certificate(config), HostCertificate::Operators { .. });
    let shows_operators = is_operators && is_switched.unwrap_or(true);
    let pin = make(&Listeners::of(config, bound)?, shows_operators, secrets, platform)?.in_force.pin;
    Ok(policy(config, bound, secrets, config.listen.hosts_tls.then_some(pin)))
}

/// The certificate that hosts must be shown according to the configuration.
pub fn host_certificate(config: &Config) -> HostCertificate {
    match config.tls.switch {
        _ if !config.listen.hosts_tls => HostCertificate::OfProxy,
        Switch::Prepare => HostCertificate::Ours { prepares: true },
        _ if !config.tls.is_own() => HostCertificate::Ours { prepares: false },
        switch => HostCertificate::Operators { at_once: switch == Switch::Now },
    }
}

fn policy(config: &Config, bound: &Bound, secrets: &Secrets, pin: Option<String>) -> Policy {
    let (base_url, base_url_doubt) = base_url(config, bound);
    Policy {
        base_url,
        base_url_doubt,
        config_file: config.file.as_ref().map_or(DEFAULT_PATH.into(), |file| file.display().to_string()),
        trusted_ca_pem: secrets.authorities.load().bundle(AuthorityRole::Server),
        host_certificate: host_certificate(config),
        server_pin: pin,
        install_token_ttl: time::Duration::seconds(config.install.token_ttl_seconds.into()),
        insecure_window: time::Duration::seconds(config.hosts.insecure_window_seconds.into()),
        ipv6_prefix: config.hosts.ipv6_prefix,
        codex_release_url: config.install.codex_release_url.clone(),
        codex_release_sha256: config.install.codex_release_sha256.join(" "),
        document_rules: DocumentRules { min_token_length: config.auth.min_token_length, strict: config.auth.strict },
        versions: VersionPolicy::from(&config.auth),
        people: people(config, bound),
    }
}

/// Adds all names of this machine on the port of the admin listener, and the configured names on that port.
fn people(config: &Config, bound: &Bound) -> PeoplePolicy {
    let mut people = PeoplePolicy::from(config);
    let configured =
        people.origins.iter().filter_map(|origin| reqwest::Url::parse(origin).ok()?.host_str().map(String::from));
    // If the interfaces cannot be listed, only the configured names remain.
    let listening = names(config, bound).unwrap_or_default().into_iter().map(|name| match name {
        ServerName::Ip(IpAddr::V6(address)) => format!("[{address}]"),
        name => name.to_string(),
    });
    let names: Vec<String> = configured.chain(listening).collect();
    let port = bound.admin.port();
    people.origins.extend(names.iter().filter_map(|name| origin_of(&format!("https://{name}:{port}"))));
    people
}

/// Returns `public_base_url`. Without it, guesses a URL from the bound address, or from the machine's name if that is
/// "all addresses". A guess comes with the reason why hosts may not reach it, if there is one.
fn base_url(config: &Config, bound: &Bound) -> (String, Option<&'static str>) {
    if !config.public_base_url.is_empty() {
        return (config.public_base_url.clone(), None);
    }
    let name = match bound.hosts.ip().is_unspecified() {
        true => pki::names::local_names().ok().and_then(|(name, _)| name).unwrap_or_else(|| "localhost".into()),
        false => String::new(),
    };
    guessed_base_url(bound.hosts, &name, config.listen.hosts_tls)
}

/// `name`: this machine's name, for a listener on all addresses. If the listener is on one address, the operator chose
/// it, and hosts on this machine can also use a loopback address. But without TLS a proxy is in front of it, and hosts
/// must reach that.
fn guessed_base_url(listener: SocketAddr, name: &str, tls: bool) -> (String, Option<&'static str>) {
    let scheme = if tls { "https" } else { "http" };
    if !listener.ip().is_unspecified() {
        let doubt = (listener.ip().to_canonical().is_loopback() && !tls)
            .then_some("only this machine can reach that address; hosts reach the proxy in front of it");
        return (format!("{scheme}://{listener}"), doubt);
    }
    let lower = name.to_ascii_lowercase();
    let doubt = if lower == "localhost" || lower.starts_with("localhost.") || lower.ends_with(".localhost") {
        Some("on a host, this name means the host itself")
    } else if !name.contains('.') {
        Some("other machines rarely resolve a name without a domain")
    } else {
        None
    };
    (format!("{scheme}://{name}:{}", listener.port()), doubt)
}

fn names(config: &Config, bound: &Bound) -> Result<Vec<ServerName>, PkiError> {
    let (hostname, addresses) = pki::names::local_names()?;
    let host = host_of(&config.public_base_url);
    Ok(names_for((!host.is_empty()).then_some(host), hostname.as_deref(), &addresses, bound.hosts))
}

/// Returns the host part of a URL.
fn host_of(url: &str) -> &str {
    let base = url.split_once("://").map(|(_, rest)| rest).unwrap_or_default();
    let authority = base.split('/').next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}

struct Made {
    hosts: rustls::ServerConfig,
    admin: rustls::ServerConfig,
    in_force: InForce,
}

/// Admins with client certificates always see our own: they get our authority together with their certificate.
fn make(
    Listeners { own, access, names, public }: &Listeners,
    shows_operators: bool,
    secrets: &Secrets,
    platform: &dyn Platform,
) -> Result<Made, PkiError> {
    let now = platform.now();
    let key = ServerKey::from_pkcs8(&secrets.server_key)?;
    let authorities = secrets.authorities.load();
    let authority =
        authorities.in_slot(AuthorityRole::Server, AuthoritySlot::Active).ok_or(PkiError::AuthorityMismatch)?;
    let names = names.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let certificate = issue_server_certificate(&authority.key, &key, &names, now, platform)?;
    // Hosts that trust only the previous authority are shown the cross certificate to the new one.
    let cross = authority.cross_certificate_pem.as_deref();
    let ours = ServerIdentity::issued_across(&certificate, cross, &key)?;
    // The operator's certificate must be valid even while hosts are not shown it.
    let theirs = own.as_ref().map(|(certificate, key)| ServerIdentity::load(certificate, key)).transpose()?;
    let admin = match access {
        // Browsers have no certificate of ours, and trust the operator's authority rather than ours.
        AdminAccess::Login => server_config(theirs.as_ref().unwrap_or(&ours))?,
        _ => admin_config(&ours, &[&authorities.bundle(AuthorityRole::Client)])?,
    };
    let identities = ServerIdentities::new(ours, theirs.filter(|_| shows_operators), public.as_ref());
    let public = identities.for_name(public.as_ref());
    let in_force = InForce {
        pin: public.spki_pin().to_owned(),
        not_before: certificate.not_before,
        renew_at: certificate.renew_at(),
        not_after: public.not_after(),
    };
    Ok(Made { hosts: hosts_config(Arc::new(identities))?, admin, in_force })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{Clock, SecureRandom, System};
    use crate::records::embedded::Embedded;
    use crate::service::core::boot;

    /// The system's outside, except for the date, which the test sets.
    struct TestClock(Mutex<OffsetDateTime>);

    async fn tls_at(clock: &Arc<TestClock>, directory: &std::path::Path) -> Tls {
        let records = Embedded::open(&directory.join("records")).unwrap();
        let secrets = boot::unlock(&records, &directory.join("master.key"), None, &**clock).await.unwrap();
        let config = Config::default();
        let bound = Bound { hosts: config.listen.hosts, admin: config.listen.admin, control: directory.into() };
        Tls::new(&config, &bound, &Arc::new(secrets), clock.clone()).unwrap()
    }

    #[tokio::test]
    async fn a_certificate_of_a_clock_that_ran_ahead_is_issued_anew_once_it_is_set_back() {
        let directory = tempfile::tempdir().unwrap();
        let right = System.now();
        let clock = Arc::new(TestClock(Mutex::new(right)));
        let tls = tls_at(&clock, directory.path()).await;
        *clock.0.lock().unwrap() = right + time::Duration::days(100);
        assert!(tls.is_due(clock.now()));
        tls.reload().unwrap();
        *clock.0.lock().unwrap() = right;
        assert!(tls.is_due(clock.now()), "it is not valid for months to come");
        tls.reload().unwrap();
        for hours in [0, -1, 5] {
            assert!(!tls.is_due(right + time::Duration::hours(hours)), "{hours} h");
        }
    }

    impl Clock for TestClock {
        fn now(&self) -> OffsetDateTime {
            *self.0.lock().unwrap()
        }
    }

    impl SecureRandom for TestClock {
        fn fill(&self, buffer: &mut [u8]) {
            System.fill(buffer);
        }
    }

    #[tokio::test]
    async fn the_certificate_is_renewed_at_two_thirds_of_its_life_over_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let records = Embedded::open(&directory.path().join("records")).unwrap();
        let clock = Arc::new(TestClock(Mutex::new(System.now())));
        let master_key = directory.path().join("master.key");
        let secrets = Arc::new(boot::unlock(&records, &master_key, None, &*clock).await.unwrap());
        let config = Config::default();
        let bound = Bound { hosts: config.listen.hosts, admin: config.listen.admin, control: directory.path().into() };
        let tls = Tls::new(&config, &bound, &secrets, clock.clone()).unwrap();
        let before = tls.policy(&config, &bound);
        let (first, hosts) = (tls.in_force().renew_at, tls.hosts());
        let shown = hosts.current();

        assert!(!tls.is_due(clock.now() + time::Duration::days(59)));
        *clock.0.lock().unwrap() += time::Duration::days(61);
        assert!(tls.is_due(clock.now()));
        tls.reload().unwrap();
        assert!(!tls.is_due(clock.now()));
        assert!(tls.in_force().renew_at - first > time::Duration::days(60));
        assert!(!Arc::ptr_eq(&shown, &hosts.current()), "who listens already shows the new one");
        assert_eq!(tls.policy(&config, &bound).server_pin, before.server_pin, "printed installers go on working");
    }
}
