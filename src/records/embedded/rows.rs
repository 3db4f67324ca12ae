//! The key and the encoding of each row. A key is a prefix that ends in `/`, then the id; numbers are big-endian, so
//! that keys sort as the numbers do. Values are JSON.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable::{Snapshot, Staged};
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostId};
use crate::model::people::{Email, UserId};
use crate::records::{Epoch, RecordsError, Result};
use crate::seal::KeyId;

pub(super) const INITIALISED: &str = "initialised";
pub(super) const EPOCH: &str = "epoch";
/// Number of the canonical version, marked.
pub(super) const CANONICAL: &str = "canonical";
/// Marked.
pub(super) const SETTINGS: &str = "settings";
pub(super) const SERVER_KEY: &str = "server-key";

/// [`super::transaction::StoreRow`].
pub(super) const STORE: &str = "store";

/// Number and hash of the newest entry of the audit log.
pub(super) const AUDIT_HEAD: &str = "audit-head";

pub(super) const SEALING_KEY: &str = "sealing-key/";
pub(super) const AUTHORITY: &str = "authority/";
pub(super) const CERTIFICATE: &str = "certificate/";
/// Marked; removed hosts stay, so that every node reads the removal.
pub(super) const HOST: &str = "host/";
/// Removed hosts that can be restored.
pub(super) const REMOVED_HOST: &str = "removed-host/";
/// Index of hosts that are not removed: owner's id, then the host's.
const OWNED_HOST: &str = "owned-host/";
/// Index of hosts that are not removed: name → id.
pub(super) const HOST_NAME: &str = "host-name/";
/// Marked.
pub(super) const TOKEN: &str = "token/";
/// Index of tokens that are neither redeemed nor revoked: host id, then digest.
const PENDING_TOKEN: &str = "pending-token/";
pub(super) const VERSION: &str = "version/";
pub(super) const VERSION_SUMMARY: &str = "version-summary/";
/// Key: its number, which follows the order of the claims.
pub(super) const PROBE: &str = "probe/";
/// Id of a probe → its number.
const PROBE_ID: &str = "probe-id/";
pub(super) const USER: &str = "user/";
/// E-mail address → the user's id.
const USER_EMAIL: &str = "user-email/";
/// Marked.
pub(super) const SESSION: &str = "session/";
/// Key: issuer and subject.
pub(super) const IDENTITY: &str = "identity/";
/// Entries of the audit log.
pub(super) const AUDIT: &str = "audit/";
/// Kind of a set that nodes cache as a whole → the epoch that last changed it.
const SET: &str = "set/";
/// Id of the attempt that made a version → its number.
const VERSION_ID: &str = "version-id/";
pub(super) const NODE: &str = "node/";
pub(super) const ACTIVITY: &str = "activity/";
/// Epoch, then kind, then id: one row for each marked row, at the epoch that last changed it.
const CHANGED: &str = "changed/";
/// Key id, then place: one row for each sealed value.
const SEALED: &str = "sealed/";

/// Every key or prefix. None of them is a prefix of another.
pub(super) const ALL: &[&str] = &[
    INITIALISED,
    EPOCH,
    CANONICAL,
    SETTINGS,
    SERVER_KEY,
    STORE,
    AUDIT_HEAD,
    SEALING_KEY,
    AUTHORITY,
    CERTIFICATE,
    HOST,
    REMOVED_HOST,
    OWNED_HOST,
    HOST_NAME,
    TOKEN,
    PENDING_TOKEN,
    VERSION,
    VERSION_SUMMARY,
    PROBE,
    PROBE_ID,
    USER,
    USER_EMAIL,
    SESSION,
    IDENTITY,
    AUDIT,
    SET,
    VERSION_ID,
    NODE,
    ACTIVITY,
    CHANGED,
    SEALED,
];

/// A row that nodes cache, with the epoch that last changed it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marked<T> {
    pub epoch: Epoch,
    pub row: T,
}

pub(super) fn sealing_key(id: KeyId) -> Vec<u8> {
    key(SEALING_KEY, &[&id.0.to_be_bytes()])
}

pub(super) fn authority(id: Uuid) -> Vec<u8> {
    key(AUTHORITY, &[id.as_bytes()])
}

pub(super) fn certificate(fingerprint: &Digest) -> Vec<u8> {
    key(CERTIFICATE, &[fingerprint.as_bytes()])
}

pub(super) fn host(id: HostId) -> Vec<u8> {
    key(HOST, &[&id.0.to_be_bytes()])
}

pub(super) fn removed_host(id: HostId) -> Vec<u8> {
    key(REMOVED_HOST, &[&id.0.to_be_bytes()])
}

/// The number or id after a prefix.
pub(super) fn id_behind<const N: usize>(prefix: &str, key: &[u8]) -> Result<[u8; N]> {
    let id = key.get(prefix.len()..).and_then(|id| id.try_into().ok());
    id.ok_or_else(|| corrupt(prefix.trim_end_matches('/'), "its key is wrong"))
}

pub(super) fn read_removed_host(key: &[u8]) -> Result<HostId> {
    Ok(HostId(u64::from_be_bytes(id_behind(REMOVED_HOST, key)?)))
}

pub(super) fn owned_hosts(owner: UserId) -> Vec<u8> {
    key(OWNED_HOST, &[&owner.0.to_be_bytes()])
}

/// The host of a row under [`owned_hosts`].
pub(super) fn read_owned_host(prefix: &[u8], key: &[u8]) -> Result<HostId> {
    let id = key.get(prefix.len()..).and_then(|id| id.try_into().ok());
    id.map(|id| HostId(u64::from_be_bytes(id))).ok_or_else(|| corrupt("owned-host", "its key is wrong"))
}

pub(super) fn owned_host(owner: UserId, id: HostId) -> Vec<u8> {
    key(OWNED_HOST, &[&owner.0.to_be_bytes(), &id.0.to_be_bytes()])
}

pub(super) fn host_name(fqdn: &Fqdn) -> Vec<u8> {
    key(HOST_NAME, &[fqdn.as_str().as_bytes()])
}

pub(super) fn token(digest: &Digest) -> Vec<u8> {
    key(TOKEN, &[digest.as_bytes()])
}

pub(super) fn pending_tokens(host: HostId) -> Vec<u8> {
    key(PENDING_TOKEN, &[&host.0.to_be_bytes()])
}

pub(super) fn pending_token(host: HostId, digest: &Digest) -> Vec<u8> {
    key(PENDING_TOKEN, &[&host.0.to_be_bytes(), digest.as_bytes()])
}

pub(super) fn version(number: u64) -> Vec<u8> {
    key(VERSION, &[&number.to_be_bytes()])
}

pub(super) fn version_summary(number: u64) -> Vec<u8> {
    key(VERSION_SUMMARY, &[&number.to_be_bytes()])
}

pub(super) fn read_version_summary(key: &[u8]) -> Result<u64> {
    Ok(u64::from_be_bytes(id_behind(VERSION_SUMMARY, key)?))
}

/// The summaries of versions below `before`, or of all.
pub(super) fn version_summaries_below(before: Option<u64>) -> (Vec<u8>, Vec<u8>) {
    (key(VERSION_SUMMARY, &[]), before.map_or_else(|| end_of(VERSION_SUMMARY), version_summary))
}

pub(super) fn version_id(id: Uuid) -> Vec<u8> {
    key(VERSION_ID, &[id.as_bytes()])
}

pub(super) fn probe(number: u64) -> Vec<u8> {
    key(PROBE, &[&number.to_be_bytes()])
}

pub(super) fn read_probe(key: &[u8]) -> Result<u64> {
    Ok(u64::from_be_bytes(id_behind(PROBE, key)?))
}

pub(super) fn probe_id(id: Uuid) -> Vec<u8> {
    key(PROBE_ID, &[id.as_bytes()])
}

pub(super) fn user(id: UserId) -> Vec<u8> {
    key(USER, &[&id.0.to_be_bytes()])
}

pub(super) fn user_email(email: &Email) -> Vec<u8> {
    key(USER_EMAIL, &[email.as_str().as_bytes()])
}

pub(super) fn session(id: Uuid) -> Vec<u8> {
    key(SESSION, &[id.as_bytes()])
}

/// Issuer and subject may be any text. Two NULs end the issuer. A NUL in the issuer is followed by 0xff, which is not
/// UTF-8. So keys sort as the pairs do, and each pair has its own key.
pub(super) fn identity(issuer: &str, subject: &str) -> Vec<u8> {
    let issuer = issuer.as_bytes().split(|byte| *byte == 0).collect::<Vec<_>>().join(&[0, 0xff][..]);
    key(IDENTITY, &[&issuer, &[0, 0], subject.as_bytes()])
}

pub(super) fn node(id: Uuid) -> Vec<u8> {
    key(NODE, &[id.as_bytes()])
}

pub(super) fn activity(host: HostId) -> Vec<u8> {
    key(ACTIVITY, &[&host.0.to_be_bytes()])
}

pub(super) fn changed(epoch: Epoch, kind: u8, id: &[u8]) -> Vec<u8> {
    key(CHANGED, &[&epoch.0.to_be_bytes(), &[kind], id])
}

/// Entries with numbers `from..to`.
pub(super) fn audit_between(from: u64, to: u64) -> (Vec<u8>, Vec<u8>) {
    (audit(from), audit(to))
}

pub(super) fn audit(number: u64) -> Vec<u8> {
    key(AUDIT, &[&number.to_be_bytes()])
}

pub(super) fn set(kind: u8) -> Vec<u8> {
    key(SET, &[&[kind]])
}

/// Every change after `epoch`.
pub(super) fn changed_after(epoch: Epoch) -> (Vec<u8>, Vec<u8>) {
    (key(CHANGED, &[&epoch.0.saturating_add(1).to_be_bytes()]), end_of(CHANGED))
}

/// The kind and the id of a row of the change index.
pub(super) fn read_changed(key: &[u8]) -> Result<(u8, &[u8])> {
    let rest = key.get(CHANGED.len() + 8..).ok_or_else(|| corrupt("a change", "its key is too short"))?;
    let (kind, id) = rest.split_first().ok_or_else(|| corrupt("a change", "its key is too short"))?;
    Ok((*kind, id))
}

pub(super) fn sealed_with(id: KeyId) -> Vec<u8> {
    key(SEALED, &[&id.0.to_be_bytes()])
}

pub(super) fn sealed(id: KeyId, place: &[u8]) -> Vec<u8> {
    key(SEALED, &[&id.0.to_be_bytes(), place])
}

pub(super) fn sealed_before(id: KeyId) -> (Vec<u8>, Vec<u8>) {
    (key(SEALED, &[]), sealed_with(id))
}

/// The place in a row of the index of sealed values.
pub(super) fn read_sealed(key: &[u8]) -> Result<&[u8]> {
    key.get(SEALED.len() + 4..).ok_or_else(|| corrupt("a sealed value's place", "its key is too short"))
}

/// A source of rows: a snapshot, or a change with what it has staged.
pub(super) trait RowSource {
    fn bytes(&self, key: &[u8]) -> Result<Option<Bytes>>;
}

impl RowSource for Staged<'_> {
    fn bytes(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.get(key)?)
    }
}

impl RowSource for Snapshot {
    fn bytes(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.get(key)?)
    }
}

pub(super) fn get<T: DeserializeOwned>(source: &impl RowSource, key: impl AsRef<[u8]>) -> Result<Option<T>> {
    let key = key.as_ref();
    source.bytes(key)?.map(|value| decode(key, &value)).transpose()
}

pub(super) fn put(staged: &mut Staged<'_>, key: impl Into<Vec<u8>>, row: &impl Serialize) -> Result<()> {
    let key = key.into();
    let value = encode(&key, row)?;
    staged.insert(key, value);
    Ok(())
}

/// All rows under `prefix`, in key order.
pub(super) fn all<T: DeserializeOwned>(data: &Snapshot, prefix: &str) -> Result<Vec<T>> {
    data.scan(prefix).map(|row| row.map_err(Into::into).and_then(|(key, value)| decode(&key, &value))).collect()
}

pub(super) fn encode(key: &[u8], row: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(row).map_err(|e| corrupt(&table_of(key), e))
}

pub(super) fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| corrupt(&table_of(key), e))
}

/// The error for a missing row that another row points to.
pub(super) fn missing(what: &str) -> RecordsError {
    corrupt(what, "it is missing")
}

pub(super) fn corrupt(what: &str, why: impl std::fmt::Display) -> RecordsError {
    RecordsError::Corrupt(format!("{what}: {why}"))
}

fn key(prefix: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = prefix.as_bytes().to_vec();
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// The first key after all keys with `prefix`, which ends in `/`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The prefix of the key, for messages: it contains no id and no secret.
fn table_of(key: &[u8]) -> String {
    String::from_utf8_lossy(key.split(|byte| *byte == b'/').next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn no_prefix_is_a_prefix_of_another() {
        for (at, one) in ALL.iter().enumerate() {
            for (other_at, other) in ALL.iter().enumerate() {
                assert!(at == other_at || !other.starts_with(one), "{one} {other}");
            }
        }
    }
}
