//! The records in a file of the state directory: the default, with nothing to install.
//!
//! Everything stands in **one** table under prefixed keys ([`rows`]), so that a change is part of one transaction: rows,
//! their indexes and the epoch are there together or not at all, whatever line a crash or a power cut hits. Changes run one
//! at a time ([`Store::write`]), which is what makes "exactly one" and "without a gap" true without a retry. Each read sees
//! the rows of one moment ([`Snapshot`]).
//!
//! No answer leaves before what it rests on is power-safe: changes and reads alike await [`Store::settled`]. So a reader
//! never passes on a canonical version, or a "no, it is used already", that a power cut could still take back; the price
//! is that a read may wait for a flush that is under way. Once a flush has failed, everything is refused until the records
//! are opened anew, by another process.

mod audit;
mod authorities;
mod canonical;
mod changes;
mod copying;
mod hosts;
mod identities;
mod install;
mod probes;
pub mod rescue;
mod rows;
mod sealed;
mod sessions;
mod telemetry;
mod turns;
pub mod upgrade;
mod users;

use std::cmp::Reverse;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::copy::{Chunks, Row};
use super::{
    AdminCertificate, Authority, AuthorityStep, Begun, CanonicalSummary, CanonicalVersion, ChangedUser, Changes,
    Claimed, Condition, Epoch, ExternalIdentity, Filling, Host, HostChange, InstallToken, Linked, NewCanonical, Owner,
    Probe, ProbeClaim, ProbeOutcome, ProbeSummary, Records, RecordsError, Redemption, Registered, Registration,
    Replacement, Restoration, Result, Retention, SealingKey, Seed, Session, Settings, SettingsChange, Standstill,
    StoreFailure, StoreState, Telemetry, User, UserChange,
};
use crate::durable::{DurableError, Snapshot, Staged, Store};
use crate::model::audit::{AuditEntry, AuditFilter, AuditHead, AuditNote};
use crate::model::authority::AuthorityRole;
use crate::model::digest::Digest;
use crate::model::host::{Fqdn, HostActivity, HostId};
use crate::model::instant::Instant;
use crate::model::people::{Email, UserId};
use crate::seal::{KeyId, Place, Sealed};

/// The records of one daemon, in a directory of their own.
pub struct Embedded {
    data: Arc<Store>,
    /// Stores that wait for their turn, the login with the latest date first.
    stores: turns::Turns<Reverse<Option<Instant>>, Replacement>,
    /// A test cuts nodes off from what changed: changes are made, and following them fails.
    #[cfg(test)]
    pub(crate) following_fails: std::sync::atomic::AtomicBool,
}

impl Embedded {
    /// Opens the records in `dir`, making it where it is missing. Reading them again takes time: not for an async task.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self::on(Store::durable(dir, "records")?))
    }

    pub(crate) fn on(data: Store) -> Self {
        Self {
            data: Arc::new(data),
            stores: turns::Turns::new(),
            #[cfg(test)]
            following_fails: std::sync::atomic::AtomicBool::default(),
        }
    }

    /// `false` once a change could not be made safe; every call is refused from then on.
    pub fn healthy(&self) -> bool {
        self.data.healthy()
    }

    /// `observe` is told how long each flush takes.
    pub fn on_flush(&self, observe: impl Fn(std::time::Duration) + Send + Sync + 'static) {
        self.data.on_flush(observe);
    }

    async fn change<T>(&self, change: impl FnOnce(&mut Staged<'_>) -> Result<T>) -> Result<T> {
        self.change_anyway(|staged| {
            copying::check(staged)?;
            change(staged)
        })
        .await
    }

    /// Whatever is going on with the store as a whole.
    async fn change_anyway<T>(&self, change: impl FnOnce(&mut Staged<'_>) -> Result<T>) -> Result<T> {
        let outcome = self.data.write(change);
        // An outcome that wrote nothing still tells what others wrote a moment ago.
        self.data.settled().await?;
        outcome
    }

    async fn read<T>(&self, read: impl FnOnce(&Snapshot) -> Result<T>) -> Result<T> {
        let answer = read(&self.data.snapshot());
        self.data.settled().await?;
        answer
    }

    /// For what reads many rows: off the async threads.
    async fn read_much<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let data = Arc::clone(&self.data);
        let answer = tokio::task::spawn_blocking(move || read(&data.snapshot()))
            .await
            .map_err(|e| RecordsError::Unavailable(format!("the reading task ended early: {e}")))?;
        self.data.settled().await?;
        answer
    }
}

impl From<DurableError> for RecordsError {
    fn from(error: DurableError) -> Self {
        match error {
            DurableError::Failed { .. } => Self::Failed(error.to_string()),
            DurableError::Damaged { .. } => {
                log::error!(event = "records_damaged", cause:% = error; "the records are damaged: {error}");
                Self::Damaged(error.to_string())
            }
            error => Self::Unavailable(error.to_string()),
        }
    }
}

#[async_trait]
impl Records for Embedded {
    async fn initialise(&self, seed: &Seed, audit: &AuditNote) -> Result<bool> {
        self.change(|staged| install::initialise(staged, seed, audit)).await
    }

    async fn is_initialised(&self) -> Result<bool> {
        self.read(|data| {
            copying::check_whole(data)?;
            Ok(data.get(rows::INITIALISED)?.is_some())
        })
        .await
    }

    async fn check(&self) -> Result<()> {
        self.read(copying::check).await
    }

    fn failure(&self) -> Option<StoreFailure> {
        self.data.failure().map(|(place, cause)| StoreFailure { place, cause })
    }

    fn may_be_away(&self) -> bool {
        false
    }

    async fn verify(&self) -> Result<Option<u64>> {
        self.read_much(|data| {
            data.scan("").try_fold(0, |rows, row| row.map(|_| rows + 1)).map(Some).map_err(RecordsError::from)
        })
        .await
    }

    fn conflicts(&self) -> u64 {
        0
    }

    async fn sealing_key_list(&self) -> Result<Vec<SealingKey>> {
        self.read(|data| rows::all(data, rows::SEALING_KEY)).await
    }

    async fn sealing_key_add(&self, key: &SealingKey, audit: &AuditNote) -> Result<bool> {
        self.change(|staged| sealed::add_key(staged, key, audit)).await
    }

    async fn sealing_key_remove(&self, id: KeyId) -> Result<bool> {
        self.change(|staged| sealed::remove_key(staged, id)).await
    }

    async fn sealed_value_list_before(&self, active: KeyId, limit: usize) -> Result<Vec<(Place, Sealed)>> {
        self.read(|data| sealed::values_before(data, active, limit)).await
    }

    async fn sealed_value_replace(&self, place: &Place, old: &Sealed, new: &Sealed) -> Result<bool> {
        self.change(|staged| sealed::reseal(staged, place, old, new)).await
    }

    async fn authority_list(&self) -> Result<Vec<Authority>> {
        self.read(|data| rows::all(data, rows::AUTHORITY)).await
    }

    async fn server_key_fetch(&self) -> Result<Option<Sealed>> {
        self.read(|data| rows::get(data, rows::SERVER_KEY)).await
    }

    async fn authority_roll(
        &self,
        role: AuthorityRole,
        step: &AuthorityStep,
        audit: &AuditNote,
    ) -> Result<Option<Vec<Authority>>> {
        self.change(|staged| authorities::roll(staged, role, step, audit)).await
    }

    async fn certificate_record(&self, certificate: &AdminCertificate, audit: &AuditNote) -> Result<()> {
        self.change(|staged| authorities::record(staged, certificate, audit)).await
    }

    async fn certificate_renew(
        &self,
        old: &Digest,
        certificate: &AdminCertificate,
        revoke_at: Option<OffsetDateTime>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        self.change(|staged| authorities::renew(staged, old, certificate, revoke_at, audit)).await
    }

    async fn certificate_list(&self) -> Result<Vec<AdminCertificate>> {
        self.read(authorities::certificates).await
    }

    async fn certificate_revoke(
        &self,
        fingerprint: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        self.change(|staged| authorities::revoke(staged, fingerprint, at, audit)).await
    }

    async fn host_register(&self, registration: &Registration, audit: &AuditNote) -> Result<Host> {
        self.change(|staged| hosts::register(staged, registration, audit)).await
    }

    async fn host_register_owned(
        &self,
        registration: &Registration,
        owner: &Owner,
        audit: &AuditNote,
    ) -> Result<Registered> {
        self.change(|staged| hosts::register_owned(staged, registration, owner, audit)).await
    }

    async fn host_remove(&self, id: HostId, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Host>> {
        self.change(|staged| hosts::remove(staged, id, None, at, audit)).await
    }

    async fn host_remove_owned(
        &self,
        id: HostId,
        owner: UserId,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        self.change(|staged| hosts::remove(staged, id, Some(owner), at, audit)).await
    }

    async fn host_restore(
        &self,
        id: HostId,
        removed_after: OffsetDateTime,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Restoration> {
        self.change(|staged| hosts::restore(staged, id, removed_after, at, audit)).await
    }

    async fn host_list_removed(&self) -> Result<Vec<Host>> {
        self.read_much(hosts::removed).await
    }

    async fn host_purge_removed(&self, when: OffsetDateTime) -> Result<usize> {
        self.change(|staged| hosts::purge_removed(staged, when)).await
    }

    async fn host_list(&self) -> Result<Vec<Host>> {
        self.read_much(hosts::all).await
    }

    async fn host_fetch(&self, id: HostId) -> Result<Option<Host>> {
        self.read(|data| hosts::by_id(data, id)).await
    }

    async fn host_fetch_by_name(&self, fqdn: &Fqdn) -> Result<Option<Host>> {
        self.read(|data| hosts::by_name(data, fqdn)).await
    }

    async fn host_change(
        &self,
        id: HostId,
        change: &HostChange,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        self.change(|staged| hosts::change(staged, id, change, at, audit)).await
    }

    async fn host_bind_ip(
        &self,
        id: HostId,
        key: &Digest,
        ip: IpAddr,
        ipv6_prefix: u8,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<Host>> {
        self.change(|staged| hosts::bind_ip(staged, id, key, ip, ipv6_prefix, at, audit)).await
    }

    async fn host_set_agent_identity(
        &self,
        id: HostId,
        key: &Digest,
        identity: &Sealed,
        audit: &AuditNote,
    ) -> Result<bool> {
        self.change(|staged| hosts::keep_agent_identity(staged, id, key, identity, audit)).await
    }

    async fn installer_redeem(
        &self,
        token: &Digest,
        key: &Digest,
        at: OffsetDateTime,
        from: IpAddr,
        audit: &AuditNote,
    ) -> Result<Redemption> {
        self.change(|staged| hosts::redeem(staged, token, key, at, from, audit)).await
    }

    async fn installer_list(&self) -> Result<Vec<InstallToken>> {
        self.read_much(hosts::tokens).await
    }

    async fn installer_revoke(
        &self,
        token: &Digest,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<InstallToken>> {
        self.change(|staged| hosts::revoke_token(staged, token, at, audit)).await
    }

    async fn canonical_replace(
        &self,
        condition: &Condition,
        new: &NewCanonical,
        audit: &AuditNote,
    ) -> Result<Replacement> {
        let turn = Reverse(Instant::parse(&new.last_refresh).ok());
        let (condition, new, audit) = (condition.clone(), new.clone(), audit.clone());
        self.stores
            .take(&self.data, turn, move |staged| {
                copying::check(staged)?;
                canonical::replace(staged, &condition, &new, &audit)
            })
            .await
    }

    async fn canonical_fetch(&self) -> Result<Option<CanonicalVersion>> {
        self.read(canonical::present).await
    }

    async fn canonical_fetch_version(&self, version: u64) -> Result<Option<CanonicalVersion>> {
        self.read(|data| canonical::version(data, version)).await
    }

    async fn canonical_list(&self, before: Option<u64>, limit: usize) -> Result<Vec<CanonicalSummary>> {
        self.read_much(move |data| canonical::history(data, before, limit)).await
    }

    async fn canonical_prune(&self, retention: &Retention, limit: usize, audit: &AuditNote) -> Result<Vec<u64>> {
        let kept = *retention;
        // The search reads every summary: not while changes wait. What it finds is decided anew by the change.
        let found = self.read_much(move |data| canonical::prunable(data, &kept, limit)).await?;
        if found.is_empty() {
            return Ok(found);
        }
        self.change(|staged| canonical::prune(staged, &found, retention, audit)).await
    }

    async fn telemetry_append(&self, node: Uuid, seq: u64, batch: &[Telemetry]) -> Result<()> {
        self.change(|staged| telemetry::append(staged, node, seq, batch)).await
    }

    async fn host_activity(&self, id: HostId) -> Result<HostActivity> {
        self.read(|data| Ok(rows::get(data, rows::activity(id))?.unwrap_or_default())).await
    }

    async fn probe_claim(&self, claim: &ProbeClaim, audit: Option<&AuditNote>) -> Result<Claimed> {
        self.change(|staged| probes::claim(staged, claim, audit)).await
    }

    async fn probe_finish(&self, id: Uuid, outcome: &ProbeOutcome, audit: Option<&AuditNote>) -> Result<bool> {
        self.change(|staged| probes::finish(staged, id, outcome, audit)).await
    }

    async fn probe_list(&self, limit: usize) -> Result<Vec<Probe>> {
        self.read_much(move |data| probes::all(data).take(limit).collect()).await
    }

    async fn probe_summary(&self, since: OffsetDateTime) -> Result<ProbeSummary> {
        self.read_much(move |data| ProbeSummary::of(probes::all(data), since)).await
    }

    async fn user_add(&self, user: &User, audit: &AuditNote) -> Result<bool> {
        self.change(|staged| users::add(staged, user, audit)).await
    }

    async fn user_list(&self) -> Result<Vec<User>> {
        self.read_much(users::all).await
    }

    async fn user_fetch_by_email(&self, email: &Email) -> Result<Option<User>> {
        self.read(|data| users::by_email(data, email)).await
    }

    async fn user_change(
        &self,
        id: UserId,
        change: &UserChange,
        at: OffsetDateTime,
        audit: Option<&AuditNote>,
    ) -> Result<Option<ChangedUser>> {
        self.change(|staged| users::change(staged, id, change, at, audit)).await
    }

    async fn session_begin(&self, session: &Session, audit: &AuditNote) -> Result<Begun> {
        self.change(|staged| sessions::begin(staged, session, audit)).await
    }

    async fn session_end(&self, id: Uuid, at: OffsetDateTime, audit: &AuditNote) -> Result<Option<Session>> {
        self.change(|staged| sessions::end(staged, id, at, audit)).await
    }

    async fn session_touch(&self, used: &[(Uuid, OffsetDateTime)]) -> Result<()> {
        self.change(|staged| sessions::touch(staged, used)).await
    }

    async fn session_list(&self) -> Result<Vec<Session>> {
        self.read_much(sessions::all).await
    }

    async fn session_purge(&self, when: OffsetDateTime) -> Result<usize> {
        self.change(|staged| sessions::purge(staged, when)).await
    }

    async fn identity_link(&self, identity: &ExternalIdentity, audit: &AuditNote) -> Result<Linked> {
        self.change(|staged| identities::link(staged, identity, audit)).await
    }

    async fn identity_unlink(
        &self,
        issuer: &str,
        subject: &str,
        at: OffsetDateTime,
        audit: &AuditNote,
    ) -> Result<Option<(ExternalIdentity, User)>> {
        self.change(|staged| identities::unlink(staged, issuer, subject, at, audit)).await
    }

    async fn identity_fetch(&self, issuer: &str, subject: &str) -> Result<Option<ExternalIdentity>> {
        self.read(|data| identities::find(data, issuer, subject)).await
    }

    async fn identity_list(&self) -> Result<Vec<ExternalIdentity>> {
        self.read_much(identities::all).await
    }

    async fn certificate_set_user(
        &self,
        fingerprint: &Digest,
        user: Option<UserId>,
        audit: &AuditNote,
    ) -> Result<Option<AdminCertificate>> {
        self.change(|staged| authorities::tie(staged, fingerprint, user, audit)).await
    }

    async fn settings_fetch(&self) -> Result<Settings> {
        self.read(|data| Ok(changes::settings(data)?.map(|marked| marked.row).unwrap_or_default())).await
    }

    async fn settings_change(&self, change: &SettingsChange, audit: &AuditNote) -> Result<Option<Settings>> {
        self.change(|staged| changes::change_settings(staged, change, audit)).await
    }

    async fn audit_append(&self, notes: &[AuditNote]) -> Result<()> {
        self.change(|staged| notes.iter().try_for_each(|note| audit::append(staged, note))).await
    }

    async fn audit_list(&self, filter: &AuditFilter, limit: usize) -> Result<Vec<AuditEntry>> {
        let filter = filter.clone();
        self.read_much(move |data| audit::find(data, &filter, limit)).await
    }

    async fn audit_list_from(&self, from: u64, limit: usize) -> Result<Vec<AuditEntry>> {
        self.read_much(move |data| audit::from(data, from, limit)).await
    }

    async fn audit_head(&self) -> Result<AuditHead> {
        self.read(audit::head).await
    }

    async fn epoch(&self) -> Result<Epoch> {
        self.read(changes::epoch).await
    }

    async fn state(&self) -> Result<StoreState> {
        self.read(copying::state).await
    }

    async fn standstill_set(&self, standstill: Option<&Standstill>, audit: &AuditNote) -> Result<()> {
        self.change_anyway(|staged| copying::set_standstill(staged, standstill, audit)).await
    }

    async fn copy_export(&self, chunks: mpsc::Sender<Vec<Row>>) -> Result<()> {
        self.read_much(move |data| copying::export(data, Chunks::new(chunks))).await
    }

    async fn fill_begin(&self, filling: &Filling, replaces: bool) -> Result<bool> {
        if !self.change_anyway(|staged| copying::begin(staged, filling, replaces)).await? {
            return Ok(false);
        }
        while self.change_anyway(|staged| copying::wipe_some(staged, filling)).await? {}
        Ok(true)
    }

    async fn fill_append(&self, filling: &Filling, rows: &[Row]) -> Result<()> {
        self.change_anyway(|staged| copying::fill(staged, filling, rows)).await
    }

    async fn fill_finish(&self, filling: &Filling, audit: &AuditNote) -> Result<()> {
        self.change_anyway(|staged| copying::finish(staged, filling, audit)).await
    }

    async fn changes_since(&self, epoch: Epoch) -> Result<Changes> {
        #[cfg(test)]
        if self.following_fails.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(RecordsError::Unavailable("a test cut this node off".into()));
        }
        // Nearly every poll finds nothing; only the others go to another thread.
        let now = self.epoch().await?;
        if now <= epoch {
            return Ok(Changes { epoch: now, ..Changes::default() });
        }
        self.read_much(move |data| changes::since(data, epoch)).await
    }
}

#[cfg(test)]
mod tests;
