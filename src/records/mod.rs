//! The durable records: the truth. One trait whose methods are intents, not rows; `embedded` keeps it in a redb file, and
//! `conformance` is the suite that every implementation passes.
//!
//! The records know no plaintext secret: what must be read back arrives sealed, keys and tokens arrive as digests.
//!
//! Every method that changes something is one transaction and returns only when the change is power-safe. A crash before
//! that leaves either all of it or nothing. Methods are safe to repeat after an error whose outcome is unknown: ids are
//! made by the caller, and what must happen once is decided here by a condition on the present state.
//!
//! Who changed what is written with the change: such a method takes the [`AuditNote`] and appends it to the audit log in
//! the same transaction. Where nothing is changed (no such host, somebody was first) nothing is noted.
//!
//! Each change that nodes cache bumps the *epoch* within its transaction and marks the rows with it, so that
//! [`Records::changes_since`] tells a node what to reload.

#[cfg(test)]
pub mod conformance;
pub mod copy;
pub mod embedded;
pub mod mysql;
pub mod people;
mod probes;
mod rules;

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote};
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId, HostRules, RecentDigests};
use crate::model::people::{Email, UserId};
use crate::seal::{KeyId, Place, Sealed};

pub use people::{
    Begun, ChangedUser, ExternalIdentity, ExternalIdentitySeed, LONGEST_IDENTITY_PART, Linked, Owner, PasswordHash,
    Session, SignedInBy, User, UserChange, seed_external_identities,
};
pub use probes::{Claimed, Probe, ProbeClaim, ProbeOutcome, ProbeState, ProbeSummary, ProbeTrigger};

#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The store cannot be reached or written just now; nothing, or all, of the change was done.
    #[error("the records are not available: {0}")]
    Unavailable(String),
    /// The store takes no more changes until it is opened anew ([`Records::failure`]); nothing, or all, of the change was
    /// done.
    #[error("the records take no changes: {0}")]
    Failed(String),
    /// What is stored is not what was written: a row, or the whole store, does not have its checksum.
    #[error("{0}")]
    Damaged(String),
    /// They are to be left as they are: every change is refused, and nothing of it was done.
    #[error("the records stand still: {0}")]
    StandsStill(Standstill),
    /// What is stored cannot be read: it was written by another version, or damaged.
    #[error("the records hold something unreadable: {0}")]
    Corrupt(String),
}

pub type Result<T> = std::result::Result<T, RecordsError>;

/// Counts the changes that nodes cache. Grows within the transaction of each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

#[async_trait]
pub trait Records: Send + Sync {
    /// Writes what the first boot made, once and whole; `false` when somebody was first, and then nothing is written.
    async fn initialise(&self, seed: &Seed, audit: &AuditNote) -> Result<bool>;
    async fn is_initialised(&self) -> Result<bool>;

    /// Whether the store can be read and what is written becomes durable.
    async fn check(&self) -> Result<()>;
    /// Why the store takes no more changes until it is opened anew; `None` as long as it does. Waits for nothing.
    fn failure(&self) -> Option<StoreFailure>;
    /// Whether it can be out of reach while this machine is well. Then what nodes cache has to outlast them.
    fn may_be_away(&self) -> bool;
    /// Whether a change was refused a moment ago though others may be taken: [`Records::check`] says why.
    fn refused_lately(&self) -> bool {
        false
    }
    /// What a store that is another process says of itself; `None`: it is part of this one.
    async fn server_health(&self) -> Result<Option<ServerHealth>> {
        Ok(None)
    }
    /// Reads every row and its checksum, and says how many there are; `None`: it is another process that does so by itself.
    async fn verify(&self) -> Result<Option<u64>> {
        Ok(None)
    }
    /// How often a change of this process lost against another one and was tried again.
    fn conflicts(&self) -> u64;

    async fn sealing_key_list(&self) -> Result<Vec<SealingKey>>;
    /// Adds a data key (an id that is there already: `false`, nothing written). The highest id is the active one.
    async fn sealing_key_add(&self, key: &SealingKey, audit: &AuditNote) -> Result<bool>;
    /// Removes a data key, unless there is none, it is the highest, or a value sealed with it is left: then `false`.
    async fn sealing_key_remove(&self, id: KeyId) -> Result<bool>;
    /// Up to `limit` sealed values whose key is older than `active`, any order.
    async fn sealed_value_list_before(&self, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>>;
    /// Replaces the value at `place` if it is still `old`; `false` when it changed or is gone. Bumps the epoch.
    async fn sealed_value_replace(&self, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool>;

    async fn authority_list(&self) -> Result<Vec<Authority>>;
    /// Moves the authorities of a role one slot on and gives all authorities as they are then. `None`: `step` does not fit
    /// what is there now. Bumps the epoch.
    async fn authority_roll(
        &self,
        role: AuthorityRole,
        step: &AuthorityStep,
        audit: &AuditNote,
    ) -> Result<Option<Vec<Authority>>>;
    async fn server_key_fetch(&self) -> Result<Option<Sealed>>;
    /// Once: a certificate that is known already stays as it is. Bumps the epoch, as [`Records::certificate_revoke`] does:
    /// nodes cache who is let in.
    async fn certificate_record(&self, certificate: &AdminCertificate, audit: &AuditNote) -> Result<()>;
    /// Revoked and expired ones included.
    async fn certificate_list(&self) -> Result<Vec<AdminCertificate>>;
    /// Records `certificate` in succession of `old`, and gives it back with the user that `old` is tied to in that moment.
    /// `old` is revoked where `revoke_at` is given. `None`, and nothing is written: there is no such certificate, or it is
    /// revoked. Repeated with a certificate that is known it writes nothing. Bumps the epoch.
    async fn certificate_renew(
        &self,
        old: &Digest,
        certificate: &AdminCertificate,
        revoke_at: Option<OffsetDateTime>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>>;
    /// `None`: no such certificate, or it is revoked already.
    async fn certificate_revoke(
        &self,
        fingerprint: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>>;

    /// Makes a host, or, where the name is taken, gives that host a new key (the old one, and an imported key, are dead
    /// from here on), bound to no address yet, and with it a new installer token; all of the host's pending tokens are
    /// revoked. Repeated with a token that is known already it writes nothing and gives back the host as it is now. An
    /// id that another host has, or had, is an error, and nothing is written: the caller makes a new one.
    /// A host that a user installed for themselves is nobody's from then on: the entry in the audit log names the user it
    /// was taken from. If it was disabled with that user it is enabled.
    async fn host_register(&self, registration: &Registration, audit: &AuditNote) -> Result<Host>;
    /// The same for a host that is, or becomes, the owner's; whether it may is decided within the transaction. A host that
    /// is nobody's is not theirs. The limit holds for a host of theirs that is registered again, too: who has more than
    /// they may have by now registers none. A user who is disabled registers none; whether the user is there is not
    /// checked.
    async fn host_register_owned(
        &self,
        registration: &Registration,
        owner: &Owner,
        audit: &AuditNote,
    ) -> Result<Registered>;
    /// Removes a host: its key and its pending tokens are refused, its name is free. `None`: no such host.
    async fn host_remove(&self, id: HostId, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Host>>;
    /// The same for a host of this owner's. `None`: there is none, or it is not theirs (any more).
    async fn host_remove_owned(
        &self,
        id: HostId,
        owner: UserId,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>>;
    /// Brings back a host that was removed after `removed_after`, with the key, rules and activity that it had; its
    /// installer tokens stay revoked.
    async fn host_restore(
        &self,
        id: HostId,
        removed_after: OffsetDateTime,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Restoration>;
    /// Hosts that were removed and can still be brought back, the last one first.
    async fn host_list_removed(&self) -> Result<Vec<Host>>;
    /// Forgets the keys (`api_key` is empty from here on), the agent identities and the activity of the hosts that were
    /// removed before `when`; says how many.
    async fn host_purge_removed(&self, when: OffsetDateTime) -> Result<usize>;
    /// Hosts that are not removed, by name.
    async fn host_list(&self) -> Result<Vec<Host>>;
    /// `None`: no such host, or it is removed.
    async fn host_fetch(&self, id: HostId) -> Result<Option<Host>>;
    async fn host_fetch_by_name(&self, fqdn: &Fqdn) -> Result<Option<Host>>;
    /// Applies a change of rules made by an admin. `None`: no such host.
    async fn host_change(
        &self,
        id: HostId,
        change: &HostChange,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>>;
    /// Binds the key with this digest to the address, if it is bound to none of this family (IPv4, IPv6) yet, or its host
    /// may roam; of several racing first calls of one family exactly one binds. An IPv6 address in the network that the key
    /// is bound to, which has a prefix of `ipv6_prefix` bits, changes nothing. Gives the host as it is then. `None`: it is
    /// no host's key (any more).
    async fn host_bind_ip(
        &self,
        id: HostId,
        key: &Digest,
        ip: IpAddr,
        ipv6_prefix: u8,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>>;

    /// Keeps the agent identity of a host. `false`, and nothing is written: there is no such host, or `key` is not its own
    /// key (any more). Where the host has this very value, nothing is written. Bumps the epoch.
    async fn host_set_agent_identity(
        &self,
        id: HostId,
        key: &Digest,
        identity: &Sealed,
        audit: &AuditNote,
    ) -> Result<bool>;

    /// Redeems an installer token: exactly one call ever gets [`Redemption::Redeemed`]. `key` is what the caller's script
    /// was made with: if the host has another key by now nothing is redeemed.
    async fn installer_redeem(
        &self,
        token: &Digest,
        key: &Digest,
        at: OffsetDateTime,
        from: IpAddr,
        audit: &AuditNote,
    ) -> Result<Redemption>;
    /// Every installer token there ever was, the newest first.
    async fn installer_list(&self) -> Result<Vec<InstallToken>>;
    /// `None`: no such token, or it is spent, or revoked already.
    async fn installer_revoke(
        &self,
        token: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<InstallToken>>;

    /// Makes `new` the canonical version if the present one meets `condition`, which is decided within the transaction.
    /// The new version's number is one more than the highest there ever was; the entry in the audit log has it as its
    /// target. A version that was pruned is not known any more. Calls that are under way together may be taken in any order;
    /// the latest `last_refresh` first, where that can be had, so that most of the others find themselves overtaken at once.
    async fn canonical_replace(
        &self,
        condition: &Condition,
        new: &NewCanonical,
        audit: &AuditNote,
    ) -> Result<Replacement>;
    async fn canonical_fetch(&self) -> Result<Option<CanonicalVersion>>;
    async fn canonical_fetch_version(&self, version: u64) -> Result<Option<CanonicalVersion>>;
    /// Up to `limit` of the versions that are kept, those below `before`, newest first, without the secrets.
    async fn canonical_list(&self, before: Option<u64>, limit: usize) -> Result<Vec<CanonicalSummary>>;
    /// Removes up to `limit` versions that `retention` does not keep, with what is sealed of them. The canonical version
    /// and the newest one always stay, which is decided within the transaction. Returns the numbers of the removed ones,
    /// the lowest first. The entry in the audit log has the first and the last of them as its target. Nodes are not told:
    /// they cache the canonical version only.
    async fn canonical_prune(&self, retention: &Retention, limit: usize, audit: &AuditNote) -> Result<Vec<u64>>;

    /// Applies a batch of telemetry once: a batch whose `seq` is not above the highest applied for `node` changes nothing.
    /// What tells of a host that is not there (any more) is dropped.
    async fn telemetry_append(&self, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()>;
    async fn host_activity(&self, id: HostId) -> Result<HostActivity>;

    /// Begins a probe, unless one is under way on any node, which is decided within the transaction. Repeated with an id
    /// that has begun: `Begun`. A daily one is `NotDue` where one of that UTC day was begun already, by whichever node,
    /// whether or not another one is under way. Nodes do not cache probes. However many are begun, the newest thousand are
    /// kept, a few of them in favour of older ones that the summary tells of.
    async fn probe_claim(&self, claim: &ProbeClaim, audit: Option<&AuditNote>) -> Result<Claimed>;
    /// Writes what a probe found, once; its lease ends with that. Repeated: `true` if it is the same, else `false`, which is
    /// also the answer for an id that is not known. A probe whose lease was over may still be finished.
    async fn probe_finish(&self, id: Uuid, outcome: &ProbeOutcome, audit: Option<&AuditNote>) -> Result<bool>;
    /// Up to `limit`, newest first.
    async fn probe_list(&self, limit: usize) -> Result<Vec<Probe>>;
    async fn probe_summary(&self, since: OffsetDateTime) -> Result<ProbeSummary>;

    /// Adds a user. `false`: the e-mail address is another user's, and nothing is written. Repeated with the same id:
    /// `true`, and the user stays as it is; an id that is of another address is an error, and nothing is written. Bumps the
    /// epoch, as everything that changes a user or ends or begins a session does. Users are never removed.
    async fn user_add(&self, user: &User, audit: &AuditNote) -> Result<bool>;
    /// By e-mail address.
    async fn user_list(&self) -> Result<Vec<User>>;
    async fn user_fetch_by_email(&self, email: &Email) -> Result<Option<User>>;
    /// Gives the user, and the hosts that changed with it, as they are then. `None`: no such user, or, of a rehashed
    /// password, another one by now. Where it is so already nothing is written.
    async fn user_change(
        &self,
        id: UserId,
        change: &UserChange,
        at: OffsetDateTime,
        audit: Option<&AuditNote>,
    ) -> Result<Option<ChangedUser>>;
    /// Begins a session, if its user is still what it was when the sign-in was decided; one through a provider also needs
    /// that its identity is still linked to this user. Repeated with the same id and token: [`Begun::Begun`], whatever has
    /// become of it since. The id of a session that was purged is not known any more.
    async fn session_begin(&self, session: &Session, audit: &AuditNote) -> Result<Begun>;
    /// `None`: no such session, or it was ended already.
    async fn session_end(&self, id: Uuid, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Session>>;
    /// Notes when sessions were last used: a later time than the one that is known, else nothing. Nodes are not told, and
    /// nothing is noted in the audit log.
    async fn session_touch(&self, used: &[(Uuid, OffsetDateTime)]) -> Result<()>;
    /// All that are kept, those that are over included, the newest first.
    async fn session_list(&self) -> Result<Vec<Session>>;
    /// Forgets sessions that ended, or were to end, before `when`; says how many. Nodes are not told.
    async fn session_purge(&self, when: OffsetDateTime) -> Result<usize>;
    /// Bytes in issuer and subject: up to [`LONGEST_IDENTITY_PART`], and in the e-mail address no more either, which the
    /// caller sees to. Compared byte by byte. An identity that is linked stays as it is. Nodes are not told.
    async fn identity_link(&self, identity: &ExternalIdentity, audit: &AuditNote) -> Result<Linked>;
    /// Turns the generation of its user, too; gives both. `None`: it was not linked.
    async fn identity_unlink(
        &self,
        issuer: &str,
        subject: &str,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<(ExternalIdentity, User)>>;
    /// By issuer and subject. Read from the store each time: rows that somebody else put there count.
    async fn identity_fetch(&self, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>>;
    /// By user, then issuer and subject.
    async fn identity_list(&self) -> Result<Vec<ExternalIdentity>>;
    /// Ties a certificate to a user, whose role it has from then on; `None` unties it. Bumps the epoch. `None` is answered
    /// where there is no such certificate, or no such user. Where it is so already nothing is written.
    async fn certificate_set_user(
        &self,
        fingerprint: &Digest,
        user: Option<UserId>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>>;

    async fn settings_fetch(&self) -> Result<Settings>;
    /// Applies one change to the settings as they are within the transaction; gives all of them as they are then. `None`:
    /// it does not fit what is there now, and nothing is written.
    async fn settings_change(&self, change: &SettingsChange, audit: &AuditNote) -> Result<Option<Settings>>;

    /// Appends what is no change of anything else: a refusal, a secret that was shown.
    async fn audit_append(&self, notes: &[AuditNote]) -> Result<()>;
    /// Up to `limit` entries that `filter` admits, the newest first.
    async fn audit_list(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>>;
    /// Up to `limit` entries from number `from` on, in their order: for whoever follows the chain.
    async fn audit_list_from(&self, from: u64, limit: usize) -> Result<Vec<AuditEntry>>;
    async fn audit_head(&self) -> Result<AuditHead>;

    async fn epoch(&self) -> Result<Epoch>;
    /// Where the records are, and whether they are still those that somebody knew.
    async fn state(&self) -> Result<StoreState>;
    /// From here on every change is refused ([`RecordsError::StandsStill`]), whichever node it comes from, until it is
    /// taken back with `None`. What was asked for once may be asked for again, with other words.
    async fn standstill_set(&self, standstill: Option<&Standstill>, audit: &AuditNote) -> Result<()>;

    /// Hands on everything as of one moment, in the order of [`copy::Table`] and of the primary keys. It takes as long as
    /// whoever takes the chunks; an error in between leaves them with less than everything.
    async fn copy_export(&self, chunks: mpsc::Sender<Vec<copy::Row>>) -> Result<()>;
    /// Makes these the records to be filled: whatever they hold is removed, and until [`Records::fill_finish`] they
    /// are `Unavailable` to everybody else, whatever crash comes in between; another begin takes over from one that was
    /// cut short. `false`, and nothing is changed: they hold something, and it is not to be replaced.
    async fn fill_begin(&self, filling: &Filling, replaces: bool) -> Result<bool>;
    /// Adds rows, each once, in the order in which they were exported.
    async fn fill_append(&self, filling: &Filling, rows: &[copy::Row]) -> Result<()>;
    /// Makes them whole: initialised, at an epoch above all that a node may know, of a new incarnation (the id of the
    /// filling), not standing still. `Unavailable` if another filling took over.
    async fn fill_finish(&self, filling: &Filling, audit: &AuditNote) -> Result<()>;

    /// Everything that nodes cache and that changed after `epoch`, each row once, as it is at the epoch that is told with
    /// it; with an `epoch` that is ahead of the records: nothing, and their own.
    async fn changes_since(&self, epoch: Epoch) -> Result<Changes>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    pub epoch: Epoch,
    /// Changes when the store is filled: what was cached of it before belongs to other records. `None`: it was never.
    pub incarnation: Option<Uuid>,
    pub standstill: Option<Standstill>,
}

/// Why the records are to be left as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standstill {
    /// A sentence for whoever is refused: why, and what to do.
    pub reason: String,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

impl std::fmt::Display for Standstill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// One filling of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filling {
    /// Made anew for each; the store's incarnation when it is finished.
    pub id: Uuid,
    /// The records end at an epoch above this one, and above their own.
    pub above: Epoch,
}

/// A store that takes no more changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFailure {
    /// Its directory.
    pub place: PathBuf,
    /// What the system said.
    pub cause: String,
}

/// What the first boot makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seed {
    pub sealing_key: SealingKey,
    pub authorities: Vec<Authority>,
    /// PKCS#8 DER of the server's key, at place `settings/server_key/0`.
    pub server_key: Sealed,
}

/// What a daemon stands on. Nothing in it is secret in the clear.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Foundation {
    pub sealing_keys: Vec<SealingKey>,
    pub authorities: Vec<Authority>,
    pub certificates: Vec<AdminCertificate>,
    pub server_key: Sealed,
    /// Of the store that this is of.
    #[serde(default)]
    pub incarnation: Option<Uuid>,
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
    /// The same key, certified by the authority that was active before: for those who know only that one.
    #[serde(default)]
    pub cross_certificate_pem: Option<String>,
    /// When it was made; authorities of the first format do not say.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub created_at: Option<OffsetDateTime>,
}

/// One step of a roll-over. Every step refuses to be done twice.
#[derive(Clone, Debug)]
pub enum AuthorityStep {
    /// Puts an authority into the empty slot `next`. `active` must be the one that was active when it was made, because
    /// that one may have certified it.
    Prepare { made: Box<Authority>, active: Uuid },
    /// `next`, which must be this one, becomes `active`, `active` becomes `old`, which must be empty.
    Activate(Uuid),
    /// Empties `old`, which must be this one.
    Retire(Uuid),
}

/// An admin's certificate that was issued. The private key is not kept.
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
    /// The authority that signed it; certificates of the first format do not say.
    #[serde(default)]
    pub authority: Option<Uuid>,
    /// Whose it is; whoever shows it has that user's role. `None`: an admin's, whoever that is.
    // Rows of a backup are counted as they are written: those of before there were users did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub id: HostId,
    pub fqdn: Fqdn,
    pub key_digest: Digest,
    /// A host that moved over from the former service presents this one as well (the digest of its stored hash).
    pub imported_key_digest: Option<Digest>,
    /// The key itself, to bake into wrappers; at place `hosts/api_key/<id>`.
    pub api_key: Sealed,
    pub rules: HostRules,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub removed_at: Option<OffsetDateTime>,
    /// The user who installed it for themselves.
    // Rows of a backup are counted as they are written: those of before there were users did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserId>,
    /// The private key that Codex registered for this host: the JSON text of `agent_identity` in its auth.json, at place
    /// `hosts/agent_identity/<id>`. It lives and dies with the API key: a new key, or the purge of a removed host, takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_identity: Option<Sealed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    Host(Box<Host>),
    /// The name is taken by a host that is not the owner's.
    NotTheirs,
    /// The owner has as many as they may have.
    TooMany,
    /// The owner is disabled.
    OwnerDisabled,
}

#[derive(Clone, Debug)]
pub struct Registration {
    /// The host's id if the name is new; else the present host keeps its own.
    pub id: HostId,
    pub fqdn: Fqdn,
    pub key_digest: Digest,
    /// The key is sealed for one host id. Where the name is taken by a host whose id is not `id`, nothing is written and
    /// [`RecordsError`] is not used: `register_host` returns that host unchanged, and the caller seals for it and calls
    /// again. (`key_digest` of the answer tells which it was.)
    pub api_key: Sealed,
    /// `None` leaves a known host's rule as it is, and is `true` for a new one.
    pub secure: Option<bool>,
    /// Until when a temporary host is served; `None` leaves a known host's end as it is.
    pub expires_at: Option<OffsetDateTime>,
    /// Set together with `secure: false`: the first window of an insecure host.
    pub insecure_enabled_until: Option<OffsetDateTime>,
    pub token: NewInstallToken,
    pub at: OffsetDateTime,
}

#[derive(Clone, Debug)]
pub struct NewInstallToken {
    pub digest: Digest,
    pub base_url: String,
    pub expires_at: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallToken {
    pub digest: Digest,
    pub host: HostId,
    pub base_url: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub redeemed_at: Option<OffsetDateTime>,
    pub redeemed_from: Option<IpAddr>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

impl InstallToken {
    /// A token lives for so long, whichever way the clock is set.
    pub fn is_over(&self, now: OffsetDateTime) -> bool {
        rules::is_over(self.created_at, self.expires_at, now)
    }
}

// Made once for an installation: a box would only be in everybody's way.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redemption {
    Redeemed {
        host: Host,
        token: InstallToken,
    },
    AlreadyUsed,
    Expired,
    /// The host has another key than the caller expects. The token is still good.
    KeyChanged,
    /// Never issued, revoked, or its host removed.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restoration {
    Restored(Host),
    /// Another host has the name by now.
    NameTaken,
    /// Never there, not removed, removed too long ago, or its key is forgotten already.
    Unknown,
}

/// Members that are `None` stay as they are.
#[derive(Clone, Debug, Default)]
pub struct HostChange {
    pub secure: Option<bool>,
    /// An admin's decision: the user's being disabled or enabled does not change it later.
    pub disabled: Option<bool>,
    pub expires_at: Option<Option<OffsetDateTime>>,
    pub allowed_networks: Option<Vec<IpNet>>,
    pub allow_roaming_ips: Option<bool>,
    /// Replaces the addresses of both families.
    pub bound_ip: Option<Option<IpAddr>>,
    pub insecure_enabled_until: Option<Option<OffsetDateTime>>,
    pub insecure_grace_until: Option<Option<OffsetDateTime>>,
}

/// How a database's server is.
#[derive(Clone, Debug)]
pub struct ServerHealth {
    pub version: String,
    pub is_encrypted: bool,
    /// On this machine: a socket, or a loopback address.
    pub is_local: bool,
    pub now: OffsetDateTime,
    /// The newest migration that is applied, and the newest that this version knows.
    pub migration: u32,
    pub newest: u32,
}

/// Where a canonical version came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Source {
    Admin {
        by: String,
    },
    /// An admin's upload that was older than the canonical version, and was to win all the same.
    Override {
        by: String,
    },
    /// An admin brought back the login of an earlier version.
    Rollback {
        by: String,
        of: u64,
    },
    /// Codex refreshed the tokens of a version while that was probed.
    Runner {
        of: u64,
    },
    Host {
        id: HostId,
        fqdn: Fqdn,
    },
}

#[derive(Clone, Debug)]
pub struct NewCanonical {
    /// Names the attempt; a retried call with the same id that has already won answers as it did then.
    pub id: Uuid,
    pub digest: Digest,
    pub last_refresh: String,
    /// The canonical text, at place `auth_payloads/body/<id>`.
    pub body: Sealed,
    pub entries: Vec<AuthEntry>,
    pub source: Source,
    pub at: OffsetDateTime,
}

/// Which versions are kept: one that either member keeps.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// So many of the newest; at least one is kept.
    pub newest: u64,
    /// Those that were stored then or later.
    pub since: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthEntry {
    pub target: String,
    /// At place `auth_entries/token/<payload id>/<target>`.
    pub token: Sealed,
    pub token_type: String,
    pub organization: Option<String>,
    pub project: Option<String>,
    pub api_base: Option<String>,
}

/// What must hold of the present canonical version for another to take its place.
#[derive(Clone, Debug)]
pub enum Condition {
    /// It has this number; `None`: there is none yet.
    Version(Option<u64>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// `epoch` is where the version became canonical, or was last written since. A repeated call whose version is not
    /// canonical any more is told `Epoch(0)`.
    Replaced { version: CanonicalVersion, epoch: Epoch },
    /// Somebody was first: the present version.
    Conflict(Option<CanonicalVersion>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanonicalVersion {
    pub id: Uuid,
    #[serde(flatten)]
    pub summary: CanonicalSummary,
    pub body: Sealed,
    pub entries: Vec<AuthEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanonicalSummary {
    /// 1, 2, 3, …
    pub version: u64,
    pub digest: Digest,
    pub last_refresh: String,
    pub source: Source,
    #[serde(with = "time::serde::rfc3339")]
    pub stored_at: OffsetDateTime,
}

/// What hosts' calls leave behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Telemetry {
    /// `calls` more calls; the other members replace what is known where they are set, unless what is known was seen
    /// later (several nodes' batches arrive in any order).
    Seen {
        host: HostId,
        calls: u64,
        #[serde(with = "time::serde::rfc3339")]
        last_seen: OffsetDateTime,
        last_refresh: Option<String>,
        /// What the host had in hand since it was last told of.
        #[serde(default)]
        digests: RecentDigests,
        client_version: Option<String>,
        wrapper_version: Option<String>,
        /// When the host was last given its wrapper, and with it the authorities that it trusts.
        #[serde(default, with = "time::serde::rfc3339::option")]
        wrapper_fetched_at: Option<OffsetDateTime>,
    },
    /// Something for the audit log.
    Noted { note: AuditNote },
}

impl Telemetry {
    /// What is known of a host once this is added to it.
    pub fn apply_to(&self, activity: &mut HostActivity) {
        let Self::Seen {
            host: _,
            calls,
            last_seen,
            last_refresh,
            digests,
            client_version,
            wrapper_version,
            wrapper_fetched_at,
        } = self
        else {
            return;
        };
        activity.api_calls = activity.api_calls.saturating_add(*calls);
        activity.wrapper_fetched_at = activity.wrapper_fetched_at.max(*wrapper_fetched_at);
        if activity.last_seen.is_some_and(|known| known > *last_seen) {
            return;
        }
        activity.last_seen = Some(*last_seen);
        activity.digests.follow(digests);
        for (known, told) in [
            (&mut activity.last_refresh, last_refresh),
            (&mut activity.client_version, client_version),
            (&mut activity.wrapper_version, wrapper_version),
        ] {
            if told.is_some() {
                known.clone_from(told);
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The kill switch: hosts are answered 503.
    pub api_disabled: bool,
    /// What hosts are told with it.
    pub api_disabled_reason: Option<String>,
    /// The newest Codex that upstream is known to have released.
    pub client_release: Option<ClientRelease>,
    // Rows of a backup are counted as they are written: those of before there was this did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_login: Option<RestoredLogin>,
    /// The newest backup that was made and read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_backup: Option<VerifiedBackup>,
    /// `None`: no daemon that records it has run yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_trust: Option<HostTrust>,
}

/// Which certificates of the daemon hosts accept, and whose they are shown. All nodes bake their wrappers by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTrust {
    /// Wrappers of the releases that did not report what they trust trust the machine's store alone; else our authority
    /// alone.
    pub old_wrappers_trust_system: bool,
    /// Since when wrappers are baked to trust the machine's store as well. `None`: they trust our authority alone.
    #[serde(with = "time::serde::rfc3339::option")]
    pub system_since: Option<OffsetDateTime>,
    /// Since when hosts are shown a certificate that the machine's store vouches for, the operator's or a proxy's. `None`:
    /// they are shown one of our authority.
    #[serde(with = "time::serde::rfc3339::option")]
    pub switched_at: Option<OffsetDateTime>,
}

impl HostTrust {
    /// Every host trusts our authority alone, and is shown a certificate of it.
    pub const NONE: Self = Self { old_wrappers_trust_system: false, system_since: None, switched_at: None };
}

/// One change of the settings. Each changes its own members and no others, so that nodes which change the settings at the
/// same time undo nothing of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsChange {
    /// The kill switch. Off: there is no reason then.
    Api {
        disabled: bool,
        reason: Option<String>,
    },
    ClientRelease(ClientRelease),
    /// Marks a version as brought back by a backup.
    MarkRestored(RestoredLogin),
    /// Removes the mark, if it is of this version.
    ClearRestored {
        version: u64,
    },
    /// Notes a backup, if it is newer than the one that is noted.
    BackupVerified(VerifiedBackup),
    /// Records for the first time what hosts trust; what is recorded stays.
    BeginHostTrust(HostTrust),
    /// Wrappers trust the machine's store from then on, if they do not already. It is not taken back.
    TrustSystem {
        since: OffsetDateTime,
    },
    /// Hosts are shown a certificate that the machine's store vouches for, or one of our authority again (`None`). It does
    /// not fit where that is so already.
    Switch(Option<OffsetDateTime>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedBackup {
    /// Of when the backup is.
    #[serde(with = "time::serde::rfc3339")]
    pub made_at: OffsetDateTime,
    /// The keys are in it, under a passphrase: it needs nothing else.
    pub has_keys: bool,
}

/// A version that a backup brought back. It may hold a refresh token which was spent since, and such a token must not be
/// redeemed again: upstream may take that for theft, and withdraw what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredLogin {
    pub version: u64,
    /// Of when the backup is.
    #[serde(with = "time::serde::rfc3339")]
    pub backup_of: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRelease {
    pub version: String,
    #[serde(with = "time::serde::rfc3339")]
    pub checked_at: OffsetDateTime,
}

/// What nodes cache, as far as it changed.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub epoch: Epoch,
    /// Removed ones included (`removed_at`).
    pub hosts: Vec<Host>,
    /// Spent and revoked ones included.
    pub install_tokens: Vec<InstallToken>,
    pub canonical: Option<CanonicalVersion>,
    pub settings: Option<Settings>,
    /// All of them, if one changed.
    pub certificates: Option<Vec<AdminCertificate>>,
    /// All of them, if one changed.
    pub authorities: Option<Vec<Authority>>,
    /// All of them, if one changed.
    pub users: Option<Vec<User>>,
    /// Ended ones included.
    pub sessions: Vec<Session>,
}
