//! Makes a state directory of a fleet that has been in use. It uses the library's records directly, without the daemon.
//! Every host is registered, has redeemed its installer, is bound to loopback and has made some calls.

use std::path::Path;
use std::sync::Arc;

use codex_authd::model::audit::{Actor, AuditNote};
use codex_authd::model::digest::Digest;
use codex_authd::model::host::HostId;
use codex_authd::model::secret::Secret;
use codex_authd::platform::{Clock as _, System};
use codex_authd::records::embedded::Embedded;
use codex_authd::records::{NewInstallToken, Records, Registration, Telemetry, prelude::*};
use codex_authd::service::core::boot;
use codex_authd::service::hosts::enrol::api_key_place;
use time::Duration;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Result;

/// This many changes share a flush.
const AT_ONCE: usize = 512;
/// Telemetry of this many hosts in one batch.
const BATCH: usize = 500;

/// The key of the host with this index. It is derived from the index, so that only the size of a fleet must be kept.
pub fn api_key(index: usize) -> String {
    Digest::of(format!("key of bench host {index}").as_bytes()).to_string()
}

pub fn name(index: usize) -> String {
    format!("host-{index}.bench.example.com")
}

/// One host in fifty is a shared machine with a closed window.
pub fn is_secure(index: usize) -> bool {
    !index.is_multiple_of(50)
}

/// Adds `hosts` hosts to the state in `state`. Its daemon must have run once and must be stopped.
pub async fn seed(state: &Path, hosts: usize) -> Result<()> {
    let records = Arc::new(Embedded::open(&state.join("records"))?);
    let secrets = Arc::new(boot::unlock(&*records, &state.join("master.key"), None, &System).await?);
    let mut running = JoinSet::new();
    let mut ids = Vec::with_capacity(hosts);
    for index in 0..hosts {
        let id = HostId(index as u64 + 1);
        ids.push(id);
        let (records, secrets) = (records.clone(), secrets.clone());
        running.spawn(async move { one(&*records, &secrets, id, index).await });
        if running.len() == AT_ONCE {
            running.join_next().await.transpose()?.transpose()?;
        }
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    let (node, now) = (Uuid::new_v4(), System.now());
    for (seq, ids) in ids.chunks(BATCH).enumerate() {
        let batch: Vec<_> = ids
            .iter()
            .map(|id| Telemetry::Seen {
                host: *id,
                // Spread values, so that no sort finds its input in order.
                calls: 1 + id.0.wrapping_mul(2_654_435_761) % 10_000,
                last_seen: now - Duration::seconds((id.0.wrapping_mul(40_503) % 2_000_000) as i64),
                last_refresh: Some("2026-11-20T09:27:43.373506211Z".into()),
                digests: [Digest::of(b"the login")].into_iter().collect(),
                client_version: Some(format!("0.{}.0", 100 + id.0 % 70)),
                wrapper_version: Some("0.1.0".into()),
                wrapper_fetched_at: None,
            })
            .collect();
        records.telemetry_append(node, seq as u64 + 1, &batch).await?;
    }
    Ok(())
}

pub async fn one(records: &dyn Records, secrets: &boot::Secrets, id: HostId, index: usize) -> Result<()> {
    let (key, now) = (Secret::new(api_key(index)), System.now());
    let token = Secret::new_install_token(&System).digest();
    let from = [127, 0, 0, 1].into();
    let registration = Registration {
        id,
        fqdn: name(index).parse()?,
        key_digest: key.digest(),
        api_key: secrets.ring.seal(&api_key_place(id), key.expose().as_bytes(), &System)?,
        secure: Some(is_secure(index)),
        expires_at: None,
        insecure_enabled_until: None,
        token: NewInstallToken {
            digest: token,
            base_url: "https://auth.example.com:8443".into(),
            expires_at: now + Duration::minutes(30),
        },
        at: now,
    };
    let note = AuditNote::new(now, Actor::Daemon, None, "host.register");
    records.host_register(&registration, &note).await?;
    records.installer_redeem(&token, &key.digest(), now, from, &note).await?;
    records.host_bind_ip(id, &key.digest(), from, 64, now, &note).await?;
    Ok(())
}
