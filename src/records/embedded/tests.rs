use std::sync::atomic::{AtomicBool, Ordering};

use crate::records::conformance::{Fixture, conformance_tests};

use uuid::Uuid;

use super::*;
use crate::model::digest::Digest;
use crate::model::host::HostId;
use crate::records::prelude::*;
use crate::records::{ClaimOutcome, Epoch, Host, Redemption, ReplaceCondition, SealingKey};
use crate::records::{ProbeState, ProbeTrigger};
use crate::seal::{KeyId, Sealed};

async fn empty() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture { records: Arc::new(Embedded::open(dir.path()).unwrap()), keep: Box::new(dir) }
}

mod conformance {
    super::conformance_tests!(super::empty);
}

mod crash;

use crate::records::conformance::probes::{claim, outcome};
use crate::records::conformance::{
    at, fqdn, ip, key as host_key, kill_switch, new_canonical, noted, registration, replaced, sealed, seen, token,
};

#[tokio::test]
async fn everything_is_there_when_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let node = Uuid::new_v4();
    let key = SealingKey { id: KeyId(1), sealed: sealed(0, "data key"), created_at: at(0) };
    store.sealing_key_add(&key, &noted()).await.unwrap();
    let host = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    store.host_register(&registration(2, "h2.test", "b"), &noted()).await.unwrap();
    store.installer_redeem(&token("b"), &host_key("b"), at(1), ip("192.0.2.1"), &noted()).await.unwrap();
    let version = replaced(
        store.canonical_replace(&ReplaceCondition::Version(None), &new_canonical("1"), &noted()).await.unwrap(),
    );
    store.settings_change(&kill_switch(true), &noted()).await.unwrap();
    store.telemetry_append(node, 3, &[seen(1, 2, 5, Some("0.1"))]).await.unwrap();
    let probe = claim(0, ProbeTrigger::Admin);
    store.probe_claim(&probe, None).await.unwrap();
    let epoch = store.epoch().await.unwrap();
    drop(store);

    let store = Embedded::open(dir.path()).unwrap();
    assert_eq!(store.sealing_key_list().await.unwrap(), [key]);
    assert_eq!(store.host_fetch_by_name(&fqdn("h1.test")).await.unwrap(), Some(host));
    assert_eq!(store.host_list().await.unwrap().len(), 2);
    assert_eq!(store.canonical_fetch().await.unwrap(), Some(version));
    assert!(store.settings_fetch().await.unwrap().api_disabled);
    assert_eq!(store.epoch().await.unwrap(), epoch);
    assert_eq!(store.changes_since(Epoch(0)).await.unwrap().install_tokens.len(), 2);
    let redemption =
        store.installer_redeem(&token("b"), &host_key("b"), at(2), ip("192.0.2.1"), &noted()).await.unwrap();
    assert_eq!(redemption, Redemption::AlreadyUsed);
    let another = store.probe_claim(&claim(1, ProbeTrigger::Admin), None).await.unwrap();
    assert!(matches!(&another, ClaimOutcome::Busy(known) if known.id == probe.id), "{another:?}");
    assert!(store.probe_finish(probe.id, &outcome(ProbeState::Ok, 2), None).await.unwrap());
    store.telemetry_append(node, 3, &[seen(1, 2, 5, Some("0.1"))]).await.unwrap();
    assert_eq!(store.host_activity(HostId(1)).await.unwrap().api_calls, 2);
}

/// There is no import yet; the test writes the imported key itself.
#[tokio::test]
async fn registering_again_kills_an_imported_key_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let host = store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let imported = Host { imported_key_digest: Some(Digest::of(b"imported")), ..host };
    let import = |staged: &mut Staged<'_>| {
        let epoch = transaction::bump(staged)?;
        tables::hosts::put(staged, &imported, epoch)
    };
    store.data.write(import).unwrap();
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap(), imported);
    let again = store.host_register(&registration(1, "h1.test", "b"), &noted()).await.unwrap();
    assert_eq!(again.imported_key_digest, None);
    assert_eq!(store.host_fetch(HostId(1)).await.unwrap().unwrap().imported_key_digest, None);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_said_to_be_corrupt_without_showing_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let damage = |staged: &mut Staged<'_>| -> Result<()> {
        staged.insert(rows::host(HostId(1)), "{\"secret");
        Ok(())
    };
    store.data.write(damage).unwrap();
    let error = store.host_fetch(HostId(1)).await.unwrap_err();
    assert!(matches!(error, RecordsError::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("host") && !error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn no_answer_rests_on_what_the_disk_did_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let failing = Arc::new(AtomicBool::new(false));
    let data = Store::durable_on_failing_disk(dir.path(), "records", Arc::clone(&failing)).unwrap();
    let store = Embedded::on(data);
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    assert!(store.healthy());
    failing.store(true, Ordering::SeqCst);
    let redemption = store.installer_redeem(&token("a"), &host_key("a"), at(2), ip("192.0.2.1"), &noted()).await;
    assert!(matches!(redemption, Err(RecordsError::Failed(_))), "{redemption:?}");
    failing.store(false, Ordering::SeqCst);
    // A power cut might take back "already used", and the spent token in the changes.
    assert!(!store.healthy());
    assert!(store.installer_redeem(&token("a"), &host_key("a"), at(3), ip("192.0.2.1"), &noted()).await.is_err());
    assert!(store.changes_since(Epoch(0)).await.is_err());
    assert!(store.host_fetch(HostId(1)).await.is_err());
    assert!(store.host_list().await.is_err());
}

/// The cost of a rotation's query must not depend on the number of hosts. Compares two durations, since this machine
/// may be busy.
#[tokio::test]
async fn a_great_many_hosts_are_no_burden() {
    let hosts = if std::env::var("AUTHD_LONG_TESTS").is_ok_and(|value| value == "1") { 100_000 } else { 5_000 };
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    // Registers in large batches without waiting for the flusher: their speed is not measured.
    for from in (1..=hosts).step_by(1000) {
        let register = |staged: &mut Staged<'_>| -> Result<()> {
            for id in from..from + 1000 {
                let mut registration = registration(id, &format!("h{id}.test"), &id.to_string());
                registration.api_key = sealed(2, "key");
                hosts::register(staged, &registration, &noted())?;
            }
            Ok(())
        };
        store.data.write(register).unwrap();
    }
    store.data.commit().await.unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(store.host_list().await.unwrap().len() as u64, hosts);
    assert_eq!(store.changes_since(Epoch(0)).await.unwrap().hosts.len() as u64, hosts);
    let all = begun.elapsed();
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        assert!(store.sealed_value_list_before(KeyId(2), 100).await.unwrap().is_empty());
    }
    let few = begun.elapsed();
    println!("{hosts} hosts: listed and reloaded in {all:?}, 100 searches for old seals in {few:?}");
    assert!(few < all, "a hundred searches ({few:?}) cost more than reading everything twice ({all:?})");
}
