//! Telemetry of calls on its way from a node to the records: the daemon's own outbox and draining, in this process, so
//! that nothing else is measured.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use codex_authd::hot::Hot;
use codex_authd::hot::throttle::{Limits, Throttle};
use codex_authd::metrics::Metrics;
use codex_authd::model::audit::{Actor, AuditNote};
use codex_authd::model::auth_document::DocumentRules;
use codex_authd::model::digest::Digest;
use codex_authd::model::host::HostId;
use codex_authd::platform::{Clock as _, System};
use codex_authd::records::{Records, Telemetry};
use codex_authd::service::{Adapters, Areas, Parts, Policy, core::boot};
use time::Duration;

use crate::report::Cell;
use crate::{Result, seed};

/// The hosts with telemetry: as many as a daemon batches at a time.
const HOSTS: usize = 1000;
const BATCHES: usize = 20;
/// Audit entries in one batch: about as many as one second of a flood leaves.
const NOTES: usize = 500;

/// The kind of telemetry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// More calls of hosts without any change.
    Calls,
    /// Calls of hosts that now have another login.
    Logins,
    /// Entries for the audit log.
    Notes,
}

/// A node without listeners.
pub struct Node {
    areas: Areas,
    hot: Arc<Hot>,
    records: Arc<dyn Records>,
    round: u64,
}

/// The result of a round: rows per second.
pub struct Round {
    /// Rows that are power-safe in the outbox.
    pub kept: Cell,
    /// Rows that are in the records.
    pub drained: Cell,
}

impl Node {
    /// Makes a node on new records.
    pub async fn new(records: Arc<dyn Records>, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let secrets = Arc::new(boot::unlock(&*records, &directory.join("master.key"), None, &System).await?);
        for index in 0..HOSTS {
            seed::one(&*records, &secrets, HostId(index as u64 + 1), index).await?;
        }
        let hot = Arc::new(Hot::open(&directory.join("hot"), &System)?);
        let limits = Limits {
            global_per_minute: 0,
            host_per_minute: 0,
            auth_fail_count: 0,
            auth_fail_window_seconds: 1,
            auth_fail_block_seconds: 1,
        };
        let policy = Policy {
            base_url: "https://auth.example.com".into(),
            base_url_doubt: None,
            config_file: String::new(),
            trusted_ca_pem: String::new(),
            host_certificate: Default::default(),
            server_pin: None,
            install_token_ttl: Duration::minutes(30),
            insecure_window: Duration::minutes(10),
            ipv6_prefix: 64,
            codex_release_url: String::new(),
            codex_release_sha256: String::new(),
            document_rules: DocumentRules::default(),
            versions: codex_authd::service::core::policy::VersionPolicy::default(),
            people: codex_authd::service::core::policy::PeoplePolicy::default(),
        };
        let parts = Parts {
            records: records.clone(),
            hot: hot.clone(),
            throttle: Throttle::new(limits),
            metrics: Arc::new(Metrics::new(&codex_authd::api::operations(), System.now())?),
            platform: Arc::new(System),
            policy,
            secrets,
        };
        let areas = Areas::start(parts, Adapters::default()).await?;
        Ok(Self { areas, hot, records, round: 0 })
    }

    pub async fn round(&mut self, kind: Kind) -> Result<Round> {
        self.round += 1;
        let before = self.told(kind).await?;
        let batches: Vec<_> = (0..BATCHES).map(|batch| self.batch(kind, batch)).collect();
        let rows = batches.iter().map(Vec::len).sum();
        let begun = Instant::now();
        for batch in batches {
            self.hot.outbox_append(batch).await?;
        }
        let kept = Cell::per_second(rows, begun.elapsed());
        let begun = Instant::now();
        self.areas.hosts.drain_outbox().await?;
        let drained = Cell::per_second(rows, begun.elapsed());
        let told = self.told(kind).await? - before;
        let expected = if kind == Kind::Notes { rows } else { BATCHES };
        if told != expected as u64 {
            return Err(format!("{told} of {expected} rows have reached the records").into());
        }
        Ok(Round { kept, drained })
    }

    /// How much of it is in the records: calls of the first host, or audit entries.
    async fn told(&self, kind: Kind) -> Result<u64> {
        Ok(match kind {
            Kind::Notes => self.records.audit_head().await?.number,
            Kind::Calls | Kind::Logins => self.records.host_activity(HostId(1)).await?.api_calls,
        })
    }

    fn batch(&self, kind: Kind, number: usize) -> Vec<Telemetry> {
        let now = System.now();
        let login = match kind {
            Kind::Logins => format!("login {} {number}", self.round),
            Kind::Calls | Kind::Notes => "the login".into(),
        };
        match kind {
            Kind::Notes => (0..NOTES)
                .map(|note| {
                    let from = [192, 0, 2, (note % 250) as u8].into();
                    let note = AuditNote::new(now, Actor::Anybody, Some(from), "auth.key_refused").refused("refused");
                    Telemetry::Noted { note: note.with("count", number).alarm() }
                })
                .collect(),
            Kind::Calls | Kind::Logins => (0..HOSTS)
                .map(|index| Telemetry::Seen {
                    host: HostId(index as u64 + 1),
                    calls: 1,
                    last_seen: now,
                    last_refresh: Some("2026-11-20T09:27:43.373506211Z".into()),
                    digests: [Digest::of(login.as_bytes())].into_iter().collect(),
                    client_version: Some("0.169.0".into()),
                    wrapper_version: Some("0.1.0".into()),
                    wrapper_fetched_at: None,
                })
                .collect(),
        }
    }
}
