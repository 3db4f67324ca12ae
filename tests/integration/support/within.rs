//! The content of a state directory, read without a daemon. Every sealed value is opened, and all parts must agree.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use codex_authd::model::authority::AuthorityRole;
use codex_authd::model::digest::Digest;
use codex_authd::platform::System;
use codex_authd::records::embedded::Embedded;
use codex_authd::records::{Epoch, prelude::*};
use codex_authd::seal::KeyId;
use codex_authd::service::core::boot;
use codex_authd::service::core::canonical::body_place;
use codex_authd::service::hosts::enrol::api_key_place;

#[derive(Debug, PartialEq, Eq)]
pub struct Within {
    /// Name and API key of each host.
    pub hosts: BTreeMap<String, String>,
    /// Digests of the canonical versions, the oldest first.
    pub versions: Vec<String>,
    pub server_ca: String,
    pub client_ca: String,
    /// The opened PKCS#8.
    pub server_key: Vec<u8>,
    pub sealing_keys: Vec<u32>,
}

/// Opens the records under `state`, which no other process may have open, and asserts that they are complete.
pub fn look_within(state: &Path) -> Within {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let records = Embedded::open(&state.join("records")).unwrap();
        let secrets = boot::unlock(&records, &state.join("master.key"), None, &System).await.unwrap();
        let ring = &secrets.ring;

        let values = records.sealed_value_list_before(KeyId(u32::MAX), usize::MAX).await.unwrap();
        for (place, sealed) in &values {
            ring.open(place, sealed).unwrap_or_else(|error| panic!("{place}: {error}"));
        }
        let (mut hosts, mut ids) = (BTreeMap::new(), HashSet::new());
        for host in records.host_list().await.unwrap() {
            let key = ring.open(&api_key_place(host.id), &host.api_key).unwrap();
            assert_eq!(Digest::of(&key), host.key_digest, "the key that is baked is the key that is accepted");
            assert_eq!(records.host_fetch_by_name(&host.fqdn).await.unwrap().as_ref(), Some(&host));
            let twice = hosts.insert(host.fqdn.as_str().to_owned(), String::from_utf8(key.to_vec()).unwrap());
            ids.insert(host.id);
            assert_eq!(twice, None, "{} is listed twice", host.fqdn.as_str());
        }
        let mut history = records.canonical_list(None, usize::MAX).await.unwrap();
        history.reverse();
        let numbers: Vec<u64> = history.iter().map(|version| version.version).collect();
        assert_eq!(numbers, (1..=history.len() as u64).collect::<Vec<_>>(), "no gap, nothing twice");
        let mut targets = 0;
        for summary in &history {
            let version = records.canonical_fetch_version(summary.version).await.unwrap().unwrap();
            let text = ring.open(&body_place(version.id), &version.body).unwrap();
            assert_eq!(Digest::of(&text), summary.digest);
            targets += version.entries.len();
        }
        let canonical = records.canonical_fetch().await.unwrap();
        assert_eq!(canonical.as_ref().map(|version| &version.summary), history.last());

        // Every sealed value has an owner: each host's key (also of hosts that may be restored), each version's text
        // and tokens, two authorities, one server key.
        let removed = records.host_list_removed().await.unwrap().len();
        assert_eq!(values.len(), hosts.len() + removed + history.len() + targets + 3);
        let changes = records.changes_since(Epoch(0)).await.unwrap();
        let live = || changes.install_tokens.iter().filter(|token| token.revoked_at.is_none());
        let with_one: HashSet<_> = live().map(|token| token.host).collect();
        assert!(ids.is_subset(&with_one), "each registration left an installer token");
        let pending: Vec<_> = live().filter(|token| token.redeemed_at.is_none()).map(|token| token.host).collect();
        let different: HashSet<_> = pending.iter().copied().collect();
        assert_eq!(pending.len(), different.len(), "an older installer token is dead");
        assert!(different.is_subset(&ids), "the installer token of a host that is gone is dead");

        let authorities = records.authority_list().await.unwrap();
        let ca = |role| {
            let mut of_role = authorities.iter().filter(|authority| authority.role == role);
            let only = of_role.next().unwrap();
            assert!(of_role.next().is_none(), "one {role:?} authority");
            only.certificate_pem.clone()
        };
        Within {
            hosts,
            versions: history.iter().map(|version| version.digest.to_string()).collect(),
            server_ca: ca(AuthorityRole::Server),
            client_ca: ca(AuthorityRole::Client),
            server_key: secrets.server_key.to_vec(),
            sealing_keys: records.sealing_key_list().await.unwrap().iter().map(|key| key.id.0).collect(),
        }
    })
}
