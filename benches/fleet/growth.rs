//! The size of the embedded records after many small updates: the activity of 1,000 hosts is overwritten a million
//! times (`BENCH_UPDATES`), a hundred per commit. The baseline is the size after the first tenth: if the store stops
//! growing, both are nearly equal.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use codex_authd::model::audit::{Actor, AuditNote};
use codex_authd::model::digest::Digest;
use codex_authd::model::host::{HostId, RecentDigests};
use codex_authd::platform::{Clock as _, System};
use codex_authd::records::embedded::Embedded;
use codex_authd::records::{NewInstallToken, Registration, Telemetry, prelude::*};
use codex_authd::seal::Sealed;
use uuid::Uuid;

use crate::report::{Cell, Row};
use crate::{Result, number, seed};

const HOSTS: u64 = 1000;
const BATCH: u64 = 100;

pub async fn rows(directory: &Path) -> Result<Vec<Row>> {
    let updates: u64 = number("BENCH_UPDATES", 1_000_000)?;
    let records = directory.join("growth");
    let store = Arc::new(Embedded::open(&records)?);
    for id in 1..=HOSTS {
        register(&store, id).await?;
    }
    let (node, begun) = (Uuid::new_v4(), Instant::now());
    let mut size = Row::new(format!("size of the records after {updates} small updates"), "after a tenth of them");
    let batches = updates / BATCH;
    for seq in 1..=batches {
        let hosts = (0..BATCH).map(|index| HostId((seq * BATCH + index) % HOSTS + 1));
        let batch: Vec<_> = hosts.map(seen).collect();
        store.telemetry_append(node, seq, &batch).await?;
        if seq == batches / 10 {
            size.baseline.push(Cell::mebibytes(kibibytes_in(&records)?));
        }
    }
    let mut rate = Row::new("small updates, 100 in each commit, 1 writer".into(), "commits");
    rate.ours.push(Cell::per_second(updates as usize, begun.elapsed()));
    rate.baseline.push(Cell::per_second(batches as usize, begun.elapsed()));
    size.ours.push(Cell::mebibytes(kibibytes_in(&records)?));
    Ok(vec![rate, size])
}

async fn register(store: &Embedded, id: u64) -> Result<()> {
    let now = System.now();
    let registration = Registration {
        id: HostId(id),
        fqdn: seed::name(id as usize).parse()?,
        key_digest: Digest::of(&id.to_be_bytes()),
        api_key: Sealed::from_bytes(vec![7; 100]),
        secure: None,
        expires_at: None,
        insecure_enabled_until: None,
        token: NewInstallToken {
            digest: Digest::of(&(id + HOSTS).to_be_bytes()),
            base_url: "https://auth.example.com:8443".into(),
            expires_at: now,
        },
        at: now,
    };
    store.host_register(&registration, &AuditNote::new(now, Actor::Daemon, None, "host.register")).await?;
    Ok(())
}

fn seen(host: HostId) -> Telemetry {
    Telemetry::Seen {
        host,
        calls: 1,
        last_seen: System.now(),
        last_refresh: Some("2026-11-20T09:27:43.373506211Z".into()),
        digests: RecentDigests::default(),
        client_version: Some("0.141.0".into()),
        wrapper_version: Some("0.1.0".into()),
        wrapper_fetched_at: None,
    }
}

/// The disk space of the files in `directory`, in KiB.
fn kibibytes_in(directory: &Path) -> Result<f64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut blocks = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() {
            blocks += (kibibytes_in(&entry.path())? * 2.0) as u64;
        } else {
            blocks += about.blocks();
        }
    }
    Ok(blocks as f64 / 2.0)
}
