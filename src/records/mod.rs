//! The durable records: the truth. One trait per aggregate; its methods are intents, not rows. `embedded` keeps the
//! records in a redb file, `mysql` in a database; `conformance` tests every implementation.
//!
//! The records know no plaintext secret: values that must be read back arrive sealed, keys and tokens as digests.
//!
//! **Changes.** Each method that changes something is one transaction. It returns when the change survives a power cut.
//! A crash before that leaves all of the change or none of it. A caller may repeat a method after an error with an
//! unknown outcome. For that the caller makes the ids, and each method checks the present state before it changes
//! anything.
//!
//! **Audit.** Such a method takes the [`AuditNote`](crate::model::audit::AuditNote) of the change and appends it to the
//! audit log in the same transaction. A call that changes nothing appends nothing.
//!
//! **Epoch.** Each change that nodes cache bumps the epoch in its transaction and marks its rows with it. So
//! [`RecordStore::changes_since`] tells a node what to reload.

mod audit;
#[cfg(test)]
pub mod conformance;
pub mod copy;
pub mod embedded;
mod hosts;
mod login;
pub mod mysql;
pub mod people;
mod probes;
mod rules;
mod settings;
mod store;
mod transfer;
mod trust;

use serde::{Deserialize, Serialize};

pub use audit::AuditRecords;
pub use hosts::{
    Host, HostChange, HostRecords, InstallToken, NewInstallToken, Owner, Redemption, Registration, RegistrationOutcome,
    Restoration, Telemetry,
};
pub use login::{
    AuthEntry, CanonicalSource, CanonicalSummary, CanonicalVersion, LoginRecords, NewCanonical, ReplaceCondition,
    Replacement, Retention,
};
pub use people::{
    ChangedUser, ExternalIdentity, ExternalIdentitySeed, LinkOutcome, PasswordHash, PeopleRecords, Session,
    SessionOutcome, SignInMethod, User, UserChange, seed_external_identities,
};
pub use probes::{ClaimOutcome, Probe, ProbeClaim, ProbeOutcome, ProbeRecords, ProbeState, ProbeSummary, ProbeTrigger};
pub use settings::{
    ClientRelease, HostTrust, RestoredLogin, Settings, SettingsChange, SettingsRecords, VerifiedBackup,
};
pub use store::{BootMaterial, Changes, RecordStore, Seed, ServerHealth, StoreFailure, StoreState};
pub use transfer::{Filling, Standstill, TransferRecords};
pub use trust::{AdminCertificate, Authority, AuthoritySlot, AuthorityStep, SealingKey, TrustRecords};

/// The traits, for callers that hold one of the stores itself.
pub mod prelude {
    pub use super::{
        AuditRecords, HostRecords, LoginRecords, PeopleRecords, ProbeRecords, RecordStore, Records, SettingsRecords,
        TransferRecords, TrustRecords,
    };
}

/// All records of one installation.
pub trait Records:
    RecordStore
    + HostRecords
    + LoginRecords
    + TrustRecords
    + PeopleRecords
    + AuditRecords
    + ProbeRecords
    + SettingsRecords
    + TransferRecords
{
}

impl<T> Records for T where
    T: RecordStore
        + HostRecords
        + LoginRecords
        + TrustRecords
        + PeopleRecords
        + AuditRecords
        + ProbeRecords
        + SettingsRecords
        + TransferRecords
{
}

#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The store cannot be reached or written now. The change was applied completely or not at all.
    #[error("the records are not available: {0}")]
    Unavailable(String),
    /// The store takes no more changes until it is opened again ([`RecordStore::failure`]). The change was applied
    /// completely or not at all.
    #[error("the records take no changes: {0}")]
    Failed(String),
    /// A row, or the whole store, does not match its checksum.
    #[error("{0}")]
    Damaged(String),
    /// At a standstill every change is refused; nothing was done.
    #[error("the records are at a standstill: {0}")]
    StandsStill(Standstill),
    /// A row cannot be read: another version wrote it, or it is damaged.
    #[error("the records contain unreadable data: {0}")]
    Corrupt(String),
}

pub type Result<T> = std::result::Result<T, RecordsError>;

/// Counts the changes of what nodes cache; each one increments it in its transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);
