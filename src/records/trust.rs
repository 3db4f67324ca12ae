//! The keys and certificates of the daemon: authorities, the server's key, admin certificates, data keys.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Result;
use crate::model::audit::AuditNote;
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::people::UserId;
use crate::seal::{KeyId, Place, Sealed};

#[async_trait]
pub trait TrustRecords: Send + Sync {
    async fn authority_list(&self) -> Result<Vec<Authority>>;
    /// Moves the authorities of a role by one step; returns all authorities after it. `None`: `step` does not fit the
    /// present slots. Bumps the epoch.
    async fn authority_roll(
        &self,
        role: AuthorityRole,
        step: &AuthorityStep,
        audit: &AuditNote,
    ) -> Result<Option<Vec<Authority>>>;
    async fn server_key_fetch(&self) -> Result<Option<Sealed>>;
    /// Records an issued certificate; a known one stays as it is. Bumps the epoch, as
    /// [`TrustRecords::certificate_revoke`] does: nodes cache the certificates.
    async fn certificate_record(&self, certificate: &AdminCertificate, audit: &AuditNote) -> Result<()>;
    /// Revoked and expired ones included, in the order of issue.
    async fn certificate_list(&self) -> Result<Vec<AdminCertificate>>;
    /// Records `certificate` as the successor of `old`, with the user that `old` has at that moment, and returns it.
    /// Revokes `old` at `revoke_at`, if given. `None`: `old` is unknown or revoked. A known `certificate` is returned,
    /// and nothing is written. Bumps the epoch.
    async fn certificate_renew(
        &self,
        old: &Digest,
        certificate: &AdminCertificate,
        revoke_at: Option<OffsetDateTime>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>>;
    /// `None`: no such certificate, or it is revoked.
    async fn certificate_revoke(
        &self,
        fingerprint: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>>;
    /// Gives a certificate to a user; from then on it has the user's role. `None` makes it an admin's. Bumps the epoch,
    /// unless the certificate has this user. Returns `None` if there is no such certificate or user.
    async fn certificate_set_user(
        &self,
        fingerprint: &Digest,
        user: Option<UserId>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>>;
    async fn sealing_key_list(&self) -> Result<Vec<SealingKey>>;
    /// Adds a data key. `false`: the id exists, and nothing is written. The highest id is the active key.
    async fn sealing_key_add(&self, key: &SealingKey, audit: &AuditNote) -> Result<bool>;
    /// Removes a data key. `false`: no such key, it is the highest, or a value is still sealed with it.
    async fn sealing_key_remove(&self, id: KeyId) -> Result<bool>;
    /// Up to `limit` sealed values whose key is older than `active`, in any order.
    async fn sealed_value_list_before(&self, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>>;
    /// Replaces the value at `place` if it is still `old`; `false`: it changed or is gone. Bumps the epoch.
    async fn sealed_value_replace(&self, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool>;
}

/// A data key, sealed under the master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingKey {
    pub id: KeyId,
    pub sealed: Sealed,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthoritySlot {
    Next,
    Active,
    Old,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    pub id: Uuid,
    pub role: AuthorityRole,
    pub slot: AuthoritySlot,
    pub certificate_pem: String,
    /// PKCS#8 DER, at place `authorities/private_key/<id>`.
    pub private_key: Sealed,
    /// The same key, certified by the authority that was active before: for hosts that trust only that one.
    #[serde(default)]
    pub cross_certificate_pem: Option<String>,
    /// `None` for authorities of the first format.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub created_at: Option<OffsetDateTime>,
}

/// One step of a rollover. A repeated step does not fit.
#[derive(Clone, Debug)]
pub enum AuthorityStep {
    /// Puts an authority into the empty slot `next`. `active` must still be active: it may have certified the new one.
    Prepare { made: Box<Authority>, active: Uuid },
    /// Moves `next`, which must be this one, to `active`, and `active` to `old`, which must be empty.
    Activate(Uuid),
    /// Empties `old`, which must be this one.
    Retire(Uuid),
}

/// A certificate issued to an admin or a user. Its private key is not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminCertificate {
    /// SHA-256 of the DER.
    pub fingerprint: Digest,
    pub name: String,
    /// Lower-case hex.
    pub serial: String,
    #[serde(with = "time::serde::rfc3339")]
    pub issued_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// The authority that signed it; `None` for certificates of the first format.
    #[serde(default)]
    pub authority: Option<Uuid>,
    /// The user whose role it gives. `None`: it gives an admin's rights.
    // Left out if unset: a backup has digests of its rows, and older rows do not have this member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
}
